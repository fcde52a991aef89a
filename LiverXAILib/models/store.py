# SPDX-License-Identifier: Apache-2.0
"""Models on disk: load, save, verify, download, import, remove. Nothing is unpickled beyond plain tensors."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import ModelError
from ..files import replacing
from ..networks import build_network
from ..networks.folding import fold_batch_norms
from ..progress import CancelToken, Progress, check_cancel, scaled
from .compiled import COMPILED_NETWORKS, load_compiled
from .downloads import checksum, fetch, require_space, unpack
from .model import Model
from .monai_bundle import BUNDLE_FILES, is_bundle, load_bundle
from .nnunet import find_nnunet, load_nnunet, nnunet_files, write_plain_checkpoints
from .registry import (
    IMPORT_RECORD,
    MODELS_VARIABLE,
    NOTES,
    Entry,
    ModelNotes,
    download_folder,
    imported_folder,
    registered,
    registry,
)
from .serialization import from_json_value
from .spec import ModelSpec

#: The card's file name in a model's folder.
CARD = "card.json"
#: Licenses that the user accepted, in the folder of downloads.
_ACCEPTED = "accepted-licenses.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ImportRecord:
    """Where a model's files came from, and what they were then.

    :param trusted: the user said that the files may be opened although they can hold code.
    """

    source: str
    date: str
    files: Mapping[str, str]
    trusted: bool = False


# --- loading ------------------------------------------------------------------------------------------------------


def load_model(name_or_path: str | Path = "default", *, trust: bool = False) -> Model:
    """Load a model by its name, or from a folder.

    A folder may hold a LiverXAI model (``card.json``), a trained nnU-Net v2 (``plans.json``, ``dataset.json``,
    ``fold_*``) or a MONAI bundle (``configs/metadata.json``). Known checksums are verified before a file is opened.

    :param trust: open files that can hold code: nnU-Net checkpoints with more than tensors and numbers, TorchScript
        and exported programs. **Whatever is in them is run.** See ``docs/models.md``.
    :raises LiverXAILib.errors.ModelError: unknown, missing, changed, unsafe or unsuitable files.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return load_folder(path, trust=trust)
    name = str(name_or_path)
    if path.exists() or path.suffix in (".zip", ".pt", ".pth", ".ts", ".pt2") or len(path.parts) > 1:
        raise ModelError(
            f"{path} is not a model folder. Import a zip file with 'liverxai models import'; a single weights file "
            f"needs a {CARD} beside it (see docs/models.md)."
        )
    if name not in registry() and (own := imported_folder(name)):
        return load_folder(own, name=name, trust=trust)
    return _load_entry(registered(name), trust)


def load_folder(
    folder: Path, *, name: str | None = None, notes: ModelNotes | None = None, trust: bool = False
) -> Model:
    """Load whatever kind of model lies in `folder`; see :func:`load_model`."""
    origin = _read_origin(folder)
    if origin is not None:
        _verify_files(folder, origin.files)
        trust = trust or origin.trusted
    if (folder / CARD).is_file():
        return _load_card(ModelSpec.from_json((folder / CARD).read_text(encoding="utf-8")), folder, trust)
    if (trained := find_nnunet(folder)) is not None:
        return load_nnunet(trained, name=name, notes=notes, trust=trust)
    if is_bundle(folder):
        return load_bundle(folder, name=name, notes=notes)
    raise ModelError(
        f"{folder} holds no model: neither a LiverXAI model ({CARD}) nor a trained nnU-Net v2 folder (plans.json and "
        "dataset.json) nor a MONAI bundle (configs/metadata.json)."
    )


def load_states(name_or_path: str | Path) -> tuple[ModelSpec, dict[str, list[dict[str, torch.Tensor]]]]:
    """The card of a LiverXAI model and its weights as they are stored, to train them further.

    :func:`load_model` gives networks whose batch norms are folded away; training needs them.

    :return: the card, and for each stage name the state dicts of its networks, floating-point weights as float32.
    :raises LiverXAILib.errors.ModelError: unknown or changed files, or not a model of LiverXAI's own format.
    """
    path = Path(name_or_path).expanduser()
    name = str(name_or_path)
    folder = path if path.is_dir() else None if name in registry() else imported_folder(name)
    if folder is None:
        entry = registered(name)
        folder = entry.folder() if entry.kind == "card" else None
    if folder is None or not (folder / CARD).is_file():
        raise ModelError(
            f"{name} is not a model of LiverXAI's own format on this machine ({CARD} and safetensors), so it cannot be "
            "trained further here."
        )
    spec = ModelSpec.from_json((folder / CARD).read_text(encoding="utf-8"))
    verify(spec, folder)
    return spec, {
        stage.name: [_float_weights(folder / name) for name in stage.weights]
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
        return _load_card(entry.spec(), folder, trust)
    model = load_folder(folder, name=entry.name, notes=entry.notes(), trust=trust)
    about = entry.description()
    return Model(dataclasses.replace(model.spec, labels=about.labels, limits=about.limits), model.networks)


def _load_chain(entry: Entry, trust: bool) -> Model:
    """Put the stages of other models one behind the other: one result, each label from the model that made it."""
    stages, networks, versions = [], {}, []
    for link in entry.chain:
        model = _load_entry(registered(link.model), trust)
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
    )
    return Model(spec, networks)


