# SPDX-License-Identifier: Apache-2.0
"""What a kind of output is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...analysis import Analysis
    from ...volumes.volume import Volume


def nothing_more(*_: object) -> None:
    """The requirement of what can always be written."""


def no_remarks(_: object) -> tuple[str, ...]:
    """Of what is written as it is."""
    return ()


@dataclass(frozen=True)
class Writer:
    """One kind of output of an analysis. Cheap to make: what computes is imported when it is used.

    :param name: what the command line and the panel call it.
    :param title: what it is, in a few words.
    :param files: names of all files that it can write, as patterns; an older result's are removed by them.
    :param write: writes the files of an analysis into a folder (the arguments) and returns their names by role, e.g.
        "heatmap-liver".
    :param required: belongs to each result; if it fails, there is no result. Others are left out with a warning.
    :param default: is written if nothing else is asked for; "available": if `requirement` is met.
    :param requirement: raises :class:`~LiverXAILib.errors.UsageError` if what it needs is not installed.
    :param check: raises a :class:`~LiverXAILib.errors.LiverXAIError` if it cannot be made of an image; asked before
        minutes are spent on it.
    :param remarks: sentences about what of the image's source was repaired or left out; they join the warnings.
    :param modules: what it imports when it writes, for who has time to import it ahead.
    :param shows_warnings: is written after the others, so that it can say what could not be written.
    :param prepare: does in another thread, while the others are written, what takes time and does not depend on them;
        `write` gets what it returns as a third argument.
    """

    name: str
    title: str
    files: tuple[str, ...]
    write: Callable[..., dict[str, str]]
    required: bool = False
    default: bool | str = False
    requirement: Callable[[], None] = nothing_more
    check: Callable[[Volume], None] = nothing_more
    remarks: Callable[[Volume], Sequence[str]] = no_remarks
    modules: tuple[str, ...] = ()
    shows_warnings: bool = False
    prepare: Callable[[Analysis], Any] | None = None

    def owns(self, name: str) -> bool:
        """Whether a file of this name is one of its outputs."""
        return any(fnmatchcase(name, pattern) for pattern in self.files)
