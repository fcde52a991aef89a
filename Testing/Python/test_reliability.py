# SPDX-License-Identifier: Apache-2.0
"""The reliability of findings: the features, the wording, the reason, and where they are written."""

from __future__ import annotations

import csv
import dataclasses
import json
from math import log10

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from LiverXAILib.errors import ModelError
from LiverXAILib.inference.segmentation import Segmentation
from LiverXAILib.measure import measure
from LiverXAILib.measure.reliability import _SHELL_MM, _reason, finding_features, rate_finding
from LiverXAILib.models import LIVER, TUMOR, ModelSpec
from LiverXAILib.models.spec import Reliability
from LiverXAILib.report.tables import write_tables
from LiverXAILib.volumes.volume import Grid, Volume

FEATURES = ("border_entropy", "compactness", "mean_probability", "edge_share", "log10_ml")
CARD = Reliability(
    intercept=1.0,
    weights=dict(zip(FEATURES, (-1.0, 0.5, 1.0, -2.0, 0.5), strict=True)),
    centers=dict(zip(FEATURES, (0.5, 0.7, 0.8, 0.2, 0.0), strict=True)),
    scales=dict(zip(FEATURES, (0.1, 0.1, 0.1, 0.2, 1.0), strict=True)),
    findings=100,
    true=60,
)


def a_grid(spacing=(2.0, 2.0, 2.0), shape=(50, 50, 50)):
    return Grid(shape, np.diag([*spacing, 1.0]))


def distance_from(center_mm, grid):
    k, j, i = np.indices(grid.shape)
    points = np.stack([i, j, k], axis=-1) * np.array(grid.spacing)
    return np.linalg.norm(points - np.array(center_mm), axis=-1)


def a_segmentation(grid, center_mm=(50, 50, 50), radius_mm=12.0, slope_mm=2.0, organ_mm=44.0, card=CARD):
    """A ball of tumor in a ball of liver; the probability falls from 1 to 0 over about four times `slope_mm`."""
    distance = distance_from(center_mm, grid)
    labels = (distance_from((50, 50, 50), grid) < organ_mm).astype(np.uint8)
    labels[distance < radius_mm] = 2
    probability = 1 / (1 + np.exp((distance - radius_mm) / slope_mm))
    volumes = {"tumor": Volume(probability.astype(np.float16), grid.ijk_to_lps)}
    provenance = {} if card is None else {"reliability": dataclasses.asdict(card)}
    return Segmentation(Volume(labels, grid.ijk_to_lps), (LIVER, TUMOR), volumes, provenance=provenance)


def features_of(segmentation):
    (features,) = finding_features((segmentation.labels.array == 2).astype(np.int32), segmentation)
    return features


def test_a_ball_amid_the_liver_has_the_features_of_a_ball():
    features = features_of(a_segmentation(a_grid()))
    assert features["compactness"] == pytest.approx(1, abs=0.1)
    assert features["edge_share"] == 0
    assert features["log10_ml"] == pytest.approx(log10(4 / 3 * np.pi * 1.2**3), abs=0.02)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (2.0, 2.0, 2.0), (1.5, 1.5, 5.0)])
def test_features_do_not_depend_on_the_size_of_the_voxels(spacing):
    shape = tuple(round(100 / size) for size in spacing[::-1])
    found = features_of(a_segmentation(a_grid(spacing, shape)))
    expected = features_of(a_segmentation(a_grid()))
    for name in FEATURES:
        # The largest inscribed ball is known to half a voxel of the grid of the features.
        assert found[name] == pytest.approx(expected[name], abs=0.2 if name == "compactness" else 0.12), name


def test_the_border_is_as_undecided_as_its_probabilities_computed_otherwise():
    segmentation = a_segmentation(a_grid(), slope_mm=3.0)
    mask, p = segmentation.labels.array == 2, segmentation.probabilities["tumor"].array.astype(float)
    cross = ndimage.generate_binary_structure(3, 1)
    border = ndimage.binary_dilation(mask, cross) & ~ndimage.binary_erosion(mask, cross)
    p = p[border]
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert features_of(segmentation)["border_entropy"] == pytest.approx(entropy.mean(), abs=0.01)


