# SPDX-License-Identifier: Apache-2.0
"""Seeded random numbers, smooth random fields, filters and rotations, all in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

Size = tuple[int, int, int]


class Rng:
    """A torch generator with the draws that synthesis needs; the same seed gives the same sample."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, count: int) -> int:
        """Draw an integer from 0 to `count` - 1."""
        return int(torch.randint(count, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def choose(self, weights: Sequence[float]) -> int:
        return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=self.generator))

    def normal(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self.generator)


def smooth_field(rng: Rng, size: Size, wavelength: float | Sequence[float]) -> torch.Tensor:
    """Gaussian noise (about unit variance) on a lattice of `wavelength` voxels, interpolated to `size`.

    :param wavelength: voxels between lattice points, the same or one for each axis.
    """
    steps = [wavelength] * 3 if isinstance(wavelength, (int, float)) else list(wavelength)
    lattice = [max(2, math.ceil(n / step) + 2) for n, step in zip(size, steps, strict=True)]
    noise = rng.normal(1, 1, *lattice) * 1.4  # interpolation averages: restore most of the variance
    return upsample(noise, size)[0, 0]


def upsample(field: torch.Tensor, size: Size) -> torch.Tensor:
    """Trilinear interpolation of (N, C, …) to `size`."""
    return functional.interpolate(field, size=size, mode="trilinear", align_corners=True)


def gaussian_blur(image: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Separable Gaussian blur of (D, H, W), `sigmas` in voxels for each axis; edge values are replicated."""
    for axis, sigma in enumerate(sigmas):
        if sigma < 0.2:
            continue
        radius = max(1, math.ceil(2.5 * sigma))
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        image = convolve(image, taps / taps.sum(), axis)
    return image


def convolve(image: torch.Tensor, taps: torch.Tensor, axis: int) -> torch.Tensor:
    """Convolve (D, H, W) with an odd number of `taps` along one axis; edge values are replicated."""
    radius = len(taps) // 2
    n = image.shape[axis]
    index = torch.arange(-radius, n + radius).clamp(0, n - 1)
    padded = image.index_select(axis, index)
    result = taps[0] * padded.narrow(axis, 0, n)
    for offset in range(1, len(taps)):
        result.add_(padded.narrow(axis, offset, n), alpha=float(taps[offset]))
    return result


def rotation_matrix(degrees: Sequence[float]) -> torch.Tensor:
    """Rotation about the three axes in turn."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(degrees):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn = torch.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
        matrix = turn @ matrix
    return matrix
