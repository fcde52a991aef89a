# SPDX-License-Identifier: Apache-2.0
"""CTs without a lesion as volume nodes: small ones, laid over the CT and taken away again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import slicer
from vtkmodules.vtkCommonDataModel import vtkImageData

from .display import show_overlay
from .nodes import find_results, remove_result, result_node, set_attributes
from .volumes import to_image, to_vtk_matrix, world_to_local

if TYPE_CHECKING:
    from ..explain.answers import Answer

#: What kind of result these nodes are.
CHANGED_CT = "changed CT"


def update_changed_cts(
    answers: Iterable[Answer],
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    *,
    keep: bool = True,
) -> dict[str, slicer.vtkMRMLScalarVolumeNode]:
    """A node for each answer with a CT without its target, by target in text; its attributes hold the sentence.

    :param keep: False: those of other targets are removed; they were about another segmentation.
    """
    nodes = {}
    for answer in answers:
        changed = answer.volumes.get("without")
        if changed is None:
            continue
        target = str(answer.target)
        node, created = result_node(
            scene,
            volume_node,
            CHANGED_CT,
            "vtkMRMLScalarVolumeNode",
            f"{volume_node.GetName()} without {answer.target.describe()}",
            Target=target,
        )
        if created:
            node.CreateDefaultDisplayNodes()
            node.GetDisplayNode().AutoWindowLevelOff()
        node.SetAndObserveImageData(to_image(changed.array, vtkImageData()))
        node.SetIJKToRASMatrix(to_vtk_matrix(world_to_local(volume_node) @ changed.grid.ijk_to_ras))
        node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        set_attributes(node, {"Sentence": answer.sentence, "Stale": None})
        nodes[target] = node
    if not keep:
        for node in find_results(scene, volume_node, CHANGED_CT):
            if node.GetAttribute("LiverXAI.Target") not in nodes:
                remove_result(node)
    return nodes


def show_changed_ct(node: slicer.vtkMRMLScalarVolumeNode, volume_node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Lay a changed CT over the CT in all slice views, in the CT's window."""
    display, window = node.GetDisplayNode(), volume_node.GetDisplayNode()
    display.SetWindowLevelMinMax(window.GetWindowLevelMin(), window.GetWindowLevelMax())
    show_overlay(node.GetScene(), volume_node, node, opacity=1.0)