def _load_card(spec: ModelSpec, folder: Path, trust: bool) -> Model:
    verify(spec, folder)
    networks = {}
    for stage in spec.stages:
        if stage.network in COMPILED_NETWORKS:
            networks[stage.name] = [load_compiled(folder / name, stage, trust=trust) for name in stage.weights]
            continue
        members = []
        for name in stage.weights:
            network = build_network(stage.network, stage.arguments)
            try:
                network.load_state_dict(_float_weights(folder / name), strict=True)
            except RuntimeError as error:
                raise ModelError(
                    f"Model {spec.name!r}: the weights in {name} do not fit the network {stage.network} of the card: "
                    f"{error}"
                ) from error
            members.append(fold_batch_norms(network))
        networks[stage.name] = members
    return Model(spec, networks)


def _float_weights(path: Path) -> dict[str, torch.Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in _read_weights(path).items()}


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name. A legacy torch file is read without running any code in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(f"The weights file {path.name} cannot be read: {error}") from error


# --- saving and verifying -----------------------------------------------------------------------------------------


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
                # safetensors keeps its files to their owner; a model folder may lie on a share.
                (new / name).chmod(0o644)
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
    _verify_files(folder, _checksums(spec))


def verify_model(name: str) -> Path:
    """Check the files of a named model (of all models of a chain) against their checksums; returns their folder.

    :raises LiverXAILib.errors.ModelError: they are not here, changed, or there is nothing to check them against.
    """
    own = imported_folder(name) if name not in registry() else None
    entry = None if own else registered(name)
    if entry is not None and entry.kind == "chain":
        folders = [verify_model(link.model) for link in entry.chain]
        return folders[0].parent
    folder = own or (entry.folder() if entry else None)
    if folder is None:
        raise ModelError(f"The weights of model {name!r} are not on this machine.")
    if entry is not None and entry.kind == "card":
        verify(entry.spec(), folder)
    elif (origin := _read_origin(folder)) is not None:
        _verify_files(folder, origin.files)
    else:
        raise ModelError(f"No checksums are known for {folder}; import the model to have them kept.")
    return folder


def _checksums(spec: ModelSpec) -> dict[str, str]:
    return {file: value for stage in spec.stages for file, value in zip(stage.weights, stage.sha256, strict=True)}


def _verify_files(folder: Path, checksums: Mapping[str, str]) -> None:
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"The file {name} is missing from {folder}.")
        if checksum(path) != expected.lower():
            raise ModelError(
                f"{path} is not the file it should be (SHA-256 differs). It is damaged or has been changed; delete it "
                "and get it again."
            )


# --- downloading and importing ------------------------------------------------------------------------------------


def download(
    name: str,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    *,
    accept_license: bool = False,
) -> Path:
    """Download a named model's missing files (a chain's models) into the user's model folder and verify them.

    A download that was interrupted continues. A file that does not match its checksum is not kept.

    :param accept_license: the user has read and accepts the model's license; asked for once, where one asks for it.
    :return: the folder.
    :raises LiverXAILib.errors.ModelError: no connection, no space, wrong checksum, license not accepted.
    """
    entry = registered(name)
    if entry.kind == "chain":
        share = 1 / len(entry.chain)
        for number, link in enumerate(entry.chain):
            part = scaled(progress, number * share, (number + 1) * share)
            folder = download(link.model, part, cancel, accept_license=accept_license)
        return folder.parent
    if (present := entry.folder()) is not None:
        verify_model(name)
        return present
    _check_license(entry, accept_license)
    if entry.kind == "card":
        return _download_files(entry, progress, cancel)
    assert entry.archive is not None
    partial = download_folder() / ".partial" / entry.archive.url.rsplit("/", 1)[-1]
    fetch(
        entry.archive.url,
        partial,
        sha256=entry.archive.sha256,
        size=entry.archive.size,
        factor=2.5,
        progress=progress,
        cancel=cancel,
    )
    try:
        return _install(partial, name, entry.archive.url, check=False, trust=False)
    finally:
        partial.unlink(missing_ok=True)


def _download_files(entry: Entry, progress: Progress | None, cancel: CancelToken | None) -> Path:
    folder = download_folder() / entry.name
    checksums = _checksums(entry.spec())
    missing = {file: remote for file, remote in entry.files.items() if not (folder / file).is_file()}
    for number, (file, remote) in enumerate(missing.items()):
        check_cancel(cancel)
        part = scaled(progress, number / len(missing), (number + 1) / len(missing))
        partial = download_folder() / ".partial" / f"{entry.name}-{file}"
        fetch(remote.url, partial, sha256=checksums[file], size=remote.size, progress=part, cancel=cancel)
        folder.mkdir(parents=True, exist_ok=True)
        partial.replace(folder / file)
    verify(entry.spec(), folder)
    return folder