def test_what_is_vague_flat_faint_or_at_the_edge_shows_in_its_feature():
    plain = features_of(a_segmentation(a_grid()))
    vague = features_of(a_segmentation(a_grid(), slope_mm=6.0))
    assert vague["border_entropy"] > plain["border_entropy"] + 0.03
    assert vague["mean_probability"] < plain["mean_probability"] - 0.1
    edge = features_of(a_segmentation(a_grid(), center_mm=(50, 50, 88), radius_mm=10))
    assert 0.2 < edge["edge_share"] < 0.9
    segmentation = a_segmentation(a_grid())
    labels = np.where(segmentation.labels.array == 2, 1, segmentation.labels.array)
    labels[24:26, 10:40, 10:40] = 2
    flat = dataclasses.replace(segmentation, labels=segmentation.labels.with_array(labels))
    assert features_of(flat)["compactness"] < 0.3


@pytest.mark.parametrize("height_mm", [80, 84, 90])
def test_the_edge_share_is_the_part_of_the_shell_that_lies_outside_the_organ(height_mm):
    grid = a_grid((1.0, 1.0, 1.0), (110, 100, 100))
    height = distance_from((50, 50, height_mm), grid) - 10
    shell = (height >= 0) & (height <= _SHELL_MM)
    expected = float((distance_from((50, 50, 50), grid) >= 44)[shell].mean())
    segmentation = a_segmentation(grid, center_mm=(50, 50, height_mm), radius_mm=10)
    assert features_of(segmentation)["edge_share"] == pytest.approx(expected, abs=0.04)


