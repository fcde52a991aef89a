# SPDX-License-Identifier: Apache-2.0
"""The faithfulness card measures what it says, and tells trustworthy maps from those that are not."""

from __future__ import annotations

import copy
import json
from functools import cache

import numpy as np
import pytest
import torch
from explain_toys import trained_model, two_lesion_case
from scipy.stats import spearmanr

from LiverXAILib.errors import Cancelled
from LiverXAILib.explain import METHODS, Target, explain, explain_all
from LiverXAILib.explain.faithfulness import Examination, check_faithfulness, energy_lift, spearman
from LiverXAILib.explain.run import StageRun, ask
from LiverXAILib.explain.stitching import stage_maps
from LiverXAILib.models import Model
from LiverXAILib.progress import CancelToken


@cache
def a_question(text="lesion:1"):
    model = trained_model()
    volume, segmentation = two_lesion_case(model)
    run = StageRun.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    return run, ask(Target.parse(text), segmentation, model, run)


@cache
def an_examination():
    return Examination(*a_question())


@cache
def a_card(method, layer="decoder.0"):
    run, question = a_question()
    (result,) = stage_maps(run, [question], METHODS[method], layer)
    return check_faithfulness(run, question, METHODS[method], layer, result.values, examination=an_examination())


def shuffled_model():
    """The trained model with the values of every weight tensor permuted: it has learned nothing."""
    trained = trained_model()
    (network,) = trained.members(trained.spec.stages[0])
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        flat = parameter.data.flatten()
        parameter.data = flat[torch.randperm(flat.numel(), generator=generator)].reshape(parameter.shape)
    return Model(trained.spec, {"all": [network]})


def test_a_place_specific_map_of_a_trained_network_passes():
    card = a_card("hires-cam")
    assert card["passed"]
    assert card["sentence"].startswith("This map passed")
    assert card["curves"]["gain"] > max(card["controls"][name]["gain"] for name in ("edges", "smooth noise"))
    assert card["curves"]["gain"] > card["controls"]["shuffled network"]["gain"]
    assert card["energy_lift"] > 5
    assert card["context"]["lost_without_target"] > 0.9
    assert card["context"]["lost_without_surroundings"] < 0.1


def test_a_map_that_ignores_the_weights_does_not_pass():
    """LayerCAM takes the positive gradients alone: on this network its map hardly changes with the weights."""
    card = a_card("layer-cam")
    assert card["randomization"]["spearman"][-1] > 0.5
    assert not card["passed"]
    assert "does not show what the network learned" in card["sentence"]


def test_no_map_of_a_network_that_learned_nothing_passes():
    volume, segmentation = two_lesion_case(trained_model())
    for method in ("hires-cam", "seg-xres-cam", "layer-cam"):
        card = explain(
            volume, shuffled_model(), segmentation, "lesion:1", method, "decoder.0", device="cpu", check=True
        ).faithfulness
        assert not card["passed"]
        assert "did not pass" in card["sentence"]


def test_the_card_is_plain_data_and_the_same_every_time():
    run, question = a_question()
    (result,) = stage_maps(run, [question], METHODS["hires-cam"], "decoder.0")
    again = check_faithfulness(run, question, METHODS["hires-cam"], "decoder.0", result.values)
    drop = ("seconds", "passes")
    first, second = ({k: v for k, v in card.items() if k not in drop} for card in (a_card("hires-cam"), again))
    assert json.loads(json.dumps(first)) == second


def test_the_examined_network_is_left_as_it_was():
    run, _ = a_question()
    before = {name: value.clone() for name, value in run.networks[0].state_dict().items()}
    a_card("seg-xres-cam")
    after = run.networks[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in run.networks[0].modules())


