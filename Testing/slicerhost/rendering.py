# SPDX-License-Identifier: Apache-2.0
"""Slicer's slice and 3-D views, off-screen, rendered by the same displayable managers as in Slicer.

Rendering needs EGL or OSMesa. If neither works, VTK crashes the process instead of raising an exception, so
:func:`can_render` tries it in a separate process.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .host import Host

#: Slicer's names of the slice views and their orientations.
ORIENTATIONS = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}

_PROBE = """
import vtk
window = vtk.vtkRenderWindow()
window.SetOffScreenRendering(1)
window.AddRenderer(vtk.vtkRenderer())
window.Render()
"""


@cache
def can_render() -> bool:
    """Whether an off-screen window can be rendered here; tried in a separate process, which may crash."""
    import os

    environment = {"VTK_DEFAULT_OPENGL_WINDOW": "vtkEGLRenderWindow", **os.environ}
    return subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, env=environment).returncode == 0


class _View:
    """A window with one renderer, watched by a group of displayable managers."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)  # with samples, Mesa loses translucent surfaces
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()  # some managers need it
        self._interactor.SetRenderWindow(self.window)
        self.managers = slicer.vtkMRMLDisplayableManagerGroup()

    def picture(self) -> np.ndarray:
        """Render to uint8 (row, column, RGB); the first row is at the top."""
        self.window.Render()
        pixels = vtk.vtkUnsignedCharArray()
        width, height = self.window.GetSize()
        self.window.GetPixelData(0, 0, width - 1, height - 1, True, pixels, 0)
        return vtk_to_numpy(pixels).reshape(height, width, 3)[::-1].copy()


class SliceView(_View):
    """A slice view by Slicer's name ("Red", "Green", "Yellow"); make each only once per process."""

    def __init__(self, host: Host, name: str, size: tuple[int, int] = (512, 512)) -> None:
        super().__init__(size)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(host.logic)
        self.logic.SetMRMLScene(host.scene)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetOrientation(ORIENTATIONS[name])
        self.composite = self.logic.GetSliceCompositeNode()
        host.slice_logics.AddItem(self.logic)
        # The image's actor must precede those of the managers: otherwise translucent fills blend with black.
        self._image = vtk.vtkActor2D()
        self._image.SetMapper(vtk.vtkImageMapper())
        self._image.GetMapper().SetColorWindow(255)
        self._image.GetMapper().SetColorLevel(127.5)
        self._image.GetProperty().SetDisplayLocationToBackground()
        self.renderer.AddViewProp(self._image)
        self.managers.Initialize(slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), self.renderer)
        self.managers.SetMRMLDisplayableNode(self.node)
        self.logic.ResizeSliceNode(*size)

    def picture(self) -> np.ndarray:
        connection = self.logic.GetImageDataConnection()  # None before a volume is shown
        self._image.SetVisibility(connection is not None)
        self._image.GetMapper().SetInputConnection(connection)
        return super().picture()

    def fit(self) -> None:
        """Show the whole background volume."""
        self.logic.FitSliceToBackground()

    def jump_to(self, ras: tuple[float, float, float]) -> None:
        """Show the slice through a point (RAS mm), with the point at the center."""
        self.node.JumpSliceByCentering(*ras)

    def zoom(self, factor: float) -> None:
        """Enlarge by `factor` around the center."""
        x, y, z = self.node.GetFieldOfView()
        self.node.SetFieldOfView(x / factor, y / factor, z)

    def pixel_of(self, ras: tuple[float, float, float]) -> tuple[int, int]:
        """(row, column) of the pixel that shows a point (RAS mm) of the slice."""
        ras_to_xy = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.node.GetXYToRAS(), ras_to_xy)
        x, y, *_ = ras_to_xy.MultiplyPoint((*ras, 1.0))
        return self.window.GetSize()[1] - 1 - round(y), round(x)

    def ras_of(self, pixel: tuple[int, int]) -> tuple[float, float, float]:
        """The point (RAS mm) that a pixel (row, column) shows."""
        row, column = pixel
        r, a, s, _ = self.node.GetXYToRAS().MultiplyPoint((column, self.window.GetSize()[1] - 1 - row, 0.0, 1.0))
        return r, a, s


