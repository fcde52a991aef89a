# SPDX-License-Identifier: Apache-2.0
"""Tokens for the present state of nodes: equal tokens mean equal voxels at the same position."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from zlib import crc32

import numpy as np
import slicer
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from ..volumes.box import bounding_box
from .volumes import from_vtk_matrix, world_grid


def volume_token(node: slicer.vtkMRMLScalarVolumeNode) -> str:
    """Return a token for the voxels of a volume node and their position in the world."""
    place = sha256(world_grid(node).ijk_to_lps.tobytes()).hexdigest()[:16]
    return f"{node.GetID()} {node.GetImageData().GetMTime()} {place}"


def labels_token(node: slicer.vtkMRMLSegmentationNode) -> str:
    """Return a token for the voxels of all segments of a segmentation node; colors, names and surfaces do not count."""
    segments = node.GetSegmentation()
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    states = []
    for identifier in segments.GetSegmentIDs():
        labels = segments.GetSegment(identifier).GetRepresentation(kind)
        states.append(f"{identifier}={labels.GetMTime() if labels is not None else 0}")
    return f"{node.GetID()} {' '.join(states)}"


def segments_checksum(node: slicer.vtkMRMLSegmentationNode) -> str:
    """Return a checksum of all segments' voxels and positions, however stored: alone, in layers, in a larger image.

    Reads all labels (some 10 ms), so call it only if :func:`labels_token` has changed.
    """
    return prepare_checksum(node)()


def prepare_checksum(node: slicer.vtkMRMLSegmentationNode) -> Callable[[], str]:
    """Do :func:`segments_checksum` in two parts: this call collects the images of the scene, which is quick; the
    function that it returns computes the checksum, and may run in any thread.
    """
    segments = node.GetSegmentation()
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    states: list[Callable[[], str]] = []
    for identifier in segments.GetSegmentIDs():
        segment = segments.GetSegment(identifier)
        labels, matrix, first, array = segment.GetRepresentation(kind), vtkMatrix4x4(), np.zeros(3, int), None
        if labels is not None and labels.GetPointData().GetScalars() is not None:
            array = vtk_to_numpy(labels.GetPointData().GetScalars()).reshape(labels.GetDimensions()[::-1])
            first = np.array(labels.GetExtent()[::2])
            labels.GetImageToWorldMatrix(matrix)
        place = from_vtk_matrix(matrix)
        states.append(partial(_state, identifier, array, segment.GetLabelValue(), first, place))
    return lambda: " ".join(state() for state in states)


def _state(identifier: str, array: np.ndarray | None, value: int, first: np.ndarray, place: np.ndarray) -> str:
    """Return a short token for the voxels (k, j, i) of a segment and their position.

    :param first: index (i, j, k) of the first voxel of `array`.
    :param place: 4x4, from indices to the world.
    """
    mask = None if array is None else array == value
    box = None if mask is None else bounding_box(mask)
    if mask is None or box is None:
        return f"{identifier}="
    place = place.copy()
    place[:3, 3] += place[:3, :3] @ (first + np.array(box.start)[::-1])
    voxels = np.packbits(mask[box]).tobytes()
    return f"{identifier}={np.round(place, 3).tolist()} {box.shape} {crc32(voxels):08x}"
