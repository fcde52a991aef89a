# SPDX-License-Identifier: Apache-2.0
"""Small random networks with named layers, and cases made with them, for the tests of explanations."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toys import model_of

from LiverXAILib.inference import Segmentation, segment
from LiverXAILib.models import Intensity, LayerSpec, Model
from LiverXAILib.networks import UNet
from LiverXAILib.networks.folding import fold_batch_norms
from LiverXAILib.volumes.volume import Grid, Volume


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


def tiny_model(dimensions: int = 3, members: int = 1, folded: bool = True, **changes: Any) -> Model:
    """A random one-stage model; `members` > 1 is an ensemble.

    :param folded: prepare the networks like those in LiverXAI's own format; torch's kernel is many times slower here.
    """
    stage = tiny_stage(dimensions, **changes)
    stage["weights"] = tuple(f"none-{number}" for number in range(members))
    stage["sha256"] = ("0",) * members
    channels = len(stage["channels"])
    networks: list[nn.Module] = [TinyUNet(dimensions, channels, seed) for seed in range(members)]
    if folded:
        networks = [fold_batch_norms(network) for network in networks]
    return model_of([stage], {"all": networks})


def with_labels(volume: Volume, model: Model, labels: Volume) -> Segmentation:
    """A segmentation with the grids of the model's run, but with `labels`: random networks find nothing."""
    own = segment(volume, model, device="cpu")
    return Segmentation(
        volume.with_array(np.asarray(labels.array, dtype=np.uint8)), own.specs, {}, own.stage_grids, own.provenance
    )


#: Weights of the U-Net that finds balls. They are stored, because retraining gives other weights on other processors.
_BALL_WEIGHTS = Path(__file__).parent / "weights" / "ball-unet.safetensors"
#: Training steps: enough for a lesion Dice above 0.9.
_STEPS = 150


def _ball_network() -> nn.Module:
    return UNet(3, 1, 3, features=(6, 12, 16), norm="batch")


def unfolded_network() -> nn.Module:
    """The network of :func:`trained_model` with its batch norms, as it was trained."""
    network = _ball_network()
    network.load_state_dict(load_file(_BALL_WEIGHTS))
    return network.eval()


@cache
def trained_model() -> Model:
    """A U-Net that finds bright balls ("tumor") in less bright ones ("liver"); see :func:`train_balls`.

    Its batch norms are folded, as in a bundled model.
    """
    network = fold_batch_norms(unfolded_network())
    stage = tiny_stage(
        network="UNet",
        window=(24, 28, 28),
        divisor=(4, 4, 4),
        layers=tuple(LayerSpec(name, stride) for name, stride in network.explainable_layers()),
        default_layer="decoder.0",
    )
    return model_of([stage], {"all": [network]})


def train_balls(path: Path = _BALL_WEIGHTS) -> None:
    """Retrain the network of :func:`trained_model`, in seconds: ``python explain_toys.py`` in this folder.

    Balls of the same brightness outside any organ, and noise, make a threshold insufficient.
    """
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    network = _ball_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(_STEPS):
        cases = [_ball_case(random, 20) for _ in range(2)]
        images = torch.from_numpy(np.stack([image for image, _ in cases]))[:, None] / 100 - 0.5
        labels = torch.from_numpy(np.stack([labels for _, labels in cases]))
        weight = torch.tensor([1.0, 1.0, 4.0])
        loss = nn.functional.cross_entropy(network(images), labels, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(network.state_dict(), path)


def _ball_case(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One training case: HU float32 and labels int64, (size, size, size)."""
    index = np.stack(np.indices((size,) * 3), axis=-1)

    def ball(center: np.ndarray, radius: float) -> np.ndarray:
        return np.linalg.norm(index - center, axis=-1) < radius

    organ = ball(random.uniform(0.1, 0.9, 3) * size, random.uniform(0.5, 0.8) * size)
    blobs = [ball(random.uniform(0, 1, 3) * size, random.uniform(2, 4.5)) for _ in range(6)]
    # A bright ball is a lesion only inside the organ; balls across its border are left out.
    lesions = np.logical_or.reduce([blob for blob in blobs if organ[blob].mean() > 0.95] or [organ & False])
    decoys = np.logical_or.reduce([blob for blob in blobs if organ[blob].mean() < 0.05] or [organ & False])
    image = np.where(lesions | decoys, 200.0, np.where(organ, 100.0, 0.0)) + random.normal(0, 15, organ.shape)
    return image.astype(np.float32), np.where(lesions, 2, organ).astype(np.int64)


#: Centers of the lesions of :func:`two_lesion_case`, larger first, in LPS mm.
LESIONS_LPS = ((20, 28, 24), (66, 30, 22))


def two_lesion_case(model: Model) -> tuple[Volume, Segmentation]:
    """An organ with two lesions 46 mm apart and a decoy outside of it, segmented by `model`."""
    volume, _ = two_lesion_truth()
    return volume, segment(volume, model, device="cpu")


def two_lesion_truth() -> tuple[Volume, Volume]:
    """The image of :func:`two_lesion_case` and its labels, 1 and 2."""
    grid = Grid((24, 28, 44), np.diag([2.0, 2.0, 2.0, 1.0]))
    k, j, i = np.indices(grid.shape)
    lps = grid.to_lps(np.stack([i, j, k], axis=-1))

    def ball(center: tuple[float, float, float], radius: float) -> np.ndarray:
        return np.linalg.norm(lps - center, axis=-1) < radius

    organ = ball((44, 28, 24), 42)
    lesions = ball(LESIONS_LPS[0], 8) | ball(LESIONS_LPS[1], 6)
    bright = lesions | ball((84, 50, 44), 5)
    image = np.where(bright, 200.0, np.where(organ, 100.0, 0.0)) + np.random.default_rng(1).normal(0, 15, grid.shape)
    labels = np.where(lesions, 2, organ).astype(np.uint8)
    return Volume(image.astype(np.float32), grid.ijk_to_lps), Volume(labels, grid.ijk_to_lps)


if __name__ == "__main__":
    train_balls()
