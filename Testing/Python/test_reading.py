# SPDX-License-Identifier: Apache-2.0
"""The reader's decisions: candidates, accept, reject, add, merge, split; the model's own result is kept."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import shutil
from functools import cache

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

import LiverXAILib as lx
from LiverXAILib.analysis import Analysis, Decision
from LiverXAILib.errors import UsageError
from LiverXAILib.explain import Target
from LiverXAILib.explain.explanation import Explanation
from LiverXAILib.inference import Segmentation
from LiverXAILib.inference.lesions import (
    candidate_components,
    lesion_components,
    lesion_count,
    lesion_mask,
    same_lesions,
)
from LiverXAILib.inference.sensitivity import at_sensitivity, choose_point
from LiverXAILib.measure import measure
from LiverXAILib.models import LIVER, TUMOR, ModelSpec, registry
from LiverXAILib.models.spec import OperatingPoint, Reliability
from LiverXAILib.options import Options
from LiverXAILib.reading import (
    accept,
    add,
    applying,
    change_sensitivity,
    choose_targets,
    dismiss,
    exclude,
    include,
    measure_lesion,
    merge,
    outline_lesion,
    refine,
    reject,
    restore,
    resume,
    split,
    with_patient_size,
)
from LiverXAILib.report import write_report
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.volume import Volume

#: Oblique, with voxels of 2 × 2 × 3 mm.
MATRIX = np.array([[1.6, -1.2, 0, -40], [1.2, 1.6, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1.0]])
SHAPE = (24, 48, 48)
NOISE = np.random.default_rng(3).normal(0, 6, SHAPE)


def ball(center, radius_mm):
    """The voxels within a radius of the voxel `center` (k, j, i)."""
    k, j, i = np.indices(SHAPE)
    mm = (3 * (k - center[0])) ** 2 + (2 * (j - center[1])) ** 2 + (2 * (i - center[2])) ** 2
    return mm <= radius_mm**2


LIVER_MASK = ball((12, 24, 24), 34)
COUNTED, SECOND = ball((12, 14, 24), 7), ball((12, 34, 18), 5)
UNSURE, MISSED = ball((8, 24, 30), 6), ball((16, 26, 24), 6)


def analysis(probability=True):
    """A liver with two lesions, a candidate, and a dark lesion that the model has missed completely."""
    volume, spec, segmentation, measurements = analyzed_once(probability)
    segmentation = dataclasses.replace(segmentation, provenance=copy.deepcopy(segmentation.provenance))
    return Analysis(volume, spec, segmentation, (), measurements, {"warnings": []})


@cache
def analyzed_once(probability):
    """The data shared by the analyses of all tests. Only provenance is mutable, and each analysis has a copy."""
    hu = np.where(LIVER_MASK, 110, -50) + NOISE
    for lesion in (COUNTED, SECOND, UNSURE, MISSED):
        hu[lesion] = 55 + NOISE[lesion]
    volume = Volume(hu.astype(np.int16), MATRIX)
    labels = LIVER_MASK.astype(np.uint8)
    labels[COUNTED | SECOND] = 2
    values = np.where(COUNTED | SECOND, 0.98, np.where(UNSURE, 0.7, 0.01)).astype(np.float16)
    box = (slice(2, 22), slice(6, 42), slice(6, 42))
    scores = {"tumor": Volume(values[box], volume.cropped(lx_box(box)).ijk_to_lps)} if probability else {}
    provenance = {
        "model": {"name": "toy", "version": "1", "sha256": []},
        "warnings": [],
        "peak_probability": {"tumor": 0.9},
    }
    segmentation = Segmentation(Volume(labels, MATRIX), (LIVER, TUMOR), scores, {}, provenance)
    return volume, registry()["default"].spec(), segmentation, measure(volume, segmentation)


def lx_box(box):
    from LiverXAILib.volumes.box import Box

    return Box(*box)


def place(mask):
    """The centroid of a mask, LPS mm."""
    return tuple(MATRIX[:3, :3] @ np.argwhere(mask).mean(axis=0)[::-1] + MATRIX[:3, 3])


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_piece_that_the_model_is_not_sure_of_is_a_candidate_and_not_counted():
    one = analysis()
    np.testing.assert_array_equal(candidate_components(one.segmentation) == 1, UNSURE)
    (candidate,) = one.measurements.candidates
    assert one.measurements.lesion_count == 2
    assert candidate.number == 1
    assert candidate.volume_ml == pytest.approx(UNSURE.sum() * 12 / 1000)
    assert candidate.mean_hu == pytest.approx(one.volume.array[UNSURE].mean())
    assert candidate.axial.slice_index == 8
    assert candidate.axial.long_mm == pytest.approx(12, abs=2)
    assert candidate.mean_probability == pytest.approx(0.7, abs=1e-3)
    assert candidate.peak_probability == pytest.approx(0.7, abs=1e-3)
    np.testing.assert_allclose(candidate.place_lps_mm, place(UNSURE), atol=1.5)
    assert "70.0 %" in candidate.reason
    assert "90.0 %" in candidate.reason
    assert one.measurements.to_dict()["candidates"][0]["status"] == "open"
    assert analysis(probability=False).measurements.candidates == ()


def test_warnings_about_the_liver_are_those_of_the_outlines_as_they_are_now():
    """That the image is mirrored does not depend on the outlines."""
    one = analysis()
    assert one.measurements.plausible
    one = dataclasses.replace(
        one,
        measurements=one.measurements.doubted(["It is mirrored."]),
        provenance={"warnings": ["Implausible: It is mirrored.", "other"], "mirrored": ["It is mirrored."]},
    )
    labels = np.array(one.segmentation.labels.array)
    labels[LIVER_MASK & ~ball((12, 14, 24), 15)] = 0
    cut = refine(one, (), one.segmentation.labels.with_array(labels))
    mirrored, small, other = cut.provenance["warnings"]
    assert (mirrored, other) == ("Implausible: It is mirrored.", "other")
    assert "outside the plausible range" in small
    again = refine(cut, (), one.segmentation.labels)
    assert again.provenance["warnings"] == ["Implausible: It is mirrored.", "other"]
    assert again.measurements.plausible is False


def test_height_and_weight_can_be_entered_changed_and_cleared_later():
    one = analysis()
    assert with_patient_size(one, None, None) is one
    sized = with_patient_size(one, 180, 80)
    standard = measure(one.volume, one.segmentation, height_cm=180, weight_kg=80).standard_volume_ml
    assert sized.measurements.standard_volume_ml == standard
    assert sized.own is None  # that is not a decision
    refined = refine(sized, [reject(2)])
    assert refined.measurements.standard_volume_ml == standard
    other = with_patient_size(refined, 160, 50)
    assert other.measurements.standard_volume_ml < standard
    assert other.own.measurements.standard_volume_ml == other.measurements.standard_volume_ml
    assert other.measurements.lesion_count == 1
    assert refine(other, [reject(1)]).provenance["measured_with"]["height_cm"] == 160
    assert with_patient_size(other, None, None).measurements.standard_volume_ml is None


def test_the_summary_names_candidates_that_do_not_count_and_what_the_reader_decided():
    lines = analysis().measurements.summary().splitlines()
    assert "Not counted: 1 candidate, marked without sufficient confidence" in lines
    (candidate,) = (line for line in lines if line.startswith(" C"))
    assert candidate.split()[:4] == ["C", "1", f"{UNSURE.sum() * 12 / 1000:.2f}", "ml,"]
    assert refine(analysis(), [accept(1)]).measurements.summary().splitlines()[-2].endswith("accepted by the reader")
    assert "Not counted" not in analysis(probability=False).measurements.summary()


def test_rims_of_lesions_specks_and_what_lies_outside_the_liver_are_no_candidates():
    one = analysis()
    values = one.segmentation.probabilities["tumor"].array.copy()
    whole = np.zeros(SHAPE, np.float16)
    whole[2:22, 6:42, 6:42] = values
    whole[ndimage.binary_dilation(COUNTED)] = 0.6
    whole[12, 24, 24] = 0.9
    whole[ball((2, 24, 44), 5)] = 0.9
    probability = one.segmentation.probabilities["tumor"].with_array(whole[2:22, 6:42, 6:42])
    changed = dataclasses.replace(one.segmentation, probabilities={"tumor": probability})
    np.testing.assert_array_equal(candidate_components(changed) == 1, UNSURE)
    assert candidate_components(changed).max() == 1


def test_an_accepted_candidate_is_a_lesion_and_a_rejected_lesion_is_liver():
    one = analysis()
    result = refine(one, [accept(1), reject(1)], who="Dr. A")
    np.testing.assert_array_equal(result.segmentation.mask("tumor"), SECOND | UNSURE)
    np.testing.assert_array_equal(result.segmentation.mask("liver"), one.segmentation.mask("liver"))
    assert result.measurements.lesion_count == 2
    assert {lesion.source for lesion in result.measurements.lesions} == {"model", "reader"}
    assert result.measurements.candidates[0].status == "accepted"
    assert [(x.kind, x.numbers, x.who) for x in result.decisions] == [
        ("accept", (1,), "Dr. A"),
        ("reject", (1,), "Dr. A"),
    ]
    np.testing.assert_allclose(result.decisions[1].place_lps_mm, place(COUNTED), atol=1.5)
    assert result.own is one
    np.testing.assert_array_equal(one.segmentation.mask("tumor"), COUNTED | SECOND)
    json.dumps(result.provenance["reader"])


def restarted(one, model=None):
    """The result of another session from the files of `one`."""
    decisions = [Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) for decision in one.decisions]
    return refine(resume(model or one.own, one.segmentation.labels, decisions))


def test_a_rejected_lesion_is_listed_and_comes_back_as_it_was():
    one = analysis()
    larger = refine(one, [include(place(ball((12, 14, 29), 1)))])
    whole = lesion_components(larger.segmentation) == 1
    assert (whole & ~COUNTED).any()
    result = restarted(refine(larger, [reject(1)], who="Dr. A"))
    assert (result.measurements.lesion_count, len(result.measurements.rejected)) == (1, 1)
    (rejected,) = result.measurements.rejected
    measured = larger.measurements.lesions[0]
    assert (rejected.number, rejected.who) == (1, "Dr. A")
    assert rejected.volume_ml == pytest.approx(measured.volume_ml)
    assert rejected.mean_hu == pytest.approx(measured.mean_hu)
    assert rejected.axial == measured.axial
    assert rejected.mean_probability == pytest.approx(measured.mean_probability)
    assert "1 lesion, rejected by the reader" in result.measurements.summary()
    assert result.measurements.rows()[-1]["structure"] == "rejected lesion"
    back = refine(result, [restore(1)])
    assert back.measurements.rejected == ()
    np.testing.assert_array_equal(back.segmentation.mask("tumor"), larger.segmentation.mask("tumor"))
    assert back.decisions[-1].place_lps_mm == pytest.approx(result.decisions[1].place_lps_mm, abs=1e-3)
    # Rejected, restored and rejected again: listed once.
    assert len(refine(back, [reject(1)]).measurements.rejected) == 1
    with pytest.raises(UsageError, match="There is no rejected lesion 1"):
        refine(back, [restore(1)])


def test_a_rejected_part_of_a_candidate_is_listed_until_the_whole_candidate_is_rejected():
    """It is not lost if the candidate, to which most of it belongs, is listed as accepted or open."""
    parts = refine(refine(analysis(), [accept(1)]), [Decision("split", (1,), place(UNSURE))])
    numbers = lesion_components(parts.segmentation)
    halves = [number for number in np.unique(numbers[UNSURE]).tolist() if number]
    smaller = parts.measurements.lesions[halves[-1] - 1]
    one = refine(parts, [reject(smaller.number)])
    assert [x.status for x in one.measurements.candidates] == ["accepted"]
    (rejected,) = restarted(one).measurements.rejected
    assert rejected.volume_ml == pytest.approx(smaller.volume_ml)
    back = refine(one, [restore(1)])
    np.testing.assert_array_equal(back.segmentation.labels.array, parts.segmentation.labels.array)
    both = restarted(refine(parts, [reject(number) for number in halves]))
    assert [x.status for x in both.measurements.candidates] == ["rejected"]
    assert both.measurements.rejected == ()
    # At an operating point at which the model marks a lesion only as a candidate, both of its parts are one.
    parts = refine(graded(), [split(1)])
    halves = [lesion.number for lesion in parts.measurements.lesions if "edited" in lesion.source]
    gone = change_sensitivity(refine(parts, [reject(number) for number in halves]), "specific")
    assert sorted(x.status for x in restarted(gone).measurements.candidates) == ["open", "open", "rejected"]
    assert gone.measurements.rejected == ()


def test_a_rejected_lesion_that_is_outlined_again_is_not_listed_as_rejected():
    gone = refine(analysis(), [reject(1), reject(2)])
    assert [one.volume_ml for one in gone.measurements.rejected] == pytest.approx(
        [mask.sum() * 12 / 1000 for mask in (COUNTED, SECOND)]
    )
    (left,) = refine(gone, [add(place(COUNTED))]).measurements.rejected
    assert left.volume_ml == pytest.approx(SECOND.sum() * 12 / 1000)


def test_what_is_rejected_is_known_by_its_place_at_every_sensitivity():
    one = graded()
    mine = refine(change_sensitivity(one, "sensitive"), [reject(2)])  # at "standard" it is the candidate
    assert len(mine.measurements.rejected) == 1
    standard = change_sensitivity(mine, "standard")
    assert standard.measurements.rejected == ()
    assert [x.status for x in standard.measurements.candidates] == ["rejected"]
    sure = restarted(change_sensitivity(mine, "specific"))
    assert not sure.segmentation.mask("tumor").any()
    assert sorted(x.status for x in sure.measurements.candidates) == ["open", "open", "rejected"]
    later = change_sensitivity(sure, "sensitive")
    np.testing.assert_array_equal(later.segmentation.mask("tumor"), COUNTED | SECOND)
    assert len(later.measurements.rejected) == 1
    back = refine(later, [restore(1)])
    np.testing.assert_array_equal(back.segmentation.mask("tumor"), COUNTED | SECOND | UNSURE)
    np.testing.assert_array_equal(change_sensitivity(back, "specific").segmentation.mask("tumor"), UNSURE)


def test_an_accepted_candidate_stays_a_lesion_in_another_session_at_another_sensitivity():
    mine = refine(graded(), [accept(1)])
    later = restarted(change_sensitivity(mine, "sensitive"))
    np.testing.assert_array_equal(change_sensitivity(later, "specific").segmentation.mask("tumor"), UNSURE)


@pytest.mark.parametrize("session", [lambda one: one, restarted], ids=["same session", "later session"])
@pytest.mark.parametrize(
    ("decide", "held"),
    [
        (merge(1, 2), COUNTED | SECOND),
        (include(place(ball((12, 14, 29), 1))), COUNTED),
        (exclude(place(ball((12, 14, 22), 1))), COUNTED),
    ],
    ids=["merge", "include", "exclude"],
)
def test_a_lesion_whose_outline_the_reader_changed_is_one_at_every_sensitivity(session, decide, held):
    mine = refine(graded(), [decide])
    expected = mine.segmentation.mask("tumor")
    sure = change_sensitivity(session(mine), "specific")  # where the model has no lesion
    wanted = expected if held is not COUNTED else expected & ~SECOND
    np.testing.assert_array_equal(sure.segmentation.mask("tumor"), wanted)
    back = change_sensitivity(session(sure), "standard")
    np.testing.assert_array_equal(back.segmentation.mask("tumor"), expected)


def test_what_was_edited_by_hand_stays_in_later_sessions_at_other_sensitivities():
    one = graded()
    array = one.segmentation.labels.array.copy()
    array[SECOND], array[UNSURE] = 1, 2
    drawn = one.segmentation.labels.with_array(array)
    for mine in (refine(one, labels=drawn), refine(resume(one, drawn, (), edited=True))):
        assert [x.kind for x in mine.decisions] == ["edit"]
        for there in ("specific", "sensitive"):  # at one of them the model agrees with what was drawn and erased
            away = restarted(change_sensitivity(mine, there))
            back = change_sensitivity(restarted(away), "standard")
            np.testing.assert_array_equal(back.segmentation.mask("tumor"), COUNTED | UNSURE)


@pytest.mark.parametrize(
    "decisions",
    [
        [reject(1)],
        [accept(1)],
        [split(1)],
        [merge(1, 2)],
        [exclude(place(ball((12, 14, 22), 1)))],
        [accept(1), reject(2), choose_targets(1)],
    ],
)
def test_what_is_not_measured_again_is_as_if_it_were(decisions):
    one = analysis()
    names = ("edge_share", "log10_ml")
    card = dataclasses.asdict(
        Reliability(0.0, dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.1), dict.fromkeys(names, 1.0), 2, 1)
    )
    segmentation = dataclasses.replace(
        one.segmentation, provenance={**one.segmentation.provenance, "reliability": card}
    )
    one = dataclasses.replace(one, segmentation=segmentation, measurements=measure(one.volume, segmentation))
    assert one.measurements.lesions[0].reliability is not None
    result = refine(refine(one, [add(place(MISSED))]), decisions)
    afresh = measure(one.volume, result.segmentation, targets=result.measurements.recist.targets)
    for lesion, again in zip(result.measurements.lesions, afresh.lesions, strict=True):
        reliability = again.reliability if lesion.source == "model" else None
        assert lesion == dataclasses.replace(again, source=lesion.source, reliability=reliability)
    for name in ("liver_mean_hu", "tumor_volume_ml", "functional_volume_ml", "phase", "plausible"):
        assert getattr(result.measurements, name) == getattr(afresh, name)


def test_lesions_with_the_same_voxels_are_found_under_their_new_numbers():
    one = analysis()
    assert same_lesions(one.segmentation, one.segmentation) == {1: 1, 2: 2}
    assert same_lesions(one.segmentation, refine(one, [reject(1)]).segmentation) == {2: 1}
    assert same_lesions(one.segmentation, refine(one, [exclude(place(COUNTED))]).segmentation) == {2: 1}
    assert same_lesions(one.segmentation, refine(one, [merge(1, 2)]).segmentation) == {}
    assert same_lesions(one.segmentation, refine(one, [reject(1), reject(2)]).segmentation) == {}


def test_a_cut_leaves_no_crumbs(monkeypatch):
    one = analysis()
    voxels = np.argwhere(lesion_mask(one.segmentation, 1))
    end = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmax()]
    around = np.abs(np.indices(one.segmentation.labels.shape) - end[:, None, None, None]).max(axis=0)

    def leave(*kept):
        """A cut that divides the lesion: its end is left, and what `kept` (voxels from the end) says."""

        def cut(volume, _segmentation, lesion, *_click):
            return Box.full(volume.shape), lesion & np.isin(around, [0, *kept])

        monkeypatch.setattr(applying, "correct_outline", cut)
        return refine(one, [exclude(place(COUNTED))]).segmentation

    before = one.segmentation.mask("tumor") & ~lesion_mask(one.segmentation, 1)
    large = leave(*range(2, 20))
    np.testing.assert_array_equal(large.mask("tumor") & ~before, lesion_mask(one.segmentation, 1) & (around >= 2))
    assert lesion_count(large) == 2
    assert leave().mask("tumor")[tuple(end)], "a small piece stays if it is all that is left"


@pytest.mark.parametrize("make", [add, include, exclude, lambda point: measure_lesion(1, [point] * 4)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_points_are_finite(make, bad):
    with pytest.raises(UsageError, match="finite coordinates in mm"):
        make((1.0, bad, 2.0))


def test_decisions_of_one_round_do_not_undo_one_another():
    one = analysis()
    first, second = place(ball((12, 14, 22), 1)), place(ball((12, 14, 26), 1))
    both = refine(one, [exclude(first), exclude(second)]).segmentation.mask("tumor")
    each = [refine(one, [exclude(point)]).segmentation.mask("tumor") for point in (first, second)]
    np.testing.assert_array_equal(both, each[0] & each[1])
    apart = refine(one, [split(1)])
    gap = one.segmentation.mask("tumor") & ~apart.segmentation.mask("tumor")
    beside = place(ball((12, 14, 29), 1))
    mine = refine(one, [split(1), include(beside)]).segmentation.mask("tumor")
    assert not mine[gap].any()
    assert mine[ball((12, 14, 29), 1)].all()


@pytest.mark.parametrize(
    "other", [split(1), merge(1, 2), include(place(COUNTED)), exclude(place(COUNTED)), choose_targets(1)]
)
def test_nothing_else_is_decided_about_a_lesion_that_is_rejected(other):
    with pytest.raises(UsageError, match="Lesion 1 is rejected"):
        refine(analysis(), [reject(1), other])


def test_a_place_beside_a_lesion_is_not_taken_out_of_it():
    edge = np.argwhere(COUNTED)[-1] + (0, 1, 0)
    point = tuple(MATRIX[:3, :3] @ edge[::-1] + MATRIX[:3, 3])
    assert not COUNTED[tuple(edge)]
    with pytest.raises(UsageError, match="not in a lesion"):
        refine(analysis(), [exclude(point)])


def test_a_small_lesion_stays_dropped_at_every_sensitivity_and_its_size_is_the_reason():
    one = graded()
    provenance = {**one.segmentation.provenance, "postprocessing": {"min_lesion_ml": 0.7}}
    labels = one.segmentation.labels.array.copy()
    labels[SECOND] = 1
    segmentation = dataclasses.replace(
        one.segmentation, labels=one.segmentation.labels.with_array(labels), provenance=provenance
    )
    small = SECOND.sum() * 12 / 1000
    assert small < 0.7 < UNSURE.sum() * 12 / 1000
    sensitive = at_sensitivity(segmentation, one.model, "sensitive")
    np.testing.assert_array_equal(sensitive.mask("tumor"), COUNTED | UNSURE)
    unsure, dropped = measure(one.volume, segmentation).candidates
    assert unsure.reason.endswith("a lesion is counted from 90.0 %.")
    assert dropped.reason.endswith(
        f"in it is 98.0 %; its volume is {small:.2f} ml, and a lesion is counted from 0.7 ml."
    )


def test_decisions_of_several_rounds_add_up_and_the_models_own_answer_stays():
    one = analysis()
    first = refine(one, [accept(1)])
    numbers = lesion_components(first.segmentation)
    accepted = int(numbers[UNSURE][0])
    second = refine(first, [reject(accepted)])
    assert [x.kind for x in second.decisions] == ["accept", "reject"]
    assert second.measurements.candidates[0].status == "rejected"
    assert second.own is one
    np.testing.assert_array_equal(second.segmentation.labels.array, one.segmentation.labels.array)


@pytest.mark.parametrize("mask", [MISSED, UNSURE], ids=["missed", "unsure"])
def test_a_click_outlines_the_lesion_around_it(mask):
    one = analysis()
    result = refine(one, [add(place(mask))])
    found = result.segmentation.mask("tumor") & ~(COUNTED | SECOND)
    assert dice(found, mask) > 0.85
    assert result.measurements.lesion_count == 3


def test_a_click_near_the_rim_outlines_the_same_lesion_as_one_in_the_middle():
    one = analysis(probability=False)
    voxels = np.argwhere(ndimage.binary_erosion(MISSED))
    masks = []
    for voxel in (voxels[0], voxels[len(voxels) // 2], voxels[-1]):
        box, mask = outline_lesion(one.volume, one.segmentation, tuple(MATRIX[:3, :3] @ voxel[::-1] + MATRIX[:3, 3]))
        whole = np.zeros(SHAPE, bool)
        whole[box] = mask
        masks.append(whole)
    assert min(dice(mask, MISSED) for mask in masks) > 0.85


@pytest.mark.parametrize(
    ("where", "says"),
    [(ball((1, 2, 2), 1), "outside the liver"), (ball((18, 36, 28), 1), "nothing there differs")],
)
def test_where_nothing_can_be_outlined_it_is_said(where, says):
    with pytest.raises(UsageError, match=says):
        refine(analysis(), [add(place(where))])
    with pytest.raises(UsageError, match="outside the image"):
        refine(analysis(), [add((900.0, 0.0, 0.0))])


@pytest.mark.parametrize("by", ["typo", "", "Network", None])
def test_a_way_to_outline_that_does_not_exist_is_refused(by):
    one = analysis()
    with pytest.raises(UsageError, match="Choose one of: best, probability, network, contrast"):
        outline_lesion(one.volume, one.segmentation, place(MISSED), by=by)


def test_lesions_are_merged_and_split():
    one = analysis()
    merged = refine(one, [merge(1, 2)])
    assert merged.measurements.lesion_count == 1
    assert merged.measurements.lesions[0].source == "model, edited by the reader"
    parted = refine(merged, [split(1)])
    assert parted.measurements.lesion_count == 2
    halves = refine(one, [split(1)])
    assert halves.measurements.lesion_count == 3
    lost = COUNTED.sum() + SECOND.sum() - halves.segmentation.mask("tumor").sum()
    assert 0 < lost < 0.5 * COUNTED.sum()


def test_an_edit_by_hand_is_a_decision_and_measured():
    one = analysis()
    labels = one.segmentation.labels.array.copy()
    labels[COUNTED] = 1
    result = refine(one, labels=one.segmentation.labels.with_array(labels))
    assert [x.kind for x in result.decisions] == ["edit"]
    assert result.measurements.lesion_count == 1
    assert refine(one, labels=one.segmentation.labels).decisions == ()


@pytest.mark.parametrize("decision", [accept(2), reject(3), merge(1, 3), split(0), choose_targets(3)])
def test_what_does_not_exist_is_refused(decision):
    with pytest.raises(UsageError, match="There is no"):
        refine(analysis(), [decision])


@pytest.mark.parametrize("lesions", [(), (1,), (2, 2)])
def test_one_lesion_alone_cannot_be_merged(lesions):
    with pytest.raises(UsageError, match="two or more lesions"):
        merge(*lesions)


@pytest.mark.parametrize("make", [accept, reject, restore, split, lambda one: merge(1, one), choose_targets])
@pytest.mark.parametrize("number", [1.5, "1", True, None])
def test_a_finding_has_a_whole_number(make, number):
    with pytest.raises(UsageError, match=re.escape(f"whole number, but {number!r} was given")):
        make(number)
    assert accept(np.int64(2)).numbers == (2,)


@pytest.mark.parametrize("point", [(1, 2), (1, 2, 3, 4), ()])
def test_a_point_has_three_coordinates(point):
    with pytest.raises(UsageError, match="three finite coordinates"):
        add(point)


@pytest.mark.parametrize("points", [[(0, 0, 0)] * 2 + [(0, 0, 0), (0, 1, 0)], [(0, 0, 0), (0, 1, 0)] + [(0, 0, 1)] * 2])
def test_a_diameter_has_two_ends(points):
    with pytest.raises(UsageError, match="two different ends"):
        measure_lesion(1, points)


@pytest.mark.parametrize(
    ("before", "decisions", "sentence"),
    [
        ([], [add(place(COUNTED))], "is part of a lesion already: correct its outline"),
        ([], [reject(1), reject(1)], "Nothing to reject at RAS"),
        ([accept(1)], [accept(1)], "Nothing to accept at RAS"),
        ([], [merge(1, 2), merge(1, 2)], "Nothing to merge at RAS"),
        ([], [dismiss(1), dismiss(1)], "Nothing to dismiss at RAS"),
        ([dismiss(1)], [dismiss(1)], "Nothing to dismiss at RAS"),
    ],
    ids=["added inside a lesion", "rejected twice", "accepted again", "merged twice", "dismissed twice", "again"],
)
def test_a_decision_without_an_effect_is_refused(before, decisions, sentence):
    one = refine(analysis(), before)
    with pytest.raises(UsageError, match=re.escape(sentence)):
        refine(one, decisions)
    assert len(one.decisions) == len(before)


def with_voxel(voxel):
    """The analysis with another lesion, of one voxel."""
    one = analysis()
    array = one.segmentation.labels.array.copy()
    array[voxel] = 2
    return refine(one, labels=one.segmentation.labels.with_array(array))


def test_a_lesion_of_one_voxel_is_not_split():
    with pytest.raises(UsageError, match="Lesion 3 is too small"):
        refine(with_voxel((12, 24, 30)), [split(3)])


@pytest.mark.parametrize("voxel", [(12, 24, 21), (13, 25, 22)], ids=["on the connection", "at a corner of it"])
def test_a_third_lesion_is_not_merged_unless_it_is_named(voxel):
    three = with_voxel(voxel)
    assert three.measurements.lesion_count == 3
    with pytest.raises(UsageError, match=r"Merging lesions 1 and 2 would also merge lesion 3.* Merge 1 and 2 and 3"):
        refine(three, [merge(2, 1)])
    assert refine(three, [merge(1, 2, 3)]).measurements.lesion_count == 1
    assert refine(three, [reject(3), merge(1, 2)]).measurements.lesion_count == 1


def test_a_lesion_beside_the_connection_of_others_stays_one():
    assert refine(with_voxel((14, 24, 21)), [merge(1, 2)]).measurements.lesion_count == 2


def test_three_lesions_become_one():
    one = refine(analysis(), [accept(1)])
    result = refine(one, [merge(1, 2, 3)])
    assert result.measurements.lesion_count == 1
    assert result.segmentation.mask("tumor")[COUNTED | SECOND | UNSURE].all()


def test_a_corrective_click_is_right_whatever_the_network_says():
    one = analysis()
    beside = np.argwhere(COUNTED)[-1] + (0, 3, 0)
    point = tuple(MATRIX[:3, :3] @ beside[::-1] + MATRIX[:3, 3])
    larger = refine(one, [include(point)])
    assert larger.segmentation.mask("tumor")[tuple(beside)]
    assert larger.decisions[0].numbers == (1,)
    smaller = refine(larger, [exclude(point)])
    assert not smaller.segmentation.mask("tumor")[tuple(beside)]
    assert smaller.segmentation.mask("liver")[tuple(beside)]
    assert [x.kind for x in smaller.decisions] == ["include", "exclude"]
    # Other lesions are not changed.
    np.testing.assert_array_equal(smaller.segmentation.mask("tumor") & SECOND, SECOND)


def test_a_corrective_click_far_from_every_lesion_is_refused():
    with pytest.raises(UsageError, match="Add a lesion there"):
        refine(analysis(), [include(place(ball((12, 40, 40), 4)))])
    with pytest.raises(UsageError, match="not in a lesion"):
        refine(analysis(), [exclude(place(MISSED))])


POINTS = (OperatingPoint(6.0, 0.1, 0.3), OperatingPoint(3.0, 0.4, 0.6), OperatingPoint(0.5, 1.2, 0.8))


def graded() -> Analysis:
    """:func:`analysis` of a model with operating points: its lesions peak at 3.9, the candidate at 0.85 (logits)."""
    one = analysis()
    *first, last = one.model.stages
    stage = dataclasses.replace(last, operating_points={"tumor": POINTS})
    return dataclasses.replace(one, model=dataclasses.replace(one.model, stages=(*first, stage)))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("specific", POINTS[0]), ("sensitive", POINTS[2]), ("standard", None), ("0.5", POINTS[1]), ("9", POINTS[2])],
)
def test_a_sensitivity_is_a_word_or_a_number_of_false_findings(asked, expected):
    assert choose_point(graded().model, asked) == expected


@pytest.mark.parametrize("asked", ["high", "-1", "nan", "0.05", ""])
def test_a_sensitivity_that_the_card_does_not_have_is_refused(asked):
    with pytest.raises(UsageError, match=r"sensitivity|operating point"):
        choose_point(graded().model, asked)


def test_a_model_without_operating_points_says_so():
    bare = graded().model
    stages = tuple(dataclasses.replace(stage, operating_points={}) for stage in bare.stages)
    with pytest.raises(UsageError, match="has no operating points"):
        choose_point(dataclasses.replace(bare, stages=stages), "sensitive")


def test_another_sensitivity_moves_whole_pieces_over_the_border():
    one = graded()
    sensitive = at_sensitivity(one.segmentation, one.model, "sensitive")
    np.testing.assert_array_equal(sensitive.mask("tumor"), COUNTED | SECOND | UNSURE)
    np.testing.assert_array_equal(sensitive.mask("liver"), LIVER_MASK)
    assert candidate_components(sensitive).max() == 0
    sure = at_sensitivity(one.segmentation, one.model, "specific")
    assert not sure.mask("tumor").any()
    assert candidate_components(sure).max() == 3
    assert sure.provenance["sensitivity"]["false_per_case"] == 0.1
    assert "99.8 %" in measure(one.volume, sure).candidates[0].reason


def test_what_the_reader_decided_stays_when_the_sensitivity_changes():
    one = graded()
    mine = refine(one, [reject(2)])
    sure = change_sensitivity(mine, "specific")
    assert not sure.segmentation.mask("tumor").any()
    sensitive = change_sensitivity(sure, "sensitive")
    np.testing.assert_array_equal(sensitive.segmentation.mask("tumor"), COUNTED | UNSURE)
    assert [x.kind for x in sensitive.decisions] == ["reject"]
    for result, asked in ((mine, None), (sure, "specific"), (sensitive, "sensitive")):
        assert result.segmentation.provenance.get("sensitivity", {}).get("asked") == asked
    assert sensitive.provenance["segmentation"]["sensitivity"]["asked"] == "sensitive"
    # A later session has the labels, the decisions and the sensitivity. At "specific" the model has no lesion either.
    for left, now in ((sensitive, "specific"), (sure, "sensitive")):
        restored = resume(left.own, left.segmentation.labels, left.decisions)
        again = change_sensitivity(restored, now)
        expected = {"specific": sure, "sensitive": sensitive}[now]
        np.testing.assert_array_equal(again.segmentation.labels.array, expected.segmentation.labels.array)
    back = change_sensitivity(sensitive, "standard")
    np.testing.assert_array_equal(back.segmentation.labels.array, mine.segmentation.labels.array)
    assert back.measurements == mine.measurements
    plain = change_sensitivity(change_sensitivity(one, "sensitive"), "standard")
    assert plain.own is None
    assert plain.measurements == one.measurements


def test_a_card_keeps_its_operating_points():
    model = graded().model
    assert ModelSpec.from_json(model.to_json()).stages[-1].operating_points == {"tumor": POINTS}


def test_the_report_lists_candidates_and_what_the_reader_changed(tmp_path):
    path = tmp_path / "report.html"
    write_report(analysis(), path, viewer=False)
    text = path.read_text()
    assert "1 candidate: marked by the model without sufficient confidence, not counted" in text
    assert text.count("<img") == 3 + 2 + 1  # three planes, two lesions, the candidate
    assert "Changed by the reader" not in text
    write_report(refine(analysis(), [accept(1), reject(2)], who="Dr. A"), path, viewer=False)
    text = path.read_text()
    assert "(accepted by the reader)" in text
    assert "(reader)" in text
    assert "reject 2 at LPS" in text
    assert "(Dr. A, " in text
    assert "1 lesion rejected by the reader, not counted" in text
    assert "Rejected by Dr. A, 2" in text
    # The model card states it, but nothing is reported for what a reader outlined.
    assert "its model card does not state it" not in text
    assert "No reliability is given for lesions that others outlined or edited" in text
    assert text.count("<img") == 3 + 2 + 1 + 1
    assert "&#34;voxels&#34;" not in text


def test_files_and_report_say_which_heat_maps_are_from_before_the_changes(tmp_path):
    one = analysis()
    heat = one.volume.with_array(one.volume.array.astype(np.float32) / 1000)
    about = {"labels_sha256": one.segmentation.checksum}
    one = dataclasses.replace(
        one,
        explanations=tuple(
            Explanation(heat, 1.0, Target.parse(name), "hires-cam", "", provenance=about)
            for name in ("tumor", "lesion:1")
        ),
    )
    changed = refine(one, [reject(2)])
    assert [str(x.target) for x in changed.explanations] == ["tumor", "lesion:1"]
    back = refine(changed, [restore(1)])
    for result, says in ((one, 0), (changed, 1), (back, 0), (refine(one, [choose_targets(1)]), 0)):
        files = Options(viewer=False, write=("report",)).save(result, tmp_path).files
        text = files["report"].read_text()
        assert text.count("(before the changes)") == text.count(">Made before the segmentation was changed") == says
        told = json.loads(files["provenance"].read_text())["explanations"]
        assert sum("Made before the segmentation was" in " ".join(x["warnings"]) for x in told) == says
    assert len(refine(one, [choose_targets(1)]).explanations) == 2


def test_files_tell_the_reader_from_the_model(tmp_path):
    one = analysis()
    files = lx.write_analysis(refine(one, [accept(1)], who="Dr. A"), tmp_path, report=False)
    data = json.loads(files["measurements"].read_text())
    assert sorted(lesion["source"] for lesion in data["lesions"]) == ["model", "model", "reader"]
    assert data["candidates"][0]["status"] == "accepted"
    assert json.loads(files["provenance"].read_text())["reader"][0]["who"] == "Dr. A"
    own = json.loads(files["model-measurements"].read_text())
    assert own["lesion_count"] == 2
    assert lx.read_volume(files["model-segmentation"], force=True).array.max() == 2
    lx.write_analysis(one, tmp_path, report=False)
    assert not files["model-segmentation"].exists()


def told() -> Analysis:
    """:func:`analysis` with the patient's size and the smaller of both lesions as the RECIST target."""
    one = analysis()
    known = {
        "height_cm": 170.0,
        "weight_kg": 70.0,
        "recist_targets": [{"number": 2, "place_lps_mm": list(place(SECOND))}],
    }
    return dataclasses.replace(
        one,
        measurements=measure(one.volume, one.segmentation, height_cm=170, weight_kg=70, targets=[2]),
        provenance={**one.provenance, "measured_with": known},
    )


