# SPDX-License-Identifier: Apache-2.0
"""Target lesions and their sum of diameters by RECIST 1.1 (Eisenhauer et al., Eur J Cancer 2009;45:228)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..text import counted

#: Minimum long axis of a measurable lesion in mm on slices of at most 5 mm; on thicker ones, twice the slice thickness.
MEASURABLE_MM = 10.0
_THICK_MM = 5.0
#: Maximum number of target lesions in one organ.
MOST_TARGETS = 2


@dataclass(frozen=True)
class Recist:
    """The liver's part of a RECIST 1.1 reading.

    :param targets: numbers of the target lesions, the longest first.
    :param diameters_mm: their long axes, rounded to whole millimeters as in reports.
    :param sum_mm: the sum of these rounded numbers, so that it agrees with them.
    :param measurable: all lesions that could be targets, the longest first.
    :param chosen_by_reader: whether a reader named the targets; otherwise the rule chose them.
    :param rule: the rule as text.
    """

    targets: tuple[int, ...]
    diameters_mm: tuple[int, ...]
    sum_mm: int
    measurable: tuple[int, ...]
    chosen_by_reader: bool
    rule: str


def recist(
    long_axes_mm: Mapping[int, float], slice_thickness_mm: float, targets: Sequence[int] | None = None
) -> Recist:
    """Choose target lesions: the two longest that are measurable.

    :param long_axes_mm: the longest axial diameter of each lesion, by its number.
    :param targets: a reader's choice instead of the rule's, at most two; empty: no targets.
    :raises LiverXAILib.errors.UsageError: there is no such lesion, or there are too many.
    """
    least = MEASURABLE_MM if slice_thickness_mm <= _THICK_MM else 2 * slice_thickness_mm
    by_length = sorted(long_axes_mm, key=lambda number: (-long_axes_mm[number], number))
    measurable = tuple(number for number in by_length if long_axes_mm[number] >= least)
    if targets is None:
        chosen = measurable[:MOST_TARGETS]
    else:
        if unknown := sorted(set(targets) - set(long_axes_mm)):
            raise UsageError(f"There is no lesion {unknown[0]}; the CT shows {counted(len(long_axes_mm), 'lesion')}.")
        require_possible(targets)
        chosen = tuple(number for number in by_length if number in targets)
    diameters = tuple(rounded_mm(long_axes_mm[number]) for number in chosen)
    return Recist(
        chosen,
        diameters,
        sum(diameters),
        measurable,
        targets is not None,
        f"RECIST 1.1: long axis of at least {least:g} mm in an axial slice, at most {MOST_TARGETS} lesions per organ, "
        "the longest first",
    )


def require_possible(targets: Sequence[int]) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` if no CT can have these target lesions in the liver."""
    if wrong := [number for number in targets if number < 1]:
        raise UsageError(f"There is no lesion {wrong[0]}: lesions are numbered from 1.")
    if len(set(targets)) > MOST_TARGETS:
        raise UsageError(f"RECIST 1.1 allows at most {MOST_TARGETS} target lesions in one organ.")


def rounded_mm(mm: float) -> int:
    """A diameter in whole millimeters, as in reports: halves are rounded up."""
    return int(mm + 0.5)
