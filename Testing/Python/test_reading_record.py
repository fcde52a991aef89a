# SPDX-License-Identifier: Apache-2.0
"""The record of a reader's decisions: what still applies after later ones, what is kept, and what can be taken back."""

from __future__ import annotations

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
from test_reading import (
    COUNTED,
    MISSED,
    SECOND,
    UNSURE,
    analysis,
    ball,
    graded,
    place,
    restarted,
)

import LiverXAILib as lx
from LiverXAILib.analysis import Decision
from LiverXAILib.cli import main
from LiverXAILib.errors import UsageError
from LiverXAILib.explain import Target
from LiverXAILib.explain.answers import BorderNeed, Counterfactual, NeededChange
from LiverXAILib.explain.explanation import Explanation
from LiverXAILib.inference.lesions import lesion_at, lesion_components
from LiverXAILib.options import Options
from LiverXAILib.reading import (
    accept,
    add,
    as_listed,
    change_sensitivity,
    choose_targets,
    dismiss,
    exclude,
    include,
    listed_in,
    measure_lesion,
    merge,
    refine,
    reject,
    restore,
    resume,
    split,
    undo,
)
from LiverXAILib.report import write_report
from LiverXAILib.volumes.box import components

BESIDE = place(ball((12, 14, 29), 1))
#: Both ends of two diameters of 30 and 18 mm.
CALIPERS = ((-30, 0, 0), (0, 0, 0), (-15, -9, 0), (-15, 9, 0))


def labels_of(one):
    return one.segmentation.labels.array


def edited(one, mask, value):
    """The label map of `one` with another label where `mask` is."""
    return one.segmentation.labels.with_array(np.where(mask, np.uint8(value), labels_of(one)))


def long_axes(one):
    return {tuple(np.round(x.centroid_lps_mm)): x.axial.long_mm for x in one.measurements.lesions}


@pytest.mark.parametrize(
    "change",
    [
        lambda one: refine(one, [split(1)]),
        lambda one: refine(one, [merge(1, 2)]),
        lambda one: refine(one, [include(BESIDE)]),
        lambda one: refine(one, [exclude(place(ball((12, 14, 22), 1)))]),
        lambda one: refine(one, labels=edited(one, COUNTED & ball((12, 14, 20), 5), 1)),
        lambda one: resume(one.own, edited(one, COUNTED & ball((12, 14, 20), 5), 1), one.decisions, edited=True),
    ],
    ids=["split", "merge", "include", "exclude", "edit", "edit in another session"],
)
def test_diameters_of_a_reader_do_not_outlive_the_outline_that_was_measured(change):
    measured = refine(analysis(), [measure_lesion(1, CALIPERS)])
    assert measured.measurements.lesions[0].axial.long_mm == 30
    assert measured.decisions[0].remark == ""
    changed = refine(change(measured))
    assert all(x.axial.long_mm != 30 for x in changed.measurements.lesions)
    assert not any("measured by the reader" in x.source for x in changed.measurements.lesions)
    afresh = lx.measure(changed.volume, changed.segmentation)
    assert long_axes(changed) == {tuple(np.round(x.centroid_lps_mm)): x.axial.long_mm for x in afresh.lesions}
    remark = changed.decisions[0].remark
    assert remark.startswith("no longer applies")
    assert changed.provenance["reader"][0]["remark"] == remark


def test_diameters_stay_with_their_lesion_while_others_change():
    measured = refine(analysis(), [measure_lesion(2, CALIPERS)])
    for change in ([reject(1)], [split(1)], [accept(1)], [include(BESIDE)], [choose_targets(2)]):
        changed = restarted(refine(measured, change))
        (kept,) = (x for x in changed.measurements.lesions if x.source.endswith("measured by the reader"))
        assert (kept.axial.long_mm, kept.volume_ml) == (30, measured.measurements.lesions[1].volume_ml)
        assert changed.decisions[0].remark == ""
    # They apply again once the outline is the measured one again.
    gone = refine(measured, [reject(2)])
    assert gone.decisions[0].remark
    back = refine(gone, [restore(1)])
    assert (back.measurements.lesions[1].axial.long_mm, back.decisions[0].remark) == (30, "")


