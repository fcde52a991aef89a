# SPDX-License-Identifier: Apache-2.0
"""Uncertainty is the disagreement of windows, networks and mirrorings: 0 where they cannot differ."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from explain_toys import LESIONS_LPS, trained_model, two_lesion_case
from scipy.stats import entropy

from LiverXAILib import analyze
from LiverXAILib.errors import Cancelled, UsageError
from LiverXAILib.explain import EmptyTargetError
from LiverXAILib.inference import Segmentation, lesion_components, segment
from LiverXAILib.inference.stages import logit_margin, run_network, stage_input, stage_plan
from LiverXAILib.measure import entropy_map, measure_uncertainty
from LiverXAILib.measure.disagreement import LesionUncertainty, Uncertainty, _pairwise_dice
from LiverXAILib.models import LIVER, TUMOR, Model
from LiverXAILib.progress import CancelToken
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.resample import resample
from LiverXAILib.volumes.volume import Volume


def changed(model, networks=None, **stage):
    """The model with other networks, or with other fields on the card of its stage."""
    (old,) = model.spec.stages
    weights = tuple(f"none-{number}" for number in range(len(networks or [0])))
    spec = replace(model.spec, stages=(replace(old, weights=weights, sha256=weights, **stage),))
    return Model(spec, {"all": networks or model.members(old)})


def noisy_twin(model, noise=0.05):
    """A network whose weights differ slightly."""
    network = copy.deepcopy(model.members(model.spec.stages[0])[0])
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += noise * parameter.data.abs().mean() * torch.randn(parameter.shape, generator=generator)
    return network


def an_ensemble():
    model = trained_model()
    return changed(model, [*model.members(model.spec.stages[0]), noisy_twin(model)], window=(24, 28, 44))


def test_a_model_with_one_network_and_one_window_has_nothing_to_disagree_with():
    model = changed(trained_model(), window=(24, 28, 44))
    volume, segmentation = two_lesion_case(model)
    result = measure_uncertainty(volume, model, segmentation, device="cpu")
    assert result.sources == ()
    assert result.pairwise_dice is None
    assert result.disagreement.array.max() <= 1e-3
    assert [lesion.number for lesion in result.lesions] == [1, 2]
    assert all(lesion.pairwise_dice is None for lesion in result.lesions)


def test_windows_disagree_where_they_overlap():
    model = trained_model()
    volume, segmentation = two_lesion_case(model)
    result = measure_uncertainty(volume, model, segmentation, "liver", device="cpu")
    assert result.sources == ("windows",)
    (stage,) = model.spec.stages
    grid = segmentation.stage_grids["all"]
    plan = stage_plan(stage, grid)
    image = plan.pad(stage_input(volume, stage, grid), 0.0)
    total, square = torch.zeros(plan.padded_shape), torch.zeros(plan.padded_shape)
    for box in plan.boxes:
        with torch.no_grad():
            p = torch.sigmoid(logit_margin(run_network(model.members(stage)[0], image[box], stage), stage, "liver"))
        total[box] += plan.weight(box) * p
        square[box] += plan.weight(box) * p**2
    expected = plan.unpad((square - total**2).clamp_min(0).sqrt())
    place = segmentation.probabilities["liver"].grid
    np.testing.assert_allclose(result.disagreement.array, resample(expected, grid, place), atol=2e-3)
    assert result.disagreement.array.max() > 0.02


def test_networks_that_disagree_are_compared_lesion_by_lesion():
    model = an_ensemble()
    volume, segmentation = two_lesion_case(model)
    result = measure_uncertainty(volume, model, segmentation, device="cpu")
    assert result.sources == ("networks",)
    (stage,) = model.spec.stages
    masks = []
    for network in model.members(stage):
        alone = segment(volume, changed(model, [network]), device="cpu")
        image = stage_input(volume, stage, alone.stage_grids["all"])
        with torch.no_grad():
            masks.append((logit_margin(run_network(network, image, stage), stage, "tumor") > 0).numpy())
    expected = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    assert result.pairwise_dice == pytest.approx(expected, abs=1e-3)
    assert 0.2 < result.pairwise_dice < 1
    # The twin may find another lesion in addition to these two.
    for lesion, place in zip(result.lesions[:2], LESIONS_LPS, strict=True):
        k, j, i = np.indices(volume.shape)
        lps = volume.grid.to_lps(np.stack([i, j, k], axis=-1))
        near = np.linalg.norm(lps - place, axis=-1) < 18
        a, b = (mask & near for mask in masks)
        assert lesion.pairwise_dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=0.05)


def test_a_checked_analysis_says_how_sure_the_model_is_of_each_lesion():
    model = an_ensemble()
    volume, segmentation = two_lesion_case(model)
    provenance = analyze(volume, model, targets=[], check=True, device="cpu").provenance
    assert json.loads(json.dumps(provenance["uncertainty"])) == provenance["uncertainty"]
    expected = measure_uncertainty(volume, model, segmentation, device="cpu")
    assert provenance["uncertainty"]["sources"] == ["networks"]
    assert provenance["uncertainty"]["pairwise_dice"] == pytest.approx(expected.pairwise_dice, abs=1e-4)
    for said, lesion in zip(provenance["uncertainty"]["lesions"], expected.lesions, strict=True):
        assert said == pytest.approx(vars(lesion), abs=1e-4)
    assert analyze(volume, model, targets=[], device="cpu").provenance["uncertainty"] is None


def test_mirrorings_that_the_card_allows_are_passes_of_their_own():
    model = changed(trained_model(), window=(24, 28, 44), mirror_axes=(0, 2))
    volume, segmentation = two_lesion_case(model)
    result = measure_uncertainty(volume, model, segmentation, device="cpu")
    assert result.sources == ("mirrorings",)
    assert 0.5 < result.pairwise_dice < 1
    assert 0 < result.disagreement.array.max() <= 0.5


def test_a_lesion_s_numbers_are_those_of_its_probabilities():
    model = changed(trained_model(), window=(24, 28, 44))
    volume, segmentation = two_lesion_case(model)
    probability = np.zeros(volume.shape)
    part = segmentation.probabilities["tumor"]
    k, j, i = np.rint(volume.grid.to_ijk(part.grid.origin)).astype(int)[::-1]
    probability[k : k + part.shape[0], j : j + part.shape[1], i : i + part.shape[2]] = part.array
    for lesion in measure_uncertainty(volume, model, segmentation, device="cpu").lesions:
        mask = lesion_components(segmentation) == lesion.number
        assert lesion.mean_probability == pytest.approx(probability[mask].mean(), abs=1e-3)
        padded = np.pad(mask, 1)
        shifted = [np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (-1, 1)]
        border = np.logical_or.reduce([mask, *shifted]) & ~np.logical_and.reduce([mask, *shifted])
        p = np.clip(probability[border], 1e-6, 1 - 1e-6)
        expected = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean()
        assert lesion.boundary_entropy == pytest.approx(expected, abs=0.02)
        assert 0.1 < lesion.boundary_entropy < 1


def test_questions_without_an_answer_are_refused():
    model = changed(trained_model(), window=(24, 28, 44))
    volume, segmentation = two_lesion_case(model)
    bare = Segmentation(segmentation.labels, segmentation.specs)
    with pytest.raises(UsageError, match="no probabilities"):
        measure_uncertainty(volume, model, bare, device="cpu")
    nothing = replace(segmentation, labels=volume.with_array(np.zeros(volume.shape, np.uint8)))
    with pytest.raises(EmptyTargetError):
        measure_uncertainty(volume, model, nothing, device="cpu")
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        measure_uncertainty(volume, model, segmentation, device="cpu", cancel=token)


def test_masks_of_all_passes_are_compared_in_pairs_and_empty_ones_agree():
    votes = np.zeros((3, 1, 2, 4), bool)
    votes[0, 0, 0, :3] = votes[1, 0, 0, 1:] = votes[2, 0, 1, :2] = True
    assert _pairwise_dice(votes) == pytest.approx((2 * 2 / 6 + 0 + 0) / 3)
    assert _pairwise_dice(votes[:2]) == pytest.approx(2 * 2 / 6)
    assert _pairwise_dice(np.zeros((2, 1, 1, 4), bool)) == 1


@pytest.mark.parametrize("sources", [("windows", "networks"), ()])
def test_the_numbers_are_told_to_four_decimals_and_none_where_nothing_was_averaged(sources):
    disagreement = Volume(np.array([[[0.1, 0.43216, 0.2]]], np.float32), np.eye(4))
    lesions = (LesionUncertainty(1, 0.91236, 0.12344, 0.76543), LesionUncertainty(2, 0.5, 1.0, None))
    dice = 0.87654 if sources else None
    assert json.loads(json.dumps(Uncertainty("tumor", disagreement, sources, dice, lesions).to_dict())) == {
        "label": "tumor",
        "sources": list(sources),
        "largest_disagreement": 0.4322 if sources else None,
        "pairwise_dice": 0.8765 if sources else None,
        "lesions": [
            {"number": 1, "mean_probability": 0.9124, "boundary_entropy": 0.1234, "pairwise_dice": 0.7654},
            {"number": 2, "mean_probability": 0.5, "boundary_entropy": 1.0, "pairwise_dice": None},
        ],
    }


def test_the_entropy_map_shows_the_least_certain_label_in_its_place():
    labels = Volume(np.zeros((3, 4, 5), np.uint8), np.diag([1.0, 2.0, 3.0, 1.0]))
    liver, tumor = np.full((3, 4, 5), 0.9), np.full((1, 2, 2), 0.5)
    liver[0, 0, :2] = 0, 1
    tumor[0, 0] = 0.99, 0.25
    place = labels.grid.cropped(Box.between((1, 1, 2), (2, 3, 4)))
    probabilities = {"liver": labels.with_array(liver), "tumor": Volume(tumor, place.ijk_to_lps)}
    segmentation = Segmentation(labels, (LIVER, TUMOR), probabilities)
    expected = np.full((3, 4, 5), entropy([0.1, 0.9], base=2))
    expected[0, 0, :2] = 0
    expected[1, 1, 3], expected[1, 2, 2:4] = entropy([0.25, 0.75], base=2), 1
    found = entropy_map(segmentation)
    np.testing.assert_allclose(found.array, expected, atol=1e-3)
    np.testing.assert_array_equal(found.ijk_to_lps, labels.ijk_to_lps)
    only = entropy_map(replace(segmentation, probabilities={"tumor": probabilities["tumor"]}))
    assert np.count_nonzero(only.array) == 4
    assert entropy_map(replace(segmentation, probabilities={})) is None
