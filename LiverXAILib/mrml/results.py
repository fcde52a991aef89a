# SPDX-License-Identifier: Apache-2.0
"""Convert an :class:`~LiverXAILib.analysis.Analysis` to nodes in a scene, alongside its CT."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import slicer
from vtkmodules.vtkCommonDataModel import vtkImageData

from ..measure.uncertainty import entropy_map
from .changed_cts import CHANGED_CT, changed_ct_steps, prepare_changed_cts
from .heatmaps import (
    find_subjects,
    heatmap_identity,
    is_about,
    mark_before_changes,
    update_heatmap_node,
    update_subject,
    update_uncertainty_node,
)
from .nodes import find_results, has_attributes, remove_result, results_folder, set_attributes
from .segmentations import (
    LABELS_CHECKSUM,
    SegmentLayers,
    mark_algorithm_type,
    remember_grids,
    remove_merged_segments,
    segment_layers,
    update_segmentation_node,
)
from .tables import update_table_node
from .tokens import record_measured
from .volumes import blank_image, check_shape, prepare_images, shared_image, volume_to_node

if TYPE_CHECKING:
    from ..analysis import Analysis
    from ..explain.explanation import Explanation
    from ..explain.targets import Target
    from ..volumes.volume import Volume

#: The intensity window in HU in which an abdominal CT is usually read: level 40, width 400.
ABDOMEN_HU = (-160.0, 240.0)


@dataclass(frozen=True)
class AnalysisNodes:
    """The nodes of one analysis.

    `heatmaps` is keyed by the target as text ("tumor", "lesion:2"), and so is `changed_cts`; `uncertainty` is None if
    the segmentation has no probabilities; `folder` is an item of the subject hierarchy.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    segmentation: slicer.vtkMRMLSegmentationNode
    heatmaps: Mapping[str, slicer.vtkMRMLScalarVolumeNode]
    uncertainty: slicer.vtkMRMLScalarVolumeNode | None
    table: slicer.vtkMRMLTableNode
    changed_cts: Mapping[str, slicer.vtkMRMLScalarVolumeNode]
    folder: int


def analysis_to_nodes(
    analysis: Analysis,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode | None = None,
    *,
    name: str = "CT",
    lesion_segments: bool = False,
    share: bool = False,
) -> AnalysisNodes:
    """Show an analysis in a scene: segmentation, heat maps, uncertainty and table, in one folder next to the CT.

    Nodes of an earlier analysis of this CT are updated in place. If the voxels of the segmentation changed, earlier
    heat maps and uncertainty that this analysis does not replace are removed, as their segmentation no longer exists.

    :param volume_node: the CT that was analyzed; None: a node called `name` is made from the analysis's own volume.
    :param lesion_segments: one segment for each lesion instead of one for all tumors.
    :param share: see :func:`~LiverXAILib.mrml.volumes.volume_to_node`.
    :raises LiverXAILib.errors.InputError: the CT has another number of voxels than the results.
    """
    scene.SaveStateForUndo()
    if volume_node is None:
        volume_node = volume_to_node(analysis.volume, scene, name, window=ABDOMEN_HU, share=share)
    check_shape(analysis.segmentation.labels.shape, volume_node)
    prepared = prepare_nodes(analysis, lesion_segments=lesion_segments, share=share)()
    steps = node_steps(analysis, scene, volume_node, prepared)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            nodes: AnalysisNodes = end.value
            record_measured(nodes.segmentation)
            return nodes


@dataclass(frozen=True, eq=False)
class PreparedNodes:
    """The voxels of future nodes: segments, an image for each heat map and each changed CT, uncertainty."""

    layers: SegmentLayers
    heatmaps: Sequence[vtkImageData]
    changed_cts: Sequence[vtkImageData]
    uncertainty: tuple[Volume, vtkImageData] | None


def prepare_nodes(
    analysis: Analysis, *, lesion_segments: bool = False, share: bool = False
) -> Callable[[], PreparedNodes]:
    """Return a function for the slow part of :func:`analysis_to_nodes`: it computes and copies all voxels.

    It touches no node, so it may run in any thread. The parameters are those of :func:`analysis_to_nodes`.
    """
    fill_heatmaps = prepare_heatmaps(analysis.explanations, share=share)
    fill_changed = prepare_changed_cts(analysis.answers, share=share)
    shape = analysis.segmentation.labels.shape
    needed = bool(analysis.segmentation.probabilities) and not share
    blank = blank_image(shape, np.dtype(np.float32)) if needed else None

    def prepare() -> PreparedNodes:
        layers = segment_layers(analysis.segmentation, lesion_segments=lesion_segments)
        images, changed = fill_heatmaps(), fill_changed()
        entropy = entropy_map(analysis.segmentation)
        if entropy is not None and share:
            return PreparedNodes(layers, images, changed, (entropy, shared_image(entropy.array)))
        if blank is None or entropy is None:
            return PreparedNodes(layers, images, changed, None)
        image, voxels = blank
        voxels[...] = entropy.array
        return PreparedNodes(layers, images, changed, (entropy, image))

    return prepare


