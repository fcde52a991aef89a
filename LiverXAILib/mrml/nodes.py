# SPDX-License-Identifier: Apache-2.0
"""Attach results to their CT in a scene, and find them again.

Each result node refers to its CT and has an attribute for its kind. A second run finds it by these and updates it in
place, so the user's settings (a color, a name, an opacity, a place in the hierarchy) are kept; the results of several
CTs in one scene stay separate. No observers are added anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import slicer

from ..errors import InputError, UsageError

#: Node reference from a result to its CT.
INPUT_ROLE = "LiverXAI.Input"
#: Attribute for the kind of a result, one of :data:`CLASSES`.
RESULT = "LiverXAI.Result"
#: The kinds of results, and the classes of their nodes.
CLASSES = {
    "segmentation": "vtkMRMLSegmentationNode",
    "heatmap": "vtkMRMLScalarVolumeNode",
    "uncertainty": "vtkMRMLScalarVolumeNode",
    "changed CT": "vtkMRMLScalarVolumeNode",
    "measurements": "vtkMRMLTableNode",
}
#: Attribute of results that were set aside for newer ones: the title of the set of results that they belong to.
SET = "LiverXAI.Set"
_FOLDER = "LiverXAI.Folder"


def find_results(
    scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLVolumeNode, kind: str = "", **attributes: str
) -> list[Any]:
    """Return the current result nodes of a CT, in the order in which they were made; not those that were set aside.

    :param kind: one of :data:`CLASSES`; "" for all.
    :param attributes: further attributes they must have, e.g. ``Target="tumor"``.
    """
    return [
        node
        for node in all_results(scene, volume_node, kind)
        if not node.GetAttribute(SET) and has_attributes(node, attributes)
    ]


def all_results(scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLVolumeNode, kind: str = "") -> list[Any]:
    """Return all result nodes of a CT, of a kind or of all, including those that were set aside, in the same order."""
    identifier = volume_node.GetID()
    return [node for node in result_nodes(scene, kind) if node.GetNodeReferenceID(INPUT_ROLE) == identifier]


def result_nodes(scene: slicer.vtkMRMLScene, kind: str = "") -> list[Any]:
    """Return the result nodes of all CTs, of a kind or of all, in the order in which they were made.

    The scene selects the nodes by class: the panel asks often, and Python would take ten times as long to go through
    all nodes of a scene.
    """
    found = []
    for name in dict.fromkeys(name for known, name in CLASSES.items() if kind in ("", known)):
        nodes = scene.GetNodesByClass(name)
        nodes.UnRegister(None)  # the caller owns the collection
        found += [node for node in nodes if node.GetAttribute(RESULT) and kind in ("", node.GetAttribute(RESULT))]
    return found if kind else sorted(found, key=scene.GetNodes().IsItemPresent)  # by their positions in the scene


def sets_aside(scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLVolumeNode) -> list[str]:
    """Return the titles of a CT's sets of results that were set aside, in the order in which they were made."""
    titles = [node.GetAttribute(SET) for node in all_results(scene, volume_node)]
    return list(dict.fromkeys(title for title in titles if title))


def put_aside(scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLVolumeNode, title: str) -> str:
    """Set the current results of a CT aside under a title: later results do not update them, and they are hidden.

    :return: the title, with a number if the CT already has a set of this title.
    """
    taken, wanted, number = sets_aside(scene, volume_node), title, 2
    while title in taken:
        title, number = f"{wanted}, {number}", number + 1
    for node in find_results(scene, volume_node):
        node.SetAttribute(SET, title)
        node.SetName(f"{node.GetName()} ({title})")
        if node.IsA("vtkMRMLSegmentationNode"):
            node.GetDisplayNode().SetVisibility(False)
    return title


def bring_back(scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLVolumeNode, title: str) -> None:
    """Make the set of results with this title the current one."""
    for node in all_results(scene, volume_node):
        if node.GetAttribute(SET) == title:
            node.SetAttribute(SET, None)
            node.SetName(node.GetName().removesuffix(f" ({title})"))
            if node.IsA("vtkMRMLSegmentationNode"):
                node.GetDisplayNode().SetVisibility(True)


def input_of(node: Any) -> slicer.vtkMRMLScalarVolumeNode:
    """Return the CT that a result node belongs to.

    :raises LiverXAILib.errors.UsageError: it is not a LiverXAI result, or its CT is no longer in the scene.
    """
    volume_node = node.GetNodeReference(INPUT_ROLE)
    if volume_node is None:
        raise UsageError(f"{node.GetName()!r} is not a result of LiverXAI, or its CT was removed.")
    return volume_node


def has_attributes(node: Any, attributes: Mapping[str, str]) -> bool:
    """Return whether all attributes ``LiverXAI.<name>`` have these values."""
    return all(node.GetAttribute(f"LiverXAI.{name}") == value for name, value in attributes.items())


def remove_result(node: Any) -> None:
    """Remove a result node with its display and storage nodes."""
    scene = node.GetScene()
    parts = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
    for part in [*parts, node.GetStorageNode(), node]:
        if part is not None:
            scene.RemoveNode(part)


def result_node(
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLVolumeNode,
    kind: str,
    name: str,
    **attributes: str,
) -> tuple[Any, bool]:
    """Return the result node with these attributes, and whether it was newly made (in the CT's folder)."""
    found = find_results(scene, volume_node, kind, **attributes)
    if found:
        return found[0], False
    folder = results_folder(scene, volume_node)
    node = scene.AddNewNodeByClass(CLASSES[kind], scene.GenerateUniqueName(name))
    node.SetAttribute(RESULT, kind)
    node.SetNodeReferenceID(INPUT_ROLE, volume_node.GetID())
    set_attributes(node, attributes)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, folder)
    else:
        hierarchy.CreateItem(folder, node)
    return node, True


def results_folder(scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLVolumeNode) -> int:
    """Return the subject hierarchy folder of a CT's results: in the CT's study if it has one, else next to the CT."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    for node in all_results(scene, volume_node):
        parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))
        if hierarchy.GetItemAttribute(parent, _FOLDER):
            return parent
    item = hierarchy.GetItemByDataNode(volume_node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), volume_node)
    study = hierarchy.GetItemAncestorAtLevel(item, slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelStudy())
    folder = hierarchy.CreateFolderItem(study or hierarchy.GetItemParent(item), f"{volume_node.GetName()} LiverXAI")
    hierarchy.SetItemAttribute(folder, _FOLDER, "1")
    return folder


def set_attributes(node: Any, attributes: Mapping[str, Any]) -> None:
    """Set attributes ``LiverXAI.<name>``: text unchanged, anything else as JSON; None removes the attribute."""
    for name, value in attributes.items():
        text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        node.SetAttribute(f"LiverXAI.{name}", text)


def get_attribute(node: Any, name: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return the value of attribute ``LiverXAI.<name>`` that was set as JSON, or None.

    :param convert: converts the value, if there is one.
    :raises LiverXAILib.errors.InputError: the attribute is not JSON or cannot be converted, as in a damaged scene.
    """
    text = node.GetAttribute(f"LiverXAI.{name}")
    if text is None:
        return None
    try:
        return convert(json.loads(text))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, UsageError):
        raise InputError(
            f"The scene's data for {node.GetName()!r} (attribute LiverXAI.{name}) is damaged. Reopen the saved scene, "
            "or remove this node and analyze the CT again."
        ) from None
