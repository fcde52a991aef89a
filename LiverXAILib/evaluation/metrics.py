# SPDX-License-Identifier: Apache-2.0
"""How well a segmentation agrees with a reference: numbers for one structure of one case, and over cases.

Where definitions vary, these are used:

* **Dice, IoU**: over voxels. Both masks empty: None (there was nothing to find). Only one empty: 0.
* **Surface distances** are those of MONAI (the same as DeepMind's surface-distance; Nikolov et al., JMIR 2021):
  surfaces lie between voxels, and every surface element is weighted by its area. HD95 is the larger of the two
  directed 95th percentiles; ASSD is the mean over both surfaces together; NSD is the fraction of both surfaces that
  lies within the tolerance of the other. A mask that is cut by the image's border has a surface there.
* **Lesions** are connected components (26 neighbors). A reference lesion is *found* if at least a tenth of its
  volume is predicted to be tumor; a predicted lesion is *true* if at least a tenth of its volume is tumor. Thus a
  prediction that joins two lesions has found both, and one that floods the liver is false.
* **ECE**, the expected calibration error (Naeini et al. 2015): predicted probabilities in ten equal bins; the mean
  gap between a bin's probability and how often the voxels in it truly are the structure.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..text import how_to_install
from ..volumes.box import components

#: Upper limits in mm of the size classes of lesions (diameter of a sphere of the same volume), and the class names.
SIZE_LIMITS_MM = (10.0, 20.0)
SIZE_NAMES = ("<10 mm", "10-20 mm", ">20 mm")
#: A lesion counts as hit if at least this fraction of its volume is covered.
COVERED = 0.1


@dataclass(frozen=True)
class Overlap:
    """Volumes in ml, prediction against reference. Percent of the reference; None where undefined (module text)."""

    dice: float | None
    iou: float | None
    predicted_ml: float
    reference_ml: float
    difference_ml: float
    difference_percent: float | None


@dataclass(frozen=True)
class SurfaceDistances:
    """In mm; `nsd` is a fraction. None if either mask is empty."""

    hd95_mm: float | None
    assd_mm: float | None
    nsd: float | None


@dataclass(frozen=True)
class LesionDetection:
    """Counts by size class (:data:`SIZE_NAMES`): reference lesions, those that were found, predicted lesions, and those
    that are true."""

    reference: tuple[int, int, int]
    found: tuple[int, int, int]
    predicted: tuple[int, int, int]
    true: tuple[int, int, int]

    @property
    def false(self) -> int:
        """Number of predicted lesions where the reference has none."""
        return sum(self.predicted) - sum(self.true)


def overlap(prediction: np.ndarray, reference: np.ndarray, voxel_volume_mm3: float) -> Overlap:
    """Overlap of two boolean arrays of the same shape."""
    common = int(np.count_nonzero(prediction & reference))
    predicted, expected = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    either = predicted + expected - common
    ml = voxel_volume_mm3 / 1000
    return Overlap(
        dice=2 * common / (predicted + expected) if either else None,
        iou=common / either if either else None,
        predicted_ml=predicted * ml,
        reference_ml=expected * ml,
        difference_ml=(predicted - expected) * ml,
        difference_percent=100 * (predicted - expected) / expected if expected else None,
    )


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing_kji: Sequence[float], tolerance_mm: float = 2.0
) -> SurfaceDistances:
    """Distances between the surfaces of two boolean arrays (k, j, i) with right-angled voxels of `spacing_kji` mm.

    :raises LiverXAILib.errors.UsageError: MONAI is not installed, or the tolerance is not a distance.
    """
    require_tolerance(tolerance_mm)
    if not prediction.any() or not reference.any():
        return SurfaceDistances(None, None, None)
    try:
        from monai.metrics.utils import get_edge_surface_distance
    except ImportError as error:
        raise UsageError(
            f"Surface distances need MONAI: {how_to_install('evaluate')}; or leave them out (--no-surface)."
        ) from error
    import torch

    with warnings.catch_warnings():
        # MONAI warns about an option that it sets itself.
        warnings.filterwarnings("ignore", message="monai.metrics.utils get_mask_edges", category=FutureWarning)
        edges, distances, areas = get_edge_surface_distance(
            torch.from_numpy(np.ascontiguousarray(prediction)),
            torch.from_numpy(np.ascontiguousarray(reference)),
            spacing=[float(size) for size in spacing_kji],
            use_subvoxels=True,
            symmetric=True,
        )
    both = [
        (distance.double().numpy(), area[edge].double().numpy())
        for distance, area, edge in zip(distances, areas, edges, strict=True)
    ]
    total = sum(float(weight.sum()) for _, weight in both)
    return SurfaceDistances(
        hd95_mm=max(_weighted_percentile(d, weight, 0.95) for d, weight in both),
        assd_mm=sum(float((d * weight).sum()) for d, weight in both) / total,
        nsd=sum(float(weight[d <= tolerance_mm].sum()) for d, weight in both) / total,
    )


def require_tolerance(tolerance_mm: float) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` unless the tolerance of the surface Dice is a distance."""
    if not 0 <= tolerance_mm < float("inf"):
        raise UsageError(f"The tolerance of the surface Dice must be 0 mm or more, not {tolerance_mm:g}.")


