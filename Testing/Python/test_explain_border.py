# SPDX-License-Identifier: Apache-2.0
"""The surroundings that a network needs for a border, for known networks; and how they are reported and shown."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from toys import Thresholds, ball_phantom, model_of, threshold_model

from LiverXAILib.context import RunContext
from LiverXAILib.errors import Cancelled, UsageError
from LiverXAILib.explain import Answer, BorderNeed, EmptyTargetError, Target, explain_border
from LiverXAILib.explain.border import need
from LiverXAILib.explain.border.need import needs
from LiverXAILib.explain.border.probe import BorderProbe
from LiverXAILib.explain.border.replacements import REPLACEMENTS, Crop, shown
from LiverXAILib.explain.border.surface import spread, surface_of
from LiverXAILib.explain.stage_context import StageContext
from LiverXAILib.inference import segment
from LiverXAILib.pipeline import analyze
from LiverXAILib.progress import CancelToken
from LiverXAILib.volumes.volume import Grid, Volume

pytestmark = pytest.mark.usefixtures("one_thread")
RADII = (8.0, 12.0, 16.0, 24.0)


@cache
def a_case():
    """A noisy ball of 100 HU, 28 mm in radius, in water; the network's voxels, 2 mm."""
    volume, _ = ball_phantom(Grid((40, 40, 56), np.diag([2.0, 2.0, 2.0, 1.0])), organ_mm=28.0, lesion_mm=3.0)
    noise = np.random.default_rng(0).normal(0, 4, volume.shape)
    return Volume(np.rint(volume.array + noise).astype(np.int16), volume.ijk_to_lps)


def a_model(network: type[nn.Module], **changes):
    model = threshold_model(window=(40, 40, 56))
    fields = {
        field.name: getattr(model.spec.stages[0], field.name) for field in dataclasses.fields(model.spec.stages[0])
    }
    return model_of([{**fields, **changes}], {"all": [network()]})


class FromAfar(nn.Module):
    """Liver if the voxel 26 mm farther along i exceeds 50 HU. Its border lies 26 mm from the ball's, in plain water."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted = x.roll(-13, dims=-1)
        return torch.cat([(shifted - 50) / 10, torch.full_like(x, -10.0)], dim=1)


class Means(nn.Module):
    """Liver if the mean over a cube of 14 mm exceeds 50 HU. It depends on 6 mm around a voxel, along the axes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = nn.functional.pad(x, (3,) * 6, mode="replicate")
        for size in ((7, 1, 1), (1, 7, 1), (1, 1, 7)):  # axis by axis, which reads far fewer voxels
            mean = nn.functional.avg_pool3d(mean, size, 1)
        return torch.cat([(mean - 50) / 10, torch.full_like(x, -10.0)], dim=1)


def a_probe(network: type[nn.Module], replacement: str = "reflected"):
    volume, model = a_case(), a_model(network)
    segmentation = segment(volume, model, device="cpu")
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    return BorderProbe(run, "liver", model, REPLACEMENTS[replacement], RunContext())


@torch.inference_mode()
def recomputed(probe: BorderProbe, network: type[nn.Module], point: np.ndarray) -> int:
    """The radius that one point needs, by independent code: on the whole image, trying all radii from the largest."""
    image = probe.run.image.numpy()
    before = network()(torch.from_numpy(image)[None, None])[0, 0].numpy() > 0
    index = np.stack(np.indices(image.shape), axis=-1)
    away = index - point
    distance = 2.0 * np.sqrt((away**2).sum(axis=-1))
    cube = np.ones((3, 3, 3))
    beside = ~(
        ndimage.binary_erosion(before, cube, border_value=1) | ndimage.binary_erosion(~before, cube, border_value=1)
    )
    compared = (distance <= 6.0) & ~beside
    number = len(RADII)
    for radius in reversed(RADII):
        folded = np.abs((distance + radius) % (2 * radius) - radius)
        mirrored = np.fix(away * (folded / np.maximum(distance, 1e-6))[..., None] * 1.000001).astype(int)
        source = np.clip(point + mirrored, 0, np.array(image.shape) - 1)
        changed = np.where(distance <= radius, image, image[tuple(np.moveaxis(source, -1, 0))])
        after = network()(torch.from_numpy(changed)[None, None])[0, 0].numpy() > 0
        if (before != after)[compared].any():
            return number
        number -= 1
    return number


