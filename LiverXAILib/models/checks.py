# SPDX-License-Identifier: Apache-2.0
"""Validation of model cards: one clause for each requirement that a card does not meet.

A card is untrusted data. A model whose card passes can be built and run in bounded time and memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .spec import Intensity, LabelSpec, LayerSpec, ModelSpec, Reliability, Resampling, StageSpec

_AXIS_PAIRS = ({"L", "R"}, {"P", "A"}, {"S", "I"})
#: Upper limits: characters of a name, channels and labels of a stage, stages, networks of an ensemble, and layers.
_LONGEST_NAME, _MOST_CHANNELS, _MOST_STAGES, _MOST_MEMBERS, _MOST_LAYERS = 200, 1000, 20, 50, 1000
#: Upper limits: voxel size (mm), size of a window or grid along an axis (voxels), and magnitude of numbers such as HU.
_LARGEST_MM, _LARGEST_SIZE, _LARGEST_HU = 1000.0, 4096, 1e6
_SMALLEST_MM = 0.01
_MOST_OVERLAP = 0.9
#: Features from which a finding's reliability can be computed; see :mod:`LiverXAILib.measure.reliability`.
FEATURES = ("border_entropy", "compactness", "mean_probability", "edge_share", "log10_ml")


def is_inner_file(name: str) -> bool:
    """Whether `name` is a valid path of a file inside a folder, or a subfolder of it, on every system."""
    path = PurePosixPath(name)
    return bool(
        name
        and len(name) <= _LONGEST_NAME
        and name.isprintable()
        and "\\" not in name
        and not path.is_absolute()
        and not PureWindowsPath(name).drive
        and ".." not in path.parts
        and path.parts
    )


def is_plain_name(name: str) -> bool:
    """Whether `name` can be shown in a line of text: not empty, not too long, without control characters."""
    return bool(name.strip()) and len(name) <= _LONGEST_NAME and name.isprintable()


def intensity_problems(intensity: Intensity) -> Iterator[str]:
    if intensity.statistics not in (None, "z-score", "range"):
        yield f"statistics {intensity.statistics!r} must be 'z-score', 'range' or null"
    numbers = [n for n in (intensity.low, intensity.high, intensity.shift, intensity.scale) if n is not None]
    if not all(math.isfinite(n) and abs(n) <= _LARGEST_HU for n in numbers):
        yield "intensities must be finite numbers"
    elif abs(intensity.scale) < 1e-9:
        yield "scale must not be 0"
    if intensity.low is not None and intensity.high is not None and not intensity.low < intensity.high:
        yield "low must be less than high"
    if intensity.centered and intensity.statistics is not None:
        yield "centered and statistics exclude each other"


def resampling_problems(rule: Resampling) -> Iterator[str]:
    if rule.order not in range(6) or rule.order_z not in range(6):
        yield "orders of splines must be 0 to 5"
    if not 1 <= rule.anisotropy <= 1000:
        yield "anisotropy must be a number of at least 1"


def reliability_problems(reliability: Reliability) -> Iterator[str]:
    parts = (reliability.weights, reliability.centers, reliability.scales)
    if any(set(part) != set(reliability.weights) for part in parts) or not set(reliability.weights) <= set(FEATURES):
        yield f"weights, centers and scales of the reliability must have the same features, from {', '.join(FEATURES)}"
    numbers = [reliability.intercept, *(value for part in parts for value in part.values())]
    if not all(math.isfinite(value) and abs(value) <= _LARGEST_HU for value in numbers):
        yield "the reliability must consist of finite numbers"
    if not all(value > 0 for value in reliability.scales.values()):
        yield "scales of the reliability must be above 0"
    if not 0 < reliability.true < reliability.findings:
        yield "the reliability must have been fitted on true findings and on false positives"


def label_problems(label: LabelSpec) -> Iterator[str]:
    if not is_plain_name(label.name):
        yield f"{label.name[:40]!r} cannot be the name of a label"
    if not 1 <= label.value <= 255:
        yield f"the value {label.value} of label {label.name[:40]!r} must be 1 to 255"
    if not all(0 <= part <= 255 for part in label.color):
        yield f"the color of label {label.name[:40]!r} must be three numbers from 0 to 255"
    codes = [text for code in (label.category, label.type, label.region or ()) for text in code]
    if not all(is_plain_name(text) for text in codes):
        yield f"the terminology of label {label.name[:40]!r} must consist of codes and words"


def layer_problems(layers: Iterable[LayerSpec], default: str, dimensions: int) -> Iterator[str]:
    layers = list(layers)
    names = [layer.name for layer in layers]
    if len(layers) > _MOST_LAYERS or not all(map(is_plain_name, names)) or _twice(names):
        yield "layers must have different names"
    if any(len(layer.stride) not in (dimensions, 3) or not _sizes(layer.stride) for layer in layers):
        yield "strides of layers must be positive numbers, one for each axis"
    if default not in (*names, ""):
        yield f"default_layer {default[:80]!r} is not among the layers"


def stage_problems(stage: StageSpec) -> list[str]:
    """What is wrong with a stage of a card."""
    return [
        *_names_and_files(stage),
        *_channels(stage),
        *_grid(stage),
        *_windows(stage),
        *layer_problems(stage.layers, stage.default_layer, stage.dimensions),
        *_combinations(stage),
    ]


def _names_and_files(stage: StageSpec) -> Iterator[str]:
    if not is_plain_name(stage.name) or not is_plain_name(stage.network):
        yield "name and network must be words"
    if len(stage.weights) != len(stage.sha256) or not 1 <= len(stage.weights) <= _MOST_MEMBERS:
        yield "weights and sha256 must list the same, at least one, files"
    if not all(map(is_inner_file, stage.weights)) or _twice(stage.weights):
        yield "weights must be different files in the model's folder"
    # Other values never match a file. Empty: the weights are not yet written.
    if not all(len(value) <= 64 and value.isprintable() for value in stage.sha256):
        yield "sha256 must be checksums of 64 hexadecimal digits"
    try:
        check_arguments(stage.arguments)
    except ValueError as error:
        yield str(error)


def _channels(stage: StageSpec) -> Iterator[str]:
    names = stage.channels
    if not 1 <= len(names) <= _MOST_CHANNELS or not all(map(is_plain_name, names)) or _twice(names):
        yield "channels must be different names"
    if not 1 <= len(stage.labels) <= _MOST_CHANNELS or not all(map(is_plain_name, stage.labels)):
        yield "a stage must produce at least one label"
    if not all(stage.labels.values()):
        yield "each label must consist of at least one channel"
    if unknown := {c for cs in stage.labels.values() for c in cs} - set(names):
        yield f"labels name channels that do not exist: {sorted(unknown)[:5]}"
    if stage.activation not in ("softmax", "sigmoid"):
        yield f"activation {stage.activation[:40]!r} must be 'softmax' or 'sigmoid'"
    if stage.activation == "softmax" and any(set(cs) >= set(names) for cs in stage.labels.values()):
        yield "with softmax, a label cannot consist of all channels: no rival would remain"


def _grid(stage: StageSpec) -> Iterator[str]:
    anatomical = all(len(pair & set(stage.axes)) == 1 for pair in _AXIS_PAIRS)
    if len(stage.axes) != 3 or not (anatomical or set(stage.axes) == set("kji")):
        yield f"axes {stage.axes[:10]!r} must name each of L/R, P/A and S/I once, or each of k, j and i"
    if stage.dimensions not in (2, 3):
        yield f"dimensions {stage.dimensions} must be 2 or 3"
    if (stage.spacing is None) == (stage.size is None):
        yield "exactly one of spacing and size must be given"
    lengths = [mm for mm in (*(stage.spacing or ()), *stage.field_of_view_mm) if mm is not None]
    if not all(_SMALLEST_MM <= mm <= _LARGEST_MM * 10 for mm in lengths):
        yield f"lengths in mm must be numbers from {_SMALLEST_MM:g} to {_LARGEST_MM * 10:g}"
    elif stage.spacing is not None and max((mm for mm in stage.spacing if mm is not None), default=1) > _LARGEST_MM:
        yield f"spacing must be at most {_LARGEST_MM:g} mm"
    if not _sizes(n for n in stage.size or () if n is not None):
        yield f"size must be numbers from 1 to {_LARGEST_SIZE}"
    if stage.region is not None and not 0 <= stage.region.margin_mm <= _LARGEST_MM:
        yield f"margin_mm must be a number from 0 to {_LARGEST_MM:g}"


def _windows(stage: StageSpec) -> Iterator[str]:
    if not _sizes(stage.window or ()) or not _sizes(stage.divisor):
        yield f"window and divisor must be numbers from 1 to {_LARGEST_SIZE}"
    if not 0 <= stage.overlap <= _MOST_OVERLAP:
        yield f"overlap {stage.overlap} must be in [0, {_MOST_OVERLAP}]"
    axes = {0, 1, 2} if stage.dimensions == 3 else {1, 2}
    if not set(stage.mirror_axes) <= axes or _twice(stage.mirror_axes):
        yield f"mirror_axes {list(stage.mirror_axes)[:5]} must be different axes of the network's window"


def _combinations(stage: StageSpec) -> Iterator[str]:
    if not set(stage.peak_threshold) <= set(stage.labels) or (stage.peak_threshold and stage.nnunet is not None):
        yield "peak_threshold must name labels of this stage, and cannot be combined with nnunet"
    if not all(math.isfinite(value) for value in stage.peak_threshold.values()):
        yield "peak_threshold must be finite numbers"
    if not set(stage.operating_points) <= set(stage.labels):
        yield "operating_points must name labels of this stage"
    points = [point for some in stage.operating_points.values() for point in some]
    if not all(
        math.isfinite(point.peak) and point.false_per_case >= 0 and 0 <= point.sensitivity <= 1 for point in points
    ):
        yield "operating_points must have a finite peak, no fewer than 0 false positives, and a sensitivity from 0 to 1"
    if stage.intensity.centered and (stage.region is None or stage.nnunet is not None):
        yield "a centered intensity needs a region, and cannot be combined with nnunet"
    if stage.nnunet is not None and stage.spacing is None:
        yield "nnunet needs a spacing"


def model_problems(spec: ModelSpec) -> list[str]:
    """What is wrong with a card apart from its individual stages and labels."""
    problems = []
    if not is_plain_name(spec.name):
        problems.append("its name must be a word")
    if not 1 <= len(spec.stages) <= _MOST_STAGES or not spec.labels:
        problems.append("it must have stages and labels")
    for what, values in (
        ("stages called", [stage.name for stage in spec.stages]),
        ("labels called", [label.name for label in spec.labels]),
        ("labels with the value", [label.value for label in spec.labels]),
    ):
        if twice := _twice(values):
            problems.append(f"it has two {what} {twice[0]!r}")
    made: set[str] = set()
    for stage in spec.stages:
        if stage.region is not None and stage.region.label not in made:
            problems.append(f"stage {stage.name!r} runs around {stage.region.label!r}, which no earlier stage finds")
        made.update(stage.labels)
    if missing := [label.name for label in spec.labels if label.name not in made]:
        problems.append(f"it lists labels that no stage produces: {missing[:5]}")
    parents = {label.name: label.parent for label in spec.labels}
    for name, parent in parents.items():
        seen = {name}
        while parent is not None and parent in parents and parent not in seen:
            seen.add(parent)
            parent = parents[parent]
        if parent in seen:
            problems.append(f"label {name!r} is part of itself")
        elif parent is not None:
            problems.append(f"label {name!r} is part of {parent!r}, which is not a label of the model")
    if spec.outlines is not None and parents.get(spec.outlines.label) is None:
        problems.append(f"it outlines {spec.outlines.label[:80]!r} again, which is not a label that is part of another")
    return problems


#: Bounds on the arguments that a file may pass to a network's class: values, nesting depth, largest number.
_MOST_VALUES, _DEEPEST, _LARGEST_NUMBER = 2000, 6, 65536


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments for a network's class that no real network has: they could take any amount of memory.

    :raises ValueError: too many values, nesting too deep, or numbers too large.
    """
    left = _MOST_VALUES

    def check(value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise ValueError("the network's arguments have too many values")
        if isinstance(value, Mapping):
            for key, item in value.items():
                # Memory grows with the sixth power of the size of an attention window.
                if "window_size" in str(key) and isinstance(item, (int, float)) and item > 16:
                    raise ValueError(f"the network's argument {key} is too large")
                check(item, depth + 1)
        elif isinstance(value, (list, tuple)):
            for item in value:
                check(item, depth + 1)
        elif isinstance(value, (int, float)):
            if not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
                raise ValueError("the network's arguments have numbers that are too large")
        elif not isinstance(value, (str, type(None))):
            raise ValueError(f"the network's arguments have a value of type {type(value).__name__}")

    check(arguments, 0)


def _twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _sizes(values: Iterable[int]) -> bool:
    return all(1 <= n <= _LARGEST_SIZE for n in values)
