# SPDX-License-Identifier: Apache-2.0
"""The tissue classes that every training source is mapped to, and their appearance in CT."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

import torch

from LiverXAILib.training.random_fields import Rng


class ContrastPhase(Enum):
    """The time of a scan after the injection of contrast medium."""

    NATIVE = "native"
    EARLY_ARTERIAL = "early arterial"
    LATE_ARTERIAL = "late arterial"
    PORTAL = "portal"
    DELAYED = "delayed"


class Tissue(IntEnum):
    """The tissue of a voxel. The liver's own vessels are liver; UNKNOWN is excluded from loss and evaluation."""

    AIR = 0
    TABLE = 1
    FAT = 2
    SOFT = 3
    ENHANCED = 4
    BONE = 5
    GAS = 6
    LUNG = 7
    LIVER = 8
    SPLEEN = 9
    KIDNEY = 10
    GALLBLADDER = 11
    STOMACH = 12
    PANCREAS = 13
    BOWEL = 14
    HEART = 15
    AORTA = 16
    VENA_CAVA = 17
    PORTAL_VEIN = 18
    BLADDER = 19
    FLUID = 20
    MUSCLE = 21
    GUT_CONTRAST = 22
    ADRENAL = 23
    BRAIN = 24
    UNKNOWN = 25


#: Mean HU in native, arterial and portal scans, spread between patients, and texture inside the tissue (standard
#: deviations). The ranges are from radiology textbooks; the spread is large on purpose (domain randomization).
PRIORS: dict[Tissue, tuple[tuple[float, float, float], float, float]] = {
    Tissue.AIR: ((-1000, -1000, -1000), 0, 0),
    Tissue.TABLE: ((-300, -300, -300), 150, 30),
    Tissue.FAT: ((-105, -103, -102), 7, 8),
    Tissue.SOFT: ((35, 45, 50), 12, 12),
    Tissue.ENHANCED: ((90, 160, 140), 35, 15),
    Tissue.BONE: ((300, 310, 310), 80, 70),
    Tissue.GAS: ((-950, -950, -950), 30, 20),
    Tissue.LUNG: ((-830, -820, -820), 50, 40),
    Tissue.LIVER: ((56, 72, 110), 16, 5),
    Tissue.SPLEEN: ((48, 110, 118), 12, 5),
    Tissue.KIDNEY: ((33, 130, 175), 25, 14),
    Tissue.GALLBLADDER: ((9, 9, 10), 7, 3),
    Tissue.STOMACH: ((30, 40, 45), 25, 14),
    Tissue.PANCREAS: ((38, 90, 88), 14, 11),
    Tissue.BOWEL: ((28, 50, 65), 25, 18),
    Tissue.HEART: ((42, 180, 125), 25, 10),
    Tissue.AORTA: ((42, 290, 150), 35, 7),
    Tissue.VENA_CAVA: ((38, 85, 130), 25, 9),
    Tissue.PORTAL_VEIN: ((40, 100, 165), 30, 7),
    Tissue.BLADDER: ((8, 8, 15), 8, 4),
    Tissue.FLUID: ((9, 9, 10), 8, 4),
    Tissue.MUSCLE: ((52, 57, 62), 8, 9),
    Tissue.GUT_CONTRAST: ((250, 250, 250), 90, 30),
    Tissue.ADRENAL: ((25, 60, 68), 12, 6),
    Tissue.BRAIN: ((34, 38, 38), 4, 4),
    Tissue.UNKNOWN: ((45, 60, 70), 20, 12),
}

#: Tissues that touch the liver and, at equal HU, differ from it only in shape and location.
NEIGHBORS = (
    Tissue.SPLEEN,
    Tissue.KIDNEY,
    Tissue.STOMACH,
    Tissue.PANCREAS,
    Tissue.BOWEL,
    Tissue.HEART,
    Tissue.VENA_CAVA,
    Tissue.MUSCLE,
)

_MEANS = torch.tensor([PRIORS[tissue][0] for tissue in Tissue], dtype=torch.float32)
_SPREAD = torch.tensor([PRIORS[tissue][1] for tissue in Tissue], dtype=torch.float32)
_TEXTURE = torch.tensor([PRIORS[tissue][2] for tissue in Tissue], dtype=torch.float32)