def test_the_report_says_that_diameters_no_longer_apply(tmp_path):
    changed = refine(refine(analysis(), [measure_lesion(1, CALIPERS)]), [split(1)])
    write_report(changed, tmp_path / "report.html", viewer=False)
    assert changed.decisions[0].remark in (tmp_path / "report.html").read_text()


def test_a_rounded_place_between_two_lesions_means_the_same_lesion():
    """A target lesion that was split is the larger part, in this session and in a later one."""
    grid = analysis().volume.grid
    numbers = np.zeros(grid.shape, int)
    numbers[12, 14, 20], numbers[12, 14, 22], numbers[12, 30, 30] = 2, 1, 3
    middle, beside = grid.to_lps(np.array([[21, 14, 12], [30, 30, 13]], float))
    for offset in np.array([(0, 0, 0), (5e-4, 0, 0), (-5e-4, 0, 0), (0, 5e-4, 5e-4), (0, -5e-4, -5e-4)]):
        assert lesion_at(numbers, grid, tuple(middle + offset)) == 1
        assert lesion_at(numbers, grid, tuple(beside + offset)) == 3  # exactly one voxel away
        assert lesion_at(numbers, grid, tuple(beside + offset), 3.0) == 3
    assert lesion_at(numbers, grid, tuple(beside), 2.9) == 0


def test_a_place_decides_which_finding_is_meant():
    one = analysis()
    for decision in (
        Decision("reject", (2,), place(COUNTED)),
        Decision("reject", (7,), place(COUNTED)),
        Decision("reject", (1,), place(COUNTED)),
    ):
        result = refine(one, [decision])
        np.testing.assert_array_equal(result.segmentation.mask("tumor"), SECOND)
        assert result.decisions[0].numbers == (1,)
    accepted = refine(one, [Decision("accept", (3,), place(UNSURE))])
    np.testing.assert_array_equal(accepted.segmentation.mask("tumor"), COUNTED | SECOND | UNSURE)
    for kind, where, says in (
        ("accept", MISSED, "There is no candidate at RAS"),
        ("dismiss", COUNTED, "There is no candidate at RAS"),
        ("reject", UNSURE, "There is no lesion at RAS"),
        ("restore", COUNTED, "There is no rejected lesion at RAS"),
    ):
        with pytest.raises(UsageError, match=says):
            refine(one, [Decision(kind, (1,), place(where))])
    gone = refine(one, [reject(1), reject(2)])
    back = refine(gone, [Decision("restore", (1,), place(SECOND))])
    np.testing.assert_array_equal(back.segmentation.mask("tumor"), SECOND)


def test_the_places_of_several_lesions_decide_which_are_meant():
    three = refine(analysis(), [accept(1)])
    assert three.measurements.lesion_count == 3
    swapped = Decision("target", (2, 3), points_lps_mm=(place(SECOND), place(COUNTED)))
    found = refine(three, [swapped])
    numbers = lesion_components(found.segmentation)
    assert set(found.measurements.recist.targets) == {int(numbers[m][0]) for m in (SECOND, COUNTED)}
    joined = refine(three, [Decision("merge", (2, 3), points_lps_mm=(place(SECOND), place(COUNTED)))])
    assert joined.measurements.lesion_count == 2
    assert len(joined.decisions[-1].points_lps_mm) == 2
    with pytest.raises(UsageError, match="are one lesion now"):
        refine(three, [Decision("merge", (1, 2), points_lps_mm=(place(COUNTED), place(COUNTED)))])
    with pytest.raises(UsageError, match="3 lesions were named, but 2 places"):
        refine(three, [Decision("merge", (1, 2, 3), points_lps_mm=(place(COUNTED), place(SECOND)))])


def test_the_centroid_of_a_lesion_identifies_it_even_if_it_lies_outside():
    one = analysis()
    ring = ball((12, 14, 24), 13) & ~ball((12, 14, 24), 9)
    hollow = refine(one, labels=edited(edited_away(one), ring, 2))
    (number,) = np.unique(lesion_components(hollow.segmentation)[ring]).tolist()
    centroid = hollow.measurements.lesions[number - 1].centroid_lps_mm
    result = refine(hollow, [Decision("reject", (number,), centroid)])
    assert not (result.segmentation.mask("tumor") & ring).any()


