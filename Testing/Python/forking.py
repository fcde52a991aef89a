# SPDX-License-Identifier: Apache-2.0
"""Processes of tests without the seconds that imports take: forked from a process that has imported everything.

:class:`Popen` is :class:`subprocess.Popen` for ``python -m module …`` and ``python -c code …``. What it starts is a
process of its own, with its own pipes, environment, folder, signals and exit code; only what it would import is there
already. Tests of what a process imports, and one test at least of each module that is run so, start Python afresh.

They are forked by a server, which has no threads and computes nothing. It is itself forked from the test process when
tests have been collected (:func:`start_server`), and so has what was imported for them; elsewhere, as in
``Testing/fuzz``, it is started afresh.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

_HERE = Path(__file__).parent
#: What processes of LiverXAI import before they run a module, and while they do.
_IMPORTS = (
    "LiverXAILib.batch.command",
    "LiverXAILib.explain.border",
    "LiverXAILib.models.loading",
    "LiverXAILib.pipeline",
    "LiverXAILib.report.writers",
)
#: What single modules need besides.
_MORE_IMPORTS = {"stops": ("LiverXAILib.models.commands", "LiverXAILib.training.run", "LiverXAILib.training.fit")}
#: Messages of the server: the number of the process, and later how it ended, as ``os.waitpid`` tells.
_NUMBER = struct.Struct("i")
_LONGEST_REQUEST = 1 << 17


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A process that is forked, and leads a session of its own. It is started by "python", and "-m" or "-c"."""

    def _execute_child(self, args: Sequence[Any], *more: Any) -> None:
        _, preexec_fn, _, _, cwd, env, _, _, shell, *pipes = more[:15]
        assert args[0] == sys.executable
        assert args[1] in ("-m", "-c")
        assert preexec_fn is None
        assert not shell
        ours, theirs = socket.socketpair()
        request = {
            "option": args[1],
            "program": args[2],
            "arguments": [*map(str, args[3:])],
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
        }
        streams = [pipe if pipe >= 0 else own for own, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        with theirs:
            socket.send_fds(_server(), [json.dumps(request).encode()], [*streams, theirs.fileno()])
        self._told = ours
        self.pid = self._next_number()
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _next_number(self) -> int:
        told = self._told.recv(_NUMBER.size, socket.MSG_WAITALL)
        if len(told) < _NUMBER.size:
            raise RuntimeError("The process from which others are forked has ended.")
        return int(_NUMBER.unpack(told)[0])

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags == os.WNOHANG and not select.select([self._told], [], [], 0)[0]:
            return 0, 0
        return self.pid, self._next_number()

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
                        self._told.close()
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


#: What starts a process, on any system.
Process = Popen if hasattr(os, "fork") else subprocess.Popen


def let_liverxai_fork(patch: pytest.MonkeyPatch, module: str = "LiverXAILib.subprocesses") -> None:
    """Let the Python processes that `module` starts in this process be forked, until `patch` is undone."""

    def start(command: Sequence[str], **options: Any) -> Any:
        return (Process if command[0] == sys.executable else subprocess.Popen)(command, **options)

    def run(command: Sequence[str], *, capture_output: bool, check: bool, **options: Any) -> Any:
        assert capture_output
        assert not check
        with start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
            said = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, *said)

    patch.setattr(f"{module}.subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start, "run": run}))


#: The sockets through which this process and all that are forked from it ask the server; and what ends it.
_started: list[Any] = []


def start_server() -> None:
    """Fork the server from this process, if no thread of a library is running, which would be missing in the server."""
    threads = len([*Path("/proc/self/task").glob("*")])
    if not 0 < threads <= len(sys._current_frames()):
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    end, kept = os.pipe()
    with theirs, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that of a thread of pytest-xdist, which is not needed
        if os.fork() == 0:
            try:
                _be_the_server(ours, theirs, end)
            finally:
                os._exit(1)
    os.close(end)
    _started.extend((ours, kept))


def _be_the_server(ours: socket.socket, theirs: socket.socket, end: int) -> NoReturn:
    """In the forked process: leave all that belongs to the test process, then serve."""
    os.setsid()
    faulthandler.disable()
    logging.getLogger().handlers.clear()
    for category in (DeprecationWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", category)  # which Pytest shows
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.dup2(end, 0)
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        # Their numbers stay in use: somebody might close a file by a number that would be another one's.
        for path in [*Path("/proc/self/fd").iterdir()]:
            if (number := int(path.name)) not in (0, ours.fileno(), theirs.fileno(), nothing.fileno()):
                with contextlib.suppress(OSError):
                    os.dup2(nothing.fileno(), number)
    _started[:] = [ours]
    run(serve(theirs))


def _server() -> socket.socket:
    """The server of this process and of all that are forked from it; started at the first call if it is not there."""
    if not _started:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "forking", str(ours.fileno()), str(theirs.fileno())],
                stdin=subprocess.PIPE,  # its end is that of this process
                pass_fds=[ours.fileno(), theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parents[1]), *_python_path()])},
                start_new_session=True,
            )
        _started.extend((ours, process))
    return _started[0]


def _python_path() -> list[str]:
    return [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


# --- in the server ------------------------------------------------------------------------------------------------


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork processes until the test process ends. Returns in those forked alone, with what they are to do."""
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([0, requests, woken], [], [])
        if 0 in ready:
            os._exit(0)
        if woken in ready:
            woken.recv(4096)
            _tell_ends(running)
        if requests in ready:
            told, files, _, _ = socket.recv_fds(requests, _LONGEST_REQUEST, 4)
            *streams, control = files
            request = json.loads(told)
            _import_for(request["program"])
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                for one in (woken, wake, requests, *running.values()):
                    one.close()
                for number in files:
                    os.close(number)
                return dict(request)
            for number in streams:
                os.close(number)
            running[pid] = socket.socket(fileno=control)
            running[pid].send(_NUMBER.pack(pid))


def _import_for(program: str) -> None:
    """Import what is not here yet of what `program` needs, and every program."""
    new = [name for name in (*_IMPORTS, *_MORE_IMPORTS.get(program, ())) if name not in sys.modules]
    for name in new:
        importlib.import_module(name)
    if new:
        gc.freeze()  # or the collection of garbage would copy all pages


def _tell_ends(running: dict[int, socket.socket]) -> None:
    """Tell how processes have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as control, contextlib.suppress(OSError):  # who started it may have ended
            control.send(_NUMBER.pack(status))


def run(request: dict[str, Any]) -> NoReturn:
    """Do in a forked process what ``python -m module`` or ``python -c code`` does in one of its own."""
    os.setsid()
    gc.enable()
    let_liverxai_fork(pytest.MonkeyPatch())
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    new = [path for path in _python_path() if path not in sys.path]
    sys.path[:0] = [request["folder"], *new]
    for path in new:
        if (custom := Path(path, "sitecustomize.py")).is_file():
            runpy.run_path(str(custom))
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    sys.argv = ["-c" if request["option"] == "-c" else request["program"], *request["arguments"]]
    code: Any = 1
    try:
        # A program that a test has imported is here already.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
        if request["option"] == "-c":
            exec(request["program"], {"__name__": "__main__"})
        else:
            runpy.run_module(request["program"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    # The end of an interpreter, but for the third of a second in which modules are taken apart.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def main() -> None:
    """Be the server: ``python -m forking OURS THEIRS``, two sockets; those forked ask through the first."""
    ours, theirs = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    _started[:] = [ours]
    run(serve(theirs))


if __name__ == "__main__":
    importlib.import_module("forking").main()
