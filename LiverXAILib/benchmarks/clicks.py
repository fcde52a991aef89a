# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark clicks``: how well one click outlines a lesion, compared with other methods on the same clicks.

The cases are synthetic patients with lesions that the segmentation does not have, or a CT with a reference
(``--image``). Each lesion gets a click in its middle and one at random inside it, and then a corrective click, as a
reader who sees the outline would make it: in the middle of its largest error. All outlines are cut to the liver.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import UsageError
from ..inference import Segmentation, segment
from ..models import LIVER, TUMOR, Model, load_model
from ..phantoms import make_phantom
from ..reading.outline import correct_outline, outline_lesion
from ..volumes.box import Box, central_voxel, components
from ..volumes.image_file import existing
from ..volumes.io import read_labels, read_volume
from ..volumes.volume import Volume

#: Patients of this benchmark: seeds that no training or tuning uses.
FIRST_SEED = 900_000
#: Diameters of their lesions in mm, and the number of lesions of each patient.
LESION_MM, LESIONS = (5.0, 30.0), 8
#: Diameters of the sphere of equal volume, in mm.
SIZES = ((0.0, 10.0), (10.0, 20.0), (20.0, 1000.0))
OWN, CORRECTED = "LiverXAI", "LiverXAI, after a corrective click"

Row = dict[str, Any]
Point = tuple[float, float, float]
#: A method: from smoothed HU, the liver, the click (k, j, i) and the voxel size (i, j, k) to a mask, all in one box.
Method = Callable[[np.ndarray, np.ndarray, tuple[int, ...], tuple[float, float, float]], np.ndarray]


def benchmark_clicks(
    patients: int = 6,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 2.0),
    phase: str = "portal",
    model: Model | None = None,
) -> list[Row]:
    """Return a row for each click and method: patient, lesion's diameter, position of the click, Dice and seconds.

    :param model: LiverXAI also knows this model's tumor probability, as after an analysis; growing on it alone is
        compared, too.
    """
    rows: list[Row] = []
    for seed in range(FIRST_SEED, FIRST_SEED + patients):
        phantom = make_phantom(seed, spacing_mm=spacing_mm, phase=phase, lesions=LESIONS, lesion_mm=LESION_MM)
        truth = phantom.truth.array
        rows += [row | {"seed": seed} for row in click_rows(phantom.ct, truth > 0, truth == 2, seed, model)]
    return rows


def click_rows(ct: Volume, liver: np.ndarray, tumor: np.ndarray, seed: int, model: Model | None = None) -> list[Row]:
    """Return the rows of one CT, as if none of its lesions had been found.

    :param liver, tumor: bool (k, j, i) on the CT's grid.
    """
    missed = Segmentation(ct.with_array((liver | tumor).astype(np.uint8)), (LIVER, TUMOR))
    scored = None
    if model is not None:
        probability = segment(ct, model).probabilities.get("tumor")
        scored = Segmentation(missed.labels, missed.specs, {} if probability is None else {"tumor": probability})
    numbers = components(tumor, corners=True)
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for number in range(1, int(numbers.max()) + 1):
        lesion = numbers == number
        volume_mm3 = np.count_nonzero(lesion) * ct.grid.voxel_volume_mm3
        voxels = np.argwhere(lesion)
        for place, click in (("middle", central_voxel(voxels)), ("random", voxels[random.integers(len(voxels))])):
            common = {"diameter_mm": (6 * volume_mm3 / np.pi) ** (1 / 3), "place": place}
            rows += [common | row for row in _outlines(ct, missed, scored, lesion, click)]
    return rows


def _outlines(
    ct: Volume, missed: Segmentation, scored: Segmentation | None, lesion: np.ndarray, click: np.ndarray
) -> list[Row]:
    """Return Dice and seconds of each method for one click."""
    rows = []
    x, y, z = (float(value) for value in ct.grid.to_lps(click[::-1]))
    known = missed if scored is None else scored
    own: list[tuple[str, Segmentation, str]] = [(OWN, known, "best"), ("contrast alone", missed, "contrast")]
    if scored is not None:
        own.append(("growing on the tumor probability", scored, "probability"))
    for name, segmentation, by in own:
        started = time.perf_counter()
        try:
            box, mask = outline_lesion(ct, segmentation, (x, y, z), by=by)
        except UsageError:  # no contrast around the click, so no outline
            box, mask = Box.between(click, click + 1), np.zeros((1, 1, 1), bool)
        rows.append(_row(name, mask, box, lesion, time.perf_counter() - started))
        if name == OWN:
            rows.append(_corrected(ct, known, lesion, box, mask))
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


def _corrected(ct: Volume, known: Segmentation, lesion: np.ndarray, box: Box, mask: np.ndarray) -> Row:
    """Add a second click in the middle of the outline's largest error, unless there is none."""
    found = np.zeros(lesion.shape, bool)
    found[box] = mask
    best: tuple[float, np.ndarray, bool] | None = None
    for mistake, inside in ((lesion & ~found, True), (found & ~lesion, False)):
        around = Box.union([box])
        depth = ndimage.distance_transform_edt(np.pad(mistake[around], 1), ct.spacing[::-1])[1:-1, 1:-1, 1:-1]
        at = np.array(np.unravel_index(int(depth.argmax()), depth.shape)) + around.start
        if depth.max() > 0 and (best is None or depth.max() > best[0]):
            best = float(depth.max()), at, inside
    started = time.perf_counter()
    if best is not None and found.any():
        x, y, z = (float(value) for value in ct.grid.to_lps(best[1][::-1]))
        part, corrected = correct_outline(ct, known, found, (x, y, z), best[2])
        found[part] = corrected
    elif best is not None:
        x, y, z = (float(value) for value in ct.grid.to_lps(best[1][::-1]))
        try:
            part, corrected = outline_lesion(ct, known, (x, y, z))
            found[part] = corrected
        except UsageError:
            pass
    return _row(CORRECTED, found, Box.full(found.shape), lesion, time.perf_counter() - started)


