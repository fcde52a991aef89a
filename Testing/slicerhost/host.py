# SPDX-License-Identifier: Apache-2.0
"""The scene, the application logic and the modules' logics, connected as in Slicer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# The window class that VTK's factory picks must be one that needs no screen; it is read when VTK is imported.
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

import slicer
import slicer.util
import vtk

from .iomanager import CoreIOManager

# Modules of Slicer's Python package that are missing from the wheel; those in the wheel come first.
slicer.__path__.append(str(Path(__file__).parent / "standins" / "slicer"))

#: Slicer's name of a module and the class of its logic, in the order in which Slicer makes them.
_LOGICS = {
    "SubjectHierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic,
    "Colors": slicer.vtkSlicerColorLogic,
    "Volumes": slicer.vtkSlicerVolumesLogic,
    "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic,
    "Tables": slicer.vtkSlicerTablesLogic,
    "Transforms": slicer.vtkSlicerTransformLogic,
    "Cameras": slicer.vtkSlicerCamerasModuleLogic,
    "Plots": slicer.vtkSlicerPlotsLogic,
    "Markups": slicer.vtkSlicerMarkupsLogic,
    "Sequences": slicer.vtkSlicerSequencesLogic,
}

_SLICE_MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
)
_THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)

_host: Host | None = None


def start() -> Host:
    """Make the host on the first call, and return the same one afterwards: there is one Slicer per process."""
    global _host
    if _host is None:
        _host = Host()
    return _host


class Host:
    """Slicer without Qt. `scene`, `app` and `modules` are published as ``slicer.mrmlScene`` and so on."""

    def __init__(self) -> None:
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.logic.SetHomeDirectory(str(temporary_folder()))
        self.logic.SetShareDirectory("share")
        (temporary_folder() / "share" / "ColorFiles").mkdir(parents=True)
        for factory, managers in (
            (slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), _SLICE_MANAGERS),
            (slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), _THREE_D_MANAGERS),
        ):
            factory.SetMRMLApplicationLogic(self.logic)
            for manager in managers:
                factory.RegisterDisplayableManager(manager)

        self.scene = slicer.vtkMRMLScene()
        self._remote_io = slicer.vtkMRMLRemoteIOLogic()
        self._data_io = slicer.vtkDataIOManagerLogic()
        self._data_io.SetMRMLApplicationLogic(self.logic)
        self._data_io.SetAndObserveDataIOManager(self._remote_io.GetDataIOManager())
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        self._remote_io.SetMRMLScene(self.scene)
        self.logic.SetMRMLScene(self.scene)
        self.logic.SetMRMLSceneDataIO(self.scene, self._remote_io, self._data_io)
        self.slice_logics, self.view_logics = vtk.vtkCollection(), vtk.vtkCollection()
        self.logic.SetSliceLogics(self.slice_logics)
        self.logic.SetViewLogics(self.view_logics)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)

        self.modules = Modules()
        for name, logic_class in _LOGICS.items():
            self._add_logic(name, logic_class())
        self.scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, self._add_to_subject_hierarchy)
        self.scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, self._remove_from_subject_hierarchy)
        self.app = Application(self)

        slicer.mrmlScene = self.scene
        slicer.modules = self.modules
        slicer.app = self.app

    def _add_logic(self, name: str, logic: Any) -> None:
        if name == "Colors":
            self.logic.SetColorLogic(logic)
        if isinstance(logic, slicer.vtkSlicerModuleLogic):
            logic.SetModuleShareDirectory(str(_share_folder(name)))
        logic.SetMRMLApplicationLogic(self.logic)
        logic.SetMRMLScene(self.scene)
        self.logic.SetModuleLogic(name, logic)
        setattr(self.modules, name.lower(), SimpleNamespace(name=name, logic=lambda: logic))

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _add_to_subject_hierarchy(self, caller: Any, event: str, node: Any) -> None:
        """Add an item for each node that is visible to users, as a Qt plug-in does in Slicer."""
        if node is None or node.GetHideFromEditors() or self.scene.IsImporting():
            return
        if not node.IsA("vtkMRMLDisplayableNode") and not node.IsA("vtkMRMLTableNode"):
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        if not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _remove_from_subject_hierarchy(self, caller: Any, event: str, node: Any) -> None:
        if node is None or self.scene.IsClosing() or self.scene.IsImporting():
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.RemoveItem(item, False, False)

    def clear(self) -> None:
        """Close the scene, as File > Close does; singletons (views, colors) remain."""
        self.scene.Clear(False)

    def reset(self) -> None:
        """Close the scene and remove its views: they outlast it, turned and moved as they were."""
        self.clear()
        for name in ("vtkMRMLAbstractViewNode", "vtkMRMLSliceCompositeNode"):
            views = self.scene.GetNodesByClass(name)
            views.UnRegister(None)  # the caller owns the collection
            for number in range(views.GetNumberOfItems()):
                self.scene.RemoveNode(views.GetItemAsObject(number))


class Modules:
    """The object published as ``slicer.modules``, with an attribute for each existing module."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"module {name!r} is not in the test host")


