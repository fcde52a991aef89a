# SPDX-License-Identifier: Apache-2.0
"""nnU-Net's preprocessing and postprocessing (Isensee et al. 2021), so that its models give the same result as there.

Differences from other stages: the image is cropped to its nonzero region; normalized before it is resized; resized by
cubic splines without anti-aliasing, with thick slices resized separately; padded with 0; window scores are summed in
half precision; all channels are resized to the image before labels are decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np
import torch

from ..models.spec import NnUNet, Resampling, StageSpec
from ..volumes.box import Box, bounding_box, without_holes
from ..volumes.resample import resized
from ..volumes.resize import resize
from ..volumes.volume import Grid, Volume
from .geometry import from_network_orientation, network_orientation_image
from .masks import Mask
from .preprocessing import RegionScores, StageArea
from .scores import logit_margin
from .standard import MARGIN_MM, body_box
from .windows import WindowPlan

#: Scores are resized in blocks of at most this many numbers, to bound the memory of models with many channels.
_BLOCK = 50_000_000
#: nnU-Net scales the Gaussian to this maximum, so that its flanks do not underflow in half precision.
_GAUSSIAN_MAXIMUM = 10.0


class NnUNetPreprocessing:
    """The :class:`~LiverXAILib.inference.preprocessing.Preprocessing` of nnU-Nets.

    :param rules: settings from the plans.
    """

    def __init__(self, rules: NnUNet) -> None:
        self._rules = rules

    def grids(self, volume: Volume, stage: StageSpec, area: StageArea) -> list[Grid]:
        """A single grid: the area, cropped to the image's nonzero region, at the stage's spacing."""
        base = area.grid
        if stage.crop_to_body:
            base = base.cropped(body_box(volume, base))
        image = network_orientation_image(volume, stage.axes)
        box = Box.full(base.shape).projected(base, image.grid)
        nonzero = bounding_box(image.array[box] != 0) or Box.full(base.shape)
        crop = base.cropped(nonzero)
        before, after = _spacings(crop, stage)
        k, j, i = (round(old / new * n) for old, new, n in zip(before, after, crop.shape, strict=True))
        return [resized(crop, (max(k, 1), max(j, 1), max(i, 1)))]

    def image(self, volume: Volume, stage: StageSpec, grid: Grid, center_hu: float) -> torch.Tensor:
        image, box = _source(volume, stage, grid)
        pixels = _normalize(image.array[box].astype(np.float32), stage, self._rules)
        before, after = _spacings(image.grid, stage)
        return _resize(torch.from_numpy(pixels), grid.shape, before, after, self._rules.image)

    def pad_value(self, stage: StageSpec, center_hu: float) -> float:
        return 0.0

    def blend(self, plan: WindowPlan) -> HalfBlend:
        return HalfBlend(plan)

    def read_scores(
        self, logits: torch.Tensor, stage: StageSpec, labels: Sequence[str], grid: Grid, volume: Volume
    ) -> dict[str, RegionScores]:
        """As in nnU-Net, every channel is resized to the image, then the label is that of the highest score."""
        boxes = [bounding_box((logit_margin(logits, stage, label) > 0).numpy()) for label in labels]
        if not any(boxes):
            return {label: (Mask.empty(), None) for label in labels}
        working, box, blocks = self._blocks(logits, stage, grid, volume, Box.union(boxes))
        kept = working.cropped(box)
        masks = {label: np.zeros(kept.shape, dtype=bool) for label in labels}
        probabilities = {label: np.zeros(kept.shape, dtype=np.float16) for label in labels}
        for part, block in blocks:
            for label in labels:
                score = logit_margin(block, stage, label)
                masks[label][part] = (score > 0).numpy()
                probabilities[label][part] = torch.sigmoid(score).to(torch.float16).numpy()
        target = Box.full(kept.shape).projected(kept, volume.grid)
        return {
            label: (
                Mask(target, from_network_orientation(masks[label], kept, volume.grid.cropped(target), stage.axes)),
                Volume(probabilities[label], kept.ijk_to_lps),
            )
            for label in labels
        }

    def _blocks(
        self, logits: torch.Tensor, stage: StageSpec, grid: Grid, volume: Volume, found: Box
    ) -> tuple[Grid, Box, Iterator[tuple[Box, torch.Tensor]]]:
        """All channels' scores on the voxels of the image around `found`, in blocks.

        :param logits: (channels, k, j, i) on `grid`.
        :param found: box on `grid`.
        :return: the working grid of the image (its voxels in the order of the network's axes), the box on it that the
            blocks fill, and the blocks: their position in that box, and float32 (channels, \\*block).
        """
        rule = self._rules.scores
        image, crop = _source(volume, stage, grid)
        source = image.grid.cropped(crop)
        inner = found.projected(grid, source, max(MARGIN_MM, *grid.spacing))
        shape = source.shape
        before, after = _spacings(image.grid, stage)

        def blocks() -> Iterator[tuple[Box, torch.Tensor]]:
            thickness = max(1, _BLOCK // (prod(inner.shape[1:]) * logits.shape[0]))
            for start in range(inner.k.start, inner.k.stop, thickness):
                part = inner._replace(k=slice(start, min(start + thickness, inner.k.stop)))
                block = _resize(logits, shape, after, before, rule, part)
                # Rounding to half precision can make scores equal; then the first channel wins, as in nnU-Net.
                yield part.relative_to(inner), block.half().float() if rule.half else block

        return image.grid, inner.shifted(crop.start), blocks()


class HalfBlend:
    """Sums the scores of windows as nnU-Net does: in half precision, with a Gaussian of height 10.

    Up to rounding, the result is the same weighted mean as for other stages (``plan.weight``).
    """

    def __init__(self, plan: WindowPlan) -> None:
        self._importance = (plan.importance * _GAUSSIAN_MAXIMUM).half()
        self._importance[self._importance == 0] = self._importance[self._importance > 0].min()
        self._total = torch.zeros(plan.padded_shape, dtype=torch.half)
        for box in plan.boxes:
            self._total[box] += self._importance
        self._plan = plan
        self._sums: list[torch.Tensor] = []

    def add(self, member: int, box: Box, scores: torch.Tensor) -> None:
        """Add the scores (channels, a, b, c) that network number `member` gave for one window."""
        while len(self._sums) <= member:
            self._sums.append(torch.zeros((scores.shape[0], *self._plan.padded_shape), dtype=torch.half))
        k, j, i = box
        self._sums[member][:, k, j, i] += scores * self._importance

    def mean(self) -> torch.Tensor:
        """The blended scores, averaged over the networks: half precision, on the padded image."""
        result = self._sums[0].div_(self._total)
        for other in self._sums[1:]:
            result += other.div_(self._total)
        return result / len(self._sums) if len(self._sums) > 1 else result


def _source(volume: Volume, stage: StageSpec, grid: Grid) -> tuple[Volume, Box]:
    """The image in the order of the network's axes, and the box on it with the field of view of `grid`."""
    image = network_orientation_image(volume, stage.axes)
    return image, Box.full(grid.shape).projected(grid, image.grid)


def _spacings(grid: Grid, stage: StageSpec) -> tuple[list[float], list[float]]:
    """The image's and the stage's spacing along the tensor's axes, rounded because matrix columns are inexact."""
    assert stage.spacing is not None
    own = [round(mm, 9) for mm in grid.spacing[::-1]]
    return own, [mm if wanted is None else wanted for mm, wanted in zip(own, stage.spacing, strict=True)]


def _normalize(pixels: np.ndarray, stage: StageSpec, rules: NnUNet) -> np.ndarray:
    """Normalize the image's own voxels in single precision, as nnU-Net does."""
    scale = stage.intensity
    if scale.statistics == "z-score":
        mask = without_holes(pixels != 0) if rules.masked else np.ones(pixels.shape, dtype=bool)
        values = pixels[mask]
        return np.where(mask, (pixels - values.mean()) / max(float(values.std()), 1e-8), pixels).astype(np.float32)
    if scale.statistics == "range":
        low, high = float(pixels.min()), float(pixels.max())
        return (pixels - low) / max(high - low, 1e-8)
    if scale.low is not None or scale.high is not None:
        pixels = np.clip(pixels, scale.low, scale.high)
    return (pixels - np.float32(scale.shift)) / np.float32(scale.scale)


def _resize(
    image: torch.Tensor,
    shape: tuple[int, int, int],
    before: Sequence[float],
    after: Sequence[float],
    rule: Resampling,
    box: Box | None = None,
) -> torch.Tensor:
    """Resize (..., k, j, i), thick slices separately; overshoot of a cubic spline is clipped to the image's range."""
    thick = _thick_axis(before, after, rule)
    if tuple(image.shape[-3:]) == shape or rule.order <= 1:
        return resize(image, shape, _orders(rule, thick), box)
    if thick is None:
        clip = _range(image, (-3, -2, -1))
        return clip(resize(image, shape, _orders(rule, None), box))
    flat, part = list(shape), list(box) if box is not None else [slice(0, n) for n in shape]
    flat[thick], part[thick] = image.shape[thick - 3], slice(0, image.shape[thick - 3])
    clip = _range(image, tuple(axis - 3 for axis in range(3) if axis != thick))
    planes = clip(resize(image, (flat[0], flat[1], flat[2]), (rule.order,) * 3, Box(*part)))
    flat = list(planes.shape[-3:])
    flat[thick] = shape[thick]
    kept = [slice(0, n) for n in flat]
    if box is not None:
        kept[thick] = box[thick]
    return resize(planes, (flat[0], flat[1], flat[2]), (rule.order_z,) * 3, Box(*kept))


def _range(image: torch.Tensor, axes: tuple[int, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    low, high = image.amin(dim=axes, keepdim=True).float(), image.amax(dim=axes, keepdim=True).float()
    return lambda resized: torch.minimum(torch.maximum(resized, low), high)


def _orders(rule: Resampling, thick: int | None) -> list[int]:
    return [rule.order_z if axis == thick else rule.order for axis in range(3)]


def _thick_axis(before: Sequence[float], after: Sequence[float], rule: Resampling) -> int | None:
    """The axis of thick slices that is resized separately, or None, by nnU-Net's rule."""
    if rule.separate_z is False:
        return None
    if rule.separate_z or max(before) / min(before) > rule.anisotropy:
        spacing = before
    elif max(after) / min(after) > rule.anisotropy:
        spacing = after
    else:
        return None
    axes = [axis for axis, mm in enumerate(spacing) if mm == max(spacing)]
    return axes[0] if len(axes) == 1 else None
