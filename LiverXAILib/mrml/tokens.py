# SPDX-License-Identifier: Apache-2.0
"""Tokens for the present state of nodes: equal tokens mean equal voxels at the same position."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import slicer
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from ..errors import InputError
from ..volumes.box import bounding_box
from .nodes import get_attribute, set_attributes
from .segmentations import meaning_of_drawn
from .volumes import from_vtk_matrix, world_grid

#: For each segment, by :func:`_key`, its voxels and their position, JSON-ready.
SegmentStates: TypeAlias = dict[str, list[Any]]
#: Attribute of a segmentation node that was edited since it was measured; saved with the scene.
EDITED = "LiverXAI.Edited"


def volume_token(node: slicer.vtkMRMLScalarVolumeNode) -> str:
    """Return a token for the voxels of a volume node and their position in the world."""
    place = sha256(world_grid(node).ijk_to_lps.tobytes()).hexdigest()[:16]
    return f"{node.GetID()} {node.GetImageData().GetMTime()} {place}"


def labels_token(node: slicer.vtkMRMLSegmentationNode) -> str:
    """Return a token for the voxels of all segments of a segmentation node, and what they stand for.

    Colors and surfaces do not count, nor do the names of LiverXAI's own segments.
    """
    segments = node.GetSegmentation()
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    states = []
    for identifier in segments.GetSegmentIDs():
        segment = segments.GetSegment(identifier)
        labels = segment.GetRepresentation(kind)
        states.append(f"{_key(identifier, segment)}={labels.GetMTime() if labels is not None else 0}")
    return f"{node.GetID()} {' '.join(states)}"


def prepare_state(node: slicer.vtkMRMLSegmentationNode) -> Callable[[], SegmentStates]:
    """Return a function that describes the voxels of all segments, however stored: alone, in layers, in a larger image.

    This call collects the images of the scene, which is quick; the function reads all labels (some 10 ms), and may run
    in any thread.
    """
    segments = node.GetSegmentation()
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    states: dict[str, Callable[[], list[Any]]] = {}
    for identifier in segments.GetSegmentIDs():
        segment = segments.GetSegment(identifier)
        labels, matrix, first, array = segment.GetRepresentation(kind), vtkMatrix4x4(), np.zeros(3, int), None
        if labels is not None and labels.GetPointData().GetScalars() is not None:
            array = vtk_to_numpy(labels.GetPointData().GetScalars()).reshape(labels.GetDimensions()[::-1])
            first = np.array(labels.GetExtent()[::2])
            labels.GetImageToWorldMatrix(matrix)
        states[_key(identifier, segment)] = partial(
            _state, array, segment.GetLabelValue(), first, from_vtk_matrix(matrix)
        )
    return lambda: {key: state() for key, state in states.items()}


def record_measured(node: slicer.vtkMRMLSegmentationNode, states: SegmentStates | None = None) -> None:
    """Record in a segmentation node, and so in its scene, that its measurements are those of its present voxels.

    :param states: its segments as returned by :func:`prepare_state`; None: they are read now.
    """
    set_attributes(node, {"Measured": prepare_state(node)() if states is None else states})
    node.SetAttribute(EDITED, None)


def differs_from_measured(node: slicer.vtkMRMLSegmentationNode) -> bool:
    """Return whether a segmentation node has other voxels than those last recorded by :func:`record_measured`.

    Reads all labels, so call it only if :func:`labels_token` has changed. Without a record, the node counts as changed
    if it is marked as edited; with a damaged one, always.
    """
    try:
        then = get_attribute(node, "Measured", _checked)
    except InputError:
        return True
    if then is None:
        return bool(node.GetAttribute(EDITED))
    now = prepare_state(node)()
    return any(not _same_state(then.get(one, []), now.get(one, [])) for one in then.keys() | now.keys())


def _key(identifier: str, segment: slicer.vtkSegment) -> str:
    """Identify a segment together with what it stands for, which is more than its identifier if the user drew it."""
    meaning = meaning_of_drawn(segment)
    return f"{identifier} {meaning}" if meaning else identifier


def _checked(states: dict[str, list[Any]]) -> SegmentStates:
    """Return segment states read from a scene; an error of conversion if they are damaged."""
    for state in states.values():
        if state and [np.shape(part) for part in state] != [(4, 4), (3,), ()]:
            raise ValueError("not the state of a segment")
    return states


def _state(array: np.ndarray | None, value: int, first: np.ndarray, place: np.ndarray) -> list[Any]:
    """Describe the voxels (k, j, i) of a segment: position, shape and checksum of its box; [] if there are none.

    :param first: index (i, j, k) of the first voxel of `array`.
    :param place: 4x4, from indices to the world.
    """
    mask = None if array is None else array == value
    box = None if mask is None else bounding_box(mask)
    if mask is None or box is None:
        return []
    place = place.copy()
    place[:3, 3] += place[:3, :3] @ (first + np.array(box.start)[::-1])
    return [place.tolist(), list(box.shape), crc32(np.packbits(mask[box]).tobytes())]


def _same_state(first: list[Any], second: list[Any]) -> bool:
    """Return whether two segments have the same voxels; files store positions with fewer digits."""
    if not first or not second:
        return not first and not second
    return first[1:] == second[1:] and bool(np.allclose(first[0], second[0], rtol=0, atol=1e-3))
