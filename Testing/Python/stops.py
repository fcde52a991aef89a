# SPDX-License-Identifier: Apache-2.0
"""Commands that are stopped by a signal at a chosen point of the program, in a process of their own."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from LiverXAILib import cli

_MARK = "LIVERXAI_TEST_RUN"
#: Seconds until what a command has started must be gone, too.
_GRACE_S = 3.0


@dataclass(frozen=True)
class Stopped:
    """How a stopped command ended: its exit code, what it said, what runs still, and what temporary files are left."""

    code: int | None
    said: str
    running: tuple[str, ...]
    temporary: tuple[str, ...]


def stop(
    arguments: Sequence[object],
    place: str,
    number: int,
    folder: Path,
    *,
    when: Callable[..., bool] = lambda *arguments, **named: True,
    patch: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
) -> Stopped:
    """Run the command line in a forked process; when the function at `place` is called, the signal `number` comes.

    :param place: "package.module:name" or "package.module:Class.name", as it is looked up by the code that calls it.
    :param folder: a new folder for temporary files.
    :param when: gets the function's arguments; at the first call for which it is true the signal comes.
    :param patch: changes more in the process that runs the command.
    """
    folder.mkdir()
    log, mark = folder.with_suffix(".log"), uuid.uuid4().hex

    def run() -> None:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))
        os.environ.update({"TMPDIR": str(folder), _MARK: mark, **(environment or {})})
        tempfile.tempdir = None
        patch()
        _interpose(place, number, when)
        sys.exit(cli.main([*map(str, arguments)]))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.pid is not None
    return Stopped(
        process.exitcode,
        log.read_text(encoding="utf-8"),
        tuple(_running(process.pid, mark)),
        tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))),
    )


def _interpose(place: str, number: int, when: Callable[..., bool]) -> None:
    """Let the function at `place` send a signal to its own process, once, before it does its work."""
    module, _, names = place.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for one in outer:
        holder = getattr(holder, one)
    original, sent = getattr(holder, name), []

    def stopping(*arguments: Any, **named: Any) -> Any:
        if not sent and when(*arguments, **named):
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    setattr(holder, name, stopping)


def _running(group: int, mark: str) -> list[str]:
    """What still runs of the command a while after its end: in its group, or with its mark in the environment."""
    until = time.monotonic() + _GRACE_S
    while (found := [*_of_group(group), *_with_mark(mark)]) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def _of_group(group: int) -> list[str]:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return []
    return [f"a process of group {group}"]


def _with_mark(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(f"process {path.parent.name}")
        except OSError:
            pass  # It has ended, or belongs to somebody else.
    return found
