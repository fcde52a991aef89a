# SPDX-License-Identifier: Apache-2.0
"""Operating points from specific to sensitive, measured on training-side data and written into a model card.

``python -m recipes.default_model.sensitivity --data FOLDER MODEL`` segments phantoms with lesions of their own, real
scans of training with painted lesions, whose seeds are not used in training, and real scans of training with outlined
tumors. For each number of false positives per case it determines the peak that a component must reach; the one for
:data:`STANDARD` of them becomes the model's own. True findings and false positives are defined in
:mod:`LiverXAILib.evaluation.metrics`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from LiverXAILib.context import RunContext
from LiverXAILib.evaluation.froc import FrocCase, froc, froc_case
from LiverXAILib.inference import segment
from LiverXAILib.models import ModelSpec, load_model
from LiverXAILib.models.spec import OperatingPoint
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.training.random_fields import Rng
from LiverXAILib.volumes.volume import Volume

from ..outlines.samples import painted, real_scans
from ..real_ct import PATIENTS, read_scan

#: Phantoms that neither training nor the benchmarks use.
FIRST_SEED = 800_000
#: Real scans into which lesions are painted: scans of training without tumors.
SCANS = ("lidc0001", "totalseg_slab")
#: False findings per case for which the table has a row.
ACCEPTED = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
#: False findings per case at the model's own operating point.
STANDARD = 0.1
#: Number of lesions painted into a scan.
_PAINTED = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.default_model.sensitivity", description=__doc__)
    parser.add_argument("model", type=Path, help="the model's folder, whose card is updated")
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/")
    parser.add_argument("--phantoms", type=int, default=20)
    parser.add_argument("--paintings", type=int, default=3, help="how many times lesions are painted into each scan")
    options = parser.parse_args(arguments)
    RunContext(threads=1).limit_threads()
    model = load_model(options.model)
    cases = []
    for ct, truth in _cases(options.data, options.phantoms, options.paintings):
        found = segment(ct, model, device="cpu")
        probability = np.zeros(ct.shape, np.float32)
        cropped = found.probabilities.get("tumor")
        if cropped is not None:
            probability[ct.grid.box_of(cropped.grid)] = cropped.array
        case = froc_case(found.mask("tumor"), probability, truth, ct.grid.voxel_volume_mm3, found.mask("liver"))
        cases.append(case)
        sys.stderr.write(f"{len(cases)}: {len(case.lesions)} lesions, {len(case.false_scores)} false pieces\n")
    points = operating_points(cases)
    write_points(options.model / "card.json", points)
    sys.stdout.write(table(cases, points) + "\n")


def _cases(data: Path, phantoms: int, paintings: int) -> Iterator[tuple[Volume, np.ndarray]]:
    """CTs and masks of their lesions."""
    for seed in range(FIRST_SEED, FIRST_SEED + phantoms):
        phantom = make_phantom(seed, spacing_mm=(1.5, 1.5, 3.0), phase="portal")
        yield phantom.ct, phantom.truth.array == 2
    for number, scan in enumerate(real_scans(data, SCANS, whole=True)):
        for painting in range(paintings):
            rng = Rng(FIRST_SEED + 100 * number + painting)
            array, truth = np.array(scan.ct.array), np.zeros(scan.ct.shape, bool)
            for _ in range(_PAINTED):
                inside = np.argwhere(scan.liver & ~truth)
                place = scan.ct.grid.to_lps(inside[rng.integer(len(inside))][::-1])
                changed = dataclasses.replace(scan, ct=scan.ct.with_array(array))
                part, lesion, box = painted(changed, rng, place, rng.log_uniform(8, 40), 2.0, alone=True)
                array = np.array(array)
                array[box] = part
                truth[box] |= lesion
            yield scan.ct.with_array(np.rint(array).astype(np.int16)), truth
    for outlined in (one for scans in PATIENTS.values() for one in scans if one.tumors == "labeled"):
        ct, _, tumor = read_scan(data, outlined)
        yield ct, tumor


def operating_points(cases: Sequence[FrocCase]) -> tuple[OperatingPoint, ...]:
    """The lowest peak for each accepted number of false positives per case, in falling order."""
    logits = np.arange(0.0, 7.01, 0.25)[::-1]
    rows = froc(cases, [1 / (1 + math.exp(-logit)) for logit in logits])
    measured = list(zip(logits, rows, strict=True))
    chosen = [measured[0]]  # the highest peak that half precision resolves
    for accepted in ACCEPTED:
        chosen += [(logit, row) for logit, row in measured if row["false_per_case"] <= accepted][-1:]
    points = {
        float(logit): OperatingPoint(float(logit), round(row["false_per_case"], 2), round(row["sensitivity"], 2))
        for logit, row in chosen
    }
    return tuple(points.values())


def write_points(card: Path, points: Sequence[OperatingPoint]) -> None:
    """Write the points, and the model's own, into the last stage of a card that segments tumors."""
    own = [point.peak for point in points if point.false_per_case <= STANDARD][-1]
    spec = ModelSpec.from_json(card.read_text(encoding="utf-8"))
    name = spec.stage_of("tumor").name
    stages = tuple(
        dataclasses.replace(stage, operating_points={"tumor": tuple(points)}, peak_threshold={"tumor": own})
        if stage.name == name
        else stage
        for stage in spec.stages
    )
    card.write_text(dataclasses.replace(spec, stages=stages).to_json(), encoding="utf-8")


def table(cases: Sequence[FrocCase], points: Sequence[OperatingPoint]) -> str:
    """The points with 95% confidence intervals as Markdown, and the whole curve as JSON."""
    rows = froc(cases, [1 / (1 + math.exp(-point.peak)) for point in points])
    lines = [
        "| peak (logit) | false positives per case | sensitivity | < 10 mm | 10–20 mm | > 20 mm |",
        "|---|---|---|---|---|---|",
    ]
    names = ("false_per_case", "sensitivity", *(f"sensitivity {size}" for size in ("<10 mm", "10-20 mm", ">20 mm")))
    for point, row in zip(points, rows, strict=True):
        cells = []
        for name in names:
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            words = "–" if row[name] is None else f"{row[name]:.2f}"
            cells.append(words if low is None else f"{words} ({low:.2f}–{high:.2f})")
        lines.append(f"| {point.peak:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", json.dumps(froc(cases))])


if __name__ == "__main__":
    main()
