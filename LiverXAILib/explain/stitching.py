# SPDX-License-Identifier: Apache-2.0
"""Whole-image maps from windows: run the windows that overlap the target, keep what the method needs, stitch the maps.

Two kinds of maps (see :class:`LiverXAILib.explain.methods.Method`):

* *shares* of the score (HiResCAM and related methods): window p contributes ``h_p = sum_k g_k^p A_k^p``. The gradient
  ``g^p`` already includes the window's blending weight, so shares are summed: ``map(y) = sum_p up(h_p)(y)``;
* *states* of the network (Seg-Grad-CAM): ``map_p = sum_k alpha_k A_k^p`` with alpha summed over all windows. An
  activation is a state, not a share, and is blended as the logits are: ``map(y) = sum_p W_p(y) up(map_p)(y)``.
  Windows without a share in the question do not influence the score and count as 0, so the map fades out toward them
  with the same Gaussian weights.

``up`` interpolates linearly between the centers of the layer's cells. The positive part is taken last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from ..context import UNATTENDED, RunContext
from ..inference.backends import keep_freed_memory
from ..models.spec import StageSpec
from ..volumes.box import Box, bounding_box
from ..volumes.resample import resample
from .layers import LayerTap, lattice_grid, layer_stride, layer_warnings
from .methods import Method, TensorFile
from .score import ScoreTarget
from .shared_backward import SharedBackward
from .stage_context import StageContext, StageMap

#: Activations and gradients that together exceed this many bytes go to temporary files.
_SPOOL_BYTES = 256 * 1024**2


@dataclass
class _Record:
    """What is kept of one network for one question: see :class:`LiverXAILib.explain.methods.Record`."""

    activations: TensorFile
    gradients: TensorFile
    cells: int = 0
    windows: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, position in enumerate(self.positions):
            yield self.activations[position], self.gradients[index]


def stage_maps(
    run: StageContext,
    score_targets: Sequence[ScoreTarget],
    method: Method,
    layer: str = "",
    context: RunContext = UNATTENDED,
) -> Iterator[StageMap]:
    """Yield the map of each question by `method`, at `layer` if the method reads one."""
    if method.layer_maps is not None:
        with recorded(run, score_targets, [layer], context) as recording:
            for number in range(len(score_targets)):
                yield recording.map(number, method, layer)
        return
    assert method.image_map is not None
    for number, score_target in enumerate(score_targets):
        yield method.image_map(run, score_target, context.step(number, len(score_targets)))


@contextmanager
def recorded(
    run: StageContext,
    score_targets: Sequence[ScoreTarget],
    layers: Sequence[str],
    context: RunContext = UNATTENDED,
) -> Iterator[Recording]:
    """Run the windows that overlap the targets, once, and keep what maps at `layers` need while the block runs."""
    with ExitStack() as files:
        recording = Recording(run, score_targets, layers, files)
        with ExitStack() as stack:
            # One tap for each layer, by network: several passes (mirrorings) may use one network.
            taps = [
                [stack.enter_context(LayerTap(network, layer, run.stage)) for layer in layers]
                for network in run.networks
            ]
            with keep_freed_memory(run.device):
                recording.fill(taps, context)
        yield recording


class Recording:
    """Activations and gradients at some layers, for some questions, in every window that overlaps their targets.

    In each window all questions share one forward pass of each network, and those whose targets are far apart share
    the backward pass as well (see :class:`LiverXAILib.explain.shared_backward.SharedBackward`). Activations and
    gradients are kept in temporary files.
    """

    def __init__(
        self, run: StageContext, score_targets: Sequence[ScoreTarget], layers: Sequence[str], files: ExitStack
    ) -> None:
        self._run = run
        self._score_targets = score_targets
        self._backward = SharedBackward()
        self._warnings: dict[tuple[str, int], list[str]] = {}
        self._scores = [0.0 for _ in score_targets]
        self._records: dict[str, list[list[_Record]]] = {}
        share = _SPOOL_BYTES // (len(layers) * len(run.passes) * (1 + len(score_targets)))
        for layer in layers:
            self._records[layer] = []
            for _ in run.passes:
                shared, *own = (_temporary(files, share) for _ in range(1 + len(score_targets)))
                self._records[layer].append([_Record(shared, gradients) for gradients in own])

    def map(self, number: int, method: Method, layer: str) -> StageMap:
        """The map of question number `number` at `layer`, by a method that reads layers."""
        values = torch.zeros(self._run.plan.padded_shape)
        total = sum(_stitch(self._run, layer, method, records[number], values) for records in self._records[layer])
        score_target = self._score_targets[number]
        found = self._warnings[layer, number]
        if not found and float(values.max()) <= 0:
            found = [
                f"No feature at layer {layer!r} increases the score of {score_target.target.describe()}: "
                "the map is empty."
            ]
        details: dict[str, float] = {"windows_run": len(score_target.windows), "windows": len(self._run.plan.boxes)}
        if method.additive and self._scores[number] != 0:
            details["accounts_for"] = round(total / self._scores[number], 4)
        return StageMap(values, found, details)

    def fill(self, taps: list[list[LayerTap]], context: RunContext) -> None:
        """Run the windows."""
        run = self._run
        windows = sorted({number for score_target in self._score_targets for number in score_target.windows})
        for step, number in enumerate(windows):
            for pass_index, (network, _) in enumerate(run.passes):
                context.check()
                context.report(
                    f"Explaining ({run.stage.name}): window {step + 1} of {len(windows)}",
                    (step + pass_index / len(run.passes)) / len(windows),
                )
                self._read(number, pass_index, taps[network])

    def _read(self, number: int, pass_index: int, taps: list[LayerTap]) -> None:
        """One network in one window: the forward and the backward pass."""
        run, layers = self._run, list(self._records)
        box = run.plan.boxes[number]
        weight = run.plan.weight(box)
        asking = [index for index, score_target in enumerate(self._score_targets) if number in score_target.windows]
        shares = {index: self._score_targets[index].window_weights(box, weight) for index in asking}
        asked = None if any(tap.is_cropped for tap in taps) else _asked(shares.values())
        with torch.enable_grad():
            logits = run.forward(pass_index, box, asked)
            scores = {
                index: self._score_targets[index].score(logits, shares[index].to(run.device)) / len(run.passes)
                for index in asking
            }
        for index, score in scores.items():
            self._scores[index] += float(score.detach())
        held = [tap.take() for tap in taps]
        kept = [run.undo_mirroring(pass_index, channels_first(activation, run.stage)) for activation in held]
        strides = [
            layer_stride(run.stage, layer, weight.shape, a.shape[1:]) for layer, a in zip(layers, kept, strict=True)
        ]

        def back(score: torch.Tensor) -> list[torch.Tensor]:
            gradients = _gradients(score, held)
            return [run.undo_mirroring(pass_index, channels_first(gradient, run.stage)) for gradient in gradients]

        gradients = self._backward.gradients(scores, shares, strides, back)
        for place, layer in enumerate(layers):
            self._records[layer][pass_index][0].activations.append(kept[place])
            for index in asking:
                record = self._records[layer][pass_index][index]
                gradient = gradients[index][place]
                record.gradients.append(gradient)
                record.windows.append(number)
                record.positions.append(len(record.activations) - 1)
                record.cells = kept[place][0].numel() * len(run.plan.boxes)
                if number == self._score_targets[index].focus and pass_index == 0:
                    self._warnings[layer, index] = layer_warnings(
                        layer, taps[place].consumer, kept[place], gradient, scores[index], held[place]
                    )


def _asked(shares: Collection[torch.Tensor]) -> Box | None:
    """The box around all voxels of a window with a share in a score."""
    boxes = [bounding_box((share != 0).any(dim=0).numpy()) for share in shares]
    return Box.union(boxes) if any(boxes) else None


def _temporary(files: ExitStack, in_memory: int) -> TensorFile:
    return TensorFile(files.enter_context(tempfile.SpooledTemporaryFile(in_memory)))


def channels_first(activation: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """A network's activation in one window as (channels, a, b, c). A 2-D network's batch is the axis `a`."""
    return activation.detach().transpose(0, 1) if stage.dimensions == 2 else activation.detach()[0]


def _gradients(score: torch.Tensor, held: list[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients of one score at each layer; the graph is kept for the next score."""
    if not score.requires_grad:
        return [torch.zeros_like(activation) for activation in held]
    found = torch.autograd.grad(score, held, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(a) if gradient is None else gradient for a, gradient in zip(held, found, strict=True)]


def _stitch(run: StageContext, layer: str, method: Method, record: _Record, values: torch.Tensor) -> float:
    """Add one network's map, on the padded stage grid, to `values`; returns the sum over the layer's own cells."""
    assert method.layer_maps is not None
    total = 0.0
    for number, lattice in zip(record.windows, method.layer_maps(record), strict=True):
        box = run.plan.boxes[number]
        grid = run.grid.cropped(box)
        cells = lattice.shape[0], lattice.shape[1], lattice.shape[2]
        stride = layer_stride(run.stage, layer, grid.shape, cells)
        fine = resample(lattice, lattice_grid(grid, stride, cells), grid, antialias=False)
        values[box] += fine * run.plan.weight(box) if method.blended else fine
        total += float(lattice.double().sum())
    return total
