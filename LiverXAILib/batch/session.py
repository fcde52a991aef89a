# SPDX-License-Identifier: Apache-2.0
"""The parent's side of one worker process and its replacements: limits, crashes, and finding the responsible case."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ..subprocesses import ChildProcess, describe_end
from .store import Store

_log = logging.getLogger(__name__)

#: Receives the events of a session: mappings with "event" and values.
Emit = Callable[[dict[str, Any]], None]

#: The module that a worker process runs.
CHILD = "LiverXAILib.batch.child"
#: Cases held by a worker: while one is analyzed, the one before is written, and then the next one read. A third case
#: would not make this faster as long as analyzing takes longer than reading and writing, but it would take memory.
DEPTH = 2
#: Time within which a worker must load its model, in seconds.
_START_LIMIT = 900.0
#: After this many worker processes in a row that end without finishing a case, the cause is not a case.
_MAX_FAILED_STARTS = 3
#: A case during which the process died is retried once, alone.
_MAX_CRASHES = 2


class Session:
    """Has a worker process do the submitted cases, and reports the outcome of each exactly once.

    Events passed to `emit` (from the session's own thread): "ready" (with "model"), "worker" (a process was started),
    "running" and "progress" (about a case), "finished" (with "case" and "state" "done" or "failed"), "fatal" (with
    "error"), and last of all "ended".

    If the process dies, the cases that may have caused it are retried once, each alone in a fresh process. No case is
    thus blamed for another one, and a memory shortage caused by prefetching does not recur.

    :param config: JSON-ready, for :mod:`LiverXAILib.batch.child`.
    :param time_limit: seconds that a case may take, including reading; 0: no limit.
    """

    def __init__(self, store: Store, config: Mapping[str, Any], emit: Emit, *, time_limit: float, python: str) -> None:
        self._store = store
        self._config = config
        self._emit = emit
        self._time_limit = time_limit
        self._python = python
        self._inbox: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._waiting: deque[dict[str, Any]] = deque()
        self._inside: dict[str, _Clock] = {}
        self._crashes: dict[str, int] = {}
        self._process: ChildProcess | None = None
        self._ready = False
        self._deadline = 0.0
        self._failed_starts = 0
        #: The cases that are finished before the session ends, once it is winding down.
        self._last: set[str] | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, case: dict[str, Any]) -> None:
        """Add a case, JSON-ready. No more than :data:`DEPTH` cases should be outstanding."""
        self._inbox.put(("submit", case))

    def wind_down(self) -> None:
        """Finish the cases that are being analyzed or written, drop the others, and end."""
        self._inbox.put(("wind down",))

    def stop(self) -> None:
        """Kill the worker process and wait until it is gone; its cases are dropped without an event."""
        self._inbox.put(("stop",))
        self._thread.join()

    # --- the session's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            # For example, the output folder is gone. Without this event the batch would wait forever.
            _log.exception("The session has failed")
            self._emit({"event": "fatal", "error": f"{type(error).__name__}: {error}"})
        self._kill()
        self._emit({"event": "ended"})

    def _serve(self) -> None:
        self._start()
        while not self._over:
            try:
                message = self._inbox.get(timeout=0.25)
            except queue.Empty:
                self._check_limits()
                continue
            kind = message[0]
            if kind == "submit":
                self._waiting.append(message[1])
            elif kind == "wind down":
                self._waiting.clear()
                self._last = {case_id for case_id, clock in self._inside.items() if clock.begun}
                self._over = not self._last
            elif kind == "stop":
                break
            elif self._process is not None and message[1] is self._process:
                self._on_news(kind, self._process, message[2])
            self._dispatch()
            self._check_limits()

    def _start(self) -> None:
        try:
            with (self._store.logs / f"{self._store.name}-workers.log").open("ab") as log:
                self._process = ChildProcess(
                    self._python, CHILD, threads=self._config["threads"], log=log, inbox=self._inbox
                )
        except OSError as error:
            self._give_up(f"The worker process cannot be started: {error.strerror or error}.")
            return
        self._ready, self._inside = False, {}
        self._deadline = time.monotonic() + _START_LIMIT
        self._process.send(self._config)

    def _dispatch(self) -> None:
        """Send waiting cases to the worker, up to its :data:`DEPTH`, but a suspected cause of a crash alone."""
        while self._process is not None and self._ready and self._waiting and not self._over:
            case = self._waiting[0]
            suspects = self._crashes.keys() & {case["id"], *self._inside}
            if len(self._inside) >= (1 if suspects else DEPTH):
                return
            self._waiting.popleft()
            if self._committed(case):
                continue
            self._inside[case["id"]] = _Clock(case)
            self._process.send({**case, "alone": bool(suspects)})

    def _committed(self, case: dict[str, Any]) -> bool:
        """Report a case as done if this run has already committed its result, whatever happened to the worker."""
        record = self._store.record(case["folder"])
        if record is None or record.get("run") != self._store.token or record.get("case") != case["id"]:
            return False
        self._emit({"event": "finished", "case": case["id"], "state": "done", "record": record})
        return True

    def _on_news(self, kind: str, process: ChildProcess, news: Any) -> None:
        """Handle a message from the process, or its end; kill the process after an invalid message."""
        if kind == "ended":
            self._on_exit(news)
        elif kind == "message":
            try:
                self._on_message(news)
            except (LookupError, TypeError, ValueError, AttributeError):
                _log.exception("The worker process sent an invalid message")
                process.kill()

    def _on_message(self, message: dict[str, Any]) -> None:
        values = dict(message)
        event = values.pop("event")
        if event == "ready":
            self._ready = True
            self._emit({"event": "worker", "pid": values["pid"], "host": values["host"]})
            self._emit({"event": "ready", "model": values["model"]})
            return
        if event == "refused":
            self._give_up(values["error"], usage=values["usage"])
            return
        clock = self._inside[values["case"]]
        if event in ("reading", "read", "analyzing", "analyzed", "writing"):
            clock.enter(event)
            if event == "reading":
                self._emit({"event": "running", "case": values["case"]})
            elif event == "writing":
                self._emit({"event": "progress", "case": values["case"], "step": "Writing", "fraction": 1.0})
        elif event == "progress":
            self._emit({"event": "progress", **values})
        elif event == "done":
            self._finish(values["case"], state="done", record=values["record"])
        elif event == "failed" and values["kind"] == "output":
            self._give_up(values["error"])
        elif event == "failed" and values["kind"] == "memory":
            # A fresh process, without a second image in memory, may succeed.
            self._kill()
            self._requeue_or_fail([values["case"]], "memory", values["error"])
            self._restart()
        elif event == "failed" and values["kind"] == "error":
            # After an unforeseen error, the state of the process (or of its GPU) cannot be trusted.
            self._finish(values["case"], state="failed", kind="error", error=values["error"])
            self._kill()
            self._requeue_or_fail([], "", "")
            self._restart()
        elif event == "failed":
            self._finish(
                values["case"], state="failed", **{key: values[key] for key in ("kind", "error", "unreachable")}
            )

    def _finish(self, case_id: str, **outcome: Any) -> None:
        self._failed_starts = 0
        clock = self._inside.pop(case_id)
        if self._last is not None:
            self._last.discard(case_id)
            self._over = not self._last
        self._emit({"event": "finished", "case": case_id, "seconds": round(clock.seconds, 3), **outcome})

    def _on_exit(self, code: int) -> None:
        """Handle a process that has ended by itself."""
        self._kill()
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            self._give_up(
                f"The worker process ended {self._failed_starts} times without finishing a case "
                f"({describe_end(code)}). The reason may be in {self._store.logs}."
            )
            return
        active = [case_id for case_id, clock in self._inside.items() if clock.running]
        self._requeue_or_fail(
            active or list(self._inside),
            "crash",
            f"The worker process ended while working on this case: {describe_end(code)}.",
        )
        self._restart()

    def _requeue_or_fail(self, suspects: list[str], kind: str, error: str) -> None:
        """Put the worker's cases back at the front of the queue, except suspects that have reached the limit."""
        for case_id, clock in reversed(list(self._inside.items())):
            if self._committed(clock.case):
                continue
            if case_id in suspects:
                self._crashes[case_id] = self._crashes.get(case_id, 0) + 1
                if self._crashes[case_id] >= _MAX_CRASHES:
                    self._failed_starts = 0
                    values = {"seconds": round(clock.seconds, 3), "kind": kind, "error": error}
                    self._emit({"event": "finished", "case": case_id, "state": "failed", **values})
                    continue
            self._store.discard(clock.case["folder"])
            self._waiting.appendleft(clock.case)

    def _check_limits(self) -> None:
        if self._process is None or self._over:
            return
        if not self._ready:
            if time.monotonic() > self._deadline:
                self._give_up(f"The worker process did not load the model within {_START_LIMIT:.0f} s.")
            return
        if not self._time_limit:
            return
        # An image that is slow to read does no harm while another case is being analyzed or written.
        begun = [clock for clock in self._inside.values() if clock.begun]
        for clock in begun or list(self._inside.values()):
            if clock.running and clock.seconds > self._time_limit:
                self._kill()
                late = self._inside.pop(clock.case["id"])
                self._requeue_or_fail([], "", "")
                self._store.discard(late.case["folder"])
                if not self._committed(late.case):
                    error = f"It exceeded the time limit of {self._time_limit:g} s while {late.phase}."
                    values = {"seconds": round(late.seconds, 3), "kind": "time limit", "error": error}
                    self._emit({"event": "finished", "case": late.case["id"], "state": "failed", **values})
                self._restart()
                return

    def _restart(self) -> None:
        if self._last is not None:
            self._over = True
        if not self._over:
            self._start()

    def _give_up(self, error: str, usage: bool = False) -> None:
        self._over = True
        self._emit({"event": "fatal", "error": error, "usage": usage})

    def _kill(self) -> None:
        """Kill the worker process and all its descendants, and wait until it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for case_id in self._inside:
            self._store.discard(self._inside[case_id].case["folder"])


class _Clock:
    """The phase of a case, in the worker's words, and how long it has been worked on, in seconds."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.phase = ""
        self._spent = 0.0
        self._since = 0.0

    @property
    def running(self) -> bool:
        """Whether the case is being worked on; in the other phases it waits for the one before."""
        return self.phase in ("reading", "analyzing", "writing")

    @property
    def begun(self) -> bool:
        """Whether the case is past being read."""
        return self.phase in ("analyzing", "analyzed", "writing")

    @property
    def seconds(self) -> float:
        return self._spent + (time.monotonic() - self._since if self.running else 0.0)

    def enter(self, phase: str) -> None:
        self._spent, self._since, self.phase = self.seconds, time.monotonic(), phase
