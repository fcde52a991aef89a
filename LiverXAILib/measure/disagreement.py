# SPDX-License-Identifier: Apache-2.0
"""Model uncertainty: disagreement of windows, networks and mirrorings, as a map and for each lesion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ..context import RunContext
from ..errors import UsageError, own_errors
from ..explain.score import build_score
from ..explain.stage_context import StageContext, require_explainable
from ..explain.targets import Target
from ..inference.device import select_device
from ..inference.lesions import lesion_components
from ..inference.segmentation import Segmentation
from ..inference.stages import logit_margin, mirrorings
from ..models.model import Model
from ..progress import CancelToken, Progress
from ..text import counted
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume
from .uncertainty import binary_entropy

#: Logit margins are clipped to this, which is certain enough and fits into half precision.
_MAX_MARGIN = 20.0


@dataclass(frozen=True)
class LesionUncertainty:
    """How certain the model is of one lesion.

    :param number: as in :func:`LiverXAILib.inference.lesions.lesion_components`.
    :param mean_probability: over the lesion's voxels.
    :param boundary_entropy: mean binary entropy in bits over the voxels at the lesion's border, on both sides: 1 where
        the border could just as well lie elsewhere, near 0 where it is sharp.
    :param pairwise_dice: mean Dice between the masks of two passes of the model (networks of an ensemble, mirrorings)
        at the lesion; None if the model has a single pass.
    """

    number: int
    mean_probability: float
    boundary_entropy: float
    pairwise_dice: float | None


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Where, and how much, a segmentation is uncertain about one label.

    :param disagreement: standard deviation of the label's probability over everything that was averaged to compute it,
        float32 in [0, 0.5], on the input's grid, cropped to where the label may be.
    :param sources: what was averaged and may disagree: "windows", "networks", "mirrorings"; empty if nothing was.
    :param pairwise_dice: mean Dice between two passes over the whole label, the best simple indicator of a failed
        segmentation among those compared by Zenk et al. 2025 (https://arxiv.org/abs/2406.03323); None: one pass.
    """

    label: str
    disagreement: Volume
    sources: tuple[str, ...]
    pairwise_dice: float | None
    lesions: tuple[LesionUncertainty, ...]

    def __repr__(self) -> str:
        sources = ", ".join(self.sources) or "nothing averaged"
        return f"Uncertainty({self.label}: {sources}; {counted(len(self.lesions), 'lesion')})"

    def to_dict(self) -> dict[str, Any]:
        """The numbers, JSON-ready, without the map."""
        return {
            "label": self.label,
            "sources": list(self.sources),
            "largest_disagreement": _rounded(float(self.disagreement.array.max())) if self.sources else None,
            "pairwise_dice": _rounded(self.pairwise_dice),
            "lesions": [
                {
                    "number": lesion.number,
                    "mean_probability": _rounded(lesion.mean_probability),
                    "boundary_entropy": _rounded(lesion.boundary_entropy),
                    "pairwise_dice": _rounded(lesion.pairwise_dice),
                }
                for lesion in self.lesions
            ],
        }