@pytest.mark.parametrize("network", [Thresholds, Means, FromAfar])
def test_needs_are_those_of_an_independent_recomputation_point_by_point(network):
    probe = a_probe(network)
    points = spread(probe.own_border("liver"), 12, probe.run.spacing)
    ours = needs(probe, points, RunContext())
    theirs = [recomputed(probe, network, point) for point in points]
    # Bisection and the search from above may differ only where a smaller neighborhood suffices by chance.
    assert np.mean(ours == theirs) > 0.9
    if network is not FromAfar:
        np.testing.assert_array_equal(ours, theirs)


def test_what_decides_within_a_few_mm_needs_no_more_and_a_border_from_afar_is_exposed():
    def all_needs(network):
        probe = a_probe(network)
        return needs(probe, spread(probe.own_border("liver"), 60, probe.run.spacing), RunContext())

    assert (all_needs(Thresholds) == 0).all()
    # It depends on a voxel 26 mm away: 24 mm suffice only by chance.
    assert np.mean(all_needs(FromAfar) == len(RADII)) > 0.8


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_points_are_examined_together_as_if_each_were_alone_and_within_the_radius_all_is_kept(replacement):
    probe = a_probe(Means, replacement)
    points = spread(probe.own_border("liver"), 8, probe.run.spacing)
    for radius in RADII[:2]:
        together = probe.stays(points, radius, RunContext())
        alone = [probe.stays(point[None], radius, RunContext())[0] for point in points]
        np.testing.assert_array_equal(together, alone)
    crop = Crop((24, 24, 24), probe.run.spacing, 12.0)
    (image,) = shown(probe.run, torch.from_numpy(points[:1]), crop, REPLACEMENTS[replacement])
    k, j, i = points[0]
    for offset in ((0, 0, 0), (6, 0, 0), (0, -6, 0), (3, 3, -3)):
        there = np.array((12, 12, 12)) + offset
        assert image[tuple(there)] == probe.run.image[k + offset[0], j + offset[1], i + offset[2]]


def test_only_blurring_and_shuffling_let_the_network_see_what_lies_beyond_the_radius():
    """A change of the CT beyond 12 mm, within the crop, changes the network's input only with blurring or shuffling."""
    probe = a_probe(Thresholds)
    point = spread(probe.own_border("liver"), 8, probe.run.spacing)[:1]
    crop = Crop((24, 24, 24), probe.run.spacing, 12.0)
    index = np.stack(np.indices(probe.run.image.shape), axis=-1)
    far = torch.from_numpy(np.linalg.norm(2.0 * (index - point[0]), axis=-1) > 12.0)
    other = dataclasses.replace(probe.run, image=torch.where(far, 300.0, probe.run.image))
    changed = {}
    for name, replace in REPLACEMENTS.items():
        before, after = (shown(run, torch.from_numpy(point), crop, replace) for run in (probe.run, other))
        changed[name] = not torch.equal(before, after)
    assert changed == {"reflected": False, "blurred": True, "shuffled": True, "air": False}


def test_what_replaces_the_far_is_what_its_name_says():
    probe = a_probe(Thresholds)
    image, point, crop = probe.run.image, torch.tensor([[20, 20, 28]]), Crop((24, 24, 24), probe.run.spacing, 12.0)
    inside = image[8:32, 8:32, 16:40]

    def cubes(values):  # of 8 mm
        blocks = values.reshape(6, 4, 6, 4, 6, 4).permute(0, 2, 4, 1, 3, 5)
        return sorted(blocks.reshape(-1, 64).tolist())

    (shuffled,) = REPLACEMENTS["shuffled"](probe.run, point, crop)
    assert not torch.equal(shuffled, inside)
    assert cubes(shuffled) == cubes(inside)
    (blurred,) = REPLACEMENTS["blurred"](probe.run, point, crop)
    smooth = ndimage.gaussian_filter(image.numpy(), 6.0, mode="nearest", truncate=3.0)[8:32, 8:32, 16:40]
    np.testing.assert_allclose(blurred, smooth, atol=0.01)
    assert (REPLACEMENTS["air"](probe.run, point, crop) == -200).all()


