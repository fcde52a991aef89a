# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark cost``: the cost of an explanation compared with the prediction and with other libraries.

Everything is measured in one run, on one window of the image, for the same score at the same layer: the plain forward
pass, LiverXAI's own map, captum's ``LayerGradCam`` and MONAI's ``GradCAM`` (where these are installed).
"""

from __future__ import annotations

import argparse
import copy
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..context import RunContext
from ..explain import METHODS, Target, explain_all, explain_lesions
from ..explain.score import ScoreTarget, build_score
from ..explain.stage_context import StageContext
from ..explain.stitching import stage_maps
from ..inference import Segmentation, segment, select_device
from ..inference.lesions import lesion_count
from ..models import Model, load_model
from ..pipeline import DEFAULT_TARGETS, analyze, check_request, explain_and_ask
from ..progress import CancelToken, Progress
from ..text import counted
from ..volumes.image_file import existing
from ..volumes.volume import Volume

#: Sampling interval of the memory, in seconds.
_TICK = 0.002

Row = dict[str, Any]


# Long: the measurements share one prepared run, and each is a few lines.
def benchmark_cost(
    volume: Volume,
    model: Model,
    *,
    target: str = "tumor",
    layer: str | None = None,
    device: str = "auto",
    repeats: int = 3,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[Row]:
    """Measure each way to explain `target`: rows with seconds, multiples of a forward pass, and peak MiB.

    All jobs run in turn, `repeats` times after a warm-up, and the shortest time counts; MiB is the peak above what the
    process held before (GPU: memory allocated by torch; CPU: resident memory, if psutil is installed). The last rows
    are about the whole image: all windows that the target touches; the liver with up to four lesions, as maps on the
    network's grid, as finished heat maps on the image's grid (:func:`~LiverXAILib.explain.explain_all`), and as
    predictions for changed CTs, compared with the stage's pass over the image; the default explanations of an analysis:
    the tumors' heat map, the liver's border, and up to ten lesions in changed CTs; and everything that an analysis does
    by default after segmenting, including the measurements.
    """
    context = RunContext(progress, cancel, select_device(device))
    segmentation = segment(volume, model, **context.keywords)
    asked = Target.parse(target)
    stage = model.spec.stage_of(asked.resolve(segmentation).label)
    run = StageContext.prepare(volume, model, stage, segmentation, torch.device(context.device))
    score_target = build_score(asked, segmentation, model, run, context)
    layer = layer or stage.default_layer
    box = run.plan.boxes[score_target.focus]
    alone = replace(score_target, windows={score_target.focus: score_target.windows[score_target.focus]})
    jobs: dict[str, Callable[[], object]] = {
        "forward pass": lambda: _forward(run, score_target, [score_target.focus]),
        "LiverXAI, one question": lambda: _maps(run, [alone], layer),
        "LiverXAI, four questions": lambda: _maps(run, [alone] * 4, layer),
    }
    share = score_target.window_weights(box, run.plan.weight(box))
    scored = _Score(run, score_target, share).to(run.device)
    window = run.image[box][None, None].to(run.device)
    if (job := _captum(scored, layer, window)) is not None:
        jobs["captum LayerGradCam"] = job
    if (job := _monai(scored, layer, window)) is not None:
        jobs["MONAI GradCAM"] = job
    touched, every = list(score_target.windows), list(range(len(run.plan.boxes)))
    jobs[f"forward pass, {counted(len(touched), 'window')}"] = lambda: _forward(run, score_target, touched)
    jobs[f"LiverXAI, {counted(len(touched), 'window')}"] = lambda: _maps(run, [score_target], layer)
    texts = _liver_and_lesions(segmentation, stage.labels)
    several = [build_score(Target.parse(text), segmentation, model, run, context) for text in texts]
    jobs[f"segmentation's pass, {counted(len(every), 'window')}"] = lambda: _forward(run, score_target, every)
    jobs[f"LiverXAI, {', '.join(texts)}"] = lambda: _maps(run, several, layer)
    jobs["the same on the image's grid"] = lambda: explain_all(
        volume, model, segmentation, texts, layer=layer, device=device
    )
    lesions = [text for text in texts if text != "liver"]
    jobs[f"changed CTs, {', '.join(lesions) or 'no lesion'}"] = lambda: explain_lesions(
        volume, model, segmentation, lesions, device=device, refusals=[]
    )
    found = lesion_count(segmentation) if "tumor" in stage.labels else 0
    present = [
        Target.parse(label) for label in DEFAULT_TARGETS if label in stage.labels and segmentation.mask(label).any()
    ]
    jobs[f"heat map, border and changed CTs, as by default, {found} lesions"] = lambda: explain_and_ask(
        volume, model, segmentation, present, default_targets=True, refusals=[], context=context.silent
    )
    jobs[f"analysis beyond the segmentation, {found} lesions"] = lambda: analyze(
        volume, model, segmentation=segmentation, device=device
    )
    for job in jobs.values():
        context.check()
        job()
    measured: dict[str, list[tuple[float, float | None]]] = {name: [] for name in jobs}
    for turn in range(repeats):
        for number, (name, job) in enumerate(jobs.items()):
            context.check()
            context.report(f"Measuring: {name}", (turn + number / len(jobs)) / repeats)
            measured[name].append(_measure(job, run.device))
    rows: list[Row] = []
    base = 0.0
    for name, runs in measured.items():
        seconds = min(one for one, _ in runs)
        # Each row is compared with the forward pass above it.
        base = seconds if "pass" in name else base
        rows.append(
            {
                "what": name,
                "layer": layer,
                "seconds": seconds,
                "forward_passes": round(seconds / base, 2),
                "peak_mib": max((peak for _, peak in runs if peak is not None), default=None),
            }
        )
    context.report("Done", 1.0)
    return rows


def _liver_and_lesions(segmentation: Segmentation, labels: Collection[str]) -> list[str]:
    """Return the liver, if it is a label of the stage and was found, and the four largest lesions."""
    found = ["liver"] if "liver" in labels and segmentation.mask("liver").any() else []
    count = min(4, lesion_count(segmentation)) if "tumor" in labels else 0
    return found + [f"lesion:{number + 1}" for number in range(count)]


class _Score(nn.Module):
    """The stage's first network with the target's score as its output, as libraries for classifiers expect."""

    def __init__(self, run: StageContext, score_target: ScoreTarget, share: torch.Tensor) -> None:
        super().__init__()
        self.network = run.networks[0]
        self.channels = list(score_target.channels)
        self.register_buffer("share", share)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """(1, 1, a, b, c) → (1, 1): one "class"."""
        return (self.network(window)[0, self.channels] * self.share).sum().reshape(1, 1)


def _forward(run: StageContext, score_target: ScoreTarget, windows: Sequence[int]) -> None:
    with torch.inference_mode():
        for number in windows:
            run.forward(0, run.plan.boxes[number])


def _maps(run: StageContext, score_targets: list[ScoreTarget], layer: str) -> None:
    for _ in stage_maps(replace(run, networks=run.networks[:1]), score_targets, METHODS["seg-grad-cam"], layer):
        pass


def _captum(scored: _Score, layer: str, window: torch.Tensor) -> Callable[[], object] | None:
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        return None
    method = LayerGradCam(scored, scored.network.get_submodule(layer))
    return lambda: method.attribute(window.clone(), target=0)


def _monai(scored: _Score, layer: str, window: torch.Tensor) -> Callable[[], object] | None:
    try:
        from monai.visualize import GradCAM
    except ImportError:
        return None

    # A copy, because MONAI leaves its hooks on the network; they fire only if gradients of parameters are computed.
    copied = copy.deepcopy(scored).requires_grad_(True)
    method = GradCAM(nn_module=copied, target_layers=f"network.{layer}")
    return lambda: method(window, class_idx=0)


def _measure(job: Callable[[], object], device: torch.device) -> tuple[float, float | None]:
    """Return the seconds of one run, and the peak MiB above what was held before."""
    watch = _MemoryWatch(device)
    with watch:
        started = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    return seconds, watch.peak_mib


class _MemoryWatch:
    """Measures the peak memory of a block above what was in use before; `peak_mib` is None if unknown."""

    def __init__(self, device: torch.device) -> None:
        self.peak_mib: float | None = None
        self._device = device
        self._done = threading.Event()

    def __enter__(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return
        try:
            import psutil
        except ImportError:
            return
        process = psutil.Process()
        before = process.memory_info().rss
        self.peak_mib = 0.0

        def watch() -> None:
            while not self._done.wait(_TICK):
                self.peak_mib = max(self.peak_mib or 0.0, (process.memory_info().rss - before) / 2**20)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            self.peak_mib = (torch.cuda.max_memory_allocated(self._device) - self._before) / 2**20
        elif self.peak_mib is not None:
            self._done.set()
            self._thread.join()


def format_cost(rows: Sequence[Row]) -> str:
    """Format the rows as a Markdown table."""
    lines = ["| what | layer | seconds | forward passes | peak MiB |", "|---|---|---|---|---|"]
    for row in rows:
        memory = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        lines.append(
            f"| {row['what']} | {row['layer']} | {row['seconds']:.2f} | {row['forward_passes']:.2f} | {memory} |"
        )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``liverxai benchmark cost``."""
    parser.description = (
        "Measure time and memory of a heat map compared with the plain forward pass, and with captum's LayerGradCam "
        "and MONAI's GradCAM on the same window if they are installed."
    )
    parser.add_argument("case", metavar="CASE", type=Path, help="a CT: file or DICOM folder")
    parser.add_argument("--model", default="default", help="name or folder of a model (default: default)")
    parser.add_argument("--target", default="tumor", help="what to explain (default: tumor)")
    parser.add_argument("--layer", default=None, help="layer of the network (default: the model's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the shortest counts (default: 3)")


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``liverxai benchmark cost``; returns the exit code."""
    from ..volumes.io import read_volume

    existing(arguments.case)
    model = load_model(arguments.model)
    check_request(model, [arguments.target], layer=arguments.layer)
    rows = benchmark_cost(
        read_volume(arguments.case),
        model,
        target=arguments.target,
        layer=arguments.layer,
        device=arguments.device,
        repeats=arguments.repeats,
    )
    threads = torch.get_num_threads()
    sys.stdout.write(f"{format_cost(rows)}\ntorch {torch.__version__}, {threads} CPU threads\n")
    return 0
