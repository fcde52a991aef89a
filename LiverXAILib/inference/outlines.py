# SPDX-License-Identifier: Apache-2.0
"""Outline lesions again, at 1 or 2 mm, with a small network of their own (:mod:`.outline_network`).

The network of a model's last stage finds lesions on a coarse grid, where small ones come out too large. Each component
that it marks, lesion or candidate, is outlined again in a cube of the CT around it. The outline network decides only
where a finding ends; whether the finding counts as a lesion is decided by the peak of the model's own probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from ..context import RunContext
from ..volumes.box import Box, components
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume
from .geometry import AIR_HU
from .lesions import LEAST_CANDIDATE_ML
from .masks import Mask
from .outline_network import SIZE, cube_grid, cube_scale_mm, network_input

#: Cubes that the network processes in one batch.
_BATCH = 8
#: Logit outside a cube.
_OUTSIDE = -20.0
#: The least half-precision number above 0.5.
_ABOVE_HALF = 0.5005


@dataclass(frozen=True, eq=False)
class Marked:
    """What a model marks in a CT.

    :param volume: the CT in HU.
    :param organ: the liver with its lesions.
    :param lesions: those that count.
    :param probability: of tumor, in a box of the image that contains all lesions.
    :param median_hu: of the liver without its lesions.
    """

    volume: Volume
    organ: Mask
    lesions: Mask
    probability: Volume
    median_hu: float

    @property
    def box(self) -> Box:
        """The box of the image for which the probability is known."""
        return self.volume.grid.box_of(self.probability.grid)

    def components(self) -> Iterator[Component]:
        """The components, lesions and candidates, that fit into a cube."""
        box, grid = self.box, self.volume.grid
        numbers = components((self.probability.array > 0.5) | self.lesions.on(box), corners=True)
        sizes = np.bincount(numbers.ravel())
        inside = np.bincount(numbers[self.organ.on(box)], minlength=sizes.size)
        least = LEAST_CANDIDATE_ML * 1000 / grid.voxel_volume_mm3
        for number, slices in enumerate(ndimage.find_objects(numbers), start=1):
            if sizes[number] < least or 2 * inside[number] < sizes[number]:
                continue
            voxels = np.argwhere(numbers[slices] == number) + Box(*slices).start + box.start
            places = grid.to_lps(voxels[:, ::-1])
            scale = cube_scale_mm(places)
            if scale is not None:
                yield Component(number, numbers, scale, (places.min(axis=0) + places.max(axis=0)) / 2)

    def sampled(self, component: Component, cube: Grid) -> torch.Tensor:
        """On `cube` (3, k, j, i): HU relative to the liver's median, the organ, the component's own probability."""
        region = Box.full(cube.shape).projected(cube, self.volume.grid, margin_mm=2 * max(cube.spacing))
        images = np.zeros((3, *region.shape), np.float32)
        images[0] = self.volume.array[region].astype(np.float32) - AIR_HU
        images[1] = self.organ.on(region)
        if (common := self.box.intersection(region)) is not None:
            known = common.relative_to(self.box)
            _, others = component.divided(known)
            images[2][common.relative_to(region)] = np.where(others, 0, self.probability.array[known])
        hu, organ, probability = resample(images, self.volume.grid.cropped(region), cube)
        return torch.stack([hu + (AIR_HU - self.median_hu), organ, probability])


class Component(NamedTuple):
    """A component that a model marks.

    :param number: its number among `numbers` (k, j, i), which cover the box of the probability.
    :param scale_mm: voxel size of its cube.
    :param center_lps_mm: the middle of its bounding box.
    """

    number: int
    numbers: np.ndarray
    scale_mm: float
    center_lps_mm: np.ndarray

    def cube(self, grid: Grid, size: int = SIZE) -> Grid:
        """The cube around the component, in an image with this `grid`."""
        return cube_grid(grid, self.center_lps_mm.tolist(), self.scale_mm, size)

    def divided(self, part: Box) -> tuple[np.ndarray, np.ndarray]:
        """Its own voxels in a part of `numbers`, and those of other components."""
        numbers = self.numbers[part]
        own = numbers == self.number
        return own, (numbers > 0) & ~own


def outline_again(
    marked: Marked, peak: float, network: torch.nn.Module, context: RunContext
) -> tuple[Mask, Volume, int]:
    """Outline each component again.

    The probability is raised to that of the outline network inside the new outline, but not above the component's peak,
    and lowered to it outside, so that it exceeds 0.5 exactly inside. A component stays as it is if the outline network
    finds nothing in it, or nothing where the model is surest.

    :param peak: the probability that a lesion must reach to count.
    :return: the lesions, their probability, and how many components have a new outline.
    :raises LiverXAILib.errors.Cancelled: the context's token was set.
    """
    box, grid = marked.box, marked.volume.grid
    found = list(marked.components())
    lesions, probability = np.array(marked.lesions.on(box)), np.array(marked.probability.array)
    changed = 0
    for component, cube, logit in _logits(marked, found, network, context):
        common = Box.full(cube.shape).projected(cube, grid).intersection(box)
        assert common is not None
        known = common.relative_to(box)
        own, others = component.divided(known)
        score = resample(logit, cube, grid.cropped(common), fill=_OUTSIDE).numpy()
        new = _touching((score > 0) & marked.organ.on(common) & ~others, own)
        values = probability[known]
        highest = values[own].max()
        if not new.any() or values[new & own].max() < min(peak, highest):
            continue
        counts = bool((lesions[known] & own).any())
        by_outline = 1 / (1 + np.exp(-score))
        outside = ~new & ~others
        values[new] = np.maximum(values[new], by_outline[new].clip(_ABOVE_HALF, highest))
        values[outside] = np.minimum(values[outside], by_outline[outside].clip(0, 0.5))
        lesions[known] &= ~own
        lesions[known] |= new & counts
        changed += 1
    return Mask(box, lesions), marked.probability.with_array(probability), changed


def _logits(
    marked: Marked, found: Sequence[Component], network: torch.nn.Module, context: RunContext
) -> Iterator[tuple[Component, Grid, torch.Tensor]]:
    """The outline network's logit in the cube of each component."""
    for start in range(0, len(found), _BATCH):
        context.check()
        batch = found[start : start + _BATCH]
        cubes = [component.cube(marked.volume.grid) for component in batch]
        inputs = []
        for component, cube in zip(batch, cubes, strict=True):
            hu, organ, probability = marked.sampled(component, cube)
            inputs.append(network_input(hu, organ > 0.5, (), (), probability))
        with torch.inference_mode():
            logits = network(torch.stack(inputs))[:, 0]
        yield from zip(batch, cubes, logits, strict=True)


def _touching(mask: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The components of `mask` that share voxels with `own`."""
    pieces = components(mask, corners=True)
    kept = np.zeros(int(pieces.max(initial=0)) + 1, bool)
    kept[pieces[own]] = True
    kept[0] = False
    return kept[pieces]
