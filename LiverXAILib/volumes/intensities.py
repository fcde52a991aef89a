# SPDX-License-Identifier: Apache-2.0
"""What voxel values may be: finite, not constant, in Hounsfield units."""

from __future__ import annotations

import numpy as np

from ..errors import InputError

#: Hounsfield units of air; what DICOM marks as padding becomes this, just below it.
PADDING_HU = -1024
#: Every CT of a body shows fat, lung or air: at least this fraction of its voxels lies below this value ...
_FAT_HU, _FAT_FRACTION = -50.0, 1e-3
#: ... and at least this fraction lies within the range of soft tissue.
_SOFT_TISSUE_HU, _SOFT_TISSUE_FRACTION = (-200.0, 300.0), 5e-3


def compact(array: np.ndarray, name: str) -> np.ndarray:
    """The same values as int16 if they are whole numbers that fit, else float32.

    :raises LiverXAILib.errors.InputError: a value is NaN or infinite.
    """
    if array.dtype.kind == "f":
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise InputError(f"{name} holds {bad} voxels without a number (NaN or infinite). Export it again.")
    limits = np.iinfo(np.int16)
    fits = array.min() >= limits.min and array.max() <= limits.max
    whole = array.dtype.kind in "iub" or bool((array == np.rint(array)).all())
    return np.ascontiguousarray(array, dtype=np.int16 if fits and whole else np.float32)


def checked(array: np.ndarray, name: str) -> np.ndarray:
    """The array (k, j, i) in a compact type, if it can be an image of something.

    :raises LiverXAILib.errors.InputError: it is a single slice, has no contrast, or holds NaN.
    """
    if min(array.shape) < 2:
        raise InputError(f"{name} is a single slice; a CT volume is needed.")
    array = compact(array, name)
    if array.min() == array.max():
        raise InputError(f"{name} is empty: every voxel has the value {array.flat[0]:g}.")
    return array


def looks_like_hu(array: np.ndarray) -> bool:
    """Whether intensities can be Hounsfield units of a body.

    True if at least 0.1 % of the voxels lie below -50 (fat, lung, air) and at least 0.5 % within -200 to 300 (soft
    tissue). MR, labels, heat maps, normalized images and CT stored with an offset of 1024 have nothing below zero.
    """
    dark = np.count_nonzero(array < _FAT_HU)
    low, high = _SOFT_TISSUE_HU
    soft = np.count_nonzero((array >= low) & (array <= high))
    return bool(dark >= _FAT_FRACTION * array.size and soft >= _SOFT_TISSUE_FRACTION * array.size)
