# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets and configurations for tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toys import ball_phantom

from LiverXAILib.training.config import Config
from LiverXAILib.training.config_file import parse_config
from LiverXAILib.training.setup import set_up
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.volume import Grid, Volume


def draw_nothing(*_: Any) -> None:
    """Replacement for drawing a learning curve."""


def ball_case(number: int) -> tuple[Volume, Volume]:
    """An image 96 mm wide of a noisy ball with a lesion, of a different size for each number; and its labels."""
    matrix = np.diag([6.0, 6.0, 8.0, 1.0])
    matrix[:3, 3] = (10.0 * number, -30.0, 200.0)
    image, labels = ball_phantom(Grid((12, 16, 16), matrix), 32.0 + 2 * number, 10.0 + number)
    noise = np.random.default_rng(number).normal(0, 8, image.shape)
    air = np.where(np.arange(16) < 1, -1000, 0)  # as in any CT, part of the image is air
    return image.with_array((image.array + noise + air).clip(-1024).astype(np.int16)), labels


def write_msd(folder: Path, count: int = 4, *, tumors: bool = True) -> Path:
    """A data set in the layout of the Medical Segmentation Decathlon, including the hidden files in its archives."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        image, labels = ball_case(number)
        if not tumors:
            labels = labels.with_array(np.minimum(labels.array, 1))
        write_volume(image, folder / "imagesTr" / f"liver_{number}.nii.gz")
        write_volume(labels, folder / "labelsTr" / f"liver_{number}.nii.gz")
    (folder / "imagesTr" / "._liver_0.nii.gz").write_bytes(b"not an image")
    names = {"0": "background", "1": "liver", **({"2": "cancer"} if tumors else {})}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}), encoding="utf-8")
    return folder


def tiny(data: Path, output: Path, **changes: Any) -> Config:
    """A run of two epochs of three steps each; `changes` by dotted names with __ for the dot."""
    content: dict[str, Any] = {
        "name": "tiny",
        "output": str(output),
        "data": {"layout": "msd", "path": str(data), "validation": 0.25},
        "network": {"features": [4, 6], "norm": "instance", "spacing": [8, 8, 8]},
        "training": {"epochs": 2, "patch": [12, 12, 12], "samples_per_case": 2, "batch_size": 2, "checkpoint_every": 1},
        "hardware": {"accelerator": "cpu"},
        "finish": {"evaluate": False},
    }
    for name, value in changes.items():
        *groups, last = name.split("__")
        inner = content
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    if "init" in content:
        del content["network"]
    return parse_config(content)


def threshold_model(data: Path, folder: Path) -> Path:
    """A model whose weights are set by hand: liver above 50 HU and tumor above 150 HU, as in the balls' images.

    It replaces a trained model wherever a test needs a good one, on any processor and with any number of threads.
    """
    config = tiny(data, folder, network__norm="batch")
    setup = set_up(config, ["liver", "tumor"])
    network: Any = setup.network
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0)  # identity norms
        decoder, skipped = network.decoder[-1].convolutions, network.encoder[0][0].out_channels
        for layer, channel in ((network.encoder[0][0], 0), (network.encoder[0][3], 0), (decoder[0], skipped)):
            layer.weight[0, channel, 1, 1, 1] = 1.0
        decoder[3].weight[0, 0, 1, 1, 1] = 1.0
        network.encoder[0][1].bias.fill_(3.0)  # above 0, where leaky ReLUs are the identity
        network.head.weight[:, 0] = 20.0
        intensity = setup.stage.intensity
        thresholds = (torch.tensor([50.0, 150.0]) - intensity.shift) / intensity.scale
        network.head.bias.copy_(-20.0 * (thresholds + 3.0))
    setup.export(network.state_dict(), folder, config, {}, {"note": "set by hand"})
    return folder
