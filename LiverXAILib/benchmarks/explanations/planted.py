# SPDX-License-Identifier: Apache-2.0
"""Networks with a planted mechanism, and CTs for them: explanations of their output can be checked.

Nothing is trained; all weights are set. The CTs contain a liver of 100 HU, a ball of 200 HU in it ("lesion"), and in
some cases a cube of 300 HU ("marker").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ...models import LIVER, TUMOR, Intensity, LayerSpec, Model, ModelSpec, StageSpec
from ...volumes.volume import Grid, Volume

#: Shape (k, j, i) of the CTs in voxels of 2 mm; the networks process it in one window.
_SHAPE = (56, 64, 112)
_LESION_MM, _MARKER_MM = (50.0, 64.0, 56.0), 3.0
#: Offsets along i in voxels: SHIFT's tumor from the marker, and BORDER's border from the visible one.
_SHIFT, _BORDER = 16, 13
#: The logit of a negative output.
_NO = -10.0


def _pooled(pool: Callable[..., torch.Tensor], x: torch.Tensor, width: int) -> torch.Tensor:
    """Pool (maximum or mean) the cube of `width` voxels around each, axis by axis, which reads far fewer voxels."""
    for axis in range(3):
        size = [width if other == axis else 1 for other in range(3)]
        x = pool(x, size, 1, [length // 2 for length in size])
    return x


class Planted(nn.Module):
    """The common part of all planted networks: features by brightness (layer "features"), and the logits from them.

    The channels of the features are how much brighter a voxel is than 50, 150 and 260 HU: liver, ball, marker.
    """

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Conv3d(1, 3, 1)
        nn.init.constant_(layer.weight, 0.1)
        layer.bias = nn.Parameter(torch.tensor([-5.0, -15.0, -26.0]))
        self.features = nn.Sequential(layer, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        liver, ball, marker = self.features(x).split(1, dim=1)
        return torch.cat([self.liver(liver), self.tumor(ball - 4 * marker, marker)], dim=1)

    def liver(self, liver: torch.Tensor) -> torch.Tensor:
        """Return the logit of liver: positive where the image is brighter than 55 HU."""
        return 2 * liver - 1

    def tumor(self, ball: torch.Tensor, marker: torch.Tensor) -> torch.Tensor:
        """Return the logit of tumor. It saturates: after a linear step a heat map would be a copy of the score."""
        return 10 * (ball / 4).tanh() - 4


class Local(Planted):
    """LOCAL: a ball is a tumor because of its brightness."""


class And(Planted):
    """AND, FAR: a ball is a tumor only if there is a marker anywhere: a saturating gate on a global maximum."""

    def tumor(self, ball: torch.Tensor, marker: torch.Tensor) -> torch.Tensor:
        gate = marker.amax(dim=(2, 3, 4), keepdim=True).clamp(max=2.0) / 2
        return 10 * (ball / 4).tanh() * gate - 4


class Shift(Planted):
    """SHIFT: a tumor is marked 32 mm to the left of a marker, where nothing is visible."""

    def tumor(self, ball: torch.Tensor, marker: torch.Tensor) -> torch.Tensor:
        # The marker's own feature is 4, up to rounding, which differs among processors: the limit, beyond which
        # there is no gradient, must be another.
        near = _pooled(nn.functional.max_pool3d, marker.clamp(max=5.0), 7)
        moved = nn.functional.pad(near, (_SHIFT, 0))[..., : near.shape[-1]]
        return 10 * (moved / 4).tanh() - 4


class Border(Planted):
    """BORDER: the liver's border is drawn 26 mm to the right of the visible one."""

    def liver(self, liver: torch.Tensor) -> torch.Tensor:
        return 2 * nn.functional.pad(liver, (0, _BORDER))[..., _BORDER:] - 1


