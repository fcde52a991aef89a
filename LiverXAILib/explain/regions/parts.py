# SPDX-License-Identifier: Apache-2.0
"""The parts of the image around a lesion that a reader can name, and what replaces each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ...context import RunContext
from ..counterfactual import ExaminedBox
from ..fill import distance_mm, healthy_liver, isolate, plausible_fill
from ..targets import LESION_LABEL

#: The core of a lesion lies deeper than this; its rim extends one voxel outside the lesion.
_RIM_MM = 4.0
#: Tissue outside the liver is divided at this distance from the lesion.
_NEAR_MM = 30.0
#: A hollow of the liver (fissure, gallbladder, hilum) is the part that a ball of this radius cannot reach from outside.
_HOLLOW_MM = 14.0
#: Parts with fewer voxels are merged into a neighbor.
_FEWEST = 8
#: The replacement of parts in the liver, and the candidates for parts outside it, with typical HU.
_LIVER = "plain liver"
_TISSUES_HU = {"soft tissue": 50.0, "fat": -100.0, "air": -1000.0}


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the examined box.

    :param name: as used in sentences.
    :param mask: bool (k, j, i), as in the box.
    :param of_lesion: whether it belongs to the lesion; `outside`: whether it lies outside the liver.
    """

    name: str
    mask: torch.Tensor = field(repr=False)
    of_lesion: bool = False
    outside: bool = False


def name_parts(examined: ExaminedBox) -> list[Part]:
    """The disjoint parts that make up the box; empty ones are left out.

    A part with very few voxels is merged into a neighbor: the core into the rim, a part in the liver into the rest of
    the liver, and a part outside the liver into the nearest part outside it that is large enough.
    """
    run = examined.run
    voxel = max(run.spacing)
    lesion = examined.weights > 0
    liver = run.mask(run.organ) | lesion
    distance = distance_mm(lesion, run.spacing)
    core = distance < -_RIM_MM
    rim = (distance <= 1.01 * voxel) & ~core
    others = run.mask(LESION_LABEL) & ~core & ~rim
    inside = liver & ~core & ~rim & ~others
    edge = distance_mm(~liver, run.spacing) <= 2.01 * voxel
    # The surroundings of a lesion do not count as healthy, but are not a structure of the liver either.
    plain = healthy_liver(run) | (distance_mm(lesion | others, run.spacing, 2.01 * voxel) <= 2.01 * voxel)
    vessels = inside & (distance_mm(plain, run.spacing) > 1.01 * voxel) & ~edge
    outside = ~liver & ~rim & ~others
    hollow = _closed(liver, run.spacing) & outside
    near = distance <= _NEAR_MM
    of_lesion = [Part("the lesion's core", core, of_lesion=True), Part("the lesion's rim", rim, of_lesion=True)]
    in_liver = [
        Part("other lesions", others),
        Part("vessels and other structures in the liver", vessels),
        Part("the rest of the liver", inside & ~vessels),
    ]
    around = [
        Part("what lies outside the liver within 3 cm", outside & near & ~hollow, outside=True),
        Part("the liver's fissures and gallbladder", hollow & near, outside=True),
        Part("what lies farther away", outside & ~near, outside=True),
    ]
    return [*_merged(of_lesion, into=1), *_merged(in_liver, into=2), *_merged(around, into=0)]


def _merged(parts: list[Part], into: int) -> list[Part]:
    """Merge parts with fewer voxels than :data:`_FEWEST` into part number `into`, or, if that is also too small, into
    the largest."""
    sizes = [int(part.mask.sum()) for part in parts]
    small = [part.mask for part, size in zip(parts, sizes, strict=True) if 0 < size < _FEWEST]
    home = into if sizes[into] >= _FEWEST else max(range(len(parts)), key=sizes.__getitem__)
    whole = replace(parts[home], mask=torch.stack([parts[home].mask, *small]).any(dim=0))
    kept = [whole if n == home else part for n, part in enumerate(parts) if n == home or sizes[n] >= _FEWEST]
    return [part for part in kept if part.mask.any()]


def _closed(mask: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
    """`mask` with its hollows filled: grown by :data:`_HOLLOW_MM` and shrunk again."""
    grown = distance_mm(mask, spacing_mm) <= _HOLLOW_MM
    return distance_mm(~grown, spacing_mm) > _HOLLOW_MM


@dataclass(frozen=True, eq=False)
class Replacement:
    """The tissues that replace the parts.

    :param image: the value of each voxel of the box when its part is replaced: float32 (k, j, i), HU.
    :param tissues: the tissue that replaces each part, by the part's name.
    :param confidences: for each part outside the liver, the model's confidence in the lesion with only that part
        replaced, by each tissue that was tried.
    """

    image: torch.Tensor = field(repr=False)
    tissues: Mapping[str, str]
    confidences: Mapping[str, Mapping[str, float]]


def choose_replacement(examined: ExaminedBox, parts: Sequence[Part], context: RunContext) -> Replacement:
    """Choose the tissue that replaces each part.

    Parts inside the liver become plain liver of the same patient at the level of the lesion's surroundings. For a part
    outside it no single tissue is right: if much of the box becomes soft tissue, a network may miss a lesion that it
    still finds with fat or air there. Such a part is needed only if the prediction is lost whatever replaces it.
    Therefore soft tissue, fat, air and plain liver are tried, and the one that changes the model's prediction least is
    taken. All have the noise of the patient's liver, and nothing of the part itself.

    :raises LiverXAILib.errors.UsageError: there is no healthy liver.
    """
    run, hu = examined.run, examined.run.hu
    fill = plausible_fill(hu, examined.weights > 0, examined.healthy, run.spacing)
    liver = isolate(hu, torch.zeros_like(hu), fill.level_hu, examined.healthy)
    low, high = float(hu.min()), float(hu.max())
    images = {name: (liver - fill.level_hu + level).clamp(low, high) for name, level in _TISSUES_HU.items()}
    images[_LIVER] = liver
    tried = [(part, tissue) for part in parts if part.outside for tissue in images]
    inputs = [run.from_hu(torch.where(part.mask, images[tissue], hu)) for part, tissue in tried]
    confidences: dict[str, dict[str, float]] = {}
    for (part, tissue), confidence in zip(tried, examined.ask(inputs, context) if inputs else [], strict=True):
        confidences.setdefault(part.name, {})[tissue] = confidence
    image, tissues = liver, dict.fromkeys((part.name for part in parts), _LIVER)
    for part in parts:
        if part.outside:
            change = {name: abs(one - examined.probability) for name, one in confidences[part.name].items()}
            tissues[part.name] = min(change, key=change.__getitem__)
            image = torch.where(part.mask, images[tissues[part.name]], image)
    return Replacement(image, tissues, confidences)
