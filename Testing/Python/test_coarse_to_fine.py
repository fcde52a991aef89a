# SPDX-License-Identifier: Apache-2.0
"""Cascades find the liver in the whole image and segment in its box, each in one pass, without loss."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_folders import make_folder, noisy_ct, plans
from safetensors.torch import load_file
from torch import nn
from toys import Thresholds, ball_phantom, dice, model_of, threshold_model

from LiverXAILib.context import RunContext
from LiverXAILib.errors import InputError, ModelError
from LiverXAILib.explain import EmptyTargetError
from LiverXAILib.explain.stage_context import StageContext
from LiverXAILib.inference import Postprocessing, backends, segment, stage_windows
from LiverXAILib.inference.cost import activation_bytes, operations
from LiverXAILib.inference.stages import (
    normalize,
    padded,
    predict_logits,
    preprocessing_of,
    sample_box,
    stage_grids,
    stage_input,
    stage_plan,
)
from LiverXAILib.inference.standard import _shift_inside_scan
from LiverXAILib.inference.windows import WindowPlan
from LiverXAILib.models import Intensity, LayerSpec, Model, Region, StageSpec, load_model
from LiverXAILib.models.formats.nnunet import load_nnunet
from LiverXAILib.models.registry import registered
from LiverXAILib.networks import UNet, build_network
from LiverXAILib.networks.folding import fold_batch_norms
from LiverXAILib.volumes.box import Box, bounding_box
from LiverXAILib.volumes.io import read_labels, read_volume
from LiverXAILib.volumes.volume import Grid, Volume

CPU = torch.device("cpu")
RAW = Postprocessing(False, False, False, 0.0)
GRID = Grid((90, 100, 96), np.diag([1.9, 2.2, 2.6, 1.0]))


class Watched(Thresholds):
    """Thresholds that record the sizes of their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape[2:]))
        return super().forward(x)


def fields(**changes: Any) -> dict[str, Any]:
    stage = threshold_model().spec.stages[0]
    names = ("network", "arguments", "weights", "sha256", "axes", "channels", "layers", "default_layer", "activation")
    return {name: getattr(stage, name) for name in names} | {"divisor": (4, 4, 4)} | changes


def chain(margin_mm: float = 10.0) -> tuple[Model, Watched, Watched]:
    """A locator at 6 mm and a fine stage at 2 mm, both thresholds."""
    locator = fields(name="locator", spacing=(6.0,) * 3, labels={"liver": ("liver",)})
    fine = fields(
        name="liver",
        spacing=(2.0,) * 3,
        labels={"liver": ("liver",), "tumor": ("tumor",)},
        region=Region("liver", margin_mm),
        divisor=(8, 8, 8),
    )
    first, second = Watched(), Watched()
    return model_of([locator, fine], {"locator": [first], "liver": [second]}), first, second


def test_each_stage_runs_once_on_no_more_than_it_needs():
    model, locator, fine = chain()
    volume, truth = ball_phantom(GRID)
    result = segment(volume, model, device="cpu")
    assert len(locator.seen) == len(fine.seen) == 1
    assert result.stage_grids["liver"].shape == fine.seen[0]
    # A ball of 90 mm with a margin of 10 mm, at 2 mm, rounded up to the network's divisor.
    assert all(55 <= n <= 72 and n % 8 == 0 for n in fine.seen[0])
    assert dice(result.mask("liver"), truth.array >= 1) > 0.98
    assert dice(result.mask("tumor"), truth.array == 2) > 0.95


def centered_chain() -> Model:
    """A cascade whose fine stage uses HU relative to the liver that the locator found."""
    model, _, _ = chain()
    fine = replace(model.spec.stages[1], intensity=Intensity(-300.0, 400.0, -100.0, centered=True))
    spec = replace(model.spec, stages=(model.spec.stages[0], fine))
    return Model(spec, model.networks)


