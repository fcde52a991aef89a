# SPDX-License-Identifier: Apache-2.0
"""Operating points of a trained network, which are chosen on whole scans, not by the loss."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from LiverXAILib.evaluation.metrics import COVERED
from LiverXAILib.inference.stages import normalize
from LiverXAILib.models.spec import Intensity
from LiverXAILib.volumes.box import components

from .synthesis import Sample

_LIVER = torch.arange(-2.0, 2.01, 0.25)
_TUMOR = torch.arange(-1.0, 4.01, 0.5)
#: How far above the tumor threshold a lesion's peak must be, in logits.
_SURER = torch.arange(0.0, 6.01, 0.5)
#: Largest number of false components per scan, if any pair of thresholds keeps to it. Without this limit the best pair
#: found about one false positive per scan in patients who were not trained on.
_FALSE_PER_SCAN = 0.3


@dataclass(frozen=True)
class OperatingPoints:
    """Logit thresholds.

    :param liver: threshold of the liver channel.
    :param tumor: threshold of the tumor channel; a lesion is a connected component above it ...
    :param certain: ... whose peak reaches this value (hysteresis, as in Canny's edge detector, 1986).
    """

    liver: float
    tumor: float
    certain: float

    def moved_to_zero(self, bias: torch.Tensor) -> torch.Tensor:
        """Shift the bias of a head so that the thresholds of liver and tumor become 0.

        :param bias: (2 n,): n outputs for the liver channel, then n for the tumor channel.
        """
        return bias - torch.tensor([self.liver, self.tumor]).repeat_interleave(len(bias) // 2)


def operating_points(
    network: nn.Module, phantoms: Sequence[Sample], real: Sequence[Sample], intensity: Intensity
) -> OperatingPoints:
    """Find the best thresholds on whole scans: by mean Dice for the liver, by lesion-wise F1 and outlines for tumors.

    Training samples cannot be used, because they are harder: the structures next to the liver would shift its border
    inward, and the noise would raise the thresholds. F1 and outlines have equal weight. Lesions are counted as in
    :func:`LiverXAILib.evaluation.metrics.detect_lesions`; outlines are the mean Dice of the detected ones. Only
    thresholds that find a lesion, with at most :data:`_FALSE_PER_SCAN` false components per scan, are compared or, if
    there are none, those with the fewest.

    :param network: the network in evaluation mode, with the weights to be exported, on any device.
    :param phantoms: its inputs from whole phantoms, whose liver border is exact: for liver and tumors.
    :param real: its inputs from real scans, whose liver border is from a model: for tumors only.
    :param intensity: HU to network input.
    """
    dice = torch.zeros(len(_LIVER), dtype=torch.float64)
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    counted = []
    # Counting takes as long as the forward pass; several scans are counted in parallel.
    with torch.inference_mode(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, scan in enumerate([*phantoms, *real]):
            logits = network(normalize(scan.image, intensity, scan.liver_hu)[None, None].to(device))[0].cpu()
            counted.append(pool.submit(_tumor_counts, logits[1], scan))
            if number < len(phantoms):
                for row, point in enumerate(_LIVER):
                    inside = logits[0] > point
                    dice[row] += 2 * (inside & scan.liver).sum() / (inside.sum() + scan.liver.sum()).clamp_min(1)
        counts = [part.result() for part in counted]
    both, found, true, lesions, hit, pieces, right = torch.stack(counts).unbind(-1)
    outlines = (2 * both / (found + true).clamp_min(1)).sum(dim=0) / (hit > 0).sum(dim=0).clamp_min(1)
    lesions, hit, pieces, right = (part.sum(dim=0) for part in (lesions, hit, pieces, right))
    sensitivity, precision = hit / lesions.clamp_min(1), right / pieces.clamp_min(1)
    quality = outlines + 2 * sensitivity * precision / (sensitivity + precision).clamp_min(1e-9)
    false = (pieces - right) / len(counts)
    false[hit == 0] = torch.inf
    quality[false > max(_FALSE_PER_SCAN, float(false.min()))] = -1
    row, column = divmod(int(quality.argmax()), len(_SURER))
    point = float(_TUMOR[row])
    return OperatingPoints(float(_LIVER[dice.argmax()]), point, point + float(_SURER[column]))


def _tumor_counts(logit: torch.Tensor, scan: Sample) -> torch.Tensor:
    """Counts for each pair of thresholds of tumor and peak, ``(tumor points, peak points, 7)``.

    For detected lesions and the components that touch them: voxels in both, in the components, and in the lesions.
    Then the numbers of lesions, of detected lesions, of components, and of true-positive components.
    """
    truth = scan.tumor & scan.known
    lesions = _pieces(truth)
    sizes = torch.bincount(lesions.flatten())
    counts = torch.zeros(len(_TUMOR), len(_SURER), 7, dtype=torch.float64)
    for row, point in enumerate(_TUMOR):
        pieces = _pieces((logit > point) & scan.known)
        number = int(pieces.max()) + 1
        peaks = torch.full((number,), -torch.inf).scatter_reduce(0, pieces.flatten(), logit.flatten(), "amax")
        # Number of voxels that each lesion shares with each component.
        shared = torch.bincount((lesions * number + pieces).flatten(), minlength=len(sizes) * number)
        shared = shared.reshape(len(sizes), number)
        found, right = shared.sum(dim=0), shared[1:].sum(dim=0) >= COVERED * shared.sum(dim=0)
        for column, surer in enumerate(_SURER):
            kept = peaks >= point + surer
            kept[0] = False
            covered = shared[:, kept].sum(dim=1)
            hit = (covered >= COVERED * sizes) & (covered > 0)
            hit[0] = False
            touching = kept & (shared[hit].sum(dim=0) > 0)
            values = [covered[hit].sum(), found[touching].sum(), sizes[hit].sum(), torch.tensor(len(sizes) - 1)]
            counts[row, column] = torch.stack([*values, hit.sum(), kept.sum(), right[kept].sum()])
    return counts


def _pieces(mask: torch.Tensor) -> torch.Tensor:
    """Connected components of (D, H, W), numbered from 1."""
    return torch.from_numpy(components(mask.numpy(), corners=True)).long()
