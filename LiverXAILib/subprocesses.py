# SPDX-License-Identifier: Apache-2.0
"""What child processes of LiverXAI have in common: start, JSON lines, end with all they started."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

_ROOT = Path(__file__).resolve().parents[1]
#: Longer messages are not ours: images go through files.
_LONGEST_LINE = 64 << 20


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


#: Where numerical libraries (torch, NumPy, SciPy, SimpleITK) look, when they start, for how many threads they may use.
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


class ChildProcess:
    """A child process that talks JSON lines: it runs until it ends by itself or is killed.

    What it says and how it ends goes to `inbox` as ``(kind, child, value)``, in this order: any number of "message"
    (a mapping with "event"), at most one "garbage" (what it said instead, as text; the child is then killed), and
    exactly one "ended" (its exit code), always last.

    :param module: run as ``python -m module``, in a process group of its own.
    :param threads: computing threads of numerical libraries; 0: theirs to decide.
    :param log: for its errors.
    :raises OSError: it cannot be started.
    """

    def __init__(
        self, python: str, module: str, *, threads: int, log: IO[bytes], inbox: queue.Queue[tuple[Any, ...]]
    ) -> None:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        for name in _THREADS if threads else ():
            environment.setdefault(name, str(threads))
        isolation: dict[str, Any] = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined]
            if os.name == "nt"
            else {"start_new_session": True}
        )
        self._process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            **isolation,
        )
        self._inbox = inbox
        self._outbox: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._write, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> None:
        """Send one message; never waits. If the child has died, nothing happens: its end is in the inbox.

        :raises ValueError: the message cannot be said in JSON.
        """
        try:
            line = json.dumps(message)
        except (TypeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        self._outbox.put(line.encode() + b"\n")

    def kill(self) -> None:
        """End the child and everything that it has started; returns when it is gone. It may be gone already.

        A launcher's death alone would leave what it launched: Slicer's `PythonSlicer` is one.
        """
        self._outbox.put(None)
        if os.name == "nt":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.pid)], capture_output=True, check=False)
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := self._process.stdout.readline(_LONGEST_LINE):
                message = _parse(line)
                if message is not None:
                    self._inbox.put(("message", self, message))
                elif line.endswith(b"\n") or len(line) == _LONGEST_LINE:
                    self._inbox.put(("garbage", self, line[:200].decode("utf-8", "backslashreplace")))
                    self.kill()
                    break
                # A line cut short by a kill; the end of the process is what counts.
        finally:
            self._process.stdout.close()
            code = self._process.wait()
            self._outbox.put(None)
            self._inbox.put(("ended", self, code))

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        # Of a broken pipe the end of the process will tell.
        with contextlib.suppress(OSError, ValueError):
            while (line := self._outbox.get()) is not None:
                pipe.write(line)
                pipe.flush()
        with contextlib.suppress(OSError, ValueError):
            pipe.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The message in a line; None if there is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("event"), str) else None


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
