# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation: rows, means with intervals, files and text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import replacing
from ..tables import write_table
from .froc import FrocCase, froc
from .lesions import LesionPair, bland_altman
from .metrics import SIZE_NAMES, LesionDetection, Overlap, SurfaceDistances, bootstrap_interval

#: Size classes as parts of column names, in the order of :data:`~LiverXAILib.evaluation.metrics.SIZE_NAMES`.
_SIZE_COLUMNS = ("lt10mm", "10to20mm", "gt20mm")
#: Columns of the table for people: title, key of the row, digits (None: text).
_SHOWN = (
    ("case", "case", None),
    ("structure", "structure", None),
    ("Dice", "dice", 3),
    ("IoU", "iou", 3),
    ("volume ml", "predicted_ml", 1),
    ("reference ml", "reference_ml", 1),
    ("HD95 mm", "hd95_mm", 2),
    ("ASSD mm", "assd_mm", 2),
    ("NSD", "nsd", 3),
    ("ECE", "ece", 4),
)


@dataclass(frozen=True)
class StructureResult:
    """One structure of one case.

    `surface` is None if it was not requested or the grid is sheared; `ece` is None without probabilities; `lesions` and
    `pairs` (lesion by lesion) are None for the liver, and `froc` is also None without probabilities.
    """

    structure: str
    overlap: Overlap
    surface: SurfaceDistances | None
    ece: float | None
    lesions: LesionDetection | None
    pairs: tuple[LesionPair, ...] | None = None
    froc: FrocCase | None = None

    def row(self) -> dict[str, Any]:
        """Flat, for a table; what does not apply is None."""
        surface = dataclasses.asdict(self.surface) if self.surface else dict.fromkeys(("hd95_mm", "assd_mm", "nsd"))
        counts = dataclasses.asdict(self.lesions) if self.lesions else {}
        lesions = {
            f"lesions_{kind}_{size}": counts[kind][n] if counts else None
            for kind in ("reference", "found", "predicted", "true")
            for n, size in enumerate(_SIZE_COLUMNS)
        }
        return {"structure": self.structure, **dataclasses.asdict(self.overlap), **surface, "ece": self.ece, **lesions}


