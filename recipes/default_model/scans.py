# SPDX-License-Identifier: Apache-2.0
"""Whole scans with painted lesions: inputs of the default model's networks with known ground truth."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import functional

from LiverXAILib.inference.geometry import AIR_HU
from LiverXAILib.inference.stages import stage_grids, stage_plan
from LiverXAILib.models.spec import StageSpec
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.training.layouts import on_grid
from LiverXAILib.training.lesion_painting import add_lesions
from LiverXAILib.training.random_fields import Rng
from LiverXAILib.volumes.box import Box, bounding_box

from .synthesis import Sample, Source, Tissue
from .synthesis.generator import numbered_on


def phantom_scans(stage: StageSpec, spacing_mm: float, seeds: Iterable[int]) -> list[Sample]:
    """The inputs of `stage` for the phantoms of these seeds, if the whole liver is found.

    Their lesions are painted as in training: half of them have soft edges, and the label is what a reader would
    outline. A phantom's own lesions all have sharp edges; thresholds tuned to them would cut off the rims of others.

    :param spacing_mm: voxel size of the stage's grid, the same along all axes.
    """
    scans = []
    for seed in seeds:
        phantom = make_phantom(seed, lesions=False)
        ct, truth = phantom.ct, phantom.truth.array
        (grid,) = stage_grids(ct, stage, bounding_box(truth > 0) if stage.region is not None else None)
        image, liver, _ = on_grid(ct, truth, stage_plan(stage, grid).padded_grid(grid))
        scans.append(_painted(image, liver, torch.ones_like(liver), spacing_mm, seed, f"phantom_{seed}"))
    return scans


def source_scans(stage: StageSpec, spacing_mm: float, sources: Iterable[Source], paintings: int) -> list[Sample]:
    """The inputs of `stage` for the real scans among `sources`, each `paintings` times with different lesions.

    :param spacing_mm: voxel size of the stage's grid and of the sources.
    :param sources: sources without a CT, without a certain liver, or with unlabeled tumors are left out.
    """
    scans: list[Sample] = []
    for source in sources:
        known_in_source = source.tissues != int(Tissue.UNKNOWN)
        box = bounding_box(source.liver)
        if source.ct is None or box is None or not source.tumors_known:
            continue
        if not (source.liver & known_in_source).any():
            continue
        if stage.region is not None:
            margin = round(stage.region.margin_mm / spacing_mm)
            inner = box.grown((margin,) * 3, source.liver.shape)
        else:
            inner = Box.full(source.liver.shape)
        missing = [-n % d for n, d in zip(known_in_source[inner].shape, stage.divisor, strict=True)]
        after = [part for n in reversed(missing) for part in (0, n)]
        image = functional.pad(torch.from_numpy(source.ct[inner]).float(), after, value=AIR_HU)
        liver = functional.pad(torch.from_numpy(source.liver[inner]), after)
        known = functional.pad(torch.from_numpy(known_in_source[inner]), after, value=True)
        tumors = torch.zeros_like(liver)
        if source.tumors is not None:
            tumors = functional.pad(torch.from_numpy(source.tumors[inner]), after) & known
        for _ in range(paintings):
            scans.append(_painted(image, liver, known, spacing_mm, len(scans), source.name, tumors))
    return scans


def _painted(
    image: torch.Tensor,
    liver: torch.Tensor,
    known: torch.Tensor,
    spacing_mm: float,
    seed: int,
    name: str,
    tumors: torch.Tensor | None = None,
) -> Sample:
    """Paint lesions into a scan in addition to its own `tumors`."""
    tumors = torch.zeros_like(liver) if tumors is None else tumors
    image, lesions = add_lesions(Rng(seed), image, liver & known & ~tumors, spacing_mm)
    lesions = numbered_on(lesions, tumors)
    return Sample(image, liver, lesions, known, float(image[liver].median()), name)
