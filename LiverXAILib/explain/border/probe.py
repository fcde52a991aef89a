# SPDX-License-Identifier: Apache-2.0
"""Where a network draws an organ's border if its input is restricted to the neighborhood of a point."""

from __future__ import annotations

from math import ceil, prod

import numpy as np
import torch

from ...context import RunContext
from ...inference.lesions import grown
from ...models.model import Model
from ...models.spec import StageSpec
from ...volumes.box import Box
from ...volumes.resample import resample
from ..fill import distance_mm
from ..score import ScoreTarget, blended_logits, positive_and_negative_channels
from ..stage_context import StageContext
from ..targets import LabelTarget
from .replacements import Crop, Replacement, gathered, shown
from .surface import surface_of

#: The border is compared within this distance of a point.
COMPARED_MM = 6.0
#: The minimum margin of a crop around the neighborhood.
MARGIN_MM = 8.0
#: The most voxels that the crops of one batch have together.
_BATCH_VOXELS = 2**20


class BorderProbe:
    """Tests where the network of `run` draws the border of `label` near points of its grid.

    The border *stays* at a point if no voxel within :data:`COMPARED_MM` of the point changes sides, except those
    adjacent to the border, that is, if the border moves by at most one voxel of the network's grid.

    :ivar reference: bool (k, j, i): where the network found the label in the whole image.
    :ivar voxels: how many voxels the network has processed.
    """

    def __init__(self, run: StageContext, label: str, model: Model, replace: Replacement, context: RunContext) -> None:
        self.run, self._replace = run, replace
        target = LabelTarget(label)
        own, rivals = positive_and_negative_channels(target, model.spec, run.stage)
        extent = torch.ones((1, *run.image.shape))
        self._score = ScoreTarget(target, (0,), extent, Box.full(run.image.shape), own, rivals)
        self.reference = self._found(label, context)
        # 1 where the network must find the label, -1 where it must not, 0 next to the border.
        self._required = _without_border(self.reference) - _without_border(~self.reference)
        reach = [2 * ceil(COMPARED_MM / size) + 1 for size in run.spacing]
        around = Crop((reach[0], reach[1], reach[2]), run.spacing, COMPARED_MM)
        self._near = around.offsets[around.distance <= COMPARED_MM]
        self.voxels = 0

    def _found(self, label: str, context: RunContext) -> torch.Tensor:
        probability = self.run.segmentation.network_probability(label)
        if probability is None:
            return self._score.evidence(blended_logits(self.run, self._score, context)) > 0
        # The segmentation's probabilities give the same result without another pass.
        return resample(probability.array, probability.grid, self.run.grid, antialias=False) > 0.5

    def own_border(self, label: str) -> np.ndarray:
        """Voxels (n, 3) (k, j, i) of the label's surface near which the segmentation's border is the network's own.

        Elsewhere, postprocessing has moved the border, or the image ends there.
        """
        mask = self.run.mask(label)
        inner = torch.zeros(mask.shape, dtype=torch.bool)
        reach = [int(np.ceil(COMPARED_MM / size)) for size in self.run.spacing]
        inner[tuple(slice(s.start + n, s.stop - n) for s, n in zip(self.run.plan.image_box, reach, strict=True))] = True
        moved = distance_mm(_differ(mask, self._required), self.run.spacing, COMPARED_MM) <= COMPARED_MM
        surface = torch.from_numpy(surface_of(self.reference.numpy()))
        kept: np.ndarray = (surface & inner & ~moved).nonzero().numpy()
        return kept

    def stays(self, points: np.ndarray, radius_mm: float, context: RunContext) -> np.ndarray:
        """Whether the border stays at each point (n, 3) if everything beyond `radius_mm` is replaced: bool (n,).

        The network processes several crops in one batch, independently of each other.
        """
        crop = Crop(self._crop_shape(radius_mm), self.run.spacing, radius_mm)
        together = max(1, _BATCH_VOXELS // prod(crop.shape))
        near = self._near + torch.tensor(crop.shape) // 2
        compared = Box.between(near.amin(dim=0).tolist(), (near.amax(dim=0) + 1).tolist())
        k, j, i = (near - torch.tensor(compared.start)).T
        result = [torch.zeros(0, dtype=torch.bool)]
        with torch.inference_mode():
            for start in range(0, len(points), together):
                context.check()
                context.report(f"Examining the border: {radius_mm:g} mm", start / len(points))
                part = torch.from_numpy(points[start : start + together])
                crops = shown(self.run, part, crop, self._replace)
                self.voxels += crops.numel()
                logits = self.run.logits(crops, compared)
                found = self._score.evidence(logits.transpose(0, 1)) > 0
                result.append(self._agrees(found[:, k, j, i], part))
        return torch.cat(result).numpy()

    def _crop_shape(self, radius_mm: float) -> tuple[int, int, int]:
        """The shape of a crop that the network accepts and that contains the neighborhood with a margin."""
        stage = self.run.stage
        if is_fixed(stage):
            return self.run.plan.window
        divisor = (1, *stage.divisor[1:]) if stage.dimensions == 2 else stage.divisor
        wanted = (2 * (radius_mm + MARGIN_MM) / size for size in self.run.spacing)
        a, b, c = (ceil(n / step - 1e-6) * step for n, step in zip(wanted, divisor, strict=True))
        return a, b, c

    def _agrees(self, found: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Whether labels (n, m) near points (n, 3) match those in the whole image, except next to the border."""
        return ~_differ(found, gathered(self._required, points, self._near)).any(dim=1)


def is_fixed(stage: StageSpec) -> bool:
    """Whether the network accepts images of one size only; each point then takes a whole window."""
    return stage.size is not None or stage.pad_to_window


def _differ(found: torch.Tensor, required: torch.Tensor) -> torch.Tensor:
    """Where labels differ from what is required: 1 means that the label is there, -1 that it is not, 0 either."""
    return (found & (required < 0)) | (~found & (required > 0))


def _without_border(mask: torch.Tensor) -> torch.Tensor:
    """The voxels (int8) of `mask` whose neighbors in the image (up to 26) all lie in `mask` as well."""
    return torch.from_numpy(~grown((~mask).numpy())).to(torch.int8)
