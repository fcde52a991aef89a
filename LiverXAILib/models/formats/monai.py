# SPDX-License-Identifier: Apache-2.0
"""MONAI bundles as models: network, preprocessing and meaning of the channels, from the bundle's configuration.

MONAI itself executes a configuration: strings that begin with ``$`` are Python. Here they are evaluated only as
arithmetic on numbers and lists, and classes must be on a list. A bundle with anything else is refused.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from ...networks import default_layer
from ...text import how_to_install
from ..checks import check_arguments
from ..downloads import checksum
from ..labels import result_labels
from ..model import Model
from ..registry import NOTES, ModelNotes
from ..serialization import parse_json, read_text
from ..spec import Intensity, LayerSpec, ModelSpec, StageSpec
from .weights import build_with_weights, checked_state, load_torch_file

_METADATA, _WEIGHTS = "configs/metadata.json", "models/model.pt"
_CONFIGURATIONS = tuple(f"configs/inference.{suffix}" for suffix in ("json", "yaml", "yml"))
#: The files of a bundle that are needed to use it.
_FILES = (_METADATA, *_CONFIGURATIONS, _WEIGHTS, "LICENSE*", NOTES)
#: Bounds on the expansion of a configuration: values, characters of an expression, items of a list, an integer.
_MOST_VALUES, _LONGEST_EXPRESSION, _LONGEST_LIST, _LARGEST_INTEGER = 20_000, 1000, 10_000, 2**53

_NETWORKS = (
    "AttentionUnet",
    "BasicUNet",
    "DynUNet",
    "FlexibleUNet",
    "SegResNet",
    "SegResNetDS",
    "SwinUNETR",
    "UNETR",
    "UNet",
    "VNet",
)
#: Transforms that have no effect on an image that is already a CT in memory.
_NEUTRAL = ("LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "ToTensord", "CastToTyped")


class MonaiFormat:
    """MONAI bundles (see :class:`~LiverXAILib.models.formats.Format`)."""

    name = "MONAI bundle"
    marker = f"{_METADATA}, {_CONFIGURATIONS[0]} and {_WEIGHTS}"

    def find(self, folder: Path) -> Path | None:
        return folder if (folder / _METADATA).is_file() else None

    def files(self, folder: Path) -> list[Path]:
        return [path for pattern in _FILES for path in sorted(folder.glob(pattern))]

    def load(
        self, folder: Path, *, name: str | None = None, notes: ModelNotes | None = None, trust: bool = False
    ) -> Model:
        return load_bundle(folder, name=name, notes=notes)

    def sanitize(self, folder: Path) -> None:
        """Nothing to do: a bundle's file holds only the weights."""


def load_bundle(folder: Path, *, name: str | None = None, notes: ModelNotes | None = None) -> Model:
    """Load a MONAI bundle that segments one CT.

    Reads ``network_def`` (one of the supported networks), ``preprocessing`` (orientation, spacing, intensity),
    ``inferer`` (window and overlap; windows are always blended with a Gaussian), ``postprocessing`` (softmax or
    sigmoid) and the names of the channels.

    :raises LiverXAILib.errors.ModelError: a file is missing, unsafe, or contains something that is not supported.
    """
    notes = ModelNotes.beside(folder) if notes is None else notes
    metadata, config = _read(folder / _METADATA), _Configuration(_inference(folder))
    try:
        return _model(folder, name, notes, metadata, config)
    except ModelError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ModelError(f"The MONAI bundle in {folder} cannot be understood: {reason}.") from error


