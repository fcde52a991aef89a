# SPDX-License-Identifier: Apache-2.0
"""``probability-<label>.nrrd``: the model's probability of each voxel, 0 to 1, in the box where the label may be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    import numpy as np

    from ...volumes.io import write_volume

    files = {}
    for label, probability in analysis.segmentation.probabilities.items():
        role = f"probability-{re.sub('[^A-Za-z0-9._-]', '_', label)}"
        files[role] = f"{role}.nrrd"
        # NRRD does not support half precision.
        write_volume(probability.with_array(probability.array.astype(np.float32)), folder / files[role])
    return files


WRITER = Writer("probabilities", "the model's probability of each label", ("probability-*.nrrd",), _write)
