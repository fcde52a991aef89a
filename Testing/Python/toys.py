# SPDX-License-Identifier: Apache-2.0
"""Small models with known correct output, for tests of the code around the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from LiverXAILib.models import LIVER, TUMOR, Intensity, LayerSpec, Model, ModelSpec, StageSpec
from LiverXAILib.volumes.volume import Grid, Volume


class Thresholds(nn.Module):
    """Nested sigmoid logits "brighter than 50" and "brighter than 150": segmentation without learning."""

    def __init__(self, dimensions: int = 3) -> None:
        super().__init__()
        self.smooth = (nn.Conv3d if dimensions == 3 else nn.Conv2d)(1, 1, 1, bias=False)
        nn.init.ones_(self.smooth.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.smooth(x)
        return torch.cat([(y - 50) / 10, (y - 150) / 10], dim=1)


def threshold_model(**changes: Any) -> Model:
    """A one-stage model around :class:`Thresholds`; `changes` replace fields of its stage."""
    fields: dict[str, Any] = {
        "name": "all",
        "network": "Thresholds",
        "arguments": {},
        "weights": ("none",),
        "sha256": ("0",),
        "axes": "SPL",
        "spacing": (2.0, 2.0, 2.0),
        "intensity": Intensity(-200, 300),
        "window": (32, 32, 32),
        "divisor": (4, 4, 4),
        "activation": "sigmoid",
        "channels": ("liver", "tumor"),
        "labels": {"liver": ("liver",), "tumor": ("tumor",)},
        "layers": (LayerSpec("smooth", (1, 1, 1)),),
        "default_layer": "smooth",
    }
    return model_of([{**fields, **changes}], {"all": [Thresholds(changes.get("dimensions", 3))]})


def model_of(stages: list[Mapping[str, Any]], networks: Mapping[str, list[nn.Module]]) -> Model:
    """A model from stage fields and networks."""
    spec = ModelSpec(
        name="toy",
        version="0",
        title="A toy",
        description="For tests",
        labels=(LIVER, TUMOR),
        stages=tuple(StageSpec(**stage) for stage in stages),
        license="Apache-2.0",
    )
    return Model(spec, networks)


def ball_phantom(grid: Grid, organ_mm: float = 45.0, lesion_mm: float = 12.0) -> tuple[Volume, Volume]:
    """A ball of 100 HU with an off-center ball of 200 HU in water, and its labels (1, 2), on any grid.

    The lesion lies 20 mm to the patient's left, 10 mm posterior and 15 mm superior of the organ's center.
    """
    k, j, i = np.indices(grid.shape)
    center = grid.to_lps((np.array(grid.shape[::-1]) - 1) / 2)
    lps = grid.to_lps(np.stack([i, j, k], axis=-1)) - center
    organ = np.linalg.norm(lps, axis=-1) < organ_mm
    lesion = np.linalg.norm(lps - (20.0, 10.0, 15.0), axis=-1) < lesion_mm
    image = np.where(lesion, 200, np.where(organ, 100, 0)).astype(np.int16)
    labels = np.where(lesion, 2, organ).astype(np.uint8)
    return Volume(image, grid.ijk_to_lps), Volume(labels, grid.ijk_to_lps)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def without_evidence() -> dict[str, Any]:
    """The evidence of a counterfactual whose lesion is detected in isolation and could not be moved elsewhere."""
    return {
        "probability": 0.94,
        "in_image": 0.94,
        "without": 0.01,
        "elsewhere": None,
        "elsewhere_lps_mm": None,
        "alone": 0.9,
    }
