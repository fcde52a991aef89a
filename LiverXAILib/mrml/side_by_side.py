# SPDX-License-Identifier: Apache-2.0
"""Two results of a CT in two slice views next to each other.

What is changed for it is recorded in the layout node, which is saved with the scene: it can also be taken back in a
scene that was saved in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer

from ..errors import InputError
from .nodes import get_attribute, set_attributes

#: The left and the right view of Slicer's side-by-side layout.
_LEFT, _RIGHT = "Red", "Yellow"
#: Other views do not follow the zoom of these two, because they are in another group.
_GROUP = 19


def layout_of(scene: slicer.vtkMRMLScene) -> slicer.vtkMRMLLayoutNode | None:
    """Return the layout node; None without a main window."""
    return scene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def is_side_by_side(scene: slicer.vtkMRMLScene) -> bool:
    """Return whether two results are shown side by side."""
    layout = layout_of(scene)
    return layout is not None and layout.GetAttribute("LiverXAI.Before") is not None


def show_side_by_side(
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    left: slicer.vtkMRMLSegmentationNode,
    right: slicer.vtkMRMLSegmentationNode,
) -> None:
    """Show two segmentations in two views with the same slice, which are linked: both scroll, move and zoom together.

    The plane is that of the left view, which is axial unless it was rotated. There must be a layout
    (:func:`layout_of`).

    :param volume_node: the CT behind both.
    :param right: replaced by :func:`show_on_the_right`.
    """
    layout: Any = layout_of(scene)
    _set(layout, "MaximizedViewNodes", [])  # a maximized view would hide the layout
    _set(layout, "ViewArrangement", layout.SlicerLayoutSideBySideView)
    views = [scene.GetSingletonNode(name, "vtkMRMLSliceNode") for name in (_LEFT, _RIGHT)]
    for view in views:
        _set(view, "ViewGroup", _GROUP)
        composite = slicer.vtkMRMLSliceLogic.GetSliceCompositeNode(view)
        _set(composite, "BackgroundVolumeID", volume_node.GetID())
        _set(composite, "LinkedControl", 1)
    _set(views[1], "Geometry", _get(views[0], "Geometry"))
    _set(left.GetDisplayNode(), "ViewNodeIDs", [views[0].GetID()])
    show_on_the_right(right)


def show_on_the_right(segmentation_node: slicer.vtkMRMLSegmentationNode) -> None:
    """Show a segmentation in the right view only."""
    view = segmentation_node.GetScene().GetSingletonNode(_RIGHT, "vtkMRMLSliceNode")
    _set(segmentation_node.GetDisplayNode(), "ViewNodeIDs", [view.GetID()])


def end_side_by_side(scene: slicer.vtkMRMLScene) -> None:
    """Restore layout, views and nodes; what the user has set otherwise in the meantime stays, except for the slice.

    The left view stays at the slice to which the user has scrolled, the right one returns to its own.
    """
    layout = layout_of(scene)
    try:
        changes = get_attribute(layout, "Before", lambda rows: [tuple(row) for row in rows])
        for identifier, name, before, value in reversed(changes):
            node = scene.GetNodeByID(identifier)
            if node is not None and name in _NAMES and (name == "Geometry" or _get(node, name) == value):
                _put(node, name, before)
    except (InputError, ValueError, TypeError):
        pass  # a damaged scene: the views stay as they are
    set_attributes(layout, {"Before": None})


#: The properties that are changed: "Geometry" and "MaximizedViewNodes" consist of several, others are those of MRML.
_NAMES = (
    "BackgroundVolumeID", "Geometry", "LinkedControl", "MaximizedViewNodes", "ViewArrangement", "ViewGroup",
    "ViewNodeIDs",
)  # fmt: skip


def _set(node: Any, name: str, value: Any) -> None:
    """Set a property, and record its value before."""
    layout = layout_of(node.GetScene())
    changes = get_attribute(layout, "Before") or []
    set_attributes(layout, {"Before": [*changes, [node.GetID(), name, _get(node, name), value]]})
    _put(node, name, value)


def _get(node: Any, name: str) -> Any:
    """Return a property, as JSON has it."""
    if name == "Geometry":
        matrix = node.GetSliceToRAS()
        rows = [[matrix.GetElement(row, column) for column in range(4)] for row in range(4)]
        return [rows, list(node.GetXYZOrigin()), node.GetFieldOfView()[1]]
    if name == "MaximizedViewNodes":
        return [node.GetMaximizedViewNode(index).GetID() for index in range(node.GetNumberOfMaximizedViewNodes())]
    value = getattr(node, f"Get{name}")()
    return list(value) if isinstance(value, tuple) else value


def _put(node: Any, name: str, value: Any) -> None:
    if name == "Geometry":
        _put_geometry(node, *value)
    elif name == "MaximizedViewNodes":
        node.RemoveAllMaximizedViewNodes()
        for identifier in value:
            node.AddMaximizedViewNode(node.GetScene().GetNodeByID(identifier))
    else:
        getattr(node, f"Set{name}")(value)


def _put_geometry(
    node: slicer.vtkMRMLSliceNode, rows: Sequence[Sequence[float]], origin: Sequence[float], height_mm: float
) -> None:
    """Show a slice; a view of another shape shows the same height of it, as when Slicer resizes a view."""
    for row in range(4):
        for column in range(4):
            node.GetSliceToRAS().SetElement(row, column, rows[row][column])
    node.SetXYZOrigin(*origin)
    width, height, _ = node.GetDimensions()
    node.SetFieldOfView(height_mm * width / height, height_mm, node.GetFieldOfView()[2])
    node.UpdateMatrices()
