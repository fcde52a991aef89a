# SPDX-License-Identifier: Apache-2.0
"""segment(): a CT and a model in, labels on the CT's own grid out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from math import exp, prod
from typing import Any, NamedTuple

import numpy as np
import torch

from ..context import RunContext
from ..errors import DeviceError, own_errors
from ..models.model import Model, require_model
from ..models.spec import OutlineAgain, StageSpec
from ..progress import CancelToken, Progress
from ..volumes.box import Box, bounding_box
from ..volumes.memory import require_memory
from ..volumes.size import check_size
from ..volumes.volume import Grid, Volume, require_volume
from .backends import choose_backend, forward
from .device import select_device
from .masks import Mask
from .outline_network import OUTLINES, outline_network
from .outlines import Marked, outline_again
from .postprocess import Postprocessing, clean_lesions, clean_organ
from .segmentation import Segmentation
from .stages import logit_margin, padded_input, predict_logits, preprocessing_of, sample_box, stage_grids, stage_plan
from .windows import WindowPlan

_log = logging.getLogger(__name__)

#: A liver smaller than this is only a slice or two of one, or a false positive.
_LEAST_ORGAN_ML = 10.0
#: The rules for a structure around which a later stage runs, whatever the user's rules for the result.
_LARGEST_PIECE = Postprocessing(fill_holes=False)


# Long: most lines are its parameters and their documentation.
@own_errors("The CT cannot be segmented")
def segment(
    volume: Volume,
    model: Model,
    *,
    device: str = "auto",
    backend: str = "auto",
    postprocessing: Postprocessing | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Segmentation:
    """Segment `volume` with `model`.

    The image is brought to canonical axes, resampled to the grid of each of the model's stages, normalized, and
    processed in one window or in several that are blended with a Gaussian. The scores are resampled to the image's own
    grid, where they become labels; then the rules of `postprocessing` apply. If a later stage decides the labels of a
    stage again, the earlier one only determines the region of the later one, and its scores stay on its own grid.

    :param volume: CT in HU, any orientation.
    :param device: "auto", "cpu", "cuda", "cuda:N" or "mps".
    :param backend: "auto", or one of :func:`LiverXAILib.inference.backends.available_backends` for all stages.
    :param postprocessing: default: :class:`Postprocessing` with its default rules.
    :param progress: called after each window.
    :param cancel: checked before each window.
    :return: labels on the input's grid.
    :raises LiverXAILib.errors.InputError: the image's voxel size or extent does not fit a CT of a body, it needs more
        memory than may be used, or holds values that are not finite numbers.
    :raises LiverXAILib.errors.DeviceError: no such device, or out of memory on it.
    :raises LiverXAILib.errors.UsageError: `backend` is not available here.
    :raises LiverXAILib.errors.Cancelled: `cancel` was set.
    """
    require_volume(volume)
    require_model(model)
    check_size(volume.grid, "The image")
    rules = postprocessing or Postprocessing()
    target = select_device(device)
    context = RunContext(progress, cancel, target)
    started = time.perf_counter()
    masks: dict[str, Mask] = {}
    probabilities: dict[str, Volume] = {}
    grids: dict[str, Grid] = {}
    centers: dict[str, float] = {}
    stages: list[dict[str, Any]] = []
    warnings: list[str] = list(volume.metadata.get("warnings", ()))
    regions: dict[str, RegionOfInterest | None] = {}

    model.to(target)
    for number, stage in enumerate(model.spec.stages):
        part = context.step(number, len(model.spec.stages))
        roi = None if stage.region is None else regions.get(stage.region.label)
        if stage.region is not None and roi is None:
            stages.append({"name": stage.name, "skipped": f"no {stage.region.label} was found"})
            continue
        try:
            grid, logits, report = run_stage(volume, model, stage, roi, backend, part)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceError(f"Device {target} ran out of memory. Use the CPU, or close other programs.") from error
        grids[stage.name] = grid
        if roi is not None and stage.intensity.centered:
            centers[stage.name] = report["center_hu"] = roi.median_hu
        stages.append(report)
        begun = time.perf_counter()
        rest = model.spec.stages[number + 1 :]
        sought = {later.region.label for later in rest if later.region is not None} & set(stage.labels)
        regions |= {label: _roi_from_logits(logits, stage, label, grid, volume, model) for label in sought}
        final = [label for label in stage.labels if not any(label in x.labels and _roi_found(x, regions) for x in rest)]
        read = preprocessing_of(stage).read_scores(logits, stage, final, grid, volume)
        for label, (mask, probability) in read.items():
            masks[label] = mask
            if probability is not None:
                probabilities[label] = probability
        if sought & set(final):
            masks = _clean(masks, model, rules, volume.grid.voxel_volume_mm3)
            regions |= {label: _roi_from_mask(masks[label], volume) for label in sought & set(final)}
        report["seconds"]["labels"] = round(time.perf_counter() - begun, 6)

    begun = time.perf_counter()
    masks = _clean(masks, model, rules, volume.grid.voxel_volume_mm3)
    by_network: dict[str, Volume] = {}
    outlines = None
    again = model.spec.outlines
    if again is not None and again.label in probabilities:
        by_network[again.label] = probabilities[again.label]
        masks[again.label], probabilities[again.label], outlines = _outlined(
            volume, model, again, masks, probabilities, rules, context
        )
    labels = np.zeros(volume.shape, dtype=np.uint8)
    for spec in model.spec.labels:
        if spec.name in masks:
            labels[masks[spec.name].box][masks[spec.name].voxels] = spec.value
    warnings += _sanity(masks, model, volume.grid)
    context.report("Segmented", 1.0)
    provenance = {
        "model": model.provenance,
        "device": str(target),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "postprocessing": asdict(rules),
        "peak_probability": {
            label: round(1 / (1 + exp(-logit)), 4)
            for stage in model.spec.stages
            for label, logit in stage.peak_threshold.items()
            if label in probabilities
        },
        "reliability": None if model.spec.reliability is None else asdict(model.spec.reliability),
        "stages": stages,
        "outlines": outlines,
        "seconds_of_rules": round(time.perf_counter() - begun - (outlines or {}).get("seconds", 0.0), 6),
        "seconds": round(time.perf_counter() - started, 6),
        "warnings": warnings,
    }
    return Segmentation(
        volume.with_array(labels), model.spec.labels, probabilities, grids, provenance, centers, by_network
    )


def _outlined(
    volume: Volume,
    model: Model,
    again: OutlineAgain,
    masks: dict[str, Mask],
    probabilities: Mapping[str, Volume],
    rules: Postprocessing,
    context: RunContext,
) -> tuple[Mask, Volume, dict[str, Any]]:
    """Outline small lesions and candidates again: the lesions, their probability, and a report for the provenance."""
    begun = time.perf_counter()
    parent = model.spec.label(again.label).parent
    assert parent is not None
    organ, lesions = masks[parent], masks[again.label]
    tissue = organ.voxels & ~lesions.on(organ.box)
    median = float(np.median(volume.array[organ.box][tissue])) if tissue.any() else 0.0
    marked = Marked(volume, organ, lesions, probabilities[again.label], median)
    peak = model.spec.stage_of(again.label).peak_threshold.get(again.label, 0.0)
    found, probability, counts = outline_again(
        marked, 1 / (1 + exp(-peak)), outline_network(OUTLINES, again.sha256), context
    )
    kept = clean_lesions(found.voxels, organ.on(found.box), volume.grid.voxel_volume_mm3, rules)
    report = {**asdict(again), **counts, "seconds": round(time.perf_counter() - begun, 6)}
    return Mask(found.box, kept), probability, report


def run_stage(
    volume: Volume,
    model: Model,
    stage: StageSpec,
    roi: RegionOfInterest | None,
    backend: str,
    context: RunContext,
) -> tuple[Grid, torch.Tensor, dict[str, Any]]:
    """Run one stage: its grid, its logits, and the report for the provenance.

    If a long scan is cut into parts, the part that contains most of the stage's first label is chosen.
    """
    begun = time.perf_counter()
    device = torch.device(context.device)
    grids = stage_grids(volume, stage, None if roi is None else roi.box)
    center_hu = 0.0 if roi is None else roi.median_hu
    networks = model.members(stage)
    seconds = {"input": time.perf_counter() - begun, "self_test": 0.0, "network": 0.0}
    best: tuple[float, Grid, torch.Tensor] | None = None
    for number, grid in enumerate(grids):
        begun = time.perf_counter()
        plan = stage_plan(stage, grid)
        _require_memory(stage, plan)
        image = padded_input(volume, stage, grid, plan, center_hu)
        seconds["input"] += time.perf_counter() - begun
        if number == 0:
            begun = time.perf_counter()
            voxels = prod(plan.window) * len(plan.boxes) * len(grids)
            choice = choose_backend(networks[0], stage, device, image[sample_box(plan, stage)], voxels, backend)
            forwards = [forward(choice.backend, network, device) for network in networks]
            seconds["self_test"] = time.perf_counter() - begun
        begun = time.perf_counter()
        logits = predict_logits(forwards, image, stage, plan, context.step(number, len(grids)))
        seconds["network"] += time.perf_counter() - begun
        first = next(iter(stage.labels))
        found = float((logit_margin(logits, stage, first) > 0).sum()) * grid.voxel_volume_mm3
        if best is None or found > best[0]:
            best = found, grid, logits
    assert best is not None
    report = {
        "name": stage.name,
        "shape": list(best[1].shape),
        "spacing_mm": list(best[1].spacing),
        "windows": len(plan.boxes),
        "backend": asdict(choice),
        "seconds": {what: round(value, 6) for what, value in seconds.items()},
    }
    return best[1], best[2], report


def _require_memory(stage: StageSpec, plan: WindowPlan) -> None:
    """Refuse an image whose logits, of the best part so far and of the next one, do not fit into memory."""
    voxels = " x ".join(str(n) for n in plan.shape[::-1])
    size = 4 * prod(plan.padded_shape) * (2 * len(stage.channels) + 2)
    require_memory(size, f"Stage {stage.name!r} of the model, on {voxels} voxels,")


class RegionOfInterest(NamedTuple):
    """The region of a later stage: the `box` on the image around a structure, and the structure's median HU."""

    box: Box
    median_hu: float