def test_a_centered_stage_answers_the_same_whatever_the_livers_hu():
    model = centered_chain()
    volume, truth = ball_phantom(GRID)
    darker = volume.with_array((volume.array - 35).astype(np.int16))
    one, other = (segment(image, model, device="cpu", postprocessing=RAW) for image in (volume, darker))
    assert one.stage_centers == {"liver": pytest.approx(float(np.median(volume.array[truth.array >= 1])), abs=1)}
    assert other.stage_centers["liver"] == pytest.approx(one.stage_centers["liver"] - 35, abs=1)
    assert one.provenance["stages"][1]["center_hu"] == one.stage_centers["liver"]
    assert "center_hu" not in one.provenance["stages"][0]
    assert dice(other.mask("tumor"), truth.array == 2) > 0.95
    assert dice(one.mask("tumor"), other.mask("tumor")) > 0.99
    plain, _, _ = chain()
    assert dice(segment(darker, plain, device="cpu").mask("tumor"), truth.array == 2) < 0.95
    assert not segment(darker, plain, device="cpu").stage_centers


def test_explanations_are_of_what_the_centered_stage_saw():
    model = centered_chain()
    volume, _ = ball_phantom(GRID)
    result = segment(volume, model, device="cpu")
    stage = model.spec.stages[1]
    run = StageContext.prepare(volume, model, stage, result, CPU)
    seen = stage_input(volume, stage, result.stage_grids["liver"], result.stage_centers["liver"])
    torch.testing.assert_close(run.image[run.plan.image_box], seen)
    # If made elsewhere or edited, the liver in the labels counts.
    stranger = replace(result, stage_centers={}, stage_grids={})
    again = StageContext.prepare(volume, model, stage, stranger, CPU)
    assert abs(float(run.image.max() - again.image.max())) < 2
    assert again.air == run.air == -200.0
    nobody = replace(stranger, labels=volume.with_array(np.zeros(volume.shape, np.uint8)))
    with pytest.raises(EmptyTargetError, match="needs the HU of the liver, which is not marked"):
        StageContext.prepare(volume, model, stage, nobody, CPU)


def test_a_card_that_centers_on_nothing_is_refused():
    centered = Intensity(centered=True)
    with pytest.raises(ModelError, match="centered intensity needs a region"):
        threshold_model(intensity=centered)
    with pytest.raises(ValueError, match="centered and statistics exclude each other"):
        Intensity(statistics="z-score", centered=True)


def test_what_rounds_the_box_up_is_image_and_not_air():
    model, _, _ = chain()
    volume, _ = ball_phantom(GRID)
    stage = model.spec.stages[1]
    water = volume.with_array(np.zeros_like(volume.array))
    sides = [(slice(0, 9), slice(40, 51), slice(n - 9, n)) for n in GRID.shape]
    boxes = [
        Box(*(side[part] for side, part in zip(sides, parts, strict=True)))
        for parts in itertools.product(range(3), repeat=3)
    ]
    for box in boxes:  # at a border of the scan, the box is enlarged inward
        (grid,) = stage_grids(water, stage, box)
        plan = stage_plan(stage, grid)
        assert plan.padded_shape == plan.shape == grid.shape
        assert float(stage_input(water, stage, grid).min()) == 0.0
        corners = np.array(list(itertools.product(*((s.start, s.stop - 1) for s in box))))[:, ::-1]
        inside = grid.to_ijk(GRID.to_lps(corners))
        assert (inside > -0.5).all()
        assert (inside < np.array(grid.shape[::-1]) - 0.5).all()


