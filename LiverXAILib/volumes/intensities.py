# SPDX-License-Identifier: Apache-2.0
"""What voxel values may be: finite, not constant, in Hounsfield units."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .size import check_size
from .volume import Grid

#: Hounsfield units of air; what DICOM marks as padding becomes this, just below it.
PADDING_HU = -1024
#: Every CT of a body shows fat, lung or air: at least this fraction of its voxels lies in this range, padding left out.
#: (On 26 real CTs of the abdomen and chest it is at least 0.48.)
_DARK_HU, _DARK_FRACTION = (-1200, -50), 1e-3
#: A lowest value that many voxels share is air cut off by the scanner if it lies here, else it is padding.
_AIR_HU = (-1050, -900)
#: At least this fraction lies within the range of soft tissue (on the same, at least 0.088).
_SOFT_TISSUE_HU, _SOFT_TISSUE_FRACTION = (-200, 300), 5e-3
#: Of what is denser than lung, at most this fraction is as dense as cortical bone (on the same, at most 0.010). In a CT
#: stored as value + 1024, soft tissue is.
_DENSE_HU, _DENSE_FRACTION = (850, 1250), 0.1
#: Nothing that a scanner measures is below this; a value that many voxels share is padding, the rest is a wrong scale.
_LOWEST_HU, _LOWEST_FRACTION = -1200, 0.01
_LUNG_HU = -300


def to_smallest_dtype(array: np.ndarray, name: str) -> np.ndarray:
    """The same values as int16 if they are whole numbers that fit, else float32.

    :raises LiverXAILib.errors.InputError: a value is NaN or infinite, or too large for float32.
    """
    if array.dtype.kind == "f":
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise InputError(f"{name} holds {bad} voxels without a number (NaN or infinite). Export it again.")
    low, high = array.min(), array.max()
    if max(abs(float(low)), abs(float(high))) > np.finfo(np.float32).max:
        raise InputError(f"{name} holds values of up to {max(abs(float(low)), abs(float(high))):g}. Export it again.")
    limits = np.iinfo(np.int16)
    fits = low >= limits.min and high <= limits.max
    whole = array.dtype.kind in "iub" or (fits and bool((array == np.rint(array)).all()))
    return np.ascontiguousarray(array, dtype=np.int16 if fits and whole else np.float32)


def validate_ct(array: np.ndarray, grid: Grid, name: str, *, force: bool = False, advice: str = "") -> np.ndarray:
    """The array (k, j, i) in its smallest type, if it can be a CT of a body.

    :param name: of the image, as the start of a sentence.
    :param force: intensities need not look like Hounsfield units.
    :param advice: what to do if they do not and the user knows better.
    :raises LiverXAILib.errors.InputError: it is a single slice, has no contrast, holds NaN, has voxels of another size
        than a CT's, or intensities that are not Hounsfield units.
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

    Judged without padding: the lowest value unless it is that of air, and what is below -1200 and shared by many
    voxels. True if there is fat, lung or air, and soft tissue, not more bone than a body has, and nothing darker than
    air. MR, labels, heat maps, normalized images and CT stored with an offset fail one of these, whatever surrounds
    the body.
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

    # Slice by slice, so that nothing as large as the image is made; and limits are whole numbers, since others would
    # make each comparison of int16 one of float64.
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
