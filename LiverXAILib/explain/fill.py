# SPDX-License-Identifier: Apache-2.0
"""Plausible fill: a region of a CT is replaced by other tissue of the same patient.

A blurred lesion is still a lesion: it is darker than the liver, only with softer edges. To test the network *without*
the lesion, the lesion is replaced by healthy liver of the same patient: at the level (median HU) of the healthy liver
around it, with the texture and noise of a place of the same shape elsewhere in the healthy liver, blended in with a
soft edge. Other regions are replaced by the tissue that prevails at their border (air, fat or soft tissue).

Replacement by tissue of the same image follows counterfactual inpainting (COIN, https://arxiv.org/abs/2404.12832); a
generative model is not needed, because plain liver is available in nearly every patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil

import numpy as np
import SimpleITK as sitk
import torch

from ..errors import UsageError
from ..labels.vocabulary import liver_segment
from ..volumes.box import Box, bounding_box
from .stage_context import StageContext, gaussian

#: HU ranges of the tissues that can prevail at a region's border.
TISSUES_HU = {"air": (-1100.0, -300.0), "fat": (-200.0, -20.0), "soft tissue": (-20.0, 200.0)}
#: The level is taken from donor tissue within this distance of the region.
_RING_MM = 12.0
#: If the ring has fewer voxels, the level is taken from all donor voxels instead.
_RING_VOXELS = 50
#: Standard deviation of the soft edge, in voxels.
_FEATHER = 0.7
#: Voxels to which the soft edge gives less weight than this are not replaced.
_EDGE = 0.05
#: How many places are tried to cover a region that fits nowhere as a whole; the rest is filled with synthetic noise.
_PATCHES = 4
#: Of the places where a region fits equally well, one of this many nearest is chosen at random.
_NEAREST = 64
#: Places fit equally well if they differ by no more than this fraction of the region.
_FIT = 0.01
#: Liver that deviates by more than this many robust standard deviations after smoothing is not plain liver.
_OUTLIER, _SMOOTH_MM = 2.5, 2.0
#: Standard deviation of a normal distribution, in median absolute deviations.
_MAD = 1.4826
#: Fewest donor voxels from which texture can be taken.
_DONORS = 100


@dataclass(frozen=True, eq=False)
class Fill:
    """An image in which a region was replaced.

    :param image: float32 (k, j, i), HU.
    :param weight: float32 in [0, 1]: how much of each voxel was replaced.
    :param level_hu: of the tissue that replaces the region.
    :param ring: whether the level is that of the region's surroundings; otherwise that of all donor tissue.
    :param fitted: the fraction of the region whose texture was found in one piece elsewhere.
    """

    image: torch.Tensor = field(repr=False)
    weight: torch.Tensor = field(repr=False)
    level_hu: float
    ring: bool
    fitted: float


def plausible_fill(
    image: torch.Tensor,
    region: torch.Tensor,
    donor: torch.Tensor,
    spacing_mm: Sequence[float],
    seed: int = 0,
    margin: int = 2,
) -> Fill:
    """Replace `region` of `image` by tissue like that in `donor`.

    :param image: float32 (k, j, i), HU.
    :param region: bool (k, j, i): what is to be removed.
    :param donor: bool (k, j, i): tissue that may replace it; voxels within ``margin + 1`` voxels of the region are
        excluded.
    :param spacing_mm: along the tensor's axes (k, j, i).
    :param seed: a different seed takes the texture from a different place.
    :param margin: by how many voxels the region is grown first. A lesion's border is blurred over about two voxels
        (partial volume and resampling), and a network may recognize a lesion by what is left of its border.
    :raises LiverXAILib.errors.UsageError: there is no tissue that could replace the region.
    """
    generator = torch.Generator().manual_seed(seed)
    voxel = max(spacing_mm)
    weight = soft_mask(region, spacing_mm, margin)
    distance = distance_mm(region, spacing_mm, _RING_MM + voxel)
    donor = donor & (distance > voxel * (margin + 1.01))
    if int(donor.sum()) < _DONORS:
        raise UsageError("There is too little healthy tissue in this image to replace the region with.")
    ring = donor & (distance <= _RING_MM + voxel)
    enough = int(ring.sum()) >= _RING_VOXELS
    level = float(image[ring if enough else donor].median())
    residual, fitted = _texture(image, weight > 0, donor, generator)
    filled = image + weight * (level + residual - image)
    return Fill(filled, weight, level, enough, fitted)


def soft_mask(region: torch.Tensor, spacing_mm: Sequence[float], margin: int = 1) -> torch.Tensor:
    """`region`, grown by `margin` voxels, with a soft edge: float32 (k, j, i) in [0, 1], 1 in the region itself."""
    grown = within_mm(region, spacing_mm, max(spacing_mm) * (margin + 0.01))
    weight = torch.maximum(gaussian(grown.float(), [_FEATHER] * 3), region.float())
    return torch.where(weight > _EDGE, weight, 0.0)


def healthy_liver(run: StageContext) -> torch.Tensor:
    """The donors for lesions: plain liver, bool (k, j, i), as in ``run.image``.

    It lies at least one voxel inside the organ and two voxels from everything else that is labeled (lesions, vessels;
    but not liver segments), and it looks like the rest of the liver: large vessels and missed lesions differ from the
    median by more than 2.5 standard deviations after smoothing.
    """
    voxel = max(run.spacing)
    healthy = ~within_mm(~run.mask(run.organ), run.spacing, 1.01 * voxel)
    for spec in run.segmentation.specs:
        if spec.name != run.organ and liver_segment(spec.name) is None:
            healthy &= ~within_mm(run.mask(spec.name), run.spacing, 2.01 * voxel)
    if healthy.any():
        smooth = gaussian(run.hu, [_SMOOTH_MM / size for size in run.spacing])
        difference = (smooth - smooth[healthy].median()).abs()
        healthy &= difference <= _OUTLIER * _MAD * difference[healthy].median()
    return healthy


def border_tissue(image: torch.Tensor, region: torch.Tensor, spacing_mm: Sequence[float]) -> torch.Tensor:
    """The donors for a region outside the liver: the tissue of :data:`TISSUES_HU` that prevails at its border.

    :return: bool (k, j, i): that tissue anywhere in `image`, except in the region and within two voxels of it, because
        an organ may have the same HU as the tissue around it.
    """
    distance = distance_mm(region, spacing_mm)
    outside = distance > 2.01 * max(spacing_mm)
    around = outside & (distance <= _RING_MM)
    masks = [(image >= low) & (image < high) for low, high in TISSUES_HU.values()]
    return max(masks, key=lambda mask: int((mask & around).sum())) & outside


def plain_tissue(run: StageContext, region: torch.Tensor, label: str, seed: int = 0) -> tuple[float, torch.Tensor]:
    """An image that shows plain tissue everywhere, with which any part of the image of `run` can be replaced.

    For a lesion this is liver like that around it, for anything else the tissue that prevails at its border. Where the
    image already shows that tissue, it is kept, shifted to the level.

    :param region: bool (k, j, i): where `label` is, as in ``run.image``.
    :return: the level in HU, and the image as network input.
    :raises LiverXAILib.errors.UsageError: there is no such tissue.
    """
    hu = run.hu
    is_lesion = any(spec.name == label and spec.is_lesion for spec in run.segmentation.specs)
    donor = healthy_liver(run) if is_lesion else border_tissue(hu, region, run.spacing)
    fill = plausible_fill(hu, region, donor, run.spacing, seed)
    return fill.level_hu, run.from_hu(isolate(hu, torch.zeros_like(hu), fill.level_hu, donor, seed))


def transplant(
    image: torch.Tensor, weight: torch.Tensor, fill: Fill, donor: torch.Tensor, spacing_mm: Sequence[float]
) -> tuple[torch.Tensor, tuple[int, int, int]] | None:
    """Move a region that `fill` removed from `image` to the deepest place in `donor` where it fits.

    Deepest means farthest from everything that is not donor tissue. The region keeps its difference from the level of
    its surroundings and is shifted to the level at the new place.

    :param weight: the region, as of :func:`soft_mask`.
    :return: the image with the region at the new place instead of the old one, and the offset (k, j, i) in voxels;
        None if it fits nowhere.
    """
    shape = weight > 0
    box, offsets, misfit = _places(shape, donor & ~shape)
    if misfit.min() > _FIT * float(shape.sum()):
        return None
    depth = -distance_mm(donor, spacing_mm)
    deepest = _correlate(shape[box].float(), depth)
    deepest = torch.where(misfit <= _FIT * float(shape.sum()), deepest, -torch.inf)
    index = int(deepest.argmax())
    target = np.unravel_index(index, deepest.shape)
    there = tuple(slice(int(start), int(start) + n) for start, n in zip(target, shape[box].shape, strict=True))
    level = float(fill.image[there][weight[box] > 0.5].median())
    moved = fill.image.clone()
    moved[there] += weight[box] * (level + (image[box] - fill.level_hu) - moved[there])
    k, j, i = (int(start) - offset for start, offset in zip(target, offsets, strict=True))
    return moved, (k, j, i)


def isolate(
    image: torch.Tensor, weight: torch.Tensor, level_hu: float, donor: torch.Tensor, seed: int = 0
) -> torch.Tensor:
    """A region of `image` in plain liver: everything else that is not `donor` tissue is replaced.

    :param weight: the region, as of :func:`soft_mask`.
    :param level_hu: of the liver.
    :return: float32 (k, j, i), HU.
    """
    generator = torch.Generator().manual_seed(seed)
    residual, _ = _texture(image, torch.ones_like(donor), donor & (weight == 0), generator)
    plain = level_hu + residual
    return plain + weight * (image - plain)


def _texture(
    image: torch.Tensor, shape: torch.Tensor, donor: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, float]:
    """Differences from the level for the voxels of `shape`, and the fraction of them found in one piece."""
    residual = torch.zeros_like(image)
    missing, total, fitted = shape.clone(), float(shape.sum()), 0.0
    for turn in range(_PATCHES):
        box, offsets, misfit = _places(missing, donor)
        best = (misfit <= misfit.min() + _FIT * total).nonzero()
        squared = (best - torch.tensor(offsets)).square().sum(dim=1)
        if len(best) > _NEAREST:  # sorting a part of them is faster than sorting all
            close = squared <= squared.kthvalue(_NEAREST).values
            best, squared = best[close], squared[close]
        nearest = squared.argsort(stable=True)[:_NEAREST]
        start = best[nearest[int(torch.randint(len(nearest), (1,), generator=generator))]].tolist()
        there = tuple(slice(low, low + n) for low, n in zip(start, missing[box].shape, strict=True))
        usable = missing[box] & donor[there]
        if not usable.any():
            break
        values = image[there][usable]
        residual[box][usable] = values - values.median()
        missing[box] &= ~usable
        if turn == 0:
            fitted = float(usable.sum()) / total
        if not missing.any():
            return residual, fitted
    values = image[donor]
    noise = gaussian(torch.randn(image.shape, generator=generator), [_FEATHER] * 3)
    spread = float((values - values.median()).abs().median()) * _MAD
    residual[missing] = (noise / noise.std() * spread)[missing]
    return residual, fitted


def _places(shape: torch.Tensor, donor: torch.Tensor) -> tuple[Box, list[int], torch.Tensor]:
    """The box of `shape`, its first voxel, and how many voxels of `shape` are not `donor` when its box starts there."""
    box = bounding_box(shape.numpy())
    assert box is not None
    return box, [side.start for side in box], _correlate(shape[box].float(), (~donor).float())


def _correlate(pattern: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """``sum_x pattern(x) image(s + x)`` for every s at which the pattern lies inside `image`, by FFT."""
    if pattern.shape == image.shape:
        return (pattern * image).sum()[None, None, None]
    # FFTs of sizes without large prime factors are several times faster.
    sizes = [_fast_size(n) for n in image.shape]
    spectrum = torch.fft.rfftn(image, sizes) * torch.fft.rfftn(pattern, sizes).conj()
    a, b, c = (n - m + 1 for n, m in zip(image.shape, pattern.shape, strict=True))
    return torch.fft.irfftn(spectrum, sizes)[:a, :b, :c]


def _fast_size(n: int) -> int:
    """The next multiple of 16."""
    return 16 * ceil(n / 16)


def distance_mm(mask: torch.Tensor, spacing_mm: Sequence[float], reach_mm: float | None = None) -> torch.Tensor:
    """Distance in mm of each voxel's center from the nearest voxel of `mask`; negative inside, from the outside.

    :param reach_mm: distances up to this are needed; larger ones are not computed and may be infinite.
    """
    distance = torch.full(mask.shape, torch.inf)
    box = bounding_box(mask.numpy())
    if box is None:
        return distance
    if reach_mm is not None:
        box = box.grown([ceil(reach_mm / size) + 1 for size in spacing_mm], mask.shape)
        if box.shape != tuple(mask.shape):
            distance[box] = distance_mm(mask[box], spacing_mm)
            return distance
    image = sitk.GetImageFromArray(mask.numpy().astype(np.uint8))
    image.SetSpacing(tuple(float(size) for size in reversed(spacing_mm)))
    return torch.from_numpy(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True)))


def within_mm(mask: torch.Tensor, spacing_mm: Sequence[float], reach_mm: float) -> torch.Tensor:
    """Where :func:`distance_mm` is at most `reach_mm`; several times faster for a reach of one or two voxels."""
    near = mask.clone()
    box = bounding_box(mask.numpy())
    if box is None:
        return near
    reach = [int(reach_mm / size) for size in spacing_mm]
    box = box.grown(reach, mask.shape)
    padded = torch.nn.functional.pad(mask[box], [n for side in reversed(reach) for n in (side, side)])
    for step in product(*(range(-side, side + 1) for side in reach)):
        if any(step) and sum((n * size) ** 2 for n, size in zip(step, spacing_mm, strict=True)) <= reach_mm**2:
            near[box] |= padded[
                tuple(slice(side + n, side + n + size) for side, n, size in zip(reach, step, box.shape, strict=True))
            ]
    return near
