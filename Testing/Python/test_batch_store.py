# SPDX-License-Identifier: Apache-2.0
"""The output folder: one writer at a time, only complete results, and a manifest that survives a truncated line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from LiverXAILib.batch import manifest as manifest_module
from LiverXAILib.batch.manifest import Manifest, last_states, read_manifest
from LiverXAILib.batch.store import BusyError, OutputError, Shard, Store, host_name, is_lost_place, same_result


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "out")
    store.open()
    yield store
    store.close()


@pytest.fixture
def naps(monkeypatch):
    """The pauses of the store in seconds: its clock advances by them, and nothing waits."""
    naps = []
    clock = {**vars(time), "sleep": naps.append, "monotonic": lambda: sum(naps)}
    monkeypatch.setattr("LiverXAILib.batch.store.time", SimpleNamespace(**clock))
    return naps


def a_record(store, **changes):
    return {"case": "1", "run": store.token, "model": {}, "settings": {}, "input": {"sha256": "a"}, **changes}


def a_part(store, folder, text="result"):
    part = store.part(folder)
    part.mkdir()
    (part / "result.txt").write_text(text)
    return part


def lock_of_another(output, *, shard="1-of-1", host=None, pid=1, age=0.0):
    (output / "manifest").mkdir(parents=True, exist_ok=True)
    path = output / "manifest" / f"lock-{shard}.json"
    path.write_text(json.dumps({"token": "other", "host": host or host_name(), "pid": pid, "shard": shard}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


# --- one writer at a time -----------------------------------------------------------------------------------------


def test_a_second_run_on_the_same_output_is_refused(store):
    running = lock_of_another(store.output, shard="2-of-2", pid=os.getppid())
    with pytest.raises(BusyError, match=f"process {os.getppid()}"):
        Store(store.output, Shard(2, 2)).open()
    assert json.loads(running.read_text())["token"] == "other"


def test_a_lock_that_disappears_while_it_is_examined_is_no_obstacle(tmp_path, monkeypatch, naps):
    running = lock_of_another(tmp_path, pid=os.getppid())
    monkeypatch.setattr(Store, "_refuse_if_alive", lambda self, path, note: path.unlink())
    store = Store(tmp_path)
    store.open()
    assert json.loads(running.read_text())["token"] == store.token
    store.close()


def test_other_shards_of_the_same_division_may_run_at_the_same_time(tmp_path):
    lock_of_another(tmp_path, shard="1-of-3", pid=os.getppid())
    second = Store(tmp_path, Shard(2, 3))
    second.open()
    second.close()


@pytest.mark.parametrize("shard", [Shard(), Shard(1, 2), Shard(3, 4)])
def test_another_division_into_shards_would_share_cases_and_is_refused(tmp_path, shard):
    lock_of_another(tmp_path, shard="1-of-3", pid=os.getppid())
    with pytest.raises(BusyError):
        Store(tmp_path, shard).open()
    assert [path.name for path in (tmp_path / "manifest").glob("lock-*")] == ["lock-1-of-3.json"]


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, naps):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock_of_another(tmp_path, pid=dead.pid)
    store = Store(tmp_path)
    store.open()
    assert json.loads((store.manifest / "lock-1-of-1.json").read_text())["token"] == store.token
    assert naps == [1.0]  # to see whether another run has found it, too
    store.close()
    assert not list(store.manifest.glob("lock-*"))


def test_the_lock_of_another_machine_holds_as_long_as_it_is_touched(tmp_path, naps):
    lock = lock_of_another(tmp_path, host="elsewhere")

    def touch_it_late(_):
        if sum(naps) == 50:
            os.utime(lock, (time.time() + 1, time.time() + 1))

    with pytest.raises(BusyError, match="elsewhere"):
        Store(tmp_path).open(touch_it_late)
    assert sum(naps) == 50.5
    naps.clear()
    store = Store(tmp_path)
    store.open()  # its time stamp no longer changes: it is observed until it is stale, and taken over
    assert 60 <= sum(naps) <= 62
    store.heartbeat()
    store.close()


@pytest.mark.parametrize(("age", "alive"), [(-5.0, True), (0.0, True), (50.0, True), (3600.0, False)])
def test_a_process_holds_its_lock_only_as_long_as_it_touches_it(tmp_path, monkeypatch, age, alive):
    """The number of a dead process may belong to another one."""
    monkeypatch.setattr("LiverXAILib.batch.store.time.sleep", lambda _: None)
    lock_of_another(tmp_path, pid=os.getppid(), age=age)
    store, waits = Store(tmp_path), []
    if alive:
        with pytest.raises(BusyError):
            store.open(waits.append)
    else:
        store.open(waits.append)
        store.close()
    assert waits == []
    assert not list((tmp_path / "manifest").glob(".now-*"))


def test_a_lock_with_the_number_of_this_very_process_is_left_from_an_earlier_one(tmp_path, monkeypatch):
    """In a container, each run may have the same number."""
    monkeypatch.setattr("LiverXAILib.batch.store.time.sleep", lambda _: None)
    lock = lock_of_another(tmp_path, pid=os.getpid())
    store = Store(tmp_path)
    store.open()
    assert json.loads(lock.read_text())["token"] == store.token
    store.close()


def test_of_two_runs_that_find_the_same_dead_lock_one_goes_on(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock_of_another(tmp_path, pid=dead.pid)
    # The other run finds the dead lock at the same time, and takes this one's for it.
    monkeypatch.setattr("LiverXAILib.batch.store.time.sleep", lambda _: lock_of_another(tmp_path, pid=os.getppid()))
    with pytest.raises(BusyError, match="has just started"):
        Store(tmp_path).open()
    assert json.loads((tmp_path / "manifest" / "lock-1-of-1.json").read_text())["token"] == "other"


def test_a_run_that_was_taken_for_dead_stops(store, monkeypatch):
    store.check()
    lock = lock_of_another(store.output)
    with pytest.raises(OutputError, match="taken over"):
        store.heartbeat()
    monkeypatch.setattr("LiverXAILib.batch.store._HEARTBEAT_SECONDS", 0.0)
    store._beat()
    with pytest.raises(OutputError, match="taken over"):
        store.check()
    store.close()
    assert json.loads(lock.read_text())["token"] == "other"


def test_a_run_shows_that_it_is_alive_by_the_time_of_its_lock(store):
    lock = store.manifest / "lock-1-of-1.json"
    os.utime(lock, (5, 5))
    store.heartbeat()
    assert time.time() - 100 < lock.stat().st_mtime


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(28, "No space"), "out: No space. No result"), (OSError("odd"), "out: odd. No result")],
)
def test_what_the_system_says_about_the_output_is_told(tmp_path, error, reason):
    assert reason in str(Store(tmp_path / "out").unusable(error))


def test_an_output_that_cannot_be_written_is_told_before_anything_is_done(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        Store(tmp_path / "out").open()


def test_a_run_whose_drive_is_gone_stops(tmp_path):
    store = Store(tmp_path / "drive")
    store.open()
    (tmp_path / "drive").rename(tmp_path / "unplugged")
    with pytest.raises(OutputError):
        store.heartbeat()


def test_only_what_dead_runs_left_is_swept(tmp_path):
    lock_of_another(tmp_path, shard="1-of-2", pid=os.getppid())
    cases = tmp_path / "cases"
    for name in (".part-other-a", ".part-dead-b", "..part-dead-b-x1y2", "ct.part-1", "x.part-dead-b"):
        (cases / name).mkdir(parents=True)
        (cases / name / "half").write_text("x")
    (cases / "whole").mkdir()
    store = Store(tmp_path, Shard(2, 2))
    store.open()
    store.close()
    assert {path.name for path in cases.iterdir()} == {".part-other-a", "whole", "ct.part-1", "x.part-dead-b"}


def test_what_lost_workers_left_goes_with_the_run_itself(tmp_path):
    lock_of_another(tmp_path, shard="1-of-2", pid=os.getppid())
    store = Store(tmp_path, Shard(2, 2))
    store.open()
    store.part("a").mkdir()
    for path in (store.part("a") / "half", store.part("probe-1234"), store.cases / ".part-other-b"):
        path.write_text("x")
    store.close()
    assert [path.name for path in store.cases.iterdir()] == [".part-other-b"]


# --- results ------------------------------------------------------------------------------------------------------


def test_a_committed_case_is_whole_and_has_its_record(store):
    record = a_record(store)
    assert store.commit(a_part(store, "one"), "one", record)
    assert (store.cases / "one" / "result.txt").read_text() == "result"
    assert store.record("one") == record
    assert [path.name for path in store.cases.iterdir()] == ["one"]


def test_a_new_result_replaces_an_old_one_whole(store):
    old = a_part(store, "one", "old")
    (old / "only-in-old.txt").write_text("x")
    store.commit(old, "one", a_record(store, run="earlier"))
    assert store.commit(a_part(store, "one", "new"), "one", a_record(store))
    assert {path.name for path in (store.cases / "one").iterdir()} == {"result.txt", "case.json"}
    assert (store.cases / "one" / "result.txt").read_text() == "new"
    assert [path.name for path in store.cases.iterdir()] == ["one"]
    assert not store.replaced("one").exists()


def edited(folder, name, text="x"):
    """Write a file; its folder's result is two hours old, the edit one."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    for path in folder.rglob("*"):
        hours = 1 if path == folder / name else 2
        os.utime(path, (time.time() - 3600 * hours,) * 2)


