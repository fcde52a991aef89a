# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear complete or not at all, even if the process is killed between any two steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from LiverXAILib import files
from LiverXAILib.files import put_folder, replacing, staging_folder

OLD = {"labels": "old", "map-a": "old", "map-b": "old", "report": "old", "done": "old"}
NEW = {"labels": "new", "map-b": "new", "map-c": "new", "done": "new"}
#: In a process without threads: for each n, a child replaces OLD by NEW and is killed at its n-th system call.
KILLS = """
import json, os, signal, sys
from pathlib import Path
from LiverXAILib import files
folder, kind, new = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
before = json.loads(sys.argv[4])
if kind == "no exchange":
    files._exchange = lambda one, other: False
for n in range(1000):
    here = folder / str(n) / "out"
    here.mkdir(parents=True)
    for name, text in before.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    child = os.fork()
    if not child:
        left = n
        def count(event, arguments):
            global left
            if event == "open" or event.partition(".")[0] in ("os", "shutil", "ctypes", "tempfile"):
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        with files.staging_folder(here) as draft:
            for name, text in new.items():
                (draft / name).write_text(text)
            ours = ("labels", "map", "report", "done")
            files.put_folder(draft, here, is_ours=lambda name: name.startswith(ours), last="done")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(n)
"""


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".part-" not in str(path.relative_to(folder))
    }


def kill_everywhere(tmp_path: Path, kind: str, before: dict[str, str]) -> list[Path]:
    arguments = [str(tmp_path), kind, json.dumps(NEW), json.dumps(before)]
    run = subprocess.run([sys.executable, "-c", KILLS, *arguments], capture_output=True, text=True, check=True)
    count = int(run.stdout)
    assert 8 < count < 999
    return [tmp_path / str(number) / "out" for number in range(count + 1)]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="needs a system call that swaps two folders")
@pytest.mark.parametrize("others", [{}, {"notes": "mine"}], ids=["alone", "beside a file of the user"])
def test_a_kill_at_any_step_leaves_the_old_result_or_the_new_one(tmp_path, others):
    folders = kill_everywhere(tmp_path, "exchange", OLD | others)
    found = [contents(folder) for folder in folders]
    assert all(one in (OLD | others, NEW | others) for one in found)
    assert found[0] == OLD | others
    assert found[-1] == NEW | others


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
@pytest.mark.parametrize(
    ("kind", "others"),
    [("exchange", {"folder/notes": "mine"}), ("no exchange", {}), ("no exchange", {"notes": "mine"})],
)
def test_where_folders_cannot_be_swapped_old_and_new_are_never_mixed_and_the_last_file_means_whole(
    tmp_path, kind, others
):
    folders = kill_everywhere(tmp_path, kind, OLD | others)
    for folder in folders:
        found = contents(folder)
        assert others.items() <= found.items()
        ours = {name: text for name, text in found.items() if name not in others}
        assert ours.items() <= OLD.items() or ours.items() <= NEW.items()
        if "done" in ours:
            assert ours in (OLD, NEW)
    assert contents(folders[-1]) == NEW | others


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_the_next_run_sweeps_what_killed_ones_left(tmp_path):
    for folder in kill_everywhere(tmp_path, "exchange", OLD):
        with staging_folder(folder) as draft:
            (draft / "done").write_text("third")
            put_folder(draft, folder, is_ours=lambda name: True, last="done")
        assert [path.name for path in folder.parent.iterdir()] == ["out"]
        assert contents(folder) == {"done": "third"}


def test_the_folders_of_runs_that_live_are_not_swept(tmp_path):
    target = tmp_path / "out"
    other = tmp_path / f".out.part-{files._machine()}-{os.getppid()}-12345678"
    elsewhere = tmp_path / ".out.part-00000000-1-12345678"
    for folder in (other, elsewhere):
        folder.mkdir()
    with staging_folder(target) as first, staging_folder(target) as second:
        assert first.is_dir()
        assert second.is_dir()
    assert other.is_dir()
    assert elsewhere.is_dir()
    yesterday = time.time() - 2 * 86400
    os.utime(elsewhere, (yesterday, yesterday))
    with staging_folder(target):
        assert not elsewhere.exists()
    assert not (tmp_path / "out").exists()


def test_a_signal_while_a_folder_is_removed_is_obeyed_when_it_is_gone(tmp_path, monkeypatch):
    removed = []

    def interrupted(path, **options):
        removed.append(path)
        if len(removed) == 1:
            raise KeyboardInterrupt
        shutil_rmtree(path, **options)

    shutil_rmtree = files.shutil.rmtree
    monkeypatch.setattr(files.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), staging_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x", encoding="utf-8")
    assert len(removed) == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_beside_which_nothing_can_be_written_is_used_itself(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "done").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with staging_folder(tmp_path / "out") as draft:
        assert draft.parent == tmp_path / "out"
        (draft / "done").write_text("new")
        put_folder(draft, tmp_path / "out", is_ours=lambda name: name == "done", last="done")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["done"]
    assert contents(tmp_path / "out") == {"done": "new"}


def test_the_folder_in_which_one_works_stays_the_same_folder(tmp_path, monkeypatch):
    (tmp_path / "done").write_text("old")
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    with staging_folder(tmp_path) as draft:
        (draft / "done").write_text("new")
        put_folder(draft, tmp_path, is_ours=lambda name: name == "done", last="done")
    assert tmp_path.stat().st_ino == before
    assert contents(tmp_path) == {"done": "new"}


def test_a_folder_of_the_user_with_the_name_of_a_result_is_an_error_and_nothing_changes(tmp_path):
    (tmp_path / "out" / "labels").mkdir(parents=True)
    (tmp_path / "out" / "done").write_text("old")
    with staging_folder(tmp_path / "out") as draft:
        for name in ("labels", "done"):
            (draft / name).write_text("new")
        with pytest.raises(OSError, match="is a folder"):
            put_folder(draft, tmp_path / "out", is_ours=lambda name: True, last="done")
    assert contents(tmp_path / "out") == {"done": "old"}


def test_permissions_of_a_folder_survive(tmp_path):
    (tmp_path / "out").mkdir(mode=0o750)
    (tmp_path / "out").chmod(0o750)
    (tmp_path / "out" / "done").write_text("old")
    with staging_folder(tmp_path / "out") as draft:
        (draft / "done").write_text("new")
        put_folder(draft, tmp_path / "out", is_ours=lambda name: True, last="done")
    if os.name != "nt":
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / ("long" * 60 + ".txt")
    path.write_text("old", encoding="utf-8")

    def break_off() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        break_off()
    assert path.read_text(encoding="utf-8") == "old"
    with replacing(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_text(encoding="utf-8") == "new"
