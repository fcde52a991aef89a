# SPDX-License-Identifier: Apache-2.0
"""Trained nnU-Net v2 folders (``plans.json``, ``dataset.json``, ``fold_*/checkpoint_*.pth``) as models.

Everything is read from the files: nnU-Net itself is not needed, only its network classes (extra ``nnunet``). Settings
that are not fully understood are refused, because a wrong guess gives wrong organs without an error. Checkpoints are
unpickled as plain tensors and numbers only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import ModelError
from ...files import replacing
from ...networks import default_layer
from ...text import how_to_install
from ..checks import check_arguments
from ..downloads import checksum
from ..labels import result_labels
from ..model import Model
from ..registry import NOTES, ImportOptions, ModelNotes
from ..serialization import read_json
from ..spec import Intensity, LayerSpec, ModelSpec, NnUNet, Resampling, StageSpec
from .weights import build_with_weights, checked_state, load_torch_file

PLANS, DATASET = "plans.json", "dataset.json"
_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
#: Required entries of a checkpoint; all others serve only to continue the training.
NEEDED = ("network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes")

#: Parts of trainer names that denote the duration, augmentation or loss of the training, which keep the network.
_HARMLESS = (
    r"NoMirroring|onlyMirror01|noDummy2DDA|DASegOrd0|DA5(?:Segord0|ord0)?|DAOrd0|NoDA|CosAnneal|warmup|Vanilla|Adam|Adan"
    r"|[134]en[134]|DiceCELoss|DiceTopK10Loss|Topk10Loss|DiceLoss|CELoss|LS01|noSmooth|SkeletonRecall|BS8"
    r"|NoDeepSupervision|probabilisticOversampling|033|010|Benchmark|noDataLoading|\d+(?:epochs?|ep)"
)
_TRAINER = re.compile(rf"nnUNet_?Trainer(?:_?(?:{_HARMLESS}))*")

#: The readers of nnU-Net, and the directions of their arrays' axes.
_READERS = {"SimpleITKIO": "kji", "NibabelIO": "kji", "NibabelIOWithReorient": "SAR", "SimpleITKIOWithReorient": "SAR"}

_NORMALIZATIONS = {
    "CTNormalization": Intensity(),
    "ZScoreNormalization": Intensity(statistics="z-score"),
    "RescaleTo01Normalization": Intensity(statistics="range"),
    "NoNormalization": Intensity(),
}

_MODULES: Mapping[str, type[nn.Module]] = {
    f"torch.nn.{path}{cls.__name__}": cls
    for cls, path in (
        (nn.Conv2d, "modules.conv."),
        (nn.Conv3d, "modules.conv."),
        (nn.InstanceNorm2d, "modules.instancenorm."),
        (nn.InstanceNorm3d, "modules.instancenorm."),
        (nn.BatchNorm2d, "modules.batchnorm."),
        (nn.BatchNorm3d, "modules.batchnorm."),
        (nn.Dropout2d, "modules.dropout."),
        (nn.Dropout3d, "modules.dropout."),
        (nn.LeakyReLU, "modules.activation."),
        (nn.ReLU, "modules.activation."),
    )
    for path in (path, "")
}
_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
_NETWORK_MODULES = tuple(f"dynamic_network_architectures.architectures.{name}." for name in ("unet", "residual_unet"))


class NnUNetFormat:
    """Folders of trained nnU-Nets (see :class:`~LiverXAILib.models.formats.Format`)."""

    name = "trained nnU-Net v2 folder"
    marker = f"{PLANS}, {DATASET} and fold_*"

    def find(self, folder: Path) -> Path | None:
        """The trained-model folder in or below `folder` (three levels), or None."""
        found = sorted(
            path.parent
            for depth in range(4)
            for path in folder.glob("*/" * depth + PLANS)
            if (path.parent / DATASET).is_file()
        )
        if len(found) > 1:
            listed = ", ".join(str(path.relative_to(folder)) for path in found[:5])
            raise ModelError(f"{folder} holds several nnU-Net models; name one of: {listed}.")
        return found[0] if found else None

    def files(self, folder: Path) -> list[Path]:
        notes = [folder / NOTES] if (folder / NOTES).is_file() else []
        return [folder / PLANS, folder / DATASET, *(folder / file for file in _checkpoints(folder)), *notes]

    def load(
        self, folder: Path, *, name: str | None = None, notes: ModelNotes | None = None, trust: bool = False
    ) -> Model:
        return load_nnunet(folder, name=name, notes=notes)

    def sanitize(self, folder: Path) -> None:
        """Remove from the checkpoints everything that serves only to continue the training."""
        for file in _checkpoints(folder):
            checkpoint = read_checkpoint(folder / file)
            configuration = checkpoint["init_args"].get("configuration")
            checkpoint["init_args"] = {"configuration": str(configuration)}
            # Cloned, because a tensor that is a view is saved with its whole storage.
            weights = {key: value.clone() for key, value in checkpoint["network_weights"].items()}
            with replacing(folder / file) as path:
                torch.save({**checkpoint, "network_weights": weights}, path)


def load_nnunet(folder: Path, *, name: str | None = None, notes: ModelNotes | None = None) -> Model:
    """Load a trained nnU-Net v2 folder.

    :param folder: holds ``plans.json``, ``dataset.json`` and folders ``fold_*``; all folds found form an ensemble.
    :param name: the model's name in results; default: the data set's.
    :param notes: a user's notes about the model; default: ``liverxai.json`` in the folder, if it exists.
    :raises LiverXAILib.errors.ModelError: a file is missing, unsafe, or not supported.
    """
    notes = ModelNotes.beside(folder) if notes is None else notes
    plans = read_json(folder / PLANS, dict, "the nnU-Net plans")
    dataset = read_json(folder / DATASET, dict, "the nnU-Net data set")
    files = _checkpoints(folder)
    checkpoints = [read_checkpoint(folder / file) for file in files]
    try:
        return _model(folder, name, notes, plans, dataset, files, checkpoints)
    except ModelError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ModelError(f"The nnU-Net model in {folder} cannot be understood: {reason}.") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The entries :data:`NEEDED` of a checkpoint. Nothing but tensors and numbers is unpickled."""
    checkpoint = load_torch_file(path, _safe_numpy())
    missing = [key for key in NEEDED[:3] if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ModelError(f"{path} is not an nnU-Net v2 checkpoint: it lacks {', '.join(missing)}.")
    if not isinstance(checkpoint["init_args"], Mapping):
        raise ModelError(f"{path} is not an nnU-Net v2 checkpoint: init_args is not a mapping.")
    result = {key: checkpoint.get(key) for key in NEEDED}
    result["network_weights"] = checked_state(checkpoint["network_weights"], path)
    return result


def _safe_numpy() -> list[Any]:
    """The NumPy number types in nnU-Net's training log, under their names in old and new NumPy."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")}
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *dtypes,
    ]


def _model(
    folder: Path,
    name: str | None,
    notes: ModelNotes,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    files: Sequence[str],
    checkpoints: Sequence[Mapping[str, Any]],
) -> Model:
    first = checkpoints[0]
    for file, checkpoint in zip(files, checkpoints, strict=True):
        _check_trainer(folder / file, str(checkpoint["trainer_name"]))
    configuration_name = str(first["init_args"]["configuration"])
    configuration = _configuration(plans, configuration_name)
    if configuration.get("previous_stage") is not None:
        raise ModelError(
            f"{folder} holds the second network of a cascade ({configuration_name}), which also needs the result of "
            "the first. Cascades are not supported; train or use '3d_fullres'."
        )
    _check_plans(folder, plans, configuration, dataset)
    regions, heads, channels = _channels(dataset)
    specs, labels = result_labels(heads, overlapping=regions, reading=notes.reading)
    class_name, arguments = _architecture(configuration)
    networks = [
        _network(folder / file, class_name, arguments, len(channels), checkpoint["network_weights"])
        for file, checkpoint in zip(files, checkpoints, strict=True)
    ]
    stage = _stage(plans, configuration, notes.reading, first["inference_allowed_mirroring_axes"], arguments)
    layers, default = _layers(arguments, stage["spacing"])
    title = str(plans.get("dataset_name", folder.parent.name))
    spec = ModelSpec(
        name=name or title,
        version=f"{first['trainer_name']}, {plans.get('plans_name', 'plans')}, {configuration_name}",
        title=notes.title or f"nnU-Net v2: {title}",
        description=f"{class_name} with {len(networks)} fold{'s' if len(networks) > 1 else ''}, trained by nnU-Net v2.",
        labels=specs,
        stages=(
            StageSpec(
                name="nnunet",
                network=class_name,
                arguments=arguments,
                weights=tuple(files),
                sha256=tuple(checksum(folder / file) for file in files),
                channels=channels,
                labels=labels,
                activation="sigmoid" if regions else "softmax",
                layers=layers,
                default_layer=default,
                **stage,
            ),
        ),
        license=notes.license,
        source=notes.source,
        citation=notes.citation or "Isensee F et al. nnU-Net. Nature Methods 18 (2021) 203-211.",
        training=notes.training,
        quality=notes.quality,
    )
    return Model(spec, {"nnunet": networks})


# --- refused models -----------------------------------------------------------------------------------------------


def _check_trainer(path: Path, trainer: str) -> None:
    if not _TRAINER.fullmatch(trainer):
        raise ModelError(
            f"{path} was trained by {trainer!r}. That trainer is not among those known to build the network that the "
            "plans describe (STUNet, MedNeXt, U-Mamba, Primus … build another), so the model is refused."
        )


def _check_plans(
    folder: Path, plans: Mapping[str, Any], configuration: Mapping[str, Any], dataset: Mapping[str, Any]
) -> None:
    problems = []
    channels = dataset.get("channel_names", dataset.get("modality", {}))
    if len(channels) != 1:
        problems.append(f"it takes {len(channels)} input channels, but a CT has one")
    if plans.get("image_reader_writer", "SimpleITKIO") not in _READERS:
        problems.append(f"its reader {plans['image_reader_writer']!r} is unknown")
    if configuration.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        problems.append(f"its preprocessor {configuration['preprocessor_name']!r} is unknown")
    if plans.get("label_manager", "LabelManager") != "LabelManager":
        problems.append(f"its label manager {plans['label_manager']!r} is unknown")
    if problems:
        raise ModelError(f"The nnU-Net model in {folder} is refused: {'; '.join(problems)}.")


# --- plans --------------------------------------------------------------------------------------------------------


def _configuration(plans: Mapping[str, Any], name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration with everything it inherits."""
    if name not in plans["configurations"] or name in seen:
        raise ModelError(f"The plans have no usable configuration {name!r}.")
    own = dict(plans["configurations"][name])
    if "inherits_from" not in own:
        return own
    return {**_configuration(plans, own["inherits_from"], (*seen, name)), **own}


def _stage(
    plans: Mapping[str, Any],
    configuration: Mapping[str, Any],
    reading: ImportOptions,
    mirror_axes: Sequence[int] | None,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """The stage, with the fields that the plans determine."""
    patch = tuple(int(n) for n in configuration["patch_size"])
    flat = len(patch) == 2
    order = plans.get("transpose_forward", [0, 1, 2])
    axes = reading.axes or _READERS[plans.get("image_reader_writer", "SimpleITKIO")]
    properties = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality"
    )
    scheme = configuration["normalization_schemes"][0]
    if scheme not in _NORMALIZATIONS:
        raise ModelError(f"The plans use the normalization {scheme!r}; supported are {', '.join(_NORMALIZATIONS)}.")
    intensity = _NORMALIZATIONS[scheme]
    if scheme == "CTNormalization":
        numbers = properties["0"]  # type: ignore[index]
        intensity = Intensity(
            float(numbers["percentile_00_5"]),
            float(numbers["percentile_99_5"]),
            float(numbers["mean"]),
            max(float(numbers["std"]), 1e-8),
        )
    divisor = tuple(prod(steps) for steps in zip(*_strides(arguments), strict=True))
    return {
        "axes": "".join(axes[source] for source in order),
        "spacing": (*((None,) if flat else ()), *(float(mm) for mm in configuration["spacing"])),
        "intensity": intensity,
        "window": ((1, *patch) if flat else patch),
        "divisor": ((1, *divisor) if flat else divisor),
        "pad_to_window": True,
        "overlap": 0.5,
        "dimensions": len(patch),
        "mirror_axes": tuple(int(axis) + flat for axis in mirror_axes or ()) if reading.mirroring else (),
        "nnunet": NnUNet(
            masked=bool(configuration["use_mask_for_norm"][0]),
            image=_resampling(configuration, "resampling_fn_data"),
            scores=_resampling(configuration, "resampling_fn_probabilities"),
        ),
    }


def _resampling(configuration: Mapping[str, Any], key: str) -> Resampling:
    function, settings = configuration[key], dict(configuration.get(f"{key}_kwargs", {}))
    separate, anisotropy = settings.get("force_separate_z"), float(settings.get("separate_z_anisotropy_threshold", 3.0))
    if function == "resample_data_or_seg_to_shape":
        return Resampling(int(settings["order"]), int(settings.get("order_z", 0)), separate, anisotropy)
    torch_modes = settings.get("mode", "linear"), settings.get("aniso_axis_mode", "nearest-exact")
    if function == "resample_torch_fornnunet" and torch_modes == ("linear", "nearest-exact"):
        return Resampling(1, 0, separate, anisotropy, half=False)
    raise ModelError(f"The plans use the resampling {function!r} {settings}, which is not supported.")


def _channels(dataset: Mapping[str, Any]) -> tuple[bool, dict[str, int], tuple[str, ...]]:
    """Whether channels are overlapping regions; each label's value in the label map; the channels' names in order."""
    entries = {
        name: [int(v) for v in value] if isinstance(value, list) else int(value)
        for name, value in dataset["labels"].items()
        if name != "ignore"
    }
    if any(isinstance(value, list) and len(value) > 1 for value in entries.values()):
        names = [name for name, value in entries.items() if value not in (0, [0])]
        order = [int(value) for value in dataset["regions_class_order"]]
        return True, dict(zip(names, order, strict=True)), tuple(names)
    values = {name: value[0] if isinstance(value, list) else value for name, value in entries.items()}
    ordered = sorted(values, key=lambda name: values[name])
    if [values[name] for name in ordered] != list(range(len(ordered))):
        raise ModelError(f"The labels of {DATASET} must be numbered 0, 1, 2 … without gaps, not {values}.")
    return False, {name: values[name] for name in ordered[1:]}, tuple(ordered)


# --- network ------------------------------------------------------------------------------------------------------


def _architecture(configuration: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Class name and keyword arguments, JSON-ready, from old or new plans."""
    if "architecture" in configuration:
        described = configuration["architecture"]
        name, arguments = str(described["network_class_name"]), dict(described["arch_kwargs"])
        class_name = name.rsplit(".", 1)[-1]
        if name.removesuffix(class_name) not in _NETWORK_MODULES:
            class_name = name
    else:
        class_name = str(configuration["UNet_class_name"])
        stages = len(configuration["n_conv_per_stage_encoder"])
        dimensions = len(configuration["patch_size"])
        base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
        encoder = "n_conv_per_stage" if class_name == "PlainConvUNet" else "n_blocks_per_stage"
        arguments = {
            "n_stages": stages,
            "features_per_stage": [min(base * 2**level, most) for level in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": configuration["conv_kernel_sizes"],
            "strides": configuration["pool_op_kernel_sizes"],
            encoder: configuration["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
    if class_name not in _NETWORKS:
        raise ModelError(f"The plans require the network {class_name!r}; supported are {' and '.join(_NETWORKS)}.")
    return class_name, arguments


def _network(
    path: Path, class_name: str, arguments: Mapping[str, Any], channels: int, weights: Mapping[str, torch.Tensor]
) -> nn.Module:
    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError as error:
        raise ModelError(
            f"nnU-Net models need the package 'dynamic-network-architectures': {how_to_install('nnunet')}."
        ) from error
    built = dict(arguments)
    for key in ("conv_op", "norm_op", "dropout_op", "nonlin"):
        if (wanted := built.get(key)) is not None:
            if wanted not in _MODULES:
                raise ModelError(
                    f"The plans require {wanted!r} as {key}, which is not among the layers that LiverXAI allows."
                )
            built[key] = _MODULES[wanted]
    # Explanations keep references to the outputs of layers, which no in-place operation may overwrite.
    built["nonlin_kwargs"] = {**(built.get("nonlin_kwargs") or {}), "inplace": False}
    check_arguments(arguments)
    make = partial(getattr(unet, class_name), input_channels=1, num_classes=channels, deep_supervision=False, **built)
    return build_with_weights(make, weights, path, f"of the plans ({class_name})")


def _strides(arguments: Mapping[str, Any]) -> list[list[int]]:
    """The stride of each encoder level along each axis."""
    dimensions = 3 if str(arguments["conv_op"]).endswith("3d") else 2
    return [[int(step)] * dimensions if isinstance(step, int) else list(step) for step in arguments["strides"]]


def _layers(arguments: Mapping[str, Any], spacing: Sequence[float | None]) -> tuple[tuple[LayerSpec, ...], str]:
    """The explainable layers, and the name of the default one."""
    steps = _strides(arguments)
    strides = [tuple(prod(axis) for axis in zip(*steps[: level + 1], strict=True)) for level in range(len(steps))]
    layers = [LayerSpec(f"encoder.stages.{n}", stride, "encoder") for n, stride in enumerate(strides[:-1])]
    layers.append(LayerSpec(f"encoder.stages.{len(strides) - 1}", strides[-1], "bottleneck"))
    layers += [LayerSpec(f"decoder.stages.{n}", stride, "decoder") for n, stride in enumerate(strides[-2::-1])]
    default = default_layer([(layer.name, layer.stride) for layer in layers], [mm for mm in spacing if mm is not None])
    return tuple(layers), layers[len(strides) - 1].name if default == "bottleneck" else default


def _checkpoints(folder: Path) -> list[str]:
    """The checkpoint of each fold, relative to `folder`; ``fold_all`` only if there is no other."""
    found = {}
    for fold in sorted(folder.glob("fold_*")):
        for name in _CHECKPOINTS:
            if (fold / name).is_file():
                found[fold.name] = f"{fold.name}/{name}"
                break
    if not found:
        raise ModelError(f"{folder} has no trained network: no fold_*/{_CHECKPOINTS[0]} (or {_CHECKPOINTS[1]}).")
    return [path for fold, path in found.items() if fold != "fold_all"] or list(found.values())
