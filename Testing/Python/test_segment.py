# SPDX-License-Identifier: Apache-2.0
"""segment() puts the right labels in the right place, whatever the image's geometry."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from math import log

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn
from toys import Thresholds, ball_phantom, dice, model_of, threshold_model

from LiverXAILib.context import RunContext
from LiverXAILib.errors import Cancelled, DeviceError, InputError, ModelError, UsageError
from LiverXAILib.inference import Postprocessing, Segmentation, lesion_components, segment, select_device
from LiverXAILib.inference.lesions import candidate_components, lesion_at, lesion_count, lesion_mask, lesion_place
from LiverXAILib.inference.masks import Mask
from LiverXAILib.inference.mirrored import find_mirrored_liver
from LiverXAILib.inference.postprocess import clean_lesions, clean_organ
from LiverXAILib.inference.segmenter import _clean, run_stage
from LiverXAILib.inference.sensitivity import at_sensitivity, choose_point, named_points, operating_points
from LiverXAILib.inference.stages import logit_margin, preprocessing_of
from LiverXAILib.models import LIVER, TUMOR, LabelSpec, Model, Region
from LiverXAILib.models.spec import OperatingPoint
from LiverXAILib.progress import CancelToken
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.orientation import reorient
from LiverXAILib.volumes.volume import Grid, Volume

RAW = Postprocessing(False, False, False, 0.0)
SPACING = np.array([2.2, 1.9, 2.6])
SHAPE_IJK = np.array([50, 56, 44])


def a_grid(matrix: np.ndarray, shape_ijk: np.ndarray = SHAPE_IJK) -> Grid:
    full = np.eye(4)
    full[:3, :3] = matrix
    full[:3, 3] = (13.0, -40.0, 100.0)
    i, j, k = (int(n) for n in shape_ijk)
    return Grid((k, j, i), full)


def all_orientations() -> list[np.ndarray]:
    matrices = []
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3))
        for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
            matrix[row, column] = sign * SPACING[column]
        matrices.append(matrix)
    return matrices


SHEAR = np.array([[1, 0, 0], [0, 1, 0.33], [0, 0, 0.94]])
ODD_GEOMETRIES = {
    "slightly oblique": Rotation.from_euler("xyz", [4, -6, 5], degrees=True).as_matrix() * SPACING,
    "strongly oblique": Rotation.from_euler("xyz", [25, -40, 15], degrees=True).as_matrix() * SPACING,
    "left-handed oblique": Rotation.from_euler("xyz", [4, -6, 5], degrees=True).as_matrix() * SPACING * (1, 1, -1),
    "tilted gantry": SHEAR * SPACING,
}


@pytest.mark.parametrize("matrix", all_orientations())
def test_all_48_orientations_give_the_same_anatomy(matrix):
    volume, truth = ball_phantom(a_grid(matrix))
    result = segment(volume, threshold_model(), device="cpu")
    assert dice(result.mask("liver"), truth.array >= 1) > 0.96
    assert dice(result.mask("tumor"), truth.array == 2) > 0.88


@pytest.mark.parametrize("name", ODD_GEOMETRIES)
def test_oblique_left_handed_and_sheared_images_give_the_same_anatomy(name):
    volume, truth = ball_phantom(a_grid(ODD_GEOMETRIES[name], SHAPE_IJK + 14))
    result = segment(volume, threshold_model(), device="cpu")
    assert result.labels.grid.matches(volume.grid)
    assert dice(result.mask("liver"), truth.array >= 1) > 0.95
    assert dice(result.mask("tumor"), truth.array == 2) > 0.85


@pytest.mark.parametrize("axes", ["SPL", "LAI", "RAS", "IPR"])
def test_a_network_may_read_any_axis_order(axes):
    volume, truth = ball_phantom(a_grid(np.diag(SPACING)))
    result = segment(volume, threshold_model(axes=axes), device="cpu")
    assert dice(result.mask("tumor"), truth.array == 2) > 0.88


def test_without_windows_or_with_a_fixed_size_the_result_is_the_same():
    volume, truth = ball_phantom(a_grid(np.diag(SPACING)))
    for changes in ({"window": None}, {"spacing": None, "size": (56, 56, 56)}, {"overlap": 0.0}):
        result = segment(volume, threshold_model(**changes), device="cpu")
        assert dice(result.mask("liver"), truth.array >= 1) > 0.96


def test_a_scan_longer_than_the_field_of_view_is_searched_in_parts():
    volume, truth = ball_phantom(a_grid(np.diag(SPACING), np.array([50, 56, 180])))
    model = threshold_model(spacing=None, size=(64, 48, 48), field_of_view_mm=(130.0, None, None), crop_to_body=False)
    result = segment(volume, model, device="cpu")
    assert result.stage_grids["all"].shape == (64, 48, 48)
    assert dice(result.mask("liver"), truth.array >= 1) > 0.95


def test_a_second_stage_runs_only_around_what_the_first_found():
    coarse = {
        "name": "coarse",
        "network": "Thresholds",
        "arguments": {},
        "weights": ("none",),
        "sha256": ("0",),
        "axes": "SPL",
        "spacing": (6.0, 6.0, 6.0),
        "channels": ("liver", "tumor"),
        "labels": {"liver": ("liver",)},
        "layers": threshold_model().spec.stages[0].layers,
        "default_layer": "smooth",
        "activation": "sigmoid",
    }
    fine = {
        **coarse,
        "name": "fine",
        "spacing": (1.5, 1.5, 1.5),
        "region": Region("liver", 10.0),
        "labels": {"liver": ("liver",), "tumor": ("tumor",)},
    }
    volume, truth = ball_phantom(a_grid(np.diag(SPACING), np.array([90, 90, 80])))
    result = segment(volume, model_of([coarse, fine], {"coarse": [Thresholds()], "fine": [Thresholds()]}), device="cpu")
    box = result.stage_grids["fine"]
    size_mm = np.array(box.shape[::-1]) * box.spacing
    assert (size_mm < 45 * 2 + 2 * 10 + 20).all()
    assert dice(result.mask("liver"), truth.array >= 1) > 0.97
    assert dice(result.mask("tumor"), truth.array == 2) > 0.9
    empty = volume.with_array(np.full(volume.shape, -1000, np.int16))
    nothing = segment(empty, model_of([coarse, fine], {"coarse": [Thresholds()], "fine": [Thresholds()]}))
    assert not nothing.labels.array.any()
    assert "No liver was found" in nothing.provenance["warnings"][0]


def test_a_liver_too_small_to_be_one_is_pointed_out():
    """A few milliliters, such as a network may find in a head."""
    grid = a_grid(np.diag(SPACING), np.array([90, 90, 80]))
    small, _ = ball_phantom(grid, organ_mm=10, lesion_mm=1)
    usual, _ = ball_phantom(grid)
    for volume, hint in ((small, True), (usual, False)):
        warnings = segment(volume, threshold_model(), device="cpu").provenance["warnings"]
        assert any("hardly any: the marked volume is" in warning for warning in warnings) is hint


def test_probabilities_are_high_inside_and_agree_with_the_labels():
    volume, _ = ball_phantom(a_grid(np.diag(SPACING)))
    result = segment(volume, threshold_model(), device="cpu", postprocessing=RAW)
    probability = result.probabilities["tumor"]
    full = np.zeros(volume.shape, bool)
    start = np.round(volume.grid.to_ijk(probability.grid.origin)).astype(int)[::-1]
    box = tuple(slice(a, a + n) for a, n in zip(start, probability.shape, strict=True))
    full[box] = probability.array > 0.5
    np.testing.assert_array_equal(full, result.mask("tumor"))


def test_a_liver_cut_by_the_image_border_is_reported():
    volume, _ = ball_phantom(a_grid(np.diag(SPACING), np.array([50, 56, 20])))
    result = segment(volume, threshold_model(), device="cpu")
    assert any("border" in warning for warning in result.provenance["warnings"])


def test_cancel_stops_before_the_next_window():
    volume, _ = ball_phantom(a_grid(np.diag(SPACING)))
    token, seen = CancelToken(), []

    def progress(step: str, fraction: float) -> None:
        seen.append(fraction)
        token.cancel()

    with pytest.raises(Cancelled):
        segment(volume, threshold_model(), device="cpu", progress=progress, cancel=token)
    assert len(seen) == 1


def test_progress_rises_to_one():
    volume, _ = ball_phantom(a_grid(np.diag(SPACING)))
    seen: list[float] = []
    segment(volume, threshold_model(), device="cpu", progress=lambda step, fraction: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 4


def test_each_window_of_each_network_is_one_step_of_the_progress():
    volume, _ = ball_phantom(a_grid(np.diag([2.0] * 3), np.array([40, 32, 32])))
    stage = replace(threshold_model().spec.stages[0], weights=("a", "b"), sha256=("0", "1"), overlap=0.0)
    model = Model(replace(threshold_model().spec, stages=(stage,)), {"all": [Thresholds(), Thresholds()]})
    seen: list[float] = []
    segment(volume, model, device="cpu", progress=lambda step, fraction: seen.append(fraction))
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_a_graphics_card_is_preferred_where_there_is_one(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert select_device().type == select_device("auto").type == expected
    for name, there in (("cuda:0", cuda), ("cuda:1", False), ("mps", mps), ("cpu", True)):
        if there:
            assert str(select_device(name)) == name
        else:
            with pytest.raises(DeviceError, match="was requested"):
                select_device(name)


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("gpu", UsageError, r"There is no device 'gpu'\. Use auto, cpu"),
        ("xpu", UsageError, r"There is no device 'xpu'\. Use auto, cpu"),
        ("cuda:99", DeviceError, "Device 'cuda:99' was requested, but torch"),
    ],
)
def test_a_device_that_does_not_exist_is_refused_in_words(name, error, sentence):
    volume, _ = ball_phantom(a_grid(np.diag(SPACING), np.array([20, 20, 20])))
    with pytest.raises(error, match=sentence):
        segment(volume, threshold_model(), device=name)


def test_softmax_margin_is_positive_exactly_where_the_argmax_is_in_the_region():
    stage = threshold_model(
        activation="softmax",
        channels=("background", "liver", "tumor"),
        labels={"liver": ("liver", "tumor"), "tumor": ("tumor",)},
    ).spec.stages[0]
    logits = torch.randn(3, 9, 9, 9)
    best = logits.argmax(0)
    assert torch.equal(logit_margin(logits, stage, "liver") > 0, best >= 1)
    assert torch.equal(logit_margin(logits, stage, "tumor") > 0, best == 2)


def test_organ_rules_keep_the_largest_piece_and_fill_it():
    mask = np.zeros((20, 20, 20), bool)
    mask[2:12, 2:12, 2:12] = True
    mask[6, 6, 6] = False
    mask[16:18, 16:18, 16:18] = True
    cleaned = clean_organ(mask, Postprocessing())
    assert cleaned[6, 6, 6]
    assert not cleaned[16, 16, 16]
    np.testing.assert_array_equal(clean_organ(mask, Postprocessing(False, False)), mask)


def test_lesion_rules_drop_what_is_small_or_mostly_outside_the_organ():
    organ = np.zeros((30, 30, 30), bool)
    organ[5:20, 5:20, 5:20] = True
    lesions = np.zeros_like(organ)
    lesions[8:12, 8:12, 8:12] = True
    lesions[18:22, 10:14, 10:14] = True
    lesions[10:14, 19:23, 10:14] = True
    lesions[26:30, 26:30, 26:30] = True
    lesions[15, 15, 15] = True
    kept = clean_lesions(lesions, organ, 1.0, Postprocessing(min_lesion_ml=0.01))
    assert kept[9, 9, 9]
    assert kept[21, 11, 11], "half in the organ"
    assert not kept[12, 19:23, 12].any(), "a quarter in the organ"
    assert not kept[27, 27, 27]
    assert not kept[15, 15, 15]
    kept = clean_lesions(lesions, organ, 1.0, Postprocessing(lesions_in_liver=False, min_lesion_ml=0.01))
    assert kept[27, 27, 27]


@pytest.mark.parametrize(("voxels", "stays"), [(50, True), (49, False)])
def test_a_lesion_of_exactly_the_least_volume_stays(voxels, stays):
    lesions = np.zeros((4, 10, 10), bool)
    lesions[1].ravel()[:voxels] = True
    assert clean_lesions(lesions, lesions, 1.0, Postprocessing()).any() == stays
    anywhere = Postprocessing(lesions_in_liver=False, min_lesion_ml=0.1)
    assert clean_lesions(lesions, ~lesions, 2.0, anywhere).any() == stays


def test_lesions_are_numbered_from_the_largest():
    volume, _ = ball_phantom(a_grid(np.diag(SPACING)))
    image = volume.array.copy()
    k, j, i = (n // 2 for n in image.shape)
    image[k - 8 : k - 5, j - 8 : j - 5, i - 8 : i - 5] = 200
    result = segment(Volume(image, volume.ijk_to_lps), threshold_model(spacing=(1.5, 1.5, 1.5)), device="cpu")
    numbers = lesion_components(result)
    sizes = np.bincount(numbers.ravel())[1:]
    assert len(sizes) == 2
    assert sizes[0] > sizes[1]


def test_a_lesion_that_the_network_is_nowhere_sure_of_is_dropped_and_the_others_stay():
    grid = Grid((40, 44, 48), np.diag([1.5, 1.5, 1.5, 1.0]))
    k, j, i = np.indices(grid.shape)
    image = np.full(grid.shape, 100, dtype=np.int16)
    sure, doubtful = ((k - 20) ** 2 + (j - 22) ** 2 + (i - middle) ** 2 < 49 for middle in (14, 32))
    image[sure], image[doubtful] = 160, 160  # a logit of 1 ...
    image[18:23, 20:25, 12:17] = 200  # ... and in one place nearly 5
    volume = Volume(image, grid.ijk_to_lps)
    both = segment(volume, threshold_model(), device="cpu")
    one = segment(volume, threshold_model(peak_threshold={"tumor": 3.0}), device="cpu")
    assert (both.mask("tumor") & doubtful).any()
    np.testing.assert_array_equal(one.mask("tumor"), both.mask("tumor") & (i < 23))
    np.testing.assert_array_equal(one.mask("liver") | one.mask("tumor"), both.mask("liver") | both.mask("tumor"))
    np.testing.assert_array_equal(one.probabilities["tumor"].array, both.probabilities["tumor"].array)
    assert not segment(volume, threshold_model(peak_threshold={"tumor": 9.0}), device="cpu").mask("tumor").any()


@pytest.mark.parametrize("slice_mm", [0.5, 5.0])
def test_a_piece_that_is_connected_to_a_sure_lesion_only_between_the_images_voxels_does_not_count(slice_mm):
    stage = threshold_model(peak_threshold={"tumor": 3.0}).spec.stages[0]
    grid = Grid((24, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0]))
    logits = torch.full((2, *grid.shape), -6.0)
    logits[1, 4:10, 4:10, 4:10] = 1.0
    logits[1, 6, 6, 6] = 4.0  # the network is sure of this one ...
    logits[1, 10:16, 10:16, 10:16] = 1.0  # ... but not of this one, which touches it at a corner
    fine = Grid((int(48 / slice_mm), 96, 96), np.diag([0.5, 0.5, slice_mm, 1.0]))
    volume = Volume(np.zeros(fine.shape, np.int16), fine.ijk_to_lps)
    mask, probability = preprocessing_of(stage).read_scores(logits, stage, ["tumor"], grid, volume)["tumor"]
    found = np.zeros(fine.shape, bool)
    found[mask.box] = mask.voxels
    above = np.zeros(fine.shape, bool)
    above[fine.box_of(probability.grid)] = probability.array > 0.5
    near = fine.to_lps(np.argwhere(above)[:, ::-1]).max(axis=1) < 19.0
    assert found.any()
    np.testing.assert_array_equal(np.argwhere(found), np.argwhere(above)[near])
    assert not near.all()


def test_certainty_is_asked_for_labels_of_the_stage_only():
    with pytest.raises(ModelError, match="peak_threshold"):
        threshold_model(peak_threshold={"vessel": 1.0})


# --- what a user is told of a result ------------------------------------------------------------------------------


class Cutoffs(Thresholds):
    """Thresholds, and "darker than -50" as a third structure."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().forward(x), (-50 - x) / 10], dim=1)


