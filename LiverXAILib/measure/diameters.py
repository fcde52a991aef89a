# SPDX-License-Identifier: Apache-2.0
"""Caliper measurements of one lesion on any grid: oblique, left-handed or sheared.

Convention: distances are between voxel *centers*, as in ITK's Feret diameter. Since the longest of many distances is
taken, this errs little: for balls of 8 to 40 mm in voxels of 0.7 to 1.5 mm it is 0.1 to 0.5 mm too short, whereas
distances between the outer faces of voxels would be 0.2 to 1.1 mm (in 3-D up to 4 mm) too long.

Convexity survives affine maps, therefore hulls are computed exactly, in whole voxel indices, and only their few
vertices are carried to millimeters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..volumes.volume import Grid

Point = tuple[float, float, float]

#: Rows of the matrix of distances that are computed at a time: bounds memory.
_ROWS = 512


@dataclass(frozen=True)
class AxialDiameters:
    """The longest diameter in one axial slice and its perpendicular, as RECIST 1.1 and WHO measure.

    :param long_mm: longest distance within a slice, over all slices.
    :param short_mm: the longest chord at a right angle to it in the same slice, of the lesion's convex hull.
    :param long_ends_lps_mm: where the calipers touch, LPS mm.
    :param short_ends_lps_mm: likewise, of the perpendicular.
    :param slice_axis: the image axis ("i", "j" or "k") across which the slices nearest to axial are stacked.
    :param slice_index: number of the slice along that axis, from 0.
    """

    long_mm: float
    short_mm: float
    long_ends_lps_mm: tuple[Point, Point]
    short_ends_lps_mm: tuple[Point, Point]
    slice_axis: str
    slice_index: int


def axial_axis(grid: Grid) -> int:
    """The voxel axis (0 i, 1 j, 2 k) whose slices are nearest to the patient's axial plane."""
    i, j, k = grid.ijk_to_lps[:3, :3].T
    normals = np.array([np.cross(j, k), np.cross(k, i), np.cross(i, j)])
    return int(np.argmax(np.abs(normals[:, 2]) / np.linalg.norm(normals, axis=1)))


def axial_diameters(mask: np.ndarray, grid: Grid) -> AxialDiameters:
    """Longest in-slice diameter of a lesion and its perpendicular.

    :param mask: bool (k, j, i), not empty. Slices are the image's own, across the axis nearest to axial: in an
        oblique image they are oblique.
    """
    axis = axial_axis(grid)
    outlines = _outlines(mask, axis)
    pairs = {index: _farthest_pair(grid.to_lps(points)) for index, points in outlines.items()}
    index = max(pairs, key=lambda n: (round(pairs[n][0], 6), -n))
    long_mm, start, end = pairs[index]
    across = np.delete(grid.ijk_to_lps[:3, :3], axis, axis=1)
    normal = np.cross(across[:, 0], across[:, 1])
    short_mm, short_ends = _longest_chord_across(grid.to_lps(outlines[index]), start, end, normal)
    return AxialDiameters(long_mm, short_mm, (_point(start), _point(end)), short_ends, "ijk"[axis], index)


def feret_diameter_mm(mask: np.ndarray, grid: Grid) -> float:
    """The longest distance between any two points of a lesion (bool (k, j, i), not empty) in 3-D, in mm."""
    return _farthest_pair(grid.to_lps(np.concatenate(list(_outlines(mask, 2).values()))))[0]


def _outlines(mask: np.ndarray, axis: int) -> dict[int, np.ndarray]:
    """For each slice across `axis` that the mask meets: the vertices (n, 3) of its hull in (i, j, k) voxels."""
    slices = np.moveaxis(mask, 2 - axis, 0)
    indices = np.flatnonzero(slices.any(axis=(1, 2)))
    return {int(index): np.insert(_hull(slices[index]), axis, index, axis=1) for index in indices}


def _hull(mask: np.ndarray) -> np.ndarray:
    """Vertices (n, 2) of the convex hull of a 2-D mask, in order, as (column, row)."""
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = mask.argmax(axis=1)[rows], mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)[rows]
    ends = np.concatenate([np.column_stack([first, rows]), np.column_stack([last, rows])])
    points: list[tuple[int, int]] = [(x, y) for x, y in np.unique(ends, axis=0).tolist()]
    return np.array(_half_hull(points)[:-1] + _half_hull(points[::-1])[:-1] or points)


def _half_hull(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """One half of Andrew's monotone chain over sorted points, in exact integers."""
    chain: list[tuple[int, int]] = []
    for x, y in points:
        while len(chain) > 1:
            (ax, ay), (bx, by) = chain[-2:]
            if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                break
            chain.pop()
        chain.append((x, y))
    return chain


def _farthest_pair(points: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The two points (n, 3) that are farthest apart, and their distance."""
    # A pair found quickly bounds the longest distance from below, which rules out most points near the middle.
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.linalg.norm(points - center, axis=1)
    start = points[radius.argmax()]
    for _ in range(3):
        end = points[np.linalg.norm(points - start, axis=1).argmax()]
        start, end = end, start
    known = np.linalg.norm(end - start)
    ends = points[radius >= known - radius.max() - 1e-9]
    best = (float(known), start, end)
    for first in range(0, len(ends), _ROWS):
        rows = ends[first : first + _ROWS]
        squared = ((rows[:, None, :] - ends[None, :, :]) ** 2).sum(axis=2)
        a, b = np.unravel_index(squared.argmax(), squared.shape)
        if (distance := float(np.sqrt(squared[a, b]))) > best[0]:
            best = (distance, rows[a], ends[b])
    return best


def _longest_chord_across(
    polygon: np.ndarray, start: np.ndarray, end: np.ndarray, normal: np.ndarray
) -> tuple[float, tuple[Point, Point]]:
    """The longest chord of a convex polygon (n, 3) in a plane with `normal`, at a right angle to start–end.

    The length of such chords is a concave function of where they cross, linear between vertices: the longest one
    goes through a vertex.
    """
    if np.array_equal(start, end):
        return 0.0, (_point(start), _point(end))
    along = (end - start) / np.linalg.norm(end - start)
    across = np.cross(normal, along)
    across /= np.linalg.norm(across)
    s, t = (polygon - start) @ along, (polygon - start) @ across
    s_next, t_next = np.roll(s, -1), np.roll(t, -1)
    run = s_next - s
    best = (-1.0, 0.0, 0.0, 0.0)
    for at in s:
        slack = 1e-9
        crossed = (np.minimum(s, s_next) <= at + slack) & (np.maximum(s, s_next) >= at - slack)
        steep = np.abs(run) <= slack
        fraction = np.clip((at - s) / np.where(steep, 1.0, run), 0, 1)
        heights = np.concatenate([(t + fraction * (t_next - t))[crossed & ~steep], t[crossed & steep]])
        heights = np.concatenate([heights, t_next[crossed & steep]])
        if (length := heights.max() - heights.min()) > best[0] + slack:
            best = (float(length), float(at), float(heights.min()), float(heights.max()))
    length, at, low, high = best
    foot = start + at * along
    return length, (_point(foot + low * across), _point(foot + high * across))


def _point(p: np.ndarray) -> Point:
    x, y, z = (round(float(v), 4) for v in p)
    return x, y, z
