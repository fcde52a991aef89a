# SPDX-License-Identifier: Apache-2.0
"""The formats of model folders that LiverXAI reads. A new one is a module here and an entry in :data:`FORMATS`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ...errors import ModelError
from ..model import Model
from ..registry import ModelNotes
from .liverxai import LiverXAIFormat
from .monai import MonaiFormat
from .nnunet import NnUNetFormat


class Format(Protocol):
    """One format of model folders.

    Nothing in such a folder may be run or unpickled, except code that a format runs deliberately after
    :func:`LiverXAILib.models.trust.require_trust`. Every function raises
    :class:`~LiverXAILib.errors.ModelError` for anything that it does not fully understand.
    """

    #: The format's name, and the files by which its folder is recognized, for messages.
    name: str
    marker: str

    def find(self, folder: Path) -> Path | None:
        """The model's own folder in or below `folder`; None if `folder` holds no model of this format."""
        ...

    def files(self, folder: Path) -> list[Path]:
        """The files of the found `folder` that are needed to use the model."""
        ...

    def load(self, folder: Path, *, name: str | None, notes: ModelNotes | None, trust: bool) -> Model:
        """Load the model from the found `folder`.

        :param name: the model's name in results; None: the name in its files.
        :param notes: a user's notes about the model; None: those in the folder.
        :param trust: the user agrees that code in the files is run.
        """
        ...

    def sanitize(self, folder: Path) -> None:
        """Rewrite the files of a copy, in the found `folder`, so that they hold only the data needed for inference."""
        ...


FORMATS: tuple[Format, ...] = (LiverXAIFormat(), NnUNetFormat(), MonaiFormat())

#: How many folders around a model, each alone in the one above, are looked through.
_WRAPPINGS = 4


def find_format(folder: Path) -> tuple[Format, Path]:
    """The format of the model in `folder`, and the model's own folder in or below it.

    :raises LiverXAILib.errors.ModelError: there is no model, or there are several.
    """
    outer = folder
    for _ in range(_WRAPPINGS):
        for kind in FORMATS:
            if (found := kind.find(folder)) is not None:
                return kind, found
        inner = [path for path in folder.iterdir() if path.name != "__MACOSX"]
        if len(inner) != 1 or not inner[0].is_dir():
            break
        folder = inner[0]
    kinds = "; ".join(f"a {kind.name} has {kind.marker}" for kind in FORMATS)
    raise ModelError(f"{outer} does not hold a model: {kinds}.")
