# SPDX-License-Identifier: Apache-2.0
"""Heat maps and uncertainty maps as scalar volume nodes with a fixed scale, a color table and a legend.

The values are stored as float32 in [0, 1] and shown on this fixed scale: an automatic one would make a weak map look
like a strong one. Low values are transparent, so that the CT stays readable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from vtkmodules.vtkCommonDataModel import vtkImageData

from ..colors import HEAT_COLORS, VISIBLE_HEAT
from ..explain.explanation import LABELS
from ..explain.subject import present_target
from ..explain.targets import Target
from ..volumes.volume import lps_to_ras
from .nodes import find_results, get_attribute, result_node, set_attributes
from .placing import remember_place
from .segmentations import LABELS_CHECKSUM
from .tokens import labels_token
from .volumes import check_shape, place_like, to_image, volume_from_node

if TYPE_CHECKING:
    from ..explain.explanation import Explanation
    from ..inference.segmentation import Segmentation
    from ..models.spec import ModelSpec
    from ..volumes.volume import Volume

#: Certain to uncertain, in other hues than the heat map's so that the two are not confused.
UNCERTAINTY_COLORS = ((10, 30, 50), (0, 110, 130), (60, 200, 190), (235, 255, 250))
#: Suffix of the name of a heat map whose segmentation has changed since.
_BEFORE = ", before the changes"
#: What :func:`LiverXAILib.measure.entropy_map` computes.
UNCERTAINTY = "entropy of the probability [bit]"


def explanation_to_node(
    explanation: Explanation,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    *,
    image: vtkImageData | None = None,
) -> slicer.vtkMRMLScalarVolumeNode:
    """Show an explanation as a heat map node of the CT.

    A heat map of the same target, method and layer is updated in place; others stay in the scene. The node's attributes
    (``LiverXAI.Target``, ``.Question``, ``.Method``, ``.Layer``, ``.Model``, ``.RawMaximum``, ``.Faithfulness``,
    ``.Warnings``, ``.Provenance``) record what it explains and how far it can be trusted.

    :param volume_node: the CT, whose grid the heat map is on.
    :param image: the heat map's voxels as float32, if they were copied already (see
        :func:`~LiverXAILib.mrml.volumes.blank_image`); the node keeps it.
    :raises LiverXAILib.errors.InputError: the CT has another number of voxels than the heat map.
    """
    check_shape(explanation.heatmap.shape, volume_node)
    scene.SaveStateForUndo()
    return update_heatmap_node(explanation, scene, volume_node, image)


def heatmap_identity(explanation: Explanation) -> dict[str, str]:
    """Return the attributes that identify a heat map."""
    return {"Target": str(explanation.target), "Method": explanation.method, "Layer": explanation.layer}


def update_heatmap_node(
    explanation: Explanation,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    image: vtkImageData | None = None,
) -> slicer.vtkMRMLScalarVolumeNode:
    """Do :func:`explanation_to_node` without the checks and without saving a state for undo."""
    question = explanation.target.describe()
    present = next(iter(find_results(scene, volume_node, "segmentation")), None)
    identity = heatmap_identity(explanation)
    # The number of a lesion may also be that of an older heat map, of another lesion that had this number.
    subject = {"Subject": explanation.subject_sha256} if explanation.subject_sha256 else {}
    if find_results(scene, volume_node, "heatmap", **identity, **subject):
        identity |= subject
    node, created = result_node(
        scene,
        volume_node,
        "heatmap",
        f"{volume_node.GetName()} heat map {question} ({explanation.method})",
        **identity,
    )
    _fill(node, explanation.heatmap.array if image is None else image, volume_node, created)
    set_attributes(
        node,
        {
            "Question": question,
            "Labels": explanation.labels_sha256,
            "Subject": explanation.subject_sha256,
            "State": None if present is None else labels_token(present),
            "Model": explanation.provenance.get("model"),
            "RawMaximum": explanation.raw_maximum,
            "Faithfulness": None if explanation.faithfulness is None else dict(explanation.faithfulness),
            "Warnings": list(explanation.warnings),
            "Provenance": dict(explanation.provenance),
        },
    )
    mark_before_changes(node, False)
    if created:
        colors = _color_table(scene, "LiverXAI heat map", HEAT_COLORS)
        _style(node, colors, VISIBLE_HEAT, f"Influence on {question}")
    return node


def is_about(node: slicer.vtkMRMLScalarVolumeNode, segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    """Return whether a heat map node was computed for the labels of a segmentation node as last measured.

    True if the node does not record its labels.
    """
    labels = node.GetAttribute("LiverXAI.Labels")
    return segmentation is None or labels in (None, segmentation.GetAttribute(LABELS_CHECKSUM))


def is_about_edit(node: slicer.vtkMRMLScalarVolumeNode, segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    """Return whether a heat map node was computed after a segmentation node's last edit, which is not measured yet."""
    return bool(node.GetAttribute("LiverXAI.State") == labels_token(segmentation))


