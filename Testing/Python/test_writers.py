# SPDX-License-Identifier: Apache-2.0
"""Outputs are chosen by name, do not fail because of each other, and are removed when their result is replaced."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from batch_toys import write_dicom, write_good, write_model
from toys import ball_phantom, threshold_model

from LiverXAILib.cli import main
from LiverXAILib.context import RunContext
from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.models import load_model
from LiverXAILib.options import Options
from LiverXAILib.pipeline import analyze, write_analysis, write_outputs
from LiverXAILib.report.writers import PROVENANCE, WRITERS, Writer, choose_writers, is_output
from LiverXAILib.volumes.volume import Grid


@pytest.fixture(scope="module")
def analysis():
    volume, _ = ball_phantom(Grid((40, 40, 40), np.diag([2.4, 2.4, 2.4, 1.0])))
    return analyze(volume, threshold_model(), targets=["tumor"], device="cpu")


@pytest.fixture(scope="module")
def dicom_analysis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom")
    write_dicom(folder / "scan")
    options = Options(explain=("tumor",))
    return options.analyze(
        options.read(folder / "scan"), load_model(write_model(folder / "model")), RunContext(device="cpu")
    )


def failing(writer: Writer, error: BaseException) -> Writer:
    def write(analysis: object, folder: object, *_: object) -> dict[str, str]:
        (folder / "half.tmp").write_text("half")
        raise error

    return dataclasses.replace(writer, write=write)


def test_each_writer_writes_files_that_are_known_to_be_its_own_and_no_others(dicom_analysis, tmp_path):
    written = write_outputs(dicom_analysis, tmp_path / "out", choose_writers(WRITERS))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not written.failures
    assert names == {path.name for path in written.files.values()}
    for name in names - {PROVENANCE}:
        assert len([writer for writer in WRITERS.values() if writer.owns(name)]) == 1
    idle = {writer.name for writer in WRITERS.values() if not any(writer.owns(name) for name in names)}
    assert idle == {"own-result"}  # no reader has changed anything
    assert not is_output("notes.txt")


def test_a_new_result_leaves_no_file_of_the_old_one_whatever_is_written_now(dicom_analysis, analysis, tmp_path):
    write_outputs(dicom_analysis, tmp_path / "out", choose_writers(WRITERS))
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    files = write_analysis(analysis, tmp_path / "out", write=[])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "notes.txt",
        *(path.name for path in files.values()),
    }
    assert set(files) == {"segmentation", "measurements", "table", "provenance"}
    assert json.loads(files["provenance"].read_text(encoding="utf-8")) == json.loads(json.dumps(analysis.provenance))


def test_probabilities_are_written_as_they_are(analysis, tmp_path):
    files = write_analysis(analysis, tmp_path / "out", write=["probabilities"])
    for label, probability in analysis.segmentation.probabilities.items():
        image = sitk.ReadImage(str(files[f"probability-{label}"]))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), probability.array.astype(np.float32))
        np.testing.assert_allclose(image.GetOrigin(), probability.ijk_to_lps[:3, 3])


def test_the_uncertainty_is_the_entropy_of_the_probabilities_in_its_place(analysis, tmp_path):
    file = write_analysis(analysis, tmp_path / "out", write=["uncertainty"])["uncertainty"]
    image = sitk.ReadImage(str(file))
    found = sitk.GetArrayFromImage(image)
    origin = np.array(image.GetOrigin())
    grid = analysis.segmentation.labels.grid
    start = np.rint(grid.to_ijk(origin)).astype(int)[::-1]
    part = tuple(slice(begin, begin + size) for begin, size in zip(start, found.shape, strict=True))
    expected = np.zeros(grid.shape)
    for probability in analysis.segmentation.probabilities.values():
        p = probability.array.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = np.nan_to_num(-p * np.log2(p)) + np.nan_to_num(-(1 - p) * np.log2(1 - p))
        at = np.rint(grid.to_ijk(probability.ijk_to_lps[:3, 3])).astype(int)[::-1]
        box = tuple(slice(begin, begin + size) for begin, size in zip(at, p.shape, strict=True))
        expected[box] = np.maximum(expected[box], entropy)
    np.testing.assert_allclose(found, expected[part], atol=1e-6)
    expected[part] = 0
    assert not expected.any()  # nothing is missing
    without = dataclasses.replace(analysis, segmentation=dataclasses.replace(analysis.segmentation, probabilities={}))
    assert "uncertainty" not in write_analysis(without, tmp_path / "without", write=["uncertainty"])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("The series is odd."), "Not written: DICOM SEG of the series. The series is odd."),
        (ValueError("Doe^Jane"), "Not written: DICOM SEG of the series. Unexpected error (ValueError)."),
        (MemoryError(), "Not written: DICOM SEG of the series. There was not enough memory."),
        (OSError(28, "No space left on device"), "Not written: DICOM SEG of the series. No space left on device."),
    ],
)
def test_an_output_that_fails_is_left_out_with_a_warning_wherever_one_looks(
    analysis, tmp_path, error, sentence, caplog
):
    chosen = choose_writers(["heatmaps", "report", "dicom"])
    writers = [failing(one, error) if one.name == "dicom" else one for one in chosen]
    written = write_outputs(analysis, tmp_path / "out", writers)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in written.files.values()}
    assert {"segmentation.seg.nrrd", "report.html", "heatmap-tumor.nrrd"} <= names
    assert written.warnings == [sentence]
    assert sentence in json.loads(written.files["provenance"].read_text(encoding="utf-8"))["warnings"]
    assert sentence in written.files["report"].read_text(encoding="utf-8")


def test_a_required_output_that_fails_leaves_the_old_result(analysis, tmp_path, monkeypatch):
    write_analysis(analysis, tmp_path / "out", write=[])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match="No space left"):
        write_outputs(analysis, tmp_path / "out", [failing(WRITERS["tables"], OSError(28, "No space left on device"))])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_report_that_cannot_be_drawn_is_left_out_like_one_that_cannot_be_written(analysis, tmp_path):
    def draw(analysis: object) -> object:
        raise InputError("No pictures.")

    chosen = choose_writers(["report"])
    writers = [dataclasses.replace(one, prepare=draw) if one.name == "report" else one for one in chosen]
    written = write_outputs(analysis, tmp_path / "out", writers)
    assert "report" not in written.files
    assert written.warnings == ["Not written: HTML report. No pictures."]
    assert (tmp_path / "out" / "segmentation.seg.nrrd").is_file()


def test_the_public_function_tells_the_log_what_is_missing(analysis, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(WRITERS, "report", failing(WRITERS["report"], ValueError("Doe^Jane")))
    with caplog.at_level(logging.WARNING):
        files = write_analysis(analysis, tmp_path / "out")
    assert "report" not in files
    assert caplog.messages == ["Not written: HTML report. Unexpected error (ValueError)."]


def test_names_shortcuts_and_defaults_choose_the_outputs():
    def names(**options: object) -> set[str]:
        return {writer.name for writer in Options.from_mapping(options).writers()}

    required = {"seg", "tables", "own-result"}
    assert names() == {*required, "heatmaps", "report", "scene"}
    assert names(report=False, dicom=True, scene=False) == {*required, "heatmaps", "dicom"}
    assert names(write=["scene"]) == {*required, "scene"}
    assert names(write=["scene"], scene=False, report=True) == {*required, "report"}
    with pytest.raises(UsageError, match="There is no output 'sege'"):
        names(write=["sege"])


def test_a_default_output_that_is_not_installed_is_left_out_but_one_that_was_asked_for_is_refused(
    monkeypatch, analysis, tmp_path
):
    def missing() -> None:
        raise UsageError("Needs more.")

    for name in ("scene", "report"):
        monkeypatch.setitem(WRITERS, name, dataclasses.replace(WRITERS[name], requirement=missing))
    assert "scene" not in {writer.name for writer in Options().writers()}
    Options().require_valid()
    for asked in ({"report": True}, {"scene": True}, {"write": ["scene"]}):
        with pytest.raises(UsageError, match="Needs more"):
            Options.from_mapping(asked).require_valid()


def test_the_command_line_writes_what_is_asked_for(tmp_path, capsys):
    model = write_model(tmp_path / "toy")
    image = write_good(tmp_path / "ct.nii.gz")
    arguments = ["analyze", "--model", str(model), "-o", str(tmp_path / "out"), "--explain", "tumor", "--write"]
    assert main([*arguments, "probabilities", "heatmaps", str(image)]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"probability-liver.nrrd", "probability-tumor.nrrd", "heatmap-tumor.nrrd"} <= names
    assert "report.html" not in names
    assert main([*arguments, "sege", "-o", str(tmp_path / "other"), str(image)]) == 2
    assert "There is no output 'sege'" in capsys.readouterr().err


def test_listing_the_outputs_loads_nothing_heavy():
    code = (
        "import sys; from LiverXAILib.report.writers import WRITERS; "
        "print([m for m in ('torch', 'SimpleITK', 'numpy', 'pydicom', 'matplotlib') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
