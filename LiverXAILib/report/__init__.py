# SPDX-License-Identifier: Apache-2.0
"""Results as files for people to open: HTML report, tables, segmentation, pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .dicom_objects import require_dicom_extra
    from .dicom_segmentation import write_dicom_segmentation
    from .dicom_source import read_source
    from .html import require_report_packages, write_report
    from .segmentation_file import write_segmentation_file
    from .tables import write_tables

__all__ = [
    "read_source",
    "require_dicom_extra",
    "require_report_packages",
    "write_dicom_segmentation",
    "write_report",
    "write_segmentation_file",
    "write_tables",
]

__getattr__ = lazy_names(
    __name__,
    {
        "read_source": "dicom_source",
        "require_dicom_extra": "dicom_objects",
        "require_report_packages": "html",
        "write_dicom_segmentation": "dicom_segmentation",
        "write_report": "html",
        "write_segmentation_file": "segmentation_file",
        "write_tables": "tables",
    },
)
