# SPDX-License-Identifier: Apache-2.0
"""The loss of the default model's networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

#: Width of the margin around lesions, in voxels.
_MARGIN = 2
#: Added to intersections and sums, in voxels: keeps Dice defined and smooth where there is nothing to find.
_DICE_SMOOTH = 50.0


class BalancedLoss:
    """Loss of two nested channels, "liver", which includes "tumor", and "tumor".

    For each channel it adds binary cross-entropy and soft Dice, and inside the liver the cross-entropy of tumor against
    the rest, averaged over each of the two first. Without this last term no tumors are found for a thousand iterations.
    In it a lesion is weighted by the square root of its size; otherwise only the largest would count ("blob loss",
    Kofler et al., IPMI 2023, addresses the same problem with equal weights). A margin of the liver around each lesion
    has the weight of the lesion's own voxels: weighted as the rest of the liver, a hundred times less, it would be
    labeled tumor around small lesions.

    :param tumor_share: weight of the tumor half; the rest of the liver has 1 - `tumor_share`. It may change during
        training: equal halves let the network start to find tumors, but later make it label everything dark as tumor.
    """

    def __init__(self, tumor_share: float = 0.5) -> None:
        self.tumor_share = tumor_share

    def __call__(self, margins: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the mean loss over the samples of a batch.

        :param margins: (N, 2, D, H, W).
        :param batch: `truth` (N, 1, D, H, W): 1 liver, 2 tumor; `lesions`, numbered from 1, alike; and `known`, bool
            (N, 2, D, H, W).
        """
        samples = zip(margins, batch["truth"], batch["lesions"], batch["known"], strict=True)
        parts = [self.parts(own, truth[0], lesions[0], known) for own, truth, lesions, known in samples]
        return torch.stack([torch.stack(list(own.values())).sum() for own in parts]).mean()

    def parts(
        self, logits: torch.Tensor, truth: torch.Tensor, lesions: torch.Tensor, known: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Compute the terms for one sample, by name.

        :param logits: (2, D, H, W), like `known`.
        :param truth: (D, H, W), like `lesions`.
        """
        target = torch.stack([truth > 0, truth == 2]) & known
        # Multiply by masks rather than select by them, which would copy a million voxels each time.
        weight, wanted = known.float(), target.float()
        ce = functional.binary_cross_entropy_with_logits(logits, wanted, weight=weight, reduction="none")
        probability = logits.sigmoid() * weight
        liver_ce, tumor_ce = ce.flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1).clamp_min(1)
        parts = {"liver_ce": liver_ce, "liver_dice": _dice_loss(probability[0], wanted[0]), "tumor_ce": tumor_ce}
        if (truth > 0).any():
            parts["tumor_dice"] = _dice_loss(probability[1], wanted[1])
        if target[1].any():
            numbers = lesions.int() * target[1]
            weights = torch.bincount(numbers.flatten()).clamp_min(1).float().rsqrt()[numbers] * wanted[1]
            healthy = ((truth == 1) & known[1]).float()
            margins = functional.max_pool3d(weights[None, None], 2 * _MARGIN + 1, 1, _MARGIN)[0, 0] * healthy
            in_lesions = (ce[1] * (weights + margins)).sum() / weights.sum()
            rest = (ce[1] * healthy).sum() / healthy.sum().clamp_min(1)
            parts["tumor_balanced"] = self.tumor_share * in_lesions + (1 - self.tumor_share) * rest
        return parts


def _dice_loss(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    both = (probability * truth).sum()
    return 1 - (2 * both + _DICE_SMOOTH) / (probability.sum() + truth.sum() + _DICE_SMOOTH)