def draw_hu(rng: Rng, *, broad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one patient's mean HU and texture for every tissue, in a phase between native and portal.

    The phase is a random mixture of two neighboring ones, because real acquisition times vary; it is most often the
    portal venous one, which is used to look for liver tumors. In a quarter of the patients half of the
    :data:`NEIGHBORS` have the HU of the liver.

    :param broad: draw soft tissues from far wider ranges.
    :return: two tensors (tissues,).
    """
    pick = rng.uniform()
    mix = rng.uniform()
    if pick < 0.12:
        means = _MEANS[:, 0]
    elif pick < 0.20:
        means = torch.lerp(_MEANS[:, 0], _MEANS[:, 2], mix)
    elif pick < 0.40:
        means = torch.lerp(_MEANS[:, 1], _MEANS[:, 2], mix)
    else:
        means = _MEANS[:, 2]
    return _individual(rng, means, broad=broad)


#: For each phase the column of :data:`PRIORS` it is based on, the differences from it, and how often it is drawn.
_IN_PHASE: dict[ContrastPhase, tuple[int, dict[Tissue, float], float]] = {
    ContrastPhase.NATIVE: (0, {}, 0.10),
    ContrastPhase.EARLY_ARTERIAL: (
        1,
        {
            Tissue.LIVER: 60,
            Tissue.PORTAL_VEIN: 58,
            Tissue.VENA_CAVA: 55,
            Tissue.SPLEEN: 95,
            Tissue.PANCREAS: 75,
            Tissue.KIDNEY: 120,
        },
        0.08,
    ),
    ContrastPhase.LATE_ARTERIAL: (
        1,
        {
            Tissue.LIVER: 76,
            Tissue.PORTAL_VEIN: 140,
            Tissue.VENA_CAVA: 95,
            Tissue.SPLEEN: 120,
            Tissue.PANCREAS: 100,
            Tissue.KIDNEY: 155,
            Tissue.AORTA: 260,
        },
        0.22,
    ),
    ContrastPhase.PORTAL: (2, {}, 0.46),
    ContrastPhase.DELAYED: (
        2,
        {
            Tissue.LIVER: 92,
            Tissue.PORTAL_VEIN: 115,
            Tissue.VENA_CAVA: 112,
            Tissue.AORTA: 112,
            Tissue.HEART: 105,
            Tissue.SPLEEN: 95,
            Tissue.KIDNEY: 160,
            Tissue.PANCREAS: 75,
            Tissue.BLADDER: 90,
        },
        0.14,
    ),
}
#: HU of the hepatic veins relative to the liver: they are not enhanced before the portal venous phase.
_HEPATIC_VEINS: dict[ContrastPhase, tuple[float, float]] = {
    ContrastPhase.NATIVE: (-22, 4),
    ContrastPhase.EARLY_ARTERIAL: (-18, 2),
    ContrastPhase.LATE_ARTERIAL: (-18, 12),
    ContrastPhase.PORTAL: (15, 75),
    ContrastPhase.DELAYED: (5, 35),
}


@dataclass(frozen=True, eq=False)
class Patient:
    """The appearance of a patient in one phase: mean HU and texture of every tissue, each (tissues,).

    :param hepatic_veins: HU of the hepatic veins relative to the liver.
    """

    phase: ContrastPhase
    hu: torch.Tensor
    texture: torch.Tensor
    hepatic_veins: float


def draw_patient(rng: Rng, *, broad: bool = False) -> Patient:
    """Draw a patient in any phase, with the vessels of that phase; see :func:`draw_hu`.

    :param broad: draw soft tissues from far wider ranges.
    """
    phase = list(ContrastPhase)[rng.choose([share for _, _, share in _IN_PHASE.values()])]
    column, other, _ = _IN_PHASE[phase]
    means = _MEANS[:, column].clone()
    for tissue, value in other.items():
        means[tissue] = value
    hu, texture = _individual(rng, means, broad=broad)
    return Patient(phase, hu, texture, rng.uniform(*_HEPATIC_VEINS[phase]))


def _individual(rng: Rng, means: torch.Tensor, *, broad: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a patient's HU and texture around the means of a phase."""
    hu = means + _SPREAD * rng.normal(len(Tissue))
    texture = _TEXTURE * rng.uniform(0.5, 1.5)
    if broad:
        soft = (means > -50) & (means < 250)
        hu = torch.where(soft, hu + 25 * rng.normal(len(Tissue)), hu)
        texture = texture * rng.uniform(0.7, 2.0)
    if rng.uniform() < 0.08:  # fatty liver
        hu[Tissue.LIVER] -= rng.uniform(10, 55)
    # Darker livers cannot be distinguished from fluid, let alone lesions in them.
    hu[Tissue.LIVER] = hu[Tissue.LIVER].clamp_min(30)
    if rng.chance(0.25):
        for tissue in NEIGHBORS:
            if rng.chance(0.5):
                hu[tissue] = hu[Tissue.LIVER] + rng.uniform(-15, 15)
    return hu, texture
