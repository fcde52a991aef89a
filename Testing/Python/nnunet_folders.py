# SPDX-License-Identifier: Apache-2.0
"""Trained-model folders written by nnU-Net's own trainer, with random weights and small networks."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from LiverXAILib.volumes.volume import Grid, Volume

LABELS = {"background": 0, "liver": 1, "tumor": 2}


def plans(configuration: str = "3d_fullres", *, old: bool = False, **changes: Any) -> dict[str, Any]:
    """Plans of a small network; `changes` replace entries of the configuration or, if they are there, of the plans."""
    flat = configuration == "2d"
    dimensions = 2 if flat else 3
    strides = [[1] * dimensions, [2] * dimensions, [2] * dimensions]
    data = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    settings: dict[str, Any] = {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [24] * dimensions,
        "spacing": [3.0] * dimensions,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": {**data, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**data, "order": 1},
        "batch_dice": True,
    }
    if old:
        settings |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": [2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2],
            "num_pool_per_axis": [2] * dimensions,
            "pool_op_kernel_sizes": strides,
            "conv_kernel_sizes": [[3] * dimensions] * 3,
        }
    else:
        settings["architecture"] = architecture("PlainConvUNet", dimensions)
    top: dict[str, Any] = {
        "dataset_name": "Dataset900_Toy",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 60.0, "std": 70.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}
        },
    }
    for key, value in changes.items():
        (top if key in top else settings)[key] = value
    return {**top, "configurations": {configuration: settings}}


def architecture(name: str, dimensions: int = 3) -> dict[str, Any]:
    """The network's description in new plans."""
    blocks = {"n_conv_per_stage": [2, 2, 2]} if name == "PlainConvUNet" else {"n_blocks_per_stage": [1, 2, 2]}
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * 3,
            "strides": [[1] * dimensions, [2] * dimensions, [2] * dimensions],
            **blocks,
            "n_conv_per_stage_decoder": [2, 2],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def make_folder(
    root: Path,
    plan: dict[str, Any],
    *,
    labels: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    folds: tuple[int | str, ...] = (0,),
    mirror_axes: tuple[int, ...] | None = None,
    trainer: str = "nnUNetTrainer",
    seed: int = 0,
) -> Path:
    """Let nnU-Net's trainer make networks and save them; returns the trained-model folder."""
    os.environ.update({name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")})
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    dataset = {
        "channel_names": {"0": "CT"},
        "labels": labels or LABELS,
        "numTraining": 1,
        "file_ending": ".nii.gz",
        **(dataset or {}),
    }
    configuration = list(plan["configurations"])[-1]
    trainer_class = type(trainer, (nnUNetTrainer,), {})
    for fold in folds:
        torch.manual_seed(seed + 17 * (fold if isinstance(fold, int) else 0))
        made = trainer_class(
            {**copy.deepcopy(plan), "continue_training": False}, configuration, fold, dataset, torch.device("cpu")
        )
        made.network = made.build_network_architecture(
            made.plans_manager, made.configuration_manager, 1, made.label_manager.num_segmentation_heads, True
        )
        made.network.apply(made.network.initialize)
        made.optimizer, _ = made.configure_optimizers()
        made.logger.log("mean_fg_dice", np.float32(0.5), 0)
        made.inference_allowed_mirroring_axes = mirror_axes
        made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    folder = Path(made.output_folder_base)
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def noisy_ct(
    shape: tuple[int, int, int] = (24, 30, 32), spacing_kji: tuple[float, float, float] = (4.0, 2.4, 2.5), seed: int = 1
) -> Volume:
    """A CT-like image: smooth structures from air to bone, with noise, so that random networks give varied outputs."""
    random = np.random.default_rng(seed)
    smooth = gaussian_filter(random.normal(size=shape), 4)
    image = 60 + 250 * smooth / smooth.std() + random.normal(scale=20, size=shape)
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(spacing_kji[::-1])
    matrix[:3, 3] = (-30, 10, 50)
    return Volume(np.clip(image, -1024, 1500).astype(np.int16), Grid(shape, matrix).ijk_to_lps)
