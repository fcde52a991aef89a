# SPDX-License-Identifier: Apache-2.0
"""Lesion-wise evaluation: matching of predicted and reference lesions, their agreement, and the model's confidence.

* **Matching** is one to one: of all pairs whose IoU is at least :data:`MATCH_IOU` the one with the largest IoU is taken
  first, then the next among the remaining lesions. (Whether a lesion was *found* is decided less strictly in
  :mod:`LiverXAILib.evaluation.metrics`, where one prediction may have found two lesions.)
* **Bland–Altman** (Lancet 1986;1:307): the mean difference and the limits of agreement, 1.96 standard deviations away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..measure.diameters import axial_diameters
from ..volumes.box import bounding_box, components
from ..volumes.volume import Grid

#: Two lesions match if their intersection is at least this fraction of their union.
MATCH_IOU = 0.1


@dataclass(frozen=True)
class LesionPair:
    """A reference lesion and the matching predicted one; None where one side has no such lesion.

    Lesions are numbered from 1, the largest first, separately on each side. `score` is the predicted lesion's largest
    probability; None without probabilities.
    """

    reference: int | None
    predicted: int | None
    dice: float | None
    iou: float | None
    reference_ml: float | None
    predicted_ml: float | None
    reference_long_mm: float | None
    predicted_long_mm: float | None
    score: float | None = None


@dataclass(frozen=True)
class BlandAltman:
    """Mean difference, prediction minus reference, and limits of agreement; None for fewer than two pairs."""

    n: int
    bias: float | None
    low: float | None
    high: float | None


def match_lesions(
    prediction: np.ndarray, reference: np.ndarray, grid: Grid, probability: np.ndarray | None = None
) -> tuple[LesionPair, ...]:
    """Pairs of lesions: matched and missed ones in the order of the reference's numbers, then false positives.

    :param prediction, reference: bool (k, j, i) on `grid`; lesions are their components (26 neighbors).
    :param probability: of tumor, on `grid`.
    """
    found, truth = (components(mask, corners=True, largest_first=True) for mask in (prediction, reference))
    n_found, n_truth = int(found.max()), int(truth.max())
    table = np.zeros((n_truth + 1, n_found + 1), np.int64)
    both = (found > 0) | (truth > 0)
    np.add.at(table, (truth[both], found[both]), 1)
    sizes_truth, sizes_found = table.sum(axis=1), table.sum(axis=0)
    union = sizes_truth[1:, None] + sizes_found[None, 1:] - table[1:, 1:]
    iou = np.divide(table[1:, 1:], union, out=np.zeros(union.shape), where=union > 0)
    partner: dict[int, int] = {}
    for index in np.argsort(-iou, axis=None, kind="stable"):
        row, column = (int(n) for n in np.unravel_index(index, iou.shape))
        if iou[row, column] < MATCH_IOU:
            break
        if row + 1 not in partner and column + 1 not in partner.values():
            partner[row + 1] = column + 1
    ml = grid.voxel_volume_mm3 / 1000
    long_truth, long_found = _long_axes(truth, grid), _long_axes(found, grid)
    false = [number for number in range(1, n_found + 1) if number not in partner.values()]
    pairs = []
    for mine, other in [*((n, partner.get(n)) for n in range(1, n_truth + 1)), *((None, n) for n in false)]:
        matched = mine is not None and other is not None
        score = None
        if probability is not None and other is not None:
            score = float(probability[found == other].max())
        pairs.append(
            LesionPair(
                mine,
                other,
                2 * int(table[mine, other]) / int(sizes_truth[mine] + sizes_found[other]) if matched else None,
                float(iou[mine - 1, other - 1]) if mine is not None and other is not None else None,
                None if mine is None else int(sizes_truth[mine]) * ml,
                None if other is None else int(sizes_found[other]) * ml,
                None if mine is None else long_truth[mine - 1],
                None if other is None else long_found[other - 1],
                score,
            )
        )
    return tuple(pairs)


def _long_axes(numbers: np.ndarray, grid: Grid) -> list[float]:
    """The longest axial diameter of each numbered lesion, in mm."""
    lengths = []
    for number in range(1, int(numbers.max()) + 1):
        box = bounding_box(numbers == number)
        assert box is not None
        lengths.append(axial_diameters(numbers[box] == number, grid.cropped(box)).long_mm)
    return lengths


def bland_altman(predicted: Sequence[float], reference: Sequence[float]) -> BlandAltman:
    """Agreement of pairs of measurements."""
    difference = np.subtract(predicted, reference)
    if len(difference) < 2:
        return BlandAltman(len(difference), float(difference[0]) if len(difference) else None, None, None)
    bias, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1))
    return BlandAltman(len(difference), bias, bias - spread, bias + spread)
