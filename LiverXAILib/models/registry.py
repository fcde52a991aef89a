# SPDX-License-Identifier: Apache-2.0
"""The models that have a name: their cards, where their files are or can be had."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ModelError
from .spec import ModelSpec

#: A folder with one sub-folder per model, e.g. on a share behind a hospital's firewall.
MODELS_VARIABLE = "LIVERXAI_MODELS"

_HERE = Path(__file__).parent
_REGISTRY = _HERE / "registry.json"
_VERSION = 1


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded: its address and size in bytes. Its checksum stands in the card."""

    url: str
    size: int


@dataclass(frozen=True)
class Entry:
    """One named model.

    :param card: path of the card, relative to the folder of the registry.
    :param files: the files to download; empty for a bundled model, whose files lie beside its card.
    """

    name: str
    card: str
    files: Mapping[str, RemoteFile] = field(default_factory=dict)

    @property
    def bundled(self) -> bool:
        return not self.files

    def spec(self) -> ModelSpec:
        """Read the card."""
        path = _HERE / self.card
        if not path.is_file():
            raise ModelError(f"The card of model {self.name!r} is missing from this installation: reinstall LiverXAI.")
        return ModelSpec.from_json(path.read_text(encoding="utf-8"))

    def folders(self) -> list[Path]:
        """Where the weights are looked for, first match wins."""
        if self.bundled:
            return [(_HERE / self.card).parent]
        local = os.environ.get(MODELS_VARIABLE)
        return [*([Path(local) / self.name] if local else []), download_folder() / self.name]

    def folder(self) -> Path | None:
        """The first folder that holds all weights files, or None."""
        needed = [name for stage in self.spec().stages for name in stage.weights]
        for folder in self.folders():
            if all((folder / name).is_file() for name in needed):
                return folder
        return None


def download_folder() -> Path:
    """Where downloads go: a folder of the user's, outside the program, so that updates do not lose them."""
    import platformdirs  # not in Slicer's Python until the user has agreed to install what is missing

    return Path(platformdirs.user_data_dir("liverxai")) / "models"


def registry(path: Path = _REGISTRY) -> dict[str, Entry]:
    """All named models. Raises :class:`~LiverXAILib.errors.ModelError` on unknown fields or another version."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if set(data) != {"version", "models"} or data["version"] != _VERSION:
        raise ModelError(f"{path.name} must have exactly 'version': {_VERSION} and 'models'.")
    try:
        return {
            name: Entry(
                name=name,
                **{
                    **entry,
                    "files": {file: RemoteFile(**remote) for file, remote in entry.get("files", {}).items()},
                },
            )
            for name, entry in data["models"].items()
        }
    except TypeError as error:
        raise ModelError(f"{path.name} has a field that this version does not know: {error}.") from error


def registered(name: str) -> Entry:
    """The entry called `name`; raises :class:`~LiverXAILib.errors.ModelError` that lists the names there are."""
    entries = registry()
    if name not in entries:
        raise ModelError(f"There is no model {name!r}. Named models: {', '.join(entries)}; or give a model's folder.")
    return entries[name]
