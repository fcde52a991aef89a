# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark explain``: the evaluation card of every method and layer of a model, over given CTs.

A default method should be the one that measures best on the model at hand, not the one that is cited most. Each row is
one map: the faithfulness card of :mod:`LiverXAILib.explain.faithfulness` in numbers, beside the controls.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import UsageError
from ..explain import METHODS, EmptyTargetError, Target
from ..explain.faithfulness import Examination, check_faithfulness
from ..explain.run import StageRun, ask
from ..explain.stitching import stage_maps
from ..files import replacing
from ..inference import segment, select_device
from ..models import Model, load_model
from ..progress import CancelToken, Progress, check_cancel, report_progress, scaled
from ..volumes.volume import Volume

#: What is benchmarked by default.
TARGETS = ("liver", "tumor")
#: Methods that read a layer. The others take minutes a map and are benchmarked when they are named.
LAYER_METHODS = tuple(name for name, method in METHODS.items() if method.layer_maps is not None)

Row = dict[str, Any]


def benchmark_explain(
    cases: Mapping[str, Volume],
    model: Model,
    *,
    targets: Sequence[str] = TARGETS,
    methods: Sequence[str] = LAYER_METHODS,
    layers: Sequence[str] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[Row]:
    """Segment each case, make every map, examine it; one row for each case, target, method and layer.

    :param cases: CTs by name.
    :param layers: of the network; None: all that its card lists.
    :return: flat rows, the same keys in each. A target that was not found in a case gives no row.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"There is no method {unknown[0]!r}. Choose from: {', '.join(METHODS)}.")
    rows: list[Row] = []
    for number, (name, volume) in enumerate(cases.items()):
        part = scaled(progress, number / len(cases), (number + 1) / len(cases))
        segmentation = segment(volume, model, device=device, progress=scaled(part, 0, 0.1), cancel=cancel)
        for index, text in enumerate(targets):
            inner = scaled(part, 0.1 + 0.9 * index / len(targets), 0.1 + 0.9 * (index + 1) / len(targets))
            target = Target.parse(text)
            stage = model.spec.stage_of(target.resolve(segmentation).label)
            run = StageRun.prepare(volume, model, stage, segmentation, select_device(device))
            try:
                question = ask(target, segmentation, model, run, cancel)
            except EmptyTargetError:
                continue
            exam = Examination(run, question, cancel=cancel)
            combinations = [
                (method, layer)
                for method in methods
                for layer in ((layers or _names(stage.layers)) if METHODS[method].layer_maps else [""])
            ]
            for count, (method, layer) in enumerate(combinations):
                check_cancel(cancel)
                report_progress(inner, f"{name}: {text}, {method} {layer}", count / len(combinations))
                started = time.perf_counter()
                (result,) = stage_maps(run, [question], METHODS[method], layer, cancel=cancel)
                seconds = time.perf_counter() - started
                card = check_faithfulness(
                    run, question, METHODS[method], layer, result.values, cancel=cancel, examination=exam, levels=1
                )
                rows.append({"case": name, "target": text, "method": method, "layer": layer} | _row(card, seconds))
                rows[-1]["warning"] = " ".join(result.warnings)
    report_progress(progress, "Done", 1.0)
    return rows


def _names(layers: Iterable[Any]) -> list[str]:
    return [layer.name for layer in layers]


def _row(card: Mapping[str, Any], seconds: float) -> Row:
    gains = {f"gain_{name.replace(' ', '_')}": control["gain"] for name, control in card["controls"].items()}
    return {
        "passed": card["passed"],
        "gain": card["curves"]["gain"],
        **gains,
        "deletion_auc": card["curves"]["deletion_auc"],
        "insertion_auc": card["curves"]["insertion_auc"],
        "score": card["score"],
        "score_blurred": card["score_blurred"],
        "energy_lift": card["energy_lift"],
        "lost_without_surroundings": card["context"]["lost_without_surroundings"],
        "lost_without_target": card["context"]["lost_without_target"],
        "spearman_shuffled": card["randomization"]["spearman"][-1],
        "spearman_random_pairs": round(fmean(card["randomization"]["random_pairs"]), 4),
        "spearman_noise": card["stability"]["spearman"],
        "change_noise": card["stability"]["relative_change"],
        "map_seconds": round(seconds, 2),
        "verdict": card["sentence"],
    }


def summarize(rows: Sequence[Row]) -> list[Row]:
    """The mean over cases for each target, method and layer; `passed` is the part of the cases that passed."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["target"], row["method"], row["layer"]), []).append(row)
    keys = [key for key, value in rows[0].items() if isinstance(value, (int, float))] if rows else []
    return [
        {"target": target, "method": method, "layer": layer, "cases": len(group)}
        | {key: round(fmean(float(row[key]) for row in group), 4) for key in keys}
        for (target, method, layer), group in groups.items()
    ]


def format_table(rows: Sequence[Row]) -> str:
    """The summary as a Markdown table."""
    columns = {
        "target": "target",
        "method": "method",
        "layer": "layer",
        "passed": "passed",
        "gain": "gain",
        "gain_logit_map": "logit map",
        "gain_edges": "edges",
        "gain_shuffled_network": "shuffled network",
        "energy_lift": "energy lift",
        "spearman_shuffled": "ρ shuffled",
        "spearman_noise": "ρ noise",
        "map_seconds": "s",
    }
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in summarize(rows):
        cells = [f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_benchmark(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``benchmark-explain.csv`` and ``benchmark-explain.png`` into `folder`; returns their paths."""
    if not rows:
        raise UsageError("Nothing was found in these cases that could be explained, so there is nothing to compare.")
    folder.mkdir(parents=True, exist_ok=True)
    table, figure = folder / "benchmark-explain.csv", folder / "benchmark-explain.png"
    with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with replacing(figure) as temporary:
        draw_benchmark(rows, temporary)
    return [table, figure]


def draw_benchmark(rows: Sequence[Row], path: Path) -> None:
    """A picture of the mean gain of each method (rows) and layer (columns), one panel for each target.

    A cell says the gain; a dot after it, that all maps passed. Beside each panel are the controls' gains.
    """
    from matplotlib.figure import Figure

    means = summarize(rows)
    targets = list(dict.fromkeys(row["target"] for row in means))
    methods = list(dict.fromkeys(row["method"] for row in means))
    layers = list(dict.fromkeys(row["layer"] for row in means))
    figure = Figure(
        figsize=(1.6 + 0.95 * len(layers), 1.2 + len(targets) * (1.0 + 0.4 * len(methods))), layout="constrained"
    )
    for axes, target in zip(figure.subplots(len(targets), 1, squeeze=False)[:, 0], targets, strict=True):
        cells = {(row["method"], row["layer"]): row for row in means if row["target"] == target}
        grid = [[cells.get((m, layer), {}).get("gain", float("nan")) for layer in layers] for m in methods]
        picture = axes.imshow(grid, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        for (method, layer), row in cells.items():
            text = f"{row['gain']:.2f}" + (" •" if row["passed"] == 1 else "")
            shade = "white" if abs(row["gain"]) > 0.6 else "black"
            axes.text(
                layers.index(layer), methods.index(method), text, ha="center", va="center", color=shade, fontsize=8
            )
        axes.set_xticks(range(len(layers)), [layer or "image" for layer in layers], rotation=30, ha="right", fontsize=8)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        some = next(iter(cells.values()))
        controls = ", ".join(
            f"{name.replace('_', ' ')} {some[f'gain_{name}']:.2f}" for name in ("logit_map", "edges", "smooth_noise")
        )
        axes.set_title(f"{target}: gain (insertion - deletion); controls: {controls}", fontsize=8)
        figure.colorbar(picture, ax=axes, shrink=0.9)
    figure.savefig(path, dpi=110)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``liverxai benchmark explain``."""
    parser.description = (
        "Make every heat map that a model allows, by method and layer, for given CTs, and examine each: does the "
        "answer follow what it marks, more than edges, noise, or the map of a network with shuffled weights?"
    )
    parser.add_argument("cases", metavar="CASE", nargs="+", type=Path, help="CTs: files or DICOM folders")
    parser.add_argument("--output", "-o", metavar="FOLDER", type=Path, required=True, help="where table and figure go")
    parser.add_argument("--model", default="default", help="name or folder of a model (default: default)")
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="questions (default: liver tumor)")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=LAYER_METHODS,
        help=f"of {', '.join(METHODS)} (default: those that read a layer)",
    )
    parser.add_argument("--layers", nargs="+", default=None, help="stages of the network (default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``liverxai benchmark explain``; returns the exit code."""
    from tqdm import tqdm

    from ..volumes.io import read_volume

    model = load_model(arguments.model)
    cases = {_case_name(path): read_volume(path) for path in arguments.cases}
    with tqdm(total=1.0, bar_format="{desc:<50.50} {bar} {percentage:3.0f}% {remaining}", leave=False) as bar:

        def progress(stage: str, fraction: float) -> None:
            bar.set_description_str(stage, refresh=False)
            bar.update(max(0.0, fraction - bar.n))

        rows = benchmark_explain(
            cases,
            model,
            targets=arguments.targets,
            methods=arguments.methods,
            layers=arguments.layers,
            device=arguments.device,
            progress=progress,
        )
    files = write_benchmark(rows, arguments.output)
    sys.stdout.write("\n".join([format_table(rows), *map(str, files)]) + "\n")
    return 0


def _case_name(path: Path) -> str:
    """A name that tells cases apart: that of the folder if the file is called "image"."""
    name = path.name.split(".")[0]
    return path.resolve().parent.name if name == "image" else name