def test_a_lesion_around_another_is_not_taken_for_it():
    one = edited_away(analysis())
    core, ring = ball((12, 14, 24), 3), ball((12, 14, 24), 13) & ~ball((12, 14, 24), 9)
    around = refine(one, labels=edited(one, core | ring, 2))
    listed = listed_in(around.measurements.to_dict())
    numbers = lesion_components(around.segmentation)
    for mask, other in ((core, ring), (ring, core)):
        (number,) = np.unique(numbers[mask]).tolist()
        result = refine(around, as_listed([reject(number)], listed, around))
        assert not (result.segmentation.mask("tumor") & mask).any()
        assert result.segmentation.mask("tumor")[other].all()


def edited_away(one):
    return refine(one, [reject(1)])


def test_a_dismissed_candidate_is_listed_as_rejected_and_can_be_accepted(tmp_path):
    one = analysis()
    mine = refine(one, [dismiss(1)], who="Dr. A")
    np.testing.assert_array_equal(labels_of(mine), labels_of(one))
    assert [x.status for x in mine.measurements.candidates] == ["rejected"]
    assert mine.measurements.rejected == ()
    assert (mine.decisions[0].kind, mine.decisions[0].who) == ("dismiss", "Dr. A")
    assert not mine.decisions[0].changes_outlines
    np.testing.assert_allclose(mine.decisions[0].place_lps_mm, place(UNSURE), atol=1.5)
    assert mine.measurements.summary().splitlines()[-2].endswith("rejected by the reader")
    assert [x.status for x in restarted(mine).measurements.candidates] == ["rejected"]
    files = Options(viewer=False, write=("report",)).save(mine, tmp_path).files
    assert json.loads(files["measurements"].read_text())["candidates"][0]["status"] == "rejected"
    text = files["report"].read_text()
    assert "(rejected by the reader)" in text
    assert "dismiss 1 at LPS" in text
    assert "&#34;voxels&#34;" not in text
    assert "&#34;before&#34;" not in text
    accepted = refine(mine, [accept(1)])
    assert [x.status for x in accepted.measurements.candidates] == ["accepted"]
    with pytest.raises(UsageError, match="was accepted"):
        refine(accepted, [dismiss(1)])
    with pytest.raises(UsageError, match="There is no candidate 2"):
        refine(one, [dismiss(2)])


def test_a_dismissed_candidate_is_no_lesion_at_any_sensitivity():
    mine = refine(graded(), [dismiss(1)], who="Dr. A")
    sensitive = change_sensitivity(restarted(mine), "sensitive")
    np.testing.assert_array_equal(sensitive.segmentation.mask("tumor"), COUNTED | SECOND)
    assert [x.who for x in sensitive.measurements.rejected] == ["Dr. A"]
    back = refine(sensitive, [restore(1)])
    np.testing.assert_array_equal(back.segmentation.mask("tumor"), COUNTED | SECOND | UNSURE)
    assert [x.status for x in change_sensitivity(sensitive, "standard").measurements.candidates] == ["rejected"]
    undone = undo(sensitive)
    np.testing.assert_array_equal(undone.segmentation.mask("tumor"), COUNTED | SECOND | UNSURE)


def explained(one):
    """`one` with heat maps and answers about both lesions, the liver and a point."""
    heat = one.volume.with_array(one.volume.array.astype(np.float32) / 1000)
    about = {"labels_sha256": one.segmentation.checksum}
    evidence = {"probability": 0.9, "in_image": 0.9, "without": 0.1, "elsewhere": None, "alone": 0.8}
    border = {"points": 8, "radii_mm": [10.0], "counts": [8, 0], "tolerance_mm": 1.0, "far": []}
    needed = {"probability": 0.1, "in_image": 0.1, "diameters_mm": [10], "needed": [None], "contrasts_hu": [-40]}
    x, y, z = place(MISSED)
    return dataclasses.replace(
        one,
        explanations=tuple(
            Explanation(heat, 1.0, Target.parse(name), "hires-cam", "", provenance=about)
            for name in ("tumor", "lesion:1", "lesion:2-vs-liver")
        ),
        answers=(
            BorderNeed(Target.parse("liver"), border),
            Counterfactual(Target.parse("lesion:1"), {**evidence, "without": 0.11}),
            Counterfactual(Target.parse("lesion:2"), {**evidence, "without": 0.22}),
            NeededChange(Target.parse(f"why-not-tumor:voxel:lps:{x},{y},{z}"), needed),
        ),
    )


