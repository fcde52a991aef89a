# SPDX-License-Identifier: Apache-2.0
"""The part of a lesion that enhances in the arterial phase, as measured by mRECIST."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..inference.lesions import lesion_mask
from ..measure.diameters import axial_diameters
from ..volumes.box import bounding_box
from .studies import Study

#: Standard deviation of the Gaussian against noise, in mm.
_SMOOTHING_MM = 1.0


def viable_mm(study: Study, number: int) -> float:
    """The longest axial diameter of the enhancing part of a lesion, in mm; 0 if nothing enhances.

    Because only one phase is available, tissue counts as viable if its HU in the arterial phase are at least the
    liver's mean; necrotic and treated tissue have lower HU.

    :param study: a study in the arterial phase whose CT and liver HU are known.
    """
    assert study.volume is not None
    assert study.liver_hu is not None
    mask = lesion_mask(study.segmentation, number)
    box = bounding_box(mask)
    assert box is not None
    near = box.grown((2, 2, 2), mask.shape)
    hu = study.volume.array[near].astype(np.float32)
    smooth = ndimage.gaussian_filter(hu, [_SMOOTHING_MM / size for size in study.volume.spacing[::-1]])
    viable = mask[near] & (smooth >= study.liver_hu)
    return axial_diameters(viable, study.volume.grid.cropped(near)).long_mm if viable.any() else 0.0
