# SPDX-License-Identifier: Apache-2.0
"""Compiled models: TorchScript files and exported programs. They can be run, but have no inspectable layers.

The card of the model folder gives their kind as the stage's `network`, and everything else (see ``docs/models.md``).
Opening one runs whatever code is in it, so the user must have agreed (:mod:`LiverXAILib.models.trust`).
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from torch import nn

from ...errors import ModelError
from ..spec import StageSpec


class ExportedProgram(nn.Module):
    """An exported program as a module. It runs on the CPU, for which it was exported."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__()
        # Kept out of the module tree: exported modules refuse eval() and to().
        self._program = (torch.export.load(file).module(),)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self._program[0](image.cpu()).to(image.device)


def load_compiled(path: Path, stage: StageSpec, sha256: str) -> nn.Module:
    """Load a TorchScript file or an exported program that the user trusts. **Code in it is run.**

    :param sha256: checksum of the trusted file. The bytes that are opened are the same bytes that were verified, so
        that nobody can exchange the file in between.
    :raises LiverXAILib.errors.ModelError: the file has changed or is damaged, or the card lists layers.
    """
    if stage.layers:
        raise ModelError(
            f"The model card lists layers of {path.name}, but a {stage.network} has no inspectable layers."
        )
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256.lower():
        raise ModelError(f"{path} changed while it was opened; it is not run.")
    try:
        if stage.network == "TorchScript":
            return torch.jit.load(io.BytesIO(data), map_location="cpu")
        return ExportedProgram(io.BytesIO(data))
    except Exception as error:
        raise ModelError(f"{path.name} cannot be loaded as {stage.network}: {error}") from error
