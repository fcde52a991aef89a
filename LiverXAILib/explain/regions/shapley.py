# SPDX-License-Identifier: Apache-2.0
"""Exact Shapley values of the parts of an image, and the explanation made from them.

Shapley, "A value for n-person games", 1953; as an explanation of models: Lundberg and Lee, NeurIPS 2017,
https://arxiv.org/abs/1705.07874. With at most eight parts there are at most 256 images, so no sampling is needed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import factorial

import torch

from ...context import RunContext
from ...errors import UsageError, own_errors, require_several
from ...inference.device import select_device
from ...inference.segmentation import Segmentation
from ...models.model import Model
from ...progress import CancelToken, Progress
from ...volumes.volume import Volume
from ..answers import RegionShares
from ..counterfactual import ExaminedBox, confidence_alone
from ..score import build_score
from ..stage_context import StageContext, StageContexts, require_explainable
from ..targets import LESION_LABEL, Target
from .parts import choose_replacement, name_parts

#: How many images are made at a time. :meth:`~LiverXAILib.explain.counterfactual.ExaminedBox.ask` decides how many of
#: them form a batch: on a CPU, a batch of four images of 64³ voxels saves 4 %, measured on one core.
_TOGETHER = 16


def coalitions(players: int) -> list[frozenset[int]]:
    """All 2^n sets of players (0 to `players` - 1); set number m holds player n if bit n of m is set."""
    return [frozenset(n for n in range(players) if number >> n & 1) for number in range(2**players)]


def shapley_values(worth: Sequence[float]) -> list[float]:
    """The exact Shapley values of a game.

    :param worth: the worth of each coalition, in the order of :func:`coalitions`.
    :return: a value for each player; their sum is the worth of all players minus that of none.
    """
    players = len(worth).bit_length() - 1
    shares = []
    for player in range(players):
        share = 0.0
        for number in range(len(worth)):
            if not number >> player & 1:
                size = number.bit_count()
                weight = factorial(size) * factorial(players - size - 1) / factorial(players)
                share += weight * (worth[number | 1 << player] - worth[number])
        shares.append(share)
    return shares


@own_errors("The confidence cannot be divided among parts")
def explain_regions(
    volume: Volume,
    model: Model,
    segmentation: Segmentation,
    targets: Sequence[str | Target],
    *,
    refusals: list[str] | None = None,
    prepared: StageContexts | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[RegionShares]:
    """Divide the model's confidence in lesions among the parts of the image around them.

    :param volume: the CT in HU from which `segmentation` was made.
    :param targets: lesions.
    :param refusals: gets a sentence about each target that cannot be examined, instead of an error.
    :param prepared: the stages on this CT, shared with other questions about it; None: they are prepared now.
    :return: the region shares in the order of `targets`. They are deterministic.
    :raises LiverXAILib.explain.targets.EmptyTargetError: a target was not found.
    :raises LiverXAILib.explain.counterfactual.FarContextError: the model's prediction depends on context beyond
        the part that can be examined.
    :raises LiverXAILib.errors.UsageError: a target is not a lesion, or there is no healthy liver to replace parts
        with.
    :raises LiverXAILib.errors.Cancelled: `cancel` was set.
    """
    require_explainable(volume, model, segmentation)
    require_several(targets, "targets")
    torch_device = select_device(device)
    context = RunContext(progress, cancel, torch_device)
    model.to(torch_device)
    prepared = prepared or StageContexts(volume, model, segmentation, torch_device)
    answers = []
    for number, text in enumerate(targets):
        target = Target.parse(text)
        try:
            target = target.resolve(segmentation)
            if target.is_why_not or target.label != LESION_LABEL:
                raise UsageError(f"{target.describe()} cannot be divided among parts: name a lesion, as in 'lesion:1'.")
            run = prepared.of(model.spec.stage_of(target.label))
            answers.append(_shares(target, model, run, context.step(number, len(targets))))
        except UsageError as error:
            if refusals is None:
                raise
            refusals.append(f"Not divided among parts: {target.describe()}. {error}")
    if targets:
        context.report("Examined regions", 1.0)
    return answers


def _shares(target: Target, model: Model, run: StageContext, context: RunContext) -> RegionShares:
    started = time.perf_counter()
    mask = target.mask(run.segmentation)
    score_target = build_score(target, run.segmentation, model, run, context, mask)
    examined = ExaminedBox.around(score_target, run, mask, context, small=False)
    parts = name_parts(examined)
    replacement, hu = choose_replacement(examined, parts, context), examined.run.hu
    plain = replacement.image
    asked = coalitions(len(parts))
    worth: list[float] = []
    for first in range(0, len(asked), _TOGETHER):
        context.report(f"Examining regions ({target.describe()})", first / len(asked))
        images = []
        for kept in asked[first : first + _TOGETHER]:
            shown = torch.stack([torch.zeros_like(plain, dtype=torch.bool), *(parts[n].mask for n in kept)]).any(dim=0)
            images.append(examined.run.from_hu(torch.where(shown, hu, plain)))
        worth += examined.ask(images, context)
    shares = shapley_values(worth)
    voxel_ml = float(torch.tensor(run.spacing).prod()) / 1000
    nothing, everything = worth[0], worth[-1]
    evidence = {
        "probability": everything,
        "replaced": nothing,
        "in_image": examined.in_image,
        "beyond": examined.in_image - everything,
        "alone": confidence_alone(score_target, run, mask, context),
        "parts": [
            {
                "name": part.name,
                "of_lesion": part.of_lesion,
                "ml": round(float(part.mask.sum()) * voxel_ml, 2),
                "share": share,
                "replaced_by": replacement.tissues[part.name],
                "tried": replacement.confidences.get(part.name, {}),
            }
            for part, share in zip(parts, shares, strict=True)
        ],
    }
    provenance = {
        "stage": run.stage.name,
        "model": model.provenance,
        "box_mm": [round(n * size, 1) for n, size in zip(examined.box.shape, run.spacing, strict=True)],
        "passes": len(asked) + sum(map(len, replacement.confidences.values())),
        "device": str(run.device),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return RegionShares(target, evidence, {}, (), provenance)
