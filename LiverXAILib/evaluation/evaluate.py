# SPDX-License-Identifier: Apache-2.0
"""evaluate(): predictions against references, one case or a cohort; ``liverxai evaluate``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..context import RunContext
from ..errors import InputError, UsageError
from ..files import require_exists, require_writable
from ..labels.label_map import GRID_TOLERANCE, LabelMap, Values, label_map, on_common_grid
from ..labels.vocabulary import STRUCTURES, named_values
from ..progress import CancelToken, Progress, progress_bar
from ..text import counted, warn
from ..volumes.box import Box
from ..volumes.orientation import axis_codes, reorient
from ..volumes.volume import Grid, Volume
from .cases import (
    Case,
    case_name,
    pair_folders,
    predictions_in,
    read_cases,
    read_prediction,
    read_probabilities,
    read_reference,
)
from .froc import froc_case
from .lesions import match_lesions
from .metrics import calibration_error, detect_lesions, overlap, require_tolerance, surface_distances
from .results import CaseResult, StructureResult, format_results, write_lesions, write_results

#: Calibration is computed in the reference's liver and within this distance of it.
CALIBRATION_MARGIN_MM = 10.0
#: Names that a warning lists.
_MOST_NAMES = 10


def evaluate(
    prediction: Volume,
    reference: Volume,
    labels: Values | None = None,
    *,
    predicted_labels: Values | None = None,
    probabilities: Mapping[str, Volume] | None = None,
    surface: bool = True,
    tolerance_mm: float = 2.0,
    name: str = "",
) -> CaseResult:
    """Compare a label map with a reference. Definitions: :mod:`LiverXAILib.evaluation.metrics`.

    The liver includes its tumors on both sides.

    :param prediction: label map on the reference's grid. Its axes may be in a different order: it is reoriented, never
        resampled.
    :param labels: values of "liver" and, if the reference has it, "tumor" in `reference`. None: 1 is liver, 2 is
        tumor, and a map without 2 does not describe tumors.
    :param predicted_labels: likewise in `prediction`; None: as `labels`. What is missing on one side is not compared.
    :param probabilities: of "liver" (tumors included) or "tumor", whole or cropped (0 outside): adds the ECE.
    :param surface: also compute surface distances (needs the extra ``evaluate``).
    :param tolerance_mm: of the normalized surface Dice.
    :raises LiverXAILib.errors.InputError: the grids differ, or the meaning of a value is unknown.
    :raises LiverXAILib.errors.UsageError: no structure is in both, or the extra is missing.
    """
    return compare(
        label_map(prediction, labels if predicted_labels is None else predicted_labels),
        label_map(reference, labels),
        probabilities=probabilities,
        surface=surface,
        tolerance_mm=tolerance_mm,
        name=name,
    )


def compare(
    prediction: LabelMap,
    reference: LabelMap,
    *,
    probabilities: Mapping[str, Volume] | None = None,
    surface: bool = True,
    tolerance_mm: float = 2.0,
    name: str = "",
) -> CaseResult:
    """:func:`evaluate` for segmentations that say what they describe."""
    structures = [name for name in STRUCTURES if name in prediction.structures and name in reference.structures]
    if not structures:
        raise UsageError(
            f"The prediction describes {' and '.join(prediction.structures)}, the reference "
            f"{' and '.join(reference.structures)}: they have no structure in common."
        )
    prediction, reference = on_common_grid(prediction, reference)
    grid = reference.volume.grid
    right_angled = not grid.is_sheared
    region = None
    if probabilities:
        region = _grown(reference.mask("liver"), grid, CALIBRATION_MARGIN_MM)
    results = []
    for structure in structures:
        found, truth = prediction.mask(structure), reference.mask(structure)
        ece = placed = None
        if region is not None and probabilities and structure in probabilities:
            placed = _placed(probabilities[structure], grid)
            ece = calibration_error(placed[region], truth[region])
        results.append(
            StructureResult(
                structure,
                overlap(found, truth, grid.voxel_volume_mm3),
                surface_distances(found, truth, grid.spacing[::-1], tolerance_mm) if surface and right_angled else None,
                ece,
                detect_lesions(found, truth, grid.voxel_volume_mm3) if structure == "tumor" else None,
                match_lesions(found, truth, grid, placed) if structure == "tumor" else None,
                None
                if placed is None or structure != "tumor"
                else froc_case(found, placed, truth, grid.voxel_volume_mm3, prediction.mask("liver")),
            )
        )
    return CaseResult(name, tuple(results), _left_out(prediction, reference))


def _left_out(prediction: LabelMap, reference: LabelMap) -> tuple[str, ...]:
    """Sentences about structures that only one side describes."""
    sides = (("prediction", prediction, reference), ("reference", reference, prediction))
    return tuple(
        f"The {what} does not describe the {structure}, so it is not compared. If it was looked for and not found, "
        f"specify --{'predicted-' if what == 'prediction' else ''}{structure}-label."
        for what, own, other in sides
        for structure in other.structures
        if structure not in own.structures
    )


def evaluate_cases(
    cases: Sequence[Case],
    labels: Values | None = None,
    *,
    predicted_labels: Values | None = None,
    others: bool = False,
    surface: bool = True,
    tolerance_mm: float = 2.0,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[CaseResult]:
    """Read and evaluate cases one after the other; arguments as in :func:`evaluate`.

    :param labels: None: as described in each file (:func:`LiverXAILib.labels.label_map.read_label_map`).
    :param predicted_labels: likewise, for predictions.
    :param others: whether values of unknown meaning are background.
    """
    context = RunContext(progress, cancel)
    results = []
    for number, case in enumerate(cases):
        context.check()
        context.report(f"Evaluating {case.name}", number / len(cases))
        try:
            results.append(
                compare(
                    read_prediction(case.prediction, predicted_labels, others=others),
                    read_reference(case, labels, others=others),
                    probabilities=read_probabilities(case),
                    surface=surface,
                    tolerance_mm=tolerance_mm,
                    name=case.name,
                )
            )
        except InputError as error:
            raise InputError(f"Case {case.name!r}: {error}") from error
    context.report("Done", 1.0)
    return results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``liverxai evaluate``."""
    parser.description = (
        "Compare predictions with references: one case, two folders whose files are paired by name, or the cases that "
        "a CSV file lists."
    )
    parser.add_argument(
        "prediction",
        metavar="PREDICTION",
        type=Path,
        nargs="?",
        help="a label map, a folder written by analyze, or a folder of either",
    )
    parser.add_argument(
        "--reference", metavar="PATH", type=Path, help="the reference's label map, or a folder of references"
    )
    parser.add_argument(
        "--liver", metavar="FILE", type=Path, help="instead: the reference's liver, tumors included or not"
    )
    parser.add_argument("--tumor", metavar="FILE", type=Path, help="with --liver: the reference's tumors")
    parser.add_argument(
        "--cases",
        metavar="CSV",
        type=Path,
        help="instead: a table with the columns case, prediction, and reference or liver and tumor; with "
        "liver_probability and tumor_probability, calibration is evaluated",
    )
    for option, text in (("", "in label maps of the reference"), ("predicted-", "in predictions")):
        for name, value in STRUCTURES.items():
            parser.add_argument(
                f"--{option}{name}-label",
                metavar="N",
                type=int,
                nargs="+",
                help=f"value of the {name} {text} (default: as described in the file, otherwise {value}; 0: none)",
            )
    parser.add_argument(
        "--ignore-other-labels", action="store_true", help="other values in label maps are background, not an error"
    )
    parser.add_argument("--liver-probability", metavar="FILE", type=Path, help="also evaluate calibration")
    parser.add_argument("--tumor-probability", metavar="FILE", type=Path, help="likewise, for tumors")
    parser.add_argument("--no-surface", action="store_true", help="skip surface distances (faster; MONAI not needed)")
    parser.add_argument(
        "--tolerance", metavar="MM", type=float, default=2.0, help="for the normalized surface Dice (default: 2)"
    )
    parser.add_argument(
        "--output",
        "-o",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="write .csv or .json; may be repeated",
    )
    parser.add_argument(
        "--lesions", metavar="FILE", type=Path, help="write a CSV table of all lesions and their matches"
    )
    parser.add_argument("--plots", metavar="FOLDER", type=Path, help="write Bland-Altman plots and, with scores, FROC")


