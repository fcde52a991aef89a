# SPDX-License-Identifier: Apache-2.0
"""The output folder of a batch: whole case folders, and one writer at a time.

::

    OUTPUT/cases/<case>/         one folder per finished case, with case.json; it appears whole or not at all
    OUTPUT/manifest/*.jsonl      what happened, see manifest.py
    OUTPUT/manifest/lock-*.json  runs that are working now
    OUTPUT/logs/                 log of each run and of its worker processes
    OUTPUT/*.csv, cohort.html    summaries, made anew at the end of each run
    OUTPUT/names.csv             which image a pseudonym stands for, for the user alone

A case is finished when its folder exists: renaming the folder into place is the one step that commits it. Everything
works on a shared (network) file system: it needs atomic rename and exclusive creation, but no file locks.
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

#: A run whose lock was not touched for so long is dead (if its machine cannot be asked).
_STALE_SECONDS = 60.0
_HEARTBEAT_SECONDS = 10.0
#: Written to find out whether there is space left; larger than what a file system keeps in reserve for a small file.
_PROBE_BYTES = 1 << 20

#: System errors that say that a place is full, read-only or gone: they are not the fault of a case.
LOST_PLACE = frozenset(
    code
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE", "ENXIO", "ENODEV"),
        *("ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT", "ENETDOWN", "EREMOTEIO"),
    )
    if (code := getattr(errno, name, None)) is not None
)


class OutputError(LiverXAIError):
    """Results cannot be written (disk full, drive gone …): the batch stops, because every case would fail."""


class BusyError(LiverXAIError):
    """Another run works on the same cases in the same output folder."""


@dataclass(frozen=True)
class Shard:
    """The part `index` (from 1) of `count` into which the cases are divided by their identity."""

    index: int = 1
    count: int = 1

    def holds(self, case_id: str) -> bool:
        """Whether a case belongs to this part: the same answer on each machine, whatever other cases there are."""
        return int(case_id, 16) % self.count == self.index - 1

    def overlaps(self, other: Shard) -> bool:
        """Whether a case may belong to both."""
        return self.count != other.count or self.index == other.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass
class Store:
    """An output folder, as one run sees it. `token` names the run."""

    output: Path
    shard: Shard = Shard()
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        self._closed = threading.Event()
        self._trouble: OutputError | None = None
        #: Damaged records that were met, in words.
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
        """Make the folders, take the lock, and remove what dead runs left half done.

        :param note: told what is waited for.
        :raises OutputError: the folder cannot be written.
        :raises BusyError: another run is at work on some of the same cases.
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
                raise OutputError("Stopped: another run has taken over this output folder, since this one seemed dead.")
            os.utime(self._lock_path)
        except OSError as error:
            raise self.unusable(error) from error

    def close(self) -> None:
        """Give the lock back, and remove what workers that were lost or stopped left half done."""
        self._closed.set()
        # If the folder is gone: a lock that nobody touches is dead in a minute.
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
            # Two runs may have found the same dead lock; the one whose lock is there after a while has it.
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
            raise BusyError(f"Another run ({who}) works on these cases in {self.output}. Wait for it, or stop it.")

    def _alive(self, path: Path, lock: Mapping[str, Any], waiting: Callable[[float], None]) -> bool:
        """Whether the run behind a lock lives. What cannot be asked is watched until it is touched, or stale.

        That are the locks of other machines, locks from the future (clocks differ) and such that say nothing.
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
        """Where the files of a case are collected before they are whole."""
        return self.cases / f".part-{self.token}-{folder}"

    def record(self, folder: str) -> dict[str, Any] | None:
        """The record of a finished case, or None if it is not finished, or damaged."""
        try:
            return read_record(self.cases / folder)
        except DamagedError as error:
            self._note_damage(folder, error)
            return None

    def result(self, folder: str) -> Result | None:
        """A finished case; None if it is not finished, or damaged."""
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
        place = self.manifest / "damaged"
        try:
            place.mkdir(exist_ok=True)
            (self.cases / folder).rename(place / f"{folder}-{self.token}")
        except OSError as error:
            raise self.unusable(error) from error

    def rename(self, old: str, new: str) -> bool:
        """Give a finished case's folder another name, unless there is one of that name; returns whether it was done."""
        if (self.cases / new).exists():
            return False
        try:
            (self.cases / old).rename(self.cases / new)
        except OSError as error:
            raise self.unusable(error) from error
        return True

    def commit(self, part: Path, folder: str, record: Mapping[str, Any]) -> bool:
        """Make the files in `part` the result of a case, with `record`, at once and for good.

        :return: False if the same result is there already (another worker made it): then nothing changes.
        """
        _write_json(part / RECORD, record)
        for path in part.rglob("*"):
            if path.is_file():
                _fsync(path)
        _fsync(part)
        old = self.record(folder)
        if old is None or old.get("run") != record["run"] or not same_result(old, record):
            put_folder(part, self.cases / folder, is_ours=lambda name: True, last=RECORD)
            _fsync(self.cases)
            old = None
        remove(part)
        return old is None

    def update_record(self, folder: str, record: Mapping[str, Any]) -> None:
        """Replace the record of a finished case."""
        temporary = self.cases / folder / f".{RECORD}-{self.token}"
        _write_json(temporary, record)
        temporary.replace(self.cases / folder / RECORD)

    def discard(self, folder: str) -> None:
        """Remove what an unfinished case left, also the hidden folder in which its files were being written."""
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
        """What to tell the user about a system error in this folder."""
        return OutputError(
            f"The results cannot be written to {self.output}: {error.strerror or error}. "
            "Nothing is half written. Free space or bring the drive back, then run the same command again."
        )

    def _sweep(self) -> None:
        # Listed before the locks are read: a run takes its lock before it makes anything.
        parts = list(self.cases.glob("*.part-*"))
        live = {_read_lock(path).get("token") for path in self.manifest.glob("lock-*.json")}
        for path in parts:
            if path.name.split("-")[1] not in live:
                remove(path)


def same_result(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two records are about the same image, model and settings."""
    return all(record.get(key) == wanted.get(key) for key in ("case", "model", "settings")) and record.get(
        "input", {}
    ).get("sha256") == wanted.get("input", {}).get("sha256")


def is_lost_place(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that a place is full, read-only or gone."""
    return any(isinstance(one, OSError) and one.errno in LOST_PLACE for one in with_causes(error))


def _shard_of(path: Path) -> Shard:
    """The part of a lock's name; a name without meaning may stand for any part."""
    try:
        index, count = (int(number) for number in path.stem.removeprefix("lock-").split("-of-"))
    except ValueError:
        return Shard(count=0)
    return Shard(index, count)


def _read_lock(path: Path) -> dict[str, Any]:
    """What a lock says; nothing if it is gone, or damaged."""
    try:
        lock = read_json(path)
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        return {}
    return lock if isinstance(lock, dict) else {}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    # File names need not be Unicode; those that are not come back as they were.
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="surrogateescape")


def _fsync(path: Path) -> None:
    """Bring a file (or, where the system can, a folder's list of names) onto the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
