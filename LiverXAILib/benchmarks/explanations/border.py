# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark border``: compare replacements for the surroundings of a border point on given CTs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...context import RunContext
from ...explain.border import POINTS, RADII_MM, REPLACEMENTS
from ...explain.border.need import needs
from ...explain.border.probe import BorderProbe
from ...explain.border.surface import spread
from ...explain.stage_context import StageContext
from ...inference import segment, select_device
from ...models import Model, load_model
from ...progress import CancelToken, Progress
from ...volumes.image_file import existing
from ...volumes.volume import Volume
from ..machine import describe_machine
from .explain import named_cases

Row = dict[str, Any]


def benchmark_border(
    cases: Mapping[str, Volume],
    model: Model,
    *,
    label: str = "liver",
    points: int = POINTS,
    replacements: Sequence[str] = tuple(REPLACEMENTS),
    device: str = "auto",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[Row]:
    """Examine the border in each case with each replacement.

    Each row holds case, replacement, points, seconds, the fraction of points whose border stays in place although only
    one voxel is kept (``stays_0``: what the replacement itself reveals), and the fractions that need no more than each
    radius (``within_8`` …).
    """
    context = RunContext(progress, cancel, select_device(device))
    rows: list[Row] = []
    for number, (name, volume) in enumerate(cases.items()):
        part = context.step(number, len(cases))
        segmentation = segment(volume, model, **part.part(0.0, 0.1).keywords)
        run = StageContext.prepare(
            volume, model, model.spec.stage_of(label), segmentation, torch.device(context.device)
        )
        for index, replacement in enumerate(replacements):
            inner = part.part(0.1, 1.0).step(index, len(replacements))
            started = time.perf_counter()
            probe = BorderProbe(run, label, model, REPLACEMENTS[replacement], inner)
            chosen = spread(probe.own_border(label), points, run.spacing)
            need = needs(probe, chosen, inner.part(0.0, 0.8))
            seconds = time.perf_counter() - started
            leak = probe.stays(chosen, max(run.spacing), inner.part(0.8, 1.0)).mean()
            within = {f"within_{radius:g}": float((need <= n).mean()) for n, radius in enumerate(RADII_MM)}
            rows.append(
                {"case": name, "replacement": replacement, "points": len(chosen), "seconds": round(seconds, 1)}
                | {"backend": run.backend, "stays_0": float(leak)}
                | within
            )
    context.report("Done", 1.0)
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """Format a Markdown table: one line for each case and replacement."""
    radii = [f"{radius:g}" for radius in RADII_MM]
    heads = ["case", "replaced by", "points", "nothing kept", *(f"≤ {radius} mm" for radius in radii), "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        parts = [row["stays_0"], *(row[f"within_{radius}"] for radius in radii)]
        cells = [row["case"], row["replacement"], row["points"], *(f"{part:.0%}" for part in parts), row["seconds"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Examine how much of its surroundings the model needs to draw the liver's border, with each replacement of the "
        "surroundings: reflected, blurred, shuffled, air."
    )
    parser.add_argument("cases", metavar="CASE", nargs="+", type=Path, help="CTs: files or DICOM folders")
    parser.add_argument("--model", default="default", help="name or folder of a model (default: default)")
    parser.add_argument("--points", type=int, default=POINTS, help=f"points of each surface (default: {POINTS})")
    parser.add_argument(
        "--replacements",
        metavar="NAME",
        nargs="+",
        default=list(REPLACEMENTS),
        choices=list(REPLACEMENTS),
        help="what replaces the surroundings (default: each of them)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark; returns the exit code."""
    from ...progress import progress_bar
    from ...volumes.io import read_volume

    for path in arguments.cases:
        existing(path)
    model = load_model(arguments.model)
    cases = {name: read_volume(path) for name, path in named_cases(arguments.cases).items()}
    with progress_bar() as progress:
        rows = benchmark_border(
            cases,
            model,
            points=arguments.points,
            replacements=arguments.replacements,
            device=arguments.device,
            progress=progress,
        )
    backends = ", ".join(sorted({row["backend"] for row in rows}))
    machine = ", ".join(f"{name} {value}" for name, value in describe_machine(arguments.device).items())
    sys.stdout.write(f"{format_table(rows)}\n\n{machine}; {backends}.\n")
    return 0
