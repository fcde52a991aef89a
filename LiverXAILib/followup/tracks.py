# SPDX-License-Identifier: Apache-2.0
"""Lesions across all studies: links from one study to the next become tracks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .findings import Appearance, Track
from .matching import Link, Region, match
from .registration import Registration
from .response import growth
from .studies import Study


@dataclass
class Course:
    """A lesion while it is being tracked.

    :param lesions: its numbers by study (from 0); empty where it is not visible.
    :param events: what happened, by study.
    """

    lesions: list[tuple[int, ...]]
    events: list[str]

    @property
    def last_seen(self) -> int:
        """The last study in which it is visible."""
        return max(study for study, numbers in enumerate(self.lesions) if numbers)

    def add(self, study: int, links: Sequence[Link]) -> None:
        """Continue the lesion in all current lesions of `links`."""
        self.lesions[study] = tuple(sorted({*self.lesions[study], *(one for link in links for one in link.current)}))


@dataclass
class Courses:
    """All lesions of a series of studies; complete once :meth:`follow` was called for each study except the first."""

    regions: list[list[Region]]
    courses: list[Course] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.courses = [Course([(region.number,)], ["baseline"]) for region in self.regions[0]]

    def follow(self, study: int, registrations: Sequence[Registration | None]) -> None:
        """Continue all courses in `study`.

        :param registrations: registrations of study 1, 2 … with the one before; the last is that of `study`.
        """
        if registrations[-1] is None:
            self._cannot_follow(study)
            return
        before = study - 1
        current = self.regions[study]
        links = match(self.regions[before], current, registrations[-1].to_prior)
        for course in self.courses:
            lost = course.events[before] == "not matched" and not course.lesions[before]
            course.lesions.append(())
            course.events.append("not matched" if lost else "gone")
        for course in self.courses:
            own = set(course.lesions[before])
            if found := [link for link in links if own & set(link.prior)]:
                course.add(study, found)
                course.events[study] = _event(own, found)
        fresh = [number for link in links if not link.prior for number in link.current]
        fresh = self._seen_again(study, fresh, registrations)
        for number in fresh:
            self.courses.append(Course([()] * study + [(number,)], ["not yet"] * study + ["new"]))

    def _seen_again(self, study: int, fresh: list[int], registrations: Sequence[Registration | None]) -> list[int]:
        """Match new lesions with those that vanished in an earlier study; return those that remain new."""
        for last in range(study - 2, -1, -1):
            path = list(registrations[last:])
            gone = [course for course in self.courses if course.last_seen == last and not course.lesions[study]]
            if not fresh or not gone or None in path:
                continue
            former = {number for course in gone for number in course.lesions[last]}
            links = match(
                [region for region in self.regions[last] if region.number in former],
                [region for region in self.regions[study] if region.number in fresh],
                _through([one for one in path if one is not None]),
            )
            for course in gone:
                found = [link for link in links if link.current and set(course.lesions[last]) & set(link.prior)]
                if found:
                    course.add(study, found)
                    course.events[study] = "seen again"
                    fresh = [number for number in fresh if number not in course.lesions[study]]
        return fresh

    def _cannot_follow(self, study: int) -> None:
        for course in self.courses:
            course.lesions.append(())
            course.events.append("not matched")
        for region in self.regions[study]:
            self.courses.append(Course([()] * study + [(region.number,)], ["not yet"] * study + ["not matched"]))


def _event(own: set[int], links: Sequence[Link]) -> str:
    """The event of a lesion, see :class:`~LiverXAILib.followup.findings.Appearance`.

    :param own: its numbers in the study before; if there are several, these are parts of one lesion, whose rejoining
        is not a merger.
    :param links: all links in which these numbers occur.
    """
    if not any(link.current for link in links):
        return "vanished"
    lasting = [link for link in links if link.current]
    kinds = ["split"] * any(len(link.current) > len(own & set(link.prior)) for link in lasting)
    kinds += ["merged"] * any(set(link.prior) - own for link in lasting)
    return " and ".join(kinds) or "matched"


def _through(path: Sequence[Registration]) -> Callable[[np.ndarray], np.ndarray]:
    """Chain a path of registrations: map points from its last study to the one before the first."""

    def to_first(points: np.ndarray) -> np.ndarray:
        for registration in reversed(path):
            points = registration.to_prior(points)
        return points

    return to_first


def tracks(
    courses: Sequence[Course], studies: Sequence[Study], days: Sequence[float | None], targets: Sequence[int]
) -> tuple[Track, ...]:
    """Turn courses into tracks with measurements.

    :param days: days of each study since the first.
    :param targets: numbers of the target lesions in the first study.
    """
    made = []
    for number, course in enumerate(courses, start=1):
        appearances: list[Appearance] = []
        last: Appearance | None = None
        for index, study in enumerate(studies):
            one = _appearance(course, index, study, last, days)
            appearances.append(one)
            if one.volume_ml is not None:
                last = one
        made.append(Track(number, bool(set(course.lesions[0]) & set(targets)), tuple(appearances)))
    return tuple(made)


def _appearance(
    course: Course, index: int, study: Study, last: Appearance | None, days: Sequence[float | None]
) -> Appearance:
    event, numbers = course.events[index], course.lesions[index]
    if not numbers and event not in ("vanished", "gone"):
        return Appearance(index + 1, (), event)
    pieces = [study.lesion(number) for number in numbers]
    volume = sum(piece.volume_ml for piece in pieces)
    long_mm = sum(piece.long_mm for piece in pieces)
    short_mm = pieces[0].short_mm if len(pieces) == 1 else 0.0 if not pieces else None
    hu = sum(piece.mean_hu * piece.volume_ml for piece in pieces) / volume if pieces else None
    # A merged lesion is measured together with its neighbor, so a change could not be attributed to it.
    if last is None or last.volume_ml is None or last.long_mm is None or event == "gone" or "merged" in event:
        return Appearance(index + 1, numbers, event, volume, long_mm, short_mm, hu)
    start, end = days[last.study - 1], days[index]
    return Appearance(
        index + 1,
        numbers,
        event,
        volume,
        long_mm,
        short_mm,
        hu,
        volume - last.volume_ml,
        100 * (volume - last.volume_ml) / last.volume_ml if last.volume_ml else None,
        long_mm - last.long_mm,
        hu - last.mean_hu if hu is not None and last.mean_hu is not None else None,
        growth(last.volume_ml, volume, None if start is None or end is None else end - start),
    )
