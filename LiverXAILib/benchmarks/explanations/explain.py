# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark explain``: the evaluation card of every method and layer of a model, over given CTs.

A default method should be the one that measures best on the model at hand, not the one that is cited most. Each row is
one map: the faithfulness card of :mod:`LiverXAILib.explain.faithfulness` in numbers, beside the controls.

A model of nine stages has 45 maps for a question, so they share what they can: the stages and methods of one network
come from a single forward and backward pass, noise and each draw of shuffled weights from one more. What is left, the
deletion and insertion curves, have fewer points than in a single map's check, and the maps of shuffled networks are
compared by rank only.

Where references are given, true and false lesions are told apart: a method whose maps of false lesions pass as well is
faithful all the same, and no help in finding them. Intervals are over lesions, by the bootstrap (Efron 1979).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ...context import RunContext
from ...errors import UsageError
from ...evaluation.metrics import COVERED
from ...explain import METHODS, EmptyTargetError, LesionTarget, Target
from ...explain.faithfulness import DRAWS, FaithfulnessEvaluator, energy_lift
from ...explain.faithfulness.randomization import shuffled_networks
from ...explain.score import EXAMINED_MM, build_score
from ...explain.stage_context import StageContext, StageMap
from ...explain.stitching import recorded, stage_maps
from ...files import replacing
from ...inference import Segmentation, segment, select_device
from ...inference.lesions import lesion_count
from ...models import Model, load_model
from ...progress import CancelToken, Progress, scaled
from ...text import counted
from ...volumes.volume import Volume

