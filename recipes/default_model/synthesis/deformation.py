# SPDX-License-Identifier: Apache-2.0
"""Random deformations of anatomy as coordinate maps, and resampling of images with them."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from LiverXAILib.training.random_fields import Rng, Size, rotation_matrix, upsample


def deformation(rng: Rng, size: Size, center: torch.Tensor, spacing_mm: float, strength: float = 1.0) -> torch.Tensor:
    """Draw the source coordinates of each voxel of the sample: an affine map plus elastic noise at three scales.

    To save time, they are computed at a quarter of the resolution and interpolated.

    :param center: source voxel (k, j, i) at the sample's center.
    :param strength: scales the deformation; 0 gives the identity.
    :return: (D, H, W, 3) in source voxels (k, j, i).
    """
    coarse = tuple(max(2, math.ceil(n / 4)) for n in size)
    axes = [torch.linspace(-(n - 1) / 2, (n - 1) / 2, m) for n, m in zip(size, coarse, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    overall = rng.log_uniform(0.84, 1.2) ** strength
    scales = torch.tensor([overall * rng.log_uniform(0.92, 1.09) ** strength for _ in range(3)])
    angles = [strength * rng.uniform(-w, w) for w in (14, 7, 7)]  # mostly in-plane
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
