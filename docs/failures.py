# SPDX-License-Identifier: Apache-2.0
"""Performance of the default model on unseen phantoms, and pictures of its failures: docs/default-model.md.

python docs/failures.py                  # prints the table, writes docs/images/failures.png
python docs/failures.py --data FOLDER    # also draws real carcinomas of training: docs/images/failures-real.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from LiverXAILib.evaluation.evaluate import evaluate
from LiverXAILib.evaluation.results import format_results
from LiverXAILib.inference import segment
from LiverXAILib.models import Model, load_model
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.volumes.volume import Volume

sys.path.append(str(Path(__file__).resolve().parents[1]))
from recipes.real_ct import PATIENTS, Scan, read_scan

IMAGES = Path(__file__).resolve().parent / "images"
#: Not used in training (1000 to 1063), nor for operating points and validation (2000 to 2023).
SEEDS = range(3000, 3012)
_TRUTH, _MODEL = "#ffd54f", "#4dd0e1"


class Failure(NamedTuple):
    """A CT, its reference labels (1 liver, 2 tumor), and what the model found."""

    name: str
    ct: Volume
    truth: np.ndarray
    found: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=IMAGES, help="folder for the pictures")
    parser.add_argument("--model", default="default")
    parser.add_argument("--data", type=Path, help="folder with ct/")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model)
    results, failures = [], []
    for seed in SEEDS:
        phantom = make_phantom(seed)
        segmentation = segment(phantom.ct, model)
        labels = {"liver": 1, "tumor": 2}
        results.append(evaluate(segmentation.labels, phantom.truth, labels, name=f"phantom {seed}"))
        failures.append(Failure(f"phantom {seed}", phantom.ct, phantom.truth.array, segmentation.labels.array))
    print(format_results(results))
    draw(failures, options.output / "failures.png")
    if options.data is not None:
        draw(list(real_failures(options.data, model)), options.output / "failures-real.png")


def real_failures(data: Path, model: Model) -> Iterator[Failure]:
    """The real scans of training whose tumors are outlined; they are licensed CC BY."""
    scans: list[Scan] = [scan for own in PATIENTS.values() for scan in own if scan.tumors == "labeled"]
    for scan in scans:
        ct, liver, tumor = read_scan(data, scan)
        truth = liver.astype(np.uint8) + tumor
        yield Failure(f"{scan.name}, {scan.phase}", ct, truth, segment(ct, model).labels.array)


def draw(failures: Sequence[Failure], path: Path) -> None:
    """Draw the worst errors of each kind: missed liver, false liver, the largest missed lesions and false positives."""
    kinds = {
        "liver left out": lambda truth, found: (truth > 0) & (found == 0),
        "taken for liver": lambda truth, found: (truth == 0) & (found > 0),
        "lesion missed": lambda truth, found: _untouched(truth == 2, found == 2),
        "false positive": lambda truth, found: _untouched(found == 2, truth == 2),
    }
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    rows = figure.subplots(2, len(kinds))
    for column, (title, wrong) in enumerate(kinds.items()):
        ranked = []
        for failure in failures:
            areas = wrong(failure.truth, failure.found).sum(axis=(1, 2))
            ranked.append((int(areas.max()), int(areas.argmax()), failure))
        ranked.sort(key=lambda entry: -entry[0])
        for row, (area, k, failure) in enumerate(ranked[: len(rows)]):
            axes = rows[row][column]
            axes.axis("off")
            if area:
                _draw(axes, failure, k)
                axes.set_title(f"{title}, {failure.name}", fontsize=9)
        for axes in rows[len(ranked) :, column]:
            axes.axis("off")
    handles = [Line2D([], [], color=color, label=text) for color, text in ((_TRUTH, "reference"), (_MODEL, "model"))]
    handles.append(Line2D([], [], color="gray", linestyle="--", label="tumor"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.get_layout_engine().set(h_pad=0.12)
    figure.savefig(path, dpi=110)


def _untouched(lesions: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The lesions (connected components) that have no voxel in `other`."""
    numbers = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(lesions.astype(np.uint8)), True))
    return lesions & ~np.isin(numbers, np.unique(numbers[other]))


def _draw(axes: Axes, failure: Failure, k: int) -> None:
    """Draw a slice as radiologists see it: the patient's right on the left, the front above."""
    grid = failure.ct.grid
    turned = tuple(slice(None, None, 1 if grid.direction[axis, axis] > 0 else -1) for axis in (1, 0))
    axes.imshow(failure.ct.array[k][turned], cmap="gray", vmin=-100, vmax=220, aspect=grid.spacing[1] / grid.spacing[0])
    for labels, color in ((failure.truth, _TRUTH), (failure.found, _MODEL)):
        for value, style in ((1, "-"), (2, "--")):
            mask = labels[k][turned] >= value
            if mask.any():
                axes.contour(mask, [0.5], colors=color, linestyles=style, linewidths=1)


if __name__ == "__main__":
    main()