VESSEL = LabelSpec("vessel", 3, (0, 0, 255), parent="liver")


def voxel_model(*labels: str, network: nn.Module | None = None, **changes) -> Model:
    """A model that reads the image's own voxels in one pass and decides the given labels."""
    names = ("liver", "tumor", "vessel")
    own = {"spacing": (None,) * 3, "window": None, "divisor": (1, 1, 1), "channels": names}
    stage = replace(threshold_model().spec.stages[0], **{**own, "labels": {x: (x,) for x in labels}, **changes})
    known = tuple(spec for spec in (LIVER, TUMOR, VESSEL) if spec.name in stage.labels)
    return Model(replace(threshold_model().spec, labels=known, stages=(stage,)), {"all": [network or Cutoffs()]})


def an_image(*parts: tuple[tuple[slice, ...], int], side_mm: float = 5.0) -> Volume:
    """Water with boxes of other HU."""
    image = np.zeros((20, 20, 20), np.int16)
    for box, hu in parts:
        image[box] = hu
    return Volume(image, np.diag([side_mm] * 3 + [1.0]))


def cube(*sides: tuple[int, int]) -> tuple[slice, ...]:
    return tuple(slice(*side) for side in sides)


@pytest.mark.parametrize(("sides", "hint"), [((9, 3, 3), False), ((11, 7, 1), True)])
def test_ten_milliliters_of_liver_need_no_hint(sides, hint):
    image = an_image((cube(*((5, 5 + side) for side in sides)), 100))  # voxels of 1/8 ml
    warnings = segment(image, voxel_model("liver", "tumor"), device="cpu").provenance["warnings"]
    assert ["the marked volume is 9.6 ml" in warning for warning in warnings] == [True] * hint


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("side", "told"), [((0, 12), True), ((1, 12), False), ((8, 19), False), ((8, 20), True)])
def test_only_a_liver_in_the_outermost_slice_reaches_the_border(axis, side, told):
    sides = [(5, 15)] * 3
    sides[axis] = side
    warnings = segment(an_image((cube(*sides), 100)), voxel_model("liver"), device="cpu").provenance["warnings"]
    assert ["reaches the border" in warning for warning in warnings] == [True] * told


