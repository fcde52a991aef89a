# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of LiverXAI's own and MONAI's models: resampling, normalization by the card, scores label by label."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import SimpleITK as sitk
import torch

from ..errors import InputError
from ..models.spec import Intensity, StageSpec
from ..volumes.box import Box, bounding_box, largest_component, touching
from ..volumes.resample import regrid, resample, resized
from ..volumes.volume import Grid, Volume
from .geometry import AIR_HU
from .masks import Mask
from .preprocessing import RegionScores, StageArea
from .scores import logit_margin
from .stage_windows import stage_plan
from .windows import WindowPlan

#: The body is the largest connected component denser than this.
_BODY_HU = -300.0
#: A scan longer than a stage's field of view is cut into parts that overlap by this fraction.
_PART_OVERLAP = 0.5
#: Margin around a structure within which its probabilities are stored.
MARGIN_MM = 10.0
#: Logits are clipped to this magnitude, so that extreme ones do not dominate the interpolation at the border.
_MAX_LOGIT = 20.0


class StandardPreprocessing:
    """The :class:`~LiverXAILib.inference.preprocessing.Preprocessing` of stages whose card specifies no other."""

    def grids(self, volume: Volume, stage: StageSpec, area: StageArea) -> list[Grid]:
        base = area.grid
        if stage.crop_to_body:
            base = base.cropped(body_box(volume, base))
        if stage.spacing is not None:
            # The card lists sizes along the tensor's axes (k, j, i); a Grid's spacing is (i, j, k).
            k, j, i = (own if mm is None else mm for own, mm in zip(base.spacing[::-1], stage.spacing, strict=True))
            grid = regrid(base, (i, j, k))
            if area.is_part and not stage.pad_to_window:
                # The voxels added to reach the network's divisor should contain image, not air.
                grid = _shift_inside_scan(area.scan, stage_plan(stage, grid).padded_grid(grid))
            return [grid]
        assert stage.size is not None
        grids = []
        for part in _parts(base, stage.field_of_view_mm):
            k, j, i = (own if n is None else n for own, n in zip(part.shape, stage.size, strict=True))
            grids.append(resized(part, (k, j, i)))
        return grids

    def image(self, volume: Volume, stage: StageSpec, grid: Grid, center_hu: float) -> torch.Tensor:
        return normalize(resample(volume.array, volume.grid, grid, fill=AIR_HU), stage.intensity, center_hu)

    def pad_value(self, stage: StageSpec, center_hu: float) -> float:
        if stage.intensity.statistics is not None:
            return 0.0
        return float(normalize(torch.tensor(AIR_HU), stage.intensity, center_hu))

    def blend(self, plan: WindowPlan) -> Blend:
        return Blend(plan)

    def read_scores(
        self, logits: torch.Tensor, stage: StageSpec, labels: Sequence[str], grid: Grid, volume: Volume
    ) -> dict[str, RegionScores]:
        """The regions of `labels` on the input grid: where the interpolated score is positive.

        Scores are interpolated only where the region may be, which on a full CT is a tenth of the work.
        """
        readings: dict[str, RegionScores] = {}
        for label in labels:
            margin = logit_margin(logits, stage, label).clamp(-_MAX_LOGIT, _MAX_LOGIT)
            readings[label] = Mask.empty(), None
            found = bounding_box((margin > 0).numpy())
            if found is not None:
                box = found.projected(grid, volume.grid, margin_mm=MARGIN_MM)
                score = resample(margin, grid, volume.grid.cropped(box), fill=-_MAX_LOGIT)
                probability = torch.sigmoid(score).to(torch.float16).numpy()
                mask = (score > 0).numpy()
                if label in stage.peak_threshold:
                    sure = np.argwhere((margin >= stage.peak_threshold[label]).numpy())
                    mask = _components_at(mask, volume.grid.cropped(box), grid.to_lps(sure[:, ::-1]))
                readings[label] = Mask(box, mask), Volume(probability, volume.grid.cropped(box).ijk_to_lps)
        return readings