def find_subjects(
    nodes: Sequence[slicer.vtkMRMLScalarVolumeNode], segmentation: Segmentation, model: ModelSpec
) -> Callable[[], list[Target | None]]:
    """Return a function that finds what heat map nodes are about in another segmentation, in any thread.

    It returns the target of each under its present number; None if what the heat map depends on is no longer the same,
    or is not recorded.
    """
    recorded = [(node.GetAttribute("LiverXAI.Target"), node.GetAttribute("LiverXAI.Subject")) for node in nodes]
    return lambda: [
        present_target(Target.parse(target), subject, segmentation, model) if target and subject else None
        for target, subject in recorded
    ]


def update_subject(
    node: slicer.vtkMRMLScalarVolumeNode, target: Target, segmentation: slicer.vtkMRMLSegmentationNode
) -> None:
    """Record that a heat map node holds for the labels of a segmentation node, in which its target may have a new
    number."""
    labels, question = segmentation.GetAttribute(LABELS_CHECKSUM), node.GetAttribute("LiverXAI.Question")
    if target.describe() != question:
        node.SetName(_renamed(node.GetName(), question, target))
        legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
        if legend is not None:
            legend.SetTitleText(_renamed(legend.GetTitleText(), question, target))
    provenance = get_attribute(node, "Provenance") or {}
    set_attributes(
        node,
        {
            "Target": str(target),
            "Question": target.describe(),
            "Labels": labels,
            "Provenance": {**provenance, LABELS: labels},
        },
    )


def _renamed(text: str, question: str, target: Target) -> str:
    """Return a name with another question in it; unchanged if the user chose one without the question."""
    # The last occurrence: the name of the CT, which comes first, may contain the same words.
    return re.sub(rf"(.*){re.escape(question)}(?!\d)", lambda found: found[1] + target.describe(), text)


def mark_before_changes(node: slicer.vtkMRMLScalarVolumeNode, before: bool) -> None:
    """Mark in the name of a heat map node, which views show, whether the segmentation has changed since."""
    name = node.GetName().removesuffix(_BEFORE)
    wanted = name + _BEFORE if before else name
    if node.GetName() != wanted:
        node.SetName(wanted)


def uncertainty_to_node(
    uncertainty: Volume,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    description: str = UNCERTAINTY,
    *,
    image: vtkImageData | None = None,
) -> slicer.vtkMRMLScalarVolumeNode:
    """Show a map of uncertainty in [0, 1] (1: maximal) as a node of the CT; an earlier one is updated in place.

    :param description: what the values are, e.g. "entropy of the tumor probability".
    :param image: as in :func:`explanation_to_node`.
    :raises LiverXAILib.errors.InputError: the CT has another number of voxels than the map.
    """
    check_shape(uncertainty.shape, volume_node)
    scene.SaveStateForUndo()
    return update_uncertainty_node(uncertainty, scene, volume_node, description, image)