def told(one):
    """The answers about lesions by target and evidence, the other answers, the heat maps, and the warnings."""
    lesions = {str(x.target): x.evidence["without"] for x in one.answers if isinstance(x, Counterfactual)}
    others = [x.kind for x in one.answers if not isinstance(x, Counterfactual)]
    return lesions, others, [str(x.target) for x in one.explanations], len(one.provenance["warnings"])


def test_explanations_of_unchanged_lesions_are_kept_under_their_new_numbers():
    one = explained(analysis())
    both = ["border", "needed-change"]
    fewer = refine(one, [reject(1)])
    assert told(fewer) == ({"lesion:1": 0.22}, both, ["tumor", "lesion:1-vs-liver"], 0)
    assert "lesion 1" in fewer.answers[2].sentence
    assert fewer.explanations[1].remarks(fewer.segmentation) == ()
    assert fewer.explanations[0].remarks(fewer.segmentation) != ()
    back = refine(fewer, [restore(1)])
    assert told(back) == ({"lesion:1": 0.11, "lesion:2": 0.22}, both, ["tumor", "lesion:1", "lesion:2-vs-liver"], 0)
    assert [str(x.target) for x in back.answers[2:]] == ["lesion:1", "lesion:2"]
    assert told(undo(fewer))[0] == {"lesion:2": 0.22, "lesion:1": 0.11}
    smaller = refine(one, [exclude(place(ball((12, 14, 22), 1)))])
    lesions, others, heat_maps, warnings = told(smaller)
    assert (lesions, others, heat_maps, warnings) == ({"lesion:2": 0.22}, both, ["tumor", "lesion:2-vs-liver"], 1)
    assert "the lesion at RAS" in smaller.provenance["warnings"][0]
    assert "Ask again" in smaller.provenance["warnings"][0]
    assert told(refine(smaller, [split(1)]))[3] == 1
    assert told(refine(smaller, [split(2)]))[3] == 2
    assert told(undo(smaller)) == told(back)
    # What was asked again is kept, and nothing is said about it again.
    asked = dataclasses.replace(explained(smaller), provenance={**smaller.provenance, "warnings": []})
    assert told(refine(asked, [reject(2)])) == ({"lesion:1": 0.11}, both, ["tumor", "lesion:1"], 0)
    found = told(refine(one, [add(place(MISSED))]))
    assert found[1] == ["border"], "the question why there is no tumor has no meaning any more"
    assert found[3] == 1
    liver = refine(one, labels=edited(one, ball((12, 44, 24), 8), 0))
    assert told(liver)[1] == ["needed-change"]
    assert told(refine(one, [choose_targets(1)]))[0] == {"lesion:1": 0.11, "lesion:2": 0.22}


def test_heat_maps_of_labels_hold_while_the_voxels_do_that_they_depend_on():
    heat = np.zeros(analysis().volume.shape, np.float32)

    def asked(one):
        about = {"labels_sha256": one.segmentation.checksum}
        map_ = one.volume.with_array(heat)
        targets = map(Target.parse, ("liver", "tumor", "tumor:voxel:lps:{},{},{}".format(*place(SECOND))))
        maps = tuple(Explanation(map_, 1.0, target, "hires-cam", "", provenance=about) for target in targets)
        return dataclasses.replace(one, explanations=maps)

    def hold(one):
        return [x.is_about(one.segmentation) for x in one.explanations]

    one = asked(analysis())
    fewer = refine(one, [reject(1)])
    assert hold(fewer) == [True, False, True]
    assert hold(refine(fewer, [reject(1)])) == [True, False, False]
    assert hold(undo(fewer)) == [True, True, True]
    assert hold(refine(fewer, [restore(1)])) == [True, True, True]
    # Where channels exclude each other, rejecting a lesion changes the channel that is explained there.
    (*first, last) = one.model.stages
    exclusive = dataclasses.replace(last, activation="softmax")
    model = dataclasses.replace(one.model, stages=(*first, exclusive))
    fewer = refine(dataclasses.replace(one, model=model), [reject(1)])
    assert hold(fewer) == [False, False, True]
    assert hold(undo(refine(fewer, [add(place(MISSED))]))) == [False, False, True]


