# SPDX-License-Identifier: Apache-2.0
"""Processes of tests without the seconds that imports take: forked from a process that has imported everything.

:class:`Popen` is :class:`subprocess.Popen` for ``python -m module …``. What it starts is a process of its own, with its
own pipes, environment, folder, signals and exit code; only what it would import is there already. Tests of what a
process imports, and one test at least of each module that is run so, start Python afresh.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
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
#: Messages of the server: the number of the process, and later how it ended, as ``os.waitpid`` tells.
_NUMBER = struct.Struct("i")
_LONGEST_REQUEST = 1 << 17


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A process that is forked; it leads a session of its own. The first two arguments are "python" and "-m"."""

    def _execute_child(self, args: Sequence[Any], *more: Any) -> None:
        _, preexec_fn, _, _, cwd, env, _, _, shell, *pipes = more[:15]
        assert args[:2] == [sys.executable, "-m"]
        assert preexec_fn is None
        assert not shell
        ours, theirs = socket.socketpair()
        request = {
            "module": args[2],
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


def let_liverxai_fork(patch: pytest.MonkeyPatch) -> None:
    """Let the child processes of LiverXAI that this process starts be forked, until `patch` is undone."""

    def start(command: Sequence[str], **options: Any) -> Any:
        return (Process if command[0] == sys.executable else subprocess.Popen)(command, **options)

    patch.setattr("LiverXAILib.subprocesses.subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))


@functools.cache
def _server() -> socket.socket:
    """The server of this process and of all that are forked from it; started at the first call."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "forking", str(ours.fileno()), str(theirs.fileno())],
            stdin=subprocess.PIPE,  # its end is that of this process
            pass_fds=[ours.fileno(), theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parents[1]), *_python_path()])},
            start_new_session=True,
        )
    _started.append(process)
    return ours


_started: list[subprocess.Popen[bytes]] = []


def _python_path() -> list[str]:
    return [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


# --- in the server ------------------------------------------------------------------------------------------------


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork processes until the test process ends. Returns in those forked alone, with what they are to do."""
    let_liverxai_fork(pytest.MonkeyPatch())
    for name in _IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # or the collection of garbage would copy all pages
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
                return dict(json.loads(told))
            for number in streams:
                os.close(number)
            running[pid] = socket.socket(fileno=control)
            running[pid].send(_NUMBER.pack(pid))


def _tell_ends(running: dict[int, socket.socket]) -> None:
    """Tell how processes have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as control, contextlib.suppress(OSError):  # who started it may have ended
            control.send(_NUMBER.pack(status))


def run(request: dict[str, Any]) -> NoReturn:
    """Do in a forked process what ``python -m module`` does in one of its own."""
    os.setsid()
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
    sys.argv = [request["module"], *request["arguments"]]
    code: Any = 1
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
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
    _server.cache_clear()
    globals()["_server"] = lambda: ours
    run(serve(theirs))


if __name__ == "__main__":
    importlib.import_module("forking").main()
