# SPDX-License-Identifier: Apache-2.0
"""What child processes of LiverXAI share: starting, exchanging JSON lines, and ending with all their descendants."""

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
#: A longer line is not a valid message: images are passed through files.
_LONGEST_LINE = 64 << 20


class Channel:
    """Sends messages to the parent; all other output of this process to standard output goes to standard error."""

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
    """The Python interpreter for child processes: Slicer's own inside Slicer, otherwise the current one.

    Slicer's ``sys.executable`` is the launcher PythonSlicer, which starts ``python-real`` in the environment that a
    running Slicer already has; on some systems the launcher does not pass on pipes.
    """
    return shutil.which("python-real") or shutil.which("PythonSlicer") or sys.executable


#: Environment variables from which numerical libraries (torch, NumPy, SciPy, SimpleITK) take their number of threads.
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
#: How torch's threads wait for each other, read when its OpenMP library is loaded: by sleeping. By default they spin,
#: which takes processor time from the threads that read, measure, draw and write at the same time.
WAITING = ("OMP_WAIT_POLICY", "PASSIVE")


def limit_threads(environment: dict[str, str], threads: int) -> None:
    """Tell numerical libraries, in the environment of a new process, how many threads to use; 0: they decide."""
    environment.setdefault(*WAITING)
    for name in _THREADS if threads else ():
        environment.setdefault(name, str(threads))


class ChildProcess:
    """A child process that exchanges JSON lines with its parent until it ends by itself or is killed.

    Its messages and its end are put into `inbox` as ``(kind, child, value)``, in this order: any number of "message"
    (a mapping with "event"), at most one "garbage" (output that is not a message, as text; the child is then killed),
    and exactly one "ended" (its exit code), always last.

    :param module: run as ``python -m module``, in a process group of its own.
    :param threads: compute threads of numerical libraries; 0: the libraries decide.
    :param log: file for the child's standard error.
    :raises OSError: the process cannot be started.
    """

    def __init__(
        self, python: str, module: str, *, threads: int, log: IO[bytes], inbox: queue.Queue[tuple[Any, ...]]
    ) -> None:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        limit_threads(environment, threads)
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
        """Send one message without blocking; do nothing if the child has died, because its end is in the inbox.

        :raises ValueError: the message cannot be encoded as JSON.
        """
        try:
            line = json.dumps(message)
        except (TypeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        self._outbox.put(line.encode() + b"\n")

    def kill(self) -> None:
        """Kill the child and all its descendants, and wait until it is gone; it may have ended already.

        Killing only a launcher, such as Slicer's `PythonSlicer`, would leave the process that it launched.
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
                # Otherwise a kill cut the line short; the end of the process is reported below.
        finally:
            self._process.stdout.close()
            code = self._process.wait()
            self._outbox.put(None)
            self._inbox.put(("ended", self, code))

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        # A broken pipe needs no handling here: the end of the process is reported separately.
        with contextlib.suppress(OSError, ValueError):
            while (line := self._outbox.get()) is not None:
                pipe.write(line)
                pipe.flush()
        with contextlib.suppress(OSError, ValueError):
            pipe.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The message in a line; None if the line is not a message."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("event"), str) else None


def describe_end(code: int) -> str:
    """Describe the exit code of a process as text."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", most likely because the system ran out of memory" if name == "SIGKILL" else ""
    return f"{name}{hint}"


def volunteer_for_the_oom_killer() -> None:
    """On Linux, make the system kill this process rather than its parent if memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


def host_name() -> str:
    """Identify this machine, or this container on it, within which process numbers are valid."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return socket.gethostname() + (f" {space}" if space else "")


def process_exists(pid: int) -> bool:
    """Whether a process with this number is running on this machine."""
    if os.name == "nt":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # type: ignore[attr-defined]
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)  # type: ignore[attr-defined]
        return bool(handle)
    if pid <= 0:  # os.kill() takes these for process groups.
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
