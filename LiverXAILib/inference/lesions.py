# SPDX-License-Identifier: Apache-2.0
"""Single lesions: the connected components of a lesion label, with numbers that everybody uses."""

from __future__ import annotations

import numpy as np

from ..volumes.box import components
from .segmentation import Segmentation


def lesion_components(segmentation: Segmentation, label: str = "tumor") -> np.ndarray:
    """Number the lesions: int32 (k, j, i) on the input's grid, 0 background, 1 the largest lesion, 2 the next …

    Voxels that touch by a face, edge or corner (26-neighbors) belong to one lesion. Lesions of equal size are
    numbered in scan order, so that the numbers are the same in table, heat maps and report.
    """
    return components(segmentation.mask(label), corners=True, largest_first=True)
