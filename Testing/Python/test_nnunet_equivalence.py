# SPDX-License-Identifier: Apache-2.0
"""Results for an nnU-Net folder equal those of nnU-Net: same network input, same scores, same labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_folders import LABELS, architecture, make_folder, noisy_ct, plans
from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from LiverXAILib.inference import Postprocessing, nnunet, segment, segmenter
from LiverXAILib.inference.stages import predict_logits, preprocessing_of, stage_grids, stage_input
from LiverXAILib.models import Model, StageSpec
from LiverXAILib.models.formats.nnunet import load_nnunet
from LiverXAILib.models.registry import ImportOptions, ModelNotes
from LiverXAILib.models.spec import NnUNet, Resampling
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.orientation import Reorientation
from LiverXAILib.volumes.volume import Grid, Volume

RAW = Postprocessing(False, False, False, 0.0)
CPU = torch.device("cpu")


def nnunet_says(folder: Path, volume: Volume, checkpoint: str = "checkpoint_final.pth", folds: Any = None):
    """Results of nnU-Net's predictor for an image: network input, scores, label map."""
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds, checkpoint)
    image, spacing = np.ascontiguousarray(volume.array)[None], list(volume.spacing[::-1])
    adapter = PreprocessAdapterFromNpy(
        [image],
        [None],
        [{"spacing": spacing}],
        [None],
        predictor.plans_manager,
        predictor.dataset_json,
        predictor.configuration_manager,
        num_threads_in_multithreaded=1,
    )
    prepared = next(adapter)
    data = torch.as_tensor(prepared["data"])
    logits = predictor.predict_logits_from_preprocessed_data(data)
    labels = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.label_manager,
        prepared["data_properties"],
        num_threads_torch=1,
    )
    return data[0], logits, labels


def we_say(model: Model, volume: Volume):
    """The same three from LiverXAI, the scores as segment() gets them."""
    stage = model.spec.stages[0]
    (grid,) = stage_grids(volume, stage)
    seen: list[torch.Tensor] = []

    def predict(*arguments: Any) -> torch.Tensor:
        logits = predict_logits(*arguments)
        seen.append(logits.clone())
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenter, "predict_logits", predict)
        labels = segment(volume, model, device="cpu", postprocessing=RAW).labels.array
    (logits,) = seen
    return stage_input(volume, stage, grid), logits, labels


def assert_equal_answers(ours, theirs, agreement: float = 0.9999):
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert one.shape == other.shape
    torch.testing.assert_close(ours[0], theirs[0].float(), atol=2e-6 * float(theirs[0].abs().max()), rtol=0)
    # Up to eight windows are summed, and each sum is rounded to the 11 bits of half precision.
    rounding = 8 * 2**-11 * float(theirs[1].abs().max())
    torch.testing.assert_close(ours[1].float(), theirs[1].float(), atol=rounding, rtol=0)
    assert (ours[2] == theirs[2]).mean() >= agreement
    assert len(np.unique(theirs[2])) > 1


TORCH_RESAMPLING = {
    f"resampling_fn_{what}": "resample_torch_fornnunet" for what in ("data", "seg", "probabilities")
} | {
    f"resampling_fn_{what}_kwargs": {"is_seg": what == "seg", "force_separate_z": None}
    for what in ("data", "seg", "probabilities")
}
REGIONS = {"labels": {"background": 0, "tumor": 2, "liver": [1, 2]}, "dataset": {"regions_class_order": [2, 1]}}
NESTED = {"labels": {"background": 0, "liver": [1, 2], "tumor": 2}, "dataset": {"regions_class_order": [1, 2]}}
INHERITED = plans()
INHERITED["configurations"]["3d_fullres_high"] = {"inherits_from": "3d_fullres", "patch_size": [16, 24, 20]}
THICK = {"spacing_kji": (7.0, 1.8, 2.0), "shape": (16, 40, 36)}


