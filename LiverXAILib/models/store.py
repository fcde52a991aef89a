# SPDX-License-Identifier: Apache-2.0
"""Models on disk: verify, load, save, download. Nothing is unpickled beyond plain tensors."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pooch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import ModelError
from ..networks import build_network
from ..networks.folding import fold_batch_norms
from ..progress import CancelToken, Progress, check_cancel, report_progress
from .model import Model
from .registry import MODELS_VARIABLE, Entry, download_folder, registered
from .spec import ModelSpec

#: The card's file name in a model's folder.
CARD = "card.json"


def load_model(name_or_path: str | Path = "default") -> Model:
    """Load a model by its registered name, or from a folder with a ``card.json``.

    Checksums are verified before any file is opened.

    :raises LiverXAILib.errors.ModelError: unknown, missing, changed or unsuitable files.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return load_folder(path)
    if path.suffix or len(path.parts) > 1:
        raise ModelError(f"{path} is not a model folder. A model folder holds a {CARD} and its weights.")
    entry = registered(str(name_or_path))
    folder = entry.folder()
    if folder is None:
        raise ModelError(
            f"The weights of model {entry.name!r} are not on this machine. Run 'liverxai models download {entry.name}', "
            f"or put them into {entry.folders()[0]} (or set {MODELS_VARIABLE} to the folder that contains "
            f"'{entry.name}')."
        )
    return _load(entry.spec(), folder)


def load_folder(folder: Path) -> Model:
    """Load a model from a folder that holds its card and weights."""
    card = folder / CARD
    if not card.is_file():
        raise ModelError(f"{folder} has no {CARD}: it is not a LiverXAI model folder.")
    return _load(ModelSpec.from_json(card.read_text(encoding="utf-8")), folder)


def save_model(
    spec: ModelSpec, state_dicts: Mapping[str, Sequence[Mapping[str, torch.Tensor]]], folder: Path, *, half: bool = True
) -> ModelSpec:
    """Write a model folder: the card and one safetensors file for each network. The folder appears whole or not.

    :param state_dicts: for each stage name its networks' state dicts, in the order of the stage's `weights`.
    :param half: store floating-point weights in half precision (they are loaded as float32).
    :return: the card as written, with the checksums filled in.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        stages = []
        for stage in spec.stages:
            checksums = []
            for name, state in zip(stage.weights, state_dicts[stage.name], strict=True):
                tensors = {
                    key: (value.half() if half and value.is_floating_point() else value).contiguous().cpu()
                    for key, value in state.items()
                }
                save_file(tensors, new / name)
                checksums.append(checksum(new / name))
            stages.append(dataclasses.replace(stage, sha256=tuple(checksums)))
        spec = dataclasses.replace(spec, stages=tuple(stages))
        (new / CARD).write_text(spec.to_json(), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    return spec


def verify(spec: ModelSpec, folder: Path) -> None:
    """Check that all weights files are there and unchanged; raises :class:`~LiverXAILib.errors.ModelError`."""
    for stage in spec.stages:
        for name, expected in zip(stage.weights, stage.sha256, strict=True):
            path = folder / name
            if not path.is_file():
                raise ModelError(f"Model {spec.name!r}: the file {name} is missing from {folder}.")
            if checksum(path) != expected.lower():
                raise ModelError(
                    f"Model {spec.name!r}: the file {name} is not the one the card describes (SHA-256 differs). "
                    "It is damaged or has been changed; delete it and get it again."
                )


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return pooch.file_hash(str(path), alg="sha256")


def download(name: str, progress: Progress | None = None, cancel: CancelToken | None = None) -> Path:
    """Download a named model's missing files into the user's model folder and verify them.

    Proxies and custom certificate authorities are taken from the usual environment variables. A file that does not
    match its checksum is not kept.

    :return: the folder.
    :raises LiverXAILib.errors.ModelError: no connection, no space, wrong checksum.
    """
    entry = registered(name)
    spec = entry.spec()
    if entry.bundled:
        return entry.folders()[0]
    folder = download_folder() / name
    checksums = {
        file: value for stage in spec.stages for file, value in zip(stage.weights, stage.sha256, strict=True)
    }
    missing = {file: remote for file, remote in entry.files.items() if not (folder / file).is_file()}
    needed = sum(remote.size for remote in missing.values())
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed * 1.1:
        raise ModelError(f"Not enough space in {folder}: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} are free.")
    for number, (file, remote) in enumerate(missing.items()):
        check_cancel(cancel)
        report_progress(progress, f"Downloading {file} ({remote.size / 1e6:.1f} MB)", number / len(missing))
        try:
            pooch.retrieve(
                remote.url, known_hash=f"sha256:{checksums[file]}", fname=file, path=folder, progressbar=False
            )
        except (OSError, ValueError) as error:
            raise ModelError(_download_help(entry, file, remote.url, error)) from error
    verify(spec, folder)
    report_progress(progress, f"Model {name} is ready", 1.0)
    return folder


def _download_help(entry: Entry, file: str, url: str, error: Exception) -> str:
    reason = "it arrived damaged" if isinstance(error, ValueError) else f"the address cannot be reached ({error})"
    return (
        f"Could not download {file}: {reason}. On a machine without internet, get {url} elsewhere and put it into "
        f"{entry.folders()[0]}."
    )


def _load(spec: ModelSpec, folder: Path) -> Model:
    verify(spec, folder)
    networks = {}
    for stage in spec.stages:
        members = []
        for name in stage.weights:
            network = build_network(stage.network, stage.arguments)
            state = {
                key: value.float() if value.is_floating_point() else value
                for key, value in _read_weights(folder / name).items()
            }
            try:
                network.load_state_dict(state, strict=True)
            except RuntimeError as error:
                raise ModelError(
                    f"Model {spec.name!r}: the weights in {name} do not fit the network {stage.network} of the card: "
                    f"{error}"
                ) from error
            members.append(fold_batch_norms(network))
        networks[stage.name] = members
    return Model(spec, networks)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name. A legacy torch file is read without running any code in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(f"The weights file {path.name} cannot be read: {error}") from error
