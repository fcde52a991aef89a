# SPDX-License-Identifier: Apache-2.0
"""Models on disk: verify, download, import, trust, remove."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from ..context import RunContext
from ..errors import ModelError
from ..files import replacing, require_exists, staging_folder
from ..progress import CancelToken, Progress
from .downloads import checksum, fetch, require_space, unpack
from .formats import Format, find_format
from .formats.liverxai import card_checksums, verify_files
from .loading import load_folder
from .records import ImportRecord, read_record, write_record
from .registry import MODEL_NAME, Entry, download_folder, imported_folder, registered, registry
from .serialization import read_json
from .trust import file_checksums, revoke, trust

#: File in the folder for downloads that lists the licenses that the user accepted.
_ACCEPTED = "accepted-licenses.json"

# --- verifying and trusting ---------------------------------------------------------------------------------------


def verify_model(name: str) -> Path:
    """Check the files of a named model (of all models of a chain) against their checksums; returns their folder.

    :raises LiverXAILib.errors.ModelError: they are not on this machine, have changed, or no checksums are known.
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
        verify_files(folder, card_checksums(entry.spec()))
    elif (record := read_record(folder)) is not None:
        verify_files(folder, record.files)
    else:
        raise ModelError(f"No checksums are known for {folder}; import the model to record them.")
    return folder


def model_files(name_or_path: str | Path) -> tuple[Path, dict[str, str]]:
    """The folder of a model, and the SHA-256 of each of its files by name.

    :raises LiverXAILib.errors.ModelError: the model is not on this machine, or its folder holds no model.
    """
    path = Path(name_or_path).expanduser()
    name = str(name_or_path)
    folder = path if path.is_dir() else None if name in registry() else imported_folder(name)
    if folder is None:
        folder = registered(name, or_folder=True).folder()
    if folder is None:
        raise ModelError(f"The files of model {name!r} are not on this machine.")
    kind, found = find_format(folder.resolve())
    return found, file_checksums(found, kind.files(found))


def trust_model(name_or_path: str | Path) -> tuple[Path, dict[str, str]]:
    """Record that the user allows the code in a model's current files; returns :func:`model_files`."""
    folder, files = model_files(name_or_path)
    trust(folder, files)
    return folder, files


def revoke_trust(name_or_path: str | Path) -> bool:
    """Revoke the permission to run the code in a model's files; returns whether it was given."""
    return revoke(model_files(name_or_path)[1])


# --- downloading and importing ------------------------------------------------------------------------------------


def download(
    name: str,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    *,
    accept_license: bool = False,
) -> Path:
    """Download a named model's missing files (a chain's models) into the user's model folder and verify them.

    An interrupted download is continued. A file that does not match its checksum is not kept.

    :param accept_license: the user has read and accepts the model's license; required once, if the model has terms.
    :return: the folder.
    :raises LiverXAILib.errors.ModelError: no connection, no space, wrong checksum, license not accepted.
    """
    context = RunContext(progress, cancel)
    entry = registered(name)
    if entry.kind == "chain":
        for number, link in enumerate(entry.chain):
            part = context.step(number, len(entry.chain))
            folder = download(link.model, part.progress, part.cancel, accept_license=accept_license)
        return folder.parent
    if (present := entry.folder()) is not None:
        verify_model(name)
        return present
    _check_license(entry, accept_license)
    if entry.kind == "card":
        return _download_files(entry, context)
    assert entry.archive is not None
    partial = download_folder() / ".partial" / entry.archive.url.rsplit("/", 1)[-1]
    try:
        fetch(
            entry.archive.url,
            partial,
            sha256=entry.archive.sha256,
            size=entry.archive.size,
            factor=2.5,
            context=context,
        )
        return _install(partial, name, entry.archive.url, check=False, consent=False)
    finally:
        partial.unlink(missing_ok=True)


def _download_files(entry: Entry, context: RunContext) -> Path:
    folder = download_folder() / entry.name
    checksums = card_checksums(entry.spec())
    missing = {file: remote for file, remote in entry.files.items() if not (folder / file).is_file()}
    for number, (file, remote) in enumerate(missing.items()):
        context.check()
        part = context.step(number, len(missing))
        partial = download_folder() / ".partial" / f"{entry.name}-{file}"
        fetch(remote.url, partial, sha256=checksums[file], size=remote.size, context=part)
        folder.mkdir(parents=True, exist_ok=True)
        partial.replace(folder / file)
    verify_files(folder, checksums)
    return folder


