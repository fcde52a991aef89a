# SPDX-License-Identifier: Apache-2.0
"""The headers of image files in one common form, and parsing of values in text headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import numpy as np

from .stream import Compression, HeaderError, shown
from .volume import Grid

#: The longest text header, in bytes; a segmentation with a hundred named segments needs a twentieth of this.
LONGEST_HEADER = 2**20
#: The longest side of an image, in voxels.
_MOST_VOXELS = 2**20
#: Millimeters per unit of length, by the names that headers use.
_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "centimeter": 10.0, "m": 1000.0, "meter": 1000.0, "um": 0.001,
       "µm": 0.001, "μm": 0.001, "micron": 0.001, "micrometer": 0.001, "nm": 1e-6, "nanometer": 1e-6}  # fmt: skip
NO_ORIENTATION = "The file does not specify the patient's orientation: left and right may be swapped."
NO_ORIGIN = "The file does not specify the image's position; its first voxel was assumed to be at 0, 0, 0."
NO_SPACING = "The file does not specify the voxel size; 1 mm was assumed. All measured sizes depend on it."


@dataclass(frozen=True)
class Header:
    """An image file's header.

    :param shape: (k, j, i) in voxels.
    :param layers: images of that shape in the file, usually 1.
    :param interleaved: the values of all layers are stored together for each voxel; else one layer follows the other.
    :param scaling: (slope, intercept) that turn stored values into intensities.
    :param data: the file that holds the voxels, from byte `start` on; -1: they end with the file.
    :param offset: bytes of the decompressed stream before the voxels.
    :param limit: how many bytes of the file belong to the compressed voxels, if the header says so.
    :param text: the voxels are written as numbers in text.
    :param fields: the header's other entries, as text.
    :param warnings: sentences for the user.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    ijk_to_lps: np.ndarray
    data: Path
    start: int
    offset: int = 0
    layers: int = 1
    interleaved: bool = False
    scaling: tuple[float, float] = (1.0, 0.0)
    compression: Compression | None = None
    limit: int | None = None
    text: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        return Grid(self.shape, self.ijk_to_lps)


def storable(array: np.ndarray) -> np.ndarray:
    """The array in a type that the file formats support: bool as uint8, float16 as float32."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    return array.astype(np.float32) if array.dtype == np.float16 else array


# --- values of text headers ----------------------------------------------------------------------------------------
# Python parses numbers the same way in every locale; C libraries read "0.8" as 0 where the decimal sign is a comma.


def integer(text: str, name: str, low: int, high: int) -> int:
    """A whole number between `low` and `high`.

    :raises HeaderError: it is something else.
    """
    text = text.strip()
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII) or not low <= int(text) <= high:
        raise HeaderError(f"is damaged: its header says {shown(text)} for {shown(name)}. Export it again.")
    return int(text)


def number(text: str, name: str) -> float:
    """A finite number in text; see :func:`integer`."""
    try:
        value = float(text) if len(text) <= 60 and "_" not in text else float("nan")
    except ValueError:
        value = float("nan")
    if not isfinite(value) or abs(value) > 1e12:
        raise HeaderError(f"is damaged: its header says {shown(text)} for {shown(name)}. Export it again.")
    return value


def numbers(text: str, name: str, count: int) -> list[float]:
    """Exactly `count` numbers, separated by white space; see :func:`number`."""
    parts = text.split()
    if len(parts) != count:
        raise HeaderError(f"is damaged: its header says {shown(text)} for {shown(name)}. Export it again.")
    return [number(part, name) for part in parts]


def side(text: str, name: str) -> int:
    """The number of voxels along an axis; see :func:`integer`."""
    return integer(text, name, 0, _MOST_VOXELS)


def millimeters(unit: str) -> float:
    """Millimeters per `unit` of length; an empty or unspecified ("???") unit counts as mm.

    :raises HeaderError: it is not a known unit of length.
    """
    name = unit.strip().lower()
    if not name.strip("?"):
        return 1.0
    factor = _MM.get(name, _MM.get(name.removesuffix("s")))
    if factor is None:
        raise HeaderError(f"gives lengths in {shown(unit)}, which is not a known unit. Export it in mm.")
    return factor


def converted(unit: str, factor: float) -> list[str]:
    """The warning that lengths were converted, if they were."""
    return [] if factor == 1.0 else [f"The file gives lengths in {shown(unit)}; they were converted to mm."]


def affine(directions: np.ndarray, origin: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The 4x4 matrix with `directions` (3x3, columns: steps along i, j, k in mm) and `origin` (mm).

    :raises HeaderError: it is degenerate.
    """
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = directions, origin
    try:
        return Grid(shape, matrix).ijk_to_lps
    except ValueError as error:
        raise HeaderError("is damaged: it has no usable position and voxel size. Export it again.") from error


def three_axes(sizes: list[int]) -> tuple[int, int, int]:
    """(k, j, i) of sizes (i, j, k, ...); trailing axes of length 1 are dropped.

    :raises HeaderError: the number of axes is not three, or one is empty.
    """
    kept = list(sizes)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    if len(kept) != 3:
        raise HeaderError(f"has {len(kept)} dimensions; a CT volume with exactly three is needed.")
    if min(kept) < 1:
        raise HeaderError(f"is empty: its size is {' x '.join(map(str, kept))} voxels.")
    i, j, k = kept
    return k, j, i