def test_a_decision_keeps_the_patients_size_and_the_target_lesions_under_their_new_numbers():
    one = told()
    before = one.measurements
    assert before.recist.targets == (2,)
    fewer = refine(one, [reject(1)]).measurements
    assert fewer.standard_volume_ml == before.standard_volume_ml
    assert fewer.recist.targets == (1,)  # the same lesion: the larger one is no longer a lesion
    assert fewer.recist.chosen_by_reader
    assert fewer.recist.diameters_mm == before.recist.diameters_mm
    assert fewer.standard_volume_ratio == pytest.approx(fewer.functional_volume_ml / fewer.standard_volume_ml)
    ends = one.measurements.lesions[1].axial.long_ends_lps_mm
    measured = refine(one, [measure_lesion(2, (ends[0], np.add(ends[0], (20, 0, 0)), *ends))]).measurements
    assert (measured.recist.targets, measured.recist.sum_mm, measured.recist.chosen_by_reader) == ((2,), 20, True)


def test_where_no_named_target_is_left_the_rule_chooses_and_none_stays_none():
    one = told()
    gone = refine(one, [reject(2)]).measurements.recist
    assert not gone.chosen_by_reader
    none = {**one.provenance["measured_with"], "recist_targets": []}
    empty = dataclasses.replace(one, provenance={**one.provenance, "measured_with": none})
    kept = refine(empty, [reject(2)]).measurements.recist
    assert (kept.targets, kept.chosen_by_reader) == ((), True)


