# SPDX-License-Identifier: Apache-2.0
"""The surroundings of a target, in which the network is run on changed images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ...context import RunContext
from ...errors import UsageError
from ...inference.backends import keep_freed_memory
from ...volumes.box import Box, bounding_box
from ..fill import healthy_liver
from ..score import AGREEMENT, CONTEXT_MM, EXAMINED_MM, ScoreTarget, blended_logits, mean_probability
from ..stage_context import StageContext

#: Crops around a target on which the network is run, the smallest first: their maximum size (None: the whole window),
#: their margin around the target, and the maximum size of the target.
_CROPS_MM = ((64.0, 16.0, 32.0), (EXAMINED_MM, CONTEXT_MM, EXAMINED_MM), (200.0, 90.0, 200.0), (None, 0.0, None))
#: The part of the image that is changed, however small the crop is on which the network is run.
_EDITED_MM = (EXAMINED_MM, CONTEXT_MM)
#: The maximum number of voxels in a batch.
_BATCH_VOXELS = 500_000
#: With fewer voxels of healthy liver, from which level and texture are taken, a larger box is tried.
_ENOUGH_HEALTHY = 1000


class FarContextError(UsageError):
    """The model's prediction for a target depends on context beyond the part that can be examined."""


@dataclass(frozen=True, eq=False)
class ExaminedBox:
    """The part of the image around a target that is changed, and on crops of which the network is run again.

    Gradients are not needed, so the network runs as in the segmentation, on the backend that is fastest here.

    :param run: the network and the image in the box, as if it were the whole image.
    :param score_target: the target in the box.
    :param box: on the padded image of the stage.
    :param crop: how many voxels (k, j, i) around a target the network processes.
    :param probability: mean probability of the prediction over the target, in a crop; `in_image`: in the whole image.
    """

    run: StageContext
    score_target: ScoreTarget
    box: Box
    crop: tuple[int, int, int]
    probability: float
    in_image: float

    @staticmethod
    def around(
        score_target: ScoreTarget,
        run: StageContext,
        mask: np.ndarray,
        context: RunContext,
        *,
        small: bool = True,
    ) -> ExaminedBox:
        """The smallest crop in which the model's prediction for the target agrees with that in the whole image.

        Where there is hardly any healthy liver around the target, a larger crop is tried.

        :param mask: the target's voxels, on the input's grid.
        :param small: a crop may be smaller than the part of the image that is changed.
        :raises FarContextError: there is no such crop.
        """
        whole, poor = _in_image(score_target, run, mask, context), None
        run, score_target = score_target.over_slices(run)
        extent = max(n * size for n, size in zip(score_target.box.shape, run.spacing, strict=True))
        for limit, reach, largest in _CROPS_MM if small else _CROPS_MM[1:]:
            if largest is not None and extent > largest:
                continue
            _, _, crop = score_target.in_focus(run, limit, reach)
            if limit is not None and crop.intersection(score_target.box) != score_target.box:
                continue  # only a part of the target would be removed
            edited = (limit, reach) if limit is None or limit >= _EDITED_MM[0] else _EDITED_MM
            alone, inside, box = score_target.in_focus(run, *edited)
            examined = ExaminedBox(alone, inside, box, crop.shape, 0.0, whole)
            examined = replace(examined, probability=examined.ask([alone.image], context)[0])
            if abs(examined.probability - whole) <= AGREEMENT:
                if limit is None or int(examined.healthy.sum()) >= _ENOUGH_HEALTHY:
                    return examined
                poor = examined
        if poor is not None:
            return poor
        raise FarContextError(
            f"The model's confidence in {score_target.target.describe()} depends on what lies far away: it is "
            f"{whole:.2f} in the whole image, but {examined.probability:.2f} in the part of it that can be examined."
        )

    @cached_property
    def weights(self) -> torch.Tensor:
        """The target in the box: float32 (k, j, i) weights that sum to 1."""
        return self.score_target.share

    @cached_property
    def healthy(self) -> torch.Tensor:
        """Where the box shows healthy liver: bool (k, j, i)."""
        return healthy_liver(self.run)

    def ask(
        self, images: Sequence[torch.Tensor], context: RunContext, weights: Sequence[torch.Tensor] | None = None
    ) -> list[float]:
        """The model's mean probability of the prediction over the target, for other images.

        :param images: network inputs of the box's size.
        :param weights: the target in each image; None: at its own place.
        """
        weights = [self.weights] * len(images) if weights is None else weights
        crops = [self._crop(one) for one in weights]
        windows = torch.stack([image[crop] for image, crop in zip(images, crops, strict=True)])
        targets = [one[crop] for one, crop in zip(weights, crops, strict=True)]
        part = Box.union(bounding_box((target > 0).numpy()) for target in targets)
        logits = []
        for some in windows.split(max(1, _BATCH_VOXELS // windows[0].numel())):
            context.check()
            with keep_freed_memory(self.run.device):
                logits.append(self.run.logits(some, part))
        answers = []
        for found, target in zip(torch.cat(logits), targets, strict=True):
            answers.append(mean_probability(self.score_target.evidence(found), target[part]))
        return answers

    def _crop(self, weights: torch.Tensor) -> Box:
        """A crop centered on a target, shifted where the box requires it."""
        target = bounding_box((weights > 0).numpy())
        assert target is not None
        corner = [
            min(max(0, (side.start + side.stop - size + 1) // 2), whole - size)
            for side, size, whole in zip(target, self.crop, weights.shape, strict=True)
        ]
        return Box.full(self.crop).shifted(corner)


def _in_image(score_target: ScoreTarget, run: StageContext, mask: np.ndarray, context: RunContext) -> float:
    """The model's mean probability of the prediction over the target, in the whole image."""
    target, probability = score_target.target, run.segmentation.network_probability(score_target.target.label)
    plain = not (target.is_why_not or target.compared_with)
    plain = plain and len(score_target.own) == 1 and len(score_target.rivals) <= 1
    if plain and probability is not None:
        # The segmentation's probabilities give the same result without another pass.
        known = Box.full(probability.shape).projected(probability.grid, run.segmentation.labels.grid)
        inside = mask[known]
        box = bounding_box(inside)
        total = float(probability.array[box][inside[box]].sum(dtype=np.float64)) if box is not None else 0.0
        return total / np.count_nonzero(mask)
    logits = blended_logits(run, score_target, context)
    return mean_probability(score_target.evidence(logits), score_target.share)
