# SPDX-License-Identifier: Apache-2.0
"""Training samples: a source's anatomy, deformed, given new intensities and lesions, and scanned again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from LiverXAILib.training.lesion_painting import add_lesions
from LiverXAILib.training.random_fields import Rng, Size, smooth_field
from LiverXAILib.volumes.box import Box

from .acquisition import acquire, limit_field_of_view
from .deformation import deformation, sample_at
from .tissues import NEIGHBORS, Tissue, draw_hu

_AIR = -1024.0
#: A liver of less than so many voxels says little about its HU.
_LEAST_LIVER = 300


@dataclass(frozen=True)
class Source:
    """Anatomy to learn from, on an isotropic grid with axes (superior, posterior, left).

    :param ct: int16 (k, j, i) in HU, or None where only the anatomy is used (a phantom).
    :param tissues: uint8 (k, j, i), values of :class:`Tissue`; UNKNOWN is excluded from the loss.
    :param liver: bool (k, j, i), its vessels and lesions included.
    :param detailed: organs are labelled one by one, so that each may change its contrast on its own.
    :param weight: how often it is drawn.
    """

    name: str
    ct: np.ndarray | None
    tissues: np.ndarray
    liver: np.ndarray
    detailed: bool
    weight: float


@dataclass(frozen=True)
class Sample:
    """One training example: `image` float32 in HU; `liver` (lesions included) and `known` bool; all (D, H, W).

    :param lesions: uint8, lesions numbered from 1; or bool, all of them as one.
    :param liver_hu: what the locator would say: the liver's median HU, not quite.
    """

    image: torch.Tensor
    liver: torch.Tensor
    lesions: torch.Tensor
    known: torch.Tensor
    liver_hu: float
    kind: str

    @property
    def tumor(self) -> torch.Tensor:
        """Bool (D, H, W)."""
        return self.lesions > 0


#: The default model's sizes, divisible by 16. No axis is 16 or 32 long:
#: where a level of the network is 2 voxels deep, oneDNN's bfloat16 weight gradient of a convolution reads memory that
#: was never written (seen with torch 2.13 on AVX512-BF16). Short scans come from the limited fields of view instead.
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
    :param negative_fraction: share of samples around something that is not liver.
    :param lesions: share of the samples with liver that get lesions.
    :param focus: share of the other samples whose middle is near a voxel of the liver, wherever it lies in the scan:
        for a network that sees the liver's surroundings only.
    :param sizes: sizes of the samples in voxels (superior, posterior, left) and how often each is drawn.
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
    ) -> None:
        self.sources = list(sources)
        self.sizes = sizes
        self.spacing_mm = spacing_mm
        self.negative_fraction = negative_fraction
        self.lesions = lesions
        self.focus = focus
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

    def sample(self, seed: int, size: Size | None = None, curriculum: float = 0.0) -> Sample:
        """The sample of `seed`.

        :param size: (D, H, W) in voxels; drawn if None.
        :param curriculum: 0 to 1, how much larger and clearer lesions are than they will be: where training begins.
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
        # The body goes on beyond the source's scan until this one ends there, too: no scanner blurs air into an end.
        tissues = sample_at(tissue_map, points, nearest=True).round().long()
        liver = sample_at(liver_map, points) > 0.5
        # The smooth liver border decides; nearest-neighbor tissues follow it.
        tissues = torch.where(~liver & (tissues == Tissue.LIVER), torch.tensor(int(Tissue.SOFT)), tissues)
        last = torch.tensor(liver_map.shape) - 0.5
        outside = ((points < -0.5) | (points > last)).any(dim=-1)

        real = None
        if ct is not None:
            real = sample_at(ct, points)
        before = tissues
        tissues, liver = self._anatomy(rng, tissues, liver)
        painted = tissues != before

        hu, texture = draw_hu(rng, broad=rng.chance(0.25))
        synthetic = real is None or rng.chance(0.38)
        image = self._synthesize(rng, tissues, liver, hu, texture)
        if not synthetic:
            assert real is not None
            shifted = real + self._contrast_shift(rng, number, tissues, hu)
            if liver.any() and rng.chance(0.4):  # few of the scans show veins as bright, or as dark, as they can be
                contrast = rng.uniform(20, 110) if rng.chance(0.65) else rng.uniform(-60, -15)
                shifted = shifted + _vessels(rng, liver, contrast)
            image = torch.where(painted, image, shifted)
        elif real is not None and source.detailed and rng.chance(0.4):
            keep = (tissues <= Tissue.GAS) | (tissues == Tissue.LUNG) | (tissues == Tissue.BOWEL)
            image = torch.where(keep & ~painted, real, image)

        lesions = torch.zeros(size, dtype=torch.uint8)
        if liver.any():
            image = image + liver * rng.uniform(0, 5) * smooth_field(rng, size, rng.uniform(5, 14))
            if rng.chance(self.lesions):
                healthy = liver & (tissues != Tissue.UNKNOWN) & ~outside
                image, lesions = add_lesions(rng, image, healthy, self.spacing_mm, curriculum)
        image = acquire(rng, image, self.spacing_mm, synthetic=synthetic)
        seen = limit_field_of_view(rng, image) & ~outside
        image = torch.where(seen, image, torch.tensor(_AIR))
        kind = f"{source.name}, {'synthetic' if synthetic else 'real'}{', negative' if negative else ''}"
        liver_hu = _located_hu(rng, image[liver & seen])
        return Sample(image, liver & seen, lesions * seen, (tissues != Tissue.UNKNOWN) | ~seen, liver_hu, kind)

    def _center(self, rng: Rng, number: int, size: Size, negative: bool) -> torch.Tensor:
        """The source voxel (k, j, i) in the middle of the sample."""
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
            # Slices away from the liver, if there are enough; whatever liver remains at the border is labelled.
            below, above = low, shape[0] - 1 - high if self._liver_range[number] else shape[0]
            start, length = (high, above) if rng.uniform(0, below + above + 1e-6) < above else (0, below)
            center[0] = start + rng.uniform(0.35, 0.75) * max(length, 1)
        elif rng.chance(0.75):
            center[0] = rng.uniform(low, high + 1)
        return center

    def _anatomy(self, rng: Rng, tissues: torch.Tensor, liver: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Things that look like lesions but are none, and parts that lie beside a body."""
        tissues = tissues.clone()
        liver = liver.clone()
        size = (tissues.shape[0], tissues.shape[1], tissues.shape[2])
        if liver.any():
            if rng.chance(0.15):
                _gallbladder(rng, tissues, liver, self.spacing_mm)
            if rng.chance(0.2):  # fissures: thin sheets of fat that belong to nobody
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
            _arms(rng, tissues, self.spacing_mm)
        if rng.chance(0.20):
            _table(rng, tissues)
        return tissues, liver

    def _synthesize(
        self, rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, hu: torch.Tensor, texture: torch.Tensor
    ) -> torch.Tensor:
        """Intensities of a noise-free scan: each tissue's HU, its texture, and the liver's vessels."""
        size = (tissues.shape[0], tissues.shape[1], tissues.shape[2])
        image = hu[tissues] + texture[tissues] * smooth_field(rng, size, rng.uniform(1.6, 4))
        plain_liver = liver & ((tissues == Tissue.LIVER) | (tissues == Tissue.UNKNOWN))
        image = torch.where(plain_liver, hu[Tissue.LIVER] + 0 * image, image)
        if plain_liver.any():
            parenchyma = float(texture[Tissue.LIVER]) * smooth_field(rng, size, rng.uniform(2, 8))
            image = torch.where(plain_liver, image + parenchyma, image)
            if rng.chance(0.75):
                image = image + _vessels(rng, plain_liver, float(hu[Tissue.PORTAL_VEIN] - hu[Tissue.LIVER]))
        oral = (tissues == Tissue.STOMACH) | (tissues == Tissue.BOWEL)
        if rng.chance(0.25) and oral.any():
            filled = oral & (smooth_field(rng, size, 8) > rng.uniform(-0.5, 1))
            image = torch.where(filled, image + rng.uniform(60, 300), image)
        return image

    def _contrast_shift(self, rng: Rng, number: int, tissues: torch.Tensor, hu: torch.Tensor) -> torch.Tensor:
        """What to add to a real image so that it looks as in another contrast phase."""
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
            if math.isfinite(gap) and rng.chance(0.25):  # muscle, bowel and heart come near the liver's HU
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
        if not head or rng.chance(0.5):  # never nothing at all: a constant image has no statistics to normalize by
            _table(rng, tissues)
        hu, texture = draw_hu(rng)
        none = torch.zeros(size, dtype=torch.bool)
        image = acquire(rng, self._synthesize(rng, tissues, none, hu, texture), self.spacing_mm, synthetic=True)
        image = torch.where(limit_field_of_view(rng, image), image, torch.tensor(_AIR))
        return Sample(image, none, none, torch.ones_like(none), _located_hu(rng, image[none]), "head or nothing")


#: What gets another contrast phase's HU in a real image.
_SHIFTED = (*NEIGHBORS, Tissue.ENHANCED, Tissue.LIVER, Tissue.AORTA, Tissue.PORTAL_VEIN, Tissue.ADRENAL)


def _located_hu(rng: Rng, liver: torch.Tensor) -> float:
    """The median of the voxels of a liver as a locator that errs would find it; of hardly any liver it says anything.

    :param liver: (voxels,) in HU.
    """
    if len(liver) < _LEAST_LIVER:
        return rng.uniform(30, 150)
    return float(liver[:: 1 + len(liver) // 20_000].median()) + (20 if rng.chance(0.1) else 6) * float(rng.normal(1))


def _median_hu(source: Source) -> torch.Tensor:
    """Each tissue's median in the source's own CT; NaN where there is none."""
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
    """What the liver's vessels add to an image, in HU: `contrast` inside them.

    Tubes around the curves where two smooth random fields vanish together. In native and fatty livers they are darker
    or brighter than the liver, and never a lesion.
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


def _gallbladder(rng: Rng, tissues: torch.Tensor, liver: torch.Tensor, spacing_mm: float) -> None:
    """Lay a pear-shaped gallbladder into the liver's lower surface (in place)."""
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
    """Arms beside the body (in place), where there is air."""
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


def _table(rng: Rng, tissues: torch.Tensor) -> None:
    """A curved shell under the patient (in place), where there is air."""
    body = (tissues != Tissue.AIR) & (tissues != Tissue.TABLE)
    rows = body.any(dim=0).any(dim=1).nonzero()
    bottom = int(rows[-1]) if len(rows) else int(0.7 * tissues.shape[1])
    i = torch.arange(tissues.shape[2], dtype=torch.float32) - tissues.shape[2] / 2
    top = bottom + rng.uniform(0, 4) - rng.uniform(0, 0.006) * i**2
    j = torch.arange(tissues.shape[1], dtype=torch.float32)[:, None]
    thick = rng.uniform(4, 14)
    sheet = ((j - top).abs() < 0.6) | ((j - top - thick).abs() < 0.6)
    tissues[sheet[None] & (tissues == Tissue.AIR)] = int(Tissue.TABLE)
