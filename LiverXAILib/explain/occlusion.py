# SPDX-License-Identifier: Apache-2.0
"""Occlusion: replace a place and see how much the score drops. Needs no gradients and no layer.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014. Occluders are cubes that tile the
windows that overlap the target. Inside a cube the image is replaced by plain tissue of the same patient
(:func:`LiverXAILib.explain.fill.plain_tissue`): liver for lesions, the prevailing surrounding tissue for an organ. The
network would respond to the edges of black cubes, and a blurred lesion is still a lesion; the blurred image is used
only where no plain tissue is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil

import torch

from ..context import UNATTENDED, RunContext
from ..errors import UsageError
from ..volumes.box import Box
from ..volumes.resample import resample
from ..volumes.volume import Grid
from .fill import plain_tissue
from .layers import lattice_grid
from .score import ScoreTarget
from .stage_context import StageContext, StageMap

#: The maximum number of network runs for one question.
BUDGET = 250
#: Cubes are not made smaller than this.
_SMALLEST_MM = 6.0


def occlusion(
    run: StageContext,
    score_target: ScoreTarget,
    context: RunContext = UNATTENDED,
    budget: int = BUDGET,
    baseline: torch.Tensor | None = None,
) -> StageMap:
    """The drop of the score when each cube is occluded, interpolated between the centers of the cubes.

    The cubes are the smallest (not below 6 mm) for which no more than about `budget` network runs are needed; windows
    are run only for cubes that overlap them.

    :param baseline: network input of the image's size that replaces the image in a cube; None: plain tissue.
    """
    baseline, replaced_by = _plain(run, score_target) if baseline is None else (baseline, "given")
    boxes = [run.plan.boxes[number] for number in score_target.windows]
    region = Box.union(boxes)
    runs_left = max(1, budget - len(boxes) * len(run.passes)) // len(run.passes)
    side_mm = _SMALLEST_MM
    while _count(boxes, region, _edges(run, side_mm)) > runs_left:
        side_mm *= 1.1
    edges = _edges(run, side_mm)
    total = _count(boxes, region, edges)
    cubes = list(_cubes(region, edges))
    drops = torch.zeros(len(cubes))
    done = 0
    with torch.inference_mode():
        for box in boxes:
            share = score_target.window_weights(box, run.plan.weight(box)).to(run.device)
            window, plain = run.image[box], baseline[box]
            intact = _logits(run, score_target, window, context)
            for number, cube in enumerate(cubes):
                common = box.intersection(cube)
                if common is None:
                    continue
                context.report(f"Explaining ({run.stage.name}): occluding {done + 1} of {total}", done / total)
                occluded = window.clone()
                hidden = common.relative_to(box)
                occluded[hidden] = plain[hidden]
                # Subtracting logits before summing keeps small drops of a large score.
                drops[number] += float(((intact - _logits(run, score_target, occluded, context)) * share).sum())
                done += 1
    a, b, c = (ceil(n / edge) for n, edge in zip(region.shape, edges, strict=True))
    part = run.grid.cropped(region)
    lattice: Grid = lattice_grid(part, edges, (a, b, c))
    values = torch.zeros(run.plan.padded_shape)
    values[region] = resample(drops.reshape(a, b, c), lattice, part, antialias=False)
    size = [round(edge * spacing, 2) for edge, spacing in zip(edges, run.spacing, strict=True)]
    runs = (total + len(boxes)) * len(run.passes)
    return StageMap(values, [], {"occluder_mm": size, "replaced_by": replaced_by, "network_runs": runs})


def _plain(run: StageContext, score_target: ScoreTarget) -> tuple[torch.Tensor, str]:
    """The network input that replaces the image, and its name."""
    region = torch.zeros(run.image.shape, dtype=torch.bool)
    region[score_target.box] = score_target.weights.abs().sum(dim=0) > 0
    try:
        return plain_tissue(run, region, score_target.target.label)[1], "plain tissue"
    except UsageError:
        return run.blurred, "blur"


def _logits(run: StageContext, score_target: ScoreTarget, window: torch.Tensor, context: RunContext) -> torch.Tensor:
    """The ensemble's mean logits in the channels that the question asks about."""
    total = torch.zeros((), device=run.device)
    for pass_index in range(len(run.passes)):
        context.check()
        total = total + run.network(pass_index, window.to(run.device))[list(score_target.channels)] / len(run.passes)
    return total


def _edges(run: StageContext, side_mm: float) -> tuple[int, int, int]:
    a, b, c = (max(1, round(side_mm / size)) for size in run.spacing)
    return a, b, c


def _cubes(region: Box, edges: tuple[int, int, int]) -> Iterator[Box]:
    starts = [range(s.start, s.stop, edge) for s, edge in zip(region, edges, strict=True)]
    for corner in product(*starts):
        yield Box.full(edges).shifted(corner)


def _count(boxes: list[Box], region: Box, edges: tuple[int, int, int]) -> int:
    """How many (cube, window) pairs have voxels in common."""
    total = 0
    for box in boxes:
        pairs = 1
        for s, whole, edge in zip(box, region, edges, strict=True):
            pairs *= (s.stop - 1 - whole.start) // edge - (s.start - whole.start) // edge + 1
        total += pairs
    return total
