# SPDX-License-Identifier: Apache-2.0
"""``segmentation.dcm``: a DICOM SEG object of the series, if anything was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._dicom import check_source, remarks_on_source, require_extra
from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis

_NAME = "segmentation.dcm"


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..dicom_segmentation import write_dicom_segmentation

    if not analysis.segmentation.labels.array.any():
        return {}
    write_dicom_segmentation(analysis.segmentation, folder / _NAME)
    return {"dicom": _NAME}


WRITER = Writer(
    "dicom",
    "DICOM SEG of the series",
    (_NAME,),
    _write,
    requirement=require_extra,
    check=check_source,
    packages=("highdicom",),
    of_series=True,
    remarks=remarks_on_source,
)
