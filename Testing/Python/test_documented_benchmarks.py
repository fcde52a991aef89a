# SPDX-License-Identifier: Apache-2.0
"""Each benchmark shown in the documentation of speed runs to its end, with a cascade that centers intensities."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
from batch_toys import phantom, write_model
from forking import let_liverxai_fork
from safetensors.torch import load_file

from LiverXAILib.benchmarks import machine, speed, speed_peers, timeline, wait
from LiverXAILib.cli import main
from LiverXAILib.models import Region, load_model, save_model
from LiverXAILib.models.spec import Intensity
from LiverXAILib.volumes.io import write_volume

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
#: Options that make each of them small.
SMALL = {
    "wait": ["--rounds", "1", "--output", "FOLDER", "--options=--no-scene --model MODEL"],
    "speed": ["--rounds", "1", "--image", "CT", "--model", "MODEL", "--device", "cpu"],
    "cost": ["--repeats", "1", "--model", "MODEL", "--device", "cpu"],
}
#: Run in test_benchmark_batch.py, at the same size.
ELSEWHERE = {"batch"}


def documented() -> dict[str, list[str]]:
    """The words of each command in the page's first block, by name of the benchmark."""
    block = re.search(r"```\n(liverxai benchmark .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    lines = (shlex.split(line, comments=True) for line in block[1].splitlines())
    return {words[2]: words[1:] for words in lines if words}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A cascade of the toy model and the same network around its liver, with HU relative to the liver's median."""
    folder = tmp_path_factory.mktemp("models")
    model = load_model(write_model(folder / "one"))
    (first,) = model.spec.stages
    centered = Intensity(-300, 200, -300, 100, centered=True)  # the toy liver has 100 HU
    second = replace(
        first, name="again", intensity=centered, region=Region("liver", 20.0), weights=("again.safetensors",)
    )
    spec = replace(model.spec, stages=(first, second))
    raw = load_file(folder / "one" / "weights.safetensors")  # a loaded model's batch norms are folded
    save_model(spec, {"all": [raw], "again": [raw]}, folder / "chain", half=False)
    return folder / "chain"


@pytest.fixture
def small(monkeypatch):
    """Make networks, windows and images of the benchmark as small as possible."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in {
        "_NNUNET_FEATURES": (2, 4, 4),
        "_NNUNET_PATCH": (16, 16, 16),
        "_NNUNET_SPACING": (6.0, 4.0, 4.0),
        "_TOTAL_PATCH": (16, 16, 16),
        "_TOTAL_SPACING": (6.0, 6.0, 6.0),
        "_TOTAL_CLASSES": 5,
        "_ZOO_WINDOW": 32,
        "_ZOO_SPACING": (4.0, 4.0, 6.0),
    }.items():
        monkeypatch.setattr(speed_peers, name, value)
    monkeypatch.setattr(machine, "_CONVOLUTIONS", ((8, 8),))
    # test_benchmark_speed.py starts a new Python.
    let_liverxai_fork(monkeypatch, speed.__name__)
    monkeypatch.setattr(speed, "_phantom", phantom)
    monkeypatch.setattr(speed, "SHAPE", (16, 32, 32))
    monkeypatch.setattr(speed, "SLICES", ((16, 6.0),))
    monkeypatch.setattr(speed, "LESIONS", (0, 2))


def test_every_command_of_the_page_is_run_by_a_test():
    assert set(documented()) == set(SMALL) | ELSEWHERE


@pytest.fixture
def run_documented(chain, small, tmp_path, capsys):
    """Run a command of the page at small size, and return its output."""

    def run(name: str) -> str:
        write_volume(phantom(), tmp_path / "ct.nrrd")
        ct = tmp_path / "ct.nrrd"
        places = {"CT": ct, "CT.nii.gz": ct, "FOLDER": tmp_path / "out"}
        words = [str(places.get(word, word)) for word in [*documented()[name], *SMALL[name]]]
        words = [word.replace("MODEL", str(chain)) for word in words]
        assert main(words) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", ["speed", "cost"])
def test_a_documented_benchmark_runs_to_its_end(name, run_documented):
    assert "|---|" in run_documented(name)


def test_the_parts_of_a_wait_are_all_of_it(run_documented, tmp_path):
    text = run_documented("wait")
    assert "write: report" in text
    result = json.loads((tmp_path / "out" / "wait.json").read_text())
    (run,) = result["runs"]["this"]
    for kind in ("cold", "warm"):
        assert sum(run[kind]["parts"].values()) == pytest.approx(run[kind]["seconds"], rel=0.02)
    assert {"imports", "stage all", "stage again", "heat maps", "write: report"} <= set(run["cold"]["parts"])
    assert all(run["cold"]["beside"][part] > 0 for part in ("read the CT", "measure", "draw: report"))
    assert run["cold"]["peak_mib"] > 150  # it includes torch
    assert run["warm"]["parts"].get("imports", 0) < run["cold"]["parts"]["imports"] / 2


def test_another_checkout_is_compared_round_by_round():
    def one(seconds: float) -> dict[str, object]:
        parts = {"imports": seconds, "exit": 0.1}
        cold = {"seconds": seconds, "processor_seconds": 2 * seconds, "peak_mib": 9.0, "parts": parts, "beside": {}}
        return {"cold": cold, "warm": None}

    # The machine is twice as slow in the second round, for both.
    runs = {"this": [one(1.0), one(2.0), one(1.1)], "other": [one(4.0), one(8.0), one(4.0)]}
    other = {
        "programs": {},
        "skipped": {"MONAI": "no"},
        "machine": {"CPU": "x"},
        "options": [],
        "rounds": 3,
        "image": "1",
    }
    text = wait.as_markdown({"runs": runs, **other})
    assert "Cold: 25 % of the wall time before, 25 % of the processor time." in text
    assert "| imports | 1.10 | 4.00 |" in text
    assert "| MONAI | not run: no | |" in text


def test_the_bundled_model_is_compared_as_well(tmp_path):
    # Its last network centers intensities on the liver, which a network without a region cannot.
    peer = speed_peers._monai_same_network(phantom(), load_model("default"), None, tmp_path)
    assert peer.windows >= 1


@pytest.mark.parametrize(("before", "inside"), [("PASSIVE", "None"), ("ACTIVE", "ACTIVE")])
def test_a_program_that_is_compared_does_not_inherit_how_this_one_waits(before, inside, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", before)
    code = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"
    assert wait._process([sys.executable, "-c", code], None, tmp_path).stdout.strip() == inside


def test_another_checkout_must_be_one(tmp_path):
    write_volume(phantom(), tmp_path / "ct.nrrd")
    assert main(["benchmark", "wait", str(tmp_path / "ct.nrrd"), "--against", str(tmp_path)]) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["ct.nrrd"]


@pytest.mark.parametrize(("module", "path"), [part[:2] for part in timeline._PARTS] + [timeline._WRITING])
def test_every_part_that_benchmark_wait_measures_is_there(module, path):
    """A checkout for comparison may lack a function; this one must not, or its time would be counted elsewhere."""
    assert callable(attrgetter(path)(importlib.import_module(module)))
