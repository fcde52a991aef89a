# SPDX-License-Identifier: Apache-2.0
"""MONAI bundles, compiled models and cascades of models: loaded without running code, and explained if possible."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks import nets
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, ScaleIntensityRanged, Spacingd
from nnunet_folders import make_folder, noisy_ct, plans
from toys import Thresholds, ball_phantom, dice, threshold_model

from LiverXAILib.context import RunContext
from LiverXAILib.errors import ModelError, UsageError
from LiverXAILib.explain import explain
from LiverXAILib.inference import Postprocessing, segment
from LiverXAILib.inference.stages import padded_input, predict_logits, stage_grids, stage_input, stage_plan
from LiverXAILib.models import load_model, registry
from LiverXAILib.models.downloads import checksum
from LiverXAILib.models.store import import_model
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.volume import Grid

REGISTRY_MODULE = sys.modules[registry.__module__]
RAW = Postprocessing(False, False, False, 0.0)
NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": "$len(@names)",
    "channels": [4, 8, 16],
    "strides": [2, 2],
    "num_res_units": 1,
    "norm": "batch",
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home folder for imports."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIVERXAI_MODELS", raising=False)


def a_volume():
    matrix = np.diag([2.0, 2.0, 3.0, 1.0])
    matrix[:3, 3] = (10, 20, 30)
    volume, truth = ball_phantom(Grid((32, 48, 48), matrix), 36.0, 12.0)
    noise = np.random.default_rng(0).normal(scale=10, size=volume.shape)
    return volume.with_array((volume.array + noise).astype(np.int16)), truth


def make_bundle(folder: Path, **changes: Any) -> Path:
    """A MONAI bundle with random weights; `changes` replace keys of its inference configuration."""
    config = {
        "imports": ["$import os"],
        "names": ["background", "liver", "tumor"],
        "size": [32, 32, 32],
        "network_def": NETWORK,
        "network": "$@network_def.to('cpu')",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, "$1 + 1"], "mode": "bilinear"},
                {
                    "_target_": "monai.transforms.ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": -57,
                    "a_max": 164,
                    "b_min": 0.0,
                    "b_max": 1.0,
                    "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": "@size",
            "sw_batch_size": 4,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            ],
        },
        **changes,
    }
    metadata = {
        "name": "Toy bundle",
        "version": "0.1.0",
        "network_data_format": {
            "inputs": {"image": {"num_channels": 1}},
            "outputs": {"pred": {"channel_def": {"0": "background", "1": "liver", "2": "tumor"}}},
        },
    }
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.manual_seed(3)
    arguments = {**{k: v for k, v in NETWORK.items() if k != "_target_"}, "out_channels": 3}
    network = nets.UNet(**arguments)
    torch.save({"model": network.state_dict()}, folder / "models" / "model.pt")
    return folder


# --- MONAI bundles ------------------------------------------------------------------------------------------------


def test_a_bundle_sees_the_image_and_scores_it_as_monai_does(tmp_path):
    folder, (volume, _) = make_bundle(tmp_path / "bundle"), a_volume()
    model = load_model(folder)
    stage = model.spec.stages[0]
    assert [label.name for label in model.spec.labels] == ["liver", "tumor"]
    assert (stage.axes, stage.spacing, stage.window, stage.overlap) == ("RAS", (2.0, 2.0, 2.0), (32, 32, 32), 0.5)
    (grid,) = stage_grids(volume, stage)
    ours = stage_input(volume, stage, grid)

    write_volume(volume, tmp_path / "ct.nii.gz")
    steps = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd("image", pixdim=(2.0, 2.0, 3.0), mode="bilinear"),
            ScaleIntensityRanged("image", -57, 164, 0.0, 1.0, clip=True),
        ]
    )
    theirs = steps({"image": tmp_path / "ct.nii.gz"})["image"][0]
    # At the image's own spacing nothing is interpolated: then axes, flips and intensities must agree exactly.
    fine = dataclasses.replace(stage, spacing=(2.0, 2.0, 3.0))
    (same,) = stage_grids(volume, fine)
    torch.testing.assert_close(stage_input(volume, fine, same), torch.as_tensor(theirs), atol=1e-5, rtol=0)

    inferer = SlidingWindowInferer((32, 32, 32), overlap=0.5, mode="gaussian")
    with torch.inference_mode():
        expected = inferer(ours[None, None], model.networks["bundle"][0])[0]
    plan = stage_plan(stage, grid)
    image = padded_input(volume, stage, grid, plan)
    logits = predict_logits(model.members(stage), image, stage, plan, RunContext(device="cpu"))
    # Windows are placed slightly differently if they do not divide the image evenly.
    agreement = (logits.argmax(0) == expected.argmax(0)).float().mean()
    assert agreement > 0.97


def test_a_bundle_is_explained_at_its_blocks(tmp_path):
    (volume, _), model = a_volume(), load_model(make_bundle(tmp_path / "bundle"))
    strides = [layer.stride[0] for layer in model.spec.stages[0].layers]
    assert max(strides) == 4
    assert strides[0] < max(strides) > strides[-1]
    segmentation = segment(volume, model, device="cpu", postprocessing=RAW)
    label = next(spec.name for spec in segmentation.specs if segmentation.mask(spec.name).any())
    heat = explain(volume, model, segmentation, label, device="cpu")
    assert heat.heatmap.array.max() == pytest.approx(1.0)


def test_a_bundle_that_scales_by_the_images_own_range(tmp_path):
    transforms = [
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": False},
        {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
    ]
    folder = make_bundle(tmp_path / "bundle", preprocessing={"_target_": "Compose", "transforms": transforms})
    volume, _ = a_volume()
    stage = load_model(folder).spec.stages[0]
    (grid,) = stage_grids(volume, stage)
    image = stage_input(volume, stage, grid)
    assert (float(image.min()), float(image.max())) == pytest.approx((-1.0, 1.0), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_def": {**NETWORK, "out_channels": "$__import__('os').getpid()"}}, "would run Python"),
        ({"network_def": {**NETWORK, "channels": "$[c for c in (4, 8, 16)]"}}, "would run Python"),
        ({"network_def": {**NETWORK, "channels": "$(4,) * 10**9"}}, "would run Python"),
        ({"network_def": {**NETWORK, "_target_": "os.system"}}, r"os\.system"),
        ({"network_def": {**NETWORK, "_target_": "DiNTS"}}, "DiNTS"),
        ({"network_def": {**NETWORK, "channels": [4, 8, 8]}}, "do not fit"),
        ({"network_def": {**NETWORK, "channels": "@network_def#channels"}}, "refers to itself"),
        ({"network_def": {**NETWORK, "channels": "%other.json::x"}}, "macro"),
        ({"preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Lambdad"}]}}, "Lambdad"),
        ({"preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "mine.Spacingd"}]}}, r"mine\.Spacingd"),
        ({"inferer": {"_target_": "SliceInferer", "roi_size": [32, 32]}}, "SliceInferer"),
        ({"inferer": 3}, "cannot be understood"),
    ],
)
def test_a_bundle_that_would_run_code_or_is_not_understood_is_refused(changes, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        load_model(make_bundle(tmp_path / "bundle", **changes))


def test_a_bundle_without_weights_is_refused_and_one_with_code_in_them_not_opened(tmp_path):
    folder = make_bundle(tmp_path / "bundle")
    torch.save(Thresholds(), folder / "models" / "model.pt")
    with pytest.raises(ModelError, match="could run code"):
        load_model(folder)
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(ModelError, match="download its weights"):
        load_model(folder)


def test_a_bundle_can_be_imported(tmp_path):
    name, _ = import_model(make_bundle(tmp_path / "bundle"))
    assert name == "Toy_bundle"
    assert load_model(name).spec.version == "0.1.0"


# --- compiled models -----------------------------------------------------------------------------------------------


def make_compiled(folder: Path, kind: str, **changes: Any) -> Path:
    """A model folder with a compiled model."""
    folder.mkdir()
    path = folder / ("network.ts" if kind == "TorchScript" else "network.pt2")
    network = Thresholds().eval()
    if kind == "TorchScript":
        torch.jit.trace(network, torch.zeros(1, 1, 8, 8, 8)).save(str(path))
    else:
        size = torch.export.Dim("size", min=2, max=512)
        shapes = {"x": {2: size, 3: torch.export.Dim("b", min=2, max=512), 4: torch.export.Dim("c", min=2, max=512)}}
        torch.export.save(torch.export.export(network, (torch.zeros(1, 1, 8, 12, 16),), dynamic_shapes=shapes), path)
    spec = threshold_model().spec
    stage = dataclasses.replace(
        spec.stages[0],
        **{
            "network": kind,
            "weights": (path.name,),
            "sha256": (checksum(path),),
            "layers": (),
            "default_layer": "",
            **changes,
        },
    )
    (folder / "card.json").write_text(dataclasses.replace(spec, name=kind, stages=(stage,)).to_json())
    return folder


@pytest.mark.parametrize("kind", ["TorchScript", "ExportedProgram"])
def test_a_compiled_model_segments_and_is_explained_by_occlusion_alone(kind, tmp_path):
    folder = make_compiled(tmp_path / "program", kind)
    with pytest.raises(ModelError, match="runs whatever code"):
        load_model(folder)
    with pytest.raises(ModelError, match="runs whatever code"):
        import_model(folder)
    import_model(folder, trust=True)
    model = load_model(kind)
    volume, truth = a_volume()
    segmentation = segment(volume, model, device="cpu")
    assert dice(segmentation.mask("liver"), truth.array >= 1) > 0.9
    with pytest.raises(UsageError, match="method 'occlusion'"):
        explain(volume, model, segmentation, "tumor", device="cpu")
    heat = explain(volume, model, segmentation, "tumor", "occlusion", device="cpu")
    assert heat.heatmap.array.max() == pytest.approx(1.0)


def test_a_compiled_model_that_changed_after_its_import_is_not_opened(tmp_path):
    import_model(make_compiled(tmp_path / "program", "TorchScript"), "mine", trust=True)
    (path,) = (tmp_path / "home").rglob("network.ts")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelError, match="SHA-256"):
        load_model("mine")


def test_a_file_that_is_not_a_compiled_model_is_refused(tmp_path):
    folder = make_compiled(tmp_path / "program", "TorchScript")
    (folder / "network.ts").write_bytes(b"nothing")
    card = json.loads((folder / "card.json").read_text())
    card["stages"][0]["sha256"] = [checksum(folder / "network.ts")]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder, trust=True)


# --- chains -------------------------------------------------------------------------------------------------------


def test_a_chain_looks_for_lesions_where_the_liver_was_found(tmp_path, monkeypatch):
    def entry(labels: list[dict[str, Any]], **reading: Any) -> dict[str, Any]:
        about = {
            "title": "A toy",
            "task": "for tests",
            "labels": labels,
            "licenses": {"code": "MIT", "weights": "MIT", "data": "MIT"},
            "source": "here",
        }
        archive = {"url": "https://example.org/x.zip"}
        return {"kind": "archive", "about": about, "archive": archive, "reading": {"axes": "SAR", **reading}}

    liver = {"name": "liver", "value": 1, "color": [1, 2, 3], "type": ["SCT", "10200004", "Liver"]}
    tumor = {
        "name": "tumor",
        "value": 2,
        "color": [1, 2, 3],
        "category": ["SCT", "49755003", "Morphologically Altered Structure"],
    }
    chain = entry([liver, {**tumor, "parent": "liver"}])
    del chain["archive"], chain["reading"]
    chain |= {
        "kind": "chain",
        "chain": [
            {"model": "coarse", "labels": ["liver"]},
            {"model": "fine", "labels": ["tumor"], "region": {"label": "liver", "margin_mm": 6.0}},
        ],
    }
    models = {"coarse": entry([liver], keep=["liver"]), "fine": entry([tumor], keep=["tumor"]), "both": chain}
    path = tmp_path / "registry.json"
    path.write_text(json.dumps({"version": 1, "models": models}))
    monkeypatch.setattr(REGISTRY_MODULE, "_REGISTRY", path)
    coarse = plans(patch_size=[16, 16, 16], spacing=[6.0, 6.0, 6.0])
    import_model(make_folder(tmp_path / "a", coarse, seed=5), "coarse")
    assert not registry()["both"].installed()
    with pytest.raises(ModelError, match="download fine"):
        load_model("both")
    import_model(make_folder(tmp_path / "b", plans(patch_size=[16, 16, 16])), "fine")
    assert registry()["both"].installed()

    model, volume = load_model("both"), noisy_ct((20, 24, 26), (5.0, 4.0, 4.0))
    assert [stage.name for stage in model.spec.stages] == ["coarse/nnunet", "fine/nnunet"]
    assert model.spec.stage_of("tumor").name == "fine/nnunet"
    segmentation = segment(volume, model, device="cpu")
    assert set(segmentation.stage_grids) == {"coarse/nnunet", "fine/nnunet"}
    assert segmentation.mask("liver").any()
    assert segmentation.mask("tumor").any()
    np.testing.assert_allclose(segmentation.stage_grids["fine/nnunet"].spacing, 3.0, rtol=0.2)
    heat = explain(volume, model, segmentation, "tumor", device="cpu")
    assert heat.provenance["stage"] == "fine/nnunet"
