# SPDX-License-Identifier: Apache-2.0
"""``measurements.json`` and ``measurements.csv``: volumes, diameters and HU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis

_FILES = {"measurements": "measurements.json", "table": "measurements.csv"}


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..tables import write_tables

    write_tables(analysis.measurements, *(folder / name for name in _FILES.values()))
    return dict(_FILES)


WRITER = Writer("tables", "measurements", tuple(_FILES.values()), _write, required=True, default=True)
