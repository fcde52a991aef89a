# SPDX-License-Identifier: Apache-2.0
"""segment(): a CT and a model in, labels on the CT's own grid out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ..errors import DeviceError
from ..models.model import Model
from ..models.spec import StageSpec
from ..progress import CancelToken, Progress, report_progress, scaled
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume
from .device import select_device
from .geometry import from_working_grid, project_box
from .nnunet import nnunet_scores
from .postprocess import Postprocessing, clean_lesions, clean_organ
from .segmentation import Segmentation
from .stages import Box, bounding_box, predict_logits, region_margin, stage_grids, stage_input, stage_plan

_log = logging.getLogger(__name__)

#: How far around a structure its probabilities are kept.
_MARGIN_MM = 10.0
#: Logits beyond this are certain enough; clipping keeps them from dominating the interpolation at the border.
_MAX_LOGIT = 20.0


def segment(
    volume: Volume,
    model: Model,
    *,
    device: str = "auto",
    postprocessing: Postprocessing | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Segmentation:
    """Segment `volume` with `model`.

    The image is brought to canonical axes, resampled to the grid of each of the model's stages, normalized, read in
    windows that are blended with a Gaussian, and the scores are resampled to the image's own grid, where they
    become labels; then the rules of `postprocessing` apply.

    :param volume: CT in HU, any orientation.
    :param device: "auto", "cpu", "cuda", "cuda:N" or "mps".
    :param postprocessing: defaults to :class:`Postprocessing` as it is documented.
    :param progress: called after each window.
    :param cancel: asked before each window.
    :return: labels on the input's grid.
    :raises LiverXAILib.errors.DeviceError: no such device, or out of memory on it.
    :raises LiverXAILib.errors.Cancelled: `cancel` was set.
    """
    rules = postprocessing or Postprocessing()
    target = select_device(device)
    started = time.perf_counter()
    labels = np.zeros(volume.shape, dtype=np.uint8)
    masks: dict[str, np.ndarray] = {}
    probabilities: dict[str, Volume] = {}
    grids: dict[str, Grid] = {}
    stages: list[dict[str, Any]] = []
    warnings: list[str] = list(volume.metadata.get("warnings", ()))

    model.to(target)
    for number, stage in enumerate(model.spec.stages):
        part = scaled(progress, number / len(model.spec.stages), (number + 1) / len(model.spec.stages))
        box = None
        if stage.region is not None:
            box = bounding_box(masks[stage.region.label])
            if box is None:
                stages.append({"name": stage.name, "skipped": f"no {stage.region.label} was found"})
                continue
        try:
            grid, logits = _run_stage(volume, model, stage, box, target, part, cancel)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceError(f"Device {target} ran out of memory. Use the CPU, or close other programs.") from error
        grids[stage.name] = grid
        stages.append({"name": stage.name, "shape": list(grid.shape), "spacing_mm": list(grid.spacing)})
        read = _read_scores if stage.nnunet is None else _read_nnunet_scores
        for label, (mask, probability) in read(logits, stage, grid, volume).items():
            masks[label] = mask
            if probability is not None:
                probabilities[label] = probability
        _clean(masks, model, rules, volume.grid.voxel_volume_mm3)

    for spec in model.spec.labels:
        labels[masks.get(spec.name, np.zeros(volume.shape, dtype=bool))] = spec.value
    warnings += _sanity(masks, model)
    report_progress(progress, "Segmented", 1.0)
    provenance = {
        "model": {"name": model.spec.name, "version": model.spec.version, "sha256": list(model.sha256)},
        "device": str(target),
        "torch": torch.__version__,
        "postprocessing": asdict(rules),
        "stages": stages,
        "seconds": round(time.perf_counter() - started, 3),
        "warnings": warnings,
    }
    return Segmentation(volume.with_array(labels), model.spec.labels, probabilities, grids, provenance)


def _run_stage(
    volume: Volume,
    model: Model,
    stage: StageSpec,
    box: Box | None,
    device: torch.device,
    progress: Progress | None,
    cancel: CancelToken | None,
) -> tuple[Grid, torch.Tensor]:
    """Run one stage; of several parts of a long scan, the one that shows most of the stage's first label wins."""
    grids = stage_grids(volume, stage, box)
    best: tuple[float, Grid, torch.Tensor] | None = None
    for number, grid in enumerate(grids):
        logits = predict_logits(
            model.members(stage),
            stage_input(volume, stage, grid),
            stage,
            stage_plan(stage, grid),
            device,
            scaled(progress, number / len(grids), (number + 1) / len(grids)),
            cancel,
        )
        first = next(iter(stage.labels))
        found = float((region_margin(logits, stage, first) > 0).sum()) * grid.voxel_volume_mm3
        if best is None or found > best[0]:
            best = found, grid, logits
    assert best is not None
    return best[1], best[2]


