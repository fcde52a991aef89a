# SPDX-License-Identifier: Apache-2.0
"""Lesion by lesion: matches against panoptica, agreement and FROC against their definitions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from LiverXAILib import cli
from LiverXAILib.evaluation.evaluate import evaluate
from LiverXAILib.evaluation.froc import FrocCase, froc, froc_case
from LiverXAILib.evaluation.lesions import bland_altman, match_lesions
from LiverXAILib.evaluation.plots import write_plots
from LiverXAILib.evaluation.results import lesion_rows, summarize
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.volume import Grid, Volume

SHAPE = (30, 50, 50)
GRID = Grid(SHAPE, np.diag([1.5, 1.5, 2.0, 1.0]))
#: Of random lesions: large enough for about twenty.
BLOBS = Grid((18, 36, 36), GRID.ijk_to_lps)


def _lesions(seed: int, level: float = 0.11) -> np.ndarray:
    """Random blobs."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=BLOBS.shape), 1.7) > level


def _similar(mask: np.ndarray, seed: int) -> np.ndarray:
    """The same blobs with other borders, some lost, some new."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=BLOBS.shape), 1.7)
    return ndimage.gaussian_filter(mask.astype(float), 1) + 1.6 * noise > 0.4


@pytest.mark.parametrize("seed", range(4))
def test_matched_lesions_are_those_of_panoptica(seed: int) -> None:
    panoptica = pytest.importorskip("panoptica")
    reference = _lesions(seed)
    prediction = _similar(reference, seed + 100)
    found = match_lesions(prediction, reference, BLOBS)
    numbered = [ndimage.label(mask, np.ones((3, 3, 3)))[0].astype(np.uint16) for mask in (prediction, reference)]
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.UNMATCHED_INSTANCE,
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.1),
        instance_metrics=[panoptica.Metric.DSC, panoptica.Metric.IOU],
    )
    expected = evaluator.evaluate(*numbered, verbose=False)["ungrouped"]
    matched = [pair for pair in found if pair.dice is not None]
    assert len(matched) == expected.tp > 3
    assert sum(pair.reference is None for pair in found) == expected.fp
    assert sum(pair.predicted is None for pair in found) == expected.fn
    assert np.mean([pair.dice for pair in matched]) == pytest.approx(expected.sq_dsc)
    assert np.mean([pair.iou for pair in matched]) == pytest.approx(expected.sq)


def test_a_match_has_the_volumes_diameters_and_score_of_both_sides() -> None:
    reference, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    reference[5:15, 10:30, 10:30] = reference[22:26, 5:9, 5:9] = True
    prediction[5:15, 10:30, 14:30] = prediction[22:26, 40:46, 40:46] = True
    probability = np.where(prediction, 0.6, 0.0)
    probability[8, 20, 20] = 0.9
    matched, missed, false = match_lesions(prediction, reference, GRID, probability)
    assert (matched.reference, matched.predicted, matched.score) == (1, 1, 0.9)
    assert matched.iou == pytest.approx(0.8)
    assert matched.dice == pytest.approx(2 * 0.8 / 1.8)
    assert matched.reference_ml == pytest.approx(4000 * 4.5e-3)
    assert matched.predicted_ml == pytest.approx(3200 * 4.5e-3)
    assert matched.reference_long_mm == pytest.approx(30 * np.sqrt(2), abs=1.5)
    assert matched.predicted_long_mm == pytest.approx(1.5 * np.hypot(20, 16), abs=1.5)
    assert (missed.reference, missed.predicted, missed.dice, missed.score) == (2, None, None, None)
    assert (false.reference, false.predicted, false.score) == (None, 2, 0.6)


def test_limits_of_agreement_are_those_of_bland_and_altman() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(5, 50, 40)
    predicted = reference + rng.normal(1, 2, 40)
    found = bland_altman(predicted.tolist(), reference.tolist())
    difference = predicted - reference
    assert found.n == 40
    assert found.bias == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx(
        (difference.mean() - 1.96 * difference.std(ddof=1), difference.mean() + 1.96 * difference.std(ddof=1))
    )
    assert bland_altman([], []).bias is None
    assert (bland_altman([3.0], [2.0]).bias, bland_altman([3.0], [2.0]).low) == (1.0, None)


def test_froc_counts_found_and_false_lesions_at_each_score() -> None:
    cases = [
        FrocCase((0.7,), ((0, 0.9), (2, None))),
        FrocCase((0.95,), ((1, 0.6),)),
        FrocCase((), ()),
    ]
    points = froc(cases)
    found = [(point["score"], point["false_per_case"], point["sensitivity"]) for point in points]
    expected = [(0.95, 1 / 3, 0.0), (0.9, 1 / 3, 1 / 3), (0.7, 2 / 3, 1 / 3), (0.6, 2 / 3, 2 / 3)]
    np.testing.assert_allclose(found, expected)
    assert [points[-1][f"sensitivity {size}"] for size in ("<10 mm", "10-20 mm", ">20 mm")] == [1.0, 1.0, 0.0]
    assert points[-1]["false_per_case_low"] <= 2 / 3 <= points[-1]["false_per_case_high"]
    assert points[-1]["sensitivity_low"] < 2 / 3 < points[-1]["sensitivity_high"]
    assert froc(cases[:2])[0]["sensitivity_low"] is None
    assert froc([FrocCase((0.5,), ())]) == froc([]) == []


def test_froc_also_knows_what_was_marked_but_not_counted() -> None:
    reference, counted, probability = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool), np.zeros(SHAPE, np.float32)
    reference[5:15, 10:30, 10:30] = reference[22:26, 5:9, 5:9] = True
    counted[5:15, 10:30, 14:30] = True
    probability[counted] = 0.999
    probability[22:26, 5:7, 5:9] = 0.8  # a candidate in the small lesion
    probability[2:4, 40:46, 40:46] = 0.7  # a candidate where there is nothing
    probability[25:29, 40:46, 40:46] = 0.9  # outside the liver: no candidate
    liver = np.ones(SHAPE, bool)
    liver[25:29, 40:46, 40:46] = False
    case = froc_case(counted, probability, reference, GRID.voxel_volume_mm3, liver)
    assert case.false_scores == (pytest.approx(0.7),)
    assert case.lesions == ((2, pytest.approx(0.999)), (0, pytest.approx(0.8)))


def test_the_command_writes_lesions_agreement_and_plots(tmp_path: Path) -> None:
    liver = np.ones(BLOBS.shape, np.uint8)
    reference = _lesions(1)
    prediction = _similar(reference, 5)
    for name, mask in (("r", reference), ("p", prediction)):
        write_volume(Volume(liver + mask.astype(np.uint8), GRID.ijk_to_lps), tmp_path / f"{name}.nii.gz")
    probability = ndimage.gaussian_filter(prediction.astype(np.float32), 1)
    write_volume(Volume(probability, GRID.ijk_to_lps), tmp_path / "q.nrrd")
    command = ["evaluate", str(tmp_path / "p.nii.gz"), "--reference", str(tmp_path / "r.nii.gz"), "--no-surface"]
    options = ["--tumor-probability", str(tmp_path / "q.nrrd"), "--lesions", str(tmp_path / "lesions.csv")]
    assert cli.main([*command, *options, "--plots", str(tmp_path / "plots"), "-o", str(tmp_path / "all.json")]) == 0
    result = evaluate(
        *(Volume(liver + mask, GRID.ijk_to_lps) for mask in (prediction, reference)), surface=False, name="p"
    )
    with (tmp_path / "lesions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dice"] for row in rows] == ["" if r["dice"] is None else str(r["dice"]) for r in lesion_rows([result])]
    content = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert len(content["lesions"]) == len(rows)
    assert set(content["agreement"]) == {"liver volume, ml", "tumor volume, ml", "lesion diameter, mm"}
    assert content["froc"][-1]["sensitivity"] > 0
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {
        "froc.png",
        *(f"bland-altman-{n}.png" for n in ("liver-volume", "tumor-volume", "lesion-diameter")),
    }
    (mean,) = (row["value"] for row in summarize([result]) if row["metric"] == "dice of matched lesions")
    assert mean == pytest.approx(np.mean([r["dice"] for r in lesion_rows([result]) if r["dice"] is not None]))
    assert write_plots([], tmp_path / "none") == []