def test_the_reader_chooses_the_target_lesions_which_keep_their_place():
    one = analysis()
    assert one.measurements.recist.targets == (1, 2)
    chosen = refine(one, [choose_targets(2)])
    found = chosen.measurements.recist
    assert (found.targets, found.chosen_by_reader) == ((2,), True)
    assert (chosen.segmentation.labels.array == one.segmentation.labels.array).all()
    assert chosen.decisions[0].points_lps_mm == (place(SECOND),)
    restored = resume(one, chosen.segmentation.labels, [Decision.from_dict(d.to_dict()) for d in chosen.decisions])
    for later in (refine(chosen, [reject(1)]), refine(restored, [reject(1)])):
        assert later.measurements.recist.targets == (1,), "the same lesion, under another number"
        assert later.measurements.recist.sum_mm == found.sum_mm
    assert not refine(chosen, [reject(2)]).measurements.recist.chosen_by_reader
    both = refine(refine(told(), [choose_targets(1)]), [choose_targets(1, 2)]).measurements.recist
    assert both.targets == (1, 2), "the last choice counts, also against that of the first analysis"
    assert refine(told(), [choose_targets(1)]).measurements.recist.targets == (1,)


@pytest.mark.parametrize("lesions", [(), (1, 2, 3)])
def test_target_lesions_are_one_or_two(lesions):
    with pytest.raises(UsageError, match="one or two lesions"):
        choose_targets(*lesions)


