# SPDX-License-Identifier: Apache-2.0
"""Showing results in whatever views a scene has: works with a main window, without one, and in a scene file."""

from __future__ import annotations

import slicer

#: How much of a segment's color is left in an outline over a heat map.
_LIGHTER = 0.25


def show_overlay(
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    heatmap_node: slicer.vtkMRMLScalarVolumeNode | None = None,
    segmentation_node: slicer.vtkMRMLSegmentationNode | None = None,
    *,
    opacity: float = 0.5,
    threshold: float | None = None,
) -> None:
    """Show the CT with a heat map over it and the outlines of the segmentation, in all slice views of the scene.

    The heat map is the foreground layer; outlines are drawn by the segmentation's own display node. The label layer,
    which would hide both, is left alone.

    :param heatmap_node: None: no foreground.
    :param opacity: of the heat map where it is not transparent, 0 to 1.
    :param threshold: heat below it is transparent; None: as the node has it.
    """
    for composite in _composites(scene):
        previous = composite.StartModify()
        composite.SetBackgroundVolumeID(volume_node.GetID())
        composite.SetForegroundVolumeID(heatmap_node.GetID() if heatmap_node else None)
        composite.SetForegroundOpacity(opacity)
        composite.SetCompositing(slicer.vtkMRMLSliceCompositeNode.Alpha)
        composite.EndModify(previous)
    if heatmap_node is not None and threshold is not None:
        set_heat_threshold(heatmap_node, threshold)
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode")):
        # A legend does not notice by itself that its volume came into a view, or left it.
        scene.GetNthNodeByClass(index, "vtkMRMLColorLegendDisplayNode").Modified()
    if segmentation_node is not None:
        display = segmentation_node.GetDisplayNode()
        display.SetVisibility(True)
        display.SetVisibility2D(True)
        display.SetVisibility2DOutline(True)
        light_outlines(segmentation_node, heatmap_node is not None)


def light_outlines(segmentation_node: slicer.vtkMRMLSegmentationNode, light: bool) -> None:
    """Draw segments nearly white, as long as a heat map lies beneath: the liver's color is nearly its hot end.

    The segments' own colors stay as they are, and come back.
    """
    display, segments = segmentation_node.GetDisplayNode(), segmentation_node.GetSegmentation()
    for identifier in segments.GetSegmentIDs():
        if light:
            color = [1 - _LIGHTER * (1 - part) for part in segments.GetSegment(identifier).GetColor()]
            display.SetSegmentOverrideColor(identifier, *color)
        else:
            display.UnsetSegmentOverrideColor(identifier)


def set_heat_opacity(heatmap_node: slicer.vtkMRMLScalarVolumeNode, opacity: float) -> None:
    """Set the opacity (0 to 1) of a heat map in the slice views that show it; nothing else in them changes."""
    for composite in _composites(heatmap_node.GetScene()):
        if composite.GetForegroundVolumeID() == heatmap_node.GetID():
            composite.SetForegroundOpacity(opacity)


def set_heat_threshold(heatmap_node: slicer.vtkMRMLScalarVolumeNode, threshold: float) -> None:
    """Make heat below `threshold` (0 to 1) transparent."""
    display = heatmap_node.GetDisplayNode()
    display.SetThreshold(threshold, 1.0)
    display.SetApplyThreshold(threshold > 0)


def _composites(scene: slicer.vtkMRMLScene) -> list[slicer.vtkMRMLSliceCompositeNode]:
    """What each slice view of the scene shows."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")
    return [scene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode") for index in range(count)]


def show_surfaces(segmentation_node: slicer.vtkMRMLSegmentationNode, visible: bool = True) -> None:
    """Show or hide the segments as surfaces in 3-D views; the surfaces are made when they are first shown."""
    if visible:
        segmentation_node.CreateClosedSurfaceRepresentation()
    segmentation_node.GetDisplayNode().SetVisibility3D(visible)
