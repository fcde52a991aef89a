# SPDX-License-Identifier: Apache-2.0
"""The output folder of a batch: complete case folders, and one writer at a time.

::

    OUTPUT/cases/<case>/         one folder per finished case, with case.json; it appears complete or not at all
    OUTPUT/manifest/*.jsonl      what happened, see manifest.py
    OUTPUT/manifest/lock-*.json  runs in progress
    OUTPUT/manifest/damaged, replaced   folders of cases that were damaged, or edited and then repeated
    OUTPUT/logs/                 log of each run and of its worker processes
    OUTPUT/*.csv, cohort.html    summaries, rewritten at the end of each run
    OUTPUT/names.csv             the image that each pseudonym stands for, for the user alone

A case is finished when its folder exists: renaming the folder into place is the single step that commits it. All of
this works on a shared (network) file system: it needs atomic rename and exclusive creation, but no file locks.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LiverXAIError, with_causes
from ..files import put_folder, remove
from ..subprocesses import host_name, process_exists
from .records import RECORD, DamagedError, Result, read_json, read_record, read_result

#: A run whose lock has not been touched for this long is dead (if its process cannot be checked directly).
_STALE_SECONDS = 60.0
_HEARTBEAT_SECONDS = 10.0
#: Bytes written to test whether space is left; larger than what a file system reserves for a small file.
_PROBE_BYTES = 1 << 20

#: System errors that mean that a location is full, read-only or gone; no case is to blame for them.
LOST_PLACE = frozenset(
    code
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE", "ENXIO", "ENODEV"),
        *("ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT", "ENETDOWN", "EREMOTEIO"),
    )
    if (code := getattr(errno, name, None)) is not None
)


class OutputError(LiverXAIError):
    """Results cannot be written (disk full, drive gone …); the batch stops, because every case would fail."""


class BusyError(LiverXAIError):
    """Another run is working on the same cases in the same output folder."""


@dataclass(frozen=True)
class Shard:
    """The part `index` (from 1) of `count` into which the cases are divided by their identity."""

    index: int = 1
    count: int = 1

    def holds(self, case_id: str) -> bool:
        """Whether a case belongs to this part; independent of the machine and of the other cases."""
        return int(case_id, 16) % self.count == self.index - 1

    def overlaps(self, other: Shard) -> bool:
        """Whether a case may belong to both parts."""
        return self.count != other.count or self.index == other.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass
class Store:
    """An output folder as used by one run; `token` identifies the run."""

    output: Path
    shard: Shard = Shard()
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        self._closed = threading.Event()
        self._trouble: OutputError | None = None
        #: A sentence about each damaged record that was found.
        self.damage: list[str] = []
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.name = f"{stamp}-{self.token}"

    @property
    def cases(self) -> Path:
        return self.output / "cases"

    @property
    def manifest(self) -> Path:
        return self.output / "manifest"

    @property
    def logs(self) -> Path:
        return self.output / "logs"

    # --- one writer at a time ------------------------------------------------------------------------------------

    def open(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Create the folders, acquire the lock, and remove incomplete results of dead runs.

        :param note: called with a description of what is being waited for.
        :raises OutputError: the folder cannot be written.
        :raises BusyError: another run is working on some of the same cases.
        """
        try:
            for folder in (self.cases, self.manifest, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock(note)
            self._sweep()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self.unusable(error) from error
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Raise :class:`OutputError` if the folder is gone or another run has taken over."""
        if self._trouble is not None:
            raise self._trouble

    def _beat(self) -> None:
        while not self._closed.wait(_HEARTBEAT_SECONDS):
            try:
                self.heartbeat()
            except OutputError as error:
                self._trouble = error
                return

    def heartbeat(self) -> None:
        """Show other machines that this run is alive; raises :class:`OutputError` if the folder or the lock is gone."""
        try:
            if _read_lock(self._lock_path).get("token") != self.token:
                raise OutputError("Stopped: another run has taken over this output folder; this one seemed dead.")
            os.utime(self._lock_path)
        except OSError as error:
            raise self.unusable(error) from error

    def close(self) -> None:
        """Release the lock, and remove incomplete results of workers that were lost or stopped."""
        self._closed.set()
        # If the folder is gone, the lock cannot be removed; once it is no longer touched, it expires within a minute.
        with contextlib.suppress(OSError):
            if _read_lock(self._lock_path).get("token") == self.token:
                self._lock_path.unlink()
                self._sweep()

    @property
    def _lock_path(self) -> Path:
        return self.manifest / f"lock-{self.shard.index}-of-{self.shard.count}.json"

    def _lock(self, note: Callable[[str], None]) -> None:
        content = {"token": self.token, "host": host_name(), "pid": os.getpid(), "shard": str(self.shard)}
        stolen = False
        while True:
            try:
                descriptor = os.open(self._lock_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._refuse_if_alive(self._lock_path, note)
                self._lock_path.unlink(missing_ok=True)
                stolen = True
                continue
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            break
        if stolen:
            # Two runs may have found the same dead lock; the one whose lock remains after a moment holds it.
            time.sleep(1.0)
            if _read_lock(self._lock_path).get("token") != self.token:
                raise BusyError("Another run has just started on this output folder. Wait until it has finished.")
        for path in self.manifest.glob("lock-*.json"):
            if path != self._lock_path and self.shard.overlaps(_shard_of(path)):
                self._refuse_if_alive(path, note)
                path.unlink(missing_ok=True)

    def _refuse_if_alive(self, path: Path, note: Callable[[str], None]) -> None:
        lock = _read_lock(path)
        who = f"part {lock.get('shard', '?')}, process {lock.get('pid', '?')} on {lock.get('host', '?')}"
        if self._alive(path, lock, lambda seconds: note(f"Is another run alive ({who})? Waiting {seconds:.0f} s")):
            raise BusyError(f"Another run ({who}) is working on these cases in {self.output}. Wait for it, or stop it.")

    def _alive(self, path: Path, lock: Mapping[str, Any], waiting: Callable[[float], None]) -> bool:
        """Whether the run that holds a lock is alive.

        If its process cannot be checked, the lock is watched until it is touched or stale. This applies to locks of
        other machines, locks with a time in the future (clocks differ), and locks without readable content.
        """
        here = lock.get("host") == host_name()
        pid = lock.get("pid") if here else None
        if isinstance(pid, int) and (pid == os.getpid() or not process_exists(pid)):
            return False
        try:
            touched = path.stat().st_mtime_ns
            age = self._age(path)
            if isinstance(pid, int) and -_HEARTBEAT_SECONDS < age < _STALE_SECONDS:
                return True
            until = time.monotonic() + _STALE_SECONDS - max(0.0, age)
            while (left := until - time.monotonic()) > 0:
                if path.stat().st_mtime_ns != touched:
                    return True
                waiting(left)
                time.sleep(0.5)
        except FileNotFoundError:
            pass
        return False

    def _age(self, path: Path) -> float:
        """Seconds since a file was touched, by the clock of the file system's server."""
        beacon = self.manifest / f".now-{self.token}"
        beacon.touch()
        age = beacon.stat().st_mtime - path.stat().st_mtime
        beacon.unlink()
        return age

    # --- cases ---------------------------------------------------------------------------------------------------

    def part(self, folder: str) -> Path:
        """The folder in which the files of a case are collected until they are complete."""
        return self.cases / f".part-{self.token}-{folder}"

    def record(self, folder: str) -> dict[str, Any] | None:
        """The record of a finished case; None if it is not finished or is damaged."""
        try:
            return read_record(self.cases / folder)
        except DamagedError as error:
            self._note_damage(folder, error)
            return None

    def result(self, folder: str) -> Result | None:
        """The records of a finished case; None if it is not finished or is damaged."""
        try:
            return read_result(self.cases / folder)
        except DamagedError as error:
            self._note_damage(folder, error)
            return None

    def _note_damage(self, folder: str, error: DamagedError) -> None:
        sentence = f"Damaged: {folder}/{error}. The case is open again."
        if sentence not in self.damage:
            self.damage.append(sentence)

    def set_aside(self, folder: str) -> None:
        """Move the folder of a damaged case out of the way, to ``manifest/damaged``."""
        self._move(folder, self.manifest / "damaged" / f"{folder}-{self.token}")

    def replaced(self, folder: str) -> Path:
        """Where this run keeps what it replaces in the folder of a case, if it was more than an earlier result."""
        return self.manifest / "replaced" / f"{folder}-{self.token}"

    def _move(self, folder: str, place: Path) -> None:
        try:
            place.parent.mkdir(exist_ok=True)
            (self.cases / folder).rename(place)
        except OSError as error:
            raise self.unusable(error) from error

    def rename(self, old: str, new: str) -> bool:
        """Rename a finished case's folder unless the new name exists; return whether it was renamed."""
        if (self.cases / new).exists():
            return False
        self._move(old, self.cases / new)
        return True

    def commit(self, part: Path, folder: str, record: Mapping[str, Any]) -> bool:
        """Commit the files in `part`, with `record`, as the result of a case, atomically and durably.

        An earlier result of the case is replaced; one of another case, or edited since, is moved to :meth:`replaced`.

        :return: False, with nothing changed, if another worker has already committed the same result.
        """
        _write_json(part / RECORD, record)
        for path in part.rglob("*"):
            if path.is_file():
                _fsync(path)
        _fsync(part)
        old = self.record(folder)
        if old is None or old.get("run") != record["run"] or not same_result(old, record):
            if _is_edited(self.cases / folder) or (old is not None and old["case"] != record["case"]):
                self._move(folder, self.replaced(folder))
            put_folder(part, self.cases / folder, is_ours=lambda name: True, last=RECORD)
            _fsync(self.cases)
            old = None
        remove(part)
        return old is None

    def update_record(self, folder: str, record: Mapping[str, Any]) -> None:
        """Replace the record of a finished case, keeping its time, by which edits are noticed."""
        path, temporary = self.cases / folder / RECORD, self.cases / folder / f".{RECORD}-{self.token}"
        _write_json(temporary, record)
        os.utime(temporary, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        temporary.replace(path)

    def discard(self, folder: str) -> None:
        """Remove the remains of an unfinished case, including the hidden folder with its partly written files."""
        part = self.part(folder)
        for path in (part, *self.cases.glob(f".{glob.escape(part.name)}-*")):
            remove(path)

    def probe(self) -> None:
        """Raise :class:`OutputError` if nothing more can be written."""
        path = self.cases / f".part-{self.token}-probe-{secrets.token_hex(4)}"
        try:
            with path.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self.unusable(error) from error
        finally:
            remove(path)

    def unusable(self, error: OSError) -> OutputError:
        """Turn a system error in this folder into an error with advice for the user."""
        return OutputError(
            f"The results cannot be written to {self.output}: {error.strerror or error}. "
            "No result is incomplete. Free space or reconnect the drive, then run the same command again."
        )

    def _sweep(self) -> None:
        # Listed before the locks are read: a run acquires its lock before it creates any folder.
        # They are hidden: "ct.part-1" is the result of a case of this name.
        parts = list(self.cases.glob(".*part-*"))
        live = {_read_lock(path).get("token") for path in self.manifest.glob("lock-*.json")}
        for path in parts:
            if path.name.split("-")[1] not in live:
                remove(path)


def same_result(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two records belong to the same image, model and settings."""
    return all(record.get(key) == wanted.get(key) for key in ("case", "model", "settings")) and record.get(
        "input", {}
    ).get("sha256") == wanted.get("input", {}).get("sha256")


def _is_edited(folder: Path) -> bool:
    """Whether anything in a case's folder is newer than its record, which is written last, or is without a record."""
    try:
        written = (folder / RECORD).stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return folder.exists()
    return any(path.lstat().st_mtime_ns > written for path in folder.rglob("*"))


def is_lost_place(error: BaseException | None) -> bool:
    """Whether `error`, or one of its causes, means that a location is full, read-only or gone."""
    return any(isinstance(one, OSError) and one.errno in LOST_PLACE for one in with_causes(error))


def _shard_of(path: Path) -> Shard:
    """The part encoded in a lock's name; an invalid name is treated as overlapping every part."""
    try:
        index, count = (int(number) for number in path.stem.removeprefix("lock-").split("-of-"))
    except ValueError:
        return Shard(count=0)
    return Shard(index, count)


def _read_lock(path: Path) -> dict[str, Any]:
    """The content of a lock; empty if it is gone or damaged."""
    try:
        lock = read_json(path)
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        return {}
    return lock if isinstance(lock, dict) else {}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    # File names are not always valid Unicode; surrogateescape preserves them.
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="surrogateescape")


def _fsync(path: Path) -> None:
    """Flush a file (or, where the system supports it, a folder's entries) to disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
