# SPDX-License-Identifier: Apache-2.0
"""Samples around candidates, for a network that classifies them as lesion or not."""

from __future__ import annotations

from dataclasses import replace

import torch

from LiverXAILib.training.random_fields import Rng, Size, gaussian_blur
from LiverXAILib.volumes.box import Box

from .anatomy import dilate
from .generator import Generator, Sample

#: A sample is cropped from one that is wider by this many voxels, so that there is a choice of candidates.
_WIDER = 32
#: Proportions of candidates that are lesions, that differ most from the liver, and that lie at its edge.
_PLACES = {"lesion": 0.55, "different": 0.25, "edge": 0.20}


class Candidates(Generator):
    """Draws samples around a candidate: a lesion, or a place in the liver or at its edge that looks like one."""

    def sample(self, seed: int, size: Size | None = None, curriculum: float = 0.0) -> Sample:
        size = size or self.size_of(seed)
        wide = super().sample(seed, (size[0] + _WIDER, size[1] + _WIDER, size[2] + _WIDER), curriculum)
        rng = Rng(seed ^ 0x5EED)
        place = _place(rng, wide)
        start = [min(max(int(c) - n // 2, 0), _WIDER) for c, n in zip(place, size, strict=True)]
        box = Box.between(start, [a + n for a, n in zip(start, size, strict=True)])
        unknown = wide.tumor_unknown
        return replace(
            wide,
            image=wide.image[box],
            liver=wide.liver[box],
            lesions=wide.lesions[box],
            known=wide.known[box],
            tumor_unknown=None if unknown is None else unknown[box],
        )


def _place(rng: Rng, sample: Sample) -> torch.Tensor:
    """The voxel (k, j, i) of a candidate; the center if there is none."""
    kind = list(_PLACES)[rng.choose(list(_PLACES.values()))]
    healthy = sample.liver & ~sample.tumor
    if kind == "lesion" and sample.tumor.any():
        number = 1 + rng.integer(int(sample.lesions.max()))  # small ones as often as large ones
        where = sample.lesions == number
        where = where if where.any() else sample.tumor
    elif kind == "edge":
        where = healthy & dilate(~sample.liver, 2)
    else:
        contrast = (gaussian_blur(sample.image, (1.5, 1.5, 1.5)) - sample.liver_hu).abs() * healthy
        values = contrast[healthy]
        least = values[:: 1 + len(values) // 20_000].quantile(0.98) if len(values) else 0.0
        where = healthy & (contrast >= least)
    places = where.nonzero()
    if not len(places):
        return torch.tensor([n // 2 for n in sample.image.shape])
    return places[rng.integer(len(places))]
