# SPDX-License-Identifier: Apache-2.0
"""Evaluate each patient with a model that never saw them: ``python -m recipes.default_model.leave_out --help``.

For each patient with a labeled liver all phases are trained without that patient's scans, and the model segments these.
Runs may be shorter than the final one (``--iterations``), and may continue from a model that was never trained on the
patients (``--start``). An interrupted evaluation is resumed. A model that was trained without several patients is
evaluated on them without further training (``--model``).
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from LiverXAILib.context import RunContext
from LiverXAILib.errors import LiverXAIError
from LiverXAILib.evaluation.evaluate import evaluate
from LiverXAILib.evaluation.metrics import SIZE_NAMES
from LiverXAILib.inference import segment
from LiverXAILib.models import Model, load_model

from ..real_ct import PATIENTS, Scan, read_scan
from .build import Run, export_run, require_unseen, train_all, tune

_log = logging.getLogger(__name__)

TABLE, SUMMARY = "leave-out.csv", "leave-out.md"
#: Patients whose scans show little of the liver, or nowhere the complete liver.
_PARTIAL = ("totalseg_abdomen", "totalseg_slab")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.default_model.leave_out", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/, dicom/ and models/obelisk/")
    parser.add_argument("--output", type=Path, required=True, help="folder for sources/, a folder per patient, a table")
    patients = [name for name in PATIENTS if name not in _PARTIAL]
    parser.add_argument("--patients", nargs="+", choices=list(PATIENTS), default=patients, metavar="PATIENT")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--start", metavar="MODEL", help="model whose liver network is trained further; default: all phases are trained"
    )
    chosen.add_argument("--model", help="evaluate this model, trained without the patients; nothing is trained")
    parser.add_argument("--iterations", type=int, help="iterations of each phase; default: the phase's own number")
    parser.add_argument("--phantoms", type=int, nargs=2, default=Run.phantoms, metavar=("TRAINED", "SCANNED"))
    parser.add_argument("--compare", nargs="*", default=[], metavar="MODEL", help="also models to compare with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    RunContext(threads=options.threads).limit_threads()
    rows: list[dict[str, Any]] = []
    try:
        for patient in options.patients:
            run = Run(
                options.data,
                options.output / patient,
                options.seed,
                (patient,),
                options.iterations,
                options.workers,
                tuple(options.phantoms),
                options.output / "sources",
            )
            model = trained(run, options.start) if options.model is None else load_model(options.model)
            models = {"left out": model, **{name: load_model(name) for name in options.compare}}
            for one in models.values():
                require_unseen(one.spec, (patient,))
            rows += evaluate_patient(options.data, patient, models)
            write(rows, options.output)
    except LiverXAIError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print((options.output / SUMMARY).read_text(encoding="utf-8"))  # noqa: T201
    return 0


def trained(run: Run, start: str | None) -> Model:
    """Load the model of a run, trained first if necessary.

    :param start: name or folder of a model; its liver network is trained further, its locator kept.
    """
    if start is None:
        train_all(run)
    else:
        tune(run, start)
    export_run(run.output)
    return load_model(run.output / "model")


def evaluate_patient(data: Path, patient: str, models: Mapping[str, Model]) -> list[dict[str, Any]]:
    """Evaluate each scan of a patient with each model, a row each."""
    return [
        evaluate_scan(data, patient, scan, name, model) for scan in PATIENTS[patient] for name, model in models.items()
    ]


def evaluate_scan(data: Path, patient: str, scan: Scan, name: str, model: Model) -> dict[str, Any]:
    """Dice of liver and tumor in a scan, detected lesions by size, and false ones; empty where tumors are unknown."""
    volume, liver, tumor = read_scan(data, scan)
    segmentation = segment(volume, model)
    reference = volume.with_array(np.where(tumor, 2, liver).astype(np.uint8))
    labels = {"liver": 1, "tumor": 2} if scan.tumors != "unknown" else {"liver": 1}
    if scan.tumors == "unknown":
        reference = volume.with_array(liver.astype(np.uint8))
    result = evaluate(
        segmentation.labels, reference, labels, predicted_labels={"liver": 1, "tumor": 2}, surface=False, name=scan.name
    )
    row: dict[str, Any] = {"patient": patient, "scan": scan.name, "phase": scan.phase, "model": name}
    for part in result.structures:
        row[f"{part.structure}_dice"] = part.overlap.dice
        row[f"{part.structure}_ml"] = part.overlap.predicted_ml
        row[f"{part.structure}_reference_ml"] = part.overlap.reference_ml
        if part.lesions is not None:
            for size, there, found in zip(SIZE_NAMES, part.lesions.reference, part.lesions.found, strict=True):
                row[f"lesions {size}"], row[f"found {size}"] = there, found
            row["false lesions"] = part.lesions.false
    _log.info("%s", row)
    return row


def write(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write all scans as CSV, and means by model and phase as Markdown."""
    output.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (output / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| model | phase | scans | liver Dice | tumor Dice | lesions found | false positives per scan |"]
    lines.append("|---|---|---|---|---|---|---|")
    for model in dict.fromkeys(row["model"] for row in rows):
        for phase in dict.fromkeys(row["phase"] for row in rows):
            own = [row for row in rows if row["model"] == model and row["phase"] == phase]
            if own:
                lines.append(f"| {model} | {phase} | {len(own)} | {_summary(own)} |")
    (output / SUMMARY).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the summary columns for the scans of a model and a phase."""
    sizes = []
    for size in SIZE_NAMES:
        there, found = (sum(row.get(f"{part} {size}", 0) for row in rows) for part in ("lesions", "found"))
        if there:
            sizes.append(f"{found} of {there} {size}")
    false = [row["false lesions"] for row in rows if row.get("false lesions") is not None]
    mean = f"{np.mean(false):.1f}" if false else "–"
    dice = [_mean([row.get(f"{name}_dice") for row in rows]) for name in ("liver", "tumor")]
    return " | ".join([*dice, ", ".join(sizes) or "–", mean])


def _mean(values: Sequence[float | None]) -> str:
    """Format the mean of the defined values, and their number."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f} ({len(known)})" if known else "–"


if __name__ == "__main__":
    sys.exit(main())
