# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark explain``: the evaluation of every method and layer of a model, over given CTs.

The default method should be the one that measures best on the model at hand, not the most cited one. Each row is one
map: the faithfulness of :mod:`LiverXAILib.explain.faithfulness` in numbers, with those of the controls.

A network of nine layers has 45 maps for a question, so they share computations: the maps of all layers and methods of
one network come from a single forward and backward pass; noise and each draw of shuffled weights need one more. Only
the deletion and insertion curves are computed for each map, with fewer points than in a single map's check. Without
curves (``points=0``) a row has the numbers that its verdict is based on, and maps of shuffled networks are computed
only where they can change it.

If references are given, true lesions and false positives are reported separately: a method whose maps of false
positives pass too is nevertheless faithful, but does not help to find them. :mod:`.method_tables` makes the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from ...context import RunContext
from ...errors import UsageError
from ...evaluation.cases import by_name, case_name
from ...evaluation.metrics import COVERED
from ...explain import METHODS, EmptyTargetError, Target
from ...explain.catalog import require_method
from ...explain.faithfulness import DRAWS, FaithfulnessEvaluator, energy_lift
from ...explain.faithfulness.randomization import shuffled_networks
from ...explain.methods import Method
from ...explain.score import EXAMINED_MM, build_score
from ...explain.stage_context import StageContext, StageMap
from ...explain.stitching import Recording, recorded, stage_maps
from ...files import require_writable
from ...inference import Segmentation, segment, select_device
from ...inference.lesions import lesion_count
from ...labels.label_map import aligned, read_mask, read_structures
from ...models import Model, load_model
from ...pipeline import check_request
from ...progress import CancelToken, Progress, progress_bar
from ...volumes.image_file import existing
from ...volumes.volume import Grid, Volume
from .method_tables import Row, format_table, write_benchmark

#: Each lesion found, up to this number per case, the largest first.
LESIONS, MOST_LESIONS = "lesions", 8
#: Targets that are benchmarked by default.
TARGETS = ("liver", LESIONS)
#: Points of a curve.
POINTS = 5
#: Options of the command that affect rows.
_OPTIONS = ("model", "targets", "methods", "layers", "points", "field")
#: Methods that read a layer. The others take minutes per map and are benchmarked only if named.
LAYER_METHODS = tuple(name for name, method in METHODS.items() if method.layer_maps is not None)


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
    """Segment each case, make and examine every map; one row for each case, target, method and layer.

    :param cases: CTs by name.
    :param targets: questions; :data:`LESIONS` for each lesion found.
    :param layers: layers of the network; None: all that its card lists.
    :param points: of the deletion and insertion curves, including both ends; 0: no curves, and no comparison by rank.
    :param field_mm: largest size of the box around the target in which maps are made and examined.
    :param references: by case, where lesions are (bool (k, j, i) on the CT's grid): rows then say whether a lesion is
        true, that is, whether at least a tenth of it lies there.
    :param known: rows of an earlier run: a case and target with rows is left out.
    :param keep: called with the rows of each target when they are done.
    :return: flat rows, the same keys in each, without `known`. A target that was not found in a case gives no row.
    """
    for method in methods:
        require_method(method)
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
            evaluator = FaithfulnessEvaluator(
                run, score_target, context.silent, points=max(2, points), limit_mm=field_mm
            )
            read = [layer.name for layer in stage.layers] if layers is None else list(layers)
            about = {"case": name, "target": text, "true": _is_true(target, segmentation, (references or {}).get(name))}
            new = [
                {**about, **row} for row in _examined(evaluator, methods, read, points > 0, inner, f"{name}: {text}")
            ]
            rows += new
            if keep is not None:
                keep(new)
    context.report("Done", 1.0)
    return rows


def _questions(targets: Sequence[str], segmentation: Segmentation) -> list[str]:
    """Return the targets, with :data:`LESIONS` replaced by single lesions."""
    count = min(MOST_LESIONS, lesion_count(segmentation)) if LESIONS in targets else 0
    lesions = [f"lesion:{number + 1}" for number in range(count)]
    return [text for target in targets for text in (lesions if target == LESIONS else [target])]


def _is_true(target: Target, segmentation: Segmentation, reference: np.ndarray | None) -> str:
    """Return "true" or "false" for a lesion with a reference, else ""."""
    if reference is None or not target.is_lesion:
        return ""
    return "true" if reference[target.mask(segmentation)].mean() >= COVERED else "false"


