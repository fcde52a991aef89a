# SPDX-License-Identifier: Apache-2.0
"""After a decision or at another sensitivity, only what has changed is measured, with the results of a full one."""

from __future__ import annotations

import dataclasses
import json
import types

import numpy as np
import pytest
from test_reading import LIVER_MASK, MATRIX, MISSED, ball, graded, place

from LiverXAILib.analysis import Analysis
from LiverXAILib.context import RunContext
from LiverXAILib.errors import UsageError
from LiverXAILib.inference import Segmentation
from LiverXAILib.measure import candidates, diameters, known, measure, measuring, phase
from LiverXAILib.models import LIVER, TUMOR
from LiverXAILib.models.spec import Reliability
from LiverXAILib.options import Options
from LiverXAILib.reading import (
    accept,
    add,
    change_sensitivity,
    decisions,
    dismiss,
    measure_lesion,
    merge,
    refine,
    reject,
    resume,
    split,
    undo,
)
from LiverXAILib.reading import measuring as reading_measuring
from LiverXAILib.volumes.volume import Volume
from LiverXAILib.worker.server import RequestHandler
from LiverXAILib.worker.wire import pack_segmentation


def many() -> Analysis:
    """A model with operating points whose findings peak at different levels; its card has a reliability."""
    volume = graded().volume
    labels, values = LIVER_MASK.astype(np.uint8), np.full(volume.shape, 0.01, np.float16)
    peaks = {(12, 12, 24): 0.995, (12, 34, 16): 0.96, (7, 24, 32): 0.8, (17, 24, 14): 0.6, (16, 34, 30): 0.7}
    for center, peak in peaks.items():
        values[ball(center, 5)] = peak
    # The label map has only a part of a finding, as after refinement, and one that lies next to another.
    values[ball((12, 20, 24), 4)] = 0.75
    labels[(values > 0.9)] = 2
    labels[ball((12, 34, 16), 5) & ~ball((12, 34, 16), 3)] = 1
    scores = {"tumor": Volume(values, MATRIX)}
    names = ("edge_share", "log10_ml")
    card = Reliability(0.0, dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.1), dict.fromkeys(names, 1.0), 2, 1)
    before = graded()
    provenance = {**before.segmentation.provenance, "reliability": dataclasses.asdict(card)}
    segmentation = Segmentation(Volume(labels, MATRIX), (LIVER, TUMOR), scores, {}, provenance)
    one = dataclasses.replace(before, segmentation=segmentation, measurements=measure(volume, segmentation))
    return dataclasses.replace(one, provenance={**one.provenance, "mirrored": ["The image may be mirrored."]})


def without_a_piece_of_liver(one):
    labels = one.segmentation.labels
    return labels.with_array(np.where(ball((12, 44, 24), 8), np.uint8(0), labels.array))


STEPS = {
    "sensitive": lambda one: change_sensitivity(one, "sensitive"),
    "specific": lambda one: change_sensitivity(one, "specific"),
    "0.5": lambda one: change_sensitivity(one, "0.5"),
    "standard": lambda one: change_sensitivity(one, "standard"),
    "reject": lambda one: refine(one, [reject(1)]),
    "accept": lambda one: refine(one, [accept(1)]),
    "dismiss": lambda one: refine(one, [dismiss(1)]),
    "add": lambda one: refine(one, [add(place(MISSED))]),
    "merge": lambda one: refine(one, [merge(1, 2)]),
    "split": lambda one: refine(one, [split(1)]),
    "measure": lambda one: refine(one, [measure_lesion(1, [(0, 0, 0), (9, 0, 0), (0, 0, 0), (0, 7, 0)])]),
    "liver": lambda one: refine(one, labels=without_a_piece_of_liver(one)),
    "resume": lambda one: resume(one.own or one, one.segmentation.labels, one.decisions) if one.own else one,
    "nothing": refine,
    "undo": lambda one: undo(one) if one.decisions else one,
}


@pytest.mark.parametrize("seed", range(3))
def test_measuring_only_what_changed_gives_what_a_full_measurement_gives(seed, monkeypatch):
    """Each step once, in any order, and then other sensitivities after all that was decided."""
    rng, one = np.random.default_rng(seed), many()
    afresh, done = one, []
    ends = ["sensitive", "specific", "sensitive", "standard"]
    for name in [*rng.permutation(list(STEPS)), *ends]:
        if name == "resume":  # it does not measure
            name = "nothing"
            one, afresh = STEPS["resume"](one), STEPS["resume"](afresh)
        done.append(str(name))
        try:
            one = STEPS[name](one)
        except UsageError:
            continue
        with monkeypatch.context() as full:
            for module in (measuring, candidates):
                full.setattr(module, "measured_before", lambda *_about: {})
            full.setattr(measuring, "_LAST_LIVERS", {})
            full.setattr(phase, "_SCANS", {})
            full.setattr(diameters, "_axial_diameters", diameters._axial_diameters.__wrapped__)
            afresh = STEPS[name](afresh)
        then = {x.when for x in one.decisions} | {x.when for x in afresh.decisions}
        assert without(one.measurements, then) == without(afresh.measurements, then), done


