# SPDX-License-Identifier: Apache-2.0
"""Loss, accuracy, Dice, sensitivity and precision of an epoch, from sums over its batches or cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.metrics import compute_dice
from torch.nn import functional

#: Sums for each label; checkpoints store them in this order.
_OF_LABEL = (
    "voxels",  # whose label is known
    "bce",
    "soft_both",  # probability times truth
    "soft_total",
    "both",  # true positives
    "found",
    "true",
    "case_dice",  # sum of the samples' Dice; "cases": the number of samples for which Dice is defined
    "cases",
)
_OF_ALL = ("right", "voxels", "empty")


class EpochSums:
    """Sums from which an epoch's measures are computed; they add up over batches, cases and devices.

    The logged loss is soft Dice + binary cross-entropy over all voxels of an epoch's samples (training) or of all
    validation cases; it is 0 if every probability is correct. It does not depend on the batch size, and a slice or
    case without liver or tumor contributes its false positives.

    :param labels: labels of the channels, as in :class:`~.learner.Learner`.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.values = torch.zeros(len(_OF_ALL) + len(_OF_LABEL) * len(self.labels), dtype=torch.float64)

    @torch.no_grad()
    def add(self, margins: torch.Tensor, truths: torch.Tensor, known: torch.Tensor) -> None:
        """Add samples.

        :param margins: float (N, labels, …), positive where the label is found.
        :param truths: bool (N, labels, …).
        :param known: bool (N, labels), or voxelwise (N, labels, …): whether the ground truth of the label is known.
        """
        known = as_voxels(known, margins)
        found = margins > 0
        right = ((found == truths) | ~known).all(dim=1)
        empty = ~truths.any(dim=1)
        sums = [float(right.sum()), float(right.numel()), float(empty.sum())]
        probability, target = margins.sigmoid(), truths.float()
        bce = functional.binary_cross_entropy_with_logits(margins, target, reduction="none")
        # (N, labels), NaN where there is nothing to find
        dice = compute_dice(found & known, truths & known, ignore_empty=True)
        for n in range(len(self.labels)):
            where = known[:, n].expand(margins[:, n].shape)
            hit, is_true = found[:, n] & where, truths[:, n] & where
            # Setting unknown voxels to 0 is several times faster than selecting the known voxels.
            loss, soft, true = (torch.where(where, values[:, n], 0.0) for values in (bce, probability, target))
            of_cases = dice[:, n]
            of_cases = of_cases[~of_cases.isnan()]
            sums += [float(where.sum())]
            sums += [float(part.sum(dtype=torch.float64)) for part in (loss, soft * true, soft + true)]
            sums += [float(part.sum()) for part in (hit & is_true, hit, is_true)]
            sums += [float(of_cases.sum()), float(len(of_cases))]
        self.values += torch.tensor(sums, dtype=torch.float64)

    def measures(self, part: str, values: torch.Tensor | None = None) -> dict[str, float]:
        """One row of the table; NaN where there was nothing to measure.

        It has the loss (the mean over labels) and accuracy, and for each label the loss, its terms, Dice, sensitivity
        and precision over all voxels.

        :param part: "training" or "validation". Dice is over all voxels in training, the mean over cases in validation.
        :param values: sums over all devices; default: the sums of this object.
        """
        sums = (self.values if values is None else values).tolist()
        right, voxels, empty = sums[: len(_OF_ALL)]
        rows: dict[str, float] = {}
        losses = []
        for n, label in enumerate(self.labels):
            start = len(_OF_ALL) + n * len(_OF_LABEL)
            own = dict(zip(_OF_LABEL, sums[start : start + len(_OF_LABEL)], strict=True))
            dice_loss = 1 - _ratio(2 * own["soft_both"], own["soft_total"])
            bce = _ratio(own["bce"], own["voxels"])
            losses.append(dice_loss + bce)
            over_voxels = _ratio(2 * own["both"], own["found"] + own["true"]) if own["true"] else math.nan
            rows |= {
                f"{part}_loss_{label}": dice_loss + bce,
                f"{part}_soft_dice_loss_{label}": dice_loss,
                f"{part}_bce_{label}": bce,
                f"{part}_dice_{label}": over_voxels if part == "training" else _ratio(own["case_dice"], own["cases"]),
                f"{part}_sensitivity_{label}": _ratio(own["both"], own["true"]),
                f"{part}_precision_{label}": _ratio(own["both"], own["found"]),
            }
        defined = [loss for loss in losses if not math.isnan(loss)]
        first = {
            f"{part}_loss": sum(defined) / len(defined) if defined else math.nan,
            f"{part}_accuracy": _ratio(right, voxels),
        }
        if part == "validation":
            # The accuracy that an empty segmentation would have, which puts the accuracy above into perspective.
            rows["validation_accuracy_of_nothing"] = _ratio(empty, voxels)
        return first | rows


def as_voxels(known: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """`known`, (N, labels) or (N, labels, …), reshaped to broadcast against `margins` (N, labels, …)."""
    return known.to(margins.device).view(*known.shape, *[1] * (margins.dim() - known.dim()))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
