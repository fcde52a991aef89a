# SPDX-License-Identifier: Apache-2.0
"""Progress reporting and cancellation for long operations."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .errors import Cancelled
from .text import one_line

#: ``progress(step, fraction)``: a description of the current step, and the completed fraction (0 to 1).
Progress = Callable[[str, float], None]


class CancelToken:
    """A flag that one thread sets and a long operation checks between windows."""

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


@contextmanager
def progress_bar(*, lines: bool = True) -> Iterator[Progress]:
    """Show progress on standard error, so that standard output can be piped.

    On a terminal this is a bar with the elapsed and the remaining time; elsewhere (a log file, a pipe), one line per
    step. Nothing is shown within :func:`progress_hidden`.

    :param lines: False: nothing is shown elsewhere, because the command prints lines of its own (:func:`print_line`).
    """
    # In Slicer the streams are not complete file objects; on Windows there may be none.
    if _hidden:
        yield lambda step, fraction: None
    elif getattr(sys.stderr, "isatty", bool)():
        yield from _bar()
    elif lines:
        yield from _lines()
    else:
        yield lambda step, fraction: None


def print_line(text: str) -> None:
    """Print a line on standard output, above a progress bar if there is one. The reader of the stream may be gone."""
    from tqdm import tqdm

    if sys.stdout is not None:
        with suppress(OSError):
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


@contextmanager
def progress_hidden(hidden: bool = True) -> Iterator[None]:
    """Show no progress within this block."""
    global _hidden
    before, _hidden = _hidden, hidden
    try:
        yield
    finally:
        _hidden = before


_hidden = False
#: The part of a description that changes within a step: "Segmenting (organ): window 3 of 12".
_COUNTED = re.compile(r":.*|\s+\d+ of \d+.*")


def _bar() -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(total=100, bar_format=_BAR, leave=False) as bar:

        def show(step: str, fraction: float) -> None:
            # The remaining time can be estimated only after a while.
            bar.bar_format = _BAR + (" [{elapsed}<{remaining}]" if fraction > 0.02 else "")
            bar.set_description_str(one_line(step), refresh=False)
            bar.update(max(0.0, 100 * fraction - bar.n))
            bar.refresh()

        yield show


_BAR = "{desc:<46.46} {bar} {percentage:3.0f}%"


def _lines() -> Iterator[Progress]:
    last = ""

    def show(step: str, fraction: float) -> None:
        nonlocal last
        text = _COUNTED.sub("", one_line(step))
        if text != last and sys.stderr is not None:
            last = text
            # The reader of the stream may be gone; the work goes on.
            with suppress(OSError, ValueError):
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()

    yield show