def test_parts_of_the_liver_lie_in_it_unless_the_rules_are_off():
    inner, outer = cube((6, 9), (6, 9), (6, 9)), cube((17, 19), (2, 4), (2, 4))
    image = an_image((cube((4, 16), (4, 16), (4, 16)), 100), (inner, -100), (outer, -100))
    model = voxel_model("vessel", "tumor", "liver")
    ruled, free = (segment(image, model, device="cpu", postprocessing=rules) for rules in (None, RAW))
    inside = np.zeros(image.shape, bool)
    inside[inner] = True
    np.testing.assert_array_equal(ruled.mask("vessel"), inside)
    np.testing.assert_array_equal(ruled.mask("liver"), (image.array == 100) | inside)
    np.testing.assert_array_equal(free.mask("vessel"), image.array == -100)


@pytest.mark.parametrize("order", list(permutations((LIVER, TUMOR, VESSEL))))
def test_a_vessel_may_lie_where_only_a_lesion_says_that_there_is_liver(order):
    """Half of the lesion lies in the liver, which grows by the other half, and with it the room for vessels."""
    boxes = {"liver": cube((0, 8), (0, 8), (0, 8)), "tumor": cube((6, 10), (2, 6), (2, 6))}
    boxes["vessel"] = cube((5, 12), (3, 5), (3, 5))
    voxels = {name: np.zeros((16, 16, 16), bool) for name in boxes}
    for name, box in boxes.items():
        voxels[name][box] = True
    model = voxel_model(*boxes)
    cleaned = _clean(
        {name: Mask(Box.full((16, 16, 16)), mask) for name, mask in voxels.items()},
        Model(replace(model.spec, labels=order), model.networks),
        Postprocessing(),
        125.0,
    )
    liver = voxels["liver"] | voxels["tumor"]
    expected = {"liver": liver, "tumor": voxels["tumor"], "vessel": voxels["vessel"] & liver}
    for name, mask in expected.items():
        np.testing.assert_array_equal(cleaned[name].voxels, mask)


