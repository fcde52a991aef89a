# SPDX-License-Identifier: Apache-2.0
"""Models: what is known about them, where they are, and how they are loaded."""

from .model import Model
from .registry import MODELS_VARIABLE, download_folder, registered, registry
from .spec import LIVER, TUMOR, Intensity, LabelSpec, LayerSpec, ModelSpec, Region, StageSpec
from .store import download, load_model, save_model, verify

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
    "load_model",
    "registered",
    "registry",
    "save_model",
    "verify",
]
