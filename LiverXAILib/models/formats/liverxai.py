# SPDX-License-Identifier: Apache-2.0
"""LiverXAI's own model folders: a card (``card.json``) and one weights file for each network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ...errors import ModelError, require_type
from ...files import put_folder, require_path, staging_folder
from ...networks import UNet, build_network
from ...networks.folding import fold_batch_norms
from ..downloads import checksum
from ..model import Model
from ..registry import ModelNotes
from ..serialization import read_text
from ..spec import COMPILED_NETWORKS, ModelSpec, StageSpec
from ..trust import require_trust
from .compiled import load_compiled
from .weights import build_with_weights, read_tensors

#: The card's file name in a model's folder.
CARD = "card.json"


class LiverXAIFormat:
    """Folders with a card (see :class:`~LiverXAILib.models.formats.Format`)."""

    name = "LiverXAI model"
    marker = CARD

    def find(self, folder: Path) -> Path | None:
        return folder if (folder / CARD).is_file() else None

    def files(self, folder: Path) -> list[Path]:
        return [folder / file for file in (CARD, *card_checksums(read_card(folder)))]

    def load(
        self, folder: Path, *, name: str | None = None, notes: ModelNotes | None = None, trust: bool = False
    ) -> Model:
        return load_networks(read_card(folder), folder, trust=trust)

    def sanitize(self, folder: Path) -> None:
        """Nothing to do: all files are used."""


def read_card(folder: Path) -> ModelSpec:
    """The card in `folder`; raises :class:`~LiverXAILib.errors.ModelError` if there is no valid card."""
    return ModelSpec.from_json(read_text(folder / CARD, "the model card"))


def card_checksums(spec: ModelSpec) -> dict[str, str]:
    """The weights files of a card, and their SHA-256."""
    return {
        file: value.lower() for stage in spec.stages for file, value in zip(stage.weights, stage.sha256, strict=True)
    }


def verify_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Check that all files are present and unchanged.

    :param checksums: SHA-256 by name.
    :raises LiverXAILib.errors.ModelError: one is missing or changed.
    """
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"The file {name} is missing from {folder}.")
        if checksum(path) != expected:
            raise ModelError(
                f"{path} is not the expected file (SHA-256 differs). It is damaged or has been changed; delete it "
                "and download or copy it again."
            )


def load_networks(spec: ModelSpec, folder: Path, *, trust: bool) -> Model:
    """The model of a card whose weights are in `folder`; they are verified first."""
    checksums = card_checksums(spec)
    verify_files(folder, checksums)
    if any(stage.network in COMPILED_NETWORKS for stage in spec.stages):
        names = ", ".join(name for x in spec.stages if x.network in COMPILED_NETWORKS for name in x.weights)
        # Checksums of the weights from the card that was read, not of the files as they may be by now.
        card = {CARD: checksum(folder / CARD)} if (folder / CARD).is_file() else {}
        require_trust(folder, {**card, **checksums}, f"{names} is a compiled model", consent=trust)
    networks = {
        stage.name: [_network(folder, stage, file, checksums[file]) for file in stage.weights] for stage in spec.stages
    }
    return Model(spec, networks)


def _network(folder: Path, stage: StageSpec, file: str, sha256: str) -> nn.Module:
    if stage.network in COMPILED_NETWORKS:
        return load_compiled(folder / file, stage, sha256)
    state = float_weights(folder / file)
    source = f"of the model card ({stage.network})"
    network = build_with_weights(partial(build_network, stage.network, stage.arguments), state, folder / file, source)
    _check_fit(network, stage)
    return fold_batch_norms(network)


def _check_fit(network: nn.Module, stage: StageSpec) -> None:
    """Refuse a card that does not fit its network: layers, dimensions, sizes or channels."""
    modules = dict(network.named_modules())
    problems = [f"there is no layer {layer.name!r}" for layer in stage.layers if layer.name not in modules]
    if isinstance(network, UNet):
        divisor = stage.divisor[3 - network.dimensions :]
        if network.dimensions != stage.dimensions:
            problems.append(f"the network has {network.dimensions} dimensions")
        elif any(own % d for own, d in zip(divisor, network.divisor, strict=True)):
            problems.append(f"divisor must be multiples of {list(network.divisor)}")
        if network.channels != (1, len(stage.channels)):
            problems.append("the network must have 1 input channel and the output channels of the model card")
    if problems:
        raise ModelError(f"The model card's stage {stage.name!r} does not fit its network: {'; '.join(problems[:5])}.")


def float_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, floating-point ones in single precision."""
    return {key: value.float() if value.is_floating_point() else value for key, value in read_tensors(path).items()}


def save_model(
    spec: ModelSpec, state_dicts: Mapping[str, Sequence[Mapping[str, torch.Tensor]]], folder: Path, *, half: bool = True
) -> ModelSpec:
    """Write a model folder atomically: the card and one safetensors file for each network.

    :param state_dicts: for each stage name its networks' state dicts, in the order of the stage's `weights`.
    :param half: store floating-point weights in half precision (they are loaded as float32).
    :return: the card as written, with the checksums filled in.
    """
    require_type(spec, ModelSpec, "A model card", "give the ModelSpec, as in model.spec")
    require_path(folder)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with staging_folder(folder) as new:
        stages = []
        for stage in spec.stages:
            checksums = []
            for name, state in zip(stage.weights, state_dicts[stage.name], strict=True):
                tensors = {
                    key: (value.half() if half and value.is_floating_point() else value).contiguous().cpu()
                    for key, value in state.items()
                }
                save_file(tensors, new / name)
                # safetensors makes its files private to their owner; a model folder may be on a share.
                (new / name).chmod(0o644)
                checksums.append(checksum(new / name))
            stages.append(dataclasses.replace(stage, sha256=tuple(checksums)))
        spec = dataclasses.replace(spec, stages=tuple(stages))
        (new / CARD).write_text(spec.to_json(), encoding="utf-8")
        put_folder(new, folder, is_ours=lambda name: True, last=CARD)
    return spec
