# SPDX-License-Identifier: Apache-2.0
"""From an image to what a stage's network sees, and back: grids, intensities, windows, logits.

Each function is used by :func:`LiverXAILib.inference.segment` and, with gradients, by :mod:`LiverXAILib.explain`, so
that an explanation is about exactly the computation that made the segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from math import ceil, prod

import numpy as np
import SimpleITK as sitk
import torch

from ..context import RunContext
from ..errors import InputError
from ..models.spec import Intensity, StageSpec
from ..volumes.box import Box, bounding_box, largest_component
from ..volumes.resample import regrid, resample, resized
from ..volumes.volume import Grid, Volume
from .backends import Forward, keep_freed_memory
from .cost import activation_bytes
from .geometry import AIR_HU, network_orientation_grid
from .nnunet import HalfBlend, nnunet_grid, nnunet_input
from .windows import WindowPlan

#: The body: everything denser than this that hangs together.
_BODY_HU = -300.0
#: A scan longer than a stage's field of view is cut into parts that overlap by this fraction.
_PART_OVERLAP = 0.5
#: An image whose activations need more than this is read in several windows. The same on every machine, since
#: explanations, and whoever repeats an analysis elsewhere, must find the same windows.
_PASS_BYTES = 2**30
#: Fraction of such a window that it shares with its neighbor: the halo in which the two are blended.
_HALO = 0.25
#: Largest side of :func:`sample_box`, in voxels.
_SAMPLE_SIDE = 64


def stage_grids(volume: Volume, stage: StageSpec, box: Box | None = None) -> list[Grid]:
    """The grids on which `stage` may run: one, or several overlapping parts of a scan longer than it can take.

    :param box: (k, j, i) box on the *input* image around what an earlier stage found; None for the whole image.
    """
    base = scan = network_orientation_grid(volume.grid, stage.axes)
    if box is not None:
        base = base.cropped(box.projected(volume.grid, base, stage.region.margin_mm if stage.region else 0.0))
    if stage.crop_to_body:
        base = base.cropped(_body_box(volume, base))
    if stage.nnunet is not None:
        return [nnunet_grid(volume, stage, base)]
    if stage.spacing is not None:
        # The card lists sizes along the tensor's axes (k, j, i); a Grid's spacing is (i, j, k).
        k, j, i = (own if mm is None else mm for own, mm in zip(base.spacing[::-1], stage.spacing, strict=True))
        grid = regrid(base, (i, j, k))
        if box is not None and not stage.pad_to_window:
            # What the network's divisor adds to the box is image as well, not air.
            grid = _shift_inside_scan(scan, stage_plan(stage, grid).padded_grid(grid))
        return [grid]
    assert stage.size is not None
    grids = []
    for part in _parts(base, stage.field_of_view_mm):
        k, j, i = (own if n is None else n for own, n in zip(part.shape, stage.size, strict=True))
        grids.append(resized(part, (k, j, i)))
    return grids


def _shift_inside_scan(scan: Grid, grid: Grid) -> Grid:
    """`grid`, moved by whole voxels of its own to where less of it lies outside `scan`, whose axes it shares.

    Networks lose the liver's last slice where the scan ends and a single slice of air follows, then nothing.
    """
    first, last = (scan.to_ijk(grid.to_lps(corner)) for corner in (np.zeros(3), np.array(grid.shape[::-1]) - 1))
    sizes, step = np.array(scan.shape[::-1]), np.array(grid.spacing) / np.array(scan.spacing)
    # In voxels of `grid`, how far its ends are inside the scan (positive) or outside.
    start, end = (first + 0.5) / step, (sizes - 0.5 - last) / step
    forward = np.clip(np.minimum(np.ceil(-start), np.floor(end)), 0, None)
    backward = np.clip(np.minimum(np.ceil(-end), np.floor(start)), 0, None)
    matrix = grid.ijk_to_lps.copy()
    matrix[:3, 3] = grid.to_lps(forward - backward)
    return Grid(grid.shape, matrix)


def stage_input(volume: Volume, stage: StageSpec, grid: Grid, center_hu: float = 0.0) -> torch.Tensor:
    """The image as `stage`'s network wants it: float32 (k, j, i) on `grid`, normalized.

    :param center_hu: see :func:`normalize`.
    """
    if stage.nnunet is not None:
        return nnunet_input(volume, stage, grid)
    image = resample(volume.array, volume.grid, grid, fill=AIR_HU)
    return normalize(image, stage.intensity, center_hu)


def normalize(
    image: torch.Tensor, intensity: Intensity, center_hu: float = 0.0, reference: torch.Tensor | None = None
) -> torch.Tensor:
    """HU to network input, by the card's intensity.

    :param center_hu: median of what the stage looks around, for an intensity that is centered on it.
    :param reference: the image whose statistics count where the card asks for them; default: `image` itself.
    """
    if intensity.centered:
        image = image - center_hu
    if intensity.statistics is not None:
        reference = (image if reference is None else reference).float()
        if intensity.statistics == "z-score":
            image = (image - reference.mean()) / reference.std(correction=0).clamp_min(1e-8)
        else:
            image = (image - reference.min()) / (reference.max() - reference.min()).clamp_min(1e-8)
    if intensity.low is not None or intensity.high is not None:
        image = image.clamp(intensity.low, intensity.high)
    return (image - intensity.shift) / intensity.scale


def pad_value(stage: StageSpec, center_hu: float = 0.0) -> float:
    """What surrounds an image that is smaller than its padded windows, as the network sees it."""
    if stage.nnunet is not None or stage.intensity.statistics is not None:
        return 0.0
    return float(normalize(torch.tensor(AIR_HU), stage.intensity, center_hu))


def stage_plan(stage: StageSpec, grid: Grid) -> WindowPlan:
    """The windows in which `stage` reads an image on `grid`."""
    window, divisor, overlap = stage.window, stage.divisor, stage.overlap
    if stage.dimensions == 2:
        window = (1, *(window[1:] if window else grid.shape[1:]))
        divisor = (1, divisor[1], divisor[2])
    elif window is None and stage.size is None and (needed := activation_bytes(stage)) is not None:
        # A network that wants its whole field of view at a fixed size is never cut.
        window, overlap = _window_within(grid.shape, divisor, _PASS_BYTES / needed), _HALO
    return WindowPlan.build(grid.shape, window, overlap=overlap, divisor=divisor, pad_to_window=stage.pad_to_window)


def _window_within(shape: tuple[int, int, int], divisor: tuple[int, int, int], most: float) -> tuple[int, int, int]:
    """The whole of `shape` if it has at most so many voxels, else the window that cuts its longest sides equally."""
    pieces = [1, 1, 1]
    while True:
        # n voxels in p windows that share the fraction h of their size s with the next: n = s (p - (p - 1) h).
        sizes = [
            min(ceil(n / (p - (p - 1) * _HALO) / d), ceil(n / d)) * d
            for n, p, d in zip(shape, pieces, divisor, strict=True)
        ]
        if prod(sizes) <= most or all(size <= d for size, d in zip(sizes, divisor, strict=True)):
            return sizes[0], sizes[1], sizes[2]
        longest = max(range(3), key=lambda axis: sizes[axis] if sizes[axis] > divisor[axis] else 0)
        pieces[longest] += 1


def sample_box(plan: WindowPlan, stage: StageSpec) -> Box:
    """A small box in the middle of the padded image that the network accepts, to try something out on."""
    start, shape = [], []
    for axis, (n, window) in enumerate(zip(plan.padded_shape, plan.window, strict=True)):
        divisor = 1 if stage.dimensions == 2 and axis == 0 else stage.divisor[axis]
        size = min(window, max(1, _SAMPLE_SIDE // divisor) * divisor)
        start.append((n - size) // 2)
        shape.append(size)
    return Box.full(shape).shifted(start)


def run_network(network: Forward, window: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """Logits (channels, a, b, c) of one window (a, b, c). A 2-D network reads its slices along `a` as a batch."""
    if stage.dimensions == 2:
        return network(window[:, None]).transpose(0, 1)
    return network(window[None, None])[0]


def predict_logits(
    networks: Sequence[Forward],
    image: torch.Tensor,
    stage: StageSpec,
    plan: WindowPlan,
    context: RunContext,
) -> torch.Tensor:
    """Blended logits of a whole image: the mean over the ensemble of the windows' weighted sum.

    :param networks: modules on the context's device, or what a backend makes of them.
    :param image: normalized, (k, j, i) as in ``plan.shape``.
    :return: (channels, k, j, i) on the CPU; float32, or half precision for an nnU-Net.
    """
    padded = plan.pad(image, pad_value(stage))
    blend = Blend(plan) if stage.nnunet is None else HalfBlend(plan)
    with torch.inference_mode(), keep_freed_memory(torch.device(context.device)):
        for number, box in enumerate(plan.boxes):
            window = padded[box].to(context.device)
            for member, network in enumerate(networks):
                context.check()
                context.report(
                    f"Segmenting ({stage.name}): window {number + 1} of {len(plan.boxes)}",
                    (number + member / len(networks)) / len(plan.boxes),
                )
                blend.add(member, box, run_mirrored(network, window, stage).float().cpu())
        return plan.unpad(blend.mean())


def run_mirrored(network: Forward, window: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """:func:`run_network`, averaged over the mirrorings of the stage's card."""
    axes = mirrorings(stage)
    logits = run_network(network, window, stage)
    for flip in axes[1:]:
        logits = logits + run_network(network, window.flip(flip), stage).flip([axis + 1 for axis in flip])
    return logits / len(axes)


