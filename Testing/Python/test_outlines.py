# SPDX-License-Identifier: Apache-2.0
"""Small lesions are refined by a network of their own: what it may change, and what it may not."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from toys import ball_phantom, dice, threshold_model

from LiverXAILib.context import RunContext
from LiverXAILib.errors import Cancelled, ModelError
from LiverXAILib.explain.border import explain_border
from LiverXAILib.explain.counterfactual import explain_lesions
from LiverXAILib.explain.targets import LesionTarget
from LiverXAILib.inference import outline_network as bundled
from LiverXAILib.inference import segment
from LiverXAILib.inference.lesions import candidate_components, grown
from LiverXAILib.inference.masks import Mask
from LiverXAILib.inference.outlines import Marked, outline_again
from LiverXAILib.inference.postprocess import Postprocessing
from LiverXAILib.inference.sensitivity import at_sensitivity
from LiverXAILib.models import Model, ModelSpec, loading, registered
from LiverXAILib.models.registry import About, ChainLink, Entry, Licenses
from LiverXAILib.models.spec import OperatingPoint, OutlineAgain
from LiverXAILib.progress import CancelToken
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.volume import Grid, Volume

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (40, 60, 60)
GRID = Grid(SHAPE, np.diag([1.0, 1.0, 1.5, 1.0]))


class Brighter(nn.Module):
    """An outline network that marks what is brighter than the liver by `hu`; it remembers its input."""

    def __init__(self, hu: float, per_logit: float = 5.0) -> None:
        super().__init__()
        self.hu, self.per_logit, self.seen = hu, per_logit, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return (50 * x[:, :1] - self.hu) / self.per_logit


class Always(nn.Module):
    """An outline network with the same answer everywhere."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x[:, :1], self.logit)


def balls(*places: tuple[float, float, float, float]) -> np.ndarray:
    """A mask of balls: (k, j, i) in voxels and radius in mm."""
    k, j, i = np.indices(SHAPE)
    mask = np.zeros(SHAPE, bool)
    for a, b, c, radius in places:
        mask |= (1.5 * (k - a)) ** 2 + (j - b) ** 2 + (i - c) ** 2 <= radius**2
    return mask


def marked(lesion: np.ndarray, wide: np.ndarray, *, probability: float = 0.99, counted: bool = True) -> Marked:
    """A liver that fills the image, with bright lesions that a model marks too widely."""
    hu = np.where(lesion, 200.0, 100.0).astype(np.float32)
    found = Volume(np.where(wide, probability, 0.0).astype(np.float16), GRID.ijk_to_lps)
    whole = Box.full(SHAPE)
    lesions = wide if counted else np.zeros_like(wide)
    return Marked(Volume(hu, GRID.ijk_to_lps), Mask(whole, np.ones(SHAPE, bool)), Mask(whole, lesions), found, 100.0)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_fainter_components_are_those_that_hold_no_stronger_one():
    probability = np.zeros(SHAPE)
    sure, halo = np.s_[5:9, 5:9, 5:9], np.s_[9:11, 5:9, 5:9]
    # Two parts that touch at a corner, and are large enough only together.
    first, second, beside = np.s_[20:22, 20:23, 20:23], np.s_[22:24, 23:26, 23:26], np.s_[24:26, 23:26, 23:26]
    speck, faintest = np.s_[20:22, 40:43, 40:43], np.s_[30:34, 40:44, 40:44]
    for place, value in ((sure, 0.9), (halo, 0.3), (first, 0.3), (second, 0.3), (beside, 0.15), (speck, 0.3)):
        probability[place] = value
    probability[faintest] = 0.15
    known = dataclasses.replace(
        marked(probability > 2, probability > 2), probability=Volume(probability, GRID.ijk_to_lps)
    )
    middles = [[6.5, 6.5, 6.5], [21.5, 22.5, 22.5], [31.5, 41.5, 41.5]]
    for fainter, count in (((), 1), ((0.25,), 2), ((0.25, 0.1), 3)):
        found = list(known.components(fainter))
        assert [one.number for one in found] == [1, 2, 3][:count]
        np.testing.assert_allclose([GRID.to_ijk(one.center_lps_mm)[::-1] for one in found], middles[:count])
    expected = np.zeros(SHAPE, int)
    for number, place in ((1, sure), (2, first), (2, second), (3, faintest)):
        expected[place] = number
    np.testing.assert_array_equal(found[0].numbers, expected)