def update_uncertainty_node(
    uncertainty: Volume,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    description: str = UNCERTAINTY,
    image: vtkImageData | None = None,
) -> slicer.vtkMRMLScalarVolumeNode:
    """Do :func:`uncertainty_to_node` without the checks and without saving a state for undo."""
    node, created = result_node(scene, volume_node, "uncertainty", f"{volume_node.GetName()} uncertainty")
    _fill(node, uncertainty.array if image is None else image, volume_node, created)
    set_attributes(node, {"Description": description})
    if created:
        colors = _color_table(scene, "LiverXAI uncertainty", UNCERTAINTY_COLORS)
        _style(node, colors, VISIBLE_HEAT, "Uncertainty")
    return node


def hottest_point(node: slicer.vtkMRMLScalarVolumeNode) -> tuple[float, float, float]:
    """Return the world position (RAS mm) of the most influential voxel of a heat map node."""
    return hottest_place(volume_from_node(node, copy=False))


def hottest_place(heatmap: Volume) -> tuple[float, float, float]:
    """Return the world position (RAS mm) of the most influential voxel of a heat map."""
    k, j, i = np.unravel_index(int(heatmap.array.argmax()), heatmap.shape)
    return lps_to_ras(heatmap.grid.to_lps(np.array([i, j, k])))


def _fill(
    node: slicer.vtkMRMLScalarVolumeNode,
    values: np.ndarray | vtkImageData,
    volume_node: slicer.vtkMRMLVolumeNode,
    created: bool,
) -> None:
    if created:
        # Set before the voxels, or Slicer would scan all of them for an intensity window that we do not use.
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().AutoWindowLevelOff()
    if isinstance(values, np.ndarray):
        values = to_image(values.astype(np.float32, copy=False), vtkImageData())
    node.SetAndObserveImageData(values)  # a new image: states saved for undo share the old one
    place_like(node, volume_node)
    remember_place(node, volume_node)


def _style(node: slicer.vtkMRMLScalarVolumeNode, colors: Any, threshold: float, title: str) -> None:
    """Set scale, colors, transparency and legend of a new node; later updates keep the user's choices."""
    display = node.GetDisplayNode()
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.SetAndObserveColorNodeID(colors.GetID())
    display.AutoThresholdOff()
    display.SetThreshold(threshold, 1.0)
    display.ApplyThresholdOn()
    display.SetInterpolate(True)
    legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(node)
    legend.SetTitleText(title)
    legend.SetLabelFormat("%.1f")
    legend.SetNumberOfLabels(6)
    legend.SetSize(0.08, 0.3)
    for text, size in ((legend.GetTitleTextProperty(), 14), (legend.GetLabelTextProperty(), 12)):
        text.SetFontFamilyToArial()
        text.SetFontSize(size)


def _color_table(
    scene: slicer.vtkMRMLScene, name: str, anchors: Sequence[tuple[int, int, int]]
) -> slicer.vtkMRMLColorTableNode:
    """Return the scene's color table called `name`: 256 colors interpolated evenly between `anchors`."""
    tag = name.replace(" ", "")
    found = scene.GetSingletonNode(tag, "vtkMRMLColorTableNode")
    if found is not None:
        return found
    node = slicer.vtkMRMLColorTableNode()
    node.SetTypeToUser()
    node.SetName(name)
    node.SetSingletonTag(tag)
    node.SetAttribute("Category", "LiverXAI")
    node.SetNumberOfColors(256)
    node.GetLookupTable().SetTableRange(0, 255)
    position = np.linspace(0, 255, len(anchors))
    channels = [np.interp(np.arange(256), position, [anchor[c] for anchor in anchors]) / 255 for c in range(3)]
    for index, color in enumerate(zip(*channels, strict=True)):
        node.SetColor(index, f"{index / 255:.3f}", *(float(part) for part in color), 1.0)
    return scene.AddNode(node)
