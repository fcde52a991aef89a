# SPDX-License-Identifier: Apache-2.0
"""Write docs/study.md from the logs of runs of configs/study-2d.yaml, so that no number in it is typed by hand.

::

    liverxai train configs/study-2d.yaml
    liverxai train configs/study-2d.yaml --output runs/study-2d-ct --set "data={layout: csv, path: CT.csv, …}"
    python docs/study.py --phantoms runs/study-2d --ct runs/study-2d-ct
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
from pathlib import Path

HERE = Path(__file__).parent
NOTHING = "validation_accuracy_of_nothing"

TEXT = """# The study's recipe, run again

A published study trained a 2-D U-Net on resized and normalized slices of labelled CT (Dice + binary cross-entropy,
Adam, five epochs, flips, scaling, rotation) and looked at it with Grad-CAM.
[`configs/study-2d.yaml`](../configs/study-2d.yaml) is that recipe, for any data set that `liverxai train` reads:
```
liverxai train configs/study-2d.yaml                                                           # phantoms
liverxai train configs/study-2d.yaml --set "data={{layout: msd, path: Task03_Liver}}" --output runs/study-2d-msd
```
This page is written by `python docs/study.py` from the logs of such runs. It is not a reproduction of the study's
numbers: its data were not at hand, and on a CPU the slices here are 64 x 64 and the network is small.

## First and last epoch
| | training loss | training accuracy | validation loss | validation accuracy | Dice |
|---|---|---|---|---|---|
| the study, first → last epoch | 0.278 → 0.011 | 93.45 → 99.21 % | 2.812 → 0.045 | 84.23 → 99.56 % | > 0.92 |
{rows}

Dice here is that of validation cases, liver and (where there are labels) tumor apart, all slices of a case together.
{data}

## Every epoch, phantoms
{phantoms}
![Learning curve, phantoms](images/study-phantoms.png)
{ct}
## What pixel accuracy hides
Most pixels of an abdominal CT are not liver. An answer of "nothing anywhere" has an accuracy of **{nothing}** on the
validation cases above, with a Dice of 0. The accuracies of the table begin from there, not from 0 or 50 %. Between a
useless and a useful model lie a few percent, and between a model that finds tumors and one that finds none far less:
a tumor of 5 ml is about 0.02 % of the pixels of a scan. A model can show 99.5 % and miss every tumor{proof}.
Nor does accuracy, or Dice over all voxels, say whether small lesions were found. `liverxai evaluate` and the end of
each run therefore report Dice for each structure and case, surface distances, and lesions found and invented by size.

Slices of one case are alike: a split by slice instead of by case would put neighbors of training slices into
validation. Splits here are by case.

## Cases at the end, on their own grid
```
{evaluation}
```

Machine: AMD EPYC (Zen 3 class), 2 virtual CPUs shared with other work, no AVX-512, no GPU; one thread.
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write docs/study.md from runs of configs/study-2d.yaml.")
    parser.add_argument("--phantoms", type=Path, required=True, help="run on phantoms")
    parser.add_argument("--ct", type=Path, help="run on real CT")
    options = parser.parse_args()
    runs = {"phantoms": options.phantoms, **({"CT": options.ct} if options.ct else {})}
    rows = {name: read_rows(run) for name, run in runs.items()}
    for name, run in runs.items():
        shutil.copyfile(run / "learning-curve.png", HERE / "images" / f"study-{name.lower()}.png")
    last = rows["phantoms"][-1]
    proof = ""
    if last.get("validation_dice_tumor", math.nan) < 0.5:
        proof = (
            f": the last epoch on phantoms has an accuracy of {percent(last['validation_accuracy'])} and a tumor Dice "
            f"of {number(last['validation_dice_tumor'], 2)}"
        )
    ct = ""
    if options.ct:
        ct = f"\n## Every epoch, CT\n{table(rows['CT'])}\n![Learning curve, CT](images/study-ct.png)\n"
    text = TEXT.format(
        rows="\n".join(summary(name, run) for name, run in rows.items()),
        data=" ".join(describe(name, run) for name, run in runs.items()),
        phantoms=table(rows["phantoms"]),
        ct=ct,
        nothing=" / ".join(
            f"{percent(run[-1]['validation_accuracy_of_nothing'])} ({name})" for name, run in rows.items()
        ),
        proof=proof,
        evaluation="\n".join(evaluation(name, run) for name, run in runs.items()),
    )
    (HERE / "study.md").write_text(text, encoding="utf-8")


def read_rows(run: Path) -> list[dict[str, float]]:
    """The epochs of a run."""
    with (run / "epochs.csv").open(encoding="utf-8", newline="") as file:
        return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]


def summary(name: str, rows: list[dict[str, float]]) -> str:
    """First → last epoch, as a row of the table."""
    first, last = rows[0], rows[-1]
    cells = []
    for part in ("training", "validation"):
        cells.append(f"{first[f'{part}_loss']:.3f} → {last[f'{part}_loss']:.3f}")
        cells.append(f"{100 * first[f'{part}_accuracy']:.2f} → {percent(last[f'{part}_accuracy'])}")
    dice = [f"{what} {number(last.get(f'validation_dice_{what}', math.nan), 3)}" for what in ("liver", "tumor")]
    return f"| ours, {name} | {' | '.join(cells)} | {', '.join(dice)} |"


def table(rows: list[dict[str, float]]) -> str:
    """All epochs."""
    columns = ["loss", "accuracy", "dice_liver", "dice_tumor"]
    names = [f"{part}_{column}" for part in ("training", "validation") for column in columns]
    names = [name for name in names if name in rows[0]]
    lines = [
        "| epoch | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in rows:
        lines.append(f"| {row['epoch']:.0f} | " + " | ".join(number(row[name], 4) for name in names) + " |")
    return "\n".join(lines) + "\n"


def describe(name: str, run: Path) -> str:
    """What a run was trained on."""
    split = json.loads((run / "splits.json").read_text(encoding="utf-8"))
    counts = {part: len(split[part]) for part in ("training", "validation")}
    return f"{name[0].upper()}{name[1:]}: {counts['training']} training and {counts['validation']} validation cases."


def evaluation(name: str, run: Path) -> str:
    """Per-case numbers."""
    content = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    lines = [f"{name}: case, structure, Dice, volume ml, reference ml, HD95 mm, ASSD mm"]
    for row in content["cases"]:
        cells = [number(row[key], digits) for key, digits in (("dice", 3), ("predicted_ml", 1), ("reference_ml", 1))]
        cells += [number(row[key], 1) for key in ("hd95_mm", "assd_mm")]
        lines.append("  ".join(text.rjust(12) for text in (row["case"], row["structure"], *cells)))
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    """Digits, or a dash where nothing could be measured."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.2f} %"


if __name__ == "__main__":
    main()