def test_a_lesion_marked_too_widely_gets_the_outline_of_the_network():
    truth, wide = balls((20, 30, 30, 6)), balls((20, 30, 30, 9))
    network = Brighter(50)
    found, probability, counts = outline_again(marked(truth, wide), 0.9, network, RunContext())
    assert counts == {"examined": 1, "outlined": 1}
    assert dice(wide, truth) < 0.5
    assert dice(found.voxels, truth) > 0.95
    np.testing.assert_array_equal(probability.array > 0.5, found.voxels)
    (image,) = network.seen
    assert image.shape == (1, bundled.CHANNELS, *(bundled.SIZE,) * 3)
    assert not image[:, 2:4].any()  # no clicks
    assert image[0, 4].max() == pytest.approx(0.99, abs=1e-3)


@pytest.mark.parametrize(("per_logit", "certainty", "counts"), [(50.0, 1.0, False), (5.0, 7.0, True)])
def test_a_candidate_becomes_a_lesion_if_the_network_is_sure_enough_of_it(per_logit, certainty, counts):
    truth, wide = balls((20, 30, 30, 6)), balls((20, 30, 30, 9))
    before = marked(truth, wide, probability=0.6, counted=False)
    found, probability, _ = outline_again(before, 0.9, Brighter(50, per_logit), RunContext())
    outline = probability.array > 0.5
    assert dice(outline, truth) > 0.9
    np.testing.assert_array_equal(found.voxels, outline & counts)
    shift = logit(float(probability.array.max())) - logit(0.6)
    assert 0.25 * certainty < shift <= 0.5 * certainty + 0.05  # blurred by resampling near the border


@pytest.mark.parametrize(
    ("probability", "counted", "then"), [(0.99, True, "lesion"), (0.95, True, "candidate"), (0.7, False, "nothing")]
)
@pytest.mark.parametrize("network", [Always(-5.0), Brighter(120)], ids=["nowhere", "not there"])
def test_what_the_network_does_not_see_keeps_its_outline_and_becomes_less_probable(network, probability, counted, then):
    wide = balls((20, 30, 30, 9))
    before = marked(wide, wide, probability=probability, counted=counted)
    found, after, counts = outline_again(before, 0.9, network, RunContext())
    assert counts == {"examined": 1, "outlined": 0}
    np.testing.assert_array_equal(found.voxels, wide & (then == "lesion"))
    np.testing.assert_array_equal(after.array > 0.5, wide & (then != "nothing"))
    if then != "nothing":
        assert logit(float(after.array.max())) == pytest.approx(logit(probability) - 1.5, abs=0.03)


def test_the_part_that_the_model_is_surest_of_counts_only_inside_the_outline():
    truth, wide = balls((20, 30, 30, 6)), balls((20, 30, 33, 9))
    before = marked(truth, wide)
    values = np.array(before.probability.array)
    values[truth] = 0.6  # the model is sure of another part
    before = dataclasses.replace(before, probability=before.probability.with_array(values))
    found, probability, _ = outline_again(before, 0.99, Brighter(50), RunContext())
    assert not found.voxels.any()
    assert dice(probability.array > 0.5, truth) > 0.9
    assert logit(float(probability.array.max())) <= logit(0.6) + 3.6


@pytest.mark.parametrize(
    ("radius_mm", "part_mm", "shrinks"), [(9, 6, True), (9, 4.5, False), (16, 13.5, True), (16, 9, False)]
)
def test_a_lesion_of_which_the_network_sees_only_a_small_part_keeps_its_outline(radius_mm, part_mm, shrinks):
    part, wide = balls((20, 30, 30, part_mm)), balls((20, 30, 30, radius_mm))
    before = marked(part, wide, probability=0.8)
    found, probability, counts = outline_again(before, 0.9, Brighter(50), RunContext())
    assert counts["outlined"] == shrinks
    assert dice(found.voxels, part if shrinks else wide) > 0.93
    assert probability.array.max() > 0.98  # the network is sure of the part


def test_where_the_model_is_sure_the_outline_is_wider():
    truth, wide = balls((20, 30, 30, 6)), balls((20, 30, 30, 9))
    sizes = []
    for probability in (0.55, 0.7, 0.9):
        before = marked(truth, wide, probability=probability)
        found, _, _ = outline_again(before, 0.5, Brighter(50, 50), RunContext())
        assert found.voxels[truth].mean() > 0.95
        sizes.append(found.voxels.sum())
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] <= wide.sum()


def test_what_the_network_marks_elsewhere_is_not_added():
    lesions = balls((20, 30, 20, 5), (20, 30, 34, 4))  # the second is missed by the model, and near the first
    found, _, _ = outline_again(marked(lesions, balls((20, 30, 20, 6))), 0.9, Brighter(50), RunContext())
    np.testing.assert_array_equal(found.voxels[:, :, 28:], False)
    assert dice(found.voxels, balls((20, 30, 20, 5))) > 0.95


