# SPDX-License-Identifier: Apache-2.0
"""``segmentation.seg.nrrd``: the labels, in the format that Slicer opens as segments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis

_NAME = "segmentation.seg.nrrd"


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..segmentation_file import write_segmentation_file

    write_segmentation_file(analysis.segmentation, folder / _NAME)
    return {"segmentation": _NAME}


WRITER = Writer("seg", "labels as a segmentation for 3D Slicer", (_NAME,), _write, required=True, default=True)
