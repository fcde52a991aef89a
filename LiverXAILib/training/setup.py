# SPDX-License-Identifier: Apache-2.0
"""What a run trains: a stage with a new network or a stage of an existing model; and its export as a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..errors import UsageError
from ..inference.stages import preprocessing_of
from ..inference.standard import StandardPreprocessing
from ..models.formats.liverxai import save_model
from ..models.loading import load_states
from ..models.spec import LIVER, TUMOR, Intensity, LayerSpec, ModelSpec, StageSpec
from ..networks import NETWORKS, UNet, build_network, default_layer
from .config import Config

#: Axes of the networks trained here: superior, posterior, left.
AXES = "SPL"
_NAME = "liver"
#: Smallest sliding windows of volumetric networks with batch norm, in voxels.
_WINDOW = (128, 128, 160)
#: Largest samples when fine-tuning a model, unless training.patch is given.
_PATCH = (64, 96, 96)
#: Initial logit of a new network: a probability of 2%.
_PRIOR_LOGIT = -4.0
LIMITS = (
    "For research use only.",
    "Made with 'liverxai train': only its author knows on what data, and how far, it can be trusted.",
)


@dataclass
class TrainingSetup:
    """A network before training, and its place in a model.

    :param labels: the labels it is trained on.
    :param patch: size of a training sample along the network's axes; None: whole slices or volumes.
    :param base: the model that the stage belongs to, and the weights of all its stages; None for a new network.
    """

    network: nn.Module
    stage: StageSpec
    labels: tuple[str, ...]
    patch: tuple[int, ...] | None
    base: tuple[ModelSpec, dict[str, list[dict[str, torch.Tensor]]]] | None = field(default=None, repr=False)

    def export(
        self,
        weights: Mapping[str, torch.Tensor],
        folder: Path,
        config: Config,
        training: Mapping[str, Any],
        quality: Mapping[str, Any],
    ) -> ModelSpec:
        """Write the model with `weights` in its place; the other stages of the model it came from stay as they are.

        :param training: facts for the card, which also keeps those of the initial model's training.
        :param quality: measures for the card.
        """
        if self.base is not None:
            before = self.base[0]
            initial = {"name": before.name, "version": before.version, "training": before.training}
            training = {**training, "initial_model": initial}
        about = {
            "name": config.name,
            "version": __version__,
            "title": config.title or f"{config.name}, trained with LiverXAI",
            "training": training,
            "quality": quality,
            # Those of the initial model do not apply to this one.
            "reliability": None,
            "outlines": None,
        }
        if self.base is None:
            spec = ModelSpec(
                description=f"{' and '.join(self.labels)} in CT",
                labels=tuple(label for label in (LIVER, TUMOR) if label.name in self.labels),
                stages=(self.stage,),
                license="not stated; ask the author of the model",
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


def set_up(config: Config, labels: Sequence[str]) -> TrainingSetup:
    """Set up the network and stage of a configuration.

    :param labels: the labels in the data.
    :raises LiverXAILib.errors.UsageError: the initial model or ``training.patch`` cannot be used.
    """
    setup = _from_model(config, labels) if config.init else _fresh(config, labels)
    stage, patch = setup.stage, setup.patch
    divisor = stage.divisor[3 - stage.dimensions :]
    if patch is not None and len(patch) != stage.dimensions:
        raise UsageError(f"training.patch must have {stage.dimensions} numbers, one for each axis of the network.")
    if patch is not None and any(n % d for n, d in zip(patch, divisor, strict=True)):
        raise UsageError(
            f"The network needs sizes divisible by {' x '.join(map(str, divisor))}: training.patch cannot be "
            f"{' x '.join(map(str, patch))}."
        )
    return setup


def _fresh(config: Config, labels: Sequence[str]) -> TrainingSetup:
    """A stage with a new U-Net whose random weights depend on the seed alone."""
    wanted, patch = config.network, config.training.patch
    arguments = {
        "dimensions": wanted.dimensions,
        "in_channels": 1,
        "out_channels": len(labels),
        "features": list(wanted.features),
        "norm": wanted.norm,
        "stem_stride": wanted.stem_stride,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = UNet(**arguments)  # type: ignore[arg-type]
    # A new network predicts a low probability everywhere, as is right for most voxels: otherwise it spends the first
    # epoch learning this (the prior of RetinaNet, Lin et al. 2017, https://arxiv.org/abs/1708.02002).
    assert network.head.bias is not None
    nn.init.constant_(network.head.bias, _PRIOR_LOGIT)
    stages = network.explainable_layers()
    spacing = [mm or 1.0 for mm in wanted.spacing or (1.0, 1.0, 1.0)]
    divisor, window = network.divisor, patch
    if wanted.norm == "batch" and patch is not None:
        # With batch norm the output does not depend on the crop, so windows can be large, with less overlap in total.
        # Slices are processed whole.
        window = None if wanted.dimensions == 2 else tuple(map(max, patch, _WINDOW))
    if wanted.dimensions == 2:
        stages = [(name, (1, *stride)) for name, stride in stages]
        divisor, window = (1, *divisor), None if window is None else (1, *window)
    stage = StageSpec(
        name=_NAME,
        network="UNet",
        arguments=arguments,
        weights=(f"{_NAME}.safetensors",),
        sha256=("",),
        axes=AXES,
        spacing=wanted.spacing,
        size=wanted.size,
        intensity=Intensity(**dataclasses.asdict(wanted.intensity)),
        window=window,  # type: ignore[arg-type]
        divisor=divisor,  # type: ignore[arg-type]
        activation="sigmoid",
        channels=tuple(labels),
        labels={label: (label,) for label in labels},
        layers=tuple(LayerSpec(name, stride) for name, stride in stages),
        default_layer=default_layer(stages, spacing),
        dimensions=wanted.dimensions,
    )
    return TrainingSetup(network, stage, tuple(labels), patch)


def _from_model(config: Config, labels: Sequence[str]) -> TrainingSetup:
    """A stage of a LiverXAI model with its weights; by default the stage that segments tumors (or the liver)."""
    name, stage_name = str(config.init), config.stage
    spec, states = load_states(name)
    names = [stage.name for stage in spec.stages]
    wanted = [label.name for label in spec.labels if label.name in labels]
    stage_name = stage_name or (spec.stage_of(wanted[-1]).name if wanted else names[-1])
    stage = next((stage for stage in spec.stages if stage.name == stage_name), None)
    if stage is None:
        raise UsageError(f"Model {name} has no stage {stage_name!r}; it has {', '.join(names)}.")
    taught = tuple(label for label in ("liver", "tumor") if label in stage.labels and label in labels)
    problem = None
    if stage.network not in NETWORKS or not isinstance(preprocessing_of(stage), StandardPreprocessing):
        problem = "is not a network of LiverXAI's own"
    elif len(stage.weights) > 1:
        problem = f"is an ensemble of {len(stage.weights)} networks"
    elif stage.intensity.statistics is not None:
        problem = "scales each image by its own statistics"
    elif not taught:
        problem = f"segments {', '.join(stage.labels)}, but the data has {', '.join(labels)}"
    if problem:
        raise UsageError(f"Stage {stage.name!r} of model {name} cannot be fine-tuned: it {problem}.")
    network = build_network(stage.network, stage.arguments)
    network.load_state_dict(states[stage.name][0])
    patch = config.training.patch
    if patch is None and not (stage.size is not None and None not in stage.size[3 - stage.dimensions :]):
        sizes = map(min, stage.window or _PATCH, _PATCH) if stage.dimensions == 3 else (256, 256)
        divisor = stage.divisor[3 - stage.dimensions :]
        patch = tuple(max(n // d, 1) * d for n, d in zip(sizes, divisor, strict=True))
    return TrainingSetup(network, stage, taught, patch, (spec, states))
