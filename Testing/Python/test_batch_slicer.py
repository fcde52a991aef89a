# SPDX-License-Identifier: Apache-2.0
"""The batch as ``Slicer --python-script`` runs it: same results, scenes, and Slicer always ends with the right code."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest
from batch_toys import ROOT, assert_whole, final_states, write_good, write_model
from forking import Process
from slicerhost.application import main

from LiverXAILib.batch import command

SCRIPT = ROOT / "LiverXAI" / "Scripts" / "batch_slicer.py"
#: Options that Slicer takes for itself in any position (qSlicerCoreCommandOptions, qSlicerCommandOptions).
SLICERS_OPTIONS = (
    "help h version home program-path settings-path temporary-path application-information testing "
    "disable-python python-script python-code c ignore-slicerrc additional-module-path additional-module-paths "
    "modules-to-ignore disable-modules disable-builtin-modules disable-cli-modules disable-builtin-cli-modules "
    "disable-loadable-modules disable-builtin-loadable-modules disable-scripted-loadable-modules "
    "disable-builtin-scripted-loadable-modules verbose-module-discovery disable-settings "
    "keep-temporary-settings disable-message-handlers disable-terminal-outputs disable-tooltips no-splash "
    "no-main-window show-python-console show-python-interactor qt-testing exit-after-startup ignore-rest "
)


#: How the script is started.
START = ("--no-splash", "--no-main-window", "--python-script", str(SCRIPT))


def test_slicer_would_take_none_of_our_options():
    parser = argparse.ArgumentParser(add_help=False)
    command.add_arguments(parser)
    ours = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    assert {"input", "output", "scene"} <= ours
    assert not ours & set(SLICERS_OPTIONS.split())


def test_a_batch_in_slicer_makes_the_same_files_and_scenes(tmp_path):
    write_good(tmp_path / "images" / "Größe 1.nrrd", 1)
    (tmp_path / "images" / "bad.nrrd").write_bytes(b"NRRD0004\n")
    output = tmp_path / "out"
    arguments = ["--input", tmp_path / "images", "--output", output, "--model", write_model(tmp_path / "model")]
    flags = ["--scene", "--explain", "liver", "--report", "--keep-names"]
    # test_slicer_host.py starts a new Python for the host, and test_batch_ray.py for what computes.
    with Process(
        [sys.executable, "-m", "slicerhost", *START, *map(str, arguments), *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "Testing"), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 1, said
    states = final_states(output)
    assert {label: state["state"] for label, state in states.items()} == {"Größe 1.nrrd": "done", "bad.nrrd": "failed"}
    folder = output / "cases" / states["Größe 1.nrrd"]["folder"]
    assert_whole(folder, ("segmentation.seg.nrrd", "heatmap-liver.nrrd", "report.html", "scene.mrb"))
    (log,) = [path for path in (output / "logs").iterdir() if "workers" not in path.name]
    assert "done    Größe 1.nrrd" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--input", "nowhere", "--output", "out"], 1, "no file or folder"),
        (["--input", ".", "--output", "out", "--nonsense"], 2, "--nonsense"),
        (["--input", "empty", "--output", "out"], 1, "There are no CTs"),
        (["--usage"], 0, "--time-limit"),
    ],
)
def test_slicer_ends_with_the_right_code(scene, tmp_path, monkeypatch, capsys, caplog, arguments, code, words):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main([*START, *arguments]) == code
    said = capsys.readouterr()
    assert words in said.out + said.err + caplog.text


def test_slicer_ends_after_an_unexpected_error_too(scene, tmp_path, caplog):
    (tmp_path / "images").mkdir()
    write_good(tmp_path / "images" / "a.nrrd")
    (tmp_path / "out").write_text("a file where the folder should be")
    assert main([*START, "--input", str(tmp_path / "images"), "--output", str(tmp_path / "out")]) == 1
    assert "Cannot write the results" in caplog.text
