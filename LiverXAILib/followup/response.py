# SPDX-License-Identifier: Apache-2.0
"""Response categories, with the rule and the numbers that led to them.

* RECIST 1.1: Eisenhauer et al., Eur J Cancer 2009;45:228.
* mRECIST: Lencioni and Llovet, Semin Liver Dis 2010;30:52; diameters of the part enhancing in the arterial phase.
* Choi: Choi et al., J Clin Oncol 2007;25:1753; size and attenuation in the portal venous phase.

Criteria that cannot be assessed on a CT of the liver alone are left to the reader: lesions of other organs, lymph
nodes, and whether non-target lesions progress unequivocally.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..text import counted

#: RECIST 1.1: progression from the nadir in percent and mm, partial response from the baseline in percent.
PD_PERCENT, PD_MM, PR_PERCENT = 20.0, 5, 30.0
_ALL_VANISHED = "all lesions of the baseline have vanished, and there is no new one"
#: Choi: changes of size and attenuation in percent of the baseline.
_CHOI_SIZE, _CHOI_HU = 10.0, 15.0
#: A new lesion with a shorter long axis should be confirmed.
SMALL_MM = 10.0

NAMES = {
    "CR": "complete response",
    "PR": "partial response",
    "SD": "stable disease",
    "PD": "progressive disease",
    "NE": "not evaluable",
    "non-CR/non-PD": "neither complete response nor progression",
    "no disease": "no lesions",
}


@dataclass(frozen=True)
class Response:
    """A category and how it was derived. Percentages are of the baseline or the nadir; increases are positive.

    :param criteria: "RECIST 1.1", "mRECIST" or "Choi".
    :param category: a key of :data:`NAMES`.
    :param sum_mm: current sum of the diameters of the target lesions; None if they cannot be measured.
    :param nadir_mm: the smallest earlier sum, including the baseline's.
    :param hu_change_percent: Choi: change of the targets' mean attenuation from the baseline.
    :param rule: the rule that was met, in a sentence with numbers.
    :param remarks: what the reader should know or decide.
    """

    criteria: str
    category: str
    sum_mm: int | None
    baseline_mm: int | None
    nadir_mm: int | None
    from_baseline_percent: float | None
    from_nadir_percent: float | None
    from_nadir_mm: int | None
    hu_change_percent: float | None
    rule: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class LesionStatus:
    """The target lesions and all other lesions of a study.

    :param sums_mm: sum of the targets' diameters in each study up to this one, the baseline first.
    :param targets, targets_left: number of targets in the baseline, and how many of them are still visible.
    :param others, others_left: likewise for the other lesions of the baseline.
    :param new_mm: long axes of lesions that are not in the baseline.
    :param came_back: number of lesions that had vanished and are visible again.
    """

    sums_mm: Sequence[int]
    targets: int
    targets_left: int
    others: int
    others_left: int
    new_mm: Sequence[float] = ()
    came_back: int = 0


def recist_response(status: LesionStatus) -> Response:
    """The RECIST 1.1 category. Percentages are computed from the sums in whole millimeters, as reported."""
    if not status.targets:
        return _without_targets(status)
    baseline, nadir, now = status.sums_mm[0], min(status.sums_mm[:-1]), status.sums_mm[-1]
    grown, shrunk = now - nadir, _percent(now, baseline)
    from_nadir = _percent(now, nadir)
    steps = (
        f"sum of diameters {now} mm, {_signed(shrunk)} % from the baseline ({baseline} mm), "
        f"{_signed(from_nadir)} % and {grown:+d} mm from the nadir ({nadir} mm)".replace("-", "−")
    )
    remarks = _remarks(status)
    if new := _new_lesions(status):
        category, rule = "PD", f"{new}; {steps}"
    elif grown >= PD_MM and (from_nadir is None or from_nadir >= PD_PERCENT):
        category, rule = "PD", f"{steps}: at least 20 % and 5 mm above the nadir"
    elif not status.targets_left and not status.others_left:
        category, rule = "CR", _ALL_VANISHED
    elif not status.targets_left:
        category, rule = "PR", _persist("all target lesions have vanished", status.others_left)
    elif shrunk is not None and shrunk <= -PR_PERCENT:
        category, rule = "PR", f"{steps}: at least 30 % below the baseline"
    else:
        category, rule = "SD", f"{steps}: neither 30 % below the baseline nor 20 % and 5 mm above the nadir"
    return Response("RECIST 1.1", category, now, baseline, nadir, shrunk, from_nadir, grown, None, rule, remarks)


def _without_targets(status: LesionStatus) -> Response:
    if new := _new_lesions(status):
        category, rule = "PD", new
    elif not status.others:
        category, rule = "no disease", "neither the baseline nor this study has a lesion"
    elif not status.others_left:
        category, rule = "CR", _ALL_VANISHED
    else:
        category = "non-CR/non-PD"
        rule = f"{status.others_left} of {status.others} lesions of the baseline persist, none of which is a target"
    return Response("RECIST 1.1", category, None, None, None, None, None, None, None, rule, _remarks(status))


def _new_lesions(status: LesionStatus) -> str:
    found = []
    if count := len(status.new_mm):
        sizes = ", ".join(f"{mm:.0f}" for mm in status.new_mm)
        found.append(f"{counted(count, 'new lesion')} ({sizes} mm)")
    if count := status.came_back:
        found.append(f"{count} lesion{'s' if count > 1 else ''} seen again after having vanished")
    return " and ".join(found)


def _remarks(status: LesionStatus) -> tuple[str, ...]:
    remarks = []
    if status.new_mm and max(status.new_mm) < SMALL_MM:
        remarks.append(
            f"All new lesions are shorter than {SMALL_MM:g} mm: RECIST 1.1 counts only unequivocal new lesions, so a "
            "reader should confirm them, or wait for the next study."
        )
    if status.others_left:
        remarks.append("A reader must decide whether non-target lesions progress unequivocally, which would be PD.")
    return tuple(remarks)


def mrecist_response(sums_mm: Sequence[int], *, new_lesions: int, others_left: int = 0) -> Response:
    """The mRECIST category.

    :param sums_mm: sum of the targets' viable diameters in each study up to this one, the baseline first.
    :param others_left: number of other lesions of the baseline that still enhance.
    """
    baseline, nadir, now = sums_mm[0], min(sums_mm[:-1]), sums_mm[-1]
    shrunk, grown = _percent(now, baseline), _percent(now, nadir)
    steps = (
        f"sum of viable diameters {now} mm, {_signed(shrunk)} % from the baseline ({baseline} mm), "
        f"{_signed(grown)} % from the nadir ({nadir} mm)".replace("-", "−")
    )
    if new_lesions:
        category, rule = "PD", f"{counted(new_lesions, 'new lesion')}; {steps}"
    elif now > nadir and (grown is None or grown >= PD_PERCENT):
        category, rule = "PD", f"{steps}: at least 20 % above the nadir"
    elif now == 0 and others_left:
        category, rule = "PR", _persist("nothing enhances in the target lesions", others_left)
    elif now == 0:
        category, rule = "CR", "nothing enhances in the lesions of the baseline, and there is no new one"
    elif shrunk is not None and shrunk <= -PR_PERCENT:
        category, rule = "PR", f"{steps}: at least 30 % below the baseline"
    else:
        category, rule = "SD", f"{steps}: neither 30 % below the baseline nor 20 % above the nadir"
    return Response("mRECIST", category, now, baseline, nadir, shrunk, grown, now - nadir, None, rule)


def choi_response(sums_mm: Sequence[int], hu: Sequence[float], *, new_lesions: int, others_left: int = 0) -> Response:
    """The category by the Choi criteria.

    :param sums_mm: sum of the targets' diameters at baseline and now.
    :param hu: mean attenuation of the targets at baseline (above 0) and of those still visible now; the latter is not
        used if none are visible.
    :param others_left: number of other lesions of the baseline that are still visible.
    """
    baseline, now = sums_mm
    size = _percent(now, baseline)
    density = None if now == 0 else 100 * (hu[1] - hu[0]) / hu[0]
    steps = f"size {_signed(size)} % from the baseline"
    if density is not None:
        steps = f"size {_signed(size)} %, attenuation {_signed(density)} % from the baseline"
    if new_lesions:
        category, rule = "PD", f"{counted(new_lesions, 'new lesion')}; {steps}"
    elif now == 0 and others_left:
        category, rule = "PR", _persist("all target lesions have vanished", others_left)
    elif now == 0:
        category, rule = "CR", _ALL_VANISHED
    elif (size is not None and size <= -_CHOI_SIZE) or (density is not None and density <= -_CHOI_HU):
        category, rule = "PR", f"{steps}: at least 10 % smaller, or 15 % darker"
    elif size is not None and size >= _CHOI_SIZE:
        category, rule = "PD", f"{steps}: at least 10 % larger, and not 15 % darker"
    else:
        category, rule = "SD", f"{steps}: neither 10 % smaller or larger nor 15 % darker"
    return Response("Choi", category, now, baseline, None, size, None, None, density, rule.replace("-", "−"))


def _persist(what: str, others: int) -> str:
    return f"{what}, {counted(others, 'other lesion persists', 'other lesions persist')}"


def not_evaluable(criteria: str, reason: str) -> Response:
    """A response without an evaluable category, and why."""
    return Response(criteria, "NE", None, None, None, None, None, None, None, reason)


@dataclass(frozen=True)
class Growth:
    """Exponential growth between two volumes.

    :param percent_per_day: specific growth rate, ln(after / before) / days, in percent.
    :param doubling_days: volume doubling time; None if the lesion does not grow.
    """

    percent_per_day: float
    doubling_days: float | None


def growth(before_ml: float, after_ml: float, days: float | None) -> Growth | None:
    """The growth of a lesion; None if the time or a volume is unknown or 0 (Schwartz, Cancer 1961;14:1272)."""
    if not days or days < 0 or before_ml <= 0 or after_ml <= 0:
        return None
    rate = math.log(after_ml / before_ml) / days
    return Growth(100 * rate, math.log(2) / rate if rate > 0 else None)


def _percent(now: float, before: float) -> float | None:
    """The change in percent of `before`; None if `before` is 0."""
    return 100 * (now - before) / before if before else None


def _signed(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:+.0f}"
