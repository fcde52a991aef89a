# SPDX-License-Identifier: Apache-2.0
"""Measurements after a reader's changes: with the patient's size, the targets, and the source of each outline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis import Analysis, Decision
from ..inference.lesions import Point, lesion_at, numbered_lesions, same_lesions
from ..inference.segmentation import Segmentation
from ..measure import measure
from ..measure.candidates import measure_rejected
from ..measure.lesions import slice_instance_number
from ..measure.measurements import LesionMeasurements, Measurements
from ..measure.recist import recist
from ..volumes.volume import Volume
from .packing import unpack_mask
from .rejections import candidate_statuses, rejections

#: The remark on diameters that no longer apply.
_OUTDATED = (
    "no longer applies: the lesion does not have the outline that was measured, so it was measured automatically"
)

#: What a result is measured with, besides the image and the labels, unless it is given.
_NO_INPUTS: Mapping[str, Any] = {"height_cm": None, "weight_kg": None, "recist_targets": None}


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
    known = {**_NO_INPUTS, **known}
    if known == _inputs(own):
        return own
    own = dataclasses.replace(own, provenance={**own.provenance, "measured_with": known})
    again = measure(
        own.volume,
        own.segmentation,
        **asked_before(own, own.segmentation),
        known=[(own.segmentation, own.measurements)],
        candidates=own.measurements.candidates,
    )
    names = ("standard_volume_ml", "standard_volume_ratio", "remnants", "recist")
    changed = {name: getattr(again, name) for name in names}
    return dataclasses.replace(own, measurements=dataclasses.replace(own.measurements, **changed))


def with_outlines(own: Analysis, labels: Volume) -> Analysis:
    """The model's result with the label map that was stored with it, measured again."""
    segmentation = dataclasses.replace(own.segmentation, labels=labels)
    known = [(own.segmentation, own.measurements)]
    measured = measure(own.volume, segmentation, **asked_before(own, segmentation), known=known)
    measured = measured.doubted(own.provenance.get("mirrored", ()))
    recorded = {
        **own.provenance,
        "model_labels_sha256": segmentation.checksum,
        "warnings": measured.warnings(own.provenance.get("warnings", ())),
    }
    return dataclasses.replace(own, segmentation=segmentation, measurements=measured, provenance=recorded)


def with_patient_size(analysis: Analysis, height_cm: float | None, weight_kg: float | None) -> Analysis:
    """Measure a result again if the patient's height or weight is not that of its measurements."""
    own = analysis.own or analysis
    known = {**_inputs(own), "height_cm": height_cm, "weight_kg": weight_kg}
    if known == _inputs(own):
        return analysis
    own = measured_with(own, known)
    if analysis.own is None:
        return own
    measurements = measure_again(analysis, analysis.segmentation, own, analysis.decisions)
    provenance = {**analysis.provenance, "measured_with": known}
    return dataclasses.replace(analysis, own=own, measurements=measurements, provenance=provenance)


def _inputs(own: Analysis) -> dict[str, Any]:
    """What the model's result was measured with, besides the image and the labels."""
    return {**_NO_INPUTS, **own.provenance.get("measured_with", {})}


def measure_again(
    analysis: Analysis, segmentation: Segmentation, own: Analysis, decisions: Sequence[Decision]
) -> Measurements:
    """Measure again, with the source of each outline, the status of each candidate, and the rejected lesions.

    :param analysis: the state before.
    :param segmentation: the changed segmentation.
    :param own: the model's own result.
    :param decisions: all decisions that led to `segmentation`.
    """
    volume = analysis.volume
    known = [(own.segmentation, own.measurements), *_measured_automatically(analysis)]
    candidates = own.measurements.candidates
    asked = asked_before(own, segmentation, decisions)
    measured = measure(volume, segmentation, **asked, known=known, candidates=candidates)
    measured = measured.doubted(own.provenance.get("mirrored", ()))  # that is about the image, not the outlines
    sources = _sources(segmentation, own.segmentation)
    lesions = tuple(_with_source(lesion, sources[lesion.number]) for lesion in measured.lesions)
    statuses = candidate_statuses(segmentation, own.segmentation, decisions)
    candidates = tuple(dataclasses.replace(one, status=statuses[one.number]) for one in candidates)
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


