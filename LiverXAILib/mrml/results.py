# SPDX-License-Identifier: Apache-2.0
"""From an :class:`~LiverXAILib.analysis.Analysis` to nodes in a scene, beside the CT that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import slicer

from ..measure.uncertainty import entropy_map
from .heatmaps import heatmap_identity, update_heatmap_node, update_uncertainty_node
from .nodes import find_results, has_attributes, remove_result, results_folder
from .segmentations import LABELS_CHECKSUM, update_segmentation_node
from .tables import update_table_node
from .volumes import check_shape, volume_to_node

if TYPE_CHECKING:
    from ..analysis import Analysis

#: The window in HU in which a CT of the abdomen is usually read: level 40, width 400.
ABDOMEN_HU = (-160.0, 240.0)


@dataclass(frozen=True)
class AnalysisNodes:
    """The nodes of one analysis.

    `heatmaps` is by target in text ("tumor", "lesion:2"); `uncertainty` is None if the segmentation came without
    probabilities; `folder` is an item of the subject hierarchy.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    segmentation: slicer.vtkMRMLSegmentationNode
    heatmaps: Mapping[str, slicer.vtkMRMLScalarVolumeNode]
    uncertainty: slicer.vtkMRMLScalarVolumeNode | None
    table: slicer.vtkMRMLTableNode
    folder: int


def analysis_to_nodes(
    analysis: Analysis,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode | None = None,
    *,
    name: str = "CT",
    lesion_segments: bool = False,
) -> AnalysisNodes:
    """Show an analysis in a scene: segmentation, heat maps, uncertainty and table, in one folder beside the CT.

    Nodes of an earlier analysis of this CT are updated in place. If the voxels of the segmentation changed, heat maps
    and uncertainty of the earlier one that this analysis does not renew are removed: what they were about is gone.

    :param volume_node: the CT that was analyzed; None: a node called `name` is made of the analysis's own volume.
    :param lesion_segments: one segment for each lesion instead of one for all tumors.
    :raises LiverXAILib.errors.InputError: the CT has another number of voxels than the results.
    """
    scene.SaveStateForUndo()
    if volume_node is None:
        volume_node = volume_to_node(analysis.volume, scene, name)
        display = volume_node.GetDisplayNode()
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(*ABDOMEN_HU)
    check_shape(analysis.segmentation.labels.shape, volume_node)
    uncertainty = entropy_map(analysis.segmentation)
    before = [node.GetAttribute(LABELS_CHECKSUM) for node in find_results(scene, volume_node, "segmentation")]
    segmentation = update_segmentation_node(analysis.segmentation, scene, volume_node, lesion_segments)
    if before != [segmentation.GetAttribute(LABELS_CHECKSUM)]:
        renewed = [heatmap_identity(explanation) for explanation in analysis.explanations]
        for node in find_results(scene, volume_node, "heatmap"):
            if not any(has_attributes(node, identity) for identity in renewed):
                remove_result(node)
        for node in find_results(scene, volume_node, "uncertainty"):
            if uncertainty is None:
                remove_result(node)
    heatmaps = {
        str(explanation.target): update_heatmap_node(explanation, scene, volume_node)
        for explanation in analysis.explanations
    }
    uncertainty_node = None
    if uncertainty is not None:
        uncertainty_node = update_uncertainty_node(uncertainty, scene, volume_node, "entropy of the probability [bit]")
    table = update_table_node(analysis.measurements, scene, volume_node)
    folder = results_folder(scene, volume_node)
    return AnalysisNodes(volume_node, segmentation, heatmaps, uncertainty_node, table, folder)
