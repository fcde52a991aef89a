# SPDX-License-Identifier: Apache-2.0
"""An analysis as a scene file that Slicer opens: the CT with heat map and outlines, ready to look at."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
import vtk

from ..errors import InputError
from .display import show_overlay
from .results import analysis_to_nodes

if TYPE_CHECKING:
    from ..analysis import Analysis

#: Slicer's slice views and how they look at the patient.
_VIEWS = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}


def write_scene(analysis: Analysis, path: str | Path) -> Path:
    """Write an analysis as a scene bundle (``.mrb``): CT, segmentation, heat maps and table, shown in the slice views.

    The scene is one of its own: nothing in a running Slicer changes. The file appears whole or not at all.

    :param path: ends in ``.mrb``.
    :return: `path`.
    :raises LiverXAILib.errors.InputError: the file cannot be written.
    """
    path = Path(path)
    scene, logics = _new_scene()
    nodes = analysis_to_nodes(analysis, scene)
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
    for index in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(index)
        if node.IsA("vtkMRMLStorableNode") and node.GetStorageNode() is None and node.AddDefaultStorageNode(""):
            node.GetStorageNode().SetCompressionParameter("gzip_fastest")
    messages = slicer.vtkMRMLMessageCollection()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
            draft = Path(temporary) / path.name
            if not scene.WriteToMRB(str(draft), None, messages):
                raise InputError(f"Cannot write {path}: {messages.GetAllMessagesAsString() or 'is the disk full?'}")
            draft.replace(path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


def _new_scene() -> tuple[slicer.vtkMRMLScene, list[Any]]:
    """A scene that can hold and store our nodes, with the logics that must live as long as it does."""
    application = slicer.vtkSlicerApplicationLogic()
    scene = slicer.vtkMRMLScene()
    scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())  # in Slicer a module does this
    remote, io = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    remote.SetMRMLScene(scene)
    application.SetMRMLScene(scene)
    application.SetMRMLSceneDataIO(scene, remote, io)
    application.SetSliceLogics(vtk.vtkCollection())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    return scene, [application, remote, io]
