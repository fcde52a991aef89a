# SPDX-License-Identifier: Apache-2.0
"""What child processes of LiverXAI have in common: start, JSON lines, end with all they started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DeviceError

_ROOT = Path(__file__).resolve().parents[1]


class Channel:
    """Messages to the parent. Nothing else may write to this process's standard output: it goes to standard error."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, event: str, **values: Any) -> None:
        """Send one message."""
        with self._lock:
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()


def slicer_python() -> str:
    """The Python interpreter for child processes: Slicer's own inside Slicer, elsewhere this one.

    Slicer's ``sys.executable`` is the launcher PythonSlicer, which starts ``python-real`` in the environment that a
    running Slicer has already; and on some systems it does not pass pipes on.
    """
    return shutil.which("python-real") or shutil.which("PythonSlicer") or sys.executable


def start_child(python: str, module: str, *, threads: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start ``python -m module`` in a process group of its own, with pipes for input and output, errors into `log`.

    :param threads: computing threads of numerical libraries; 0: theirs to decide.
    :raises OSError: it cannot be started.
    """
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    isolation: dict[str, Any] = (
        {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined]
        if os.name == "nt"
        else {"start_new_session": True}
    )
    return subprocess.Popen(
        [python, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        **isolation,
    )


def messages(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """What a child says, until it ends."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            yield json.loads(line)
        except ValueError:
            return  # Cut short by a kill; the end of the process is what counts.


def say(process: subprocess.Popen[bytes], message: Any) -> None:
    """Send one message to a child. If it has died, nothing happens: its end is told by :func:`messages`."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.write((json.dumps(message) + "\n").encode())
        process.stdin.flush()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End a child of :func:`start_child` and everything that it has started; returns when it is gone.

    A launcher's death alone would leave what it launched: Slicer's `PythonSlicer` is one.
    """
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
    elif process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def describe_end(code: int) -> str:
    """The end of a process in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", most likely because the system ran out of memory" if name == "SIGKILL" else ""
    return f"{name}{hint}"


def is_memory(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is a lack of memory."""
    while error is not None:
        text = str(error)
        if isinstance(error, (MemoryError, DeviceError)) or "can't allocate memory" in text or "out of memory" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def volunteer_for_the_oom_killer() -> None:
    """On Linux: if memory runs out, let the system kill this process rather than its parent."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


def host_name() -> str:
    """This machine, or this container on it: process numbers mean something only within it."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return socket.gethostname() + (f" {space}" if space else "")


def process_exists(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    if os.name == "nt":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # type: ignore[attr-defined]
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)  # type: ignore[attr-defined]
        return bool(handle)
    if pid <= 0:  # To os.kill() these mean groups of processes.
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
