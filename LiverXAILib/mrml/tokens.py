# SPDX-License-Identifier: Apache-2.0
"""Names for the present state of nodes: equal names, equal voxels in the same place. Cheap to ask."""

from __future__ import annotations

from hashlib import sha256

import slicer

from .volumes import world_grid


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
