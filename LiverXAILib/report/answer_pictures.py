# SPDX-License-Identifier: Apache-2.0
"""Pictures of explanations in numbers, such as a lesion in the CT and in the changed CTs for the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..analysis import Analysis
from ..explain.answers import Answer, BorderNeed, Counterfactual, NeededChange, RegionShares
from ..explain.answers.answer import probability_text
from ..volumes.volume import Volume
from .border_pictures import border_legend, border_pictures
from .canvas import Picture
from .pictures import PLANES, WINDOW_HU, View, draw_letters, draw_scale_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Captions of the changed CTs, in the order of the pictures.
_CAPTIONS = {"without": "without it", "elsewhere": "moved elsewhere", "alone": "alone in plain liver"}
_SMALLEST_FIELD_MM = 60.0
_PIXELS = 360


def answer_pictures(analysis: Analysis, answer: Answer) -> Iterator[tuple[str, Picture | Figure]]:
    """Each picture of an explanation with its caption."""
    if isinstance(answer, Counterfactual):
        yield from _changed_cts(analysis, answer)
    if isinstance(answer, NeededChange):
        yield "Confidence of the model", _needed_change(answer)
    if isinstance(answer, BorderNeed):
        yield from border_pictures(analysis, answer)
    if isinstance(answer, RegionShares):
        yield "What each part adds to the model's confidence", _shares(answer)


def answer_legend(answer: Answer) -> list[tuple[str, str]]:
    """The legend of an explanation's pictures: texts and colors; empty if there is none."""
    return border_legend(answer) if isinstance(answer, BorderNeed) else []


def _changed_cts(analysis: Analysis, answer: Counterfactual) -> Iterator[tuple[str, Picture]]:
    """Axial slices through the lesion's center, at its own place or where it was moved to; all at the same scale."""
    center = answer.target.focus(analysis.segmentation)
    if center is None:  # a whole label: its largest lesion
        center = np.array(analysis.measurements.lesions[0].centroid_lps_mm)
    sizes = [max(n * mm for n, mm in zip(v.shape[::-1], v.spacing, strict=True)) for v in answer.volumes.values()]
    field = max(_SMALLEST_FIELD_MM, *sizes)
    yield f"as it is: {probability_text(answer.evidence['probability'])}", _axial(analysis.volume, None, center, field)
    for name, caption in _CAPTIONS.items():
        if name in answer.volumes:
            where = answer.evidence["elsewhere_lps_mm"] if name == "elsewhere" else center
            picture = _axial(analysis.volume, answer.volumes[name], np.array(where), field)
            yield f"{caption}: {probability_text(answer.evidence[name])}", picture


def _axial(volume: Volume, changed: Volume | None, center: np.ndarray, field_mm: float) -> Picture:
    """A slice of `volume`, or of `changed` where that has voxels."""
    plane = PLANES[0]
    middle = plane.flat(center)
    view = View(plane, center, middle - field_mm / 2, middle + field_mm / 2, field_mm / _PIXELS)
    picture = view.shown(volume, WINDOW_HU, changed)
    draw_letters(picture, view)
    draw_scale_bar(picture)
    return picture


def _needed_change(answer: NeededChange) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.7), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots()
    evidence = answer.evidence
    for diameter, row in zip(evidence["diameters_mm"], evidence["probabilities"], strict=True):
        axes.plot(np.abs(evidence["contrasts_hu"]), row, marker="o", markersize=3, label=f"{diameter:g} mm across")
    axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1)
    axes.set_xlabel("darker than the liver around it, HU", fontsize=8)
    axes.set_ylabel(f"model's confidence in {answer.target.label}", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _shares(answer: RegionShares) -> Figure:
    from matplotlib.figure import Figure

    parts = answer.evidence["parts"]
    figure = Figure(figsize=(5.6, 0.5 + 0.3 * len(parts)), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots()
    shares = [part["share"] for part in parts]
    colors = ["#2c7bb6" if part["of_lesion"] else "#e0602a" for part in parts]
    bars = axes.barh([part["name"] for part in parts], shares, color=colors, height=0.62)
    axes.bar_label(bars, [f"{round(share, 2) + 0.0:.2f}".replace("-", "−") for share in shares], padding=3, fontsize=8)
    axes.axvline(0, color="gray", linewidth=0.8)
    least, most = min(0.0, *shares), max(0.1, *shares)
    margin = 0.2 * (most - least)  # for the numbers beside the bars
    axes.set_xlim(least - margin * (least < 0), most + margin)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
