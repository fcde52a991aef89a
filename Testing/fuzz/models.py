# SPDX-License-Identifier: Apache-2.0
"""Model folders and archives: invalid cards, damaged or hostile weights, malicious code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batch_toys import write_model
from toys import ball_phantom

from LiverXAILib.inference import segment
from LiverXAILib.models import load_model
from LiverXAILib.models.downloads import checksum
from LiverXAILib.models.store import import_model
from LiverXAILib.volumes.volume import Grid

from .kind import BrokenPromiseError, Generator, Kind
from .mutate import change_json_file, damage, flip_bits

MARK_VARIABLE = "LIVERXAI_FUZZ_MARK"

_NNUNET_NETWORK = {
    "n_stages": 3,
    "features_per_stage": [2, 4, 4],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


class _Code:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ[MARK_VARIABLE],)


class Models(Kind):
    """Loads, imports and uses a model with changes in its files."""

    limit_s = 180.0
    limit_mb = 3000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        torch.set_num_threads(1)
        write_model(folder / "own")
        self._write_nnunet(folder / "nnunet")
        self._write_bundle(folder / "bundle")
        self._write_compiled(folder / "compiled")
        self.volume, _ = ball_phantom(Grid((16, 20, 20), np.diag([6.0, 6.0, 6.0, 1.0])))
        for name in ("own", "nnunet", "bundle"):
            load_model(folder / name)

    def run(self, rng: Generator, folder: Path) -> str:
        os.environ["XDG_DATA_HOME"] = str(folder / "data")
        if rng.random() < 0.15:
            import_model(self._hostile_archive(rng, folder))
            return "imported"
        name = ("own", "own", "nnunet", "bundle", "bundle", "compiled")[int(rng.integers(6))]
        shutil.copytree(self.base / name, folder / name)
        for _ in range(int(rng.integers(1, 3))):
            self._change(rng, folder / name)
        if rng.random() < 0.2:
            import_model(folder / name)
        model = load_model(folder / name)
        if name == "compiled":
            raise BrokenPromiseError("a compiled model that nobody trusts was opened")
        if rng.random() < 0.5:
            segmentation = segment(self.volume, model, device="cpu")
            if not np.isfinite(segmentation.labels.array).all():
                raise BrokenPromiseError("labels that are not numbers")
            return "segmented"
        return "loaded"

    def _change(self, rng: Generator, folder: Path) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        texts = [path for path in files if path.suffix == ".json"]
        weights = [path for path in files if path.suffix != ".json"]
        how = rng.random()
        if how < 0.7 or not weights:
            change_json_file(rng, texts[int(rng.integers(len(texts)))])
            return
        path = weights[int(rng.integers(len(weights)))]
        kind = int(rng.integers(6))
        if kind == 0:
            path.write_bytes(damage(rng, path.read_bytes()))
        elif kind == 1:
            path.write_bytes(flip_bits(rng, path.read_bytes(), most=1))
        elif kind == 2:
            torch.save(
                {"network_weights": _Code(), "trainer_name": "nnUNetTrainer", "init_args": {}, "a": _Code()}, path
            )
        elif kind == 3:
            path.write_bytes(pickle.dumps(_Code()))
        elif kind == 4:
            self._change_tensors(rng, path)
        else:
            path.unlink()
            (os.mkfifo if rng.random() < 0.5 else os.mkdir)(path)
        if path.is_file():
            self._vouch(rng, folder, path)

    def _vouch(self, rng: Generator, folder: Path, path: Path) -> None:
        """Forge a matching checksum and a trusted origin in the folder."""
        card = folder / "card.json"
        if card.is_file() and rng.random() < 0.8:
            try:
                data = json.loads(card.read_text())
                data["stages"][0]["sha256"] = [checksum(path)]
                card.write_text(json.dumps(data))
            except (ValueError, LookupError, TypeError, RecursionError):
                pass
        record = {"source": "x", "date": "y", "files": {}, "trusted": True}
        (folder / "origin.json").write_text(json.dumps(record))

    @staticmethod
    def _change_tensors(rng: Generator, path: Path) -> None:
        huge = torch.zeros(1).expand(10**6, 10**6)
        values = [
            torch.full((3, 3), float("nan")),
            torch.zeros(0),
            torch.zeros(3, dtype=torch.complex64),
            torch.zeros(2, 2).to_sparse(),
            huge,
            "text",
        ]
        state = {f"layer.{n}": values[int(rng.integers(len(values)))] for n in range(int(rng.integers(1, 4)))}
        whole: Mapping[str, Any] = {"network_weights": state, "trainer_name": "nnUNetTrainer", "init_args": {}}
        torch.save(whole if rng.random() < 0.5 else state, path)

    def _hostile_archive(self, rng: Generator, folder: Path) -> Path:
        path = folder / "model.zip"
        how = int(rng.integers(8))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for one in sorted((self.base / "own").rglob("*")):
                file.write(one, one.relative_to(self.base / "own"))
            if how == 0:
                for number in range(int(rng.integers(6000, 20_000))):
                    file.writestr(f"{number}", b"")
            elif how == 1:
                file.writestr("zeros", bytes(300_000_000))
            elif how == 2:
                names = ("../up", "/absolute", "a/../../up", "C:\\x", "..\\up", "a" * 5000, "con", "a\x00b")
                file.writestr(zipfile.ZipInfo(names[int(rng.integers(len(names)))]), b"x")
            elif how == 3:
                link = zipfile.ZipInfo("link")
                link.external_attr = (stat.S_IFLNK | 0o777) << 16
                file.writestr(link, "/etc")
            elif how == 4:
                file.writestr("/".join("d" * 1000) + "/deep", b"x")
        if how > 4:
            path.write_bytes(damage(rng, path.read_bytes()))
        return path

    # --- models that cases start from --------------------------------------------------------------------------------

    @staticmethod
    def _write_nnunet(folder: Path) -> None:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
        from torch import nn

        (folder / "fold_0").mkdir(parents=True)
        resampling = {"order": 1, "order_z": 0, "force_separate_z": None}
        configuration = {
            "patch_size": [16, 16, 16],
            "spacing": [6.0, 6.0, 6.0],
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": resampling,
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling,
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": _NNUNET_NETWORK,
            },
        }
        numbers = {"mean": 60.0, "std": 70.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}
        plans = {
            "dataset_name": "Dataset900_Toy",
            "plans_name": "nnUNetPlans",
            "transpose_forward": [0, 1, 2],
            "image_reader_writer": "SimpleITKIO",
            "foreground_intensity_properties_per_channel": {"0": numbers},
            "configurations": {"3d_fullres": configuration},
        }
        dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumor": 2}}
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset))
        layers = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
        torch.manual_seed(0)
        network = PlainConvUNet(input_channels=1, num_classes=3, **{**_NNUNET_NETWORK, **layers})
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0,),
        }
        torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")

    @staticmethod
    def _write_bundle(folder: Path) -> None:
        from monai.networks import nets

        for name in ("configs", "models"):
            (folder / name).mkdir(parents=True)
        network = {
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": "$len(@names)",
            "channels": [2, 4, 4],
            "strides": [2, 2],
        }
        config = {
            "names": ["background", "liver", "tumor"],
            "size": [32, 32, 32],
            "network_def": network,
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "LoadImaged", "keys": "image"},
                    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                    {"_target_": "Spacingd", "keys": "image", "pixdim": [6.0, 6.0, "$3 + 3"]},
                    {"_target_": "ScaleIntensityRanged", "a_min": -57, "a_max": 164, "b_min": 0.0, "b_max": 1.0},
                ],
            },
            "inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@size", "overlap": 0.5},
            "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "softmax": True}]},
        }
        channels = {"0": "background", "1": "liver", "2": "tumor"}
        metadata = {
            "name": "toy",
            "version": "1",
            "network_data_format": {
                "inputs": {"image": {"num_channels": 1}},
                "outputs": {"pred": {"channel_def": channels}},
            },
        }
        (folder / "configs" / "inference.json").write_text(json.dumps(config))
        (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
        torch.manual_seed(0)
        built = nets.UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=(2, 4, 4), strides=(2, 2))
        torch.save(built.state_dict(), folder / "models" / "model.pt")

    def _write_compiled(self, folder: Path) -> None:
        folder.mkdir()
        torch.jit.trace(torch.nn.Conv3d(1, 2, 1), torch.zeros(1, 1, 8, 8, 8)).save(str(folder / "network.ts"))
        card = json.loads((self.base / "own" / "card.json").read_text())
        card["stages"][0] |= {"network": "TorchScript", "weights": ["network.ts"], "layers": [], "default_layer": ""}
        card["stages"][0]["sha256"] = [checksum(folder / "network.ts")]
        (folder / "card.json").write_text(json.dumps(card))
