# SPDX-License-Identifier: Apache-2.0
"""Seeded random numbers, smooth random fields and coordinate maps, all in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

Size = tuple[int, int, int]


class Rng:
    """A torch generator with the few draws that synthesis needs; the same seed gives the same sample."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, count: int) -> int:
        """0 to `count` - 1."""
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
    """Separable Gaussian blur of (D, H, W), `sigmas` in voxels for each axis; edges are continued."""
    for axis, sigma in enumerate(sigmas):
        if sigma < 0.2:
            continue
        radius = max(1, math.ceil(2.5 * sigma))
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        image = _convolve(image, taps / taps.sum(), axis)
    return image


def box_blur(image: torch.Tensor, width: float, axis: int) -> torch.Tensor:
    """Mean over `width` voxels (may be fractional) along `axis`: a slice profile."""
    radius = max(1, math.ceil((width - 1) / 2))
    taps = torch.ones(2 * radius + 1)
    taps[0] = taps[-1] = max(0.0, (width - (2 * radius - 1)) / 2)
    return _convolve(image, taps / taps.sum(), axis)


def _convolve(image: torch.Tensor, taps: torch.Tensor, axis: int) -> torch.Tensor:
    radius = len(taps) // 2
    n = image.shape[axis]
    index = torch.arange(-radius, n + radius).clamp(0, n - 1)
    padded = image.index_select(axis, index)
    result = taps[0] * padded.narrow(axis, 0, n)
    for offset in range(1, len(taps)):
        result.add_(padded.narrow(axis, offset, n), alpha=float(taps[offset]))
    return result


def dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Boolean (D, H, W) grown by `radius` voxels (a cube)."""
    width = 2 * radius + 1
    grown = mask.half().float()[None, None]
    for axis in range(3):
        kernel = [1, 1, 1]
        kernel[axis] = width
        padding = [0, 0, 0]
        padding[axis] = radius
        grown = functional.max_pool3d(grown, kernel, stride=1, padding=padding)
    return grown[0, 0] > 0.5


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


def deformation(rng: Rng, size: Size, center: torch.Tensor, spacing_mm: float, strength: float = 1.0) -> torch.Tensor:
    """Where in the source each voxel of the sample comes from: an affine map and elastic noise at three scales.

    Evaluated at a quarter of the resolution and interpolated, which makes it cheap.

    :param center: source voxel (k, j, i) at the sample's center.
    :param strength: scales all of it; 0 gives the identity.
    :return: (D, H, W, 3) in source voxels (k, j, i).
    """
    coarse = tuple(max(2, math.ceil(n / 4)) for n in size)
    axes = [torch.linspace(-(n - 1) / 2, (n - 1) / 2, m) for n, m in zip(size, coarse, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    overall = rng.log_uniform(0.84, 1.2) ** strength
    scales = torch.tensor([overall * rng.log_uniform(0.92, 1.09) ** strength for _ in range(3)])
    angles = [strength * rng.uniform(-w, w) for w in (14, 7, 7)]  # in-plane most
    matrix = rotation_matrix(angles) @ torch.diag(1 / scales)
    matrix = matrix @ (torch.eye(3) + strength * 0.05 * rng.normal(3, 3))
    result = points @ matrix.T + center
    for wavelength_mm, amplitude_mm in ((110, 13), (55, 6), (30, 2)):
        amplitude = strength * rng.uniform(0.2, 1.0) * amplitude_mm / spacing_mm
        lattice = [max(2, math.ceil(n * spacing_mm / wavelength_mm) + 2) for n in size]
        noise = functional.interpolate(
            rng.normal(1, 3, *lattice).clamp(-2, 2), size=coarse, mode="trilinear", align_corners=True
        )
        result = result + 0.6 * amplitude * noise[0].permute(1, 2, 3, 0)
    return upsample(result.permute(3, 0, 1, 2)[None], size)[0].permute(1, 2, 3, 0)


def sample_at(image: torch.Tensor, points: torch.Tensor, *, nearest: bool = False) -> torch.Tensor:
    """Values of `image` (D, H, W) at `points` (…, 3) in voxels (k, j, i); outside, those of the nearest voxel."""
    sizes = torch.tensor([max(n - 1, 1) for n in image.shape], dtype=torch.float32)
    unit = (points * (2 / sizes) - 1).flip(-1)[None]
    mode = "nearest" if nearest else "bilinear"
    values = functional.grid_sample(
        image.float()[None, None], unit, mode=mode, padding_mode="border", align_corners=True
    )
    return values[0, 0]
