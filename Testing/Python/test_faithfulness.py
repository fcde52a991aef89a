# SPDX-License-Identifier: Apache-2.0
"""The faithfulness card measures what it claims to, and separates trustworthy maps from others."""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import cache

import numpy as np
import pytest
import torch
from explain_toys import trained_model, two_lesion_case, two_lesion_truth, unfolded_network, with_labels
from scipy.stats import spearmanr
from toys import ball_phantom, model_of, threshold_model

from LiverXAILib.errors import Cancelled
from LiverXAILib.explain import METHODS, Target, explain, explain_all
from LiverXAILib.explain.faithfulness import DRAWS, FaithfulnessEvaluator, check_faithfulness, energy_lift
from LiverXAILib.explain.faithfulness.randomization import shuffled_networks, spearman
from LiverXAILib.explain.faithfulness.verdict import two_digits, verdict_and_sentence
from LiverXAILib.explain.score import build_score
from LiverXAILib.explain.stage_context import StageContext, StageMap
from LiverXAILib.explain.stitching import stage_maps
from LiverXAILib.inference import Segmentation, segment
from LiverXAILib.models import LIVER, TUMOR, LayerSpec, Model
from LiverXAILib.progress import CancelToken
from LiverXAILib.volumes.volume import Grid, Volume


@cache
def a_question(text="lesion:1"):
    model = trained_model()
    volume, segmentation = two_lesion_case(model)
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    return run, build_score(Target.parse(text), segmentation, model, run)


@cache
def an_examination():
    return FaithfulnessEvaluator(*a_question(), points=5)


@cache
def a_blurred_examination():
    return FaithfulnessEvaluator(*a_question(), points=5, baseline="blur")


def examined(evaluator, method, layer="decoder.0"):
    """The card of one map of the window, as the benchmark makes it."""
    method = METHODS[method]
    shuffled = {
        share: [evaluator.map(method, layer, networks)] for share, networks in shuffled_networks(evaluator.run, 2)
    }
    for draw in range(1, 3):
        ((_, networks),) = shuffled_networks(evaluator.run, 1, draw)
        shuffled[1.0].append(evaluator.map(method, layer, networks))
    trained, noisy = evaluator.map(method, layer), evaluator.map(method, layer, noise=True)
    controls = {"shuffled network": evaluator.curves(shuffled[1.0][0])}
    lift = energy_lift(trained, evaluator.run, evaluator.score_target)
    return evaluator.evaluate(trained, trained, shuffled, noisy, lift, controls=controls)


@cache
def a_card(method):
    return examined(an_examination(), method)


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


def test_a_map_that_looks_alike_with_shuffled_weights_is_reported_and_not_refused_for_that():
    """LayerCAM uses only positive gradients: on this network its map hardly changes with the weights."""
    card = a_card("layer-cam")
    assert card["randomization"]["spearman"][-1] > 0.5
    drop, controls = card["drop"]["share"], card["drop"]["controls"]
    better = drop >= 0.5 and drop > controls["upper"] and card["magnitude"]["energy"] >= 0.5
    assert card["passed"] == better
    assert "rank" not in card["sentence"]


@cache
def a_local_examination():
    """A network that labels each voxel by its own brightness: only the lesion matters for a lesion."""
    model = threshold_model(window=(64, 64, 64))
    volume, _ = ball_phantom(Grid((64, 64, 64), np.diag([2.0, 2.0, 2.0, 1.0])), lesion_mm=10.0)
    noise = np.random.default_rng(0).normal(0, 4, volume.shape)
    volume = volume.with_array(np.rint(volume.array + noise).astype(np.int16))
    segmentation = segment(volume, model, device="cpu")
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    return FaithfulnessEvaluator(run, build_score(Target.parse("lesion:1"), segmentation, model, run), points=4)


