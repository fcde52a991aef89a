# SPDX-License-Identifier: Apache-2.0
"""Which slices under one Series Instance UID belong together: those of one scan, reconstructed in one way.

Archives and anonymizers put several scans, phases, kernels or even patients under one UID. Two kinds of values tell
them apart. Some are by definition constant throughout a scan (patient, study, kernel …): slices that differ in them are
never merged. Others may change along an ordinary scan, as the acquisition number does from rotation to rotation of a
step-and-shoot scan: they separate scans only where slices with different values interleave or coincide. The division is
deterministic, so that a part keeps its number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..stack import DUPLICATE_MM, Stack
from .headers import CtSlice

#: Slices that differ in one of these are never merged, even if each differs from all others.
_ALWAYS = ("patient", "kernel", "contrast agent")
#: Slices that differ in one of these are not merged, unless each differs from all others: then an anonymizer gave every
#: file a value of its own.
_UNLESS_RANDOM = ("study", "study date", "frame of reference", "series number", "description")
#: These separate scans where their slices interleave or coincide.
_WHERE_OVERLAPPING = (
    *("temporal position", "cardiac phase", "acquisition", "tube voltage", "slice thickness", "image type"),
)
#: Values that are not shown, because they may identify the patient or mean nothing to a reader.
_ONLY_COUNTED = ("patient", "study", "study date", "frame of reference")
#: Scans that lie one above the other are separated if this many seconds lie between them ...
_PHASE_SECONDS = 30.0
#: ... and each has this many slices, so that a step-and-shoot scan stays whole.
_BLOCK_SLICES = 10
#: A pause between acquisitions is longer than the usual time from one to the next by this factor, and at least this
#: many seconds long.
_PAUSE_FACTOR, _PAUSE_SECONDS = 5.0, 2.0
#: Cosines, and relative pixel sizes, that differ by less than this are the same.
SAME_DIRECTION, SAME_SPACING = 1e-3, 1e-3

_DAY = 86400.0

Arrange = Callable[[Sequence[CtSlice]], "Stack | str"]
_Groups = Mapping[str, list[CtSlice]]


@dataclass(frozen=True, eq=False)
class Part:
    """Slices that belong together, and what distinguishes them from the rest of their series ("kernel B70f" …)."""

    slices: tuple[CtSlice, ...]
    distinction: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def split(slices: Sequence[CtSlice], arrange: Arrange) -> list[Part]:
    """The parts of a series, in an order that depends only on the slices.

    :param arrange: arranges slices to a stack, or returns the reason why they do not form one.
    """
    parts = [Part(tuple(slices))]
    for name in (*_ALWAYS, *_UNLESS_RANDOM):
        parts = [finer for part in parts for finer in _split_by_value(part, name)]
    parts = [finer for part in parts for finer in _split_by_geometry(part, arrange)]
    for name in _WHERE_OVERLAPPING:
        parts = [finer for part in parts for finer in _split_by_overlap(part, name, _grouped(part.slices, name))]
    for name, groups_of in (("acquired", _by_pauses), ("acquired", _by_time), ("phase", _by_passes)):
        parts = [finer for part in parts for finer in _split_by_overlap(part, name, groups_of(part.slices))]
    return [finer for part in parts for finer in _split_by_instance(part)]


def _divided(part: Part, name: str, groups: _Groups) -> list[Part]:
    """One part for each group, in the order of their times, then of their instance numbers."""

    def order(item: tuple[str, list[CtSlice]]) -> tuple[float, tuple[int, int], str]:
        times = [one.time for one in item[1] if one.time is not None]
        return min(times, default=np.inf), min(one.instance for one in item[1]), item[0]

    parts = []
    for number, (value, members) in enumerate(sorted(groups.items(), key=order), start=1):
        shown = f"{number} of {len(groups)}" if name in _ONLY_COUNTED else value or "not given"
        times = [one.time for one in members if one.time is not None]
        if name == "acquisition" and times:
            shown += f" at {_clock(min(times))}"
        parts.append(Part(tuple(members), (*part.distinction, f"{name} {shown}"), part.notes))
    return parts


def _grouped(slices: Sequence[CtSlice], name: str) -> dict[str, list[CtSlice]]:
    """Slices by a value. Slices without it join the others if these agree, except where patients could be mixed."""
    groups: dict[str, list[CtSlice]] = {}
    for one in slices:
        groups.setdefault(one.identity.get(name, ""), []).append(one)
    if len(groups) == 2 and "" in groups and name not in ("patient", "contrast agent", "temporal position"):
        return {next(value for value in groups if value): list(slices)}
    return groups


def _split_by_value(part: Part, name: str) -> list[Part]:
    groups = _grouped(part.slices, name)
    if len(groups) == 1:
        return [part]
    if name in _UNLESS_RANDOM and len(groups) == len(part.slices) > 2:
        note = f"Each slice has its own {name}, which therefore cannot show whether they belong together."
        return [Part(part.slices, part.distinction, (*part.notes, note))]
    return _divided(part, name, groups)


def _split_by_geometry(part: Part, arrange: Arrange) -> list[Part]:
    """Divide where planes, sizes or pixel sizes differ and each group forms a stack: reformations under one UID."""
    if any(one.orientation is None or one.pixel_spacing is None for one in part.slices):
        return [part]
    kinds: list[list[CtSlice]] = []
    for one in part.slices:
        kind = next((kind for kind in kinds if _same_geometry(kind[0], one)), None)
        if kind is None:
            kinds.append(kind := [])
        kind.append(one)
    if len(kinds) == 1 or len(kinds) > len(part.slices) // 2:
        return [part]
    if any(isinstance(arrange(kind), str) for kind in kinds):
        return [part]
    return _divided(part, "geometry", {str(number): kind for number, kind in enumerate(kinds, start=1)})


def _same_geometry(one: CtSlice, other: CtSlice) -> bool:
    if one.orientation is None or other.orientation is None or one.pixel_spacing is None or other.pixel_spacing is None:
        return False
    return (
        one.size == other.size
        and bool(np.abs(one.orientation - other.orientation).max() <= SAME_DIRECTION)
        and bool(np.abs(one.pixel_spacing - other.pixel_spacing).max() <= SAME_SPACING * one.pixel_spacing.max())
    )


def _split_by_overlap(part: Part, name: str, groups: _Groups) -> list[Part]:
    """Divide if slices of different groups interleave or coincide, or belong to different phases."""
    if not 1 < len(groups) < len(part.slices):
        return [part]
    depths = _depths(part.slices)
    if depths is None:
        return [part]
    place = dict(zip(map(id, part.slices), depths, strict=True))
    extents = sorted(
        (
            (min(place[id(one)] for one in members), max(place[id(one)] for one in members), members)
            for members in groups.values()
        ),
        key=lambda extent: extent[:2],
    )
    above = list(itertools.pairwise(extents))
    if any(high[0] - low[1] < DUPLICATE_MM for low, high in above):
        return _divided(part, name, groups)
    blocks = min(len(members) for members in groups.values()) >= _BLOCK_SLICES
    if name in ("acquisition", "acquired") and blocks:
        pauses = [_pause(low[2], high[2]) for low, high in above]
        if any(pause is not None and pause >= _PHASE_SECONDS for pause in pauses):
            return _divided(part, name, groups)
        if None in pauses:
            note = f"{len(groups)} acquisitions that lie one above the other were joined: their times are unknown."
            # Acquisition numbers and times may both lead here.
            return [Part(part.slices, part.distinction, tuple(dict.fromkeys((*part.notes, note))))]
    return [part]


def _depths(slices: Sequence[CtSlice]) -> np.ndarray | None:
    """Positions of slices along the normal of the first, in mm; None if one of them is unknown."""
    orientation = slices[0].orientation
    positions = [one.position for one in slices if one.position is not None]
    if orientation is None or len(positions) < len(slices):
        return None
    return np.array(positions) @ np.cross(orientation[:3], orientation[3:])


def _pause(one: Sequence[CtSlice], other: Sequence[CtSlice]) -> float | None:
    """Seconds between two acquisitions; None if unknown."""
    times = [sorted(slice_.time for slice_ in group if slice_.time is not None) for group in (one, other)]
    if not all(times):
        return None
    return max(times[0][0] - times[1][-1], times[1][0] - times[0][-1], 0.0)


def _by_pauses(slices: Sequence[CtSlice]) -> dict[str, list[CtSlice]]:
    """Slices by acquisition, as far as it follows from pauses between their times."""
    known = [one.time for one in slices if one.time is not None]
    times = sorted(set(known))
    # Of fewer steps than three, none exceeds a multiple of their median.
    if len(times) < 4 or len(known) < len(slices):
        return {}
    steps = np.diff(times)
    starts = [times[0], *np.array(times[1:])[steps > max(_PAUSE_SECONDS, _PAUSE_FACTOR * float(np.median(steps)))]]
    return _at_times(
        [
            (one, starts[int(np.searchsorted(starts, time, side="right")) - 1])
            for one, time in zip(slices, known, strict=True)
        ]
    )


def _by_time(slices: Sequence[CtSlice]) -> dict[str, list[CtSlice]]:
    """Slices by exact time; only if many slices share few times, as in the phases of a scan."""
    groups = _at_times([(one, one.time) for one in slices])
    return groups if min(len(members) for members in groups.values()) > 1 else {}


def _at_times(slices: Sequence[tuple[CtSlice, float | None]]) -> dict[str, list[CtSlice]]:
    """Slices by a time of each, to the second; days are only counted, because dates may identify the patient."""
    days = sorted({time // _DAY for _, time in slices if time is not None})
    groups: dict[str, list[CtSlice]] = {}
    for one, time in slices:
        name = "" if time is None else f"at {_clock(time)}"
        if time is not None and len(days) > 1:
            name += f" on day {days.index(time // _DAY) + 1} of {len(days)}"
        groups.setdefault(name, []).append(one)
    return groups


def _by_passes(slices: Sequence[CtSlice]) -> dict[str, list[CtSlice]]:
    """Slices by their pass through the body, if their instance numbers go through it several times in one direction."""
    depths = _depths(slices)
    if depths is None or len({one.instance for one in slices}) < len(slices):
        return {}
    order = sorted(range(len(slices)), key=lambda index: slices[index].instance)
    forward = np.sign(np.diff(depths[order]))
    starts = np.flatnonzero(forward != np.sign(forward.sum())) + 1
    passes = np.split(np.array(order), starts)
    if min(len(one) for one in passes) < _BLOCK_SLICES:
        return {}
    return {
        f"{number} of {len(passes)}": [slices[index] for index in one] for number, one in enumerate(passes, start=1)
    }


def _split_by_instance(part: Part) -> list[Part]:
    """Divide slices that pass through the same positions several times, one pass after the other."""
    depths = _depths(part.slices)
    if depths is None or len({one.instance for one in part.slices}) < len(part.slices):
        return [part]
    runs: list[dict[int, CtSlice]] = [{}]
    for index in sorted(range(len(part.slices)), key=lambda index: part.slices[index].instance):
        place = round(depths[index] / DUPLICATE_MM)
        if place in runs[-1]:
            runs.append({})
        runs[-1][place] = part.slices[index]
    if len(runs) == 1 or len(runs[0]) < 2 or any(set(run) != set(runs[0]) for run in runs):
        return [part]
    groups = {f"{number} of {len(runs)}": list(run.values()) for number, run in enumerate(runs, start=1)}
    return _divided(part, "phase", groups)


def _clock(seconds: float) -> str:
    """Time of day, HH:MM:SS."""
    whole = int(seconds % _DAY)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
