# SPDX-License-Identifier: Apache-2.0
"""Finished cases are skipped if nothing has changed; whatever stops a batch, it stops cleanly and can be resumed."""

from __future__ import annotations

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

from LiverXAILib.batch.cases import content_hash, find_cases, stamp
from LiverXAILib.batch.run import Settings, resume_decision
from LiverXAILib.batch.store import RECORD, Store
from LiverXAILib.cli import main
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


def test_a_copied_image_with_a_new_time_is_recognized_and_then_not_read_again(done):
    os.utime(done.path, ns=(5, 5))
    assert decision(done, refresh=True).finished
    assert done.store.record(done.case.folder)["input"]["stamp"] == stamp(done.case.files)


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
