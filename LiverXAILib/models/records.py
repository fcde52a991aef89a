# SPDX-License-Identifier: Apache-2.0
"""The record that is stored with the files of a downloaded or imported model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError
from .checks import is_inner_file
from .registry import IMPORT_RECORD
from .serialization import from_json_value, read_json


@dataclass(frozen=True)
class ImportRecord:
    """Where a model's files came from, and their SHA-256 at that time. It reveals damage; it does not imply trust."""

    source: str
    date: str
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        if wrong := [name for name in self.files if not is_inner_file(name)]:
            raise ValueError(f"{wrong[0]!r} is not the name of a file in the folder")


def read_record(folder: Path) -> ImportRecord | None:
    """The record in `folder`, or None; raises :class:`~LiverXAILib.errors.ModelError` if it is damaged."""
    path = folder / IMPORT_RECORD
    if not path.is_file():
        return None
    data = read_json(path, dict, "the import record")
    # Older records also stored whether the model was trusted, which a model's folder must not decide.
    data.pop("trusted", None)
    try:
        return from_json_value(ImportRecord, data)
    except ValueError as error:
        raise ModelError(f"{path} cannot be understood: {error}. Import the model again.") from error


def write_record(folder: Path, record: ImportRecord) -> None:
    """Write the record into `folder`."""
    (folder / IMPORT_RECORD).write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")