def _roi_found(stage: StageSpec, regions: Mapping[str, RegionOfInterest | None]) -> bool:
    """Whether the structure in which a stage runs was found."""
    return stage.region is None or regions.get(stage.region.label) is not None


def _roi_from_logits(
    logits: torch.Tensor, stage: StageSpec, label: str, grid: Grid, volume: Volume, model: Model
) -> RegionOfInterest | None:
    """The region of interest around a structure, on the stage's own grid.

    For the liver, only its largest component counts: a distant false positive must not enlarge the box.
    """
    mask = (logit_margin(logits, stage, label) > 0).numpy()
    if any(spec.is_liver for spec in model.spec.labels if spec.name == label):
        mask = clean_organ(mask, _LARGEST_PIECE)
    box = bounding_box(mask)
    if box is None:
        return None
    # The image's nearest voxels suffice: interpolation would not improve their median.
    nearest = volume.grid.nearest_voxel(grid.to_lps(np.argwhere(mask)[:, ::-1]))
    k, j, i = nearest.clip(0, np.array(volume.shape) - 1).T
    return RegionOfInterest(box.projected(grid, volume.grid), float(np.median(volume.array[k, j, i])))


def _roi_from_mask(mask: Mask, volume: Volume) -> RegionOfInterest | None:
    """The region of interest around a structure, on the image's own grid."""
    box = mask.bounding_box()
    return None if box is None else RegionOfInterest(box, float(np.median(volume.array[mask.box][mask.voxels])))


