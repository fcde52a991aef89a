# SPDX-License-Identifier: Apache-2.0
"""Compare real and synthetic tumors: ``python -m recipes.default_model.appearance --help``.

Prints HU relative to the liver's median, for each real scan with labeled tumors and for synthetic samples by phase and
kind, and draws slices of both, real ones first.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from LiverXAILib.context import RunContext
from LiverXAILib.training.lesion_painting import smoothed_inside
from LiverXAILib.training.random_fields import Rng
from LiverXAILib.volumes.box import bounding_box

from .build import PHANTOMS, grafts_of
from .sources import load_sources
from .synthesis import Source
from .synthesis.anatomy import dilate
from .synthesis.repertoire import phases_of
from .synthesis.transplants import transplant
from .synthesis.tumors import add_tumors

SPACING_MM = 2.0
#: Scans with fewer liver voxels than this are left out.
_LEAST_LIVER = 20_000
#: Half a slice's side in the pictures, in voxels.
_HALF = 48


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.default_model.appearance", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/, dicom/ and models/obelisk/")
    parser.add_argument("--output", type=Path, required=True, help="folder for sources/, tumors.csv and tumors.png")
    parser.add_argument("--samples", type=int, default=4, help="synthetic samples of each scan")
    options = parser.parse_args(arguments)
    RunContext(threads=1).limit_threads()
    sources = load_sources(options.data, options.output / "sources", spacing_mm=SPACING_MM, phantoms=PHANTOMS[:0])
    sources = [around_liver(source) for source in sources if source.liver.sum() > _LEAST_LIVER]
    rows, pictures = [], []
    for source in sources:
        if source.ct is not None and source.tumors is not None:
            image, liver = torch.from_numpy(source.ct).float(), torch.from_numpy(source.liver)
            tumor = torch.from_numpy(source.tumors)
            rows.append(measured(source.name, source.phase or "", image, liver, tumor))
            pictures.append((f"{source.name}, {source.phase}", picture(image, liver, tumor)))
    for name, phase, image, liver, tumor in synthetic(sources, options.samples):
        rows.append(measured(name, phase, image, liver, tumor))
        pictures.append((f"{name}, {phase}", picture(image, liver, tumor)))
    writer = csv.DictWriter(sys.stdout, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with (options.output / "tumors.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(pictures, options.output / "tumors.png")


def around_liver(source: Source) -> Source:
    """Crop a source to its liver."""
    box = bounding_box(source.liver)
    assert box is not None
    box = box.grown((8,) * 3, source.liver.shape)
    ct, tumors = (None if array is None else array[box].copy() for array in (source.ct, source.tumors))
    return replace(source, ct=ct, tumors=tumors, liver=source.liver[box].copy(), tissues=source.tissues[box].copy())


def synthetic(sources: Sequence[Source], count: int) -> list[tuple[str, str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Paint tumors into real livers whose tumors are known: name, phase, image, liver and the new tumors."""
    grafts, result = grafts_of(sources, SPACING_MM), []
    for number, source in enumerate(sources):
        if source.ct is None or not source.tumors_known:
            continue
        own = np.zeros_like(source.liver) if source.tumors is None else source.tumors
        image, liver = torch.from_numpy(source.ct).float(), torch.from_numpy(source.liver)
        for n in range(count):
            rng = Rng(1000 * number + n)
            phases = phases_of(source.phase)
            phase = phases[rng.integer(len(phases))]
            suitable = [graft for graft in grafts if phase in phases_of(graft.phase) and graft.name != source.name]
            free = liver & ~torch.from_numpy(own)
            if n % 2 and suitable:
                made, lesions = transplant(rng, image, free, SPACING_MM, suitable)
                name = f"transplant in {source.name}"
            else:
                made, lesions = add_tumors(rng, image, free, SPACING_MM, phase)
                name = f"synthetic in {source.name}"
            if lesions.any():
                result.append((name, phase.value, made, free, lesions > 0))
    return result


def measured(
    name: str, phase: str, image: torch.Tensor, liver: torch.Tensor, tumor: torch.Tensor
) -> dict[str, str | float]:
    """A row of the table: HU of the liver, of the tumor and its rims relative to it (without noise), and the noise."""
    healthy = liver & ~dilate(tumor, 3)
    median = float(image[healthy].median())
    smooth = smoothed_inside(image, liver) - median
    inner = tumor & ~dilate(~tumor, 2)
    rim = tumor & dilate(~tumor & liver, 2)
    corona = dilate(tumor, 2) & liver & ~tumor
    low, middle, high = (float(smooth[tumor].quantile(q)) for q in (0.1, 0.5, 0.9)) if tumor.any() else (0, 0, 0)
    noise = image - median - smooth
    return {
        "tumor": name,
        "phase": phase,
        "ml": round(float(tumor.sum()) * SPACING_MM**3 / 1000, 1),
        "liver": round(median),
        "p10": round(low),
        "median": round(middle),
        "p90": round(high),
        "inner": round(_mean(smooth, inner), 1),
        "rim": round(_mean(smooth, rim), 1),
        "around": round(_mean(smooth, corona), 1),
        "noise_liver": round(float(noise[healthy].std()), 1),
        "noise_tumor": round(float(noise[tumor].std()), 1),
    }


def _mean(image: torch.Tensor, where: torch.Tensor) -> float:
    return float(image[where].mean()) if where.any() else float("nan")


def picture(image: torch.Tensor, liver: torch.Tensor, tumor: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Crop the slice with the largest tumor area: HU relative to the liver's median, and the tumor."""
    k = int(tumor.sum(dim=(1, 2)).argmax())
    _, j, i = (int(n) for n in np.argwhere(tumor[k : k + 1].numpy()).mean(axis=0))
    rows = slice(max(0, j - _HALF), j + _HALF)
    columns = slice(max(0, i - _HALF), i + _HALF)
    part = image[k, rows, columns] - image[liver & ~tumor].median()
    # Columns run toward the patient's left, which radiologists view on the right: no flip is needed.
    return part.numpy(), tumor[k, rows, columns].numpy()


def draw(pictures: Sequence[tuple[str, tuple[np.ndarray, np.ndarray]]], path: Path) -> None:
    """Draw all pictures in a grid, each next to a copy with the tumor's outline."""
    from matplotlib.figure import Figure

    columns = 6
    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * lines), layout="constrained")
    for axes, (title, (image, tumor)) in zip(figure.subplots(lines, columns).flat, pictures, strict=False):
        axes.imshow(image, cmap="gray", vmin=-120, vmax=120)
        axes.contour(tumor, [0.5], colors="#4dd0e1", linewidths=0.5, linestyles="dotted")
        axes.set_title(title, fontsize=7)
    for axes in figure.axes:
        axes.axis("off")
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    main()
