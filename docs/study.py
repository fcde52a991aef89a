# SPDX-License-Identifier: Apache-2.0
"""Regenerate the study's table, curves, figures and page from runs of configs/study-2d.yaml, without manual numbers.

::

    liverxai train configs/study-2d.yaml                             # phantoms: runs/study-2d
    python -m recipes.study_2d --data FOLDER                         # real CT: runs/study-2d-ct
    python docs/study.py --phantoms runs/study-2d --ct runs/study-2d-ct --data FOLDER

The last command stores the data that the page needs as small CSV files in ``docs/study``. Without arguments it writes
the page from these alone. Figures of real CT stay in the run's folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from LiverXAILib.training.table import write_csv, write_curves

HERE = Path(__file__).resolve().parent
KEPT = HERE / "study"
RUNS = {"phantoms": "phantoms", "ct": "real CT left out"}
#: Columns of evaluation.csv that are kept in docs/study/*-cases.csv.
CASES = ("fold", "case", "structure", "dice", "predicted_ml", "reference_ml", "hd95_mm", "assd_mm")
#: Number formats of the measures of a case.
FORMS = (".3f", ".0f", ".0f", ".1f", ".1f")

Row = Mapping[str, str]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=Path, help="run on phantoms")
    parser.add_argument("--ct", type=Path, help="run on real CT (recipes.study_2d)")
    parser.add_argument("--data", type=Path, help="folder with ct/, for the figure of a real CT")
    options = parser.parse_args()
    KEPT.mkdir(exist_ok=True)
    for name, run in (("phantoms", options.phantoms), ("ct", options.ct)):
        if run is not None:
            keep(name, run)
    if options.phantoms:
        from study_figures import figure_of_phantom

        explained("phantoms", figure_of_phantom(options.phantoms, HERE / "images" / "study-figure.png"))
    if options.ct and options.data:
        from study_figures import figure_of_ct

        explained("ct", figure_of_ct(options.ct, options.data))
    for name in RUNS:
        if (rows := epochs(name)) and (options.phantoms or options.ct):
            write_curves(rows, HERE / "images", f"study-{name}")
    (HERE / "study.md").write_text(page(), encoding="utf-8")


# --- stored data of a run -------------------------------------------------------------------------------------------


def keep(name: str, run: Path) -> None:
    """Copy the epochs, the final cases and facts about the training, rounded, to ``docs/study``."""
    with (run / "epochs.csv").open(encoding="utf-8", newline="") as file:
        rows = [{key: _rounded(value, 5) for key, value in row.items()} for row in csv.DictReader(file)]
    write_csv(rows, KEPT / f"{name}-epochs.csv")
    if (run / "evaluation.csv").is_file():
        with (run / "evaluation.csv").open(encoding="utf-8", newline="") as file:
            cases = [{key: _rounded(row.get(key, ""), 3) for key in CASES} for row in csv.DictReader(file)]
        write_csv(cases, KEPT / f"{name}-cases.csv")
    splits = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob("**/splits.json"))]
    config = yaml.safe_load(next(run.glob("**/config.yaml")).read_text(encoding="utf-8"))
    facts = {
        "runs": len(splits),
        **{key: config["training"][key] for key in ("slices_per_case", "batch_size", "learning_rate", "tumor_balance")},
        "features": config["network"]["features"],
        "training": [len(split["training"]) for split in splits],
        "validation": [len(split["validation"]) for split in splits],
        "machine": machine(),
        "minutes": minutes(run),
        **(json.loads(spent.read_text(encoding="utf-8")) if (spent := run / "time.json").is_file() else {}),
    }
    (KEPT / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def explained(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store the results of the faithfulness checks of the maps of a figure."""
    write_csv(rows, KEPT / f"{name}-explanations.csv")


