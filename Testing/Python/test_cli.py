# SPDX-License-Identifier: Apache-2.0
"""The command line does what it says, with the exit codes it promises, and fails in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from batch_toys import write_good, write_model

from LiverXAILib.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_good(tmp_path_factory.mktemp("images") / "ct.nii.gz")


def test_analyze_writes_everything_and_says_where(model, image, tmp_path, capsys):
    assert main(["analyze", str(image), "--model", str(model), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for name in (
        "segmentation.seg.nrrd",
        "heatmap-liver.nrrd",
        "measurements.csv",
        "report.html",
        "scene.mrb",
        "provenance.json",
    ):
        assert (tmp_path / "out" / name).is_file()
        assert name in printed
    assert "Image   NIfTI, 32 x 32 x 16 voxels of 4 x 4 x 6 mm\n" in printed
    assert "Liver" in printed
    assert "research use only" in printed


def test_options_reach_the_analysis(model, image, tmp_path):
    arguments = ["analyze", str(image), "--model", str(model), "-o", str(tmp_path / "out"), "--no-report"]
    assert main([*arguments, "--explain", "lesion:1", "--method", "hires-cam", "--layer", "encoder.0"]) == 0
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    (explanation,) = provenance["explanations"]
    assert (explanation["method"], explanation["layer"]) == ("hires-cam", "encoder.0")
    assert not (tmp_path / "out" / "report.html").exists()
    assert main([*arguments, "--explain"]) == 0
    assert not list((tmp_path / "out").glob("heatmap-*"))


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["analyze", "missing.nii.gz", "-o", "out"], 1, "missing.nii.gz"),
        (["analyze", "{image}", "-o", "out", "--model", "nobody"], 1, "no model 'nobody'"),
        (["analyze", "{image}", "-o", "out", "--model", "{model}", "--explain", "gremlins:"], 2, "explained"),
        (["analyze", "{image}", "-o", "out", "--model", "{model}", "--method", "magic"], 2, "no explanation method"),
        (["analyze", "{image}", "-o", "out", "--model", "{model}", "--layer", "magic"], 2, "no layer 'magic'"),
        (["analyze", "{image}", "-o", "{image}/out", "--model", "{model}"], 1, "Cannot write the results"),
        (["analyze", "{image}", "-o", "out", "--model", "{model}", "--device", "cuda:77"], 1, "cuda:77"),
        (["models", "show", "nobody"], 1, "no model 'nobody'"),
    ],
)
def test_failures_are_one_line_without_a_traceback(
    arguments, status, sentence, model, image, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(model=model, image=image) for argument in arguments]) == status
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("liverxai:")]
    assert len(error) == 1
    assert sentence in error[0]
    assert not (tmp_path / "out").exists()


def test_wrong_usage_exits_with_2(capsys):
    for arguments in ([], ["dance"], ["analyze"], ["analyze", "x.nii", "--output"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["analyze", "batch", "evaluate", "models", "phantom"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: liverxai " + command in capsys.readouterr().out


def test_a_phantom_and_its_truth_are_written(tmp_path, capsys):
    arguments = ["phantom", "-o", str(tmp_path / "p.nii.gz"), "--seed", "3", "--spacing", "5", "5", "6"]
    assert main(arguments) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    ct, truth = (sitk.ReadImage(str(path)) for path in paths)
    assert ct.GetSize() == truth.GetSize()
    assert ct.GetSpacing() == pytest.approx((5, 5, 6))
    assert set(np.unique(sitk.GetArrayViewFromImage(truth))) >= {0, 1}


def test_the_module_and_the_command_are_the_same_and_start_without_torch():
    code = "import sys; from LiverXAILib import cli; cli._parser('analyze'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-m", "LiverXAILib", "--version"], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout.startswith("LiverXAI ")
