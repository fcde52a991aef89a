# SPDX-License-Identifier: Apache-2.0
"""Checks of voxel values: finite, not constant, in Hounsfield units."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .size import check_size
from .volume import Grid

#: Pixels that DICOM marks as padding get this value, just below that of air.
PADDING_HU = -1024
#: Every CT of a body shows fat, lung or air: at least this fraction of its voxels lies in this range, padding excluded.
#: (In 26 real CTs of the abdomen and chest it is at least 0.48.)
_DARK_HU, _DARK_FRACTION = (-1200, -50), 1e-3
#: A minimum in this range is air clipped by the scanner; any other minimum is padding.
_AIR_HU = (-1050, -900)
#: At least this fraction lies within the range of soft tissue (in the same CTs, at least 0.088).
_SOFT_TISSUE_HU, _SOFT_TISSUE_FRACTION = (-200, 300), 5e-3
#: Of the voxels denser than lung, at most this fraction is as dense as cortical bone (in the same CTs, at most 0.010).
#: In a CT stored as HU + 1024, soft tissue falls into this range.
_DENSE_HU, _DENSE_FRACTION = (850, 1250), 0.1
#: No scanner measures values below this. One that at least this fraction of voxels share is padding; others mean that
#: the scale is wrong.
_LOWEST_HU, _LOWEST_FRACTION = -1200, 0.01
_LUNG_HU = -300


def to_smallest_dtype(array: np.ndarray, name: str) -> np.ndarray:
    """The same values as int16 if they are whole numbers that fit, else float32.

    :raises LiverXAILib.errors.InputError: a value is NaN or infinite, or too large for float32.
    """
    if array.dtype.kind == "f":
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise InputError(f"{name} holds {bad} voxels that are not finite (NaN or infinity). Export it again.")
    low, high = array.min(), array.max()
    if max(abs(float(low)), abs(float(high))) > np.finfo(np.float32).max:
        raise InputError(f"{name} holds values of up to {max(abs(float(low)), abs(float(high))):g}. Export it again.")
    limits = np.iinfo(np.int16)
    fits = low >= limits.min and high <= limits.max
    whole = array.dtype.kind in "iub" or (fits and bool((array == np.rint(array)).all()))
    return np.ascontiguousarray(array, dtype=np.int16 if fits and whole else np.float32)


def validate_ct(array: np.ndarray, grid: Grid, name: str, *, force: bool = False, advice: str = "") -> np.ndarray:
    """The array (k, j, i) in its smallest data type, if it can be a CT of a body.

    :param name: name of the image, which starts the error message.
    :param force: accept intensities that do not look like Hounsfield units.
    :param advice: what a user who knows that the image is a CT can do if it is refused for its intensities.
    :raises LiverXAILib.errors.InputError: it is a single slice, is constant, holds NaN, has voxels of a size that no CT
        has, or intensities that are not Hounsfield units.
    """
    if min(array.shape) < 2:
        raise InputError(f"{name} is a single slice; a CT volume is needed.")
    check_size(grid, name)
    array = to_smallest_dtype(array, name)
    low, high = array.min(), array.max()
    if low == high:
        raise InputError(f"{name} is empty: every voxel has the value {low:g}.")
    if not force and not looks_like_hu(array):
        known_better = "If you know better, use --force (in Python: force=True)."
        raise InputError(
            f"{name} does not look like CT: its intensities ({low:g} to {high:g}) cannot be Hounsfield units, in which "
            f"air is -1000, fat -100 and water 0. {advice or known_better}"
        )
    return array


def looks_like_hu(array: np.ndarray) -> bool:
    """Whether intensities can be Hounsfield units of a body.

    Padding is excluded: the lowest value, unless it is that of air, and any value below -1200 that many voxels share.
    True if there is fat, lung or air, and soft tissue, no more bone than a body has, and nothing less dense than air.
    MR, label maps, heat maps, normalized images and CT stored with an offset fail one of these tests, whatever
    surrounds the body.
    """
    low = array.min()
    nothing = np.broadcast_to(False, array.shape)
    padded = nothing if _AIR_HU[0] <= low <= _AIR_HU[1] else array <= low
    below = array < _LOWEST_HU
    if below.any():
        values, counts = np.unique(array[below], return_counts=True)
        padding = values[counts >= _LOWEST_FRACTION * array.size]
        if counts[~np.isin(values, padding)].sum() > _LOWEST_FRACTION * array.size:
            return False
        padded = padded | np.isin(array, padding)

    # Slice by slice, to allocate no array as large as the image. The limits are integers because float limits would
    # turn each int16 comparison into a float64 one.
    def count(least: int, most: int | None = None) -> int:
        total = 0
        for plane, left_out in zip(array, padded, strict=True):
            inside = (plane >= least) & ~left_out
            total += int(np.count_nonzero(inside if most is None else inside & (plane <= most)))
        return total

    dense, body = count(*_DENSE_HU), count(_LUNG_HU)
    return (
        count(*_DARK_HU) >= _DARK_FRACTION * array.size
        and count(*_SOFT_TISSUE_HU) >= _SOFT_TISSUE_FRACTION * array.size
        and dense <= _DENSE_FRACTION * body
    )
