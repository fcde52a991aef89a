# SPDX-License-Identifier: Apache-2.0
"""A synthetic abdominal CT with its ground truth.

A body is described once, in an *atlas*: millimeters, x to the patient's left, y to posterior, z to superior, the
origin in the midline at the level of the right diaphragm's top. Organs are implicit surfaces (signed distances,
negative inside) that are blended, cut by their neighbors and roughened by smooth noise. They are evaluated on a
coarse lattice in coordinates that a random smooth deformation has bent, resampled by cubic interpolation to the
voxels, and painted one over the other with soft edges (the partial volume effect). Thin parts (vessels, ribs,
vertebrae, lesions) are evaluated at the voxels themselves. At last come texture, point spread and noise.

The body depends on the seed alone, not on the voxel spacing: the same seed at 1.5 and 3 mm is the same patient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UsageError
from ..volumes.volume import Volume

#: Names of the voxel values of :attr:`Phantom.tissues`.
TISSUES: dict[str, int] = {
    name: value
    for value, name in enumerate(
        (
            "air",
            "table",
            "skin",
            "subcutaneous_fat",
            "visceral_fat",
            "muscle",
            "cortical_bone",
            "cancellous_bone",
            "cartilage",
            "disc",
            "spinal_canal",
            "lung",
            "lung_vessel",
            "heart_muscle",
            "heart_blood",
            "aorta",
            "vena_cava",
            "portal_vein",
            "hepatic_vein",
            "small_vessel",
            "liver",
            "lesion",
            "lesion_rim",
            "lesion_core",
            "lesion_calcification",
            "cyst",
            "gallbladder",
            "gallstone",
            "spleen",
            "kidney_cortex",
            "kidney_medulla",
            "kidney_pelvis",
            "adrenal",
            "pancreas",
            "gut_wall",
            "gut_fluid",
            "gut_contrast",
            "gut_gas",
            "stool",
            "effusion",
            "ascites",
        )
    )
}

PHASES = ("native", "arterial", "portal")

# Mean HU and its spread between patients. Contrast phases: native, arterial (late, about 35 s), portal (70 s).
_HU: dict[str, tuple[float, float] | dict[str, tuple[float, float]]] = {
    "air": (-1000, 0),
    "table": (-250, 80),
    "skin": (10, 15),
    "subcutaneous_fat": (-106, 5),
    "visceral_fat": (-100, 6),
    "muscle": {"native": (50, 6), "arterial": (55, 6), "portal": (60, 6)},
    "cortical_bone": (520, 90),
    "cancellous_bone": (170, 50),
    "cartilage": (95, 15),
    "disc": (75, 10),
    "spinal_canal": (25, 6),
    "lung": (-850, 25),
    "lung_vessel": {"native": (30, 10), "arterial": (150, 40), "portal": (110, 20)},
    "heart_muscle": {"native": (45, 5), "arterial": (100, 15), "portal": (105, 12)},
    "heart_blood": {"native": (40, 5), "arterial": (250, 60), "portal": (150, 15)},
    "aorta": {"native": (40, 5), "arterial": (300, 50), "portal": (155, 18)},
    "vena_cava": {"native": (38, 5), "arterial": (80, 25), "portal": (135, 18)},
    "portal_vein": {"native": (38, 5), "arterial": (105, 30), "portal": (170, 16)},
    "hepatic_vein": {"native": (36, 5), "arterial": (60, 8), "portal": (160, 18)},
    "small_vessel": {"native": (38, 5), "arterial": (180, 40), "portal": (140, 20)},
    "liver": {"native": (57, 6), "arterial": (75, 9), "portal": (108, 10)},
    "gallbladder": (10, 6),
    "gallstone": (250, 200),
    "spleen": {"native": (48, 4), "arterial": (120, 15), "portal": (120, 10)},
    "kidney_cortex": {"native": (33, 4), "arterial": (170, 25), "portal": (185, 20)},
    "kidney_medulla": {"native": (30, 4), "arterial": (75, 15), "portal": (160, 20)},
    "kidney_pelvis": (8, 5),
    "adrenal": {"native": (28, 8), "arterial": (60, 10), "portal": (70, 10)},
    "pancreas": {"native": (38, 7), "arterial": (95, 12), "portal": (90, 12)},
    "gut_wall": {"native": (38, 5), "arterial": (75, 12), "portal": (85, 12)},
    "gut_fluid": (15, 8),
    "gut_contrast": (260, 90),
    "gut_gas": (-950, 20),
    "stool": (20, 20),
    "effusion": (8, 6),
    "ascites": (8, 5),
}

# Standard deviation in HU of the texture inside a tissue (where it is not zero).
_TEXTURE = {
    "subcutaneous_fat": 6,
    "visceral_fat": 9,
    "muscle": 9,
    "cortical_bone": 90,
    "cancellous_bone": 45,
    "lung": 28,
    "heart_blood": 6,
    "liver": 4,
    "lesion": 6,
    "lesion_rim": 6,
    "lesion_core": 4,
    "spleen": 3,
    "kidney_cortex": 8,
    "kidney_medulla": 8,
    "pancreas": 12,
    "gut_fluid": 8,
    "gut_contrast": 30,
    "table": 30,
}

# Difference to the liver in HU (lowest, highest) by kind and phase; a cyst has its own HU.
_LESION_CONTRAST: dict[str, dict[str, tuple[float, float]]] = {
    "hypodense": {"native": (-25, -10), "arterial": (-45, -18), "portal": (-70, -22)},
    "hyperdense": {"native": (10, 20), "arterial": (25, 70), "portal": (18, 45)},
}
_CYST_HU = (0.0, 14.0)

_FAR = np.float32(99.0)  # "distance" outside the part of the lattice where a shape was evaluated
_LATTICE_MM = 6.0
_LATTICE_LO = (-234.0, -180.0, -288.0)
_LATTICE_HI = (234.0, 180.0, 96.0)

Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]
Coordinates = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Lesion:
    """A lesion as it came out: `center_lps` in mm and `volume_ml` of its voxels, `mean_hu` before noise."""

    center_lps: Point
    volume_ml: float
    kind: str
    mean_hu: float


@dataclass(frozen=True)
class Phantom:
    """A synthetic patient: `ct` (int16, HU), `truth` (uint8: 1 liver, 2 tumor, any lesion, cysts included),
    `tissues` (uint8, values of :data:`TISSUES`), all on one grid in LPS, k ascending to superior."""

    ct: Volume
    truth: Volume
    tissues: Volume
    lesions: list[Lesion]
    phase: str
    seed: int


# ---------------------------------------------------------------------------------------------------------------
# Shapes: signed distances in mm, negative inside.


def _ellipsoid(p: Coordinates, center: Point, radii: Point, rotation: np.ndarray | None = None) -> np.ndarray:
    """Approximate signed distance (exact to first order at the surface). Rows of `rotation` are the axes."""
    d = [np.subtract(x, c, dtype=np.float32) for x, c in zip(p, center, strict=True)]
    if rotation is not None:
        r = rotation.astype(np.float32)
        d = [r[n, 0] * d[0] + r[n, 1] * d[1] + r[n, 2] * d[2] for n in range(3)]
    s = [x / np.float32(r) for x, r in zip(d, radii, strict=True)]
    k0 = np.sqrt(s[0] * s[0] + s[1] * s[1] + s[2] * s[2])
    s = [x / np.float32(r) for x, r in zip(s, radii, strict=True)]
    k1 = np.sqrt(s[0] * s[0] + s[1] * s[1] + s[2] * s[2]) + np.float32(1e-6)
    return k0 * (k0 - 1) / k1


def _capsule(p: Coordinates, a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float) -> np.ndarray:
    """A tube from `a` to `b` with round ends and a radius that changes linearly."""
    ab = (b - a).astype(np.float32)
    d = [np.subtract(x, c, dtype=np.float32) for x, c in zip(p, a, strict=True)]
    h = (d[0] * ab[0] + d[1] * ab[1] + d[2] * ab[2]) / np.float32(max(float(ab @ ab), 1e-6))
    np.clip(h, 0, 1, out=h)
    for n in range(3):
        d[n] -= h * ab[n]
    return np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]) - (
        np.float32(radius_a) + h * np.float32(radius_b - radius_a)
    )


def _ellipse(u: np.ndarray, v: np.ndarray, radius_u: float | np.ndarray, radius_v: float | np.ndarray) -> np.ndarray:
    """Approximate signed distance in a plane."""
    s, t = u / radius_u, v / radius_v
    k0 = np.sqrt(s * s + t * t)
    s, t = s / radius_u, t / radius_v
    return k0 * (k0 - 1) / (np.sqrt(s * s + t * t) + np.float32(1e-6))


def _union(a: np.ndarray, b: np.ndarray, k: float = 0.0) -> np.ndarray:
    """Smooth minimum; `k` in mm is the reach of the blend (0: a sharp edge)."""
    if k == 0:
        return np.minimum(a, b)
    h = np.maximum(k - np.abs(a - b), 0) / np.float32(k)
    return np.minimum(a, b) - h * h * np.float32(k / 4)


def _intersect(a: np.ndarray, b: np.ndarray, k: float = 0.0) -> np.ndarray:
    return -_union(-a, -b, k)


def _rotation(axis: Sequence[float], degrees: float) -> np.ndarray:
    """Rotation matrix (Rodrigues); its rows are the axes of a body turned by `degrees` about `axis`."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    t = np.radians(degrees)
    return (np.eye(3) + np.sin(t) * k + (1 - np.cos(t)) * k @ k).T


