# SPDX-License-Identifier: Apache-2.0
"""What a long operation needs besides its data: whom it reports to, who may cancel it, where it computes.

Public functions take ``device=, progress=, cancel=``; they put them into one :class:`RunContext`, and everything below
them takes that.
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

    :param progress: called with what is being done and the fraction (0 to 1) of the whole; None: nobody listens.
    :param cancel: asked between windows; None: the run cannot be cancelled.
    :param device: "auto", "cpu", "cuda", "cuda:N" or "mps", or a device of torch.
    :param threads: computing threads of torch; 0: torch's to decide.
    """

    progress: Progress | None = None
    cancel: CancelToken | None = None
    device: str | torch.device = "auto"
    threads: int = 0

    def report(self, stage: str, fraction: float) -> None:
        """Tell what is being done, in words, and the fraction (0 to 1) that is done."""
        if self.progress is not None:
            self.progress(stage, fraction)

    def check(self) -> None:
        """Raise :class:`~LiverXAILib.errors.Cancelled` if the run was cancelled."""
        if self.cancel is not None:
            self.cancel.check()

    def part(self, start: float, end: float) -> RunContext:
        """The context of a part of the run: its own 0 to 1 is [`start`, `end`] of the whole."""
        progress = self.progress
        if progress is None:
            return self

        def scaled(stage: str, fraction: float) -> None:
            progress(stage, start + (end - start) * fraction)

        return dataclasses.replace(self, progress=scaled)

    def step(self, number: int, count: int) -> RunContext:
        """The context of step `number` (from 0) of `count` equal steps."""
        return self.part(number / count, (number + 1) / count)

    def on(self, device: str | torch.device) -> RunContext:
        """The same on another device."""
        return dataclasses.replace(self, device=device)

    @property
    def silent(self) -> RunContext:
        """The same without progress."""
        return dataclasses.replace(self, progress=None)

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments ``device=, progress=, cancel=`` of public functions."""
        return {"device": str(self.device), "progress": self.progress, "cancel": self.cancel}

    def limit_threads(self) -> None:
        """Give torch in this process the number of threads, where one is named."""
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)


#: A run to which nobody listens, and which nobody cancels.
UNATTENDED = RunContext()
