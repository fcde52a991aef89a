# SPDX-License-Identifier: Apache-2.0
"""Commands in separate processes that are stopped by a signal at a chosen point or time."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forking import Popen

from LiverXAILib import cli

_MARK = "LIVERXAI_TEST_RUN"
#: Seconds until a stopped command must have ended, and then its children; children of a killed command have to notice
#: its end by themselves, and may be importing libraries.
_LIMIT_S, _GRACE_S, _GRACE_AFTER_KILL_S = 240.0, 3.0, 60.0


@dataclass(frozen=True)
class Stopped:
    """How a stopped command ended: exit code, output, running children, files left behind, and time."""

    code: int | None
    said: str
    running: tuple[str, ...]
    temporary: tuple[str, ...]
    seconds: float


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
    """Run the command line, and send the signal `number` when the function at `place` is called.

    :param place: "package.module:name" or "package.module:Class.name", as the calling code looks it up.
    :param folder: a new folder for temporary files.
    :param event: wait for the call that receives a worker's message with this event.
    :param values: values to replace in the process that runs the command, by their places.
    :param environment: variables added to the environment of this process.
    """
    return _stopped(arguments, folder, (place, number, event), None, values, environment)


def stop_after(
    arguments: Sequence[object],
    seconds: float,
    number: int,
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
) -> Stopped:
    """Run the command line, and send the signal `number` after a time, whatever the command is doing.

    :param folder: a new folder for temporary files.
    :param environment: variables added to the environment of this process.
    """
    return _stopped(arguments, folder, None, (seconds, number), None, environment)


def _stopped(
    arguments: Sequence[object],
    folder: Path,
    inside: tuple[str, int, str | None] | None,
    outside: tuple[float, int] | None,
    values: Mapping[str, Any] | None,
    environment: Mapping[str, str] | None,
) -> Stopped:
    """Run the command line, stopped from inside (place, signal, event) or from outside (seconds, signal)."""
    folder.mkdir()
    log, mark = folder.with_suffix(".log"), uuid.uuid4().hex
    around = {**os.environ, "TMPDIR": str(folder), _MARK: mark, **(environment or {})}
    given = [*map(str, arguments)]
    process = Popen([sys.executable, "-m", "stops"], env=around, stdin=subprocess.PIPE)
    with process.stdin as stream:
        stream.write(pickle.dumps((given, inside, log, dict(values or {}))))
    started = time.monotonic()
    if outside is not None:
        while process.poll() is None and not log.exists():
            time.sleep(0.001)
        started = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(outside[0])
        process.send_signal(outside[1])
    try:
        process.wait(_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    seconds = time.monotonic() - started
    killed = outside is not None and outside[1] == signal.SIGKILL
    return Stopped(
        process.returncode,
        log.read_text(encoding="utf-8") if log.exists() else "",
        tuple(_running(process.pid, mark, _GRACE_AFTER_KILL_S if killed else _GRACE_S)),
        tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))),
        seconds,
    )


def _run(
    arguments: Sequence[str], inside: tuple[str, int, str | None] | None, log: Path, values: Mapping[str, Any]
) -> None:
    """In the child process: run the command line, and exit with its code."""
    import torch

    torch.set_num_threads(1)
    # Its children are not forked, so that they have the mark in their environment.
    setattr(*_find("LiverXAILib.subprocesses:subprocess"), subprocess)
    for name, value in values.items():
        holder, attribute = _find(name)
        setattr(holder, attribute, value)
    if inside is not None:
        _interpose(*inside)
    # The log exists from the moment at which the program itself receives signals.
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))
    sys.exit(cli.main(arguments))


def _find(place: str) -> tuple[Any, str]:
    """The object with the attribute at `place`, and the attribute's name."""
    module, _, names = place.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for one in outer:
        holder = getattr(holder, one)
    return holder, name


def _interpose(place: str, number: int, event: str | None) -> None:
    """Make the function at `place` send a signal to its own process, once, before it runs."""
    holder, name = _find(place)
    original = getattr(holder, name)
    sent: list[int] = []

    def stopping(*arguments: Any, **named: Any) -> Any:
        if not sent and (event is None or arguments[1]["event"] == event):
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    setattr(holder, name, stopping)


def _running(group: int, mark: str, grace_s: float) -> list[str]:
    """Processes of the command that still run a while after its end: in its group, or with its mark."""
    until = time.monotonic() + grace_s
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
            pass  # It has ended, or belongs to another user.
    return found


if __name__ == "__main__":
    _run(*pickle.load(sys.stdin.buffer))