def _model(
    folder: Path, name: str | None, notes: ModelNotes, metadata: Mapping[str, Any], config: _Configuration
) -> Model:
    inputs = metadata["network_data_format"]["inputs"]
    outputs = metadata["network_data_format"]["outputs"]
    (image,), (prediction,) = inputs.values(), outputs.values()
    if image.get("num_channels", 1) != 1:
        raise ModelError(f"The bundle in {folder} takes {image['num_channels']} input channels, but a CT has one.")
    channel_def = prediction["channel_def"]
    channels = tuple(str(channel_def[key]) for key in sorted(channel_def, key=int))
    sigmoid = _activation(config)
    foreground = {label: n for n, label in enumerate(channels, start=int(sigmoid)) if sigmoid or n > 0}
    specs, labels = result_labels(foreground, overlapping=sigmoid, reading=notes.reading)
    network = _network(folder, config)
    axes, spacing, intensity = _preprocessing(config)
    window, overlap = _inferer(config)
    layers, default = _layers(network, window, spacing)
    divisor = tuple(max(layer.stride[axis] for layer in layers) for axis in range(3))
    spec = ModelSpec(
        name=name or re.sub(r"[^A-Za-z0-9._-]+", "_", str(metadata.get("name", folder.name))).strip("_"),
        version=str(metadata.get("version", "unknown")),
        title=notes.title or str(metadata.get("name", folder.name)),
        description=str(metadata.get("description", "A MONAI bundle.")),
        labels=specs,
        stages=(
            StageSpec(
                name="bundle",
                network=type(network).__name__,
                arguments={},
                weights=(_WEIGHTS,),
                sha256=(checksum(folder / _WEIGHTS),),
                axes=axes,
                channels=channels,
                labels=labels,
                layers=layers,
                default_layer=default,
                activation="sigmoid" if sigmoid else "softmax",
                spacing=spacing,
                intensity=intensity,
                window=window,
                divisor=(divisor[0], divisor[1], divisor[2]),
                pad_to_window=True,
                overlap=overlap,
            ),
        ),
        license=notes.license,
        source=notes.source,
        citation=notes.citation or "; ".join(map(str, metadata.get("references", []))),
        training=notes.training or {"data": str(metadata.get("data_source", "see the bundle's documentation"))},
        quality=notes.quality or dict(metadata.get("eval_metrics", {})),
        limits=(str(metadata["intended_use"]),) if metadata.get("intended_use") else (),
    )
    return Model(spec, {"bundle": [network]})


# --- configuration ------------------------------------------------------------------------------------------------


