# SPDX-License-Identifier: Apache-2.0
"""Run the same CT through other pipelines, with random weights: this measures their speed, not their quality.

Each peer is timed on a few of its windows, which all cost the same, and the time is multiplied by the number of windows
it would process. Work before and after the network is counted only where this is stated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..inference.backends import choose_backend, forward, keep_freed_memory
from ..inference.stages import sample_box, stage_grids, stage_plan
from ..models import Model, Region
from ..models.formats.nnunet import load_nnunet
from ..volumes.box import Box
from ..volumes.resample import regrid
from ..volumes.volume import Volume

#: MONAI's model zoo: window, overlap and spacing (i, j, k) of its spleen and liver U-Nets.
_ZOO_WINDOW, _ZOO_OVERLAP, _ZOO_SPACING = 96, 0.5, (1.5, 1.5, 2.0)
#: Features of nnU-Net's default network.
_NNUNET_FEATURES = (32, 64, 128, 256, 320, 320)
#: nnU-Net's plans for the liver task of the Medical Segmentation Decathlon.
_NNUNET_PATCH, _NNUNET_SPACING = (128, 128, 128), (1.0, 0.7676, 0.7676)
#: TotalSegmentator's 3 mm recipe: one network for all classes.
_TOTAL_PATCH, _TOTAL_SPACING, _TOTAL_CLASSES = (112, 112, 128), (3.0, 3.0, 3.0), 118


MONAI_ZOO = "MONAI sliding window, model-zoo U-Net"
MONAI_SAME = "our last network, MONAI sliding window over the whole image"
TOTAL = "TotalSegmentator-like 3 mm recipe, nnU-Net's predictor"
NNUNET_FULL = "nnU-Net 3d_fullres, nnU-Net's predictor over the whole image"
NNUNET_BOX = "the same nnU-Net by LiverXAI, in the liver's box"


@dataclass
class Peer:
    """Another way to segment the CT.

    :param window: computes one window.
    :param windows: the number of windows of the whole CT.
    :param around: measured seconds of the work before and after the network; None: not counted.
    """

    name: str
    window: Callable[[], object]
    windows: int
    around: float | None = None
    note: str = ""


def peers(volume: Volume, model: Model, liver: Box, folder: Path) -> Iterator[Peer | tuple[str, str]]:
    """Yield each peer that can run here; for the others (name, reason).

    :param liver: the box (k, j, i) around the liver, in which a foreign network would run.
    :param folder: an empty folder for the files of random nnU-Nets.
    """
    makers = {
        MONAI_ZOO: _monai_zoo,
        MONAI_SAME: _monai_same_network,
        TOTAL: _total,
        NNUNET_FULL: _nnunet_full,
        NNUNET_BOX: _nnunet_box,
    }
    for name, make in makers.items():
        try:
            yield make(volume, model, liver, folder)
        except ImportError as error:
            yield name, f"skipped: {error.name} is not installed"
        except _NotComparable as reason:
            yield name, f"skipped: {reason}"


class _NotComparable(Exception):
    """The reason why a peer cannot be compared with this model."""


def _monai_zoo(volume: Volume, model: Model, liver: Box, folder: Path) -> Peer:
    from monai.networks.nets import UNet

    network = UNet(3, 1, 3, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch").eval()
    grid = regrid(volume.grid, _ZOO_SPACING)
    around = _monai_around(volume, _ZOO_SPACING)
    run, count = _monai_window(network, grid.shape)
    return Peer(MONAI_ZOO, run, count, around, "resampling in both directions and argmax included")


def _monai_same_network(volume: Volume, model: Model, liver: Box, folder: Path) -> Peer:
    stage = model.spec.stages[-1]
    if stage.dimensions == 2:
        raise _NotComparable("the network reads slices")
    if stage.size is not None:
        raise _NotComparable("the network reads the whole field of view at a fixed size")
    # Without a region, HU have no reference to be centered on; this does not change the number of windows.
    alone = dataclasses.replace(stage, region=None, intensity=dataclasses.replace(stage.intensity, centered=False))
    shape = stage_grids(volume, alone)[0].shape
    run, count = _monai_window(model.members(stage)[0], shape)
    return Peer(MONAI_SAME, run, count, None, "network only")


def _total(volume: Volume, model: Model, liver: Box, folder: Path) -> Peer:
    run, count = _predictor_window(random_total(folder), volume, overlap=0.2)
    return Peer(TOTAL, run, count, None, "network only")


def random_total(folder: Path) -> Path:
    """Write a folder in nnU-Net's format into `folder`, with a network like TotalSegmentator's at 3 mm."""
    return _random_nnunet(folder / "total", _TOTAL_CLASSES, _TOTAL_PATCH, _TOTAL_SPACING)


def _nnunet_full(volume: Volume, model: Model, liver: Box, folder: Path) -> Peer:
    trained = _random_nnunet(folder / "liver", 3, _NNUNET_PATCH, _NNUNET_SPACING)
    run, count = _predictor_window(trained, volume, overlap=0.5)
    return Peer(NNUNET_FULL, run, count, None, "network only, no mirroring")


def _nnunet_box(volume: Volume, model: Model, liver: Box, folder: Path) -> Peer:
    foreign = load_nnunet(_random_nnunet(folder / "liver", 3, _NNUNET_PATCH, _NNUNET_SPACING))
    (network,) = foreign.members(foreign.spec.stages[0])
    stage = dataclasses.replace(foreign.spec.stages[0], region=Region("liver", 10.0))
    (grid,) = stage_grids(volume, stage, liver)
    plan = stage_plan(stage, grid)
    image = torch.randn(plan.window)
    cpu = torch.device("cpu")
    voxels = len(plan.boxes) * image.numel()
    sample = torch.randn(sample_box(plan, stage).shape)
    choice = choose_backend(network, stage, cpu, sample, voxels)
    network_of = forward(choice.backend, network, cpu)

    def run() -> object:
        with keep_freed_memory(cpu):
            return network_of(image[None, None])

    return Peer(NNUNET_BOX, run, len(plan.boxes), None, f"network only, {choice.backend}")


def _monai_window(network: nn.Module, shape: tuple[int, int, int]) -> tuple[Callable[[], object], int]:
    """Return a function for one window of MONAI's sliding window, and the number of windows in an image of `shape`."""
    from monai.data.utils import dense_patch_slices
    from monai.inferers import sliding_window_inference

    side = _ZOO_WINDOW
    steps = [max(1, int(side * (1 - _ZOO_OVERLAP)))] * 3
    count = len(dense_patch_slices([max(n, side) for n in shape], [side] * 3, steps))
    image = torch.randn(1, 1, side, side, side)

    def run() -> object:
        with torch.inference_mode():
            return sliding_window_inference(image, side, 1, network, overlap=_ZOO_OVERLAP, mode="gaussian")

    return run, count


