# SPDX-License-Identifier: Apache-2.0
"""The study's figures from a run: CT, mask, overlay, tumor, and Grad-CAM at two layers, with faithfulness checks."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from LiverXAILib.colors import HEAT_COLORS, VISIBLE_HEAT
from LiverXAILib.errors import LiverXAIError
from LiverXAILib.explain import explain
from LiverXAILib.files import replacing
from LiverXAILib.inference import segment
from LiverXAILib.models import load_model
from LiverXAILib.volumes.io import read_labels, read_volume
from LiverXAILib.volumes.orientation import reorient
from LiverXAILib.volumes.volume import Volume

#: Grad-CAM of a segmentation: the score is the sum of the logits over the region, as in the study's overlays.
METHOD = "seg-grad-cam"
_LIVER, _TUMOR = (0.35, 0.85, 0.35), (1.0, 0.25, 0.2)
_WINDOW_HU = (-110.0, 190.0)
_WARM = LinearSegmentedColormap.from_list("heat", np.array(HEAT_COLORS) / 255)


def figure_of_phantom(run: Path, path: Path) -> list[dict[str, Any]]:
    """Draw the validation phantom with the largest tumor; return the results of the checks, a row for each map."""
    split = json.loads((run / "splits.json").read_text(encoding="utf-8"))
    files = [[Path(file) for file in case["files"]] for case in split["validation"]]
    image, label = max(files, key=lambda pair: int((read_labels(pair[1]).array == 2).sum()))
    return _figure(read_volume(image), read_labels(label).array, run / "model", image.name.split(".")[0], path)


def figure_of_ct(run: Path, data: Path) -> list[dict[str, Any]]:
    """Draw the left-out scan with the largest labeled tumor, with the network that was not trained on its patient.

    The figure is written to the run's folder.
    """
    with (run / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["structure"] == "tumor"]
    row = max(rows, key=lambda row: float(row["reference_ml"]))
    folder = data / "ct" / row["case"]
    volume, liver = read_volume(folder / "image.nii.gz"), read_labels(folder / "liver.nii.gz").array > 0
    truth = np.where(read_labels(folder / "tumor.nii.gz").array > 0, 2, liver).astype(np.uint8)
    return _figure(volume, truth, run / f"fold-{row['fold']}" / "model", row["case"], run / "figure.png")


def _figure(volume: Volume, truth: np.ndarray, model_folder: Path, name: str, path: Path) -> list[dict[str, Any]]:
    volume, labels = reorient(volume, "SPL"), reorient(volume.with_array(truth), "SPL").array
    model = load_model(model_folder)
    segmentation = segment(volume, model)
    found = segmentation.labels.array
    stage = model.spec.stages[-1]
    place = int(np.argmax((labels == 2).sum(axis=(1, 2))))
    ct = volume.array[place]
    figure = Figure(figsize=(15, 7.6), layout="constrained")
    rows = figure.subplots(2, 4)
    aspect = volume.spacing[1] / volume.spacing[0]
    for axes in rows.flat:
        axes.imshow(ct, cmap="gray", vmin=_WINDOW_HU[0], vmax=_WINDOW_HU[1], aspect=aspect)
        axes.axis("off")
    rows[0, 0].set_title(f"CT: {name}, slice {place + 1}")
    rows[0, 1].imshow(labels[place], cmap="gray", vmin=0, vmax=2, aspect=aspect)
    rows[0, 1].set_title("mask: liver gray, tumor white")
    _fill(rows[0, 2], found[place] > 0, _LIVER, aspect)
    _fill(rows[0, 2], found[place] == 2, _TUMOR, aspect)
    rows[0, 2].set_title("found: liver and tumor")
    _fill(rows[0, 3], found[place] == 2, _TUMOR, aspect)
    if (labels[place] == 2).any():
        rows[0, 3].contour(labels[place] == 2, levels=[0.5], colors=["white"], linewidths=0.8)
    rows[0, 3].set_title("tumor: found red, mask outlined")
    table_rows = []
    for column, (target, layer) in enumerate(
        (target, layer) for target in ("liver", "tumor") for layer in (stage.layers[-1].name, stage.default_layer)
    ):
        axes = rows[1, column]
        axes.set_title(f"{target}: Grad-CAM at {layer}" + (", the last" if layer == stage.layers[-1].name else ""))
        try:
            explanation = explain(volume, model, segmentation, target, METHOD, layer, check=True)
        except LiverXAIError as error:
            table_rows.append(_row(name, target, layer, "no", str(error), ()))
            continue
        heat = explanation.heatmap.array[place]
        shown = np.ma.masked_less(heat, VISIBLE_HEAT)
        axes.imshow(shown, cmap=_WARM, vmin=0, vmax=1, alpha=0.55, aspect=aspect)
        check = explanation.faithfulness or {}
        passed = "yes" if check.get("passed") else "no"
        table_rows.append(_row(name, target, layer, passed, check.get("sentence", ""), explanation.warnings))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return table_rows


def _row(case: str, target: str, layer: str, passed: str, sentence: str, warnings: Sequence[str]) -> dict[str, Any]:
    names = ("case", "target", "layer", "passed", "sentence", "warnings")
    return dict(zip(names, (case, target, layer, passed, sentence, " ".join(warnings)), strict=True))


def _fill(axes: Axes, mask: np.ndarray, color: tuple[float, float, float], aspect: float) -> None:
    painted = np.zeros((*mask.shape, 4))
    painted[mask] = (*color, 0.45)
    axes.imshow(painted, aspect=aspect)
