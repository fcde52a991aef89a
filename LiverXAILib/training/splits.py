# SPDX-License-Identifier: Apache-2.0
"""The split into training and validation cases: drawn once, recorded, and kept when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import replacing
from ..text import counted
from .config import Data
from .layouts import TrainingCase


@dataclass(frozen=True)
class Split:
    """Training cases and validation cases."""

    training: tuple[TrainingCase, ...]
    validation: tuple[TrainingCase, ...]


def draw_split(cases: Sequence[TrainingCase], data: Data, seed: int, fold: int = 0) -> Split:
    """Split as configured: by named validation cases, fold `fold` of k, or a random fraction.

    The same cases and seed give the same split, and a smaller ``training_cases`` gives the beginning of the same list.
    """
    shuffled = [cases[int(n)] for n in np.random.default_rng(seed).permutation(len(cases))]
    if data.validation_cases:
        validation = [case for case in shuffled if case.name in data.validation_cases]
    elif data.folds is not None:
        if data.folds > len(cases):
            raise InputError(f"{counted(len(cases), 'case')} cannot be divided into {data.folds} folds.")
        validation = shuffled[fold :: data.folds]
    else:
        validation = shuffled[: min(len(cases) - 1, max(1, round(data.validation * len(cases))))]
    names = {case.name for case in validation}
    training = [case for case in shuffled if case.name not in names]
    if not training:
        raise InputError("All cases are in data.validation_cases; none is left to train on.")
    if data.training_cases is not None:
        training = training[: data.training_cases]
    return Split(tuple(training), tuple(validation))


def record_split(split: Split, path: Path) -> None:
    """Write the names and files of both parts."""
    content = {
        part: [{"name": case.name, "files": [str(file) for file in case.files]} for case in cases]
        for part, cases in (("training", split.training), ("validation", split.validation))
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def recorded_split(cases: Sequence[TrainingCase], path: Path) -> Split:
    """The split recorded in `path`, whatever has been added to the data set since.

    :raises LiverXAILib.errors.InputError: one of its cases is no longer among `cases`.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    by_name = {case.name: case for case in cases}
    if missing := [c["name"] for part in ("training", "validation") for c in content[part] if c["name"] not in by_name]:
        raise InputError(f"Case {missing[0]!r} of {path} is no longer in the data set: this run cannot be resumed.")
    training, validation = (tuple(by_name[c["name"]] for c in content[part]) for part in ("training", "validation"))
    return Split(training, validation)
