# SPDX-License-Identifier: Apache-2.0
"""Reordering and flipping the axes of an image, without loss and with an exact inverse.

A code of three letters states which way the *array's* axes run: "SPL" means that axis 0 (k) runs toward superior,
axis 1 (j) toward posterior and axis 2 (i) toward the patient's left. In the order (i, j, k) that SimpleITK and
Slicer use, the same image is "LPS". Voxels are never interpolated: an oblique or sheared image stays oblique or
sheared, and its axes are named after the nearest anatomical directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from .volume import Grid, Volume

#: Letters of the LPS axes x, y, z: (toward the positive end, toward the negative end).
_LETTERS = (("L", "R"), ("P", "A"), ("S", "I"))


@dataclass(frozen=True, eq=False)
class Reorientation:
    """A permutation and flip of the voxel axes of `source` that gives `grid`.

    Axis ``n`` of the result is axis ``order[n]`` of the source, reversed where ``flips[n]``.
    """

    source: Grid
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def to(cls, source: Grid, axes: str) -> Reorientation:
        """The reorientation of `source` whose result has axes that run toward `axes` (e.g. "SPL").

        :raises LiverXAILib.errors.UsageError: `axes` does not name each of L/R, P/A and S/I once.
        """
        wanted = [_world_axis(letter) for letter in axes]
        if sorted(world for world, _ in wanted) != [0, 1, 2]:
            raise UsageError(f"Axes {axes!r} must name each of L/R, P/A and S/I once, for example 'SPL'.")
        names = [_world_axis(letter) for letter in axis_codes(source)]
        worlds = [world for world, _ in names]
        order = tuple(worlds.index(world) for world, _ in wanted)
        flips = tuple(names[old][1] != sign for old, (_, sign) in zip(order, wanted, strict=True))
        return cls(source, order, flips)  # type: ignore[arg-type]

    @property
    def grid(self) -> Grid:
        """The grid of the reoriented voxels: the same voxel centers as the source's, in another order."""
        new_to_old = np.zeros((4, 4))
        new_to_old[3, 3] = 1.0
        for new, (old, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            # Matrices act on (i, j, k), array axes are (k, j, i).
            new_to_old[2 - old, 2 - new] = -1.0 if flip else 1.0
            new_to_old[2 - old, 3] = self.source.shape[old] - 1 if flip else 0.0
        i, j, k = (self.source.shape[old] for old in reversed(self.order))
        return Grid((k, j, i), self.source.ijk_to_lps @ new_to_old)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """An array (..., k, j, i) on `source` → the same voxels on `grid` (a view)."""
        _check_shape(array, self.source)
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + old for old in self.order))
        return np.flip(moved, self._flipped_axes(lead))

    def invert(self, array: np.ndarray) -> np.ndarray:
        """An array (..., k, j, i) on `grid` → the same voxels on `source` (a view): the exact inverse of `apply`."""
        _check_shape(array, self.grid)
        lead = array.ndim - 3
        flipped = np.flip(array, self._flipped_axes(lead))
        return flipped.transpose(*range(lead), *(lead + self.order.index(old) for old in range(3)))

    def _flipped_axes(self, lead: int) -> tuple[int, ...]:
        return tuple(lead + axis for axis, flip in enumerate(self.flips) if flip)


def axis_codes(grid: Grid) -> str:
    """The directions toward which the array's axes (k, j, i) run, e.g. "SPL"; the nearest ones if the grid is oblique.

    The axis with the largest direction cosine is named first, then the largest of the remaining ones, so that each name
    is used once whatever the geometry; equal cosines (rounded to 1e-6) are taken in the order of LPS, then (i, j, k).
    """
    direction = grid.direction
    left = np.abs(direction).round(6)
    letters = [""] * 3
    for _ in range(3):
        world, axis = (int(n) for n in np.unravel_index(left.argmax(), left.shape))
        letters[2 - axis] = _LETTERS[world][0 if direction[world, axis] >= 0 else 1]
        left[world, :] = left[:, axis] = -1.0
    return "".join(letters)


def reorient(volume: Volume, axes: str) -> Volume:
    """The same image with its array axes running toward `axes` (e.g. "SPL"); no voxel changes its value or position.

    :raises LiverXAILib.errors.UsageError: `axes` does not name each of L/R, P/A and S/I once.
    """
    plan = Reorientation.to(volume.grid, axes)
    return Volume(plan.apply(volume.array), plan.grid.ijk_to_lps, volume.metadata)


def _world_axis(letter: str) -> tuple[int, bool]:
    """A letter → (index of the LPS axis, whether it names the positive end)."""
    for world, ends in enumerate(_LETTERS):
        if letter in ends:
            return world, letter == ends[0]
    raise UsageError(f"{letter!r} is not an anatomical direction: use L, R, P, A, S or I.")


def _check_shape(array: np.ndarray, grid: Grid) -> None:
    if array.shape[-3:] != grid.shape:
        raise ValueError(f"expected an array of shape (..., {', '.join(map(str, grid.shape))}), got {array.shape}")
