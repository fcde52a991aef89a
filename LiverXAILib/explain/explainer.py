# SPDX-License-Identifier: Apache-2.0
"""explain(): from a CT, a model, its segmentation and a question to a heat map on the CT's own grid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..context import RunContext
from ..errors import DeviceError, own_errors, require_several
from ..inference.backends import keep_freed_memory
from ..inference.device import select_device
from ..inference.segmentation import Segmentation
from ..models.model import Model
from ..models.spec import StageSpec
from ..progress import CancelToken, Progress
from ..volumes.box import bounding_box
from ..volumes.resample import resample
from ..volumes.volume import Volume
from .catalog import DEFAULT_METHOD, require_method
from .explanation import LABELS, SUBJECT, Explanation
from .faithfulness import check_faithfulness
from .layers import cell_mm, find_layer
from .methods import METHODS, Method
from .score import ScoreTarget, build_score
from .stage_context import StageContext, StageContexts, require_explainable
from .stitching import stage_maps
from .subject import subject_checksum
from .targets import Target

#: The fraction of the progress bar that the map takes if it is also checked.
_MAP_SHARE = 0.1


def explain(
    volume: Volume,
    model: Model,
    segmentation: Segmentation,
    target: str | Target = "tumor",
    method: str = DEFAULT_METHOD,
    layer: str | None = None,
    *,
    device: str = "auto",
    check: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Explanation:
    """Answer one question about `segmentation` with a heat map. See :func:`explain_all`."""
    (explanation,) = explain_all(
        volume,
        model,
        segmentation,
        [target],
        method,
        layer,
        device=device,
        check=check,
        progress=progress,
        cancel=cancel,
    )
    return explanation


# Long: half of it is documentation for callers.
@own_errors("The segmentation cannot be explained")
def explain_all(
    volume: Volume,
    model: Model,
    segmentation: Segmentation,
    targets: Sequence[str | Target],
    method: str = DEFAULT_METHOD,
    layer: str | None = None,
    *,
    device: str = "auto",
    check: bool = False,
    prepared: StageContexts | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[Explanation]:
    """Answer several questions about `segmentation` with a heat map each.

    The stage of the model that decides a target's label runs again, with gradients, in the windows that overlap the
    target; several targets share each window's forward pass. Maps are stitched exactly (see
    :mod:`LiverXAILib.explain.score`), resampled to the grid of `volume` and normalized once.

    :param volume: the CT in HU from which `segmentation` was made, or on whose grid it was drawn.
    :param targets: see :class:`~LiverXAILib.explain.targets.Target`.
    :param method: a name from :data:`~LiverXAILib.explain.methods.METHODS`.
    :param layer: a layer of the network; None for the model's default.
    :param check: also test how faithful each map is (see :mod:`LiverXAILib.explain.faithfulness`); takes minutes.
    :param prepared: the stages on this CT, shared with other questions about it; None: they are prepared now.
    :return: heat maps on the grid of `volume`, float32 in [0, 1], in the order of `targets`.
    :raises LiverXAILib.explain.targets.EmptyTargetError: a target has no voxels (no tumor was found …).
    :raises LiverXAILib.errors.UsageError: unknown method, layer or label, or a place outside the image.
    :raises LiverXAILib.errors.DeviceError: no such device, or out of memory on it.
    :raises LiverXAILib.errors.Cancelled: `cancel` was set.
    """
    require_explainable(volume, model, segmentation)
    require_several(targets, "targets")
    require_method(method)
    resolved = [Target.parse(target).resolve(segmentation) for target in targets]
    masks = [target.mask(segmentation) for target in resolved]
    stages: dict[str, list[int]] = {}
    for number, target in enumerate(resolved):
        stages.setdefault(model.spec.stage_of(target.label).name, []).append(number)
    torch_device = select_device(device)
    context = RunContext(progress, cancel, torch_device)
    model.to(torch_device)
    prepared = prepared or StageContexts(volume, model, segmentation, torch_device)
    answers: dict[int, Explanation] = {}
    for stage in model.spec.stages:
        numbers = stages.get(stage.name, [])
        if not numbers:
            continue
        part = context.part(len(answers) / len(resolved), (len(answers) + len(numbers)) / len(resolved))
        try:
            run = prepared.of(stage)
            score_targets = [
                build_score(resolved[number], segmentation, model, run, context, masks[number]) for number in numbers
            ]
            explained = _explain_stage(volume, model, run, score_targets, METHODS[method], layer, check, part)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceError(
                f"Device {torch_device} ran out of memory. Use the CPU, or close other programs."
            ) from error
        answers.update(zip(numbers, explained, strict=True))
    if targets:
        context.report("Explained", 1.0)
    return [_recorded(answers[number], segmentation, model) for number in range(len(resolved))]


def _recorded(explanation: Explanation, segmentation: Segmentation, model: Model) -> Explanation:
    """The explanation with a record of the labels and the voxels that it is about."""
    about = {
        LABELS: segmentation.checksum,
        SUBJECT: subject_checksum(explanation.target, segmentation, model.spec),
    }
    return replace(explanation, provenance={**explanation.provenance, **about})


def _explain_stage(
    volume: Volume,
    model: Model,
    run: StageContext,
    score_targets: list[ScoreTarget],
    method: Method,
    layer: str | None,
    check: bool,
    context: RunContext,
) -> list[Explanation]:
    started = time.perf_counter()
    layer = "" if method.layer_maps is None else layer or run.stage.default_layer
    if layer:
        find_layer(run.networks[0], layer, run.stage)
    explanations = []
    share = _MAP_SHARE if check else 1.0
    maps = stage_maps(run, score_targets, method, layer, context.part(0, share))
    for number, (score_target, result) in enumerate(zip(score_targets, maps, strict=True)):
        heatmap, maximum = to_input_grid(result.values.clamp_min(0), run, volume)
        seconds = time.perf_counter() - started
        card = None
        if check:
            begin, length = share + (1 - share) * number / len(score_targets), (1 - share) / len(score_targets)
            with keep_freed_memory(run.device):
                card = check_faithfulness(run, score_target, method, layer, result, context.part(begin, begin + length))
        explanations.append(
            Explanation(
                heatmap=heatmap,
                raw_maximum=maximum,
                target=score_target.target,
                method=method.name,
                layer=layer,
                faithfulness=card,
                warnings=tuple(result.warnings),
                provenance={
                    "cell_mm": _cell_size(run.stage, layer, run.spacing),
                    "stage": run.stage.name,
                    "model": model.provenance,
                    "device": str(run.device),
                    "seconds": round(seconds, 3),
                    **result.details,
                },
            )
        )
        started = time.perf_counter()
    return explanations


def to_input_grid(values: torch.Tensor, run: StageContext, volume: Volume) -> tuple[Volume, float]:
    """A map (>= 0) on the padded grid of a stage → a heat map in [0, 1] on the grid of `volume`, and its raw maximum.

    Voxels outside the stage's grid, which the stage never processed, get 0.
    """
    heat = np.zeros(volume.shape, dtype=np.float32)
    found = bounding_box((values > 0).numpy())
    if found is None:
        return Volume(heat, volume.ijk_to_lps), 0.0
    box = found.projected(run.grid, volume.grid, margin_mm=max(run.spacing))
    # Outside the box nothing is written, so the memory pages of the large array there are never allocated.
    part = resample(values, run.grid, volume.grid.cropped(box)).numpy()
    maximum = float(part.max())
    if maximum > 0:
        part /= maximum
    heat[box] = part
    return Volume(heat, volume.ijk_to_lps), maximum


def _cell_size(stage: StageSpec, layer: str, spacing: tuple[float, float, float]) -> list[float] | None:
    for spec in stage.layers:
        if spec.name == layer:
            return [round(size, 3) for size in cell_mm(spec.stride, spacing)]
    return None