def test_the_features_of_a_block_are_those_of_the_distances_between_all_its_voxels():
    """On a grid of 2 mm nothing is resampled."""
    grid = a_grid(shape=(16, 16, 16))
    block, organ = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    block[6:10, 5:10, 6:11] = organ[:, :, 4:] = organ[:9, :11] = True
    p = np.random.default_rng(0).random(grid.shape).astype(np.float16)
    labels = Volume(np.where(block, 2, organ).astype(np.uint8), grid.ijk_to_lps)
    found = features_of(Segmentation(labels, (LIVER, TUMOR), {"tumor": labels.with_array(p)}))
    points, inside = 2.0 * np.argwhere(block | True), block.ravel()
    apart = cdist(points[inside], points[~inside])
    depth, height, p = apart.min(axis=1), apart.min(axis=0), p.ravel().astype(float)
    border = np.concatenate([p[inside][depth <= 2], p[~inside][height <= 2]])
    entropy = -(border * np.log2(border) + (1 - border) * np.log2(1 - border))
    assert found == pytest.approx(
        {
            "border_entropy": entropy.mean(),
            "compactness": (depth.max() - 1) / (3 / (4 * np.pi) * 100 * 2**3) ** (1 / 3),
            "mean_probability": p[inside].mean(),
            "edge_share": (~organ.ravel())[~inside][height <= 4].mean(),
            "log10_ml": log10(0.8),
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("spacing", [(0.5, 1.0, 2.0), (2.0, 0.5, 1.0), (1.0, 2.0, 0.5)])
def test_the_shell_of_a_finding_is_whole_whatever_the_shape_of_the_voxels(spacing):
    """A third of the liver's surface cuts each of the axes."""
    shares = []
    for size in (spacing, (2.0, 2.0, 2.0)):
        shape = tuple(round(32 / mm) for mm in size[::-1])
        z, y, x = ((index + 0.5) * mm for index, mm in zip(np.indices(shape), size[::-1], strict=True))
        block = (abs(x - 16) < 4) & (abs(y - 16) < 4) & (abs(z - 16) < 4)
        labels = np.where(block, 2, (x < 22) & (y < 22) & (z < 22)).astype(np.uint8)
        volume = Volume(labels, np.diag([*size, 1.0]))
        shares.append(features_of(Segmentation(volume, (LIVER, TUMOR), {"tumor": volume.with_array(labels / 2)})))
    assert shares[0]["edge_share"] == pytest.approx(shares[1]["edge_share"], abs=0.02)
    assert shares[1]["edge_share"] > 0.15


def test_findings_of_a_label_that_belongs_to_no_organ_lie_at_no_edge():
    grid = a_grid(shape=(16, 16, 16))
    labels = np.zeros(grid.shape, np.uint8)
    labels[6:10, 6:10, 6:10] = 2
    volume = Volume(labels, grid.ijk_to_lps)
    alone = dataclasses.replace(TUMOR, parent=None)
    assert features_of(Segmentation(volume, (alone,), {"tumor": volume.with_array(labels / 2)}))["edge_share"] == 0


def test_without_tumor_probabilities_or_findings_there_are_no_features():
    segmentation = a_segmentation(a_grid(shape=(16, 16, 16)))
    numbers = np.zeros(segmentation.labels.shape, np.int32)
    assert finding_features(numbers, segmentation) == []
    numbers[8, 8, 8] = 1
    assert finding_features(numbers, dataclasses.replace(segmentation, probabilities={})) == []


def test_a_piece_thinner_than_the_grid_of_the_features_has_features():
    segmentation = a_segmentation(a_grid((0.5, 0.5, 0.5), (60, 60, 60)), center_mm=(15, 15, 15))
    labels = np.where(segmentation.labels.array == 2, 1, segmentation.labels.array)
    labels[30, 20:40, 30] = 2
    thin = dataclasses.replace(segmentation, labels=segmentation.labels.with_array(labels))
    assert all(np.isfinite(value) for value in features_of(thin).values())


def test_the_probability_is_that_of_the_logistic_regression_of_the_card():
    features = dict(zip(FEATURES, (0.4, 0.9, 0.7, 0.3, 1.0), strict=True))
    logit = 1.0 + (-1.0) * (-1.0) + 0.5 * 2.0 + 1.0 * (-1.0) + (-2.0) * 0.5 + 0.5 * 1.0
    judged = rate_finding(features, CARD)
    assert judged.probability == pytest.approx(1 / (1 + np.exp(-logit)))
    assert judged.word == "likely"
    assert judged.reason == ""


@pytest.mark.parametrize(
    ("probability", "word"),
    [(0.81, "likely"), (0.8, "likely"), (0.79, "uncertain"), (0.4, "uncertain"), (0.39, "doubtful")],
)
def test_a_finding_is_likely_from_80_percent_and_doubtful_below_40(probability, word):
    card = dataclasses.replace(CARD, intercept=np.log(probability / (1 - probability)))
    judged = rate_finding(card.centers, card)
    assert judged.probability == pytest.approx(probability)
    assert judged.word == word
    assert judged.reason == ""  # no feature stands out
    assert judged.describe() == f"{word} ({100 * probability:.0f} %)"
    assert judged.features == card.centers


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"edge_share": -0.3}, ""),
        ({"edge_share": -0.4}, "it lies at the edge of the liver"),
        ({"log10_ml": -3.0, "compactness": -1.0}, "it is small, its shape is irregular"),  # just a quarter
        ({"log10_ml": -4.0, "compactness": -0.9, "edge_share": 0.9, "border_entropy": 0.9}, "it is small"),
        (
            {"log10_ml": -1.0, "mean_probability": -1.1, "edge_share": -1.2},
            "it lies at the edge of the liver, its mean tumor probability is low",
        ),
    ],
)
def test_at_most_two_reasons_are_named_each_with_a_quarter_of_what_lowers_the_odds(terms, reason):
    assert _reason(terms) == reason


def test_the_reason_names_what_lowers_the_probability_most_first():
    at_edge = dict(zip(FEATURES, (0.6, 0.7, 0.8, 0.9, 0.0), strict=True))
    judged = rate_finding(at_edge, CARD)
    assert judged.word == "doubtful"
    assert judged.reason == "it lies at the edge of the liver"  # the border's 1 is less than a quarter of 8
    undecided = dict(zip(FEATURES, (0.65, 0.7, 0.8, 0.3, 0.0), strict=True))
    judged = rate_finding(undecided, CARD)
    assert judged.reason == "its border is uncertain, it lies at the edge of the liver"
    assert judged.describe().startswith("doubtful (18 %): its border")