def judged(evaluator, values):
    """The card of a given map; the maps of shuffled networks are noise."""
    noise = [torch.rand(values.shape, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    return evaluator.evaluate(values, values, {1.0: noise}, values, 1.0)


@pytest.mark.parametrize("change", [torch.clone, torch.round, torch.relu], ids=["distinct", "ties", "mostly 0"])
def test_the_highest_voxels_are_the_first_of_the_ranking(change):
    evaluator = a_local_examination()
    values = change(torch.randn((6, 7, 8), generator=torch.Generator().manual_seed(0)))
    ranking = evaluator._ranking(values)
    for count in (0, 1, 40, 200, 335, 336, 400):
        found = evaluator._highest(values, count)
        assert found.shape == values.shape
        assert set(found.flatten().nonzero().flatten().tolist()) == set(ranking[:count].tolist())


def test_the_exact_map_of_a_local_network_passes():
    evaluator = a_local_examination()
    card = judged(evaluator, (evaluator.score_target.weights[0] > 0).float())
    assert card["verdict"] == "passed"
    assert card["drop"]["share"] > 0.95
    assert card["drop"]["controls"]["upper"] < 0.5
    assert card["magnitude"]["energy"] == 1
    assert card["magnitude"]["radius_mm"] == 0
    assert "whether the model is right about the patient is another question" in card["sentence"]


def test_a_map_with_nearly_all_of_its_energy_elsewhere_does_not_pass_though_it_ranks_the_cause_first():
    evaluator = a_local_examination()
    cause = evaluator.score_target.weights[0] > 0
    values = torch.where(cause, 1.0, 0.999)
    values *= torch.where(cause, 1.0, 0.92 / 0.08 * float(cause.sum()) / 0.999 / float((~cause).sum()))
    values[cause] = values[~cause].max() * 1.001
    card = judged(evaluator, values)
    assert card["drop"]["share"] > 0.95
    assert card["magnitude"]["energy"] < 0.2
    assert card["verdict"] == "failed"
    assert "of it lies in the" in card["sentence"]


def test_a_map_beside_the_cause_does_not_pass():
    evaluator = a_local_examination()
    values = (evaluator.score_target.weights[0] > 0).float().roll((14, 0, 0), (0, 1, 2))
    card = judged(evaluator, values)
    assert card["verdict"] == "failed"
    assert card["drop"]["share"] < 0.1


def test_a_box_in_which_the_model_says_something_else_than_in_the_image_is_enlarged_or_refused():
    """A ball is a tumor only if there is a marker far away: a box without it would give another result."""
    evaluator = a_far_examination(marker=True)
    assert evaluator.depends_on_far == ""
    assert evaluator.box.shape == evaluator.whole.plan.boxes[0].shape
    assert evaluator.intact == pytest.approx(evaluator.in_image, abs=0.01)


class Marker(torch.nn.Module):
    """A tumor at a fixed place, a cube of 8 mm, if anything in the image is brighter than a limit."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        tumor = torch.full_like(x, -10.0)
        gate = (x.amax(dim=(2, 3, 4)) > self.limit).float()[:, :, None, None, None]
        tumor[:, :, 14:18, 22:26, 22:26] = 12 * gate - 8
        return torch.cat([(x - 50) / 10, tumor], dim=1)


def a_marked_examination(limit):
    """Noisy liver with a marker of 290 HU, 12 mm (six voxels) from the place."""
    volume, _ = ball_phantom(Grid((32, 48, 48), np.diag([2.0, 2.0, 2.0, 1.0])), lesion_mm=0.0)
    array = np.rint(volume.array + np.random.default_rng(0).normal(0, 4, volume.shape)).astype(np.int16)
    array[15, 24, 31] = 290
    volume = volume.with_array(array)
    model = model_of([vars(threshold_model(window=(32, 48, 48)).spec.stages[0])], {"all": [Marker(limit)]})
    segmentation = segment(volume, model, device="cpu")
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    return FaithfulnessEvaluator(run, build_score(Target.parse("lesion:1"), segmentation, model, run), points=4)


def test_the_region_of_the_effect_reaches_as_far_as_what_the_answer_depends_on():
    evaluator = a_marked_examination(250)
    region = evaluator.region
    assert region["radius_mm"] == 16
    assert region["effect"] == pytest.approx(1, abs=0.01)
    index = np.stack(np.indices((32, 48, 48)), axis=-1)
    outside = np.maximum(0, np.maximum((14, 22, 22) - index, index - (17, 25, 25)))
    ml = (2 * np.linalg.norm(outside, axis=-1) <= 16).sum() * 0.008
    assert region["ml"] == pytest.approx(ml, abs=0.01)
    assert evaluator.context["lost_without_surroundings"] == pytest.approx(1, abs=0.01)
    assert evaluator.context["lost_without_target"] == pytest.approx(0, abs=0.01)


def test_an_answer_that_nothing_changes_cannot_be_tested():
    evaluator = a_marked_examination(-1000)
    values = (evaluator.score_target.weights[0] > 0).float()
    assert evaluator.drop(values)["share"] == 0
    assert evaluator.curves(values)["gain"] == 0
    assert evaluator.region["radius_mm"] is None
    assert evaluator.region["mask"].all()
    assert evaluator.verdict(values, list)["verdict"] == "untestable"


def test_a_small_target_is_in_the_middle_of_its_box_in_any_window():
    model = threshold_model(window=(24, 24, 24))
    volume = Volume(np.zeros((60, 60, 60), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    labels = np.zeros(volume.shape, np.uint8)
    labels[23:25, 37:39, 35:37] = 2
    segmentation = Segmentation(volume.with_array(labels), (LIVER, TUMOR))
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    question = build_score(Target.parse("tumor"), segmentation, model, run)
    assert min(side.start for side in run.plan.boxes[question.focus]) > 0
    _, inside, box = question.in_focus(run, 24.0, 6.0)
    assert [(side.start, side.stop) for side in box] == [(20, 28), (34, 42), (32, 40)]
    assert torch.nonzero(inside.weights[0]).double().mean(dim=0).tolist() == [3.5, 3.5, 3.5]


class FirstSlices(torch.nn.Module):
    """Bright voxels are tumor, with a logit of 4 or of -4, if the first slices of the window show 290 HU or not."""

    def forward(self, x):
        gate = (x[:, :, :2].amax(dim=(2, 3, 4), keepdim=True) > 250).float()
        return torch.cat([(x - 50) / 10, torch.where(x > 150, 8 * gate - 4, -10.0)], dim=1)


def test_where_no_part_of_the_image_gives_the_answer_of_the_whole_nothing_is_said_about_the_map():
    """Only the first of two windows that share the lesion shows the marker, so their blend is less certain."""
    array, labels = np.full((36, 48, 48), 100, np.int16), np.ones((36, 48, 48), np.uint8)
    array[0, 0, 0] = 290
    array[17:19, 22:26, 22:26] = 200
    labels[17:19, 22:26, 22:26] = 2
    volume = Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]))
    model = model_of([vars(threshold_model(window=(24, 48, 48)).spec.stages[0])], {"all": [FirstSlices()]})
    segmentation = with_labels(volume, model, volume.with_array(labels))
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    evaluator = FaithfulnessEvaluator(run, build_score(Target.parse("lesion:1"), segmentation, model, run), points=4)
    assert evaluator.intact == pytest.approx(0.98, abs=0.01)
    card = evaluator.verdict((evaluator.score_target.weights[0] > 0).float(), list)
    assert card["verdict"] == "untestable"
    # Of the two slices, the first window decides 79 % and half.
    one, other = 1 / (1 + np.exp(-4 * (2 * 0.791 - 1))), 0.5
    assert card["score_in_image"] == pytest.approx((0.791 * one + 0.5 * other) / 1.291, abs=0.002)
    assert "its confidence is 0.75 in the whole image, but 0.98 in the part of it that can be" in card["sentence"]


class FarGate(torch.nn.Module):
    """Bright voxels are tumor if the first slice contains the marker, 400 HU."""

    def forward(self, x):
        gate = (x[:, :, :2].amax(dim=(2, 3, 4), keepdim=True) > 250).float()
        return torch.cat([(x - 50) / 10, gate * 20 - 20 + (x - 150).clamp(max=40) / 10], dim=1)


def a_far_examination(marker):
    base = threshold_model(window=None, divisor=(4, 4, 4)).spec.stages[0]
    model = model_of([{name: getattr(base, name) for name in vars(base)}], {"all": [FarGate()]})
    volume, _ = ball_phantom(Grid((120, 48, 48), np.diag([2.0, 2.0, 2.0, 1.0])), lesion_mm=10.0)
    array = np.rint(volume.array + np.random.default_rng(0).normal(0, 4, volume.shape)).astype(np.int16)
    array[0, 20:24, 20:24] = 300 if marker else 0
    volume = volume.with_array(array)
    segmentation = segment(volume, model, device="cpu")
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    evaluator = FaithfulnessEvaluator(run, build_score(Target.parse("lesion:1"), segmentation, model, run), points=4)
    evaluator.whole = run
    return evaluator


A_CARD = {
    "score": 0.92,
    "score_replaced": 0.02,
    "drop": {
        "ml": 4.2,
        "after": 0.05,
        "share": 0.97,
        "controls": {"draws": {"edges": [0.1], "random places": [0.2, 0.4]}, "median": 0.2, "upper": 0.4},
    },
    "magnitude": {"radius_mm": 4.0, "ml": 6.0, "effect": 0.95, "energy": 0.8},
}


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "passed", "replacing the 4.2 ml that it marks most takes the model's confidence from 0.92 to 0.05"),
        ({"drop": {"after": 0.94, "share": -0.02}}, "failed", "from 0.92 to 0.94, where replacing everything"),
        ({"drop": {"share": 0.6, "controls": {"median": 0.7, "upper": 0.9}}}, "failed", "as well"),
        ({"drop": {"share": 0.8, "controls": {"median": 0.7, "upper": 0.9}}}, "undecided", "a quarter of the controls"),
        ({"magnitude": {"energy": 0.08}}, "failed", "only 8% of it lies in the 6 ml that 95% of the effect comes from"),
        ({"score_replaced": 0.9}, "untestable", "even replacing everything"),
        ({"score_replaced": 0.86}, "passed", "from 0.92 to 0.05"),
        ({"drop": {"share": 0.5}}, "passed", "(50% of what replacing everything does)"),
        ({"drop": {"share": 0.49}}, "failed", "where replacing everything takes it to 0.02"),
        ({"drop": {"share": 0.6, "controls": {"median": 0.6, "upper": 0.6}}}, "failed", "as well"),
        ({"drop": {"share": 0.6, "controls": {"median": 0.5, "upper": 0.6}}}, "undecided", "get 60% or more"),
        ({"drop": {"controls": {"median": -0.2, "upper": -0.1}}}, "passed", "nothing get 0% or less"),
        ({"magnitude": {"energy": 0.5}}, "passed", "three quarters of the controls that explain nothing get 40% or"),
        ({"magnitude": {"energy": 0.49}}, "failed", "only 49% of it lies"),
        ({"drop": {"share": 0.4}, "magnitude": {"energy": 0.3}}, "failed", "takes it to 0.02; only 30% of it lies"),
    ],
)
def test_verdict_and_sentence_come_from_the_same_numbers(changes, verdict, words):
    card = copy.deepcopy(A_CARD)
    for name, value in changes.items():
        if isinstance(value, dict):
            controls = {**card[name].get("controls", {}), **value.get("controls", {})}
            card[name] = {**card[name], **value, **({"controls": controls} if controls else {})}
        else:
            card[name] = value
    found, sentence = verdict_and_sentence(card, empty=False, warned=False, depends_on_far="")
    assert found == verdict
    assert words in sentence
    assert verdict_and_sentence(card, empty=False, warned=False, depends_on_far="it is far.")[0] == "untestable"
    assert (verdict_and_sentence(A_CARD, empty=True, warned=False, depends_on_far=""))[0] == "failed"
    assert (verdict_and_sentence(A_CARD, empty=False, warned=True, depends_on_far=""))[0] == "failed"


def test_no_map_of_a_network_that_learned_nothing_passes():
    """This tests the claim that a passing map depends on what the network has learned."""
    _, segmentation = two_lesion_case(trained_model())
    volume, _ = two_lesion_case(trained_model())
    model = shuffled_model()
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    evaluator = FaithfulnessEvaluator(run, build_score(Target.parse("lesion:1"), segmentation, model, run), points=4)
    for method in ("hires-cam", "seg-xres-cam", "layer-cam"):
        card = examined(evaluator, method)
        assert card["verdict"] in ("failed", "untestable")
        assert not card["passed"]


def test_the_sentence_says_in_numbers_what_was_tested():
    card = a_card("hires-cam")
    first, second = card["score"], card["drop"]["after"]
    assert first > 0.6 > 0.2 > second
    assert f"takes the model's confidence from {first:.2f} to {second:.2f}" in card["sentence"]
    volume = float(card["sentence"].split("replacing the ")[1].split(" ml")[0])
    target = float((an_examination().score_target.weights.abs().sum(dim=0) > 0).sum())
    assert volume == pytest.approx(target * 0.008, rel=0.05)
    assert "whether the model is right about the patient" in card["sentence"]
    assert card["examined_ml"] == pytest.approx(np.prod(an_examination().run.image.shape) * 0.008, abs=0.1)


def test_volumes_are_written_for_people():
    assert [two_digits(ml) for ml in (0.4213, 4.213, 42.13, 264.7, 1531.0)] == ["0.42", "4.2", "42", "260", "1500"]


def test_a_map_with_a_warning_does_not_pass():
    evaluator = an_examination()
    method = METHODS["seg-grad-cam"]
    (result,) = stage_maps(evaluator.run, [evaluator.score_target], method, "decoder.1")
    assert "copy of the network's score" in result.warnings[0]
    values = result.values.clamp_min(0)
    lift = energy_lift(values, evaluator.run, evaluator.score_target)
    card = evaluator.evaluate(values, values, {1.0: [-values]}, values, lift, warned=True)
    assert not card["passed"]
    assert "warning" in card["sentence"]


@cache
def an_explanation():
    """A map with its card as for a user, and the reported progress."""
    model = trained_model()
    volume, segmentation = two_lesion_case(model)
    seen = []
    explanation = explain(
        volume,
        model,
        segmentation,
        "lesion:1",
        "hires-cam",
        device="cpu",
        check=True,
        progress=lambda step, fraction: seen.append(fraction),
    )
    return explanation, seen


def test_explanations_come_with_their_card():
    explanation, seen = an_explanation()
    card = explanation.faithfulness
    assert card["passed"]
    assert json.loads(json.dumps(card)) == card
    assert set(card["controls"]) == {"logit map", "edges", "smooth noise", "shuffled network"}
    assert card["randomization"]["shuffled_layers"] == [0.25, 0.5, 0.75, 1.0]
    drop, curves, context = card["drop"], card["curves"], card["context"]
    stability, magnitude = card["stability"], card["magnitude"]
    recorded = {
        1: (card["examined_ml"], card["seconds"]),
        2: (magnitude["ml"],),
        3: (drop["ml"], card["energy_lift"]),
        4: (
            *(drop["share"], drop["controls"]["median"], drop["controls"]["upper"], curves["gain"]),
            *(*context.values(), stability["spearman"], stability["relative_change"]),
            *(magnitude["effect"], magnitude["energy"]),
        ),
        5: (
            *(card["score"], card["score_replaced"], card["score_in_image"], drop["after"]),
            *(*curves["deletion"], *curves["insertion"], curves["deletion_auc"], curves["insertion_auc"]),
        ),
        6: tuple(curves["fractions"]),
    }
    for digits, values in recorded.items():
        assert [round(value, digits) for value in values] == list(values)
    # Those that are neither whole numbers nor nearly so.
    between = (drop["ml"], *(card[name] for name in ("score", "score_in_image", "energy_lift")), magnitude["energy"])
    for value in (*between, curves["deletion_auc"], curves["insertion_auc"], stability["relative_change"]):
        assert value != round(value)
    assert len(set(card["randomization"]["draws"])) == 5
    assert card["randomization"]["spearman"][-1] == np.median(card["randomization"]["draws"])
    assert len(card["randomization"]["random_pairs"]) == 7
    controls = card["drop"]["controls"]
    draws = controls["draws"]
    assert {kind: len(of_kind) for kind, of_kind in draws.items()} == {
        "edges": 1,
        "random places": 7,
        "shuffled networks": 5,
    }
    assert controls["median"] == pytest.approx(max(np.median(of_kind) for of_kind in draws.values()), abs=1e-4)
    assert controls["upper"] == pytest.approx(max(np.quantile(of_kind, 0.75) for of_kind in draws.values()), abs=1e-4)
    assert card["curves"]["gain"] == pytest.approx(a_card("hires-cam")["curves"]["gain"], abs=0.1)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(seen) > 50


def test_a_map_must_beat_the_map_of_a_typical_shuffled_network():
    """A shuffled network whose map happens to be similar, or the opposite, must not decide."""
    explanation, _ = an_explanation()
    assert explanation.layer == "decoder.0"
    card = explanation.faithfulness
    evaluator = FaithfulnessEvaluator(*a_question())
    method = METHODS["hires-cam"]
    trained, maps = evaluator.map(method, "decoder.0"), {}
    for draw in range(DRAWS):
        ((_, networks),) = shuffled_networks(evaluator.run, 1, draw)
        values = evaluator.map(method, "decoder.0", networks)
        maps[spearman(trained, values)] = values
    assert card["randomization"]["draws"] == pytest.approx(list(maps), abs=1e-3)
    typical, unlike = (evaluator.curves(maps[choose(list(maps))])["gain"] for choose in (np.median, min))
    assert card["controls"]["shuffled network"]["gain"] == pytest.approx(typical, abs=1e-3)
    assert typical != unlike


def test_a_large_target_is_blurred_more_and_examined_in_a_part_of_it():
    # The network's border of the liver depends on the machine it was trained on; the true border does not.
    model = trained_model()
    volume, labels = two_lesion_truth()
    segmentation = with_labels(volume, model, labels)
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    question = build_score(Target.parse("liver"), segmentation, model, run)
    assert a_blurred_examination().blur_mm == 12
    assert "Gaussian of 12 mm" in a_blurred_examination().baseline
    assert "plain tissue of this patient at" in an_examination().baseline
    mask = float((question.weights.abs().sum(dim=0) > 0).sum()) * 8
    evaluator = FaithfulnessEvaluator(run, question, limit_mm=16)
    assert evaluator.blur_mm == pytest.approx(max(12, 0.5 * (mask * 3 / 4 / np.pi) ** (1 / 3)))
    assert evaluator.run.plan.shape == (8, 8, 8)
    assert evaluator.score_target.weights.shape[1:] == (8, 8, 8)
    # Half target, half surroundings: with liver alone there is no contrast to measure.
    asked = evaluator.score_target.weights.abs().sum(dim=0) > 0
    assert 0.4 < float(asked.float().mean()) < 0.6
    assert torch.equal(evaluator.run.image, run.image[evaluator.box])
    # A small target is centered.
    run, question = a_question()
    evaluator = FaithfulnessEvaluator(run, question, limit_mm=40)
    place = torch.nonzero(evaluator.score_target.weights[0] > 0).double().mean(dim=0)
    assert float((place - 9.5).abs().max()) < 3


def test_the_examination_is_the_same_every_time():
    first, second = an_examination(), FaithfulnessEvaluator(*a_question(), points=5)
    assert first.controls == second.controls
    assert torch.equal(first.noisy_run.image, second.noisy_run.image)
    noise = first.noisy_run.hu - first.run.hu
    assert float(noise.std()) == pytest.approx(10, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.2)
    shuffled = [
        next(shuffled_networks(evaluator.run, 1))[1][0].bottleneck[0].weight.detach() for evaluator in (first, second)
    ]
    assert torch.equal(*shuffled)


def test_the_examined_network_is_left_as_it_was():
    run, _ = a_question()
    before = {name: value.clone() for name, value in run.networks[0].state_dict().items()}
    a_card("seg-xres-cam")
    after = run.networks[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in run.networks[0].modules())


def test_deletion_and_insertion_change_the_highest_ranked_voxels():
    evaluator = a_blurred_examination()
    values = torch.rand(evaluator.run.image.shape, generator=torch.Generator().manual_seed(3))
    curves = evaluator.curves(values)
    assert len(curves["fractions"]) == len(curves["deletion"]) == len(curves["insertion"])
    assert curves["fractions"][0] == 0
    assert curves["fractions"][-1] == 1
    np.testing.assert_allclose(curves["fractions"], np.linspace(0, 1, len(curves["fractions"])) ** 3, atol=1e-6)
    assert curves["deletion"][0] == curves["insertion"][-1] == pytest.approx(evaluator.intact, abs=1e-5)
    assert curves["deletion"][-1] == curves["insertion"][0] == pytest.approx(evaluator.erased, abs=1e-5)
    # One point of each curve, by hand: the voxels above the quantile, the mean tumor probability over the target.
    point = 2
    limit = np.quantile(values.numpy(), 1 - curves["fractions"][point])
    top = values.numpy() > limit
    run, question = a_question()
    blurred = run.blurred[evaluator.box].numpy()
    image = evaluator.run.image.numpy()
    weights = evaluator.score_target.weights[0].numpy() / float(evaluator.score_target.weights.sum())
    for name, changed in (("deletion", np.where(top, blurred, image)), ("insertion", np.where(top, image, blurred))):
        with torch.no_grad():
            logits = run.networks[0](torch.from_numpy(changed)[None, None])[0].numpy()
        probability = np.exp(logits[2]) / np.exp(logits).sum(axis=0)
        assert curves[name][point] == pytest.approx(float((probability * weights).sum()), abs=2e-4)
    for name in ("deletion", "insertion"):
        area = np.trapezoid(curves[name], dx=1 / (len(curves[name]) - 1))
        assert curves[f"{name}_auc"] == pytest.approx(area, abs=1e-4)
    assert question.target == Target.parse("lesion:1")


class Confidence(torch.nn.Module):
    """The confidence of an examination, for images as rows of voxels (B, 1, n): (B, 1)."""

    def __init__(self, evaluator):
        super().__init__()
        self.evaluator = evaluator

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        shape = self.evaluator.run.image.shape
        return torch.tensor([[self.evaluator.score(row.reshape(shape))] for row in rows])


def test_deletion_and_energy_agree_with_quantus():
    """An independent implementation of both, https://github.com/understandable-machine-intelligence-lab/Quantus."""
    quantus = pytest.importorskip("quantus")
    evaluator = an_examination()
    image, plain = evaluator.run.image, evaluator._replacement.flatten().numpy()
    values = evaluator.map(METHODS["hires-cam"], "decoder.0").clamp_min(0)
    # All voxels differ: the order of ties would be arbitrary.
    values = values + 1e-4 * values.max() * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    card = evaluator.curves(values)

    def replace(arr, indices, **_):
        changed = arr.copy()
        np.put_along_axis(changed, indices, plain[indices], axis=1)
        return changed

    asked = {
        "x_batch": image.reshape(1, 1, -1).numpy(),
        "y_batch": np.zeros(1, int),
        "a_batch": values.reshape(1, 1, -1).numpy(),
    }
    quiet = {"abs": False, "normalise": False, "disable_warnings": True}
    step = image.numel() // 64  # of five points the n-th stands after n^3 / 64 of the voxels
    flipping = quantus.PixelFlipping(features_in_step=step, perturb_func=replace, perturb_baseline="black", **quiet)
    (curve,) = flipping(model=Confidence(evaluator).eval(), channel_first=True, softmax=False, device="cpu", **asked)
    assert image.numel() % 64 == 0
    np.testing.assert_allclose([curve[n**3 - 1] for n in (1, 2, 3, 4)], card["deletion"][1:], atol=2e-5)
    assert curve[0] < 0.5 * evaluator.intact  # it is a curve, not a line

    region = evaluator.region["mask"]
    accuracy = quantus.RelevanceMassAccuracy(**quiet)
    (energy,) = accuracy(
        model=Confidence(evaluator).eval(), s_batch=region.reshape(1, 1, -1).numpy(), channel_first=True, **asked
    )
    assert judged(evaluator, values)["magnitude"]["energy"] == pytest.approx(energy, abs=1e-4)


def test_a_perfect_map_gains_more_than_a_reversed_one():
    evaluator = an_examination()
    target = evaluator.score_target.weights[0]
    nearby = -torch.nn.functional.avg_pool3d(-target[None], 5, 1, 2)[0]
    assert evaluator.curves(nearby)["gain"] > 0.3
    assert evaluator.curves(-nearby)["gain"] < -0.3


def test_rank_correlation_agrees_with_scipy():
    random = torch.Generator().manual_seed(0)
    first = torch.rand((9, 10, 11), generator=random)
    second = (first + 0.5 * torch.rand((9, 10, 11), generator=random)).mul(10).round()
    assert spearman(first, second) == pytest.approx(spearmanr(first.flatten(), second.flatten()).statistic, abs=0.01)
    assert spearman(first, first) == 1
    # Ties in groups of very different sizes: the mean rank counts, neither the first nor the last.
    steps = torch.tensor([1.0] * 50 + [2.0] * 3 + [3.0] * 20)
    other = torch.tensor([5.0] * 20 + [1.0] * 40 + [9.0] * 13)
    assert spearman(steps, other) == round(float(spearmanr(steps, other).statistic), 4)
    assert spearman(first, torch.ones_like(first)) == 0
    # What only one of the maps marks counts against their agreement.
    one, two = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 2.0, 0.0])
    assert spearman(one, two) == round(float(spearmanr(one[:4], two[:4]).statistic), 4)
    # Empty space that both maps share does not count as agreement.
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

    def progress(step, fraction):
        seen.append((step, fraction))
        if len(seen) == 1 + 7 * check:
            token.cancel()

    targets = ["lesion:1", "lesion:2", "liver"]
    with pytest.raises(Cancelled):
        explain_all(volume, model, segmentation, targets, device="cpu", check=check, progress=progress, cancel=token)
    assert len(seen) <= 2 + 7 * check


