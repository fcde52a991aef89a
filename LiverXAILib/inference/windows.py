# SPDX-License-Identifier: Apache-2.0
"""Sliding windows whose blending weights are known before any network runs.

The blended logit of a voxel is ``sum_p W_p(x) * l_p(x)`` with ``W_p = g_p / sum_q g_q``: a fixed linear combination
of the windows' logits. This makes explanations of blended results exact (see :mod:`LiverXAILib.explain`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil

import torch

from ..volumes.box import Box
from ..volumes.volume import Grid

#: Standard deviation of the Gaussian as a fraction of the window, as in nnU-Net (Isensee et al. 2021).
_SIGMA = 1 / 8


@dataclass(frozen=True)
class WindowPlan:
    """The positions of windows on an image of `shape` (voxels along the three tensor axes).

    `padded_shape` is at least `shape`: before it is divided into windows, the image is padded on both sides of each
    axis, with the odd voxel at the end, as in nnU-Net.
    """

    shape: tuple[int, int, int]
    padded_shape: tuple[int, int, int]
    window: tuple[int, int, int]
    boxes: tuple[Box, ...]

    def __repr__(self) -> str:
        window, shape = (" x ".join(str(n) for n in sizes) for sizes in (self.window, self.padded_shape))
        return f"WindowPlan({len(self.boxes)} of {window} in {shape} voxels)"

    @staticmethod
    def build(
        shape: tuple[int, int, int],
        window: tuple[int, int, int] | None,
        *,
        overlap: float = 0.5,
        divisor: tuple[int, int, int] = (1, 1, 1),
        pad_to_window: bool = False,
    ) -> WindowPlan:
        """Cover `shape` with windows.

        :param window: largest window, or None for one window of any size; a smaller image gets a smaller window
            unless `pad_to_window`.
        :param overlap: minimum fraction of a window that overlaps its neighbor.
        :param divisor: window sizes are rounded up to multiples of this.
        """
        sizes, padded, starts = [], [], []
        for n, d, w in zip(shape, divisor, window or shape, strict=True):
            limit = ceil(w / d) * d
            size = limit if pad_to_window or n > limit else ceil(n / d) * d
            total = max(n, size)
            steps = 1 if total == size else ceil((total - size) / max(1.0, size * (1 - overlap))) + 1
            step = (total - size) / (steps - 1) if steps > 1 else 0.0
            sizes.append(size)
            padded.append(total)
            starts.append([round(index * step) for index in range(steps)])
        boxes = tuple(Box.full(sizes).shifted(start) for start in product(*starts))
        return WindowPlan(shape, _triple(padded), _triple(sizes), boxes)

    @cached_property
    def importance(self) -> torch.Tensor:
        """The Gaussian ``g`` of one window, float32, largest value 1, never 0; centered on voxel size // 2."""
        factors = []
        for size in self.window:
            x = torch.arange(size, dtype=torch.float32) - size // 2
            factors.append(torch.exp(-0.5 * (x / max(size * _SIGMA, 1e-6)) ** 2))
        weights = factors[0][:, None, None] * factors[1][None, :, None] * factors[2][None, None, :]
        weights = weights / weights.max()
        return weights.clamp_min(float(weights[weights > 0].min()))

    @cached_property
    def total(self) -> torch.Tensor:
        """``sum_q g_q`` on the padded image."""
        total = torch.zeros(self.padded_shape)
        for box in self.boxes:
            total[box] += self.importance
        return total

    def weight(self, box: Box) -> torch.Tensor:
        """``W_p`` of the window at `box`: all windows' weights sum to 1 at every voxel."""
        if len(self.boxes) == 1:
            return torch.ones(self.window)
        return self.importance / self.total[box]

    def touching(self, mask: torch.Tensor) -> Iterator[Box]:
        """The windows in which `mask` (on the padded image) is not zero everywhere."""
        for box in self.boxes:
            if bool(mask[box].any()):
                yield box

    @property
    def image_box(self) -> Box:
        """The box of the image in the padded image."""
        starts = [(p - n) // 2 for n, p in zip(self.shape, self.padded_shape, strict=True)]
        return Box.full(self.shape).shifted(starts)

    def padded_grid(self, grid: Grid) -> Grid:
        """The grid of the padded image if the image itself lies on `grid`."""
        return grid.cropped(Box.full(self.padded_shape).relative_to(self.image_box))

    def pad(self, image: torch.Tensor, value: float) -> torch.Tensor:
        """Extend ``(..., *shape)`` to ``(..., *padded_shape)``."""
        if self.shape == self.padded_shape:
            return image
        ends = [(s.start, p - s.stop) for s, p in zip(self.image_box, self.padded_shape, strict=True)]
        return torch.nn.functional.pad(image, (*ends[2], *ends[1], *ends[0]), value=value)

    def unpad(self, image: torch.Tensor) -> torch.Tensor:
        """Crop ``(..., *padded_shape)`` to ``(..., *shape)``."""
        k, j, i = self.image_box
        return image[..., k, j, i]


def _triple(values: list[int]) -> tuple[int, int, int]:
    a, b, c = values
    return a, b, c
