# SPDX-License-Identifier: Apache-2.0
"""Single lesions: the connected components of a lesion label, with numbers that everybody uses."""

from __future__ import annotations

import numpy as np

from .segmentation import Segmentation


def lesion_components(segmentation: Segmentation, label: str = "tumor") -> np.ndarray:
    """Number the lesions: int32 (k, j, i) on the input's grid, 0 background, 1 the largest lesion, 2 the next …

    Voxels that touch by a face, edge or corner (26-neighbors) belong to one lesion. Lesions of equal size are
    numbered in scan order, so that the numbers are the same in table, heat maps and report.
    """
    import SimpleITK as sitk  # Slicer's module needs this package's names at start, SimpleITK only later

    mask = segmentation.mask(label).astype(np.uint8)
    components = sitk.ConnectedComponent(sitk.GetImageFromArray(mask), True)
    return sitk.GetArrayFromImage(sitk.RelabelComponent(components, sortByObjectSize=True)).astype(np.int32)