def test_a_model_whose_card_does_not_tell_says_nothing_about_reliability():
    segmentation = a_segmentation(a_grid(), card=None)
    volume = Volume(np.full(segmentation.labels.shape, 100, np.int16), segmentation.labels.ijk_to_lps)
    measured = measure(volume, segmentation)
    assert [lesion.reliability for lesion in measured.lesions] == [None]


def test_lesions_and_candidates_are_judged_and_both_files_say_so(tmp_path):
    segmentation = a_segmentation(a_grid())
    probability = segmentation.probabilities["tumor"].array.copy()
    probability[20:24, 40:44, 22:26] = 0.6  # a component that is not in the label map
    segmentation = dataclasses.replace(
        segmentation, probabilities={"tumor": segmentation.probabilities["tumor"].with_array(probability)}
    )
    volume = Volume(np.full(segmentation.labels.shape, 100, np.int16), segmentation.labels.ijk_to_lps)
    measured = measure(volume, segmentation)
    (lesion,), (candidate,) = measured.lesions, measured.candidates
    assert lesion.reliability == rate_finding(features_of(segmentation), CARD)
    piece = np.zeros(segmentation.labels.shape, np.int32)
    piece[20:24, 40:44, 22:26] = 1
    assert candidate.reliability == rate_finding(finding_features(piece, segmentation)[0], CARD)
    assert candidate.reliability.features["mean_probability"] == pytest.approx(0.6, abs=1e-3)
    write_tables(measured, tmp_path / "m.json", tmp_path / "m.csv")
    data = json.loads((tmp_path / "m.json").read_text())
    assert data["schema_version"] == 4
    assert data["candidates"][0]["reliability"]["word"] == candidate.reliability.word
    with (tmp_path / "m.csv").open() as file:
        rows = {row["structure"]: row for row in csv.DictReader(file)}
    assert float(rows["lesion"]["reliability"]) == pytest.approx(lesion.reliability.probability, rel=1e-5)
    assert rows["candidate"]["reliability_word"] == candidate.reliability.word
    assert rows["candidate"]["reliability_reason"] == candidate.reliability.reason


def test_the_card_keeps_the_regression_and_refuses_one_that_cannot_be():
    from toys import threshold_model

    spec = dataclasses.replace(threshold_model().spec, reliability=CARD)
    assert ModelSpec.from_json(spec.to_json()).reliability == CARD
    data = json.loads(spec.to_json())
    for change in ({"scales": {**CARD.scales, "log10_ml": 0.0}}, {"weights": {"warmth": 1.0}}, {"true": 100}):
        broken = {**data, "reliability": {**data["reliability"], **change}}
        with pytest.raises(ModelError, match="reliability"):
            ModelSpec.from_json(json.dumps(broken))


def test_the_fit_finds_the_odds_that_the_findings_were_drawn_with():
    from recipes.default_model.reliability import area_under_curve, fit, held_out

    rng = np.random.default_rng(0)
    rows = []
    for number in range(600):
        values = dict(zip(FEATURES, rng.normal(0, 1, 5), strict=True))
        odds = 0.5 - 2 * values["edge_share"] + values["compactness"]
        true = bool(rng.random() < 1 / (1 + np.exp(-odds)))
        rows.append({"case": f"c{number}", "group": f"g{number // 3}", "kind": "lesion", "true": true, **values})
    found = fit(rows)
    slopes = {name: found.weights[name] / found.scales[name] for name in FEATURES}
    assert slopes["edge_share"] == pytest.approx(-2, abs=0.45)
    assert slopes["compactness"] == pytest.approx(1, abs=0.35)
    assert found.weights["border_entropy"] <= 0 <= found.weights["mean_probability"]  # no weight of the wrong sign
    predicted, truth = held_out(rows), np.array([row["true"] for row in rows])
    assert area_under_curve(truth, predicted) > 0.8
    assert predicted.mean() == pytest.approx(truth.mean(), abs=0.02)
