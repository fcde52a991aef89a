# SPDX-License-Identifier: Apache-2.0
"""The computation that is explained: one stage of a model on one image, and a question as weights on its logits.

The blended logit of channel c at voxel x is ``l_c(x) = 1/M sum_m sum_p W_p(x) l_c^{m,p}(x)`` over the M networks of an
ensemble (or, if mirrored windows are averaged, over all networks and mirrorings) and the windows p that hold x; the
weights ``W_p`` are known before any network runs. A question's score is

    S = sum_c sum_x T_c(x) l_c(x) = sum_m sum_p sum_c sum_x [T_c(x) W_p(x) / M] l_c^{m,p}(x),

so a window needs only its own share ``T_c W_p`` of the question, and a window without a share has no influence at all
on S: gradients are exactly those of one graph over the whole image, and only the windows that touch the target run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ..inference.geometry import AIR_HU
from ..inference.segmentation import Segmentation
from ..inference.stages import (
    mirrorings,
    normalize,
    padded_input,
    run_network,
    stage_grids,
    stage_plan,
)
from ..inference.windows import WindowPlan
from ..models.model import Model
from ..models.spec import StageSpec
from ..progress import CancelToken, check_cancel
from ..volumes.box import Box, bounding_box
from ..volumes.resample import resample_adjoint
from ..volumes.volume import Grid, Volume
from .targets import EmptyTargetError, Target, Term, contest, score_terms

#: Windows that together hold less than this part of a question are not run: their Gaussian weights are as good as 0.
_NEGLIGIBLE = 1e-6
#: Standard deviation in mm of the Gaussian that takes a structure out of an image without leaving an edge.
BLUR_MM = 12.0
#: How far around a target an examination looks, and how large the box is that it looks at, at most.
CONTEXT_MM = 48.0
EXAMINED_MM = 120.0


@dataclass(frozen=True, eq=False)
class StageRun:
    """A stage's networks, the image as they see it, and the windows.

    :param grid: of the padded image: where each of its voxels lies.
    :param image: float32, normalized, (k, j, i) as in ``plan.padded_shape``.
    :param air: what air is in the network's input.
    :param tissue: what plain tissue of the target's organ is: its median in this patient.
    """

    stage: StageSpec
    networks: Sequence[nn.Module]
    grid: Grid
    plan: WindowPlan
    image: torch.Tensor
    device: torch.device
    air: float
    tissue: float

    @staticmethod
    def prepare(
        volume: Volume, model: Model, stage: StageSpec, segmentation: Segmentation, device: torch.device
    ) -> StageRun:
        """The run that made `segmentation`. If it was made elsewhere, the grid follows from the model's card.

        :raises EmptyTargetError: the stage counts HU from a structure that is not there.
        """
        grid = segmentation.stage_grids.get(stage.name) or _grid_for(volume, stage, segmentation)
        plan = stage_plan(stage, grid)
        center_hu = _center_hu(volume, stage, segmentation)
        image = padded_input(volume, stage, grid, plan, center_hu)
        organ = segmentation.labels.array == segmentation.specs[0].value
        median = float(np.median(volume.array[organ])) if organ.any() else AIR_HU
        reference = torch.from_numpy(volume.array.astype(np.float32))
        air, tissue = normalize(torch.tensor([AIR_HU, median]), stage.intensity, center_hu, reference).tolist()
        return StageRun(stage, model.members(stage), plan.padded_grid(grid), plan, image, device, air, tissue)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm along the tensor's axes (k, j, i)."""
        i, j, k = self.grid.spacing
        return k, j, i

    @cached_property
    def passes(self) -> list[tuple[int, tuple[int, ...]]]:
        """What is averaged: each network, and each set of axes along which it sees windows mirrored."""
        return [(number, axes) for number in range(len(self.networks)) for axes in mirrorings(self.stage)]

    def network(self, member: int, window: torch.Tensor) -> torch.Tensor:
        """Logits (channels, a, b, c) of pass number `member` for one window (a, b, c), on the device."""
        number, axes = self.passes[member]
        return self.upright(member, run_network(self.networks[number], window.flip(axes), self.stage).float())

    def upright(self, member: int, values: torch.Tensor) -> torch.Tensor:
        """What pass number `member` computed, (channels, a, b, c), mirrored back."""
        return values.flip([axis + 1 for axis in self.passes[member][1]])

    def forward(self, member: int, box: Box) -> torch.Tensor:
        """Logits (channels, a, b, c) of one network in the window at `box` of the image, on the device."""
        return self.network(member, self.image[box].to(self.device))

    @cached_property
    def blurred(self) -> torch.Tensor:
        """The image after a Gaussian of :data:`BLUR_MM`: what "nothing special here" looks like in this patient."""
        return gaussian(self.image, [BLUR_MM / size for size in self.spacing])