def test_another_sensitivity_keeps_size_and_targets():
    one = dataclasses.replace(told(), model=graded().model)
    for result in (change_sensitivity(one, "sensitive"), change_sensitivity(refine(one, [reject(1)]), "sensitive")):
        found = lesion_components(result.segmentation)[tuple(np.argwhere(SECOND)[0])]
        assert result.measurements.recist.targets == (found,)
        assert result.measurements.standard_volume_ml == told().measurements.standard_volume_ml


@pytest.fixture(scope="module")
def analyzed(toy_model, tmp_path_factory):
    """A CT with two lesions and the folder of its analysis, by the command line."""
    from batch_toys import phantom

    from LiverXAILib.cli import main

    folder = tmp_path_factory.mktemp("reading")
    lx.write_volume(phantom(lesions=2), folder / "ct.nii.gz")
    words = [str(folder / "ct.nii.gz"), "-o", str(folder / "result"), "--model", toy_model, "--no-report"]
    assert main(["analyze", *words, "--explain", "--device", "cpu"]) == 0
    return folder


def test_a_result_is_refined_by_the_command_line(analyzed, toy_model, tmp_path, capsys):
    from LiverXAILib.cli import main

    common = ["--image", str(analyzed / "ct.nii.gz"), "--model", toy_model, "--no-report", "--device", "cpu"]
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["refine", str(analyzed / "result"), "--reject", "2", "-o", str(first), "--reader", "Dr. A", *common]
    assert main([*words, "--explain", "tumor"]) == 0
    assert "reject 2 at LPS" in capsys.readouterr().out
    before = json.loads((analyzed / "result" / "measurements.json").read_text())
    after = json.loads((first / "measurements.json").read_text())
    assert (before["lesion_count"], after["lesion_count"]) == (2, 1)
    assert (first / "heatmap-tumor.nrrd").exists()
    lost = before["lesions"][1]["centroid_lps_mm"]
    ras = f"ras:{-lost[0]},{-lost[1]},{lost[2]}"
    assert main(["refine", str(first), f"--add={ras}", "-o", str(second), *common, "--explain"]) == 0
    again = json.loads((second / "measurements.json").read_text())
    assert again["lesion_count"] == 2
    assert again["lesions"][1]["volume_ml"] == pytest.approx(before["lesions"][1]["volume_ml"], rel=0.4)
    decisions = json.loads((second / "provenance.json").read_text())["reader"]
    assert [(one["kind"], one["who"]) for one in decisions] == [("reject", "Dr. A"), ("add", "reader")]
    # When restored by its number after the rejection, it is the same as before.
    assert after["rejected"][0]["volume_ml"] == pytest.approx(before["lesions"][1]["volume_ml"])
    back = tmp_path / "back"
    assert main(["refine", str(first), "--restore", "1", "-o", str(back), *common, "--explain"]) == 0
    assert "restore 1 at LPS" in capsys.readouterr().out
    restored = json.loads((back / "measurements.json").read_text())
    assert [one["volume_ml"] for one in restored["lesions"]] == [one["volume_ml"] for one in before["lesions"]]
    assert restored["rejected"] == []
    own = json.loads((second / "measurements-model.json").read_text())
    assert own["lesion_count"] == 2
    # A manual edit of the segmentation file is a decision, too.
    path = second / "segmentation.seg.nrrd"
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    array[tuple(np.argwhere(array == 1)[0])] = 0
    edited = sitk.GetImageFromArray(array)
    edited.CopyInformation(image)
    for key in image.GetMetaDataKeys():
        edited.SetMetaData(key, image.GetMetaData(key))
    sitk.WriteImage(edited, str(path))
    assert main(["refine", str(second), "--split", "1", *common, "--explain", "--reader", "Dr. B"]) == 0
    decisions = json.loads((second / "provenance.json").read_text())["reader"]
    assert [one["kind"] for one in decisions] == ["reject", "add", "edit", "split"]


