# SPDX-License-Identifier: Apache-2.0
"""The named models: their descriptions, where their files are, and where they can be downloaded.

``registry.json`` is described in ``docs/models.md``. Nothing here needs torch, so that a list of models can be shown
before it is installed.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .serialization import from_json_value, read_json
from .spec import LabelSpec, ModelSpec, Region

#: Environment variable: a folder with one subfolder per model, e.g. on a share behind a hospital's firewall.
MODELS_VARIABLE = "LIVERXAI_MODELS"
#: File in the folder of a downloaded or imported model: where its files came from, and their checksums.
IMPORT_RECORD = "origin.json"
#: File with a user's notes about a foreign model, in the model's folder.
NOTES = "liverxai.json"

#: Allowed names of models and of their folders.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_HERE = Path(__file__).parent
_REGISTRY = _HERE / "registry.json"
_VERSION = 1
#: Required fields of an entry besides its name, by kind.
_KINDS = {"card": ("card",), "archive": ("about", "archive"), "chain": ("about", "chain")}


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded.

    :param size: in bytes, where known.
    :param sha256: in hexadecimal, where known; for the weights of a card it is given in the card.
    """

    url: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Licenses:
    """Licenses of the code that made the model, of its weights and of its training data.

    :param terms: if not empty, terms that a user must accept before the weights are downloaded.
    """

    code: str
    weights: str
    data: str
    terms: str = ""


@dataclass(frozen=True)
class About:
    """Information for choosing a model. `quality` states for each figure where it was published."""

    title: str
    task: str
    labels: tuple[LabelSpec, ...]
    licenses: Licenses
    source: str
    citation: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    spacing_mm: tuple[float | None, ...] = ()
    time: str = "unknown"
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportOptions:
    """Import options for an nnU-Net that its files do not specify.

    :param axes: directions of the axes of the training images (slowest first) if they were all the same, e.g. "SAR"
        for canonical NIfTI files; None: images are read as stored, as nnU-Net does.
    :param labels: LiverXAI's names for labels of ``dataset.json``, e.g. {"liver_lesions": "tumor"}.
    :param keep: only these labels (LiverXAI's names) are produced; empty: all.
    :param mirroring: average over mirrored windows where the training allows it: up to 8 times slower.
    """

    axes: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    mirroring: bool = True


@dataclass(frozen=True)
class ModelNotes:
    """A user's notes about a foreign model, in the file ``liverxai.json`` in its folder."""

    reading: ImportOptions = ImportOptions()
    title: str = ""
    license: str = "unknown; ask whoever trained it"
    source: str = ""
    citation: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def beside(folder: Path) -> ModelNotes:
        """The notes in `folder`, or empty ones; raises :class:`~LiverXAILib.errors.ModelError` on unknown fields."""
        path = folder / NOTES
        if not path.is_file():
            return ModelNotes()
        return read_json(path, ModelNotes, "the notes about the model")


@dataclass(frozen=True)
class ChainLink:
    """One model of a chain: which of its labels are used, and around which earlier label it runs (None: everywhere)."""

    model: str
    labels: tuple[str, ...]
    region: Region | None = None


