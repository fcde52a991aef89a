# SPDX-License-Identifier: Apache-2.0
"""Measurements after a reader's changes: with the patient's size, the targets, and the source of each outline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis import Analysis, Decision
from ..inference.lesions import lesion_at, lesion_components, numbered_candidates, numbered_lesions, same_lesions
from ..inference.segmentation import Segmentation
from ..measure import measure
from ..measure.candidates import measure_rejected
from ..measure.measurements import LesionMeasurements, Measurements
from ..measure.recist import recist
from ..volumes.volume import Volume
from .rejections import candidate_status, rejections


def asked_before(own: Analysis, segmentation: Segmentation, decisions: Sequence[Decision] = ()) -> dict[str, Any]:
    """The arguments of :func:`~LiverXAILib.measure.measure` with which the model's result was measured.

    RECIST targets that were chosen explicitly are identified by their positions in `segmentation`, where lesions may
    have other numbers. If none of them is left, the targets are selected by the rule.

    :param decisions: the last decision that chooses targets takes precedence.
    """
    asked = own.provenance.get("measured_with", {})
    targets = asked.get("recist_targets")
    places = [target["place_lps_mm"] for target in targets or ()]
    places = next((list(one.points_lps_mm) for one in reversed(decisions) if one.kind == "target"), places)
    if places:
        box, pieces = numbered_lesions(segmentation)
        grid = segmentation.labels.grid.cropped(box)
        there = (lesion_at(pieces, grid, tuple(place)) for place in places)
        targets = sorted({number for number in there if number}) or None
    return {"height_cm": asked.get("height_cm"), "weight_kg": asked.get("weight_kg"), "targets": targets}


def measured_with(own: Analysis, known: Mapping[str, Any]) -> Analysis:
    """Measure the model's result with the inputs of its first analysis: `measured_with` in its provenance."""
    if not any(value is not None for value in known.values()):
        return own
    own = dataclasses.replace(own, provenance={**own.provenance, "measured_with": dict(known)})
    again = measure(own.volume, own.segmentation, **asked_before(own, own.segmentation))
    names = ("standard_volume_ml", "standard_volume_ratio", "remnants", "recist")
    changed = {name: getattr(again, name) for name in names}
    return dataclasses.replace(own, measurements=dataclasses.replace(own.measurements, **changed))


def measure_again(
    volume: Volume, segmentation: Segmentation, own: Analysis, decisions: Sequence[Decision]
) -> Measurements:
    """Measure again, with the source of each outline, the status of each candidate, and the rejected lesions."""
    known = own.segmentation, own.measurements
    measured = measure(volume, segmentation, **asked_before(own, segmentation, decisions), known=known)
    sources = _sources(segmentation, own.segmentation)
    lesions = tuple(_with_source(lesion, sources[lesion.number]) for lesion in measured.lesions)
    box, pieces = numbered_candidates(own.segmentation)
    candidates = tuple(
        dataclasses.replace(one, status=candidate_status(pieces == one.number, box, segmentation, decisions))
        for one in own.measurements.candidates
    )
    rejected = [
        (one.box, one.mask, one.decision.who, one.decision.when)
        for one in rejections(decisions, segmentation, own.segmentation)
    ]
    measured = dataclasses.replace(
        measured,
        lesions=lesions,
        candidates=candidates,
        rejected=measure_rejected(volume, own.segmentation, rejected),
    )
    return with_calipers(measured, segmentation, decisions)


def with_calipers(measured: Measurements, segmentation: Segmentation, decisions: Sequence[Decision]) -> Measurements:
    """Replace diameters by those that a reader measured, and update the sum of the targets accordingly.

    :param segmentation: the segmentation that was measured; a decision concerns the lesion that now contains its point.
    :param decisions: only those of kind "measure" are used; the last one for each lesion counts.
    """
    numbers, grid = lesion_components(segmentation), segmentation.labels.grid
    calipers = {}
    for one in decisions:
        if one.kind == "measure" and one.place_lps_mm is not None:
            voxel = grid.nearest_voxel(one.place_lps_mm)
            if (voxel >= 0).all() and (voxel < numbers.shape).all():
                calipers[int(numbers[tuple(voxel)])] = one.points_lps_mm
    if not calipers.keys() & {lesion.number for lesion in measured.lesions}:
        return measured
    changed = []
    for lesion in measured.lesions:
        if lesion.number in calipers:
            a, b, c, d = calipers[lesion.number]
            axial = dataclasses.replace(
                lesion.axial,
                long_mm=math.dist(a, b),
                short_mm=math.dist(c, d),
                long_ends_lps_mm=(a, b),
                short_ends_lps_mm=(c, d),
            )
            words = lesion.source if lesion.source == "reader" else f"{lesion.source}, measured by the reader"
            lesion = dataclasses.replace(lesion, axial=axial, source=words)
        changed.append(lesion)
    thickness = grid.spacing["ijk".index(changed[0].axial.slice_axis)]
    named = measured.recist.targets if measured.recist is not None and measured.recist.chosen_by_reader else None
    lengths = {lesion.number: lesion.axial.long_mm for lesion in changed}
    return dataclasses.replace(measured, lesions=tuple(changed), recist=recist(lengths, thickness, named))


def _with_source(lesion: LesionMeasurements, source: str) -> LesionMeasurements:
    """Set the source of a lesion; the model's reliability does not apply to what a reader outlined."""
    return dataclasses.replace(lesion, source=source, reliability=lesion.reliability if source == "model" else None)


def _sources(segmentation: Segmentation, own: Segmentation) -> dict[int, str]:
    """Who outlined each lesion of `segmentation`, by its number; `own` is the model's."""
    box, pieces = numbered_lesions(segmentation)
    shared = np.unique(pieces[own.mask("tumor", box)]).tolist()
    sources = dict.fromkeys(range(1, int(pieces.max(initial=0)) + 1), "reader")
    sources.update(dict.fromkeys(shared, "model, edited by the reader"))
    sources.update(dict.fromkeys(same_lesions(own, segmentation).values(), "model"))
    return sources
