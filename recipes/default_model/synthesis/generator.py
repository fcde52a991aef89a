# SPDX-License-Identifier: Apache-2.0
"""Training samples: a source's anatomy, deformed, with new intensities and lesions, and rescanned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from LiverXAILib.training.lesion_painting import add_lesions
from LiverXAILib.training.random_fields import Rng, Size, smooth_field
from LiverXAILib.volumes.box import components

from .acquisition import acquire, limit_field_of_view
from .anatomy import add_table, change_anatomy
from .deformation import deformation, sample_at
from .distractors import add_appearances, add_structures, make_cirrhotic
from .repertoire import Repertoire, phases_of
from .tissues import NEIGHBORS, ContrastPhase, Patient, Tissue, draw_hu, draw_patient

_AIR = -1024.0
#: Fraction of the samples with synthesized intensities although the source has a CT, without and with tumors, which the
#: synthesis would lose.
_REDRAWN, _REDRAWN_WITH_TUMORS = 0.38, 0.1
#: Fraction of the phantoms whose liver becomes cirrhotic; the intensities of a real scan would not match the border.
_CIRRHOTIC = 0.3
#: Smallest number of liver voxels from which the HU of the liver can be estimated.
_LEAST_LIVER = 300


@dataclass(frozen=True)
class Source:
    """Anatomy for training, on an isotropic grid with axes (superior, posterior, left).

    :param ct: int16 (k, j, i) in HU, or None if only the anatomy is used (a phantom).
    :param tissues: uint8 (k, j, i), values of :class:`Tissue`; UNKNOWN is excluded from the loss.
    :param liver: bool (k, j, i), its vessels and lesions included.
    :param detailed: whether organs are labeled separately, so that each can change its contrast independently.
    :param weight: how often it is drawn.
    :param tumors: bool (k, j, i), in the liver: its labeled tumors, which are used in samples with its own CT.
    :param tumors_known: whether the rest of the liver is known to have none.
    :param phase: the contrast phase of its CT: native, arterial or portal; None: unknown.
    """

    name: str
    ct: np.ndarray | None
    tissues: np.ndarray
    liver: np.ndarray
    detailed: bool
    weight: float
    tumors: np.ndarray | None = None
    tumors_known: bool = True
    phase: str | None = None


@dataclass(frozen=True)
class Sample:
    """One training example: `image` float32 in HU; `liver` (lesions included) and `known` bool; all (D, H, W).

    :param lesions: uint8, lesions numbered from 1; or bool, all of them together.
    :param known: where the liver label is known.
    :param liver_hu: the liver's median HU, with an error as from a locator.
    :param tumor_unknown: bool (D, H, W): where, in addition, the tumor label is unknown; None: nowhere.
    """

    image: torch.Tensor
    liver: torch.Tensor
    lesions: torch.Tensor
    known: torch.Tensor
    liver_hu: float
    kind: str
    tumor_unknown: torch.Tensor | None = None

    @property
    def tumor(self) -> torch.Tensor:
        """Bool (D, H, W)."""
        return self.lesions > 0

    @property
    def tumor_known(self) -> torch.Tensor:
        """Bool (D, H, W): where the tumor label is known."""
        return self.known if self.tumor_unknown is None else self.known & ~self.tumor_unknown


#: The default model's sizes, divisible by 16. No axis is 16 or 32 long: if a level of the network is 2 voxels deep,
#: oneDNN's bfloat16 weight gradient of a convolution reads uninitialized memory (seen with torch 2.13 on AVX512-BF16).
#: Short scans come from the limited fields of view instead.
SIZES: tuple[tuple[Size, float], ...] = (
    ((48, 80, 96), 0.22),
    ((64, 80, 112), 0.26),
    ((48, 96, 112), 0.16),
    ((64, 96, 112), 0.12),
    ((48, 96, 128), 0.10),
    ((96, 80, 96), 0.06),
    ((80, 112, 128), 0.04),
    ((48, 128, 160), 0.02),
    ((112, 96, 112), 0.02),
)


class Generator:
    """Draws samples; the same `seed` gives the same sample whatever was drawn before.

    :param sources: real and phantom anatomy; at least one must show a liver.
    :param spacing_mm: voxel size of all sources.
    :param negative_fraction: fraction of samples centered on something other than liver.
    :param lesions: fraction of the samples with liver that get lesions.
    :param focus: fraction of the other samples centered near a voxel of the liver, wherever it lies in the scan: for a
        network whose input is only the liver's surroundings.
    :param sizes: sizes of the samples in voxels (superior, posterior, left) and how often each is drawn.
    :param repertoire: draws contrast phases, tumors with their appearance in them, and hard negatives; None: plain
        lesions.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        spacing_mm: float = 3.0,
        negative_fraction: float = 0.13,
        lesions: float = 0.85,
        focus: float = 0.0,
        sizes: Sequence[tuple[Size, float]] = SIZES,
        repertoire: Repertoire | None = None,
        redrawn: float = _REDRAWN,
    ) -> None:
        self.sources = list(sources)
        self.sizes = sizes
        self.spacing_mm = spacing_mm
        self.negative_fraction = negative_fraction
        self.lesions = lesions
        self.focus = focus
        self.repertoire = repertoire
        self.redrawn = redrawn
        self._weights = [s.weight if s.liver.any() else 0.0 for s in self.sources]
        self._tensors = [
            (
                torch.from_numpy(s.ct).float() if s.ct is not None else None,
                torch.from_numpy(s.tissues).float(),
                torch.from_numpy(s.liver).float(),
            )
            for s in self.sources
        ]
        self._own_hu = [_median_hu(s) for s in self.sources]
        self._liver_range = [_range(s.liver) for s in self.sources]
        self._liver_voxels = [torch.from_numpy(np.argwhere(s.liver)[::37].astype(np.int16)) for s in self.sources]

    def size_of(self, seed: int) -> Size:
        """The size that :meth:`sample` draws for `seed`."""
        return self.sizes[Rng(seed).choose([w for _, w in self.sizes])][0]

    # Long: the steps in which a sample is made, in their order, on which its random numbers depend.
    def sample(self, seed: int, size: Size | None = None, curriculum: float = 0.0) -> Sample:
        """Draw the sample of `seed`.

        :param size: (D, H, W) in voxels; random if None.
        :param curriculum: 0 to 1: how much larger and more conspicuous lesions are than at the end of training.
        """
        rng = Rng(seed)
        drawn = self.sizes[rng.choose([w for _, w in self.sizes])][0]
        size = size or drawn
        negative = rng.chance(self.negative_fraction)
        if negative and rng.chance(0.25):
            return self._head_or_nothing(rng, size)
        weights = [s.weight for s in self.sources] if negative else self._weights
        number = rng.choose(weights)
        source = self.sources[number]
        strength = rng.uniform(0.7, 1.6)
        points = deformation(rng, size, self._center(rng, number, size, negative), self.spacing_mm, strength)
        ct, tissue_map, liver_map = self._tensors[number]
        # The body is extended beyond the source's scan until the end of this one is simulated: otherwise blurring
        # would mix in air at the ends.
        tissues = sample_at(tissue_map, points, nearest=True).round().long()
        liver = sample_at(liver_map, points) > 0.5
        # The smooth liver border takes precedence; the tissues, from nearest neighbors, are adapted to it.
        tissues = torch.where(~liver & (tissues == Tissue.LIVER), torch.tensor(int(Tissue.SOFT)), tissues)
        last = torch.tensor(liver_map.shape) - 0.5
        outside = ((points < -0.5) | (points > last)).any(dim=-1)

        real = None
        if ct is not None:
            real = sample_at(ct, points)
        before = tissues
        own_tumors = source.tumors is not None
        tumors = self._own_tumors(number, points, liver) if own_tumors else torch.zeros_like(liver)
        tissues, liver = change_anatomy(rng, tissues, liver, self.spacing_mm)
        hard = self.repertoire is not None and rng.chance(self.repertoire.hard_negatives)
        if hard:
            add_structures(rng, tissues, liver, self.spacing_mm)
            if real is None and rng.chance(_CIRRHOTIC):
                make_cirrhotic(rng, tissues, liver, self.spacing_mm)
        # No structure may overlap a real tumor.
        tissues, liver = torch.where(tumors, before, tissues), liver | tumors
        painted = tissues != before

        patient = self._patient(rng, broad=rng.chance(0.25))
        hu, phase = patient.hu, patient.phase
        synthetic = real is None or rng.chance(_REDRAWN_WITH_TUMORS if own_tumors else self.redrawn)
        if synthetic:
            tumors = torch.zeros_like(liver)
        image = self._synthesize(rng, tissues, liver, patient)
        if not synthetic:
            assert real is not None
            if self.repertoire is not None:
                phases = phases_of(source.phase)
                phase = phases[rng.integer(len(phases))]
            shifted = real + self._contrast_shift(rng, number, tissues, hu)
            if liver.any() and rng.chance(0.4):  # few scans show veins as bright or as dark as they can be
                contrast = rng.uniform(20, 110) if rng.chance(0.65) else rng.uniform(-60, -15)
                shifted = shifted + _vessels(rng, liver & ~tumors, contrast)
            image = torch.where(painted, image, shifted)
        elif real is not None and source.detailed and rng.chance(0.4):
            keep = (tissues <= Tissue.GAS) | (tissues == Tissue.LUNG) | (tissues == Tissue.BOWEL)
            image = torch.where(keep & ~painted, real, image)

        lesions = torch.zeros(size, dtype=torch.uint8)
        if liver.any():
            image = image + liver * rng.uniform(0, 5) * smooth_field(rng, size, rng.uniform(5, 14))
            if rng.chance(self.lesions):
                healthy = liver & (tissues != Tissue.UNKNOWN) & ~outside & ~tumors
                image, lesions = self._paint(rng, image, healthy, phase, curriculum)
            if hard:
                image = add_appearances(rng, image, liver & ~tumors & (lesions == 0), self.spacing_mm, phase)
            lesions = numbered_on(lesions, tumors)
        image = acquire(rng, image, self.spacing_mm, synthetic=synthetic)
        seen = limit_field_of_view(rng, image) & ~outside
        image = torch.where(seen, image, torch.tensor(_AIR))
        kind = f"{source.name}, {'synthetic' if synthetic else 'real'}{', negative' if negative else ''}"
        liver = liver & seen
        liver_hu = _located_hu(rng, image[liver])
        unknown = liver & (lesions == 0) if not (source.tumors_known or synthetic) else None
        return Sample(image, liver, lesions * seen, (tissues != Tissue.UNKNOWN) | ~seen, liver_hu, kind, unknown)

    def _patient(self, rng: Rng, *, broad: bool = False) -> Patient:
        """Draw the appearance of a patient."""
        if self.repertoire is not None:
            return draw_patient(rng, broad=broad)
        hu, texture = draw_hu(rng, broad=broad)
        return Patient(ContrastPhase.PORTAL, hu, texture, 0.0)

    def _paint(
        self, rng: Rng, image: torch.Tensor, healthy: torch.Tensor, phase: ContrastPhase, curriculum: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Paint lesions into the healthy liver; return the new image, and the numbered lesions."""
        if self.repertoire is None:
            return add_lesions(rng, image, healthy, self.spacing_mm, curriculum)
        return self.repertoire.add_lesions(rng, image, healthy, self.spacing_mm, phase, curriculum)

    def _own_tumors(self, number: int, points: torch.Tensor, liver: torch.Tensor) -> torch.Tensor:
        """Bool (D, H, W): the source's labeled tumors in the sample."""
        tumors = self.sources[number].tumors
        assert tumors is not None
        return (sample_at(torch.from_numpy(tumors).float(), points) > 0.5) & liver

    def _center(self, rng: Rng, number: int, size: Size, negative: bool) -> torch.Tensor:
        """Draw the source voxel (k, j, i) at the center of the sample."""
        shape = self.sources[number].tissues.shape
        if not negative and self.focus and rng.chance(self.focus):
            voxels = self._liver_voxels[number]
            return voxels[rng.integer(len(voxels))].float() + 12 / self.spacing_mm * rng.normal(3)
        center = torch.tensor([(n - 1) / 2 for n in shape])
        for axis in (1, 2):
            slack = max(0.0, (shape[axis] - size[axis]) / 2)
            center[axis] += rng.uniform(-1, 1) * slack + rng.uniform(-8, 8)
        low, high = self._liver_range[number] or (0, 0)
        if negative:
            # Slices away from the liver, if there are enough; any liver at the border is labeled.
            below, above = low, shape[0] - 1 - high if self._liver_range[number] else shape[0]
            start, length = (high, above) if rng.uniform(0, below + above + 1e-6) < above else (0, below)
            center[0] = start + rng.uniform(0.35, 0.75) * max(length, 1)
        elif rng.chance(0.75):
            center[0] = rng.uniform(low, high + 1)
        return center

    def _synthesize(self, rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, patient: Patient) -> torch.Tensor:
        """Synthesize a noise-free scan: each tissue's HU and texture, and the liver's vessels."""
        hu, texture = patient.hu, patient.texture
        size = (tissues.shape[0], tissues.shape[1], tissues.shape[2])
        image = hu[tissues] + texture[tissues] * smooth_field(rng, size, rng.uniform(1.6, 4))
        plain_liver = liver & ((tissues == Tissue.LIVER) | (tissues == Tissue.UNKNOWN))
        image = torch.where(plain_liver, hu[Tissue.LIVER] + 0 * image, image)
        if plain_liver.any():
            parenchyma = float(texture[Tissue.LIVER]) * smooth_field(rng, size, rng.uniform(2, 8))
            image = torch.where(plain_liver, image + parenchyma, image)
            if rng.chance(0.75):
                image = image + _vessels(rng, plain_liver, float(hu[Tissue.PORTAL_VEIN] - hu[Tissue.LIVER]))
            if self.repertoire is not None and rng.chance(0.6):
                image = image + _vessels(rng, plain_liver, patient.hepatic_veins)
        oral = (tissues == Tissue.STOMACH) | (tissues == Tissue.BOWEL)
        if rng.chance(0.25) and oral.any():
            filled = oral & (smooth_field(rng, size, 8) > rng.uniform(-0.5, 1))
            image = torch.where(filled, image + rng.uniform(60, 300), image)
        return image

    def _contrast_shift(self, rng: Rng, number: int, tissues: torch.Tensor, hu: torch.Tensor) -> torch.Tensor:
        """The change that gives a real image the appearance of another contrast phase."""
        shift = torch.zeros(len(Tissue))
        own = self._own_hu[number]
        if self.sources[number].detailed and rng.chance(0.55):
            for tissue in _SHIFTED:
                if not torch.isnan(own[tissue]):
                    shift[tissue] = hu[tissue] - own[tissue]
        else:
            shift[Tissue.LIVER] = rng.uniform(-22, 22)
            other = rng.uniform(-10, 10)
            gap = float(own[Tissue.LIVER] + shift[Tissue.LIVER] - own[Tissue.SOFT])
            if math.isfinite(gap) and rng.chance(0.25):  # muscle, bowel and heart approach the liver's HU
                other = gap * rng.uniform(0.3, 1)
            for tissue in (Tissue.SOFT, Tissue.ENHANCED, Tissue.SPLEEN, Tissue.UNKNOWN):
                shift[tissue] = other + rng.uniform(-8, 8)
            shift[Tissue.UNKNOWN] = shift[Tissue.LIVER]
        return shift[tissues]

    def _head_or_nothing(self, rng: Rng, size: Size) -> Sample:
        """A head of ellipsoids, or an empty scanner."""
        tissues = torch.full(size, int(Tissue.AIR))
        head = rng.chance(0.85)
        if head:
            axes = [torch.arange(n, dtype=torch.float32) - n / 2 - rng.uniform(-0.1, 0.1) * n for n in size]
            k, j, i = torch.meshgrid(*axes, indexing="ij")
            mm = self.spacing_mm
            r = torch.tensor([rng.uniform(85, 105), rng.uniform(88, 105), rng.uniform(68, 82)]) / mm
            bump = 0.04 * smooth_field(rng, size, 8)
            distance = ((k / r[0]) ** 2 + (j / r[1]) ** 2 + (i / r[2]) ** 2).sqrt() + bump
            face = (k < -0.1 * r[0]) & (j < 0.3 * r[1])
            neck = (k < -0.6 * r[0]) & ((j / r[1] - 0.1) ** 2 + (i / r[2]) ** 2 < 0.5)
            tissues[neck | (distance < 1)] = int(Tissue.SOFT)
            tissues[(distance < 0.94)] = int(Tissue.BONE)
            tissues[(distance < 0.87)] = int(Tissue.BRAIN)
            inner = (smooth_field(rng, size, 10) > 0.9) & (distance < 0.4)
            tissues[inner] = int(Tissue.FLUID)
            cavities = smooth_field(rng, size, 6)
            tissues[face & (distance < 0.9)] = int(Tissue.SOFT)
            tissues[face & (distance < 0.9) & (cavities > 0.7)] = int(Tissue.GAS)
            tissues[face & (distance < 0.95) & (cavities < -0.8)] = int(Tissue.BONE)
        if not head or rng.chance(0.5):  # never empty: a constant image has no statistics to normalize by
            add_table(rng, tissues)
        patient = self._patient(rng)
        none = torch.zeros(size, dtype=torch.bool)
        image = acquire(rng, self._synthesize(rng, tissues, none, patient), self.spacing_mm, synthetic=True)
        image = torch.where(limit_field_of_view(rng, image), image, torch.tensor(_AIR))
        return Sample(image, none, none, torch.ones_like(none), _located_hu(rng, image[none]), "head or nothing")


#: Tissues that get another contrast phase's HU in a real image.
_SHIFTED = (*NEIGHBORS, Tissue.ENHANCED, Tissue.LIVER, Tissue.AORTA, Tissue.PORTAL_VEIN, Tissue.ADRENAL)


def _located_hu(rng: Rng, liver: torch.Tensor) -> float:
    """The median HU of a liver as found by an imperfect locator; a random value if there is hardly any liver.

    :param liver: (voxels,) in HU.
    """
    if len(liver) < _LEAST_LIVER:
        return rng.uniform(30, 150)
    return float(liver[:: 1 + len(liver) // 20_000].median()) + (20 if rng.chance(0.1) else 6) * float(rng.normal(1))


def numbered_on(lesions: torch.Tensor, tumors: torch.Tensor) -> torch.Tensor:
    """`lesions`, uint8, with the connected parts of `tumors`, bool, as further numbers."""
    if not tumors.any():
        return lesions
    parts = torch.from_numpy(components(tumors.numpy(), corners=True)).int()
    first = int(lesions.max())
    return torch.where(tumors & (lesions == 0), (parts + first).clamp_max(255), lesions.int()).to(torch.uint8)


def _median_hu(source: Source) -> torch.Tensor:
    """Each tissue's median HU in the source's own CT; NaN for missing tissues."""
    medians = torch.full((len(Tissue),), float("nan"))
    if source.ct is not None:
        for tissue in Tissue:
            where = source.tissues == tissue
            if where.sum() > 30:
                medians[tissue] = float(np.median(source.ct[where]))
    return medians


def _range(mask: np.ndarray) -> tuple[int, int] | None:
    """First and last slice of `mask`."""
    hit = np.flatnonzero(mask.any(axis=(1, 2)))
    return (int(hit[0]), int(hit[-1])) if hit.size else None


def _vessels(rng: Rng, liver: torch.Tensor, contrast: float) -> torch.Tensor:
    """The change by the liver's vessels, in HU: `contrast` inside them.

    Vessels are tubes around the curves on which two smooth random fields are both zero. In native and fatty livers they
    are darker or brighter than the liver, but are never labeled as lesions.
    """
    size = (liver.shape[0], liver.shape[1], liver.shape[2])
    tubes = [(rng.uniform(11, 18), rng.uniform(0.5, 1.6)), (7.0, rng.uniform(0.3, 0.7))]
    if rng.chance(0.4):  # as wide as the portal vein and the hepatic veins near the vena cava
        tubes.append((rng.uniform(24, 36), rng.uniform(1.5, 3.0)))
    added = torch.zeros(size)
    for wave, radius in tubes:
        first, second = smooth_field(rng, size, wave), smooth_field(rng, size, wave)
        distance = (first**2 + second**2).sqrt() * wave / 1.6
        added = torch.maximum(added, ((radius - distance) + 0.5).clamp(0, 1) * liver)
    return contrast * added