@own_errors("The uncertainty cannot be measured")
def measure_uncertainty(
    volume: Volume,
    model: Model,
    segmentation: Segmentation,
    label: str = "tumor",
    *,
    device: str = "auto",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Uncertainty:
    """Run the model again where `label` is, and compare the outputs of single windows, networks and mirrorings.

    A pass is one network of the stage with one of the mirrorings that its card allows; ``E`` is the mean over passes
    and over the windows that contain a voxel, by their blending weights. The map is ``sqrt(E[p^2] - E[p]^2)``.

    :raises LiverXAILib.explain.EmptyTargetError: `label` was not found.
    :raises LiverXAILib.errors.UsageError: the segmentation has no such label, or no probabilities of it.
    """
    require_explainable(volume, model, segmentation)
    if label not in segmentation.probabilities:
        raise UsageError(f"The segmentation has no probabilities of {label!r}.")
    target = Target.parse(label)
    stage = model.spec.stage_of(label)
    torch_device = select_device(device)
    context = RunContext(progress, cancel, torch_device)
    model.to(torch_device)
    run = StageContext.prepare(volume, model, stage, segmentation, torch_device)
    score_target = build_score(target, segmentation, model, run, context)
    moments = torch.zeros((2, *run.plan.padded_shape))
    masks = torch.zeros((len(run.passes), *run.plan.padded_shape), dtype=torch.float16)
    covered = torch.zeros(run.plan.padded_shape)
    with torch.inference_mode():
        for step, number in enumerate(score_target.windows):
            box = run.plan.boxes[number]
            weight = run.plan.weight(box)
            covered[box] += weight
            for pass_index in range(len(run.passes)):
                context.check()
                done = (step + pass_index / len(run.passes)) / len(score_target.windows)
                context.report(f"Comparing passes: window {step + 1} of {len(score_target.windows)}", done)
                margin = logit_margin(run.forward(pass_index, box).cpu(), stage, label)
                margin = margin.clamp(-_MAX_MARGIN, _MAX_MARGIN)
                probability = torch.sigmoid(margin)
                moments[0][box] += weight * probability / len(run.passes)
                moments[1][box] += weight * probability**2 / len(run.passes)
                masks[pass_index][box] += (weight * margin).half()
    # Windows that do not overlap the target are left out; near them the weights do not sum to 1.
    mean, square = moments / covered.clamp_min(1e-6)
    deviation = (square - mean**2).clamp_min(0).sqrt()
    place = segmentation.probabilities[label].grid
    names = {"windows": len(score_target.windows), "networks": len(run.networks), "mirrorings": len(mirrorings(stage))}
    votes = (masks > 0).numpy()
    context.report("Compared", 1.0)
    return Uncertainty(
        label,
        Volume(resample(deviation, run.grid, place).numpy(), place.ijk_to_lps),
        tuple(name for name, count in names.items() if count > 1),
        _pairwise_dice(votes) if len(votes) > 1 else None,
        tuple(_lesions(segmentation, label, votes, run.grid)),
    )


def _lesions(segmentation: Segmentation, label: str, votes: np.ndarray, grid: Grid) -> Iterator[LesionUncertainty]:
    probability = segmentation.probabilities[label]
    full = segmentation.labels.grid
    components = lesion_components(segmentation, label)[full.box_of(probability.grid)]
    p = probability.array.astype(np.float32)
    for number in range(1, int(components.max()) + 1):
        lesion = components == number
        image = sitk.GetImageFromArray(lesion.astype(np.uint8))
        grown = sitk.GetArrayFromImage(sitk.BinaryDilate(image, [1, 1, 1], sitk.sitkCross)).astype(bool)
        shrunk = sitk.GetArrayFromImage(sitk.BinaryErode(image, [1, 1, 1], sitk.sitkCross)).astype(bool)
        entropy = binary_entropy(probability.array[grown & ~shrunk])
        dice = None
        if len(votes) > 1:
            # The masks of the passes in the lesion and its neighborhood, on the network's grid.
            near = resample(grown.astype(np.float32), probability.grid, grid).numpy() > 0
            dice = _pairwise_dice(votes & near)
        yield LesionUncertainty(number, float(p[lesion].mean()), float(entropy.mean()), dice)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _pairwise_dice(votes: np.ndarray) -> float:
    """The mean Dice over all pairs of masks (passes, k, j, i); two empty masks agree."""
    flat = votes.reshape(len(votes), -1).astype(np.float32)
    both = flat @ flat.T
    sizes = np.diag(both)
    sums = sizes[:, None] + sizes[None, :]
    dice = np.divide(2 * both, sums, out=np.ones_like(both), where=sums > 0)
    return float(dice[np.triu_indices(len(votes), 1)].mean())