@pytest.mark.parametrize("side", ["superior", "inferior", "left", "right", "anterior", "posterior"])
def test_a_liver_at_the_border_of_the_field_of_view_is_segmented_up_to_it(side):
    axis, end = {"inferior": (0, 0), "superior": (0, 1), "anterior": (1, 0), "posterior": (1, 1)}.get(
        side, (2, int(side == "left"))
    )
    volume, truth = ball_phantom(GRID)
    box = [slice(0, n) for n in GRID.shape]
    middle = GRID.shape[axis] // 2
    box[axis] = slice(0, middle) if end else slice(middle, GRID.shape[axis])
    cut, expected = volume.cropped(Box(*box)), truth.array[tuple(box)] >= 1
    model, _, _ = chain()
    result = segment(cut, model, device="cpu")
    assert dice(result.mask("liver"), expected) > 0.97
    assert any("border" in warning for warning in result.provenance["warnings"])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("size", "first_mm", "then_mm"),
    [
        (5, -10, 2),  # by 3 voxels of 4 mm
        (5, 30, 22),
        (5, -1, -1),  # its first, or last, center is where the scan begins, or ends
        (5, 23, 23),
        (5, 10, 10),
        (11, -5, -1),
        (11, -6, -2),  # no further, or its end would leave the scan
        (11, 4, 0),
        (20, -5, -5),  # longer than the scan
    ],
)
def test_a_grid_is_moved_by_whole_voxels_until_it_lies_in_the_scan(axis, size, first_mm, then_mm):
    """The scan has 20 voxels of 2 mm and extends from -1 to 39 mm."""
    scan = Grid((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))
    matrix, shape = np.diag([4.0, 4.0, 4.0, 1.0]), [5, 5, 5]
    matrix[axis, 3], shape[2 - axis] = first_mm, size
    moved = _shift_inside_scan(scan, Grid(tuple(shape), matrix))
    matrix[axis, 3] = then_mm
    assert moved.shape == tuple(shape)
    np.testing.assert_allclose(moved.ijk_to_lps, matrix)


def test_an_image_without_a_liver_costs_one_pass_and_says_so():
    model, locator, fine = chain()
    volume, _ = ball_phantom(GRID)
    result = segment(volume.with_array(np.full(volume.shape, -1000, np.int16)), model, device="cpu")
    assert (len(locator.seen), len(fine.seen)) == (1, 0)
    assert not result.labels.array.any()
    assert "no liver" in result.provenance["stages"][1]["skipped"]
    assert result.provenance["warnings"] == ["No liver was found in this image."]


@pytest.mark.parametrize("rules", [Postprocessing(), RAW])
def test_a_speck_elsewhere_does_not_blow_up_the_box(rules):
    volume, _ = ball_phantom(GRID)
    array = volume.array.copy()
    array[2:8, 2:8, 2:8] = 100
    model, _, fine = chain()
    segment(Volume(array, volume.ijk_to_lps), model, device="cpu", postprocessing=rules)
    assert max(fine.seen[0]) <= 72


def voxel_stage(**changes: Any) -> StageSpec:
    """A stage on the image's own voxels."""
    return StageSpec(**fields(**{"name": "all", "spacing": (None,) * 3, "divisor": (1, 1, 1), **changes}))


def place_of(grid: Grid, image: Grid) -> list[tuple[int, int]]:
    """The voxels of `image`, first and beyond the last one along (k, j, i), on which a part of it lies."""
    start = np.rint(image.to_ijk(grid.origin))[::-1].astype(int)
    return [(int(first), int(first) + n) for first, n in zip(start, grid.shape, strict=True)]


LIVER_ONLY: dict[str, Any] = {"labels": {"liver": ("liver",)}}


def test_a_stage_sees_the_structure_and_the_margin_of_its_card():
    stage = voxel_stage(region=Region("liver", 5.2), **LIVER_ONLY)
    volume = Volume(np.zeros(GRID.shape, np.int16), GRID.ijk_to_lps)
    (grid,) = stage_grids(volume, stage, Box.between((20, 20, 20), (30, 30, 30)))
    # Voxels of 2.6, 2.2 and 1.9 mm: two, three and three make up the margin.
    assert place_of(grid, GRID) == [(18, 32), (17, 33), (17, 33)]


def test_a_grid_of_billions_of_voxels_is_refused():
    volume = Volume(np.zeros((20, 20, 20), np.int16), np.diag([10.0, 10.0, 10.0, 1.0]))
    sides = (2**11 / 10, 2**10 / 10, 2**10 / 10)  # 2 ** 31 voxels, which are allowed, in 200 mm along each axis
    fine = tuple(20 * 10 / (10 * side) for side in sides)
    assert stage_grids(volume, voxel_stage(spacing=fine, **LIVER_ONLY))
    with pytest.raises(ModelError, match="voxel size in its model card"):
        stage_grids(volume, voxel_stage(spacing=(fine[0], fine[1], fine[2] * 0.99), **LIVER_ONLY))


