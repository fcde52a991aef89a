# SPDX-License-Identifier: Apache-2.0
"""Pictures of a comparison: each lesion in all studies at corresponding slices, and the sum of diameters over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from ..report.canvas import Line, Picture
from ..report.pictures import PLANES, WINDOW_HU, View, draw_letters, draw_outline, draw_scale_bar
from .findings import Comparison, Track
from .response import PD_MM, PD_PERCENT, PR_PERCENT
from .studies import Study

#: The maximum number of lesions shown, the largest first.
MAX_TRACKS = 8
_LEAST_FIELD_MM, _AROUND, _PIXELS = 80.0, 2.2, 320


@dataclass(frozen=True, eq=False)
class Row:
    """Pictures of a lesion in all studies, at the same scale; None where its position or the CT is unknown."""

    track: Track
    pictures: tuple[Picture | None, ...]


def render_tracks(comparison: Comparison) -> list[Row]:
    """Pictures of the largest lesions, in the order of their numbers; empty if no study has a CT."""
    if all(study.volume is None for study in comparison.studies):
        return []
    largest = sorted(comparison.findings.tracks, key=_largest_ml, reverse=True)[:MAX_TRACKS]
    return [_row(comparison, track) for track in sorted(largest, key=lambda track: track.number)]


def _largest_ml(track: Track) -> float:
    return max((one.volume_ml or 0.0 for one in track.appearances), default=0.0)


def _row(comparison: Comparison, track: Track) -> Row:
    places = _places(comparison, track)
    longest = max((one.long_mm or 0.0 for one in track.appearances), default=0.0)
    field = max(_LEAST_FIELD_MM, _AROUND * longest)
    pictures: list[Picture | None] = []
    for study, place, one in zip(comparison.studies, places, track.appearances, strict=True):
        if study.volume is None or place is None:
            pictures.append(None)
            continue
        ends = [np.array(study.lesion(number).long_ends_lps_mm) for number in one.lesions]
        near = [pair for pair in ends if abs(float(pair[:, 2].mean() - place[2])) <= study.volume.spacing[2]]
        pictures.append(_render(study, place, field, near))
    return Row(track, tuple(pictures))


def _render(study: Study, place: np.ndarray, field_mm: float, calipers: list[np.ndarray]) -> Picture:
    """Render the axial slice through a point (LPS mm) with outlines, and calipers given by their ends (2, 3)."""
    assert study.volume is not None
    axial = PLANES[0]
    middle = axial.flat(place)
    view = View(axial, place, middle - field_mm / 2, middle + field_mm / 2, field_mm / _PIXELS)
    picture = view.shown(study.volume, WINDOW_HU)
    for spec in study.segmentation.specs:
        draw_outline(picture, view, study.segmentation, spec)
    for ends in calipers:
        picture.lines.append(Line(axial.flat(ends), width=2.3))
    draw_letters(picture, view)
    draw_scale_bar(picture)
    return picture


def _places(comparison: Comparison, track: Track) -> list[np.ndarray | None]:
    """The point (LPS mm) at which each study shows a lesion.

    This is the middle of its long axis, or, where it is not visible, the position mapped from the nearest study in
    time that shows it.
    """
    places: list[np.ndarray | None] = [None] * len(comparison.studies)
    for index, one in enumerate(track.appearances):
        if one.lesions:
            ends = comparison.studies[index].lesion(one.lesions[0]).long_ends_lps_mm
            places[index] = np.array(ends).mean(axis=0)
    seen = [place is not None for place in places]
    for index in range(1, len(places)):
        registration, before = comparison.registrations[index - 1], places[index - 1]
        if not seen[index] and before is not None and registration is not None:
            places[index] = registration.to_current(before[None])[0]
    for index in range(len(places) - 2, -1, -1):
        registration, after = comparison.registrations[index], places[index + 1]
        if places[index] is None and after is not None and registration is not None:
            places[index] = registration.to_prior(after[None])[0]
    return places


def render_course(comparison: Comparison) -> Figure | None:
    """Plot the sum of the targets' diameters over time, with the limits of RECIST 1.1; None without targets."""
    points = [point for point in comparison.findings.studies if point.target_sum_mm is not None]
    if len(points) < 2 or not points[0].target_sum_mm:
        return None
    dated = all(point.days is not None for point in points)
    at = [float(point.days if dated and point.days is not None else point.number) for point in points]
    sums = [float(point.target_sum_mm or 0) for point in points]
    nadirs = np.minimum.accumulate(sums)[:-1]
    progression = [max((1 + PD_PERCENT / 100) * low, low + PD_MM) for low in nadirs]
    figure = Figure(figsize=(5.2, 2.6), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.plot(at, sums, "o-", color="#1f5f8b", linewidth=1.8, label="sum of diameters")
    response = (1 - PR_PERCENT / 100) * sums[0]
    axes.axhline(response, color="#1a7f37", linestyle="--", linewidth=1.2, label=f"{PR_PERCENT:g} % below the baseline")
    axes.plot(at[1:], progression, "_", color="#b2182b", markersize=18, markeredgewidth=2,
              label=f"{PD_PERCENT:g} % and {PD_MM} mm above the nadir")  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel("days since the first study" if dated else "study", fontsize=8)
    axes.set_ylabel("mm", fontsize=8)
    if not dated:
        axes.set_xticks(at)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7.5)
    return figure
