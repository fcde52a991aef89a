# SPDX-License-Identifier: Apache-2.0
"""What of a lesion enhances in the arterial phase: the part that mRECIST measures."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..inference.lesions import lesion_mask
from ..measure.diameters import axial_diameters
from ..volumes.box import bounding_box
from .studies import Study

#: A Gaussian against noise, in mm; and the voxels in mm from the border that belong to the blurred edge.
_SMOOTHING_MM = 1.0


def viable_mm(study: Study, number: int) -> float:
    """The longest axial diameter of what enhances in a lesion; 0 if nothing does.

    With one phase alone, tissue counts as viable where it is at least as bright as the liver's mean in the arterial
    phase; necrosis and what was treated are darker.

    :param study: shows the arterial phase; its CT and the liver's HU are known.
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