def machine() -> str:
    """The processor of this machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} virtual CPUs, no GPU"


def minutes(run: Path) -> int:
    """Time from the first configuration written to the last result, without making phantoms or synthetic patients."""
    began = min(path.stat().st_mtime for path in run.glob("**/config.yaml"))
    ended = max(path.stat().st_mtime for path in run.glob("**/finished.json"))
    return math.ceil((ended - began) / 60)


def read(name: str, what: str) -> list[dict[str, str]]:
    """Rows of a stored table; none if the run has not been stored."""
    path = KEPT / f"{name}-{what}.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def epochs(name: str) -> list[dict[str, float]]:
    """The epochs of a stored run."""
    return [{key: float(value or "nan") for key, value in row.items()} for row in read(name, "epochs")]


# --- the page -------------------------------------------------------------------------------------------------------


def page() -> str:
    """The text of ``docs/study.md``, which states which runs have not been stored."""
    text = (KEPT / "template.md").read_text(encoding="utf-8")
    values: dict[str, str] = {}
    for name in RUNS:
        rows, facts = epochs(name), KEPT / f"{name}.json"
        if not rows:
            text = re.sub(rf"!\[[^]]*\]\(images/study-{name}\.png\)\n", "", text)
            continue
        about = json.loads(facts.read_text(encoding="utf-8"))
        values |= {
            f"{name}_first_last": first_last(rows),
            f"{name}_table": table(rows),
            f"{name}_cases": cases(read(name, "cases")),
            f"{name}_mean": means(read(name, "cases")),
            f"{name}_nothing": percent(rows[-1]["validation_accuracy_of_nothing"]),
            f"{name}_accuracy": percent(rows[-1]["validation_accuracy"]),
            f"{name}_reached": reached(rows[-1], DICE_AIMS[name]),
            f"{name}_explanations": explanations(read(name, "explanations")),
            f"{name}_machine": about["machine"],
            f"{name}_training": spread(about["training"]),
            f"{name}_validation": spread([sum(about["validation"])]),
            f"{name}_runs": str(about["runs"]),
            f"{name}_slices": str(about["slices_per_case"]),
            f"{name}_batch": str(about["batch_size"]),
            f"{name}_rate": f"{about['learning_rate']:g}",
            f"{name}_balance": f"{about['tumor_balance']:g}",
            f"{name}_minutes": str(about["minutes"]),
            f"{name}_processor_minutes": str(about.get("processor_minutes", "an unknown number of")),
            f"{name}_features": "-".join(map(str, about["features"])),
        }
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    if not (HERE / "images" / "study-figure.png").is_file():
        text = re.sub(r"!\[[^]]*\]\(images/study-figure\.png\)\n", "", text)
    text = re.sub(r"\{\{\w+_first_last\}\}", "*not run yet* | | | |", text)
    return re.sub(r"\{\{\w+\}\}", "*not run yet*", text)


def first_last(rows: Sequence[Mapping[str, float]]) -> str:
    """Change from first to last epoch: loss and accuracy of training and validation, Dice."""
    first, last = rows[0], rows[-1]
    cells = []
    for part in ("training", "validation"):
        for label in ("liver", "tumor"):
            key = f"{part}_loss_{label}"
            cells.append(f"{label} {number(first[key], 3)} → {number(last[key], 3)}")
        cells[-2:] = ["; ".join(cells[-2:])]
        cells.append(f"{percent(first[f'{part}_accuracy'])} → {percent(last[f'{part}_accuracy'])}")
    dice = [f"{label} {number(last[f'validation_dice_{label}'], 3)}" for label in ("liver", "tumor")]
    return " | ".join([*cells, ", ".join(dice)])


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """All epochs: one table for the losses and accuracy, one for Dice, sensitivity and precision."""
    losses = [
        "loss",
        *(f"{kind}_{label}" for label in ("liver", "tumor") for kind in ("loss", "soft_dice_loss", "bce")),
    ]
    rates = [f"{kind}_{label}" for label in ("liver", "tumor") for kind in ("dice", "sensitivity", "precision")]
    parts = []
    for columns in ([*losses, "accuracy"], rates):
        parts.append("| epoch | | " + " | ".join(column.replace("_", " ") for column in columns) + " |")
        parts.append("|---" * (len(columns) + 2) + "|")
        for row in rows:
            for part in ("training", "validation"):
                cells = [number(row.get(f"{part}_{column}", math.nan), 4) for column in columns]
                parts.append(f"| {row['epoch']:.0f} | {part} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def cases(rows: Sequence[Row]) -> str:
    """A table of the final measures of every case, on its own grid."""
    lines = ["| case | structure | Dice | ml | reference ml | HD95 mm | ASSD mm |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        values = [row[key] and f"{float(row[key]):{form}}" for key, form in zip(CASES[3:], FORMS, strict=True)]
        cells = [row["case"], row["structure"], *(value or "–" for value in values)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def means(rows: Sequence[Row]) -> str:
    """Final mean Dice over the cases, for each structure."""
    parts = []
    for structure in ("liver", "tumor"):
        values = [float(row["dice"]) for row in rows if row["structure"] == structure and row["dice"]]
        if values:
            parts.append(f"{structure} {sum(values) / len(values):.3f} (mean of {len(values)})")
    return ", ".join(parts)


#: Target validation Dice of the liver for each run.
DICE_AIMS = {"phantoms": 0.95, "ct": 0.92}


def reached(last: Mapping[str, float], dice_aim: float) -> str:
    """The targets, and whether they were reached."""
    aims = (
        ("liver Dice", last["validation_dice_liver"], dice_aim, True),
        ("loss of the liver", last["validation_loss_liver"], 0.1, False),
        ("accuracy", last["validation_accuracy"], 0.995, True),
    )
    parts = []
    for name, value, aim, more in aims:
        met = value >= aim if more else value <= aim
        bound = f"{'≥' if more else '≤'} {aim:g}"
        parts.append(f"{name} {value:.4f} ({bound}: {'reached' if met else '**not reached**'})")
    return ", ".join(parts)


def explanations(rows: Sequence[Row]) -> str:
    """A table of the faithfulness checks of the maps of the figure."""
    lines = ["| target | layer | passed | what the check says |", "|---|---|---|---|"]
    for row in rows:
        result = " ".join([row["sentence"], *filter(None, [row["warnings"]])])
        lines.append(f"| {row['target']} | `{row['layer']}` | {row['passed']} | {result} |")
    return "\n".join(lines) if rows else ""


def spread(counts: Sequence[int]) -> str:
    """ "96", or "220 to 288" for folds."""
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def number(value: float | None, digits: int) -> str:
    """A number, or a dash if nothing could be measured."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float) -> str:
    """A fraction as a percentage."""
    return f"{100 * value:.2f} %"


def _rounded(text: str, digits: int) -> str:
    try:
        return f"{float(text):.{digits}f}".rstrip("0").rstrip(".") if text else ""
    except ValueError:
        return text


if __name__ == "__main__":
    main()
