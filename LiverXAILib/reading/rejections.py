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
    rejected lesion is not listed if most of it is a lesion again, for whatever reason, or if it is a candidate of
    the model, because it is then listed among the candidates.

    :param segmentation: the current labels.
    :param own: the model's labels.
    """
    found: list[Rejection] = []
    box, pieces = numbered_candidates(own)
    for decision in reversed(decisions):
        if decision.kind not in ("reject", "dismiss"):
            continue
        one = Rejection(decision, *unpack_mask(decision.voxels))
        again = segmentation.mask("tumor", one.box) if one.mask.any() else one.mask
        if not one.mask.any() or most(again, one.mask):
            continue
        if most(Mask(box, pieces > 0).on(one.box), one.mask):
            continue
        # A lesion that was rejected twice is listed once.
        if not any(most(Mask(other.box, other.mask).on(one.box), one.mask) for other in found):
            found.append(one)
    return sorted(found, key=lambda one: -np.count_nonzero(one.mask))


def candidate_status(piece: np.ndarray, box: Box, segmentation: Segmentation, decisions: Sequence[Decision]) -> str:
    """Whether a candidate is "open", or what the reader decided: "accepted" or "rejected".

    :param piece: the candidate's voxels (bool; k, j, i) in `box` of the image.
    """
    if most(segmentation.mask("tumor", box), piece):
        return "accepted"
    for decision in decisions:
        if decision.kind in ("accept", "reject", "dismiss") and most(unpack_mask(decision.voxels).on(box), piece):
            return "rejected"
    return "open"


def most(other: np.ndarray, mask: np.ndarray) -> bool:
    """Whether most voxels of `mask` are also in `other`."""
    return bool(2 * np.count_nonzero(other & mask) > np.count_nonzero(mask))