def run(options: argparse.Namespace) -> int:
    """Carry out ``liverxai evaluate``; returns the exit code."""
    for path in options.output:
        if path.suffix not in (".csv", ".json"):
            raise UsageError(f"Cannot write {path}: its extension must be .csv or .json.")
    if options.lesions is not None and options.lesions.suffix != ".csv":
        raise UsageError(f"Cannot write {options.lesions}: its extension must be .csv.")
    require_tolerance(options.tolerance)
    cases = _chosen_cases(options)
    for path in (path for case in cases for path in case.files):
        require_exists(path)
    outputs = [path.parent for path in (*options.output, options.lesions) if path is not None]
    for folder in (*outputs, *filter(None, [options.plots])):
        require_writable(folder)
    with progress_bar() as progress:
        results = evaluate_cases(
            cases,
            named_values(options.liver_label, options.tumor_label),
            predicted_labels=named_values(options.predicted_liver_label, options.predicted_tumor_label),
            others=options.ignore_other_labels,
            surface=not options.no_surface,
            tolerance_mm=options.tolerance,
            progress=progress,
        )
    for path in options.output:
        write_results(results, path)
    if options.lesions is not None:
        write_lesions(results, options.lesions)
    if options.plots is not None:
        from .plots import write_plots

        write_plots(results, options.plots)
    sys.stdout.write(format_results(results) + "\n")
    return 0


