# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark batch`` measures what it claims to."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from batch_toys import write_good, write_model
from forking import let_liverxai_fork

from LiverXAILib.benchmarks import batch as benchmark_batch
from LiverXAILib.cli import main
from LiverXAILib.options import Options


@pytest.fixture
def timed_runs_are_forked(monkeypatch):
    """Fork all runs except the one whose memory is measured, which starts and imports as for a user."""
    measure_memory = benchmark_batch._memory

    def memory(*arguments):
        monkeypatch.setattr(benchmark_batch, "subprocess", subprocess)
        return measure_memory(*arguments)

    let_liverxai_fork(monkeypatch, benchmark_batch.__name__)
    monkeypatch.setattr(benchmark_batch, "_memory", memory)


def test_one_run_measures_overhead_scaling_and_memory(tmp_path, capsys, monkeypatch, timed_runs_are_forked):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for number in range(2):
        write_good(tmp_path / "images" / f"{number}.nrrd", number)
    arguments = ["--images", tmp_path / "images", "--model", write_model(tmp_path / "model"), "-o", tmp_path / "out"]
    sizes = ["--cases", 2, "--rounds", 1, "--small-cases", 8, "--threads", 1, "--explain"]
    made, clear = [], tempfile.TemporaryDirectory.cleanup

    def look_and_clear(self):
        folders = sorted(Path(self.name).glob("run[12]/**/case0001*/"))
        made.extend({path.name for path in folder.iterdir()} for folder in folders)
        clear(self)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", look_and_clear)
    assert main(["benchmark", "batch", *map(str, [*arguments, *sizes])]) == 0
    result = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert result["explained"] == "nothing"
    by_loop, by_batch = made
    assert "report.html" in by_loop
    assert by_batch == by_loop | {"case.json"}
    speed = result["speed"]
    (bare,), (one,), (two,) = (speed[f"{name}_seconds"] for name in ("bare", "one_worker", "two_workers"))
    assert speed["overhead_percent"] == pytest.approx(100 * (one / bare - 1))
    assert speed["speed_up"] == pytest.approx(one / two)
    assert speed["second_half_mib"] > 150
    assert len(result["memory"]["worker_mib"]) == 6
    # A process with torch is larger than this, one without it smaller: the right one was measured.
    assert min(result["memory"]["worker_mib"]) > 150
    text = (tmp_path / "out" / "batch.md").read_text()
    assert text in capsys.readouterr().out
    assert f"cores {os.cpu_count()}" in text
    assert "32 x 32 x 16 voxels; for memory" in text
    assert "from one to two workers, 2 cases |" in text
    result["speed"]["rounds"] = 3
    assert "from one to two workers, median of 3 rounds of 2 cases |" in benchmark_batch.as_markdown(result)


def test_growth_is_the_slope_of_the_line_through_the_cases():
    assert benchmark_batch._slope([100 + 0.25 * n for n in range(200)]) == pytest.approx(25)
    assert benchmark_batch._slope([400.0] * 50) == 0


def test_memory_is_that_of_a_worker_that_still_works():
    samples = [(1.0, 50.0, 400.0), (2.0, 50.0, 410.0), (3.05, 50.0, 0.0)]  # the last: the worker has already ended
    assert benchmark_batch._last_until(3.0, samples) == samples[1]
    assert benchmark_batch._last_until(0.5, samples) == samples[0]


def test_the_largest_memory_is_told_of_each_half_of_the_cases():
    samples = [(1.0, 50.0, 400.0), (2.0, 900.0, 700.0), (3.0, 50.0, 500.0), (4.0, 50.0, 650.0), (5.0, 50.0, 0.0)]
    assert benchmark_batch._peaks(samples, 3.0) == (700.0, 650.0)


def test_a_half_that_ends_before_the_next_sample_has_the_memory_with_which_it_began():
    samples = [(1.0, 50.0, 400.0), (2.0, 50.0, 410.0), (3.05, 50.0, 0.0)]  # the last: the worker has already ended
    assert benchmark_batch._peaks(samples, 2.9) == (410.0, 410.0)
    assert benchmark_batch._peaks(samples, 0.5) == (400.0, 410.0)


def test_the_loop_beside_a_batch_makes_the_same_files_with_the_same_threads_one_after_the_other(
    tmp_path, monkeypatch, capsys
):
    image, model, done = write_good(tmp_path / "image.nrrd"), write_model(tmp_path / "model"), []
    steps = {name: getattr(Options, name) for name in ("read", "analyze", "save")}

    def recording(name):
        def step(self, *values, **named):
            threads = torch.get_num_threads(), threading.current_thread() is threading.main_thread()
            done.append((f"{name} begins", *threads))
            result = steps[name](self, *values, **named)
            done.append((f"{name} ends", *threads))
            return result

        return step

    for name in steps:
        monkeypatch.setattr(Options, name, recording(name))
    before = torch.get_num_threads()
    listed = tmp_path / "cases.json"
    listed.write_text(json.dumps([{"input": str(image), "case": name} for name in ("a", "b")]))
    try:
        benchmark_batch.bare_loop(str(listed), str(tmp_path / "out"), str(model), "cpu", [], 2)
    finally:
        torch.set_num_threads(before)
    once = [(f"{name} {what}", 2, True) for name in ("read", "analyze", "save") for what in ("begins", "ends")]
    assert done == [*once, *once]
    assert float(capsys.readouterr().out) > 0
    by_batch = {name for writer in Options(scene=False).writers() for name in writer.files if "*" not in name}
    made = {path.name for path in (tmp_path / "out" / "b").iterdir()}
    assert {"report.html", "segmentation.seg.nrrd", "measurements.json"} <= made & by_batch
    assert "scene.mrb" not in made


@pytest.mark.parametrize("threads", [0, 3])
def test_bare_loop_and_batch_are_started_with_the_same_threads(tmp_path, monkeypatch, threads):
    """As by the batch's own process for its workers (see :class:`LiverXAILib.subprocesses.ChildProcess`)."""
    started = []

    def run(command, *, env, **rest):
        started.append((command, env))
        return subprocess.CompletedProcess(command, 0, "1.5\n", "")

    for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(benchmark_batch, "subprocess", SimpleNamespace(run=run))
    scratch = benchmark_batch._Scratch(tmp_path, "toy", "cpu", None, threads)
    assert scratch.bare([tmp_path / "ct.nii"], 2) == 1.5
    ((command, env),) = started
    assert json.loads(command[-1])[-1] == threads
    for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        assert env.get(name) == (str(threads) if threads else None)
    assert env["OMP_WAIT_POLICY"] == "PASSIVE"
    rows = json.loads((tmp_path / "cases.json").read_text())
    assert rows == [{"input": str(tmp_path / "ct.nii"), "case": f"case000{number}"} for number in range(2)]


def test_the_images_are_a_file_or_those_in_a_folder(tmp_path, capsys):
    images = [write_good(tmp_path / "cts" / f"{name}.nrrd") for name in "ba"]
    (tmp_path / "cts" / "more").mkdir()
    assert benchmark_batch._images(images[0], tmp_path) == [images[0]]
    assert benchmark_batch._images(tmp_path / "cts", tmp_path) == sorted(images)
    assert main(["benchmark", "batch", "-o", str(tmp_path / "out"), "--images", str(tmp_path / "cts" / "more")]) == 2
    assert f"There are no files in {tmp_path / 'cts' / 'more'}." in capsys.readouterr().err
