# SPDX-License-Identifier: Apache-2.0
"""Measurement reports, heat maps and key images as DICOM objects: valid, and read back unchanged by highdicom."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_checks import errors_of, needs_dciodvfy
from dicom_series import a_body, write_series
from test_dicom_seg import LABELS, PLACES, SHAPE, each, segmentation_of
from toys import threshold_model, without_evidence

from LiverXAILib.analysis import Analysis
from LiverXAILib.explain import Counterfactual, Target
from LiverXAILib.explain.explanation import Explanation
from LiverXAILib.measure import measure
from LiverXAILib.pipeline import write_outputs
from LiverXAILib.reading import choose_targets, measure_lesion, refine, reject, restore
from LiverXAILib.report.writers import choose_writers
from LiverXAILib.volumes.dicom_seg import read_segment_masks
from LiverXAILib.volumes.io import read_volume

HEAT = np.zeros(SHAPE, np.float32)
HEAT[2:5, 6:14, 6:14] = np.random.default_rng(0).random((3, 8, 8), np.float32)
KINDS = ["dicom", "dicom-sr", "dicom-pm"]
WHERE = ("oblique", "tilted gantry", "feet first, supine")
TAGS = {"PatientID": "4711", "PatientName": "Yamada^Tarou=山田^太郎", "SpecificCharacterSet": ["", "ISO 2022 IR 87"]}


def analysis_of(folder: Path, ijk_to_lps: np.ndarray) -> Analysis:
    write_series(folder, a_body(SHAPE), ijk_to_lps, edit=each(**TAGS))
    volume = read_volume(folder)
    segmentation = segmentation_of(volume)
    explanation = Explanation(volume.with_array(HEAT), 1.0, Target.parse("tumor"), "hires-cam", "decoder.0")
    measured = measure(volume, segmentation)
    return Analysis(volume, threshold_model().spec, segmentation, (explanation,), measured, {"warnings": []})


@pytest.fixture(scope="module", params=WHERE)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    analysis = analysis_of(folder / "ct", PLACES[request.param])
    outputs = write_outputs(analysis, folder / "out", choose_writers(KINDS))
    assert not outputs.failures
    return analysis, outputs.files


def dicom_files(files: dict[str, Path]) -> dict[str, Path]:
    return {role: path for role, path in files.items() if path.suffix == ".dcm"}


def test_the_report_tells_date_and_series_of_a_study_only_if_asked(tmp_path):
    from LiverXAILib.options import Options
    from LiverXAILib.report import write_report

    dates = {"StudyDate": "20240503", "SeriesDate": "20240504", "SeriesNumber": 3, "SeriesDescription": "Leber <pv>"}
    write_series(tmp_path / "ct", a_body(SHAPE), PLACES["upright"], edit=each(**TAGS, **dates))
    pages = []
    for asked in (False, True):
        volume = Options(study_details=asked, force=True).read(tmp_path / "ct")
        segmentation = segmentation_of(volume)
        measured = measure(volume, segmentation)
        analysis = Analysis(volume, threshold_model().spec, segmentation, (), measured, {"warnings": []})
        write_report(analysis, tmp_path / "report.html", viewer=False)
        pages.append((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "study of" not in pages[0]
    assert "Leber" not in pages[0]
    assert "study of 2024-05-03, series of 2024-05-04, series 3 (&#34;Leber &lt;pv&gt;&#34;)" in pages[1]
    assert "Yamada" not in pages[1]


@needs_dciodvfy
def test_all_objects_are_valid(written):
    _, files = written
    found = dicom_files(files)
    assert len(found) >= 4
    assert [error for path in found.values() for error in errors_of(path)] == []


def test_all_objects_belong_to_the_patient_and_the_study_and_are_new(written):
    analysis, files = written
    source = pydicom.dcmread(analysis.volume.metadata["files"][0])
    seen = {source.SOPInstanceUID}
    for path in dicom_files(files).values():
        dataset = pydicom.dcmread(path)
        assert dataset.StudyInstanceUID == source.StudyInstanceUID
        assert dataset.PatientID == "4711"
        assert str(dataset.PatientName) == "Yamada^Tarou=山田^太郎"
        assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
        assert "research" in dataset.SeriesDescription
        assert dataset.SOPInstanceUID not in seen
        seen.add(dataset.SOPInstanceUID)


def test_a_heat_map_is_read_back_to_the_voxel_and_in_its_place(written):
    analysis, files = written
    dataset = pydicom.dcmread(files["dicom-heatmap-tumor"])
    stored = highdicom.imread(files["dicom-heatmap-tumor"]).get_frames(apply_real_world_transform=True)
    places = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in dataset.PerFrameFunctionalGroupsSequence]
    slices = analysis.volume.grid.to_ijk(np.array(places, float))
    np.testing.assert_allclose(slices[:, :2], 0, atol=1e-4)
    np.testing.assert_allclose(np.sort(slices[:, 2]), [2, 3, 4], atol=1e-4)
    for k, pixels, shown in zip(slices[:, 2].round().astype(int), dataset.pixel_array, stored, strict=True):
        np.testing.assert_array_equal(pixels, HEAT[k])
        np.testing.assert_array_equal(shown, HEAT[k])


def test_the_report_holds_each_lesions_measurements_with_units(written):
    analysis, files = written
    report = highdicom.sr.srread(files["dicom-report"])
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["liver", "tumor 1", "tumor 2"]
    for group, lesion in zip(groups[1:], analysis.measurements.lesions, strict=True):
        values = {
            (one.name.meaning, one.unit.value, one.derivation and one.derivation.meaning): one.value
            for one in group.get_measurements()
        }
        assert values["Volume", "ml", None] == pytest.approx(lesion.volume_ml, rel=1e-5)
        assert values["Diameter", "mm", "Maximum"] == pytest.approx(lesion.feret_mm, rel=1e-5)
        assert values["Attenuation Coefficient", "[hnsf'U]", "Mean"] == pytest.approx(lesion.mean_hu, rel=1e-5)
    (volume,) = groups[0].get_measurements(name=highdicom.sr.CodedConcept("118565006", "SCT", "Volume"))
    assert volume.value == pytest.approx(analysis.measurements.liver_volume_ml, rel=1e-5)


def test_the_report_draws_each_caliper_where_it_was_measured(written):
    analysis, files = written
    report = highdicom.sr.srread(files["dicom-report"])
    order = [pydicom.dcmread(name).SOPInstanceUID for name in analysis.volume.metadata["files"]]
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["tumor 1", "tumor 2"]
    for group, lesion in zip(groups, analysis.measurements.lesions, strict=True):
        measured = dict(zip(("Long axis", "Short axis"), (lesion.axial.long_mm, lesion.axial.short_mm), strict=True))
        for one in group.get_measurements():
            assert one.value == pytest.approx(measured[one.name.meaning], rel=1e-5)
            (line,) = one.referenced_coordinates
            image = line.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            assert order.index(image) == lesion.axial.slice_index
            ends = np.column_stack([line.value - 0.5, np.full(2, lesion.axial.slice_index)])
            start, end = analysis.volume.grid.to_lps(ends)
            assert np.linalg.norm(end - start) == pytest.approx(one.value, rel=1e-3)


def test_diameters_that_a_reader_measured_elsewhere_are_drawn_there(written, tmp_path):
    """In another slice, and across slices: not in the slice of the automatic diameters."""
    analysis, _files = written
    grid, lesion = analysis.volume.grid, analysis.measurements.lesions[0]
    other = lesion.axial.slice_index + 1
    ends = grid.to_lps(np.array([[5, 6, other], [9, 8, other], [6, 6, other - 1], [7, 9, other + 1]], float))
    read = refine(analysis, [measure_lesion(1, ends.tolist())])
    axial = read.measurements.lesions[0].axial
    assert axial.slice_index == other
    headers = [pydicom.dcmread(name, stop_before_pixels=True) for name in analysis.volume.metadata["files"]]
    assert read.measurements.lesions[0].instance_number == headers[other].InstanceNumber
    files = write_outputs(read, tmp_path, choose_writers(["dicom-sr"])).files
    groups = highdicom.sr.srread(files["dicom-report"]).content.get_image_measurement_groups()
    (group,) = (one for one in groups if one.tracking_identifier == "tumor 1")
    lines = {one.name.meaning: one.referenced_coordinates[0] for one in group.get_measurements()}
    image = lines["Long axis"].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert image == headers[other].SOPInstanceUID
    np.testing.assert_allclose(lines["Long axis"].value, [[5.5, 6.5], [9.5, 8.5]], atol=1e-3)
    np.testing.assert_allclose(lines["Short axis"].value, ends[2:], atol=1e-2)


def test_what_a_reader_changed_is_not_called_automatic(written, tmp_path):
    analysis, files = written
    changed = refine(analysis, [reject(2)])
    same = refine(changed, [restore(1), choose_targets(1)])
    for name, one, expected in (("changed", changed, "SEMIAUTOMATIC"), ("same", same, "AUTOMATIC")):
        objects = write_outputs(one, tmp_path / name, choose_writers(["dicom", "dicom-sr"])).files
        for role in ("dicom", "dicom-lesions"):
            kinds = {segment.SegmentAlgorithmType for segment in pydicom.dcmread(objects[role]).SegmentSequence}
            assert kinds == {expected}
    assert {one.SegmentAlgorithmType for one in pydicom.dcmread(files["dicom"]).SegmentSequence} == {"AUTOMATIC"}


def test_the_report_refers_to_the_segments_of_the_lesions(written):
    analysis, files = written
    report, seg = highdicom.sr.srread(files["dicom-report"]), pydicom.dcmread(files["dicom-lesions"])
    segments = {segment.SegmentNumber: segment for segment in seg.SegmentSequence}
    masks = read_segment_masks(files["dicom-lesions"], analysis.volume.grid)
    for group in report.content.get_volumetric_roi_measurement_groups():
        (reference,) = next(one for one in group if one.name.meaning == "Measurement Group").ContentSequence.find(
            highdicom.sr.CodedConcept("121191", "DCM", "Referenced Segment")
        )
        item = reference.ReferencedSOPSequence[0]
        assert item.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        number = item.ReferencedSegmentNumber
        assert segments[number].TrackingUID == group.tracking_uid
        (volume,) = group.get_measurements(name=highdicom.sr.CodedConcept("118565006", "SCT", "Volume"))
        voxel_ml = abs(np.linalg.det(analysis.volume.ijk_to_lps[:3, :3])) / 1000
        assert masks[number].sum() * voxel_ml == pytest.approx(volume.value, rel=1e-4)


@needs_dciodvfy
def test_key_images_show_the_liver_and_each_lesion(tmp_path):
    analysis = analysis_of(tmp_path / "ct", PLACES["upright"])
    files = write_outputs(analysis, tmp_path / "out", choose_writers(["dicom-sc"])).files
    paths = [path for role, path in files.items() if "key-image" in role]
    pictures = [pydicom.dcmread(path) for path in paths]
    assert [error for path in paths for error in errors_of(path)] == []
    assert len(pictures) == 3
    assert len({picture.SeriesInstanceUID for picture in pictures}) == 1
    for picture in pictures:
        assert picture.pixel_array.shape[-1] == 3
        assert picture.pixel_array.std() > 10
        assert str(picture.PatientName) == "Yamada^Tarou=山田^太郎"
        assert "research" in picture.DerivationDescription


@needs_dciodvfy
def test_the_changed_cts_follow_the_key_images_with_what_the_model_said(tmp_path):
    analysis = analysis_of(tmp_path / "ct", PLACES["upright"])
    answer = Counterfactual(
        Target.parse("lesion:1"), without_evidence(), {"without": analysis.volume, "alone": analysis.volume}
    )
    analysis = dataclasses.replace(analysis, answers=(answer,))
    files = write_outputs(analysis, tmp_path / "out", choose_writers(["dicom-sc"])).files
    paths = sorted(path for role, path in files.items() if "key-image" in role)
    assert len(paths) == 4
    assert errors_of(paths[-1]) == []
    picture = pydicom.dcmread(paths[-1])
    assert "from 0.94 to 0.01" in picture.DerivationDescription
    assert picture.pixel_array.shape[1] > 2 * picture.pixel_array.shape[0]


@needs_dciodvfy
def test_objects_of_a_series_without_valid_identifiers_refer_to_no_images(tmp_path):
    write_series(tmp_path / "ct", a_body(SHAPE), PLACES["upright"], edit=each(SOPInstanceUID="1.2.3.4"))
    volume = read_volume(tmp_path / "ct")
    segmentation = segmentation_of(volume)
    explanation = Explanation(volume.with_array(HEAT), 1.0, Target.parse("tumor"), "hires-cam", "decoder.0")
    analysis = Analysis(volume, threshold_model().spec, segmentation, (explanation,), measure(volume, segmentation))
    outputs = write_outputs(analysis, tmp_path / "out", choose_writers(KINDS))
    assert not outputs.failures
    for path in dicom_files(outputs.files).values():
        assert errors_of(path) == []
        assert "1.2.3.4" not in pydicom.dcmread(path).to_json()
    assert "refers to no images" in outputs.files["provenance"].read_text(encoding="utf-8")


def test_a_result_without_lesions_or_heat_is_written_too(tmp_path):
    write_series(tmp_path / "ct", a_body(SHAPE), PLACES["upright"])
    volume = read_volume(tmp_path / "ct")
    explanation = Explanation(volume.with_array(0 * HEAT), 0.0, Target.parse("liver"), "hires-cam", "decoder.0")
    for labels in ((LABELS > 0).astype(np.uint8), 0 * LABELS):
        segmentation = segmentation_of(volume, labels)
        analysis = Analysis(volume, threshold_model().spec, segmentation, (explanation,), measure(volume, segmentation))
        outputs = write_outputs(analysis, tmp_path / f"out{labels.sum()}", choose_writers(KINDS))
        assert not outputs.failures
        assert ("dicom-report" in outputs.files) == bool(labels.any())