def resampling(**changes: Any) -> dict[str, Any]:
    """Settings for resizing images and scores alike."""
    rule = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None, **changes}
    return {f"resampling_fn_{what}_kwargs": rule for what in ("data", "probabilities")}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "isotropic, new plans": (plans(), {}, {}),
    "isotropic, old plans": (plans(old=True), {}, {}),
    "anisotropic plans": (plans(spacing=[6.0, 1.9, 1.9], patch_size=[8, 32, 32]), {}, {}),
    "thick slices": (plans(), {}, THICK),
    "two-dimensional": (plans("2d"), {"mirror_axes": (0, 1)}, {"shape": (6, 36, 40)}),
    "two-dimensional, thick slices": (plans("2d", spacing=[1.5, 1.5]), {}, {**THICK, "shape": (5, 40, 36)}),
    "regions": (plans(), REGIONS, {}),
    "nested regions": (plans(), NESTED, {}),
    "transposed": (plans(transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2]), {}, {}),
    "cyclically transposed": (
        plans(transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0], spacing=[2.0, 5.0, 3.0]),
        {},
        {},
    ),
    "two folds": (plans(), {"folds": (0, 1)}, {}),
    "mirrored": (plans(patch_size=[16, 16, 16]), {"mirror_axes": (0, 1, 2)}, {"shape": (14, 16, 18)}),
    "residual encoder": (plans(architecture=architecture("ResidualEncoderUNet")), {}, {}),
    "inherited configuration": (INHERITED, {}, {}),
    "image smaller than the patch": (plans(patch_size=[48, 40, 44]), {}, {"shape": (21, 30, 33)}),
    "resized by torch": (plans(**TORCH_RESAMPLING), {}, {}),
    "resized by torch, thick slices": (plans(**TORCH_RESAMPLING), {}, THICK),
    "cubic scores": (plans(**resampling()), {}, {}),
    "cubic scores, thick slices": (plans(**resampling()), {}, THICK),
    "slices resized apart without need": (plans(**resampling(force_separate_z=True)), {}, {}),
    "thick slices resized at once": (plans(**resampling(force_separate_z=False)), {}, THICK),
    "two thick axes": (plans(**resampling()), {}, {"spacing_kji": (7.0, 7.0, 1.8), "shape": (16, 14, 36)}),
    "z-score": (plans(normalization_schemes=["ZScoreNormalization"]), {}, {}),
    "rescaled to 0..1": (plans(normalization_schemes=["RescaleTo01Normalization"]), {}, {}),
    "not normalized": (plans(normalization_schemes=["NoNormalization"]), {}, {}),
    "ignore label": (plans(), {"labels": {**LABELS, "ignore": 3}}, {}),
}


def test_the_documentation_states_the_number_of_cases():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert f"for {len(CASES)} combinations of plans, labels and images" in page


@pytest.mark.parametrize("case", CASES)
def test_answers_are_nnunets(case, tmp_path):
    plan, folder, image = CASES[case]
    folder = make_folder(tmp_path, plan, **folder)
    volume = noisy_ct(**image)
    assert_equal_answers(we_say(load_nnunet(folder), volume), nnunet_says(folder, volume))


def a_stage(rules: NnUNet | None = None, **changes: Any) -> StageSpec:
    own = {"network": "Own", "axes": "SPL", "spacing": (5.0, 2.5, 2.0), "activation": "softmax", "default_layer": ""}
    base = {"name": "all", "arguments": {}, "weights": ("none",), "sha256": ("0",), "layers": ()}
    labels = {"liver": ("liver", "tumor"), "tumor": ("tumor",)}
    names = {"channels": ("background", "liver", "tumor"), "labels": labels}
    return StageSpec(**{**base, **own, **names, "nnunet": rules or NnUNet(), **changes})


def scores_on(grid: Grid) -> torch.Tensor:
    """Smooth scores of three channels with a liver and a tumor in the middle."""
    k, j, i = (torch.linspace(-1, 1, n) for n in grid.shape)
    distance = (k[:, None, None] ** 2 + j[None, :, None] ** 2 + (i[None, None, :] - 0.2) ** 2).sqrt()
    return torch.stack([torch.zeros(grid.shape), 4 - 8 * distance, 6 - 16 * distance])


@pytest.mark.parametrize(
    "rule",
    [Resampling(order=1), Resampling(order=3), Resampling(order=3, separate_z=True), Resampling(order=3, half=False)],
)
@pytest.mark.parametrize("axes", ["SPL", "jik"])
def test_scores_that_are_resized_in_blocks_are_those_of_the_whole_image(rule, axes, monkeypatch):
    volume = noisy_ct()
    stage = a_stage(NnUNet(scores=rule), axes=axes)
    (grid,) = stage_grids(volume, stage)
    readings = []
    for most in (nnunet._BLOCK, 3 * 20_000, 1):
        monkeypatch.setattr(nnunet, "_BLOCK", most)
        readings.append(preprocessing_of(stage).read_scores(scores_on(grid), stage, ["liver", "tumor"], grid, volume))
    for label, (mask, probability) in readings[0].items():
        assert mask.voxels.any()
        for other in readings[1:]:
            assert other[label][0].box == mask.box
            assert (other[label][0].voxels == mask.voxels).mean() > 0.9995
            np.testing.assert_allclose(other[label][1].array, probability.array, atol=1e-3)


