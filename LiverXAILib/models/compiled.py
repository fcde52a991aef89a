# SPDX-License-Identifier: Apache-2.0
"""Compiled models: TorchScript files and exported programs. They can be run, but have no inspectable layers.

A model folder with a card names them as its stage's `network`; the card says everything else (see ``docs/models.md``).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import ModelError
from .spec import StageSpec

#: What a card's `network` is called for such files.
COMPILED_NETWORKS = ("TorchScript", "ExportedProgram")


class ExportedProgram(nn.Module):
    """An exported program as a module. It computes on the CPU, for which it was exported."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        # Kept out of the module tree: exported modules refuse eval() and to().
        self._program = (torch.export.load(path).module(),)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self._program[0](image.cpu()).to(image.device)


def load_compiled(path: Path, stage: StageSpec, *, trust: bool) -> nn.Module:
    """Load a TorchScript file or an exported program.

    :raises LiverXAILib.errors.ModelError: not trusted, damaged, or the card lists layers.
    """
    if not trust:
        raise ModelError(
            f"{path.name} is a compiled model ({stage.network}), and opening it can run code. If you trust whoever "
            "made it, import the model once with 'liverxai models import --trust'."
        )
    if stage.layers:
        raise ModelError(f"The card lists layers of {path.name}, but a {stage.network} has no inspectable layers.")
    try:
        if stage.network == "TorchScript":
            return torch.jit.load(path, map_location="cpu")
        return ExportedProgram(path)
    except Exception as error:
        raise ModelError(f"{path.name} cannot be loaded as {stage.network}: {error}") from error