def _clean(masks: dict[str, Mask], model: Model, rules: Postprocessing, voxel_volume_mm3: float) -> dict[str, Mask]:
    """Apply the rules: first to the liver, then to the lesions in it, then to its other parts; the rest is unchanged.

    Everything happens in one box around all masks, outside which there is no structure.
    """
    if not masks:
        return {}
    box = Box.union(mask.box for mask in masks.values())
    voxels = {name: mask.on(box) for name, mask in masks.items()}
    present = [spec for spec in model.spec.labels if spec.name in voxels]
    for spec in sorted(present, key=lambda spec: (not spec.is_liver, not spec.is_lesion)):
        mask = voxels[spec.name]
        organ = voxels.get(spec.parent) if spec.parent is not None else None
        if spec.is_liver:
            voxels[spec.name] = clean_organ(mask, rules)
        elif spec.is_lesion:
            voxels[spec.name] = clean_lesions(mask, mask if organ is None else organ, voxel_volume_mm3, rules)
            if organ is not None and spec.parent is not None:
                voxels[spec.parent] = organ | voxels[spec.name]
        elif organ is not None and rules.lesions_in_liver:
            voxels[spec.name] = mask & organ
    return {name: Mask(box, mask) for name, mask in voxels.items()}


def _sanity(masks: dict[str, Mask], model: Model, grid: Grid) -> list[str]:
    """Warnings that the user should see before trusting the labels."""
    warnings = []
    for spec in model.spec.labels:
        if not spec.is_liver:
            continue
        box = masks[spec.name].bounding_box() if spec.name in masks else None
        volume_ml = masks[spec.name].voxels.sum() * grid.voxel_volume_mm3 / 1000 if box is not None else 0.0
        if box is None:
            warnings.append(f"No {spec.name} was found in this image.")
        elif volume_ml < _LEAST_ORGAN_ML:
            warnings.append(
                f"No {spec.name} was found in this image, or hardly any: the marked volume is {volume_ml:.1f} ml. "
                "Do not trust it without looking."
            )
        if box is not None and any(side.start == 0 or side.stop == n for side, n in zip(box, grid.shape, strict=True)):
            warnings.append(
                f"The {spec.name} reaches the border of the image: part of it may be missing, "
                "and its volume is a lower bound."
            )
    return warnings
