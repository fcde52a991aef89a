# SPDX-License-Identifier: Apache-2.0
"""CTs without a lesion as volume nodes: small ones, overlaid on the CT and removed again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING

import slicer
from vtkmodules.vtkCommonDataModel import vtkImageData

from .display import show_overlay
from .nodes import find_results, remove_result, result_node, set_attributes
from .placing import remember_place
from .volumes import prepare_images, to_vtk_matrix, world_to_local

if TYPE_CHECKING:
    from ..explain.answers import Answer
    from ..volumes.volume import Volume

#: The kind of result of these nodes.
CHANGED_CT = "changed CT"


def _changed(answers: Iterable[Answer]) -> list[tuple[Answer, Volume]]:
    """Return the counterfactuals that have a CT without their target, each with that CT."""
    return [(answer, answer.volumes["without"]) for answer in answers if "without" in answer.volumes]


def prepare_changed_cts(answers: Iterable[Answer], *, share: bool = False) -> Callable[[], list[vtkImageData]]:
    """Allocate the images of :func:`changed_ct_steps`; the returned function copies the voxels, in any thread."""
    return prepare_images([volume.array for _, volume in _changed(answers)], share=share)


def changed_ct_steps(
    answers: Iterable[Answer],
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    images: Iterable[vtkImageData],
    *,
    keep: bool = True,
) -> Generator[None, None, dict[str, slicer.vtkMRMLScalarVolumeNode]]:
    """Make a node for each counterfactual with a CT without its target, by target; an attribute holds the sentence.

    This runs in steps, one for each node, so that an application stays responsive.

    :param images: of :func:`prepare_changed_cts` for these counterfactuals.
    :param keep: False: those of other targets are removed, because they belong to another segmentation.
    """
    nodes = {}
    for (answer, changed), image in zip(_changed(answers), images, strict=True):
        target = str(answer.target)
        node, created = result_node(
            scene,
            volume_node,
            CHANGED_CT,
            f"{volume_node.GetName()} without {answer.target.describe()}",
            Target=target,
        )
        if created:
            node.CreateDefaultDisplayNodes()
            node.GetDisplayNode().AutoWindowLevelOff()
        node.SetAndObserveImageData(image)
        node.SetIJKToRASMatrix(to_vtk_matrix(world_to_local(volume_node) @ changed.grid.ijk_to_ras))
        node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        remember_place(node, volume_node)
        set_attributes(node, {"Sentence": answer.sentence, "Stale": None})
        nodes[target] = node
        yield
    if not keep:
        for node in find_results(scene, volume_node, CHANGED_CT):
            if node.GetAttribute("LiverXAI.Target") not in nodes:
                remove_result(node)
    return nodes


def show_changed_ct(node: slicer.vtkMRMLScalarVolumeNode, volume_node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Overlay a changed CT on the CT in all slice views, with the CT's window and level."""
    display, window = node.GetDisplayNode(), volume_node.GetDisplayNode()
    display.SetWindowLevelMinMax(window.GetWindowLevelMin(), window.GetWindowLevelMax())
    show_overlay(node.GetScene(), volume_node, node, opacity=1.0)
