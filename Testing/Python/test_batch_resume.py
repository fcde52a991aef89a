# SPDX-License-Identifier: Apache-2.0
"""Finished cases are skipped if nothing has changed; whatever stops a batch, it stops cleanly and can be resumed."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from batch_toys import (
    RESULT_RECORD,
    ROOT,
    assert_whole,
    environment,
    final_states,
    manifest_lines,
    run_batch,
    start_batch,
    times_done,
    wait_for,
    write_good,
    write_model,
    write_result_files,
)

from LiverXAILib._version import __version__
from LiverXAILib.batch import command
from LiverXAILib.batch.cases import Case, Found, content_hash, find_cases, stamp
from LiverXAILib.batch.manifest import Manifest
from LiverXAILib.batch.run import Batch, LocalWorkerPool, RunSummary, Settings, resume_decision
from LiverXAILib.batch.store import RECORD, Shard, Store, host_name
from LiverXAILib.cli import main
from LiverXAILib.errors import InputError, LiverXAIError, UsageError
from LiverXAILib.options import Options

FAST = ("--explain", "--no-report")
MODEL = {"name": "m", "version": "1", "weights_sha256": ["1"]}


# --- what counts as the same --------------------------------------------------------------------------------------


@pytest.fixture
def done(tmp_path):
    """A case with a committed result, and everything that it depends on."""
    path = write_good(tmp_path / "images" / "a.nrrd", 1)
    (case,) = find_cases(tmp_path / "images").cases
    store = Store(tmp_path / "out")
    store.open()
    settings = Settings()
    source = {"path": "a.nrrd", "stamp": stamp(case.files), "sha256": content_hash(case.files)}
    record = RESULT_RECORD | {"case": case.id, "model": MODEL, "settings": settings.of(case), "input": source}
    part = store.part(case.folder)
    part.mkdir()
    write_result_files(part)
    store.commit(part, case.folder, record)
    yield SimpleNamespace(path=path, case=case, store=store, settings=settings)
    store.close()


def decision(done, *, settings=None, model=MODEL, state=None, refresh=False):
    return resume_decision(done.case, done.store, model, settings or done.settings, state or {}, refresh=refresh)


def test_the_same_image_model_and_settings_are_finished(done):
    assert decision(done).finished


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": Settings(options=Options(min_lesion_ml=1.0))}, "other settings"),
        ({"settings": Settings(options=Options(explain=("liver",)))}, "other settings"),
        ({"settings": Settings(options=Options(scene=True))}, "other settings"),
        ({"settings": Settings(resume=False)}, "again"),
        ({"model": {**MODEL, "weights_sha256": ["2"]}}, "other model"),
    ],
)
def test_other_settings_or_another_model_are_not(done, changes, reason):
    result = decision(done, **changes)
    assert (result.finished, result.reason) == (False, reason)


def test_device_workers_and_limits_do_not_change_a_result(done):
    settings = Settings(devices=("cuda:1",), workers=4, threads=2, time_limit=1.0)
    assert decision(done, settings=settings).finished


def test_another_image_under_the_same_name_is_done_again(done):
    write_good(done.path, 2)
    assert decision(done).reason == "image changed"
    done.path.unlink()
    assert decision(done).reason == "image changed"


def test_a_pipe_in_the_place_of_an_image_is_refused_and_never_waited_for(done):
    done.path.unlink()
    os.mkfifo(done.path)
    with pytest.raises(InputError, match="not a regular file"):
        content_hash(done.case.files)
    assert decision(done).reason == "image changed"


def test_a_copied_image_with_a_new_time_is_recognized_and_then_not_read_again(done):
    os.utime(done.path, ns=(5, 5))
    assert decision(done, refresh=True).finished
    assert done.store.record(done.case.folder)["input"]["stamp"] == stamp(done.case.files)


def test_looking_at_what_would_be_done_changes_no_record(done):
    record = done.store.cases / done.case.folder / RECORD
    before = record.read_text()
    os.utime(done.path, ns=(5, 5))
    assert decision(done).finished
    assert record.read_text() == before
    record.write_text("damaged")
    assert decision(done).reason == "new"
    assert record.read_text() == "damaged"


def test_a_failure_counts_only_if_there_is_no_result_with_these_settings(done):
    keep = Settings(keep_failed=True)
    state = {"state": "failed", "settings": done.settings.of(done.case), "model": MODEL}
    assert decision(done, settings=keep, state=state).reason == "done"
    other = Settings(keep_failed=True, options=Options(scene=True))
    result = decision(done, settings=other, state={**state, "settings": other.of(done.case)})
    assert (result.finished, result.reason) == (True, "failed before")


def test_a_result_that_was_deleted_is_made_again(done):
    (done.store.cases / done.case.folder / RECORD).unlink()
    assert decision(done, state={"state": "done"}).reason == "new"


def test_what_failed_is_tried_again_unless_one_does_not_want_it(done):
    (done.store.cases / done.case.folder / RECORD).unlink()
    state = {"state": "failed", "settings": done.settings.of(done.case), "model": MODEL}
    keep = Settings(keep_failed=True)
    assert decision(done, state=state).finished is False
    assert decision(done, settings=keep, state=state).finished
    assert not decision(done, settings=keep, state=state, model={"name": "other"}).finished
    assert not decision(done, settings=Settings(keep_failed=True, options=Options(scene=True)), state=state).finished


# --- the batch, with a pool that computes nothing ------------------------------------------------------------------


class Pool:
    """Ends each case as `outcomes` says, or as done, each after `seconds` by the batch's clock."""

    ends = 1

    def __init__(self, emit, outcomes, *, seconds=0.0, clock=None, before=()):
        self.emit, self.outcomes, self.seconds, self.clock = emit, outcomes, seconds, clock
        self.submitted, self.acknowledged, self.inside = [], [], 0
        for event in (*before, {"event": "ready", "model": MODEL}):
            emit(event)

    def free_slots(self):
        return 2 - self.inside

    def submit(self, case):
        assert self.inside < 2
        self.inside += 1
        self.submitted.append(case)
        about = {"case": case["id"]}
        self.emit({"event": "running", **about})
        self.emit({"event": "progress", "step": "Segmenting", "fraction": 0.25, **about})
        record = RESULT_RECORD | {"settings": case["settings"], "host": "here", "model": MODEL}
        usual = {"event": "finished", "state": "done", "record": record}
        outcome = {**usual, **self.outcomes.get(case["name"], {}), **about}
        self.emit(outcome)
        if outcome["event"] != "finished":
            self.emit({"event": "ended"})

    def acknowledge(self, event):
        self.acknowledged.append(event["event"])
        if event["event"] == "finished":
            self.inside -= 1
            if self.clock is not None:
                self.clock[0] += self.seconds

    def wind_down(self):
        self.acknowledged.append("wound down")
        self.emit({"event": "ended"})

    def stop(self):
        self.acknowledged.append("stopped")


