# SPDX-License-Identifier: Apache-2.0
"""Names for the present state of nodes: equal names, equal voxels in the same place."""

from __future__ import annotations

from hashlib import sha256
from zlib import crc32

import numpy as np
import slicer
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from ..volumes.box import bounding_box
from .volumes import from_vtk_matrix, world_grid


def volume_token(node: slicer.vtkMRMLScalarVolumeNode) -> str:
    """The voxels of a volume node and where they lie in the world."""
    place = sha256(world_grid(node).ijk_to_lps.tobytes()).hexdigest()[:16]
    return f"{node.GetID()} {node.GetImageData().GetMTime()} {place}"


def labels_token(node: slicer.vtkMRMLSegmentationNode) -> str:
    """The voxels of all segments of a segmentation node; colors, names and surfaces do not count."""
    segments = node.GetSegmentation()
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    states = []
    for identifier in segments.GetSegmentIDs():
        labels = segments.GetSegment(identifier).GetRepresentation(kind)
        states.append(f"{identifier}={labels.GetMTime() if labels is not None else 0}")
    return f"{node.GetID()} {' '.join(states)}"


def segments_checksum(node: slicer.vtkMRMLSegmentationNode) -> str:
    """The voxels of all segments and where they lie, however they are stored: alone, in layers, in a larger image.

    Reads all labels (some 10 ms): to be asked where :func:`labels_token` says that something happened to them.
    """
    segments = node.GetSegmentation()
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    states = []
    for identifier in segments.GetSegmentIDs():
        segment = segments.GetSegment(identifier)
        labels = segment.GetRepresentation(kind)
        scalars = labels.GetPointData().GetScalars() if labels is not None else None
        if scalars is None:
            states.append(f"{identifier}=")
            continue
        array = vtk_to_numpy(scalars).reshape(labels.GetDimensions()[::-1])
        mask = array == segment.GetLabelValue()
        box = bounding_box(mask)
        if box is None:
            states.append(f"{identifier}=")
            continue
        matrix = vtkMatrix4x4()
        labels.GetImageToWorldMatrix(matrix)
        first = np.array(labels.GetExtent()[::2]) + np.array(box.start)[::-1]
        place = from_vtk_matrix(matrix)
        place[:3, 3] += place[:3, :3] @ first
        voxels = np.packbits(mask[box]).tobytes()
        states.append(f"{identifier}={np.round(place, 3).tolist()} {box.shape} {crc32(voxels):08x}")
    return " ".join(states)
