# SPDX-License-Identifier: Apache-2.0
"""The model's predictions for changed CTs: a lesion removed, moved, or isolated; a place made to look like a lesion.

Each question costs a few passes of the network on a box around the lesion, a fraction of a second, and the result is
exact, because the model itself is run. The images are made by :mod:`LiverXAILib.explain.fill`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from ...context import RunContext
from ...errors import UsageError, own_errors, require_several
from ...inference.device import select_device
from ...inference.segmentation import Segmentation
from ...models.model import Model
from ...progress import CancelToken, Progress
from ...volumes.box import bounding_box
from ...volumes.resample import resample
from ...volumes.volume import Volume
from ..answers import Answer, Counterfactual, NeededChange
from ..fill import isolate, plausible_fill, soft_mask, transplant
from ..score import ScoreTarget, build_score
from ..stage_context import StageContext, StageContexts, require_explainable
from ..targets import LESION_LABEL, Target
from .examined import ExaminedBox

#: Default number of fills of a lesion, each with texture from a different place.
DRAWS = 1
#: Margin of the CT around a change that is kept for display.
_SHOWN_MM = 20.0
#: Balls that are tried where no lesion was found: diameters, and HU relative to the surrounding liver.
DIAMETERS_MM = (10.0, 20.0, 30.0)
CONTRASTS_HU = (-15.0, -30.0, -45.0, -60.0, -90.0)


@own_errors("The lesions cannot be examined")
def explain_lesions(
    volume: Volume,
    model: Model,
    segmentation: Segmentation,
    targets: Sequence[str | Target],
    *,
    draws: int = DRAWS,
    refusals: list[str] | None = None,
    prepared: StageContexts | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[Answer]:
    """Run the model on changed CTs for each target.

    A "why not" gets a :class:`~LiverXAILib.explain.answers.NeededChange`, any other target of lesions a
    :class:`~LiverXAILib.explain.answers.Counterfactual`.

    :param volume: the CT in HU from which `segmentation` was made.
    :param draws: number of fills of each target, each with texture from a different place.
    :param refusals: gets a sentence about each target that cannot be examined, instead of an error.
    :param prepared: the stages on this CT, shared with other questions about it; None: they are prepared now.
    :return: the counterfactuals in the order of `targets`. They are deterministic.
    :raises LiverXAILib.explain.targets.EmptyTargetError: a target was not found.
    :raises FarContextError: the model's prediction depends on context beyond the part that can be examined.
    :raises LiverXAILib.errors.UsageError: a target is not about lesions, the place of a "why not" lies outside the
        liver, or there is no healthy liver with which a lesion could be replaced.
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
        context.report(f"Examining changed CTs ({target.describe()})", number / len(targets))
        try:
            target = target.resolve(segmentation)
            if target.label != LESION_LABEL:
                raise UsageError(f"Only lesions can be replaced or put into the liver; this is about {target.label}.")
            run = prepared.of(model.spec.stage_of(target.label))
            answers.append(_explain_change(target, volume, model, run, draws, context))
        except UsageError as error:
            if refusals is None:
                raise
            how = "" if target.is_why_not else " without it"
            refusals.append(f"Not examined{how}: {target.describe()}. {error}")
    if targets:
        context.report("Examined changed CTs", 1.0)
    return answers


