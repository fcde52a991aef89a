# SPDX-License-Identifier: Apache-2.0
"""How far two segmentations of one CT agree: Dice coefficients, and the lesions that both have or only one has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..errors import UsageError
from ..inference.lesions import Point, numbered_lesions
from ..inference.segmentation import Segmentation
from ..volumes.box import Box
from .findings import Findings


@dataclass(frozen=True)
class StructureAgreement:
    """A structure with its parts in two segmentations: its volumes, and their Dice coefficient; None: in neither."""

    first_ml: float
    second_ml: float
    dice: float | None


@dataclass(frozen=True)
class LesionAgreement:
    """Lesions of two segmentations that share voxels; one side is empty for a lesion that only one of them has.

    :param first, second: their numbers; there are several if one has divided what is a single lesion in the other.
    :param dice: of all of them together; 0 if one side is empty.
    :param place_lps_mm: a voxel of the largest one.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    dice: float
    place_lps_mm: Point


@dataclass(frozen=True)
class Agreement:
    """The agreement of two segmentations of one CT: of each structure, by name, and of the lesions."""

    structures: Mapping[str, StructureAgreement]
    lesions: tuple[LesionAgreement, ...]

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many lesions both have (groups that share voxels count once), only the first has, and only the second."""
        both = sum(bool(one.first and one.second) for one in self.lesions)
        return both, sum(not one.second for one in self.lesions), sum(not one.first for one in self.lesions)


def agreement(first: Segmentation, second: Segmentation) -> Agreement:
    """Compare two segmentations of one CT.

    :raises LiverXAILib.errors.UsageError: they are not on the same grid.
    """
    grid = first.labels.grid
    if not grid.matches(second.labels.grid):
        raise UsageError("Only segmentations on the same grid can be compared.")
    names = [spec.name for spec in first.specs if any(spec.name == other.name for other in second.specs)]
    around = Box.union(box for box in (first.box, second.box, Box.full((0, 0, 0))) if box is not None)
    ml = grid.voxel_volume_mm3 / 1000
    structures = {}
    for name in names:
        one, other = first.mask(name, around), second.mask(name, around)
        sizes = int(np.count_nonzero(one)), int(np.count_nonzero(other))
        dice = _dice(int(np.count_nonzero(one & other)), *sizes) if any(sizes) else None
        structures[name] = StructureAgreement(sizes[0] * ml, sizes[1] * ml, dice)
    return Agreement(structures, _lesions(first, second) if "tumor" in names else ())


def _dice(shared: int, first: int, second: int) -> float:
    return 2 * shared / (first + second)


def _lesions(first: Segmentation, second: Segmentation) -> tuple[LesionAgreement, ...]:
    """The lesions in groups that share voxels: those of the first in order of their numbers, then those it lacks."""
    grid, sides = first.labels.grid, (numbered_lesions(first), numbered_lesions(second))
    found = [Findings.numbered("lesion", grid, *side) for side in sides]
    sizes = [np.bincount(numbers.ravel(), minlength=1) for _box, numbers in sides]
    counts = [len(one.masks) for one in found]
    shape = counts[0] + 1, counts[1] + 1
    shared: np.ndarray = np.zeros(shape, int)
    (box, one), (other_box, other) = sides
    if (common := box.intersection(other_box)) is not None:
        pairs = one[common.relative_to(box)] * shape[1] + other[common.relative_to(other_box)]
        shared = np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    rows, columns = np.nonzero(shared[1:, 1:])
    links = coo_array((np.ones(len(rows)), (rows, columns + counts[0])), shape=(sum(counts), sum(counts)))
    _count, groups = connected_components(links, directed=False)
    lesions = []
    for group in dict.fromkeys(groups.tolist()):
        members = [np.flatnonzero(part == group) + 1 for part in (groups[: counts[0]], groups[counts[0] :])]
        both = int(shared[np.ix_(*members)].sum())
        totals = [int(size[numbers].sum()) for size, numbers in zip(sizes, members, strict=True)]
        side = 0 if len(members[0]) else 1
        place = found[side].place(int(members[side][0]))
        first_ones, second_ones = (tuple(numbers.tolist()) for numbers in members)
        lesions.append(LesionAgreement(first_ones, second_ones, _dice(both, *totals), place))
    return tuple(lesions)