@pytest.fixture
def batch(tmp_path):
    """Run a batch of cases of these names; its summary, pool, and what the user was told."""
    store = Store(tmp_path / "out")
    store.open()

    def run(*names, settings=None, shard=None, missing=(), passed_over=(), at_start=bool, on_line=bool, **pool):
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name not in missing:
                path.write_bytes(b"x")
        cases = [
            Case(f"{n:016x}", name, name, f"f{n}", tmp_path / "in" / name, files=(tmp_path / "in" / name,))
            for n, name in enumerate(names)
        ]
        store.shard = shard or Shard()
        told, shown, pools = [], [], []

        def say(text):
            told.append(text)
            on_line(text)

        def make(emit):
            at_start()
            pools.append(Pool(emit, **{"outcomes": {}, **pool}))
            return pools[0]

        reporter = SimpleNamespace(say=say, show=lambda *values: shown.append(values))
        made = Batch(Found(tmp_path, tuple(cases), passed_over), store, settings or Settings(), reporter)
        summary = made.run(make)
        return SimpleNamespace(summary=summary, pool=pools[0], told=told, shown=shown, store=store, cases=cases)

    run.store = store
    yield run
    store.close()


CUT = {"state": "failed", "kind": "input", "error": "b.nii is incomplete.", "seconds": 1.5, "unreachable": False}


