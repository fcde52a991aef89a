# SPDX-License-Identifier: Apache-2.0
"""Exact Shapley values of the parts of an image, and the answer made from them.

Shapley, "A value for n-person games", 1953; as an explanation of models: Lundberg and Lee, NeurIPS 2017,
https://arxiv.org/abs/1705.07874. With seven parts there are 128 images to ask about, so nothing is sampled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import factorial

import torch

from ...context import RunContext
from ...errors import UsageError
from ...inference.device import select_device
from ...inference.segmentation import Segmentation
from ...models.model import Model
from ...progress import CancelToken, Progress
from ...volumes.volume import Volume
from ..answers import RegionShares
from ..counterfactual import ExaminedBox
from ..score import build_score
from ..stage_context import StageContext
from ..targets import LESION_LABEL, Target, WhyNot
from .parts import name_parts, replaced


def shapley_values(value: Callable[[frozenset[int]], float], players: int) -> list[float]:
    """The exact Shapley values of a game; every coalition is asked about once.

    :param value: what a coalition of players (0 to `players` - 1) is worth.
    :return: for each player; their sum is ``value(all) - value(none)``.
    """
    worth = [value(frozenset(n for n in range(players) if mask >> n & 1)) for mask in range(2**players)]
    shares = []
    for player in range(players):
        share = 0.0
        for mask in range(2**players):
            if not mask >> player & 1:
                size = mask.bit_count()
                weight = factorial(size) * factorial(players - size - 1) / factorial(players)
                share += weight * (worth[mask | 1 << player] - worth[mask])
        shares.append(share)
    return shares


def explain_regions(
    volume: Volume,
    model: Model,
    segmentation: Segmentation,
    targets: Sequence[str | Target],
    *,
    refusals: list[str] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[RegionShares]:
    """Divide the model's confidence in lesions among the parts of the image around them.

    :param volume: the CT in HU from which `segmentation` was made.
    :param targets: lesions.
    :param refusals: gets a sentence about each target that cannot be examined, in place of an error.
    :return: in the order of `targets`. Deterministic.
    :raises LiverXAILib.explain.targets.EmptyTargetError: a target was not found.
    :raises LiverXAILib.explain.counterfactual.FarContextError: the model's answer depends on what lies further away
        than can be examined.
    :raises LiverXAILib.errors.UsageError: a target is not a lesion, or there is no healthy liver to replace parts by.
    :raises LiverXAILib.errors.Cancelled: `cancel` was set.
    """
    torch_device = select_device(device)
    context = RunContext(progress, cancel, torch_device)
    model.to(torch_device)
    runs: dict[str, StageContext] = {}
    answers = []
    for number, text in enumerate(targets):
        target = Target.parse(text).resolve(segmentation)
        if isinstance(target, WhyNot) or target.label != LESION_LABEL:
            raise UsageError(f"{target.describe()} cannot be divided among parts: name a lesion, as in 'lesion:1'.")
        stage = model.spec.stage_of(target.label)
        if stage.name not in runs:
            runs[stage.name] = StageContext.prepare(volume, model, stage, segmentation, torch_device)
        try:
            answers.append(_shares(target, model, runs[stage.name], context.step(number, len(targets))))
        except UsageError as error:
            if refusals is None:
                raise
            refusals.append(f"Not divided among parts: {target.describe()}. {error}")
    context.report("Divided", 1.0)
    return answers


def _shares(target: Target, model: Model, run: StageContext, context: RunContext) -> RegionShares:
    started = time.perf_counter()
    mask = target.mask(run.segmentation)
    score_target = build_score(target, run.segmentation, model, run, context, mask)
    examined = ExaminedBox.around(score_target, run, mask, context, small=False)
    parts = name_parts(examined)
    plain, hu = replaced(examined, parts), examined.run.hu
    asked: dict[frozenset[int], float] = {}

    def confidence(kept: frozenset[int]) -> float:
        context.report(f"Replacing parts around {target.describe()}", len(asked) / 2 ** len(parts))
        shown = torch.zeros_like(parts[0].mask)
        for number in kept:
            shown |= parts[number].mask
        (asked[kept],) = examined.ask([examined.run.from_hu(torch.where(shown, hu, plain))], context)
        return asked[kept]

    shares = shapley_values(confidence, len(parts))
    voxel_ml = float(torch.tensor(run.spacing).prod()) / 1000
    nothing, everything = asked[frozenset()], asked[frozenset(range(len(parts)))]
    evidence = {
        "probability": everything,
        "replaced": nothing,
        "in_image": examined.in_image,
        "beyond": examined.in_image - everything,
        "parts": [
            {
                "name": part.name,
                "of_lesion": part.of_lesion,
                "ml": round(float(part.mask.sum()) * voxel_ml, 2),
                "share": share,
            }
            for part, share in zip(parts, shares, strict=True)
        ],
    }
    provenance = {
        "stage": run.stage.name,
        "model": model.provenance,
        "box_mm": [round(n * size, 1) for n, size in zip(examined.box.shape, run.spacing, strict=True)],
        "passes": len(asked),
        "device": str(run.device),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return RegionShares(target, evidence, {}, (), provenance)
