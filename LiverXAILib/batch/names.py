# SPDX-License-Identifier: Apache-2.0
"""Keeps names of files, folders and series, which often identify patients, out of a batch's shareable output.

Unless ``--keep-names`` is given, a case is identified by a pseudonym in tables, logs, the manifest, and folder names;
``names.csv``, which only the user can read, maps each pseudonym to its image. Names in the column ``case`` of a list
are meant to be visible and are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import LiverXAIError
from ..files import staging_folder
from ..tables import read_table, write_table
from ..volumes.formats import without_ending

#: In the output folder: pseudonym, path within INPUT, and full path of each case.
NAMES = "names.csv"
_COLUMNS = ("case", "name", "path")
#: The name of a series in messages, with the description entered at the scanner.
_DESCRIPTION = re.compile(r'(series (?:-?\d+|without a number)) \(".*?"\)(?=[\s,.:;\])]|$)', re.DOTALL)
#: Shorter names of files and folders ("CT", "in") identify nobody and are ordinary words; so are short numbers.
_SHORTEST_NAME, _SHORTEST_NUMBER = 3, 5
_SAME_FOLDER = "the same folder as "


def pseudonym(identity: str) -> str:
    """Derive a pseudonym from the id of a case (16 hexadecimal digits), so that it is the same in each run."""
    return f"case-{identity[:12]}"


def without_descriptions(sentence: str) -> str:
    """Remove the descriptions of DICOM series, which may contain patient names and dates of birth, from a sentence."""
    return _DESCRIPTION.sub(r"\1", sentence)


def without_names(sentence: str, name: str, label: str, paths: Iterable[str]) -> str:
    """Replace the path of a case, its file names, and parts of both in a sentence by `name`.

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
    """Pseudonymize a file or series that was skipped, and the reason."""
    name = "file-" + hashlib.sha256(label.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    if reason.startswith(_SAME_FOLDER):
        return name, f"{_SAME_FOLDER}another one"
    return name, without_names(reason, name, label, ())


def write_names(output: Path, names: Iterable[Mapping[str, Any]]) -> str:
    """Add rows (:data:`_COLUMNS`), one per case, to ``names.csv`` in `output`, readable by the user alone.

    :return: a sentence if the table was damaged: it is kept under another name, and a new one is written; otherwise "".
    :raises OSError: the table cannot be written.
    """
    path = output / NAMES
    known: dict[str, Mapping[str, Any]] = {}
    damage = ""
    if path.is_file():
        with contextlib.suppress(LiverXAIError, KeyError):
            known = {row.cells["case"]: row.cells for row in read_table(path)}
        if not known:  # each run writes at least one row
            kept = next(new for n in count(1) if not (new := output / f"names-damaged-{n}.csv").exists())
            path.rename(kept)
            damage = f"Damaged: {NAMES} cannot be read; kept as {kept.name}. The new one holds the cases of this run."
    known |= {row["case"]: row for row in names}
    with staging_folder(path, private=True) as folder:
        write_table(folder / NAMES, _COLUMNS, known.values(), mark=True)
        (folder / NAMES).chmod(0o600)
        (folder / NAMES).replace(path)
    return damage