def test_all_that_happens_is_in_the_manifest_and_told(batch, tmp_path):
    worker = {"event": "worker", "pid": 5, "host": "there"}
    outcomes = {"in/b.nii": CUT, "c.nii": {**CUT, "error": "Odd."}}
    ran = batch("a.nii", "in/b.nii", "c.nii", outcomes=outcomes, before=[worker], passed_over=(("d.txt", "empty"),))
    assert ran.summary.exit_code == 1
    assert ran.summary.done == [ran.cases[0].id]
    assert ran.summary.failed == {ran.cases[1].id: "b.nii is incomplete.", ran.cases[2].id: "Odd."}
    run, started, *lines, end = manifest_lines(tmp_path / "out")
    assert (run["event"], run["cases"], run["shard"], run["keep_names"]) == ("run", 3, "1/1", False)
    assert (run["software"], run["host"], run["passed_over"]) == (
        *(__version__, host_name().split()[0]),
        [["d.txt", "empty"]],
    )
    assert (started["event"], started["pid"], started["host"]) == ("worker", 5, "there")
    assert (end["event"], end["done"], end["failed"], end["reason"]) == ("end", 1, 2, "")
    states = [(line["case"][-1], line["label"], line["folder"], line["state"]) for line in lines]
    assert sorted(states) == sorted(
        (f"{n}", case.label, f"f{n}", state)
        for n, case in enumerate(ran.cases)
        for state in ("running", "failed" if n else "done")
    )
    failed = next(line for line in lines if line["label"] == "in/b.nii" and line["state"] == "failed")
    expected = {"kind": "input", "error": "b.nii is incomplete.", "seconds": 1.5, "model": MODEL}
    assert {name: failed[name] for name in expected} == expected
    assert failed["settings"] == Settings().of(ran.cases[1])
    done = next(line for line in lines if line["state"] == "done")
    kept = {"input": RESULT_RECORD["input"], "times": RESULT_RECORD["times"], "warnings": [], "host": "here"}
    assert {name: done[name] for name in kept} == kept
    assert [line.partition(" (")[0] for line in ran.told] == [
        *("done    a.nii", "FAILED  in/b.nii is incomplete.", "FAILED  c.nii: Odd.")
    ]
    assert (0.25, 3, "a.nii: Segmenting") in [(done, total, text.split(", ")[0]) for done, total, text in ran.shown]
    assert ran.shown[-1] == (3, 3, "")
    assert ran.shown[2:5] == [(0, 0, f"Checking case {number} of 3") for number in (1, 2, 3)]
    message = ran.pool.submitted[1]
    assert (message["id"], message["name"], message["folder"]) == (ran.cases[1].id, "in/b.nii", "f1")
    assert (message["path"], message["files"]) == (str(ran.cases[1].path), [str(ran.cases[1].path)])
    assert ran.pool.acknowledged[-1] == "stopped"


