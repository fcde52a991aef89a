# SPDX-License-Identifier: Apache-2.0
"""The voxel grid in the orientation of a network's axes."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..volumes.orientation import Reorientation
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume

#: Hounsfield units assumed outside an image.
AIR_HU = -1024.0
#: A scan rotated by more than this from the patient's axes is resampled to them; otherwise it keeps its own axes.
_MAX_TILT_DEGREES = 10.0


def network_orientation_grid(grid: Grid, axes: str) -> Grid:
    """The image's voxel grid with its axes in the order `axes` ("SPL": superior, posterior, left).

    The voxel centers are kept unless the scan is sheared or oblique by more than 10 degrees, as with a tilted gantry:
    then the result is the upright box around it, because networks are trained on upright patients. With `axes` like
    "kji" the image's own axes are only reordered, whatever their directions.
    """
    canonical = _reorientation(grid, axes).grid
    if _is_axis_aligned(canonical, axes):
        return canonical
    upright = _axis_vectors(axes)
    spacing = np.array(canonical.spacing)
    k, j, i = (n - 1 for n in canonical.shape)
    corners = canonical.to_lps(np.array(list(product((0, i), (0, j), (0, k))))) @ upright
    low, high = corners.min(axis=0), corners.max(axis=0)
    n_i, n_j, n_k = (int(n) for n in np.ceil((high - low) / spacing - 1e-6) + 1)
    matrix = np.eye(4)
    matrix[:3, :3] = upright * spacing
    matrix[:3, 3] = upright @ low
    return Grid((n_k, n_j, n_i), matrix)


def network_orientation_image(volume: Volume, axes: str) -> Volume:
    """The image on its :func:`network_orientation_grid`: the same voxels in another order, or resampled upright."""
    turn = _reorientation(volume.grid, axes)
    if _is_axis_aligned(turn.grid, axes):
        return Volume(turn.apply(volume.array), turn.grid.ijk_to_lps)
    grid = network_orientation_grid(volume.grid, axes)
    return Volume(resample(volume.array, volume.grid, grid, fill=AIR_HU).numpy(), grid.ijk_to_lps)


def from_network_orientation(mask: np.ndarray, source: Grid, grid: Grid, axes: str) -> np.ndarray:
    """Map a mask on `source`, a part of a :func:`network_orientation_grid`, to the same part of the image, `grid`.

    The exact inverse of :func:`network_orientation_image` if the voxel centers were kept.
    """
    turn = _reorientation(grid, axes)
    if _is_axis_aligned(turn.grid, axes):
        return turn.invert(mask)
    return (resample(mask.astype(np.float32), source, grid, antialias=False) > 0.5).numpy()


def _reorientation(grid: Grid, axes: str) -> Reorientation:
    if set(axes) == set("kji"):
        k, j, i = ("kji".index(letter) for letter in axes)
        return Reorientation(grid, (k, j, i), (False, False, False))
    return Reorientation.to(grid, axes)


def _is_axis_aligned(canonical: Grid, axes: str) -> bool:
    if set(axes) == set("kji"):
        return True
    cosines = np.abs(np.sum(canonical.direction * _axis_vectors(axes), axis=0))
    return bool(np.degrees(np.arccos(np.clip(cosines, 0, 1))).max() <= _MAX_TILT_DEGREES)


def _axis_vectors(axes: str) -> np.ndarray:
    """3x3: columns are the LPS unit vectors of the i, j, k axes for an `axes` code given in (k, j, i) order."""
    vectors = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    return np.array([vectors[letter] for letter in reversed(axes)], dtype=float).T