def test_a_surface_is_what_an_erosion_removes_and_the_edge_of_the_image_is_none():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(12, 14, 16)), 1.5) > 0
    cross = ndimage.generate_binary_structure(3, 1)
    expected = mask & ~ndimage.binary_erosion(mask, cross, border_value=1)
    np.testing.assert_array_equal(surface_of(mask), expected)
    assert not surface_of(np.ones((3, 3, 3), bool)).any()


def test_points_are_spread_evenly_in_mm():
    row = np.zeros((100, 3), int)
    row[:, 2] = np.arange(100)
    # The largest cubes of which ten are needed hold eleven points; the point in the middle stands for each.
    np.testing.assert_array_equal(spread(row, 10, (1.0, 1.0, 2.0))[:, 2], [5, 16, 27, 38, 49, 60, 71, 82, 93, 99])
    lattice = np.argwhere(np.ones((8, 8, 8)))
    np.testing.assert_array_equal(spread(lattice, 64, (1.0, 1.0, 1.0)), 2 * np.argwhere(np.ones((4, 4, 4))) + 1)
    # Along an axis with large voxels, fewer voxels make up the same distance.
    chosen = spread(lattice, 64, (1.0, 1.0, 8.0))
    assert [len(np.unique(axis)) for axis in chosen.T] == [3, 3, 8]
    np.testing.assert_array_equal(spread(row, 100, (1.0, 1.0, 1.0)), row)


def test_the_border_is_the_same_where_the_probabilities_were_not_kept():
    volume, model = a_case(), a_model(Means)
    segmentation = segment(volume, model, device="cpu")
    bare = dataclasses.replace(segmentation, probabilities={})
    runs = [
        StageContext.prepare(volume, model, model.spec.stages[0], one, torch.device("cpu"))
        for one in (segmentation, bare)
    ]
    kept, made = (BorderProbe(run, "liver", model, REPLACEMENTS["air"], RunContext()).reference for run in runs)
    assert kept.any()
    assert int((kept ^ made).sum()) < 10  # probabilities are kept with half precision


def test_only_points_are_asked_about_whose_whole_neighborhood_is_in_the_image_and_the_networks_own():
    """The ball is cut off on all sides; a part of it was taken away by hand."""
    volume, model = a_case(), a_model(Thresholds)
    part = volume.array[8:32, 8:32, 16:40]
    cut = Volume(part, volume.ijk_to_lps)
    segmentation = segment(cut, model, device="cpu")

    def points(segmentation):
        run = StageContext.prepare(cut, model, model.spec.stages[0], segmentation, torch.device("cpu"))
        probe = BorderProbe(run, "liver", model, REPLACEMENTS["air"], RunContext())
        return probe, probe.own_border("liver")

    probe, whole = points(segmentation)
    np.testing.assert_array_equal(whole.min(axis=0), 3)  # 6 mm
    np.testing.assert_array_equal(whole.max(axis=0), 20)
    labels = segmentation.labels.array.copy()
    labels[6:, :, 12:] = 0
    _, own = points(dataclasses.replace(segmentation, labels=segmentation.labels.with_array(labels)))
    inside = ndimage.binary_erosion(probe.reference.numpy(), np.ones((3, 3, 3)), border_value=1)
    moved = np.zeros_like(inside)
    moved[6:, :, 12:] = inside[6:, :, 12:]
    far = 2.0 * ndimage.distance_transform_edt(~moved) > 6.0
    np.testing.assert_array_equal(own, [point for point in whole if far[tuple(point)]])
    assert 0 < len(own) < len(whole)


CENTER = np.array((55.0, 39.0, 39.0))  # of the ball, in LPS mm