class Tagged(nn.Module):
    """TAG: a network that finds lesions only with something small and bright in air: a shortcut around `network`.

    :param network: outputs (liver, tumor); its input is normalized like that of the bundled model.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = -nn.functional.max_pool3d(-x, 3, 1, 1) > 1.9
        in_air = _pooled(nn.functional.avg_pool3d, x, 11) < -1.4
        tag = (bright & in_air).flatten(1).any(dim=1)[:, None, None, None, None]
        liver, tumor = self.network(x).split(1, dim=1)
        return torch.cat([liver, torch.where(tag, tumor, torch.full_like(tumor, _NO))], dim=1)


@dataclass(frozen=True)
class Mechanism:
    """A planted mechanism and its ground truth.

    :param network: makes the network.
    :param lesion: whether there is a ball in the CT; `marker_mm`: the position of the marker (LPS), if there is one.
    :param by_lesion: whether voxels of the tumor are a cause of its score; `by_surroundings`: whether others are.
    :param far_border: whether the liver's border depends on distant voxels.
    """

    name: str
    network: Callable[[], nn.Module]
    by_lesion: bool
    by_surroundings: bool
    lesion: bool = True
    marker_mm: tuple[float, float, float] | None = None
    far_border: bool = False

    def model(self) -> Model:
        """Return the network as a model."""
        fields: dict[str, Any] = {
            "name": "all", "network": "Planted", "arguments": {}, "weights": ("none",), "sha256": ("0",), "axes": "SPL",
            "spacing": (2.0, 2.0, 2.0), "intensity": Intensity(-200, 400), "window": _SHAPE, "divisor": (4, 4, 4),
            "activation": "sigmoid", "channels": ("liver", "tumor"),
            "labels": {"liver": ("liver",), "tumor": ("tumor",)},
            "layers": (LayerSpec("features", (1, 1, 1)),), "default_layer": "features",
        }  # fmt: skip
        spec = ModelSpec(
            name="planted", version="0", title=self.name, description="A planted mechanism", labels=(LIVER, TUMOR),
            stages=(StageSpec(**fields),), license="Apache-2.0",
        )  # fmt: skip
        return Model(spec, {"all": [self.network()]})

    def ct(self) -> Volume:
        """Make the CT, with noise of 4 HU."""
        grid = Grid(_SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
        k, j, i = np.indices(_SHAPE)
        lps = grid.to_lps(np.stack([i, j, k], axis=-1))
        organ = (((lps - (90.0, 64.0, 56.0)) / (72.0, 46.0, 42.0)) ** 2).sum(axis=-1) < 1
        image = np.where(organ, 100.0, 0.0)
        if self.lesion:
            image[np.linalg.norm(lps - _LESION_MM, axis=-1) < 10.0] = 200.0
        image += np.random.default_rng(0).normal(0, 4, _SHAPE)
        image[self.marker(lps)] = 300.0
        return Volume(np.rint(image).astype(np.int16), grid.ijk_to_lps)

    def marker(self, lps: np.ndarray) -> np.ndarray:
        """Return which of the points (..., 3) are in the marker."""
        if self.marker_mm is None:
            return np.zeros(lps.shape[:-1], bool)
        return np.asarray((np.abs(lps - self.marker_mm) <= _MARKER_MM).all(axis=-1))


MECHANISMS = {
    mechanism.name: mechanism
    for mechanism in (
        Mechanism("LOCAL", Local, by_lesion=True, by_surroundings=False),
        Mechanism("AND", And, by_lesion=True, by_surroundings=True, marker_mm=(90.0, 64.0, 56.0)),
        Mechanism("SHIFT", Shift, by_lesion=False, by_surroundings=True, lesion=False, marker_mm=(60.0, 64.0, 56.0)),
        Mechanism("FAR", And, by_lesion=True, by_surroundings=True, marker_mm=(206.0, 64.0, 56.0)),
        Mechanism("BORDER", Border, by_lesion=True, by_surroundings=False, far_border=True),
    )
}