def _weighted_percentile(values: np.ndarray, weights: np.ndarray, fraction: float) -> float:
    """The smallest value at or below which at least `fraction` of the weight lies."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(cumulative, fraction)), len(values) - 1)])


def detect_lesions(prediction: np.ndarray, reference: np.ndarray, voxel_volume_mm3: float) -> LesionDetection:
    """Lesion-wise detection by size: which reference lesions are found, which predicted lesions are true."""
    expected, found = _hits(reference, prediction, voxel_volume_mm3)
    predicted, true = _hits(prediction, reference, voxel_volume_mm3)
    return LesionDetection(expected, found, predicted, true)


def _hits(
    lesions: np.ndarray, other: np.ndarray, voxel_volume_mm3: float
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Numbers of lesions by size class: all, and those that `other` covers well enough."""
    numbers = components(lesions, corners=True)
    sizes = np.bincount(numbers.ravel())[1:]
    covered = np.bincount(numbers[other], minlength=len(sizes) + 1)[1:]
    diameters = np.cbrt(6 * sizes * voxel_volume_mm3 / np.pi)
    classes = np.searchsorted(SIZE_LIMITS_MM, diameters, side="right")
    hit = (covered >= COVERED * sizes) & (covered > 0)
    small, medium, large = (int(n) for n in np.bincount(classes, minlength=3))
    hit_small, hit_medium, hit_large = (int(n) for n in np.bincount(classes[hit], minlength=3))
    return (small, medium, large), (hit_small, hit_medium, hit_large)


def calibration_error(probability: np.ndarray, truth: np.ndarray, bins: int = 10) -> float | None:
    """ECE of the probabilities of one structure (any shape) against its true mask (bool); None without voxels."""
    if not probability.size:
        return None
    p = probability.ravel().astype(np.float64)
    index = np.minimum((p * bins).astype(int), bins - 1)
    confidence = np.bincount(index, weights=p, minlength=bins)
    accuracy = np.bincount(index, weights=truth.ravel(), minlength=bins)
    return float(np.abs(accuracy - confidence).sum() / p.size)


def bootstrap_interval(
    numerators: Sequence[float], denominators: Sequence[float] | None = None, *, samples: int = 5000
) -> tuple[float, float] | None:
    """95 % interval of a mean over cases, or of a ratio of sums, by drawing cases with replacement (percentiles).

    The same cases give the same interval, because the seed is fixed.

    :param numerators: one number for each case.
    :param denominators: likewise, for a ratio such as lesions found / lesions; None: the mean.
    :return: (low, high); None for fewer than three cases, for which an interval would be meaningless.
    """
    above = np.asarray(numerators, dtype=float)
    below = np.ones_like(above) if denominators is None else np.asarray(denominators, dtype=float)
    if len(above) < 3:
        return None
    draws = np.random.default_rng(0).integers(len(above), size=(samples, len(above)))
    sums = below[draws].sum(axis=1)
    ratios = above[draws].sum(axis=1)[sums > 0] / sums[sums > 0]
    if not len(ratios):
        return None
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)
