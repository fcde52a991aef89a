# SPDX-License-Identifier: Apache-2.0
"""Operating points for lesions: the threshold between lesions and candidates.

A model card lists operating points from "specific" to "sensitive": the peak that a component of probability above 0.5
must reach to count, and the resulting false positives per case on the data that the card names. To change the point,
the network need not run again: components and their peaks follow from the probability stored in the segmentation.
"""

from __future__ import annotations

import dataclasses
import math
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import UsageError
from ..models.spec import ModelSpec, OperatingPoint
from ..volumes.box import Box, components
from .lesions import LEAST_CANDIDATE_ML, numbered_lesions
from .segmentation import Segmentation

#: The result of :func:`marked_pieces` for each segmentation in use: every decision of a reader needs it.
_MARKED: WeakKeyDictionary[Segmentation, tuple[Box, np.ndarray]] = WeakKeyDictionary()
#: The model's own operating point, and the ends of its card's table.
STANDARD, SPECIFIC, SENSITIVE = "standard", "specific", "sensitive"


def operating_points(model: ModelSpec, label: str = "tumor") -> tuple[OperatingPoint, ...]:
    """The operating points in the model card for a label, from specific to sensitive; empty if there are none."""
    if not any(spec.name == label for spec in model.labels):
        return ()
    return tuple(sorted(model.stage_of(label).operating_points.get(label, ()), key=lambda point: -point.peak))


def named_points(model: ModelSpec, label: str = "tumor") -> dict[str, OperatingPoint]:
    """The points by their names in :func:`choose_point`, from :data:`SPECIFIC` to :data:`SENSITIVE`."""
    points = operating_points(model, label)
    names = [SPECIFIC, *(f"{point.false_per_case:g}" for point in points[1:-1]), SENSITIVE]
    return dict(zip(names, points, strict=False))


def check_sensitivity(sensitivity: str) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` unless :func:`choose_point` can interpret this word or number.

    Whether a model has such a point depends on its card.
    """
    if sensitivity in (SPECIFIC, STANDARD, SENSITIVE):
        return
    try:
        allowed = float(sensitivity)
    except ValueError:
        allowed = math.nan
    if not allowed >= 0:
        raise UsageError(
            f"{sensitivity!r} is not a sensitivity. Give {SPECIFIC}, {STANDARD}, {SENSITIVE}, or how many false "
            "positives per case you accept, such as 0.5."
        )


def choose_point(model: ModelSpec, sensitivity: str) -> OperatingPoint | None:
    """The operating point for a user's word or number; None: the model's own.

    :param sensitivity: :data:`STANDARD`, :data:`SPECIFIC`, :data:`SENSITIVE`, or a number of false positives per case:
        the most sensitive point that does not exceed it.
    :raises LiverXAILib.errors.UsageError: it is none of these, or the card has no such point.
    """
    check_sensitivity(sensitivity)
    if sensitivity == STANDARD:
        return None
    points = operating_points(model)
    if not points:
        raise UsageError(
            f"Model {model.name!r} has no operating points for tumors in its model card. Leave --sensitivity out."
        )
    if sensitivity in (SPECIFIC, SENSITIVE):
        return points[0 if sensitivity == SPECIFIC else -1]
    allowed = float(sensitivity)
    fitting = [point for point in points if point.false_per_case <= allowed]
    if not fitting:
        least = min(point.false_per_case for point in points)
        raise UsageError(
            f"No operating point of model {model.name!r} has at most {allowed:g} false positives per case; the most "
            f"specific one has {least:g}."
        )
    return fitting[-1]


def marked_pieces(segmentation: Segmentation) -> tuple[Box, np.ndarray]:
    """Number all components that the network segments as tumor: each is a lesion at some operating point.

    :return: a box of the image, and in it the numbers of the components (k, j, i), 0 background.
    """
    if segmentation not in _MARKED:
        probability = segmentation.probabilities.get("tumor")
        if probability is None:
            return numbered_lesions(segmentation)
        box = segmentation.labels.grid.box_of(probability.grid)
        _MARKED[segmentation] = (
            box,
            components((probability.array > 0.5) | segmentation.mask("tumor", box), corners=True),
        )
    return _MARKED[segmentation]


def at_sensitivity(segmentation: Segmentation, model: ModelSpec, sensitivity: str) -> Segmentation:
    """The segmentation with the lesions that count at another operating point.

    Outlines do not change; a component counts as a whole, or becomes a candidate.

    :param segmentation: the model's segmentation, at its own operating point.
    :raises LiverXAILib.errors.UsageError: as for :func:`choose_point`.
    """
    point = choose_point(model, sensitivity)
    probability = segmentation.probabilities.get("tumor")
    if point is None or probability is None:
        return segmentation
    level = 1 / (1 + math.exp(-point.peak))
    box, pieces = marked_pieces(segmentation)
    # Only voxels in components matter, and they are few.
    marked = np.nonzero(pieces)
    numbers, counted = pieces[marked], segmentation.mask("tumor", box)[marked]
    count = int(numbers.max(initial=0))
    peaks = np.zeros(count + 1)
    np.maximum.at(peaks, numbers, probability.array[marked].astype(peaks.dtype))  # one type: much faster
    sizes = np.bincount(numbers, minlength=count + 1)
    inside = np.bincount(numbers[segmentation.mask("liver", box)[marked]], minlength=count + 1)
    rules = segmentation.provenance.get("postprocessing", {})
    least_ml = max(LEAST_CANDIDATE_ML, rules.get("min_lesion_ml", 0.0))
    least = least_ml * 1000 / segmentation.labels.grid.voxel_volume_mm3
    before = np.bincount(numbers[counted], minlength=count + 1) > 0
    after = (peaks >= level) & (before | ((sizes >= least) & (2 * inside >= sizes)))
    labels = np.array(segmentation.labels.array)
    part, there = labels[box], np.stack(marked)
    part[tuple(there[:, (before & ~after)[numbers] & counted])] = segmentation.spec("liver").value
    part[tuple(there[:, (after & ~before)[numbers]])] = segmentation.spec("tumor").value
    provenance = {
        **segmentation.provenance,
        "peak_probability": {**segmentation.provenance.get("peak_probability", {}), "tumor": round(level, 4)},
        "sensitivity": {"asked": sensitivity, **dataclasses.asdict(point)},
    }
    return dataclasses.replace(segmentation, labels=segmentation.labels.with_array(labels), provenance=provenance)
