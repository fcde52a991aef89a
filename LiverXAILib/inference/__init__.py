# SPDX-License-Identifier: Apache-2.0
"""Inference: from a CT to labels on its own grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .device import select_device
    from .given import read_segmentation
    from .lesions import lesion_components
    from .postprocess import Postprocessing
    from .segmentation import Segmentation
    from .segmenter import segment

__all__ = ["Postprocessing", "Segmentation", "lesion_components", "read_segmentation", "segment", "select_device"]

__getattr__ = lazy_names(
    __name__,
    {
        "Postprocessing": "postprocess",
        "Segmentation": "segmentation",
        "lesion_components": "lesions",
        "read_segmentation": "given",
        "segment": "segmenter",
        "select_device": "device",
    },
)