def _spline(points: Sequence[Sequence[float]], count: int) -> np.ndarray:
    """`count` points on the Catmull-Rom curve through `points` (columns are interpolated alike, radii too)."""
    nodes = np.asarray(points, float)
    weights = _interpolation(0.0, 1.0, len(nodes), np.linspace(0, len(nodes) - 1, count))
    return weights.astype(float) @ nodes


def _interpolation(start: float, step: float, count: int, at: np.ndarray, smooth: bool = False) -> np.ndarray:
    """Matrix (len(at), count) that interpolates samples at start + n * step; cubic (Catmull-Rom), or, `smooth`,
    the cubic B-spline that stays below the samples. Outside the samples the last one is repeated."""
    position = np.clip((np.asarray(at, float) - start) / step, 0, count - 1)
    first = np.minimum(np.floor(position).astype(int), max(count - 2, 0))
    t = position - first
    if smooth:
        taps = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    else:
        taps = (
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        )
    matrix = np.zeros((len(t), count), np.float32)
    rows = np.arange(len(t))
    for n, tap in enumerate(taps):
        np.add.at(matrix, (rows, np.clip(first + n - 1, 0, count - 1)), tap)
    return matrix


def _resample(values: np.ndarray, matrices: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Apply one interpolation matrix per axis (k, j, i)."""
    mk, mj, mi = matrices
    out = np.matmul(mj, np.matmul(values, mi.T))
    return (mk @ out.reshape(len(out), -1)).reshape(len(mk), *out.shape[1:])


# ---------------------------------------------------------------------------------------------------------------
# The canvas: the lattice with its bent coordinates, and the voxels that are painted.


class _Canvas:
    """The lattice exists at once; the voxels after :meth:`open`, when the body's extent is known."""

    axes: Coordinates  # voxel positions along x, y, z: mm in the scanner
    hu: np.ndarray
    tissue: np.ndarray

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.lattice = tuple(
            np.arange(lo, hi + 1, _LATTICE_MM) for lo, hi in zip(_LATTICE_LO, _LATTICE_HI, strict=True)
        )
        self.lattice_shape = tuple(len(a) for a in self.lattice[::-1])
        self.values: dict[str, float] = {}
        self.atlas = self._bend()
        # per lattice plane, the range of its atlas coordinate: where to look for a shape
        self._ranges = [
            (p.min(axis=tuple(m for m in range(3) if m != n)), p.max(axis=tuple(m for m in range(3) if m != n)))
            for p, n in zip(self.atlas, (2, 1, 0), strict=True)
        ]

    def open(self, axes: Coordinates, spacing: Point) -> None:
        self.axes, self.spacing = axes, spacing
        self.voxel_mm = float(np.prod(spacing) ** (1 / 3))
        shape = tuple(len(a) for a in axes[::-1])
        self.hu = np.full(shape, -1000, np.float32)
        self.tissue = np.zeros(shape, np.uint8)
        self._to_voxels = tuple(
            _interpolation(a[0], _LATTICE_MM, len(a), at) for a, at in zip(self.lattice, axes, strict=True)
        )[::-1]

    def _bend(self) -> Coordinates:
        """Atlas coordinates of the lattice nodes: size, small rotation and shear, smooth deformation."""
        rng = self.rng
        size = rng.normal(1, 0.05)
        scale = 1 / (size * rng.normal(1, [0.03, 0.03, 0.05], 3))
        matrix = np.diag(scale) @ _rotation((0, 0, 1), rng.normal(0, 3)) @ _rotation((1, 0, 0), rng.normal(0, 2))
        matrix = matrix @ _rotation((0, 1, 0), rng.normal(0, 1.5))
        z, y, x = np.meshgrid(*self.lattice[::-1], indexing="ij", sparse=True)
        bent = []
        for row in matrix:
            p = row[0] * x + row[1] * y + row[2] * z
            p = p + self.noise(110) * rng.uniform(3, 8) + self.noise(55) * rng.uniform(0.8, 2.2)
            bent.append(p.astype(np.float32))
        return bent[0], bent[1], bent[2]

    def noise(self, scale_mm: float, rng: np.random.Generator | None = None) -> np.ndarray:
        """A smooth random field on the lattice, mean 0 and standard deviation about 1."""
        rng = rng or self.rng
        matrices = []
        counts = []
        for axis in self.lattice[::-1]:
            count = int(np.ceil((axis[-1] - axis[0]) / scale_mm)) + 4
            matrices.append(_interpolation(axis[0] - 1.5 * scale_mm, scale_mm, count, axis, smooth=True))
            counts.append(count)
        field = _resample(rng.standard_normal(counts, dtype=np.float32), (matrices[0], matrices[1], matrices[2]))
        return field * np.float32(0.48**-1.5)  # 0.48: mean of the sum of the squared B-spline weights

    @property
    def whole(self) -> Box:
        k, j, i = self.hu.shape
        return slice(0, k), slice(0, j), slice(0, i)

    def box(self, lo: Sequence[float], hi: Sequence[float]) -> Box:
        """The lattice nodes (k, j, i) that may lie between the atlas positions `lo` and `hi`."""
        found = []
        for (least, most), a, b in zip(self._ranges, lo, hi, strict=True):
            inside = np.flatnonzero((most >= a) & (least <= b))
            first, last = (inside[0], inside[-1]) if len(inside) else (0, 0)
            found.append(slice(max(int(first) - 1, 0), min(int(last) + 2, len(least))))
        return found[2], found[1], found[0]

    def field(self, lo: Sequence[float], hi: Sequence[float], shape: Callable[[Coordinates], np.ndarray]) -> np.ndarray:
        """`shape` evaluated on the lattice between the atlas positions; far outside elsewhere."""
        out = np.full(self.lattice_shape, _FAR, np.float32)
        box = self.box(lo, hi)
        x, y, z = self.atlas
        out[box] = shape((x[box], y[box], z[box]))
        return out

    def voxels(self, box: Box) -> Box:
        """The voxels within a box of lattice nodes."""
        found = []
        for nodes, axis, at in zip(box, self.lattice[::-1], self.axes[::-1], strict=True):
            start = np.searchsorted(at, axis[nodes.start] if nodes.start else -np.inf)
            stop = np.searchsorted(at, axis[nodes.stop - 1] if nodes.stop < len(axis) else np.inf, side="right")
            found.append(slice(int(start), int(stop)))
        return found[0], found[1], found[2]

    def sample(self, field: np.ndarray, voxels: Box) -> np.ndarray:
        """The lattice field at a box of voxels."""
        pad, matrices = [], []
        for rows, axis, at, matrix in zip(voxels, self.lattice[::-1], self.axes[::-1], self._to_voxels, strict=True):
            span = at[rows]
            if not len(span):
                return np.zeros(tuple(v.stop - v.start for v in voxels), np.float32)
            first = int(np.clip((span[0] - axis[0]) // _LATTICE_MM - 1, 0, len(axis) - 1))
            last = int(np.clip((span[-1] - axis[0]) // _LATTICE_MM + 3, first + 1, len(axis)))
            pad.append(slice(first, last))
            matrices.append(matrix[rows, first:last])
        return _resample(field[pad[0], pad[1], pad[2]], (matrices[0], matrices[1], matrices[2]))

    def coordinates(self, lo: Sequence[float], hi: Sequence[float]) -> tuple[Box, Coordinates]:
        """Voxels that may lie between the atlas positions, and their atlas coordinates."""
        box = self.voxels(self.box(lo, hi))
        x, y, z = (self.sample(p, box) for p in self.atlas)
        return box, (x, y, z)

    def depth(self, field: np.ndarray) -> tuple[Box, np.ndarray]:
        """A field of distances as depth below the surface in *voxels* (positive inside): the distance over what a
        voxel covers along the gradient, so that oblique and anisotropic voxels get the right partial volume."""
        near = field < 2 * _LATTICE_MM
        box = tuple(
            slice(max(int(n[0]) - 2, 0), min(int(n[-1]) + 3, size)) if len(n) else slice(0, 1)
            for n, size in (
                (np.flatnonzero(near.any(axis=axes)), self.lattice_shape[d])
                for d, axes in enumerate(((1, 2), (0, 2), (0, 1)))
            )
        )
        part = np.minimum(field[box], 4 * _LATTICE_MM)  # type: ignore[index]
        width = np.zeros_like(part)
        for axis, mm in enumerate(self.spacing[::-1]):
            if part.shape[axis] > 1:
                width += np.abs(np.gradient(part, _LATTICE_MM, axis=axis)) * np.float32(mm)
        ratio = np.zeros(self.lattice_shape, np.float32)
        ratio[...] = -8
        ratio[box] = np.clip(-part / np.maximum(width, 0.4 * min(self.spacing)), -8, 8)  # type: ignore[index]
        voxels = self.voxels(box)  # type: ignore[arg-type]
        return voxels, self.sample(ratio, voxels)

    def paint(
        self,
        box: Box,
        depth: np.ndarray,
        tissue: str,
        hu: float | np.ndarray | None = None,
        where: np.ndarray | None = None,
    ) -> None:
        """Paint the voxels of `box` whose `depth` (in voxels) is positive, mixing HU at the surface."""
        alpha = np.clip(depth + np.float32(0.5), 0, 1)
        if where is not None:
            alpha *= where
        view = self.hu[box]
        view += alpha * ((self.values[tissue] if hu is None else hu) - view)
        self.tissue[box][alpha > 0.5] = TISSUES[tissue]

    def paint_field(self, field: np.ndarray, tissue: str, hu: float | None = None) -> tuple[Box, np.ndarray]:
        box, depth = self.depth(field)
        self.paint(box, depth, tissue, hu)
        return box, depth

    def paint_tube(
        self, points: np.ndarray, tissue: str, hu: float | None = None, where: np.ndarray | None = None
    ) -> None:
        """`points` (n, 4): atlas position and radius along a tube. `where` is a mask on all voxels."""
        for a, b in itertools.pairwise(points):
            reach = max(a[3], b[3]) + self.voxel_mm
            box, p = self.coordinates(np.minimum(a, b)[:3] - reach, np.maximum(a, b)[:3] + reach)
            if p[0].size:
                depth = -_capsule(p, a[:3], b[:3], a[3], b[3]) / np.float32(self.voxel_mm)
                self.paint(box, depth, tissue, hu, None if where is None else where[box])

    def tube_field(self, points: np.ndarray, blend: float = 0.0) -> np.ndarray:
        """The same tube on the lattice (for wide ones, and to cut other organs)."""
        out = np.full(self.lattice_shape, _FAR, np.float32)
        for a, b in itertools.pairwise(points):
            reach = max(a[3], b[3]) + 14
            box = self.box(np.minimum(a, b)[:3] - reach, np.maximum(a, b)[:3] + reach)
            x, y, z = self.atlas
            part = _capsule((x[box], y[box], z[box]), a[:3], b[:3], a[3], b[3])
            out[box] = _union(out[box], part, blend)
        return out


def _distance(f: np.ndarray) -> np.ndarray:
    """A field on the lattice that is negative inside, over its gradient: the distance in mm near its zero."""
    gradient = np.gradient(f, _LATTICE_MM)
    norm = np.sqrt(sum(g * g for g in gradient))
    return np.clip(f / np.maximum(norm, 1e-3), -60, 60).astype(np.float32)


def _ramp(values: np.ndarray, start: float, stop: float) -> np.ndarray:
    """0 before `start`, 1 after `stop`, smooth between (either may be the larger)."""
    t = np.clip((values - start) / (stop - start), 0, 1)
    return t * t * (3 - 2 * t)


# ---------------------------------------------------------------------------------------------------------------
# Anatomy. Numbers are atlas mm.


class _Patient:
    """Paints one body, organ by organ; keeps the lattice fields that later organs touch."""

    def __init__(self, canvas: _Canvas) -> None:
        self.canvas = canvas
        self.rng = rng = canvas.rng
        self.fat = float(np.clip(rng.gamma(3.0, 4.5), 4, 38))  # subcutaneous, mm
        self.visceral = float(np.clip(rng.normal(0.35, 0.25) + self.fat / 60, 0, 1))  # visceral fat, 0 to 1
        self.muscle = rng.uniform(0.8, 1.25)
        self.spine_slope = rng.uniform(0.03, 0.2)

    def draw_hu(self, rng: np.random.Generator, phase: str) -> None:
        for name, entry in _HU.items():
            mean, spread = entry[phase] if isinstance(entry, dict) else entry
            self.canvas.values[name] = float(rng.normal(mean, spread))
        values = self.canvas.values
        if rng.random() < 0.18:  # steatosis
            values["liver"] -= rng.uniform(12, 45)
        if phase == "portal":
            values["hepatic_vein"] = max(values["hepatic_vein"], values["liver"] + 8)
        values["gallstone"] = max(values["gallstone"], 60.0)

    def spine_y(self, z: np.ndarray | float) -> np.ndarray:
        """Where the vertebral bodies' center line runs."""
        return 44 + self.spine_slope * (np.asarray(z) + 130)

    def gap(self, least: float, most: float) -> float:
        """Thickness in mm of the fat between two organs: thin in the lean."""
        return least + (most - least) * self.visceral

    # -- body wall ----------------------------------------------------------------------------------------------

    def shape_trunk(self) -> None:
        canvas, rng = self.canvas, self.rng
        x, y, z = canvas.atlas
        half_width = rng.normal(150, 5) * (1 - rng.uniform(0.0, 0.1) * _ramp(z, -90, -200))
        depth = rng.normal(112, 4) + rng.uniform(-6, 12) * _ramp(z, -60, -180) * (y < 0)
        power = np.float32(rng.uniform(2.3, 2.7))
        rho = (np.abs(x / half_width) ** power + np.abs(y / depth) ** power) ** (1 / power)
        self.trunk_distance = _distance(rho - 1)
        sideways = np.clip(np.abs(x) / 150, 0, 1) ** 2
        fat = self.fat * (0.6 + rng.uniform(0, 0.6) * sideways + rng.uniform(0.1, 0.9) * _ramp(z, -80, -220))
        fat = np.clip(fat * (1 + 0.25 * canvas.noise(80)), 2.5, None)
        fat = fat - (6 + 0.35 * self.fat) * np.exp(-((x / 14) ** 2)) * (y > 0) * 0.5  # the groove of the back
        self.skin_distance = (self.trunk_distance - np.maximum(fat, 2)).astype(np.float32)
        front = _ramp(y, -40, -95) * _ramp(z, -30, -100)
        wall = 16.5 + (self.muscle - 1) * 8 - 6 * front
        self.inner = self.trunk_distance + wall
        back = self.spine_y(z)
        column = _ellipse(x, y - back, 25, 23)
        muscles = _ellipse(x, y - back - 48, 62 + 6 * self.muscle, 36)
        self.column = column
        self.cavity = _intersect(self.inner, -_union(column, muscles, 8), 10)

    def paint_trunk(self) -> None:
        canvas, rng = self.canvas, self.rng
        canvas.paint_field(self.skin_distance, "skin")
        canvas.paint_field(self.skin_distance + rng.uniform(1.6, 2.4), "subcutaneous_fat")
        canvas.paint_field(self.trunk_distance, "muscle")
        canvas.paint_field(self.cavity, "visceral_fat")

    def paint_wall(self) -> None:
        """Ribs and costal cartilages, fat between the muscle layers: they follow the wall."""
        canvas, rng = self.canvas, self.rng
        x, y, z = canvas.atlas
        angle = np.arctan2(np.abs(x) * 0.8, y - 15).astype(np.float32) / np.float32(np.pi)  # 0 back, 1 front
        bend = 0.63
        drop = np.where(angle < bend, 100 * (np.minimum(angle, bend) / bend) ** 1.1, 100 - 230 * (angle - bend))
        level = (z + drop + rng.normal(62, 4)).astype(np.float32) / 26  # 0: twelfth rib, 1: eleventh...
        cavity = canvas.sample(self.cavity, canvas.whole).ravel()
        trunk = canvas.sample(self.trunk_distance, canvas.whole).ravel()
        flat_hu, flat_tissue = canvas.hu.reshape(-1), canvas.tissue.reshape(-1)
        band = np.flatnonzero((np.abs(cavity - 6) < 8) & (trunk < 1) & (flat_tissue == TISSUES["muscle"]))
        height = canvas.sample(level, canvas.whole).ravel()[band]
        turn = canvas.sample(angle, canvas.whole).ravel()[band]
        outward = cavity[band] - np.float32(5.0)

        number = np.round(height)
        ends = np.array([0.34, 0.48, 0.63, 0.67, 0.70, 0.74, 0.78, 0.80, 0.82, 0.82]) + rng.normal(0, 0.01, 10)
        tips = np.array([0.34, 0.49, 0.76, 0.84, 0.90, 0.97, 1.0, 1.0, 1.0, 1.0])
        index = np.clip(number, 0, 9).astype(int)
        across = (height - number) * np.float32(26 * 0.75)
        radial = np.sqrt((outward / 4.0) ** 2 + (across / 6.5) ** 2)
        depth = (1 - radial) * 4.5
        real = (number >= 0) & (turn > 0.1)
        soft = np.float32(canvas.voxel_mm)
        parts = (
            ("cartilage", real & (turn >= ends[index]) & (turn < tips[index]), 0.0),
            ("cortical_bone", real & (turn < ends[index]), 0.0),
            ("cancellous_bone", real & (turn < ends[index]), 1.5),
        )
        for name, present, inside in parts:
            alpha = np.clip((depth - inside) / soft + 0.5, 0, 1) * present
            flat_hu[band] += alpha * (canvas.values[name] - flat_hu[band])
            flat_tissue[band[alpha > 0.5]] = TISSUES[name]

        # three flat muscles with fat between them, below the ribs and at the side; linea alba in front
        side = (turn > 0.42) & (turn < 0.85) & (height < 0.6)
        thickness = cavity[band] - trunk[band]
        line = np.zeros(len(band), np.float32)
        for part in (0.36, 0.68):
            line = np.maximum(line, np.clip(1.1 - np.abs(cavity[band] - part * thickness) / soft, 0, 1))
        alpha = line * side * np.float32(0.25 + 0.6 * self.visceral)
        flat_hu[band] += alpha * (canvas.values["visceral_fat"] - flat_hu[band])

    def paint_spine(self) -> None:
        canvas, rng = self.canvas, self.rng
        box, (x, y, z) = canvas.coordinates((-60, -20, -300), (60, 150, 120))
        y = y - self.spine_y(z).astype(np.float32)
        soft = np.float32(canvas.voxel_mm)
        level = np.where(z < -62, (z + 62) / 33, (z + 62) / 27).astype(np.float32)
        level += np.float32(rng.uniform(-0.3, 0.3))
        part = level - np.round(level)  # -0.5 .. 0.5 through one vertebra
        mm = np.where(z < -62, np.float32(33), np.float32(27))
        waist = 1 - np.float32(0.1) * np.clip(1 - (part / 0.4) ** 2, 0, 1)
        size = 1 - np.float32(0.12) * _ramp(z, -120, 0).astype(np.float32)
        body = _ellipse(x, y, 23 * waist * size, 17 * waist * size)
        ends = (np.abs(part) - np.float32(0.40)) * mm
        canal = _ellipse(x, y - 25, np.float32(11.5), np.float32(8.5))
        arch = np.maximum(np.maximum(-canal, canal - 4.5), (np.abs(part + 0.08) - 0.36) * mm)
        spinous = np.maximum(np.maximum(np.abs(x) - 3.2, np.abs(y - 48) - 15), (np.abs(part + 0.15) - 0.27) * mm)
        transverse = np.sqrt((y - 24 - np.abs(x) * 0.12) ** 2 + ((part - 0.05) * mm) ** 2) - 4.5
        transverse = np.maximum(transverse, np.maximum(np.abs(x) - 38, 12 - np.abs(x)))
        facets = np.sqrt((np.abs(x) - 15) ** 2 + (y - 29) ** 2) - 6.5
        for name, disc_like, hu_name in (("disc", body + 1, "disc"), ("spinal_canal", canal, "spinal_canal")):
            canvas.paint(box, -disc_like / soft, name, canvas.values[hu_name])
        bone = np.minimum(np.maximum(body, ends), np.minimum(np.minimum(arch, facets), np.minimum(spinous, transverse)))
        bone = np.maximum(bone, -canal)
        canvas.paint(box, -bone / soft, "cortical_bone")
        canvas.paint(box, -(bone + 1.6) / soft, "cancellous_bone")

    def paint_back_muscles(self) -> None:
        """Psoas and quadratus lumborum, and fat between the muscles of the back."""
        canvas = self.canvas
        for side in (-1, 1):
            path = [
                (side * 24, self.spine_y(-85) + 2, -85, 5),
                (side * 34, self.spine_y(-140) - 2, -140, 13 * self.muscle),
                (side * 42, self.spine_y(-200) - 6, -200, 20 * self.muscle),
                (side * 48, self.spine_y(-280) - 10, -280, 23 * self.muscle),
            ]
            canvas.paint_field(canvas.tube_field(_spline(path, 8), 8), "muscle")
            quadratus = [
                (side * 62, self.spine_y(-100) + 24, -100, 7),
                (side * 72, self.spine_y(-200) + 18, -200, 12 * self.muscle),
                (side * 78, self.spine_y(-280) + 14, -280, 12 * self.muscle),
            ]
            canvas.paint_field(canvas.tube_field(_spline(quadratus, 5), 6), "muscle")
            septum = [
                (side * 9, self.spine_y(60) + 36, 60, 1.0),
                (side * 40, self.spine_y(-110) + 32, -110, 1.3 + 2 * self.visceral),
                (side * 46, self.spine_y(-280) + 30, -280, 2 + 3 * self.visceral),
            ]
            canvas.paint_tube(_spline(septum, 6), "visceral_fat")

    # -- chest --------------------------------------------------------------------------------------------------

    def shape_diaphragm(self) -> None:
        """`below`: the distance to the abdomen under the diaphragm's domes."""
        rng = self.rng
        x, y, z = self.canvas.atlas
        left_top = rng.normal(-14, 7)
        drop = rng.normal(108, 8) - 45 * _ramp(y, 10, -90)
        surface = None
        for center, lateral, medial, top in ((-66, 71, 88, 0.0), (66, 71, 86, left_top)):
            outward = (x - center) * np.sign(center)
            u = np.where(outward > 0, outward / lateral, outward / medial)
            v = (y - 2) / 106
            r = np.minimum(np.abs(u) ** 2.3 + np.abs(v) ** 2.3, 0.985)
            dome = top - drop * (1 - np.sqrt(1 - r))
            surface = dome if surface is None else -_union(-surface, -dome, 30)
        middle = -10 - 60 * np.minimum((x / 95) ** 2 + ((y + 25) / 90) ** 2, 1.2)
        surface = -_union(-surface, -middle, 25)
        surface = surface + 2.0 * self.canvas.noise(45)
        self.below = _distance((z - surface).astype(np.float32))
        self.abdomen = np.maximum(self.below, self.cavity)

    def paint_chest(self) -> None:
        canvas, rng = self.canvas, self.rng
        x, y, z = canvas.atlas
        back = self.spine_y(z)
        mediastinum = _ellipse(x - 4, y - back + 20, 30 + 4 * self.visceral, 34)
        tilt = _rotation((0.2, 0.5, 1), -35)
        heart = _ellipsoid(canvas.atlas, (24, -42, rng.normal(42, 4)), (66, 50, 50), tilt) + canvas.noise(45)
        heart = np.maximum(heart, -self.below + 3)
        sac = np.minimum(heart - self.gap(2, 8), _ellipsoid(canvas.atlas, (12, -86, 30), (26, 26, 60)))
        lung = _intersect(self.cavity, -self.below, 0)
        lung = np.maximum(lung, -np.minimum(mediastinum, sac))
        box, depth = canvas.paint_field(lung, "lung")
        inside = np.zeros(canvas.hu.shape, bool)
        inside[box] = depth > 0.5
        for side in (-1, 1):
            for _ in range(9):
                start = np.array([side * 38, 10 + rng.normal(0, 8), 70 + rng.normal(0, 8)])
                aim = np.array([side * rng.uniform(0.2, 1.0), rng.uniform(-0.6, 1.0), rng.uniform(-1.3, -0.2)])
                for segment in _grow(rng, start, aim, 38, rng.uniform(2.2, 3.8), 3, 0.62):
                    canvas.paint_tube(segment, "lung_vessel", where=inside)
        self._effusion(lung)
        # muscular diaphragm
        canvas.paint_field(np.maximum(np.abs(self.below + 1.0) - rng.uniform(1.0, 1.8), self.cavity), "muscle")
        canvas.paint_field(heart, "heart_muscle")
        for center, radii in (
            ((38, -45, 40), (36, 26, 30)),
            ((-8, -56, 38), (30, 22, 30)),
            ((-12, -18, 46), (28, 24, 28)),
        ):
            chamber = _ellipsoid(canvas.atlas, center, radii, tilt)
            canvas.paint_field(np.maximum(chamber, heart + 4), "heart_blood")
        for side in (-1, 1):
            crus = [(side * 14 + 8, self.spine_y(-5) - 30, -5, 4), (side * 17 + 4, self.spine_y(-60) - 26, -60, 5)]
            crus.append((side * 12 + 4, self.spine_y(-140) - 18, -140, 3.5))
            canvas.paint_tube(_spline(crus, 7), "muscle")
        # sternum and xiphoid
        box, (fx, _, fz) = canvas.coordinates((-30, -140, -30), (30, -70, 120))
        if fx.size:
            where = canvas.sample(self.inner, box)
            bone = np.maximum(np.abs(where - 6) - 4.5, np.abs(fx) - 7 - 10 * _ramp(fz, -10, 60).astype(np.float32))
            bone = np.maximum(bone, -15 - fz)
            soft = np.float32(canvas.voxel_mm)
            canvas.paint(box, -bone / soft, "cortical_bone")
            canvas.paint(box, -(bone + 1.5) / soft, "cancellous_bone")

    def _effusion(self, lung: np.ndarray) -> None:
        """Fluid behind one lung or both, in some."""
        if self.rng.random() > 0.12:
            return
        x, y, z = self.canvas.atlas
        side = self.rng.choice([-1, 1])
        level = self.rng.uniform(35, 75)
        fluid = np.maximum(lung, np.maximum(level - y + 0.25 * (z + 40), -side * x))
        self.canvas.paint_field(fluid, "effusion")

    # -- abdomen ------------------------------------------------------------------------------------------------

    def shape_neighbors(self) -> None:
        """The organs that press on the liver; painted later."""
        canvas, rng = self.canvas, self.rng
        full = rng.uniform(0.7, 1.15)
        x0 = rng.normal(0, 4)
        path = [
            (62 + x0, 32, -40, 31 * full),
            (66 + x0, 8, -52, 33 * full),
            (62 + x0, -24, -76, 29 * full),
            (48 + x0, -46, -100, 25 * full),
            (20, -54, -118, 19 * full),
            (-8, -48, -117, 15 * full),
            (-28, -36, -108, 11),
        ]
        self.stomach = np.maximum(canvas.tube_field(_spline(path, 14), 10) + 1.5 * canvas.noise(30), self.abdomen + 4)
        self.kidneys: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for side in (-1, 1):
            center = np.array([side * rng.normal(70, 4), 0.0, rng.normal(-138 if side < 0 else -122, 8)])
            center[1] = self.spine_y(center[2]) - 4
            frame = _rotation((0, 1, 0), side * 12) @ _rotation((1, 0, 0), -10) @ _rotation((0, 0, 1), -side * 35)
            radii = np.array([26, 30, rng.normal(55, 4)]) * rng.normal(1, 0.05)
            lo, hi = center - 80, center + 80
            field = canvas.field(lo, hi, lambda p, c=center, r=radii, f=frame: _ellipsoid(p, tuple(c), tuple(r), f))
            # the hilum lies medially and in front: the frame's x axis
            notch = center - side * frame[0] * 30
            dent = canvas.field(lo, hi, lambda p, c=notch, f=frame: _ellipsoid(p, tuple(c), (14, 12, 20), f))
            field = _intersect(field, -dent, 8) + np.where(field < 40, 0.8 * canvas.noise(25), 0)
            self.kidneys.append((np.maximum(field, self.abdomen + 5), center, frame))
        scale = np.clip(rng.lognormal(0, 0.18), 0.7, 1.6)
        spleen = canvas.field(
            (30, -40, -170),
            (150, 120, 40),
            lambda p: _ellipsoid(p, (104, 38, -62), (28 * scale, 46 * scale, 50 * scale), _rotation((0, 1, 0.4), 22)),
        )
        spleen = spleen + np.where(spleen < 40, 1.5 * canvas.noise(35), 0)
        spleen = _intersect(spleen, -(self.kidneys[1][0] - self.gap(1, 7)), 8)
        spleen = _intersect(spleen, -(self.stomach - self.gap(1, 6)), 10)
        self.spleen = _intersect(spleen, self.abdomen + 2.0 + self.gap(0, 2), 6)
        self._colon_path()

    def _colon_path(self) -> None:
        rng = self.rng
        sag = rng.uniform(0, 45)
        right, left = rng.normal(-160, 10), rng.normal(-100, 12)
        path = np.array(
            [
                (-92, 10, -290, 25),
                (-96, 8, -215, 24),
                (-94, 2, right - 22, 22),
                (-84, -30, right, 21),
                (-62, -66, right - 20, 21),
                (-25, -82, right - 22 - sag * 0.7, 20),
                (20, -84, right - 15 - sag, 19),
                (60, -74, right + 12 - sag * 0.6, 19),
                (88, -45, left - 30, 19),
                (108, -8, left, 19),
                (112, 22, left - 30, 17),
                (108, 30, left - 90, 16),
                (104, 22, -290, 16),
            ]
        )
        path[:, :3] += rng.normal(0, 4, path[:, :3].shape)
        path[:, 3] *= rng.uniform(0.75, 1.2) * rng.lognormal(0, 0.12, len(path))
        tube = _spline(path, 90)
        tube[:, 3] *= 1 + 0.14 * np.sin(np.arange(90) * 2 * np.pi / 5.3)  # haustra
        self.colon = np.maximum(self.canvas.tube_field(tube, 4), self.abdomen + 4)
        self.colon = _intersect(self.colon, -(self.stomach - 2), 4)
        self.colon = _intersect(self.colon, -(self.spleen - 2), 4)
        for kidney, _, _ in self.kidneys:
            self.colon = _intersect(self.colon, -(kidney - 2), 4)

    def shape_liver(self) -> None:
        canvas, rng = self.canvas, self.rng
        x, y, z = canvas.atlas
        size = rng.normal(1, 0.06)
        right = _ellipsoid(canvas.atlas, (-68, 6, -60), (82 * size, 108, 100))
        reach = np.clip(rng.normal(72, 22), 30, 115)  # how far the left lobe goes to the left
        height = rng.uniform(34, 50)
        left = _ellipsoid(
            canvas.atlas, (reach - 74, -48, -42), (74, 54, height), _rotation((0, 1, 0), rng.uniform(-4, 12))
        )
        caudate = _ellipsoid(canvas.atlas, (-14, 4, -62), (17, 17, rng.uniform(24, 34)))
        liver = _union(_union(right, left, 22), caudate, 8)
        # the concave visceral surface rises from the right tip to the left
        bottom = rng.normal(-82, 7)
        slope = rng.uniform(0.55, 0.95)
        visceral = bottom + slope * np.minimum(x + 25, 0) + 0.28 * np.maximum(x + 25, 0)
        visceral = visceral + 0.16 * np.minimum(y + 20, 0) - 0.10 * np.maximum(y - 20, 0) + 3 * canvas.noise(55)
        liver = _intersect(liver, (visceral - z) / 1.25, 26)
        if rng.random() < 0.25:  # Riedel's lobe
            tongue = _ellipsoid(canvas.atlas, (-112, 0, -150), (24, 44, rng.uniform(45, 85)))
            liver = _union(liver, tongue, 18)
        liver = liver + rng.uniform(0.8, 2.2) * canvas.noise(38)
        if rng.random() < 0.12:  # nodular surface of cirrhosis
            liver = liver + 1.6 * canvas.noise(13)
        gap = self.gap
        for other, fat, k in (
            (self.kidneys[0][0], gap(1.0, 8), 8),
            (self.stomach, gap(0.5, 5), 8),
            (self.colon, gap(0.5, 5), 6),
            (self.column, 11, 8),
            (canvas.tube_field(self.aorta), 5, 6),
            (canvas.tube_field(self.esophagus), 3, 6),
        ):
            liver = _intersect(liver, -(other - fat), k)
        liver = _intersect(liver, self.below + 2.2, 5)
        self.liver = _intersect(liver, self.cavity + gap(-0.5, 2.5), 5)

    def shape_vessels(self) -> None:
        """Centerlines of the great vessels (atlas position, radius)."""
        rng = self.rng
        s = self.spine_y
        wide = rng.normal(1, 0.1)
        aorta = [
            (24, s(90) - 18, 90, 12 * wide),
            (18, s(20) - 24, 20, 11.5 * wide),
            (12, s(-60) - 30, -60, 11 * wide),
            (13, s(-140) - 29, -140, 9.5 * wide),
            (11, s(-280) - 28, -280, 8.5 * wide),
        ]
        self.aorta = _spline(aorta, 16)
        flat = rng.uniform(0.8, 1.2)
        cava = [
            (-20, s(-280) - 27, -280, 9.5 * flat),
            (-22, s(-150) - 28, -150, 10 * flat),
            (-24, s(-90) - 31, -90, 11 * flat),
            (-26, s(-45) - 36, -45, 11.5 * flat),
            (-22, s(-10) - 46, -10, 13 * flat),
            (-14, -14, 25, 14),
        ]
        self.cava = _spline(cava, 16)
        esophagus = [
            (10, self.spine_y(80) - 38, 80, 8),
            (12, self.spine_y(20) - 42, 20, 8),
            (22, self.spine_y(-20) - 42, -20, 8),
            (40, 12, -42, 9),
        ]
        self.esophagus = _spline(esophagus, 9)

    def paint_abdomen(self) -> None:
        canvas, rng = self.canvas, self.rng
        self._mesentery()
        if rng.random() < 0.1:  # ascites around the liver and spleen
            organs = np.minimum(self.liver, self.spleen) - rng.uniform(4, 12)
            canvas.paint_field(np.maximum(organs, self.abdomen), "ascites")
        self._small_bowel()
        self._hollow(self.colon, 2.2, stool=True)
        self._pancreas()
        self._hollow(self.stomach, rng.uniform(2.5, 5), stool=False)
        canvas.paint_tube(self.esophagus, "gut_wall")
        canvas.paint_field(self.spleen, "spleen")
        for kidney in zip(self.kidneys, (-1, 1), strict=True):
            self._kidney(*kidney[0], kidney[1])
        for side in (-1, 1):
            top = self.kidneys[(side + 1) // 2][1] + np.array([-side * 26, -14, 52])
            for d in ((-side * 10, 10, -16), (side * 8, 14, -20)):
                ends = np.array([[*top, 2.6], [*(top + np.array(d)), 2.0]])
                canvas.paint_tube(ends, "adrenal")
        canvas.paint_tube(self.aorta, "aorta")
        self._branches()

    def _mesentery(self) -> None:
        """Small vessels and strands in the fat of the abdomen."""
        canvas, rng = self.canvas, self.rng
        inside = np.zeros(canvas.hu.shape, bool)
        box, depth = canvas.depth(self.abdomen + 3)
        inside[box] = depth > 0
        for _ in range(14):
            start = np.array([rng.normal(4, 10), rng.normal(-25, 8), rng.uniform(-230, -115)])
            aim = np.array([rng.normal(0, 1), rng.uniform(-1, -0.1), rng.normal(-0.5, 0.6)])
            for segment in _grow(rng, start, aim, 30, rng.uniform(1.6, 3.0), 3, 0.7):
                canvas.paint_tube(segment, "small_vessel", where=inside)

    def _small_bowel(self) -> None:
        canvas, rng = self.canvas, self.rng
        loops = np.full(canvas.lattice_shape, _FAR, np.float32)
        center, extent = np.array([5.0, -42.0, -228.0]), np.array([78.0, 44.0, 62.0])
        for _ in range(5):
            p = center + extent * rng.uniform(-0.7, 0.7, 3)
            path = []
            for _ in range(9):
                path.append((*p, rng.uniform(8.5, 13)))
                step = rng.normal(0, 1, 3)
                q = p + 34 * step / np.linalg.norm(step)
                outside = np.linalg.norm((q - center) / extent) > 1
                p = center + (q - center) * (0.8 / np.linalg.norm((q - center) / extent) if outside else 1)
            loops = np.minimum(loops, canvas.tube_field(_spline(path, 26)))
        duodenum = [
            (-28, -36, -108, 11),
            (-46, -14, -118, 12),
            (-46, 2, -150, 12),
            (-30, 8, -172, 11),
            (10, 2, -172, 10),
        ]
        loops = np.minimum(loops, canvas.tube_field(_spline(duodenum, 12)))
        loops = np.maximum(loops, self.abdomen + 4)
        for other in (self.colon, self.stomach, self.kidneys[0][0], self.kidneys[1][0]):
            loops = np.maximum(loops, -(other - 2))
        self._hollow(loops, 2.4, stool=False, gas=0.12)

    def _hollow(self, field: np.ndarray, wall: float, stool: bool, gas: float = 0.5) -> None:
        """A wall, and in it fluid, oral contrast or stool, and gas on top (the patient lies on the back)."""
        canvas, rng = self.canvas, self.rng
        fine, coarse = canvas.noise(7.5), canvas.noise(60)
        contrast, gassy = rng.random() < 0.25, rng.uniform(0, 1)
        canvas.paint_field(field, "gut_wall")
        box, depth = canvas.depth(field + wall)
        lumps, where = canvas.sample(fine, box), canvas.sample(coarse, box)
        y = canvas.axes[1][box[1]].astype(np.float32)[None, :, None]
        if stool:
            canvas.paint(box, depth, "stool", canvas.values["stool"] + 30 * lumps)
            bubbles = lumps + 0.9 * where + 0.012 * (-20 - y) - np.float32(0.2 + gassy)
            canvas.paint(box, np.minimum(depth, bubbles * 3), "gut_gas")
            return
        name = "gut_contrast" if contrast else "gut_fluid"
        canvas.paint(box, depth, name, canvas.values[name] + 6 * lumps)
        inside = depth > 0
        if inside.any():
            heights = np.broadcast_to(y, depth.shape)[inside]
            level = np.quantile(heights, 0.05 + gas * gassy)
            above = (level - y - 6 * (where + 1) * (gas < 0.3)) / np.float32(canvas.spacing[1])
            canvas.paint(box, np.minimum(depth, above), "gut_gas")

    def _pancreas(self) -> None:
        canvas, rng = self.canvas, self.rng
        thick = rng.uniform(0.75, 1.15)
        path = [
            (-24, -12, -132, 11 * thick),
            (-16, -18, -116, 13 * thick),
            (6, -24, -106, 10 * thick),
            (34, -16, -96, 10.5 * thick),
            (62, 8, -86, 10 * thick),
            (84, 26, -76, 8 * thick),
        ]
        field = canvas.tube_field(_spline(path, 12), 8) + 1.6 * canvas.noise(12)
        for other in (self.stomach, self.spleen, self.kidneys[1][0]):
            field = np.maximum(field, -(other - 2))
        canvas.paint_field(field, "pancreas")

    def _kidney(self, field: np.ndarray, center: np.ndarray, frame: np.ndarray, side: int) -> None:
        canvas = self.canvas
        box, _depth = canvas.paint_field(field, "kidney_cortex")
        p = [canvas.sample(a, box) - np.float32(c) for a, c in zip(canvas.atlas, center, strict=True)]
        u, v, w = (sum(np.float32(f) * q for f, q in zip(row, p, strict=True)) for row in frame)
        soft = np.float32(canvas.voxel_mm)
        mm = canvas.sample(field, box)
        u = u * np.float32(-side)  # toward the hilum
        turn = np.arctan2(v, u - 6)
        lobes = np.cos(3 * turn) * 0.6 + np.cos(w * np.float32(2 * np.pi / 24))
        pyramids = np.minimum(-(mm + 6.5), np.minimum((lobes + 0.35) * 5, 30 + 0 * mm))
        canvas.paint(box, pyramids / soft, "kidney_medulla")
        sinus = _ellipsoid((u, v, w), (12, 0, 0), (17, 9 + 3 * self.visceral, 24))
        canvas.paint(box, np.minimum(-sinus / soft, 8), "visceral_fat", where=(mm < 2).astype(np.float32))
        pelvis = np.minimum(
            _ellipsoid((u, v, w), (14, 0, 0), (13, 4.5, 9)),
            _ellipsoid((u, np.abs(v), np.abs(w)), (6, 2, 13), (4, 4, 5)),
        )
        canvas.paint(box, -pelvis / soft, "kidney_pelvis")

    def _branches(self) -> None:
        """Arteries and veins outside the liver."""
        canvas = self.canvas
        s = self.spine_y
        start = (12, s(-92) - 38, -92)
        arteries = [
            [(*start, 4), (10, s(-92) - 55, -90, 3.5), (-10, -14, -88, 3), (-28, -20, -80, 2.5)],
            [(10, s(-92) - 55, -90, 3), (40, -6, -88, 2.8), (70, 18, -78, 2.4), (86, 32, -70, 2)],
            [(12, s(-105) - 38, -105, 4), (10, -18, -125, 3.8), (4, -32, -180, 3.5), (0, -40, -240, 2.6)],
        ]
        veins = [
            [(-6, -32, -240, 4), (-2, -28, -180, 5), (4, -14, -112, 6.5)],
            [(88, 34, -72, 3), (50, 6, -92, 4.2), (6, -12, -106, 6)],
        ]
        for _, center, frame in self.kidneys:
            side = np.sign(center[0])
            hilum = center - side * frame[0] * 16
            veins.append([(-16 if side < 0 else -12, s(center[2]) - 34, center[2] + 4, 5), (*hilum, 4)])
            arteries.append([(12, s(center[2]) - 30, center[2] + 8, 3), (*(hilum + np.array([0, 4, 2])), 2.4)])
        for n, path in enumerate(veins):
            name = "portal_vein" if n < 2 else "vena_cava"
            canvas.paint_tube(_spline(path, 8), name)
        for path in arteries:
            canvas.paint_tube(_spline(path, 9), "aorta")

    def paint_liver(self) -> np.ndarray:
        """The liver with its vessels and fissures; returns the mask of voxels that belong to it (before lesions)."""
        canvas, rng = self.canvas, self.rng
        box, depth = canvas.paint_field(self.liver, "liver")
        self.liver_box = box
        inside = np.zeros(canvas.hu.shape, bool)
        inside[box] = depth > 0
        deep = np.zeros(canvas.hu.shape, bool)
        deep[box] = depth > 1.0
        soft = np.float32(canvas.voxel_mm)
        # fissures filled with fat: ligamentum teres, ligamentum venosum, porta hepatis
        teres = rng.normal(4, 5)
        fissures = (
            ((teres, -62, -92), (self.gap(1.5, 4.5), 34, rng.uniform(22, 42)), _rotation((0, 0, 1), rng.normal(0, 12))),
            ((2, -14, -62), (24, self.gap(1.2, 2.6), 24), _rotation((0, 0, 1), rng.normal(-18, 8))),
            ((-22, -14, -86), (20, self.gap(6, 10), 11), None),
            ((-48, -48, -112), (self.gap(1.2, 3), 26, 14), _rotation((0, 0, 1), 40)),
        )
        for center, radii, turn in fissures:
            reach = max(radii) + 3
            part, p = canvas.coordinates([c - reach for c in center], [c + reach for c in center])
            if p[0].size:
                cleft = -_ellipsoid(p, center, radii, turn) / soft
                canvas.paint(part, cleft, "visceral_fat", where=inside[part])
        # portal vein and hepatic veins
        trunk = [(4, -12, -108, 6.8), (-12, -12, -92, 6.8), (-26, -12, -78, 6.5)]
        canvas.paint_tube(_spline(trunk, 6), "portal_vein")
        root = np.array([-26.0, -12.0, -78.0])
        for aim, length, radius, depth_ in (
            ((-0.9, 0.35, 0.15), 36, 5.6, 4),
            ((-0.8, -0.45, -0.15), 34, 4.6, 4),
            ((0.55, -0.8, 0.35), 36, 4.8, 3),
        ):
            for segment in _grow(rng, root, np.array(aim), length, radius, depth_, 0.74):
                canvas.paint_tube(segment, "portal_vein", where=deep)
        root = np.array([-23.0, self.spine_y(-14) - 44, -16.0])
        for aim in ((-0.9, 0.3, -0.35), (-0.45, -0.7, -0.55), (0.5, -0.75, -0.25), (-0.6, 0.55, -0.7)):
            for segment in _grow(rng, root, np.array(aim), 36, rng.uniform(3.6, 5.0), 4, 0.74):
                canvas.paint_tube(segment, "hepatic_vein", where=deep)
        canvas.paint_tube(self.cava, "vena_cava")
        self._gallbladder()
        vessels = (TISSUES["liver"], TISSUES["portal_vein"], TISSUES["hepatic_vein"])
        return inside & np.isin(canvas.tissue, vessels)

    def _gallbladder(self) -> None:
        canvas, rng = self.canvas, self.rng
        if rng.random() < 0.12:  # removed
            return
        full = rng.uniform(0.6, 1.25)
        path = _spline([(-40, -26, -98, 4 * full), (-50, -42, -110, 11 * full), (-60, -64, -122, 14 * full)], 5)
        wall = path.copy()
        wall[:, 3] += rng.uniform(0.8, 1.6)
        canvas.paint_tube(wall, "gut_wall")
        canvas.paint_tube(path, "gallbladder")
        if rng.random() < 0.15:
            for _ in range(rng.integers(1, 5)):
                at = path[-1, :3] + rng.normal(0, 4, 3) + np.array([0, 6, 0])
                stone = np.array([[*at, 2.5], [*at, 2.5]]) + np.array([0, 0, 0, rng.uniform(0, 2.5)])
                canvas.paint_tube(stone, "gallstone")


def _grow(
    rng: np.random.Generator,
    start: np.ndarray,
    aim: np.ndarray,
    length: float,
    radius: float,
    depth: int,
    shrink: float,
) -> list[np.ndarray]:
    """A random tree of tubes (each (n, 4): position and radius), from `start` toward `aim`."""
    aim = aim / np.linalg.norm(aim)
    side = rng.normal(0, 1, 3)
    middle = start + aim * length * 0.5 + side * length * 0.06
    end = start + aim * length
    tubes = [_spline([(*start, radius), (*middle, radius * 0.93), (*end, radius * 0.86)], 4)]
    if depth > 1:
        for _ in range(2 if rng.random() < 0.75 else 3):
            bend = rng.normal(0, 0.5, 3)
            tubes += _grow(
                rng,
                end,
                aim + bend,
                length * rng.uniform(0.65, 0.9),
                radius * shrink * rng.uniform(0.85, 1.1),
                depth - 1,
                shrink,
            )
    return tubes


# ---------------------------------------------------------------------------------------------------------------
# Lesions


@dataclass
class _Plan:
    """A lesion before it is painted: atlas position, mean radius in mm, kind, difference to the liver in HU."""

    center: np.ndarray
    radius: float
    kind: str
    hu: float


def _plan_lesions(
    rng: np.random.Generator, canvas: _Canvas, liver: np.ndarray, count: int | None, phase: str
) -> list[_Plan]:
    """Places in the liver for `count` lesions (None: a number is drawn) that do not touch each other."""
    drawn = int(np.clip(rng.geometric(0.3), 1, 12))
    usual = rng.choice(("hypodense", "hyperdense", "cyst"), p=(0.68, 0.14, 0.18))
    spread = rng.uniform(0.25, 0.6)
    typical = rng.uniform(np.log(5), np.log(30))
    nodes = np.argwhere(liver < -3)
    deep = -liver[tuple(nodes.T)]
    where = np.stack([a[tuple(nodes.T)] for a in canvas.atlas], axis=1)
    plans: list[_Plan] = []
    for _ in range(drawn if count is None else count):
        kind = str(usual if rng.random() < 0.75 else rng.choice(("hypodense", "hyperdense", "cyst")))
        radius = float(np.clip(rng.lognormal(typical, spread), 4, 55))
        liver_hu = canvas.values["liver"]
        if kind == "cyst":
            hu = min(rng.uniform(*_CYST_HU), liver_hu - 15)
        else:
            hu = liver_hu + rng.uniform(*_LESION_CONTRAST[kind][phase])
        for attempt in range(400):
            if attempt % 20 == 19:
                radius = max(radius * 0.85, 4.0)
            at = int(rng.integers(len(nodes)))
            apart = all(np.linalg.norm(where[at] - p.center) > 1.3 * (radius + p.radius) + 4 for p in plans)
            if apart and deep[at] > min(0.6 * radius, 30) + 1:
                plans.append(_Plan(where[at], radius, kind, hu))
                break
    return plans


def _paint_lesion(
    rng: np.random.Generator, canvas: _Canvas, plan: _Plan, liver_box: Box, liver: np.ndarray
) -> tuple[Box, np.ndarray]:
    """Paint a lesion where the mask `liver` allows it; returns its voxels."""
    r = plan.radius
    radii = r * rng.uniform(0.85, 1.18, 3)
    turn = _rotation(rng.normal(0, 1, 3), rng.uniform(0, 180))
    rough = canvas.noise(max(1.1 * r, 9.0), rng) * np.float32(rng.uniform(0.03, 0.12) * r * (plan.kind != "cyst"))
    rim, core = rng.random() < 0.3 and r > 8, rng.random() < 0.35 and r > 10
    lime = rng.random() < 0.1 and r > 8
    softness = rng.uniform(0.5, 3.0) if plan.kind != "cyst" else 0.5
    margin = 1.4 * r + 4
    box, p = canvas.coordinates(plan.center - margin, plan.center + margin)
    mm = -_ellipsoid(p, tuple(plan.center), tuple(radii), turn) - canvas.sample(rough, box)
    soft = np.float32(canvas.voxel_mm)
    allowed = liver[box].astype(np.float32)
    name = "cyst" if plan.kind == "cyst" else "lesion"
    canvas.paint(box, mm / np.float32(np.hypot(soft, softness)), name, plan.hu, allowed)
    mask = (mm > 0) & liver[box]
    canvas.tissue[box][mask] = TISSUES[name]
    liver_hu = canvas.values["liver"]
    if plan.kind != "cyst":
        away = plan.hu - liver_hu
        if rim:  # a rim differs less from the liver than the rest, or enhances
            width = rng.uniform(1.5, 4)
            shell = np.minimum(mm, width - mm)
            canvas.paint(box, shell / soft, "lesion_rim", liver_hu + away * rng.uniform(-0.4, 0.5), allowed)
        if core:
            inner = mm - r * rng.uniform(0.35, 0.6)
            low = min(plan.hu - 10, rng.uniform(8, 30))
            canvas.paint(box, inner / np.float32(np.hypot(soft, 2)), "lesion_core", low, allowed)
        if lime:
            lumps = canvas.sample(canvas.noise(6.0, rng), box) - 1.9
            canvas.paint(box, np.minimum(mm - 1, 4 * lumps) / soft, "lesion_calcification", 320.0, allowed)
    return box, mask


# ---------------------------------------------------------------------------------------------------------------
# The scanner


def _noise_like_a_scanner(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: Point, cutoff: float
) -> np.ndarray:
    """Noise of standard deviation 1 with the ramp-like, apodized power spectrum of filtered back projection in the
    slice (f exp(-(f / cutoff)^2), `cutoff` in cycles/mm) and a little correlation between neighboring slices."""
    k, j, i = shape
    padded = (k, -(-j // 32) * 32, -(-i // 32) * 32)
    spectrum = torch.fft.rfft2(torch.from_numpy(rng.standard_normal(padded, dtype=np.float32)))
    fy = np.fft.fftfreq(padded[1], spacing[1])[:, None]
    fx = np.fft.rfftfreq(padded[2], spacing[0])[None, :]
    f = np.hypot(fx, fy)
    amplitude = np.sqrt((f + 0.02) * np.exp(-((f / cutoff) ** 2))).astype(np.float32)
    spectrum *= torch.from_numpy(amplitude)
    noise = torch.fft.irfft2(spectrum, s=padded[1:]).numpy()[:, :j, :i].copy()
    mix = np.float32(0.25 * min(2.0 / spacing[2], 1.0))
    noise[1:] += mix * noise[:-1]
    return noise / np.float32(noise.std())


def _blur(hu: np.ndarray, sigma_mm: float, spacing: Point) -> None:
    """Convolve with the point spread of the scanner in the slice plane (three taps, in place)."""
    for axis, mm in ((1, spacing[1]), (2, spacing[0])):
        side = np.float32(min(0.5 * (sigma_mm / mm) ** 2, 0.25))
        ahead = np.moveaxis(hu, axis, 0)
        step = side * (ahead[1:] - ahead[:-1])
        ahead[:-1] += step
        ahead[1:] -= step


def _paint_table(canvas: _Canvas, rng: np.random.Generator, back: float, middle: float) -> None:
    """A curved carbon shell `back` mm behind the isocenter, under the patient: never over the body."""
    x, y = canvas.axes[0].astype(np.float32), canvas.axes[1].astype(np.float32)
    sag = rng.uniform(0.0006, 0.0016)
    top = back + rng.uniform(1, 6) - np.float32(sag) * (x - middle) ** 2
    thick = rng.uniform(12, 40)
    soft = np.float32(canvas.spacing[1])
    for height in (top, top + thick + np.float32(0.4 * sag) * (x - middle) ** 2):
        depth = (1.4 - np.abs(y[:, None] - height[None, :])) / soft
        alpha = np.clip(depth + 0.5, 0, 1) * (np.abs(x - middle) < 215)
        free = canvas.tissue == TISSUES["air"]
        sheet = free & (alpha > 0)
        canvas.hu += sheet * alpha * (canvas.values["table"] - canvas.hu)
        canvas.tissue[sheet & (alpha > 0.5)] = TISSUES["table"]


# ---------------------------------------------------------------------------------------------------------------


def make_phantom(
    seed: int,
    *,
    spacing_mm: Point = (1.5, 1.5, 3.0),
    phase: str | None = None,
    lesions: bool | int = True,
    field_of_view_mm: float | None = None,
    noise: bool = True,
) -> Phantom:
    """A synthetic CT of the abdomen, from above the liver's dome to below the kidneys, with its ground truth.

    The same arguments give the same voxels (with the same versions of NumPy and PyTorch, on the same kind of
    processor); another `spacing_mm`, `phase`, `lesions` or `noise` shows the same body.

    :param spacing_mm: (i, j, k) in mm.
    :param phase: "native", "arterial" or "portal"; None draws one.
    :param lesions: True draws a number (at least one), False paints none, a number asks for as many (fewer only if
        the liver has no room for more).
    :param field_of_view_mm: width of the square slices; None fits it to the body.
    :raises UsageError: an argument is out of range.
    """
    spacing = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    if min(spacing) < 0.3 or max(spacing) > 20:
        raise UsageError(f"The spacing must lie between 0.3 and 20 mm, not {spacing}.")
    if phase is not None and phase not in PHASES:
        raise UsageError(f"Unknown contrast phase {phase!r}; known are {', '.join(PHASES)}.")
    if field_of_view_mm is not None and not 100 <= field_of_view_mm <= 700:
        raise UsageError(f"The field of view must lie between 100 and 700 mm, not {field_of_view_mm}.")
    if lesions < 0:
        raise UsageError(f"The number of lesions cannot be negative: {lesions}.")
    body_rng, contrast_rng, lesion_rng, scan_rng, noise_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)
    )
    drawn = str(contrast_rng.choice(PHASES, p=(0.25, 0.15, 0.6)))
    phase = phase or drawn

    canvas = _Canvas(body_rng)
    patient = _Patient(canvas)
    patient.draw_hu(contrast_rng, phase)
    patient.shape_trunk()
    patient.shape_diaphragm()
    patient.shape_vessels()
    patient.shape_neighbors()
    patient.shape_liver()
    axes, back, middle = _axes(patient, scan_rng, spacing, field_of_view_mm)
    canvas.open(axes, spacing)
    patient.paint_trunk()
    patient.paint_wall()
    patient.paint_chest()
    patient.paint_back_muscles()
    patient.paint_spine()
    patient.paint_abdomen()
    liver = patient.paint_liver()

    count = None if lesions is True else int(lesions)
    found = []
    if count != 0:
        for plan in _plan_lesions(lesion_rng, canvas, patient.liver, count, phase):
            box, mask = _paint_lesion(lesion_rng, canvas, plan, patient.liver_box, liver)
            if mask.any():
                found.append((plan.kind, box, mask))

    hu = canvas.hu
    if scan_rng.random() < 0.85:
        _paint_table(canvas, scan_rng, back, middle)
    texture = np.zeros(len(TISSUES), np.float32)
    for name, sd in _TEXTURE.items():
        texture[TISSUES[name]] = sd
    hu += texture[canvas.tissue] * canvas.sample(canvas.noise(_LATTICE_MM, noise_rng), canvas.whole)
    _blur(hu, scan_rng.uniform(0.5, 0.8), spacing)

    shift = np.array([0.0, scan_rng.uniform(-20, 20), scan_rng.uniform(-900, 100)])
    ijk_to_lps = np.diag([*spacing, 1.0])
    ijk_to_lps[:3, 3] = np.round(np.array([a[0] for a in axes]) + shift, 3)
    truth = liver.astype(np.uint8)
    report = []
    for kind, box, mask in found:
        truth[box][mask] = 2
        k, j, i = (float(n) for n in np.argwhere(mask).mean(axis=0) + [b.start for b in box])
        center = ijk_to_lps @ np.array([i, j, k, 1.0])
        ml = float(mask.sum() * np.prod(spacing) / 1000)
        at = (float(center[0]), float(center[1]), float(center[2]))
        report.append(Lesion(at, ml, kind, float(hu[box][mask].mean())))

    level = scan_rng.uniform(5, 17)
    cutoff = scan_rng.uniform(0.22, 0.5)
    x, y = axes[0].astype(np.float32), axes[1].astype(np.float32)
    radius2 = ((x - x.mean())[None, :] ** 2 + (y - y.mean())[:, None] ** 2) / np.float32((x[-1] - x[0]) / 2 + 1) ** 2
    if noise:
        sigma = level * min(np.sqrt(3 / spacing[2]), 2.0) * (1.1 - 0.6 * np.minimum(radius2, 1))
        hu += _noise_like_a_scanner(noise_rng, hu.shape, spacing, cutoff) * sigma.astype(np.float32)  # type: ignore[arg-type]
    if scan_rng.random() < 0.5:  # nothing is reconstructed outside the circle
        outside = radius2 > 1
        hu[:, outside] = -1024
        canvas.tissue[:, outside] = TISSUES["air"]
        truth[:, outside] = 0
    ct = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    metadata = {"modality": "CT", "description": f"LiverXAI phantom, seed {seed}, {phase} phase"}
    return Phantom(
        Volume(ct, ijk_to_lps, metadata),
        Volume(truth, ijk_to_lps),
        Volume(canvas.tissue, ijk_to_lps),
        report,
        phase,
        seed,
    )


def _axes(
    patient: _Patient, rng: np.random.Generator, spacing: Point, field_of_view_mm: float | None
) -> tuple[Coordinates, float, float]:
    """Voxel positions (x, y, z) that show the body; where its back and its middle are."""

    def extent(field: np.ndarray, axis: int) -> tuple[float, float]:
        rows = np.flatnonzero((field < 0).any(axis=tuple(n for n in range(3) if n != 2 - axis)))
        nodes = patient.canvas.lattice[axis]
        return float(nodes[rows[0]]), float(nodes[rows[-1]])

    left, right = extent(patient.skin_distance, 0)
    front, back = extent(patient.skin_distance, 1)
    kidneys = np.minimum(patient.kidneys[0][0], patient.kidneys[1][0])
    bottom = min(extent(kidneys, 2)[0], extent(patient.liver, 2)[0]) - rng.uniform(5, 30)
    top = extent(patient.liver, 2)[1] + rng.uniform(18, 45)
    lattice_z = patient.canvas.lattice[2]
    bottom, top = max(bottom, float(lattice_z[0])), min(top, float(lattice_z[-1]))
    drawn = max(right - left, back - front) + rng.uniform(12, 60)
    width = drawn if field_of_view_mm is None else field_of_view_mm
    middle = ((left + right) / 2 + rng.normal(0, 4), (front + back) / 2 + rng.normal(0, 6))
    axes = []
    for center, size, step in ((middle[0], width, spacing[0]), (middle[1], width, spacing[1])):
        count = max(round(size / step), 8)
        axes.append(center + (np.arange(count) - (count - 1) / 2) * step)
    count = max(round((top - bottom) / spacing[2]), 4)
    axes.append(bottom + (np.arange(count) + 0.5) * spacing[2])
    return (axes[0], axes[1], axes[2]), back, (left + right) / 2


def write_phantom(phantom: Phantom, path: str | Path) -> tuple[Path, Path]:
    """Write the CT to `path` (any format of ``write_volume``) and its truth beside it, as ``<stem>-truth.nrrd``.

    :returns: both paths.
    """
    from ..volumes.io import write_volume

    path = Path(path)
    stem = path.name.removesuffix(".gz")
    truth = path.with_name(f"{stem[: stem.rfind('.')] if '.' in stem else stem}-truth.nrrd")
    write_volume(phantom.ct, path)
    write_volume(phantom.truth, truth)
    return path, truth
