# SPDX-License-Identifier: Apache-2.0
"""The contrast phase of a CT, estimated from the HU of the liver, the aorta and the vessels in the liver."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from scipy import ndimage

from ..volumes.box import Box, bounding_box, largest_component
from ..volumes.orientation import reorient
from ..volumes.volume import Volume
from .measurements import ContrastPhase

#: Typical values of each phase: HU of the aorta, HU of the liver, and how much brighter the vessels in the liver are
#: than the liver; each with its standard deviation between patients, scanners and injections. Round numbers that agree
#: with 20 public CTs of known phase.
_TYPICAL = {
    "native": ((42.0, 18.0), (52.0, 14.0), (10.0, 10.0)),
    "arterial": ((320.0, 90.0), (68.0, 14.0), (18.0, 12.0)),
    "portal venous": ((155.0, 35.0), (112.0, 22.0), (35.0, 14.0)),
    "delayed": ((105.0, 20.0), (95.0, 18.0), (18.0, 10.0)),
}
#: Maximum interquartile range of the aorta's HU over slices.
_EVEN_HU = 40.0
#: The probability that a landmark is misidentified, and the range of HU that it may then have.
_MISREAD, _ANY_HU = 0.1, 400.0
_COARSE_MM, _DISC_MM, _BONE_HU = 2.0, 12.0, 250.0

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Field(NamedTuple):
    """Where the aorta may be in a slice, and the mean and standard deviation of the HU around each pixel there."""

    k: int
    at: tuple[np.ndarray, ...]
    mean: np.ndarray
    spread: np.ndarray


class _Scan:
    """What is needed of a CT, and does not depend on the outlines of lesions: it is computed once for all decisions.

    :param volume: the CT.
    """

    def __init__(self, volume: Volume) -> None:
        upright = reorient(volume, "SPL")
        steps = [max(1, round(_COARSE_MM / size)) for size in upright.spacing[::-1]]
        self._coarse = tuple(slice(None, None, step) for step in steps)
        self.spacing = np.array(upright.spacing[::-1]) * steps
        self.hu = upright.array[self._coarse].astype(np.float32)
        self._smooth: list[tuple[Box, np.ndarray]] = []
        self._fields: list[tuple[slice, list[_Field]]] = []

    def coarse(self, volume: Volume) -> np.ndarray:
        """The voxels of another image of the same grid that are examined."""
        return reorient(volume, "SPL").array[self._coarse]

    def smooth(self, box: Box) -> np.ndarray:
        """The HU in a box, smoothed by 2 mm."""
        return _kept(self._smooth, box, lambda: ndimage.gaussian_filter(self.hu[box], 2.0 / self.spacing))

    def fields(self, slices: slice) -> list[_Field]:
        """:func:`_fields` in these slices."""
        return _kept(self._fields, slices, lambda: _fields(self.hu[slices], self.spacing))


def _kept(kept: list[tuple[_Key, _Value]], key: _Key, compute: Callable[[], _Value]) -> _Value:
    """The value for a key, which is kept with the one before: that of the model's liver, and of the reader's."""
    for known, value in kept:
        if known == key:
            return value
    value = compute()
    kept[:] = [(key, value), *kept[:1]]
    return value


#: What was computed for each image in use.
_SCANS: WeakKeyDictionary[Volume, _Scan] = WeakKeyDictionary()


def estimate_phase(volume: Volume, parenchyma: np.ndarray) -> ContrastPhase | None:
    """The contrast phase of `volume`; None if there is too little liver to tell.

    :param parenchyma: the liver without lesions, bool (k, j, i).
    """
    scan = _SCANS.get(volume)
    if scan is None:
        scan = _SCANS[volume] = _Scan(volume)
    hu, inside = scan.hu, scan.coarse(volume.with_array(parenchyma))
    core = ndimage.binary_erosion(inside, iterations=2)
    box = bounding_box(core)
    if box is None or np.count_nonzero(core) < 200:
        return None
    liver_hu = float(np.median(hu[core]))
    around = box.grown((2, 2, 2), hu.shape)
    vessels_hu = float(np.percentile(scan.smooth(around)[core[around]], 99))
    aorta_hu = _aorta(scan.fields(box.k), _noise(hu[box.k], inside[box.k]), inside[box.k])
    found = (aorta_hu, liver_hu, vessels_hu - liver_hu)
    likelihood = {
        phase: float(np.prod([_density(value, *one) for value, one in zip(found, typical, strict=True)]))
        for phase, typical in _TYPICAL.items()
    }
    best = max(likelihood, key=lambda phase: likelihood[phase])
    return ContrastPhase(best, likelihood[best] / sum(likelihood.values()), aorta_hu, vessels_hu)


def _density(value: float | None, mean: float, spread: float) -> float:
    """The probability density of an HU: normally distributed, or uniform if the landmark is misidentified."""
    if value is None:
        return 1.0
    normal = np.exp(-0.5 * ((value - mean) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
    return float((1 - _MISREAD) * normal + _MISREAD / _ANY_HU)


def _aorta(fields: list[_Field], noise: float, liver: np.ndarray) -> float | None:
    """HU of the aorta in the slices of the liver (k to superior, j to posterior, i to the left)."""
    values = []
    for k, at, mean, spread in fields:
        near = (spread < 1.5 * noise + 6) & ~liver[k][at]
        if near.any():
            values.append(float(mean[near].max()))
    if len(values) < 3 or np.subtract(*np.percentile(values, (75, 25))) > _EVEN_HU:
        return None  # within a vessel, slices agree
    return float(np.median(values))


def _fields(hu: np.ndarray, spacing: np.ndarray) -> list[_Field]:
    """Where the aorta may be, in each slice of `hu` (k to superior, j to posterior, i to the left) with a spine."""
    body = largest_component(hu > -300)
    size = [max(1, round(_DISC_MM / mm)) for mm in spacing[1:]]
    fields = []
    for index in range(0, len(hu), max(1, round(6 / spacing[0]))):
        part = hu[index]
        columns, rows = (np.flatnonzero(body[index].any(axis=axis)) for axis in (0, 1))
        if not len(columns):
            continue
        middle, half = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
        bone = np.argwhere(part > _BONE_HU)
        bone = bone[(np.abs(bone[:, 1] - middle) * spacing[2] < 25) & (bone[:, 0] > half)]
        if len(bone) * spacing[1] * spacing[2] < 200:
            continue
        spine_j, spine_i = bone.mean(axis=0)
        j, i = np.indices(part.shape)
        before = (spine_j - j) * spacing[1]
        aside = (i - spine_i) * spacing[2]
        at = np.nonzero((before > 18) & (before < 60) & (aside > -12) & (aside < 35))
        mean, spread = _local(part, size)
        fields.append(_Field(index, at, mean[at], spread[at]))
    return fields


def _local(image: np.ndarray, size: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in boxes of `size` pixels."""
    mean = ndimage.uniform_filter(image, size)
    return mean, np.sqrt(np.maximum(ndimage.uniform_filter(image**2, size) - mean**2, 0))


def _noise(hu: np.ndarray, liver: np.ndarray) -> float:
    """The median standard deviation of 3 x 3 pixels within the liver, in the slice that shows most of it."""
    index = int(np.count_nonzero(liver, axis=(1, 2)).argmax())
    return float(np.median(_local(hu[index], [3, 3])[1][liver[index]]))
