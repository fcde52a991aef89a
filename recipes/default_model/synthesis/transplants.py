# SPDX-License-Identifier: Apache-2.0
"""Real tumors transplanted into other livers: cut out with their rim and texture, deformed, rescaled, blended in.

Traces of the transplantation are avoided: its noise is matched to that of the image, HU are relative to each liver's
median, and the change fades out within a rim of liver that was cut out with the tumor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from LiverXAILib.training.lesion_painting import image_noise, smoothed_inside
from LiverXAILib.training.random_fields import Rng, gaussian_blur, rotation_matrix, smooth_field
from LiverXAILib.volumes.box import Box, bounding_box, components, largest_component

from .anatomy import dilate
from .deformation import sample_at

#: Margin with which a tumor is cut out.
_RIM_MM = 8.0
#: Distance from the tumor's border over which the change fades out.
_FADE_MM = (2.0, 5.0)
#: Range of diameters in the new liver.
_SMALLEST_MM, _LARGEST_MM = 8.0, 80.0
#: Smallest mean contrast of a tumor to the liver, in HU: nobody would have labeled less.
_LEAST_CONTRAST = 9.0
#: Smaller components of a label are fragments, not tumors.
_LEAST_ML = 0.5


@dataclass(frozen=True, eq=False)
class Graft:
    """A real tumor, (k, j, i) on an isotropic grid.

    :param hu: float32, HU relative to the median of its liver; surroundings that are not liver are 0.
    :param tumor: bool.
    :param phase: contrast phase of its CT.
    """

    hu: torch.Tensor
    tumor: torch.Tensor
    spacing_mm: float
    phase: str | None
    name: str

    @property
    def diameter_mm(self) -> float:
        """Diameter of a sphere of the same volume."""
        return float((6 * int(self.tumor.sum()) / math.pi) ** (1 / 3) * self.spacing_mm)


def cut_out(
    ct: np.ndarray, liver: np.ndarray, tumors: np.ndarray, spacing_mm: float, phase: str | None, name: str
) -> list[Graft]:
    """Cut out the tumors of a scan, (k, j, i), the largest first."""
    numbers = components(tumors, corners=True)
    volumes = np.bincount(numbers.ravel()) * spacing_mm**3 / 1000
    healthy = float(np.median(ct[liver & ~tumors]))
    grafts = []
    for number in np.argsort(-volumes[1:]) + 1:
        if volumes[number] < _LEAST_ML:
            break
        box = bounding_box(numbers == number)
        assert box is not None
        box = box.grown((round(_RIM_MM / spacing_mm),) * 3, ct.shape)
        # Other tumors do not belong to the rim.
        mine = liver[box] & ((numbers[box] == number) | (numbers[box] == 0))
        hu = _inside(torch.from_numpy(ct[box].astype(np.float32)) - healthy, torch.from_numpy(mine))
        grafts.append(Graft(hu, torch.from_numpy(numbers[box] == number), spacing_mm, phase, name))
    return grafts


def _inside(hu: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """`hu` with the liver's outermost voxels, which are partly fat, replaced by inner values; 0 outside."""
    core = ~dilate(~mine, 1)
    near = gaussian_blur(hu * core, (1.0,) * 3) / gaussian_blur(core.float(), (1.0,) * 3).clamp_min(1e-3)
    return torch.where(core, hu, near * mine)