#: Each lesion found, up to so many of a case, the largest first.
LESIONS, MOST_LESIONS = "lesions", 8
#: What is benchmarked by default.
TARGETS = ("liver", LESIONS)
#: Samples of the bootstrap, and the part of them that an interval leaves out.
_SAMPLES, _LEFT_OUT = 2000, 0.05
#: Points of a curve.
POINTS = 5
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
    points: int = POINTS,
    field_mm: float = EXAMINED_MM,
    references: Mapping[str, np.ndarray] | None = None,
    known: Sequence[Row] = (),
    keep: Callable[[Sequence[Row]], None] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[Row]:
    """Segment each case, make every map, examine it; one row for each case, target, method and layer.

    :param cases: CTs by name.
    :param targets: questions; :data:`LESIONS` for each lesion that is found.
    :param layers: of the network; None: all that its card lists.
    :param points: of the deletion and insertion curves, including both ends.
    :param field_mm: size of the box around the target in which maps are made and examined.
    :param references: by case, where lesions are (bool (k, j, i) on the CT's grid): rows then say whether a lesion is
        true, that is, whether at least a tenth of it lies there.
    :param known: rows of an earlier run: a case and target with rows is left out.
    :param keep: gets the rows of each target as they are done.
    :return: flat rows, the same keys in each, without `known`. A target that was not found in a case gives no row.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"There is no method {unknown[0]!r}. Choose from: {', '.join(METHODS)}.")
    done = {(row["case"], row.get("target")) for row in known}
    rows: list[Row] = []
    context = RunContext(progress, cancel, device)
    for number, (name, volume) in enumerate(cases.items()):
        part = context.step(number, len(cases))
        segmentation = segment(volume, model, **part.part(0, 0.1).keywords)
        asked = [text for text in _questions(targets, segmentation) if (name, text) not in done]
        for index, text in enumerate(asked):
            inner = part.part(0.1, 1).step(index, len(asked))
            target = Target.parse(text)
            stage = model.spec.stage_of(target.resolve(segmentation).label)
            run = StageContext.prepare(volume, model, stage, segmentation, select_device(device))
            try:
                score_target = build_score(target, segmentation, model, run, context)
            except EmptyTargetError:
                continue
            evaluator = FaithfulnessEvaluator(run, score_target, context.silent, points=points, limit_mm=field_mm)
            read = [layer.name for layer in stage.layers] if layers is None else list(layers)
            about = {"case": name, "target": text, "true": _is_true(target, segmentation, (references or {}).get(name))}
            new = [{**about, **row} for row in _examined(evaluator, methods, read, inner, f"{name}: {text}")]
            rows += new
            if keep is not None:
                keep(new)
    context.report("Done", 1.0)
    return rows


def _questions(targets: Sequence[str], segmentation: Segmentation) -> list[str]:
    """The targets, with those of single lesions in place of :data:`LESIONS`."""
    count = min(MOST_LESIONS, lesion_count(segmentation)) if LESIONS in targets else 0
    lesions = [f"lesion:{number + 1}" for number in range(count)]
    return [text for target in targets for text in (lesions if target == LESIONS else [target])]


def _is_true(target: Target, segmentation: Segmentation, reference: np.ndarray | None) -> str:
    """ "true" or "false" for a lesion whose truth is known, else ""."""
    if reference is None or not isinstance(target, LesionTarget):
        return ""
    return "true" if reference[target.mask(segmentation)].mean() >= COVERED else "false"


def _examined(
    evaluator: FaithfulnessEvaluator,
    methods: Sequence[str],
    layers: Sequence[str],
    context: RunContext,
    text: str,
) -> Iterator[Row]:
    """A row for each map of one target."""
    total = sum(len(layers) if METHODS[method].layer_maps else 1 for method in methods)
    for count, (method, layer, maps) in enumerate(_maps(evaluator, methods, layers)):
        context.check()
        context.report(f"{text}, {method} {layer}", count / total)
        result, noisy, *shuffled = maps
        trained = result.values.clamp_min(0)
        card = evaluator.evaluate(
            result.values,
            trained,
            {1.0: [other.values.clamp_min(0) for other in shuffled]},
            noisy.values.clamp_min(0),
            energy_lift(result.values, evaluator.run, evaluator.score_target),
            bool(result.warnings),
        )
        yield {"method": method, "layer": layer, **_row(card), "warning": " ".join(result.warnings)}


def _maps(
    evaluator: FaithfulnessEvaluator, methods: Sequence[str], layers: Sequence[str]
) -> Iterator[tuple[str, str, list[StageMap]]]:
    """Each method and layer with its maps in the window: of the network, under noise, and of shuffled networks.

    Of the latter as many as in a single map's check: one where the method reads no layer.
    """
    runs = [evaluator.run, evaluator.noisy_run]
    for draw in range(DRAWS):
        ((_, networks),) = shuffled_networks(evaluator.run, 1, draw)
        runs.append(replace(evaluator.run, networks=networks))
    with ExitStack() as stack:
        recordings = []
        if any(METHODS[name].layer_maps for name in methods):
            recordings = [
                stack.enter_context(recorded(run, [evaluator.score_target], layers, evaluator.run_context))
                for run in runs
            ]
        for name in methods:
            method = METHODS[name]
            if method.layer_maps is not None:
                for layer in layers:
                    yield name, layer, [recording.map(0, method, layer) for recording in recordings]
            else:
                yield (
                    name,
                    "",
                    [
                        next(stage_maps(run, [evaluator.score_target], method, context=evaluator.run_context))
                        for run in runs[:3]
                    ],
                )


def _row(card: Mapping[str, Any]) -> Row:
    gains = {f"gain_{name.replace(' ', '_')}": control["gain"] for name, control in card["controls"].items()}
    drop = card["drop"]
    return {
        "passed": card["passed"],
        "drop": drop["share"],
        "drop_controls": drop["controls"]["upper"],
        "energy": card["magnitude"]["energy"],
        "gain": card["curves"]["gain"],
        **gains,
        "deletion_auc": card["curves"]["deletion_auc"],
        "insertion_auc": card["curves"]["insertion_auc"],
        "score": card["score"],
        "score_replaced": card["score_replaced"],
        "energy_lift": card["energy_lift"],
        "lost_without_surroundings": card["context"]["lost_without_surroundings"],
        "lost_without_target": card["context"]["lost_without_target"],
        "spearman_shuffled": card["randomization"]["spearman"][-1],
        "spearman_random_pairs": round(fmean(card["randomization"]["random_pairs"]), 4),
        "spearman_noise": card["stability"]["spearman"],
        "change_noise": card["stability"]["relative_change"],
        "verdict": card["verdict"],
        "sentence": card["sentence"],
    }


def summarize(rows: Sequence[Row], by: Sequence[str] = ("target", "method", "layer")) -> list[Row]:
    """The means over rows that are alike in the columns `by`; `passed`: the part that passed, `maps`: how many."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    numbers = [key for key, value in rows[0].items() if isinstance(value, (int, float))] if rows else []
    return [
        dict(zip(by, key, strict=True))
        | {"maps": len(group)}
        | {name: round(fmean(float(row[name]) for row in group), 4) for name in numbers}
        for key, group in groups.items()
    ]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Methods and layers, best first: by the part of all maps that passed, then by the mean drop."""
    return sorted(summarize(rows, ("method", "layer")), key=lambda row: (-row["passed"], -row["drop"]))


def intervals(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """:func:`ranked`, with 95 % intervals of the means over lesions: ``<column>_low`` and ``<column>_high``.

    Percentiles over resamples of the lesions, the same ones for each method, with a fixed seed.
    """
    lesions = sorted({(row["case"], row["target"]) for row in rows})
    chosen = np.random.default_rng(0).integers(len(lesions), size=(_SAMPLES, len(lesions)))
    result = []
    for row in ranked(rows):
        own = {
            (one["case"], one["target"]): one
            for one in rows
            if (one["method"], one["layer"]) == (row["method"], row["layer"])
        }
        for column in columns:
            values = np.array([float(own[lesion][column]) if lesion in own else np.nan for lesion in lesions])
            low, high = np.nanquantile(np.nanmean(values[chosen], axis=1), [_LEFT_OUT / 2, 1 - _LEFT_OUT / 2])
            row |= {f"{column}_low": round(float(low), 4), f"{column}_high": round(float(high), 4)}
        result.append(row)
    return result


def format_table(rows: Sequence[Row]) -> str:
    """Markdown tables: methods and layers, best first, for lesions (true and false apart) and other questions."""
    lesions = [row for row in rows if row["target"].startswith("lesion:")]
    others = [row for row in rows if not row["target"].startswith("lesion:")]
    lines = []
    for title, group in (("lesion", lesions), *((one, [row for row in others if row["target"] == one])
                         for one in dict.fromkeys(row["target"] for row in others))):  # fmt: skip
        if group:
            count = len({(row["case"], row["target"]) for row in group})
            words = counted(count, title, f"{title}s" if title == "lesion" else title)
            lines += [f"Maps of {words}; in brackets 95 % intervals over them.", "", *_method_table(group), ""]
    controls = {
        "case": "case",
        "target": "question",
        "true": "true",
        "score": "confidence",
        "score_replaced": "all replaced",
        "gain_logit_map": "gain: logit map",
        "gain_edges": "edges",
        "gain_smooth_noise": "smooth noise",
        "lost_without_surroundings": "lost without surroundings",
        "lost_without_target": "lost without target",
    }
    return "\n".join([*lines, *_markdown(summarize(rows, ("case", "target", "true")), controls)])


def _method_table(rows: Sequence[Row]) -> list[str]:
    shown = {"passed": "passed", "drop": "drop", "energy": "energy", "gain": "gain"}
    by_truth = {
        truth: {(row["method"], row["layer"]): row for row in ranked([one for one in rows if one["true"] == truth])}
        for truth in ("true", "false")
    }
    table = []
    for row in intervals(rows, list(shown)):
        cells = {name: f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]" for name in shown}
        for truth, known in by_truth.items():
            same = known.get((row["method"], row["layer"]))
            cells[truth] = "–" if same is None else f"{same['passed']:.2f} ({same['maps']})"
        table.append({**row, **cells})
    columns = {"method": "method", "layer": "layer", **shown}
    columns |= {"true": "passed, true", "false": "passed, false"}
    columns |= {"energy_lift": "energy lift", "spearman_shuffled": "ρ shuffled", "spearman_noise": "ρ noise"}
    return _markdown(table, columns)


def _markdown(rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write_benchmark(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``benchmark-explain.csv``, ``.md`` and ``.png`` into `folder`; returns their paths."""
    if not rows:
        raise UsageError("Nothing was found in these cases that could be explained, so there is nothing to compare.")
    folder.mkdir(parents=True, exist_ok=True)
    table, text, figure = (folder / f"benchmark-explain.{suffix}" for suffix in ("csv", "md", "png"))
    with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with replacing(text) as temporary:
        temporary.write_text(format_table(rows) + "\n", encoding="utf-8")
    with replacing(figure) as temporary:
        draw_benchmark(rows, temporary)
    return [table, text, figure]


