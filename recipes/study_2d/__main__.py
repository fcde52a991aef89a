# SPDX-License-Identifier: Apache-2.0
"""``python -m recipes.study_2d``: configs/study-2d.yaml on real CT, leaving out anatomies in turn.

Synthetic patients are made from each anatomy. In each fold some anatomies are left out: the network learns from the
synthetic patients of the others and is validated on the real scans of those left out, so that every real liver is
validated once, by a network that never saw its patient. To resume an interrupted run, give the same command
again. ``time.json`` in the output folder has the processor time, if the run was not interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from LiverXAILib.errors import LiverXAIError
from LiverXAILib.progress import progress_bar
from LiverXAILib.training.table import markdown, write_csv, write_curves

from .patients import ANATOMIES, prepare

CONFIG = Path(__file__).parents[2] / "configs" / "study-2d.yaml"


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.study_2d", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/ (docs/study.md lists the scans)")
    parser.add_argument("--output", type=Path, default=Path("runs/study-2d-ct"))
    parser.add_argument("--folds", type=int, default=4, help=f"{len(ANATOMIES)}: leave out one anatomy at a time")
    parser.add_argument("--patients", type=int, default=64, help="synthetic patients of each anatomy")
    parser.add_argument("--slices", type=int, default=6, help="slices of each synthetic patient in an epoch")
    parser.add_argument("--anatomies", nargs="+", choices=list(ANATOMIES), default=list(ANATOMIES), metavar="NAME")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as for liverxai train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="parallel processes, with one thread each")
    options = parser.parse_args(arguments)
    if not 2 <= options.folds <= len(options.anatomies):
        parser.error(f"--folds must be 2 to {len(options.anatomies)}, the number of anatomies.")
    try:
        with progress_bar() as progress:
            training, validation = prepare(
                options.data, options.output, options.anatomies, options.patients, options.seed, options.jobs, progress
            )
    except LiverXAIError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    folds = [options.anatomies[n :: options.folds] for n in range(options.folds)]
    commands = [fold_command(options, n, folds[n], training, validation) for n in range(options.folds)]
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda job: _run(*job), commands))
    if any(codes):
        print(f"error: fold {codes.index(max(codes))} failed; see train.log in its folder.", file=sys.stderr)  # noqa: T201
        return 1
    summarize(options.output, folds)
    spent = {"processor_minutes": round(_processor_minutes())}
    (options.output / "time.json").write_text(json.dumps(spent) + "\n", encoding="utf-8")
    return 0


def fold_command(
    options: argparse.Namespace,
    number: int,
    left_out: Sequence[str],
    training: Mapping[str, Sequence[Mapping[str, str]]],
    validation: Mapping[str, Sequence[Mapping[str, str]]],
) -> tuple[list[str], Path]:
    """Write the CSV data set of a fold; return the command that trains it, and the folder of the run."""
    used = [row for name in options.anatomies if name not in left_out for row in training[name]]
    held_out = [row for name in left_out for row in validation[name]]
    table = options.output / f"fold-{number}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["case", "image", "label", "liver", "tumor"])
        writer.writeheader()
        writer.writerows([*used, *held_out])
    data = {"layout": "csv", "path": str(table), "validation_cases": [row["case"] for row in held_out]}
    folder = options.output / f"fold-{number}"
    command = [sys.executable, "-m", "LiverXAILib", "train", str(options.config), "--output", str(folder)]
    changes = [f"data={json.dumps(data)}", f"training.slices_per_case={options.slices}", f"seed={options.seed}"]
    changes += [f"title=2-D U-Net after the study's recipe, real CT, fold {number}", "finish.explain=null"]
    changes += options.set
    return [*command, *(part for change in changes for part in ("--set", change))], folder


def _run(command: Sequence[str], folder: Path) -> int:
    """Train one fold on one thread; its output goes to ``train.log``."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (folder / "train.log").open("a", encoding="utf-8") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode


def _processor_minutes() -> float:
    """Processor time of this process and its children so far; 0 if the system does not report it."""
    spent = os.times()
    return (spent.user + spent.system + spent.children_user + spent.children_system) / 60


def summarize(output: Path, folds: Sequence[Sequence[str]]) -> None:
    """Write ``epochs.csv`` with the mean over the folds, its curves, and ``evaluation.csv`` with all left-out scans."""
    runs = [output / f"fold-{n}" for n in range(len(folds))]
    tables = [json.loads((run / "finished.json").read_text(encoding="utf-8"))["rows"] for run in runs]
    rows = [_mean(rows) for rows in zip(*tables, strict=True)]
    write_csv(rows, output / "epochs.csv")
    write_curves(rows, output)
    every: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        with (run / "evaluation.csv").open(encoding="utf-8", newline="") as file:
            every += [{"fold": number, **row} for row in csv.DictReader(file)]
    write_csv(every, output / "evaluation.csv")
    (output / "folds.json").write_text(json.dumps(folds, indent=1) + "\n", encoding="utf-8")
    print(markdown(rows))  # noqa: T201


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over the folds where it was defined."""
    result = {}
    for name in rows[0]:
        values = [row[name] for row in rows if not math.isnan(row[name])]
        result[name] = sum(values) / len(values) if values else math.nan
    return result


if __name__ == "__main__":
    sys.exit(main())
