# SPDX-License-Identifier: Apache-2.0
"""Caliper measurements of one lesion on any grid: oblique, left-handed or sheared.

Lengths are measured on the lesion's outline, not between voxel centers. In a slice the outline is an iso-contour of the
mask, smoothed by a Gaussian of :data:`_SMOOTHING` pixels to reduce the staircase effect of voxels; its level is the
one that leaves as many pixel centers inside as the mask has, so that small lesions do not shrink. A single voxel
measures one voxel. The remaining errors on spheres, ellipsoids and boxes are listed in ``docs/measurements.md``.

Contours are computed in voxel indices and converted to millimeters, so that all grids are treated alike.
"""

from __future__ import annotations

from functools import lru_cache

import contourpy
import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from ..volumes.volume import Grid
from .measurements import AxialDiameters, Point

#: Standard deviation in pixels of the Gaussian that smooths a mask before its outline is taken.
_SMOOTHING = 0.7
#: Rows of the distance matrix that are computed at a time, which limits memory.
_ROWS = 512
#: Background around a mask in pixels: the Gaussian's reach.
_PADDING = 3


def axial_axis(grid: Grid) -> int:
    """The voxel axis (0 i, 1 j, 2 k) whose slices are closest to the patient's axial plane."""
    i, j, k = grid.ijk_to_lps[:3, :3].T
    normals = np.array([np.cross(j, k), np.cross(k, i), np.cross(i, j)])
    return int(np.argmax(np.abs(normals[:, 2]) / np.linalg.norm(normals, axis=1)))


def axial_diameters(mask: np.ndarray, grid: Grid) -> AxialDiameters:
    """Longest in-slice diameter of a lesion and its perpendicular.

    :param mask: bool (k, j, i), not empty. Slices are the image's own, those closest to axial; in an oblique image
        they are oblique. Pixels that touch at a corner belong to one connected component.
    """
    return _axial_diameters(np.packbits(mask).tobytes(), mask.shape, grid.ijk_to_lps.tobytes())


# Most decisions and operating points leave most findings as they are, as lesions, candidates or rejected lesions.
@lru_cache(maxsize=256)
def _axial_diameters(bits: bytes, shape: tuple[int, int, int], ijk_to_lps: bytes) -> AxialDiameters:
    mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=int(np.prod(shape))).reshape(shape).astype(bool)
    grid = Grid(shape, np.frombuffer(ijk_to_lps).reshape(4, 4))
    axis = axial_axis(grid)
    slices = np.moveaxis(mask, 2 - axis, 0)
    best: tuple[float, int, list[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    for index in np.flatnonzero(slices.any(axis=(1, 2))).tolist():
        for loops in _outlines(slices[index]):
            lines = [grid.to_lps(np.insert(loop, axis, index, axis=1)) for loop in loops]
            length, start, end = _farthest_pair(np.concatenate(lines))
            if best is None or length > best[0] + 1e-6:  # of equal slices the first is taken
                best = length, index, lines, (start, end)
    assert best is not None
    long_mm, index, lines, (start, end) = best
    across = np.delete(grid.ijk_to_lps[:3, :3], axis, axis=1)
    short_mm, short_ends = _widest_across(lines, start, end, np.cross(across[:, 0], across[:, 1]))
    return AxialDiameters(long_mm, short_mm, (_point(start), _point(end)), short_ends, "ijk"[axis], index)


def feret_diameter_mm(mask: np.ndarray, grid: Grid) -> float:
    """The longest distance between any two points of a lesion's surface (bool (k, j, i), not empty) in 3-D, in mm."""
    smooth, level = _smoothed(mask)
    inside = smooth > level
    points = []
    for axis in range(3):
        low, high = (np.moveaxis(smooth, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        crossed = np.moveaxis(inside, axis, 0)[:-1] != np.moveaxis(inside, axis, 0)[1:]
        at = np.argwhere(crossed).astype(float)
        at[:, 0] += (level - low[crossed]) / (high[crossed] - low[crossed])
        points.append(np.insert(at[:, 1:], axis, at[:, 0], axis=1))
    return _farthest_pair(grid.to_lps(np.concatenate(points)[:, ::-1]))[0]


def _outlines(mask: np.ndarray) -> list[list[np.ndarray]]:
    """The closed lines (n, 2) around each connected component of a 2-D mask, as (column, row) in pixels."""
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))  # in 2-D many times as fast as `components`
    outlines = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(pieces), start=1):
        smooth, level = _smoothed(pieces[rows, columns] == number)
        offset = np.array([columns.start, rows.start]) - _PADDING
        lines = contourpy.contour_generator(z=smooth).lines(level)
        outlines.append([np.asarray(line) + offset for line in lines])
    return outlines


def _smoothed(mask: np.ndarray) -> tuple[np.ndarray, float]:
    """A smoothed mask padded with :data:`_PADDING` pixels of background, and the level of its outline."""
    padded = np.pad(mask.astype(np.float32), _PADDING)
    smooth = ndimage.gaussian_filter(padded, _SMOOTHING, mode="constant", truncate=_PADDING / _SMOOTHING)
    inside = int(np.count_nonzero(mask))
    ordered = np.partition(smooth.ravel(), (-inside - 1, -inside))
    return smooth, float(ordered[-inside - 1] + ordered[-inside]) / 2


def _farthest_pair(points: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The two points (n, 3) that are farthest apart, and their distance."""
    flat = points - points.mean(axis=0)
    _, sizes, axes = np.linalg.svd(flat, full_matrices=False)
    corners = points[ConvexHull(flat @ axes[sizes > 1e-6 * sizes[0]].T).vertices]  # coplanar points: in 2-D
    best = (-1.0, 0, 0)
    for row in range(0, len(corners), _ROWS):
        distances = cdist(corners[row : row + _ROWS], corners)
        a, b = (int(n) for n in np.unravel_index(distances.argmax(), distances.shape))
        best = max(best, (float(distances[a, b]), row + a, b), key=lambda found: found[0])
    length, a, b = best
    return length, corners[a], corners[b]


def _widest_across(
    lines: list[np.ndarray], start: np.ndarray, end: np.ndarray, normal: np.ndarray
) -> tuple[float, tuple[Point, Point]]:
    """The longest distance at a right angle to start–end between two points of closed `lines` (n, 3) in a plane.

    Between vertices the distance is a linear function of the position along start–end, so the longest one passes
    through a vertex.

    :param normal: of the plane.
    """
    along = (end - start) / np.linalg.norm(end - start)
    across = np.cross(normal, along)
    across /= np.linalg.norm(across)
    first = np.concatenate([line[:-1] for line in lines]) - start
    second = np.concatenate([line[1:] for line in lines]) - start
    s, t, s_next, t_next = first @ along, first @ across, second @ along, second @ across
    best = (-1.0, 0.0, 0.0, 0.0)
    for at in np.unique(s):
        crossed = (np.minimum(s, s_next) <= at) & (np.maximum(s, s_next) >= at)
        run = (s_next - s)[crossed]
        flat = run == 0
        fraction = (at - s[crossed]) / np.where(flat, 1.0, run)
        heights = t[crossed] + fraction * (t_next - t)[crossed]
        heights = np.concatenate([np.where(flat, t[crossed], heights), t_next[crossed][flat]])
        if (length := float(np.ptp(heights))) > best[0] + 1e-9:
            best = (length, float(at), float(heights.min()), float(heights.max()))
    length, at, low, high = best
    foot = start + at * along
    return length, (_point(foot + low * across), _point(foot + high * across))


def _point(p: np.ndarray) -> Point:
    x, y, z = (round(float(v), 4) for v in p)
    return x, y, z