@pytest.mark.parametrize(
    ("directions", "where"),
    [
        ([(-1, 0, 0)], ["on the right"]),
        ([(1, 0, 0)], ["on the left"]),
        ([(0, -1, 0)], ["in front"]),
        ([(0, 1, 0)], ["at the back"]),
        ([(0, 0, 1)], ["at the top"]),
        ([(0, 0, -1)], ["at the bottom"]),
        ([(0.8, 0.2, -0.56)], ["on the left at the bottom"]),
        ([(-0.4, 0.7, 0.59)], ["at the back at the top"]),
        ([(0.97, 0.2, 0.1)], ["on the left"]),
        # 28 mm apart they are one place, 40 mm apart two; the one with more points comes first.
        ([(0.866, 0.5, 0), (0.866, -0.5, 0)], ["on the left"]),
        ([(0, 0.707, 0.707), (0, -0.707, 0.707)], ["at the back at the top", "in front at the top"]),
    ],
)
def test_places_are_named_and_located_as_the_reader_sees_them(monkeypatch, directions, where):
    volume, model = a_case(), a_model(Thresholds)

    def far_there(probe, points, context):
        lps = probe.run.grid.to_lps(points[:, ::-1])
        near = [
            np.linalg.norm(lps - (CENTER + 28 * np.array(direction)), axis=1) < 7 - number
            for number, direction in enumerate(directions)
        ]
        return np.where(np.any(near, axis=0), len(RADII), 1)

    monkeypatch.setattr(need, "needs", far_there)
    answer = explain_border(volume, model, segment(volume, model, device="cpu"), points=600)
    evidence = answer.evidence
    assert [place["where"] for place in evidence["far"]] == where
    sizes = [place["points"] for place in evidence["far"]]
    assert sizes == sorted(sizes, reverse=True)
    assert evidence["counts"] == [0, evidence["points"] - sum(sizes), 0, 0, sum(sizes)]
    if len(directions) == len(where):
        for place, direction in zip(evidence["far"], directions, strict=True):
            assert np.linalg.norm(place["lps_mm"] - (CENTER + 28 * np.array(direction))) < 5
    shown = answer.volumes["need"]
    at = shown.grid.to_lps(np.argwhere(shown.array == 36)[:, ::-1]) - CENTER
    nearest = np.min([np.linalg.norm(at - 28 * np.array(direction), axis=1) for direction in directions], axis=0)
    assert len(at) > 0
    assert nearest.max() < 10
    assert set(np.unique(shown.array)) == {0, 12, 36}


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([5, 4, 1, 0, 0],
         "needs to see no more than 8 mm around it at half of 10 points, and no more than 12 mm at nine out of ten. "
         "Nowhere does the border depend on what is farther than 24 mm away."),
        ([4, 1, 1, 4, 0], "no more than 12 mm around it at half of 10 points, and no more than 24 mm at nine out of"),
        ([9, 1, 0, 0, 0], "no more than 8 mm around it at half of 10 points. Nowhere"),
        ([6, 2, 0, 0, 2],
         "no more than 8 mm around it at half of 10 points. At 2 points (20%) the border depends on what is farther "
         "than 24 mm away, mostly at the top: check the border there."),
        ([1, 0, 0, 0, 9], "needs to see more than 24 mm around it at half of 10 points. At 9 points (90%) the border"),
        ([8, 1, 0, 0, 1], "no more than 12 mm at nine out of ten. At 1 point (10%) the border depends on"),
    ],
)  # fmt: skip
def test_the_sentence_tells_what_half_of_the_points_need_and_what_nine_out_of_ten_need(counts, says):
    far = [{"points": counts[4] - 1, "where": "at the top"}, {"points": 1, "where": "in front"}][: counts[4]]
    evidence = {
        "points": 10,
        "radii_mm": list(RADII),
        "counts": counts,
        "tolerance_mm": 2.0,
        "far": far if counts[4] != 1 else [{"points": 1, "where": "at the top"}],
    }
    assert says in BorderNeed(Target.parse("liver"), evidence).sentence


