# SPDX-License-Identifier: Apache-2.0
"""The computation that is explained: one stage of a model on one image, as run for the segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ..inference.backends import PartialForward, choose_backend, partial_forward
from ..inference.geometry import AIR_HU
from ..inference.segmentation import Segmentation, require_segmentation
from ..inference.stages import (
    mirrorings,
    normalize,
    padded_input,
    run_network,
    sample_box,
    stage_grids,
    stage_plan,
)
from ..inference.windows import WindowPlan
from ..models.model import Model, require_model
from ..models.spec import LabelSpec, StageSpec
from ..volumes.box import Box, bounding_box
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume, require_volume
from .targets import EmptyTargetError

#: Standard deviation in mm of the Gaussian that removes a structure from an image without leaving an edge.
BLUR_MM = 12.0


@dataclass(frozen=True, eq=False)
class StageContext:
    """A stage's networks, their input image, and the windows.

    :param grid: of the padded image: where each of its voxels lies.
    :param image: float32, normalized, (k, j, i) as in ``plan.padded_shape``.
    :param air: the value of air in the network's input.
    :param tissue: the value of plain tissue of the target's organ: its median in this patient.
    :param water: the value that water, 0 HU, would have without clipping, and `unit_hu`: HU per unit of the input.
    :param segmentation: the result that is explained.
    :param part_of: the run whose image was cropped to this one, and the box of the crop; None: it is not cropped.
    """

    stage: StageSpec
    networks: Sequence[nn.Module]
    grid: Grid
    plan: WindowPlan
    image: torch.Tensor
    device: torch.device
    air: float
    tissue: float
    water: float
    unit_hu: float
    segmentation: Segmentation
    part_of: tuple[StageContext, Box] | None = None

    def __repr__(self) -> str:
        return f"StageContext({self.stage.name!r}, {self.grid.summary()})"

    @staticmethod
    def prepare(
        volume: Volume, model: Model, stage: StageSpec, segmentation: Segmentation, device: torch.device
    ) -> StageContext:
        """The run that made `segmentation`. If it was made elsewhere, the grid follows from the model card.

        :raises EmptyTargetError: the stage measures HU relative to a structure that is not there.
        """
        grid = segmentation.stage_grids.get(stage.name) or _grid_for(volume, stage, segmentation)
        plan = stage_plan(stage, grid)
        center_hu = _center_hu(volume, stage, segmentation)
        image = padded_input(volume, stage, grid, plan, center_hu)
        found = segmentation.box or Box.full((0, 0, 0))
        organ = volume.array[found][segmentation.labels.array[found] == _organ(segmentation).value]
        median = float(np.median(organ)) if organ.size else AIR_HU
        reference = torch.from_numpy(volume.array.astype(np.float32)) if stage.intensity.statistics else None
        air, tissue = normalize(torch.tensor([AIR_HU, median]), stage.intensity, center_hu, reference).tolist()
        unclipped = replace(stage.intensity, low=None, high=None)
        water, denser = normalize(torch.tensor([0.0, 1000.0]), unclipped, center_hu, reference).tolist()
        return StageContext(
            stage=stage,
            networks=model.members(stage),
            grid=plan.padded_grid(grid),
            plan=plan,
            image=image,
            device=device,
            air=air,
            tissue=tissue,
            water=water,
            unit_hu=1000.0 / (denser - water),
            segmentation=segmentation,
        )

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm along the tensor's axes (k, j, i)."""
        i, j, k = self.grid.spacing
        return k, j, i

    @cached_property
    def passes(self) -> list[tuple[int, tuple[int, ...]]]:
        """The passes that are averaged: each network with each set of axes along which its input is mirrored."""
        return [(number, axes) for number in range(len(self.networks)) for axes in mirrorings(self.stage)]

    @cached_property
    def backend(self) -> str:
        """The backend that is fastest here for a pass without gradients; the segmentation used it, too."""
        sample = self.image[sample_box(self.plan, self.stage)]
        return choose_backend(self.networks[0], self.stage, self.device, sample, self.image.numel()).backend

    @cached_property
    def forwards(self) -> list[PartialForward]:
        """The networks, without gradients, on :attr:`backend`."""
        if self.part_of is not None:  # the fastest backend was chosen for the whole image
            return self.part_of[0].forwards
        return [partial_forward(self.backend, network, self.device) for network in self.networks]

    def make_ready(self) -> None:
        """Compile the networks now, before several threads use them."""
        _ = self.forwards

    def logits(self, windows: torch.Tensor, part: Box) -> torch.Tensor:
        """Mean logits (n, channels, \\*part) of all passes, without gradients, in a part of each of `windows`
        (n, a, b, c), on the CPU."""
        total = torch.zeros(())
        with torch.inference_mode():
            for number, axes in self.passes:
                batch = windows.flip([axis + 1 for axis in axes]).to(self.device)
                mirrored = _mirrored(part, axes, windows.shape[1:])
                if self.stage.dimensions == 2:  # the network processes single slices
                    batch = batch[:, mirrored.k]
                    logits = self.forwards[number](batch.flatten(0, 1)[:, None], mirrored)
                    logits = logits.unflatten(0, batch.shape[:2]).transpose(1, 2)
                else:
                    logits = self.forwards[number](batch[:, None], mirrored)
                total = total + logits.float().cpu().flip([axis + 2 for axis in axes]) / len(self.passes)
        return total

    def network(self, pass_index: int, window: torch.Tensor, part: Box | None = None) -> torch.Tensor:
        """Logits (channels, a, b, c) of pass number `pass_index` for one window (a, b, c), on the device.

        :param part: the part of the window where logits are needed; elsewhere they may be 0.
        """
        number, axes = self.passes[pass_index]
        network = self.networks[number]
        if part is None or not getattr(network, "computes_parts", False):
            return self.undo_mirroring(pass_index, run_network(network, window.flip(axes), self.stage).float())
        mirrored = _mirrored(part, axes, window.shape)
        logits = network(window.flip(axes)[None, None], mirrored)[0].float()
        around = [(side.start, n - side.stop) for side, n in zip(mirrored, window.shape, strict=True)]
        logits = torch.nn.functional.pad(logits, [n for ends in reversed(around) for n in ends])
        return self.undo_mirroring(pass_index, logits)

    def undo_mirroring(self, pass_index: int, values: torch.Tensor) -> torch.Tensor:
        """The result of pass number `pass_index`, (channels, a, b, c), with its mirroring undone."""
        return values.flip([axis + 1 for axis in self.passes[pass_index][1]])

    def forward(self, pass_index: int, box: Box, part: Box | None = None) -> torch.Tensor:
        """Logits (channels, a, b, c) of one network in the window at `box` of the image, on the device.

        :param part: the part of the window where logits are needed.
        """
        return self.network(pass_index, self.image[box].to(self.device), part)

    @property
    def hu(self) -> torch.Tensor:
        """The image in HU, clipped to the network's input range."""
        return self.to_hu(self.image)

    def to_hu(self, values: torch.Tensor) -> torch.Tensor:
        """Network input → HU."""
        return (values - self.water) * self.unit_hu

    def from_hu(self, hu: torch.Tensor) -> torch.Tensor:
        """HU → network input, for HU within the network's input range."""
        return hu / self.unit_hu + self.water

    @property
    def organ(self) -> str:
        """The label of the organ in which lesions are looked for: the liver, or else the first label."""
        return _organ(self.segmentation).name

    def mask(self, label: str) -> torch.Tensor:
        """Where `label` was found: bool (k, j, i), as in `image`; must not be modified."""
        if self.part_of is not None:
            whole, box = self.part_of
            return whole.mask(label)[box]
        if label not in self._masks:
            self._masks[label] = self._brought_here(label)
        return self._masks[label]

    def _brought_here(self, label: str) -> torch.Tensor:
        """The voxels of `label` on this grid; only the part of the grid that contains them is resampled."""
        mask = torch.zeros(self.grid.shape, dtype=torch.bool)
        labels = self.segmentation.labels.grid
        found = self.segmentation.box
        own = bounding_box(self.segmentation.mask(label, found)) if found is not None else None
        if found is None or own is None:
            return mask
        box = own.shifted(found.start).projected(labels, self.grid, margin_mm=max(labels.spacing))
        grid = self.grid.cropped(box)
        source = Box.full(grid.shape).projected(grid, labels, margin_mm=2 * max(self.spacing))
        voxels = self.segmentation.mask(label, source).astype(np.float32)
        mask[box] = resample(voxels, labels.cropped(source), grid, antialias=False) > 0.5
        return mask

    @cached_property
    def _masks(self) -> dict[str, torch.Tensor]:
        return {}

    @cached_property
    def blurred(self) -> torch.Tensor:
        """The image after a Gaussian of :data:`BLUR_MM`: how this patient's CT looks without focal structures."""
        return gaussian(self.image, [BLUR_MM / size for size in self.spacing])


