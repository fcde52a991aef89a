# SPDX-License-Identifier: Apache-2.0
"""The model's own result where a reader has changed it: its segmentation and measurements, alongside the reader's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis

_FILES = {
    "model-segmentation": "segmentation-model.seg.nrrd",
    "model-measurements": "measurements-model.json",
    "model-table": "measurements-model.csv",
}


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..segmentation_file import write_segmentation_file
    from ..tables import write_tables

    if analysis.own is None:
        return {}
    segmentation, measurements, table = (folder / name for name in _FILES.values())
    write_segmentation_file(analysis.own.segmentation, segmentation)
    write_tables(analysis.own.measurements, measurements, table)
    return dict(_FILES)


WRITER = Writer(
    "own-result",
    "the model's own result, if a reader changed it",
    tuple(_FILES.values()),
    _write,
    required=True,
    default=True,
)