def transplant(
    rng: Rng,
    image: torch.Tensor,
    liver: torch.Tensor,
    spacing_mm: float,
    grafts: Sequence[Graft],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Transplant one to three of `grafts` into the liver.

    :param image: (D, H, W) in HU.
    :param liver: bool (D, H, W), where there may be a tumor.
    :return: the new image, and the tumors, numbered from 1, as uint8 (D, H, W).
    """
    lesions = torch.zeros(liver.shape, dtype=torch.uint8)
    inside = liver.nonzero()
    if len(inside) < 200 or not grafts:
        return image, lesions
    image, wanted, painted = image.clone(), 1 + rng.choose((0.6, 0.25, 0.15)), 0
    for _ in range(3 * wanted):
        if painted == wanted:
            break
        graft = grafts[rng.integer(len(grafts))]
        room_mm = (len(inside) * spacing_mm**3) ** (1 / 3)
        largest = max(_SMALLEST_MM + 1, min(_LARGEST_MM, 1.1 * graft.diameter_mm, 0.7 * room_mm))
        diameter = rng.log_uniform(_SMALLEST_MM, largest)
        center = inside[rng.integer(len(inside))]
        added = _put(rng, image, liver & (lesions == 0), center, graft, diameter, spacing_mm)
        if added is None:
            continue
        box, part, mask = added
        image[box], painted = part, painted + 1
        lesions[box][mask] = painted
    return image, lesions


def _put(
    rng: Rng,
    image: torch.Tensor,
    liver: torch.Tensor,
    center: torch.Tensor,
    graft: Graft,
    diameter_mm: float,
    spacing_mm: float,
) -> tuple[Box, torch.Tensor, torch.Tensor] | None:
    """A part of the image with a tumor in it, and the tumor's mask; None if there is no room."""
    scale = diameter_mm / graft.diameter_mm  # of lengths
    step = spacing_mm / graft.spacing_mm / scale  # source voxels for each voxel
    reach = math.ceil(max(graft.tumor.shape) / step / 2 * 1.2) + 2
    box = Box.full((1, 1, 1)).shifted([int(c) for c in center]).grown((reach,) * 3, image.shape)
    points = _points(rng, box, center, step, graft)
    hu = graft.hu
    if step > 1.2:  # averaging, like a scanner with voxels larger than the detail
        hu = gaussian_blur(hu, (0.4 * step,) * 3)
    value = sample_at(hu, points)
    share = sample_at(graft.tumor.float(), points)
    outside = ((points < -0.5) | (points > torch.tensor(graft.tumor.shape) - 0.5)).any(dim=-1)
    share, value = share * ~outside, value * ~outside
    inner = torch.from_numpy(largest_component(((share > 0.5) & liver[box]).numpy()))
    if int(inner.sum()) * spacing_mm**3 < 0.3 * math.pi / 6 * diameter_mm**3 or int(inner.sum()) < 4:
        return None
    contrast = rng.uniform(0.8, 1.2)
    if contrast * float(smoothed_inside(value, inner)[inner].abs().mean()) < rng.uniform(0.7, 1.3) * _LEAST_CONTRAST:
        return None
    fade = rng.uniform(*_FADE_MM) / spacing_mm
    near = gaussian_blur(inner.float(), (fade / 2,) * 3) * 2
    alpha = torch.maximum(near.clamp(0, 1), inner.float()) * liver[box]
    alpha = torch.where(inner, alpha, alpha * (1 - outside.float()))
    return box, _blended(image[box], liver[box], alpha, contrast * value, inner), inner


def _points(rng: Rng, box: Box, center: torch.Tensor, step: float, graft: Graft) -> torch.Tensor:
    """The graft coordinates of each voxel of the box: rotated, mirrored, stretched, bent; (D, H, W, 3)."""
    axes = [torch.arange(s.start, s.stop, dtype=torch.float32) - float(c) for s, c in zip(box, center, strict=True)]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    turn = rotation_matrix([rng.uniform(-40, 40) for _ in range(3)])
    mirror = torch.tensor([-1.0 if rng.chance(0.5) else 1.0 for _ in range(3)])
    stretch = torch.tensor([rng.uniform(0.85, 1.18) for _ in range(3)])
    shape = (offsets.shape[0], offsets.shape[1], offsets.shape[2])
    size = max(3.0, max(shape) / 4)
    bent = torch.stack([smooth_field(rng, shape, size) for _ in range(3)], dim=-1)
    middle = torch.from_numpy(np.argwhere(graft.tumor.numpy()).mean(axis=0)).float()
    return (offsets @ turn.T) * (mirror * stretch * step) + middle + rng.uniform(0, 0.06) * max(shape) * step * bent


def _blended(
    image: torch.Tensor, liver: torch.Tensor, alpha: torch.Tensor, value: torch.Tensor, inner: torch.Tensor
) -> torch.Tensor:
    """The image with the graft's HU added to its own background, and with its own noise."""
    noise = image_noise(image, liver)
    background = float(image[liver].median())
    smooth = smoothed_inside(value, alpha > 0)
    own_noise = value - smooth
    loud = float(noise[liver].std())
    own = float(own_noise[inner].std()) if int(inner.sum()) > 1 else 0.0
    if own > loud:  # reduce the graft's noise to that of the image
        texture = own_noise * (loud / max(own, 1e-3))
    else:  # add the image's noise up to its level
        texture = own_noise + noise * math.sqrt(1 - (own / max(loud, 1e-3)) ** 2)
    # Outside the tumor the image keeps its vessels and shading: only the difference from the liver is added.
    base = torch.where(inner, torch.tensor(background), image - noise)
    return image + alpha * (base + smooth + texture - image)