@pytest.mark.parametrize("name", ["result.txt", "notes.txt", ".hidden", "deep/notes.txt"])
def test_a_result_that_was_edited_since_is_kept_when_the_case_is_repeated(store, name):
    store.commit(a_part(store, "one", "old"), "one", a_record(store, run="earlier"))
    edited(store.cases / "one", name, "the reader's")
    store.update_record("one", a_record(store, run="earlier", label="renamed"))
    assert store.commit(a_part(store, "one", "new"), "one", a_record(store))
    assert (store.cases / "one" / "result.txt").read_text() == "new"
    assert (store.replaced("one") / name).read_text() == "the reader's"
    assert json.loads((store.replaced("one") / "case.json").read_text())["label"] == "renamed"
    assert {path.name for path in store.cases.iterdir()} == {"one"}


@pytest.mark.parametrize("there", ["another case", "no batch", "a file"])
def test_what_is_not_an_earlier_result_of_the_case_is_kept(store, there):
    if there == "another case":
        store.commit(a_part(store, "one", "old"), "one", a_record(store, case="2"))
    elif there == "no batch":
        (store.cases / "one").mkdir()
        (store.cases / "one" / "result.txt").write_text("old")
    else:
        (store.cases / "one").write_text("old")
    assert store.commit(a_part(store, "one", "new"), "one", a_record(store))
    assert (store.cases / "one" / "result.txt").read_text() == "new"
    kept = store.replaced("one")
    assert (kept if there == "a file" else kept / "result.txt").read_text() == "old"


