# SPDX-License-Identifier: Apache-2.0
"""A worker writes one case while it analyzes the next: results, blame and memory are as if it did not."""

from __future__ import annotations

import gc
import html
import itertools
import json
import os
import queue
import random
import re
import signal
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from batch_toys import (
    environment,
    final_states,
    manifest_lines,
    phantom,
    run_batch,
    start_batch,
    times_done,
    wait_for,
    write_good,
    write_model,
)

from LiverXAILib import pipeline
from LiverXAILib.batch import child
from LiverXAILib.batch.session import DEPTH
from LiverXAILib.batch.store import Store
from LiverXAILib.context import UNATTENDED
from LiverXAILib.errors import InputError
from LiverXAILib.models import load_model
from LiverXAILib.options import Options

#: Put on the path of worker processes: they tell what they are doing in files beside this one, "<step> <image>", and
#: wait in a step for as long as there is a file "hold <step> <image>"; a file "crash <step> <image>" ends the process.
#: Nobody waits longer than a minute.
STEPS = """
import ctypes, time
from pathlib import Path
import LiverXAILib.pipeline
from LiverXAILib.options import Options

here = Path(__file__).parent
read, analyze, write_files = Options.read, Options.analyze, LiverXAILib.pipeline.write_files
names = {}

def at(step, name):
    (here / f"{step} {name}").touch()
    until = time.monotonic() + 60
    while (here / f"hold {step} {name}").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    if (here / f"crash {step} {name}").exists():
        ctypes.string_at(0)
    if (here / f"fail {step} {name}").exists():
        (here / f"fail {step} {name}").unlink()
        raise MemoryError

def reading(self, path, files=None):
    at("reading", Path(path).name)
    volume = read(self, path, files)
    names[id(volume)] = Path(path).name
    return volume

def analyzing(self, volume, model, context):
    at("analyzing", names[id(volume)])
    return analyze(self, volume, model, context)

def writing(analysis, folder, writers):
    at("writing", names[id(analysis.volume)])
    return write_files(analysis, folder, writers)

Options.read, Options.analyze, LiverXAILib.pipeline.write_files = reading, analyzing, writing
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("overlap") / "model")


@pytest.fixture
def steps(tmp_path, model):
    """A batch of images "a.nrrd" … whose worker waits where the test wants it to, and its steps so far."""
    env = environment(tmp_path / "env")
    here = tmp_path / "steps"
    here.mkdir()
    (here / "sitecustomize.py").write_text(STEPS)
    env["PYTHONPATH"] = os.pathsep.join([str(here), env["PYTHONPATH"]])

    def start(*names, options=("--explain", "--no-report")):
        for number, name in enumerate(names):
            write_good(tmp_path / "images" / f"{name}.nrrd", number)
        arguments = (tmp_path / "images", "-o", tmp_path / "out", "--model", model, *options)
        return start_batch(*arguments, env=env)

    return SimpleNamespace(
        start=start,
        output=tmp_path / "out",
        mark=lambda step: (here / f"{step}.nrrd").touch(),
        release=lambda step: (here / f"hold {step}.nrrd").unlink(),
        reached=lambda step: (here / f"{step}.nrrd").exists(),
    )


def end(process) -> str:
    said = process.communicate(timeout=300)[0]
    assert process.returncode in (0, 1, 130), said
    return said


def states(output: Path) -> dict[str, str]:
    return {label: state.get("kind", state["state"]) for label, state in final_states(output).items()}


def test_a_case_is_written_while_the_next_one_is_analyzed_which_then_waits_for_it(steps):
    steps.mark("hold writing a")
    process = steps.start("a", "b", "c")
    wait_for(lambda: steps.reached("writing a"))
    wait_for(lambda: steps.reached("analyzing b"), 60)
    time.sleep(1.0)
    assert not steps.reached("writing b")
    # No more than two images and results are in memory.
    assert not steps.reached("reading c")
    steps.release("writing a")
    said = end(process)
    assert process.returncode == 0, said
    assert times_done(steps.output) == Counter(["a.nrrd", "b.nrrd", "c.nrrd"])
    # The time that "b" waited is not that of a step.
    (times,) = (x["times"] for x in manifest_lines(steps.output) if x.get("state") == "done" and x["label"] == "b.nrrd")
    assert times["analyzing"] + times["writing"] < times["finished"] - times["started"] - 0.9


def test_ctrl_c_finishes_the_case_that_is_analyzed_and_the_one_that_is_written(steps):
    for step in ("writing a", "analyzing b"):
        steps.mark(f"hold {step}")
    process = steps.start("a", "b", "c", "d")
    wait_for(lambda: steps.reached("analyzing b"), 60)
    process.send_signal(signal.SIGINT)
    while "Stopping" not in (line := process.stdout.readline()):
        assert line
    for step in ("analyzing b", "writing a"):
        steps.release(step)
    said = end(process)
    assert process.returncode == 130, said
    assert times_done(steps.output) == Counter(["a.nrrd", "b.nrrd"])
    assert len(list((steps.output / "cases").iterdir())) == 2


def of_two_at_work(steps, fault, step):
    """Run three cases; while one is written and one analyzed, the fault happens in the `step`, then the other ends."""
    both = ("writing a", "analyzing b")
    for mark in (*(f"hold {one}" for one in both), f"{fault} {step}"):
        steps.mark(mark)
    process = steps.start("a", "b", "c")
    wait_for(lambda: all(map(steps.reached, both)), 60)
    for one in sorted(both, key=lambda one: one != step):
        steps.release(one)
    return process, end(process)


@pytest.mark.parametrize("culprit", ["writing a", "analyzing b"])
def test_a_crash_is_blamed_on_the_case_that_causes_it_and_the_other_one_is_done(steps, culprit):
    process, said = of_two_at_work(steps, "crash", culprit)
    assert process.returncode == 1, said
    name = f"{culprit[-1]}.nrrd"
    assert states(steps.output) == dict.fromkeys(("a.nrrd", "b.nrrd", "c.nrrd"), "done") | {name: "crash"}
    assert set(times_done(steps.output).values()) == {1}
    # One process for all, one for the suspects, one after the second crash.
    assert sum(line["event"] == "worker" for line in manifest_lines(steps.output)) == 3
    assert len(list((steps.output / "cases").iterdir())) == 2


@pytest.mark.parametrize("short", ["writing a", "analyzing b"])
def test_a_case_for_which_memory_was_short_beside_another_one_is_done_alone(steps, short):
    process, said = of_two_at_work(steps, "fail", short)
    assert process.returncode == 0, said
    assert times_done(steps.output) == Counter(["a.nrrd", "b.nrrd", "c.nrrd"])
    assert sum(line["event"] == "worker" for line in manifest_lines(steps.output)) == 2


def test_a_drive_that_is_lost_while_a_case_is_written_and_another_one_analyzed_leaves_nothing_half_written(steps):
    for step in ("writing b", "analyzing c"):
        steps.mark(f"hold {step}")
    process = steps.start("a", "b", "c")
    wait_for(lambda: steps.reached("writing b") and steps.reached("analyzing c"), 60)
    steps.output.rename(steps.output.with_name("unplugged"))
    for step in ("writing b", "analyzing c"):
        steps.release(step)
    said = end(process)
    assert process.returncode == 1, said
    assert "cannot be written" in said
    assert not steps.output.exists() or not list(steps.output.glob("cases/*"))
    (whole,) = steps.output.with_name("unplugged").glob("cases/[!.]*")
    assert whole.name.startswith("a-")


# --- results --------------------------------------------------------------------------------------------------------


def without_times(path: Path) -> object:
    """The content of a file of results without what differs from one run to the next."""
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".html":
        page, _, rest = path.read_text(encoding="utf-8").partition("<pre>")
        provenance, _, end = rest.partition("</pre>")
        made = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d")
        return made.sub("", page), timeless(json.loads(html.unescape(provenance))), end
    return path.read_bytes()


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {name: timeless(one) for name, one in value.items() if not re.search("seconds|started", name)}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def test_the_results_are_those_of_one_case_after_the_other(tmp_path, model):
    names = [f"case{number}.nrrd" for number in range(3)]
    for number, name in enumerate(names):
        write_good(tmp_path / "images" / name, number)
    # Heat maps and the pictures of reports, both of which are computed by torch.
    options = Options(explain=("liver", "tumor"), scene=False)
    arguments = (tmp_path / "images", "-o", tmp_path / "out", "--model", model, "--explain", *options.explain)
    ran = run_batch(*arguments, env=environment(tmp_path / "env"))
    assert ran.returncode == 0, ran.stdout
    network = load_model(model)
    for name in names:
        analysis = options.analyze(options.read(tmp_path / "images" / name), network, UNATTENDED)
        options.save(analysis, tmp_path / "alone" / name)
        (folder,) = (tmp_path / "out" / "cases").glob(f"{Path(name).stem}-*")
        expected = {path.name for path in (tmp_path / "alone" / name).iterdir()}
        assert {path.name for path in folder.iterdir()} == expected | {"case.json"}
        assert {"report.html", "heatmap-tumor.nrrd", "segmentation.seg.nrrd"} <= expected
        for file in sorted(expected):
            assert without_times(folder / file) == without_times(tmp_path / "alone" / name / file), file


# --- memory ---------------------------------------------------------------------------------------------------------


def test_no_more_images_are_in_memory_than_cases_in_progress_and_none_once_they_are_done(tmp_path, monkeypatch):
    count, images, most, todo = 24, weakref.WeakSet(), [0], queue.Queue()
    over, number = threading.Event(), itertools.count()
    pause = random.Random(5).uniform

    def read(self, path, files):
        volume = phantom()
        images.add(volume)
        return volume

    def analyze(self, volume, network, context):
        most[0] = max(most[0], len(images))
        time.sleep(pause(0, 0.02))
        if next(number) % 5 == 4:
            raise InputError("No liver.")
        return SimpleNamespace(volume=volume, segmentation=SimpleNamespace(provenance={}), provenance={})

    def write(analysis, part, writers):
        most[0] = max(most[0], len(images))
        time.sleep(pause(0, 0.02))
        return SimpleNamespace(failures={}, warnings=[])

    class Channel:
        """The parent: sends the next case when one is finished."""

        def send(self, event, case, **values):
            if event in ("done", "failed"):
                finished[case] = event
                if len(finished) == count:
                    over.set()
                if cases:
                    todo.put(cases.pop())

    finished = {}
    path = write_good(tmp_path / "a.nrrd")
    usual = {"label": "a", "name": "a", "path": str(path), "series": "", "files": [], "options": {}, "settings": {}}
    cases = [{**usual, "id": str(number), "folder": f"f{number}", "alone": False} for number in range(count)]
    monkeypatch.setattr(Options, "read", read)
    monkeypatch.setattr(Options, "analyze", analyze)
    monkeypatch.setattr(pipeline, "write_files", write)
    Store(tmp_path / "out").cases.mkdir(parents=True)
    spec = SimpleNamespace(name="toy", version="1", to_json=lambda: "")
    config = {"output": str(tmp_path / "out"), "run": "r", "options": {}, "device": "cpu", "keep_names": True}
    worker = child._Worker(SimpleNamespace(spec=spec, sha256=()), config, Channel())
    for _ in range(DEPTH):
        todo.put(cases.pop())
    for target, arguments in ((worker.read_all, (todo,)), (worker.analyze_all, ()), (worker.write_all, ())):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    assert over.wait(60)
    assert Counter(finished.values()) == {"done": 20, "failed": 4}
    wait_for(lambda: gc.collect() >= 0 and not images, 10)
    # Its parent hears that a case is done a moment before its image is freed.
    assert 2 <= most[0] <= DEPTH + 1
