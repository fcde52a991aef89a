# SPDX-License-Identifier: Apache-2.0
"""analyze() performs all steps, and write_analysis() leaves complete results or none."""

from __future__ import annotations

import dataclasses
import json

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from batch_toys import write_dicom, write_good, write_model
from toys import Thresholds, ball_phantom, dice, model_of, threshold_model

from LiverXAILib import pipeline
from LiverXAILib.context import RunContext
from LiverXAILib.errors import Cancelled, InputError, UsageError
from LiverXAILib.explain.border import explain_border
from LiverXAILib.explain.counterfactual import explain_lesions
from LiverXAILib.explain.stage_context import StageContext
from LiverXAILib.inference import Segmentation
from LiverXAILib.inference.mirrored import MirroredLiver
from LiverXAILib.models import LIVER, LayerSpec, load_model
from LiverXAILib.models.spec import TUMOR, Region
from LiverXAILib.options import Options
from LiverXAILib.pipeline import analyze, write_analysis
from LiverXAILib.progress import CancelToken
from LiverXAILib.volumes.io import read_volume
from LiverXAILib.volumes.volume import Grid, Volume


@pytest.fixture(scope="module")
def volume_and_truth():
    matrix = np.diag([2.2, 1.9, 2.6, 1.0])
    matrix[:3, 3] = (13.0, -40.0, 100.0)
    return ball_phantom(Grid((44, 56, 50), matrix))


@pytest.fixture(scope="module")
def analysis_and_prepared(volume_and_truth):
    """An analysis, and about what its stages were prepared, once for each time."""
    prepare, prepared = StageContext.prepare, []

    def counted(*about):
        prepared.append(about)
        return prepare(*about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageContext, "prepare", staticmethod(counted))
        made = analyze(volume_and_truth[0], threshold_model(), targets=["liver", "tumor"], device="cpu")
    return made, prepared


@pytest.fixture(scope="module")
def analysis(analysis_and_prepared):
    return analysis_and_prepared[0]


def test_an_analysis_holds_labels_heat_maps_and_measurements(analysis, volume_and_truth):
    volume, truth = volume_and_truth
    assert dice(analysis.segmentation.mask("tumor"), truth.array == 2) > 0.88
    assert [str(explanation.target) for explanation in analysis.explanations] == ["liver", "tumor"]
    for explanation in analysis.explanations:
        assert explanation.heatmap.grid.matches(volume.grid)
        assert explanation.heatmap.array.dtype == np.float32
        assert explanation.heatmap.array.min() >= 0
        assert explanation.heatmap.array.max() == pytest.approx(1.0)
    assert json.loads(json.dumps(analysis.provenance))["segmentation"]["model"]["name"] == "toy"


def test_an_image_that_seems_mirrored_is_doubted_unless_the_contours_were_given(volume_and_truth, monkeypatch):
    (volume, _), model = volume_and_truth, threshold_model()
    suspicion = MirroredLiver("mirrored left to right", 1500, 300)
    monkeypatch.setattr(pipeline, "find_mirrored_liver", lambda *_, **__: suspicion)
    found = analyze(volume, model, targets=[], device="cpu")
    assert found.provenance["mirrored"] == [suspicion.describe()]
    assert found.measurements.plausible is False
    assert found.provenance["warnings"][0] == f"Implausible: {suspicion.describe()}"
    given = analyze(volume, model, targets=[], device="cpu", segmentation=found.segmentation)
    assert given.provenance["mirrored"] == []
    assert suspicion.describe() not in str(given.provenance["warnings"])


def test_mirrored_copies_are_segmented_only_after_the_same_network_was_explained(volume_and_truth, monkeypatch):
    events = []
    explain = pipeline.explain_and_ask

    def explaining(*args, **named):
        result = explain(*args, **named)
        events.append("explained")
        return result

    monkeypatch.setattr(pipeline, "explain_and_ask", explaining)
    monkeypatch.setattr(pipeline, "find_mirrored_liver", lambda *_, **__: events.append("mirrored"))
    analyze(volume_and_truth[0], threshold_model(), targets=["liver"], answers=False, device="cpu")
    assert events == ["explained", "mirrored"]


def test_a_stage_is_prepared_once_and_answers_as_if_each_question_were_asked_alone(
    volume_and_truth, analysis_and_prepared
):
    (volume, _), (analysis, prepared), model = volume_and_truth, analysis_and_prepared, threshold_model()
    assert len(prepared) == len(model.spec.stages) == 1
    border = explain_border(volume, model, analysis.segmentation, "liver")
    (lesion,) = explain_lesions(volume, model, analysis.segmentation, ["lesion:1"])
    assert [answer.evidence for answer in analysis.answers] == [border.evidence, lesion.evidence]
    for name, changed in lesion.volumes.items():
        np.testing.assert_array_equal(analysis.answers[1].volumes[name].array, changed.array)


