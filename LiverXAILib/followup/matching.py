# SPDX-License-Identifier: Apache-2.0
"""Matching of lesions between two registered studies, by overlap and distance.

Each current lesion is mapped to the prior study. One-to-one pairs are then chosen so that the sum of their scores is
maximal (the Hungarian method). A remaining current lesion is part of a split lesion if it lies mostly within a prior
lesion; otherwise it is new. A remaining prior lesion has merged if it lies mostly within a current lesion; otherwise it
has vanished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..inference.lesions import lesion_components
from ..inference.segmentation import Segmentation
from ..volumes.volume import Grid

#: A lesion of which this fraction lies within another one belongs to it.
WITHIN = 0.5
#: To allow for registration errors, lesions that do not overlap can still be the same: if the gap between their
#: surfaces is at most the first value, and their centers are at most the second value plus half of both radii apart.
GAP_MM, APART_MM = 4.0, 12.0
#: Maximum number of points of a lesion that are mapped.
_MOST_POINTS = 4000


@dataclass(frozen=True, eq=False)
class Region:
    """A lesion as a set of points.

    :param points: centers of its voxels, or of an evenly spaced selection: (n, 3), LPS mm.
    :param ml: its volume.
    :param reach_mm: distance from the center of a voxel to its corner.
    """

    number: int
    points: np.ndarray = field(repr=False)
    ml: float
    reach_mm: float


@dataclass(frozen=True)
class Link:
    """Lesions that belong together: their numbers in the prior and the current study.

    One side is empty for lesions that are new or have vanished.
    """

    prior: tuple[int, ...]
    current: tuple[int, ...]


def regions(segmentation: Segmentation) -> list[Region]:
    """The lesions of a study, in the order of their numbers."""
    numbers = lesion_components(segmentation)
    grid = segmentation.labels.grid
    voxels = np.argwhere(numbers)
    owners = numbers[tuple(voxels.T)]
    return [_region(number, voxels[owners == number], grid) for number in range(1, int(numbers.max(initial=0)) + 1)]


def _region(number: int, voxels: np.ndarray, grid: Grid) -> Region:
    step = -(-len(voxels) // _MOST_POINTS)
    reach = float(np.linalg.norm(grid.spacing)) / 2 * step ** (1 / 3)
    return Region(number, grid.to_lps(voxels[::step, ::-1]), len(voxels) * grid.voxel_volume_mm3 / 1000, reach)


def match(
    prior: Sequence[Region], current: Sequence[Region], to_prior: Callable[[np.ndarray], np.ndarray]
) -> tuple[Link, ...]:
    """Link the lesions of two studies.

    :param to_prior: maps points (n, 3) of the current study to the prior one, LPS mm.
    :return: links in which each lesion occurs exactly once; those with a prior lesion first, in order of their numbers.
    """
    carried = [to_prior(region.points) for region in current]
    score = np.zeros((len(prior), len(current)))
    covered = np.zeros_like(score)  # fraction of the prior lesion covered by the current one
    inside = np.zeros_like(score)  # fraction of the current lesion inside the prior one
    for row, one in enumerate(prior):
        tree = cKDTree(one.points)
        for column, (other, points) in enumerate(zip(current, carried, strict=True)):
            away = tree.query(points)[0]
            inside[row, column] = float((away <= one.reach_mm).mean())
            covered[row, column] = float((cKDTree(points).query(one.points)[0] <= other.reach_mm).mean())
            if float(away.min()) <= max(GAP_MM, one.reach_mm):
                score[row, column] = _score(one, other, points, inside[row, column], covered[row, column])
    # A lesion that lies within another one is part of it, not a neighbor that has moved.
    overlap = np.maximum(inside, covered) > 0
    claimed = (inside >= WITHIN).any(axis=0, keepdims=True) | (covered >= WITHIN).any(axis=1, keepdims=True)
    score[np.logical_and(~overlap, claimed)] = 0.0
    rows, columns = linear_sum_assignment(score, maximize=True)
    joined = np.zeros(score.shape, bool)
    chosen = score[rows, columns] > 0
    joined[rows[chosen], columns[chosen]] = True
    for column in np.flatnonzero(~joined.any(axis=0)).tolist():
        row = int(inside[:, column].argmax()) if len(prior) else 0
        if len(prior) and inside[row, column] >= WITHIN:
            joined[row, column] = True
    for row in np.flatnonzero(~joined.any(axis=1)).tolist():
        column = int(covered[row].argmax()) if len(current) else 0
        if len(current) and covered[row, column] >= WITHIN:
            joined[row, column] = True
    return _links(prior, current, joined)


def _score(one: Region, other: Region, points: np.ndarray, inside: float, covered: float) -> float:
    """The matching score of two lesions: their Dice coefficient, plus a small bonus for proximity."""
    common = (inside * other.ml + covered * one.ml) / 2
    apart = float(np.linalg.norm(points.mean(axis=0) - one.points.mean(axis=0)))
    radii = sum((3000 * ml / (4 * np.pi)) ** (1 / 3) for ml in (one.ml, other.ml))
    limit = APART_MM + radii / 2
    return 2 * common / (one.ml + other.ml) + 0.05 * max(0.0, 1 - apart / limit)


def _links(prior: Sequence[Region], current: Sequence[Region], joined: np.ndarray) -> tuple[Link, ...]:
    rows, columns = np.nonzero(joined)
    size = len(prior) + len(current)
    graph = coo_array((np.ones(len(rows)), (rows, columns + len(prior))), shape=(size, size))
    _, groups = connected_components(graph, directed=False)
    links = []
    for group in dict.fromkeys(groups.tolist()):
        links.append(
            Link(
                tuple(region.number for region, own in zip(prior, groups, strict=False) if own == group),
                tuple(region.number for region, own in zip(current, groups[len(prior) :], strict=True) if own == group),
            )
        )
    return tuple(links)


def link_scores(found: Sequence[Link], truth: Sequence[Link]) -> Mapping[str, int]:
    """The number of correct ("true"), incorrect ("false") and missing ("missed") links between lesions.

    A link of several lesions counts once for each pair of them.
    """
    pairs, wanted = ({pair for link in links for pair in _pairs(link)} for links in (found, truth))
    return {"true": len(pairs & wanted), "false": len(pairs - wanted), "missed": len(wanted - pairs)}


def _pairs(link: Link) -> list[tuple[int | None, int | None]]:
    return [(one, other) for one in link.prior or (None,) for other in link.current or (None,)]
