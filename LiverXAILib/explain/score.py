# SPDX-License-Identifier: Apache-2.0
"""The score of a question: a weighted sum of the network's logits over all windows.

The score is the mean, over the voxels that the question is about, of the logit that decided the label there. It is
linear in the network's blended logits, which makes explanations of windowed predictions exact: the blended logit of
channel c at voxel x is ``l_c(x) = 1/M sum_m sum_p W_p(x) l_c^{m,p}(x)`` over the M networks of an ensemble (or, if
mirrored windows are averaged, over all networks and mirrorings) and the windows p that contain x; the weights ``W_p``
are known before any network runs. The score is therefore

    S = sum_c sum_x T_c(x) l_c(x) = sum_m sum_p sum_c sum_x [T_c(x) W_p(x) / M] l_c^{m,p}(x),

each window needs only its own weights ``T_c W_p``, and a window whose weights are all 0 has no influence on S. The
gradients are exactly those of one graph over the whole image, although only the windows that overlap the target run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..context import UNATTENDED, RunContext
from ..errors import UsageError
from ..inference.segmentation import Segmentation
from ..inference.windows import WindowPlan
from ..models.model import Model
from ..models.spec import ModelSpec, StageSpec
from ..volumes.box import Box, bounding_box
from ..volumes.resample import resample_adjoint
from ..volumes.volume import Grid
from .stage_context import StageContext
from .targets import EmptyTargetError, Target

#: Windows that together contribute less than this fraction of a score are not run: their Gaussian weights are almost 0.
_NEGLIGIBLE = 1e-6
#: The margin around a target within which a map is evaluated, and the largest size of the examined box.
CONTEXT_MM = 48.0
EXAMINED_MM = 120.0
#: A part of the image may be examined in place of the whole if the model's mean probability of the prediction over the
#: target differs by at most this.
AGREEMENT = 0.15


@dataclass(frozen=True, eq=False)
class ScoreTerm:
    """One summand of a score: `sign` times the sum over `mask` of the largest logit among `channels`.

    `mask` is bool (k, j, i) on the input's grid.
    """

    channels: tuple[int, ...]
    sign: float
    mask: np.ndarray = field(repr=False)


def score_terms(
    target: Target, mask: np.ndarray, segmentation: Segmentation, model: ModelSpec, stage: StageSpec
) -> list[ScoreTerm]:
    """The summands of the score of `target` in `stage`, for the voxels `mask` on the input's grid.

    * a label: the logit of the channel that decided. Where the label consists of mutually exclusive parts (liver =
      healthy liver + tumor), the segmentation determines which channel that was;
    * a label against a rival: the same, minus the rival's logit (see :func:`positive_and_negative_channels`);
    * why not: the best other logit minus the label's.
    """
    own, rivals = positive_and_negative_channels(target, model, stage)
    if target.is_why_not:
        return [ScoreTerm(channels, sign, mask) for channels, sign in ((own, 1.0), (rivals, -1.0)) if channels]
    terms = list(_deciding_channels(target.label, own, mask, segmentation, model, stage))
    if target.compared_with and rivals:
        terms.append(ScoreTerm(rivals, -1.0, mask))
    return terms


def positive_and_negative_channels(
    target: Target, model: ModelSpec, stage: StageSpec
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The output channels that raise the score of `target`, and those that lower it.

    If the channels are mutually exclusive (softmax), a label is lowered by all other channels; nested channels
    (sigmoid) have no rivals. A label against its rival is lowered by the rival's own channels or, if the stage does not
    have the rival, again by all others. For "why not", the two are swapped.
    """
    own = _channels(stage, target.label)
    others = tuple(index for index in range(len(stage.channels)) if index not in own)
    rivals = others if stage.activation == "softmax" else ()
    if rival := target.compared_with:
        model.label(rival)
        if rival in stage.labels and (rivals or not _is_part(target.label, rival, model)):
            rivals = tuple(index for index in _channels(stage, rival) if index not in own)
            if not rivals:
                raise UsageError(f"{target.label} cannot be distinguished from {rival}: they share all channels.")
    return (rivals, own) if target.is_why_not else (own, rivals)


