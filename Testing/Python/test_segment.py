# SPDX-License-Identifier: Apache-2.0
"""segment() puts the right labels in the right place, whatever the image's geometry."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from toys import Thresholds, ball_phantom, dice, model_of, threshold_model

from LiverXAILib.errors import Cancelled, DeviceError, ModelError
from LiverXAILib.inference import Postprocessing, lesion_components, segment
from LiverXAILib.inference.postprocess import clean_lesions, clean_organ
from LiverXAILib.inference.stages import logit_margin
from LiverXAILib.models import Region
from LiverXAILib.progress import CancelToken
from LiverXAILib.volumes.volume import Grid, Volume

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
    rules = Postprocessing(False, False, False, 0.0)
    result = segment(volume, threshold_model(), device="cpu", postprocessing=rules)
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

    def progress(stage: str, fraction: float) -> None:
        seen.append(fraction)
        token.cancel()

    with pytest.raises(Cancelled):
        segment(volume, threshold_model(), device="cpu", progress=progress, cancel=token)
    assert len(seen) == 1


def test_progress_rises_to_one():
    volume, _ = ball_phantom(a_grid(np.diag(SPACING)))
    seen: list[float] = []
    segment(volume, threshold_model(), device="cpu", progress=lambda stage, fraction: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 4


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "xpu"])
def test_a_device_that_is_not_there_is_refused_in_words(name):
    volume, _ = ball_phantom(a_grid(np.diag(SPACING), np.array([20, 20, 20])))
    with pytest.raises(DeviceError, match=r"[Dd]evice"):
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


def test_certainty_is_asked_for_labels_of_the_stage_only():
    with pytest.raises(ModelError, match="peak_threshold"):
        threshold_model(peak_threshold={"vessel": 1.0})