class ThreeDView(_View):
    """The 3-D view; make it only once per process."""

    def __init__(self, host: Host, size: tuple[int, int] = (512, 512)) -> None:
        super().__init__(size)
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(host.logic)
        self.logic.SetMRMLScene(host.scene)
        self.node = self.logic.AddViewNode("1")
        host.view_logics.AddItem(self.logic)
        self.managers.Initialize(slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), self.renderer)
        self.managers.SetMRMLDisplayableNode(self.node)

    @property
    def camera(self) -> Any:
        """The camera node of this view."""
        manager = self.managers.GetDisplayableManagerByClassName("vtkMRMLCameraDisplayableManager")
        return manager.GetCameraNode()

    def pixel_of(self, ras: tuple[float, float, float]) -> tuple[int, int]:
        """(row, column) of the pixel in front of a point (RAS mm)."""
        self.renderer.SetWorldPoint(*ras, 1.0)
        self.renderer.WorldToDisplay()
        x, y, _ = self.renderer.GetDisplayPoint()
        return self.window.GetSize()[1] - 1 - round(y), round(x)

    def look_from(self, direction: int) -> None:
        """Look from a side, e.g. ``slicer.vtkMRMLCameraNode.Anterior``, at the whole scene, without box and labels."""
        self.node.SetBoxVisible(False)  # closing the scene switches them on again
        self.node.SetAxisLabelsVisible(False)
        self.camera.RotateTo(direction)
        self.renderer.ResetCamera()
        self.renderer.ResetCameraClippingRange()


class FourUp:
    """Slicer's four-up layout: axial and 3-D above coronal and sagittal. Make it only once per process, before the
    nodes: a legend that is older than its view is not drawn in it."""

    def __init__(self, host: Host, size: int = 512) -> None:
        self.slices = {name: SliceView(host, name, (size, size)) for name in ORIENTATIONS}
        self.space = ThreeDView(host, (size, size))

    def show(
        self, center: tuple[float, float, float], point: tuple[float, float, float], field_mm: float
    ) -> np.ndarray:
        """Render slices through `point`, centered on `center` (RAS mm) and `field_mm` wide, with rulers and axes, and
        surfaces from the front. The legend is drawn in the axial view only."""
        for name, view in self.slices.items():
            view.node.SetOrientation(ORIENTATIONS[name])
            depth = view.node.GetFieldOfView()[2]
            view.node.SetFieldOfView(field_mm, field_mm, depth)
            view.jump_to(center)
            view.node.JumpSliceByOffsetting(*point)
            view.node.SetOrientationMarkerType(slicer.vtkMRMLSliceNode.OrientationMarkerTypeAxes)
            view.node.SetRulerType(slicer.vtkMRMLSliceNode.RulerTypeThin)
        scene = self.space.node.GetScene()
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode")):
            legend = scene.GetNthNodeByClass(index, "vtkMRMLColorLegendDisplayNode")
            legend.SetViewNodeIDs([self.slices["Red"].node.GetID()])
        for setter in (self.space.node.SetBackgroundColor, self.space.node.SetBackgroundColor2):
            setter(0.05, 0.05, 0.08)
        self.space.look_from(slicer.vtkMRMLCameraNode.Anterior)
        self.space.camera.GetCamera().Zoom(1.3)
        red, green, yellow = (view.picture() for view in self.slices.values())
        gap = np.full((red.shape[0], 4, 3), 90, np.uint8)
        top = np.hstack([red, gap, self.space.picture()])
        return np.vstack([top, np.full((4, top.shape[1], 3), 90, np.uint8), np.hstack([green, gap, yellow])])