def _explain_change(
    target: Target,
    volume: Volume,
    model: Model,
    run: StageContext,
    draws: int,
    context: RunContext,
) -> Answer:
    """One result of :func:`explain_lesions`, for a prepared run."""
    started = time.perf_counter()
    mask = target.mask(run.segmentation)
    score_target = build_score(target, run.segmentation, model, run, context, mask)
    examined = ExaminedBox.around(score_target, run, mask, context)
    answer: Answer
    if target.is_why_not:
        answer = _needed_change(target, examined, context)
    else:
        answer = _counterfactual(target, examined, volume, draws, context)
    provenance = {
        "stage": run.stage.name,
        "model": model.provenance,
        "box_mm": [round(n * size, 1) for n, size in zip(examined.crop, run.spacing, strict=True)],
        "device": str(run.device),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return replace(answer, provenance=provenance)


def confidence_alone(score_target: ScoreTarget, run: StageContext, mask: np.ndarray, context: RunContext) -> float:
    """The model's confidence in a lesion by itself, in plain liver: the ``alone`` of its counterfactual.

    :param mask: the lesion's voxels, on the input's grid.
    :raises FarContextError: the model's prediction depends on context beyond the part that can be examined.
    :raises LiverXAILib.errors.UsageError: there is no healthy liver.
    """
    examined = ExaminedBox.around(score_target, run, mask, context)
    run, hu, donor = examined.run, examined.run.hu, examined.healthy
    lesion = examined.weights > 0
    fill = plausible_fill(hu, lesion, donor, run.spacing)
    alone = isolate(hu, soft_mask(lesion, run.spacing), fill.level_hu, donor)
    return examined.ask([run.from_hu(alone)], context)[0]


def _counterfactual(
    target: Target, examined: ExaminedBox, volume: Volume, draws: int, context: RunContext
) -> Counterfactual:
    run, hu, donor = examined.run, examined.run.hu, examined.healthy
    lesion = examined.weights > 0
    fills = [plausible_fill(hu, lesion, donor, run.spacing, seed) for seed in range(draws)]
    kept = soft_mask(lesion, run.spacing)
    alone = isolate(hu, kept, fills[0].level_hu, donor)
    images, weights = [alone, *(fill.image for fill in fills)], [examined.weights] * (1 + draws)
    volumes = {
        "without": _edited(volume, run, fills[0].image, fills[0].weight > 0),
        "alone": _as_seen(run, alone, kept > 0),
    }
    place = None
    if (moved := transplant(hu, kept, fills[0], donor, run.spacing)) is not None:
        image, offset = moved
        images.append(image)
        weights.append(examined.weights.roll(offset, (0, 1, 2)))
        place = _center_lps(run, weights[-1])
        volumes["elsewhere"] = _edited(volume, run, image, weights[-1] > 0)
    by_itself, *answers = examined.ask([run.from_hu(image) for image in images], context, weights)
    without = answers[:draws]
    evidence = {
        "probability": round(examined.probability, 5),
        "in_image": round(examined.in_image, 5),
        "without": round(median(without), 5),
        "draws": [round(value, 5) for value in without],
        "elsewhere": None if place is None else round(answers[-1], 5),
        "elsewhere_lps_mm": place,
        "alone": round(by_itself, 5),
        "level_hu": round(fills[0].level_hu, 1),
        "fill": {"level": "ring" if fills[0].ring else "liver", "fitted": round(fills[0].fitted, 3)},
    }
    return Counterfactual(target, evidence, volumes)


def _needed_change(target: Target, examined: ExaminedBox, context: RunContext) -> NeededChange:
    run, hu, donor = examined.run, examined.run.hu, examined.healthy
    center = torch.tensor(_center_kji(examined.weights))
    if not run.mask(run.organ)[tuple(center.round().long())]:
        raise UsageError(
            f"It lies outside the {run.organ} that was found, and only the {run.organ} can be made to look like a "
            "lesion."
        )
    steps = torch.stack(torch.meshgrid(*(torch.arange(n) for n in hu.shape), indexing="ij"), dim=-1) - center
    distance = (steps * torch.tensor(run.spacing)).norm(dim=-1)
    # The score of a "why not" has the opposite sign; for the ball, the label itself is scored.
    label = replace(examined, score_target=examined.score_target.turned())
    rows, needed, level = [], [], 0.0
    for number, diameter in enumerate(DIAMETERS_MM):
        ball = distance <= diameter / 2
        fill = plausible_fill(hu, ball, donor & ~ball, run.spacing, margin=0)
        level, weights = fill.level_hu, ball / ball.sum()
        context.report(f"Darkening {diameter:g} mm", number / len(DIAMETERS_MM))
        images = [run.from_hu(fill.image + contrast * fill.weight) for contrast in CONTRASTS_HU]
        row = [round(value, 5) for value in label.ask(images, context, [weights] * len(images))]
        rows.append(row)
        enough = (contrast for contrast, value in zip(CONTRASTS_HU, row, strict=True) if value >= 0.5)
        needed.append(next(enough, None))
    evidence = {
        "probability": round(1 - examined.probability, 5),
        "in_image": round(1 - examined.in_image, 5),
        "level_hu": round(level, 1),
        "diameters_mm": list(DIAMETERS_MM),
        "contrasts_hu": list(CONTRASTS_HU),
        "probabilities": rows,
        "needed": needed,
    }
    return NeededChange(target, evidence)


def _edited(volume: Volume, run: StageContext, image: torch.Tensor, changed: torch.Tensor) -> Volume:
    """The CT with the change that `image` (HU, on the grid of `run`) makes, cropped to the surroundings of `changed`.

    The *difference* is resampled to the CT's grid, so that detail finer than the network's voxels is preserved.
    """
    around = bounding_box(changed.numpy())
    assert around is not None
    box = around.projected(run.grid, volume.grid, margin_mm=_SHOWN_MM)
    part = volume.cropped(box)
    difference = resample(image - run.hu, run.grid, part.grid, antialias=False).numpy()
    return Volume(np.rint(part.array + difference).astype(np.int16), part.ijk_to_lps)


def _as_seen(run: StageContext, image: torch.Tensor, changed: torch.Tensor) -> Volume:
    """The network's input, cropped to the surroundings of `changed`.

    Where everything is replaced, detail from the CT would reveal what was there.
    """
    around = bounding_box(changed.numpy())
    assert around is not None
    box = around.grown([round(_SHOWN_MM / size) for size in run.spacing], image.shape)
    return Volume(image[box].round().numpy().astype(np.int16), run.grid.cropped(box).ijk_to_lps)


def _center_kji(weights: torch.Tensor) -> list[float]:
    return [float(axis.mean()) for axis in (weights > 0).nonzero().float().T]


def _center_lps(run: StageContext, weights: torch.Tensor) -> list[float]:
    x, y, z = run.grid.to_lps(np.array(_center_kji(weights)[::-1]))
    return [round(float(x), 1), round(float(y), 1), round(float(z), 1)]