@pytest.mark.parametrize(
    ("seconds", "left"),
    [
        (14.0, "1 of 3, less than a minute left"),
        (30.0, "1 of 3, about 1 min left"),
        (2600.0, "1 of 3, about 87 min left"),
        (2700.0, "1 of 3, about 1.5 h left"),
    ],
)
def test_the_remaining_time_is_that_of_the_cases_so_far(seconds, left, batch, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("LiverXAILib.batch.run.time", SimpleNamespace(monotonic=lambda: clock[0]))
    ran = batch("a", "b", "c", seconds=seconds, clock=clock)
    assert ran.told[0] == f"done    a ({left})"
    assert ran.told[-1] == "done    c (3 of 3)"


def test_a_run_says_where_it_keeps_what_was_edited_in_the_folder_of_a_case(batch):
    kept = batch.store.replaced("f1")
    kept.mkdir(parents=True)
    ran = batch("a", "b")
    assert len([line for line in ran.told if "is kept in" in line]) == 1
    assert ran.told[2].endswith(f"is kept in {kept}.")


def test_what_was_in_progress_when_an_earlier_run_died_comes_last(batch, tmp_path):
    earlier = Manifest(Store(tmp_path / "out"))
    for n, state in ((0, "running"), (1, "dropped")):
        earlier.append("case", case=f"{n:016x}", label="x", folder=f"f{n}", state=state)
    earlier.close()
    assert [case["name"] for case in batch("a", "b", "c").pool.submitted] == ["b", "c", "a"]


def result_of_earlier_run(store, number, name, folder):
    """Commit a result that is as good as one of this run; return what the manifest says about its case."""
    path = store.output.parent / "in" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    case = Case(f"{number:016x}", name, name, folder, path)
    settings = Settings().of(case)
    source = {"path": "earlier", "stamp": stamp([path]), "sha256": content_hash([path])}
    about = {"case": case.id, "label": name, "folder": folder, "settings": settings, "model": MODEL}
    store.part(folder).mkdir()
    write_result_files(store.part(folder))
    store.commit(store.part(folder), folder, RESULT_RECORD | about | {"label": "earlier", "input": source})
    return about


def test_what_earlier_runs_did_is_counted_and_not_done_again(batch, tmp_path):
    about = [result_of_earlier_run(batch.store, n, name, f"f{n}") for n, name in enumerate("abcde")]
    earlier = Manifest(Store(tmp_path / "out"))
    earlier.append("case", **about[0], state="done")
    for line in about[3:]:
        (batch.store.cases / line["folder"] / RECORD).unlink()
        earlier.append("case", **line, state="failed", kind="input", error="e")
    earlier.close()
    ran = batch(*"abcdef", settings=Settings(keep_failed=True))
    assert [case["name"] for case in ran.pool.submitted] == ["f"]
    assert (ran.summary.done_before, ran.summary.failed_before, len(ran.summary.done)) == (3, 2, 1)
    assert ran.summary.exit_code == 1
    # The run that did "b" and "c" died before it said so.
    assert times_done(tmp_path / "out") == Counter("abcf")


@pytest.mark.parametrize("kept", [True, False])
def test_a_result_is_found_under_its_earlier_name_unless_it_is_that_of_another_case(batch, tmp_path, kept):
    earlier = Manifest(Store(tmp_path / "out"))
    for number, name in enumerate("ax"):
        about = result_of_earlier_run(batch.store, 5 * number, name, f"old{number}")
        earlier.append("case", **{**about, "case": f"{number:016x}"}, state="done")
    earlier.close()
    ran = batch("a", "b", settings=Settings(keep_names=kept))
    assert [case["name"] for case in ran.pool.submitted] == ["b"]
    assert {path.name for path in batch.store.cases.iterdir()} == {"f0", "old1"}
    record = batch.store.record("f0")
    assert (record["label"], record["folder"]) == ("a", "f0")
    assert record["input"]["path"] == (str(tmp_path / "in" / "a") if kept else "a")
    assert record["input"]["sha256"] == content_hash([tmp_path / "in" / "a"])


@pytest.mark.parametrize(
    ("numbers", "done", "code", "says"),
    [
        ([signal.SIGINT], "ab", 130, True),  # the two cases that the workers hold
        ([signal.SIGINT, signal.SIGINT], "a", 130, True),
        ([signal.SIGTERM], "a", 143, False),
    ],
)
def test_a_signal_ends_the_batch_after_the_current_cases_or_at_once(numbers, done, code, says, batch, tmp_path):
    def when_done(text):
        if text.startswith("done"):
            for number in numbers:
                signal.raise_signal(number)

    ran = batch(*"abcd", on_line=when_done)
    assert (len(ran.summary.done), ran.summary.failed, ran.summary.exit_code) == (len(done), {}, code)
    assert ("Stopping after the current cases. Press Ctrl+C again to drop them." in ran.told) == says
    assert ran.pool.acknowledged.count("wound down") == says
    states = {name: state["state"] for name, state in final_states(tmp_path / "out").items()}
    assert states == {name: "done" if name in done else "dropped" for name in "ab"}
    assert [case["name"] for case in ran.pool.submitted] == ["a", "b"]


def test_a_signal_while_the_model_is_loaded_ends_the_batch_before_it_begins(batch, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    ran = batch("a", at_start=lambda: signal.raise_signal(signal.SIGINT))
    assert (ran.pool.submitted, ran.summary.exit_code) == ([], 130)
    assert [line["event"] for line in manifest_lines(tmp_path / "out")] == ["run"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_half_written_results_are_removed_when_a_batch_stops(batch):
    batch.store.part("f0").mkdir()
    batch("a", outcomes={"a": {"event": "fatal", "error": "No room."}})
    assert list(batch.store.cases.iterdir()) == []


def test_a_part_of_the_cases_is_that_of_the_shard(batch):
    ran = batch("a", "b", "c", "d", "e", shard=Shard(2, 2))
    assert [case["name"] for case in ran.pool.submitted] == ["b", "d"]
    assert ran.told[-1].endswith("(2 of 2)")


GONE = {**CUT, "unreachable": True}


@pytest.mark.parametrize(
    ("names", "missing", "stopped"),
    [
        ("ab", "ab", True),
        ("ab", "a", False),
        ("a", "a", False),
        ("abcdef", "abcde", False),
        ("abcdefg", "abcdef", True),
    ],
)
def test_images_that_are_gone_stop_the_batch_unless_another_is_still_there(names, missing, stopped, batch, tmp_path):
    ran = batch(*names, missing=missing, outcomes={"a": GONE})
    assert ("can no longer be reached" in ran.summary.stopped) == stopped
    assert ("a" in [case.name for case in ran.cases if case.id in ran.summary.failed]) != stopped
    assert ran.summary.exit_code == 1
    assert final_states(tmp_path / "out")["a"]["state"] == ("dropped" if stopped else "failed")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"event": "ready", "model": {"name": "other"}}, "changed during the run"),
        ({"event": "fatal", "error": "No room."}, "No room."),
    ],
)
def test_a_model_that_changes_or_a_pool_that_fails_stops_the_batch(event, reason, batch, tmp_path):
    ran = batch("a", "b", outcomes={"a": event})
    assert reason in ran.summary.stopped
    assert (ran.summary.exit_code, ran.summary.failed) == (1, {})
    assert {state["state"] for state in final_states(tmp_path / "out").values()} == {"dropped"}
    assert manifest_lines(tmp_path / "out")[-1]["reason"] == ran.summary.stopped


