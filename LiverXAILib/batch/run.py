# SPDX-License-Identifier: Apache-2.0
"""The batch itself: submits cases to a pool of workers, keeps the manifest, and shuts down cleanly."""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .._version import __version__
from ..errors import LiverXAIError, UsageError
from ..options import Options
from .cases import Case, Found, content_hash, stamp
from .manifest import Manifest, last_states, read_manifest
from .records import RECORD
from .session import DEPTH, Emit, Session
from .store import Store, host_name

_log = logging.getLogger(__name__)

#: The number of other images that are checked when one is missing, before the whole drive is considered lost.
_SAMPLE = 5


class WorkerPool(Protocol):
    """Runs cases somewhere and reports their outcomes through the events of :class:`Session`."""

    #: The number of "ended" events to expect.
    ends: int

    def free_slots(self) -> int:
        """The number of cases that can be submitted now; the queue to the workers is kept short (back-pressure)."""

    def submit(self, case: dict[str, Any]) -> None:
        """Accept a case, JSON-ready."""

    def acknowledge(self, event: Mapping[str, Any]) -> None:
        """Note that the batch has processed an event."""

    def wind_down(self) -> None:
        """Finish the cases that are being analyzed or written, drop the others, and end."""

    def stop(self) -> None:
        """Stop all workers immediately."""


class LocalWorkerPool:
    """Worker processes on this machine."""

    def __init__(
        self, store: Store, configs: Sequence[Mapping[str, Any]], emit: Emit, *, time_limit: float, python: str
    ) -> None:
        self.ends = len(configs)
        self._inside: dict[str, int] = {}
        self._sessions = [Session(store, config, emit, time_limit=time_limit, python=python) for config in configs]

    def free_slots(self) -> int:
        return DEPTH * len(self._sessions) - len(self._inside)

    def submit(self, case: dict[str, Any]) -> None:
        load = Counter(self._inside.values())
        number = min(range(len(self._sessions)), key=lambda n: load[n])
        self._inside[case["id"]] = number
        self._sessions[number].submit(case)

    def acknowledge(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "finished":
            self._inside.pop(event["case"], None)

    def wind_down(self) -> None:
        for session in self._sessions:
            session.wind_down()

    def stop(self) -> None:
        for session in self._sessions:
            session.stop()


@dataclass(frozen=True)
class Settings:
    """The options of each case, JSON-ready, and settings that do not affect the result (device, workers, limits)."""

    options: Options = field(default_factory=Options)
    model: str = "default"
    devices: tuple[str, ...] = ("auto",)
    workers: int = 1
    threads: int = 0
    time_limit: float = 1800.0
    resume: bool = True
    keep_failed: bool = False
    keep_names: bool = False

    def of(self, case: Case) -> dict[str, Any]:
        """The settings that determine a case's result."""
        merged = asdict(Options.from_mapping(case.options, self.options))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in merged.items()}

    def config(self, store: Store, worker: int = 0) -> dict[str, Any]:
        """The configuration of a worker process."""
        return {
            "output": str(store.output),
            "run": store.token,
            "model": self.model,
            "device": self.devices[worker % len(self.devices)],
            "threads": self.threads,
            "options": asdict(self.options),
            "keep_names": self.keep_names,
        }


class Reporter(Protocol):
    """Receives the batch's messages and progress."""

    def say(self, text: str) -> None:
        """Print a line for the user."""

    def show(self, finished: float, total: int, text: str) -> None:
        """Show the number of finished cases (with fractions of the current ones), and the current step."""


@dataclass
class RunSummary:
    """The outcomes of the cases of a run."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    done_before: int = 0
    failed_before: int = 0
    stopped: str = ""
    signal: int = 0

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed (or the batch had to stop), 128 + n stopped by signal n."""
        if self.signal:
            return 128 + self.signal
        if self.failed or self.failed_before or self.stopped:
            return 1
        return 0


#: Makes a pool that emits events to the given function.
MakePool = Callable[[Emit], WorkerPool]


