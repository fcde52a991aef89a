# SPDX-License-Identifier: Apache-2.0
"""The model card: a model's input and output, its origin, and its measured quality.

A model is a cascade of one or more *stages*. Each stage is one network (or an ensemble of networks of one
architecture) with its own grid and intensity scale. A stage with a `region` runs only in the bounding box of a label
that an earlier stage found: locator → liver → lesions. A label is explained with the stage that decides it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ModelError
from ..labels import terminology
from ..labels.terminology import Code
from ..labels.vocabulary import STRUCTURES
from .checks import (
    intensity_problems,
    label_problems,
    model_problems,
    reliability_problems,
    resampling_problems,
    stage_problems,
)
from .serialization import from_json_value, parse_json

#: Version of the JSON card. Incremented when a reader of the old format could misinterpret the new one.
FORMAT_VERSION = 1

#: Values of a card's `network` for compiled models, whose files hold code.
COMPILED_NETWORKS = ("TorchScript", "ExportedProgram")


def _refuse(problems: Iterable[str]) -> None:
    """Raise :class:`ValueError` if there are problems; the reader of the card adds where in the card they are."""
    if problems := list(problems):
        raise ValueError("; ".join(problems))


@dataclass(frozen=True)
class LabelSpec:
    """One anatomical label of the result.

    `value` is its number in the label map; `color` is sRGB 0..255; `parent` is the label of the organ that includes
    this one (the tumor is part of the liver); `category`, `type` and `region` are coded concepts (scheme, value,
    meaning) of DICOM's segmentation terminology.
    """

    name: str
    value: int
    color: tuple[int, int, int]
    parent: str | None = None
    category: Code = terminology.ANATOMICAL_STRUCTURE
    type: Code = terminology.ANATOMICAL_STRUCTURE
    region: Code | None = None

    @property
    def terminology_entry(self) -> str:
        """Category, type and region in the format that 3D Slicer stores."""
        return terminology.terminology_entry(self.category, self.type, self.region)

    def __post_init__(self) -> None:
        _refuse(label_problems(self))

    @property
    def is_liver(self) -> bool:
        """Whether this is the whole liver."""
        return self.type[:2] == terminology.LIVER[:2]

    @property
    def is_lesion(self) -> bool:
        """Whether this is a pathological finding, of which there may be any number."""
        return self.category[:2] == terminology.MORPHOLOGICALLY_ALTERED[:2]


#: The two final labels of every liver model in this project.
LIVER = LabelSpec("liver", STRUCTURES["liver"], (221, 130, 101), type=terminology.LIVER)
TUMOR = LabelSpec(
    "tumor",
    STRUCTURES["tumor"],
    (144, 238, 144),
    parent="liver",
    category=terminology.MORPHOLOGICALLY_ALTERED,
    type=terminology.MASS,
    region=terminology.LIVER,
)


@dataclass(frozen=True)
class Intensity:
    """``(x - shift) / scale`` with ``x = clip(HU, low, high)``; ``low`` or ``high`` None: no clipping on that side.

    With `statistics` "z-score" x is instead the distance from the image's mean in standard deviations, with "range"
    the position between its smallest (0) and largest value (1), for networks trained in this way.

    :param centered: HU, and with them `low`, `high` and `shift`, are relative to the median of the structure that an
        earlier stage found (the stage's `region`): contrast phase and fat shift a liver by 100 HU, and its tumors too.
    """

    low: float | None = None
    high: float | None = None
    shift: float = 0.0
    scale: float = 1.0
    statistics: str | None = None
    centered: bool = False

    def __post_init__(self) -> None:
        _refuse(intensity_problems(self))


@dataclass(frozen=True)
class Region:
    """Where a stage runs: the bounding box of `label`, found by an earlier stage, plus `margin_mm` on each side."""

    label: str
    margin_mm: float


@dataclass(frozen=True)
class LayerSpec:
    """An explainable layer of a network: a dotted module path and its stride in voxels of the grid."""

    name: str
    stride: tuple[int, ...]
    description: str = ""


@dataclass(frozen=True)
class Resampling:
    """How nnU-Net resizes an image, or its scores: splines of `order`, 0 nearest, 1 linear, 3 cubic.

    :param order_z: order along the axis of thick slices, if that axis is resized separately.
    :param separate_z: whether it is; None: if spacings differ by more than a factor of `anisotropy`.
    :param half: scores in half precision stay in half precision.
    """

    order: int = 3
    order_z: int = 0
    separate_z: bool | None = None
    anisotropy: float = 3.0
    half: bool = True

    def __post_init__(self) -> None:
        _refuse(resampling_problems(self))


@dataclass(frozen=True)
class NnUNet:
    """Preprocessing and postprocessing specific to nnU-Net (Isensee et al. 2021).

    The image is cropped to its nonzero region, normalized, then resized; scores are resized before labels are decided.

    :param masked: a z-score is computed from, and applied to, the nonzero region only (with holes filled).
    """

    masked: bool = False
    image: Resampling = Resampling()
    scores: Resampling = Resampling(order=1)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold above which a connected component counts as a lesion, and its performance on the card's data.

    :param peak: the logit that a component must reach somewhere, on the image's own grid.
    :param false_per_case: false positives per case.
    :param sensitivity: fraction of the lesions that were found.
    """

    peak: float
    false_per_case: float
    sensitivity: float


@dataclass(frozen=True)
class StageSpec:
    """One network of the cascade and everything needed to prepare its input and interpret its output.

    :param name: short name, unique in the model ("liver", "lesions").
    :param network: class name from :mod:`LiverXAILib.networks` or a loader ("UNet", "ObeliskUNet").
    :param arguments: keyword arguments of that class.
    :param weights: names of files in the card's folder; more than one means an ensemble whose logits are averaged.
    :param sha256: checksums, one for each weights file, in hexadecimal.
    :param axes: the directions of the tensor's axes, e.g. "SPL": axis 0 to superior, 1 to posterior, 2 to left. Or the
        image's own axes in some order, e.g. "kji": as stored, for a network trained on images as stored.
    :param spacing: voxel size in mm along those axes (None for an axis: the image's own), or None if `size` is given.
    :param size: the field of view is resized to this many voxels, whatever its extent in mm (None for an axis: the
        image's own number); or None.
    :param field_of_view_mm: with `size`: a scan longer than this along an axis is cut into overlapping parts
        (None for an axis: never cut).
    :param crop_to_body: run only in the bounding box of the patient's body.
    :param intensity: HU to network input.
    :param window: sliding-window (patch) size in voxels; None: the whole grid in one pass where memory allows.
    :param divisor: the network needs sizes divisible by this (per axis).
    :param pad_to_window: pad an image smaller than the window up to it, as nnU-Net does.
    :param overlap: fraction of a window shared with its neighbor.
    :param activation: "softmax" (channels exclude each other) or "sigmoid" (channels are nested regions).
    :param channels: names of the output channels, in order.
    :param labels: for each label that this stage decides, the channels whose union is its region. With nested
        regions "liver" includes "tumor".
    :param peak_threshold: hysteresis thresholding, by label: a connected component of the label's region in the image
        (score above 0) counts only if the network's score, a logit, reaches this somewhere in it.
    :param operating_points: by label, other operating points that a user may choose
        (:mod:`LiverXAILib.inference.sensitivity`).
    :param region: run only around a label that an earlier stage found.
    :param layers: explainable layers of the network; none for a compiled model.
    :param default_layer: the one to use when the user names none; "" if there are none.
    :param dimensions: 3, or 2 for a network that reads single slices along axis 0.
    :param mirror_axes: the logits are averaged over all mirrorings of a window along these tensor axes.
    :param nnunet: prepare the image and read the scores as nnU-Net does.
    """

    name: str
    network: str
    arguments: Mapping[str, Any]
    weights: tuple[str, ...]
    sha256: tuple[str, ...]
    axes: str
    channels: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    layers: tuple[LayerSpec, ...]
    default_layer: str
    activation: str = "softmax"
    spacing: tuple[float | None, float | None, float | None] | None = None
    size: tuple[int | None, int | None, int | None] | None = None
    field_of_view_mm: tuple[float | None, float | None, float | None] = (None, None, None)
    crop_to_body: bool = False
    intensity: Intensity = Intensity()
    window: tuple[int, int, int] | None = None
    divisor: tuple[int, int, int] = (1, 1, 1)
    pad_to_window: bool = False
    overlap: float = 0.5
    peak_threshold: Mapping[str, float] = field(default_factory=dict)
    operating_points: Mapping[str, tuple[OperatingPoint, ...]] = field(default_factory=dict)
    region: Region | None = None
    dimensions: int = 3
    mirror_axes: tuple[int, ...] = ()
    nnunet: NnUNet | None = None

    def __post_init__(self) -> None:
        if problems := stage_problems(self):
            raise ModelError(f"The model card's stage {self.name[:40]!r} is wrong: {'; '.join(problems)}.")

    def __repr__(self) -> str:
        return f"StageSpec({self.name!r}: {self.summary()})"

    def summary(self) -> str:
        """The network, its grid, its region and its labels, as one line of text."""
        sizes = ["any" if n is None else f"{n:.3g}" for n in self.spacing or self.size or ()]
        grid = " x ".join(sizes) + (" voxels" if self.spacing is None else " mm")
        where = f", within {self.region.margin_mm:g} mm of the {self.region.label}" if self.region else ""
        several = f"{len(self.weights)} x " if len(self.weights) > 1 else ""
        return f"{several}{self.network}, {grid}{where}; finds {', '.join(self.labels)}"


@dataclass(frozen=True)
class Reliability:
    """A logistic regression for the probability that a tumor finding of this model is true.

    The features are those of :mod:`LiverXAILib.measure.reliability`; `weights` apply to ``(feature - center) / scale``.

    :param findings: how many findings it was fitted on, and `true`: how many of them were true.
    :param source: the command that fitted it.
    """

    intercept: float
    weights: Mapping[str, float]
    centers: Mapping[str, float]
    scales: Mapping[str, float]
    findings: int
    true: int
    source: str = ""

    def __post_init__(self) -> None:
        _refuse(reliability_problems(self))


@dataclass(frozen=True)
class OutlineAgain:
    """Refinement of the outlines of small lesions by the bundled network of :mod:`LiverXAILib.inference.outlines`.

    :param label: the lesions; their parent is the liver.
    :param sha256: checksum of the weights with which the model was evaluated; others are refused.
    """

    label: str
    sha256: str


@dataclass(frozen=True)
class ModelSpec:
    """The card of a model. `labels` are those of the final result, by name; later labels are drawn over earlier ones.

    `quality` and `training` are free-form, JSON-ready mappings that reports print; `limits` are sentences.
    `reliability` estimates the probability that a finding of this model is true, if that was fitted.
    `outlines`: a network of their own refines the outlines of small lesions.
    """

    name: str
    version: str
    title: str
    description: str
    labels: tuple[LabelSpec, ...]
    stages: tuple[StageSpec, ...]
    license: str
    source: str = ""
    citation: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    reliability: Reliability | None = None
    outlines: OutlineAgain | None = None

    def __repr__(self) -> str:
        labels, stages = (", ".join(one.name for one in some) for some in (self.labels, self.stages))
        return f"ModelSpec({self.name!r}, version {self.version}; labels {labels}; stages {stages})"

    def __post_init__(self) -> None:
        if problems := model_problems(self):
            raise ModelError(f"The model card of {self.name[:40]!r} is wrong: {'; '.join(problems)}.")

    @property
    def sha256(self) -> tuple[str, ...]:
        """Checksums of all weights, in the order of the card, as listed in a result's provenance."""
        outlines = () if self.outlines is None else (self.outlines.sha256,)
        return (*(checksum for stage in self.stages for checksum in stage.sha256), *outlines)

    def networks(self) -> list[str]:
        """What each network does, in order, as lines of text."""
        lines = [f"{stage.name}: {stage.summary()}" for stage in self.stages]
        if self.outlines is not None:
            label = self.outlines.label
            lines.append(f"outlines: UNet, 1 or 2 mm, around each small finding; refines the outline of the {label}")
        return lines

    def label(self, name: str) -> LabelSpec:
        """The label called `name`; raises :class:`~LiverXAILib.errors.ModelError` if there is none."""
        for label in self.labels:
            if label.name == name:
                return label
        raise ModelError(f"Model {self.name!r} has no label {name!r}; it has {[x.name for x in self.labels]}.")

    def stage_of(self, label: str) -> StageSpec:
        """The stage that decides `label`: the last one that names it."""
        for stage in reversed(self.stages):
            if label in stage.labels:
                return stage
        raise ModelError(f"Model {self.name!r} has no label {label!r}; it has {[x.name for x in self.labels]}.")

    def to_json(self) -> str:
        """The card as text: readable, stable order, UTF-8."""
        return json.dumps({"format": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        """Read a card. Unknown or missing fields raise :class:`~LiverXAILib.errors.ModelError`."""
        data = parse_json(text, dict, "the model card")
        if data.pop("format", None) != FORMAT_VERSION:
            raise ModelError(f'The model card must have "format": {FORMAT_VERSION}; get a newer LiverXAI or model.')
        stages = data.get("stages")
        for stage in stages if isinstance(stages, list) else ():
            # The former name of the field in older cards.
            if isinstance(stage, dict) and "certain_at" in stage:
                stage.setdefault("peak_threshold", stage.pop("certain_at"))
        try:
            return from_json_value(ModelSpec, data)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"The model card cannot be understood: {error}.") from error