def gaussian(image: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Gaussian smoothing of (k, j, i) with standard deviations in voxels along each axis; edges are repeated."""
    for axis, sigma in enumerate(sigmas):
        reach = min(max(1, round(3 * sigma)), image.shape[axis] - 1)
        if sigma <= 0 or reach < 1:
            continue
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        rows = image.movedim(axis, -1)
        padded = torch.nn.functional.pad(rows.flatten(0, 1)[:, None], (reach, reach), mode="replicate")
        smooth = torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])
        image = smooth[:, 0].unflatten(0, rows.shape[:2]).movedim(-1, axis)
    return image


@dataclass(frozen=True, eq=False)
class Question:
    """The weights T_c(x) of a score, cropped to where they are not 0.

    :param channels: output channels that have weights.
    :param weights: float32 (channels, \\*box).
    :param box: on the padded image.
    :param own: the channels that speak for the answer, and `rivals`: those against it.
    :param windows: for each window of the plan with a share in the question, the size of that share.
    """

    target: Target
    channels: tuple[int, ...]
    weights: torch.Tensor
    box: Box
    own: tuple[int, ...] = ()
    rivals: tuple[int, ...] = ()
    windows: dict[int, float] = field(default_factory=dict)

    def share(self, box: Box, weight: torch.Tensor) -> torch.Tensor:
        """T_c W_p in the window at `box`: float32 (channels, \\*window)."""
        share = torch.zeros((len(self.channels), *weight.shape))
        if (common := box.intersection(self.box)) is not None:
            here, there = common.relative_to(box), common.relative_to(self.box)
            share[:, here.k, here.j, here.i] = self.weights[:, there.k, there.j, there.i] * weight[here]
        return share

    def score(self, logits: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """A window's part of the score: `logits` (all channels) times a `share` from :meth:`share`, summed."""
        return (logits[list(self.channels)] * share).sum()

    def evidence(self, logits: torch.Tensor) -> torch.Tensor:
        """The log-odds of the answer at each voxel, from all channels' logits; its sigmoid is the probability."""
        odds = torch.zeros_like(logits[0])
        if self.own:
            odds = odds + logits[list(self.own)].logsumexp(dim=0)
        if self.rivals:
            odds = odds - logits[list(self.rivals)].logsumexp(dim=0)
        return odds

    @property
    def focus(self) -> int:
        """The window with the largest share."""
        return max(self.windows, key=lambda number: self.windows[number])

    def in_focus(self, run: StageRun, limit_mm: float = EXAMINED_MM) -> tuple[StageRun, Question, Box]:
        """The run and the question cut down to one window, as if there were nothing else, and where it lies.

        It is the window that matters most, or, if the stage reads images of any size, the part of it within
        :data:`CONTEXT_MM` of the target: much cheaper to run many times. Where that is more than `limit_mm` along an
        axis, it is the box of that size which holds target and surroundings in the best balance, up to half and half.
        """
        window = run.plan.boxes[self.focus]
        box = window
        if run.stage.size is None and not run.stage.pad_to_window:
            box = self._surroundings(run, window, limit_mm)
        share = self.share(box, run.plan.weight(window)[box.relative_to(window)])
        size = share.shape[1], share.shape[2], share.shape[3]
        whole = Box.full(size)
        plan = WindowPlan(size, size, size, (whole,))
        alone = replace(run, grid=run.grid.cropped(box), plan=plan, image=run.image[box])
        return alone, replace(self, weights=share, box=whole, windows={0: float(share.abs().sum())}), box

    def _surroundings(self, run: StageRun, window: Box, limit_mm: float) -> Box:
        divisor = (1, *run.stage.divisor[1:]) if run.stage.dimensions == 2 else run.stage.divisor
        asked = self.share(window, run.plan.weight(window)).abs().sum(dim=0) > 0
        sizes, centered = [], []
        for axis, (limits, target) in enumerate(zip(window, self.box, strict=True)):
            reach, most = round(CONTEXT_MM / run.spacing[axis]), round(limit_mm / run.spacing[axis])
            low, high = max(limits.start, target.start - reach), min(limits.stop, target.stop + reach)
            sizes.append(-(-min(high - low, most) // divisor[axis]) * divisor[axis])
            centered.append((target.start + target.stop - sizes[axis]) / 2 - limits.start)
        part = _box_means(asked.float(), sizes)
        balance = part * (1 - part)
        best = torch.nonzero(balance >= (1 - 1e-3) * balance.max())
        corner = best[(best - torch.tensor(centered)).square().sum(dim=1).argmin()].tolist()
        return Box.full(sizes).shifted(np.add(window.start, corner))


def _box_means(values: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The mean over every box of `sizes` inside (k, j, i), by the box's first corner."""
    for axis, size in enumerate(sizes):
        sums = torch.cat([torch.zeros_like(values.narrow(axis, 0, 1)), values.double().cumsum(axis)], dim=axis)
        length = values.shape[axis] + 1 - size
        values = (sums.narrow(axis, size, length) - sums.narrow(axis, 0, length)) / size
    return values


@dataclass(eq=False)
class StageMap:
    """A signed map on the padded grid of a stage, before normalization.

    :param values: float32 (k, j, i).
    :param warnings: why the map may say nothing.
    :param details: JSON-ready, for the provenance.
    """

    values: torch.Tensor
    warnings: list[str] = field(default_factory=list)
    details: Mapping[str, object] = field(default_factory=dict)


def ask(
    target: Target,
    segmentation: Segmentation,
    model: Model,
    run: StageRun,
    cancel: CancelToken | None = None,
    mask: np.ndarray | None = None,
) -> Question:
    """Turn `target` into weights on the logits of `run`.

    The mask lies on the input's grid; its transpose under resampling carries it to the stage's, so that the score is
    exactly the mean over the target of the scores on the input's grid.

    :param mask: the target's voxels, if they are already known.
    :raises EmptyTargetError: the target has no voxels where the stage looked.
    """
    target = target.resolve(segmentation)
    mask = target.mask(segmentation) if mask is None else mask
    terms = score_terms(target, mask, segmentation, model.spec, run.stage)
    count = float(mask.sum())
    weights = [_on_stage(term, segmentation.labels.grid, run, count) for term in terms]
    box = bounding_box(np.logical_or.reduce([(w != 0).numpy() for w in weights]))
    if box is None:
        raise EmptyTargetError(f"Stage {run.stage.name!r} of the model did not look at {target.describe()}.")
    weights = [w[box] for w in weights]
    if any(len(term.channels) > 1 for term in terms):
        extent = torch.stack(weights).abs().sum(dim=0)[None]
        logits = blended_logits(run, Question(target, (0,), extent, box), cancel)
    split: dict[int, torch.Tensor] = {}
    for term, weight in zip(terms, weights, strict=True):
        winner = logits[list(term.channels)].argmax(dim=0) if len(term.channels) > 1 else torch.zeros_like(weight)
        for index, channel in enumerate(term.channels):
            part = weight * (winner == index)
            if part.any():
                split[channel] = split[channel] + part if channel in split else part
    own, rivals = contest(target, model.spec, run.stage)
    question = Question(target, tuple(split), torch.stack(list(split.values())), box, own, rivals)
    question.windows.update(_shares(question, run.plan))
    return question


def blended_logits(run: StageRun, question: Question, cancel: CancelToken | None = None) -> torch.Tensor:
    """The blended logits of all channels in the box of `question`: float32 (channels, \\*box), without gradients."""
    logits: torch.Tensor | None = None
    with torch.inference_mode():
        for number in _shares(question, run.plan):
            box = run.plan.boxes[number]
            common = box.intersection(question.box)
            assert common is not None
            here, there = common.relative_to(box), common.relative_to(question.box)
            for member in range(len(run.passes)):
                check_cancel(cancel)
                output = run.forward(member, box).cpu() / len(run.passes)
                if logits is None:
                    logits = torch.zeros((output.shape[0], *question.weights.shape[1:]))
                part = (output * run.plan.weight(box))[:, here.k, here.j, here.i]
                logits[:, there.k, there.j, there.i] += part
    assert logits is not None
    return logits


def _shares(question: Question, plan: WindowPlan) -> dict[int, float]:
    """The share of each window in `question`, for the windows that matter, in the order of the plan."""
    shares = {}
    for number, box in enumerate(plan.boxes):
        if box.intersection(question.box) is not None:
            shares[number] = float(question.share(box, plan.weight(box)).abs().sum())
    allowance = _NEGLIGIBLE * sum(shares.values())
    for number in sorted(shares, key=lambda number: shares[number]):
        allowance -= shares[number]
        if allowance < 0:
            break
        del shares[number]
    return shares


def _on_stage(term: Term, grid: Grid, run: StageRun, count: float) -> torch.Tensor:
    """A term's mask as weights on the padded stage grid, summing to about its share of the target's voxels."""
    box = bounding_box(term.mask)
    assert box is not None
    mask = torch.from_numpy(term.mask[box].astype(np.float32))
    unpadded = run.grid.cropped(run.plan.image_box)
    return run.plan.pad(resample_adjoint(mask, unpadded, grid.cropped(box)) * (term.sign / count), 0.0)


def _grid_for(volume: Volume, stage: StageSpec, segmentation: Segmentation) -> Grid:
    """The stage's grid for a segmentation that does not say on which it ran.

    Of several parts of a long scan, the one that holds most of what was found.
    """
    region = stage.region.label if stage.region else None
    box = bounding_box(segmentation.mask(region)) if region else None
    grids = stage_grids(volume, stage, box)
    found = segmentation.labels.grid.to_lps(np.argwhere(segmentation.labels.array)[:, ::-1])
    return max(grids, key=lambda grid: _count_inside(grid, found))


def _center_hu(volume: Volume, stage: StageSpec, segmentation: Segmentation) -> float:
    """What the stage's intensity is centered on: as it was, or, if the segmentation was made elsewhere, as it is."""
    if not stage.intensity.centered or stage.region is None:
        return 0.0
    if stage.name in segmentation.stage_centers:
        return segmentation.stage_centers[stage.name]
    label = stage.region.label
    region = segmentation.mask(label)
    if not region.any():
        raise EmptyTargetError(f"No {label} is marked, from which stage {stage.name!r} of the model counts HU.")
    return float(np.median(volume.array[region]))


def _count_inside(grid: Grid, points: np.ndarray) -> int:
    ijk = grid.to_ijk(points)
    return int(((ijk >= -0.5) & (ijk < np.array(grid.shape[::-1]) - 0.5)).all(axis=1).sum())
