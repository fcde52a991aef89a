# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark followup``: how well lesions are followed, on twelve synthetic pairs whose changes are known.

Each pair is one synthetic patient, scanned twice (:mod:`LiverXAILib.phantoms.follow_up`). The benchmark measures how
well lesions are matched (F1 over pairs of lesions, including new and vanished ones) and whether the category of RECIST
1.1 is right, first with the true outlines, then with those of a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import Analysis
from ..context import RunContext
from ..errors import UsageError
from ..files import replacing
from ..followup.comparing import follow
from ..followup.findings import Comparison
from ..followup.matching import Link, link_scores
from ..followup.studies import Study, study_of
from ..inference import Segmentation, segment, select_device
from ..inference.lesions import lesion_components
from ..measure import measure
from ..models import LIVER, TUMOR, load_model
from ..models.model import Model
from ..phantoms.follow_up import Change, Motion, PhantomPair, PhantomStudy, make_pair
from ..progress import progress_bar

#: Patients of this benchmark: seeds that no training or tuning uses.
FIRST_SEED = 910_000
_USUAL = Motion((4.0, -3.0, 8.0), (2.0, 1.0, -2.0), 10.0, 4.0)
_SPACING = (2.0, 2.0, 3.0)
_BODY_SPACING = (2.5, 2.5, 3.0)

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """The changes between two scans, and the category that follows from the diameters."""

    name: str
    changes: tuple[Change, ...]
    category: str
    motion: Motion = _USUAL
    spacings_mm: tuple[tuple[float, float, float], tuple[float, float, float]] = (_SPACING, _SPACING)
    phases: tuple[str, str] = ("portal", "portal")


PAIRS = (
    Pair("growth", (Change((30,), (42,)), Change((18,), (24,))), "PD"),
    Pair("shrinkage", (Change((36,), (22,)), Change((20,), (12,))), "PR"),
    Pair("no change", (Change((28,), (29,)), Change((16,), (16,))), "SD"),
    Pair("new lesion", (Change((24,), (24,)), Change((), (14,))), "PD"),
    Pair("all vanished", (Change((22,), ()), Change((14,), ())), "CR"),
    Pair("one vanished", (Change((30,), (24,)), Change((14,), ())), "PR"),
    Pair("split", (Change((44,), (15, 12)), Change((14,), (14,))), "SD"),
    Pair("merged", (Change((16, 14), (40,)),), "PD"),
    Pair("deep breath", (Change((26,), (26,)), Change((15,), (15,))), "SD",
         Motion((5.0, 4.0, 15.0), (-2.0, 2.0, 3.0), 22.0, 7.0)),
    Pair("other phase", (Change((30,), (27,)), Change((15,), (15,))), "SD", phases=("portal", "native")),
    Pair("other spacing", (Change((22,), (31,)), Change((16,), (22,))), "PD",
         spacings_mm=((1.5, 1.5, 2.0), (2.5, 2.5, 5.0))),
    Pair("other position", (Change((34,), (18,)), Change((18,), (14,))), "PR",
         Motion((35.0, -25.0, 80.0), (12.0, -8.0, 14.0), 8.0, 4.0)),
)  # fmt: skip


def benchmark_followup(pair: Pair, number: int, model: Model | None, context: RunContext) -> list[Row]:
    """Return a row for the true outlines, and one for those of `model`: links, category, millimeters, seconds."""
    made = make_pair(
        FIRST_SEED + number,
        pair.changes,
        motion=pair.motion,
        spacings_mm=pair.spacings_mm,
        phases=pair.phases,
        body_spacing_mm=_BODY_SPACING,
    )
    scans = (made.prior, made.current)
    truth = [Segmentation(scan.truth, (LIVER, TUMOR)) for scan in scans]
    rows = [_row(pair, number, "truth", made, truth, context)]
    if model is not None:
        found = [segment(scan.ct, model, **context.keywords) for scan in scans]
        rows.append(_row(pair, number, model.spec.name, made, found, context))
    return rows


def _row(
    pair: Pair,
    number: int,
    outlines: str,
    made: PhantomPair,
    segmentations: Sequence[Segmentation],
    context: RunContext,
) -> Row:
    scans = (made.prior, made.current)
    studies = [
        _study(scan, one, f"scan {n}") for n, (scan, one) in enumerate(zip(scans, segmentations, strict=True), 1)
    ]
    started = time.perf_counter()
    comparison = follow(studies, [0.0, 90.0], None, context)
    seconds = time.perf_counter() - started
    names = [_names(scan, one) for scan, one in zip(scans, segmentations, strict=True)]
    response = comparison.findings.responses[-1][0]
    quality = comparison.findings.steps[0].quality
    return {
        "pair": number,
        "name": pair.name,
        "outlines": outlines,
        **link_scores(_links(comparison, names), _true_links(made)),
        "expected": pair.category,
        "category": response.category,
        "dice": None if quality is None else quality.dice,
        "error_mm": _error_mm(comparison, made),
        "sum_change_percent": response.from_baseline_percent,
        "seconds": seconds,
    }


