# SPDX-License-Identifier: Apache-2.0
"""From a CT to labels on its own grid."""

from .device import select_device
from .engine import segment
from .lesions import lesion_components
from .postprocess import Postprocessing
from .segmentation import Segmentation

__all__ = ["Postprocessing", "Segmentation", "lesion_components", "segment", "select_device"]