def test_the_models_uncertainty_about_a_lesion_has_the_lesions_number():
    one = graded()
    known = {
        "label": "tumor",
        "lesions": [{"number": 1, "mean_probability": 0.9}, {"number": 2, "mean_probability": 0.8}],
    }
    one = dataclasses.replace(one, provenance={**one.provenance, "uncertainty": known})

    def uncertainty(other):
        return {x["number"]: x["mean_probability"] for x in other.provenance["uncertainty"]["lesions"]}

    gone = refine(one, [reject(1)])
    assert uncertainty(gone) == {1: 0.8}
    assert uncertainty(refine(gone, [restore(1)])) == uncertainty(undo(gone)) == {1: 0.9, 2: 0.8}
    assert uncertainty(refine(one, [split(1)])) == {2: 0.8}
    more = change_sensitivity(one, "sensitive")  # the candidate, a lesion there, is larger than lesion 2
    assert uncertainty(more) == {1: 0.9, 3: 0.8}
    assert one.provenance["uncertainty"] == known


def test_files_have_the_answers_under_their_new_numbers(tmp_path):
    fewer = refine(explained(analysis()), [reject(1)])
    files = lx.write_analysis(fewer, tmp_path, write=["tables"])
    answers = json.loads(files["provenance"].read_text())["answers"]
    assert [(x["target"], x["evidence"].get("without")) for x in answers][-1] == ("lesion:1", 0.22)
    assert answers == [x.to_dict() for x in fewer.answers]


def test_explanations_follow_the_sensitivity():
    one = explained(graded())
    sensitive = change_sensitivity(refine(one, [reject(2)]), "sensitive")
    (number,) = np.unique(lesion_components(sensitive.segmentation)[COUNTED]).tolist()
    assert told(sensitive)[0] == {f"lesion:{number}": 0.11}


ROUNDS = {
    "accept": [accept(1)],
    "dismiss": [dismiss(1)],
    "reject": [reject(1)],
    "merge": [merge(1, 2)],
    "split": [split(1)],
    "include": [include(BESIDE)],
    "exclude": [exclude(place(ball((12, 14, 22), 1)))],
    "add": [add(place(MISSED))],
    "measure": [measure_lesion(1, CALIPERS)],
    "target": [choose_targets(2)],
}


EARLIER = {
    "first": [],
    "later": [[reject(2), exclude(place(ball((12, 14, 26), 1)))]],
    "later with a second lesion": [[reject(2), exclude(place(ball((12, 14, 26), 1)))], [add(place(MISSED))]],
}


def at_other_sensitivities(one):
    """The labels of a result at sensitivities at which the model has fewer and more lesions."""
    one = dataclasses.replace(one, model=graded().model)
    return [labels_of(change_sensitivity(one, end)) for end in ("specific", "sensitive")]


@cache
def started(before):
    """The result after earlier rounds of decisions, and its labels at other sensitivities, for several tests."""
    one = analysis()
    for decisions in EARLIER[before]:
        one = refine(one, decisions)
    return one, at_other_sensitivities(one)


