# SPDX-License-Identifier: Apache-2.0
"""Evaluation against independent implementations, on any order of axes, and through the command line."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from LiverXAILib import cli
from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.evaluation.cases import Case, pair_folders, read_cases, read_prediction, read_reference
from LiverXAILib.evaluation.evaluate import evaluate, evaluate_cases
from LiverXAILib.evaluation.metrics import (
    bootstrap_interval,
    calibration_error,
    detect_lesions,
    overlap,
    surface_distances,
)
from LiverXAILib.evaluation.results import format_results, summarize, write_results
from LiverXAILib.inference.segmentation import Segmentation
from LiverXAILib.models.spec import LIVER, TUMOR
from LiverXAILib.report import write_segmentation_file
from LiverXAILib.volumes.box import bounding_box
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.orientation import reorient
from LiverXAILib.volumes.volume import Volume

SPACING = (1.5, 1.5, 3.0)  # (i, j, k)
SHAPE = (30, 44, 40)


def _ball(radius: float, center: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """A ball around `center` ((z, y, x) in mm from the center of the image)."""
    axes = [(np.arange(n) - (n - 1) / 2) * s - c for n, s, c in zip(SHAPE, SPACING[::-1], center, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z**2 + y**2 + x**2 <= radius**2


def _blob(seed: int, radius: float = 20) -> np.ndarray:
    """A ball with a rough surface."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2) * 40
    return ndimage.distance_transform_edt(_ball(radius + 8), sampling=SPACING[::-1]) > 8 + noise


def _labels(liver: np.ndarray, tumor: np.ndarray | None = None) -> Volume:
    matrix = np.diag([*SPACING, 1.0])
    matrix[:3, 3] = (-20, 40, 300)
    labels = liver.astype(np.uint8)
    if tumor is not None:
        labels[tumor] = 2
    return Volume(labels, matrix)


@pytest.fixture(scope="module")
def reference() -> Volume:
    return _labels(_ball(26), _ball(7, (3, 6, 9)) | _ball(4, (-9, -9, 0)))


@pytest.fixture(scope="module")
def prediction() -> Volume:
    return _labels(_ball(25, (1, 2, 0)), _ball(6, (3, 5, 9)) | _ball(4, (12, -9, -9)))


def test_overlap_equals_counting_voxels_in_sets() -> None:
    a, b = _blob(1), _blob(2)
    left, right = (set(map(tuple, np.argwhere(mask).tolist())) for mask in (a, b))
    found = overlap(a, b, 6.75)
    assert found.dice == pytest.approx(2 * len(left & right) / (len(left) + len(right)))
    assert found.iou == pytest.approx(len(left & right) / len(left | right))
    assert found.predicted_ml == pytest.approx(len(left) * 6.75e-3)
    assert found.difference_ml == pytest.approx((len(left) - len(right)) * 6.75e-3)
    assert found.difference_percent == pytest.approx(100 * (len(left) / len(right) - 1))


