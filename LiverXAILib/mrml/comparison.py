# SPDX-License-Identifier: Apache-2.0
"""Another result's outlines over the current ones, in a node of its own: no other node is changed for them."""

from __future__ import annotations

import slicer
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from .placing import remember_place
from .segmentations import BINARY, SegmentLayers

#: The colors of the compared outlines, in 0 to 1: of organs, and of lesions. No result has them.
COMPARED_COLORS = ((0.25, 0.9, 1.0), (1.0, 0.35, 1.0))


def compared_node(
    layers: SegmentLayers, scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLScalarVolumeNode, name: str
) -> slicer.vtkMRMLSegmentationNode:
    """Show segments as thin outlines in the slice views; the node is temporary, and not saved with the scene.

    :param layers: of the other result (:func:`~LiverXAILib.mrml.segmentations.segment_layers`).
    :param volume_node: the CT, whose grid they are on.
    """
    node = slicer.vtkMRMLSegmentationNode()
    node.SetName(name)
    node.SetSaveWithScene(False)
    node.SetHideFromEditors(True)
    scene.AddNode(node)
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    remember_place(node, volume_node)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetSaveWithScene(False)
    display.SetVisibility3D(False)
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetSliceIntersectionThickness(1)
    matrix = vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    for image in layers.images:
        image.SetImageToWorldMatrix(matrix)
    segmentation = node.GetSegmentation()
    segmentation.SetSourceRepresentationName(BINARY)
    for item in layers.segments:
        segment = slicer.vtkSegment()
        segment.SetName(item.name)
        segment.SetColor(COMPARED_COLORS[0 if item.spec.parent is None else 1])
        segment.SetLabelValue(item.value)
        segment.AddRepresentation(BINARY, layers.images[item.layer])
        segmentation.AddSegment(segment, item.identifier)
    return node