def _study(scan: PhantomStudy, segmentation: Segmentation, name: str) -> Study:
    measured = measure(scan.ct, segmentation)
    spec = None
    return study_of(Analysis(scan.ct, spec, segmentation, (), measured), name)  # type: ignore[arg-type]


def _names(scan: PhantomStudy, segmentation: Segmentation) -> dict[int, int]:
    """Match each lesion of a segmentation to the true piece that it overlaps most; lesions without a match get numbers
    above 1000."""
    numbers = lesion_components(segmentation)
    names = {}
    for number in range(1, int(numbers.max(initial=0)) + 1):
        counts = np.bincount(scan.pieces.array[numbers == number], minlength=2)[1:]
        names[number] = int(counts.argmax()) + 1 if counts.any() else 1000 + number
    return names


def _links(comparison: Comparison, names: Sequence[dict[int, int]]) -> list[Link]:
    """Return the links that were found, in numbers of the true pieces."""
    links: dict[Link, None] = {}
    for track in comparison.findings.tracks:
        prior, current = (
            tuple(sorted({own[number] for number in one.lesions}))
            for own, one in zip(names, track.appearances, strict=True)
        )
        links[Link(prior, current)] = None
    return list(links)


def _true_links(made: PhantomPair) -> list[Link]:
    links = []
    for change in sorted({*made.prior.changes, *made.current.changes}):
        prior, current = (
            tuple(piece for piece, own in enumerate(scan.changes, start=1) if own == change)
            for scan in (made.prior, made.current)
        )
        links.append(Link(prior, current))
    return links


def _error_mm(comparison: Comparison, made: PhantomPair) -> float | None:
    """Return the mean registration error over the current liver; None if the registration was rejected."""
    registration = comparison.registrations[0]
    if registration is None:
        return None
    inside = np.argwhere(made.current.truth.array > 0)
    points = made.current.truth.grid.to_lps(inside[:: max(1, len(inside) // 500), ::-1])
    return float(
        np.linalg.norm(registration.to_prior(points) - made.motion.to_body(points, made.middle), axis=1).mean()
    )


def table(rows: Sequence[Row]) -> str:
    """Format the rows as Markdown, with totals."""
    lines = [
        "| outlines | pair | links right, wrong, missed | category | expected | livers' Dice | error, mm |",
        "|---|---|---|---|---|---|---|",
    ]
    ends = []
    for outlines in dict.fromkeys(row["outlines"] for row in rows):
        own = [row for row in rows if row["outlines"] == outlines]
        for row in own:
            cells = [f"{row['true']}, {row['false']}, {row['missed']}", row["category"], row["expected"]]
            cells += [
                "–" if row[key] is None else f"{row[key]:.{digits}f}" for key, digits in (("dice", 3), ("error_mm", 1))
            ]
            lines.append(f"| {outlines} | {row['name']} | {' | '.join(cells)} |")
        right, false, missed = (sum(row[key] for row in own) for key in ("true", "false", "missed"))
        f1 = 2 * right / (2 * right + false + missed)
        agree = sum(row["category"] == row["expected"] for row in own)
        seconds = float(np.median([row["seconds"] for row in own]))
        ends.append(
            f"{outlines}: F1 of links {f1:.2f}, {agree} of {len(own)} categories right, {seconds:.0f} s a pair."
        )
    return "\n".join([*lines, "", *ends])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--model", metavar="NAME", help="also with the outlines of this model (default: the truth alone)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument(
        "--pairs", metavar="N", type=int, nargs="+", help=f"which pairs, from 1 (default: all {len(PAIRS)})"
    )
    parser.add_argument(
        "--rows", metavar="FILE", type=Path, help="keep rows in this JSON file, and compute only missing ones"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark; returns the exit code."""
    chosen = arguments.pairs or list(range(1, len(PAIRS) + 1))
    if unknown := [number for number in chosen if not 1 <= number <= len(PAIRS)]:
        raise UsageError(f"There is no pair {unknown[0]}; there are {len(PAIRS)}.")
    path = arguments.rows
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else []
    model = None if arguments.model is None else load_model(arguments.model)
    device = select_device(arguments.device)  # refused before minutes are spent on the scans
    wanted = {"truth", *([] if model is None else [model.spec.name])}
    with progress_bar() as progress:
        context = RunContext(progress, device=device)
        for done, number in enumerate(chosen):
            if wanted <= {row["outlines"] for row in rows if row["pair"] == number}:
                continue
            rows = [row for row in rows if row["pair"] != number]
            rows += benchmark_followup(PAIRS[number - 1], number, model, context.step(done, len(chosen)))
            if path is not None:
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    shown = [row for row in rows if row["pair"] in chosen and row["outlines"] in wanted]
    sys.stdout.write(table(sorted(shown, key=lambda row: row["pair"])) + "\n")
    return 0