def test_written_files_can_be_read_by_others_and_lie_in_the_same_place(analysis, volume_and_truth, tmp_path):
    volume, _ = volume_and_truth
    files = write_analysis(analysis, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in files.values()}
    assert {
        "segmentation.seg.nrrd",
        "heatmap-liver.nrrd",
        "heatmap-tumor.nrrd",
        "measurements.json",
        "measurements.csv",
        "report.html",
        "provenance.json",
    } == {path.name for path in files.values()}
    labels = sitk.ReadImage(str(files["segmentation"]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), analysis.segmentation.labels.array)
    heatmap = read_volume(files["heatmap-tumor"], force=True)
    assert heatmap.grid.matches(volume.grid)
    np.testing.assert_array_equal(heatmap.array, analysis.explanations[1].heatmap.array)
    assert json.loads(files["provenance"].read_text(encoding="utf-8"))["warnings"] == []
    assert "research use only" in files["report"].read_text(encoding="utf-8").lower()


def test_a_second_analysis_replaces_the_first_and_its_heat_maps(analysis, volume_and_truth, tmp_path):
    write_analysis(analysis, tmp_path / "out", report=False)
    again = analyze(volume_and_truth[0], threshold_model(), targets=["lesion:1"], device="cpu")
    files = write_analysis(again, tmp_path / "out", report=False)
    assert [path.name for path in (tmp_path / "out").glob("heatmap-*")] == [files["heatmap-lesion-1"].name]


def test_what_was_not_found_is_not_explained_but_said(volume_and_truth):
    volume, _ = volume_and_truth
    dull = volume.with_array(np.minimum(volume.array, 100))
    result = analyze(dull, threshold_model(), targets=["liver", "tumor", "lesion:3"], device="cpu")
    assert [str(explanation.target) for explanation in result.explanations] == ["liver"]
    assert sum("Not explained" in warning for warning in result.provenance["warnings"]) == 2


@pytest.mark.parametrize(("longest", "warned"), [(7.5, False), (7.6, True), (12.0, True)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_coarse_voxels_cause_a_warning(volume_and_truth, longest, warned, axis):
    volume, truth = volume_and_truth
    matrix = volume.ijk_to_lps.copy()
    matrix[:3, axis] *= longest / volume.spacing[axis]
    options = {"targets": (), "answers": False, "device": "cpu"}
    coarse = Volume(volume.array, matrix)
    told = analyze(coarse, threshold_model(), **options).provenance["warnings"]
    assert any(f"The voxels are {longest:g} mm long" in sentence for sentence in told) == warned
    given = Segmentation(Volume(truth.array, matrix), (LIVER, TUMOR), provenance={"source": "x", "warnings": []})
    told = analyze(coarse, threshold_model(), segmentation=given, **options).provenance["warnings"]
    assert not any("mm long" in sentence for sentence in told)


def test_a_model_that_knows_no_tumors_is_asked_about_the_liver_alone(volume_and_truth):
    model = threshold_model()
    model.spec = dataclasses.replace(model.spec, labels=(LIVER,))
    result = analyze(volume_and_truth[0], model, device="cpu")
    assert [str(answer.target) for answer in result.answers] == ["liver"]
    assert result.explanations == ()
    assert result.measurements.tumor_volume_ml is None
    with pytest.raises(UsageError, match="no label 'tumor'"):
        analyze(volume_and_truth[0], model, targets=["tumor"])


def test_a_dicom_series_gets_a_dicom_segmentation_that_lies_on_its_slices(tmp_path):
    write_dicom(tmp_path / "scan")
    options = Options(explain=(), report=False, scene=False, dicom=True)
    volume = options.read(tmp_path / "scan")
    result = options.analyze(volume, load_model(write_model(tmp_path / "model")), RunContext(device="cpu"))
    files = options.save(result, tmp_path / "out").files
    assert str(tmp_path) not in files["provenance"].read_text(encoding="utf-8")
    dicom = highdicom.seg.segread(files["dicom"])
    source = pydicom.dcmread(volume.metadata["files"][0], stop_before_pixels=True)
    assert (dicom.StudyInstanceUID, dicom.Modality) == (source.StudyInstanceUID, "SEG")
    uids = [pydicom.dcmread(name, stop_before_pixels=True).SOPInstanceUID for name in volume.metadata["files"]]
    masks = dicom.get_pixels_by_source_instance(uids, combine_segments=False, assert_missing_frames_are_empty=True)
    for number, name in enumerate(("liver", "tumor"), start=1):
        description = dicom.get_segment_description(number)
        assert description.segment_label == name
        assert description.segmented_property_type.value == result.segmentation.spec(name).type[1]
        np.testing.assert_array_equal(masks[..., number - 1], result.segmentation.mask(name))
    options = dataclasses.replace(options, dicom=False)
    options.save(result, tmp_path / "out")
    assert not (tmp_path / "out" / "segmentation.dcm").exists()


def test_a_dicom_segmentation_of_something_else_is_refused_before_any_work(tmp_path):
    write_good(tmp_path / "ct.nrrd")
    with pytest.raises(UsageError, match="read from DICOM"):
        Options(dicom=True).read(tmp_path / "ct.nrrd")


def test_an_unknown_target_or_method_is_refused_before_any_work(volume_and_truth):
    volume, _ = volume_and_truth
    seen: list[float] = []
    with pytest.raises(UsageError, match="explained"):
        analyze(volume, threshold_model(), targets=["spleen:"], progress=lambda s, f: seen.append(f))
    with pytest.raises(UsageError, match="no label 'spleen'"):
        analyze(volume, threshold_model(), targets=["spleen"], progress=lambda s, f: seen.append(f))
    with pytest.raises(UsageError, match="method"):
        analyze(volume, threshold_model(), method="crystal-ball", progress=lambda s, f: seen.append(f))
    with pytest.raises(UsageError, match="no layer"):
        analyze(volume, threshold_model(), layer="encoder.7", progress=lambda s, f: seen.append(f))
    outside = "voxel:lps:5000,0,0"
    for target in (outside, f"tumor:{outside}-vs-liver", f"why-not-tumor:{outside}"):
        with pytest.raises(UsageError, match="outside the image"):
            analyze(volume, threshold_model(), targets=[target], progress=lambda s, f: seen.append(f))
    for size, words in (({"height_cm": 170}, "both height and weight"), ({"height_cm": 1.7, "weight_kg": 70}, "adult")):
        with pytest.raises(UsageError, match=words):
            analyze(volume, threshold_model(), **size, progress=lambda s, f: seen.append(f))
    assert seen == []


def test_what_is_known_of_one_patient_is_measured_with_and_kept(volume_and_truth):
    options = Options.from_mapping({"explain": [], "height": 170.0, "weight": 70.0, "recist_targets": [1]})
    one = options.analyze(volume_and_truth[0], threshold_model(), RunContext(device="cpu"))
    assert one.measurements.standard_volume_ml == pytest.approx(1509.7, abs=0.5)
    percent = 100 * one.measurements.functional_volume_ml / one.measurements.standard_volume_ml
    assert f"1509.7 ml, standard liver volume; the liver without lesions has {percent:.0f} % of this" in (
        one.measurements.summary()
    )
    assert one.measurements.recist.targets == (1,)
    assert one.measurements.recist.chosen_by_reader
    known = one.provenance["measured_with"]
    assert (known["height_cm"], known["weight_kg"]) == (170.0, 70.0)
    assert [target["number"] for target in known["recist_targets"]] == [1]


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({"targets": ()}, set()),
        ({"targets": ("liver",), "answers": False}, {"Explained"}),
        ({"targets": ("lesion:1",)}, {"Explained", "Examined changed CTs"}),
    ],
)
def test_no_step_is_reported_that_was_not_done(volume_and_truth, asked, steps):
    said: list[str] = []
    volume, _ = volume_and_truth
    analyze(volume, threshold_model(), device="cpu", progress=lambda stage, _: said.append(stage), **asked)
    assert {"Explained", "Examined changed CTs", "Examined regions"} & set(said) == steps
    assert said[-1] == "Analyzed"
    assert "Done" not in said


