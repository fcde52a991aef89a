# SPDX-License-Identifier: Apache-2.0
"""``heatmap-<target>.dcm``: heat maps as DICOM Parametric Maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._dicom import check_source, remarks_on_source, require_extra
from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..dicom_heatmaps import write_dicom_heatmap

    files = {}
    for number, explanation in enumerate(analysis.explanations, start=1):
        role = f"dicom-heatmap-{explanation.target.slug}"
        files[role] = f"heatmap-{explanation.target.slug}.dcm"
        write_dicom_heatmap(explanation, analysis.volume, folder / files[role], number)
    return files


WRITER = Writer(
    "dicom-pm",
    "DICOM Parametric Maps of the heat maps",
    ("heatmap-*.dcm",),
    _write,
    requirement=require_extra,
    check=check_source,
    packages=("highdicom",),
    of_series=True,
    remarks=remarks_on_source,
)