class Batch:
    """One run over the cases of `found` that belong to the store's shard."""

    def __init__(self, found: Found, store: Store, settings: Settings, reporter: Reporter) -> None:
        self._found = found
        self._store = store
        self._settings = settings
        self._reporter = reporter
        self._cases = {case.id: case for case in found.cases if store.shard.holds(case.id)}
        self._summary = RunSummary()
        self._fractions: dict[str, tuple[str, float]] = {}
        self._signals: list[int] = []
        self._total = 0
        self._started = 0.0

    def run(self, make_pool: MakePool) -> RunSummary:
        """Run all cases that are not finished yet; the store must be open.

        :raises LiverXAILib.batch.store.OutputError: the output cannot be written.
        :raises LiverXAILib.errors.LiverXAIError: no worker can be started (wrong model, option or device).
        """
        manifest = Manifest(self._store)
        inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        before = last_states(read_manifest(self._store.manifest, self._store.damage))
        manifest.append(
            "run",
            software=__version__,
            host=host_name().split()[0],
            shard=str(self._store.shard),
            cases=len(self._cases),
            passed_over=[list(item) for item in self._found.told],
            keep_names=self._settings.keep_names,
        )
        with self._catch_signals():
            pool = make_pool(inbox.put)
            try:
                model = self._wait_until_ready(pool, inbox, manifest)
                if model is not None:
                    todo = self._plan(model, before, manifest)
                    self._work(pool, inbox, manifest, todo, model)
            finally:
                pool.stop()
                for case_id in list(self._fractions):
                    self._store.discard(self._cases[case_id].folder)
                manifest.close()
        if self._signals:
            self._summary.signal = self._signals[0]
        return self._summary

    def _message(self, case: Case) -> dict[str, Any]:
        """The message by which a worker receives a case, JSON-ready."""
        return {
            "id": case.id,
            "label": case.label,
            "name": case.name,
            "folder": case.folder,
            "path": str(case.path),
            "series": case.series,
            "files": [str(path) for path in case.files],
            "options": dict(case.options),
            "settings": self._settings.of(case),
        }

    # --- planning ----------------------------------------------------------------------------------------------

    def _wait_until_ready(
        self, pool: WorkerPool, inbox: queue.Queue[dict[str, Any]], manifest: Manifest
    ) -> dict[str, Any] | None:
        """Wait for the model's identity from the first worker that has loaded it; None if the user stopped the run."""
        while True:
            self._reporter.show(0, 0, "Loading the model")
            event = self._next(inbox)
            if self._signals:
                self._summary.signal = self._signals[0]
                return None
            if event is None:
                continue
            pool.acknowledge(event)
            if event["event"] == "fatal":
                raise (UsageError if event.get("usage") else LiverXAIError)(event["error"])
            if event["event"] == "worker":
                manifest.append("worker", pid=event["pid"], host=event["host"])
            if event["event"] == "ready":
                return dict(event["model"])

    def _plan(
        self, model: Mapping[str, Any], before: Mapping[str, Mapping[str, Any]], manifest: Manifest
    ) -> list[Case]:
        """The cases to run; those in progress when an earlier run died come last, because they may be the cause."""
        todo, last = [], []
        for number, case in enumerate(self._cases.values()):
            self._reporter.show(0, 0, f"Checking case {number + 1} of {len(self._cases)}")
            self._store.check()
            if self._signals:
                break
            state = before.get(case.id, {})
            self._call_by_new_name(case, state)
            decision = resume_decision(case, self._store, model, self._settings, state, refresh=True)
            if decision.finished:
                if decision.reason == "done":
                    self._summary.done_before += 1
                else:
                    self._summary.failed_before += 1
                if decision.reason == "done" and (state.get("state"), state.get("folder")) != ("done", case.folder):
                    # Its folder is in place, but the earlier run died before recording it, or used another name.
                    manifest.append("case", case=case.id, state="done", label=case.name, folder=case.folder)
            elif state.get("state") == "running":
                last.append(case)
            else:
                todo.append(case)
        return todo + last

    def _call_by_new_name(self, case: Case, state: Mapping[str, Any]) -> None:
        """Rename the result of an earlier run with a different ``--keep-names``, so that it need not be repeated."""
        old = state.get("folder", case.folder)
        record = None if old == case.folder else self._store.record(old)
        if record is None or record["case"] != case.id or not self._store.rename(old, case.folder):
            return
        path = str(case.path) if self._settings.keep_names else case.name
        record |= {"label": case.name, "folder": case.folder, "input": {**record.get("input", {}), "path": path}}
        self._store.update_record(case.folder, record)

    # --- running -------------------------------------------------------------------------------------------------

    def _work(
        self,
        pool: WorkerPool,
        inbox: queue.Queue[dict[str, Any]],
        manifest: Manifest,
        todo: list[Case],
        model: Mapping[str, Any],
    ) -> None:
        pending = list(reversed(todo))
        self._total = len(todo)
        inside: set[str] = set()
        winding_down = False
        ends = 0
        self._started = time.monotonic()
        while (pending or inside or self._signals) and not self._summary.stopped:
            self._store.check()
            if self._signals and not winding_down:
                winding_down = True
                self._summary.signal = self._signals[0]
                if signal.SIGTERM in self._signals:
                    break
                self._reporter.say("Stopping after the current cases. Press Ctrl+C again to drop them.")
                pool.wind_down()
            elif len(self._signals) > 1:
                break
            while not winding_down and pending and pool.free_slots() > 0:
                case = pending.pop()
                inside.add(case.id)
                pool.submit(self._message(case))
            event = self._next(inbox)
            if event is None:
                continue
            pool.acknowledge(event)
            self._note(event, manifest, inside, model)
            ends += event["event"] == "ended"
            if ends == pool.ends:
                break
        for case in (self._cases[case_id] for case_id in inside):
            manifest.append("case", case=case.id, label=case.name, folder=case.folder, state="dropped")
        summary = self._summary
        manifest.append("end", done=len(summary.done), failed=len(summary.failed), reason=summary.stopped)

    def _note(self, event: dict[str, Any], manifest: Manifest, inside: set[str], model: Mapping[str, Any]) -> None:
        """Process an event and record it in the manifest."""
        name = event["event"]
        if name == "fatal":
            self._summary.stopped = event["error"]
        elif name == "ready" and event["model"] != model:
            self._summary.stopped = "The model's files were changed during the run. Run the same command again."
        elif name == "worker":
            manifest.append("worker", pid=event["pid"], host=event["host"])
        elif name == "running":
            case = self._cases[event["case"]]
            manifest.append("case", case=case.id, label=case.name, folder=case.folder, state="running")
            self._fractions[event["case"]] = ("Reading", 0.0)
        elif name == "progress":
            self._fractions[event["case"]] = (event["step"], event["fraction"])
        elif name == "finished":
            inside.discard(event["case"])
            self._fractions.pop(event["case"], None)
            self._finish(event, manifest, model)
        self._show()

    def _finish(self, event: dict[str, Any], manifest: Manifest, model: Mapping[str, Any]) -> None:
        case = self._cases[event["case"]]
        about = {"case": case.id, "label": case.name, "folder": case.folder}
        if event["state"] == "done":
            record = event["record"]
            kept = {key: record[key] for key in ("input", "model", "settings", "software", "host", "times", "warnings")}
            manifest.append("case", **about, state="done", **kept)
            self._summary.done.append(case.id)
            self._reporter.say(f"done    {case.name} ({self._outlook()})")
            if (aside := self._store.replaced(case.folder)).exists():
                self._reporter.say(f"        What was in its folder, edited or of another case, is kept in {aside}.")
            return
        if event.get("unreachable") and self._drive_is_gone(case):
            self._summary.stopped = (
                "The images can no longer be reached. Reconnect the drive, then run the same command again."
            )
            manifest.append("case", **about, state="dropped")
            return
        manifest.append(
            "case",
            **about,
            state="failed",
            kind=event["kind"],
            error=event["error"],
            seconds=event.get("seconds"),
            settings=self._settings.of(case),
            model=dict(model),
        )
        self._summary.failed[case.id] = event["error"]
        # Sentences about an image may begin with its name, which need not be repeated.
        file, reason = Path(case.name).name, event["error"]
        sentence = reason.removeprefix(file) if reason.startswith(f"{file} ") else f": {reason}"
        self._reporter.say(f"FAILED  {case.name}{sentence} ({self._outlook()})")

    def _drive_is_gone(self, case: Case) -> bool:
        """Whether other images besides that of `case` cannot be reached either."""
        others = [other.path for other in self._cases.values() if other.id != case.id][:_SAMPLE]
        return bool(others) and not any(path.exists() for path in others)

    def _outlook(self) -> str:
        """The progress of the batch, and an estimate of the remaining time."""
        finished = len(self._summary.done) + len(self._summary.failed)
        if finished == self._total:
            return f"{finished} of {self._total}"
        minutes = (time.monotonic() - self._started) / finished * (self._total - finished) / 60
        left = "less than a minute" if minutes < 1 else f"about {minutes:.0f} min" if minutes < 90 else ""
        return f"{finished} of {self._total}, {left or f'about {minutes / 60:.1f} h'} left"

    def _show(self) -> None:
        finished = len(self._summary.done) + len(self._summary.failed)
        current = ", ".join(
            f"{Path(self._cases[case_id].name).name}: {step}" for case_id, (step, _) in self._fractions.items()
        )
        fraction = sum(part for _, part in self._fractions.values())
        self._reporter.show(finished + fraction, self._total, current)

    # --- signals -------------------------------------------------------------------------------------------------

    def _next(self, inbox: queue.Queue[dict[str, Any]]) -> dict[str, Any] | None:
        """The next event; None after a short timeout, so that signals are noticed."""
        try:
            return inbox.get(timeout=0.2)
        except queue.Empty:
            return None

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Record SIGINT and SIGTERM instead of being ended by them (Python allows this in the main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        old = {number: signal.signal(number, lambda n, _: self._signals.append(n)) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class ResumeDecision:
    """Whether a case is already finished, with a short reason."""

    finished: bool
    reason: str


def resume_decision(
    case: Case,
    store: Store,
    model: Mapping[str, Any],
    settings: Settings,
    state: Mapping[str, Any],
    *,
    refresh: bool = False,
) -> ResumeDecision:
    """Decide whether `case` already has a result for the same image, model and settings.

    The image's files are read only if their sizes or times differ from those on record.

    :param state: the last line about the case in the manifest; empty if there is none.
    :param refresh: record new times of unchanged files, so that they need not be read again.
    """
    if not settings.resume:
        return ResumeDecision(False, "again")
    result = store.result(case.folder)
    if result is None and refresh and (store.cases / case.folder / RECORD).exists():
        store.set_aside(case.folder)
    record = None if result is None else result.record
    wanted = settings.of(case)
    if state.get("state") == "failed" and (record is None or record.get("settings") != wanted):
        same = state.get("settings") == wanted and state.get("model") == model
        return ResumeDecision(same and settings.keep_failed, "failed before")
    if record is None:
        return ResumeDecision(False, "new")
    if record.get("model") != model:
        return ResumeDecision(False, "other model")
    if record.get("settings") != wanted:
        return ResumeDecision(False, "other settings")
    source = record.get("input", {})
    try:
        now = stamp(case.files)
        if now != source.get("stamp"):
            if content_hash(case.files) != source.get("sha256"):
                return ResumeDecision(False, "image changed")
            if refresh:
                store.update_record(case.folder, {**record, "input": {**source, "stamp": now}})
    except (OSError, LiverXAIError):
        return ResumeDecision(False, "image changed")
    return ResumeDecision(True, "done")