@pytest.mark.parametrize(("usage", "kind"), [(True, UsageError), (False, LiverXAIError)])
def test_a_request_that_no_worker_accepts_ends_the_batch_before_it_begins(usage, kind, batch, tmp_path):
    with pytest.raises(LiverXAIError, match="No such layer") as caught:
        batch("a", before=[{"event": "fatal", "error": "No such layer.", "usage": usage}])
    assert type(caught.value) is kind
    assert [line["event"] for line in manifest_lines(tmp_path / "out")] == ["run"]


def test_cases_go_to_the_worker_with_the_least_to_do(monkeypatch, tmp_path):
    given = []

    def session(store, config, emit, *, time_limit, python):
        return SimpleNamespace(submit=lambda case: given.append((config["device"], case["id"], time_limit, python)))

    monkeypatch.setattr("LiverXAILib.batch.run.Session", session)
    settings, store = Settings(devices=("cuda:0", "cuda:1"), workers=3), Store(tmp_path)
    configs = [settings.config(store, number) for number in range(3)]
    assert [config["device"] for config in configs] == ["cuda:0", "cuda:1", "cuda:0"]
    pool = LocalWorkerPool(
        store, [{**config, "device": n} for n, config in enumerate(configs)], print, time_limit=7, python="p"
    )
    assert (pool.ends, pool.free_slots()) == (3, 6)
    for name in "abcd":
        pool.submit({"id": name})
    assert pool.free_slots() == 2
    pool.acknowledge({"event": "running", "case": "b"})
    pool.acknowledge({"event": "finished", "case": "b"})
    assert pool.free_slots() == 3
    pool.submit({"id": "e"})
    assert given == [(n, name, 7, "p") for n, name in ((0, "a"), (1, "b"), (2, "c"), (0, "d"), (1, "e"))]


# --- the command --------------------------------------------------------------------------------------------------


def settings_of(*words: str) -> Settings:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command._settings(parser.parse_args(["in", "-o", "out", *words]))


def test_each_worker_gets_its_own_device(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(command, "LocalWorkerPool", lambda *values, **named: made.append((*values, named)))
    settings = settings_of("--workers", "3", "--device", "cuda:0,cuda:1", "--time-limit", "7")
    store = Store(tmp_path)
    command._engine(argparse.Namespace(engine="local"), store, settings, "python")(print)
    (used, configs, emit, named) = made[0]
    assert (used, emit, named) == (store, print, {"time_limit": 7.0, "python": "python"})
    assert [config["device"] for config in configs] == ["cuda:0", "cuda:1", "cuda:0"]


class OneEvent:
    """A session that says one thing."""

    event: dict = {}  # noqa: RUF012
    stopped = 0

    def __init__(self, store, config, emit, *, time_limit, python):
        assert store.cases.is_dir()
        assert (config["model"], time_limit, python) == ("toy", 0, "python")
        emit({"event": "worker", "pid": 1, "host": "here"})
        emit(self.event)

    def stop(self):
        OneEvent.stopped += 1


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"event": "ready", "model": MODEL}, None),
        ({"event": "fatal", "error": "No such model.", "usage": True}, UsageError),
        ({"event": "fatal", "error": "No such model.", "usage": False}, LiverXAIError),
    ],
)
def test_a_dry_run_asks_a_worker_which_model_it_would_use(monkeypatch, event, kind, done):
    monkeypatch.setattr("LiverXAILib.batch.session.Session", OneEvent)
    monkeypatch.setattr(OneEvent, "event", event)
    monkeypatch.setattr(OneEvent, "stopped", 0)
    said, shown = [], []
    screen = SimpleNamespace(say=said.append, note=lambda *values: shown.append(values))
    found = Found(done.path.parent, (done.case,))
    if kind is None:
        assert command._dry_run(found, done.store, Settings(model="toy"), screen, "python") == 0
        assert said[0].split()[:2] == ["skip", "done"]
        assert said[1:] == ["0 cases would be done. Nothing was done."]
    else:
        with pytest.raises(LiverXAIError, match="No such model") as caught:
            command._dry_run(found, done.store, Settings(model="toy"), screen, "python")
        assert type(caught.value) is kind
    assert shown[0] == ("Loading the model", 0.0)
    assert OneEvent.stopped == 1


