# SPDX-License-Identifier: Apache-2.0
"""What a long operation needs besides its data: progress reporting, cancellation, and the compute device.

Public functions take ``device=, progress=, cancel=``; they combine these into one :class:`RunContext`, which all
internal functions take.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .progress import CancelToken, Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RunContext:
    """Progress, cancellation, device and threads of one run. Immutable.

    :param progress: called with the current step and the completed fraction (0 to 1); None: progress is not reported.
    :param cancel: checked between windows; None: the run cannot be cancelled.
    :param device: "auto", "cpu", "cuda", "cuda:N" or "mps", or a ``torch.device``.
    :param threads: number of torch's compute threads; 0: torch decides.
    """

    progress: Progress | None = None
    cancel: CancelToken | None = None
    device: str | torch.device = "auto"
    threads: int = 0

    def report(self, step: str, fraction: float) -> None:
        """Report the current step, as text, and the completed fraction (0 to 1)."""
        if self.progress is not None:
            self.progress(step, fraction)

    def check(self) -> None:
        """Raise :class:`~LiverXAILib.errors.Cancelled` if the run was cancelled."""
        if self.cancel is not None:
            self.cancel.check()

    def part(self, start: float, end: float) -> RunContext:
        """The context of a part of the run, whose progress from 0 to 1 maps to [`start`, `end`] of the whole."""
        progress = self.progress
        if progress is None:
            return self

        def scaled(step: str, fraction: float) -> None:
            progress(step, start + (end - start) * fraction)

        return dataclasses.replace(self, progress=scaled)

    def step(self, number: int, count: int) -> RunContext:
        """The context of step `number` (from 0) of `count` equal steps."""
        return self.part(number / count, (number + 1) / count)

    def on(self, device: str | torch.device) -> RunContext:
        """The same context on another device."""
        return dataclasses.replace(self, device=device)

    @property
    def silent(self) -> RunContext:
        """The same context without progress."""
        return dataclasses.replace(self, progress=None)

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments ``device=, progress=, cancel=`` of public functions."""
        return {"device": str(self.device), "progress": self.progress, "cancel": self.cancel}

    def limit_threads(self) -> None:
        """Set the number of torch threads in this process, if one was given."""
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)


#: A run without progress reporting or cancellation.
UNATTENDED = RunContext()
