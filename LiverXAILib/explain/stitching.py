# SPDX-License-Identifier: Apache-2.0
"""Whole-image maps from windows: run what the question touches, keep what the method needs, put it together.

Two kinds of maps (see :class:`LiverXAILib.explain.methods.Method`):

* *shares* of the score (HiResCAM and relatives): window p contributes ``h_p = sum_k g_k^p A_k^p``. The gradient
  ``g^p`` already holds the window's blending weight, so shares are summed: ``map(y) = sum_p up(h_p)(y)``;
* *states* of the network (Seg-Grad-CAM): ``map_p = sum_k alpha_k A_k^p`` with alpha summed over all windows. An
  activation is a state, not a share, and is blended as the logits are: ``map(y) = sum_p W_p(y) up(map_p)(y)``.
  Windows without a share in the question do not influence the score and count as 0, so the map fades out, by the same
  Gaussian weights, where they begin.

``up`` interpolates linearly between the centers of the layer's cells. The positive part is taken last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from ..models.spec import StageSpec
from ..progress import CancelToken, Progress, check_cancel, report_progress, scaled
from ..volumes.resample import resample
from .layers import LayerTap, lattice_grid, layer_stride, layer_warnings
from .methods import Method, TensorFile
from .run import Question, StageMap, StageRun

#: Activations and gradients of all windows beyond this many bytes go to a temporary file.
_SPOOL_BYTES = 256 * 1024**2


@dataclass
class _Record:
    """What one question keeps of one network: see :class:`LiverXAILib.explain.methods.Record`."""

    activations: TensorFile
    gradients: TensorFile
    cells: int = 0
    windows: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, position in enumerate(self.positions):
            yield self.activations[position], self.gradients[index]


def stage_maps(
    run: StageRun,
    questions: Sequence[Question],
    method: Method,
    layer: str = "",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[StageMap]:
    """Yield the map of each question by `method`, at `layer` if the method reads one."""
    if method.layer_maps is not None:
        yield from layer_maps(run, questions, method, layer, progress, cancel)
        return
    assert method.image_map is not None
    for number, question in enumerate(questions):
        part = scaled(progress, number / len(questions), (number + 1) / len(questions))
        yield method.image_map(run, question, part, cancel)


def layer_maps(
    run: StageRun,
    questions: Sequence[Question],
    method: Method,
    layer: str,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[StageMap]:
    """Yield the map of each question at `layer`. All questions share one forward pass for each window and network."""
    with ExitStack() as files:
        records, warnings = _collect(run, questions, layer, files, progress, cancel)
        for index, question in enumerate(questions):
            values = torch.zeros(run.plan.padded_shape)
            for member_records in records:
                _stitch(run, layer, method, member_records[index], values)
            found = warnings[index]
            if not found and float(values.max()) <= 0:
                found = [f"Nothing at layer {layer!r} speaks for {question.target.describe()}: the map is empty."]
            yield StageMap(values, found, {"windows_run": len(question.windows), "windows": len(run.plan.boxes)})


def _collect(
    run: StageRun,
    questions: Sequence[Question],
    layer: str,
    files: ExitStack,
    progress: Progress | None,
    cancel: CancelToken | None,
) -> tuple[list[list[_Record]], list[list[str]]]:
    """Run the windows that the questions touch: records by pass and question, warnings by question."""
    windows = sorted({number for question in questions for number in question.windows})
    records: list[list[_Record]] = []
    for _ in run.passes:
        shared, *own = (_temporary(files) for _ in range(1 + len(questions)))
        records.append([_Record(shared, gradients) for gradients in own])
    warnings: list[list[str]] = [[] for _ in questions]
    with ExitStack() as stack:
        taps = [stack.enter_context(LayerTap(network, layer, run.stage)) for network in run.networks]
        for step, number in enumerate(windows):
            box = run.plan.boxes[number]
            weight = run.plan.weight(box)
            asking = [index for index, question in enumerate(questions) if number in question.windows]
            shares = {index: questions[index].share(box, weight).to(run.device) for index in asking}
            for member, (network, _) in enumerate(run.passes):
                check_cancel(cancel)
                report_progress(
                    progress,
                    f"Explaining ({run.stage.name}): window {step + 1} of {len(windows)}",
                    (step + member / len(run.passes)) / len(windows),
                )
                with torch.enable_grad():
                    logits = run.forward(member, box)
                activation = taps[network].take()
                stored = run.upright(member, channels_first(activation, run.stage))
                records[member][0].activations.append(stored)
                for index in asking:
                    question, record = questions[index], records[member][index]
                    with torch.enable_grad():
                        score = question.score(logits, shares[index]) / len(run.passes)
                    gradient = _gradient(score, activation, retain=index != asking[-1])
                    gradient = run.upright(member, channels_first(gradient, run.stage))
                    record.gradients.append(gradient)
                    record.windows.append(number)
                    record.positions.append(len(record.activations) - 1)
                    record.cells = stored[0].numel() * len(run.plan.boxes)
                    if number == question.focus and member == 0:
                        stride = layer_stride(run.stage, layer, weight.shape, stored.shape[1:])
                        asked = shares[index].abs().sum(dim=0)
                        warnings[index] = layer_warnings(layer, stride, taps[network].consumer, stored, gradient, asked)
    return records, warnings


def _temporary(files: ExitStack) -> TensorFile:
    return TensorFile(files.enter_context(tempfile.SpooledTemporaryFile(_SPOOL_BYTES)))


def channels_first(activation: torch.Tensor, stage: StageSpec) -> torch.Tensor:
    """A network's activation in one window as (channels, a, b, c). A 2-D network's batch is the axis `a`."""
    return activation.detach().transpose(0, 1) if stage.dimensions == 2 else activation.detach()[0]


def _gradient(score: torch.Tensor, activation: torch.Tensor, retain: bool) -> torch.Tensor:
    if not score.requires_grad:
        return torch.zeros_like(activation)
    (gradient,) = torch.autograd.grad(score, activation, retain_graph=retain, allow_unused=True)
    return torch.zeros_like(activation) if gradient is None else gradient


def _stitch(run: StageRun, layer: str, method: Method, record: _Record, values: torch.Tensor) -> None:
    """Add one network's map, on the padded stage grid, to `values`."""
    assert method.layer_maps is not None
    for number, lattice in zip(record.windows, method.layer_maps(record), strict=True):
        box = run.plan.boxes[number]
        grid = run.grid.cropped(box)
        cells = lattice.shape[0], lattice.shape[1], lattice.shape[2]
        stride = layer_stride(run.stage, layer, grid.shape, cells)
        fine = resample(lattice, lattice_grid(grid, stride, cells), grid, antialias=False)
        values[box] += fine * run.plan.weight(box) if method.blended else fine
