# SPDX-License-Identifier: Apache-2.0
"""Which response criteria apply to a follow-up study, and the resulting categories."""

from __future__ import annotations

from collections.abc import Sequence

from ..measure.recist import MEASURABLE_MM, rounded_mm
from .findings import Appearance, Track
from .response import LesionStatus, Response, choi_response, mrecist_response, not_evaluable, recist_response
from .studies import Study
from .viable import viable_mm


def target_sum(found: Sequence[Track], study: Study, index: int) -> int | None:
    """The sum of the targets' diameters in whole mm; None if a target could not be tracked, or there is none.

    The lengths of the parts of a split lesion are added; a lesion into which several have merged counts once.
    """
    targets = [track for track in found if track.target]
    if not targets or any(track.appearances[index].event == "not matched" for track in targets):
        return None
    return sum(rounded_mm(study.lesion(number).long_mm) for number in _numbers(targets, index))


def responses(
    found: Sequence[Track], studies: Sequence[Study], sums: Sequence[int | None], index: int
) -> tuple[tuple[Response, ...], dict[str, str]]:
    """The categories of study `index` (from 0), and why other criteria do not apply to it.

    :param sums: sums of the targets' diameters in each study (:func:`target_sum`).
    """
    now = [track.appearances[index] for track in found]
    if any(one.event == "not matched" for one in now):
        reason = "the livers could not be registered, so lesions cannot be matched"
        return (not_evaluable("RECIST 1.1", reason),), dict.fromkeys(("mRECIST", "Choi"), reason)
    targets = [track for track in found if track.target]
    others = [track for track in found if not track.target and track.appearances[0].lesions]
    # Includes lesions that were new in an earlier study: they are new relative to the baseline.
    fresh = [track for track in found if not track.appearances[0].lesions]
    back = [
        track
        for track in found
        if track.appearances[0].lesions and any(one.event == "seen again" for one in track.appearances[: index + 1])
    ]
    known = [value for value in sums[: index + 1] if value is not None]
    status = LesionStatus(
        known,
        len(targets),
        _left(targets, index),
        len(others),
        _left(others, index),
        [one.long_mm or 0.0 for one in _distinct(fresh, index)],
        len(_distinct(back, index)),
    )
    made, left_out = [recist_response(status)], {}
    new = len(status.new_mm) + status.came_back
    for criteria, result in (
        ("mRECIST", _mrecist(targets, others, studies[: index + 1], new)),
        ("Choi", _choi(targets, studies, known, index, new, status.others_left)),
    ):
        if isinstance(result, Response):
            made.append(result)
        else:
            left_out[criteria] = result
    return tuple(made), left_out


def _left(tracks: Sequence[Track], index: int) -> int:
    """The number of lesions that are still visible."""
    return sum(bool(track.appearances[index].lesions) for track in tracks)


def _distinct(tracks: Sequence[Track], index: int) -> list[Appearance]:
    """The appearances of visible lesions; those that have merged count once."""
    return list({one.lesions: one for track in tracks if (one := track.appearances[index]).lesions}.values())


def _numbers(tracks: Sequence[Track], index: int) -> list[int]:
    """The lesions of a study that tracks lead to, each once."""
    return list(dict.fromkeys(number for track in tracks for number in track.appearances[index].lesions))


def _mrecist(targets: Sequence[Track], others: Sequence[Track], studies: Sequence[Study], new: int) -> Response | str:
    """The mRECIST category of the last of `studies`, or why there is none.

    The targets are those whose viable part is measurable in the first study.
    """
    if not targets:
        return "the first study has no target lesion"
    if {study.phase for study in studies} != {"arterial"}:
        return "it requires that every study up to this one is known to be in the arterial phase"
    if any(study.volume is None for study in studies):
        return "it requires the CT of each study up to this one (--images)"
    if any(study.liver_hu is None for study in studies):
        return "a study shows no liver outside the lesions with which to compare them"
    chosen = [track for track in targets if _viable(studies, [track], 0)[0] >= MEASURABLE_MM]
    if not chosen:
        return f"no target lesion enhances over {MEASURABLE_MM:g} mm in the first study"
    last = len(studies) - 1
    sums = [sum(map(rounded_mm, _viable(studies, chosen, index))) for index in range(len(studies))]
    rest = [track for track in (*targets, *others) if track not in chosen]
    enhancing = sum(length > 0 for length in _viable(studies, rest, last)) if not sums[-1] else 0
    return mrecist_response(sums, new_lesions=new, others_left=enhancing)


def _viable(studies: Sequence[Study], tracks: Sequence[Track], index: int) -> list[float]:
    """The viable diameters of lesions in a study that shows them in the arterial phase, in mm."""
    return [viable_mm(studies[index], number) for number in _numbers(tracks, index)]


def _choi(
    targets: Sequence[Track], studies: Sequence[Study], sums: Sequence[int], index: int, new: int, others_left: int
) -> Response | str:
    """The Choi category of study `index`, or why there is none."""
    if not targets:
        return "the first study has no target lesion"
    if {studies[0].phase, studies[index].phase} != {"portal venous"}:
        return "it requires that the first study and this one are known to be in the portal venous phase"
    baseline, now = (_mean_hu(targets, at) for at in (0, index))
    if baseline is None or baseline <= 0:
        return "the mean attenuation of the targets in the first study is not above 0 HU, so no percentage is defined"
    return choi_response([sums[0], sums[-1]], [baseline, now or 0.0], new_lesions=new, others_left=others_left)


def _mean_hu(tracks: Sequence[Track], index: int) -> float | None:
    """The mean HU of lesions that are still visible; those that have merged count once."""
    values = [one.mean_hu for one in _distinct(tracks, index) if one.mean_hu is not None]
    return sum(values) / len(values) if values else None
