# SPDX-License-Identifier: Apache-2.0
"""Points on the surface of an organ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def surface_of(mask: np.ndarray) -> np.ndarray:
    """The voxels of `mask` with a face neighbor outside it; beyond the edge of the array nothing counts as outside."""
    padded = np.pad(mask, 1, mode="edge")
    inner = mask.copy()
    for axis in range(3):
        for shift in (-1, 1):
            inner &= np.roll(padded, shift, axis=axis)[1:-1, 1:-1, 1:-1]
    return mask & ~inner


def spread(points: np.ndarray, count: int, spacing: Sequence[float]) -> np.ndarray:
    """At least `count` of the points (n, 3) (k, j, i), evenly distributed.

    Space is divided into the largest cubes that yield at least `count` points; of the points in a cube, the one nearest
    to their mean is taken.
    """
    if len(points) <= count:
        return points
    mm = (points - points.min(axis=0)) * np.array(spacing)
    # The largest cube, to a tenth of a mm, is found by bisection.
    few, many = float(mm.max()) + 1.0, 0.0
    while few - many > 0.1:
        side = (few + many) / 2
        few, many = (few, side) if len(np.unique(_cells(mm, side))) >= count else (side, many)
    _, cell = np.unique(_cells(mm, many), return_inverse=True) if many else (None, np.arange(len(mm)))
    centers = np.stack([np.bincount(cell, mm[:, axis]) for axis in range(3)], axis=1) / np.bincount(cell)[:, None]
    off = np.linalg.norm(mm - centers[cell], axis=1)
    order = np.lexsort((np.arange(len(points)), off, cell))
    _, first = np.unique(cell[order], return_index=True)
    return points[np.sort(order[first])]


def _cells(mm: np.ndarray, side: float) -> np.ndarray:
    """The number of the cube of this side in which each point (n, 3) lies."""
    cells = (mm // side).astype(np.int64)
    _, rows, columns = cells.max(axis=0) + 1
    return (cells[:, 0] * rows + cells[:, 1]) * columns + cells[:, 2]