def _chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The cases that the options name.

    :raises LiverXAILib.errors.UsageError: something is missing or contradictory.
    """
    if options.cases is not None:
        if options.prediction is not None or options.reference is not None or options.liver is not None:
            raise UsageError("--cases already names predictions and references: do not give any others.")
        return read_cases(options.cases)
    if options.prediction is None or (options.reference is None) == (options.liver is None):
        raise UsageError(
            "Give a PREDICTION and either --reference PATH or --liver FILE [--tumor FILE]; or --cases CSV."
        )
    if options.tumor is not None and options.liver is None:
        raise UsageError("--tumor requires --liver; a label map of both is given with --reference.")
    require_exists(options.prediction)
    if options.reference is not None and options.reference.is_dir():
        if _probabilities(options):
            raise UsageError("For several cases, list the files of probabilities in a table (--cases).")
        cases = pair_folders(options.prediction, options.reference)
        if others := sorted(predictions_in(options.prediction).keys() - {case.name for case in cases}):
            names = ", ".join(others[:_MOST_NAMES]) + (", …" if len(others) > _MOST_NAMES else "")
            warn(f"{counted(len(others), 'prediction')} without a reference, not evaluated: {names}.")
        return cases
    name = case_name(options.prediction)
    return [Case(name, options.prediction, options.reference, options.liver, options.tumor, _probabilities(options))]


def _probabilities(options: argparse.Namespace) -> dict[str, Path]:
    paths = {"liver": options.liver_probability, "tumor": options.tumor_probability}
    return {name: path for name, path in paths.items() if path is not None}


def _placed(cropped: Volume, grid: Grid) -> np.ndarray:
    """A part of an image in its place on `grid`, 0 elsewhere."""
    cropped = reorient(cropped, axis_codes(grid))
    box, tolerance_mm = grid.box_of(cropped.grid), GRID_TOLERANCE * min(grid.spacing)
    inside = box.intersection(Box.full(grid.shape)) == box
    if not inside or not grid.cropped(box).matches(cropped.grid, tolerance_mm):
        raise InputError("The probabilities are not on the grid of the reference.")
    placed = np.zeros(grid.shape, np.float32)
    placed[box] = cropped.array
    return placed


def _grown(mask: np.ndarray, grid: Grid, margin_mm: float) -> np.ndarray:
    """A mask dilated by `margin_mm` (with an ellipsoid of whole voxels)."""
    radius = [round(margin_mm / size) for size in grid.spacing]
    image = sitk.BinaryDilate(sitk.GetImageFromArray(mask.astype(np.uint8)), radius, sitk.sitkBall)
    return sitk.GetArrayFromImage(image).astype(bool)
