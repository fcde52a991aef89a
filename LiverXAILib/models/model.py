# SPDX-License-Identifier: Apache-2.0
"""A model in memory: its card and its networks, ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import require_type
from .spec import ModelSpec, StageSpec


class Model:
    """Networks in evaluation mode, with frozen parameters, and the card that describes their input and output.

    :param spec: the card.
    :param networks: for each stage name, one network or the members of an ensemble.
    """

    def __init__(self, spec: ModelSpec, networks: Mapping[str, Sequence[nn.Module]]) -> None:
        self.spec = spec
        self.networks = {name: list(members) for name, members in networks.items()}
        for members in self.networks.values():
            for network in members:
                network.eval()
                for parameter in network.parameters():
                    parameter.requires_grad_(False)

    def __repr__(self) -> str:
        return f"Model({self.spec.name!r}, version {self.spec.version})"

    @property
    def sha256(self) -> tuple[str, ...]:
        """:attr:`.ModelSpec.sha256`."""
        return self.spec.sha256

    @property
    def provenance(self) -> dict[str, Any]:
        """The model's entry in a result's provenance, JSON-ready: name, version and checksums of the weights."""
        return {"name": self.spec.name, "version": self.spec.version, "sha256": list(self.sha256)}

    def to(self, device: torch.device) -> Model:
        """Move all networks to `device`; returns the model itself."""
        for members in self.networks.values():
            for network in members:
                network.to(device)
        return self

    def members(self, stage: StageSpec) -> list[nn.Module]:
        """The networks of a stage."""
        return self.networks[stage.name]


def require_model(value: object) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` unless `value` is a :class:`Model`."""
    require_type(value, Model, "A model", "load it first, with load_model({})", '"default"')
