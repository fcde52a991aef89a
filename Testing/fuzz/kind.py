# SPDX-License-Identifier: Apache-2.0
"""The base class of kinds of attack."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import ClassVar

import numpy as np

Generator = np.random.Generator


class BrokenPromiseError(Exception):
    """LiverXAI did something that it promises never to do."""


class Kind:
    """One kind of attack. `folder` is where it prepares the files that all its cases start from.

    A case may succeed, or end with one of LiverXAI's own errors, which is a refusal; anything else is a finding.
    """

    #: Seconds that one case may take; megabytes of address space that cases may need beyond the prepared process.
    limit_s: ClassVar[float] = 30.0
    limit_mb: ClassVar[int] = 3000

    def __init__(self, folder: Path) -> None:
        self.base = folder

    def run(self, rng: Generator, folder: Path) -> str:
        """Run one case in an empty `folder`; everything about it follows from `rng`.

        :return: the outcome in a word or two, for the counts.
        :raises BrokenPromiseError: a promise was broken.
        """
        raise NotImplementedError


#: If all kinds are run, a slow kind runs one in this many cases.
ONE_OF = {"signals": 50}

#: The kinds by name: module and class.
KINDS = {
    "images": ("images", "Images"),
    "dicom": ("dicom", "Dicom"),
    "models": ("models", "Models"),
    "records": ("records", "Records"),
    "wire": ("wire", "Wire"),
    "kills": ("faults", "Kills"),
    "disks": ("faults", "Disks"),
    "signals": ("signals", "Signals"),
}


def kind_class(name: str) -> type[Kind]:
    """The class of a kind. Its imports take seconds, and belong in the child process."""
    module, cls = KINDS[name]
    return getattr(importlib.import_module(f"fuzz.{module}"), cls)
