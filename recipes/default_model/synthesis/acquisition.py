# SPDX-License-Identifier: Apache-2.0
"""Simulated acquisition: blur, thick slices, noise, streaks, limited fields of view."""

from __future__ import annotations

import math

import torch

from LiverXAILib.training.random_fields import Rng, convolve, gaussian_blur, smooth_field

_AIR = -1024.0


def acquire(rng: Rng, image: torch.Tensor, spacing_mm: float, *, synthetic: bool) -> torch.Tensor:
    """Simulate the scan of (D, H, W) in HU, axes (superior, posterior, left): point spread, slice profile, noise, gain.

    :param synthetic: the image has no noise yet (a real one has its own blur and noise).
    """
    size = (image.shape[0], image.shape[1], image.shape[2])
    if synthetic:
        in_plane = rng.uniform(0.35, 0.8)
        image = gaussian_blur(image, (rng.uniform(0.3, 0.7), in_plane, in_plane))
    elif rng.chance(0.25):
        in_plane = rng.uniform(0.3, 0.8)
        image = gaussian_blur(image, (0.0, in_plane, in_plane))
    if rng.chance(0.3):
        image = box_blur(image, rng.uniform(1.2, 3.2), axis=0)
    level = rng.log_uniform(2, 28) if synthetic else (rng.log_uniform(2, 22) if rng.chance(0.5) else 0.0)
    if level > 0:
        noise = rng.normal(*size)
        if rng.chance(0.6):  # scanner noise is correlated after resampling
            width = rng.uniform(0.4, 0.9)
            noise = gaussian_blur(noise, (rng.uniform(0, 0.6), width, width))
            noise = noise / noise.std().clamp_min(1e-3)
        if rng.chance(0.4):
            noise = noise * (1 + 0.35 * smooth_field(rng, size, 25).clamp(-2, 2))
        image = image + level * noise
    if rng.chance(0.12):
        image = image + _streaks(rng, size)
    if rng.chance(0.15):
        image = image + rng.uniform(2, 8) * smooth_field(rng, size, rng.uniform(12, 40))
    return image * rng.uniform(0.97, 1.03) + rng.uniform(-6, 6)


def box_blur(image: torch.Tensor, width: float, axis: int) -> torch.Tensor:
    """Mean over `width` voxels (may be fractional) along `axis`: a slice profile."""
    radius = max(1, math.ceil((width - 1) / 2))
    taps = torch.ones(2 * radius + 1)
    taps[0] = taps[-1] = max(0.0, (width - (2 * radius - 1)) / 2)
    return convolve(image, taps / taps.sum(), axis)


def _streaks(rng: Rng, size: tuple[int, int, int]) -> torch.Tensor:
    """Streaks from one or two dense points in the slice plane, over a limited range of slices."""
    k = torch.arange(size[0])[:, None, None]
    j, i = torch.meshgrid(torch.arange(size[1]).float(), torch.arange(size[2]).float(), indexing="ij")
    result = torch.zeros(size)
    for _ in range(1 + rng.integer(2)):
        cj, ci = rng.uniform(0, size[1]), rng.uniform(0, size[2])
        angle = torch.atan2(j - cj, i - ci)
        phase = [rng.uniform(0, 2 * math.pi) for _ in range(3)]
        rays = sum(torch.sin((5 + 9 * n) * angle + p) for n, p in enumerate(phase))
        falloff = 1 / (1 + ((j - cj) ** 2 + (i - ci) ** 2).sqrt() / rng.uniform(8, 40))
        middle, width = rng.uniform(0, size[0]), rng.uniform(2, 12)
        result = result + rng.uniform(8, 45) * (rays * falloff)[None] * torch.exp(-(((k - middle) / width) ** 2))
    return result


def limit_field_of_view(rng: Rng, image: torch.Tensor) -> torch.Tensor:
    """Draw the field of view, bool (D, H, W): sometimes a circle in the plane, sometimes without slices at the ends."""
    depth, height, width = image.shape
    seen = torch.ones_like(image, dtype=torch.bool)
    if rng.chance(0.15):
        j = torch.arange(height)[:, None] - height / 2 - rng.uniform(-6, 6)
        i = torch.arange(width)[None, :] - width / 2 - rng.uniform(-6, 6)
        seen &= ((j**2 + i**2).sqrt() < rng.uniform(0.42, 0.62) * max(height, width))[None]
    if rng.chance(0.3):
        first = int(rng.uniform(0, 0.45) * depth) if rng.chance(0.6) else 0
        last = depth - (int(rng.uniform(0, 0.45) * depth) if rng.chance(0.6) else 0)
        if last - first >= 4:
            seen[:first] = False
            seen[last:] = False
    return seen
