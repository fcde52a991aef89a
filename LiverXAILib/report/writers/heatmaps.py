# SPDX-License-Identifier: Apache-2.0
"""``heatmap-<target>.nrrd``: the explanations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ...volumes.io import write_volume

    files = {}
    for explanation in analysis.explanations:
        role = f"heatmap-{explanation.target.slug}"
        files[role] = f"{role}.nrrd"
        write_volume(explanation.heatmap, folder / files[role])
    return files


WRITER = Writer("heatmaps", "heat maps", ("heatmap-*.nrrd",), _write, default=True)
