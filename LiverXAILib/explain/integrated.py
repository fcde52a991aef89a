# SPDX-License-Identifier: Apache-2.0
"""Integrated gradients: which voxels led to the prediction, relative to an image without the structure.

Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, https://arxiv.org/abs/1703.01365:

    IG(y) = (x(y) - b(y)) * 1/n sum_s dS/dx(y) at b + (s - 1/2)/n * (x - b),

by the midpoint rule with n steps. The gradient of the stitched score is the sum of the windows' gradients, so this is
exact for the whole image as well. *Completeness*: the map should sum to S(x) - S(b); the deviation shows whether n was
large enough, and is reported.

The baseline b matters in CT, and there are two: with "air" (-1024 HU everywhere) the map shows what any tissue at all
contributes; with "tissue" (the organ's median HU everywhere) it shows what differs from plain liver, as a lesion does.
"""

from __future__ import annotations

import torch

from ..context import UNATTENDED, RunContext
from .score import ScoreTarget
from .stage_context import StageContext, StageMap

#: Steps of the path.
STEPS = 16
#: A completeness error above this fraction of the score difference leads to a warning.
_TOLERANCE = 0.1


def from_tissue(run: StageContext, score_target: ScoreTarget, context: RunContext) -> StageMap:
    """Integrated gradients from an image that is plain tissue of the target's organ everywhere."""
    return integrated_gradients(run, score_target, run.tissue, STEPS, context)


def from_air(run: StageContext, score_target: ScoreTarget, context: RunContext) -> StageMap:
    """Integrated gradients from an image that is air everywhere."""
    return integrated_gradients(run, score_target, run.air, STEPS, context)


def integrated_gradients(
    run: StageContext,
    score_target: ScoreTarget,
    baseline: float,
    steps: int,
    context: RunContext = UNATTENDED,
) -> StageMap:
    """The signed attribution of each voxel of the padded stage grid, and how complete it is.

    :param baseline: network input that fills the whole baseline image.
    """
    difference = run.image - baseline
    total = torch.zeros_like(run.image)
    ends = torch.zeros(2, dtype=torch.float64)
    passes = range(len(run.passes))
    for done, number in enumerate(score_target.windows):
        box = run.plan.boxes[number]
        share = score_target.window_weights(box, run.plan.weight(box)).to(run.device)
        part = difference[box].to(run.device)
        for pass_index in passes:
            for step in range(steps):
                context.check()
                context.report(
                    f"Explaining ({run.stage.name}): window {done + 1} of {len(score_target.windows)}",
                    (done + (pass_index + step / steps) / len(passes)) / len(score_target.windows),
                )
                point = (baseline + (step + 0.5) / steps * part).requires_grad_()
                with torch.enable_grad():
                    score = score_target.score(run.network(pass_index, point), share) / len(passes)
                (gradient,) = torch.autograd.grad(score, point)
                total[box] += gradient.cpu() / steps
            with torch.inference_mode():
                for end, point in enumerate((torch.full_like(part, baseline), baseline + part)):
                    ends[end] += score_target.score(run.network(pass_index, point), share).cpu() / len(passes)
    values = total * difference
    change = float(ends[1] - ends[0])
    error = abs(float(values.double().sum()) - change)
    warnings = []
    if error > _TOLERANCE * abs(change):
        warnings.append(
            f"Integrated gradients are incomplete: they sum to {float(values.sum()):.3g}, but the score changes by "
            f"{change:.3g}. The gradient varies too strongly along the integration path for {steps} "
            "steps; read the map with care."
        )
    details = {
        "steps": steps,
        "score_change": change,
        "completeness_error": error,
        "windows_run": len(score_target.windows),
        "windows": len(run.plan.boxes),
    }
    return StageMap(values, warnings, details)