def test_deletion_and_insertion_change_the_highest_ranked_voxels():
    exam = an_examination()
    values = torch.rand(exam.run.image.shape, generator=torch.Generator().manual_seed(3))
    curves = exam.curves(values)
    assert len(curves["fractions"]) == len(curves["deletion"]) == len(curves["insertion"])
    assert curves["fractions"][0] == 0
    assert curves["fractions"][-1] == 1
    np.testing.assert_allclose(curves["fractions"], np.linspace(0, 1, len(curves["fractions"])) ** 3, atol=1e-6)
    assert curves["deletion"][0] == curves["insertion"][-1] == pytest.approx(exam.intact, abs=1e-5)
    assert curves["deletion"][-1] == curves["insertion"][0] == pytest.approx(exam.erased, abs=1e-5)
    # One point of each, by hand: the voxels above the quantile, the mean tumor probability over the target.
    point = 4
    limit = np.quantile(values.numpy(), 1 - curves["fractions"][point])
    top = values.numpy() > limit
    run, question = a_question()
    blurred = run.blurred[exam.box].numpy()
    image = exam.run.image.numpy()
    weights = exam.question.weights[0].numpy() / float(exam.question.weights.sum())
    for name, changed in (("deletion", np.where(top, blurred, image)), ("insertion", np.where(top, image, blurred))):
        with torch.no_grad():
            logits = run.networks[0](torch.from_numpy(changed)[None, None])[0].numpy()
        probability = np.exp(logits[2]) / np.exp(logits).sum(axis=0)
        assert curves[name][point] == pytest.approx(float((probability * weights).sum()), abs=2e-4)
    for name in ("deletion", "insertion"):
        area = np.trapezoid(curves[name], dx=1 / (len(curves[name]) - 1))
        assert curves[f"{name}_auc"] == pytest.approx(area, abs=1e-4)
    assert question.target == Target.parse("lesion:1")


def test_a_perfect_map_gains_more_than_a_reversed_one():
    exam = an_examination()
    target = exam.question.weights[0]
    nearby = -torch.nn.functional.avg_pool3d(-target[None], 5, 1, 2)[0]
    assert exam.curves(nearby)["gain"] > 0.3
    assert exam.curves(-nearby)["gain"] < -0.3


def test_rank_correlation_agrees_with_scipy():
    random = torch.Generator().manual_seed(0)
    first = torch.rand((9, 10, 11), generator=random)
    second = (first + 0.5 * torch.rand((9, 10, 11), generator=random)).mul(10).round()
    assert spearman(first, second) == pytest.approx(spearmanr(first.flatten(), second.flatten()).statistic, abs=0.01)
    assert spearman(first, first) == 1
    assert spearman(first, torch.ones_like(first)) == 0
    # Empty space that both maps share is no agreement.
    padded = [torch.nn.functional.pad(values, (20, 20)) for values in (first, 1.01 - first)]
    assert spearman(*padded) < -0.99


def test_energy_lift_is_the_share_of_the_map_over_the_share_of_the_volume():
    run, question = a_question()
    level = torch.ones(run.plan.padded_shape)
    assert energy_lift(level, run, question) == pytest.approx(1.0, abs=1e-3)
    inside = torch.zeros(run.plan.padded_shape)
    inside[question.box] = (question.weights[0] > 0).float()
    volume = float(inside.sum()) / np.prod(run.plan.shape)
    assert energy_lift(inside, run, question) == pytest.approx(1 / volume, rel=1e-3)
    assert energy_lift(-inside, run, question) == 0


@pytest.mark.parametrize("check", [False, True])
def test_cancelling_stops_at_once(check):
    model = trained_model()
    volume, segmentation = two_lesion_case(model)
    token = CancelToken()
    seen = []

    def progress(stage, fraction):
        seen.append((stage, fraction))
        if len(seen) == 1 + 7 * check:
            token.cancel()

    targets = ["lesion:1", "lesion:2", "liver"]
    with pytest.raises(Cancelled):
        explain_all(volume, model, segmentation, targets, device="cpu", check=check, progress=progress, cancel=token)
    assert len(seen) <= 2 + 7 * check


def test_progress_grows_to_one():
    model = trained_model()
    volume, segmentation = two_lesion_case(model)
    seen = []
    explain(
        volume,
        model,
        segmentation,
        "lesion:2",
        "hires-cam",
        device="cpu",
        check=True,
        progress=lambda stage, fraction: seen.append(fraction),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(seen) > 50
