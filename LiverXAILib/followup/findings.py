# SPDX-License-Identifier: Apache-2.0
"""The findings of a comparison, JSON-ready; the name of each quantity includes its unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..text import counted
from .registration import Quality
from .response import Growth, Response

if TYPE_CHECKING:
    from .registration import Registration
    from .studies import Study

#: Version of ``comparison.json``; the schema is ``LiverXAILib/followup/comparison.schema.json``.
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class TimePoint:
    """One study.

    :param date: ISO 8601; None: unknown.
    :param days: days since the first study; None: unknown.
    :param phase: contrast phase; None if uncertain.
    :param target_sum_mm: sum of the target lesions' diameters; None if there are none or one could not be tracked.
    """

    number: int
    date: str | None
    days: float | None
    phase: str | None
    liver_ml: float
    lesions_ml: float
    lesion_count: int
    target_sum_mm: int | None


@dataclass(frozen=True)
class Step:
    """How a study was registered with the one before.

    :param refused_because: why its lesions were not matched; "" if they were matched.
    :param quality: None if the registration failed.
    """

    study: int
    quality: Quality | None
    refused_because: str = ""


@dataclass(frozen=True)
class Appearance:
    """A lesion in one study.

    :param lesions: the lesion's numbers in this study; several after it has split; shared with other tracks after it
        has merged.
    :param event: "baseline", "new", "matched", "split", "merged", "split and merged", "vanished", "seen again",
        "not yet", "gone" (vanished before) or "not matched" (registration refused).
    :param volume_ml: total volume of all its parts; 0, as are the diameters, if it has vanished. `long_mm` is the sum
        of the long axes of its parts.
    :param volume_change_ml: this and the other changes are relative to the last earlier study in which the lesion was
        tracked; None if it has merged with another one.
    :param growth: growth since then, if the days in between are known.
    """

    study: int
    lesions: tuple[int, ...]
    event: str
    volume_ml: float | None = None
    long_mm: float | None = None
    short_mm: float | None = None
    mean_hu: float | None = None
    volume_change_ml: float | None = None
    volume_change_percent: float | None = None
    long_change_mm: float | None = None
    hu_change: float | None = None
    growth: Growth | None = None


@dataclass(frozen=True)
class Track:
    """One lesion across all studies.

    :param target: whether it is a RECIST target lesion of the baseline.
    """

    number: int
    target: bool
    appearances: tuple[Appearance, ...]


@dataclass(frozen=True)
class Findings:
    """All findings of a comparison.

    :param steps: one for each study except the first.
    :param responses: for each study except the first: by RECIST 1.1, and by mRECIST and Choi where they apply.
    :param criteria_left_out: for each study except the first: the criteria that do not apply, and why.
    :param remarks: sentences with information for the reader.
    """

    studies: tuple[TimePoint, ...]
    steps: tuple[Step, ...]
    tracks: tuple[Track, ...]
    responses: tuple[tuple[Response, ...], ...]
    criteria_left_out: tuple[Mapping[str, str], ...] = ()
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All findings, JSON-ready."""
        notice = "For research use only. Not for diagnosis or treatment."
        return {"schema_version": SCHEMA_VERSION, "notice": notice, **dataclasses.asdict(self)}

    def rows(self) -> list[dict[str, Any]]:
        """One row for each lesion in each study, with the columns :data:`COLUMNS`."""
        rows = []
        for track in self.tracks:
            for one in track.appearances:
                point = self.studies[one.study - 1]
                values = {name: value for name, value in dataclasses.asdict(one).items() if name in COLUMNS}
                rate = one.growth
                rows.append(
                    values
                    | {
                        "track": track.number,
                        "target": track.target,
                        "date": point.date,
                        "days": point.days,
                        "lesions": " ".join(map(str, one.lesions)),
                        "growth_percent_per_day": None if rate is None else rate.percent_per_day,
                        "doubling_days": None if rate is None else rate.doubling_days,
                    }
                )
        return rows

    def __repr__(self) -> str:
        return f"Findings({counted(len(self.studies), 'study', 'studies')}, {counted(len(self.tracks), 'track')})"

    def summary(self) -> str:
        """The main findings as a few lines of text."""
        lines = []
        for point in self.studies:
            when = point.date or ("" if point.days is None else f"day {point.days:g}")
            total = "" if point.target_sum_mm is None else f", targets {point.target_sum_mm} mm"
            found = f"{counted(point.lesion_count, 'lesion')}, {point.lesions_ml:.1f} ml"
            lines.append(f"Study {point.number}  {when:10}  {found}{total}")
        for step in self.steps:
            if step.refused_because:
                lines.append(f"Study {step.study}: not matched. {step.refused_because}")
        for track in self.tracks:
            course = " → ".join(f"{one.long_mm:.0f} mm" if one.lesions and one.long_mm else one.event
                                for one in track.appearances)  # fmt: skip
            lines.append(f"  Lesion {track.number:>2}{' (target)' if track.target else ''}: {course}")
        for number, responses in enumerate(self.responses, start=2):
            lines += [f"Study {number}  {one.criteria}: {one.category}, {one.rule}" for one in responses]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The findings, and the data from which they were derived.

    :param registrations: registrations of each study with the one before; None where refused.
    """

    findings: Findings
    studies: tuple[Study, ...]
    registrations: tuple[Registration | None, ...]
    case_label: str | None = None

    def __repr__(self) -> str:
        return f"Comparison({self.findings!r})"


#: The columns of :meth:`Findings.rows`.
COLUMNS = (
    "track",
    "target",
    "study",
    "date",
    "days",
    "lesions",
    "event",
    "volume_ml",
    "long_mm",
    "short_mm",
    "mean_hu",
    "volume_change_ml",
    "volume_change_percent",
    "long_change_mm",
    "hu_change",
    "growth_percent_per_day",
    "doubling_days",
)
