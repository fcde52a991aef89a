# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark batch`` measures what it claims to."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from batch_toys import write_good, write_model
from forking import let_liverxai_fork

from LiverXAILib.benchmarks import batch as benchmark_batch
from LiverXAILib.cli import main


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
    sizes = ["--cases", 3, "--rounds", 1, "--small-cases", 8, "--threads", 1]
    assert main(["benchmark", "batch", *map(str, [*arguments, *sizes])]) == 0
    result = json.loads((tmp_path / "out" / "batch.json").read_text())
    speed = result["speed"]
    (bare,), (one,), (two,) = (speed[f"{name}_seconds"] for name in ("bare", "one_worker", "two_workers"))
    assert speed["overhead_percent"] == pytest.approx(100 * (one / bare - 1))
    assert speed["speed_up"] == pytest.approx(one / two)
    assert len(result["memory"]["worker_mib"]) == 6
    # A process with torch is larger than this, one without it smaller: the right one was measured.
    assert min(result["memory"]["worker_mib"]) > 150
    text = (tmp_path / "out" / "batch.md").read_text()
    assert text in capsys.readouterr().out
    assert f"cores {os.cpu_count()}" in text
    assert "32 x 32 x 16 voxels; for memory" in text


def test_growth_is_the_slope_of_the_line_through_the_cases():
    assert benchmark_batch._slope([100 + 0.25 * n for n in range(200)]) == pytest.approx(25)
    assert benchmark_batch._slope([400.0] * 50) == 0


def test_memory_is_that_of_a_worker_that_still_works():
    samples = [(1.0, 50.0, 400.0), (2.0, 50.0, 410.0), (3.05, 50.0, 0.0)]  # the last: the worker has already ended
    assert benchmark_batch._last_until(3.0, samples) == samples[1]
    assert benchmark_batch._last_until(0.5, samples) == samples[0]