class _Configuration:
    """A bundle's configuration, with its references and its harmless expressions resolved."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._left = _MOST_VALUES

    def get(self, *path: str) -> Any:
        """The value at `path`, unresolved."""
        value: Any = self._data
        for key in path:
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """`value` without references and expressions."""
        self._left -= 1
        if depth > 20 or self._left < 0:
            raise ModelError("The bundle's configuration refers to itself, or expands to too many values.")
        if isinstance(value, Mapping):
            return {key: self.resolve(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, depth + 1) for item in value]
        if isinstance(value, str) and value.startswith("@"):
            return self.resolve(self.get(*re.split(r"::|#", value[1:])), depth + 1)
        if isinstance(value, str) and value.startswith("$"):
            return self._evaluate(value[1:], depth)
        if isinstance(value, str) and value.startswith("%"):
            raise ModelError(f"The bundle's configuration uses a macro ({value!r}), which is not supported.")
        return value

    def _evaluate(self, expression: str, depth: int) -> Any:
        if len(expression) > _LONGEST_EXPRESSION:
            raise ModelError("The bundle's configuration has an expression that is too long.")
        references: dict[str, str] = {}

        def name(match: re.Match[str]) -> str:
            references[f"_{len(references)}"] = match[0]
            return f"_{len(references) - 1}"

        try:
            tree = ast.parse(re.sub(r"@[\w.]+(?:(?:::|#)\w+)*", name, expression), mode="eval")
            return _compute(tree.body, lambda key: self.resolve(references[key], depth + 1))
        except (SyntaxError, KeyError, _NotPlainError) as error:
            raise ModelError(
                f"The bundle's configuration would run Python ({'$' + expression!r}); only arithmetic is allowed."
            ) from error
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise ModelError(
                f"The bundle's expression {'$' + expression!r} cannot be evaluated: {type(error).__name__}: {error}"
            ) from error


class _NotPlainError(Exception):
    """An expression does more than arithmetic."""


_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function for function in (len, int, float, tuple, list, min, max, sum, abs, round)
}


def _compute(node: ast.AST, lookup: Callable[[str], Any]) -> Any:
    """The value of an expression of numbers, strings, lists, references, arithmetic and a few functions."""
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, (int, float, str, bool, type(None))):
            raise _NotPlainError
        return node.value
    if isinstance(node, ast.Name):
        return lookup(node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_compute(item, lookup) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_compute(node.operand, lookup)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _compute(node.left, lookup), _compute(node.right, lookup)
        # Strings and lists can be concatenated; other operators could format, or repeat them a billion times.
        joined = isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, (str, list))
        if not joined and not all(isinstance(side, (int, float)) for side in (left, right)):
            raise _NotPlainError
        return _bounded(_OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.Subscript):
        return _compute(node.value, lookup)[_compute(node.slice, lookup)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        if node.keywords:
            raise _NotPlainError
        return _bounded(_FUNCTIONS[node.func.id](*(_compute(item, lookup) for item in node.args)))
    raise _NotPlainError


def _bounded(value: Any) -> Any:
    """`value`, if it is a finite number, or a string or list of moderate length."""
    if isinstance(value, (str, list, tuple)) and len(value) > _LONGEST_LIST:
        raise ValueError("it is too long")
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        raise ValueError("it is too large a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it is not a finite number")
    return value


def _read(path: Path) -> dict[str, Any]:
    what = "the bundle's configuration"
    text = read_text(path, what)
    if path.suffix == ".json":
        return parse_json(text, dict, f"{what} {path}")
    data = _yaml(text, path)
    if not isinstance(data, dict):
        raise ModelError(f"{path} must hold an object.")
    return data


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ModelError("The bundle's configuration is YAML, which needs: pip install PyYAML.") from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be understood: {str(error)[:300]}.") from error


def _inference(folder: Path) -> dict[str, Any]:
    for name in _CONFIGURATIONS:
        if (folder / name).is_file():
            return _read(folder / name)
    raise ModelError(f"The MONAI bundle in {folder} has no {_CONFIGURATIONS[0]}.")


def _class(component: Mapping[str, Any], package: str) -> str:
    """The class name of a component, if it belongs to `package`."""
    path, _, name = str(component["_target_"]).rpartition(".")
    if path and not path.startswith(package):
        raise ModelError(f"The bundle requires {component['_target_']!r}, which is not part of {package}.")
    return name


def _arguments(config: _Configuration, component: Mapping[str, Any]) -> dict[str, Any]:
    return config.resolve({key: value for key, value in component.items() if not re.fullmatch("_.*_", key)})


# --- network ------------------------------------------------------------------------------------------------------


def _network(folder: Path, config: _Configuration) -> nn.Module:
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ModelError(f"MONAI bundles need the package 'monai': {how_to_install('monai')}.") from error
    component = config.get("network_def")
    name = _class(component, "monai.networks.nets")
    if name not in _NETWORKS:
        raise ModelError(f"The bundle's network {name!r} is not supported; supported are {', '.join(_NETWORKS)}.")
    path = folder / _WEIGHTS
    if not path.is_file():
        raise ModelError(f"The MONAI bundle in {folder} has no {_WEIGHTS}: download its weights first.")
    state = load_torch_file(path)
    for key in ("model", "state_dict", "network"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    arguments = _without_downloads(_arguments(config, component))
    check_arguments(arguments)
    build = partial(getattr(nets, name), **arguments)
    return build_with_weights(build, checked_state(state, path), path, f"of the bundle ({name})")


def _without_downloads(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments with which no network downloads pretrained weights, which the bundle's weights replace anyway."""
    return {key: False if "pretrained" in key.lower() else value for key, value in arguments.items()}


