# SPDX-License-Identifier: Apache-2.0
"""Synthetic tumors with their appearance in each contrast phase: hepatocellular carcinoma and complex metastases.

Contrasts are those of radiology textbooks (LI-RADS: arterial hyper-enhancement, washout and capsule in later phases),
widened; ``python -m recipes.default_model.appearance`` compares them with the real tumors that may be trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from LiverXAILib.training.lesion_painting import image_noise, lesion_shape
from LiverXAILib.training.random_fields import Rng, smooth_field
from LiverXAILib.volumes.box import Box, largest_component

from .tissues import ContrastPhase

#: Membership at which a reader draws the outline: slightly outside the middle of the edge.
_OUTLINE = 0.3
Range = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """The appearance of a tumor; all contrasts are in HU relative to the liver.

    :param contrast: contrast of the tumor.
    :param mosaic: variation between its nodules in HU, and their size in mm.
    :param capsule: contrast of a ring of 1 to 3 mm along its border.
    :param rim: contrast of an outer zone of a fifth of its radius.
    :param corona: contrast of the liver around it, over `corona_mm`.
    :param necrosis: necrotic fraction of the inside: patches that are darker by `necrosis_hu`; None: they are fluid.
    :param infiltrating: whether the border is rough and blends into the liver over most of the radius.
    """

    contrast: float
    texture: float = 4.0
    mosaic: float = 0.0
    nodule_mm: float = 8.0
    capsule: float = 0.0
    rim: float = 0.0
    corona: float = 0.0
    corona_mm: float = 6.0
    necrosis: float = 0.0
    necrosis_hu: float | None = -35.0
    infiltrating: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of tumor.

    :param contrasts: range of its contrast to the liver in each phase.
    :param radii_mm: smallest and largest radius; radii are drawn log-uniformly.
    :param share: how often the kind is drawn.
    """

    contrasts: dict[ContrastPhase, Range]
    radii_mm: Range
    share: float
    most: int = 3
    extra: dict[str, float] = field(default_factory=dict)


def _in_phases(native: Range, early: Range, late: Range, portal: Range, delayed: Range) -> dict[ContrastPhase, Range]:
    return dict(zip(ContrastPhase, (native, early, late, portal, delayed), strict=True))


KINDS: dict[str, Kind] = {
    "hepatocellular carcinoma": Kind(_in_phases((-25, -4), (-12, 35), (-8, 50), (-45, 4), (-50, -8)), (5, 60), 0.55),
    "hypervascular metastasis": Kind(
        _in_phases((-25, -8), (15, 60), (20, 80), (-18, 25), (-22, -6)), (2.5, 25), 0.15, most=6
    ),
    "cystic metastasis": Kind(_in_phases((-20, -5), (-10, 25), (0, 35), (-5, 30), (-5, 20)), (6, 40), 0.10),
    "isodense with a capsule": Kind(_in_phases((-8, 2), (-6, 6), (-6, 6), (-6, 6), (-6, 6)), (8, 40), 0.08, most=1),
    "infiltrating": Kind(_in_phases((-20, -8), (-20, 20), (-25, 30), (-40, -12), (-45, -12)), (10, 60), 0.12, most=2),
}
_ARTERIAL = (ContrastPhase.EARLY_ARTERIAL, ContrastPhase.LATE_ARTERIAL)
_LATER = (ContrastPhase.PORTAL, ContrastPhase.DELAYED)


def draw_look(rng: Rng, name: str, phase: ContrastPhase, radius_mm: float, curriculum: float = 0.0) -> Look:
    """Draw the appearance of a kind of tumor in a phase.

    :param curriculum: 0 to 1: how much more conspicuous it is than at the end of training.
    """
    look = Look(rng.uniform(*KINDS[name].contrasts[phase]), texture=rng.uniform(2, 8))
    if name == "hepatocellular carcinoma":
        look = _carcinoma(rng, look, phase, radius_mm)
    elif name == "cystic metastasis":
        look = replace(look, necrosis=rng.uniform(0.7, 1.0), necrosis_hu=None, rim=rng.uniform(0, 20))
    elif name == "isodense with a capsule":
        ring = rng.uniform(12, 40) if phase in _LATER else rng.uniform(-25, -12) if rng.chance(0.5) else 18.0
        look = replace(look, capsule=ring, mosaic=rng.uniform(0, 8))
    elif name == "infiltrating":
        look = replace(look, infiltrating=True, mosaic=rng.uniform(0, 12), nodule_mm=rng.uniform(6, 16))
    elif rng.chance(0.4):
        look = replace(look, rim=rng.uniform(5, 30), necrosis=rng.uniform(0, 0.5) if radius_mm > 8 else 0.0)
    if max(abs(look.capsule), look.rim) < 8 and look.necrosis < 0.3:
        # Less contrast would be invisible, above all in small tumors, which are blurred into the liver.
        least = (30 if radius_mm < 4 else 18 if radius_mm < 8 else 12) + 20 * curriculum
        sign = math.copysign(1.0, look.contrast)
        look = replace(look, contrast=sign * max(least, abs(look.contrast)))
    return look


