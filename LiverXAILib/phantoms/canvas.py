# SPDX-License-Identifier: Apache-2.0
"""The canvas of the phantom: a coarse lattice with warped coordinates, and the voxels that are painted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from ..volumes.box import Box
from .shapes import Coordinates, Point, Vector, capsule, interpolation, resample, rotation, union
from .tissues import TISSUES

LATTICE_MM = 6.0
# x, y, z in mm in the scanner: room for the largest body
_AXES: Coordinates = (
    np.arange(-228, 229, LATTICE_MM, dtype=np.float32),
    np.arange(-180, 181, LATTICE_MM, dtype=np.float32),
    np.arange(-288, 97, LATTICE_MM, dtype=np.float32),
)
_SHAPE = tuple(len(a) for a in _AXES[::-1])
_FAR = np.float32(99.0)  # the distance assigned where a shape was not evaluated


@lru_cache(maxsize=64)
def _noise_matrix(axis: int, scale_mm: float) -> np.ndarray:
    nodes = _AXES[axis]
    count = int(np.ceil((nodes[-1] - nodes[0]) / scale_mm)) + 4
    return interpolation(nodes[0] - 1.5 * scale_mm, scale_mm, count, nodes, smooth=True)


def smooth_noise(rng: np.random.Generator, scale_mm: float, stretch: float = 1.0) -> np.ndarray:
    """Make a smooth random field on the lattice, mean 0, standard deviation about 1, stretched by `stretch` in z."""
    matrices = [_noise_matrix(2, scale_mm * stretch), _noise_matrix(1, scale_mm), _noise_matrix(0, scale_mm)]
    coarse = rng.standard_normal([m.shape[1] for m in matrices], dtype=np.float32)
    return resample(coarse, matrices) * np.float32(0.48**-1.5)  # 0.48: mean of the sum of the squared weights


def distance(f: np.ndarray) -> np.ndarray:
    """Divide a lattice field that is negative inside by its gradient: the distance in mm near its zero level."""
    square = np.full(f.shape, 1e-6, np.float32)
    for gradient in np.gradient(f, LATTICE_MM):
        square += gradient * gradient
    return np.clip(f / np.sqrt(square), -90, 90).astype(np.float32)


def _boxes(axes: Coordinates, a: np.ndarray, b: np.ndarray, margin: float) -> Iterator[tuple[int, Box]]:
    """Yield for each tube from `a` to `b` (rows of x, y, z, radius) the box of a grid around it, if it is not empty."""
    reach = np.maximum(a[:, 3], b[:, 3]) + margin
    starts, stops = [], []
    for n, axis in enumerate(axes):
        starts.append(np.searchsorted(axis, np.minimum(a[:, n], b[:, n]) - reach))
        stops.append(np.searchsorted(axis, np.maximum(a[:, n], b[:, n]) + reach))
    full = np.logical_and.reduce([stop > start for start, stop in zip(starts, stops, strict=True)])
    for n in np.flatnonzero(full).tolist():
        yield n, Box.between([side[n] for side in starts[::-1]], [side[n] for side in stops[::-1]])


def _positions(axes: Coordinates, box: Box) -> Coordinates:
    x, y, z = axes[0][box[2]], axes[1][box[1]], axes[2][box[0]]
    return x[None, None, :], y[None, :, None], z[:, None, None]


class Canvas:
    """A lattice and the voxels; the voxels exist after :meth:`open`, when the body's extent is known.

    `atlas` holds the atlas coordinates (x, y, z) of the lattice nodes; fields are float32 arrays on the lattice.
    `values` is the HU of each tissue.
    """

    lattice = _AXES
    shape = _SHAPE

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.values: dict[str, float] = {}
        self._noise: dict[float, np.ndarray] = {}
        self.atlas = self._bend()
        self._stacked = np.stack(self.atlas, axis=-1)
        # per lattice plane, the range of its atlas coordinate, to find the nodes of a shape
        self._ranges = [
            (p.min(axis=others), p.max(axis=others))
            for p, others in zip(self.atlas, ((0, 1), (0, 2), (1, 2)), strict=True)
        ]

    def _bend(self) -> Coordinates:
        """Return lattice coordinates after scaling, a small rotation and a smooth deformation."""
        rng = self.rng
        scale = 1 / (rng.normal(1, 0.05) * rng.normal(1, [0.03, 0.03, 0.05], 3))
        matrix = np.diag(scale) @ rotation((0, 0, 1), rng.normal(0, 2.5)) @ rotation((1, 0, 0), rng.normal(0, 2))
        self._matrix = matrix = matrix @ rotation((0, 1, 0), rng.normal(0, 1.5))
        x, y, z = (a.astype(np.float32) for a in _positions(_AXES, Box.full(_SHAPE)))
        bent = []
        for row in matrix.astype(np.float32):
            p = row[0] * x + row[1] * y + row[2] * z
            p = p + smooth_noise(rng, 120) * np.float32(rng.uniform(2, 5))
            bent.append(p + smooth_noise(rng, 60) * np.float32(rng.uniform(0.7, 2.2)))
        return bent[0], bent[1], bent[2]

    def open(self, axes: Coordinates, spacing: Point) -> None:
        """Allocate voxels; `axes`: their positions along x, y, z in mm in the scanner; `spacing`: (i, j, k) in mm."""
        self.axes = (axes[0].astype(np.float32), axes[1].astype(np.float32), axes[2].astype(np.float32))
        self.spacing = spacing
        self.voxel_mm = np.float32(np.prod(spacing) ** (1 / 3))
        shape = tuple(len(a) for a in axes[::-1])
        self.hu = np.full(shape, -1000, np.float32)
        self.tissue = np.zeros(shape, np.uint8)
        self._to_voxels = [
            interpolation(float(a[0]), LATTICE_MM, len(a), at) for a, at in zip(_AXES, axes, strict=True)
        ][::-1]

    @property
    def whole(self) -> Box:
        return Box.full(self.hu.shape)

    def noise(self, scale_mm: float) -> np.ndarray:
        """Return the :func:`smooth_noise` of this body; the same field each time (organs use different parts of it)."""
        if scale_mm not in self._noise:
            self._noise[scale_mm] = smooth_noise(self.rng, scale_mm)
        return self._noise[scale_mm]

    # -- the lattice --------------------------------------------------------------------------------------------

    def nodes(self, lo: Vector, hi: Vector) -> Box:
        """Return the box of lattice nodes (k, j, i) that may lie between the atlas positions `lo` and `hi`."""
        found = []
        for (least, most), a, b in zip(self._ranges, lo, hi, strict=True):
            inside = np.flatnonzero((most >= a) & (least <= b))
            first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, 0)
            found.append(slice(max(first - 1, 0), min(last + 2, len(least))))
        return Box(*found[::-1])

    def field(self, lo: Vector, hi: Vector, shape: Callable[[Coordinates], np.ndarray]) -> np.ndarray:
        """Evaluate `shape` between the atlas positions; elsewhere the distance is far outside."""
        out = np.full(_SHAPE, _FAR, np.float32)
        box = self.nodes(lo, hi)
        x, y, z = self.atlas
        out[box] = shape((x[box], y[box], z[box]))
        return out

    def tube_fields(self, tubes: Sequence[np.ndarray], blend: float = 0.0) -> list[np.ndarray]:
        """Evaluate tubes (rows of atlas position and radius) on the lattice: wide ones, and any that cut organs."""
        fields = []
        nodes = self._to_scanner(np.concatenate(tubes))
        for points in np.split(nodes, np.cumsum([len(t) for t in tubes])[:-1]):
            out = np.full(_SHAPE, _FAR, np.float32)
            for n, box in _boxes(_AXES, points[:-1], points[1:], 15.0):
                part = capsule(_positions(_AXES, box), points[n], points[n + 1])
                out[box] = union(out[box], part, blend)
            fields.append(out)
        return fields

    def tube_field(self, points: np.ndarray, blend: float = 0.0) -> np.ndarray:
        return self.tube_fields([points], blend)[0]

    def _to_scanner(self, points: np.ndarray) -> np.ndarray:
        """Convert rows of atlas position and radius to rows of scanner position and radius."""
        inverse = np.linalg.inv(self._matrix).T
        origin = np.array([a[0] for a in _AXES], float)
        top = np.array(_SHAPE[::-1]) - 1
        at = points[:, :3] @ inverse
        for _ in range(4):  # each step leaves about a quarter of the error
            inside = np.clip((at - origin) / LATTICE_MM, 0, top)
            first = np.minimum(inside.astype(int), top - 1)
            t = inside - first
            value = np.zeros((len(points), 3))
            for corner in range(8):
                step = np.array([corner & 1, corner >> 1 & 1, corner >> 2])
                i, j, k = (first + step).T
                value += np.prod(np.where(step == 1, t, 1 - t), axis=1)[:, None] * self._stacked[k, j, i]
            at = origin + inside * LATTICE_MM + (points[:, :3] - value) @ inverse
        return np.concatenate([at, points[:, 3:]], axis=1)

    def nearest(self, field: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Return the field at the nodes nearest to atlas positions (rows of position and radius)."""
        at = (self._to_scanner(points)[:, :3] - [a[0] for a in _AXES]) / LATTICE_MM
        i, j, k = np.clip(np.rint(at).astype(int), 0, np.array(_SHAPE[::-1]) - 1).T
        return field[k, j, i]

    # -- from the lattice to the voxels -------------------------------------------------------------------------

    def voxels(self, box: Box) -> Box:
        """Return the voxels within a box of lattice nodes."""
        found = []
        for nodes, axis, at in zip(box, _AXES[::-1], self.axes[::-1], strict=True):
            start = np.searchsorted(at, axis[nodes.start]) if nodes.start else 0
            stop = np.searchsorted(at, axis[nodes.stop - 1], side="right") if nodes.stop < len(axis) else len(at)
            found.append(slice(int(start), int(stop)))
        return Box(*found)

    def sample(self, field: np.ndarray, voxels: Box) -> np.ndarray:
        """Interpolate the lattice field to a box of voxels, by cubic interpolation."""
        pad, matrices = [], []
        for rows, axis, at, matrix in zip(voxels, _AXES[::-1], self.axes[::-1], self._to_voxels, strict=True):
            if rows.stop <= rows.start:
                return np.zeros([max(n, 0) for n in voxels.shape], np.float32)
            first = min(max(int((at[rows.start] - axis[0]) // LATTICE_MM) - 1, 0), len(axis) - 1)
            last = min(max(int((at[rows.stop - 1] - axis[0]) // LATTICE_MM) + 3, first + 1), len(axis))
            pad.append(slice(first, last))
            matrices.append(matrix[rows, first:last])
        return resample(field[pad[0], pad[1], pad[2]], matrices)

    def coordinates(self, lo: Vector, hi: Vector) -> tuple[Box, Coordinates]:
        """Return the voxels that may lie between the atlas positions, and their atlas coordinates."""
        box = self.voxels(self.nodes(lo, hi))
        x, y, z = (self.sample(p, box) for p in self.atlas)
        return box, (x, y, z)

    def depth(self, field: np.ndarray) -> tuple[Box, np.ndarray]:
        """Convert a field of distances to depth below the surface in *voxels* (positive inside): the distance over the
        size of a voxel along the gradient, so that oblique and anisotropic voxels get the right partial volume."""
        near = np.less(field, 2 * LATTICE_MM)
        flat = np.any(near, axis=2)
        box = []
        for n, row in enumerate((np.any(flat, axis=1), np.any(flat, axis=0), np.any(near, axis=(0, 1)))):
            found = np.flatnonzero(row)
            first, last = (int(found[0]), int(found[-1])) if len(found) else (0, 0)
            box.append(slice(max(first - 2, 0), min(last + 3, _SHAPE[n])))
        nodes = Box(*box)
        part = np.clip(field[nodes], -4 * LATTICE_MM, 4 * LATTICE_MM)
        width = np.full(part.shape, 0.0, np.float32)
        for axis, mm in enumerate(self.spacing[::-1]):
            width += np.abs(np.gradient(part, LATTICE_MM / mm, axis=axis))
        ratio = np.full(_SHAPE, -8, np.float32)
        ratio[nodes] = np.clip(-part / np.maximum(width, 0.4 * min(self.spacing)), -8, 8)
        voxels = self.voxels(nodes)
        return voxels, self.sample(ratio, voxels)

    # -- painting -----------------------------------------------------------------------------------------------

    def paint(
        self,
        box: Box,
        depth: np.ndarray,
        tissue: str,
        hu: float | np.ndarray | None = None,
        where: np.ndarray | None = None,
    ) -> None:
        """Paint the voxels of `box` whose `depth` (in voxels) is positive, mixing HU at the surface."""
        alpha = np.minimum(np.maximum(depth + np.float32(0.5), 0), 1)
        if where is not None:
            alpha *= where
        view = self.hu[box]
        view += alpha * ((np.float32(self.values[tissue]) if hu is None else hu) - view)
        self.tissue[box][alpha > 0.5] = TISSUES[tissue]

    def paint_field(self, field: np.ndarray, tissue: str, hu: float | None = None) -> tuple[Box, np.ndarray]:
        """Paint a lattice field; returns the voxels around the shape and their :meth:`depth`."""
        box, depth = self.depth(field)
        self.paint(box, depth, tissue, hu)
        return box, depth

    def paint_tubes(self, tubes: Sequence[np.ndarray], tissue: str, where: np.ndarray | None = None) -> None:
        """Paint tubes, each rows of atlas position and radius. `where` is a mask on all voxels."""
        ends = np.cumsum([len(t) for t in tubes])
        nodes = self._to_scanner(np.concatenate(tubes))
        starts = np.setdiff1d(np.arange(len(nodes)), ends - 1)
        a, b = nodes[starts], nodes[starts + 1]
        for n, box in _boxes(self.axes, a, b, float(self.voxel_mm)):
            depth = capsule(_positions(self.axes, box), a[n], b[n]) / -self.voxel_mm
            self.paint(box, depth, tissue, None, None if where is None else where[box])
