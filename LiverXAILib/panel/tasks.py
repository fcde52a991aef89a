# SPDX-License-Identifier: Apache-2.0
"""Run one task at a time in the worker process: start it, poll it, show its result step by step, cancel it.

A timer polls the worker and shows results one node at a time; a thread copies voxels into images that do not belong to
a node yet. This keeps Slicer responsive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..errors import Cancelled
from ..subprocesses import slicer_python
from ..worker import WorkerClient
from .installation import REQUIRED_PACKAGES, install_packages, missing_packages
from .state import PanelState
from .status import StatusLine
from .words import remaining_time

#: Work in pieces for the event loop: each yield returns control to the application. A function that is yielded runs in
#: a thread, where it may touch neither Qt nor MRML, and the yield returns its result. The generator returns the
#: sentences that the panel shows at the end.
Steps = Generator[Callable[[], Any] | None, Any, Sequence[str]]

#: How often the worker is asked for events, and the thread whether it is done: it takes milliseconds, and where the
#: application holds Python's lock, it runs only while the timer's slot does.
POLL_MS, THREAD_MS = 20, 5


class TaskRunner:
    """Runs tasks of the panel in the worker, one at a time.

    :param changed: called when the set of enabled buttons may have changed.
    """

    def __init__(self, state: PanelState, status: StatusLine, changed: Callable[[], None]) -> None:
        import qt

        self._state, self._ui, self._status, self._changed = state, state.ui, status, changed
        self.client = WorkerClient(python=slicer_python(), log=Path(slicer.app.temporaryPath) / "LiverXAI-worker.log")
        self._thread = ThreadPoolExecutor(1, "LiverXAI")
        self._receive: Callable[[Any], Steps] | None = None
        self._steps: Steps | None = None
        self._work: Future[Any] | None = None
        self._started = 0.0
        self.timer = qt.QTimer()
        self.timer.interval = POLL_MS
        self.timer.connect("timeout()", self.on_timer)

    @property
    def busy(self) -> bool:
        """Whether a task is running, or its result is being shown."""
        return self._receive is not None

    @property
    def showing(self) -> bool:
        """Whether a result is being shown: it takes a moment, and an incomplete result would be useless."""
        return self._steps is not None

    @property
    def seconds(self) -> float:
        """The time since the task began."""
        return time.monotonic() - self._started

    def start(
        self,
        ask: Callable[[], int],
        receive: Callable[[Any], Steps],
        packages: Sequence[str] = REQUIRED_PACKAGES,
    ) -> None:
        """Start a task, after installing the packages it needs if the user agrees.

        :param ask: sends the request to the worker.
        :param receive: shows the worker's response, in steps.
        """
        self._status.show()
        try:
            if not self._ensure_packages(packages):
                self._status.show(_("Nothing was installed, so nothing was computed."))
                return
            self._ui.progressBar.value = 0
            self._status.show_step(_("Starting…"))
            self._started = time.monotonic()
            ask()
            self._receive = receive
            self.timer.start()
        except Exception as error:
            self._status.show_error(error)
        finally:
            self._changed()

    def cancel(self) -> None:
        """Ask the worker to stop; it does so after the current sliding window."""
        self.client.cancel()
        self._status.show_step(_("Cancelling…"))
        self._ui.applyButton.enabled = False

    def abort(self, *sentences: str) -> None:
        """Abort the running task; none of its results will be shown."""
        if self.busy:
            self.client.close()
            self._finish(sentences)

    def close(self) -> None:
        """End the worker, the thread and the timer."""
        self.abort()
        self.timer.stop()
        self.client.close()
        self._thread.shutdown(cancel_futures=True)

    def on_timer(self) -> None:
        """Read events from the worker, or show the next piece of the result."""
        try:
            events = self.client.poll()
            for event in events:
                self._on_event(event)
            # Decoding a response and starting to show it are two steps.
            if not events and self._steps is not None and (self._work is None or self._work.done()):
                self._advance(self._steps)
        except Exception as error:
            self._finish(())
            self._status.show_error(error)
            self._changed()
        if not self.busy:
            self.timer.stop()
        # A step that waits for nothing follows once Qt has processed its events.
        self.timer.interval = POLL_MS if self._steps is None else 0 if self._work is None else THREAD_MS

    def _on_event(self, event: Any) -> None:
        if event.kind == "progress":
            self.show_progress(event)
        elif event.kind == "failed":
            self._receive = None
            if isinstance(event.error, Cancelled):
                self._status.show(_("Cancelled. Nothing was changed."))
            else:
                self._status.show_error(event.error, event.details)
            self._changed()
        elif self._receive is not None:
            self._steps = self._receive(event.result)
            self._changed()

    def _advance(self, steps: Steps) -> None:
        """Advance by one step: pass in the thread's last result, and submit the next function to the thread."""
        done, self._work = self._work, None
        try:
            work = steps.send(done.result() if done is not None else None)
        except StopIteration as end:
            self._finish(end.value)
        else:
            self._work = self._thread.submit(work) if work is not None else None

    def show_progress(self, event: Any) -> None:
        """Show the progress of the worker."""
        if self._ui.applyButton.enabled:  # else: being cancelled
            self._ui.progressBar.value = round(1000 * event.fraction)
            rest = remaining_time(event.remaining_s)
            self._status.show_step(f"{event.step}… {event.fraction:.0%}{rest}")

    def _finish(self, sentences: Sequence[str]) -> None:
        self._receive = self._steps = self._work = None
        self._status.show(*sentences)
        self._changed()

    def _ensure_packages(self, names: Sequence[str]) -> bool:
        """Return whether all packages are installed; missing ones are installed if the user agrees."""
        missing = missing_packages(names)
        if not missing:
            return True
        question = _("LiverXAI needs Python packages that are not in Slicer yet: {names}. Install them now?")
        if not slicer.util.confirmOkCancelDisplay(question.format(names=", ".join(missing)), "LiverXAI"):
            return False
        self._status.show_step(_("Installing {names}. This can take minutes…").format(names=", ".join(missing)))
        slicer.app.processEvents()
        install_packages(missing, self._state.parameters.wheelFolder)
        return True