class ModuleManager:
    """What ``slicer.app.moduleManager()`` does when a module is unloaded."""

    def __init__(self) -> None:
        self._slots: list[Callable[[str], None]] = []

    def connect(self, signal: str, slot: Callable[[str], None]) -> bool:
        _require_signal(signal, "moduleAboutToBeUnloaded(QString)")
        self._slots.append(slot)
        return True

    def disconnect(self, signal: str, slot: Callable[[str], None]) -> bool:
        _require_signal(signal, "moduleAboutToBeUnloaded(QString)")
        self._slots.remove(slot)
        return True

    def unload(self, name: str) -> None:
        """Tell the module's panel that it is about to be unloaded."""
        for slot in list(self._slots):
            slot(name)


def _require_signal(signal: str, known: str) -> None:
    if signal != known:
        raise NotImplementedError(f"the test host has no signal {signal!r}")


class Application:
    """The object published as ``slicer.app``, with only what the host implements."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._io = CoreIOManager(host)
        self._module_manager = ModuleManager()
        self._startup_completed: list[Callable[[], None]] = []
        self._options = SimpleNamespace(runPythonAndExit=False)
        self.testing = False
        self.exit_status: int | None = None

    def applicationLogic(self) -> Any:
        return self._host.logic

    def mrmlScene(self) -> Any:
        return self._host.scene

    def coreIOManager(self) -> CoreIOManager:
        return self._io

    def moduleManager(self) -> ModuleManager:
        return self._module_manager

    def layoutManager(self) -> None:
        """None, as in Slicer without a main window."""
        return

    def commandOptions(self) -> SimpleNamespace:
        return self._options

    def testingEnabled(self) -> bool:
        return self.testing

    @property
    def temporaryPath(self) -> str:
        return str(temporary_folder())

    def pauseRender(self) -> None:
        self._host.logic.PauseRender()

    def resumeRender(self) -> None:
        self._host.logic.ResumeRender()

    def processEvents(self, flags: Any = None) -> None:
        """Do nothing: there is no event loop."""

    def connect(self, signal: str, slot: Callable[[], None]) -> bool:
        _require_signal(signal, "startupCompleted()")
        self._startup_completed.append(slot)
        return True

    def finish_startup(self) -> None:
        """Do what Slicer does when all modules are loaded."""
        slots, self._startup_completed = self._startup_completed, []
        for slot in slots:
            slot()

    def exit(self, status: int) -> None:
        """End the event loop when the running script has ended; the last call counts, as in Slicer."""
        self.exit_status = int(status)


def _share_folder(name: str) -> Path:
    """The folder of a module's resources; empty, because the wheel has none."""
    folder = temporary_folder() / "share" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_temporary: tempfile.TemporaryDirectory[str] | None = None


def temporary_folder() -> Path:
    """A folder that is deleted when the process ends."""
    global _temporary
    if _temporary is None:
        _temporary = tempfile.TemporaryDirectory(prefix="slicerhost-")
    return Path(_temporary.name)
