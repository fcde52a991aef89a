# SPDX-License-Identifier: Apache-2.0
"""CTs without a lesion as volume nodes: small ones, laid over the CT and taken away again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING

import slicer
from vtkmodules.vtkCommonDataModel import vtkImageData

from .display import show_overlay
from .nodes import find_results, remove_result, result_node, set_attributes
from .volumes import prepare_images, to_vtk_matrix, world_to_local

if TYPE_CHECKING:
    from ..explain.answers import Answer
    from ..volumes.volume import Volume

#: What kind of result these nodes are.
CHANGED_CT = "changed CT"


def _changed(answers: Iterable[Answer]) -> list[tuple[Answer, Volume]]:
    """The answers that have a CT without their target, with it."""
    return [(answer, answer.volumes["without"]) for answer in answers if "without" in answer.volumes]


def prepare_changed_cts(answers: Iterable[Answer], *, share: bool = False) -> Callable[[], list[vtkImageData]]:
    """The images of :func:`changed_ct_steps`; what is returned copies their voxels, in any thread."""
    return prepare_images([volume.array for _, volume in _changed(answers)], share=share)


def changed_ct_steps(
    answers: Iterable[Answer],
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    images: Iterable[vtkImageData],
    *,
    keep: bool = True,
) -> Generator[None, None, dict[str, slicer.vtkMRMLScalarVolumeNode]]:
    """A node for each answer with a CT without its target, by target in text; its attributes hold the sentence.

    In steps, one for each node, so that an application can live between them.

    :param images: of :func:`prepare_changed_cts` for these answers.
    :param keep: False: those of other targets are removed; they were about another segmentation.
    """
    nodes = {}
    for (answer, changed), image in zip(_changed(answers), images, strict=True):
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
        node.SetAndObserveImageData(image)
        node.SetIJKToRASMatrix(to_vtk_matrix(world_to_local(volume_node) @ changed.grid.ijk_to_ras))
        node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        set_attributes(node, {"Sentence": answer.sentence, "Stale": None})
        nodes[target] = node
        yield
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