def _check_license(entry: Entry, accepted: bool) -> None:
    terms = entry.description().licenses.terms
    path = download_folder() / _ACCEPTED
    known = read_json(path, dict, "the list of accepted licenses") if path.is_file() else {}
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

    The model is loaded once to check that it can be used; checksums of its files are recorded, so that later changes
    are detected. Only the files that are needed are copied.

    :param name: name of the imported model; default: the registry's if the files are those of one of its models, else
        the model's own.
    :param trust: the user allows the code in the files of a compiled model (:func:`trust_model`): **it is run**.
    :return: the name, and the folder.
    :raises LiverXAILib.errors.InputError: there is no such folder or file.
    :raises LiverXAILib.errors.ModelError: unsafe or unsuitable files, or the name is taken. Nothing is left behind.
    """
    source = require_exists(Path(source).expanduser())
    folder = _install(source, name, str(source.resolve()), check=True, consent=trust)
    return folder.name, folder


def remove(name: str) -> list[Path]:
    """Delete a model's downloaded or imported files (of a chain: all its models'); returns the deleted folders."""
    entry = registry().get(name)
    if entry is not None and entry.kind == "chain":
        return [path for link in entry.chain for path in remove(link.model)]
    if not MODEL_NAME.fullmatch(name):
        raise ModelError(f"{name!r} is not a model's name.")
    folder = download_folder() / name
    if not folder.is_dir():
        if entry is None:
            registered(name)  # raises: there is no model of this name
        raise ModelError(f"There are no downloaded or imported files of model {name!r}.")
    # Renamed first, so that a partly deleted model is never found under its name.
    with staging_folder(folder) as doomed:
        folder.rename(doomed / name)
    return [folder]


def _install(source: Path, name: str | None, origin: str, *, check: bool, consent: bool) -> Path:
    """Copy a model's files from a folder or zip file into the model folder, all or none."""
    root = download_folder()
    root.mkdir(parents=True, exist_ok=True)
    with staging_folder(root / "import") as temporary:
        new = temporary / "new"
        with _as_folder(source, temporary) as outer:
            kind, folder = find_format(outer)
            files = _needed_files(kind, folder)
            require_space(root, sum(path.stat().st_size for path in files.values()))
            for relative, path in files.items():
                (new / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, new / relative)
            name = name or _known_name(source, folder)
        kind.sanitize(new)
        if check or name is None:
            entry = registry().get(name) if name else None
            model = load_folder(new, name=name, notes=entry.notes() if entry else None, trust=consent)
            name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", model.spec.name).strip("-.")
        if not MODEL_NAME.fullmatch(name):
            raise ModelError(f"{name!r} cannot be a model's name: use letters, digits, '.', '_' and '-'.")
        _require_usable_name(name)
        if (root / name).exists():
            raise ModelError(f"There is already a model {name!r}; remove it first, or give another name.")
        checksums = {relative: checksum(new / relative) for relative in files}
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_record(new, ImportRecord(source=origin, date=now, files=checksums))
        new.rename(root / name)
        if consent:
            trust(root / name, checksums)
    return root / name


@contextmanager
def _as_folder(source: Path, temporary: Path) -> Iterator[Path]:
    if source.is_dir():
        yield source
    else:
        unpack(source, temporary / "unpacked")
        yield temporary / "unpacked"


def _needed_files(kind: Format, folder: Path) -> dict[str, Path]:
    """The files of the model in `folder`, by their relative path."""
    paths = kind.files(folder)
    for path in paths:
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{folder.name}: the file {path.name} is missing or lies outside the folder.")
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _require_usable_name(name: str) -> None:
    """Refuse a name under which an imported model would never be found: that of the registry's model would be used."""
    for taken, entry in registry().items():
        if taken.casefold() == name.casefold() and (entry.bundled or entry.kind == "chain" or taken != name):
            raise ModelError(f"{name!r} is the name of another model, {taken!r}: give this one another name (--name).")


def _known_name(source: Path, folder: Path) -> str | None:
    """The registry's name of the model whose archive holds exactly these files, or None."""
    parts = {source.stem, *folder.parts}
    for name, entry in registry().items():
        if entry.archive is not None and entry.archive.url.rsplit("/", 1)[-1].removesuffix(".zip") in parts:
            return name
    return None