def test_the_command_s_options_become_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    usual = settings_of()
    assert (usual.workers, usual.threads, usual.devices, usual.time_limit) == (1, 0, ("auto",), 1800.0)
    assert (usual.resume, usual.keep_failed, usual.keep_names, usual.model) == (True, False, False, "default")
    assert settings_of("--workers", "2").threads == 4
    assert settings_of("--workers", "20").threads == 1
    assert settings_of("--workers", "2", "--threads", "3").threads == 3
    assert settings_of("--workers", "2", "--engine", "ray").threads == 0
    with pytest.raises(UsageError, match="at least 1"):
        settings_of("--workers", "0")
    other = settings_of(
        "--device", "cuda:0,cuda:1", "--time-limit", "0", "--no-resume", "--keep-failed", "--keep-names"
    )
    assert (other.devices, other.time_limit) == (("cuda:0", "cuda:1"), 0)
    assert (other.resume, other.keep_failed, other.keep_names) == (False, True, True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert settings_of("--model", "mine").model == str(tmp_path / "mine")
    assert settings_of("--explain", "liver").options.explain == ("liver",)


@pytest.mark.parametrize(
    ("text", "shard"),
    [("1/1", Shard()), ("8/8", Shard(8, 8)), ("0/2", None), ("3/2", None), ("2", None), ("a/b", None)],
)
def test_a_part_is_written_as_two_numbers(text, shard):
    if shard is not None:
        assert command._shard(text) == shard
    else:
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            command._shard(text)


def test_a_dry_run_lists_what_would_be_done_in_this_part_and_what_is_passed_over(tmp_path, capsys):
    for name in ("a.nrrd", "b.nrrd", "c.nrrd", "d.txt"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    cases = find_cases(tmp_path / "in").cases
    output = ["-o", str(tmp_path / "out"), "--dry-run"]
    assert main(["batch", "--input", str(tmp_path / "in"), *output]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"3 cases in {tmp_path / 'in'}; 1 file or series skipped."
    assert said[1] == "  1 skipped: not an image"
    assert [line.split() for line in said[2:5]] == [["do", "new", case.folder, case.label] for case in cases]
    assert said[5:] == ["-     skipped         d.txt: not an image", "3 cases would be done. Nothing was done."]
    assert not (tmp_path / "out").exists()
    parts = [[case.label for case in cases if Shard(n, 2).holds(case.id)] for n in (1, 2)]
    for number, part in enumerate(parts, 1):
        assert main(["batch", str(tmp_path / "in"), *output, "--shard", f"{number}/2"]) == 0
        said = capsys.readouterr().out
        assert f"3 cases in {tmp_path / 'in'}, {len(part)} of them in part {number}/2;" in said
        if part:
            assert [line.split()[-1] for line in said.splitlines() if line.startswith("do ")] == part
        else:
            assert "Nothing to do in this part." in said
    assert main(["batch", str(tmp_path / "in"), "--input", str(tmp_path / "in"), *output]) == 2
    assert "Give one INPUT" in capsys.readouterr().err
    (tmp_path / "out" / "cases" / cases[0].folder).mkdir(parents=True)
    (tmp_path / "out" / "manifest").mkdir()
    earlier = Manifest(Store(tmp_path / "out"))
    for n, kind in ((1, "input"), (2, "crash")):
        model = {"model": {}} if n == 1 else {"model": MODEL}
        about = {"case": cases[n].id, "label": "x", "folder": cases[n].folder, "settings": settings_of().of(cases[n])}
        earlier.append("case", state="failed", kind=kind, error="e", **about, **model)
    earlier.close()
    assert main(["batch", str(tmp_path / "in"), *output, "--keep-failed"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if line.endswith(".nrrd")] == ["do", "skip", "do"]
    assert said[-1] == "2 cases would be done. Nothing was done."


def test_a_batch_from_an_archive_tells_each_step_and_stores_its_results_there(monkeypatch, tmp_path, capsys):
    noted, output = [], tmp_path / "out"

    class Archive:
        url = "http://pacs"

        def __init__(self, address):
            assert address == "dicomweb+http://pacs"

        def fetch(self, folder, progress):
            progress("Retrieving", 0.5)
            return write_good(folder / "a.nrrd").parent

        def store(self, files, folder, progress):
            progress("Storing", 0.25)
            assert ([path.name for path in files], folder) == (["a.dcm", "b.dcm"], output)
            return 1

    class AtOnce:
        def __init__(self, found, store, settings, screen):
            assert settings.options.dicom
            assert [path.name for path in store.manifest.iterdir()] == ["lock-1-of-1.json"]
            (self.case,), self.folder = found.cases, store.cases / found.cases[0].folder

        def run(self, make_pool):
            for name in ("b.dcm", "a.dcm", "c.json"):
                self.folder.mkdir(exist_ok=True)
                (self.folder / name).touch()
            return RunSummary(done=[self.case.id])

    monkeypatch.setattr(command, "Archive", Archive)
    monkeypatch.setattr(command, "Batch", AtOnce)
    monkeypatch.setattr(command, "write_summary", lambda store, found: [store.output / "cases.csv"])
    monkeypatch.setattr(command.Screen, "note", lambda self, text, fraction: noted.append((text, fraction)))
    assert main(["batch", "dicomweb+http://pacs", "-o", str(output)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"1 case in {output / 'fetched'}; 0 files or series skipped."
    assert said[-3:] == ["1 DICOM object stored in http://pacs.", "1 done, 0 failed.", f"  {output / 'cases.csv'}"]
    assert [note for note in noted if note[1] or note[0].startswith(("Searching", "Summing"))] == [
        *(("Retrieving", 0.5), ("Searching fetched", 0.0), ("Summing up", 0.0), ("Storing", 0.25))
    ]
    assert (output / "names.csv").is_file()
    assert list((output / "manifest").iterdir()) == []  # the lock is gone


# --- real runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    return SimpleNamespace(folder=folder, model=write_model(folder / "model"), env=environment(folder / "env"))


def images(folder: Path, count: int, name: str = "case") -> Path:
    for number in range(count):
        write_good(folder / f"{name}{number}.nrrd", number)
    return folder


def test_only_what_changed_is_done_again_and_failures_do_not_matter_to_others(place, tmp_path):
    folder = images(tmp_path / "images", 3)
    arguments = (folder, "-o", tmp_path / "out", "--model", place.model, *FAST)
    assert run_batch(*arguments, env=place.env).returncode == 0
    write_good(folder / "case0.nrrd", 77)
    os.utime(folder / "case1.nrrd", ns=(5, 5))
    write_good(folder / "case3.nrrd", 3)
    dry = run_batch(*arguments, "--dry-run", env=place.env)
    assert dry.returncode == 0
    assert [line.split()[0] for line in dry.stdout.splitlines() if "case" in line.split("  ")[-1]][1:5] == [
        *("do", "skip", "skip", "do")
    ], dry.stdout
    assert times_done(tmp_path / "out") == Counter(["case0.nrrd", "case1.nrrd", "case2.nrrd"])
    assert run_batch(*arguments, env=place.env).returncode == 0
    assert times_done(tmp_path / "out") == Counter(["case0.nrrd"] * 2 + ["case1.nrrd", "case2.nrrd", "case3.nrrd"])


def test_ctrl_c_finishes_the_current_case_and_says_how_to_go_on(place, tmp_path):
    folder = images(tmp_path / "images", 6, "slow")
    arguments = (folder, "-o", tmp_path / "out", "--model", place.model, *FAST)
    process = start_batch(*arguments, env=place.env)
    wait_for(lambda: times_done(tmp_path / "out"))
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 130, said
    assert "run the same command again" in said
    done = times_done(tmp_path / "out")
    assert 1 <= len(done) < 6
    assert len(list((tmp_path / "out" / "cases").iterdir())) == len(done)
    assert run_batch(*arguments, env=place.env).returncode == 0
    assert times_done(tmp_path / "out") == Counter(f"slow{n}.nrrd" for n in range(6))


def test_a_scheduler_that_terminates_the_batch_finds_it_gone_at_once_and_nothing_half_done(place, tmp_path):
    folder = images(tmp_path / "images", 6, "slow")
    process = start_batch(folder, "-o", tmp_path / "out", "--model", place.model, *FAST, env=place.env)
    wait_for(lambda: times_done(tmp_path / "out"))
    process.terminate()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 143, said
    left = {path.name for path in (tmp_path / "out" / "cases").iterdir()}
    done = {state["folder"] for state in final_states(tmp_path / "out").values() if state["state"] == "done"}
    assert left == done
    assert not list((tmp_path / "out" / "manifest").glob("lock-*"))
    assert {state["state"] for state in final_states(tmp_path / "out").values()} <= {"done", "dropped"}


def test_a_full_disk_stops_the_batch_and_blames_no_case(place, tmp_path):
    folder = images(tmp_path / "images", 3)
    # The limit of the batch and of its workers, which a forked process does not inherit.
    (tmp_path / "limit").mkdir()
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
    (tmp_path / "limit" / "sitecustomize.py").write_text(limit)
    env = {**place.env, "PYTHONPATH": os.pathsep.join([str(tmp_path / "limit"), place.env["PYTHONPATH"]])}
    process = start_batch(folder, "-o", tmp_path / "out", "--model", place.model, *FAST, env=env)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    assert "cannot be written" in said
    assert "0 done, 0 failed" in said
    assert not list((tmp_path / "out" / "cases").iterdir())
    assert "failed" not in {line.get("state") for line in manifest_lines(tmp_path / "out")}


def test_a_lost_input_drive_stops_the_batch_instead_of_failing_every_case(place, tmp_path):
    folder = images(tmp_path / "drive", 8, "slow")
    arguments = (folder, "-o", tmp_path / "out", "--model", place.model, *FAST)
    process = start_batch(*arguments, env=place.env)
    wait_for(lambda: times_done(tmp_path / "out"))
    folder.rename(tmp_path / "unplugged")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1, said
    assert "can no longer be reached" in said
    assert {state["state"] for state in final_states(tmp_path / "out").values()} <= {"done", "dropped", "running"}


def test_a_lost_output_drive_stops_the_batch_and_what_was_done_is_whole(place, tmp_path):
    folder = images(tmp_path / "images", 8, "slow")
    arguments = (folder, "-o", tmp_path / "drive", "--model", place.model, *FAST)
    process = start_batch(*arguments, env=place.env)
    wait_for(lambda: times_done(tmp_path / "drive"))
    (tmp_path / "drive").rename(tmp_path / "unplugged")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1, said
    assert "cannot be written" in said
    assert "reconnect the drive" in said
    for path in (tmp_path / "unplugged" / "cases").glob("[!.]*"):
        assert_whole(path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere", "-o", "out"], 1, "no file or folder"),
        (["-o", "out"], 2, "Give one INPUT"),
        (["images", "-o", "out", "--model", "nonsense"], 1, "no model 'nonsense'"),
        (["images", "-o", "out", "--method", "magic"], 2, "no explanation method 'magic'"),
        (["images", "-o", "out", "--explain", "lesion:x"], 2, "lesion:x"),
        (["images", "-o", "out", "--shard", "3/2"], 2, "between 1 and 2"),
        (["empty", "-o", "out"], 1, "There are no CTs"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_tried(
    forked_children, place, tmp_path, arguments, code, words, monkeypatch, capsys
):
    images(tmp_path / "images", 1)
    (tmp_path / "empty").mkdir()
    model = [] if "--model" in arguments else ["--model", str(place.model)]
    monkeypatch.chdir(tmp_path)
    try:
        ended = main(["batch", *arguments, *model])
    except SystemExit as error:  # for arguments that no command accepts
        ended = error.code
    said = capsys.readouterr()
    assert ended == code, said.out + said.err
    assert words in said.out + said.err
    assert not (tmp_path / "out" / "cases").exists() or not list((tmp_path / "out" / "cases").iterdir())


def test_the_parent_process_never_loads_torch(place):
    code = "import sys, LiverXAILib.batch.command, LiverXAILib.batch.run; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=place.env, cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert result.stdout.strip() == "False"
