# SPDX-License-Identifier: Apache-2.0
"""Names of files, folders and series, which often are names of patients, kept out of what a batch writes for others.

Unless ``--keep-names`` is given, a case is called by a pseudonym in tables, logs, the manifest, and names of folders;
``names.csv``, which nobody but the user may read, says which image that is. Names that a list gives its cases in the
column ``case`` are meant to be seen and stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import LiverXAIError
from ..files import staging_folder
from ..tables import read_table, write_table
from ..volumes.formats import without_ending

#: In the folder of results: pseudonym, path within INPUT, and the path itself.
NAMES = "names.csv"
_COLUMNS = ("case", "name", "path")
#: What a series is called in messages, with the description that somebody wrote at the scanner.
_DESCRIPTION = re.compile(r'(series (?:-?\d+|without a number)) \(".*?"\)(?=[\s,.:;\])]|$)', re.DOTALL)
#: Shorter names of files and folders ("CT", "in") name nobody, and are words of sentences; so are short numbers.
_SHORTEST_NAME, _SHORTEST_NUMBER = 3, 5
_SAME_FOLDER = "the same folder as "


def pseudonym(identity: str) -> str:
    """A name that tells nothing, and is the same in each run: from the identity of a case, 16 hexadecimal digits."""
    return f"case-{identity[:12]}"


def without_descriptions(sentence: str) -> str:
    """A sentence without the descriptions of DICOM series, in which scanners' users write names and dates of birth."""
    return _DESCRIPTION.sub(r"\1", sentence)


def without_names(sentence: str, name: str, label: str, paths: Iterable[str]) -> str:
    """A sentence about a case as others may read it: `name` stands for its path, its files, and parts of both.

    :param label: the path within INPUT.
    :param paths: the image and all its files.
    """
    words = {label, *label.split("/")}
    for text in paths:
        path = Path(text)
        words |= {text, path.name, path.stem, without_ending(path.name), str(path.parent)}
    longest_first = sorted(filter(_tells, words), key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
    return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", lambda _: name, without_descriptions(sentence))


def _tells(word: str) -> bool:
    return len(word) >= (_SHORTEST_NUMBER if word.isdecimal() else _SHORTEST_NAME)


def passed_over_without_names(label: str, reason: str) -> tuple[str, str]:
    """A file or series that is no case, and the reason, as others may read them."""
    name = "file-" + hashlib.sha256(label.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    if reason.startswith(_SAME_FOLDER):
        return name, f"{_SAME_FOLDER}another one"
    return name, without_names(reason, name, label, ())


def write_names(output: Path, names: Iterable[Mapping[str, Any]]) -> None:
    """Add rows (:data:`_COLUMNS`) to ``names.csv`` in `output`, readable by the user alone; a case has one row.

    A table that is damaged is made anew. Raises OSError if it cannot be written.
    """
    path = output / NAMES
    known: dict[str, Mapping[str, Any]] = {}
    if path.is_file():
        with contextlib.suppress(LiverXAIError, KeyError):
            known = {row.cells["case"]: row.cells for row in read_table(path)}
    known |= {row["case"]: row for row in names}
    with staging_folder(path, private=True) as folder:
        write_table(folder / NAMES, _COLUMNS, known.values(), mark=True)
        (folder / NAMES).chmod(0o600)
        (folder / NAMES).replace(path)