def test_the_answer_counts_places_says_where_and_maps_the_surface():
    volume, model = a_case(), a_model(FromAfar)
    segmentation = segment(volume, model, device="cpu")
    seen = []
    answer = explain_border(volume, model, segmentation, points=40, progress=lambda stage, part: seen.append(part))
    evidence = answer.evidence
    assert evidence["points"] == sum(evidence["counts"]) >= 40
    assert evidence["tolerance_mm"] == 2.0
    assert sum(place["points"] for place in evidence["far"]) == sum(evidence["counts"][4:])
    assert f"half of {evidence['points']} points" in answer.sentence
    assert f"at {sum(evidence['counts'][4:])} points" in answer.sentence.lower()
    assert evidence["far"][0]["where"] in answer.sentence
    need = answer.volumes["need"]
    assert set(np.unique(need.array)) <= {0, 8, 12, 16, 24, 36}
    assert (need.array == 36).any()
    surface_lps = need.grid.to_lps(np.argwhere(need.array)[:, ::-1])
    # The network's border is the ball's, 26 mm toward low i.
    center = volume.grid.to_lps((np.array(volume.shape[::-1]) - 1) / 2) - (26.0, 0.0, 0.0)
    np.testing.assert_allclose(np.linalg.norm(surface_lps - center, axis=1), 27.0, atol=2.5)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    again = Answer.from_dict(json.loads(json.dumps(answer.to_dict())), answer.volumes)
    assert isinstance(again, BorderNeed)
    assert again.sentence == answer.sentence


def test_a_border_that_is_seen_everywhere_is_said_to_be(monkeypatch):
    monkeypatch.setattr(need, "time", SimpleNamespace(perf_counter=iter((1.0, 3.45678)).__next__))
    volume, model = a_case(), a_model(Thresholds)
    answer = explain_border(volume, model, segment(volume, model, device="cpu"), points=20)
    assert answer.evidence["far"] == []
    assert "needs to see no more than 8 mm around it at half of" in answer.sentence
    assert answer.sentence.endswith("Nowhere does the border depend on what is farther than 24 mm away.")
    about = {"stage": "all", "model": model.provenance, "device": "cpu", "seconds": 2.457}
    assert {name: answer.provenance[name] for name in about} == about


def test_what_cannot_be_asked_is_refused_in_words():
    volume, model = a_case(), a_model(Thresholds)
    segmentation = segment(volume, model, device="cpu")
    with pytest.raises(UsageError, match="name a label"):
        explain_border(volume, model, segmentation, "lesion:1")
    with pytest.raises(UsageError, match="no replacement 'noise'"):
        explain_border(volume, model, segmentation, replacement="noise")
    empty = dataclasses.replace(segmentation, labels=volume.with_array(np.zeros(volume.shape, np.uint8)))
    with pytest.raises(EmptyTargetError, match="No liver was found"):
        explain_border(volume, model, empty)
    half = segmentation.labels.array.copy()
    half[20:] = 0
    drawn = dataclasses.replace(segmentation, labels=volume.with_array(half))
    need = explain_border(volume, model, drawn, points=20).volumes["need"].array
    assert need.any(), "half of the border is the model's own"
    empty = np.zeros_like(half)
    empty[:3, :3, :3] = 1
    elsewhere = dataclasses.replace(segmentation, labels=volume.with_array(empty))
    with pytest.raises(EmptyTargetError, match="not the network's own anywhere"):
        explain_border(volume, model, elsewhere)
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        explain_border(volume, model, segmentation, cancel=token)


def test_an_analysis_answers_for_the_liver_by_its_border_and_makes_its_heat_map_when_asked():
    volume, model = a_case(), a_model(Thresholds)
    default = analyze(volume, model, device="cpu")
    assert [answer.kind for answer in default.answers] == ["border", "counterfactual"]
    assert [str(explanation.target) for explanation in default.explanations] == ["tumor"]
    assert default.provenance["answers"][0]["sentence"] == default.answers[0].sentence
    asked = analyze(volume, model, targets=["liver"], device="cpu")
    assert asked.answers[0].kind == "border"
    assert [str(explanation.target) for explanation in asked.explanations] == ["liver"]
    without = analyze(volume, model, answers=False, device="cpu")
    assert without.answers == ()
    assert [str(explanation.target) for explanation in without.explanations] == ["liver", "tumor"]


def test_where_each_point_takes_a_whole_window_the_border_is_not_examined_unasked():
    volume, model = a_case(), a_model(Thresholds, pad_to_window=True)
    analysis = analyze(volume, model, device="cpu")
    assert [answer.kind for answer in analysis.answers] == ["counterfactual"]
    assert [str(explanation.target) for explanation in analysis.explanations] == ["liver", "tumor"]
    answer = explain_border(volume, model, analysis.segmentation, points=4)
    assert answer.evidence["counts"][0] == answer.evidence["points"]