@dataclass(frozen=True)
class CaseResult:
    """The structures of one case, and sentences about structures that were not compared."""

    case: str
    structures: tuple[StructureResult, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each structure."""
        return [{"case": self.case, **structure.row()} for structure in self.structures]


def lesion_rows(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """One flat row for each lesion of either side, with the errors of volume and diameter for matched lesions."""
    rows = []
    for case, pair in ((result.case, pair) for result in results for s in result.structures for pair in s.pairs or ()):
        volumes, lengths = (pair.predicted_ml, pair.reference_ml), (pair.predicted_long_mm, pair.reference_long_mm)
        percent = 100 * (volumes[0] - volumes[1]) / volumes[1] if volumes[0] is not None and volumes[1] else None
        longer = lengths[0] - lengths[1] if lengths[0] is not None and lengths[1] is not None else None
        rows.append({"case": case, **dataclasses.asdict(pair), "difference_percent": percent, "difference_mm": longer})
    return rows


def write_lesions(results: Sequence[CaseResult], path: Path) -> None:
    """Write :func:`lesion_rows` as CSV."""
    columns = ["case", *(field.name for field in dataclasses.fields(LesionPair)), "difference_percent", "difference_mm"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, columns, lesion_rows(results))


def paired_quantities(results: Sequence[CaseResult]) -> dict[str, tuple[list[float], list[float]]]:
    """Quantities measured on both sides, by name with unit: predictions and references."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for structure in ("liver", "tumor"):
        overlaps = [one.overlap for result in results for one in result.structures if one.structure == structure]
        if overlaps:
            found[f"{structure} volume, ml"] = [o.predicted_ml for o in overlaps], [o.reference_ml for o in overlaps]
    both = [
        (pair.predicted_long_mm, pair.reference_long_mm)
        for result in results
        for one in result.structures
        for pair in one.pairs or ()
        if pair.predicted_long_mm is not None and pair.reference_long_mm is not None
    ]
    if both:
        found["lesion diameter, mm"] = [a for a, _ in both], [b for _, b in both]
    return found


def summarize(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """Means over cases, and lesion-wise rates over all lesions, with 95 % bootstrap intervals over cases.

    Each row has structure, metric, value, low, high (None for fewer than three cases) and n: the number of cases,
    or of lesions for a rate. Cases for which a metric is undefined are left out of its mean.
    """
    rows = [row for result in results for row in result.rows()]
    summary: list[dict[str, Any]] = []

    def add(structure: str, metric: str, above: list[float], below: list[float] | None = None) -> None:
        total = len(above) if below is None else sum(below)
        low, high = bootstrap_interval(above, below) or (None, None)
        value = sum(above) / total if total else None
        summary.append(
            {"structure": structure, "metric": metric, "value": value, "low": low, "high": high, "n": int(total)}
        )

    for structure in dict.fromkeys(row["structure"] for row in rows):
        own = [row for row in rows if row["structure"] == structure]
        for metric in ("dice", "iou", "difference_ml", "difference_percent", "hd95_mm", "assd_mm", "nsd", "ece"):
            if values := [row[metric] for row in own if row[metric] is not None]:
                add(structure, metric, values)
        found = [s.lesions for r in results for s in r.structures if s.structure == structure and s.lesions is not None]
        if not found:
            continue
        for n, size in enumerate(SIZE_NAMES):
            add(structure, f"sensitivity {size}", [x.found[n] for x in found], [x.reference[n] for x in found])
        add(structure, "sensitivity", [sum(x.found) for x in found], [sum(x.reference) for x in found])
        for n, size in enumerate(SIZE_NAMES):
            add(structure, f"precision {size}", [x.true[n] for x in found], [x.predicted[n] for x in found])
        add(structure, "precision", [sum(x.true) for x in found], [sum(x.predicted) for x in found])
        add(structure, "false lesions per case", [x.false for x in found])
        dice = [[p.dice for p in s.pairs if p.dice is not None] for r in results for s in r.structures if s.pairs]
        add(structure, "dice of matched lesions", [sum(case) for case in dice], [len(case) for case in dice])
    return summary


def froc_cases(results: Sequence[CaseResult]) -> list[FrocCase]:
    """The data for the FROC curve of these results."""
    return [one.froc for result in results for one in result.structures if one.froc is not None]


def write_results(results: Sequence[CaseResult], path: Path) -> None:
    """Write ``.csv`` (one row for each case and structure) or ``.json`` (these and the summary).

    :raises LiverXAILib.errors.UsageError: the path has another extension.
    """
    rows = [row for result in results for row in result.rows()]
    if path.suffix not in (".csv", ".json"):
        raise UsageError(f"Cannot write {path}: its extension must be .csv or .json.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        write_table(path, list(rows[0]), rows)
        return
    notes = {result.case: list(result.notes) for result in results if result.notes}
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        content = {
            "cases": rows,
            "summary": summarize(results),
            "notes": notes,
            "lesions": lesion_rows(results),
            "agreement": {
                name: dataclasses.asdict(bland_altman(*values)) for name, values in paired_quantities(results).items()
            },
            "froc": froc(froc_cases(results)),
        }
        json.dump(content, file, indent=2, allow_nan=False)


def format_results(results: Sequence[CaseResult]) -> str:
    """Tables as text: the cases, then, for several cases, the summary."""
    cases = [[title for title, _, _ in _SHOWN] + ["lesions found", "false"]]
    for result in results:
        for row, structure in zip(result.rows(), result.structures, strict=True):
            lesions = structure.lesions
            counts = [f"{sum(lesions.found)} of {sum(lesions.reference)}", str(lesions.false)] if lesions else ["", ""]
            cases.append(
                [row[key] if digits is None else _text(row[key], digits) for _, key, digits in _SHOWN] + counts
            )
    text = _table(cases)
    summary = [row for row in summarize(results) if row["value"] is not None]
    if len(results) == 1:
        summary = [row for row in summary if " " in row["metric"] and row["structure"] == "tumor"]
    if summary:
        titles = {key: title for title, key, _ in _SHOWN}
        titles |= {"difference_ml": "difference ml", "difference_percent": "difference %"}
        shown = [
            (
                row["structure"],
                titles.get(row["metric"], row["metric"]),
                _text(row["value"], 3),
                _interval(row),
                str(row["n"]),
            )
            for row in summary
        ]
        text += "\n\n" + _table([("structure", "metric", "value", "95 % interval", "n"), *shown])
    notes = [f"{result.case}: {note}" for result in results for note in result.notes]
    return "\n".join([text, *notes])


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(row: Mapping[str, Any]) -> str:
    return "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first two left-aligned, numbers right-aligned."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    aligned = [
        [
            text.ljust(width) if n < 2 else text.rjust(width)
            for n, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)
