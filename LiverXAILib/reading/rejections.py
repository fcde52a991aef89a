# SPDX-License-Identifier: Apache-2.0
"""The lesions that a reader has rejected and not restored, and the status of the model's candidates.

Both are identified by voxels, not by numbers: another sensitivity or another decision renumbers lesions and candidates,
and can turn one into the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..analysis import Decision
from ..inference.lesions import numbered_candidates
from ..inference.masks import Mask
from ..inference.segmentation import Segmentation
from ..volumes.box import Box
from .packing import unpack_mask


@dataclass(frozen=True, eq=False)
class Rejection:
    """A rejected lesion: the decision, the box in the image, and the lesion's voxels (bool; k, j, i) in the box."""

    decision: Decision
    box: Box
    mask: np.ndarray = field(repr=False)


def rejections(decisions: Sequence[Decision], segmentation: Segmentation, own: Segmentation) -> list[Rejection]:
    """The rejected lesions to be listed, the largest first.

    A candidate that was dismissed is one of them at an operating point at which the model counts it as a lesion. A
    rejected lesion is not listed if most of it is a lesion again, for whatever reason, or belongs to candidates of
    the model that are listed as rejected. A rejected part of a candidate that is accepted or open is listed.

    :param segmentation: the current labels.
    :param own: the model's labels.
    """
    found: list[Rejection] = []
    box, pieces = numbered_candidates(own)
    statuses = candidate_statuses(segmentation, own, decisions)
    listed = np.isin(pieces, [number for number, status in statuses.items() if status == "rejected"])
    for decision in reversed(decisions):
        if decision.kind not in ("reject", "dismiss"):
            continue
        one = Rejection(decision, *unpack_mask(decision.voxels))
        again = segmentation.mask("tumor", one.box) if one.mask.any() else one.mask
        if not one.mask.any() or most(again, one.mask):
            continue
        if most(Mask(box, listed).on(one.box), one.mask):
            continue
        # A lesion that was rejected twice is listed once.
        if not any(most(Mask(other.box, other.mask).on(one.box), one.mask) for other in found):
            found.append(one)
    return sorted(found, key=lambda one: -np.count_nonzero(one.mask))


def candidate_statuses(segmentation: Segmentation, own: Segmentation, decisions: Sequence[Decision]) -> dict[int, str]:
    """Whether each candidate is "open", or what the reader decided, by number: "accepted" or "rejected".

    :param segmentation: the current labels.
    :param own: the model's labels.
    """
    box, pieces = numbered_candidates(own)
    tumor, decided = segmentation.mask("tumor", box), np.zeros(pieces.shape, bool)
    if pieces.size:
        for decision in decisions:
            if decision.kind in ("accept", "reject", "dismiss"):
                decided |= unpack_mask(decision.voxels).on(box)
    statuses = {}
    for number in range(1, int(pieces.max(initial=0)) + 1):
        piece = pieces == number
        rejected = "rejected" if most(decided, piece) else "open"
        statuses[number] = "accepted" if most(tumor, piece) else rejected
    return statuses


def most(other: np.ndarray, mask: np.ndarray) -> bool:
    """Whether most voxels of `mask` are also in `other`."""
    return bool(2 * np.count_nonzero(other & mask) > np.count_nonzero(mask))