def _examined(
    evaluator: FaithfulnessEvaluator,
    methods: Sequence[str],
    layers: Sequence[str],
    curves: bool,
    context: RunContext,
    text: str,
) -> Iterator[Row]:
    """Yield a row for each map of one target."""
    total = sum(len(layers) if METHODS[method].layer_maps else 1 for method in methods)
    for count, (method, layer, made) in enumerate(_maps(evaluator, methods, layers)):
        context.check()
        context.report(f"{text}, {method} {layer}", count / total)
        result = made.trained()
        lift = energy_lift(result.values, evaluator.run, evaluator.score_target)
        row = {"method": method, "layer": layer, "warning": " ".join(result.warnings), "energy_lift": lift}
        if curves:
            shuffled = [values.clamp_min(0) for values in made.of_shuffled_networks()]
            noisy, positive = made.noisy().values.clamp_min(0), result.values.clamp_min(0)
            warned = bool(result.warnings)
            card = evaluator.evaluate(positive, positive, {1.0: shuffled}, noisy, lift, warned)
            yield {**row, **_verdict(card), **_curves(card)}
            continue
        card = evaluator.verdict(result.values, made.of_shuffled_networks, bool(result.warnings))
        yield {**row, **_verdict({**card, "context": evaluator.context})}


@dataclass(frozen=True)
class _Maps:
    """Functions for the maps of a method and layer: of the trained network, with noise, and of shuffled networks.

    There are as many of the latter as in a single map's check: one if the method reads no layer.
    """

    trained: Callable[[], StageMap]
    noisy: Callable[[], StageMap]
    shuffled: Sequence[Callable[[], StageMap]]

    def of_shuffled_networks(self) -> list[torch.Tensor]:
        return [one().values for one in self.shuffled]


def _maps(
    evaluator: FaithfulnessEvaluator, methods: Sequence[str], layers: Sequence[str]
) -> Iterator[tuple[str, str, _Maps]]:
    """Yield each method and layer with its maps. A network is run when its first map is made."""
    asked = [evaluator.score_target]

    @cache
    def run(number: int) -> StageContext:
        if number < 2:
            return evaluator.noisy_run if number else evaluator.run
        ((_, networks),) = shuffled_networks(evaluator.run, 1, number - 2)
        return replace(evaluator.run, networks=networks)

    with ExitStack() as stack:

        @cache
        def recording(number: int) -> Recording:
            return stack.enter_context(recorded(run(number), asked, layers, evaluator.run_context))

        def of_layer(number: int, method: Method, layer: str) -> StageMap:
            return recording(number).map(0, method, layer)

        def of_image(number: int, method: Method) -> StageMap:
            return next(stage_maps(run(number), asked, method, context=evaluator.run_context))

        for name in methods:
            method = METHODS[name]
            if method.layer_maps is not None:
                for layer in layers:
                    trained, noisy, *shuffled = (partial(of_layer, n, method, layer) for n in range(2 + DRAWS))
                    yield name, layer, _Maps(trained, noisy, shuffled)
            else:
                trained, noisy, *shuffled = (partial(of_image, n, method) for n in range(3))
                yield name, "", _Maps(trained, noisy, shuffled)


def _verdict(card: Mapping[str, Any]) -> Row:
    """Return the columns of every row; of the controls, those that are the same for each map."""
    draws = card["drop"]["controls"]["draws"]
    return {
        "passed": card["passed"],
        "drop": card["drop"]["share"],
        "drop_edges": draws["edges"][0],
        "drop_random": median(draws["random places"]),
        "energy": card["magnitude"]["energy"],
        "score": card["score"],
        "score_replaced": card["score_replaced"],
        "lost_without_surroundings": card["context"]["lost_without_surroundings"],
        "lost_without_target": card["context"]["lost_without_target"],
        "verdict": card["verdict"],
        "sentence": card["sentence"],
    }