@pytest.mark.parametrize("window", [(1, 64, 64), (1, 24, 24)])
def test_for_a_network_of_slices_all_slices_of_the_target_are_examined(window):
    volume, _ = ball_phantom(Grid((40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0])), 34.0, 10.0)
    layers = (LayerSpec("smooth", (1, 1)),)
    model = threshold_model(dimensions=2, window=window, divisor=(1, 4, 4), layers=layers)
    segmentation = segment(volume, model, device="cpu")
    target = Target.parse("lesion:1")
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    question = build_score(target, segmentation, model, run)
    evaluator = FaithfulnessEvaluator(run, question)
    assert question.box.shape[0] > 5
    assert evaluator.box.k.start <= question.box.k.start
    assert evaluator.box.k.stop >= question.box.k.stop
    assert evaluator.intact == pytest.approx(evaluator.in_image, abs=0.01)
    card = explain(volume, model, segmentation, target, check=True, device="cpu").faithfulness
    assert card["magnitude"]["ml"] == pytest.approx(4 / 3 * np.pi, abs=0.3)  # the whole ball
    assert card["magnitude"]["effect"] == pytest.approx(1.0, abs=0.01)


def test_layers_are_shuffled_from_the_last_to_the_first_and_keep_their_values():
    run = dataclasses.replace(a_question()[0], networks=[unfolded_network()])  # batch norms are layers as well
    names = [name for name, module in run.networks[0].named_modules() if list(module.parameters(recurse=False))]
    order = []
    handles = [
        run.networks[0].get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
        for name in names
    ]
    run.network(0, run.image[run.plan.boxes[0]])
    for handle in handles:
        handle.remove()
    before = run.networks[0].state_dict()

    def changed(network):
        return {
            name.rpartition(".")[0] for name, value in network.state_dict().items() if not value.equal(before[name])
        }

    last = order[::-1]
    shares = []
    for number, (share, (network,)) in enumerate(shuffled_networks(run, 3), start=1):
        shares.append(share)
        assert changed(network) == set(last[: round(len(last) * number / 3)])
    assert shares == [0.333, 0.667, 1.0]
    for name, value in network.state_dict().items():
        assert value.flatten().sort().values.equal(before[name].flatten().sort().values)


def test_a_method_without_layers_is_compared_with_one_shuffled_network():
    volume, _ = ball_phantom(Grid((16, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0])), lesion_mm=14.0)
    model = threshold_model(window=(16, 24, 24))
    segmentation = segment(volume, model, device="cpu")
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    question = build_score(Target.parse("tumor"), segmentation, model, run)
    warned = StageMap(run.image, ["It is only the image."])
    card = check_faithfulness(run, question, METHODS["integrated-gradients"], "", warned)
    assert card["randomization"]["shuffled_layers"] == [1.0]
    assert len(card["randomization"]["draws"]) == 1
    assert card["verdict"] == "failed"
    assert "there is a warning about it" in card["sentence"]