def test_surface_distances_equal_an_independent_library() -> None:
    library = pytest.importorskip("surface_distance")
    pytest.importorskip("monai")
    for seed in range(4):
        a, b = _blob(seed), _blob(seed + 10, 18 + seed)
        found = surface_distances(a, b, SPACING[::-1], tolerance_mm=1.6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            expected = library.compute_surface_distances(b, a, SPACING[::-1])
        to_prediction, to_reference = expected["distances_gt_to_pred"], expected["distances_pred_to_gt"]
        areas = expected["surfel_areas_gt"], expected["surfel_areas_pred"]
        mean = ((to_prediction * areas[0]).sum() + (to_reference * areas[1]).sum()) / (areas[0].sum() + areas[1].sum())
        assert found.hd95_mm == pytest.approx(library.compute_robust_hausdorff(expected, 95), rel=1e-5)
        assert found.assd_mm == pytest.approx(mean, rel=1e-5)
        assert found.nsd == pytest.approx(library.compute_surface_dice_at_tolerance(expected, 1.6), rel=1e-5)
        assert found.assd_mm > 0.3


def test_surface_distances_of_shifted_boxes_are_what_geometry_says() -> None:
    pytest.importorskip("monai")
    a, b = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    a[5:20, 5:30, 5:30] = True
    b[7:20, 5:30, 5:30] = True  # one face lies 2 slices (6 mm) further in
    found = surface_distances(a, b, SPACING[::-1], tolerance_mm=2.0)
    # The face is a square of 25 x 1.5 mm; HD95 reaches it, since it is far more than a twentieth of the surface.
    assert found.hd95_mm == pytest.approx(6.0, abs=0.01)
    surface = cKDTree(np.argwhere(b & ~ndimage.binary_erosion(b)) * SPACING[::-1])
    rough = surface.query(np.argwhere(a & ~ndimage.binary_erosion(a)) * SPACING[::-1])[0]
    assert found.assd_mm == pytest.approx(rough.mean() / 2, rel=0.25)
    assert 0.5 < found.nsd < 1


@pytest.mark.parametrize("empty", ["prediction", "reference", "both"])
def test_what_is_undefined_is_none_and_not_a_perfect_score(empty: str) -> None:
    something, nothing = _ball(10), np.zeros(SHAPE, bool)
    a = nothing if empty in ("prediction", "both") else something
    b = nothing if empty in ("reference", "both") else something
    found = overlap(a, b, 1.0)
    assert found.dice == (None if empty == "both" else 0)
    assert found.difference_percent == (-100 if empty == "prediction" else None)
    distances = surface_distances(a, b, SPACING[::-1])
    assert (distances.hd95_mm, distances.assd_mm, distances.nsd) == (None, None, None)


def test_lesions_are_matched_by_coverage_and_counted_by_size() -> None:
    reference = np.zeros((40, 120, 120), bool)
    prediction = np.zeros_like(reference)
    big, medium, small = np.s_[5:30, 5:30, 5:30], np.s_[5:18, 60:73, 60:73], np.s_[5:10, 90:95, 5:10]
    for box in (big, medium, small):
        reference[box] = True
    prediction[5:10, 5:20, 5:30] = True  # 12 % of the big one
    prediction[5:6, 60:73, 60:73] = True  # 8 % of the medium one: not detected, although the prediction is tumor
    prediction[30:33, 100:103, 100:103] = True  # nothing there
    found = detect_lesions(prediction, reference, 1.0)
    assert found.reference == (1, 1, 1)
    assert found.found == (0, 0, 1)
    assert sum(found.predicted) == 3
    assert sum(found.true) == 2
    assert found.false == 1

    flooded = detect_lesions(np.ones_like(reference), reference, 1.0)
    assert flooded.found == (1, 1, 1)
    assert flooded.false == 1


def test_lesion_counts_equal_brute_force() -> None:
    rng = np.random.default_rng(3)
    neighbors = np.ones((3, 3, 3))
    for _ in range(5):
        a, b = (ndimage.gaussian_filter(rng.normal(size=(30, 40, 40)), 1.5) > 0.09 for _ in range(2))
        found = detect_lesions(a, b, 2.0)
        for lesions, other, counts, hits in (
            (b, a, found.reference, found.found),
            (a, b, found.predicted, found.true),
        ):
            numbered, count = ndimage.label(lesions, neighbors)
            all_sizes, hit_sizes = [0, 0, 0], [0, 0, 0]
            for n in range(1, count + 1):
                one = numbered == n
                diameter = 2 * (3 * one.sum() * 2.0 / (4 * np.pi)) ** (1 / 3)
                size = 0 if diameter < 10 else 1 if diameter < 20 else 2
                all_sizes[size] += 1
                hit_sizes[size] += bool((one & other).sum() / one.sum() >= 0.1)
            assert counts == tuple(all_sizes)
            assert hits == tuple(hit_sizes)
            assert 0 < sum(hit_sizes) < sum(all_sizes)


def test_lesions_are_numbered_the_same_way_as_in_measurements() -> None:
    diagonal = np.zeros((4, 4, 4), bool)
    diagonal[1, 1, 1] = diagonal[2, 2, 2] = True  # touch by a corner: one lesion
    assert sum(detect_lesions(diagonal, diagonal, 1.0).reference) == 1


def test_calibration_error_equals_its_definition_and_knows_good_from_bad() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(20, 20, 20))
    truth = rng.uniform(size=p.shape) < p**2
    expected = 0.0
    for n in range(10):
        inside = (p >= n / 10) & (p < (n + 1) / 10)
        expected += inside.mean() * abs(truth[inside].mean() - p[inside].mean())
    assert calibration_error(p, truth) == pytest.approx(expected)
    assert calibration_error(p, truth) > 0.1
    assert calibration_error(p, rng.uniform(size=p.shape) < p) < 0.03
    assert calibration_error(np.ones(5), np.ones(5, bool)) == 0
    assert calibration_error(np.ones(0), np.ones(0, bool)) is None