def test_decisions_of_a_reader_are_not_lost_by_analyzing_again(analyzed, toy_model, tmp_path, capsys):
    from LiverXAILib.cli import main

    common = ["--model", toy_model, "--no-report", "--explain", "--device", "cpu", "-o", str(tmp_path / "out")]
    again = ["analyze", str(analyzed / "ct.nii.gz"), *common]
    for _ in range(2):  # a result without decisions is replaced, as documented
        assert main(again) == 0
    words = ["refine", str(tmp_path / "out"), "--image", str(analyzed / "ct.nii.gz"), *common]
    assert main([*words, "--reject", "2"]) == 0
    before = (tmp_path / "out" / "provenance.json").read_bytes()
    capsys.readouterr()
    assert main(again) == 2
    assert "holds a result with 1 decision of a reader, which would be lost." in capsys.readouterr().err
    assert (tmp_path / "out" / "provenance.json").read_bytes() == before
    assert main([*words, "--undo"]) == 0
    assert main(again) == 0


def test_refining_keeps_the_rules_of_the_analysis(analyzed, toy_model, tmp_path):
    from LiverXAILib.cli import main

    common = ["--model", toy_model, "--no-report", "--device", "cpu", "--explain"]
    result, ct = tmp_path / "result", str(analyzed / "ct.nii.gz")
    assert main(["analyze", ct, "-o", str(result), *common, "--min-lesion-ml", "5"]) == 0
    assert json.loads((result / "measurements.json").read_text())["lesion_count"] == 0
    assert main(["refine", str(result), "--image", ct, "--accept", "1", *common]) == 0
    after = json.loads((result / "measurements.json").read_text())
    assert after["lesion_count"] == 1
    assert [one["status"] for one in after["candidates"]] == ["accepted", "open"]
    assert [one["kind"] for one in json.loads((result / "provenance.json").read_text())["reader"]] == ["accept"]


