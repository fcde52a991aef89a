# SPDX-License-Identifier: Apache-2.0
"""The definition of a kind of output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...analysis import Analysis
    from ...volumes.volume import Volume


def nothing_more(*_: object) -> None:
    """The requirement of an output that can always be written."""


def no_remarks(_: object) -> tuple[str, ...]:
    """The remarks of an output about whose source there is nothing to say."""
    return ()


@dataclass(frozen=True)
class Writer:
    """One kind of output of an analysis. Cheap to create: code that computes is imported when it is used.

    :param name: its name on the command line and in the panel.
    :param title: what it is, in a few words.
    :param files: patterns of the names of all files that it can write; an older result's files are removed by them.
    :param write: writes the files of an analysis into a folder (the arguments) and returns their names by role, e.g.
        "heatmap-liver".
    :param required: belongs to each result; if it fails, there is no result. Others are skipped with a warning.
    :param default: is written unless outputs are chosen; "available": only if `requirement` is met.
    :param requirement: raises :class:`~LiverXAILib.errors.UsageError` if what it needs is not installed.
    :param check: raises a :class:`~LiverXAILib.errors.LiverXAIError` if it cannot be made of an image; called before
        minutes are spent on the analysis.
    :param remarks: sentences about what was repaired in, or left out of, the image's source; they join the warnings.
    :param modules: the modules that it imports when it writes, so that they can be imported ahead of time.
    :param packages: names of Python packages that it needs and that segmenting does not.
    :param of_series: is made of the DICOM series that the image was read from.
    :param shows_warnings: is written after the others, so that it can say what could not be written.
    :param prepare: does slow work that does not depend on other outputs, in another thread while those are written;
        `write` gets its result as a third argument.
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
    packages: tuple[str, ...] = ()
    of_series: bool = False
    shows_warnings: bool = False
    prepare: Callable[[Analysis], Any] | None = None

    def owns(self, name: str) -> bool:
        """Whether a file of this name is one of its outputs."""
        return any(fnmatchcase(name, pattern) for pattern in self.files)