def draw_benchmark(rows: Sequence[Row], path: Path) -> None:
    """A picture of the mean drop of each method (rows) and layer (columns), one panel for lesions and each question.

    A cell says the drop, and below it the part of the maps that passed. The title has the controls' drop.
    """
    from matplotlib.figure import Figure

    merged = [{**row, "target": row["target"].split(":")[0]} for row in rows]
    means = summarize(merged)
    targets = list(dict.fromkeys(row["target"] for row in means))
    methods = list(dict.fromkeys(row["method"] for row in means))
    layers = list(dict.fromkeys(row["layer"] for row in means))
    figure = Figure(
        figsize=(1.6 + 0.95 * len(layers), 1.2 + len(targets) * (1.0 + 0.45 * len(methods))), layout="constrained"
    )
    for axes, target in zip(figure.subplots(len(targets), 1, squeeze=False)[:, 0], targets, strict=True):
        cells = {(row["method"], row["layer"]): row for row in means if row["target"] == target}
        grid = [[cells.get((m, layer), {}).get("drop", float("nan")) for layer in layers] for m in methods]
        picture = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (method, layer), row in cells.items():
            text = f"{row['drop']:.2f}\n{100 * row['passed']:.0f} %"
            shade = "white" if row["drop"] > 0.6 else "black"
            axes.text(
                layers.index(layer), methods.index(method), text, ha="center", va="center", color=shade, fontsize=7
            )
        axes.set_xticks(range(len(layers)), [layer or "image" for layer in layers], rotation=30, ha="right", fontsize=8)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        controls = fmean(row["drop_controls"] for row in cells.values())
        axes.set_title(
            f"{target}: drop, and % of the maps that passed; drop of the controls {controls:.2f}", fontsize=8
        )
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
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="questions (default: liver lesions)")
    parser.add_argument(
        "--references",
        metavar="FILE",
        nargs="+",
        type=Path,
        default=(),
        help="label maps of the cases, in their order, that tell true from false lesions: 2 is tumor, or, in a mask of "
        "0 and 1, 1 is",
    )
    parser.add_argument("--minutes", type=float, help="stop after about so many; the same command then goes on")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=LAYER_METHODS,
        help=f"of {', '.join(METHODS)} (default: those that read a layer)",
    )
    parser.add_argument("--layers", nargs="+", default=None, help="stages of the network (default: all)")
    parser.add_argument("--points", type=int, default=POINTS, help=f"of each curve (default: {POINTS})")
    parser.add_argument(
        "--field",
        type=float,
        default=EXAMINED_MM,
        help=f"mm around the target that are examined (default: {EXAMINED_MM:g})",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``liverxai benchmark explain``; returns the exit code."""
    from tqdm import tqdm

    from ...volumes.io import read_volume

    if arguments.references and len(arguments.references) != len(arguments.cases):
        raise UsageError("There must be as many references as cases, in the same order.")
    model = load_model(arguments.model)
    references = dict(zip(map(case_name, arguments.cases), arguments.references, strict=False))
    arguments.output.mkdir(parents=True, exist_ok=True)
    kept = arguments.output / "benchmark-explain.jsonl"
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.is_file() else []
    finished = {row["case"] for row in rows if row.get("last")}

    def keep(new: Sequence[Row]) -> None:
        with kept.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)

    started = time.perf_counter()
    with tqdm(total=1.0, bar_format="{desc:<50.50} {bar} {percentage:3.0f}% {remaining}", leave=False) as bar:

        def progress(stage: str, fraction: float) -> None:
            bar.set_description_str(stage, refresh=False)
            bar.update(max(0.0, fraction - bar.n))

        for number, path in enumerate(arguments.cases):
            name = case_name(path)
            if name in finished:
                continue
            if arguments.minutes is not None and time.perf_counter() - started > 60 * arguments.minutes:
                sys.stdout.write(f"Stopped before {name}; the same command goes on.\n")
                return 0
            rows += benchmark_explain(
                {name: read_volume(path)},
                model,
                targets=arguments.targets,
                methods=arguments.methods,
                layers=arguments.layers,
                points=arguments.points,
                field_mm=arguments.field,
                references={name: _tumors(references[name])} if name in references else None,
                known=rows,
                keep=keep,
                device=arguments.device,
                progress=scaled(progress, number / len(arguments.cases), (number + 1) / len(arguments.cases)),
            )
            keep([{"case": name, "last": True}])
    rows = [row for row in rows if "target" in row]
    files = write_benchmark(rows, arguments.output)
    took = f"{len(rows)} maps in {(time.perf_counter() - started) / 60:.1f} minutes"
    sys.stdout.write("\n".join([format_table(rows), took, *map(str, files)]) + "\n")
    return 0


def _tumors(path: Path) -> np.ndarray:
    """Where the tumors are in a label map: bool (k, j, i)."""
    from ...volumes.io import read_labels

    array = read_labels(path).array
    mask: np.ndarray = array == 2 if (array == 2).any() else array > 0
    return mask


def case_name(path: Path) -> str:
    """A name that tells cases apart: that of the folder if the file is called "image"."""
    name = path.name.split(".")[0]
    return path.resolve().parent.name if name == "image" else name
