# SPDX-License-Identifier: Apache-2.0
"""All kinds of output, for the command line, the worker and the panel.

Each module of this package defines one, called ``WRITER``: a new kind of output is one new file here. The modules are
cheap to import, because the command line lists the outputs in its help.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable

from ...errors import UsageError
from ._writer import Writer

__all__ = ["PROVENANCE", "WRITERS", "Writer", "choose_writers", "is_output"]

#: The file that says how a result was made. It is written last: if it exists, the result is complete.
PROVENANCE = "provenance.json"

_found = (
    importlib.import_module(f"{__name__}.{module.name}").WRITER
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("_")
)
#: By name; the required ones first, those that show the warnings of others last.
WRITERS: dict[str, Writer] = {
    writer.name: writer
    for writer in sorted(_found, key=lambda one: (one.shows_warnings, not one.required, not one.default, one.name))
}


def choose_writers(
    names: Iterable[str] | None = None, *, add: Iterable[str] = (), leave_out: Iterable[str] = ()
) -> list[Writer]:
    """The writers called `names`, with `add`, without `leave_out`, and with all required ones, in the order of writing.

    :param names: None: the writers that are used by default.
    :raises LiverXAILib.errors.UsageError: there is no such writer.
    """
    if names is None:
        names = [writer.name for writer in WRITERS.values() if writer.name not in leave_out and _by_default(writer)]
    wanted = {*names, *add}
    if unknown := sorted(wanted - set(WRITERS)):
        raise UsageError(f"There is no output {unknown[0]!r}. Choose among: {', '.join(WRITERS)}.")
    wanted -= set(leave_out)
    return [writer for writer in WRITERS.values() if writer.required or writer.name in wanted]


def _by_default(writer: Writer) -> bool:
    if writer.default == "available":
        try:
            writer.requirement()
        except UsageError:
            return False
    return bool(writer.default)


def is_output(name: str) -> bool:
    """Whether a file of this name in a folder of results is LiverXAI's, whichever writers were chosen."""
    return name == PROVENANCE or any(writer.owns(name) for writer in WRITERS.values())


def is_comparison(name: str) -> bool:
    """Whether a file of this name is of a comparison, which ``analyze --prior`` and ``compare`` write."""
    return re.fullmatch(r"comparison\.(json|csv|html)|segmentation-\d+\.seg\.nrrd", name) is not None
