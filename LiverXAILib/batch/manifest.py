# SPDX-License-Identifier: Apache-2.0
"""The record of a batch: what was started, what was done, what failed and why.

It consists of JSON lines, one file per run, appended and flushed to disk (fsync) line by line. SQLite was not chosen:
its write-ahead log needs memory shared between all writers and so does not work on network file systems, and its other
journals rely on file locks, which such file systems implement poorly. Here each file has exactly one writer, so no lock
is needed for writing; a line cut short by a power failure is recognized and ignored; and any editor can open it.

A line is an object with "event" ("run", "worker", "case" or "end"), "time" (seconds since 1970) and "run". Lines about
cases have "state":

* "running": handed to a worker;
* "done": its folder is in place;
* "failed": with "kind" (see :data:`KINDS`) and "error", a sentence;
* "dropped": abandoned unfinished because the run was stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from ..text import counted
from .records import is_event
from .store import OutputError, Store

#: The reasons for which a case can fail.
KINDS = {
    "input": "the image cannot be used",
    "usage": "an option does not fit this image",
    "memory": "not enough memory",
    "time limit": "the time limit was exceeded",
    "crash": "the worker process crashed",
    "lost": "the machines working on it were lost",
    "error": "unexpected error",
}


class Manifest:
    """This run's manifest file in `store`, open for appending."""

    def __init__(self, store: Store) -> None:
        self._store = store
        try:
            self._file: IO[str] = (store.manifest / f"{store.name}.jsonl").open(
                "x", encoding="utf-8", errors="surrogateescape"
            )
        except OSError as error:
            raise store.unusable(error) from error

    def append(self, event: str, **values: Any) -> None:
        """Write one line and flush it to disk; raises :class:`~LiverXAILib.batch.store.OutputError`."""
        line = {"event": event, "time": round(time.time(), 3), "run": self._store.token, **values}
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._store.unusable(error) from error

    def close(self) -> None:
        """Close the file; everything is already on disk."""
        # A line that could not be written to a full disk: append() has reported it.
        with contextlib.suppress(OSError):
            self._file.close()


def read_manifest(folder: Path, damage: list[str] | None = None) -> list[dict[str, Any]]:
    """Read all complete lines of all runs in `folder`, in chronological order.

    :param damage: a sentence about each file with unreadable lines is appended here; the lines stay in their files.
    :raises OutputError: a file cannot be read.
    """
    lines = []
    try:
        for path in sorted(folder.glob("*.jsonl")):
            whole, damaged = _split_lines(path)
            lines += whole
            if damaged and damage is not None:
                lines_damaged = counted(damaged, "line")
                damage.append(f"Damaged: {lines_damaged} of manifest/{path.name} cannot be read and will be ignored.")
    except OSError as error:
        raise OutputError(f"The manifest in {folder} cannot be read: {error.strerror or error}.") from error
    return sorted(lines, key=lambda line: line["time"])


def last_states(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The latest line about each case, by case id."""
    return {line["case"]: line for line in lines if line["event"] == "case"}


def _split_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The complete lines, and the number of damaged ones, not counting a last line that a kill cut short."""
    texts = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    whole = []
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if is_event(line):
            whole.append(line)
    ended = [text for text in texts[:-1] if text]
    return whole, max(0, len(ended) - len(whole))
