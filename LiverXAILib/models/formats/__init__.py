# SPDX-License-Identifier: Apache-2.0
"""The kinds of model folders that LiverXAI reads. One more is a module here and an entry in :data:`FORMATS`."""

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
    """One kind of model folder.

    Nothing in such a folder may be run or unpickled, except what a format runs on purpose after asking
    :func:`LiverXAILib.models.trust.require_trust`. Every function raises
    :class:`~LiverXAILib.errors.ModelError` for what it does not understand completely.
    """

    #: What the kind is called, and the files by which its folder is known, for messages.
    name: str
    marker: str

    def find(self, folder: Path) -> Path | None:
        """The model's own folder in or below `folder`; None if `folder` holds no model of this kind."""
        ...

    def files(self, folder: Path) -> list[Path]:
        """The files of the found `folder` that are needed to use the model."""
        ...

    def load(self, folder: Path, *, name: str | None, notes: ModelNotes | None, trust: bool) -> Model:
        """Load the model from the found `folder`.

        :param name: the model's name in results; None: what its files say.
        :param notes: what its files do not say; None: what lies beside them.
        :param trust: the user agrees that code in the files is run.
        """
        ...

    def sanitize(self, folder: Path) -> None:
        """Rewrite the files of a copy, in the found `folder`, so that they hold only what is needed."""
        ...


FORMATS: tuple[Format, ...] = (LiverXAIFormat(), NnUNetFormat(), MonaiFormat())

#: How many folders around a model, each alone in the one above, are looked through.
_WRAPPINGS = 4


def find_format(folder: Path) -> tuple[Format, Path]:
    """The kind of the model in `folder`, and the model's own folder in or below it.

    :raises LiverXAILib.errors.ModelError: there is none, or several to choose from.
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
