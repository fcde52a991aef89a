# SPDX-License-Identifier: Apache-2.0
"""Small random networks with named stages, and cases made with them, for the tests of explanations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from toys import model_of

from LiverXAILib.inference import Segmentation, segment
from LiverXAILib.models import Intensity, LayerSpec, Model
from LiverXAILib.volumes.volume import Volume


class TinyUNet(nn.Module):
    """Two levels, instance norm, bottleneck at stride 2 and decoder at stride 1; random weights from `seed`."""

    def __init__(self, dimensions: int = 3, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        conv = nn.Conv3d if dimensions == 3 else nn.Conv2d
        norm = nn.InstanceNorm3d if dimensions == 3 else nn.InstanceNorm2d
        up = nn.ConvTranspose3d if dimensions == 3 else nn.ConvTranspose2d

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                conv(inputs, outputs, 3, stride, 1), norm(outputs, affine=True), nn.LeakyReLU(0.01, inplace=True)
            )

        self.encoder = block(1, 4, 1)
        self.bottleneck = block(4, 6, 2)
        self.up = up(6, 4, 2, 2)
        self.decoder = block(8, 5, 1)
        self.head = conv(5, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.encoder(x)
        return self.head(self.decoder(torch.cat([skip, self.up(self.bottleneck(skip))], dim=1)))


def tiny_stage(dimensions: int = 3, **changes: Any) -> dict[str, Any]:
    """Fields of a stage around :class:`TinyUNet`."""
    return {
        "name": "all",
        "network": "TinyUNet",
        "arguments": {},
        "weights": ("none",),
        "sha256": ("0",),
        "axes": "SPL",
        "spacing": (2.0, 2.0, 2.0),
        "intensity": Intensity(-200, 300, 50, 100),
        "window": (16, 16, 16),
        "divisor": (2, 2, 2),
        "channels": ("background", "liver", "tumor"),
        "labels": {"liver": ("liver", "tumor"), "tumor": ("tumor",)},
        "layers": (
            LayerSpec("encoder", (1,) * dimensions),
            LayerSpec("bottleneck", (2,) * dimensions),
            LayerSpec("decoder", (1,) * dimensions),
        ),
        "default_layer": "bottleneck",
        "dimensions": dimensions,
        **changes,
    }


def tiny_model(dimensions: int = 3, members: int = 1, **changes: Any) -> Model:
    """A random one-stage model; `members` > 1 is an ensemble."""
    stage = tiny_stage(dimensions, **changes)
    stage["weights"], stage["sha256"] = ("none",) * members, ("0",) * members
    networks: list[nn.Module] = [TinyUNet(dimensions, len(stage["channels"]), seed) for seed in range(members)]
    return model_of([stage], {"all": networks})


def with_labels(volume: Volume, model: Model, labels: Volume) -> Segmentation:
    """A segmentation with the grids of the model's own run, but with `labels`: random networks find nothing."""
    own = segment(volume, model, device="cpu")
    return Segmentation(
        volume.with_array(np.asarray(labels.array, dtype=np.uint8)), own.specs, {}, own.stage_grids, own.provenance
    )
