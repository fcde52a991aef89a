# SPDX-License-Identifier: Apache-2.0
"""Decisions by the numbers of a list that the reader has seen, about a label map that was edited since."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis import Analysis, Decision
from ..errors import UsageError
from ..inference.lesions import Point, lesion_at, numbered_lesions
from ..text import place_text
from .findings import Findings, missing

#: What the numbers of each kind of decision refer to.
_ABOUT = {
    "accept": "candidate",
    "dismiss": "candidate",
    "restore": "rejected lesion",
    **dict.fromkeys(("reject", "merge", "split", "measure", "target"), "lesion"),
}

#: For each kind of finding ("lesion", "candidate", "rejected lesion"), by number: its place (LPS mm), which is the
#: centroid of a lesion or a voxel of another finding; and points at the ends of a lesion, where they are known.
Listed = Mapping[str, Mapping[int, Sequence[Point]]]


def listed_in(measurements: Mapping[str, Any]) -> Listed:
    """The findings in the content of ``measurements.json``.

    :raises KeyError, TypeError: the content is incomplete.
    """
    lesions = {
        one["number"]: _points(one["centroid_lps_mm"], one["source"], one["axial"]) for one in measurements["lesions"]
    }
    others = {
        what: {one["number"]: _points(one["place_lps_mm"]) for one in measurements[key]}
        for what, key in (("candidate", "candidates"), ("rejected lesion", "rejected"))
    }
    return {"lesion": lesions, **others}


def listed_in_table(
    rows: Sequence[Mapping[str, str]], axes: Mapping[str, Mapping[str, Any]], moved: np.ndarray
) -> Listed:
    """The findings in the table of measurements in Slicer.

    :param rows: the cells as text, by column (:data:`LiverXAILib.measure.measurements.COLUMNS`).
    :param axes: the axial diameters of each lesion, JSON-ready, by its number as text.
    :param moved: 4x4 matrix, LPS mm, from positions in the table to the current ones.
    """
    found: dict[str, dict[int, Sequence[Point]]] = {"lesion": {}, "candidate": {}, "rejected lesion": {}}
    for row in rows:
        if row["structure"] in found:
            place = [float(row[f"centroid_{axis}_mm"]) for axis in "lps"]
            points = _points(place, row["source"], axes.get(row["number"]))
            found[row["structure"]][int(row["number"])] = [_point(moved[:3, :3] @ p + moved[:3, 3]) for p in points]
    return found


def _points(place: Sequence[float], source: str = "", axial: Mapping[str, Any] | None = None) -> list[Point]:
    # The ends that a reader placed need not be in the lesion, and "reader" does not say who placed them.
    has_ends = axial is not None and source in ("model", "model, edited by the reader")
    ends = axial["long_ends_lps_mm"] if axial is not None and has_ends else []
    return [_point(one) for one in (place, *ends)]


def _point(values: Sequence[float] | np.ndarray) -> Point:
    x, y, z = values
    return float(x), float(y), float(z)


def require_listed(decisions: Sequence[Decision], listed: Listed) -> None:
    """Refuse decisions about numbers that a list does not have.

    :raises LiverXAILib.errors.UsageError: there is no such finding.
    """
    for decision in decisions:
        for number in decision.numbers:
            what = _ABOUT[decision.kind]
            if number not in listed[what]:
                raise UsageError(missing(what, number, len(listed[what])))


def as_listed(decisions: Sequence[Decision], listed: Listed, analysis: Analysis) -> list[Decision]:
    """Add to each decision the places of the findings with its numbers, so that :func:`refine` goes by these.

    :param analysis: the current state, to which the decisions will be applied.
    :raises LiverXAILib.errors.UsageError: a lesion is no longer there, or is no longer the only one at its place.
    """
    require_listed(decisions, listed)
    grid = analysis.segmentation.labels.grid
    lesions = Findings.numbered("lesion", grid, *numbered_lesions(analysis.segmentation))
    placed = []
    for decision in decisions:
        if decision.numbers:
            what = _ABOUT[decision.kind]
            if what == "lesion":
                for number in decision.numbers:
                    if not lesions.has_centroid(number, listed[what][number][0]):  # otherwise, it has not changed
                        _require_one(number, listed[what], analysis)
            places = tuple(listed[what][number][0] for number in decision.numbers)
            decision = dataclasses.replace(decision, place_lps_mm=places[0])
            if decision.kind in ("merge", "target"):
                decision = dataclasses.replace(decision, points_lps_mm=places)
        placed.append(decision)
    return placed


def _require_one(number: int, lesions: Mapping[int, Sequence[Point]], analysis: Analysis) -> None:
    """Refuse a lesion that is gone, divided, or joined to another one since it was listed."""
    box, pieces = numbered_lesions(analysis.segmentation)
    grid = analysis.segmentation.labels.grid.cropped(box)
    current = [found for point in lesions[number] if (found := lesion_at(pieces, grid, point))]
    place = place_text(lesions[number][0])
    advice = (
        "Measure the edited label map first ('liverxai refine' without a decision, *Measure again* in 3D Slicer), and "
        "use the numbers of the new list."
    )
    if not current:
        raise UsageError(f"Lesion {number}, at {place}, was erased from the label map since it was measured. {advice}")
    if len(set(current)) > 1:
        raise UsageError(f"Lesion {number}, at {place}, was divided since it was measured. {advice}")
    for other, (center, *_) in lesions.items():
        if other != number and lesion_at(pieces, grid, center) in current:
            raise UsageError(f"Lesions {number} and {other} were joined since they were measured. {advice}")
