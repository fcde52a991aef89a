# SPDX-License-Identifier: Apache-2.0
"""``segmentation.dcm``: a DICOM SEG object of the series, if anything was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis
    from ...volumes.volume import Volume

_NAME = "segmentation.dcm"


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..dicom_segmentation import write_dicom_segmentation

    if not analysis.segmentation.labels.array.any():
        return {}
    write_dicom_segmentation(analysis.segmentation, folder / _NAME)
    return {"dicom": _NAME}


def _require() -> None:
    from ..dicom_segmentation import require_dicom_extra

    require_dicom_extra()


def _check(volume: Volume) -> None:
    from ..dicom_segmentation import dicom_headers

    dicom_headers(volume)


WRITER = Writer("dicom", "DICOM SEG of the series", (_NAME,), _write, requirement=_require, check=_check)
