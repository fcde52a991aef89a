# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation: Bland–Altman and FROC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files import replacing
from .froc import froc
from .lesions import bland_altman
from .metrics import SIZE_NAMES
from .results import CaseResult, froc_cases, paired_quantities


def write_plots(results: Sequence[CaseResult], folder: Path) -> list[Path]:
    """Write ``bland-altman-….png`` for volumes and lesion diameters, and ``froc.png`` where lesions have scores.

    :raises LiverXAILib.errors.UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("Plots need matplotlib: pip install matplotlib, or omit --plots.") from error
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for title, (predicted, reference) in paired_quantities(results).items():
        name, unit = title.split(", ")
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        agreement = bland_altman(predicted, reference)
        means = [(a + b) / 2 for a, b in zip(predicted, reference, strict=True)]
        axes.scatter(means, [a - b for a, b in zip(predicted, reference, strict=True)], color="tab:blue", alpha=0.7)
        for value, label, style in (
            (agreement.bias, "mean", "-"),
            (agreement.low, "−1.96 SD", "--"),
            (agreement.high, "+1.96 SD", "--"),
        ):
            if value is not None:
                axes.axhline(value, color="black", linestyle=style, linewidth=1)
                axes.annotate(f"{label}: {value:.1f} {unit}", (1, value), xycoords=("axes fraction", "data"),
                              ha="right", va="bottom", fontsize=8)  # fmt: skip
        axes.set(
            xlabel=f"mean of both, {unit}", ylabel=f"prediction − reference, {unit}", title=f"{name}, n = {agreement.n}"
        )
        written.append(folder / f"bland-altman-{name.replace(' ', '-')}.png")
        _save(figure, written[-1])
    points = froc(froc_cases(results))
    if points:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        false = [0.0, *(point["false_per_case"] for point in points)]
        for name in ("", *(f" {name}" for name in SIZE_NAMES)):
            rates = [point[f"sensitivity{name}"] for point in points]
            if None not in rates:
                axes.step(false, [0.0, *rates], where="post", label=name.strip() or "all lesions", lw=1 if name else 2)
        lows, highs = ([point[f"sensitivity_{end}"] for point in points] for end in ("low", "high"))
        if None not in lows:
            axes.fill_between(false, [0.0, *lows], [0.0, *highs], step="post", alpha=0.15)
        axes.legend(loc="lower right")
        axes.set(xlabel="false positives per case", ylabel="sensitivity", ylim=(0, 1.02), title="FROC")
        written.append(folder / "froc.png")
        _save(figure, written[-1])
    return written


def _save(figure: object, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)  # type: ignore[attr-defined]
