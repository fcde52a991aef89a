# SPDX-License-Identifier: Apache-2.0
"""Models: their cards, where their files are, and how they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from .registry import MODELS_VARIABLE, download_folder, registered, registry
from .spec import LIVER, TUMOR, Intensity, LabelSpec, LayerSpec, ModelSpec, Region, StageSpec

if TYPE_CHECKING:
    from .formats.liverxai import save_model
    from .loading import load_model
    from .model import Model
    from .store import download, import_model, verify_model

__all__ = [
    "LIVER",
    "MODELS_VARIABLE",
    "TUMOR",
    "Intensity",
    "LabelSpec",
    "LayerSpec",
    "Model",
    "ModelSpec",
    "Region",
    "StageSpec",
    "download",
    "download_folder",
    "import_model",
    "load_model",
    "registered",
    "registry",
    "save_model",
    "verify_model",
]

# Names that need torch are imported on first use: Slicer shows the cards of models before torch is installed.
__getattr__ = lazy_names(
    __name__,
    {
        "Model": "model",
        "download": "store",
        "import_model": "store",
        "load_model": "loading",
        "save_model": "formats.liverxai",
        "verify_model": "store",
    },
)
