# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark clicks``: how well one click outlines a lesion, beside classical methods on the same clicks.

Synthetic patients with lesions that the segmentation does not have; a click in each lesion's middle and one at random
inside it. No method has a trained part. The lesion is always cut to the liver, for all methods alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import UsageError
from ..inference import Segmentation
from ..models import LIVER, TUMOR
from ..phantoms import make_phantom
from ..reading import outline_lesion
from ..volumes.box import Box, components
from ..volumes.volume import Volume

#: Patients of this benchmark: seeds that no training or tuning uses.
FIRST_SEED = 900_000
#: Diameters of the ball of equal volume, in mm.
SIZES = ((0.0, 10.0), (10.0, 20.0), (20.0, 1000.0))

Row = dict[str, Any]
#: A method: smoothed HU, the liver, the click (k, j, i) and the voxel's size (i, j, k) to a mask, all in one box.
Method = Callable[[np.ndarray, np.ndarray, tuple[int, ...], tuple[float, float, float]], np.ndarray]


def benchmark_clicks(
    patients: int = 8, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 2.0), phase: str = "portal"
) -> list[Row]:
    """A row for each click and method: patient, lesion's diameter, where the click was, Dice and seconds."""
    rows: list[Row] = []
    for seed in range(FIRST_SEED, FIRST_SEED + patients):
        phantom = make_phantom(seed, spacing_mm=spacing_mm, phase=phase)
        truth = phantom.truth.array
        missed = Segmentation(phantom.truth.with_array((truth > 0).astype(np.uint8)), (LIVER, TUMOR))
        numbers = components(truth == 2, corners=True)
        random = np.random.default_rng(seed)
        for number in range(1, int(numbers.max()) + 1):
            lesion = numbers == number
            volume_mm3 = np.count_nonzero(lesion) * phantom.ct.grid.voxel_volume_mm3
            voxels = np.argwhere(lesion)
            middle = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
            for place, click in (("middle", middle), ("random", voxels[random.integers(len(voxels))])):
                common = {"seed": seed, "diameter_mm": (6 * volume_mm3 / np.pi) ** (1 / 3), "place": place}
                rows += [common | row for row in _outlines(phantom.ct, missed, lesion, click)]
    return rows


def _outlines(ct: Volume, missed: Segmentation, lesion: np.ndarray, click: np.ndarray) -> list[Row]:
    """Dice and seconds of each method for one click."""
    rows = []
    started = time.perf_counter()
    place = tuple(float(value) for value in ct.grid.to_lps(click[::-1]))
    try:
        box, mask = outline_lesion(ct, missed, (place[0], place[1], place[2]))
    except UsageError:  # nothing stands out: no outline
        box, mask = Box.between(click, click + 1), np.zeros((1, 1, 1), bool)
    rows.append(_row("LiverXAI", mask, box, lesion, time.perf_counter() - started))
    reach = np.ceil(60.0 / np.array(ct.spacing[::-1])).astype(int)
    box = Box.between(click, click + 1).grown(reach, ct.shape)
    liver = missed.mask("liver")[box]
    start = tuple(int(value) for value in click - box.start)
    for name, method in METHODS.items():
        started = time.perf_counter()
        image = sitk.GetImageFromArray(ct.array[box].astype(np.float32))
        image.SetSpacing(ct.spacing)
        smooth = sitk.GetArrayFromImage(sitk.CurvatureFlow(image, timeStep=0.0625, numberOfIterations=5))
        mask = method(smooth, liver, start, ct.spacing) & liver
        rows.append(_row(name, mask, box, lesion, time.perf_counter() - started))
    return rows


def _row(name: str, mask: np.ndarray, box: Box, lesion: np.ndarray, seconds: float) -> Row:
    common = np.count_nonzero(mask & lesion[box])
    dice = 2 * common / (np.count_nonzero(mask) + np.count_nonzero(lesion))
    return {"method": name, "dice": dice, "seconds": seconds}


def _confidence(array: np.ndarray, liver: np.ndarray, start: tuple[int, ...], spacing: Any) -> np.ndarray:
    """SimpleITK's region growing within 2.5 standard deviations, twice iterated."""
    found = sitk.ConfidenceConnected(
        sitk.GetImageFromArray(array), [start[::-1]], numberOfIterations=2, multiplier=2.5, initialNeighborhoodRadius=1
    )
    return sitk.GetArrayFromImage(found) > 0


def _threshold(array: np.ndarray, liver: np.ndarray, start: tuple[int, ...], spacing: Any) -> np.ndarray:
    """SimpleITK's connected threshold: within 15 HU of the click."""
    value = float(array[start])
    found = sitk.ConnectedThreshold(sitk.GetImageFromArray(array), [start[::-1]], value - 15, value + 15)
    return sitk.GetArrayFromImage(found) > 0


def _watershed(array: np.ndarray, liver: np.ndarray, start: tuple[int, ...], spacing: Any) -> np.ndarray:
    """SimpleITK's marker watershed on the gradient: the click against everything 25 mm away and outside the liver."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    k, j, i = np.indices(array.shape)
    squares = (
        ((k - start[0]) * spacing[2]) ** 2 + ((j - start[1]) * spacing[1]) ** 2 + ((i - start[2]) * spacing[0]) ** 2
    )
    markers = np.where((squares > 25.0**2) | ~liver, 2, 0).astype(np.uint8)
    markers[squares <= 1.5**2] = 1
    marks = sitk.GetImageFromArray(markers)
    marks.CopyInformation(image)
    gradient = sitk.GradientMagnitude(image)
    found = sitk.MorphologicalWatershedFromMarkers(gradient, marks, markWatershedLine=False)
    return sitk.GetArrayFromImage(found) == 1


METHODS: dict[str, Method] = {
    "confidence-connected growing (SimpleITK)": _confidence,
    "connected threshold ± 15 HU (SimpleITK)": _threshold,
    "marker watershed (SimpleITK)": _watershed,
}


def table(rows: list[Row]) -> str:
    """Median Dice by method and lesion size (Markdown), with the number of clicks and the median seconds."""
    head = [f"< {SIZES[0][1]:.0f} mm", f"{SIZES[1][0]:.0f}–{SIZES[1][1]:.0f} mm", f"> {SIZES[2][0]:.0f} mm"]
    lines = [f"| method | {' | '.join(head)} | seconds |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        cells = []
        for low, high in SIZES:
            dice = [row["dice"] for row in own if low <= row["diameter_mm"] < high]
            cells.append(f"{np.median(dice):.2f} ({len(dice)})" if dice else "–")
        cells.append(f"{np.median([row['seconds'] for row in own]):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--patients", type=int, default=8, help="synthetic patients (default: 8)")
    parser.add_argument(
        "--spacing", type=float, nargs=3, default=(1.0, 1.0, 2.0), metavar=("I", "J", "K"), help="voxel size in mm"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark; returns the exit code."""
    i, j, k = arguments.spacing
    rows = benchmark_clicks(arguments.patients, (i, j, k))
    lesions = len(rows) // 2 // (1 + len(METHODS))
    sys.stdout.write(
        f"{table(rows)}\n\n{lesions} lesions: median Dice (clicks); half of the clicks are in the middle.\n"
    )
    return 0