def test_neighbors_keep_apart():
    lesions, wide = balls((20, 30, 20, 5), (20, 30, 38, 5)), balls((20, 30, 20, 7), (20, 30, 38, 7))
    found, _, counts = outline_again(marked(lesions, wide), 0.9, Always(5.0), RunContext())
    assert counts["outlined"] == 2
    # Each takes everything around it except what belongs to the other.
    assert found.voxels[wide].all()
    single = marked(lesions, wide)
    (first, second) = single.components()
    hu, organ, own = single.sampled(first, first.cube(GRID))
    alone = single.sampled(second, second.cube(GRID))[2]
    assert min(float(own.max()), float(alone.max())) > 0.9
    assert float(own.sum()) == pytest.approx(float(alone.sum()), rel=0.05)  # one ball each
    assert organ.min() == 1
    assert hu.max() == 100
    assert hu.min() == 0


def test_a_lesion_at_the_end_of_the_image_is_outlined():
    truth, wide = balls((2, 30, 30, 5)), balls((2, 30, 30, 9))
    network = Brighter(50)
    found, _, counts = outline_again(marked(truth, wide), 0.9, network, RunContext())
    assert counts["outlined"] == 1
    assert dice(found.voxels, truth) > 0.95
    assert network.seen[0][0, 0].min() == -3  # air beyond the image


def test_nothing_is_outlined_outside_the_liver():
    truth, wide = balls((20, 30, 30, 5)), balls((20, 30, 30, 8))
    before = marked(truth, wide)
    organ = np.ones(SHAPE, bool)
    organ[:, :, 31:] = False
    before = dataclasses.replace(before, organ=Mask(before.organ.box, organ))
    found, _, counts = outline_again(before, 0.9, Brighter(50), RunContext())
    assert counts["outlined"] == 1
    np.testing.assert_array_equal(found.voxels, found.voxels & organ)
    assert dice(found.voxels, truth & organ) > 0.9


def test_large_lesions_specks_and_what_lies_outside_the_liver_are_left_alone():
    big = balls((20, 30, 30, 27))
    assert not list(marked(big, big).components())
    speck = np.zeros(SHAPE, bool)
    speck[20, 30, 30] = True
    assert not list(marked(speck, speck).components())
    ball = balls((20, 30, 30, 6))
    outside = dataclasses.replace(marked(ball, ball), organ=Mask(Box.full(SHAPE), balls((20, 30, 33, 4))))
    assert not list(outside.components())
    assert [one.scale_mm for one in marked(ball, ball).components()] == [1.0]
    larger = balls((20, 30, 30, 14))
    assert [one.scale_mm for one in marked(larger, larger).components()] == [2.0]


