# SPDX-License-Identifier: Apache-2.0
"""Replacements for everything farther than a radius from a point, for examining an organ's border.

A replacement must contain nothing from beyond the radius; otherwise the measurement does not show how much context the
network needs. It should also disturb the network little; otherwise the measurement shows the disturbance. The command
``liverxai benchmark border`` compares the replacements; results are in ``docs/explanations.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..stage_context import StageContext

#: Side of the cubes that are shuffled.
_CUBE_MM = 8.0


@dataclass(frozen=True, eq=False)
class Crop:
    """The surroundings of a point that serve as the network's input.

    :param shape: voxels (k, j, i); the point is voxel ``shape // 2``.
    :param radius_mm: voxels within this distance of the point stay unchanged.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    radius_mm: float

    @property
    def offsets(self) -> torch.Tensor:
        """Offset of each voxel from the point, in voxels (a, b, c, 3)."""
        return torch.stack(torch.meshgrid(*(torch.arange(n) - n // 2 for n in self.shape), indexing="ij"), dim=-1)

    @property
    def distance(self) -> torch.Tensor:
        """Distance of each voxel from the point, in mm (a, b, c)."""
        return (self.offsets * torch.tensor(self.spacing)).norm(dim=-1)


#: (context, points (n, 3) (k, j, i), crop) → crops (n, a, b, c) of which the part beyond the radius is used.
Replacement = Callable[[StageContext, torch.Tensor, Crop], torch.Tensor]


def shown(run: StageContext, points: torch.Tensor, crop: Crop, replace: Replacement) -> torch.Tensor:
    """The crops (n, a, b, c) around points (n, 3): the image within the radius, its replacement beyond."""
    kept = crops_of(run.image, points, crop)
    return torch.where(crop.distance <= crop.radius_mm, kept, replace(run, points, crop))


def crops_of(image: torch.Tensor, points: torch.Tensor, crop: Crop) -> torch.Tensor:
    """The crops (n, a, b, c) of `image` around points (n, 3); edges are repeated."""
    k, j, i = (
        (points[:, axis, None] + torch.arange(size) - size // 2).clamp(0, image.shape[axis] - 1)
        for axis, size in enumerate(crop.shape)
    )
    return image[k[:, :, None, None], j[:, None, :, None], i[:, None, None, :]]


def gathered(image: torch.Tensor, points: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """`image` at points (n, 3) plus offsets (\\*shape, 3) or (n, \\*shape, 3): (n, \\*shape); edges are repeated."""
    index = points.reshape(-1, *[1] * (offsets.ndim - (offsets.ndim == 5) - 1), 3) + offsets
    k, j, i = (index[..., axis].clamp(0, size - 1) for axis, size in enumerate(image.shape))
    return image[k, j, i]


def _reflected(run: StageContext, points: torch.Tensor, crop: Crop) -> torch.Tensor:
    distance, radius = crop.distance.double(), crop.radius_mm
    folded = radius - (distance % (2 * radius) - radius).abs()  # 0 at the point, the radius at the surface, and back
    scale = (folded / distance.clamp_min(1e-6))[..., None]
    # Rounded toward the point, so that nothing is read beyond the radius.
    k, j, i = ((crop.offsets * scale * (1 + 1e-6)).trunc().long() + torch.tensor(crop.shape) // 2).unbind(-1)
    _, rows, columns = crop.shape
    return crops_of(run.image, points, crop).flatten(1)[:, (k * rows + j) * columns + i]


def _blurred(run: StageContext, points: torch.Tensor, crop: Crop) -> torch.Tensor:
    return crops_of(run.blurred, points, crop)


def _shuffled(run: StageContext, points: torch.Tensor, crop: Crop) -> torch.Tensor:
    cube = [max(1, round(_CUBE_MM / size)) for size in crop.spacing]
    block = (crop.offsets + torch.tensor(crop.shape) // 2) // torch.tensor(cube)
    counts = block.reshape(-1, 3).amax(dim=0) + 1
    number = (block * torch.tensor([int(counts[1] * counts[2]), int(counts[2]), 1])).sum(dim=-1)
    moves = []
    for point in points.tolist():
        generator = torch.Generator().manual_seed(hash(tuple(point)) % 2**31)
        order = torch.randperm(int(counts.prod()), generator=generator)
        other = torch.stack([order // (counts[1] * counts[2]), order // counts[2] % counts[1], order % counts[2]], -1)
        own = torch.arange(len(order))
        here = torch.stack([own // (counts[1] * counts[2]), own // counts[2] % counts[1], own % counts[2]], dim=-1)
        moves.append(((other - here) * torch.tensor(cube))[number])
    return gathered(run.image, points, crop.offsets + torch.stack(moves))


def _air(run: StageContext, points: torch.Tensor, crop: Crop) -> torch.Tensor:
    return torch.full((len(points), *crop.shape), run.air)


#: What can replace everything beyond the radius:
#:
#: * reflected: the neighborhood's own content, reflected at its surface, at its center, and so on. It is continuous,
#:   has the patient's texture, continues a border in its own direction, and contains nothing from beyond the radius;
#: * blurred: the CT after a Gaussian of 12 mm: its coarse content from beyond the radius remains;
#: * shuffled: cubes of 8 mm of the surroundings in another order: the patient's tissues in the wrong places;
#: * air.
REPLACEMENTS: Mapping[str, Replacement] = {
    "reflected": _reflected,
    "blurred": _blurred,
    "shuffled": _shuffled,
    "air": _air,
}
