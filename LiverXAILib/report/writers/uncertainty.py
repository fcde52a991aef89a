# SPDX-License-Identifier: Apache-2.0
"""``uncertainty.nrrd``: where the model is uncertain: the entropy of its probabilities in bits, 0 to 1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ...measure import entropy_map
    from ...volumes.box import Box, bounding_box
    from ...volumes.io import write_volume
    from ...volumes.volume import Volume

    whole = entropy_map(analysis.segmentation)
    if whole is None:  # given contours, or a model without probabilities
        return {}
    box = bounding_box(whole.array > 0) or Box.full((1, 1, 1))
    write_volume(Volume(whole.array[box], whole.grid.cropped(box).ijk_to_lps), folder / "uncertainty.nrrd")
    return {"uncertainty": "uncertainty.nrrd"}


WRITER = Writer("uncertainty", "uncertainty (entropy in bits)", ("uncertainty.nrrd",), _write)
