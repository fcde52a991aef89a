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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from LiverXAILib import cli

_MARK = "LIVERXAI_TEST_RUN"
#: Seconds until a stopped command must have ended, and then what it has started.
_LIMIT_S, _GRACE_S = 240.0, 3.0


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
    event: str | None = None,
    values: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Stopped:
    """Run the command line; when the function at `place` is called, the signal `number` comes.

    :param place: "package.module:name" or "package.module:Class.name", as it is looked up by the code that calls it.
    :param folder: a new folder for temporary files.
    :param event: wait for the call that gets a message of a worker with this event.
    :param values: replaced in the process that runs the command, by their places.
    :param environment: its environment, beside that of this process.
    """
    folder.mkdir()
    log, mark = folder.with_suffix(".log"), uuid.uuid4().hex
    around = {**os.environ, "TMPDIR": str(folder), _MARK: mark, **(environment or {})}
    given = [*map(str, arguments)]
    process = _clean_processes().Process(
        target=_run, args=(given, place, number, event, log, dict(values or {}), around)
    )
    process.start()
    process.join(_LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.pid is not None
    return Stopped(
        process.exitcode,
        log.read_text(encoding="utf-8"),
        tuple(_running(process.pid, mark)),
        tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))),
    )


@cache
def _clean_processes() -> Any:
    """Makes processes that have imported everything, but have none of the threads of this one."""
    context = multiprocessing.get_context("forkserver")
    parts = ("batch.command", "models.commands", "models.loading", "models.store", "training.run", "training.fit")
    context.set_forkserver_preload([f"LiverXAILib.{part}" for part in parts])
    return context


def _run(
    arguments: Sequence[str],
    place: str,
    number: int,
    event: str | None,
    log: Path,
    values: Mapping[str, Any],
    environment: Mapping[str, str],
) -> None:
    """In the process: run the command line, and end with its exit code."""
    import torch

    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    torch.set_num_threads(1)
    for name, value in values.items():
        holder, attribute = _find(name)
        setattr(holder, attribute, value)
    _interpose(place, number, event)
    sys.exit(cli.main(arguments))


def _find(place: str) -> tuple[Any, str]:
    """What has the attribute at `place`, and its name."""
    module, _, names = place.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for one in outer:
        holder = getattr(holder, one)
    return holder, name


def _interpose(place: str, number: int, event: str | None) -> None:
    """Let the function at `place` send a signal to its own process, once, before it does its work."""
    holder, name = _find(place)
    original, sent = getattr(holder, name), []

    def stopping(*arguments: Any, **named: Any) -> Any:
        if not sent and (event is None or arguments[1]["event"] == event):
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
