# SPDX-License-Identifier: Apache-2.0
"""Test processes without the time for imports: they are forked from a process that has imported everything.

:class:`Popen` is :class:`subprocess.Popen` for ``python -m module …`` and ``python -c code …``. It starts a
separate process with its own pipes, environment, folder, signals and exit code, in which only the imports are already
done. Tests of the imports of a process, and at least one test of each module run this way, start a new Python.

The processes are forked by a server without threads, which computes nothing. It is itself forked from the test process
after collection (:func:`start_server`), and so has the imports of the tests; elsewhere, as in ``Testing/fuzz``, it is
started as a new Python.
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
#: Modules that processes of LiverXAI import before or while they run a module.
_IMPORTS = (
    "LiverXAILib.batch.command",
    "LiverXAILib.explain.border",
    "LiverXAILib.models.loading",
    "LiverXAILib.pipeline",
    "LiverXAILib.report.writers",
)
#: Additional imports of individual modules.
_MORE_IMPORTS = {"stops": ("LiverXAILib.models.commands", "LiverXAILib.training.run", "LiverXAILib.training.fit")}
#: Messages of the server: the process id, and later its exit status as from ``os.waitpid``.
_NUMBER = struct.Struct("i")
_LONGEST_REQUEST = 1 << 17


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A forked process that leads its own session; the command is "python" with "-m" or "-c"."""

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
        if self.returncode is None and self._told.fileno() < 0:
            self.returncode = sys.maxsize  # its socket was garbage before it: nobody waits for it any more
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


#: The class that starts a process, on any system.
Process = Popen if hasattr(os, "fork") else subprocess.Popen


def let_liverxai_fork(patch: pytest.MonkeyPatch, module: str = "LiverXAILib.subprocesses") -> None:
    """Fork the Python processes that `module` starts in this process, until `patch` is undone."""

    def start(command: Sequence[str], **options: Any) -> Any:
        return (Process if command[0] == sys.executable else subprocess.Popen)(command, **options)

    def run(command: Sequence[str], *, capture_output: bool, check: bool, **options: Any) -> Any:
        assert capture_output
        assert not check
        with start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
            said = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, *said)

    patch.setattr(f"{module}.subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start, "run": run}))


#: The sockets for requests to the server from this process and all forked from it, and the one that ends the server.
_started: list[Any] = []


def start_server() -> None:
    """Fork the server from this process, unless a library runs a thread, which would be missing in the server."""
    threads = len([*Path("/proc/self/task").glob("*")])
    if not 0 < threads <= len(sys._current_frames()):
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    end, kept = os.pipe()
    with theirs, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # because of a thread of pytest-xdist, which is not needed
        if os.fork() == 0:
            try:
                _be_the_server(ours, theirs, end)
            finally:
                os._exit(1)
    os.close(end)
    _started.extend((ours, kept))


def _be_the_server(ours: socket.socket, theirs: socket.socket, end: int) -> NoReturn:
    """In the forked process: release everything that belongs to the test process, then serve."""
    os.setsid()
    faulthandler.disable()
    logging.getLogger().handlers.clear()
    for category in (DeprecationWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", category)  # which Pytest would show
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.dup2(end, 0)
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        # Keep their descriptors in use: an object might later close one that would then belong to another file.
        for path in [*Path("/proc/self/fd").iterdir()]:
            if (number := int(path.name)) not in (0, ours.fileno(), theirs.fileno(), nothing.fileno()):
                with contextlib.suppress(OSError):
                    os.dup2(nothing.fileno(), number)
    _started[:] = [ours]
    run(serve(theirs))


def _server() -> socket.socket:
    """The server of this process and of all forked from it; started on the first call if necessary."""
    if not _started:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "forking", str(ours.fileno()), str(theirs.fileno())],
                stdin=subprocess.PIPE,  # closed when this process ends
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
    """Fork processes until the test process ends. Returns only in the forked processes, with their request."""
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
    """Import the missing modules that `program`, or every program, needs."""
    new = [name for name in (*_IMPORTS, *_MORE_IMPORTS.get(program, ())) if name not in sys.modules]
    for name in new:
        importlib.import_module(name)
    if new:
        gc.freeze()  # otherwise garbage collection would copy all pages


def _tell_ends(running: dict[int, socket.socket]) -> None:
    """Report how processes have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as control, contextlib.suppress(OSError):  # the process that started it may have ended
            control.send(_NUMBER.pack(status))


def run(request: dict[str, Any]) -> NoReturn:
    """Do in a forked process what ``python -m module`` or ``python -c code`` does in a new one."""
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
        # A module that a test has imported is already loaded.
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
    # Finalize like the interpreter, but without the third of a second for tearing down modules.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def main() -> None:
    """Run the server: ``python -m forking OURS THEIRS``, two sockets; forked processes use the first for requests."""
    ours, theirs = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    _started[:] = [ours]
    run(serve(theirs))


if __name__ == "__main__":
    importlib.import_module("forking").main()
