# SPDX-License-Identifier: Apache-2.0
"""Synthetic liver lesions, after the idea of "Label-Free Liver Tumor Segmentation" (Hu et al., CVPR 2023)."""

from __future__ import annotations

import math

import torch

from ..volumes.box import Box, largest_component
from .random_fields import Rng, gaussian_blur, rotation_matrix, smooth_field

#: Proportions of hypodense lesions, hyperdense lesions and cysts.
_KINDS = (0.80, 0.08, 0.12)
#: Membership at which a reader draws the outline: slightly outside the middle of the edge, so that everything that
#: differs from the liver is inside.
_OUTLINE = 0.3
#: Smallest radius of a lesion, in mm and in voxels: what is smaller than one of them cannot be seen.
_SMALLEST_MM, _SMALLEST_VOXELS = 2.5, 1.5
#: Noise is what a blur with these standard deviations, in voxels, removes; beyond this many HU it is a vessel edge.
_BLUR, _LOUDEST = (1.5, 1.5, 1.5), 25.0


def add_lesions(
    rng: Rng,
    image: torch.Tensor,
    liver: torch.Tensor,
    spacing_mm: float,
    curriculum: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint one to eight lesions into the liver.

    They are deformed ellipsoids of 2.5 (at least 1.5 voxels) to 48 mm radius (small ones more often), hypodense,
    hyperdense or cystic, with texture, with edges that are sharp or blend into the liver, and sometimes with a necrotic
    core, a rim, or a fainter outer zone. The image's noise continues inside them: a different noise would be the
    easiest sign of a lesion, and a misleading one. A lesion never extends beyond the liver.

    :param image: (D, H, W) in HU, before blur and noise.
    :param liver: bool (D, H, W).
    :param curriculum: 0 to 1: how much larger, and how much more conspicuous, the smallest lesions are.
    :return: the new image, and the lesions, numbered from 1, as uint8 (D, H, W).
    """
    lesions = torch.zeros(liver.shape, dtype=torch.uint8)
    inside = liver.nonzero()
    if len(inside) < 200:
        return image, lesions
    image = image.clone()
    smallest = max(_SMALLEST_MM, _SMALLEST_VOXELS * spacing_mm)
    largest = min(48.0, 0.5 * (len(inside) * spacing_mm**3) ** (1 / 3))
    count = 1 + rng.choose((0.30, 0.2, 0.15, 0.12, 0.09, 0.07, 0.04, 0.03))
    family = rng.choose(_KINDS)
    painted = 0
    for _ in range(3 * count):  # some places have no room
        if painted == count:
            break
        kind = family if rng.chance(0.7) else rng.choose(_KINDS)
        radius = (
            rng.log_uniform(smallest + 5 * curriculum, max(9.0, largest if rng.chance(0.5) else min(largest, 24.0)))
            / spacing_mm
        )
        center = inside[rng.integer(len(inside))]
        reach = math.ceil(radius * 1.9) + 2
        box = Box.full((1, 1, 1)).shifted([int(c) for c in center]).grown((reach,) * 3, image.shape)
        alpha, depth = lesion_shape(rng, box, center, radius, sharp=kind == 2)
        alpha = alpha * liver[box]
        # A bumpy surface leaves fragments around the lesion that no reader would call lesions.
        inner = torch.from_numpy(largest_component((alpha > _OUTLINE).numpy()))
        if int(inner.sum()) < 4:
            continue
        alpha = alpha * (inner | (alpha <= _OUTLINE))
        image[box] = _paint(rng, image[box], liver[box], alpha, depth, kind, radius * spacing_mm, curriculum)
        painted += 1
        lesions[box][inner] = painted
    return image, lesions


def lesion_shape(
    rng: Rng, box: tuple[slice, ...], center: torch.Tensor, radius: float, *, sharp: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft membership (0 to 1) and depth below the surface in units of the radius (1 in the middle).

    :param sharp: whether the edge is sharp; otherwise it may be as wide as half the radius.
    """
    axes = [torch.arange(s.start, s.stop, dtype=torch.float32) - float(c) for s, c in zip(box, center, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    turn = rotation_matrix([rng.uniform(0, 180) for _ in range(3)])
    stretch = torch.tensor([rng.uniform(0.75, 1.3) for _ in range(3)])
    distance = ((points @ turn.T) * stretch).norm(dim=-1) / radius
    size = (distance.shape[0], distance.shape[1], distance.shape[2])
    bumps = smooth_field(rng, size, max(2.0, 0.8 * radius))
    distance = distance * (1 + rng.uniform(0.03, 0.28) * bumps)
    soft = rng.uniform(0.3, 1.4) / radius  # width of the edge in voxels, in units of the radius
    if not sharp and rng.chance(0.5):
        soft = rng.uniform(soft, max(soft, 0.5))
    return ((1 - distance) / soft + 0.5).clamp(0, 1), 1 - distance


def _paint(
    rng: Rng,
    image: torch.Tensor,
    liver: torch.Tensor,
    alpha: torch.Tensor,
    depth: torch.Tensor,
    kind: int,
    radius_mm: float,
    curriculum: float,
) -> torch.Tensor:
    background = float(image[liver].median())
    if kind == 0:
        # Small lesions are blurred into their surroundings: they need more contrast to be visible.
        least = (38 if radius_mm < 4 else 32 if radius_mm < 6 else 26 if radius_mm < 9 else 20) + 20 * curriculum
        hu = background - rng.uniform(least, max(least + 10, min(80, background - 5)))
    elif kind == 1:
        hu = background + rng.uniform(25 + 15 * curriculum, 75)
    else:
        hu = min(rng.uniform(-4, 22), background - 20)
    size = (image.shape[0], image.shape[1], image.shape[2])
    texture = rng.uniform(1, 9) * smooth_field(rng, size, rng.uniform(1.3, 4))
    value = hu + texture * (0.3 if kind == 2 else 1.0) + image_noise(image, liver)
    if kind == 0 and radius_mm > 8 and rng.chance(0.4):  # the outer zone differs less from the liver
        contrast = background - hu
        fainter = min(rng.uniform(0.25, 0.7) * contrast, contrast - 10)  # and remains visible
        zone = ((rng.uniform(0.15, 0.4) - depth) * 8 + 0.5).clamp(0, 1)
        value = value + zone * fainter
    if kind != 2 and radius_mm > 10 and rng.chance(0.3):  # necrosis
        core = ((depth - rng.uniform(0.3, 0.65)) * 6).clamp(0, 1)
        value = value + core * (min(hu, rng.uniform(5, 35)) - hu)
    if kind != 2 and rng.chance(0.3):  # rim, brighter or darker
        rim = torch.exp(-(((depth - 0.12) / 0.12) ** 2))
        value = value + rim * rng.uniform(-15, 40)
    if kind == 0 and rng.chance(0.04):  # calcification
        value = value + 200 * ((smooth_field(rng, size, 2.0) - 1.6).clamp(0, 0.6))
    return image + alpha * (value - image)


def image_noise(image: torch.Tensor, liver: torch.Tensor) -> torch.Tensor:
    """The part of `image` that a blur within the liver removes, in HU; 0 outside."""
    return ((image - smoothed_inside(image, liver)) * liver).clamp(-_LOUDEST, _LOUDEST)


def smoothed_inside(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`image` blurred within `mask` only, which removes its noise."""
    inside = mask.float()
    return gaussian_blur(image * inside, _BLUR) / gaussian_blur(inside, _BLUR).clamp_min(1e-6)
