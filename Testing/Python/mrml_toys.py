# SPDX-License-Identifier: Apache-2.0
"""Geometries and a small finished analysis for tests of Slicer's scene."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
from toys import ball_phantom, threshold_model

from LiverXAILib.analysis import Analysis
from LiverXAILib.explain import explain_all
from LiverXAILib.inference import segment
from LiverXAILib.measure import measure
from LiverXAILib.volumes.volume import Grid, Volume

SPACING = np.array([1.5, 0.75, 3.0])
ORIGIN = np.array([-31.25, 17.5, 404.125])


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Rotation by three Euler angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def affine(direction: np.ndarray, spacing: np.ndarray = SPACING, origin: np.ndarray = ORIGIN) -> np.ndarray:
    """4x4 from voxels to mm; `direction` has the axes' unit vectors as columns."""
    matrix = np.eye(4)
    matrix[:3, :3] = direction * spacing
    matrix[:3, 3] = origin
    return matrix


def axis_aligned() -> dict[str, np.ndarray]:
    """All 48 ways in which voxel axes can run along the patient's axes: 6 orders, 8 signs; half are left-handed."""
    result = {}
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            direction = np.zeros((3, 3))
            for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
                direction[row, column] = sign
            letters = "".join(("LPS" if sign > 0 else "RAI")[row] for row, sign in zip(order, signs, strict=True))
            result[letters] = affine(direction)
    return result


OBLIQUE = rotation(0.31, -0.47, 0.83)
SHEAR = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, np.sin(0.32)], [0.0, 0.0, np.cos(0.32)]])  # a gantry tilted by 18.5°

GEOMETRIES = {
    **axis_aligned(),
    "oblique": affine(OBLIQUE),
    "oblique left-handed": affine(OBLIQUE * [1, 1, -1]),
    "sheared": affine(SHEAR),
    "oblique sheared left-handed": affine(OBLIQUE @ SHEAR * [-1, 1, 1]),
}


def random_volume(matrix: np.ndarray, shape: tuple[int, int, int] = (5, 7, 6), seed: int = 0) -> Volume:
    """A volume of int16 voxels with distinct values."""
    values = np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape).astype(np.int16)
    return Volume(values - 100, matrix)


@cache
def ball_analysis(method: str = "seg-grad-cam", dull: bool = False) -> Analysis:
    """A complete analysis of :func:`toys.ball_phantom`, about 1 s; `dull`: without a lesion."""
    matrix = affine(rotation(0.1, -0.05, 0.2), np.array([2.2, 1.9, 2.6]))
    volume, _ = ball_phantom(Grid((44, 56, 50), matrix))
    if dull:
        volume = volume.with_array(np.minimum(volume.array, 100))
    model = threshold_model()
    segmentation = segment(volume, model, device="cpu")
    targets = ["liver"] if dull else ["liver", "tumor"]
    explanations = explain_all(volume, model, segmentation, targets, method, device="cpu")
    return Analysis(volume, model.spec, segmentation, tuple(explanations), measure(volume, segmentation))


def add_node(scene: Any, array: np.ndarray, ijk_to_ras: np.ndarray, name: str = "CT") -> Any:
    """A volume node made by Slicer's own function, not by ours."""
    import slicer.util

    return slicer.util.addVolumeFromArray(array, ijkToRAS=ijk_to_ras, name=name)