def test_dice_and_calibration_equal_independent_libraries() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    metrics = pytest.importorskip("monai.metrics")
    a, b = _blob(3), _blob(4)
    dice = metrics.compute_dice(*(torch.from_numpy(mask)[None, None] for mask in (a, b)))
    assert overlap(a, b, 1.0).dice == pytest.approx(float(dice))
    p = np.random.default_rng(5).beta(0.4, 0.6, a.shape).astype(np.float32)
    expected = functional.binary_calibration_error(
        torch.from_numpy(p).ravel(), torch.from_numpy(a.astype(np.int64)).ravel(), n_bins=10, norm="l1"
    )
    assert calibration_error(p, a) == pytest.approx(float(expected), rel=1e-4)


def test_bootstrap_intervals_agree_with_scipy() -> None:
    values = np.random.default_rng(1).beta(8, 2, 25)
    low, high = bootstrap_interval(values) or (0, 0)
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=2)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.005)
    assert bootstrap_interval(values) == (low, high)


def test_a_rate_over_lesions_is_drawn_by_case() -> None:
    found, all_of_them = [1, 0, 9, 2], [2, 1, 10, 2]
    low, high = bootstrap_interval(found, all_of_them) or (0, 0)
    drawn = [
        sum(found[n] for n in draw) / sum(all_of_them[n] for n in draw)
        for draw in itertools.product(range(4), repeat=4)  # every possible draw
    ]
    assert low == pytest.approx(np.percentile(drawn, 2.5), abs=0.05)
    assert high == pytest.approx(np.percentile(drawn, 97.5), abs=0.05)


def test_two_cases_have_no_interval() -> None:
    assert bootstrap_interval([0.9, 0.8]) is None


@pytest.mark.parametrize("order", ["".join(p) for p in itertools.permutations("SPL")])
def test_another_order_of_axes_gives_the_same_numbers(order: str, prediction: Volume, reference: Volume) -> None:
    expected = evaluate(prediction, reference, surface=False)
    for signs in itertools.product((0, 1), repeat=3):
        axes = "".join("SPLIAR"["SPL".index(c) + 3 * sign] for c, sign in zip(order, signs, strict=True))
        assert evaluate(reorient(prediction, axes), reference, surface=False) == expected


def test_a_structure_is_compared_with_what_the_reference_calls_by_its_name(
    prediction: Volume, reference: Volume
) -> None:
    expected = evaluate(prediction, reference, surface=False)
    renamed = reference.with_array(np.array([0, 5, 77], np.uint8)[reference.array])
    assert evaluate(prediction, renamed, {"liver": 5, "tumor": 77}, predicted_labels={"liver": 1, "tumor": 2},
                    surface=False) == expected  # fmt: skip
    liver = expected.structures[0].overlap
    assert liver.reference_ml == pytest.approx(np.count_nonzero(reference.array) * 6.75e-3)
    only = evaluate(prediction, reference, predicted_labels={"liver": (1, 2)}, surface=False)
    assert [structure.structure for structure in only.structures] == ["liver"]


@pytest.mark.parametrize("change", ["moved", "larger", "stretched"])
def test_another_grid_is_refused_rather_than_resampled(change: str, prediction: Volume, reference: Volume) -> None:
    matrix = prediction.ijk_to_lps.copy()
    array = prediction.array
    if change == "moved":
        matrix[0, 3] += 0.5
    elif change == "stretched":
        matrix[2, 2] *= 1.01
    else:
        array = np.pad(array, 1)
    with pytest.raises(InputError, match="nothing is resampled"):
        evaluate(Volume(array, matrix), reference, surface=False)


def test_rounding_in_a_header_is_tolerated(prediction: Volume, reference: Volume) -> None:
    matrix = prediction.ijk_to_lps + np.pad(np.full((3, 1), 0.01), ((0, 1), (3, 0)))
    moved = Volume(prediction.array, matrix)
    assert evaluate(moved, reference, surface=False) == evaluate(prediction, reference, surface=False)


def test_calibration_is_judged_around_the_liver_and_a_crop_counts_as_zero_outside(
    prediction: Volume, reference: Volume
) -> None:
    rng = np.random.default_rng(0)
    probability = np.where(prediction.array == 2, rng.uniform(0.6, 1, SHAPE), 0).astype(np.float32)
    whole = prediction.with_array(probability)
    box = bounding_box(probability)
    results = [
        evaluate(prediction, reference, surface=False, probabilities={"tumor": p}).structures[1].ece
        for p in (whole, whole.cropped(box), reorient(whole.cropped(box), "ILA"))
    ]
    assert results[0] == results[1] == results[2]
    grid = reference.grid
    k, j, i = np.indices(SHAPE)
    points = grid.to_lps(np.stack([i, j, k], -1))
    near = cKDTree(points[reference.array > 0]).query(points.reshape(-1, 3))[0].reshape(SHAPE) <= 10
    assert results[0] == pytest.approx(calibration_error(probability[near], reference.array[near] == 2), rel=0.1)
    assert evaluate(prediction, reference, surface=False).structures[1].ece is None


