# SPDX-License-Identifier: Apache-2.0
"""nnU-Net folders are supported completely or refused with a reason, and loaded models can be explained."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_folders import architecture, make_folder, noisy_ct, plans

from LiverXAILib.cli import main
from LiverXAILib.errors import ModelError
from LiverXAILib.explain import METHODS, explain
from LiverXAILib.explain.methods import METHODS as ALL_METHODS
from LiverXAILib.explain.score import build_score
from LiverXAILib.explain.stage_context import StageContext
from LiverXAILib.explain.stitching import stage_maps
from LiverXAILib.explain.targets import Target
from LiverXAILib.inference import Postprocessing, segment
from LiverXAILib.models import Model, load_model
from LiverXAILib.models.formats.nnunet import load_nnunet
from LiverXAILib.models.registry import ImportOptions, ModelNotes
from LiverXAILib.volumes.io import write_volume

RAW = Postprocessing(False, False, False, 0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("nnunet"), plans(patch_size=[16, 16, 16], spacing=[4.0, 4.0, 4.0]))


@pytest.fixture
def changed(trained, tmp_path):
    """Make copies of the trained folder with changes in the files."""

    def change(
        *, plan: Any = None, dataset: dict[str, Any] | None = None, checkpoint: dict[str, Any] | None = None
    ) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(trained, folder)
        if plan is not None:
            old = json.loads((folder / "plans.json").read_text())
            (folder / "plans.json").write_text(json.dumps(plan(old)))
        if dataset is not None:
            old = json.loads((folder / "dataset.json").read_text())
            (folder / "dataset.json").write_text(json.dumps({**old, **dataset}))
        if checkpoint is not None:
            path = folder / "fold_0" / "checkpoint_final.pth"
            torch.save({**torch.load(path, weights_only=False), **checkpoint}, path)
        return folder

    return change


def in_configuration(**changes: Any) -> Any:
    def change(plan: dict[str, Any]) -> dict[str, Any]:
        plan["configurations"]["3d_fullres"].update(changes)
        return plan

    return change


def at_top(**changes: Any) -> Any:
    return lambda plan: {**plan, **changes}


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trainer", ["STUNetTrainer_small_ft", "nnUNetTrainerMedNeXt", "nnUNetTrainerUMambaBot", "nnUNetTrainerBN", "Mine"]
)
def test_trainers_that_may_change_the_network_are_refused_by_name(trainer, changed):
    with pytest.raises(ModelError, match=trainer):
        load_nnunet(changed(checkpoint={"trainer_name": trainer}))


@pytest.mark.parametrize(
    "trainer",
    [
        "nnUNetTrainerNoMirroring",
        "nnUNetTrainer_4000epochs_NoMirroring",
        "nnUNetTrainer_DASegOrd0_NoMirroring",
        "nnUNetTrainerSkeletonRecall",
        "nnUNetTrainerDiceTopK10Loss",
        "nnUNetTrainer_onlyMirror01_1500ep",
        "nnUNetTrainerDA5_10epochs",
    ],
)
def test_trainers_that_change_only_the_training_are_accepted(trainer, changed):
    assert trainer in load_nnunet(changed(checkpoint={"trainer_name": trainer})).spec.version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": in_configuration(previous_stage="3d_lowres")}, "cascade"),
        ({"plan": in_configuration(architecture={**architecture("MedNeXt")})}, "MedNeXt"),
        (
            {"plan": in_configuration(architecture={**architecture("x"), "network_class_name": "os.PlainConvUNet"})},
            r"os\.PlainConvUNet",
        ),
        ({"plan": in_configuration(preprocessor_name="MyPreprocessor")}, "MyPreprocessor"),
        ({"plan": in_configuration(resampling_fn_data="my_resampling")}, "my_resampling"),
        ({"plan": in_configuration(normalization_schemes=["RGBTo01Normalization"])}, "RGBTo01Normalization"),
        ({"plan": at_top(image_reader_writer="NaturalImage2DIO")}, "NaturalImage2DIO"),
        ({"plan": at_top(label_manager="MyLabels")}, "MyLabels"),
        ({"plan": at_top(configurations={})}, "3d_fullres"),
        ({"plan": in_configuration(inherits_from="3d_fullres")}, "3d_fullres"),
        ({"dataset": {"channel_names": {"0": "CT", "1": "PET"}}}, "2 input channels"),
        ({"dataset": {"labels": {"background": 0, "liver": 1, "tumor": 3}}}, "without gaps"),
        ({"dataset": {"labels": {"background": 0, "liver": 1}}}, "do not fit"),
        ({"checkpoint": {"init_args": None}}, "init_args is not a mapping"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(changes, message, changed):
    with pytest.raises(ModelError, match=message):
        load_nnunet(changed(**changes))


def test_only_known_kinds_of_layers_are_built(changed):
    described = architecture("PlainConvUNet")
    described["arch_kwargs"]["nonlin"] = "os.system"
    with pytest.raises(ModelError, match=r"os\.system"):
        load_nnunet(changed(plan=in_configuration(architecture=described)))


def test_files_that_are_missing_or_broken_are_named(changed):
    folder = changed()
    (folder / "plans.json").write_text("{")
    with pytest.raises(ModelError, match=r"plans\.json cannot be understood"):
        load_nnunet(folder)
    (folder / "plans.json").unlink()
    with pytest.raises(ModelError, match=r"plans\.json is missing"):
        load_nnunet(folder)


def test_a_folder_without_a_trained_network_is_refused(changed):
    folder = changed()
    shutil.rmtree(folder / "fold_0")
    with pytest.raises(ModelError, match="no trained network"):
        load_nnunet(folder)


def test_of_several_models_in_a_folder_one_must_be_named(trained, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / "several" / name)
    with pytest.raises(ModelError, match=r"several.*: a, b"):
        load_model(tmp_path / "several")
    assert load_model(tmp_path / "several" / "a").spec.name == "Dataset900_Toy"


# --- what is understood -------------------------------------------------------------------------------------------


def test_names_of_liver_and_lesions_become_ours(changed):
    folder = changed(dataset={"labels": {"background": 0, "Liver": 1, "Liver_Lesions": 2}})
    spec = load_nnunet(folder).spec
    assert [(label.name, label.value, label.parent) for label in spec.labels] == [
        ("liver", 1, None),
        ("tumor", 2, "liver"),
    ]
    assert spec.stages[0].labels == {"liver": ("Liver", "Liver_Lesions"), "tumor": ("Liver_Lesions",)}
    own = load_nnunet(folder, notes=ModelNotes(ImportOptions(labels={"Liver_Lesions": "cyst"}, keep=("cyst",)))).spec
    assert [(label.name, label.parent) for label in own.labels] == [("cyst", None)]


def test_segments_and_vessels_get_their_codes(changed):
    spec = load_nnunet(changed(dataset={"labels": {"background": 0, "liver_segment_4": 1, "liver_vessels": 2}})).spec
    assert [label.type[1] for label in spec.labels] == ["277958008", "59820001"]
    assert not any(label.is_liver or label.is_lesion for label in spec.labels)


def test_notes_beside_the_files_say_what_the_files_do_not(changed):
    folder = changed()
    (folder / "liverxai.json").write_text(json.dumps({"reading": {"axes": "SAR"}, "license": "CC0", "title": "Mine"}))
    spec = load_model(folder).spec
    assert (spec.stages[0].axes, spec.license, spec.title) == ("SAR", "CC0", "Mine")
    (folder / "liverxai.json").write_text(json.dumps({"axes": "SAR"}))
    with pytest.raises(ModelError, match="unknown fields: axes"):
        load_model(folder)


def test_the_layer_explained_by_default_is_in_the_middle_of_the_decoder(trained):
    stage = load_nnunet(trained).spec.stages[0]
    assert stage.default_layer == "decoder.stages.0"
    strides = {layer.name: layer.stride for layer in stage.layers}
    assert strides["encoder.stages.2"] == (4, 4, 4)
    assert strides["decoder.stages.0"] == (2, 2, 2)
    assert strides["decoder.stages.1"] == (1, 1, 1)


# --- explanations -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def analyzed(trained):
    """A model, a CT, and its segmentation by the model."""
    model, volume = load_nnunet(trained), noisy_ct((16, 16, 24), (4.0, 4.0, 4.0))
    return model, volume, segment(volume, model, device="cpu", postprocessing=RAW)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_an_nnunet(method, analyzed):
    model, volume, segmentation = analyzed
    heat = explain(volume, model, segmentation, "tumor", method, device="cpu")
    assert heat.heatmap.grid.matches(volume.grid)
    assert np.isfinite(heat.heatmap.array).all()
    assert heat.heatmap.array.max() == pytest.approx(1.0)


def raw_map(model: Model, volume: Any, segmentation: Any, method: str, layer: str) -> torch.Tensor:
    stage = model.spec.stages[0]
    run = StageContext.prepare(volume, model, stage, segmentation, torch.device("cpu"))
    question = build_score(Target.parse("tumor"), segmentation, model, run)
    (result,) = stage_maps(run, [question], ALL_METHODS[method], layer)
    return result.values


@pytest.mark.parametrize("method", ["seg-grad-cam", "hires-cam"])
def test_averaging_mirrored_windows_averages_their_explanations(method, trained):
    # One window of the image's size, and a layer of the same resolution: mirroring then maps cells onto cells.
    volume = noisy_ct((16, 16, 16), (4.0, 4.0, 4.0))
    plain = load_nnunet(trained, notes=ModelNotes(ImportOptions(mirroring=False)))
    both = Model(_with_mirroring(plain.spec, (2,)), plain.networks)
    segmentation = segment(volume, both, device="cpu", postprocessing=RAW)
    flipped = volume.with_array(volume.array[:, :, ::-1].copy())
    mirrored = segmentation.labels.with_array(segmentation.labels.array[:, :, ::-1].copy())
    reflection = type(segmentation)(mirrored, segmentation.specs, stage_grids=segmentation.stage_grids)
    layer = "decoder.stages.1"
    one = raw_map(plain, volume, segmentation, method, layer)
    other = raw_map(plain, flipped, reflection, method, layer).flip(2)
    torch.testing.assert_close(raw_map(both, volume, segmentation, method, layer), (one + other) / 2)


def _with_mirroring(spec: Any, axes: tuple[int, ...]) -> Any:
    return dataclasses.replace(spec, stages=(dataclasses.replace(spec.stages[0], mirror_axes=axes),))


def test_a_lesion_of_an_nnunet_folder_is_explained_from_the_command_line(trained, tmp_path, capsys):
    write_volume(noisy_ct((16, 16, 24), (4.0, 4.0, 4.0)), tmp_path / "ct.nii.gz")
    words = ["analyze", str(tmp_path / "ct.nii.gz"), "--model", str(trained), "--output", str(tmp_path / "out")]
    assert main([*words, "--device", "cpu", "--explain", "lesion:1", "--no-report"]) == 0, capsys.readouterr().err
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["segmentation"]["model"]["name"] == "Dataset900_Toy"
    assert len(provenance["explanations"]) == 1
    assert (tmp_path / "out" / "segmentation.seg.nrrd").is_file()
    assert list((tmp_path / "out").glob("heatmap-*.nrrd"))


def test_checkpoints_written_with_an_older_numpy_are_read(changed):
    folder = changed()
    path = folder / "fold_0" / "checkpoint_final.pth"
    with zipfile.ZipFile(path) as file:
        members = {pass_index.filename: file.read(pass_index) for pass_index in file.infolist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    old = members[pickled].replace(b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar")
    assert old != members[pickled]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(name, old if name == pickled else content)
    assert load_nnunet(folder).spec.name == "Dataset900_Toy"