def mirrorings(stage: StageSpec) -> list[tuple[int, ...]]:
    """Along which axes of a window (a, b, c) each pass of :func:`run_mirrored` is flipped; the first is not."""
    return [axes for count in range(len(stage.mirror_axes) + 1) for axes in combinations(stage.mirror_axes, count)]


class Blend:
    """Adds up windows' scores with their weights, averaged over the networks of an ensemble."""

    def __init__(self, plan: WindowPlan) -> None:
        self._plan = plan
        self._sum: torch.Tensor | None = None
        self._members: set[int] = set()

    def add(self, member: int, box: Box, scores: torch.Tensor) -> None:
        """Add the scores (channels, a, b, c) of the network number `member` in one window."""
        if self._sum is None:
            self._sum = torch.zeros((scores.shape[0], *self._plan.padded_shape))
        k, j, i = box
        self._sum[:, k, j, i] += scores * self._plan.weight(box)
        self._members.add(member)

    def mean(self) -> torch.Tensor:
        """The blended scores: float32 (channels, k, j, i) on the padded image."""
        assert self._sum is not None
        return self._sum / len(self._members)


def logit_margin(logits: torch.Tensor, stage: StageSpec, label: str) -> torch.Tensor:
    """How much more the network believes in `label` than in its best rival: positive inside the region.

    With softmax channels: largest logit of the label's channels minus largest logit of the others, so that
    "positive" is the same as "the argmax is one of them". With nested sigmoid channels: the channels' largest logit.

    :param logits: (channels, ...).
    :return: (...), in logits.
    """
    inside = [index for index, name in enumerate(stage.channels) if name in stage.labels[label]]
    best_inside = logits[inside].amax(dim=0)
    if stage.activation == "sigmoid":
        return best_inside
    outside = [index for index in range(len(stage.channels)) if index not in inside]
    return best_inside - logits[outside].amax(dim=0)