def _curves(card: Mapping[str, Any]) -> Row:
    """Return the columns of a row with curves."""
    gains = {f"gain_{name.replace(' ', '_')}": control["gain"] for name, control in card["controls"].items()}
    return {
        "gain": card["curves"]["gain"],
        **gains,
        "deletion_auc": card["curves"]["deletion_auc"],
        "insertion_auc": card["curves"]["insertion_auc"],
        "spearman_shuffled": card["randomization"]["spearman"][-1],
        "spearman_random_pairs": round(fmean(card["randomization"]["random_pairs"]), 4),
        "spearman_noise": card["stability"]["spearman"],
        "change_noise": card["stability"]["relative_change"],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``liverxai benchmark explain``."""
    parser.description = (
        "Make every heat map that a model allows, by method and layer, for given CTs, and examine each: does the "
        "output depend on the marked regions more than on edges, noise, or the map of a network with shuffled weights?"
    )
    parser.add_argument("cases", metavar="CASE", nargs="+", type=Path, help="CTs: files or DICOM folders")
    parser.add_argument("--output", "-o", metavar="FOLDER", type=Path, required=True, help="for table and figure")
    parser.add_argument("--model", default="default", help="name or folder of a model (default: default)")
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="questions (default: liver lesions)")
    parser.add_argument(
        "--references",
        metavar="FILE",
        nargs="+",
        type=Path,
        default=(),
        help="label maps of the cases, in the same order, to tell true lesions from false positives: tumor is 2, or 1 "
        "in a mask of 0 and 1",
    )
    parser.add_argument("--minutes", type=float, help="stop after about this time; the same command then continues")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=LAYER_METHODS,
        help=f"methods: {', '.join(METHODS)} (default: those that read a layer)",
    )
    parser.add_argument("--layers", nargs="+", default=None, help="layers of the network (default: all)")
    parser.add_argument("--points", type=int, default=POINTS, help=f"per curve; 0: no curves (default: {POINTS})")
    parser.add_argument(
        "--field",
        type=float,
        default=EXAMINED_MM,
        help=f"largest size in mm of the examined box around the target (default: {EXAMINED_MM:g})",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``liverxai benchmark explain``; returns the exit code."""
    from ...volumes.io import read_volume

    if arguments.references and len(arguments.references) != len(arguments.cases):
        raise UsageError("There must be as many references as cases, in the same order.")
    for path in (*arguments.cases, *(arguments.references or ())):
        existing(path)
    require_writable(arguments.output)
    model = load_model(arguments.model)
    select_device(arguments.device)
    targets = [target for target in arguments.targets if target != LESIONS]
    for method, layer in product(arguments.methods, arguments.layers or [None]):
        check_request(model, targets, method, layer)
    cases = named_cases(arguments.cases)
    references = dict(zip(cases, arguments.references, strict=False))
    arguments.output.mkdir(parents=True, exist_ok=True)
    kept = arguments.output / "benchmark-explain.jsonl"
    rows = _kept(kept, {name: getattr(arguments, name) for name in _OPTIONS})
    finished = {row["case"] for row in rows if row.get("last")}

    def keep(new: Sequence[Row]) -> None:
        with kept.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)

    started = time.perf_counter()
    with progress_bar() as progress:
        context = RunContext(progress, device=arguments.device)
        for number, (name, path) in enumerate(cases.items()):
            if name in finished:
                continue
            if arguments.minutes is not None and time.perf_counter() - started > 60 * arguments.minutes:
                sys.stdout.write(f"Stopped before {name}; run the same command again to continue.\n")
                return 0
            volume = read_volume(path)
            rows += benchmark_explain(
                {name: volume},
                model,
                targets=arguments.targets,
                methods=arguments.methods,
                layers=arguments.layers,
                points=arguments.points,
                field_mm=arguments.field,
                references={name: _tumors(references[name], volume.grid)} if name in references else None,
                known=rows,
                keep=keep,
                **context.step(number, len(cases)).keywords,
            )
            keep([{"case": name, "last": True}])
    rows = [row for row in rows if "target" in row]
    files = write_benchmark(rows, arguments.output)
    took = f"{len(rows)} maps in {(time.perf_counter() - started) / 60:.1f} minutes"
    sys.stdout.write("\n".join([format_table(rows), took, *map(str, files)]) + "\n")
    return 0


def _kept(path: Path, options: Mapping[str, Any]) -> list[Row]:
    """Return the rows of an earlier run; the first line of the file holds its options.

    :raises UsageError: the options differ, so the rows would not be comparable.
    """
    asked = json.dumps({"options": options}, default=list)
    if not path.is_file():
        path.write_text(asked + "\n", encoding="utf-8")
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    if first != asked:
        raise UsageError(f"{path} was made with other options. Choose another folder, or remove the file.")
    return [json.loads(line) for line in lines]


def _tumors(path: Path, grid: Grid) -> np.ndarray:
    """Return the tumors of a label map, or of a mask of tumors, on the CT's grid: bool (k, j, i)."""
    found = read_structures([path], grid, others=True)
    if "tumor" in found.structures:
        return found.mask("tumor")
    return aligned(read_mask(path, "tumor"), grid, "reference", "CT") > 0


def named_cases(paths: Sequence[Path]) -> dict[str, Path]:
    """Return CTs by name: that of the folder if the file is called "image".

    :raises LiverXAILib.errors.UsageError: two CTs have the same name.
    """
    names = [case_name(path) for path in paths]
    folders = [path.resolve().parent.name for path in paths]
    named = [folder if name == "image" else name for name, folder in zip(names, folders, strict=True)]
    return by_name(zip(named, paths, strict=True))
