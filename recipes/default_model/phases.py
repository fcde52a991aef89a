# SPDX-License-Identifier: Apache-2.0
"""The phases of training: what each network of the default model is trained on, and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from LiverXAILib.models.spec import Intensity, LayerSpec, Region, StageSpec
from LiverXAILib.networks import UNet, default_layer
from LiverXAILib.training.random_fields import Size

from .sources import AXES
from .training import Settings

#: Absolute HU: for a network that has yet to find the liver, or whose weights come from before centering existed.
_ABSOLUTE = Intensity(-200.0, 300.0, 50.0, 120.0)


@dataclass(frozen=True)
class TrainingPhase:
    """The training of one network of the model.

    :param spacing_mm: voxel size of its grid, the same along all axes.
    :param arguments: arguments of :class:`~LiverXAILib.networks.UNet`.
    :param sizes: sizes of training samples in voxels (superior, posterior, left), divisible by the network's divisor,
        and how often each is drawn.
    :param negative_fraction: see :class:`Generator`, also for `focus`.
    :param settings: settings that differ from the defaults of :class:`Settings`.
    :param intensity: HU to network input.
    :param starts_from: the phase whose weights are the initial ones: the same network, or one with a level less.
    :param stage: the model's stage that gets the weights; None if only another phase starts from them.
    """

    spacing_mm: float
    arguments: Mapping[str, Any]
    sizes: Sequence[tuple[Size, float]]
    validation_size: Size
    negative_fraction: float
    focus: float
    settings: Settings
    intensity: Intensity = _ABSOLUTE
    starts_from: str | None = None
    stage: str | None = None


_ARGUMENTS: dict[str, Any] = {"dimensions": 3, "in_channels": 1, "out_channels": 2, "norm": "batch", "stem_stride": 2}
#: HU relative to the liver's median; for a liver of 90 HU the network input is as with :data:`_ABSOLUTE`.
_CENTERED = Intensity(-290.0, 210.0, -40.0, 120.0, centered=True)
_BOXES = TrainingPhase(
    spacing_mm=2.0,
    arguments=_ARGUMENTS | {"features": [24, 48, 96, 128, 128]},
    sizes=(
        ((96, 96, 128), 0.40),
        ((96, 96, 96), 0.35),
        ((96, 128, 128), 0.10),
        ((128, 96, 128), 0.10),
        ((128, 128, 160), 0.05),
    ),
    validation_size=(96, 128, 128),
    negative_fraction=0.08,
    focus=0.93,
    settings=Settings(
        iterations=2000, learning_rate=1.5e-3, curriculum=0.1, freeze_norm=0.1, rebalance_after=0.7, ema=0.997
    ),
    intensity=_CENTERED,
    starts_from="liver-patches",
)
#: The locator finds the liver in the whole scan; the liver network segments liver and tumors in the box around it. The
#: latter first learns textures and borders from small patches, many in little time. Then, with one more level, it
#: learns the anatomical context from boxes as large as those in inference; without this it segments adjacent bowel as
#: liver. A long phase with a lower learning rate follows, because tumors are learned late.
PHASES = {
    "locator": TrainingPhase(
        spacing_mm=4.0,
        arguments=_ARGUMENTS | {"features": [16, 32, 64, 96]},
        sizes=(
            ((64, 64, 80), 0.35),
            ((48, 64, 80), 0.25),
            ((64, 80, 96), 0.2),
            ((96, 64, 80), 0.1),
            ((80, 80, 112), 0.1),
        ),
        validation_size=(64, 80, 96),
        negative_fraction=0.18,
        focus=0.0,
        settings=Settings(iterations=3000, batch=2, learning_rate=1e-3),
        stage="locator",
    ),
    "liver-patches": TrainingPhase(
        spacing_mm=2.0,
        arguments=_ARGUMENTS | {"features": [24, 48, 96, 128]},
        sizes=(
            ((64, 64, 64), 0.25),
            ((64, 80, 80), 0.25),
            ((48, 80, 96), 0.2),
            ((80, 80, 80), 0.15),
            ((64, 96, 112), 0.08),
            ((48, 64, 96), 0.07),
        ),
        validation_size=(80, 96, 112),
        negative_fraction=0.06,
        focus=0.93,
        settings=Settings(iterations=3100, batch=2),
        intensity=_CENTERED,
    ),
    "liver-boxes": _BOXES,
    "liver": replace(
        _BOXES,
        settings=Settings(
            iterations=20_000,
            batch=2,
            learning_rate=5e-4,
            curriculum=0.05,
            freeze_norm=0.0,
            rebalance_after=0.25,
            ema=0.998,
            validate_every=500,
        ),
        starts_from="liver-boxes",
        stage="liver",
    ),
    "tuning": replace(
        _BOXES,
        sizes=(((64, 64, 64), 0.5), ((64, 64, 96), 0.25), ((64, 96, 96), 0.15), ((96, 96, 96), 0.1)),
        settings=Settings(
            iterations=2000,
            batch=2,
            learning_rate=5e-4,
            curriculum=0.0,
            freeze_norm=0.0,
            rebalance_after=0.0,
            ema=0.998,
            validate_every=250,
        ),
        starts_from="liver",
        stage="liver",
    ),
}
#: The phases that become stages of the model, in order.
STAGES = ("locator", "liver")
#: The phases that lead to them, in order. "tuning" continues from an existing liver network on smaller boxes, for
#: machines without a GPU. :mod:`recipes.outlines` trains the network that outlines small lesions again.
CHAIN = ("locator", "liver-patches", "liver-boxes", "liver")
#: Margin of the liver network's box around the located liver, in mm: smaller errors of the locator do no harm.
MARGIN_MM = 24.0


def stage_of(name: str, phase: TrainingPhase, points: Mapping[str, float] | None) -> StageSpec:
    network = UNet(**phase.arguments)
    layers = network.explainable_layers()
    spacing = (phase.spacing_mm,) * 3
    locator = name == "locator"
    return StageSpec(
        name=name,
        network="UNet",
        arguments=phase.arguments,
        weights=(f"{name}.safetensors",),
        sha256=("",),
        axes=AXES,
        spacing=spacing,
        intensity=phase.intensity,
        divisor=(network.divisor[0], network.divisor[1], network.divisor[2]),
        activation="sigmoid",
        channels=("liver", "tumor"),
        labels={"liver": ("liver",)} if locator else {"liver": ("liver",), "tumor": ("tumor",)},
        peak_threshold={} if locator or points is None else {"tumor": points["certain"] - points["tumor"]},
        region=None if locator else Region("liver", MARGIN_MM),
        layers=tuple(LayerSpec(layer, stride) for layer, stride in layers),
        default_layer=default_layer(layers, spacing),
    )