def _channels(stage: StageSpec, label: str) -> tuple[int, ...]:
    return tuple(index for index, name in enumerate(stage.channels) if name in stage.labels[label])


def _is_part(label: str, whole: str, model: ModelSpec) -> bool:
    parent = model.label(label).parent
    return parent is not None and (parent == whole or _is_part(parent, whole, model))


def _deciding_channels(
    label: str,
    channels: tuple[int, ...],
    mask: np.ndarray,
    segmentation: Segmentation,
    model: ModelSpec,
    stage: StageSpec,
) -> Iterator[ScoreTerm]:
    if stage.activation == "softmax":
        for part in model.labels:
            if part.parent != label or part.name not in stage.labels:
                continue
            shared = tuple(index for index in _channels(stage, part.name) if index in channels)
            rest = tuple(index for index in channels if index not in shared)
            inside = mask & segmentation.mask(part.name)
            if shared and rest and inside.any():
                yield ScoreTerm(shared, 1.0, inside)
                mask = mask & ~inside
            if rest:
                channels = rest
    if mask.any():
        yield ScoreTerm(channels, 1.0, mask)


@dataclass(frozen=True, eq=False)
class ScoreTarget:
    """The weights T_c(x) of a score, cropped to where they are not 0.

    :param channels: output channels that have weights.
    :param weights: float32 (channels, \\*box).
    :param box: on the padded image.
    :param own: the channels that raise the score, and `rivals`: those that lower it.
    :param windows: the size of each window's share in the question, for the windows of the plan that have one.
    """

    target: Target
    channels: tuple[int, ...]
    weights: torch.Tensor = field(repr=False)
    box: Box
    own: tuple[int, ...] = ()
    rivals: tuple[int, ...] = ()
    windows: dict[int, float] = field(default_factory=dict, repr=False)

    def window_weights(self, box: Box, weight: torch.Tensor) -> torch.Tensor:
        """T_c W_p in the window at `box`: float32 (channels, \\*window)."""
        share = torch.zeros((len(self.channels), *weight.shape))
        if (common := box.intersection(self.box)) is not None:
            here, there = common.relative_to(box), common.relative_to(self.box)
            share[:, here.k, here.j, here.i] = self.weights[:, there.k, there.j, there.i] * weight[here]
        return share

    def score(self, logits: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """A window's part of the score: `logits` (all channels) times a `share` from :meth:`window_weights`, summed."""
        return (logits[list(self.channels)] * share).sum()

    @property
    def share(self) -> torch.Tensor:
        """The share of each voxel of the box in the question: float32 (k, j, i) that sums to 1."""
        weights = self.weights.abs().sum(dim=0)
        return weights / weights.sum()

    def evidence(self, logits: torch.Tensor) -> torch.Tensor:
        """The log-odds of the prediction at each voxel, from all channels' logits; its sigmoid is the probability."""
        odds = torch.zeros_like(logits[0])
        if self.own:
            odds = odds + logits[list(self.own)].logsumexp(dim=0)
        if self.rivals:
            odds = odds - logits[list(self.rivals)].logsumexp(dim=0)
        return odds

    def turned(self) -> ScoreTarget:
        """The opposite question: channels that raise the score and channels that lower it are swapped."""
        return replace(self, own=self.rivals, rivals=self.own)

    @property
    def focus(self) -> int:
        """The window with the largest share."""
        return max(self.windows, key=lambda number: self.windows[number])

    def over_slices(self, run: StageContext) -> tuple[StageContext, ScoreTarget]:
        """The run and the question with all slices of the target, and those around it, in one window.

        Windows of 2-D networks are single slices, but a target spans many. For other networks, nothing changes.
        """
        if run.stage.dimensions != 2:
            return run, self
        reach = round(CONTEXT_MM / run.spacing[0])
        slices = slice(max(0, self.box.k.start - reach), min(run.image.shape[0], self.box.k.stop + reach))
        boxes = {(box.j.start, box.i.start): Box(slices, box.j, box.i) for box in run.plan.boxes}
        window = slices.stop - slices.start, run.plan.window[1], run.plan.window[2]
        plan = replace(run.plan, window=window, boxes=tuple(boxes.values()))
        return replace(run, plan=plan), replace(self, windows=window_contributions(self, plan))

    def in_focus(
        self, run: StageContext, limit_mm: float | None = EXAMINED_MM, context_mm: float = CONTEXT_MM
    ) -> tuple[StageContext, ScoreTarget, Box]:
        """The run and the question restricted to one window, as if it were the whole image, and that window's box.

        It is the window with the largest share or, if the stage accepts images of any size, the part of it within
        `context_mm` of the target, which is much cheaper to run many times. Where that part is larger than `limit_mm`
        along an axis, the box of that size that best balances target and surroundings, at most half and half, is
        taken. Without `limit_mm` the whole window is taken.
        """
        window = run.plan.boxes[self.focus]
        box = window
        if limit_mm is not None and run.stage.size is None and not run.stage.pad_to_window:
            box = self._surroundings(run, window, limit_mm, context_mm)
        share = self.window_weights(box, run.plan.weight(window)[box.relative_to(window)])
        size = share.shape[1], share.shape[2], share.shape[3]
        whole = Box.full(size)
        plan = WindowPlan(size, size, size, (whole,))
        alone = replace(run, grid=run.grid.cropped(box), plan=plan, image=run.image[box], part_of=(run, box))
        return alone, replace(self, weights=share, box=whole, windows={0: float(share.abs().sum())}), box

    def _surroundings(self, run: StageContext, window: Box, limit_mm: float, context_mm: float) -> Box:
        divisor = (1, *run.stage.divisor[1:]) if run.stage.dimensions == 2 else run.stage.divisor
        sizes, centered = [], []
        for axis, (limits, target) in enumerate(zip(window, self.box, strict=True)):
            reach, most = round(context_mm / run.spacing[axis]), round(limit_mm / run.spacing[axis])
            low, high = max(limits.start, target.start - reach), min(limits.stop, target.stop + reach)
            sizes.append(-(-min(high - low, most) // divisor[axis]) * divisor[axis])
            centered.append((target.start + target.stop - sizes[axis]) / 2 - limits.start)
        nearest = np.clip(np.ceil(np.array(centered) - 0.5), 0, np.subtract(window.shape, sizes)).astype(int)
        box = Box.full(sizes).shifted(np.add(window.start, nearest))
        common = window.intersection(self.box)
        if box.intersection(self.box) == common and 2 * np.prod(self.box.shape) <= np.prod(sizes):
            return box  # it holds the whole target, and no other such box is nearer: there is nothing to balance
        asked = self.window_weights(window, run.plan.weight(window)).abs().sum(dim=0) > 0
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


def mean_probability(evidence: torch.Tensor, weights: torch.Tensor) -> float:
    """The mean probability of an answer, weighted by the share of each voxel in the question.

    :param evidence: from :meth:`ScoreTarget.evidence`, (k, j, i); `weights`: of the same size.
    """
    return float((torch.sigmoid(evidence) * weights).sum() / weights.sum())


def build_score(
    target: Target,
    segmentation: Segmentation,
    model: Model,
    run: StageContext,
    context: RunContext = UNATTENDED,
    mask: np.ndarray | None = None,
) -> ScoreTarget:
    """Turn `target` into weights on the logits of `run`.

    The mask is on the input's grid; the transpose of resampling carries it to the stage's grid, so that the score is
    exactly the mean over the target of the scores on the input's grid.

    :param mask: the target's voxels, if they are already known.
    :raises EmptyTargetError: the target has no voxels in the part of the image that the stage processed.
    """
    target = target.resolve(segmentation)
    mask = target.mask(segmentation) if mask is None else mask
    terms = score_terms(target, mask, segmentation, model.spec, run.stage)
    count = float(np.count_nonzero(mask))  # several times faster than a sum
    weights = [_on_stage(term, segmentation.labels.grid, run, count) for term in terms]
    box = bounding_box(np.logical_or.reduce([(w != 0).numpy() for w in weights]))
    if box is None:
        raise EmptyTargetError(f"Stage {run.stage.name!r} of the model did not process {target.describe()}.")
    weights = [w[box] for w in weights]
    if any(len(term.channels) > 1 for term in terms):
        extent = torch.stack(weights).abs().sum(dim=0)[None]
        logits = blended_logits(run, ScoreTarget(target, (0,), extent, box), context)
    split: dict[int, torch.Tensor] = {}
    for term, weight in zip(terms, weights, strict=True):
        winner = logits[list(term.channels)].argmax(dim=0) if len(term.channels) > 1 else torch.zeros_like(weight)
        for index, channel in enumerate(term.channels):
            part = weight * (winner == index)
            if part.any():
                split[channel] = split[channel] + part if channel in split else part
    own, rivals = positive_and_negative_channels(target, model.spec, run.stage)
    score_target = ScoreTarget(target, tuple(split), torch.stack(list(split.values())), box, own, rivals)
    score_target.windows.update(window_contributions(score_target, run.plan))
    return score_target


def blended_logits(run: StageContext, score_target: ScoreTarget, context: RunContext = UNATTENDED) -> torch.Tensor:
    """The blended logits of all channels in the target's box: float32 (channels, \\*box), without gradients."""
    logits: torch.Tensor | None = None
    with torch.inference_mode():
        for number in window_contributions(score_target, run.plan):
            box = run.plan.boxes[number]
            common = box.intersection(score_target.box)
            assert common is not None
            here, there = common.relative_to(box), common.relative_to(score_target.box)
            for pass_index in range(len(run.passes)):
                context.check()
                output = run.forward(pass_index, box).cpu() / len(run.passes)
                if logits is None:
                    logits = torch.zeros((output.shape[0], *score_target.weights.shape[1:]))
                part = (output * run.plan.weight(box))[:, here.k, here.j, here.i]
                logits[:, there.k, there.j, there.i] += part
    assert logits is not None
    return logits


def window_contributions(score_target: ScoreTarget, plan: WindowPlan) -> dict[int, float]:
    """The share of each window in the score, for windows with a non-negligible share, in the order of the plan."""
    shares = {}
    for number, box in enumerate(plan.boxes):
        if (common := box.intersection(score_target.box)) is not None:
            there, weight = common.relative_to(score_target.box), plan.weight(box)[common.relative_to(box)]
            shares[number] = float(
                score_target.weights[:, there.k, there.j, there.i].abs().sum(dim=0).mul(weight).sum()
            )
    allowance = _NEGLIGIBLE * sum(shares.values())
    for number in sorted(shares, key=lambda number: shares[number]):
        allowance -= shares[number]
        if allowance < 0:
            break
        del shares[number]
    return shares


def _on_stage(term: ScoreTerm, grid: Grid, run: StageContext, count: float) -> torch.Tensor:
    """A term's mask as weights on the padded stage grid, summing to about its share of the target's voxels."""
    box = bounding_box(term.mask)
    assert box is not None
    mask = torch.from_numpy(term.mask[box].astype(np.float32))
    unpadded = run.grid.cropped(run.plan.image_box)
    return run.plan.pad(resample_adjoint(mask, unpadded, grid.cropped(box)) * (term.sign / count), 0.0)