def _measured_automatically(analysis: Analysis) -> list[tuple[Segmentation, Measurements]]:
    """The measurements of an analysis that a reader has changed, without lesions whose diameters the reader measured.

    None of one that was only resumed: its measurements are those of the model's own segmentation.
    """
    if analysis.own is None or analysis.measurements is analysis.own.measurements:
        return []
    segmentation, measured = analysis.segmentation, analysis.measurements
    by_reader = {_lesion_measured(one, segmentation) for one in analysis.decisions if one.kind == "measure"}
    lesions = tuple(lesion for lesion in measured.lesions if lesion.number not in by_reader)
    return [(segmentation, dataclasses.replace(measured, lesions=lesions))]


def with_calipers(measured: Measurements, segmentation: Segmentation, decisions: Sequence[Decision]) -> Measurements:
    """Replace diameters by those that a reader measured, and update the sum of the targets accordingly.

    :param segmentation: the segmentation that was measured.
    :param decisions: those of kind "measure" are used if the lesion still has the outline that the reader measured; the
        last one for each lesion counts.
    """
    calipers = {_lesion_measured(one, segmentation): one.points_lps_mm for one in decisions if one.kind == "measure"}
    if not calipers.keys() & {lesion.number for lesion in measured.lesions}:
        return measured
    changed = []
    for lesion in measured.lesions:
        if lesion.number in calipers:
            lesion = _with_diameters(lesion, calipers[lesion.number], segmentation.labels)
        changed.append(lesion)
    thickness = segmentation.labels.grid.spacing["ijk".index(changed[0].axial.slice_axis)]
    named = measured.recist.targets if measured.recist is not None and measured.recist.chosen_by_reader else None
    lengths = {lesion.number: lesion.axial.long_mm for lesion in changed}
    return dataclasses.replace(measured, lesions=tuple(changed), recist=recist(lengths, thickness, named))


def _with_diameters(lesion: LesionMeasurements, ends: Sequence[Point], labels: Volume) -> LesionMeasurements:
    """A lesion with diameters measured by a reader, who may have measured in another slice than the longest one.

    :param ends: of the long axis, then of the short axis, LPS mm. The slice is that of the middle of the long axis.
    """
    a, b, c, d = ends
    axis, grid = lesion.axial.slice_axis, labels.grid
    voxel = grid.nearest_voxel(tuple((np.array(a) + b) / 2))[2 - "ijk".index(axis)]
    index = int(np.clip(voxel, 0, grid.shape[2 - "ijk".index(axis)] - 1))
    axial = dataclasses.replace(
        lesion.axial,
        long_mm=math.dist(a, b),
        short_mm=math.dist(c, d),
        long_ends_lps_mm=(a, b),
        short_ends_lps_mm=(c, d),
        slice_index=index,
    )
    words = lesion.source if lesion.source == "reader" else f"{lesion.source}, measured by the reader"
    instance = slice_instance_number(labels, axis, index)
    return dataclasses.replace(lesion, axial=axial, source=words, instance_number=instance)


def with_remarks(decisions: Sequence[Decision], segmentation: Segmentation) -> tuple[Decision, ...]:
    """The decisions; those of kind "measure" whose lesion has another outline in `segmentation` say so."""
    return tuple(
        dataclasses.replace(one, remark="" if _lesion_measured(one, segmentation) else _OUTDATED)
        if one.kind == "measure"
        else one
        for one in decisions
    )


def _lesion_measured(decision: Decision, segmentation: Segmentation) -> int:
    """The number of the lesion with exactly the voxels of a decision; 0 if there is none."""
    where, voxels = unpack_mask(decision.voxels)
    box, pieces = numbered_lesions(segmentation)
    if not voxels.any() or where.intersection(box) != where:
        return 0
    inside = pieces[where.relative_to(box)]
    number = int(inside[voxels][0])
    is_same = (inside == number) == voxels
    return number if is_same.all() and np.count_nonzero(pieces == number) == np.count_nonzero(voxels) else 0


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
