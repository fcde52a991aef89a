# SPDX-License-Identifier: Apache-2.0
"""FROC (Chakraborty 1989): sensitivity over lesions against false positives per case, as the threshold is lowered.

All connected components that the model marks are included, even those below the operating point (candidates), so the
curve shows what another operating point would find. A component's score is its largest probability. A lesion is found,
and a component is a false positive, by the definitions of :mod:`LiverXAILib.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..inference.lesions import LEAST_CANDIDATE_ML
from ..volumes.box import components
from .metrics import COVERED, SIZE_LIMITS_MM, SIZE_NAMES, bootstrap_interval

#: The maximum number of points of a curve.
_POINTS = 50


@dataclass(frozen=True)
class FrocCase:
    """One case: the scores of false positives, and for each lesion its size class (0 to 2) and the highest score
    threshold at which it is found; None: never."""

    false_scores: tuple[float, ...]
    lesions: tuple[tuple[int, float | None], ...]


def froc_case(
    prediction: np.ndarray,
    probability: np.ndarray,
    reference: np.ndarray,
    voxel_volume_mm3: float,
    region: np.ndarray | None = None,
) -> FrocCase:
    """The components of one case: where the prediction is tumor, or its probability is above 0.5.

    Components of less than :data:`~LiverXAILib.inference.lesions.LEAST_CANDIDATE_ML` do not count, because no operating
    point makes them lesions.

    :param prediction, reference: bool (k, j, i); `probability`: of tumor, float (k, j, i).
    :param region: components with less than half of their voxels in it (the liver) do not count.
    """
    pieces = components(prediction | (probability > 0.5), corners=True)
    count = int(pieces.max())
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    scores = np.zeros(count + 1)
    np.maximum.at(scores, pieces[pieces > 0], probability[pieces > 0])
    true = np.bincount(pieces[reference], minlength=count + 1) >= np.maximum(COVERED * sizes, 1)
    inside = sizes * voxel_volume_mm3 >= LEAST_CANDIDATE_ML * 1000
    if region is not None:
        inside &= 2 * np.bincount(pieces[region], minlength=count + 1) >= sizes
    inside[0] = False
    lesions = components(reference, corners=True)
    found = []
    for number in range(1, int(lesions.max()) + 1):
        mask = lesions == number
        size = np.count_nonzero(mask)
        kind = int(np.searchsorted(SIZE_LIMITS_MM, np.cbrt(6 * size * voxel_volume_mm3 / np.pi), side="right"))
        shared = np.bincount(pieces[mask], minlength=count + 1) * inside
        order = np.argsort(-scores)
        enough = np.flatnonzero((np.cumsum(shared[order]) >= COVERED * size) & (np.cumsum(shared[order]) > 0))
        found.append((kind, float(scores[order[enough[0]]]) if len(enough) else None))
    return FrocCase(tuple(float(score) for score in scores[inside & ~true]), tuple(found))


def froc(cases: Sequence[FrocCase], scores: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """The points of the curve, from the highest to the lowest score threshold; empty without lesions or components.

    :param scores: the thresholds; None: the steps of the curve.
    :return: rows with `score`, `false_per_case` and `sensitivity`, for all lesions and for each size class, each with
        the ends of its 95 % interval over cases (``…_low``, ``…_high``; None for fewer than three cases).
    """
    if scores is None:
        steps = {score for case in cases for score in case.false_scores}
        steps |= {score for case in cases for _, score in case.lesions if score is not None}
        scores = sorted(steps, reverse=True)
        if len(scores) > _POINTS:
            scores = [scores[index] for index in np.linspace(0, len(scores) - 1, _POINTS).round().astype(int)]
    if not any(case.lesions for case in cases):
        return []
    rows = []
    for score in scores:
        false = [float(sum(value >= score for value in case.false_scores)) for case in cases]
        row: dict[str, Any] = {"score": score, **_rate("false_per_case", false)}
        for name, kinds in (("", range(3)), *((f" {name}", (n,)) for n, name in enumerate(SIZE_NAMES))):
            own = [[value for kind, value in case.lesions if kind in kinds] for case in cases]
            hits = [float(sum(value is not None and value >= score for value in case)) for case in own]
            row |= _rate(f"sensitivity{name}", hits, [float(len(case)) for case in own])
        rows.append(row)
    return rows


def _rate(name: str, above: list[float], below: list[float] | None = None) -> dict[str, float | None]:
    total = len(above) if below is None else sum(below)
    low, high = (bootstrap_interval(above, below, samples=1000) if total else None) or (None, None)
    return {name: sum(above) / total if total else None, f"{name}_low": low, f"{name}_high": high}