def _carcinoma(rng: Rng, look: Look, phase: ContrastPhase, radius_mm: float) -> Look:
    """Add mosaic, capsule, corona and necrosis of a hepatocellular carcinoma, which increase with its size."""
    arterial, later = phase in _ARTERIAL, phase in _LATER
    look = replace(look, rim=rng.uniform(0, 16))
    if radius_mm > 10 and rng.chance(0.8):
        amount = rng.uniform(6, 24) if arterial else rng.uniform(5, 17)
        look = replace(look, mosaic=amount, nodule_mm=rng.uniform(5, 14))
    if rng.chance(0.6 if later else 0.15):
        look = replace(look, capsule=rng.uniform(8, 32) if later else rng.uniform(-12, 8))
    if phase is ContrastPhase.LATE_ARTERIAL and rng.chance(0.25):  # washed out in the middle, bright at its rim
        look = replace(look, contrast=rng.uniform(-25, 10), rim=rng.uniform(15, 45))
    if (phase is ContrastPhase.LATE_ARTERIAL or phase is ContrastPhase.PORTAL) and rng.chance(0.3):
        look = replace(look, corona=rng.uniform(5, 18), corona_mm=rng.uniform(4, 10))
    if radius_mm > 15 and rng.chance(0.45):
        look = replace(look, necrosis=rng.uniform(0.1, 0.6), necrosis_hu=rng.uniform(-45, -15))
    return look


def add_tumors(
    rng: Rng,
    image: torch.Tensor,
    liver: torch.Tensor,
    spacing_mm: float,
    phase: ContrastPhase,
    curriculum: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint tumors of one kind into the liver, as :func:`~LiverXAILib.training.lesion_painting.add_lesions` does.

    :param image: (D, H, W) in HU, before blur and noise.
    :param liver: bool (D, H, W).
    :return: the new image, and the tumors, numbered from 1, as uint8 (D, H, W).
    """
    lesions = torch.zeros(liver.shape, dtype=torch.uint8)
    inside = liver.nonzero()
    if len(inside) < 200:
        return image, lesions
    image = image.clone()
    name = list(KINDS)[rng.choose([kind.share for kind in KINDS.values()])]
    kind = KINDS[name]
    largest = min(kind.radii_mm[1], 0.5 * (len(inside) * spacing_mm**3) ** (1 / 3))
    wanted, painted = 1 + rng.integer(kind.most), 0
    for _ in range(3 * wanted):  # some places have no room
        if painted == wanted:
            break
        radius_mm = rng.log_uniform(kind.radii_mm[0] + 4 * curriculum, max(kind.radii_mm[0] + 5, largest))
        look = draw_look(rng, name, phase, radius_mm, curriculum)
        center = inside[rng.integer(len(inside))]
        reach = math.ceil((radius_mm * 1.9 + look.corona_mm) / spacing_mm) + 2
        box = Box.full((1, 1, 1)).shifted([int(c) for c in center]).grown((reach,) * 3, image.shape)
        alpha, depth = lesion_shape(rng, box, center, radius_mm / spacing_mm, sharp=not look.infiltrating)
        if look.infiltrating:
            rough = smooth_field(rng, _size(depth), max(2.0, 4 / spacing_mm))
            alpha = ((depth + 0.18 * rough) / 0.5 + 0.5).clamp(0, 1)
        alpha = alpha * liver[box] * (lesions[box] == 0)
        mask = torch.from_numpy(largest_component((alpha > _OUTLINE).numpy()))
        if int(mask.sum()) < 4:
            continue
        alpha = alpha * (mask | (alpha <= _OUTLINE))
        image[box] = _painted(rng, image[box], liver[box], alpha, depth * radius_mm, look, radius_mm, spacing_mm)
        painted += 1
        lesions[box][mask] = painted
    return image, lesions


def _painted(
    rng: Rng,
    image: torch.Tensor,
    liver: torch.Tensor,
    alpha: torch.Tensor,
    depth_mm: torch.Tensor,
    look: Look,
    radius_mm: float,
    spacing_mm: float,
) -> torch.Tensor:
    """Paint a tumor into a part of an image, keeping the image's noise.

    :param depth_mm: depth below the tumor's surface; negative outside.
    """
    size = _size(image)
    background = float(image[liver].median())
    tumor = look.contrast + look.texture * smooth_field(rng, size, rng.uniform(1.5, 4))
    if look.mosaic:
        nodules = _two_scales(rng, size, look.nodule_mm / spacing_mm)
        septa = torch.exp(-((nodules / 0.25) ** 2))  # between nodules
        tumor = tumor + look.mosaic * (1.5 * nodules).tanh() + rng.uniform(-0.7, 0.7) * look.mosaic * septa
    if look.rim:
        tumor = tumor + look.rim * ((0.25 * radius_mm - depth_mm) / (0.1 * radius_mm) + 0.5).clamp(0, 1)
    if look.necrosis:
        fluid_only = look.necrosis_hu is None  # fluid has a smooth, sharp wall; necrotic tissue lies in patches
        amount, steep = (0.1, 7) if fluid_only else (0.3, 4)
        patches = amount * _two_scales(rng, size, 0.5 * radius_mm / spacing_mm)
        share = ((depth_mm / radius_mm + patches - 0.15 - (1 - look.necrosis) * 0.6) * steep + 0.5).clamp(0, 1)
        fluid = min(rng.uniform(5, 30), background - 15) - background - tumor
        tumor = tumor + share * (fluid if look.necrosis_hu is None else look.necrosis_hu)
    if look.capsule:
        width = rng.uniform(1.0, 2.2)
        tumor = tumor + look.capsule * torch.exp(-(((depth_mm - width) / width) ** 2))
    result = image + alpha * (background + tumor + image_noise(image, liver) - image)
    if look.corona:
        around = (1 + depth_mm / look.corona_mm).clamp(0, 1) * (1 - alpha) * liver
        result = result + look.corona * around
    return result


def _two_scales(rng: Rng, size: tuple[int, int, int], wavelength: float) -> torch.Tensor:
    """A smooth random field at two scales, which hides the lattice of each."""
    coarse, fine = (smooth_field(rng, size, max(2.0, part * wavelength)) for part in (1.0, 0.37))
    return 0.85 * coarse + 0.5 * fine


def _size(field_: torch.Tensor) -> tuple[int, int, int]:
    return field_.shape[0], field_.shape[1], field_.shape[2]