def test_an_edited_file_is_understood_by_the_names_of_its_segments(analyzed, toy_model, tmp_path):
    from LiverXAILib.cli import main

    result = tmp_path / "result"
    shutil.copytree(analyzed / "result", result)
    path = result / "segmentation.seg.nrrd"
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    # As an editor may save it: with other values, and cropped to the drawn region.
    other = sitk.GetImageFromArray(np.choose(array, [0, 2, 1]).astype(np.uint8))
    other.CopyInformation(image)
    k, j, i = (slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(array))
    other = other[i, j, k]
    for key in image.GetMetaDataKeys():
        value = image.GetMetaData(key)
        other.SetMetaData(key, {"1": "2", "2": "1"}[value] if key.endswith("LabelValue") else value)
    sitk.WriteImage(other, str(path))
    words = [
        "--image",
        str(analyzed / "ct.nii.gz"),
        "--model",
        toy_model,
        "--no-report",
        "--device",
        "cpu",
        "--explain",
    ]
    assert main(["refine", str(result), "--targets", "1", *words]) == 0
    before, after = (json.loads((one / "measurements.json").read_text()) for one in (analyzed / "result", result))
    assert after["tumor_volume_ml"] == before["tumor_volume_ml"]
    assert [one["kind"] for one in json.loads((result / "provenance.json").read_text())["reader"]] == ["target"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found["reader"][0].update(voxels="1 2 x"),
        lambda found: found["reader"][0].update(voxels="100 100 100 3 3 3 eJxjYAAAAAIAAQ=="),
        lambda found: found["reader"][0].update(voxels="0 0 0 3 3 3 abcd"),
        lambda found: found["reader"][0].update(place_lps_mm=["x", 1, 2]),
        lambda found: found["reader"][0].pop("kind"),
        lambda found: found.update(reader={"kind": "reject"}),
        lambda found: found.pop("reader_labels_sha256"),
        lambda found: found["segmentation"].update(postprocessing={"typo": 1}),
        lambda found: found["segmentation"].update(sensitivity="standard"),
        lambda found: found["segmentation"]["model"].update(sha256=5),
        lambda found: found["segmentation"]["model"].pop("name"),
        lambda found: found.update(segmentation=[]),
        lambda found: found.update(measured_with=[1]),
        lambda found: found.update(measured_with={"recist_targets": [1]}),
    ],
)
def test_a_record_of_decisions_that_is_damaged_is_refused_in_words(analyzed, toy_model, tmp_path, capsys, damage):
    from LiverXAILib.cli import main

    found = json.loads((analyzed / "result" / "provenance.json").read_text())
    found["reader"] = [Decision("reject", (1,), (0.0, 0.0, 0.0), "Dr. A", "now").to_dict()]
    found["reader_labels_sha256"] = "0"
    damage(found)
    (tmp_path / "provenance.json").write_text(json.dumps(found))
    words = ["--image", str(analyzed / "ct.nii.gz"), "--model", toy_model, "--device", "cpu"]
    assert main(["refine", str(tmp_path), "--reject", "1", *words]) == 1
    assert "provenance.json is missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "No decision was given"),
        (["--add", "12,3"], "is not a place"),
        (["--reject", "9"], "There is no lesion 9"),
        (["--accept", "1"], "There is no candidate 1: there is no candidate"),
        (["--sensitivity", "much"], "'much' is not a sensitivity"),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(analyzed, toy_model, capsys, words, says):
    from LiverXAILib.cli import main

    common = ["--image", str(analyzed / "ct.nii.gz"), "--model", toy_model, "--no-report", "--device", "cpu"]
    files = {path: path.read_bytes() for path in (analyzed / "result").iterdir()}
    assert main(["refine", str(analyzed / "result"), *words, *common, "--explain"]) == 2
    assert says in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (analyzed / "result").iterdir()} == files


