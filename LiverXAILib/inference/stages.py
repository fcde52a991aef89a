# SPDX-License-Identifier: Apache-2.0
"""From an image to the input of a stage's network, and back: grids, intensities, windows, logits.

Each function is used by :func:`LiverXAILib.inference.segment` and, with gradients, by :mod:`LiverXAILib.explain`, so
that an explanation refers to exactly the computation that produced the segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod

import torch

from ..context import RunContext
from ..errors import ModelError
from ..models.spec import StageSpec
from ..volumes.box import Box
from ..volumes.volume import Grid, Volume
from .backends import Forward, keep_freed_memory
from .geometry import network_orientation_grid
from .nnunet import NnUNetPreprocessing
from .preprocessing import Preprocessing, StageArea
from .scores import logit_margin
from .stage_windows import sample_box, stage_plan
from .standard import StandardPreprocessing, normalize
from .windows import WindowPlan

__all__ = [
    "logit_margin",
    "mirrorings",
    "normalize",
    "padded",
    "padded_input",
    "predict_logits",
    "preprocessing_of",
    "run_batch",
    "run_mirrored",
    "run_network",
    "sample_box",
    "stage_grids",
    "stage_input",
    "stage_plan",
]


#: Largest grid of a stage, in voxels: about that of a CT of 512 x 512 x 1000 voxels at half its voxel size.
_MOST_VOXELS = 2**31


def preprocessing_of(stage: StageSpec) -> Preprocessing:
    """The preprocessing that the stage's card specifies."""
    return StandardPreprocessing() if stage.nnunet is None else NnUNetPreprocessing(stage.nnunet)


def stage_grids(volume: Volume, stage: StageSpec, box: Box | None = None) -> list[Grid]:
    """The grids on which `stage` may run: one, or overlapping parts of a scan that exceeds its field of view.

    :param box: (k, j, i) box on the *input* image around a structure that an earlier stage found; None for the whole
        image.
    """
    scan = grid = network_orientation_grid(volume.grid, stage.axes)
    if box is not None:
        grid = scan.cropped(box.projected(volume.grid, scan, stage.region.margin_mm if stage.region else 0.0))
    grids = preprocessing_of(stage).grids(volume, stage, StageArea(scan, grid))
    if (voxels := max(prod(grid.shape) for grid in grids)) > _MOST_VOXELS:
        raise ModelError(
            f"Stage {stage.name!r} of the model would process the image with {voxels:.2g} voxels, more than "
            f"{_MOST_VOXELS:.2g}: the voxel size in its model card ({stage.spacing} mm) or of the image is wrong."
        )
    return grids


def stage_input(volume: Volume, stage: StageSpec, grid: Grid, center_hu: float = 0.0) -> torch.Tensor:
    """The input of `stage`'s network: float32 (k, j, i) on `grid`, normalized.

    :param center_hu: median HU of the structure in the stage's region, for a centered intensity.
    """
    return preprocessing_of(stage).image(volume, stage, grid, center_hu)


def padded(image: torch.Tensor, stage: StageSpec, plan: WindowPlan, center_hu: float) -> torch.Tensor:
    """A stage's input (k, j, i), padded to ``plan.padded_shape`` with what lies outside every image.

    :param center_hu: as in :func:`stage_input`.
    """
    return plan.pad(image, preprocessing_of(stage).pad_value(stage, center_hu))


def padded_input(
    volume: Volume, stage: StageSpec, grid: Grid, plan: WindowPlan, center_hu: float = 0.0
) -> torch.Tensor:
    """:func:`stage_input` padded to ``plan.padded_shape``, from which the windows of `plan` are taken."""
    return padded(stage_input(volume, stage, grid, center_hu), stage, plan, center_hu)


def run_network(network: Forward, window: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """Logits (channels, a, b, c) of one window (a, b, c). A 2-D network processes the slices along `a` as a batch."""
    return _run_windows(network, window[None], stage)[0]


def predict_logits(
    networks: Sequence[Forward],
    image: torch.Tensor,
    stage: StageSpec,
    plan: WindowPlan,
    context: RunContext,
) -> torch.Tensor:
    """Blended logits of a whole image: the weighted sum over the windows, averaged over the ensemble.

    :param networks: modules on the context's device, or their forward passes in a backend.
    :param image: from :func:`padded_input`: (k, j, i) as in ``plan.padded_shape``.
    :return: (channels, k, j, i) as in ``plan.shape``, on the CPU; float32, or half precision for an nnU-Net.
    """
    if tuple(image.shape) != plan.padded_shape:
        raise ValueError(f"the image has {tuple(image.shape)} voxels and must be padded to {plan.padded_shape}")
    blend = preprocessing_of(stage).blend(plan)
    with torch.inference_mode(), keep_freed_memory(torch.device(context.device)):
        for number, box in enumerate(plan.boxes):
            window = image[box].to(context.device)
            for member, network in enumerate(networks):
                context.check()
                context.report(
                    f"Segmenting ({stage.name}): window {number + 1} of {len(plan.boxes)}",
                    (number + member / len(networks)) / len(plan.boxes),
                )
                blend.add(member, box, run_mirrored(network, window, stage).float().cpu())
        logits = plan.unpad(blend.mean())
    low, high = logits.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ModelError(f"The network of stage {stage.name!r} returns values that are not finite numbers.")
    return logits


def run_mirrored(network: Forward, window: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """:func:`run_network`, averaged over the mirrorings of the stage's card."""
    return run_batch(network, window[None], stage)[0]


def run_batch(network: Forward, windows: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """:func:`run_mirrored` for several windows (n, a, b, c) in one pass: logits (n, channels, a, b, c)."""
    axes = mirrorings(stage)
    logits = _run_windows(network, windows, stage)
    expected = (len(windows), len(stage.channels), *windows.shape[1:])
    if logits.shape != expected:
        raise ModelError(
            f"The network of stage {stage.name!r} returns an output of shape {tuple(logits.shape[1:])}; by the "
            f"model card it must be {expected[1:]}."
        )
    for flip in axes[1:]:
        mirrored = _run_windows(network, windows.flip([axis + 1 for axis in flip]), stage)
        logits = logits + mirrored.flip([axis + 2 for axis in flip])
    return logits / len(axes)


def _run_windows(network: Forward, windows: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """:func:`run_network` for several windows."""
    if stage.dimensions == 2:
        return network(windows.flatten(0, 1)[:, None]).unflatten(0, windows.shape[:2]).transpose(1, 2)
    return network(windows[:, None])


def mirrorings(stage: StageSpec) -> list[tuple[int, ...]]:
    """The axes of a window (a, b, c) along which each pass of :func:`run_mirrored` is flipped; none for the first."""
    return [axes for count in range(len(stage.mirror_axes) + 1) for axes in combinations(stage.mirror_axes, count)]
