# SPDX-License-Identifier: Apache-2.0
"""The GUI's side: starts the worker, sends requests, and is polled for events; never blocks, needs no Qt or torch."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..analysis import Analysis, Decision
from ..errors import Cancelled, LiverXAIError, UsageError, is_memory
from ..explain.catalog import DEFAULT_METHOD
from ..files import remove, staging_folder
from ..inference.segmentation import Segmentation
from ..subprocesses import ChildProcess, describe_end
from ..volumes.volume import Volume
from .wire import KINDS, Explained, pack_segmentation, pack_volume, unpack_analysis, unpack_explained

#: The module that the child process runs.
SERVER = "LiverXAILib.worker.server"
#: If a cancelled request does not end within this time, its process is killed.
CANCEL_GRACE_S = 5.0


class WorkerError(LiverXAIError):
    """The worker process died, or something unexpected happened in it."""


@dataclass(frozen=True)
class Event:
    """The outcome or the progress of a request.

    :param kind: "progress", "done" or "failed".
    :param request: the number of the request, returned by :meth:`WorkerClient.analyze` and the other requests.
    :param step: a description of the current step.
    :param fraction: the completed fraction (0 to 1).
    :param remaining_s: estimated seconds until the end; None: not known yet.
    :param result: for "done": an :class:`Analysis`, an :class:`~LiverXAILib.worker.wire.Explained`, or a mapping.
    :param error: for "failed": one of LiverXAI's errors, with a sentence for the user.
    :param details: for "failed": details for a bug report.
    """

    kind: str
    request: int
    step: str = ""
    fraction: float = 0.0
    remaining_s: float | None = None
    result: Any = None
    error: LiverXAIError | None = None
    details: str = ""


@dataclass
class _Request:
    number: int
    action: str
    arguments: dict[str, Any]
    volume: Volume | None = None
    cancel_deadline: float | None = None
    held: dict[str, str] = field(default_factory=dict)
    unpacking: threading.Thread | None = None


class WorkerClient:
    """Requests analyses and explanations from a worker process, one at a time.

    >>> client = WorkerClient()
    >>> number = client.analyze(volume, "ct-1", model="default")   # doctest: +SKIP
    >>> for event in client.poll(): ...                            # doctest: +SKIP
    >>> client.close()

    The process starts with the first request and keeps the model, the image and the segmentation for the next one. If
    it dies, the request fails with a :class:`WorkerError` and the next one starts a new process. Call from one thread
    only.

    :param python: the interpreter; None: the current one.
    :param threads: compute threads; None: one fewer than there are cores, so that the GUI stays responsive.
    :param log: the worker's log file (no patient data); None: no log.
    """

    def __init__(self, *, python: str | None = None, threads: int | None = None, log: Path | None = None) -> None:
        self._python = python or sys.executable
        self._threads = threads or max(1, _cores() - 1)
        self.log = log
        self._process: ChildProcess | None = None
        self._folder: Path | None = None
        self._resources = contextlib.ExitStack()
        self._inbox: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._running: _Request | None = None
        self._sending: threading.Thread | None = None
        self._number = 0
        self._held: dict[str, str] = {}

    # --- requests ----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a request is running."""
        return self._running is not None

    @property
    def pid(self) -> int | None:
        """The number of the worker's process, or None."""
        return None if self._process is None else self._process.pid

    def holds(self, image: str, labels: str | None = None, *, analysis: str | None = None) -> bool:
        """Whether the worker holds the image with this token.

        :param labels: and the segmentation with this token, of which it may know nothing else.
        :param analysis: and the complete result whose segmentation had this token when it was made.
        """
        wanted = {"image": image, "labels": labels, "analysis": analysis}
        return all(token in (None, self._held.get(what)) for what, token in wanted.items())

    def analyze(
        self,
        volume: Volume,
        token: str,
        *,
        model: str = "default",
        device: str = "auto",
        force: bool = False,
        **options: Any,
    ) -> int:
        """Segment, explain and measure; the result is an :class:`Analysis` of `volume`.

        :param token: identifies the image and its segmentation in later requests such as :meth:`explain`.
        :param force: accept intensities that do not look like Hounsfield units.
        :param options: see :class:`LiverXAILib.options.Options`.
        :return: the number of the request.
        """
        image = {"token": token, "force": force}
        arguments = {"image": image, "options": options, "model": model, "device": device}
        return self._ask("analyze", arguments, volume, held={"image": token, "labels": token, "analysis": token})

    def explain(
        self,
        targets: list[str],
        token: str,
        *,
        volume: Volume | None = None,
        labels: str | None = None,
        segmentation: Segmentation | Callable[[], Segmentation] | None = None,
        method: str = DEFAULT_METHOD,
        layer: str | None = None,
        check: bool = False,
        model: str = "default",
        device: str = "auto",
        force: bool = False,
    ) -> int:
        """Explain a segmentation that the worker holds, or that is given; the result is :class:`Explained`.

        Questions about single lesions and "why not" questions get a counterfactual in addition to the heat map.

        :param token: token of the image; `volume` must be given unless the worker :meth:`holds` it.
        :param labels: token of the segmentation, equal to `token` if :meth:`analyze` made it; `segmentation` must be
            given unless the worker holds it. If `segmentation` is a function, another thread calls it.
        """
        names = labels or token
        arguments: dict[str, Any] = {
            "image": {"token": token, "force": force},
            "labels": {"token": names},
            "targets": targets,
            "method": method,
            "layer": layer,
            "check": check,
            "model": model,
            "device": device,
        }
        return self._ask("explain", arguments, volume, segmentation, held={"image": token, "labels": names})

    def refine(
        self,
        decisions: Sequence[Decision],
        token: str,
        labels: str,
        *,
        volume: Volume,
        segmentation: Segmentation | Callable[[], Segmentation] | None = None,
        earlier: Sequence[Mapping[str, Any]] = (),
        base: str = "",
        edited: bool = False,
        left: str = "",
        who: str = "reader",
        sensitivity: str = "standard",
        sensitivity_before: str = "standard",
        height: float | None = None,
        weight: float | None = None,
        model: str = "default",
        device: str = "auto",
        force: bool = False,
    ) -> int:
        """Apply a reader's decisions and measure again; the result is an :class:`Analysis` without explanations.

        :param decisions: a decision about a finding with a number should also have its place (`place_lps_mm`, and
            `points_lps_mm` for several lesions; LPS mm): it decides if the number belongs to another finding by now.
            Those of kind "undo" come first: each takes back the last decision, see :func:`LiverXAILib.reading.undo`.
        :param token: token of the image, as in :meth:`explain`.
        :param labels: token of the labels that result from the decisions, as in :meth:`explain`.
        :param segmentation: the current labels, if they were edited by hand.
        :param earlier: the decisions made before, for a worker that no longer holds the analysis.
        :param base: the token under which the worker holds the labels of the analysis, before manual edits; "": the
            worker may hold no labels, or those of another result for this image, and computes the model's result again.
        :param edited: the labels were edited by hand since the last decision.
        :param left: checksum of the labels after the last decision; if it matches, they were not edited.
        :param sensitivity: operating point for lesions; if it has changed, it is applied without running a network.
        :param sensitivity_before: the operating point with which the current labels were obtained.
        :param height, weight: see :class:`LiverXAILib.options.Options`.
        """
        arguments: dict[str, Any] = {
            "image": {"token": token, "force": force},
            "labels": {"token": labels},
            "decisions": [decision.to_dict() for decision in decisions],
            "earlier": list(earlier),
            "base": base,
            "edited": edited,
            "left": left,
            "who": who,
            "sensitivity": sensitivity,
            "sensitivity_before": sensitivity_before,
            "patient": {"height": height, "weight": weight},
            "model": model,
            "device": device,
        }
        held = {"image": token, "labels": labels, "analysis": labels}
        return self._ask("refine", arguments, volume, segmentation, held=held)

    def write(
        self,
        token: str,
        folder: str | Path,
        result: str = "",
        *,
        dicom_files: Sequence[str | Path] = (),
        **options: Any,
    ) -> int:
        """Write the files of the last analysis; the result contains "files" by role, and "warnings".

        :param token: token of the image.
        :param result: the worker's name for the result's labels: the image's token after :meth:`analyze` (default), or
            `name` of :meth:`refine`. If the worker holds another result, the request fails.
        :param dicom_files: the files of the image's series, for DICOM objects; empty: those in the image's metadata.
        :param options: `write`, `report`, `dicom` and `scene` of :class:`LiverXAILib.options.Options`.
        """
        files = [str(path) for path in dicom_files]
        return self._ask(
            "write",
            {
                "token": token,
                "result": result or token,
                "folder": str(folder),
                "dicom_files": files,
                "options": options,
            },
        )

    def compare(
        self,
        token: str,
        prior: Sequence[str | Path],
        folder: str | Path,
        result: str = "",
        days: Sequence[float] | None = None,
    ) -> int:
        """Compare the last analysis with results of earlier studies and write the comparison into `folder`.

        The result contains "files" by role, a "summary" as text, and "warnings".

        :param token, result: as in :meth:`write`.
        :param prior: folders written by ``analyze``, the oldest first.
        :param days: days of all studies since the first; None: from DICOM dates, where available.
        """
        given = None if days is None else [float(day) for day in days]
        earlier = [str(path) for path in prior]
        return self._ask(
            "compare",
            {"token": token, "result": result or token, "prior": earlier, "folder": str(folder), "days": given},
        )

    def download(self, model: str, *, accept_license: bool = False) -> int:
        """Download a model by name; the result contains its "folder"."""
        return self._ask("download", {"model": model, "accept_license": accept_license})

    def import_model(self, source: str) -> int:
        """Import a model from a folder or zip file into the user's models; the result contains its "name"."""
        return self._ask("import", {"source": source})

    def environment(self) -> int:
        """Query versions and devices; the result contains "versions", "devices" and "platform"."""
        return self._ask("environment", {})

    def cancel(self) -> None:
        """Cancel the running request: it fails with :class:`Cancelled` after the current sliding window.

        If it does not end within :data:`CANCEL_GRACE_S`, its process is killed.
        """
        if self._running is not None and self._running.cancel_deadline is None:
            self._running.cancel_deadline = time.monotonic() + CANCEL_GRACE_S
            if self._process is not None:
                self._process.send({"cancel": self._running.number})

    def poll(self) -> list[Event]:
        """The events since the last call; to be called about ten times a second.

        Never raises: each request ends in exactly one "done" or "failed", whatever the worker does or sends.
        """
        events = []
        while True:
            try:
                kind, process, message = self._inbox.get_nowait()
            except queue.Empty:
                break
            if process is not self._process:
                continue
            event = self._on_news(kind, message)
            if event is not None:
                events.append(event)
        running = self._running
        if running is not None and running.cancel_deadline is not None and time.monotonic() > running.cancel_deadline:
            self._running = None
            self._end()
            events.append(Event("failed", running.number, error=Cancelled("Cancelled. Nothing was changed.")))
        return events

    def close(self) -> None:
        """Kill the worker with all its descendants, and delete its images; a later request starts a new worker."""
        self._running = None
        self._end()
        if self._sending is not None:  # it would leave its images behind if the program ended now
            self._sending.join()

    # --- the process -------------------------------------------------------------------------------------------------

    def _ask(
        self,
        action: str,
        arguments: dict[str, Any],
        volume: Volume | None = None,
        segmentation: Segmentation | Callable[[], Segmentation] | None = None,
        held: Mapping[str, str] | None = None,
    ) -> int:
        if self._running is not None:
            raise UsageError("The worker is busy. Wait, or cancel the running request.")
        if self._process is None:
            self._start()
        self._number += 1
        self._running = _Request(self._number, action, arguments, volume, held=dict(held or {}))
        # Writing images takes longer than the GUI may block.
        about = (self._process, self._folder, self._running, segmentation)
        self._sending = threading.Thread(target=self._send, args=about, daemon=True)
        self._sending.start()
        return self._number

    def _send(
        self,
        process: ChildProcess,
        folder: Path,
        request: _Request,
        segmentation: Segmentation | Callable[[], Segmentation] | None,
    ) -> None:
        arguments = dict(request.arguments)
        try:
            for stale in folder.glob("*.npy"):  # a file that is still mapped stays readable, or (Windows) stays
                with contextlib.suppress(OSError):
                    stale.unlink()
            if callable(segmentation):  # called first, because its source may be edited while the image is written
                segmentation = segmentation()
            if request.volume is not None and not self.holds(arguments["image"]["token"]):
                arguments["image"] = {**arguments["image"], **pack_volume(request.volume, folder)}
            if segmentation is not None:
                arguments["labels"] = {**arguments["labels"], **pack_segmentation(segmentation, folder)}
            process.send({"id": request.number, "action": request.action, **arguments})
        except Exception as error:  # every failure must be reported: the caller is waiting for a response
            self._inbox.put(("unsent", process, _unsent(request, error)))
        finally:
            if self._folder != folder:  # the worker ended meanwhile, and its folder was removed while it was written to
                remove(folder)

    def _start(self) -> None:
        try:
            self._folder = self._resources.enter_context(
                staging_folder(Path(tempfile.gettempdir()) / "liverxai-worker", private=True)
            )
            with (self.log or Path(os.devnull)).open("ab") as log:
                self._process = ChildProcess(self._python, SERVER, threads=self._threads, log=log, inbox=self._inbox)
        except OSError as error:
            self._end()
            raise WorkerError(f"The worker process cannot be started: {error.strerror or error}.") from error
        self._held = {}
        self._process.send({"folder": str(self._folder), "threads": self._threads})

    def _on_news(self, kind: str, news: Any) -> Event | None:
        """The event that results from a message in the inbox; None if there is none for the caller."""
        if kind == "unsent":
            return self._on_message(news)
        if kind == "ended":
            if self._running is not None and self._running.unpacking is not None:
                # The response arrived before the process ended: it is complete and valid.
                self._running.unpacking.join()
                self._inbox.put((kind, self._process, news))
                return None
            return self._on_exit(news)
        if kind == "unpacked":
            return self._on_result(*news)
        if kind == "message":
            try:
                return self._on_message(news)
            except Exception as error:
                # The response, or a file that came with it, is not what it should be.
                return self._fail_and_end("".join(traceback.format_exception(error)))
        return self._fail_and_end(f"The worker sent: {news}")

    def _on_message(self, message: Mapping[str, Any]) -> Event | None:
        running = self._running
        if running is None or message.get("id") != running.number:
            return None
        if message["event"] == "progress":
            fraction, remaining = float(message["fraction"]), message["remaining_s"]
            seconds = None if remaining is None else float(remaining)
            return Event("progress", running.number, str(message["step"]), fraction, seconds)
        if message["event"] == "failed":
            event = Event("failed", running.number, error=_error(message), details=str(message["details"]))
            # The worker may or may not have replaced its image and labels by those of the failed request. Its analysis
            # stays, unless it is about another image.
            kept = {what: token for what, token in self._held.items() if running.held.get(what, token) == token}
            analysis = {"analysis": self._held["analysis"]} if "image" in kept and "analysis" in self._held else {}
            self._held = {**kept, **analysis}
            self._running = None
            return event
        # Opening the files of many images takes longer than the GUI may block.
        arguments = (self._process, self._folder, running, message["result"])
        running.unpacking = threading.Thread(target=self._unpack, args=arguments, daemon=True)
        running.unpacking.start()
        return None

    def _on_result(self, request: _Request, result: Any, problem: str) -> Event | None:
        """Handle an unpacked response; `problem` says why it is invalid, "" if it is valid."""
        if request is not self._running:
            return None
        if problem:
            request.unpacking = None
            return self._fail_and_end(problem)
        if request.held and request.held["image"] != self._held.get("image"):
            self._held = {}  # what was held was about another image
        self._held.update(request.held)
        self._running = None
        return Event("done", request.number, fraction=1.0, result=result)

    def _unpack(self, process: ChildProcess, folder: Path, request: _Request, result: Mapping[str, Any]) -> None:
        news: tuple[_Request, Any, str]
        try:
            news = request, self._unpacked(folder, request, result), ""
        except Exception as error:
            # The response, or a file that came with it, is not what it should be.
            news = request, None, "".join(traceback.format_exception(error))
        self._inbox.put(("unpacked", process, news))

    def _unpacked(
        self, folder: Path, request: _Request, result: Mapping[str, Any]
    ) -> Analysis | Explained | Mapping[str, Any]:
        if request.action in ("analyze", "refine"):
            assert request.volume is not None
            return unpack_analysis(result, folder, request.volume)
        if request.action == "explain":
            return unpack_explained(result, folder)
        if not isinstance(result, dict):
            raise TypeError(f"{type(result).__name__} instead of a mapping")
        return result

    def _on_exit(self, code: int) -> Event | None:
        """Handle a process that has ended by itself."""
        where = f" See {self.log}." if self.log else ""
        sentence = f"The computation ended unexpectedly: {describe_end(code)}. Nothing was changed; try again.{where}"
        return self._fail_and_end(sentence, sentence)

    def _fail_and_end(
        self,
        details: str,
        sentence: str = "The computation returned an invalid response. Try again.",
    ) -> Event | None:
        """Kill the worker and report the running request, if there is one, as failed."""
        running, self._running = self._running, None
        self._end()
        return (
            None if running is None else Event("failed", running.number, error=WorkerError(sentence), details=details)
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        self._folder, self._held = None, {}
        with self._resources.pop_all():  # the folder is removed, whatever happens
            if process is not None:
                process.kill()


def _unsent(request: _Request, error: Exception) -> dict[str, Any]:
    """The failure of a request that could not be sent to the worker."""
    kind = next((name for name, known in KINDS.items() if isinstance(error, known)), "error")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if not isinstance(error, LiverXAIError):
        if isinstance(error, OSError):
            advice = "Is the disk full?"
        elif is_memory(error):
            advice = "Close other programs, or crop the CT."
        else:
            advice = "Please report this."
        reason = f"The image cannot be sent to the worker: {reason}. {advice}"
    details = "".join(traceback.format_exception(error))
    return {"event": "failed", "id": request.number, "kind": kind, "error": reason, "details": details}


def _error(message: Mapping[str, Any]) -> LiverXAIError:
    """The error in a message about a failure; raises ValueError if its text is empty."""
    error = KINDS.get(str(message["kind"]), WorkerError)(str(message["error"]).strip())
    # The error's text may be empty because control characters are removed from it.
    if not str(error).strip():
        raise ValueError("a failure without a text")
    return error


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
