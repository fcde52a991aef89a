# SPDX-License-Identifier: Apache-2.0
"""The measures of each epoch: a table as text, CSV and Markdown, and learning curves as PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import replacing
from ..tables import write_table

#: One epoch: "epoch" and measures; NaN where there was nothing to measure. Epoch 0 is before training.
Row = Mapping[str, float]

_RATES = ("sensitivity", "precision")
#: Columns of the table: key, title, digits.
COLUMNS = (
    ("epoch", "epoch", 0),
    ("training_loss", "loss", 4),
    ("training_accuracy", "accuracy", 4),
    ("training_dice_liver", "Dice liver", 3),
    ("training_dice_tumor", "Dice tumor", 3),
    ("validation_loss", "val. loss", 4),
    ("validation_accuracy", "val. accuracy", 4),
    ("validation_dice_liver", "val. Dice liver", 3),
    ("validation_dice_tumor", "val. Dice tumor", 3),
)

#: Panels of the learning curves: title, and the columns plotted.
_PANELS = (
    ("loss", (("loss", "mean"), ("loss_liver", "liver"), ("loss_tumor", "tumor"))),
    ("accuracy", (("accuracy", "accuracy"),)),
    ("Dice", (("dice_liver", "liver"), ("dice_tumor", "tumor"))),
    (
        "sensitivity, precision",
        tuple((f"{measure}_{label}", f"{measure} {label}") for label in ("liver", "tumor") for measure in _RATES),
    ),
)


def header() -> str:
    """The column titles above :func:`line`."""
    return "  ".join(title.rjust(max(len(title), 6)) for _, title, _ in COLUMNS)


def line(row: Row) -> str:
    """One epoch as a line of text."""
    return "  ".join(_text(row.get(key, math.nan), digits).rjust(max(len(title), 6)) for key, title, digits in COLUMNS)


def markdown(rows: Sequence[Row]) -> str:
    """All epochs as a Markdown table."""
    lines = [" | ".join(title for _, title, _ in COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(_text(row.get(key, math.nan), digits) for key, _, digits in COLUMNS) for row in rows]
    return "\n".join(f"| {text} |" for text in lines) + "\n"


def score(row: Row) -> float:
    """Mean validation Dice over the available labels, by which the best epoch is selected."""
    dice = [row.get(f"validation_dice_{label}", math.nan) for label in ("liver", "tumor")]
    dice = [value for value in dice if not math.isnan(value)]
    return sum(dice) / len(dice) if dice else 0.0


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as CSV; the keys of the first one are the columns."""
    write_table(path, list(rows[0]), rows)


def write_curves(rows: Sequence[Row], folder: Path, name: str = "learning-curve") -> None:
    """``<name>.png`` and ``.svg``: the columns of :data:`_PANELS` by epoch, training dashed, validation solid."""

    def draw(figure: Any) -> None:
        for axes, (title, measures) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            for color, (key, label) in enumerate(measures):
                for part, style in (("training", "--"), ("validation", "-")):
                    points = [(row["epoch"], row.get(f"{part}_{key}", math.nan)) for row in rows]
                    points = [point for point in points if not math.isnan(point[1])]
                    if points:
                        x, y = zip(*points, strict=True)
                        axes.plot(x, y, style, color=f"C{color}", label=f"{part} {label}", marker=".")
            axes.set(xlabel="epoch", ylabel=title)
            if title not in ("loss", "accuracy"):
                axes.set_ylim(0, 1)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            if axes.lines:
                # Handles long enough to tell dashed lines from solid ones.
                axes.legend(fontsize=7, handlelength=3.2, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)

    _save(draw, folder / name, (15, 4.3))


def write_case_curve(rows: Sequence[Mapping[str, float]], folder: Path) -> None:
    """``cases-curve.png`` and ``.svg``: validation Dice by the number of training cases; 0: the initial model."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for color, label in enumerate(("liver", "tumor")):
            points = [(row["cases"], row[f"validation_dice_{label}"]) for row in rows]
            points = [point for point in points if not math.isnan(point[1])]
            if points:
                axes.plot(*zip(*points, strict=True), color=f"C{color}", label=label, marker="o")
        axes.set(xlabel="training cases", ylabel="validation Dice", ylim=(0, 1))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")

    _save(draw, folder / "cases-curve", (5, 3.4))


def _save(draw: Any, stem: Path, size: tuple[float, float]) -> None:
    # Not pyplot: it would choose a GUI backend, and Slicer has its own.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    for ending in ("png", "svg"):
        with replacing(stem.with_suffix(f".{ending}")) as temporary:
            figure.savefig(temporary, dpi=130)


def _text(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
