# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation: Bland–Altman and FROC. Needs the extra ``report`` (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files import replacing
from .lesions import bland_altman, froc
from .results import CaseResult, paired_quantities


def write_plots(results: Sequence[CaseResult], folder: Path) -> list[Path]:
    """Write ``bland-altman-….png`` for volumes and lesion diameters, and ``froc.png`` where lesions have scores.

    :raises LiverXAILib.errors.UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("Plots need matplotlib: run 'pip install \"liverxai[report]\"'.") from error
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
    points = froc(
        [structure.pairs for result in results for structure in result.structures if structure.pairs is not None]
    )
    if points:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.step([0.0, *(false for _, false, _ in points)], [0.0, *(found for _, _, found in points)], where="post")
        axes.set(xlabel="false lesions per case", ylabel="sensitivity", ylim=(0, 1.02), title="FROC")
        written.append(folder / "froc.png")
        _save(figure, written[-1])
    return written


def _save(figure: object, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)  # type: ignore[attr-defined]