def test_a_worker_that_was_believed_lost_does_not_replace_the_result_of_its_successor(store):
    store.commit(a_part(store, "one", "successor"), "one", a_record(store))
    assert not store.commit(a_part(store, "one", "late"), "one", a_record(store))
    assert (store.cases / "one" / "result.txt").read_text() == "successor"
    assert [path.name for path in store.cases.iterdir()] == ["one"]


@pytest.mark.parametrize("change", ["case", "model", "settings", "input", "run", None])
def test_only_the_same_result_of_the_same_run_is_kept(store, change):
    store.commit(a_part(store, "one", "first"), "one", a_record(store))
    other = {"case": "2", "model": {"name": "m"}, "settings": {"a": 1}, "input": {"sha256": "b"}, "run": "x"}
    record = a_record(store, **({} if change is None else {change: other[change]}))
    assert store.commit(a_part(store, "one", "second"), "one", record) == (change is not None)
    assert (store.cases / "one" / "result.txt").read_text() == ("first" if change is None else "second")


def test_a_result_is_renamed_unless_the_name_is_taken_and_a_damaged_one_set_aside(store):
    for name in ("one", "two"):
        store.commit(a_part(store, name, name), name, a_record(store))
    assert not store.rename("one", "two")
    assert (store.cases / "two" / "result.txt").read_text() == "two"
    assert store.rename("one", "three")
    assert (store.cases / "three" / "result.txt").read_text() == "one"
    store.update_record("three", a_record(store, label="new"))
    assert store.record("three")["label"] == "new"
    store.set_aside("three")
    assert [path.name for path in (store.manifest / "damaged").iterdir()] == [f"three-{store.token}"]
    assert {path.name for path in store.cases.iterdir()} == {"two"}
    for broken in (lambda: store.rename("none", "new"), lambda: store.set_aside("none")):
        with pytest.raises(OutputError, match="cannot be written"):
            broken()


