# SPDX-License-Identifier: Apache-2.0
"""Results as files a person opens: HTML report, tables, segmentation, pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .dicom_segmentation import dicom_headers, require_dicom_extra, write_dicom_segmentation
    from .html import require_report_extra, write_report
    from .segmentation_file import write_segmentation_file
    from .tables import write_tables

__all__ = [
    "dicom_headers",
    "require_dicom_extra",
    "require_report_extra",
    "write_dicom_segmentation",
    "write_report",
    "write_segmentation_file",
    "write_tables",
]

__getattr__ = lazy_names(
    __name__,
    {
        "dicom_headers": "dicom_segmentation",
        "require_dicom_extra": "dicom_segmentation",
        "require_report_extra": "html",
        "write_dicom_segmentation": "dicom_segmentation",
        "write_report": "html",
        "write_segmentation_file": "segmentation_file",
        "write_tables": "tables",
    },
)
