# SPDX-License-Identifier: Apache-2.0
"""From an image to what a stage's network sees, and back: grids, intensities, windows, logits.

Each function is used by :func:`LiverXAILib.inference.segment` and, with gradients, by :mod:`LiverXAILib.explain`, so
that an explanation is about exactly the computation that made the segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

from ..errors import InputError
from ..models.spec import StageSpec
from ..progress import CancelToken, Progress, check_cancel, report_progress
from ..volumes.orientation import reorient_grid
from ..volumes.resample import regrid, resample, resized
from ..volumes.volume import Grid, Volume, bounding_box
from .windows import Box, WindowPlan

#: Hounsfield units of what lies outside an image.
AIR_HU = -1024.0
#: A scan turned further than this from the patient's axes is resampled to them; below it, its own axes are kept.
_MAX_TILT_DEGREES = 10.0
#: The body: everything denser than this that hangs together.
_BODY_HU = -300.0
#: A scan longer than a stage's field of view is cut into parts that overlap by this fraction.
_PART_OVERLAP = 0.5


def working_grid(grid: Grid, axes: str) -> Grid:
    """The image's voxel grid with its axes in the order `axes` ("SPL": superior, posterior, left).

    Voxels stay where they are unless the scan is sheared or oblique by more than 10 degrees, as with a tilted
    gantry: then the result is the upright box around it, since networks are trained on upright patients.
    """
    canonical = reorient_grid(grid, axes)
    upright = _axis_vectors(axes)
    cosines = np.abs(np.sum(canonical.direction * upright, axis=0))
    if np.degrees(np.arccos(np.clip(cosines, 0, 1))).max() <= _MAX_TILT_DEGREES:
        return canonical
    spacing = np.array(canonical.spacing)
    k, j, i = (n - 1 for n in canonical.shape)
    corners = canonical.to_lps(np.array(list(product((0, i), (0, j), (0, k))))) @ upright
    low, high = corners.min(axis=0), corners.max(axis=0)
    n_i, n_j, n_k = (int(n) for n in np.ceil((high - low) / spacing - 1e-6) + 1)
    matrix = np.eye(4)
    matrix[:3, :3] = upright * spacing
    matrix[:3, 3] = upright @ low
    return Grid((n_k, n_j, n_i), matrix)


def stage_grids(volume: Volume, stage: StageSpec, box: Box | None = None) -> list[Grid]:
    """The grids on which `stage` may run: one, or several overlapping parts of a scan longer than it can take.

    :param box: (k, j, i) box on the *input* image around what an earlier stage found; None for the whole image.
    """
    base = working_grid(volume.grid, stage.axes)
    if box is not None:
        base = base.cropped(project_box(box, volume.grid, base, stage.region.margin_mm if stage.region else 0.0))
    if stage.crop_to_body:
        base = base.cropped(_body_box(volume, base))
    if stage.spacing is not None:
        # The card lists sizes along the tensor's axes (k, j, i); a Grid's spacing is (i, j, k).
        return [regrid(base, stage.spacing[::-1])]
    assert stage.size is not None
    return [resized(part, stage.size) for part in _parts(base, stage.field_of_view_mm)]


def project_box(box: Box, source: Grid, target: Grid, margin_mm: float = 0.0) -> Box:
    """The smallest box on `target` around `box` on `source`, grown by `margin_mm` and clipped to `target`."""
    ends = [(s.start - 0.5, s.stop - 0.5) for s in box[::-1]]
    ijk = target.to_ijk(source.to_lps(np.array(list(product(*ends)))))
    margin = margin_mm / np.array(target.spacing)
    sizes = np.array(target.shape[::-1])
    low = np.clip(np.floor(ijk.min(axis=0) - margin + 0.5 + 1e-3), 0, sizes - 1).astype(int)
    high = np.clip(np.ceil(ijk.max(axis=0) + margin + 0.5 - 1e-3), low + 1, sizes).astype(int)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return k, j, i


def stage_input(volume: Volume, stage: StageSpec, grid: Grid) -> torch.Tensor:
    """The image as `stage`'s network wants it: float32 (k, j, i) on `grid`, normalized."""
    image = resample(volume.array, volume.grid, grid, fill=AIR_HU)
    return normalize(image, stage)