#: A region's mask on the whole input grid, and its probability in the box around it.
_Reading = tuple[np.ndarray, "Volume | None"]


def _read_scores(logits: torch.Tensor, stage: StageSpec, grid: Grid, volume: Volume) -> dict[str, _Reading]:
    """Each region of the stage on the input grid: its score is interpolated, and the region is where it is positive.

    Scores are interpolated only where the region may be: on a full CT that is a tenth of the work.
    """
    readings: dict[str, _Reading] = {}
    for label in stage.labels:
        margin = region_margin(logits, stage, label).clamp(-_MAX_LOGIT, _MAX_LOGIT)
        mask = np.zeros(volume.shape, dtype=bool)
        found = bounding_box((margin > 0).numpy())
        readings[label] = mask, None
        if found is not None:
            box = project_box(found, grid, volume.grid, margin_mm=_MARGIN_MM)
            score = resample(margin, grid, volume.grid.cropped(box), fill=-_MAX_LOGIT)
            mask[box] = (score > 0).numpy()
            probability = torch.sigmoid(score).to(torch.float16).numpy()
            readings[label] = mask, Volume(probability, volume.grid.cropped(box).ijk_to_lps)
    return readings


def _read_nnunet_scores(logits: torch.Tensor, stage: StageSpec, grid: Grid, volume: Volume) -> dict[str, _Reading]:
    """The same as nnU-Net does it: every channel is resized to the image, then the best one wins."""
    boxes = [bounding_box((region_margin(logits, stage, label) > 0).numpy()) for label in stage.labels]
    if not any(boxes):
        return {label: (np.zeros(volume.shape, dtype=bool), None) for label in stage.labels}
    working, box, blocks = nnunet_scores(logits, stage, grid, volume, _around(boxes), _MARGIN_MM)
    masks = {label: np.zeros(working.shape, dtype=bool) for label in stage.labels}
    shape = tuple(s.stop - s.start for s in box)
    probabilities = {label: np.zeros(shape, dtype=np.float16) for label in stage.labels}
    for place, block in blocks:
        for label in stage.labels:
            score = region_margin(block, stage, label)
            masks[label][box][place] = (score > 0).numpy()
            probabilities[label][place] = torch.sigmoid(score).to(torch.float16).numpy()
    place_of_box = working.cropped(box).ijk_to_lps
    return {
        label: (from_working_grid(masks[label], volume.grid, stage.axes), Volume(probabilities[label], place_of_box))
        for label in stage.labels
    }


def _around(boxes: Iterable[Box | None]) -> Box:
    """The smallest box around all `boxes`."""
    found = [box for box in boxes if box is not None]
    k, j, i = (slice(min(b[axis].start for b in found), max(b[axis].stop for b in found)) for axis in range(3))
    return k, j, i


def _clean(masks: dict[str, np.ndarray], model: Model, rules: Postprocessing, voxel_volume_mm3: float) -> None:
    """Apply the rules: the liver with its lesions first, then the lesions, then its other parts; the rest stays."""
    present = [spec for spec in model.spec.labels if spec.name in masks]
    for spec in sorted(present, key=lambda spec: (not spec.is_liver, not spec.is_lesion)):
        mask = masks[spec.name]
        organ = masks.get(spec.parent) if spec.parent is not None else None
        if spec.is_liver:
            lesions = [masks[part.name] for part in present if part.parent == spec.name and part.is_lesion]
            masks[spec.name] = clean_organ(np.logical_or.reduce([mask, *lesions]), rules)
        elif spec.is_lesion:
            masks[spec.name] = clean_lesions(mask, mask if organ is None else organ, voxel_volume_mm3, rules)
            if organ is not None and spec.parent is not None:
                masks[spec.parent] = organ | masks[spec.name]
        elif organ is not None and rules.lesions_in_liver:
            masks[spec.name] = mask & organ


def _sanity(masks: dict[str, np.ndarray], model: Model) -> list[str]:
    """What the user should know before trusting the labels."""
    warnings = []
    for spec in model.spec.labels:
        if not spec.is_liver or spec.name not in masks:
            continue
        mask = masks[spec.name]
        if not mask.any():
            warnings.append(f"No {spec.name} was found in this image.")
        elif any(mask.take(end, axis=axis).any() for axis in range(3) for end in (0, -1)):
            warnings.append(
                f"The {spec.name} reaches the border of the image: part of it may be missing, "
                "and its volume is a lower bound."
            )
    return warnings