@pytest.fixture
def folders(tmp_path: Path, prediction: Volume, reference: Volume) -> tuple[Path, Path]:
    """Predictions in three forms (file, analyze's folder, .seg.nrrd) and references in two."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    (predictions / "b").mkdir(parents=True)
    (references / "b").mkdir(parents=True)
    write_volume(prediction, predictions / "a.nii.gz")
    write_segmentation_file(Segmentation(prediction, (LIVER, TUMOR)), predictions / "b" / "segmentation.seg.nrrd")
    write_segmentation_file(Segmentation(prediction, (LIVER, TUMOR)), predictions / "c.seg.nrrd")
    write_volume(reference, references / "a.nii.gz")
    write_volume(reference.with_array((reference.array > 0).astype(np.uint8)), references / "b" / "liver.nii.gz")
    write_volume(
        reorient(reference.with_array((reference.array == 2) * np.uint8(255)), "LAI"), references / "b" / "tumor.nii.gz"
    )
    write_volume(reference, references / "c.nrrd")
    return predictions, references


def test_a_cohort_in_any_form_gives_the_numbers_of_its_cases(
    folders: tuple[Path, Path], prediction: Volume, reference: Volume
) -> None:
    cases = pair_folders(*folders)
    assert [case.name for case in cases] == ["a", "b", "c"]
    results = evaluate_cases(cases, surface=False)
    expected = evaluate(prediction, reference, surface=False)
    assert [result.structures for result in results] == [expected.structures] * 3
    summary = {(row["structure"], row["metric"]): row for row in summarize(results)}
    assert summary["liver", "dice"]["value"] == pytest.approx(expected.structures[0].overlap.dice)
    assert summary["tumor", "sensitivity"]["n"] == 6
    assert summary["tumor", "sensitivity"]["value"] == pytest.approx(0.5)
    assert summary["tumor", "false lesions per case"]["value"] == 1


def test_a_missing_prediction_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a.nii.gz").unlink()
    with pytest.raises(UsageError, match="No prediction for a"):
        pair_folders(*folders)


def test_predictions_without_a_reference_are_named(
    folders: tuple[Path, Path], prediction: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(folders[0]), "--reference", str(folders[1]), "--no-surface"]
    assert cli.main(words) == 0
    assert "without a reference" not in capsys.readouterr().err
    for number in range(12):
        write_volume(prediction, folders[0] / f"more{number:02}.nrrd")
    assert cli.main(words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "12 predictions without a reference, not evaluated: more00, more01" in said
    assert "more09, …." in said


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance: float) -> None:
    cube = np.zeros((4, 4, 4), bool)
    for empty in (True, False):
        cube[1:3, 1:3, 1:3] = not empty
        with pytest.raises(UsageError, match="tolerance of the surface Dice must be 0 mm or more"):
            surface_distances(cube, cube, (1, 1, 1), tolerance)


def test_cases_can_be_listed_in_a_table(folders: tuple[Path, Path], tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text(
        "case,prediction,reference,liver,tumor\n"
        "one,predictions/a.nii.gz,references/a.nii.gz,,\n"
        ",predictions/b,,references/b/liver.nii.gz,\n",
        encoding="utf-8",
    )
    cases = read_cases(table)
    assert [case.name for case in cases] == ["one", "b"]
    assert [len(result.structures) for result in evaluate_cases(cases, surface=False)] == [2, 1]
    table.write_text("case,prediction\none,predictions/a.nii.gz\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 2"):
        read_cases(table)


def test_calibration_is_judged_over_the_cases_of_a_table(
    folders: tuple[Path, Path], tmp_path: Path, prediction: Volume, reference: Volume
) -> None:
    lines = ["case,prediction,reference,liver_probability,tumor_probability"]
    expected = []
    for n, blur in enumerate((1.0, 2.0, 3.0)):
        probability = ndimage.gaussian_filter((prediction.array > 0).astype(np.float32), blur).clip(0, 1)
        write_volume(prediction.with_array(probability), tmp_path / f"p{n}.nrrd")
        lines.append(f"{n},predictions/a.nii.gz,references/a.nii.gz,p{n}.nrrd,")
        one = evaluate(
            prediction, reference, surface=False, probabilities={"liver": prediction.with_array(probability)}
        )
        expected.append(one.structures[0].ece)
    (tmp_path / "cases.csv").write_text("\n".join(lines), encoding="utf-8")
    results = evaluate_cases(read_cases(tmp_path / "cases.csv"), surface=False)
    assert [result.structures[0].ece for result in results] == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 3
    assert results[0].structures[1].ece is None
    (row,) = [r for r in summarize(results) if (r["structure"], r["metric"]) == ("liver", "ece")]
    assert row["value"] == pytest.approx(np.mean([result.structures[0].ece for result in results]))
    assert row["low"] < row["value"] < row["high"]


def test_a_model_that_does_not_look_for_tumors_is_not_judged_on_them(tmp_path: Path, prediction: Volume) -> None:
    liver = prediction.with_array(np.minimum(prediction.array, 1))
    write_segmentation_file(Segmentation(liver, (LIVER,)), tmp_path / "p.seg.nrrd")
    found = read_prediction(tmp_path / "p.seg.nrrd")
    assert found.structures == ("liver",)
    np.testing.assert_array_equal(found.volume.array, liver.array)


def test_a_reference_of_the_liver_alone_has_no_tumors(tmp_path: Path, reference: Volume) -> None:
    write_volume(reference, tmp_path / "liver.nii.gz")
    found = read_reference(Case("x", tmp_path, liver=tmp_path / "liver.nii.gz"))
    assert found.structures == ("liver",)
    assert set(np.unique(found.volume.array)) == {0, 1}


def test_the_command_prints_tables_and_writes_files(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = map(str, folders)
    table, data = tmp_path / "out" / "table.csv", tmp_path / "out" / "table.json"
    command = ["evaluate", predictions, "--reference", references, "--no-surface", "-o", str(table), "-o", str(data)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "sensitivity" in printed
    assert "95 % interval" in printed
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["structure"]) for row in rows[:3]] == [("a", "liver"), ("a", "tumor"), ("b", "liver")]
    assert float(rows[0]["dice"]) > 0.9
    content = json.loads(data.read_text(encoding="utf-8"))
    assert len(content["cases"]) == 6
    assert {"structure", "metric", "value", "low", "high", "n"} == set(content["summary"][0])


def test_the_command_evaluates_one_case_with_other_label_values(
    tmp_path: Path, prediction: Volume, reference: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volume(prediction.with_array(prediction.array * np.uint8(5)), tmp_path / "p.nii.gz")
    write_volume(reference, tmp_path / "r.nii.gz")
    command = ["evaluate", str(tmp_path / "p.nii.gz"), "--reference", str(tmp_path / "r.nii.gz"), "--no-surface"]
    assert cli.main([*command, "--predicted-liver-label", "5", "--predicted-tumor-label", "10"]) == 0
    expected = evaluate(prediction, reference, surface=False)
    first = capsys.readouterr().out.splitlines()[1].split()
    assert first[:3] == ["p", "liver", f"{expected.structures[0].overlap.dice:.3f}"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["p.nii.gz"],
        ["p.nii.gz", "--reference", "r.nii.gz", "--liver", "r.nii.gz"],
        ["p.nii.gz", "--reference", "r.nii.gz", "--tumor", "r.nii.gz"],
        ["p.nii.gz", "--cases", "c.csv"],
        ["p.nii.gz", "--reference", "r.nii.gz", "--output", "table.xlsx"],
    ],
)
def test_a_command_that_makes_no_sense_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_results_of_one_case_are_readable(prediction: Volume, reference: Volume) -> None:
    lines = format_results([evaluate(prediction, reference, surface=False, name="anna")]).splitlines()
    assert lines[1].startswith("anna  liver")
    assert "1 of 2" in lines[2]


def test_means_over_cases_have_the_names_of_the_table_above_them(prediction: Volume, reference: Volume) -> None:
    text = format_results([evaluate(prediction, reference, name=name) for name in ("anna", "bert")])
    for name in ("Dice", "IoU", "HD95 mm", "ASSD mm", "NSD", "difference ml", "difference %"):
        assert f"liver      {name}  " in text
    assert "_" not in text


def test_results_replace_an_older_file_and_leave_nothing_else(
    tmp_path: Path, prediction: Volume, reference: Volume
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("old", encoding="utf-8")
    write_results([evaluate(prediction, reference, surface=False)], path)
    assert "old" not in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_declaring_the_command_needs_no_torch_and_no_monai() -> None:
    code = "import sys, LiverXAILib.evaluation.evaluate; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
