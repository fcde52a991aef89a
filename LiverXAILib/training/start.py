# SPDX-License-Identifier: Apache-2.0
"""What a run trains: a stage with a fresh network, or a stage of a model that exists; and what becomes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..errors import UsageError
from ..models.spec import LIVER, TUMOR, LayerSpec, ModelSpec, StageSpec
from ..models.store import load_states, save_model
from ..networks import NETWORKS, UNet, build_network, default_stage
from .config import Config
from .config import Network as NetworkConfig

#: Axes of networks that are trained here: superior, posterior, left.
AXES = "SPL"
_NAME = "liver"
LIMITS = (
    "For research use only.",
    "Made by 'liverxai train': nobody but its maker knows on what data, and how far, it can be trusted.",
)


@dataclass
class Start:
    """A network before training, and its place in a model.

    :param labels: what it is taught.
    :param base: the model that it is a stage of, and the weights of all its stages; None for a fresh network.
    """

    network: nn.Module
    stage: StageSpec
    labels: tuple[str, ...]
    base: tuple[ModelSpec, dict[str, list[dict[str, torch.Tensor]]]] | None = None

    @property
    def window(self) -> tuple[int, ...] | None:
        """What the network sees of a volume at once in training: (k, j, i), or (j, i) for slices; None: all."""
        window = self.stage.window
        return window if window is None or self.stage.dimensions == 3 else window[1:]

    def export(
        self, weights: Mapping[str, torch.Tensor], folder: Path, config: Config, **notes: Mapping[str, Any]
    ) -> ModelSpec:
        """Write the model with `weights` in its place; the other stages of the model it came from stay as they are.

        :param notes: `training` and `quality` of the card.
        """
        about = {
            "name": config.name,
            "version": __version__,
            "title": config.title or f"{config.name}, trained with LiverXAI",
            **notes,
        }
        if self.base is None:
            spec = ModelSpec(
                description=f"{' and '.join(self.labels)} in CT",
                labels=tuple(label for label in (LIVER, TUMOR) if label.name in self.labels),
                stages=(self.stage,),
                license="not stated; ask whoever trained it",
                source="liverxai train",
                limits=LIMITS,
                **about,  # type: ignore[arg-type]
            )
            states = {self.stage.name: [dict(weights)]}
        else:
            base, states = self.base
            spec = dataclasses.replace(base, limits=(*base.limits, LIMITS[1]), **about)  # type: ignore[arg-type]
            states = {**states, self.stage.name: [dict(weights)]}
        return save_model(spec, states, folder)


def fresh(config: NetworkConfig, labels: Sequence[str], seed: int) -> Start:
    """A stage with a new U-Net whose random weights depend on `seed` alone."""
    arguments = {
        "dimensions": config.dimensions,
        "in_channels": 1,
        "out_channels": len(labels),
        "features": list(config.features),
        "norm": config.norm,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(**arguments)  # type: ignore[arg-type]
    stages = network.explainable_stages()
    spacing = [mm or 1.0 for mm in config.spacing or (1.0, 1.0, 1.0)]
    divisor = network.divisor
    window = config.patch
    if config.dimensions == 2:
        stages = [(name, (1, *stride)) for name, stride in stages]
        divisor, window = (1, *divisor), None if window is None else (1, *window)
    stage = StageSpec(
        name=_NAME,
        network="UNet",
        arguments=arguments,
        weights=(f"{_NAME}.safetensors",),
        sha256=("",),
        axes=AXES,
        spacing=config.spacing,
        size=config.size,
        intensity=config.intensity,
        window=window,  # type: ignore[arg-type]
        divisor=divisor,  # type: ignore[arg-type]
        activation="sigmoid",
        channels=tuple(labels),
        labels={label: (label,) for label in labels},
        layers=tuple(LayerSpec(name, stride) for name, stride in stages),
        default_layer=default_stage(stages, spacing),
        dimensions=config.dimensions,
    )
    return Start(network, stage, tuple(labels))


def from_model(name: str, stage_name: str | None, labels: Sequence[str]) -> Start:
    """A stage of an own model, with its weights.

    :param stage_name: which; None if it has only one.
    :param labels: what the data can teach.
    :raises LiverXAILib.errors.UsageError: the stage does not exist, is not named, or cannot be trained.
    """
    spec, states = load_states(name)
    names = [stage.name for stage in spec.stages]
    if stage_name is None and len(names) > 1:
        raise UsageError(f"Model {name} has the stages {', '.join(names)}: say which one to train (stage, --stage).")
    stage = next((stage for stage in spec.stages if stage.name == (stage_name or names[0])), None)
    if stage is None:
        raise UsageError(f"Model {name} has no stage {stage_name!r}; it has {', '.join(names)}.")
    taught = tuple(label for label in ("liver", "tumor") if label in stage.labels and label in labels)
    problem = None
    if stage.network not in NETWORKS or stage.nnunet is not None:
        problem = "is not a network of LiverXAI's own"
    elif len(stage.weights) > 1:
        problem = f"is an ensemble of {len(stage.weights)} networks"
    elif stage.intensity.statistics is not None:
        problem = "scales each image by its own statistics"
    elif not taught:
        problem = f"decides {', '.join(stage.labels)}, and the data has {', '.join(labels)}"
    if problem:
        raise UsageError(f"Stage {stage.name!r} of model {name} cannot be trained further: it {problem}.")
    network = build_network(stage.network, stage.arguments)
    network.load_state_dict(states[stage.name][0])
    return Start(network, stage, taught, (spec, states))