def normalize(
    image: torch.Tensor, intensity: Intensity, center_hu: float = 0.0, reference: torch.Tensor | None = None
) -> torch.Tensor:
    """HU to network input, by the card's intensity.

    :param center_hu: median HU of the structure in the stage's region, for a centered intensity.
    :param reference: the image whose statistics are used if the card requires any; default: `image` itself.
    """
    if intensity.centered:
        image = image - center_hu
    if intensity.statistics is not None:
        reference = (image if reference is None else reference).float()
        if intensity.statistics == "z-score":
            image = (image - reference.mean()) / reference.std(correction=0).clamp_min(1e-8)
        else:
            image = (image - reference.min()) / (reference.max() - reference.min()).clamp_min(1e-8)
    if intensity.low is not None or intensity.high is not None:
        image = image.clamp(intensity.low, intensity.high)
    return (image - intensity.shift) / intensity.scale


class Blend:
    """Sums the weighted scores of windows, averaged over the networks of an ensemble."""

    def __init__(self, plan: WindowPlan) -> None:
        self._plan = plan
        self._sum: torch.Tensor | None = None
        self._members: set[int] = set()

    def add(self, member: int, box: Box, scores: torch.Tensor) -> None:
        """Add the scores (channels, a, b, c) that network number `member` gave for one window."""
        if self._sum is None:
            self._sum = torch.zeros((scores.shape[0], *self._plan.padded_shape))
        k, j, i = box
        self._sum[:, k, j, i] += scores * self._plan.weight(box)
        self._members.add(member)

    def mean(self) -> torch.Tensor:
        """The blended scores: float32 (channels, k, j, i) on the padded image."""
        assert self._sum is not None
        return self._sum / len(self._members)


def _shift_inside_scan(scan: Grid, grid: Grid) -> Grid:
    """`grid`, moved by whole voxels of its own so that less of it lies outside `scan`, whose axes it shares.

    If the scan is followed by a single slice of air at the end of the grid, networks miss the liver's last slice.
    """
    first, last = (scan.to_ijk(grid.to_lps(corner)) for corner in (np.zeros(3), np.array(grid.shape[::-1]) - 1))
    sizes, step = np.array(scan.shape[::-1]), np.array(grid.spacing) / np.array(scan.spacing)
    # Distances, in voxels of `grid`, of its ends from those of the scan; positive inside.
    start, end = (first + 0.5) / step, (sizes - 0.5 - last) / step
    forward = np.clip(np.minimum(np.ceil(-start), np.floor(end)), 0, None)
    backward = np.clip(np.minimum(np.ceil(-end), np.floor(start)), 0, None)
    matrix = grid.ijk_to_lps.copy()
    matrix[:3, 3] = grid.to_lps(forward - backward)
    return Grid(grid.shape, matrix)


def _components_at(mask: np.ndarray, grid: Grid, places_lps_mm: np.ndarray) -> np.ndarray:
    """The components of a mask on `grid` that contain at least one of the places (n, 3)."""
    voxels = grid.nearest_voxel(places_lps_mm)
    voxels = voxels[((voxels >= 0) & (voxels < mask.shape)).all(axis=1)]
    places = np.zeros_like(mask)
    places[tuple(voxels.T)] = True
    return touching(mask, places)


def body_box(volume: Volume, base: Grid) -> Box:
    """The box on `base` around the patient's body: the largest dense component of a coarse image."""
    coarse = regrid(base, (6.0, 6.0, 6.0))
    dense = (resample(volume.array, volume.grid, coarse, fill=AIR_HU) > _BODY_HU).numpy().astype(np.uint8)
    image = sitk.GetImageFromArray(dense)
    # Opening by a voxel removes the thin contacts between the back and the table.
    opened = sitk.BinaryMorphologicalOpening(image, [1, 1, 0])
    box = bounding_box(largest_component(sitk.GetArrayViewFromImage(opened)))
    if box is None:
        raise InputError("The image shows no body: nothing in it is denser than -300 HU. Is it really a CT in HU?")
    return box.projected(coarse, base)


def _parts(base: Grid, limits_mm: tuple[float | None, float | None, float | None]) -> list[Grid]:
    """Cut `base` along the axes that are longer than `limits_mm` ((k, j, i), None: no limit)."""
    choices = []
    for n, spacing, limit in zip(base.shape, base.spacing[::-1], limits_mm, strict=True):
        size = n if limit is None else min(n, max(1, int(limit / spacing)))
        count = 1 if size == n else int(np.ceil((n - size) / (size * (1 - _PART_OVERLAP)))) + 1
        starts = np.linspace(0, n - size, count).round().astype(int)
        choices.append([slice(int(start), int(start) + size) for start in starts])
    return [base.cropped(Box(k, j, i)) for k, j, i in product(*choices)]
