# SPDX-License-Identifier: Apache-2.0
"""Show results in the views of a scene: works with a main window, without one, and in a scene file."""

from __future__ import annotations

import slicer

#: Fraction of a segment's color that is left in an outline over a heat map.
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
    which would hide both, is not changed.

    :param heatmap_node: None: no foreground.
    :param opacity: of the heat map where it is not transparent, 0 to 1.
    :param threshold: values below it are transparent; None: keep the node's threshold.
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
        # A legend does not detect by itself that its volume was added to a view or removed from it.
        scene.GetNthNodeByClass(index, "vtkMRMLColorLegendDisplayNode").Modified()
    if segmentation_node is not None:
        display = segmentation_node.GetDisplayNode()
        display.SetVisibility(True)
        display.SetVisibility2D(True)
        display.SetVisibility2DOutline(True)
        light_outlines(segmentation_node, heatmap_node is not None)


def light_outlines(segmentation_node: slicer.vtkMRMLSegmentationNode, light: bool) -> None:
    """Draw segments nearly white over a heat map: the liver's color is close to the hot end of the color map.

    The segments keep their own colors, which are shown again without a heat map.
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
    """Make heat map values below `threshold` (0 to 1) transparent."""
    display = heatmap_node.GetDisplayNode()
    display.SetThreshold(threshold, 1.0)
    display.SetApplyThreshold(threshold > 0)


def _composites(scene: slicer.vtkMRMLScene) -> list[slicer.vtkMRMLSliceCompositeNode]:
    """Return the composite node of each slice view of the scene."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")
    return [scene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode") for index in range(count)]


def show_surfaces(segmentation_node: slicer.vtkMRMLSegmentationNode, visible: bool = True) -> None:
    """Show or hide the segments as surfaces in 3D views; the surfaces are created when first shown."""
    if visible:
        segmentation_node.CreateClosedSurfaceRepresentation()
    segmentation_node.GetDisplayNode().SetVisibility3D(visible)