def prepare_heatmaps(explanations: Sequence[Explanation], *, share: bool = False) -> Callable[[], list[vtkImageData]]:
    """Like :func:`prepare_nodes`, for the images of :func:`~LiverXAILib.mrml.heatmaps.explanation_to_node`."""
    return prepare_images([explanation.heatmap.array for explanation in explanations], share=share)


def node_steps(
    analysis: Analysis,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    prepared: PreparedNodes,
) -> Generator[None, None, AnalysisNodes]:
    """Do :func:`analysis_to_nodes` in steps, one for each node, so that an application stays responsive."""
    before = [node.GetAttribute(LABELS_CHECKSUM) for node in find_results(scene, volume_node, "segmentation")]
    segmentation = update_segmentation_node(analysis.segmentation, scene, volume_node, prepared.layers)
    if before != [prepared.layers.checksum]:
        renewed = [heatmap_identity(explanation) for explanation in analysis.explanations]
        for node in find_results(scene, volume_node, "heatmap"):
            if not any(has_attributes(node, identity) for identity in renewed):
                remove_result(node)
        for node in find_results(scene, volume_node, "uncertainty"):
            if prepared.uncertainty is None:
                remove_result(node)
    set_attributes(segmentation, {"Decisions": None})  # a new result has no decisions of a reader
    table = update_table_node(analysis.measurements, scene, volume_node)
    yield
    heatmaps = {}
    for explanation, image in zip(analysis.explanations, prepared.heatmaps, strict=True):
        heatmaps[str(explanation.target)] = update_heatmap_node(explanation, scene, volume_node, image)
        yield
    keep = before == [prepared.layers.checksum]
    changed = yield from changed_ct_steps(analysis.answers, scene, volume_node, prepared.changed_cts, keep=keep)
    uncertainty_node = None
    if prepared.uncertainty is not None:
        uncertainty, image = prepared.uncertainty
        uncertainty_node = update_uncertainty_node(uncertainty, scene, volume_node, image=image)
    folder = results_folder(scene, volume_node)
    return AnalysisNodes(volume_node, segmentation, heatmaps, uncertainty_node, table, changed, folder)


def prepare_subjects(
    analysis: Analysis, scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLScalarVolumeNode
) -> Callable[[], dict[str, Target | None]]:
    """Return a function that finds what a CT's heat maps are about in `analysis`, by node ID, in any thread."""
    heat_maps = find_results(scene, volume_node, "heatmap")
    identifiers = [node.GetID() for node in heat_maps]
    find = find_subjects(heat_maps, analysis.segmentation, analysis.model)
    return lambda: dict(zip(identifiers, find(), strict=True))


def update_refined(
    analysis: Analysis,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    layers: SegmentLayers | None,
    subjects: Mapping[str, Target | None] | None = None,
) -> slicer.vtkMRMLSegmentationNode:
    """Show what a reader has changed in the current results of a CT: segments, table, decisions.

    Heat maps and changed CTs stay. A heat map gets the present number of its lesion; if what it depends on has changed,
    its name says so. If labels have changed, changed CTs are marked with ``LiverXAI.Stale``: they belong to the earlier
    segmentation, and lesion numbers may refer to other lesions now.

    :param layers: the new segments (:func:`~LiverXAILib.mrml.segmentations.segment_layers`); None: keep those in the
        scene.
    :param subjects: what the CT's heat maps are about now, if :func:`prepare_subjects` has found it already.
    """
    (node,) = find_results(scene, volume_node, "segmentation")
    before = node.GetAttribute(LABELS_CHECKSUM)
    if layers is not None:
        update_segmentation_node(analysis.segmentation, scene, volume_node, layers)
        remove_merged_segments(node, layers, analysis.model)
    mark_algorithm_type(node, analysis.segmentation)
    remember_grids(node, analysis.segmentation)
    decisions = [decision.to_dict() for decision in analysis.decisions]
    set_attributes(node, {"Decisions": decisions or None, "Provenance": dict(analysis.segmentation.provenance)})
    if "reader_labels_sha256" in analysis.provenance:  # segments edited by hand stay as they are in the scene
        node.SetAttribute(LABELS_CHECKSUM, analysis.provenance["reader_labels_sha256"])
    update_table_node(analysis.measurements, scene, volume_node)
    if subjects is None:
        subjects = prepare_subjects(analysis, scene, volume_node)()
    for heat_map in find_results(scene, volume_node, "heatmap"):
        target = subjects.get(heat_map.GetID())
        if target is not None:
            update_subject(heat_map, target, node)
        mark_before_changes(heat_map, not is_about(heat_map, node))
    if node.GetAttribute(LABELS_CHECKSUM) != before:
        for changed_ct in find_results(scene, volume_node, CHANGED_CT):
            set_attributes(changed_ct, {"Stale": True})
    return node