@pytest.mark.parametrize("words", [["--min-lesion-ml", "1"], ["--no-postprocessing"]])
def test_refine_neither_lists_nor_accepts_the_options_of_the_models_own_analysis(words, capsys):
    from LiverXAILib.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["refine", "result", "--image", "ct.nii.gz", "--reject", "1", *words])
    assert stop.value.code == 2
    assert f"unrecognized arguments: {' '.join(words)}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["refine", "--help"])
    assert words[0] not in capsys.readouterr().out


def test_refining_keeps_what_the_analysis_was_told_and_refuses_another_ct(analyzed, toy_model, tmp_path, capsys):
    from LiverXAILib.cli import main

    ct, result = analyzed / "ct.nii.gz", tmp_path / "result"
    common = ["--model", toy_model, "--no-report", "--device", "cpu", "--explain"]
    size = ["--height", "170", "--weight", "70", "--recist-targets", "2"]
    assert main(["analyze", str(ct), "-o", str(result), *common, *size]) == 0
    before = json.loads((result / "measurements.json").read_text())
    provenance = json.loads((result / "provenance.json").read_text())
    volume = lx.read_volume(ct)
    assert provenance["input"]["sha256"] == hashlib.sha256(volume.array.astype("<i2").tobytes()).hexdigest()
    # Another CT on the same grid, here with one voxel changed.
    array = volume.array.copy()
    array[0, 0, 0] += 1
    lx.write_volume(volume.with_array(array), tmp_path / "other.nii.gz")
    refine_it = ["refine", str(result), "--reject", "1", *common]
    assert main([*refine_it, "--image", str(tmp_path / "other.nii.gz")]) == 1
    assert "is not the CT from which" in capsys.readouterr().err
    assert json.loads((result / "measurements.json").read_text()) == before
    assert main([*refine_it, "--image", str(ct)]) == 0
    after = json.loads((result / "measurements.json").read_text())
    assert after["standard_volume_ml"] == before["standard_volume_ml"] is not None
    assert (after["recist"]["targets"], after["recist"]["chosen_by_reader"]) == ([1], True)
    assert after["recist"]["diameters_mm"] == before["recist"]["diameters_mm"]
    target = ["refine", str(result), "--targets", "1", "-o", str(tmp_path / "targets")]
    assert main([*target, *common, "--image", str(ct)]) == 0
    assert "target 1 at LPS" in capsys.readouterr().out
    assert json.loads((tmp_path / "targets" / "measurements.json").read_text())["recist"]["targets"] == [1]
    # A result without information about its CT cannot be checked, and this is reported.
    provenance = json.loads((result / "provenance.json").read_text())
    del provenance["input"]["sha256"]
    (result / "provenance.json").write_text(json.dumps(provenance))
    capsys.readouterr()
    assert main(["refine", str(result), "--split", "1", *common, "--image", str(ct)]) == 0
    assert "cannot be checked" in capsys.readouterr().err


def test_a_result_of_another_model_or_a_folder_without_one_is_refused(analyzed, toy_model, tmp_path, capsys):
    from LiverXAILib.cli import main

    words = ["--image", str(analyzed / "ct.nii.gz"), "--reject", "1", "--no-report", "--device", "cpu", "--explain"]
    assert main(["refine", str(analyzed / "result"), *words, "--model", "default"]) == 2
    assert "was made by model toy" in capsys.readouterr().err
    assert main(["refine", str(tmp_path), *words, "--model", toy_model]) == 1
    assert "provenance.json is missing" in capsys.readouterr().err
