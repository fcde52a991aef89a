# SPDX-License-Identifier: Apache-2.0
"""Plausibility of a liver: HU, volume, and position in the body, which also reveals a wrongly oriented image.

Whether a header is correct cannot be known, but it can be checked against anatomy: the liver lies right of the midline,
the spine behind it, the lungs above it. A result that contradicts this is reported as implausible; it is not changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..volumes.box import bounding_box, largest_component
from ..volumes.orientation import reorient
from ..volumes.volume import Volume

#: Range of a liver's median HU: from severe steatosis to maximum contrast enhancement.
LIVER_HU = (-50.0, 250.0)
#: Range of a whole liver's volume in ml: from a remnant after resection, or a small child's liver, to a polycystic one.
LIVER_ML = (300.0, 6000.0)
#: Below this volume a second run on the mirrored image is worth its time: three out of four adult livers are larger.
USUAL_ML = 1300.0

#: Approximate voxel size at which the body is examined, in mm.
_COARSE_MM = 4.0
_BODY_HU, _LUNG_HU, _BONE_HU = -300.0, (-950.0, -600.0), 250.0
#: The spine is searched within this fraction of the body's width on both sides of its midline.
_NEAR_MIDDLE = 0.12
#: Smaller volumes of a landmark than this, in ml, are not conclusive.
_LEAST_BONE_ML, _LEAST_LUNG_ML = 8.0, 150.0
#: A liver whose center is farther to the left of the midline than this lies on the left side.
_LEFT_MM = 10.0
#: Fraction of the bone near the midline, or of the lungs, that must lie on the wrong side.
_WRONG_SIDE = 0.7


@dataclass(frozen=True)
class Position:
    """Where the liver lies in the body; None where too little of a landmark is in the image.

    :param middle_x: of the body's midsagittal plane at the liver, LPS mm.
    :param right: distance in mm of the liver's center of mass to the right of the body's midline.
    :param spine_in_front: fraction of the bone near the midline that lies in front of the body's center.
    :param lungs_below: fraction of the lungs that lies below the liver's center of mass.
    """

    middle_x: float | None
    right: float | None
    spine_in_front: float | None
    lungs_below: float | None


def implausibilities(liver_ml: float, median_hu: float | None, complete: bool, position: Position) -> tuple[str, ...]:
    """Sentences that say why the segmented structure cannot be a liver; empty: it can, or nothing was found.

    :param liver_ml: tumors included.
    :param median_hu: of the liver without tumors.
    :param complete: whether the liver does not reach the border of the image.
    """
    if liver_ml == 0:
        return ()
    reasons = []
    if median_hu is not None and not LIVER_HU[0] <= median_hu <= LIVER_HU[1]:
        reasons.append(
            f"The liver has a median of {median_hu:.0f} HU, outside the plausible range of {LIVER_HU[0]:.0f} to "
            f"{LIVER_HU[1]:.0f} HU. Are the intensities in Hounsfield units?"
        )
    if liver_ml > LIVER_ML[1] or (complete and liver_ml < LIVER_ML[0]):
        reasons.append(
            f"The liver has a volume of {liver_ml:.0f} ml, outside the plausible range of {LIVER_ML[0]:.0f} to "
            f"{LIVER_ML[1]:.0f} ml for whole livers."
        )
    turned = "The image may be mirrored or rotated relative to its header."
    if position.right is not None and position.right < -_LEFT_MM:
        reasons.append(f"The liver lies on the left side of the body. {turned}")
    if position.spine_in_front is not None and position.spine_in_front > _WRONG_SIDE:
        reasons.append(f"The spine lies in front. {turned}")
    if position.lungs_below is not None and position.lungs_below > _WRONG_SIDE:
        reasons.append(f"The lungs lie below the liver. {turned}")
    return tuple(reasons)


def liver_position(volume: Volume, liver: np.ndarray) -> Position:
    """Where the liver lies in the body, on a coarse grid."""
    upright = reorient(volume, "SPL")
    found = reorient(volume.with_array(liver), "SPL").array
    steps = [max(1, round(_COARSE_MM / size)) for size in upright.spacing[::-1]]
    coarse = tuple(slice(None, None, step) for step in steps)
    hu, found = upright.array[coarse], found[coarse]
    cell_ml = volume.grid.voxel_volume_mm3 * np.prod(steps) / 1000
    box = bounding_box(found)
    if box is None:
        return Position(None, None, None, None)
    body = largest_component(hu > _BODY_HU)
    body = np.array([ndimage.binary_fill_holes(part) for part in body])
    at_liver = body[box.k]
    if not at_liver.any():
        return Position(None, None, None, None)
    columns, rows = (np.flatnonzero(at_liver.any(axis=axes)) for axes in ((0, 1), (0, 2)))
    middle, width = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0]
    center = np.argwhere(found).mean(axis=0)
    # The midsagittal plane as a point next to the liver's center, because axes may be oblique.
    beside = upright.grid.to_lps(np.array([middle, center[1], center[0]]) * steps[::-1])
    right = float(middle - center[2]) * steps[2] * upright.spacing[0]

    low, high = (round(middle + side * _NEAR_MIDDLE * width) for side in (-1, 1))
    bone = ((hu > _BONE_HU) & body)[box.k, :, max(low, 0) : high + 1]
    count = np.count_nonzero(bone)
    front = np.count_nonzero(bone[:, : round((rows[0] + rows[-1]) / 2)])
    air = body & (hu > _LUNG_HU[0]) & (hu < _LUNG_HU[1])
    lungs = air & ndimage.binary_opening(air, iterations=2)
    below = np.count_nonzero(lungs[: round(center[0])])
    return Position(
        float(beside[0]),
        right,
        front / count if count * cell_ml > _LEAST_BONE_ML else None,
        below / np.count_nonzero(lungs) if np.count_nonzero(lungs) * cell_ml > _LEAST_LUNG_ML else None,
    )
