# SPDX-License-Identifier: Apache-2.0
"""Hard negatives: structures that readers know not to be tumors, but networks segment as tumors.

Some change the anatomy before intensities are drawn (:func:`add_structures`), others the image of the liver
(:func:`add_appearances`). None of them is labeled.
"""

from __future__ import annotations

import math

import torch

from LiverXAILib.training.lesion_painting import image_noise
from LiverXAILib.training.random_fields import Rng, gaussian_blur, smooth_field
from LiverXAILib.volumes.box import Box

from .anatomy import dilate
from .tissues import ContrastPhase, Tissue


def add_structures(rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> None:
    """Add gallbladders of all kinds, bowel next to the liver, slips of the diaphragm, ligaments (in place).

    :param tissues: (D, H, W), axes (superior, posterior, left), like `liver`.
    """
    if not liver.any():
        return
    if rng.chance(0.2):
        _gallbladder(rng, tissues, liver, spacing_mm)
    if rng.chance(0.2):
        _bowel(rng, tissues, liver, spacing_mm)
    if rng.chance(0.15):
        _diaphragm_slips(rng, tissues, liver, spacing_mm)
    if rng.chance(0.2):
        _ligament(rng, tissues, liver, spacing_mm)


def make_cirrhotic(rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> None:
    """Add a nodular border, ascites and a large spleen (in place)."""
    size = _size(liver)
    nodules = smooth_field(rng, size, rng.uniform(6, 14) / spacing_mm)
    soft = gaussian_blur(liver.float(), (5 / spacing_mm,) * 3)
    border = dilate(liver, round(6 / spacing_mm)) & ((tissues == Tissue.FAT) | (tissues == Tissue.SOFT) | liver)
    nodular = border & (soft > 0.5 + rng.uniform(0.12, 0.28) * nodules)
    lost = liver & ~nodular
    ascites = rng.chance(0.5)
    tissues[lost] = int(Tissue.FLUID if ascites else Tissue.FAT)
    tissues[nodular & ~liver] = int(Tissue.LIVER)
    liver.copy_(nodular)
    if ascites:
        shell = dilate(liver, 1 + rng.integer(5)) & ~liver
        tissues[shell & ((tissues == Tissue.FAT) | (tissues == Tissue.SOFT))] = int(Tissue.FLUID)
    spleen = tissues == Tissue.SPLEEN
    if spleen.any():
        grown = dilate(spleen, 1 + rng.integer(max(1, round(10 / spacing_mm)))) & ~liver
        tissues[grown & ((tissues == Tissue.FAT) | (tissues == Tissue.SOFT))] = int(Tissue.SPLEEN)


def add_appearances(
    rng: Rng, image: torch.Tensor, liver: torch.Tensor, spacing_mm: float, phase: ContrastPhase
) -> torch.Tensor:
    """Add focal fat, perfusion differences, beam hardening, a thrombus, traces of treatment; return the new image.

    :param image: (D, H, W) in HU.
    :param liver: bool (D, H, W), where there is no tumor.
    """
    if int(liver.sum()) < 500:
        return image
    if rng.chance(0.15):
        image = image + _focal_fat(rng, liver, spacing_mm)
    arterial = phase in (ContrastPhase.EARLY_ARTERIAL, ContrastPhase.LATE_ARTERIAL)
    if rng.chance(0.25 if arterial else 0.06):
        image = image + _perfusion(rng, liver, spacing_mm)
    if rng.chance(0.12):
        image = image + _beam_hardening(rng, image, liver, spacing_mm)
    if rng.chance(0.06):
        image = _thrombus(rng, image, liver, spacing_mm)
    if rng.chance(0.04):
        image = _treated(rng, image, liver, spacing_mm)
    return image


# -- structures ----------------------------------------------------------------------------------------------------


def _gallbladder(rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> None:
    """Add a gallbladder: collapsed, full of stones, sludge or contrast medium, thick-walled, or folded."""
    place = _at_surface(rng, liver, (1, 0, 0))
    if place is None:
        return
    collapsed = rng.chance(0.3)
    radii = [rng.uniform(14, 30), rng.uniform(8, 18), rng.uniform(3, 6) if collapsed else rng.uniform(8, 18)]
    box, distance = _ellipsoid(rng, place, [r / spacing_mm for r in radii], liver)
    free = liver[box] | (tissues[box] == Tissue.FAT) | (tissues[box] == Tissue.SOFT)
    whole, wall = (distance < 1) & free, rng.uniform(1.0, 4.0) / min(radii)
    content = (Tissue.GALLBLADDER, Tissue.SOFT, Tissue.GUT_CONTRAST)[rng.choose((0.7, 0.2, 0.1))]
    tissues[box][whole] = int(Tissue.SOFT)
    lumen = whole & (distance < 1 - wall)
    tissues[box][lumen] = int(content)
    if rng.chance(0.35) and lumen.any():  # stones lie at the bottom
        j = torch.arange(lumen.shape[1])[None, :, None].expand(lumen.shape)
        low = j >= float(j[lumen].float().quantile(rng.uniform(0.5, 0.9)))
        stones = smooth_field(rng, _size(lumen), rng.uniform(3, 8) / spacing_mm) > 0.3
        tissues[box][lumen & low & stones] = int(Tissue.BONE if rng.chance(0.7) else Tissue.FAT)
    liver[box][whole] = False


def _bowel(rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> None:
    """Add one to three loops below or anterior to the liver: a wall around gas, fluid, stool or contrast medium."""
    for _ in range(1 + rng.integer(3)):
        place = _at_surface(rng, liver, (1, 0, 0) if rng.chance(0.7) else (0, 1, 0))
        if place is None:
            return
        radii = [rng.uniform(10, 28) / spacing_mm for _ in range(3)]
        place = place - torch.tensor([rng.uniform(0.5, 1.1) * radii[0], 0.0, 0.0])
        box, distance = _ellipsoid(rng, place, radii, liver)
        free = ~liver[box] & ((tissues[box] == Tissue.FAT) | (tissues[box] == Tissue.SOFT))
        whole = (distance < 1) & free
        tissues[box][whole] = int(Tissue.BOWEL)
        inner = (Tissue.GAS, Tissue.FLUID, Tissue.BOWEL, Tissue.GUT_CONTRAST)[rng.choose((0.35, 0.3, 0.2, 0.15))]
        tissues[box][whole & (distance < 1 - rng.uniform(2, 4) / spacing_mm / min(radii))] = int(inner)


def _diaphragm_slips(rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> None:
    """Add folds of muscle that indent the dome from above."""
    size = _size(liver)
    sheets = smooth_field(rng, size, (80 / spacing_mm, rng.uniform(12, 25) / spacing_mm, 40 / spacing_mm)).abs()
    depth = rng.uniform(5, 18) / spacing_mm
    above = torch.zeros_like(liver)
    above[:-1] = liver[:-1] & ~liver[1:]  # axis 0 runs upward
    near = above.clone()
    for step in range(1, max(2, round(depth))):
        near[:-step] |= above[step:]
    slips = near & liver & (sheets < rng.uniform(0.06, 0.16))
    tissues[slips] = int(Tissue.MUSCLE)
    liver &= ~slips


def _ligament(rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> None:
    """Add the falciform or venous ligament: a wedge of fat from the front or below, sometimes with a cord in it."""
    place = _at_surface(rng, liver, (1, 0, 0) if rng.chance(0.5) else (0, 1, 0))
    if place is None:
        return
    width = rng.uniform(1.5, 6)
    box, distance = _ellipsoid(rng, place, [n / spacing_mm for n in (rng.uniform(15, 40), 25.0, width)], liver)
    inside = (distance < 1) & liver[box]
    tissues[box][inside] = int(Tissue.FAT)
    if rng.chance(0.5):
        tissues[box][inside & (distance < 0.3)] = int(Tissue.SOFT)
    liver[box][inside] = False


# -- appearances ---------------------------------------------------------------------------------------------------


def _focal_fat(rng: Rng, liver: torch.Tensor, spacing_mm: float) -> torch.Tensor:
    """Focal fat along the liver's surface, or fatty change with focal sparing; vessels run through unchanged."""
    size = _size(liver)
    patches = smooth_field(rng, size, rng.uniform(15, 45) / spacing_mm)
    if rng.chance(0.6):  # at fissures and at the surface
        surface = gaussian_blur((~liver).float(), (8 / spacing_mm,) * 3)
        patches = patches + 3 * (surface - 0.35)
    share = (1.5 * (patches - rng.uniform(0.5, 1.2)) + 0.5).clamp(0, 1)
    change = rng.uniform(-40, -10) if rng.chance(0.75) else rng.uniform(8, 25)  # fat, or focal sparing
    return change * share * liver


def _perfusion(rng: Rng, liver: torch.Tensor, spacing_mm: float) -> torch.Tensor:
    """Wedges under the capsule that enhance early, with straight borders."""
    result = torch.zeros(liver.shape)
    surface = (liver & dilate(~liver, 1)).nonzero().float()
    for _ in range(1 + rng.integer(2)):
        place = surface[rng.integer(len(surface))]
        length = rng.uniform(12, 50) / spacing_mm
        reach = math.ceil(length) + 2
        box = Box.full((1, 1, 1)).shifted([int(c) for c in place]).grown((reach,) * 3, liver.shape)
        inward = _mean_offset(liver[box], box, place)
        tip = place + inward / inward.norm().clamp_min(1e-3) * length
        axis = (place - tip) / length
        points = _grid(box) - tip
        along = points @ axis
        across = (points - along[..., None] * axis).norm(dim=-1)
        slope = math.tan(math.radians(rng.uniform(12, 38)))
        edge = ((along * slope - across) / rng.uniform(0.8, 2.5) + 0.5).clamp(0, 1) * (along > 0)
        result[box] = torch.maximum(result[box], rng.uniform(12, 40) * edge * liver[box])
    return result


def _beam_hardening(rng: Rng, image: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> torch.Tensor:
    """Dark bands in the plane that start at ribs next to the liver."""
    bone = (image > 220) & dilate(liver, round(25 / spacing_mm))
    places = bone.nonzero().float()
    result = torch.zeros(liver.shape)
    if len(places) == 0:
        return result
    middle = liver.nonzero().float().mean(dim=0)
    for _ in range(1 + rng.integer(4)):
        start = places[rng.integer(len(places))]
        direction = (middle - start)[1:]
        angle = math.atan2(float(direction[0]), float(direction[1])) + rng.uniform(-0.5, 0.5)
        j = torch.arange(liver.shape[1])[:, None] - start[1]
        i = torch.arange(liver.shape[2])[None, :] - start[2]
        along = j * math.sin(angle) + i * math.cos(angle)
        across = (i * math.sin(angle) - j * math.cos(angle)).abs()
        width, length = rng.uniform(2, 7) / spacing_mm, rng.uniform(25, 80) / spacing_mm
        band = torch.exp(-((across / width) ** 2)) * torch.exp(-along / length) * (along > 0)
        k = torch.arange(liver.shape[0])[:, None, None] - start[0]
        result = result - rng.uniform(8, 30) * band[None] * torch.exp(-((k * spacing_mm / rng.uniform(3, 8)) ** 2))
    return result


def _thrombus(rng: Rng, image: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> torch.Tensor:
    """A wide vessel of the liver that stays dark."""
    size = _size(liver)
    wave = rng.uniform(45, 80) / spacing_mm
    first, second = smooth_field(rng, size, wave), smooth_field(rng, size, wave)
    distance = (first**2 + second**2).sqrt() * wave / 1.6
    share = (rng.uniform(4, 7) / spacing_mm - distance + 0.5).clamp(0, 1) * liver
    dark = float(image[liver].median()) - rng.uniform(20, 60)
    return image + share * (dark + image_noise(image, liver) - image)


def _treated(rng: Rng, image: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> torch.Tensor:
    """Lipiodol, as bright as bone, or an ablation zone with gas or a bright needle track."""
    places = liver.nonzero().float()
    place = places[rng.integer(len(places))]
    radius = rng.uniform(6, 22)
    box, distance = _ellipsoid(rng, place, [radius * rng.uniform(0.8, 1.2) / spacing_mm for _ in range(3)], liver)
    part, own = image[box], liver[box]
    edge = ((1 - distance) * radius / spacing_mm + 0.5).clamp(0, 1) * own
    size = _size(own)
    if rng.chance(0.6):
        drops = smooth_field(rng, size, rng.uniform(3, 7) / spacing_mm)
        change = rng.uniform(150, 600) * (drops + rng.uniform(0, 1)).clamp(0, 1.5) * edge
    else:
        dark = float(image[liver].median()) - rng.uniform(35, 80)
        change = edge * (dark + image_noise(part, own) - part)
        core = distance < 0.3
        change = change + (rng.uniform(40, 90) if rng.chance(0.6) else -400.0) * core * own
    result = image.clone()
    result[box] = part + change
    return result


# -- shapes --------------------------------------------------------------------------------------------------------


def _at_surface(rng: Rng, liver: torch.Tensor, direction: tuple[int, int, int]) -> torch.Tensor | None:
    """A liver voxel, as floats, whose neighbor against `direction` (an axis) is not liver; None if there is none."""
    axis = direction.index(1)
    shifted = torch.roll(liver, 1, dims=axis)
    places = (liver & ~shifted).nonzero()
    return places[rng.integer(len(places))].float() if len(places) > 20 else None


def _ellipsoid(rng: Rng, center: torch.Tensor, radii: list[float], like: torch.Tensor) -> tuple[Box, torch.Tensor]:
    """A box in the volume, and each voxel's distance from the center of a rotated, bumpy ellipsoid: 1 at its surface.

    :param radii: in voxels.
    """
    reach = math.ceil(1.3 * max(radii)) + 2
    inside = [min(max(int(c), 0), n - 1) for c, n in zip(center, like.shape, strict=True)]
    box = Box.full((1, 1, 1)).shifted(inside).grown((reach,) * 3, like.shape)
    axes = rng.normal(3, 3)
    turn, _ = torch.linalg.qr(axes)
    points = (_grid(box) - center) @ turn.T
    distance = (points / torch.tensor(radii)).norm(dim=-1)
    return box, distance * (1 + 0.12 * smooth_field(rng, _size(distance), max(2.0, 0.7 * min(radii))))


def _grid(box: Box) -> torch.Tensor:
    """Voxel coordinates (D, H, W, 3) of a box."""
    axes = [torch.arange(s.start, s.stop, dtype=torch.float32) for s in box]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _mean_offset(mask: torch.Tensor, box: Box, place: torch.Tensor) -> torch.Tensor:
    """Vector from `place` to the centroid of `mask`."""
    return _grid(box)[mask].mean(dim=0) - place


def _size(mask: torch.Tensor) -> tuple[int, int, int]:
    return mask.shape[0], mask.shape[1], mask.shape[2]