def test_scores_on_the_image_s_own_voxels_are_read_within_a_centimeter_of_what_is_found():
    volume = Volume(np.ones((30, 40, 50), np.int16), np.diag([1.0, 2.0, 4.0, 1.0]))
    stage = a_stage(spacing=(None,) * 3)
    (grid,) = stage_grids(volume, stage)
    assert grid.matches(volume.grid)
    logits = torch.zeros((3, *grid.shape))
    logits[0] = 3
    logits[1, 8:12, 18:22, 18:24] = 5
    logits[2, 9:11, 19:21, 20:22] = 5.5
    found = preprocessing_of(stage).read_scores(logits, stage, ["liver", "tumor"], grid, volume)
    for label, inside, scores in (
        ("liver", (slice(8, 12), slice(18, 22), slice(18, 24)), (2.0, -3.0)),
        ("tumor", (slice(9, 11), slice(19, 21), slice(20, 22)), (0.5, -3.0)),
    ):
        mask, probability = found[label]
        assert mask.box == Box.between((5, 13, 8), (15, 27, 34))
        assert probability.grid.matches(volume.grid.cropped(mask.box))
        expected = np.zeros(volume.shape, bool)
        expected[inside] = True
        np.testing.assert_array_equal(mask.voxels, expected[mask.box])
        middle = tuple(side.start for side in inside)
        assert probability.array[tuple(np.subtract(middle, mask.box.start))] == pytest.approx(
            1 / (1 + np.exp(-scores[0])), abs=1e-3
        )
        assert probability.array[0, 0, 0] == pytest.approx(1 / (1 + np.exp(-scores[1])), abs=1e-3)
    nothing = preprocessing_of(stage).read_scores(logits[[0, 2, 2]] * 0, stage, ["liver", "tumor"], grid, volume)
    assert {label: (mask.voxels.any(), probability) for label, (mask, probability) in nothing.items()} == {
        "liver": (False, None),
        "tumor": (False, None),
    }


def test_an_image_of_zeros_or_of_one_thin_slice_has_a_grid():
    empty = Volume(np.zeros((8, 10, 12), np.int16), np.diag([2.0, 2.5, 5.0, 1.0]))
    assert [grid.shape for grid in stage_grids(empty, a_stage())] == [(8, 10, 12)]
    thin = Volume(np.ones((2, 10, 12), np.int16), np.diag([2.0, 2.5, 1.0, 1.0]))
    assert [grid.shape for grid in stage_grids(thin, a_stage())] == [(1, 10, 12)]
    wide = a_stage(spacing=(90.0, 90.0, 90.0))
    assert [grid.shape for grid in stage_grids(thin, wide)] == [(1, 1, 1)]


def test_an_image_with_an_empty_border_is_cut_as_nnunet_cuts_it(tmp_path):
    folder = make_folder(
        tmp_path, plans(normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[True]), folds=(0,)
    )
    image = np.zeros((34, 40, 46), np.int16)
    image[3:-2, 2:-4, 5:-7] = noisy_ct((29, 34, 34)).array
    image[10:12, 10:12, 10:12] = 0
    volume = Volume(image, noisy_ct().ijk_to_lps)
    theirs = nnunet_says(folder, volume)
    assert_equal_answers(we_say(load_nnunet(folder), volume), theirs)
    assert theirs[0].shape[2] < 34


def test_fold_all_and_the_best_checkpoint_are_used_where_there_is_nothing_else(tmp_path):
    folder = make_folder(tmp_path, plans(), folds=("all",))
    (folder / "fold_all" / "checkpoint_final.pth").rename(folder / "fold_all" / "checkpoint_best.pth")
    volume = noisy_ct((20, 24, 28))
    theirs = nnunet_says(folder, volume, "checkpoint_best.pth", ("all",))
    assert_equal_answers(we_say(load_nnunet(folder), volume), theirs)


def test_a_model_trained_on_canonical_images_sees_any_image_canonically(tmp_path):
    folder = make_folder(tmp_path, plans())
    stored = noisy_ct()
    # The same patient, stored with other axes: i runs to posterior, j to the left, k to inferior.
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0, 2.2, 0], [2.2, 0, 0], [0, 0, -4.0]])
    volume = Volume(stored.array, matrix)
    turn = Reorientation.to(volume.grid, "SAR")
    canonical = Volume(turn.apply(volume.array), turn.grid.ijk_to_lps)
    *theirs, labels = nnunet_says(folder, canonical)
    ours = we_say(load_nnunet(folder, notes=ModelNotes(ImportOptions(axes="SAR"))), volume)
    assert_equal_answers(ours, (*theirs, turn.invert(labels)))


def test_averaging_mirrored_windows_can_be_left_out(tmp_path):
    folder = make_folder(tmp_path, plans(), mirror_axes=(0, 1, 2))
    assert load_nnunet(folder).spec.stages[0].mirror_axes == (0, 1, 2)
    assert load_nnunet(folder, notes=ModelNotes(ImportOptions(mirroring=False))).spec.stages[0].mirror_axes == ()


def test_a_tilted_scan_is_straightened_for_a_model_of_canonical_images(tmp_path):
    model = load_nnunet(make_folder(tmp_path, plans()), notes=ModelNotes(ImportOptions(axes="SAR")))
    straight = noisy_ct()
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    matrix = straight.ijk_to_lps.copy()
    matrix[:3, :3] = turn @ matrix[:3, :3]
    result = segment(Volume(straight.array, matrix), model, device="cpu", postprocessing=RAW)
    assert result.labels.grid.matches(Grid(straight.shape, matrix))
    assert len(np.unique(result.labels.array)) > 1