def _layers(
    network: nn.Module, window: Sequence[int] | None, spacing: Sequence[float | None]
) -> tuple[tuple[LayerSpec, ...], str]:
    """Explainable blocks of the network, in the order in which they finish, with the stride of their output.

    Of consecutive blocks with outputs of one size the last is kept, which is the end of a level of a U-Net.
    """
    size = [min(n, 64) for n in window or (64, 64, 64)]
    size = [max(32, n // 32 * 32) for n in size]
    ended: list[tuple[str, tuple[int, ...]]] = []
    names = {module: name for name, module in network.named_modules() if name and any(True for _ in module.children())}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 5:
            cells = output.shape[2:]
            ended.append((names[module], tuple(math.ceil(n / m) for n, m in zip(size, cells, strict=True))))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 1, *size))
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ModelError(f"The bundle's network does not accept a CT: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    ran = [name for name, _ in ended]
    once = [(name, stride) for name, stride in ended if ran.count(name) == 1]
    kept = [item for item, following in zip(once, [*once[1:], ("", ())], strict=True) if item[1] != following[1]]
    if not kept:
        raise ModelError("The bundle's network has no blocks that could be explained.")
    deepest = max(range(len(kept)), key=lambda n: max(kept[n][1]))
    layers = [
        LayerSpec(name, stride, "encoder" if n < deepest else "bottleneck" if n == deepest else "decoder")
        for n, (name, stride) in enumerate(kept)
    ]
    roles = [(f"{layer.description}.{layer.name}", layer.stride) for layer in layers]
    chosen = default_layer(roles, [mm or 1.0 for mm in spacing])
    return tuple(layers), layers[deepest].name if chosen == "bottleneck" else chosen.removeprefix("decoder.")


# --- around the network -------------------------------------------------------------------------------------------


def _transforms(config: _Configuration, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Class names and arguments of a list of transforms."""
    component = config.get(key)
    components = component["transforms"] if isinstance(component, Mapping) else component
    if isinstance(components, str):
        components = config.get(*re.split(r"::|#", components.removeprefix("@")))
    return [
        (_class(item, "monai.transforms"), item)
        for item in components
        if not config.resolve(item.get("_disabled_", False))
    ]


_Spacing = tuple["float | None", "float | None", "float | None"]


def _preprocessing(config: _Configuration) -> tuple[str, _Spacing, Intensity]:
    """Axes, spacing along them, and intensities."""
    axes, intensity = "ijk", Intensity()
    spacing: _Spacing = (None, None, None)
    for name, component in _transforms(config, "preprocessing"):
        if name in _NEUTRAL:
            continue
        settings = _arguments(config, component)
        if name == "Orientationd":
            axes = str(settings["axcodes"])
        elif name == "Spacingd":
            i, j, k = (float(mm) if mm > 0 else None for mm in settings["pixdim"])
            spacing = i, j, k
        elif name == "ScaleIntensityRanged":
            intensity = _range(settings)
        elif name == "NormalizeIntensityd":
            intensity = _normalization(settings)
        elif name == "ScaleIntensityd" and settings.get("factor") is None:
            low, high = float(settings.get("minv", 0.0)), float(settings.get("maxv", 1.0))
            # Also after a z-score: both are linear, and the resulting range is the same.
            intensity = Intensity(statistics="range", shift=-low / (high - low), scale=1 / (high - low))
        else:
            raise ModelError(f"The bundle prepares images with {name!r}, which is not supported.")
    return axes, spacing, intensity


def _range(settings: Mapping[str, Any]) -> Intensity:
    low, high = float(settings["a_min"]), float(settings["a_max"])
    to_low, to_high = settings.get("b_min"), settings.get("b_max")
    if to_low is None or to_high is None:
        to_low, to_high = 0.0, 1.0
    scale = (high - low) / (float(to_high) - float(to_low))
    shift = low - float(to_low) * scale
    return Intensity(low, high, shift, scale) if settings.get("clip", False) else Intensity(None, None, shift, scale)


def _normalization(settings: Mapping[str, Any]) -> Intensity:
    if settings.get("nonzero", False):
        raise ModelError("The bundle normalizes over nonzero voxels only, which is meaningless in a CT; refused.")
    subtrahend, divisor = settings.get("subtrahend"), settings.get("divisor")
    if subtrahend is None and divisor is None:
        return Intensity(statistics="z-score")
    shift, scale = (value[0] if isinstance(value, list) else value for value in (subtrahend, divisor))
    return Intensity(shift=float(shift or 0.0), scale=float(scale or 1.0))


def _inferer(config: _Configuration) -> tuple[tuple[int, int, int] | None, float]:
    """Window and overlap; no window for a network that takes the whole image."""
    component = config.get("inferer")
    name = _class(component, "monai.inferers")
    if name == "SimpleInferer":
        return None, 0.0
    if name != "SlidingWindowInferer":
        raise ModelError(f"The bundle uses the inferer {name!r}; only SlidingWindowInferer is supported.")
    settings = {key: component[key] for key in ("roi_size", "overlap") if key in component}
    resolved = config.resolve(settings)
    size = resolved["roi_size"]
    k, j, i = (int(n) for n in (size if isinstance(size, list) else [size] * 3))
    return (k, j, i), float(resolved.get("overlap", 0.25))


def _activation(config: _Configuration) -> bool:
    """Whether channels are independent (sigmoid); else they exclude each other."""
    for name, component in _transforms(config, "postprocessing"):
        if name == "Activationsd":
            return bool(config.resolve(component.get("sigmoid", False)))
    return False