def _row(name: str, mask: np.ndarray, box: Box, lesion: np.ndarray, seconds: float) -> Row:
    common = np.count_nonzero(mask & lesion[box])
    dice = 2 * common / (np.count_nonzero(mask) + np.count_nonzero(lesion))
    return {"method": name, "dice": dice, "seconds": seconds}


def _confidence(array: np.ndarray, liver: np.ndarray, start: tuple[int, ...], spacing: Any) -> np.ndarray:
    """Run SimpleITK's region growing within 2.5 standard deviations, with two iterations."""
    found = sitk.ConfidenceConnected(
        sitk.GetImageFromArray(array), [start[::-1]], numberOfIterations=2, multiplier=2.5, initialNeighborhoodRadius=1
    )
    return sitk.GetArrayFromImage(found) > 0


def _threshold(array: np.ndarray, liver: np.ndarray, start: tuple[int, ...], spacing: Any) -> np.ndarray:
    """Run SimpleITK's connected threshold: within 15 HU of the click."""
    value = float(array[start])
    found = sitk.ConnectedThreshold(sitk.GetImageFromArray(array), [start[::-1]], value - 15, value + 15)
    return sitk.GetArrayFromImage(found) > 0


def _watershed(array: np.ndarray, liver: np.ndarray, start: tuple[int, ...], spacing: Any) -> np.ndarray:
    """Run SimpleITK's marker watershed on the gradient: the click against voxels > 25 mm away or outside the liver."""
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


def _random_walker(array: np.ndarray, liver: np.ndarray, start: tuple[int, ...], spacing: Any) -> np.ndarray:
    """Run scikit-image's random walker within 25 mm of the click, with everything farther away as background."""
    from skimage.segmentation import random_walker

    reach = np.ceil(25.0 / np.array(spacing[::-1])).astype(int)
    box = Box.between(start, np.add(start, 1)).grown(reach, array.shape)
    grid = [
        (np.arange(part.start, part.stop) - at) * size for part, at, size in zip(box, start, spacing[::-1], strict=True)
    ]
    squares = grid[0][:, None, None] ** 2 + grid[1][:, None] ** 2 + grid[2] ** 2
    markers = np.where((squares > 22.0**2) | ~liver[box], 2, 0).astype(np.int8)
    markers[squares <= 1.5**2] = 1
    found = np.zeros(array.shape, bool)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The probability range is outside")  # because of the tolerance chosen here
        found[box] = random_walker(array[box], markers, beta=500, mode="cg_j", tol=1e-2, spacing=spacing[::-1]) == 1
    return found


METHODS: dict[str, Method] = {
    "confidence-connected growing (SimpleITK)": _confidence,
    "connected threshold ± 15 HU (SimpleITK)": _threshold,
    "marker watershed (SimpleITK)": _watershed,
    "random walker (scikit-image)": _random_walker,
}


def table(rows: list[Row]) -> str:
    """Format median Dice by method and lesion size (Markdown), with the number of clicks and the median seconds."""
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
    """Add the arguments of the command."""
    parser.add_argument("--patients", type=int, default=6, help="synthetic patients (default: 6)")
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        default=(1.0, 1.0, 2.0),
        metavar=("I", "J", "K"),
        help="voxel size in mm (default: 1 1 2)",
    )
    parser.add_argument("--image", metavar="CT", type=Path, help="use a CT with a reference instead")
    parser.add_argument("--liver", metavar="FILE", type=Path, help="with --image: the reference mask of the liver")
    parser.add_argument("--tumor", metavar="FILE", type=Path, help="with --image: the reference mask of the tumors")
    parser.add_argument("--model", metavar="NAME", help="also compare growing on this model's tumor probability")


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark; returns the exit code."""
    model = load_model(arguments.model) if arguments.model else None
    if arguments.image is not None:
        if arguments.liver is None or arguments.tumor is None:
            raise UsageError("A CT with a reference needs --liver and --tumor.")
        for path in (arguments.image, arguments.liver, arguments.tumor):
            existing(path)
        ct = read_volume(arguments.image)
        liver, tumor = (read_labels(path).array > 0 for path in (arguments.liver, arguments.tumor))
        rows = click_rows(ct, liver, tumor, FIRST_SEED, model)
    else:
        i, j, k = arguments.spacing
        rows = benchmark_clicks(arguments.patients, (i, j, k), model=model)
    lesions = sum(row["method"] == OWN for row in rows) // 2
    sys.stdout.write(
        f"{table(rows)}\n\n{lesions} lesions: median Dice (clicks); half of the clicks are in the middle.\n"
        f"A corrective click changes the mean Dice by {gain(rows):+.3f}.\n"
    )
    return 0


def gain(rows: list[Row]) -> float:
    """Return the change of the mean Dice by a corrective click."""
    dice = [[row["dice"] for row in rows if row["method"] == name] for name in (OWN, CORRECTED)]
    return float(np.mean(dice[1]) - np.mean(dice[0])) if dice[0] else 0.0