def test_several_damaged_cases_are_set_aside_by_one_run(store):
    for name in ("one", "two"):
        store.commit(a_part(store, name), name, a_record(store))
        store.set_aside(name)
    assert len(list((store.manifest / "damaged").iterdir())) == 2
    assert list(store.cases.iterdir()) == []


def test_a_probe_of_the_free_space_leaves_nothing_and_finds_a_drive_that_is_gone(store):
    store.probe()
    assert list(store.cases.iterdir()) == []
    store.cases.rmdir()
    with pytest.raises(OutputError, match="cannot be written"):
        store.probe()


def test_records_without_an_image_can_be_compared():
    assert same_result({"case": "1"}, {"case": "1", "input": {}})
    assert not same_result({"case": "1"}, {"case": "1", "input": {"sha256": "a"}})
    assert not same_result({"case": "1", "input": {"sha256": "a"}}, {"case": "1"})


def test_names_that_are_not_unicode_survive(store):
    record = a_record(store, label=os.fsdecode(b"caf\xe9.nii"))
    store.commit(a_part(store, "one"), "one", record)
    assert store.record("one") == record
    manifest = Manifest(store)
    manifest.append("case", case="1", state="done", label=record["label"], folder="x")
    manifest.close()
    assert read_manifest(store.manifest)[0]["label"] == record["label"]


@pytest.mark.parametrize(
    ("error", "lost"),
    [(OSError(28, "full"), True), (OSError(5, "io"), True), (OSError(2, "no such"), False), (ValueError(), False)],
)
def test_errors_of_the_place_are_told_from_errors_of_the_case(error, lost):
    assert is_lost_place(error) is lost
    outer = RuntimeError("outer")
    outer.__cause__ = error
    assert is_lost_place(outer) is lost


# --- the manifest -------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_ignored_and_all_others_are_read(store):
    manifest = Manifest(store)
    for number in range(3):
        manifest.append("case", case=str(number), state="done", label=f"Fall {number} ü\u2028x", folder="x")
    manifest.close()
    path = next(store.manifest.glob("*.jsonl"))
    whole = path.read_bytes()
    for cut in (1, 2, 10):
        path.write_bytes(whole[:-cut])
        kept = 3 if cut == 1 else 2
        assert [line["case"] for line in read_manifest(store.manifest)] == ["0", "1", "2"][:kept]


def test_the_last_line_about_a_case_counts_whichever_run_wrote_it(store, monkeypatch):
    monkeypatch.setattr(manifest_module, "time", SimpleNamespace(time=iter((1.0, 2.00049, 2.9996, 3.12345)).__next__))
    first, second = Manifest(store), Manifest(Store(store.output))
    first.append("case", case="1", state="running", label="x", folder="x")
    second.append("case", case="1", state="running", label="x", folder="x")
    second.append("case", case="1", state="done", label="x", folder="x")
    first.append("case", case="1", state="failed", label="x", folder="x", kind="input", error="e")
    lines = read_manifest(store.manifest)
    assert [line["time"] for line in lines] == [1.0, 2.0, 3.0, 3.123]
    assert last_states(lines)["1"]["state"] == "failed"


def test_a_manifest_that_cannot_be_read_or_begun_is_told(store):
    (store.manifest / f"{store.name}.jsonl").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        Manifest(store)
    with pytest.raises(OutputError, match="cannot be read: Is a directory"):
        read_manifest(store.manifest)


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is a POSIX one")
def test_a_full_disk_is_reported_and_leaves_no_half_line_that_counts(tmp_path):
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from LiverXAILib.batch.manifest import Manifest\n"
        "from LiverXAILib.batch.store import OutputError, Store\n"
        "store = Store(Path(sys.argv[1])); store.open(); manifest = Manifest(store)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n"
        "    while True: manifest.append('case', case='1', state='done', label='x' * 100, folder='x')\n"
        "except OutputError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot be written" in result.stdout
    assert "No result is incomplete" in result.stdout
    lines = read_manifest(tmp_path / "manifest")
    assert lines
    assert all(line["label"] == "x" * 100 for line in lines)


def test_a_case_whose_process_was_killed_while_it_wrote_leaves_nothing(store):
    part = a_part(store, "one")
    (store.cases / f".{part.name}-x1y2").mkdir()
    other = a_part(store, "another")
    store.discard("one")
    assert list(store.cases.iterdir()) == [other]