def test_a_chain_of_a_locator_and_a_finer_network_is_told_apart_in_all_that_is_written(volume_and_truth, tmp_path):
    volume, truth = volume_and_truth
    coarse = {"name": "locator", "spacing": (6.0, 6.0, 6.0), "labels": {"liver": ("liver",)}}
    fine = {"name": "organ", "region": Region("liver", 2.0), "layers": (LayerSpec("smooth", (1, 1, 1), "the sum"),)}
    (stage,) = threshold_model().spec.stages
    fields = dataclasses.asdict(stage) | {"layers": stage.layers, "intensity": stage.intensity}
    model = model_of([fields | coarse, fields | fine], {"locator": [Thresholds()], "organ": [Thresholds()]})
    result = analyze(volume, model, targets=["liver", "tumor"], device="cpu")
    assert dice(result.segmentation.mask("tumor"), truth.array == 2) > 0.88
    first, second = result.provenance["segmentation"]["stages"]
    assert (first["name"], second["name"]) == ("locator", "organ")
    assert np.prod(np.multiply(second["shape"], second["spacing_mm"])) < np.prod(volume.shape) * (2.2 * 1.9 * 2.6)
    # Both networks segment the liver; the last one counts.
    assert [explanation["stage"] for explanation in result.provenance["explanations"]] == ["organ", "organ"]
    report = write_analysis(result, tmp_path / "out")["report"].read_text(encoding="utf-8")
    assert "one value every 2 × 2 × 2 mm" in report
    assert "2. organ: Thresholds, 2 x 2 x 2 mm, within 2 mm of the liver; finds liver, tumor" in report


def test_cancelling_leaves_nothing_behind(volume_and_truth, tmp_path):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        analyze(volume_and_truth[0], threshold_model(), cancel=token)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_nothing_behind(analysis, tmp_path, monkeypatch):
    def full_disk(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("LiverXAILib.report.tables.write_tables", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_analysis(analysis, tmp_path / "out", report=False)
    assert list(tmp_path.iterdir()) == []
