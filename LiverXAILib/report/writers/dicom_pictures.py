# SPDX-License-Identifier: Apache-2.0
"""``key-image-<n>.dcm``: pictures of the liver and each lesion as DICOM Secondary Capture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._dicom import check_source, remarks_on_source, require_extra
from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..dicom_pictures import write_key_images

    return {f"dicom-{path.stem}": path.name for path in write_key_images(analysis, folder)}


def _require() -> None:
    from ..html import require_report_packages

    require_extra()
    require_report_packages()


WRITER = Writer(
    "dicom-sc",
    "DICOM key images",
    ("key-image-*.dcm",),
    _write,
    requirement=_require,
    check=check_source,
    packages=("highdicom", "matplotlib"),
    of_series=True,
    remarks=remarks_on_source,
)