def normalize(image: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """HU to network input, by the card's intensity."""
    intensity = stage.intensity
    if intensity.low is not None or intensity.high is not None:
        image = image.clamp(intensity.low, intensity.high)
    return (image - intensity.shift) / intensity.scale


def pad_value(stage: StageSpec) -> float:
    """What surrounds an image that is smaller than its padded windows, as the network sees it."""
    return float(normalize(torch.tensor(AIR_HU), stage))


def stage_plan(stage: StageSpec, grid: Grid) -> WindowPlan:
    """The windows in which `stage` reads an image on `grid`."""
    window, divisor = stage.window, stage.divisor
    if stage.dimensions == 2:
        window = (1, *(window[1:] if window else grid.shape[1:]))
        divisor = (1, divisor[1], divisor[2])
    return WindowPlan.build(
        grid.shape, window, overlap=stage.overlap, divisor=divisor, pad_to_window=stage.pad_to_window
    )


def run_network(network: nn.Module, window: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """Logits (channels, a, b, c) of one window (a, b, c). A 2-D network reads its slices along `a` as a batch."""
    if stage.dimensions == 2:
        return network(window[:, None]).transpose(0, 1)
    return network(window[None, None])[0]


def predict_logits(
    networks: Sequence[nn.Module],
    image: torch.Tensor,
    stage: StageSpec,
    plan: WindowPlan,
    device: torch.device,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> torch.Tensor:
    """Blended logits of a whole image: the mean over the ensemble of the windows' weighted sum.

    :param image: normalized, (k, j, i) as in ``plan.shape``.
    :return: float32 (channels, k, j, i) on the CPU.
    """
    padded = plan.pad(image, pad_value(stage))
    logits: torch.Tensor | None = None
    with torch.inference_mode():
        for number, box in enumerate(plan.boxes):
            window = padded[box].to(device)
            weight = plan.weight(box)
            for member, network in enumerate(networks):
                check_cancel(cancel)
                report_progress(
                    progress,
                    f"Segmenting ({stage.name}): window {number + 1} of {len(plan.boxes)}",
                    (number + member / len(networks)) / len(plan.boxes),
                )
                output = run_network(network, window, stage).float().cpu() / len(networks)
                if logits is None:
                    logits = torch.zeros((output.shape[0], *plan.padded_shape))
                logits[(slice(None), *box)] += output * weight
    assert logits is not None
    return plan.unpad(logits)


def region_margin(logits: torch.Tensor, stage: StageSpec, label: str) -> torch.Tensor:
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


def _axis_vectors(axes: str) -> np.ndarray:
    """3x3: columns are the LPS unit vectors of the i, j, k axes for an `axes` code given in (k, j, i) order."""
    vectors = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    return np.array([vectors[letter] for letter in reversed(axes)], dtype=float).T


def _body_box(volume: Volume, base: Grid) -> Box:
    """The box on `base` around the patient's body: the largest dense component of a coarse image."""
    coarse = regrid(base, (6.0, 6.0, 6.0))
    dense = (resample(volume.array, volume.grid, coarse, fill=AIR_HU) > _BODY_HU).numpy().astype(np.uint8)
    image = sitk.GetImageFromArray(dense)
    # Opening by a voxel cuts the thin contacts between the back and the table.
    opened = sitk.BinaryMorphologicalOpening(image, [1, 1, 0])
    components = sitk.RelabelComponent(sitk.ConnectedComponent(opened))
    box = bounding_box(sitk.GetArrayViewFromImage(components) == 1)
    if box is None:
        raise InputError("The image shows no body: nothing in it is denser than -300 HU. Is it really a CT in HU?")
    return project_box(box, coarse, base)


def _parts(base: Grid, limits_mm: tuple[float | None, float | None, float | None]) -> list[Grid]:
    """Cut `base` along the axes that are longer than `limits_mm` ((k, j, i), None: no limit)."""
    choices = []
    for n, spacing, limit in zip(base.shape, base.spacing[::-1], limits_mm, strict=True):
        size = n if limit is None else min(n, max(1, int(limit / spacing)))
        count = 1 if size == n else int(np.ceil((n - size) / (size * (1 - _PART_OVERLAP)))) + 1
        starts = np.linspace(0, n - size, count).round().astype(int)
        choices.append([slice(int(start), int(start) + size) for start in starts])
    return [base.cropped((k, j, i)) for k, j, i in product(*choices)]
