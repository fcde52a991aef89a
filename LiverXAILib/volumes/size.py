# SPDX-License-Identifier: Apache-2.0
"""Check that voxel size and extent fit a CT of a body: a header in meters passes all other checks."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .volume import Grid

#: Limits of a CT's voxel size, in mm: below the finest detectors' pixels, above the thickest slices.
_SMALLEST_MM, _LARGEST_MM = 0.08, 25.0
#: Limits of the extent, in mm: of one axis by the travel of a scanner's table, of the others by the gantry's bore.
_LONGEST_MM, _WIDEST_MM = 2500.0, 1000.0
#: A field of view (the second longest side) below this is a crop; if its voxels are also finer than the in-plane pixels
#: of any CT of a body, the image is a body in the wrong unit.
_NARROWEST_MM, _FINE_MM = 60.0, 0.4
#: Fields of view of bodies, in mm.
_BODY_MM = (120.0, 700.0)
#: Factors that correct lengths in a wrong unit, and the likely mistake.
_FACTORS = {
    1000.0: "meters instead of millimeters",
    0.001: "micrometers instead of millimeters",
    10.0: "centimeters instead of millimeters",
    0.1: "tenths of millimeters instead of millimeters",
    100.0: "decimeters instead of millimeters",
    0.01: "hundredths of millimeters instead of millimeters",
    1e6: "kilometers instead of millimeters",
    1e-6: "nanometers instead of millimeters",
}


def check_size(grid: Grid, name: str) -> None:
    """Refuse an image whose voxels or extent cannot be those of a CT of a body.

    :param name: name of the image, which starts the error message.
    :raises LiverXAILib.errors.InputError: they cannot; the message gives the factor that would make all lengths
        plausible.
    """
    sides = np.array(grid.spacing)
    extent = sides * grid.shape[::-1]
    if _plausible(sides, extent):
        return
    factor = next((one for one in _FACTORS if _is_body(one * sides, one * extent)), None)
    if factor is not None:
        advice = f"Multiplied by {factor:g} they would ({_FACTORS[factor]}?). Correct the header or export it in mm."
    else:
        advice = "Correct the voxel size in the header, or export the image again."
    raise InputError(
        f"{name} has voxels of {_mm(sides)} mm and an extent of {_mm(extent)} mm, which do not fit a CT of a body. "
        f"{advice}"
    )


def _plausible(sides: np.ndarray, extent: np.ndarray) -> bool:
    _, width, length = np.sort(extent)
    crop = width < _NARROWEST_MM and sides.min() < _FINE_MM
    return bool(
        sides.min() >= _SMALLEST_MM
        and sides.max() <= _LARGEST_MM
        and length <= _LONGEST_MM
        and width <= _WIDEST_MM
        and not crop
    )


def _is_body(sides: np.ndarray, extent: np.ndarray) -> bool:
    return _plausible(sides, extent) and _BODY_MM[0] <= np.sort(extent)[1] <= _BODY_MM[1]


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
