# SPDX-License-Identifier: Apache-2.0
"""How often findings like this one are true: a calibrated probability, a word, and the reason, for each finding.

Five features that take milliseconds to compute separate true findings from false ones. The model card contains a
logistic regression on them (:class:`~LiverXAILib.models.spec.Reliability`), fitted on findings with known ground truth;
without it, no reliability is given. The features are computed on a grid of :data:`_SPACING_MM`, so that they are
comparable between images of different voxel sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import exp, log10, pi

import numpy as np
from scipy import ndimage

from ..inference.segmentation import Segmentation
from ..models.spec import Reliability
from ..volumes.box import Box
from ..volumes.resample import regrid, resample
from ..volumes.volume import Grid
from .measurements import FindingReliability
from .uncertainty import binary_entropy

#: Voxel size at which features are computed.
_SPACING_MM = 2.0
#: Voxels within this distance of the border, on both sides, are "at the border".
_BORDER_MM = 2.0
#: Thickness of the shell around a finding; the feature is the fraction of the shell outside the liver.
_SHELL_MM = 4.0
#: A finding is "likely" from the first probability on, and "doubtful" below the second.
LIKELY, DOUBTFUL = 0.8, 0.4
#: A feature is given as a reason if it lowers the log-odds by this much and by this fraction of all negative terms.
_REASON, _PART = 0.4, 0.25

#: The text for each feature that lowers the probability.
_REASONS = {
    "edge_share": "it lies at the edge of the liver",
    "border_entropy": "its border is uncertain",
    "compactness": "its shape is irregular",
    "mean_probability": "its mean tumor probability is low",
    "log10_ml": "it is small",
}


def finding_features(
    numbers: np.ndarray, segmentation: Segmentation, inside: Box | None = None
) -> list[dict[str, float]]:
    """The features of each numbered component, in the order of the numbers; empty without tumor probabilities.

    * ``border_entropy``: mean binary entropy in bits, within 2 mm of the border on both sides;
    * ``compactness``: radius of the largest inscribed sphere over that of a sphere of the same volume, at most 1;
    * ``mean_probability``: over the component;
    * ``edge_share``: the fraction of a 4 mm shell around the component that is not liver (lesions count as liver);
    * ``log10_ml``: logarithm of its volume in ml.

    :param numbers: int (k, j, i) on the segmentation's grid, 0 background, then 1 to the number of components.
    :param inside: the part of the grid that `numbers` covers; None: all of it.
    """
    probability = segmentation.probabilities.get("tumor")
    if probability is None or not numbers.any():
        return []
    grid = segmentation.labels.grid
    known = grid.box_of(probability.grid)
    parent = segmentation.spec("tumor").parent
    margin = [int(np.ceil((_SHELL_MM + _SPACING_MM) / size)) for size in grid.spacing[::-1]]
    found = []
    for number, slices in enumerate(ndimage.find_objects(numbers), start=1):
        own = Box(*slices) if inside is None else Box(*slices).shifted(inside.start)
        box = own.grown(margin, grid.shape)
        mask = np.zeros(box.shape, bool)
        mask[own.relative_to(box)] = numbers[slices] == number
        values = np.zeros(box.shape, np.float32)
        if (common := known.intersection(box)) is not None:
            values[common.relative_to(box)] = probability.array[common.relative_to(known)]
        organ = segmentation.mask(parent, box) if parent is not None else np.ones(box.shape, bool)
        found.append(_features(mask, values, organ, grid.cropped(box)))
    return found


def _features(mask: np.ndarray, probability: np.ndarray, organ: np.ndarray, grid: Grid) -> dict[str, float]:
    """The features of one component; all arrays (k, j, i) on `grid`, which extends beyond the component."""
    ml = np.count_nonzero(mask) * grid.voxel_volume_mm3 / 1000
    mean = float(probability[mask].mean())
    fine = regrid(grid, (_SPACING_MM,) * 3)
    images = np.stack([mask.astype(np.float32), probability, organ.astype(np.float32)])
    share, p, inside = resample(images, grid, fine, antialias=False).numpy()
    # A component thinner than the grid spacing would vanish.
    piece = share >= min(0.5, float(share.max()))
    depth = ndimage.distance_transform_edt(piece, sampling=_SPACING_MM)
    height = ndimage.distance_transform_edt(~piece, sampling=_SPACING_MM)
    border = (piece & (depth <= _BORDER_MM)) | (~piece & (height <= _BORDER_MM))
    shell = ~piece & (height <= _SHELL_MM)
    radius = float(0.75 / pi * np.count_nonzero(piece) * _SPACING_MM**3) ** (1 / 3)
    return {
        "border_entropy": float(binary_entropy(p[border].clip(0, 1)).mean()),
        "compactness": min(1.0, (float(depth.max()) - _SPACING_MM / 2) / radius),
        "mean_probability": mean,
        "edge_share": float((inside[shell] < 0.5).mean()) if shell.any() else 0.0,
        "log10_ml": log10(ml),
    }


def finding_reliability(
    numbers: np.ndarray, segmentation: Segmentation, inside: Box | None = None
) -> Iterator[FindingReliability | None]:
    """The reliability of each numbered tumor component; None if the model card does not define it.

    The parameters are those of :func:`finding_features`.
    """
    card = segmentation.provenance.get("reliability")
    if card is None:
        yield from [None] * int(numbers.max(initial=0))
        return
    reliability = Reliability(**card)
    for features in finding_features(numbers, segmentation, inside):
        yield rate_finding(features, reliability)


def rate_finding(features: Mapping[str, float], reliability: Reliability) -> FindingReliability:
    """The probability that a finding with these features is true, its category, and what lowers it.

    ``1 / (1 + exp(-(intercept + sum weight (feature - center) / scale)))``
    """
    terms = {
        name: weight * (features[name] - reliability.centers[name]) / reliability.scales[name]
        for name, weight in reliability.weights.items()
    }
    probability = 1 / (1 + exp(-(reliability.intercept + sum(terms.values()))))
    word = "likely" if probability >= LIKELY else "doubtful" if probability < DOUBTFUL else "uncertain"
    return FindingReliability(probability, word, "" if word == "likely" else _reason(terms), dict(features))


def _reason(terms: Mapping[str, float]) -> str:
    """What lowers the log-odds most, as text; at most two reasons."""
    lowering = sorted((value, name) for name, value in terms.items() if value < 0)
    total = sum(value for value, _ in lowering)
    named = [name for value, name in lowering if value <= -_REASON and value <= _PART * total][:2]
    return ", ".join(_REASONS[name] for name in named)