@pytest.mark.parametrize("before", ["first", "later"])
@pytest.mark.parametrize("kind", ROUNDS)
def test_the_last_decision_can_be_taken_back(kind, before):
    if before == "later" and kind in ("merge", "target"):
        before = "later with a second lesion"
    start, expected = started(before)
    decided = refine(start, ROUNDS[kind])
    for back in (undo(decided), undo(restarted(decided))):  # in the same session and in a later one
        np.testing.assert_array_equal(labels_of(back), labels_of(start))
        assert back.measurements == start.measurements
        assert [x.kind for x in back.decisions] == [x.kind for round_ in EARLIER[before] for x in round_]
        assert (back.own is None) == (before == "first")
        # Nothing is left of it at other sensitivities.
        for found, wanted in zip(at_other_sensitivities(back), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_manual_edits_can_be_taken_back_and_only_the_last_decision_is():
    one = refine(analysis(), [reject(1)])
    drawn = refine(one, [accept(1)], edited(one, ball((14, 30, 30), 5), 0))
    assert [x.kind for x in drawn.decisions] == ["reject", "edit", "accept"]
    np.testing.assert_array_equal(labels_of(undo(undo(drawn))), labels_of(one))
    np.testing.assert_array_equal(labels_of(undo(undo(undo(drawn)))), labels_of(analysis()))
    with pytest.raises(UsageError, match="no decision that could be undone"):
        undo(undo(undo(undo(drawn))))
    # Also where an earlier decision has changed the same voxels, and in another session.
    later = resume(one.own, edited(one, COUNTED & ball((12, 14, 24), 4), 2), one.decisions, edited=True)
    assert [x.kind for x in later.decisions] == ["reject", "edit"]
    np.testing.assert_array_equal(labels_of(undo(later)), labels_of(one))


def test_what_was_decided_at_another_sensitivity_is_taken_back_at_the_current_one():
    one = graded()
    sensitive = change_sensitivity(one, "sensitive")
    (number,) = np.unique(lesion_components(sensitive.segmentation)[UNSURE]).tolist()
    away = change_sensitivity(refine(sensitive, [reject(number)]), "standard")
    back = undo(away)
    np.testing.assert_array_equal(labels_of(back), labels_of(one))
    accepted = change_sensitivity(refine(one, [accept(1)]), "sensitive")
    np.testing.assert_array_equal(labels_of(undo(accepted)), labels_of(sensitive))


def test_places_in_messages_are_those_that_slicer_shows():
    x, y, z = place(ball((1, 2, 2), 1))
    where = rf"RAS \({-round(x)}, {-round(y)}, {round(z)}\) mm"
    for decide in (add, include, exclude):
        with pytest.raises(UsageError, match=where):
            refine(analysis(), [decide((x, y, z))])


def test_a_decision_survives_json():
    one = refine(refine(analysis(), [measure_lesion(1, CALIPERS), dismiss(1)]), [split(1)])
    for decision in one.decisions:
        again = Decision.from_dict(json.loads(json.dumps(decision.to_dict())))
        assert dataclasses.replace(again, place_lps_mm=None, points_lps_mm=()) == dataclasses.replace(
            decision, place_lps_mm=None, points_lps_mm=()
        )


@pytest.fixture(scope="module")
def three(toy_model, tmp_path_factory):
    """A CT with three lesions, and the folder of its analysis by the command line."""
    from batch_toys import phantom

    folder = tmp_path_factory.mktemp("record")
    lx.write_volume(phantom(lesions=3), folder / "ct.nii.gz")
    words = ["analyze", str(folder / "ct.nii.gz"), "-o", str(folder / "result")]
    assert main([*words, "--model", toy_model, "--no-report", "--device", "cpu", "--explain", "lesion:2"]) == 0
    return folder


@pytest.fixture
def command(three, toy_model, tmp_path):
    """Run ``refine`` on a copy of the result; return the exit code. `result` is the copy."""
    result = tmp_path / "result"
    shutil.copytree(three / "result", result)

    def run(*words, explain=()):
        common = ["--image", str(three / "ct.nii.gz"), "--model", toy_model, "--no-report", "--device", "cpu"]
        return main(["refine", str(result), *words, *common, "--explain", *explain])

    run.result = result
    return run


def stored(folder):
    """The lesions by their centers, and the kinds of the decisions."""
    found = json.loads((folder / "measurements.json").read_text())
    decisions = json.loads((folder / "provenance.json").read_text()).get("reader", [])
    centers = [tuple(round(x / 4) for x in one["centroid_lps_mm"]) for one in found["lesions"]]
    return centers, [one["kind"] for one in decisions], found


def draw(folder, change):
    """Change the label map (k, j, i) of a result by a function, as an editor would."""
    path = folder / "segmentation.seg.nrrd"
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    change(array)
    new = sitk.GetImageFromArray(array)
    new.CopyInformation(image)
    for key in image.GetMetaDataKeys():
        new.SetMetaData(key, image.GetMetaData(key))
    sitk.WriteImage(new, str(path))


def pieces_of(array):
    """The lesions of a label map, the largest first: bool (k, j, i)."""
    numbers = components(array == 2, corners=True, largest_first=True)
    return [numbers == number for number in range(1, numbers.max() + 1)]


def shrink_first(array):
    """Make the largest lesion the smallest, without moving its center far."""
    first, *_, last = pieces_of(array)
    rim = first.copy()
    while rim.sum() >= last.sum():
        rim &= ndimage.binary_erosion(rim)
    assert rim.any()
    array[first & ~rim] = 1


def test_numbers_on_the_command_line_are_those_of_the_report_after_an_edit_too(command, capsys):
    before, _, _ = stored(command.result)
    draw(command.result, shrink_first)
    assert command("--reject", "1") == 0
    after, kinds, _ = stored(command.result)
    assert kinds == ["edit", "reject"]
    assert before[0] not in after
    assert set(after) == set(before[1:])
    assert "reject 3 at LPS" in capsys.readouterr().out


def test_an_edited_label_map_is_measured_without_a_decision(command, capsys):
    before, _, _ = stored(command.result)
    assert command() == 2
    assert "No decision was given, and the label map was not edited" in capsys.readouterr().err
    draw(command.result, shrink_first)
    assert command() == 0
    after, kinds, found = stored(command.result)
    assert kinds == ["edit"]
    assert (after[2], after[:2]) == (before[0], before[1:])
    assert found["lesions"][2]["source"] == "model, edited by the reader"
    assert command("--reject", "1") == 0  # by the numbers of the new measurements
    assert stored(command.result)[0] == [before[2], before[0]]


def erase_first(array):
    array[pieces_of(array)[0]] = 1


def divide_first(array):
    first = pieces_of(array)[0]
    i = np.argwhere(first)[:, 2]
    array[..., (i.min() + i.max()) // 2][first[..., (i.min() + i.max()) // 2]] = 1


def join_all(array):
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(array == 2))
    array[box] = 2


@pytest.mark.parametrize(
    ("change", "says"),
    [(erase_first, "1, at RAS .* was erased"), (divide_first, "was divided since"), (join_all, "1 and 2 were joined")],
)
def test_a_lesion_that_an_edit_made_ambiguous_is_not_decided_about(command, capsys, change, says):
    draw(command.result, change)
    assert command("--reject", "1") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(says, told)
    assert "Measure the edited label map first" in told
    assert stored(command.result)[1] == []


def test_the_command_takes_decisions_back(command, capsys):
    before, _, found = stored(command.result)
    assert command("--reject", "1") == 0
    assert command("--reject", "1") == 0
    assert stored(command.result)[0] == before[2:]
    # The numbers of further decisions are those of the report.
    assert command("--undo", "--split", "1") == 0
    assert "undone: reject 1 at LPS" in capsys.readouterr().out
    centers, kinds, _ = stored(command.result)
    assert kinds == ["reject", "split"]
    assert before[1] in centers
    assert command("--undo", "--undo") == 0
    centers, kinds, again = stored(command.result)
    assert (centers, kinds) == (before, [])
    assert again == found
    assert not (command.result / "segmentation-model.seg.nrrd").exists()
    assert command("--undo") == 2
    assert "no decision that could be undone" in capsys.readouterr().err


def test_the_command_dismisses_a_candidate(three, command, toy_model, capsys):
    assert command("--dismiss", "9") == 2
    assert "There is no candidate 9" in capsys.readouterr().err
    words = ["analyze", str(three / "ct.nii.gz"), "-o", str(command.result), "--model", toy_model, "--no-report"]
    assert main([*words, "--device", "cpu", "--explain", "--min-lesion-ml", "5"]) == 0
    assert command("--dismiss", "2") == 0
    assert [x["status"] for x in stored(command.result)[2]["candidates"]] == ["open", "rejected", "open"]
    assert command("--accept", "2") == 0
    assert [x["status"] for x in stored(command.result)[2]["candidates"]] == ["open", "accepted", "open"]
    assert command("--undo", "--undo") == 0
    assert [x["status"] for x in stored(command.result)[2]["candidates"]] == ["open"] * 3


def test_the_command_answers_again_under_the_new_numbers(command):
    assert command("--reject", "1", explain=("lesion:1",)) == 0
    told = json.loads((command.result / "provenance.json").read_text())
    assert sorted(one["target"] for one in told["answers"]) == ["lesion:1", "lesion:2"]
    assert (command.result / "heatmap-lesion-1.nrrd").exists()
    assert not (command.result / "heatmap-lesion-2.nrrd").exists()


@pytest.mark.parametrize(
    ("words", "kinds"),
    [(["--no-answers"], set()), (["--regions"], {"counterfactual", "regions"}), ([], {"counterfactual"})],
)
def test_the_command_computes_the_answers_that_are_asked_for(command, words, kinds):
    assert command("--reject", "1", *words, explain=("lesion:1",)) == 0
    told = json.loads((command.result / "provenance.json").read_text())
    assert {one["kind"] for one in told["answers"]} == kinds
    assert (command.result / "heatmap-lesion-1.nrrd").exists()


@pytest.mark.parametrize("words", [["--reject", "1"], ["--undo", "--reject", "1"]])
def test_numbers_of_a_lost_list_are_refused_where_they_could_mean_other_lesions(command, capsys, words):
    if "--undo" in words:
        assert command("--reject", "2") == 0
    else:
        draw(command.result, shrink_first)
    (command.result / "measurements.json").write_text("{")
    before = (command.result / "provenance.json").read_bytes()
    assert command(*words) == 2
    assert "measurements.json is missing or damaged" in capsys.readouterr().err
    assert (command.result / "provenance.json").read_bytes() == before


def test_a_refined_result_is_not_written_over_decisions_about_another(command, tmp_path, capsys):
    other = str(tmp_path / "other")
    assert command("--reject", "1", "-o", other) == 0
    before = (tmp_path / "other" / "provenance.json").read_bytes()
    assert command("--split", "1", "-o", other) == 2
    assert "holds a result with 1 decision of a reader, which would be lost." in capsys.readouterr().err
    assert (tmp_path / "other" / "provenance.json").read_bytes() == before
    same = f"{command.result.parent}/./{command.result.name}/"
    for _ in range(2):  # the same folder: the decisions add up
        assert command("--reject", "1", "-o", same) == 0
    assert stored(command.result)[1] == ["reject", "reject"]


def test_targets_may_be_given_one_by_one_like_other_numbers(command):
    assert command("--targets", "1", "--targets", "3") == 0
    assert stored(command.result)[2]["recist"]["targets"] == [1, 3]


def test_outlines_of_another_machine_are_the_models_and_no_edit_of_the_reader(command):
    # As if the network had been less sure of the rim of a lesion there.
    draw(command.result, shrink_first)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(command.result / "segmentation.seg.nrrd")))
    path = command.result / "provenance.json"
    told = json.loads(path.read_text())
    assert len(told["model_labels_sha256"]) == 64
    told["model_labels_sha256"] = hashlib.sha256(labels.tobytes()).hexdigest()
    path.write_text(json.dumps(told))
    (command.result / "measurements.json").unlink()
    assert command() == 2  # nothing to measure again
    for left in (2, 1):
        assert command("--reject", "1") == 0
        _, kinds, found = stored(command.result)
        assert kinds == ["reject"] * (3 - left)
        assert [one["source"] for one in found["lesions"]] == ["model"] * left
    own = json.loads((command.result / "measurements-model.json").read_text())
    sizes = [mask.sum() for mask in pieces_of(labels)]
    voxel_ml = own["lesions"][0]["volume_ml"] / sizes[0]
    assert [one["volume_ml"] for one in own["lesions"]] == pytest.approx([size * voxel_ml for size in sizes], rel=1e-4)


def test_outlines_of_another_machine_that_are_lost_are_told(command, capsys):
    path = command.result / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_labels_sha256": "0" * 64}))
    assert command("--reject", "1") == 0
    assert "lesions that were not changed may count as edited" in " ".join(capsys.readouterr().err.split())


def test_a_segment_that_an_editor_added_is_not_lost(command, tmp_path, capsys):
    path = command.result / "segmentation.seg.nrrd"
    image = sitk.ReadImage(str(path))
    for key, value in {"ID": "S3", "Name": "spleen", "LabelValue": "3", "Layer": "0"}.items():
        image.SetMetaData(f"Segment2_{key}", value)
    sitk.WriteImage(image, str(path))
    before = path.read_bytes()
    assert command("--reject", "1") == 2
    assert "also has 'spleen', which the new result would not have" in " ".join(capsys.readouterr().err.split())
    assert path.read_bytes() == before
    assert command("--reject", "1", "-o", str(tmp_path / "other")) == 0
