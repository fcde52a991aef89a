# SPDX-License-Identifier: Apache-2.0
"""Lesions of the default model's samples beyond plain ones: tumors in all phases, transplants, hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from LiverXAILib.training.lesion_painting import add_lesions
from LiverXAILib.training.random_fields import Rng

from .tissues import ContrastPhase
from .transplants import Graft, transplant
from .tumors import add_tumors

#: How often lesions are plain, tumors of :mod:`.tumors`, or transplants; and how often there is a second family.
_FAMILIES = {"plain": 0.45, "tumors": 0.35, "transplants": 0.20}
_SECOND = 0.25
#: Possible phases of a scan that is only known to be arterial, and so on.
_OF_SCAN = {
    "native": (ContrastPhase.NATIVE,),
    "arterial": (ContrastPhase.LATE_ARTERIAL, ContrastPhase.LATE_ARTERIAL, ContrastPhase.EARLY_ARTERIAL),
    "portal": (ContrastPhase.PORTAL, ContrastPhase.PORTAL, ContrastPhase.DELAYED),
}


@dataclass(frozen=True)
class Repertoire:
    """Draws lesions for a sample.

    :param grafts: real tumors to transplant.
    :param structures: fraction of the samples in which there may be hard negatives.
    """

    grafts: Sequence[Graft] = ()
    hard_negatives: float = 0.7

    def add_lesions(
        self,
        rng: Rng,
        image: torch.Tensor,
        healthy: torch.Tensor,
        spacing_mm: float,
        phase: ContrastPhase,
        curriculum: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Paint lesions of one or two families; see :func:`~LiverXAILib.training.lesion_painting.add_lesions`."""
        names = list(_FAMILIES)
        lesions = torch.zeros(healthy.shape, dtype=torch.uint8)
        for _ in range(2 if rng.chance(_SECOND) else 1):
            family = names[rng.choose(list(_FAMILIES.values()))]
            free = healthy & (lesions == 0)
            suitable = [graft for graft in self.grafts if phase in phases_of(graft.phase)]
            if family == "transplants" and suitable:
                image, added = transplant(rng, image, free, spacing_mm, suitable)
            elif family == "plain":
                image, added = add_lesions(rng, image, free, spacing_mm, curriculum)
            else:
                image, added = add_tumors(rng, image, free, spacing_mm, phase, curriculum)
            lesions = torch.where(added > 0, added + lesions.max(), lesions)
        return image, lesions


def phases_of(scan: str | None) -> tuple[ContrastPhase, ...]:
    """The possible phases of a scan, the likelier ones more than once; all if the phase is unknown."""
    return tuple(ContrastPhase) if scan is None else _OF_SCAN[scan]
