# SPDX-License-Identifier: Apache-2.0
"""Progress and cancellation: the two things that every long operation takes from its caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Cancelled

#: ``progress(stage, fraction)``: what is being done, in words, and how much of it is done (0 to 1).
Progress = Callable[[str, float], None]


class CancelToken:
    """A flag that one thread raises and a long operation looks at between windows."""

    def __init__(self) -> None:
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def check(self) -> None:
        """Raise :class:`~LiverXAILib.errors.Cancelled` if :meth:`cancel` was called."""
        if self._cancelled:
            raise Cancelled("Cancelled. Nothing was written.")


def report_progress(progress: Progress | None, stage: str, fraction: float) -> None:
    """Call `progress` if there is one."""
    if progress is not None:
        progress(stage, fraction)


def check_cancel(cancel: CancelToken | None) -> None:
    """Raise :class:`~LiverXAILib.errors.Cancelled` if `cancel` was given and is set."""
    if cancel is not None:
        cancel.check()


def scaled(progress: Progress | None, start: float, end: float) -> Progress | None:
    """Map a part's own 0..1 onto [`start`, `end`] of the whole."""
    if progress is None:
        return None
    return lambda stage, fraction: progress(stage, start + (end - start) * fraction)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on the terminal (on standard error, so that output can be piped), with the time that remains."""
    from tqdm import tqdm

    with tqdm(total=100, bar_format="{desc:<46.46} {bar} {percentage:3.0f}% {remaining}", leave=False) as bar:

        def show(stage: str, fraction: float) -> None:
            bar.set_description_str(stage, refresh=False)
            bar.update(max(0.0, 100 * fraction - bar.n))
            bar.refresh()

        yield show
