# SPDX-License-Identifier: Apache-2.0
"""Two or more studies of a small liver: registration, tracks, categories, files, refusals."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from followup_toys import liver_analysis, study
from scipy import ndimage

import LiverXAILib as lx
from LiverXAILib import reading
from LiverXAILib.cli import main
from LiverXAILib.context import RunContext
from LiverXAILib.errors import Cancelled, DeviceError, InputError, UsageError
from LiverXAILib.followup import RegistrationRefused, Subject, register
from LiverXAILib.followup.comparing import compare, follow
from LiverXAILib.followup.matching import regions
from LiverXAILib.followup.studies import Identity, read_result, study_of
from LiverXAILib.followup.viable import viable_mm
from LiverXAILib.followup.writing import SCHEMA_FILE, comparison_schema
from LiverXAILib.inference import Segmentation
from LiverXAILib.measure import measure
from LiverXAILib.models import LIVER
from LiverXAILib.options import Options
from LiverXAILib.report.segmentation_file import write_segmentation_file
from LiverXAILib.volumes.io import read_labels

SHIFT = (6.0, -4.0, 8.0)
STAYS, GOES, COMES = ((-15, 0, 0), 10), ((16, 0, 4), 7), ((4, 12, -16), 7)
GROWN = ((-15, 0, 0), 14)


@pytest.fixture(scope="module")
def three():
    """A lesion that grows, one that vanishes and reappears, and a new one; the liver is at another place each time."""
    studies = [
        study("Study 1", STAYS, GOES, date="2024-01-01"),
        study("Study 2", GROWN, COMES, date="2024-03-31", shift=SHIFT, spacing=(3, 4, 5)),
        study("Study 3", GROWN, COMES, GOES, date="2024-06-29", shift=(-4, 0, -6)),
    ]
    return compare(studies)


def by_events(comparison):
    return {tuple(one.event for one in track.appearances): track for track in comparison.findings.tracks}


def test_places_are_found_again_and_back(three):
    registration = three.registrations[0]
    # Points in the liver, and their earlier positions: the ground truth is a shift.
    places = np.array([(0, 0, 0), (20, 5, 5), (-20, -5, 8), (5, 15, -10), (0, -12, 14)], float)
    assert np.linalg.norm(registration.to_prior(places + SHIFT) - places, axis=1).max() < 3.0
    np.testing.assert_allclose(registration.to_current(registration.to_prior(places)), places, atol=0.05)


def test_the_stated_dice_is_that_of_a_liver_warped_by_another_library(three):
    """The prior liver at the mapped positions of current voxels, by SciPy."""
    prior, current = three.studies[0].segmentation, three.studies[1].segmentation
    grid, liver = current.labels.grid, current.mask("liver")
    points = grid.to_lps(np.argwhere(np.ones(grid.shape, bool))[:, ::-1])
    where = prior.labels.grid.to_ijk(three.registrations[0].to_prior(points))[:, ::-1].T
    warped = ndimage.map_coordinates(prior.mask("liver").astype(float), where, order=1).reshape(grid.shape) > 0.5
    dice = 2 * (warped & liver).sum() / (warped.sum() + liver.sum())
    quality = three.findings.steps[0].quality
    assert quality.dice == pytest.approx(dice, abs=0.03)
    assert dice > 0.93
    assert 0.5 < quality.jacobian_min <= quality.jacobian_max < 1.6
    assert quality.surface_mm < 1.5
    assert quality.used_hu


def test_lesions_are_followed_through_all_studies(three):
    tracks = by_events(three)
    assert set(tracks) == {
        ("baseline", "matched", "matched"),
        ("baseline", "vanished", "seen again"),
        ("not yet", "new", "matched"),
    }
    grows = tracks["baseline", "matched", "matched"].appearances
    volumes = [np.count_nonzero(one.segmentation.labels.array == 2) for one in three.studies[:1]]
    assert sum(volumes) * 0.064 == pytest.approx(three.findings.studies[0].lesions_ml)
    before, after = three.studies[0].lesion(1), three.studies[1].lesion(1)
    assert grows[1].volume_change_ml == pytest.approx(after.volume_ml - before.volume_ml)
    assert grows[1].volume_change_percent == pytest.approx(100 * (after.volume_ml / before.volume_ml - 1))
    assert grows[1].long_change_mm == pytest.approx(after.long_mm - before.long_mm)
    days = np.log(2) * 90 / np.log(after.volume_ml / before.volume_ml)
    assert grows[1].growth.doubling_days == pytest.approx(days)
    vanished = tracks["baseline", "vanished", "seen again"].appearances[1]
    assert (vanished.volume_ml, vanished.long_mm, vanished.volume_change_percent) == (0, 0, -100)


def test_the_category_follows_from_the_sums(three):
    first, second = (responses[0] for responses in three.findings.responses)
    sums = [point.target_sum_mm for point in three.findings.studies]
    rounded = [[int(lesion.long_mm + 0.5) for lesion in one.lesions] for one in three.studies]
    assert sums[0] == sum(rounded[0])
    assert sums[1] == rounded[1][0]
    assert first.category == second.category == "PD"
    assert "1 new lesion" in first.rule
    assert "seen again" in second.rule
    assert [point.days for point in three.findings.studies] == [0, 90, 180]


def test_files_are_whole_valid_and_agree(three, tmp_path):
    import jsonschema

    (tmp_path / "notes.txt").write_text("mine")
    files = lx.write_comparison(three, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "comparison.json",
        "comparison.csv",
        "comparison.html",
        "notes.txt",
    }
    data = json.loads(files["comparison"].read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(comparison_schema()).validate(data)
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == comparison_schema()
    with files["comparison-table"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    for row in rows:
        one = data["tracks"][int(row["track"]) - 1]["appearances"][int(row["study"]) - 1]
        assert row["event"] == one["event"]
        assert row["volume_ml"] == ("" if one["volume_ml"] is None else str(one["volume_ml"]))
    page = files["comparison-report"].read_text(encoding="utf-8")
    assert "For research use only" in page
    assert page.count("<img") == 1 + 9
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_a_comparison_that_was_cancelled_or_cannot_be_written_leaves_nothing(three, tmp_path):
    token = lx.CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        compare(list(three.studies), cancel=token)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        lx.write_comparison(three, tmp_path / "file")


@pytest.fixture(scope="module")
def misfit():
    """A liver, and a flat one of half its size."""
    return [
        study("Study 1", STAYS),
        study("Study 2", ((0, 0, 0), 9), radii=(50, 12, 18)),
    ]


def test_livers_that_do_not_fit_are_refused_and_their_lesions_not_guessed(misfit):
    with pytest.raises(RegistrationRefused, match="do not match"):
        register(*(Subject(one.segmentation) for one in misfit[::-1]), RunContext())
    comparison = follow(misfit, [None, None], None, RunContext())
    findings = comparison.findings
    assert "do not match" in findings.steps[0].refused_because
    assert [[one.event for one in track.appearances] for track in findings.tracks] == [
        ["baseline", "not matched"],
        ["not yet", "not matched"],
    ]
    assert findings.responses[0][0].category == "NE"
    assert findings.studies[1].target_sum_mm is None
    assert "not matched" in findings.summary()


def test_livers_without_a_common_surface_are_refused_in_a_file_that_can_be_written(tmp_path):
    inside = study("Study 1", STAYS, radii=(200, 200, 200))  # the image shows liver everywhere
    findings = follow([inside, study("Study 2", STAYS)], [None, None], None, RunContext()).findings
    assert findings.steps[0].quality.surface_mm is None
    assert "no surface" in findings.steps[0].refused_because
    json.dumps(findings.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("voxels", "words"), [(0, "no liver"), (1, "too small")])
def test_what_is_hardly_a_liver_is_refused(voxels, words):
    one = study("Study 1", STAYS, spacing=(2, 2, 2))
    array = np.zeros_like(one.segmentation.labels.array)
    array[28, 28, 28 : 28 + voxels] = 1
    other = dataclasses.replace(one.segmentation, labels=one.segmentation.labels.with_array(array))
    assert issubclass(RegistrationRefused, lx.LiverXAIError)
    with pytest.raises(RegistrationRefused, match=words):
        register(Subject(one.segmentation), Subject(other), RunContext())


def test_a_lack_of_memory_is_not_taken_for_livers_that_do_not_fit(monkeypatch):
    import SimpleITK as sitk

    def full():
        raise RuntimeError("Failed to allocate memory for image.")

    monkeypatch.setattr(sitk, "DiffeomorphicDemonsRegistrationFilter", full)
    with pytest.raises(DeviceError, match="not enough memory"):
        compare([study("Study 1", STAYS), study("Study 2", GROWN)])


def test_what_fails_unexpectedly_is_an_error_of_this_library(three, monkeypatch, tmp_path):
    def broken(*_):
        raise ZeroDivisionError("of another library")

    monkeypatch.setattr("LiverXAILib.followup.comparing.regions", broken)
    with pytest.raises(lx.LiverXAIError, match=r"studies cannot be compared: unexpected ZeroDivisionError"):
        compare(list(three.studies))
    monkeypatch.setattr("LiverXAILib.followup.writing.write_table", broken)
    with pytest.raises(lx.LiverXAIError, match="comparison cannot be written"):
        lx.write_comparison(three, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_livers_whose_hu_tell_nothing_are_registered_by_their_surfaces():
    studies = [study("Study 1", ((0, 0, 0), 60)), study("Study 2", ((0, 0, 0), 60), shift=SHIFT)]  # all is lesion
    quality = register(*(Subject(one.segmentation, one.volume) for one in studies[::-1]), RunContext()).quality
    assert not quality.used_hu
    assert quality.dice > 0.93


def test_livers_of_other_shape_are_said_to_be_perhaps_of_another_patient(three, tmp_path):
    assert not any("patients" in remark for remark in three.findings.remarks)
    other = study("Study 2", GROWN, radii=(48, 25, 30))
    comparison = compare([study("Study 1", STAYS), other])
    remark = next(one for one in comparison.findings.remarks if "different patients" in one)
    assert f"{comparison.findings.steps[0].quality.rigid_dice:.2f}" in remark
    files = lx.write_comparison(comparison, tmp_path / "out")
    assert remark in json.loads(files["comparison"].read_text(encoding="utf-8"))["remarks"]
    assert remark in files["comparison-report"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("prior", "current", "alike"),
    # Of the available pairs, the least similar one of a patient, and the most similar one of two patients.
    [("hcc015_1", "hcc015_3", True), ("ircad01", "crlm1006", False)],
)
def test_real_livers_of_one_patient_are_alike_and_those_of_two_are_not(prior, current, alike):
    root = os.environ.get("LIVERXAI_TEST_DATA")
    if root is None:
        pytest.skip("LIVERXAI_TEST_DATA is not set")

    def subject(name):
        labels = read_labels(Path(root) / "ct" / name / "liver.nii.gz")
        mask = (labels.array > 0).astype(np.uint8)
        return Subject(Segmentation(labels.with_array(mask), (LIVER,)))

    try:
        quality = register(subject(current), subject(prior), RunContext()).quality
    except RegistrationRefused as error:
        quality = error.quality
    assert quality.alike == alike


def test_studies_that_do_not_belong_together_are_refused():
    one = study("Study 1", STAYS, date="2024-01-01", patient="a")
    late = study("Study 2", GROWN, date="2023-01-01", patient="a")
    other = study("Study 2", GROWN, date="2025-01-01", patient="b")

    def known(**identity):
        return dataclasses.replace(other, identity=Identity("a", **identity))

    one = dataclasses.replace(one, identity=Identity("a", birth_date="a", sex="f"))
    for studies, options, words in (
        ([one], {}, "two studies"),
        ([one, one], {}, "the same study"),
        ([one, late], {}, "oldest"),
        ([one, other], {}, "patient IDs"),
        ([one, known(birth_date="b", sex="m")], {}, "birth dates and sexes"),
        ([one, dataclasses.replace(other, identity=one.identity)], {"days": [0, -3]}, "increase"),
        ([one, dataclasses.replace(other, identity=one.identity)], {"days": [0, float("nan")]}, "increase"),
        ([one, dataclasses.replace(other, identity=one.identity)], {"days": [0, float("inf")]}, "increase"),
        ([one, dataclasses.replace(other, identity=one.identity)], {"images": ["ct.nii"]}, "images"),
        ([one, dataclasses.replace(other, identity=one.identity)], {"recist_targets": [4]}, "no lesion 4"),
        ([one, 7], {}, "not int"),
    ):
        with pytest.raises(UsageError, match=words):
            compare(studies, **options)


def test_a_study_without_a_liver_or_of_a_model_without_tumors_is_refused(tmp_path):
    analysis = liver_analysis([STAYS])
    for change, words in (({"liver_volume_ml": 0.0}, "no liver"), ({"tumor_volume_ml": None}, "segment tumors")):
        changed = dataclasses.replace(analysis, measurements=dataclasses.replace(analysis.measurements, **change))
        with pytest.raises(lx.LiverXAIError, match=words):
            study_of(changed, "Study 1")
    with pytest.raises(InputError, match="There is no file or folder"):
        compare([tmp_path / "nothing", tmp_path / "nothing"])
    lx.write_analysis(analysis, tmp_path / "whole", report=False)
    for name, words in (("measurements.json", "damaged"), ("provenance.json", "not a complete result")):
        lx.write_analysis(analysis, tmp_path / name, report=False)
        (tmp_path / name / name).unlink()
        with pytest.raises(InputError, match=words):
            compare([tmp_path / "whole", tmp_path / name])


def test_the_command_compares_folders_with_and_without_their_cts(tmp_path, capsys):
    studies = [liver_analysis([STAYS, GOES]), liver_analysis([STAYS], shift=SHIFT)]
    for number, one in enumerate(studies, start=1):
        lx.write_analysis(one, tmp_path / f"result-{number}", report=False)
    lx.write_volume(studies[0].volume, tmp_path / "ct.nii.gz")
    words = ["compare", str(tmp_path / "result-1"), str(tmp_path / "result-2"), "-o", str(tmp_path / "out")]
    assert main([*words, "--images", str(tmp_path / "ct.nii.gz"), "-", "--days", "0", "60", "--force"]) == 0
    output = capsys.readouterr()
    assert "→ vanished" in output.out
    assert "RECIST 1.1: PR" in output.out
    assert "research use only" in output.out
    assert "by their surfaces alone" in output.err
    data = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert data["studies"][1]["days"] == 60
    assert not data["steps"][0]["quality"]["used_hu"]
    assert main([*words, "--images", "one"]) == 2
    assert main([words[0], words[1], words[1], *words[3:]]) == 2


def test_a_result_and_the_same_one_as_a_reader_has_changed_it_are_one_study(tmp_path):
    model = liver_analysis([STAYS, GOES])
    model = dataclasses.replace(
        model, provenance={**model.provenance, "input": {"metadata": {}, "sha256": model.volume.sha256}}
    )
    lx.write_analysis(model, tmp_path / "model", report=False)
    lx.write_analysis(reading.refine(model, [reading.reject(1)]), tmp_path / "refined", report=False)
    one, other = (read_result(tmp_path / name, None, name, Options()) for name in ("model", "refined"))
    assert len(one.lesions) == len(other.lesions) + 1
    for studies in ([one, other], [study_of(model, "in memory"), other]):
        with pytest.raises(UsageError, match="are the same study"):
            compare(studies)


def test_the_readers_calipers_and_targets_count_with_and_without_the_ct(tmp_path):
    model = liver_analysis([STAYS, GOES, COMES])
    # 30 mm instead of 20 across the first lesion, of which the reader names only the second a target besides.
    calipers = reading.measure_lesion(1, [(-30, 0, 0), (0, 0, 0), (-15, -9, 0), (-15, 9, 0)])
    lx.write_analysis(reading.refine(model, [calipers]), tmp_path / "measured", report=False)
    chosen = dataclasses.replace(model, measurements=measure(model.volume, model.segmentation, targets=[3]))
    lx.write_analysis(chosen, tmp_path / "chosen", report=False)
    lx.write_volume(model.volume, tmp_path / "ct.nii.gz")
    by_rule = study_of(model, "Study 1")
    for name, targets, change in (("measured", (1, 2), 30 - round(by_rule.lesion(1).long_mm)), ("chosen", (3,), 0)):
        expected = sum(int(by_rule.lesion(number).long_mm + 0.5) for number in targets) + change
        for image in (None, tmp_path / "ct.nii.gz"):
            found = read_result(tmp_path / name, image, "Study 1", Options(force=True))
            assert set(found.targets) == set(targets)
            assert sum(int(found.lesion(number).long_mm + 0.5) for number in targets) == expected, (name, image)
            assert not found.remarks


def test_a_result_that_was_edited_after_it_was_measured_is_measured_again_or_refused(tmp_path):
    model = liver_analysis([STAYS, GOES])
    chosen = dataclasses.replace(model, measurements=measure(model.volume, model.segmentation, targets=[2]))
    lx.write_analysis(chosen, tmp_path / "result", report=False)
    lx.write_volume(model.volume, tmp_path / "ct.nii.gz")
    larger = liver_analysis([STAYS, (GOES[0], GOES[1] + 4)])  # as many lesions as before
    write_segmentation_file(larger.segmentation, tmp_path / "result" / "segmentation.seg.nrrd")
    with pytest.raises(InputError, match="was edited"):
        read_result(tmp_path / "result", None, "Study 1", Options())
    found = read_result(tmp_path / "result", tmp_path / "ct.nii.gz", "Study 1", Options(force=True))
    assert [one.long_mm for one in found.lesions] == [one.long_mm for one in study_of(larger, "").lesions]
    assert found.targets == (1, 2)
    assert "by the rule of RECIST 1.1 instead" in found.remarks[0]


def test_a_result_without_lesions_can_be_followed_with_and_without_its_ct(tmp_path):
    model = liver_analysis([])
    lx.write_analysis(model, tmp_path / "result", report=False)
    lx.write_volume(model.volume, tmp_path / "ct.nii.gz")
    for image in (None, tmp_path / "ct.nii.gz"):
        found = read_result(tmp_path / "result", image, "Study 1", Options(force=True))
        assert found.lesions == ()
        assert regions(found.segmentation) == []


def test_analyze_puts_a_comparison_with_earlier_results_into_its_report(toy_model, tmp_path, capsys):
    from batch_toys import phantom

    for name, lesions in (("may", 1), ("august", 2)):
        lx.write_volume(phantom(lesions=lesions), tmp_path / f"{name}.nii.gz")
    common = ["--model", toy_model, "--explain", "--device", "cpu", "--no-viewer"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert main(["analyze", str(tmp_path / "may.nii.gz"), "-o", first, *common, "--no-report"]) == 0
    words = ["analyze", str(tmp_path / "august.nii.gz"), "-o", second, *common, "--prior", first]
    assert main([*words, "--prior-image", str(tmp_path / "may.nii.gz")]) == 0
    assert "RECIST 1.1: PD, 1 new lesion" in capsys.readouterr().out
    page = (tmp_path / "second" / "report.html").read_text(encoding="utf-8")
    assert "Compared with earlier studies" in page
    assert "<strong>RECIST 1.1: PD</strong>" in page
    assert json.loads((tmp_path / "second" / "comparison.json").read_text(encoding="utf-8"))["steps"][0]["quality"]
    # Problems with the earlier result are reported before the new CT is analyzed.
    assert main([*words[:-1], str(tmp_path / "nothing")]) == 1
    assert "There is no file or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*words[:-1], str(tmp_path / "empty")]) == 1
    assert "not a complete result" in capsys.readouterr().err
    assert main([*words, "--prior-image", "-", "-"]) == 2
    # Plain CTs are analyzed for the comparison, and their segmentations are kept.
    out = tmp_path / "compared"
    cts = [str(tmp_path / f"{name}.nii.gz") for name in ("may", "august")]
    assert main(["compare", *cts, "-o", str(out), "--model", toy_model, "--device", "cpu"]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("comparison.json", "comparison.csv", "comparison.html"),
        *("segmentation-1.seg.nrrd", "segmentation-2.seg.nrrd"),
    }


def test_an_analysis_says_what_it_replaces_and_never_replaces_its_own_prior(toy_model, tmp_path, capsys):
    from batch_toys import phantom

    for name, lesions in (("may", 1), ("august", 2)):
        lx.write_volume(phantom(lesions=lesions), tmp_path / f"{name}.nii.gz")
    out, compared = tmp_path / "out", tmp_path / "compared"

    def analyzed(name, *words, to=out):
        common = ["--model", toy_model, "--explain", "--device", "cpu", "--no-report", "--no-scene"]
        code = main(["analyze", str(tmp_path / f"{name}.nii.gz"), "-o", str(to), *common, *words])
        said = capsys.readouterr().err
        return code, "another CT" in said, "comparison made with the earlier" in said

    assert analyzed("may") == analyzed("may") == (0, False, False)
    before = (out / "provenance.json").read_bytes()
    (tmp_path / "link").symlink_to(out)
    for prior in (out, tmp_path / "link", out / ".." / "out"):
        assert analyzed("august", "--prior", str(prior))[0] == 2
    assert (out / "provenance.json").read_bytes() == before
    # A comparison without a result in the same folder is not touched.
    assert analyzed("august", "--prior", str(out), to=compared) == (0, False, False)
    (compared / "provenance.json").unlink()
    assert analyzed("august", to=compared) == (0, False, False)
    assert (compared / "comparison.json").exists()
    assert analyzed("august", "--prior", str(out), to=compared) == (0, False, False)
    # Without the new CT's own, the comparison of the earlier result would seem to be that of the new one.
    assert analyzed("august", to=compared) == (0, False, True)
    assert not list(compared.glob("comparison.*"))
    assert analyzed("may", to=compared) == (0, True, False)


def test_the_worker_compares_its_analysis_with_earlier_results(tmp_path):
    from LiverXAILib.worker.server import RequestHandler

    class Sent(list):
        def send(self, what, **message):
            self.append((what, message))

    lx.write_analysis(liver_analysis([STAYS, GOES]), tmp_path / "prior", report=False)
    sent = Sent()
    handler = RequestHandler(tmp_path, sent)
    request = {"id": 1, "action": "compare", "token": "t", "prior": [str(tmp_path / "prior")], "days": [0, 30]}
    request["result"] = "r"
    handler.answer({**request, "folder": str(tmp_path / "out")})
    assert sent[-1][0] == "failed"
    assert "Press Apply again" in sent[-1][1]["error"]
    handler._analysis, handler._result = ("t", liver_analysis([STAYS], shift=SHIFT)), "r"
    handler.answer({**request, "folder": str(tmp_path / "out")})
    assert sent[-1][0] == "done", sent[-1]
    result = sent[-1][1]["result"]
    assert "vanished" in result["summary"]
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_only_what_is_as_bright_as_the_liver_in_the_arterial_phase_is_viable():
    one = study("Study 1", ((0, 0, 0), 16), spacing=(2, 2, 2))
    hu = one.volume.array.copy()
    half = (np.indices(hu.shape)[2] - 27.5) * 2 > 0
    hu[(one.segmentation.labels.array == 2) & half] = 150
    bright = dataclasses.replace(one, volume=one.volume.with_array(hu))
    assert viable_mm(bright, 1) == pytest.approx(32, abs=2)  # half a ball is as long as the ball
    assert viable_mm(one, 1) == 0
    lesion = one.segmentation.labels.array == 2
    hu[lesion] = 60
    hu[lesion & (np.linalg.norm(np.stack(np.indices(hu.shape), -1) * 2 - 55, axis=-1) < 8)] = 200
    core = dataclasses.replace(bright, volume=one.volume.with_array(hu))
    assert viable_mm(core, 1) == pytest.approx(16, abs=2.5)
