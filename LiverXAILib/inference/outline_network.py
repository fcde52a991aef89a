# SPDX-License-Identifier: Apache-2.0
"""A small network that outlines one lesion: at a click, or around what a model has marked.

Its input is a cube of the CT: HU relative to the liver's median, the liver mask, the clicks inside the lesion, the
clicks outside it, and the previous output (as in Sofiiuk et al., ICIP 2022), which is the model's probability if there
are no clicks. Small lesions are sampled at 1 mm, larger ones at 2 or 4 mm. ``python -m recipes.outlines`` trains the
network; ``liverxai benchmark clicks`` evaluates it at clicks. Two sets of weights are bundled: those trained for both
tasks outline real lesions at clicks less well than those trained for clicks alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..errors import ModelError
from ..models.downloads import checksum
from ..models.formats.weights import build_with_weights, read_tensors
from ..networks import UNet
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume
from .geometry import AIR_HU, network_orientation_grid

#: Voxels along each side of the cube.
SIZE = 32
#: Voxel sizes of the cube in mm, for small to large lesions: if a lesion reaches the sides of a cube, the next larger
#: size is used.
SCALES_MM = (1.0, 2.0, 4.0)
#: The next larger size is also used above this volume (a ball of 20 mm), which does not fit the smallest cube well.
_LARGE_MM3 = 4200.0
#: Voxels of the cube on each side that a component leaves free.
_MARGIN = 4
#: Standard deviation in voxels of the Gaussian that encodes a click in the network's input.
_CLICK_VOXELS = 2.0
#: HU relative to the liver's median are clipped to ± the first value and divided by the second.
_CLIP_HU, _UNIT_HU = 150.0, 50.0
#: Channels of the input: HU, liver, clicks in the lesion, clicks outside it, the previous output.
CHANNELS = 5
#: The folders of the weights, for what a model has marked and for clicks, and the files in them.
OUTLINES, CLICKS = (Path(__file__).parents[1] / "models" / "bundled" / name for name in ("outlines", "clicks"))
WEIGHTS, CARD = "weights.safetensors", "card.json"


@dataclass(frozen=True)
class Click:
    """A point (LPS mm) inside or outside the lesion."""

    place_lps_mm: tuple[float, float, float]
    inside: bool = True


def cube_grid(grid: Grid, place_lps_mm: Sequence[float], scale_mm: float, size: int = SIZE) -> Grid:
    """The cube around a point, along the patient's axes, or the image's own axes if these are close to them."""
    direction = network_orientation_grid(grid, "SPL").direction
    matrix = np.eye(4)
    matrix[:3, :3] = direction * scale_mm
    matrix[:3, 3] = np.array(place_lps_mm) - matrix[:3, :3] @ np.full(3, size // 2)
    return Grid((size, size, size), matrix)


def cube_scale_mm(extent_mm: float) -> float | None:
    """The smallest voxel size with which the cube contains a component of this extent and a margin; None: none does.

    The largest size is left out, because models mark lesions on finer grids.
    """
    return next((scale for scale in SCALES_MM[:-1] if extent_mm <= (SIZE - 2 * _MARGIN) * scale), None)


def network_input(
    hu: torch.Tensor,
    liver: torch.Tensor,
    inside: Sequence[Sequence[float] | np.ndarray],
    outside: Sequence[Sequence[float] | np.ndarray],
    before: torch.Tensor,
) -> torch.Tensor:
    """The channels (5, k, j, i) of the network's input.

    :param hu: HU relative to the liver's median, (k, j, i).
    :param inside, outside: clicks in voxel coordinates (k, j, i).
    :param before: the network's probability before the last click; 0 for the first click.
    """
    image = hu.clamp(-_CLIP_HU, _CLIP_HU) / _UNIT_HU
    clicks = [_spots(hu.shape, points) for points in (inside, outside)]
    return torch.stack([image, liver.float(), *clicks, before.float()])


def _spots(shape: Sequence[int], points: Sequence[Sequence[float] | np.ndarray]) -> torch.Tensor:
    result = torch.zeros(tuple(shape))
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    for point in points:
        k, j, i = (torch.exp(-0.5 * ((a - p) / _CLICK_VOXELS) ** 2) for a, p in zip(axes, point, strict=True))
        result = torch.maximum(result, k[:, None, None] * j[:, None] * i)
    return result


@functools.cache
def outline_network(folder: Path, sha256: str | None = None) -> torch.nn.Module:
    """Load a bundled network with its weights, once.

    :param folder: :data:`OUTLINES` or :data:`CLICKS`.
    :param sha256: checksum of the weights that a model was evaluated with.
    :raises LiverXAILib.errors.ModelError: the files are damaged, or the weights are not those with that checksum.
    """
    path = folder / WEIGHTS
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        expected, arguments = card["sha256"], dict(card["arguments"])
        found = checksum(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"The network that outlines lesions is damaged: {CARD} or {WEIGHTS} in {folder} is missing or cannot be "
            "read. Reinstall LiverXAI."
        ) from error
    if found != expected:
        raise ModelError(f"{path} is not the file that its model card describes. Reinstall LiverXAI.")
    if sha256 not in (None, found):
        raise ModelError(
            "The model was made for another version of the network that outlines lesions. Get the model for this "
            "version of LiverXAI, or install the version of LiverXAI that it was made for."
        )
    state = {name: value.float() for name, value in read_tensors(path).items()}
    return build_with_weights(lambda: UNet(**arguments), state, path, "UNet").eval()


@dataclass(frozen=True, eq=False)
class CubeOutline:
    """The network's output: the logit of "lesion" (k, j, i) on `grid`.

    `at_sides` is the fraction of the lesion at the sides of the cube.
    """

    grid: Grid
    logit: torch.Tensor = field(repr=False)
    at_sides: float

    @property
    def reach_mm(self) -> float:
        """The distance from the click to the sides of the cube, in mm."""
        return SIZE / 2 * self.grid.spacing[0]


def outline_by_network(
    volume: Volume,
    liver: Volume,
    median_hu: float,
    clicks: Sequence[Click],
    before: Volume | None = None,
    network: torch.nn.Module | None = None,
) -> CubeOutline:
    """Outline the lesion around the first click.

    :param volume: the CT in HU.
    :param liver: the liver mask (bool), with the indentations left by missed lesions filled; on a grid of its own.
    :param median_hu: median HU of the liver tissue.
    :param before: the current lesion mask, which the last click corrects; None: there is none yet.
    :param network: None: the bundled network for clicks.
    """
    network = network or outline_network(CLICKS)
    for scale in SCALES_MM:
        cube = cube_grid(volume.grid, clicks[0].place_lps_mm, scale)
        points = [cube.to_ijk(np.array(click.place_lps_mm))[::-1] for click in clicks]
        last = scale == SCALES_MM[-1]
        if not last and any((point < 2).any() or (point > SIZE - 3).any() for point in points):
            continue
        hu = resample(volume.array, volume.grid, cube, fill=AIR_HU) - median_hu
        organ = resample(liver.array, liver.grid, cube) > 0.5
        present = torch.zeros((SIZE,) * 3)
        if before is not None:
            present = resample(before.array, before.grid, cube)
        placed = list(zip(points, clicks, strict=True))
        channels = network_input(
            hu,
            organ,
            [point for point, click in placed if click.inside],
            [point for point, click in placed if not click.inside],
            present,
        )
        with torch.inference_mode():
            logit = network(channels[None])[0, 0]
        found = (logit > 0) | (present > 0.5)
        sides = found.clone()
        sides[2:-2, 2:-2, 2:-2] = False
        at_sides = float(sides.sum()) / max(1.0, float(found.sum()))
        fits = at_sides == 0 and (scale != SCALES_MM[0] or float(found.sum()) * scale**3 < _LARGE_MM3)
        if last or fits:
            break
    return CubeOutline(cube, logit, at_sides)