@dataclass(frozen=True)
class Entry:
    """One named model.

    :param kind: "card": a LiverXAI model; "archive": a model folder of any kind in a zip file; "chain": other named
        models, one after the other.
    :param card: path of the card, relative to the folder of the registry.
    :param files: the files to download in addition to the card; empty for a bundled model.
    """

    kind: str
    about: About | None = None
    card: str | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    archive: RemoteFile | None = None
    reading: ImportOptions | None = None
    chain: tuple[ChainLink, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(_KINDS)}")
        if missing := [key for key in _KINDS[self.kind] if not getattr(self, key)]:
            raise ValueError(f"an entry of kind {self.kind!r} needs {', '.join(missing)}")

    @property
    def bundled(self) -> bool:
        return self.kind == "card" and not self.files

    def spec(self) -> ModelSpec:
        """The card; raises :class:`~LiverXAILib.errors.ModelError` for a model whose card is derived from its files."""
        if self.card is None:
            raise ModelError(
                f"Model {self.name!r} has no model card of its own; it is derived from its files when they are loaded."
            )
        path = _HERE / self.card
        if not path.is_file():
            raise ModelError(f"The model card of {self.name!r} is missing from this installation: reinstall LiverXAI.")
        state = path.stat()
        return _card(path, state.st_mtime_ns, state.st_size)

    def description(self) -> About:
        """The description of the model, from the registry or from its card."""
        if self.about is not None:
            return self.about
        spec = self.spec()
        return About(
            title=spec.title,
            task=spec.description,
            labels=spec.labels,
            licenses=Licenses(spec.license, spec.license, str(spec.training.get("license", "see training"))),
            source=spec.source,
            citation=spec.citation,
            training=spec.training,
            quality=spec.quality,
            spacing_mm=spec.stages[-1].spacing or (),
            limits=spec.limits,
        )

    def notes(self) -> ModelNotes:
        """The description of the model, in the form of a user's notes."""
        about = self.description()
        return ModelNotes(
            self.reading or ImportOptions(),
            about.title,
            about.licenses.weights,
            about.source,
            about.citation,
            about.training,
            about.quality,
        )

    def folders(self) -> list[Path]:
        """The folders in which the files are searched; the first match wins."""
        if self.bundled:
            return [(_HERE / str(self.card)).parent]
        local = os.environ.get(MODELS_VARIABLE)
        return [*([Path(local) / self.name] if local else []), download_folder() / self.name]

    def folder(self) -> Path | None:
        """The first folder that holds the model's files, or None; None for a chain, which has no files of its own."""
        if self.kind == "chain":
            return None
        return next((folder for folder in self.folders() if self._complete(folder)), None)

    def installed(self) -> bool:
        """Whether the model can be used without a download."""
        if self.kind == "chain":
            return all(registered(link.model).installed() for link in self.chain)
        return self.folder() is not None

    def _complete(self, folder: Path) -> bool:
        if self.kind == "archive":
            return folder.is_dir() and any(folder.iterdir())
        return all((folder / name).is_file() for stage in self.spec().stages for name in stage.weights)


@functools.lru_cache(maxsize=32)
def _card(path: Path, changed_ns: int, size: int) -> ModelSpec:
    """The card in a file of this state, cached: a panel reads it repeatedly, and parsing takes milliseconds."""
    return ModelSpec.from_json(path.read_text(encoding="utf-8"))


def download_folder() -> Path:
    """The folder for downloads: in the user's data, outside the program, so that updates keep them."""
    import platformdirs

    return Path(platformdirs.user_data_dir("liverxai")) / "models"


def registry(path: Path | None = None) -> dict[str, Entry]:
    """All named models.

    :param path: default: the registry of this installation.
    :raises LiverXAILib.errors.ModelError: unknown fields or another version.
    """
    path = path or _REGISTRY
    data = read_json(path, dict, "the registry")
    if set(data) != {"version", "models"} or data["version"] != _VERSION:
        raise ModelError(f"{path.name} must have exactly 'version': {_VERSION} and 'models'; get a newer LiverXAI.")
    try:
        entries = {
            name: from_json_value(Entry, {**entry, "name": name}, f"models.{name}")
            for name, entry in data["models"].items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path.name} contains something that this version does not understand: {error}.") from error
    for entry in entries.values():
        if unknown := [link.model for link in entry.chain if link.model not in entries]:
            raise ModelError(f"{path.name}: the chain {entry.name!r} names unknown models: {', '.join(unknown)}.")
    return entries


def registered(name: str, *, or_folder: bool = False) -> Entry:
    """The entry called `name`; otherwise raises a :class:`~LiverXAILib.errors.ModelError` that lists all names.

    :param or_folder: a folder could have been given instead, which the error then says.
    """
    entries = registry()
    if name not in entries:
        end = "; or give a model's folder." if or_folder else "."
        raise ModelError(f"There is no model {name!r}. Named models: {', '.join(entries)}{end}")
    return entries[name]


def imported_models() -> list[str]:
    """Names of imported models that are not in the registry."""
    found = {path.parent.name for folder in _model_roots() for path in folder.glob(f"*/{IMPORT_RECORD}")}
    return sorted(name for name in found - set(registry()) if MODEL_NAME.fullmatch(name))


def imported_folder(name: str) -> Path | None:
    """The folder of the imported model `name`, or None."""
    if not MODEL_NAME.fullmatch(name):
        return None
    return next((root / name for root in _model_roots() if (root / name / IMPORT_RECORD).is_file()), None)


def _model_roots() -> list[Path]:
    local = os.environ.get(MODELS_VARIABLE)
    return [*([Path(local)] if local else []), download_folder()]
