# SPDX-License-Identifier: Apache-2.0
"""Interfaces for preparing a stage's input and turning its scores into regions; one implementation per model family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..models.spec import StageSpec
from ..volumes.box import Box
from ..volumes.volume import Grid, Volume
from .masks import Mask
from .windows import WindowPlan

#: A region's mask on the image, and its probability in the box around it (None: the region was not found).
RegionScores = tuple[Mask, "Volume | None"]


@dataclass(frozen=True)
class StageArea:
    """The part of an image on which a stage runs.

    :param scan: the whole image's voxel grid with its axes in the order of the network.
    :param grid: the part of it on which the stage runs.
    """

    scan: Grid
    grid: Grid

    @property
    def is_part(self) -> bool:
        """Whether the area was determined by an earlier stage."""
        return self.grid is not self.scan


class Blend(Protocol):
    """Blends the scores of windows, averaged over the networks of an ensemble."""

    def add(self, member: int, box: Box, scores: torch.Tensor) -> None:
        """Add the scores (channels, a, b, c) that network number `member` gave for one window."""
        ...

    def mean(self) -> torch.Tensor:
        """The blended scores (channels, k, j, i) on the padded image."""
        ...


class Preprocessing(Protocol):
    """The steps of segmentation and explanation that differ between families of models."""

    def grids(self, volume: Volume, stage: StageSpec, area: StageArea) -> list[Grid]:
        """The grids on which the stage may run: one, or overlapping parts of a scan that exceeds its field of view."""
        ...

    def image(self, volume: Volume, stage: StageSpec, grid: Grid, center_hu: float) -> torch.Tensor:
        """The network's input: float32 (k, j, i) on `grid`, normalized.

        :param center_hu: median HU of the structure in the stage's region, for a centered intensity.
        """
        ...

    def pad_value(self, stage: StageSpec, center_hu: float) -> float:
        """The padding value, as network input, for an image that is smaller than its padded size."""
        ...

    def blend(self, plan: WindowPlan) -> Blend:
        """An empty accumulator for the scores of windows."""
        ...

    def read_scores(
        self, logits: torch.Tensor, stage: StageSpec, labels: Sequence[str], grid: Grid, volume: Volume
    ) -> dict[str, RegionScores]:
        """The regions of `labels` on the input's grid.

        :param logits: (channels, k, j, i) on `grid`.
        """
        ...