def test_lesions_that_are_found_before_the_liver_need_no_liver_to_lie_in():
    image = an_image((cube((4, 16), (4, 16), (4, 16)), 100), (cube((6, 9), (6, 9), (6, 9)), 200))
    (first,) = voxel_model("tumor", "liver").spec.stages
    last = replace(first, name="last", labels={"liver": ("liver",)}, region=Region("tumor", 60.0))
    stages = (replace(first, labels={"tumor": ("tumor",)}), last)
    model = Model(replace(threshold_model().spec, stages=stages), {"all": [Cutoffs()], "last": [Cutoffs()]})
    result = segment(image, model, device="cpu")
    np.testing.assert_array_equal(result.mask("tumor"), image.array == 200)
    np.testing.assert_array_equal(result.mask("liver"), image.array > 0)
    # Five millimeters are one voxel, and the margin ends at the border of the image.
    assert result.stage_grids["last"].shape == (20, 20, 20)
    near = replace(model.spec, stages=(stages[0], replace(last, region=Region("tumor", 5.0))))
    assert segment(image, Model(near, model.networks), device="cpu").stage_grids["last"].shape == (5, 5, 5)


def test_what_is_not_found_has_no_probabilities_and_what_is_not_in_the_card_no_mask():
    result = segment(an_image((cube((4, 16), (4, 16), (4, 16)), 100)), voxel_model("tumor", "liver"), device="cpu")
    assert set(result.probabilities) == {"liver"}
    assert not result.mask("tumor").any()
    with pytest.raises(UsageError, match="no label 'bone'"):
        result.mask("bone")


