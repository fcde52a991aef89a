# SPDX-License-Identifier: Apache-2.0
"""How a stage's network gets its image, and how its scores become regions: one strategy for each way of doing it."""

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
    """Where a stage looks.

    :param scan: the whole image's voxel grid with its axes in the order of the network.
    :param grid: the part of it that the stage looks at.
    """

    scan: Grid
    grid: Grid

    @property
    def is_part(self) -> bool:
        """Whether an earlier stage decided where this one looks."""
        return self.grid is not self.scan


class Blend(Protocol):
    """Adds up windows' scores, averaged over the networks of an ensemble."""

    def add(self, member: int, box: Box, scores: torch.Tensor) -> None:
        """Add the scores (channels, a, b, c) of the network number `member` in one window."""
        ...

    def mean(self) -> torch.Tensor:
        """The blended scores (channels, k, j, i) on the padded image."""
        ...


class Preprocessing(Protocol):
    """What differs between families of models around the same steps of segmenting and explaining."""

    def grids(self, volume: Volume, stage: StageSpec, area: StageArea) -> list[Grid]:
        """The grids on which the stage may run: one, or several overlapping parts of a scan longer than it can take."""
        ...

    def image(self, volume: Volume, stage: StageSpec, grid: Grid, center_hu: float) -> torch.Tensor:
        """The network's input: float32 (k, j, i) on `grid`, normalized.

        :param center_hu: median HU of what the stage looks around, for an intensity that is centered on it.
        """
        ...

    def pad_value(self, stage: StageSpec, center_hu: float) -> float:
        """What surrounds an image that is smaller than its padded windows, as the network sees it."""
        ...

    def blend(self, plan: WindowPlan) -> Blend:
        """An empty sum of windows' scores."""
        ...

    def read_scores(
        self, logits: torch.Tensor, stage: StageSpec, labels: Sequence[str], grid: Grid, volume: Volume
    ) -> dict[str, RegionScores]:
        """The regions of `labels` on the input's grid.

        :param logits: (channels, k, j, i) on `grid`.
        """
        ...
