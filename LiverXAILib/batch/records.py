# SPDX-License-Identifier: Apache-2.0
"""Validated reading of the records of cases, which disks, editors or killed machines may have damaged.

All records are read through this module. A record with an unexpected structure raises :class:`DamagedError`, and its
case is repeated.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report.writers import PROVENANCE

#: The record of a finished case, in its folder: the input, model, settings and times behind the result.
RECORD = "case.json"
_MEASUREMENTS, _TABLE = "measurements.json", "measurements.csv"

_NUMBER = (int, float)
#: The required keys of each kind of record and their types; "?": the value may be null.
_IDENTITY_SHAPE = {"case": str, "run": str}
_RECORD_SHAPE = {
    **_IDENTITY_SHAPE,
    "model": {"name": str, "version": str},
    "input": {"path": str, "sha256": str},
    "software": str,
    "times": {"reading": _NUMBER, "analyzing": _NUMBER, "writing": _NUMBER},
    "warnings": [str],
}
_MEASUREMENTS_SHAPE = {
    "liver_volume_ml": _NUMBER,
    "liver_complete": bool,
    "?liver_mean_hu": _NUMBER,
    "?tumor_volume_ml": _NUMBER,
    "?tumor_burden_percent": _NUMBER,
    "?lesion_count": _NUMBER,
    "lesions": [{"axial": {"long_mm": _NUMBER}}],
}
_CHECK_SHAPE = {"target": str, "faithfulness": {"passed": bool, "sentence": str, "curves": {"gain": _NUMBER}}}
_ANSWER_SHAPE = {"kind": str, "target": str, "evidence": {}}
_EVENT_SHAPES: dict[str, dict[str, Any]] = {
    "": {"event": str, "time": _NUMBER, "run": str},
    "case": {"case": str, "label": str, "folder": str, "state": str},
    "failed": {"kind": str, "error": str},
}


class DamagedError(Exception):
    """A record does not have the expected structure; `path` is its file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name}: {reason}")
        self.path = path


@dataclass(frozen=True)
class Result:
    """The records in the folder of a finished case."""

    record: Mapping[str, Any]
    measurements: Mapping[str, Any]
    explanations: Sequence[Mapping[str, Any]]
    lesions: Sequence[Mapping[str, str]]
    answers: Sequence[Mapping[str, Any]] = ()


def read_json(path: Path) -> Any:
    """Read a JSON file; raises :class:`DamagedError`, or OSError if it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, "not JSON") from error


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read the record of the case in `folder`, checking only its identity; None if the case is not finished.

    :raises DamagedError: the identity is missing or invalid.
    """
    path = folder / RECORD
    try:
        record = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    _require(path, record, _IDENTITY_SHAPE)
    return dict(record)


def read_result(folder: Path) -> Result | None:
    """Read the records of a finished case that summaries need; None if it is not finished.

    :raises DamagedError: a record is missing or invalid.
    """
    record = read_record(folder)
    if record is None:
        return None
    _require(folder / RECORD, record, _RECORD_SHAPE)
    try:
        measurements, provenance = read_json(folder / _MEASUREMENTS), read_json(folder / PROVENANCE)
        _require(folder / _MEASUREMENTS, measurements, _MEASUREMENTS_SHAPE)
        _require(folder / PROVENANCE, provenance, {})
        explanations = provenance.get("explanations", [])
        _require(folder / PROVENANCE, explanations, [{}])
        checked = [one for one in explanations if one.get("faithfulness")]
        _require(folder / PROVENANCE, checked, [_CHECK_SHAPE])
        answers = provenance.get("answers", [])
        _require(folder / PROVENANCE, answers, [_ANSWER_SHAPE])
        with (folder / _TABLE).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns, rows = reader.fieldnames or (), list(reader)
    except FileNotFoundError as error:
        raise DamagedError(Path(error.filename), "missing") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DamagedError(folder / _TABLE, "not a table") from error
    if "structure" not in columns or any(None in row or None in row.values() for row in rows):
        raise DamagedError(folder / _TABLE, "not the table of measurements")
    return Result(record, measurements, checked, [row for row in rows if row["structure"] == "lesion"], answers)


def is_event(line: Any) -> bool:
    """Whether a line of a manifest has the expected structure."""
    kinds = ["", *(["case"] if isinstance(line, dict) and line.get("event") == "case" else [])]
    kinds += ["failed"] if isinstance(line, dict) and line.get("state") == "failed" else []
    try:
        for kind in kinds:
            _require(Path(), line, _EVENT_SHAPES[kind])
    except DamagedError:
        return False
    return "folder" not in line or is_plain_name(line["folder"])


def is_plain_name(name: str) -> bool:
    """Whether `name` is valid for a results folder and does not lead to another folder."""
    return bool(name) and name == Path(name).name and "\0" not in name


def _require(path: Path, value: Any, shape: Any, where: str = "") -> None:
    """Raise :class:`DamagedError` unless `value` matches `shape`: types, or nested lists and mappings of shapes."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise DamagedError(path, f"{where or 'the content'} is not a mapping")
        for key, inner in shape.items():
            name = key.removeprefix("?")
            if key != name and value.get(name) is None:
                continue
            if name not in value:
                raise DamagedError(path, f"{where}{name} is missing")
            _require(path, value[name], inner, f"{where}{name} ")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise DamagedError(path, f"{where or 'the content'} is not a list")
        for item in value:
            _require(path, item, shape[0], where)
    elif not isinstance(value, shape) or (shape is _NUMBER and (isinstance(value, bool) or not math.isfinite(value))):
        raise DamagedError(path, f"{where}has an invalid value")
