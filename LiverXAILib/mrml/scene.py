# SPDX-License-Identifier: Apache-2.0
"""Write an analysis as a scene file for Slicer: the CT with heat map and outlines, ready to view."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import slicer
from vtkmodules.vtkCommonCore import vtkCollection

from ..errors import InputError
from ..files import staging_folder
from ..volumes.nrrd import LEVEL, write_nrrd
from ..volumes.stream import fast_zlib
from .display import show_overlay
from .results import analysis_to_nodes
from .volumes import volume_from_node

if TYPE_CHECKING:
    from ..analysis import Analysis

#: Slicer's slice views and their orientations.
_VIEWS = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}


def write_scene(analysis: Analysis, path: str | Path) -> Path:
    """Write an analysis as a scene bundle (``.mrb``): CT, segmentation, heat maps and table, shown in the slice views.

    A new scene is used: nothing in a running Slicer changes. The file is written completely or not at all.

    :param path: ends in ``.mrb``.
    :return: `path`.
    :raises LiverXAILib.errors.InputError: the file cannot be written.
    """
    path = Path(path)
    scene, logics = _new_scene()
    nodes = analysis_to_nodes(analysis, scene, share=True)
    for name, orientation in _VIEWS.items():
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(logics[0])
        logic.SetMRMLScene(scene)
        logic.AddSliceNode(name).SetOrientation(orientation)
        logics.append(logic)
    heatmap = list(nodes.heatmaps.values())[-1] if nodes.heatmaps else None
    show_overlay(scene, nodes.volume, heatmap, nodes.segmentation)
    for logic in logics[-len(_VIEWS) :]:
        logic.FitSliceToBackground()
    try:
        with staging_folder(path) as temporary:
            folder, draft = temporary / path.stem, temporary / path.name
            (folder / "Data").mkdir(parents=True)
            with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as bundle:  # large files are already compressed
                _write_files(scene, folder, bundle)
                for file in sorted(folder.rglob("*")):
                    bundle.write(file, file.relative_to(temporary))
            draft.replace(path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


def _write_files(scene: slicer.vtkMRMLScene, folder: Path, bundle: zipfile.ZipFile) -> None:
    """Write a scene and its nodes' data as ``vtkMRMLScene::WriteToMRB`` does, but compress faster.

    :param folder: for the files that Slicer writes; images are written into the bundle at once.
    :raises LiverXAILib.errors.InputError: Slicer cannot write a file.
    """
    scene.SetRootDirectory(str(folder))
    nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
    stored = [node for node in nodes if node.IsA("vtkMRMLStorableNode") and node.GetSaveWithScene()]
    files: set[Path] = set()
    for node in stored:
        if node.GetStorageNode() is None and not node.AddDefaultStorageNode(""):
            continue
        storage = node.GetStorageNode()
        storage.SetCompressionParameter("gzip_fastest")  # for when the user saves the scene
        name = re.sub(r"[^\w .()-]", "_", node.GetName())
        ending = storage.GetDefaultWriteFileExtension()
        file = folder / "Data" / f"{name}.{ending}"
        while file in files:
            name += "_"
            file = file.with_name(f"{name}.{ending}")
        files.add(file)
        storage.SetFileName(str(file))
        if node.IsA("vtkMRMLScalarVolumeNode"):
            with bundle.open(str(file.relative_to(folder.parent)), "w", force_zip64=True) as stream:
                write_nrrd(volume_from_node(node, copy=False), stream)
            continue
        # The CT's whole extent would take several times its size in memory.
        cropped = node.IsA("vtkMRMLSegmentationNode")
        storage.SetUseCompression(False)
        if cropped:
            storage.CropToMinimumExtentOn()
        if not storage.WriteData(node):
            raise InputError(f"Cannot write {file.name} of the scene: is the disk full?")
        if cropped:
            storage.CropToMinimumExtentOff()
        storage.SetUseCompression(True)  # both for when the user saves the scene
        if file.suffix == ".nrrd":
            with bundle.open(str(file.relative_to(folder.parent)), "w", force_zip64=True) as stream:
                _compress(file, stream)
            file.unlink()
    scene.SetURL(str(folder / f"{folder.name}.mrml"))
    if not scene.Commit():
        raise InputError("Cannot write the scene: is the disk full?")


def _compress(file: Path, stream: IO[bytes]) -> None:
    """Write a NRRD file with compressed voxels: several times as fast as Slicer's writer, and never all in memory."""
    packer = fast_zlib.compressobj(LEVEL, wbits=31)
    with file.open("rb") as raw:
        for line in iter(raw.readline, b"\n"):
            stream.write(b"encoding: gzip\n" if line == b"encoding: raw\n" else line)
        stream.write(b"\n")
        while part := raw.read(2**20):
            stream.write(packer.compress(part))
    stream.write(packer.flush())


def _new_scene() -> tuple[slicer.vtkMRMLScene, list[Any]]:
    """Make a scene that can hold and store our nodes; the returned logics must live as long as it does."""
    application = slicer.vtkSlicerApplicationLogic()
    scene = slicer.vtkMRMLScene()
    scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())  # in Slicer a module does this
    remote, io = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    remote.SetMRMLScene(scene)
    application.SetMRMLScene(scene)
    application.SetMRMLSceneDataIO(scene, remote, io)
    application.SetSliceLogics(vtkCollection())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    return scene, [application, remote, io]
