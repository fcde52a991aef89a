# SPDX-License-Identifier: Apache-2.0
"""Pictures of Slicer's views for test_slicer_rendering.py, made in a separate process that may crash.

``python render_views.py FILE.npz`` writes for each view its picture and the matrix from pixels to the patient.

The CT and the heat map are linear in the patient's coordinates, so their value at any point is known exactly,
whatever the voxel grid: linear interpolation is exact for them.
"""

from __future__ import annotations

import sys

import numpy as np
import slicer
import slicer.util
import slicerhost
from mrml_toys import OBLIQUE, SHEAR, affine, ball_analysis
from slicerhost.rendering import ORIENTATIONS, SliceView, ThreeDView

from LiverXAILib import mrml
from LiverXAILib.explain import Explanation, Target
from LiverXAILib.volumes.volume import Grid, Volume

SHAPE = (40, 48, 44)
CENTER = np.array([12.0, -30.0, 250.0])  # RAS mm
OPACITY = 0.5
THRESHOLD = 0.3
#: Name → voxel axes (columns, LPS) and parent transform (RAS).
CASES = {
    "axis-aligned": (np.eye(3), None),
    "oblique": (OBLIQUE, None),
    "oblique left-handed": (OBLIQUE * [1, -1, 1], None),
    "sheared": (SHEAR, None),
    "transformed": (np.eye(3), OBLIQUE.T),
}


def hounsfield(ras: np.ndarray) -> np.ndarray:
    """The CT at points (..., 3)."""
    return 40 + (ras - CENTER) @ np.array([2.0, -1.5, 1.0])


def heat(ras: np.ndarray) -> np.ndarray:
    """The heat at points (..., 3): from 0 to 1 in 100 mm."""
    return np.clip(0.5 + (ras - CENTER) @ np.array([0.004, 0.006, -0.007]), 0, 1)


def add_case(scene, axes: np.ndarray, turn: np.ndarray | None):
    """Add CT and heat map nodes of a case, with `CENTER` at the center."""
    matrix = affine(axes, np.array([2.0, 1.8, 2.4]), np.zeros(3))
    to_world = np.eye(4) if turn is None else np.block([[turn, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])
    grid = Grid(SHAPE, matrix)
    middle = to_world[:3, :3] @ (grid.ijk_to_ras[:3, :3] @ (np.array(SHAPE[::-1]) - 1) / 2)
    local = np.linalg.inv(to_world[:3, :3]) @ (CENTER - middle)
    matrix[:3, 3] = local * (-1, -1, 1)
    grid = Grid(SHAPE, matrix)
    k, j, i = np.indices(SHAPE)
    ras = grid.to_lps(np.stack([i, j, k], axis=-1)) * (-1, -1, 1) @ to_world[:3, :3].T
    ct = mrml.volume_to_node(Volume(hounsfield(ras).astype(np.float32), matrix), scene, "CT")
    ct.GetDisplayNode().AutoWindowLevelOff()
    ct.GetDisplayNode().SetWindowLevelMinMax(-160, 240)
    if turn is not None:
        transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        slicer.util.updateTransformMatrixFromArray(transform, to_world)
        ct.SetAndObserveTransformNodeID(transform.GetID())
    values = Volume(heat(ras).astype(np.float32), matrix)
    return ct, mrml.explanation_to_node(Explanation(values, 1.0, Target.parse("liver"), "m", "l"), scene, ct)


def main(path: str) -> None:
    host = slicerhost.start()
    views = {name: SliceView(host, name, (256, 256)) for name in ORIENTATIONS}
    space = ThreeDView(host, (256, 256))
    saved: dict[str, np.ndarray] = {}

    def keep(name: str, view: SliceView) -> None:
        saved[f"{name}|picture"] = view.picture()
        saved[f"{name}|xy_to_ras"] = mrml.volumes.from_vtk_matrix(view.node.GetXYToRAS())

    for case, (axes, turn) in CASES.items():
        host.clear()
        ct, heat_map = add_case(host.scene, axes, turn)
        slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(heat_map).SetVisibility(False)
        mrml.show_overlay(host.scene, ct, heat_map, opacity=OPACITY, threshold=THRESHOLD)
        for name, view in views.items():
            view.node.SetOrientation(ORIENTATIONS[name])
            view.fit()
            view.zoom(2.5)
            view.jump_to(CENTER + np.array([3.0, -2.0, 4.0]))
            keep(f"{case}|{ORIENTATIONS[name]}", view)
    view = views["Red"]
    view.node.SetSliceToRASByNTP(*OBLIQUE[:, 2], *OBLIQUE[:, 0], *CENTER, 0)
    keep("transformed|turned", view)
    mrml.show_overlay(host.scene, ct, None)
    keep("CT alone|turned", view)

    host.clear()
    nodes = mrml.analysis_to_nodes(ball_analysis(), host.scene)
    mrml.show_overlay(host.scene, nodes.volume, None, nodes.segmentation)
    lesion = np.array(ball_analysis().measurements.lesions[0].centroid_lps_mm) * (-1, -1, 1)
    view.node.SetOrientation("Axial")
    view.fit()
    view.jump_to(lesion)
    keep("outlines|Axial", view)
    mrml.show_surfaces(nodes.segmentation)
    space.look_from(slicer.vtkMRMLCameraNode.Anterior)
    saved["surfaces|picture"] = space.picture()
    saved["surfaces|lesion_xy"] = np.array(space.pixel_of(lesion))
    np.savez(path, **saved)


if __name__ == "__main__":
    main(sys.argv[1])
