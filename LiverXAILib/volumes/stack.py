# SPDX-License-Identifier: Apache-2.0
"""Arranging slices to a volume: their order and regularity, from their positions alone.

File names, instance numbers, slice locations and the tilt, thickness and spacing tags are not trusted. Slices are
sorted along their normal; the vector from one slice to the next comes from the positions, so that a tilted gantry
results in shear.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: A slice may deviate this far from its position in a regular stack, as a fraction of the slice spacing ...
SPACING_TOLERANCE = 0.1
#: ... or this far in mm, because some scanners round positions to a tenth of a millimeter.
ROUNDING_MM = 0.1
#: Slices closer together than this are at the same position.
DUPLICATE_MM = 0.1
#: The widest gap between two slices of an irregular stack that is filled by interpolation.
WIDEST_GAP_MM = 10.0


@dataclass(frozen=True, eq=False)
class Stack:
    """An arrangement of slices.

    `order` lists the slices' indices along `depths`, their ascending positions along the normal in mm.
    `ijk_to_lps` is the regular grid of `count` slices that fits them. `problem` is a clause that says what is wrong, or
    None; `can_be_resampled` is whether interpolation along the depth can correct it.
    """

    order: np.ndarray = field(repr=False)
    depths: np.ndarray = field(repr=False)
    count: int
    ijk_to_lps: np.ndarray
    problem: str | None = None
    can_be_resampled: bool = False

    @property
    def spacing(self) -> float:
        """Distance in mm between the slices of the regular grid, along the (possibly tilted) stack."""
        return float(np.linalg.norm(self.ijk_to_lps[:3, 2]))

    @property
    def tilt_degrees(self) -> float:
        """Angle between the vector from slice to slice and the slices' normal."""
        normal = np.cross(self.ijk_to_lps[:3, 0], self.ijk_to_lps[:3, 1])
        cosine = self.ijk_to_lps[:3, 2] @ normal / (self.spacing * np.linalg.norm(normal))
        return float(np.degrees(np.arccos(min(1.0, cosine))))


def sort_slices(positions: np.ndarray, row: np.ndarray, column: np.ndarray) -> Stack | str:
    """Arrange at least two parallel slices.

    :param positions: (n, 3) LPS mm of the center of each slice's first pixel.
    :param row: LPS mm from one pixel to the next in a row (along i).
    :param column: LPS mm from one pixel to the next in a column (along j).
    :return: the stack; or, if the slices do not form one, a clause that says why.
    """
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    depths = positions @ normal
    gaps = np.diff(depths)
    twice = int(np.count_nonzero(gaps < DUPLICATE_MM))
    if twice:
        return (
            f"it has slices at duplicate positions ({twice} of {len(order)}): several phases in one series, or "
            "duplicate files"
        )
    step = (positions[-1] - positions[0]) / (depths[-1] - depths[0])
    sideways = np.linalg.norm(positions - positions[0] - np.outer(depths - depths[0], step), axis=1).max()
    median = float(np.median(gaps))
    tolerance = max(SPACING_TOLERANCE * median, ROUNDING_MM)
    if sideways > tolerance:
        return f"its slices are shifted sideways relative to each other by up to {sideways:.1f} mm"

    regular = np.linspace(depths[0], depths[-1], len(depths))
    problem, can_be_resampled, count = None, False, len(depths)
    if np.abs(depths - regular).max() > tolerance:
        steps = np.round(gaps / median)
        if steps.min() >= 1 and np.abs(gaps - steps * median).max() <= tolerance:
            missing = f"{steps.sum() - len(gaps):.0f} of {steps.sum() + 1:.0f} slices are missing"
            problem = f"{missing} (a gap of {gaps.max():.1f} mm between slices {median:.1f} mm apart)"
        else:
            problem = f"its slices are not evenly spaced ({gaps.min():.2f} to {gaps.max():.2f} mm apart)"
        can_be_resampled = bool(gaps.max() <= WIDEST_GAP_MM)
        count = round((depths[-1] - depths[0]) / median) + 1
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = row, column
    matrix[:3, 2] = (positions[-1] - positions[0]) / (count - 1)
    matrix[:3, 3] = positions[0]
    return Stack(order, depths, count, matrix, problem, can_be_resampled)


def resample_to_regular(array: np.ndarray, stack: Stack) -> np.ndarray:
    """Slices (n, j, i) at `stack.depths` → (`stack.count`, j, i) at even depths, linearly; whole numbers stay whole."""
    result = np.empty((stack.count, *array.shape[1:]), array.dtype)
    for k, depth in enumerate(np.linspace(stack.depths[0], stack.depths[-1], stack.count)):
        above = int(np.clip(np.searchsorted(stack.depths, depth), 1, len(stack.depths) - 1))
        low, high = stack.depths[above - 1], stack.depths[above]
        weight = np.float32((depth - low) / (high - low))
        blend = (1 - weight) * array[above - 1] + weight * array[above]
        result[k] = np.rint(blend) if array.dtype.kind == "i" else blend
    return result