def without(measurements, times):
    """The measurements as text, without the times of decisions."""
    text = json.dumps(measurements.to_dict(), sort_keys=True)
    for time in times:
        text = text.replace(time, "")
    return text


def test_at_another_sensitivity_only_what_changed_is_measured(monkeypatch):
    one, measured = many(), []
    found = measuring.feret_diameter_mm
    monkeypatch.setattr(measuring, "feret_diameter_mm", lambda *args: measured.append(1) or found(*args))
    before = one.measurements.lesion_count
    sensitive = change_sensitivity(one, "sensitive")
    assert len(measured) == sensitive.measurements.lesion_count - before > 0
    measured.clear()
    change_sensitivity(sensitive, "specific")
    assert measured == []
    mine = refine(sensitive, [add(place(MISSED))])
    assert len(measured) == 1
    measured.clear()
    refine(mine, [reject(1)])
    assert measured == [], "what the reader added has not changed"


def test_at_another_sensitivity_the_livers_of_model_and_reader_are_measured_once(monkeypatch):
    measured, position = [], measuring.liver_position
    monkeypatch.setattr(measuring, "liver_position", lambda *args: measured.append(1) or position(*args))
    one = many()
    one = dataclasses.replace(one, volume=Volume(one.volume.array.copy(), MATRIX))  # not measured before
    one = refine(one, labels=without_a_piece_of_liver(one))
    for word in ("sensitive", "specific", "standard"):
        one = change_sensitivity(one, word)
    assert len(measured) == 2


def test_findings_are_looked_for_only_in_as_many_earlier_results_as_needed(monkeypatch):
    one, compared, same = change_sensitivity(many(), "sensitive"), [], known.same_numbers
    one = refine(one, [reject(1)])
    monkeypatch.setattr(known, "same_numbers", lambda *args: compared.append(1) or same(*args))
    refine(one, [reject(1)])
    assert len(compared) == 1, "the model's own result has all that are left"
    one = refine(one, [add(place(MISSED))])
    compared.clear()
    refine(one, [reject(next(x.number for x in one.measurements.lesions if x.source == "model"))])
    assert len(compared) == 2


def test_a_move_of_the_slider_in_a_new_session_measures_both_results_once(tmp_path, monkeypatch):
    one, measured = refine(many(), [reject(1)]), []
    model, own = types.SimpleNamespace(spec=one.model), many()
    handler = RequestHandler(tmp_path, None)
    handler._volume, handler._model = ("ct", own.volume), ("", model)
    monkeypatch.setattr(Options, "analyze", lambda *_args: own)
    monkeypatch.setattr("LiverXAILib.worker.server.pack_analysis", lambda analysis, _folder: analysis)
    for module in (decisions, reading_measuring):
        full = module.measure
        monkeypatch.setattr(module, "measure", lambda *a, f=full, **named: measured.append(1) or f(*a, **named))
    about = {"earlier": [one.to_dict() for one in one.decisions], "base": "", "edited": False, "left": "", "who": "me"}
    found = handler._refine(
        image={"token": "ct"},
        labels={"token": "new", **pack_segmentation(one.segmentation, tmp_path)},
        decisions=[],
        **about,
        sensitivity="sensitive",
        sensitivity_before="standard",
        patient={},
        model="",
        device="cpu",
        context=RunContext(),
    )
    assert len(measured) == 2
    assert without(found.measurements, ()) == without(change_sensitivity(one, "sensitive").measurements, ())


def test_a_doubt_about_the_image_stays_at_another_sensitivity():
    one = many()
    for result in (change_sensitivity(one, "sensitive"), change_sensitivity(refine(one, [reject(1)]), "specific")):
        assert result.measurements.implausible_because[0] == "The image may be mirrored."
        assert "Implausible: The image may be mirrored." in result.provenance["warnings"]


def test_diameters_of_a_reader_are_not_taken_for_measured_ones():
    added = refine(many(), [add(place(MISSED))])
    (lesion,) = (x for x in added.measurements.lesions if x.source == "reader")
    ends = [(0, 0, 0), (9, 0, 0), (0, 0, 0), (0, 7, 0)]
    mine = refine(added, [measure_lesion(lesion.number, ends)])
    assert mine.measurements.lesions[lesion.number - 1].axial.long_mm == 9
    assert undo(mine).measurements.lesions == added.measurements.lesions


def test_a_lesion_that_the_reader_accepted_has_a_reliability_where_the_model_finds_it():
    one = refine(many(), [accept(1)])
    one = refine(one, labels=without_a_piece_of_liver(one))  # so that the model's own measurements do not apply
    accepted = next(x for x in one.measurements.lesions if x.source == "reader")
    sensitive = change_sensitivity(one, "sensitive")
    afresh = measure(one.volume, sensitive.segmentation)
    (number,) = (x.number for x in afresh.lesions if x.centroid_lps_mm == accepted.centroid_lps_mm)
    assert sensitive.measurements.lesions[number - 1].source == "model"
    assert sensitive.measurements.lesions[number - 1].reliability == afresh.lesions[number - 1].reliability is not None