def require_explainable(volume: Volume, model: Model, segmentation: Segmentation) -> None:
    """Check the arguments that all explanations have in common.

    :raises LiverXAILib.errors.InputError: the image has no voxels, or they are not finite numbers.
    :raises LiverXAILib.errors.UsageError: an argument is of another type, or the grids differ.
    """
    require_volume(volume)
    require_model(model)
    require_segmentation(segmentation)
    if not segmentation.labels.grid.matches(volume.grid):
        raise UsageError("The segmentation is not on the grid of the image that is to be explained.")


class StageContexts:
    """The stages of a model on one CT, each prepared once for all questions about its segmentation."""

    def __init__(self, volume: Volume, model: Model, segmentation: Segmentation, device: torch.device) -> None:
        self._about = volume, model, segmentation, device
        self._prepared: dict[str, StageContext] = {}

    def of(self, stage: StageSpec) -> StageContext:
        """The run of `stage`, see :meth:`StageContext.prepare`."""
        if stage.name not in self._prepared:
            volume, model, segmentation, device = self._about
            self._prepared[stage.name] = StageContext.prepare(volume, model, stage, segmentation, device)
        return self._prepared[stage.name]


def gaussian(image: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Gaussian smoothing of (k, j, i) with standard deviations in voxels along each axis; edges are repeated."""
    for axis, sigma in enumerate(sigmas):
        reach = min(max(1, round(3 * sigma)), image.shape[axis] - 1)
        if sigma <= 0 or reach < 1:
            continue
        weights = torch.exp(-0.5 * (torch.arange(reach + 1, dtype=torch.float32) / sigma) ** 2)
        weights /= 2 * weights.sum() - weights[0]
        size, ends = image.shape[axis], [reach if a == axis else -1 for a in range(3)]
        first, last = image.narrow(axis, 0, 1).expand(ends), image.narrow(axis, size - 1, 1).expand(ends)
        padded = torch.cat([first, image, last], dim=axis)
        # Adding shifted copies is several times faster than a convolution with one channel.
        image = image * weights[0]
        for offset, weight in enumerate(weights[1:].tolist(), start=1):
            image += weight * (padded.narrow(axis, reach - offset, size) + padded.narrow(axis, reach + offset, size))
    return image


@dataclass(eq=False)
class StageMap:
    """A signed map on the padded grid of a stage, before normalization.

    :param values: float32 (k, j, i).
    :param warnings: why the map may be meaningless.
    :param details: JSON-ready, for the provenance.
    """

    values: torch.Tensor = field(repr=False)
    warnings: list[str] = field(default_factory=list)
    details: Mapping[str, object] = field(default_factory=dict)


def _mirrored(box: Box, axes: Sequence[int], shape: Sequence[int]) -> Box:
    """`box` after an array of `shape` was flipped along `axes`."""
    return Box(
        *(
            slice(n - side.stop, n - side.start) if axis in axes else side
            for axis, (side, n) in enumerate(zip(box, shape, strict=True))
        )
    )


def _organ(segmentation: Segmentation) -> LabelSpec:
    return next((spec for spec in segmentation.specs if spec.is_liver), segmentation.specs[0])


def _grid_for(volume: Volume, stage: StageSpec, segmentation: Segmentation) -> Grid:
    """The stage's grid for a segmentation that does not record it.

    Of several parts of a long scan, the one that contains most of the segmented voxels is taken.
    """
    region = stage.region.label if stage.region else None
    box = bounding_box(segmentation.mask(region)) if region else None
    grids = stage_grids(volume, stage, box)
    found = segmentation.labels.grid.to_lps(np.argwhere(segmentation.labels.array)[:, ::-1])
    return max(grids, key=lambda grid: _count_inside(grid, found))


def _center_hu(volume: Volume, stage: StageSpec, segmentation: Segmentation) -> float:
    """The HU on which the stage's intensity is centered: as recorded, or else computed now."""
    if not stage.intensity.centered or stage.region is None:
        return 0.0
    if stage.name in segmentation.stage_centers:
        return segmentation.stage_centers[stage.name]
    label = stage.region.label
    region = segmentation.mask(label)
    if not region.any():
        raise EmptyTargetError(f"Stage {stage.name!r} of the model needs the HU of the {label}, which is not marked.")
    return float(np.median(volume.array[region]))


def _count_inside(grid: Grid, points: np.ndarray) -> int:
    ijk = grid.to_ijk(points)
    return int(((ijk >= -0.5) & (ijk < np.array(grid.shape[::-1]) - 0.5)).all(axis=1).sum())
