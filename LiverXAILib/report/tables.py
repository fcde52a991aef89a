# SPDX-License-Identifier: Apache-2.0
"""Measurements as files: JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

import json
import os
from typing import Any

from ..files import replacing
from ..measure.measurements import COLUMNS, Measurements
from ..tables import write_table


def write_tables(
    measurements: Measurements, json_path: str | os.PathLike[str], csv_path: str | os.PathLike[str]
) -> None:
    """Write ``measurements.json`` (everything) and ``measurements.csv`` (one row for each structure).

    Numbers are rounded to six significant digits, far below what a CT resolves. Raises OSError if a file cannot be
    written.
    """
    with replacing(json_path) as temporary:
        data = json.dumps(rounded(measurements.to_dict()), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(data + "\n", encoding="utf-8")
    write_table(csv_path, COLUMNS, (rounded(row) for row in measurements.rows()))


def rounded(value: Any) -> Any:
    """All numbers in a JSON-ready value to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
