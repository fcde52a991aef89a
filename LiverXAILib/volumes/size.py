# SPDX-License-Identifier: Apache-2.0
"""Whether voxels and image are as large as those of a CT of a body: a header in meters passes every other check."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .volume import Grid

#: Sides of a CT's voxels, in mm: below the finest detectors' pixels, above the thickest slices.
_SMALLEST_MM, _LARGEST_MM = 0.08, 25.0
#: No scanner's table moves further, and no body is wider than the gantry's opening: only one side may exceed that.
_LONGEST_MM, _WIDEST_MM = 2500.0, 1000.0
#: A field of view (the second longest side) below this is a crop; with voxels finer than any in the plane of a
#: body's CT, it is a body counted in the wrong unit.
_NARROWEST_MM, _FINE_MM = 60.0, 0.4
#: Fields of view of bodies, in mm.
_BODY_MM = (120.0, 700.0)
#: By what lengths may be wrong, and how that happens.
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

    :param name: of the image, as the start of a sentence.
    :raises LiverXAILib.errors.InputError: they cannot; with the factor by which all lengths would make sense.
    """
    sides = np.array(grid.spacing)
    extent = sides * grid.shape[::-1]
    if _plausible(sides, extent):
        return
    factor = next((one for one in _FACTORS if _is_body(one * sides, one * extent)), None)
    if factor is not None:
        advice = f"Times {factor:g} they would ({_FACTORS[factor]}?): correct the header, or export the image in mm."
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
