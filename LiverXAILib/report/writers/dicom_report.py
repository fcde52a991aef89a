# SPDX-License-Identifier: Apache-2.0
"""``measurements.dcm``: a DICOM report of the measurements (TID 1500), and the SEG of the lesions that it refers to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._dicom import check_source, remarks_on_source, require_extra
from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis

_REPORT, _LESIONS = "measurements.dcm", "segmentation-lesions.dcm"


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..dicom_measurements import write_measurement_report

    if not analysis.segmentation.labels.array.any():
        return {}
    write_measurement_report(analysis, folder / _REPORT, folder / _LESIONS)
    return {"dicom-report": _REPORT, "dicom-lesions": _LESIONS}


WRITER = Writer(
    "dicom-sr",
    "DICOM measurement report, and a SEG of each lesion",
    (_REPORT, _LESIONS),
    _write,
    requirement=require_extra,
    check=check_source,
    packages=("highdicom",),
    of_series=True,
    remarks=remarks_on_source,
)