def _check_license(entry: Entry, accepted: bool) -> None:
    terms = entry.description().licenses.terms
    path = download_folder() / _ACCEPTED
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not terms or known.get(entry.name) == terms:
        return
    if not accepted:
        raise ModelError(
            f"Model {entry.name!r} may be used only under these terms: {terms} Read them; if you accept, run "
            f"'liverxai models download {entry.name} --accept-license'."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.write_text(json.dumps({**known, entry.name: terms}, indent=2) + "\n", encoding="utf-8")


def import_model(source: str | Path, name: str | None = None, *, trust: bool = False) -> tuple[str, Path]:
    """Copy a model from a folder or zip file into the user's model folder, for machines without internet.

    The model is loaded once to see that it can be used; checksums of its files are kept, so that later changes are
    noticed. Only the files that are needed are copied.

    :param name: under which to find it; default: a name of the registry if the files are those of one of its models,
        else the model's own.
    :param trust: the files may be opened although they can hold code: **it is run, once**. Checkpoints of nnU-Net are
        stored without it.
    :return: the name, and the folder.
    :raises LiverXAILib.errors.ModelError: unsafe or unsuitable files, or the name is taken. Nothing is left behind.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise ModelError(f"{source} does not exist.")
    folder = _install(source, name, str(source.resolve()), check=True, trust=trust)
    return folder.name, folder


def remove(name: str) -> list[Path]:
    """Delete a model's downloaded or imported files (of a chain: all its models'); returns the deleted folders."""
    entry = registry().get(name)
    if entry is not None and entry.kind == "chain":
        return [path for link in entry.chain for path in remove(link.model)]
    if not _NAME.fullmatch(name):
        raise ModelError(f"{name!r} is not a model's name.")
    folder = download_folder() / name
    if not folder.is_dir():
        raise ModelError(f"There are no downloaded or imported files of model {name!r}.")
    # Renamed first: half a model must not be found under its name.
    doomed = folder.with_name(f".removed-{name}")
    folder.rename(doomed)
    shutil.rmtree(doomed)
    return [folder]


def _install(source: Path, name: str | None, origin: str, *, check: bool, trust: bool) -> Path:
    """Take a model's files from a folder or zip file into the model folder, all or none."""
    root = download_folder()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".import-") as temporary:
        new = Path(temporary) / "new"
        with _as_folder(source, Path(temporary)) as folder:
            files = _needed_files(folder)
            require_space(root, sum(path.stat().st_size for path in files.values()))
            for relative, path in files.items():
                (new / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, new / relative)
            name = name or _known_name(source, folder)
        if trust and (trained := find_nnunet(new)) is not None:
            write_plain_checkpoints(trained)
        if check or name is None:
            entry = registry().get(name) if name else None
            model = load_folder(new, name=name, notes=entry.notes() if entry else None, trust=trust)
            name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", model.spec.name).strip("-.")
        if not _NAME.fullmatch(name):
            raise ModelError(f"{name!r} cannot be a model's name: use letters, digits, '.', '_' and '-'.")
        if (root / name).exists():
            raise ModelError(f"There is already a model {name!r}; remove it first, or give another name.")
        record = ImportRecord(
            source=origin,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            files={relative: checksum(new / relative) for relative in files},
            trusted=trust,
        )
        (new / IMPORT_RECORD).write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")
        new.rename(root / name)
    return root / name


@contextmanager
def _as_folder(source: Path, temporary: Path) -> Iterator[Path]:
    if source.is_dir():
        yield source
    else:
        unpack(source, temporary / "unpacked")
        yield temporary / "unpacked"


def _needed_files(folder: Path) -> dict[str, Path]:
    """The files of the model in `folder` by their place in it."""
    if (folder / CARD).is_file():
        spec = ModelSpec.from_json((folder / CARD).read_text(encoding="utf-8"))
        names = [CARD, *_checksums(spec)]
        paths = [folder / file for file in names]
    elif (trained := find_nnunet(folder)) is not None:
        paths = nnunet_files(trained)
    elif is_bundle(folder):
        paths = [path for pattern in (*BUNDLE_FILES, NOTES) for path in folder.glob(pattern)]
    else:
        inner = [path for path in folder.iterdir() if path.name != "__MACOSX"]
        if len(inner) == 1 and inner[0].is_dir():
            return _needed_files(inner[0])
        raise ModelError(f"{folder.name} holds no model: no {CARD}, no nnU-Net v2 folder, no MONAI bundle.")
    for path in paths:
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{folder.name}: the file {path.name} is missing or lies outside the folder.")
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _known_name(source: Path, folder: Path) -> str | None:
    """The name in the registry of the model whose archive these files are."""
    trained = find_nnunet(folder)
    parts = {source.stem, *(trained.parts if trained else ())}
    for name, entry in registry().items():
        if entry.archive is not None and entry.archive.url.rsplit("/", 1)[-1].removesuffix(".zip") in parts:
            return name
    return None


def _read_origin(folder: Path) -> ImportRecord | None:
    path = folder / IMPORT_RECORD
    if not path.is_file():
        return None
    try:
        return from_json_value(ImportRecord, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be understood: {error}. Import the model again.") from error