def test_the_report_of_a_stage_tells_its_grid_and_its_work():
    volume, _ = ball_phantom(a_grid(np.diag(SPACING)))
    result = segment(volume, threshold_model(spacing=(2.0, 2.5, 3.0)), device="cpu")
    (report,) = result.provenance["stages"]
    # 44 slices of 2.6 mm, 56 rows of 1.9 mm and 50 columns of 2.2 mm, in windows of 32 voxels that share half.
    assert (report["name"], report["shape"], report["windows"]) == ("all", [58, 43, 37], 3 * 2 * 2)
    assert report["spacing_mm"] == pytest.approx([3.0, 2.5, 2.0])
    assert all(seconds >= 0 for seconds in report["seconds"].values())


def test_an_image_whose_scores_do_not_fit_into_memory_is_refused(monkeypatch):
    model = threshold_model()
    volume = Volume(np.zeros((80, 40, 20), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    needed = 64_000 * 4 * (2 * 2 + 2)  # the scores of two labels, twice, and two weights, in single precision
    for limit, fits in ((needed, True), (needed - 1024, False)):
        monkeypatch.setenv("LIVERXAI_MAX_MEMORY", f"{limit // 1024}K")
        if fits:
            run_stage(volume, model, model.spec.stages[0], None, "auto", RunContext(device="cpu"))
        else:
            with pytest.raises(InputError, match="Stage 'all' of the model, on 20 x 40 x 80 voxels"):
                run_stage(volume, model, model.spec.stages[0], None, "auto", RunContext(device="cpu"))


class Answer(nn.Module):
    """A network whose output is made from its input by a function."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer(x)


def one_value(value: float):
    def answer(x: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(len(x), 3, *x.shape[2:])
        scores[0, 1, 2, 3, 4] = value
        return scores

    return answer


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        *((one_value(value), "not finite numbers") for value in (np.nan, np.inf, -np.inf)),
        (lambda x: torch.zeros(len(x), 2, *x.shape[2:]), r"shape \(2, 20, 20, 20\); .* must be \(3, 20, 20, 20\)"),
        (lambda x: torch.zeros(len(x), 3, *x[:, :, 1:].shape[2:]), r"shape \(3, 19, 20, 20\)"),
    ],
)
def test_a_network_that_does_not_answer_as_its_card_says_is_refused(answer, complaint):
    with pytest.raises(ModelError, match=complaint):
        segment(an_image(), voxel_model("liver", network=Answer(answer)), device="cpu")


# --- lesions, candidates, operating points ------------------------------------------------------------------------

SHAPE = (14, 18, 24)
#: Voxels of 10.3 cubic millimeters: five are a candidate.
MATRIX = np.array([[2.0, 0, 0, -7], [0, -2.0625, 0, 5], [0, 0, 2.5, 3], [0, 0, 0, 1]])
ORGAN = cube((1, 13), (2, 16), (2, 18))
LESION = cube((2, 4), (3, 5), (3, 5))
BELOW = {
    "touches the lesion at a corner": (cube((4, 5), (5, 6), (5, 11)), 0.7),
    "too small": (cube((6, 7), (5, 6), (12, 16)), 0.9),
    "one half of two that touch at a corner": (cube((8, 9), (4, 6), (4, 6)), 0.9),
    "the other half": (cube((9, 10), (6, 8), (6, 8)), 0.7),
    "half in the liver": (cube((8, 9), (10, 11), (15, 21)), 0.9),
    "mostly outside": (cube((11, 12), (10, 11), (15, 22)), 0.9),
    "just large enough": (cube((6, 7), (5, 6), (5, 10)), 0.9),
    "not marked": (cube((11, 12), (13, 14), (4, 10)), 0.5),
    "barely marked": (cube((8, 9), (14, 15), (4, 10)), 0.501),
}


def marked(kind: type = np.float16, tumor: str = "tumor") -> Segmentation:
    """A liver with a lesion, and pieces that the model marks but does not count."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[ORGAN], labels[LESION] = 1, 2
    values = np.zeros(SHAPE, kind)
    values[LESION] = 0.97
    for box, value in BELOW.values():
        values[box] = value
    part = Box.between((1, 1, 1), SHAPE)
    volume = Volume(labels, MATRIX)
    return Segmentation(
        volume, (LIVER, TUMOR), {tumor: Volume(values[part], volume.grid.cropped(part).ijk_to_lps)}, {}, {}
    )


def numbered(*names: tuple[str, ...]) -> np.ndarray:
    numbers = np.zeros(SHAPE, np.int32)
    for number, pieces in enumerate(names, 1):
        for name in pieces:
            numbers[BELOW[name][0]] = number
    return numbers


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_candidates_are_large_enough_in_the_liver_and_no_rims_of_lesions(kind):
    halves = ("one half of two that touch at a corner", "the other half")
    expected = numbered(halves, ("half in the liver",), ("barely marked",), ("just large enough",))
    np.testing.assert_array_equal(candidate_components(marked(kind)), expected)


def test_a_structure_that_is_part_of_nothing_has_candidates_anywhere():
    found = candidate_components(marked(tumor="liver"), "liver")
    # Within the liver everything is counted; what touches it is its rim.
    assert not found.any()
    away = replace(marked(tumor="liver"), labels=Volume(np.zeros(SHAPE, np.uint8), MATRIX))
    assert candidate_components(away, "liver").max() == 6
    assert not candidate_components(away).any()


def test_lesions_are_found_by_number_and_by_place():
    labels = np.zeros(SHAPE, np.uint8)
    labels[ORGAN] = 1
    small, large, twin = cube((3, 4), (3, 4), (3, 6)), cube((8, 10), (8, 10), (9, 12)), cube((11, 12), (5, 6), (3, 6))
    for box in (small, large, twin):
        labels[box] = 2
    volume = Volume(labels, MATRIX)
    result = Segmentation(volume, (LIVER, TUMOR))
    expected = np.zeros(SHAPE, np.int32)
    expected[large], expected[small], expected[twin] = 1, 2, 3
    numbers = lesion_components(result)
    np.testing.assert_array_equal(numbers, expected)
    assert lesion_count(result) == 3
    np.testing.assert_array_equal(lesion_mask(result, 2), expected == 2)
    place = lesion_place(expected == 2, volume.grid)
    assert place == tuple(volume.grid.to_lps(np.array([4, 3, 3])))
    assert lesion_at(numbers, volume.grid, place) == 2
    for away_mm, within, number in ((2.5, None, 2), (2.6, None, 0), (6.0, 6.0, 2), (6.1, 6.0, 0), (2.5, 1.0, 0)):
        assert lesion_at(numbers, volume.grid, (place[0], place[1], place[2] - away_mm), within) == number
    nothing = Segmentation(Volume(np.zeros(SHAPE, np.uint8), MATRIX), (LIVER, TUMOR))
    assert lesion_count(nothing) == lesion_components(nothing).max() == lesion_mask(nothing, 1).max() == 0
    assert lesion_at(lesion_components(nothing), volume.grid, place, 1e3) == 0


POINTS = (OperatingPoint(log(4), 1.2, 0.8), OperatingPoint(6.0, 0.1, 0.3), OperatingPoint(3.0, 0.4, 0.6))


def graded(*points: OperatingPoint):
    spec = threshold_model().spec
    stage = replace(spec.stages[0], operating_points={"tumor": points} if points else {})
    return replace(spec, stages=(stage,))


def test_operating_points_are_listed_from_sure_to_sensitive_and_named():
    least, sure, middle = POINTS
    assert operating_points(graded(*POINTS)) == (sure, middle, least)
    assert operating_points(graded(*POINTS), "vessel") == operating_points(graded()) == ()
    assert named_points(graded(*POINTS)) == {"specific": sure, "0.4": middle, "sensitive": least}
    assert list(named_points(graded(*POINTS))) == ["specific", "0.4", "sensitive"]
    assert named_points(graded(sure, least)) == {"specific": sure, "sensitive": least}
    assert named_points(graded(sure)) == {"specific": sure}
    assert choose_point(graded(*POINTS), "0.4") == middle
    assert choose_point(graded(*POINTS), "0.39") == sure
    assert choose_point(graded(*POINTS), "standard") is None
    with pytest.raises(UsageError, match=r"at most 0 false positives per case; the most specific one has 0\.1"):
        choose_point(graded(*POINTS), "0")
    with pytest.raises(UsageError, match="is not a sensitivity"):
        choose_point(graded(*POINTS), "-0.1")


def test_at_another_operating_point_whole_pieces_count_or_do_not():
    sensitive = POINTS[0]
    own = marked()
    changed = at_sensitivity(own, graded(*POINTS), "sensitive")  # a peak probability of 80 %
    halves = ("one half of two that touch at a corner", "the other half")
    gained = numbered((*halves, "half in the liver", "just large enough")) > 0
    np.testing.assert_array_equal(changed.mask("tumor"), own.mask("tumor") | gained)
    np.testing.assert_array_equal(changed.mask("liver"), own.mask("liver") | gained)
    assert changed.provenance["peak_probability"] == {"tumor": 0.8}
    said = {"asked": "sensitive", "peak": sensitive.peak, "false_per_case": 1.2, "sensitivity": 0.8}
    assert changed.provenance["sensitivity"] == said
    none = at_sensitivity(own, graded(*POINTS), "specific")
    assert not none.mask("tumor").any()
    np.testing.assert_array_equal(none.mask("liver"), own.mask("liver"))
    assert at_sensitivity(own, graded(*POINTS), "standard") is own
    bare = replace(own, probabilities={})
    assert at_sensitivity(bare, graded(*POINTS), "sensitive") is bare


def test_what_is_gained_at_an_operating_point_obeys_the_least_volume_and_what_counts_already_need_not():
    provenance = {"postprocessing": {"min_lesion_ml": 0.08}, "peak_probability": {"tumor": 0.9, "other": 0.6}}
    labels = np.array(marked().labels.array)
    labels[BELOW["too small"][0]] = 2
    own = replace(marked(), labels=Volume(labels, MATRIX), provenance=provenance)
    changed = at_sensitivity(own, graded(*POINTS), "sensitive")
    gained = numbered(("one half of two that touch at a corner", "the other half")) > 0
    np.testing.assert_array_equal(changed.mask("tumor"), own.mask("tumor") | gained)
    assert changed.provenance["peak_probability"] == {"tumor": 0.8, "other": 0.6}
    assert changed.provenance["postprocessing"] == provenance["postprocessing"]
    # Even if it is a single voxel, what counted is liver where its peak does not suffice.
    labels[BELOW["too small"][0]], labels[6, 5, 13] = 1, 2
    none = at_sensitivity(replace(own, labels=Volume(labels, MATRIX)), graded(*POINTS), "specific")
    assert not none.mask("tumor").any()


# --- a second look at mirrored images -----------------------------------------------------------------------------


def in_one_octant(x: torch.Tensor) -> torch.Tensor:
    """Bright tissue is liver, but only superior, posterior and left of the image's center."""
    scores = torch.full((len(x), 2, *x.shape[2:]), -10.0)
    k, j, i = (n // 2 for n in x.shape[2:])
    scores[:, 0, k:, j:, i:] = (x[:, 0, k:, j:, i:] - 50) / 10
    return scores


def one_sided(**changes) -> Model:
    own = {"spacing": (10.0,) * 3, "channels": ("liver", "tumor"), **changes}
    return voxel_model("liver", network=Answer(in_one_octant), **own)


def bright(**voxels: int) -> Volume:
    """Voxels of 1 ml: so many of them are bright in the octant from which a flip along these axes leads to the liver's.

    ``bright(_=9)`` is the liver's own octant.
    """
    image = np.zeros((20, 20, 20), np.int16)
    for axes, count in voxels.items():
        octant = np.zeros((10, 10, 10), np.int16)
        octant.ravel()[:count] = 100
        image[tuple(slice(0, 10) if axis in axes else slice(10, 20) for axis in "SPL")] = octant
    return Volume(image, np.diag([10.0, 10.0, 10.0, 1.0]))


FLIPS = {
    "L": "mirrored left to right",
    "P": "mirrored front to back",
    "S": "mirrored head to feet",
    "LP": "turned by 180 degrees about the long axis",
    "LS": "turned by 180 degrees about the front-to-back axis",
    "PS": "turned by 180 degrees about the left-to-right axis",
    "LPS": "mirrored along all axes",
}
SILENT = RunContext(device="cpu")


def second_look(volume: Volume, model: Model, *, sure: bool = True) -> tuple[str, int, int] | None:
    """What a second look finds: how the image is mirrored, and the liver with and without it, in whole ml."""
    found = find_mirrored_liver(volume, model, SILENT, sure=sure)
    return None if found is None else (found.how, round(found.mirrored_ml), round(found.found_ml))


@pytest.mark.parametrize("stored", ["SPL", "LAI"])
@pytest.mark.parametrize("axes", FLIPS)
def test_a_mirrored_image_is_told_by_the_liver_that_appears_when_it_is_flipped_back(axes, stored):
    volume = reorient(bright(**{axes: 300}), stored)
    found = (FLIPS[axes], 300, 0)
    assert second_look(volume, one_sided()) == found
    likely = axes in ("L", "LP", "P", "S")
    assert second_look(volume, one_sided(), sure=False) == (found if likely else None)


@pytest.mark.parametrize(
    ("here", "there", "told"),
    [(0, 99, False), (0, 101, True), (100, 199, False), (100, 201, True), (600, 719, False), (600, 721, True)],
)
def test_only_much_more_liver_tells_that_an_image_is_mirrored(here, there, told):
    expected = (FLIPS["P"], there, here) if told else None
    assert second_look(bright(_=here, P=there), one_sided()) == expected


@pytest.mark.parametrize(("first", "second", "best"), [(300, 400, "P"), (400, 300, "L"), (300, 300, "L")])
def test_the_flip_with_the_most_liver_is_named(first, second, best):
    assert second_look(bright(L=first, P=second), one_sided()) == (FLIPS[best], max(first, second), 0)


def test_scattered_voxels_are_no_liver_of_a_mirrored_image():
    volume = bright(L=1000)
    image = np.array(volume.array)
    image[::2] = image[:, ::2] = 0
    assert second_look(volume.with_array(image), one_sided()) is None


@pytest.mark.parametrize(
    ("spacing", "looked"), [((3.0,) * 3, True), ((3.0, 3.0, 2.9), False), ((None, 10.0, 10.0), False)]
)
def test_on_a_mere_suspicion_only_a_stage_on_a_coarse_grid_looks_again(spacing, looked):
    assert (second_look(bright(L=300), one_sided(spacing=spacing), sure=False) is not None) == looked
    assert second_look(bright(L=300), one_sided(spacing=None, size=(20,) * 3), sure=False) is None


def test_the_first_stage_that_finds_the_liver_in_the_whole_image_looks_again():
    (liver,) = one_sided().spec.stages
    tumors = replace(liver, name="tumors", labels={"tumor": ("tumor",)})
    inner = replace(liver, name="inner", region=Region("tumor", 10.0))
    networks = {name: [Answer(in_one_octant)] for name in ("all", "tumors", "inner")}
    spec = threshold_model().spec
    chain = Model(replace(spec, stages=(tumors, inner, liver)), networks)
    assert second_look(bright(L=300), chain) == (FLIPS["L"], 300, 0)
    blind = Model(replace(spec, stages=(tumors, inner)), networks)
    assert second_look(bright(L=300), blind) is None


def test_a_second_look_can_be_cancelled_and_reports_no_windows():
    seen: list[str] = []
    context = RunContext(lambda step, fraction: seen.append(step), CancelToken(), "cpu")
    assert find_mirrored_liver(bright(L=300), one_sided(), context, sure=True) is not None
    assert seen == []
    context.cancel.cancel()
    with pytest.raises(Cancelled):
        find_mirrored_liver(bright(L=300), one_sided(), context, sure=True)
