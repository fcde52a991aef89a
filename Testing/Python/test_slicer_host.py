# SPDX-License-Identifier: Apache-2.0
"""The test host runs scripts as Slicer does, and refuses what it does not support."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from slicerhost.application import STILL_RUNNING, main

TESTING = Path(__file__).parents[1]


def test_a_script_runs_in_main_with_its_arguments_and_folder(tmp_path):
    (tmp_path / "beside.py").write_text("value = 7")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, beside, slicer.util\n"
        "print(__name__, __file__ == sys.argv[0], sys.argv[1:], beside.value, slicer.mrmlScene.GetClassName())\n"
        "slicer.util.exit(3)\n"
        "slicer.util.exit(5)\n"
    )
    arguments = ["--no-splash", "--python-script", script, "--input", "a b", "--no-main-window", "--", "--testing"]
    paths = [str(TESTING), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "slicerhost", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.stdout.split("\n")[0] == "__main__ True ['--input', 'a b', '--testing'] 7 vtkMRMLScene"
    assert result.returncode == 5  # the last call counts


@pytest.mark.parametrize(
    ("code", "flags", "status"),
    [
        ("import sys; sys.exit(4)", [], 4),
        ("1 / 0", ["--testing"], 1),
        ("pass", ["--exit-after-startup"], 0),
        ("1 / 0", [], STILL_RUNNING),  # Slicer would keep running
    ],
)
def test_exit_codes_are_slicers(scene, capfd, code, flags, status):
    assert main([*flags, "--python-code", code]) == status
    printed = capfd.readouterr().err
    assert ("ZeroDivisionError" in printed) == ("1 / 0" in code)
    assert ("keeps running" in printed) == (status == STILL_RUNNING)


def test_what_the_host_cannot_do_raises(scene):
    import slicer

    with pytest.raises(AttributeError, match="not in the test host"):
        slicer.modules.volumerendering.logic()
    with pytest.raises(AttributeError):
        slicer.app.mainWindow()
    with pytest.raises(NotImplementedError, match="signal"):
        slicer.app.connect("lastWindowClosed()", print)
    with pytest.raises(NotImplementedError, match="does not load"):
        slicer.app.coreIOManager().loadNodes("ModelFile", {"fileName": "x.vtk"})


def test_slicers_own_functions_work_on_it(scene, tmp_path):
    import slicer.util

    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    node = slicer.util.addVolumeFromArray(array, name="x")
    assert slicer.util.saveNode(node, str(tmp_path / "x.nrrd"), {})
    again = slicer.util.loadVolume(str(tmp_path / "x.nrrd"), {})
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(again), array)
    with slicer.util.RenderBlocker():
        pass
    with pytest.raises(RuntimeError):
        slicer.util.loadVolume(str(tmp_path / "missing.nrrd"), {})


def test_a_timer_that_fires_once_fires_once():
    qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
    qtapplication.start()
    fired = []

    def count():
        fired.append(True)

    timer = qtapplication.qt.QTimer()
    timer.singleShot = True
    timer.connect("timeout()", count)
    timer.start()
    qtapplication.qt.QTimer.singleShot(0, count)
    for _ in range(10):
        qtapplication.process_events()
    assert timer.singleShot
    assert len(fired) == 2


def test_the_product_never_imports_the_host():
    root = TESTING.parent
    for folder in ("LiverXAI", "LiverXAILib"):
        for path in (root / folder).rglob("*.py"):
            assert "slicerhost" not in path.read_text(encoding="utf-8"), path