def test_the_outline_is_the_same_however_the_image_is_stored():
    truth, wide = balls((20, 30, 30, 5)), balls((20, 30, 30, 9))
    straight = outline_again(marked(truth, wide), 0.9, Brighter(50), RunContext())[0].voxels
    before = marked(truth, wide)
    matrix = GRID.ijk_to_lps @ np.array([[0, 0, 1, 0], [0, -1, 0, 59], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    turned = [
        Volume(np.ascontiguousarray(volume.array.transpose(2, 1, 0)[:, ::-1]), matrix)
        for volume in (before.volume, before.probability)
    ]
    masks = [
        Mask(Box.full((60, 60, 40)), mask.voxels.transpose(2, 1, 0)[:, ::-1]) for mask in (before.organ, before.lesions)
    ]
    found = outline_again(Marked(turned[0], *masks, turned[1], 100.0), 0.9, Brighter(50), RunContext())[0].voxels
    np.testing.assert_array_equal(found[:, ::-1].transpose(2, 1, 0), straight)


def test_an_oblique_image_is_outlined_as_a_whole():
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    matrix = GRID.ijk_to_lps.copy()
    matrix[:3, :3] = turn @ matrix[:3, :3]
    bar = np.zeros(SHAPE, bool)
    bar[18:23, 26:34, 19:42] = True  # 22 mm long
    before = marked(bar, grown(bar))
    moved = [Volume(one.array, matrix) for one in (before.volume, before.probability)]
    oblique = dataclasses.replace(before, volume=moved[0], probability=moved[1])
    found, probability, counts = outline_again(oblique, 0.9, Brighter(50), RunContext())
    assert counts["outlined"] == 1
    np.testing.assert_array_equal(probability.array > 0.5, found.voxels)
    assert dice(found.voxels, bar) > 0.8


def test_a_probability_in_a_part_of_the_image_gives_the_same_outline():
    truth, wide = balls((20, 30, 30, 5)), balls((20, 30, 30, 9))
    before = marked(truth, wide)
    box = Box.between((10, 15, 15), (32, 48, 47))
    part = dataclasses.replace(before, probability=before.probability.cropped(box))
    whole = outline_again(before, 0.9, Brighter(50), RunContext())[0].voxels
    found, probability, _ = outline_again(part, 0.9, Brighter(50), RunContext())
    assert found.box == box
    np.testing.assert_array_equal(found.on(Box.full(SHAPE)), whole)
    assert probability.grid.matches(GRID.cropped(box))


def test_it_can_be_cancelled():
    ball = balls((20, 30, 30, 6))
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        outline_again(marked(ball, ball), 0.9, Brighter(50), RunContext(cancel=token))


@pytest.fixture
def outlining(monkeypatch):
    """A function that makes a model with a network for outlines."""

    def made(network: nn.Module, **changes) -> Model:
        monkeypatch.setattr("LiverXAILib.inference.segmenter.outline_network", lambda folder, sha256: network)
        plain = threshold_model(**changes)
        return Model(dataclasses.replace(plain.spec, outlines=OutlineAgain("tumor", "ab" * 32)), plain.networks)

    return made


def test_segment_outlines_again_and_keeps_what_the_models_network_said(outlining):
    volume, _ = ball_phantom(Grid((60, 80, 80), np.diag([1.5, 1.5, 2.0, 1.0])), lesion_mm=8.0)
    plain = segment(volume, threshold_model(), device="cpu")
    model = outlining(Brighter(90))
    result = segment(volume, model, device="cpu")
    assert 0 < result.mask("tumor").sum() < plain.mask("tumor").sum()
    np.testing.assert_array_equal(result.mask("liver"), plain.mask("liver"))
    np.testing.assert_array_equal(result.network_probability("tumor").array, plain.probabilities["tumor"].array)
    assert result.network_probability("liver") is result.probabilities["liver"]
    box = volume.grid.box_of(result.probabilities["tumor"].grid)
    np.testing.assert_array_equal(result.probabilities["tumor"].array > 0.5, result.mask("tumor", box))
    report = result.provenance["outlines"]
    assert (report["label"], report["examined"], report["outlined"]) == ("tumor", 1, 1)
    assert result.provenance["model"]["sha256"] == ["0", "ab" * 32]
    assert plain.provenance["outlines"] is None
    assert dataclasses.replace(result, network_probabilities={}).network_probability("tumor") is None


def test_a_lesion_that_the_new_outline_makes_too_small_is_dropped(outlining):
    volume, _ = ball_phantom(Grid((60, 80, 80), np.diag([1.5, 1.5, 2.0, 1.0])), lesion_mm=8.0)
    small = segment(volume, outlining(Brighter(90)), device="cpu").mask("tumor").sum() * 4.5 / 1000
    rules = Postprocessing(min_lesion_ml=small + 0.1)
    assert segment(volume, threshold_model(), device="cpu", postprocessing=rules).mask("tumor").any()
    assert not segment(volume, outlining(Brighter(90)), device="cpu", postprocessing=rules).mask("tumor").any()


def test_the_sensitivity_moves_findings_with_their_new_outlines(outlining):
    points = (OperatingPoint(9.0, 0.0, 0.5), OperatingPoint(1.0, 1.0, 0.9))
    volume, _ = ball_phantom(Grid((60, 80, 80), np.diag([1.5, 1.5, 2.0, 1.0])), lesion_mm=8.0)
    changes = {"peak_threshold": {"tumor": 1.0}, "operating_points": {"tumor": points}}
    model = outlining(Brighter(90), **changes)
    result = segment(volume, model, device="cpu")
    mask = result.mask("tumor")
    assert mask.any()
    sure = at_sensitivity(result, model.spec, "specific")
    assert not sure.mask("tumor").any()
    np.testing.assert_array_equal(candidate_components(sure) > 0, mask)
    np.testing.assert_array_equal(at_sensitivity(sure, model.spec, "sensitive").mask("tumor"), mask)


def test_a_lesion_is_explained_as_the_network_marked_it(outlining):
    volume, _ = ball_phantom(Grid((60, 80, 80), np.diag([1.5, 1.5, 2.0, 1.0])), lesion_mm=8.0)
    plain = segment(volume, threshold_model(), device="cpu")
    result = segment(volume, outlining(Brighter(90)), device="cpu")
    asked = LesionTarget(1).mask(result)
    np.testing.assert_array_equal(asked, plain.mask("tumor"))
    assert asked.sum() > result.mask("tumor").sum()
    # What the network marked nowhere, such as a lesion that a reader added, is explained as it is.
    added = np.array(result.labels.array)
    added[added == 2] = 1
    added[30, 40, 30:34] = 2
    edited = dataclasses.replace(result, labels=result.labels.with_array(added))
    np.testing.assert_array_equal(LesionTarget(1).mask(edited), added == 2)
    np.testing.assert_array_equal(LesionTarget(1).mask(plain), plain.mask("tumor"))
    # So is one whose outline a reader changed: each half of a divided lesion, not the whole twice.
    halves = np.array(result.labels.array)
    middle = np.argwhere(halves == 2)[:, 0].mean().round().astype(int)
    halves[middle][halves[middle] == 2] = 1
    divided = dataclasses.replace(result, labels=result.labels.with_array(halves))
    one, other = (LesionTarget(number).mask(divided) for number in (1, 2))
    assert not (one & other).any()
    # And one that a reader moved, although it is as large as before.
    moved = np.array(result.labels.array)
    moved[moved == 2] = 1
    moved[:, :, 1:][result.labels.array[:, :, :-1] == 2] = 2
    shifted = dataclasses.replace(result, labels=result.labels.with_array(moved))
    np.testing.assert_array_equal(LesionTarget(1).mask(shifted), moved == 2)
    np.testing.assert_array_equal(one | other, halves == 2)


def test_explanations_refer_to_the_models_network(outlining):
    volume, _ = ball_phantom(Grid((60, 80, 80), np.diag([1.5, 1.5, 2.0, 1.0])), lesion_mm=8.0)
    model = outlining(Brighter(90))
    result = segment(volume, model, device="cpu")
    tumor = result.probabilities["tumor"]
    other = {**result.probabilities, "tumor": tumor.with_array(np.where(tumor.array > 0.5, 0.51, 0).astype(np.float16))}
    results = result, dataclasses.replace(result, probabilities=other)
    lesions = [explain_lesions(volume, model, known, ["lesion:1"])[0].evidence for known in results]
    assert lesions[0] == lesions[1]
    assert lesions[0]["in_image"] > 0.9
    borders = [explain_border(volume, model, known, "tumor").evidence for known in results]
    assert borders[0] == borders[1]
    # If a scene did not keep what the network said, the network says it again.
    forgotten = dataclasses.replace(result, network_probabilities={})
    assert explain_lesions(volume, model, forgotten, ["lesion:1"])[0].evidence["in_image"] == pytest.approx(
        lesions[0]["in_image"], abs=0.05
    )


def test_a_card_may_ask_for_it_and_must_make_sense():
    spec = dataclasses.replace(threshold_model().spec, outlines=OutlineAgain("tumor", "0" * 64))
    assert ModelSpec.from_json(spec.to_json()) == spec
    for label in ("liver", "bone", ""):
        with pytest.raises(ModelError, match="outlines"):
            dataclasses.replace(spec, outlines=OutlineAgain(label, "0" * 64))


def test_a_model_that_was_made_with_other_weights_is_refused():
    with pytest.raises(ModelError, match="another version of the network that outlines lesions"):
        bundled.outline_network(bundled.OUTLINES, "0" * 64)


def test_the_bundled_model_was_made_for_the_bundled_weights():
    card = json.loads((bundled.OUTLINES / bundled.CARD).read_text(encoding="utf-8"))
    spec = registered("default").spec()
    assert spec.outlines == OutlineAgain("tumor", card["sha256"])
    assert spec.sha256[-1] == card["sha256"]
    assert "refines the outline of the tumor" in spec.networks()[-1]


@pytest.mark.parametrize(("labels", "outlined"), [(("tumor",), True), (("liver",), False)])
def test_a_chain_outlines_again_what_it_takes_from_such_a_model(labels, outlined, outlining, monkeypatch):
    model = outlining(Always(5.0))
    other = tuple(label.name for label in model.spec.labels if label.name not in labels)
    links = (ChainLink("plain", other), ChainLink("outlining", labels))
    about = About("A chain", "test", model.spec.labels, Licenses("a", "b", "c"), "here")
    entry = Entry("chain", about=about, chain=links, name="both")
    made = {"plain": threshold_model(), "outlining": model}
    load_chain = loading._load_chain
    monkeypatch.setattr(loading, "registered", lambda name: name)
    monkeypatch.setattr(loading, "_load_entry", lambda name, trust: made[name])
    assert load_chain(entry, False).spec.outlines == (model.spec.outlines if outlined else None)
