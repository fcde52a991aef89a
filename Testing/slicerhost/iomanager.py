# SPDX-License-Identifier: Apache-2.0
"""``slicer.app.coreIOManager()``: loading and saving through MRML's own storage nodes and logics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .host import Host

_SCENES = (".mrb", ".mrml")


class CoreIOManager:
    """The part of ``qSlicerCoreIOManager`` that ``slicer.util.load…``, ``saveNode`` and ``saveScene`` call."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def fileType(self, filename: str) -> str:
        name = str(filename).lower()
        if name.endswith(_SCENES):
            return "SceneFile"
        if name.endswith((".seg.nrrd", ".seg.nhdr")):
            return "SegmentationFile"
        return "VolumeFile"

    def fileWriterFileType(self, node: Any) -> str:
        return node.GetClassName()

    def loadNodes(self, filetype: str, properties: dict[str, Any], loaded: Any = None, messages: Any = None) -> bool:
        """Load `properties["fileName"]`; the nodes are added to `loaded`. False if it cannot be read."""
        path = str(properties["fileName"])
        if filetype == "SceneFile":
            return self._load_scene(path, clear=bool(properties.get("clear", False)))
        if filetype == "VolumeFile":
            options = 1 if properties.get("labelmap") else 0
            name = properties.get("name") or Path(path).name.split(".")[0]
            node = self._host.modules.volumes.logic().AddArchetypeVolume(path, name, options)
        elif filetype == "SegmentationFile":
            name = properties.get("name") or Path(path).name.split(".")[0]
            node = self._host.modules.segmentations.logic().LoadSegmentationFromFile(path, True, name)
        else:
            raise NotImplementedError(f"the test host does not load {filetype!r}")
        if node is None:
            return False
        if loaded is not None:
            loaded.AddItem(node)
        return True

    def saveNodes(self, filetype: str, properties: dict[str, Any], messages: Any = None) -> bool:
        """Save one node, or the scene as a bundle, to `properties["fileName"]`."""
        path = str(properties["fileName"])
        if filetype == "SceneFile":
            if not path.endswith(".mrb"):
                raise NotImplementedError("the test host saves scenes as .mrb only")
            return self._host.scene.WriteToMRB(path, None, messages)
        node = self._host.scene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None and not node.AddDefaultStorageNode(path):
            return False
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if "useCompression" in properties:
            storage.SetUseCompression(bool(properties["useCompression"]))
        return bool(storage.WriteData(node))

    def _load_scene(self, path: str, clear: bool) -> bool:
        if path.endswith(".mrb"):
            return bool(self._host.scene.ReadFromMRB(path, clear))
        self._host.scene.SetURL(path)
        return bool(self._host.scene.Connect() if clear else self._host.scene.Import())