def _monai_around(volume: Volume, spacing: tuple[float, float, float]) -> float:
    """Return the seconds for resampling to the network's spacing, three channels back, and the argmax."""
    import numpy as np
    from monai.data import MetaTensor
    from monai.transforms import Spacing, SpatialResample

    started = time.perf_counter()
    image = MetaTensor(torch.from_numpy(volume.array.transpose(2, 1, 0).astype(np.float32))[None])
    image.affine = torch.from_numpy(volume.ijk_to_lps)
    coarse = Spacing(spacing, mode="bilinear")(image)
    passed = time.perf_counter() - started
    scores = MetaTensor(torch.randn(3, *coarse.shape[1:]), affine=coarse.affine)
    started = time.perf_counter()
    back = SpatialResample(mode="bilinear")(scores, dst_affine=image.affine, spatial_size=image.shape[1:])
    back.argmax(0)
    return passed + time.perf_counter() - started


def _predictor_window(trained: Path, volume: Volume, overlap: float) -> tuple[Callable[[], object], int]:
    """Return a function for one window of nnU-Net's predictor, and the number of windows in `volume`."""
    with quiet():
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

        predictor = nnUNetPredictor(
            tile_step_size=1 - overlap, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(trained), (0,), "checkpoint_final.pth")
    manager = predictor.configuration_manager
    patch = [int(n) for n in manager.patch_size]
    k, j, i = manager.spacing
    shape = regrid(volume.grid, (float(i), float(j), float(k))).shape
    steps = compute_steps_for_sliding_window([max(n, p) for n, p in zip(shape, patch, strict=True)], patch, 1 - overlap)
    image = torch.randn(1, *patch)
    predictor.network.eval()

    def run() -> object:
        with quiet():
            return predictor.predict_sliding_window_return_logits(image)

    return run, len(steps[0]) * len(steps[1]) * len(steps[2])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output and the warnings of nnU-Net."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _strides(patch: Sequence[int], stages: int) -> list[list[int]]:
    """Return each level's strides as nnU-Net plans them: an axis is halved while at least 4 voxels remain."""
    sizes, strides = list(patch), [[1] * len(patch)]
    for _ in range(stages - 1):
        strides.append([2 if n % 2 == 0 and n >= 8 else 1 for n in sizes])
        sizes = [n // step for n, step in zip(sizes, strides[-1], strict=True)]
    return strides


# Long: it writes a whole nnU-Net folder, and most lines are constants of that format.
def _random_nnunet(
    folder: Path, classes: int, patch: tuple[int, int, int], spacing: tuple[float, float, float]
) -> Path:
    """Write a trained-model folder in nnU-Net's format, with random weights: six levels of 32 to 320 features."""
    if folder.exists():
        return folder
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    features = list(_NNUNET_FEATURES)
    shared: dict[str, Any] = {
        "n_stages": len(features),
        "features_per_stage": features,
        "kernel_sizes": [[3, 3, 3]] * len(features),
        "strides": _strides(patch, len(features)),
        "n_conv_per_stage": [2] * len(features),
        "n_conv_per_stage_decoder": [2] * (len(features) - 1),
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
    }
    names = {
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "nonlin": "torch.nn.LeakyReLU",
    }
    network = PlainConvUNet(
        1,
        num_classes=classes,
        deep_supervision=True,
        conv_op=nn.Conv3d,
        norm_op=nn.InstanceNorm3d,
        nonlin=nn.LeakyReLU,
        **shared,
    )
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {**shared, **names},
            "_kw_requires_import": list(names),
        },
    }
    plans = {
        "dataset_name": "Dataset900_Random",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 60.0, "std": 70.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}
        },
        "configurations": {"3d_fullres": configuration},
    }
    other = {f"class{n}": n for n in range(3, classes)}
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2, **other},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    torch.save(
        {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": None,
        },
        folder / "fold_0" / "checkpoint_final.pth",
    )
    return folder
