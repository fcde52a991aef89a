# SPDX-License-Identifier: Apache-2.0
"""Which models may run code: the user's decision, kept in the user's settings and never in a model's folder.

A decision applies to exact files: it lists the SHA-256 of every file of the model. If a file changes or is added, the
model is untrusted again. Nothing in a model's folder, nor the folder's location, can make a model trusted.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ..errors import ModelError
from ..files import replacing
from .downloads import checksum
from .serialization import read_json

_VERSION = 1


@dataclass(frozen=True)
class TrustDecision:
    """One model whose code the user allowed: its files with their checksums, their folder, and the date."""

    files: Mapping[str, str]
    date: str
    folder: str


@dataclass(frozen=True)
class _Decisions:
    version: int = _VERSION
    models: tuple[TrustDecision, ...] = ()


def trust_file() -> Path:
    """The file in which the user's decisions are stored."""
    import platformdirs

    return Path(platformdirs.user_config_dir("liverxai")) / "trusted-models.json"


def file_checksums(folder: Path, files: list[Path]) -> dict[str, str]:
    """SHA-256 of `files`, by their path relative to `folder`."""
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}


def is_trusted(files: Mapping[str, str]) -> bool:
    """Whether the user allowed the code of a model with exactly these files (checksums by name)."""
    return any(decision.files == dict(files) for decision in _decisions().models)


def trust(folder: Path, files: Mapping[str, str]) -> None:
    """Record that the user allows the code in these files (checksums by name) of the model in `folder`."""
    if is_trusted(files):
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _write((*_decisions().models, TrustDecision(dict(files), now, str(folder))))


def revoke(files: Mapping[str, str]) -> bool:
    """Revoke the permission to run the code in these files; returns whether it was given."""
    known = _decisions().models
    kept = tuple(decision for decision in known if decision.files != dict(files))
    if len(kept) < len(known):
        _write(kept)
    return len(kept) < len(known)


def require_trust(folder: Path, files: Mapping[str, str], what: str, consent: bool) -> None:
    """Raise :class:`~LiverXAILib.errors.ModelError` unless the user allowed the code in these files.

    :param files: checksums by name of all files of the model in `folder`.
    :param what: clause that says what holds code, which starts the message.
    :param consent: the user agrees for this one time.
    """
    if consent or is_trusted(files):
        return
    raise ModelError(
        f"{what}, and opening it runs whatever code is in it. This model is not trusted (or a file of it has changed "
        f"since). If you trust whoever made it, run: liverxai models trust {folder}"
    )


def _decisions() -> _Decisions:
    path = trust_file()
    if not path.is_file():
        return _Decisions()
    decisions = read_json(path, _Decisions, "the list of trusted models")
    if decisions.version != _VERSION:
        raise ModelError(f"{path} has another version; delete it, and trust your models again.")
    return decisions


def _write(models: tuple[TrustDecision, ...]) -> None:
    path = trust_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.write_text(json.dumps(dataclasses.asdict(_Decisions(models=models)), indent=2) + "\n", encoding="utf-8")
