# SPDX-License-Identifier: Apache-2.0
"""Performance of the default model on unseen phantoms, and pictures of its failures: docs/default-model.md.

python docs/failures.py        # prints the table, writes docs/images/failures.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from LiverXAILib.evaluation.evaluate import evaluate
from LiverXAILib.evaluation.results import format_results
from LiverXAILib.inference import Segmentation, segment
from LiverXAILib.models import load_model
from LiverXAILib.phantoms import Phantom, make_phantom

IMAGES = Path(__file__).resolve().parent / "images"
#: Not used in training (1000 to 1063), nor for operating points and validation (2000 to 2023).
SEEDS = range(3000, 3012)
_TRUTH, _MODEL = "#ffd54f", "#4dd0e1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=IMAGES / "failures.png")
    parser.add_argument("--model", default="default")
    options = parser.parse_args()
    model = load_model(options.model)
    results, failures = [], []
    for seed in SEEDS:
        phantom = make_phantom(seed)
        segmentation = segment(phantom.ct, model)
        labels = {"liver": 1, "tumor": 2}
        results.append(evaluate(segmentation.labels, phantom.truth, labels, name=f"phantom {seed}"))
        failures.append((phantom, segmentation))
    print(format_results(results))
    draw(failures, options.output)


def draw(failures: Sequence[tuple[Phantom, Segmentation]], path: Path) -> None:
    """Draw the worst errors of each kind: missed liver, false liver, the largest missed and false lesions."""
    kinds = {
        "liver left out": lambda truth, found: (truth > 0) & (found == 0),
        "taken for liver": lambda truth, found: (truth == 0) & (found > 0),
        "lesion missed": lambda truth, found: _untouched(truth == 2, found == 2),
        "false lesion": lambda truth, found: _untouched(found == 2, truth == 2),
    }
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    rows = figure.subplots(2, len(kinds))
    for column, (title, wrong) in enumerate(kinds.items()):
        ranked = []
        for phantom, segmentation in failures:
            errors = wrong(phantom.truth.array, segmentation.labels.array)
            areas = errors.sum(axis=(1, 2))
            ranked.append((int(areas.max()), int(areas.argmax()), phantom, segmentation))
        ranked.sort(key=lambda entry: -entry[0])
        for row, (area, k, phantom, segmentation) in enumerate(ranked[: len(rows)]):
            axes = rows[row][column]
            axes.axis("off")
            if area:
                _draw(axes, phantom, segmentation, k)
                axes.set_title(f"{title}, phantom {phantom.seed}", fontsize=9)
    handles = [Line2D([], [], color=color, label=text) for color, text in ((_TRUTH, "truth"), (_MODEL, "model"))]
    handles.append(Line2D([], [], color="gray", linestyle="--", label="tumor"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.get_layout_engine().set(h_pad=0.12)
    figure.savefig(path, dpi=110)


def _untouched(lesions: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The lesions (connected components) that have no voxel in `other`."""
    numbers = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(lesions.astype(np.uint8)), True))
    return lesions & ~np.isin(numbers, np.unique(numbers[other]))


def _draw(axes: Axes, phantom: Phantom, segmentation: Segmentation, k: int) -> None:
    i, j, _ = phantom.ct.grid.spacing
    axes.imshow(phantom.ct.array[k], cmap="gray", vmin=-100, vmax=220, aspect=j / i)
    for labels, color in ((phantom.truth, _TRUTH), (segmentation.labels, _MODEL)):
        for value, style in ((1, "-"), (2, "--")):
            mask = labels.array[k] >= value
            if mask.any():
                axes.contour(mask, [0.5], colors=color, linestyles=style, linewidths=1)


if __name__ == "__main__":
    main()
