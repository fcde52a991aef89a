# SPDX-License-Identifier: Apache-2.0
"""Refine small findings at 1 or 2 mm, with a small network of their own (:mod:`.outline_network`).

The network of a model's last stage finds lesions on a coarse grid, where small ones come out too large, and veins and
fissures look like them. Each of its findings, lesion or candidate, is refined in a cube of the CT around it. Where the
second network segments something, too, that is the finding's outline, and its logits raise the probability of the
finding. A finding in which it segments nothing becomes less probable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from ..context import RunContext
from ..volumes.box import Box, components, touching
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume
from .geometry import AIR_HU
from .lesions import LEAST_CANDIDATE_ML, above_half
from .masks import Mask
from .outline_network import SIZE, cube_grid, cube_scale_mm, network_input

#: Cubes that the network processes in one batch.
_BATCH = 8
#: Weight of the outline network's mean logit, added to the logit of the model's network: the rounded ratio of their
#: weights in a logistic regression that tells lesions from the other components in the cubes of ``recipes.outlines``.
_WEIGHT = 0.5
#: Mean logit of the outline network in a component in which it segments nothing; larger ones are clipped to the second.
_UNSEEN, _MOST = -3.0, 7.0
#: A new outline with less than this fraction of the old one's volume is not used, by the voxel size of the cube: small
#: lesions come out too large by up to five times on a grid of 2 mm; of a larger one that shrinks as much, the outline
#: network segments only a part.
_LEAST_SHARE = {1.0: 0.2, 2.0: 0.35}
#: Probabilities up to this are not lowered further.
_NOTHING = 0.001
#: Logit outside a cube.
_OUTSIDE = -20.0
#: Bounds of half-precision probabilities: the least above 0.5, and the last before 1 whose logit is useful.
_ABOVE_HALF, _BELOW_ONE = 0.5005, 0.9995


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

    def components(self, fainter: Sequence[float] = ()) -> Iterator[Component]:
        """The components, lesions and candidates, that fit into a cube.

        :param fainter: falling probabilities below 0.5; also yield components that are marked above one of these, but
            not above the one before.
        """
        box, grid = self.box, self.volume.grid
        probability = self.probability.array
        numbers = components(above_half(probability) | self.lesions.on(box), corners=True)
        least = LEAST_CANDIDATE_ML * 1000 / grid.voxel_volume_mm3
        found = [
            (number, own) for number, own in _boxes(numbers) if self._is_in_organ(numbers[own] == number, own, least)
        ]
        for threshold in fainter:
            above = components(probability > threshold, corners=True)
            taken = set(np.unique(above[np.isin(numbers, [number for number, _ in found])]).tolist())
            for number, own in _boxes(above):
                mask = above[own] == number
                if number not in taken and self._is_in_organ(mask, own, least):
                    found.append((int(numbers.max()) + 1, own))
                    numbers[own][mask] = found[-1][0]
        for number, own in found:
            extent = np.subtract(own.shape, 1)
            scale = cube_scale_mm(float((extent * grid.spacing[::-1]).max()))
            if scale is not None:
                center = np.add(box.start, own.start) + extent / 2
                yield Component(number, numbers, scale, grid.to_lps(center[::-1]))

    def _is_in_organ(self, mask: np.ndarray, own: Box, least: float) -> bool:
        """Whether a component has at least this number of voxels, half of them in the organ.

        :param mask: bool, in its box `own` of the probability.
        """
        size = np.count_nonzero(mask)
        organ = self.organ.on(own.shifted(self.box.start))
        return bool(size >= least and 2 * np.count_nonzero(mask & organ) >= size)

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


def _boxes(numbers: np.ndarray) -> Iterator[tuple[int, Box]]:
    """The number of each component, and its box."""
    for number, slices in enumerate(ndimage.find_objects(numbers), start=1):
        if slices is not None:
            yield number, Box(*slices)


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

    def __repr__(self) -> str:
        place = ", ".join(f"{mm:.1f}" for mm in self.center_lps_mm)
        return f"Component({self.number}, {self.scale_mm:g} mm, at LPS ({place}) mm)"

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
) -> tuple[Mask, Volume, dict[str, int]]:
    """Outline each component again, and decide again whether it is a lesion.

    The new outline is where the sum of both networks' logits is positive, the model's multiplied by the voxel size of
    the cube in mm. Inside it, the logit of the model's probability is raised by half of the outline network's mean
    logit; outside, the probability is at most that of the outline network and at most 0.5. A component in which the
    outline network outlines nothing becomes less probable; if its probability thereby falls to 0.5 everywhere, it is no
    longer marked. It keeps its outline, as does one that would shrink too much.

    :param peak: the probability that a component must reach to count as a lesion.
    :return: the lesions; their probability; the numbers of components that were "examined" and "outlined" again.
    :raises LiverXAILib.errors.Cancelled: the context's token was set.
    """
    box, grid = marked.box, marked.volume.grid
    found = list(marked.components())
    lesions, probability = np.array(marked.lesions.on(box)), np.array(marked.probability.array)
    outlined = 0
    for component, cube, logit in _logits(marked, found, network, context):
        common = Box.full(cube.shape).projected(cube, grid).intersection(box)
        assert common is not None
        known = common.relative_to(box)
        own, others = component.divided(known)
        score = resample(logit, cube, grid.cropped(common), fill=_OUTSIDE).numpy()
        organ = marked.organ.on(common)
        values = probability[known]
        # The coarser the cube, the less the outline network sees that the model's network does not.
        both = score + component.scale_mm * _logit(values)
        outline = touching((both > 0) & organ & ~others, own)
        seen = (score > 0) & own
        certainty = float(score[seen].clip(max=_MOST).mean()) if seen.any() else _UNSEEN
        is_better = seen.any() and outline.sum() > _LEAST_SHARE[component.scale_mm] * (own & organ).sum()
        outline = outline if is_better else own
        inside = _shifted(values[outline], _WEIGHT * certainty)
        is_left = bool((inside > _ABOVE_HALF).any())
        outside = ~outline & ~others & (values > _NOTHING)
        values[outside] = np.minimum(values[outside], (1 / (1 + np.exp(-score[outside]))).clip(0, 0.5))
        values[outline] = inside if is_left else 0.5
        lesions[known] &= ~own
        lesions[known] |= outline & bool(inside.max() >= peak)
        outlined += int(is_better)
    return (
        Mask(box, lesions),
        marked.probability.with_array(probability),
        {"examined": len(found), "outlined": outlined},
    )


def _shifted(probability: np.ndarray, by: float) -> np.ndarray:
    """The probabilities with their logits shifted; all stay above 0.5."""
    shifted: np.ndarray = (1 / (1 + np.exp(-_logit(probability) - by))).clip(_ABOVE_HALF)
    return shifted


def _logit(probability: np.ndarray) -> np.ndarray:
    p = probability.astype(np.float32).clip(1 - _BELOW_ONE, _BELOW_ONE)
    logit: np.ndarray = np.log(p / (1 - p))
    return logit


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