def test_the_table_and_the_air_around_the_body_are_left_out():
    image = np.full((20, 60, 60), -1000, np.int16)
    image[:, 12:42, 16:48] = -100
    image[:, 15:39, 18:45] = 50
    image[:, 48:51, 4:56] = 200
    image[:, 42:48, 30:32] = 0  # the back touches the table
    image[:, 2:8, 10:50] = -320  # a blanket
    volume = Volume(image, np.diag([3.0, 3.0, 3.0, 1.0]))
    (grid,) = stage_grids(volume, voxel_stage(crop_to_body=True, **LIVER_ONLY))
    assert place_of(grid, volume.grid) == [(0, 20), (12, 42), (16, 48)]
    (whole,) = stage_grids(volume, voxel_stage(**LIVER_ONLY))
    assert whole.shape == volume.shape
    with pytest.raises(InputError, match="shows no body"):
        stage_grids(volume.with_array(image.clip(max=-301)), voxel_stage(crop_to_body=True, **LIVER_ONLY))


@pytest.mark.parametrize(
    ("limit_mm", "starts", "slices"),
    [
        (80.0, [0, 20, 40, 60], 40),
        (91.0, [0, 18, 37, 55], 45),
        (199.0, [0, 1], 99),
        (200.0, [0], 100),
        (None, [0], 100),
    ],
)
@pytest.mark.parametrize("axis", range(3))
def test_a_scan_longer_than_the_field_of_view_is_cut_into_parts_that_share_half(limit_mm, starts, slices, axis):
    shape, limits = [30, 30, 30], [None] * 3
    shape[axis], limits[axis] = 100, limit_mm
    volume = Volume(np.zeros(shape, np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    stage = voxel_stage(spacing=None, size=(None,) * 3, field_of_view_mm=tuple(limits), **LIVER_ONLY)
    found = [place_of(grid, volume.grid) for grid in stage_grids(volume, stage)]
    assert [place[axis] for place in found] == [(start, start + slices) for start in starts]
    assert all(place[other] == (0, 30) for place in found for other in range(3) if other != axis)
    resized = stage_grids(volume, replace(stage, size=(16, 20, 24)))
    assert [grid.shape for grid in resized] == [(16, 20, 24)] * len(starts)


@pytest.mark.parametrize(
    ("intensity", "expected"),
    [
        (Intensity(), [-300, 0, 100, 400]),
        (Intensity(-100, 200, 50, 10), [-15, -5, 5, 15]),
        (Intensity(low=-100), [-100, 0, 100, 400]),
        (Intensity(high=200), [-300, 0, 100, 200]),
        (Intensity(-100, 200, 50, 10, centered=True), [-15, -11, -1, 15]),
        (Intensity(statistics="range"), [0, 3 / 7, 4 / 7, 1]),
        (Intensity(-1, 1, 0.5, 2.0, statistics="z-score"), [-0.75, -0.35, -0.05, 0.25]),
    ],
)
def test_hu_become_the_network_s_input_by_the_intensity_of_the_card(intensity, expected):
    image = torch.tensor([-300.0, 0.0, 100.0, 400.0])
    if intensity.statistics == "z-score":
        scores = (image - image.mean()) / ((image - image.mean()) ** 2).mean().sqrt()
        expected = ((scores.clamp(-1, 1) - 0.5) / 2).tolist()
    torch.testing.assert_close(normalize(image, intensity, 60.0), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("statistics", ["z-score", "range"])
def test_statistics_may_be_those_of_another_image_and_an_even_image_is_zero(statistics):
    intensity = Intensity(statistics=statistics)
    assert not normalize(torch.full((2, 3, 4), 70.0), intensity).any()
    reference = torch.tensor([0.0, 4.0])
    expected = {"z-score": [3.0, -1.0], "range": [2.0, 0.0]}[statistics]
    assert normalize(torch.tensor([8.0, 0.0]), intensity, 0.0, reference).tolist() == expected


@pytest.mark.parametrize(
    ("intensity", "expected"),
    [
        (Intensity(-200, 300, 50, 100), -2.5),
        (Intensity(shift=-24, scale=10), -100.0),
        (Intensity(-900, 300, centered=True), -900.0),
        (Intensity(-1200, 300, centered=True), -1084.0),
        (Intensity(statistics="range"), 0.0),
    ],
)
def test_images_are_padded_with_air(intensity, expected):
    region = Region("liver", 10.0) if intensity.centered else None
    stage = voxel_stage(intensity=intensity, region=region, **LIVER_ONLY)
    plan = WindowPlan.build((1, 1, 1), None, divisor=(1, 1, 2))
    assert padded(torch.zeros(1, 1, 1), stage, plan, 60.0).tolist() == [[[0.0, pytest.approx(expected)]]]


def test_probabilities_are_kept_to_a_centimeter_around_a_structure_and_are_zero_where_no_score_is():
    volume = Volume(np.zeros((30, 40, 50), np.int16), np.diag([1.0, 2.0, 4.0, 1.0]))
    part = Box.between((8, 8, 8), (30, 40, 42))
    grid = volume.grid.cropped(part)
    logits = torch.full((2, *part.shape), -3.0)
    logits[0, 0:4, 10:14, 10:16] = 2.0
    stage = voxel_stage(**LIVER_ONLY)
    mask, probability = preprocessing_of(stage).read_scores(logits, stage, ["liver"], grid, volume)["liver"]
    assert mask.box == Box.between((5, 13, 8), (15, 27, 34))
    assert probability.grid.matches(volume.grid.cropped(mask.box))
    expected = np.full(mask.box.shape, 1 / (1 + np.exp(3)))
    expected[3:7, 5:9, 10:16] = 1 / (1 + np.exp(-2))
    expected[:3] = 0
    np.testing.assert_allclose(probability.array, expected, atol=1e-3)
    np.testing.assert_array_equal(mask.voxels, expected > 0.5)


def test_extreme_scores_do_not_move_the_border_of_a_structure():
    volume = Volume(np.zeros((24, 24, 24), np.int16), np.diag([1.0, 1.0, 1.0, 1.0]))
    grid = Grid((12, 12, 12), np.array([[2.0, 0, 0, 0.5], [0, 2.0, 0, 0.5], [0, 0, 2.0, 0.5], [0, 0, 0, 1]]))
    stage = voxel_stage(**LIVER_ONLY)
    found = []
    for inside, outside in ((20.0, -20.0), (900.0, -20.0), (20.0, -900.0), (19.0, -19.0)):
        logits = torch.full((2, *grid.shape), outside)
        logits[0, 4:8, 4:8, 4:8] = inside
        mask, _ = preprocessing_of(stage).read_scores(logits, stage, ["liver"], grid, volume)["liver"]
        found.append(mask.voxels)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    assert found[0].sum() == 8**3 - 8  # without its corners


def test_what_a_later_stage_will_not_decide_stays_as_it_is():
    """A last stage around tumors would segment the liver again; without a tumor the first stage's liver counts."""
    first = fields(name="all", spacing=(4.0,) * 3, labels={"liver": ("liver",), "tumor": ("tumor",)})
    last = first | {"name": "around tumors", "spacing": (2.0,) * 3, "region": Region("tumor", 60.0)}
    volume, truth = ball_phantom(GRID)
    without = volume.with_array(np.minimum(volume.array, 100).astype(np.int16))
    for image, runs in ((volume, True), (without, False)):
        result = segment(image, model_of([first, last], {"all": [Thresholds()], "around tumors": [Thresholds()]}))
        assert ("skipped" not in result.provenance["stages"][1]) == runs
        assert dice(result.mask("liver"), truth.array >= 1) > 0.96


# --- one pass, or several ------------------------------------------------------------------------------------------


def a_trained_unet(norm: str = "batch") -> nn.Module:
    torch.manual_seed(3)
    network = UNet(features=(4, 8, 12), norm=norm)
    for _ in range(3):
        network(torch.randn(2, 1, 16, 16, 16))
    return fold_batch_norms(network)


UNET_STAGE = replace(
    threshold_model().spec.stages[0],
    network="UNet",
    arguments={"features": [4, 8, 12]},
    window=None,
    layers=(LayerSpec("bottleneck", (4, 4, 4)),),
    default_layer="bottleneck",
)


def test_an_image_is_cut_only_where_its_activations_would_not_fit(monkeypatch):
    grid = Grid((60, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert len(stage_plan(UNET_STAGE, grid).boxes) == 1
    needed = activation_bytes(UNET_STAGE) * 60 * 40 * 40
    monkeypatch.setattr(stage_windows, "_PASS_BYTES", needed * 0.7)
    plan = stage_plan(UNET_STAGE, grid)
    assert [box[0] for box in plan.boxes] == [slice(0, 36), slice(24, 60)]
    assert plan.window == (36, 40, 40)
    # If even the smallest window is too large, the smallest is used.
    monkeypatch.setattr(stage_windows, "_PASS_BYTES", 1.0)
    assert stage_plan(UNET_STAGE, grid).window == (4, 4, 4)


def test_a_network_for_its_whole_field_of_view_is_never_cut(monkeypatch):
    monkeypatch.setattr(stage_windows, "_PASS_BYTES", 1.0)
    plan = stage_plan(replace(UNET_STAGE, spacing=None, size=(32, 32, 32)), Grid((32, 32, 32), np.eye(4)))
    assert plan.window == (32, 32, 32)


@pytest.mark.parametrize(
    ("shape", "changes", "count"),
    [
        ((8, 6, 4), {"overlap": 0.5}, 3 * 2),
        ((8, 6, 3), {"overlap": 0.25}, 3 * 2),
        ((8, 6, 4), {"overlap": 0.0}, 2 * 2),
        ((3, 8, 8), {"overlap": 0.0, "dimensions": 2}, 3 * 2 * 2),
    ],
)
def test_a_card_that_would_need_too_many_windows_is_refused(shape, changes, count, monkeypatch):
    stage = voxel_stage(window=(4, 4, 4), **LIVER_ONLY, **changes)
    monkeypatch.setattr(stage_windows, "_MOST_WINDOWS", count)
    assert len(stage_plan(stage, Grid(shape, np.eye(4))).boxes) == count
    monkeypatch.setattr(stage_windows, "_MOST_WINDOWS", count - 1)
    with pytest.raises(ModelError, match=f"in {count} windows, over {count - 1}"):
        stage_plan(stage, Grid(shape, np.eye(4)))


@pytest.mark.parametrize(
    ("shape", "changes", "box"),
    [
        ((96, 48, 208), {"divisor": (16, 16, 16)}, Box.between((16, 0, 72), (80, 48, 136))),
        ((96, 48, 240), {"divisor": (24, 24, 24)}, Box.between((24, 0, 96), (72, 48, 144))),
        ((128, 256, 200), {"divisor": (128, 128, 1)}, Box.between((0, 64, 68), (128, 192, 132))),
        ((100, 48, 200), {"window": (32, 32, 32)}, Box.between((34, 8, 84), (66, 40, 116))),
        ((100, 48, 200), {"dimensions": 2, "divisor": (4, 4, 4)}, Box.between((49, 0, 68), (50, 48, 132))),
    ],
)
def test_a_backend_is_tried_on_a_small_part_in_the_middle_that_the_network_accepts(shape, changes, box):
    stage = voxel_stage(**LIVER_ONLY, **changes)
    assert sample_box(stage_plan(stage, Grid(shape, np.eye(4))), stage) == box


def test_a_pass_takes_at_most_a_gigabyte_of_activations():
    fits = int(2**30 / activation_bytes(UNET_STAGE) / (128 * 128)) // 4 * 4
    for slices, windows in ((fits, 1), (fits + 4, 2)):
        grid = Grid((slices, 128, 128), np.diag([2.0, 2.0, 2.0, 1.0]))
        assert len(stage_plan(UNET_STAGE, grid).boxes) == windows


def test_cut_images_give_the_labels_of_one_pass(monkeypatch):
    network = a_trained_unet()
    image = noisy_ct((64, 32, 32)).array.astype(np.float32) / 120
    grid = Grid(image.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    whole = stage_plan(UNET_STAGE, grid)
    middle = (
        predict_logits([network], torch.from_numpy(image), UNET_STAGE, whole, RunContext(device=CPU))
        .flatten(1)
        .median(dim=1)
        .values
    )
    network.head.bias.data -= middle
    one = predict_logits([network], torch.from_numpy(image), UNET_STAGE, whole, RunContext(device=CPU))
    monkeypatch.setattr(stage_windows, "_PASS_BYTES", activation_bytes(UNET_STAGE) * 40 * 32 * 32)
    plan = stage_plan(UNET_STAGE, grid)
    assert len(plan.boxes) == 2
    two = predict_logits([network], torch.from_numpy(image), UNET_STAGE, plan, RunContext(device=CPU))
    assert 0.05 < float((one > 0).float().mean()) < 0.95
    assert float(((one > 0) == (two > 0)).float().mean()) > 0.999


def test_memory_and_operations_are_known_before_the_network_runs():
    network = a_trained_unet()
    # Two convolutions of 27 weights, 1 to 4 and 4 to 4 channels, and so on down and up again.
    first_level = 27 * (1 * 4 + 4 * 4 + 8 * 4 + 4 * 4) + 4 * 2
    second = 27 * (4 * 8 + 8 * 8 + 16 * 8 + 8 * 8) + 8 * 4 * 8
    third = 27 * (8 * 12 + 12 * 12) + 12 * 8 * 8
    expected = 2 * 16**3 * (first_level + second / 8 + third / 64)
    assert operations(network, (1, 1, 16, 16, 16)) == pytest.approx(expected)
    # Inputs of 8 channels and outputs of 4, at four bytes, and the same amount again.
    assert activation_bytes(UNET_STAGE) == 2 * 4 * (8 + 4)
    assert activation_bytes(replace(UNET_STAGE, network="PlainConvUNet")) is None


# --- the fast path and the plain one -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> Model:
    return load_model("default")


@pytest.fixture(scope="module")
def plain_bundled() -> Model:
    """The bundled model as trained: with separate batch norms, weights in the usual memory layout."""
    spec = registered("default").spec()
    folder = registered("default").folder()
    networks: dict[str, list[nn.Module]] = {}
    for stage in spec.stages:
        networks[stage.name] = []
        for name in stage.weights:
            network = build_network(stage.network, stage.arguments)
            network.load_state_dict(
                {
                    key: value.float() if value.is_floating_point() else value
                    for key, value in load_file(folder / name).items()
                }
            )
            networks[stage.name].append(network)
    return Model(spec, networks)


def test_folding_leaves_the_bundled_models_labels_as_they_are(bundled, plain_bundled):
    volume, _ = ball_phantom(Grid((40, 60, 60), np.diag([3.0, 3.0, 4.0, 1.0])), organ_mm=60)
    labels = [
        segment(volume, model, device="cpu", postprocessing=RAW).labels.array for model in (bundled, plain_bundled)
    ]
    assert (labels[0] == labels[1]).mean() > 0.99999


@pytest.mark.parametrize("case", ["chaos03", "ircad01"])
def test_the_fast_path_is_as_good_as_the_plain_one_on_cases_never_trained_on(
    case, bundled, plain_bundled, tmp_path, monkeypatch
):
    data = os.environ.get("LIVERXAI_TEST_DATA")
    if not data:
        pytest.skip("LIVERXAI_TEST_DATA is not set")
    monkeypatch.setattr(backends, "_cache_folder", lambda: tmp_path)
    folder = Path(data) / "ct" / case
    volume, liver = read_volume(folder / "image.nii.gz"), read_labels(folder / "liver.nii.gz").array > 0
    # The liver and 20 mm around it, every second row and column: more voxels would only be resampled by the same code.
    around = bounding_box(liver).grown([round(20 / size) for size in volume.spacing[::-1]], volume.shape)
    coarse = volume.cropped(around)
    volume = Volume(coarse.array[:, ::2, ::2], coarse.ijk_to_lps @ np.diag([2.0, 2.0, 1.0, 1.0]))
    truths = {"liver": liver[around][:, ::2, ::2]}
    if (folder / "tumor.nii.gz").exists():  # a lesion just above the threshold must not depend on the backend
        truths["tumor"] = read_labels(folder / "tumor.nii.gz").array[around][:, ::2, ::2] > 0
    plain = segment(volume, plain_bundled, device="cpu")
    assert dice(plain.mask("liver"), truths["liver"]) > 0.9
    for backend in backends.available_backends(CPU):
        fast = segment(volume, bundled, device="cpu", backend=backend)
        for name, truth in truths.items():
            assert abs(dice(fast.mask(name), truth) - dice(plain.mask(name), truth)) < 0.002, (backend, name)
        assert (fast.labels.array == plain.labels.array).mean() > backends._AGREEMENT[backend.split()[1]], backend


# --- foreign chains ------------------------------------------------------------------------------------------------


def a_foreign_chain(folder, margin_mm: float) -> Model:
    """A threshold that finds bright tissue, and an nnU-Net in the box around it."""
    foreign = load_nnunet(folder)
    (stage,) = foreign.spec.stages
    locator = StageSpec(**fields(name="locator", spacing=(6.0,) * 3, labels={"liver": ("liver",)}))
    fine = replace(stage, region=Region("liver", margin_mm))
    networks = {"locator": [Thresholds()], stage.name: foreign.members(stage)}
    return Model(replace(foreign.spec, stages=(locator, fine)), networks)


def test_an_nnunet_in_the_livers_box_says_what_nnunet_says_of_that_box_and_reads_a_tenth(tmp_path):
    from test_nnunet_equivalence import nnunet_says  # whose import takes seconds

    folder = make_folder(tmp_path, plans(patch_size=[16, 16, 16]))
    volume, _ = ball_phantom(Grid((72, 88, 86), np.diag([2.9, 2.8, 3.1, 1.0])), organ_mm=24.0, lesion_mm=8.0)
    noise = noisy_ct(volume.shape, (3.1, 2.8, 2.9)).array // 20
    volume = volume.with_array((volume.array + noise).astype(np.int16))
    model = a_foreign_chain(folder, margin_mm=10.0)
    result = segment(volume, model, device="cpu", postprocessing=RAW)
    stage = model.spec.stages[1]
    grid = result.stage_grids[stage.name]
    box = Box.full(grid.shape).projected(grid, volume.grid)
    _, _, theirs = nnunet_says(folder, volume.cropped(box))
    assert len(np.unique(theirs)) > 1
    assert (result.labels.array[box] == theirs).mean() >= 0.9999
    outside = np.ones(volume.shape, bool)
    outside[box] = False
    assert not result.labels.array[outside].any()
    # All windows cost the same, so this is the speed-up over running the network on the whole image.
    everywhere = stage_grids(volume, replace(stage, region=None))[0]
    assert len(stage_plan(stage, everywhere).boxes) >= 10 * len(stage_plan(stage, grid).boxes)


class Local(nn.Module):
    """A network with a receptive field of adjacent voxels: no window or box can change its output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv3d(6, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_in_the_box_labels_are_those_of_the_whole_field_of_view():
    """Compare with the network on the whole image: equal in the box, on the same grid without interpolation."""
    volume, _ = ball_phantom(Grid((80, 80, 80), np.diag([2.0, 2.0, 2.0, 1.0])), organ_mm=30.0)
    noise = noisy_ct(volume.shape, (2.0, 2.0, 2.0)).array // 10
    volume = volume.with_array((volume.array + noise).astype(np.int16))
    network = Local()
    fine = fields(
        name="liver",
        spacing=(None,) * 3,
        labels={"liver": ("liver",), "tumor": ("tumor",)},
        region=Region("liver", 10.0),
    )
    locator = fields(name="locator", spacing=(6.0,) * 3, labels={"liver": ("liver",)})
    model = model_of([locator, fine], {"locator": [Thresholds()], "liver": [network]})
    everywhere = model_of([{**fine, "region": None}], {"liver": [network]})
    boxed = segment(volume, model, device="cpu", postprocessing=RAW)
    whole = segment(volume, everywhere, device="cpu", postprocessing=RAW)
    grid = boxed.stage_grids["liver"]
    box = Box.full(grid.shape).projected(grid, volume.grid)
    # At the outermost voxels the convolution uses padding instead of neighbors.
    inner = tuple(slice(s.start + 2, s.stop - 2) for s in box)
    assert bounding_box(whole.labels.array[inner]) is not None
    assert (boxed.labels.array[inner] == whole.labels.array[inner]).mean() > 0.9999
