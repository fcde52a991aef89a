# SPDX-License-Identifier: Apache-2.0
"""Loading models by name or from a folder. No code in their files is run without the user's consent."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch

from ..errors import ModelError, require_type
from .formats import find_format
from .formats.liverxai import CARD, card_checksums, float_weights, load_networks, read_card, verify_files
from .model import Model
from .records import read_record
from .registry import MODELS_VARIABLE, Entry, ModelNotes, imported_folder, registered, registry
from .spec import COMPILED_NETWORKS, ModelSpec


def load_model(name_or_path: str | Path = "default", *, trust: bool = False) -> Model:
    """Load a model by name or from a folder.

    A folder may hold a LiverXAI model (``card.json``), a trained nnU-Net v2 (``plans.json``, ``dataset.json``,
    ``fold_*``) or a MONAI bundle (``configs/metadata.json``). Known checksums are verified before a file is opened.

    :param trust: open a compiled model (TorchScript, exported program) even if the user has not trusted it before
        (``liverxai models trust``). **Whatever code is in it is run.** See ``SECURITY.md``.
    :raises LiverXAILib.errors.ModelError: unknown, missing, changed, unsafe or unsuitable files.
    """
    require_type(name_or_path, (str, os.PathLike), "A model's name or folder", 'give it as text, such as "default"')
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return load_folder(path, trust=trust)
    name = str(name_or_path)
    if path.exists() or path.suffix in (".zip", ".pt", ".pth", ".ts", ".pt2") or len(path.parts) > 1:
        raise ModelError(
            f"{path} is not a model folder. Import a zip file with 'liverxai models import'; a single weights file "
            f"needs a {CARD} in its folder (see docs/models.md)."
        )
    if name not in registry() and (own := imported_folder(name)):
        return load_folder(own, name=name, trust=trust)
    return _load_entry(registered(name, or_folder=True), trust)


def load_folder(
    folder: Path, *, name: str | None = None, notes: ModelNotes | None = None, trust: bool = False
) -> Model:
    """Load a model of any supported format from `folder`; see :func:`load_model`."""
    record = read_record(folder)
    if record is not None:
        verify_files(folder, record.files)
    kind, found = find_format(folder)
    return kind.load(found, name=name, notes=notes, trust=trust)


def load_states(name_or_path: str | Path) -> tuple[ModelSpec, dict[str, list[dict[str, torch.Tensor]]]]:
    """The card of a LiverXAI model and its weights as stored, for further training.

    :func:`load_model` folds the batch norms into the convolutions; training needs them.

    :return: the card, and for each stage name the state dicts of its networks, floating-point weights as float32.
    :raises LiverXAILib.errors.ModelError: unknown or changed files, or not a model of LiverXAI's own format.
    """
    path = Path(name_or_path).expanduser()
    name = str(name_or_path)
    folder = path if path.is_dir() else None if name in registry() else imported_folder(name)
    if folder is None:
        entry = registered(name, or_folder=True)
        folder = entry.folder() if entry.kind == "card" else None
    if folder is None or not (folder / CARD).is_file():
        raise ModelError(
            f"{name} is not a model of LiverXAI's own format on this machine ({CARD} and safetensors), so it cannot be "
            "trained further here."
        )
    spec = read_card(folder)
    verify_files(folder, card_checksums(spec))
    return spec, {
        stage.name: [float_weights(folder / name) for name in stage.weights]
        for stage in spec.stages
        if stage.network not in COMPILED_NETWORKS
    }


def _load_entry(entry: Entry, trust: bool) -> Model:
    if entry.kind == "chain":
        return _load_chain(entry, trust)
    folder = entry.folder()
    if folder is None:
        raise ModelError(
            f"The weights of model {entry.name!r} are not on this machine. Run 'liverxai models download "
            f"{entry.name}', or put them into {entry.folders()[0]} (or set {MODELS_VARIABLE} to the folder that "
            f"contains '{entry.name}')."
        )
    if entry.kind == "card":
        return load_networks(entry.spec(), folder, trust=trust)
    model = load_folder(folder, name=entry.name, notes=entry.notes(), trust=trust)
    about = entry.description()
    return Model(dataclasses.replace(model.spec, labels=about.labels, limits=about.limits), model.networks)


def _load_chain(entry: Entry, trust: bool) -> Model:
    """Concatenate the stages of several models: one result, with each label from the model that produced it."""
    stages, networks, versions, outlines = [], {}, [], None
    for link in entry.chain:
        model = _load_entry(registered(link.model), trust)
        if model.spec.outlines is not None and model.spec.outlines.label in link.labels:
            outlines = model.spec.outlines
        for stage in model.spec.stages:
            labels = {label: channels for label, channels in stage.labels.items() if label in link.labels}
            if labels:
                name = f"{link.model}/{stage.name}"
                region = link.region or stage.region
                stages.append(dataclasses.replace(stage, name=name, labels=labels, region=region))
                networks[name] = model.members(stage)
        versions.append(f"{link.model} {model.spec.version}")
    notes, about = entry.notes(), entry.description()
    spec = ModelSpec(
        name=entry.name,
        version="; ".join(versions),
        title=about.title,
        description=about.task,
        labels=about.labels,
        stages=tuple(stages),
        license=notes.license,
        source=notes.source,
        citation=notes.citation,
        training=notes.training,
        quality=notes.quality,
        limits=about.limits,
        outlines=outlines,
    )
    return Model(spec, networks)
