# SPDX-License-Identifier: Apache-2.0
"""Learning curves of a training run: ``python -m recipes.default_model.curves RUN FIGURE``."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure


def read_log(path: Path) -> dict[str, list[float]]:
    """The columns of a run's ``log.csv`` or ``validation.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}


def plot_run(folder: Path, figure_path: Path) -> None:
    """Training loss and validation Dice against the iteration; the format follows the ending (PNG, SVG…)."""
    log, validation = read_log(folder / "log.csv"), read_log(folder / "validation.csv")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for name, label in (
        ("liver_dice", "liver, 1 - soft Dice"),
        ("tumor_dice", "tumor, 1 - soft Dice"),
        ("tumor_balanced", "tumor in the liver, balanced CE"),
    ):
        losses.plot(log["iteration"], log[name], label=label, linewidth=1)
    losses.set(xlabel="iteration", ylabel="training loss", ylim=(0, 1.1))
    for name, label in (("liver_dice", "liver Dice"), ("tumor_dice", "tumor Dice")):
        scores.plot(validation["iteration"], validation[name], label=label, marker="o", markersize=3)
    scores.set(xlabel="iteration", ylabel="Dice, synthetic validation", ylim=(0, 1))
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    temporary = figure_path.with_name(f".{figure_path.name}")
    figure.savefig(temporary, format=figure_path.suffix.lstrip("."), dpi=130)
    temporary.replace(figure_path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw the learning curves of a training run.")
    parser.add_argument("run", type=Path, help="folder with log.csv and validation.csv")
    parser.add_argument("figure", type=Path, help="file to write, .png or .svg")
    options = parser.parse_args()
    plot_run(options.run, options.figure)


if __name__ == "__main__":
    main()