def _body_box(volume: Volume, base: Grid) -> Box:
    """The box on `base` around the patient's body: the largest dense component of a coarse image."""
    coarse = regrid(base, (6.0, 6.0, 6.0))
    dense = (resample(volume.array, volume.grid, coarse, fill=AIR_HU) > _BODY_HU).numpy().astype(np.uint8)
    image = sitk.GetImageFromArray(dense)
    # Opening by a voxel cuts the thin contacts between the back and the table.
    opened = sitk.BinaryMorphologicalOpening(image, [1, 1, 0])
    box = bounding_box(largest_component(sitk.GetArrayViewFromImage(opened)))
    if box is None:
        raise InputError("The image shows no body: nothing in it is denser than -300 HU. Is it really a CT in HU?")
    return box.projected(coarse, base)


def _parts(base: Grid, limits_mm: tuple[float | None, float | None, float | None]) -> list[Grid]:
    """Cut `base` along the axes that are longer than `limits_mm` ((k, j, i), None: no limit)."""
    choices = []
    for n, spacing, limit in zip(base.shape, base.spacing[::-1], limits_mm, strict=True):
        size = n if limit is None else min(n, max(1, int(limit / spacing)))
        count = 1 if size == n else int(np.ceil((n - size) / (size * (1 - _PART_OVERLAP)))) + 1
        starts = np.linspace(0, n - size, count).round().astype(int)
        choices.append([slice(int(start), int(start) + size) for start in starts])
    return [base.cropped(Box(k, j, i)) for k, j, i in product(*choices)]
