# SPDX-License-Identifier: Apache-2.0
"""Changes of a sample's anatomy: structures that mimic lesions, and structures next to the body."""

from __future__ import annotations

import torch
from torch.nn import functional

from LiverXAILib.training.random_fields import Rng, smooth_field
from LiverXAILib.volumes.box import Box

from .tissues import Tissue


def change_anatomy(
    rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, spacing_mm: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add structures that mimic lesions, and structures next to the body."""
    tissues = tissues.clone()
    liver = liver.clone()
    size = (tissues.shape[0], tissues.shape[1], tissues.shape[2])
    if liver.any():
        if rng.chance(0.15):
            _gallbladder(rng, tissues, liver, spacing_mm)
        if rng.chance(0.2):  # fissures: thin sheets of fat that belong to no organ
            wave = rng.uniform(12, 25)
            sheet = smooth_field(rng, size, wave).abs() < rng.uniform(0.5, 1.3) / wave * 1.6
            sheet &= smooth_field(rng, size, 15) > rng.uniform(0.2, 0.9)
            sheet &= liver
            tissues[sheet] = int(Tissue.FAT)
            liver &= ~sheet
        if rng.chance(0.12):  # ascites around the liver
            shell = dilate(liver, 1 + rng.integer(4)) & ~liver
            shell &= (tissues == Tissue.FAT) | (tissues == Tissue.SOFT)
            tissues[shell & (smooth_field(rng, size, 18) > rng.uniform(-1.0, 0.3))] = int(Tissue.FLUID)
    if rng.chance(0.25):  # pleural effusion: the lungs' lower, posterior parts fill up
        lung = tissues == Tissue.LUNG
        if int(lung.sum()) > 500:
            side = torch.arange(size[2]) < size[2] / 2
            side = side if rng.chance(0.4) else (~side if rng.chance(0.5) else torch.ones_like(side))
            positions = lung.nonzero()[:, 1].float()
            level = float(torch.quantile(positions[:: max(1, len(positions) // 5000)], rng.uniform(0.2, 0.9)))
            j = torch.arange(size[1], dtype=torch.float32)[None, :, None]
            tissues[lung & (j + 2 * smooth_field(rng, size, 25) > level) & side] = int(Tissue.FLUID)
    if rng.chance(0.10):
        _arms(rng, tissues, spacing_mm)
    if rng.chance(0.20):
        add_table(rng, tissues)
    return tissues, liver


def dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Dilate boolean (D, H, W) by `radius` voxels (with a cube)."""
    width = 2 * radius + 1
    grown = mask.half().float()[None, None]
    for axis in range(3):
        kernel = [1, 1, 1]
        kernel[axis] = width
        padding = [0, 0, 0]
        padding[axis] = radius
        grown = functional.max_pool3d(grown, kernel, stride=1, padding=padding)
    return grown[0, 0] > 0.5


def _gallbladder(rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> None:
    """Add a pear-shaped gallbladder at the liver's lower surface (in place)."""
    below = torch.zeros_like(liver)
    below[:-1] = liver[1:] & ~liver[:-1]  # not liver, but liver above: the visceral surface
    places = below.nonzero()
    if len(places) < 20:
        return
    center = places[rng.integer(len(places))].float()
    radius = rng.uniform(8, 19) / spacing_mm
    reach = int(3 * radius) + 2
    box = Box.full((1, 1, 1)).shifted([int(c) for c in center]).grown((reach,) * 3, liver.shape)
    axes = [torch.arange(s.start, s.stop, dtype=torch.float32) - float(c) for s, c in zip(box, center, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    direction = rng.normal(3)
    direction = direction / direction.norm()
    along = points @ direction
    across = (points - along[..., None] * direction).norm(dim=-1)
    length = rng.uniform(1.3, 2.4) * radius
    taper = 1 - 0.3 * along / length
    inside = (along / length) ** 2 + (across / (radius * taper)) ** 2 < 1
    inside &= (liver[box]) | (tissues[box] == Tissue.FAT) | (tissues[box] == Tissue.SOFT)
    tissues[box][inside] = int(Tissue.GALLBLADDER)
    liver[box][inside] = False


def _arms(rng: Rng, tissues: torch.Tensor, spacing_mm: float) -> None:
    """Add arms next to the body (in place), where there is air."""
    body = (tissues != Tissue.AIR) & (tissues != Tissue.TABLE)
    columns = body.any(dim=0).any(dim=0).nonzero()
    if len(columns) == 0:
        return
    rows = body.any(dim=0).any(dim=1).nonzero()
    k = torch.arange(tissues.shape[0], dtype=torch.float32)[:, None, None]
    j = torch.arange(tissues.shape[1], dtype=torch.float32)[None, :, None]
    i = torch.arange(tissues.shape[2], dtype=torch.float32)[None, None, :]
    for edge, sign in ((int(columns[0]), -1), (int(columns[-1]), 1)):
        radius = rng.uniform(35, 55) / spacing_mm
        middle = edge + sign * rng.uniform(0.2, 1.2) * radius
        height = rng.uniform(float(rows[0]) + radius, max(float(rows[0]) + radius + 1, float(rows[-1]) - radius))
        slope = rng.uniform(-0.15, 0.15)
        distance = ((j - height - slope * k) ** 2 + (i - middle - slope * k) ** 2).sqrt()
        free = ~body
        tissues[free & (distance < radius)] = int(Tissue.FAT)
        tissues[free & (distance < 0.8 * radius)] = int(Tissue.MUSCLE)
        tissues[free & (distance < 0.25 * radius)] = int(Tissue.BONE)


def add_table(rng: Rng, tissues: torch.Tensor) -> None:
    """Add a curved table under the patient (in place), where there is air."""
    body = (tissues != Tissue.AIR) & (tissues != Tissue.TABLE)
    rows = body.any(dim=0).any(dim=1).nonzero()
    bottom = int(rows[-1]) if len(rows) else int(0.7 * tissues.shape[1])
    i = torch.arange(tissues.shape[2], dtype=torch.float32) - tissues.shape[2] / 2
    top = bottom + rng.uniform(0, 4) - rng.uniform(0, 0.006) * i**2
    j = torch.arange(tissues.shape[1], dtype=torch.float32)[:, None]
    thick = rng.uniform(4, 14)
    sheet = ((j - top).abs() < 0.6) | ((j - top - thick).abs() < 0.6)
    tissues[sheet[None] & (tissues == Tissue.AIR)] = int(Tissue.TABLE)
