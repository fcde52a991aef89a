# SPDX-License-Identifier: Apache-2.0
"""The configuration of a training run: each setting with its type, bounds, default and meaning (pydantic)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

#: Settings that may change when a run is resumed.
_NOT_RECIPE = ("name", "title", "output", "hardware", "finish")
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _not_bool(value: Any) -> Any:
    """Turn booleans into text, so that they are not accepted as numbers."""
    return str(value).lower() if isinstance(value, bool) else value


_NUMERIC = BeforeValidator(_not_bool)  # after the bounds, which would otherwise be missing from the schema
Number = Annotated[float, _NUMERIC]
Positive = Annotated[int, Field(ge=1), _NUMERIC]
Count = Annotated[int, Field(ge=0), _NUMERIC]
Amount = Annotated[float, Field(ge=0), _NUMERIC]
Share = Annotated[float, Field(ge=0, lt=1), _NUMERIC]
Several = Annotated[int, Field(ge=2), _NUMERIC]
AboveZero = Annotated[float, Field(gt=0), _NUMERIC]
Millimeters = Annotated[float, Field(ge=0.3, le=20), _NUMERIC]
Axis = Annotated[int, Field(ge=0, le=2), _NUMERIC]
Values = Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]


@dataclass(frozen=True, config=_STRICT)
class Labels:
    """Values in the label maps; by default those that the data set declares, else 1 for liver and 2 for tumor."""

    liver: Annotated[Values, Field(description="Values of liver tissue in the label maps.")]
    tumor: Annotated[
        Values | None,
        Field(description="Values of tumors; leave out if the tumors are not labeled."),
    ] = None
    others: Annotated[
        Literal["background"] | None, Field(description="Allow other values and treat them as background.")
    ] = None


@dataclass(frozen=True, config=_STRICT)
class Data:
    """The training data."""

    layout: Annotated[
        Literal["msd", "nnunet", "lits", "csv", "dicom-seg", "phantoms"],
        Field(description="How images and labels are stored; see docs/training.md."),
    ]
    path: Annotated[
        str,
        Field(
            min_length=1,
            description="Folder of the data set, or the CSV file. Relative paths are relative to the current folder.",
        ),
    ]
    labels: Annotated[Labels | None, Field(description="Values in the label maps; default: the data set's own.")] = None
    validation: Annotated[
        float, Field(gt=0, lt=1, description="Fraction of the cases kept for validation."), _NUMERIC
    ] = 0.2
    validation_cases: Annotated[tuple[str, ...], Field(description="Instead: the names of these cases.")] = ()
    folds: Annotated[Several | None, Field(description="Instead: number of folds for k-fold cross-validation.")] = None
    fold: Annotated[
        Count | Literal["all"],
        Field(description="Which fold to validate on, from 0; or all, one after the other."),
    ] = 0
    exclude: Annotated[tuple[str, ...], Field(description="Names of cases to leave out.")] = ()
    training_cases: Annotated[
        Positive | None, Field(description="Train on only this many cases (the first of the shuffled split).")
    ] = None
    phantoms: Annotated[
        Several | None,
        Field(description="Layout phantoms: how many to generate in path, unless they exist."),
    ] = None
    phantom_seed: Annotated[Count, Field(description="Seed of the first phantom.")] = 3000
    phantom_spacing: Annotated[
        tuple[Millimeters, Millimeters, Millimeters], Field(description="Voxel size (i, j, k) in mm.")
    ] = (3.0, 3.0, 3.0)
    synthetic_lesions: Annotated[
        bool, Field(description="Paint synthetic lesions into training livers without labeled tumors.")
    ] = False
    cache: Annotated[Literal["memory", "disk"], Field(description="Where prepared cases are kept.")] = "memory"


@dataclass(frozen=True, config=_STRICT)
class IntensityRange:
    """Mapping of HU to network input: (clip(HU, low, high) - shift) / scale."""

    low: Annotated[Number | None, Field(description="Lower limit in HU; null: none.")] = None
    high: Annotated[Number | None, Field(description="Upper limit in HU; null: none.")] = None
    shift: Annotated[Number, Field(description="HU that become 0.")] = 0.0
    scale: Annotated[AboveZero, Field(description="HU from 0 to 1.")] = 1.0


_Spacing = AboveZero | None


@dataclass(frozen=True, config=_STRICT)
class Network:
    """The U-Net to train from scratch; not with init, which brings its own network."""

    dimensions: Annotated[Literal[2, 3], Field(description="3: volumes; 2: axial slices.")] = 3
    features: Annotated[
        tuple[Positive, ...], Field(min_length=2, description="Channels of each level of the U-Net.")
    ] = (16, 32, 64, 96)
    norm: Annotated[Literal["batch", "instance", "group"], Field(description="Normalization layers.")] = "batch"
    stem_stride: Annotated[
        Literal[1, 2],
        Field(
            description="2: the first convolution halves the resolution, and the head restores it by sub-pixel "
            "convolution: a quarter of the time for slices, an eighth for volumes."
        ),
    ] = 1
    spacing: Annotated[
        tuple[_Spacing, _Spacing, _Spacing] | None,
        Field(description="Voxel size in mm along (superior, posterior, left); null: the image's own."),
    ] = None
    size: Annotated[
        tuple[Positive | None, Positive | None, Positive | None] | None,
        Field(description="Instead: resize to this many voxels along these axes; null: the image's own number."),
    ] = None
    intensity: Annotated[IntensityRange, Field(description="Mapping of HU to network input.")] = IntensityRange(
        -200.0, 300.0, 50.0, 120.0
    )


@dataclass(frozen=True, config=_STRICT)
class Training:
    """The training loop and the loss."""

    epochs: Annotated[Positive, Field(description="Passes over the training cases, at most.")] = 100
    patch: Annotated[
        tuple[Positive, ...] | None,
        Field(
            min_length=2,
            max_length=3,
            description="Size of a sample in voxels along the network's axes; null: whole slices (or volumes) of a "
            "fixed size; with init: what the model's window allows.",
        ),
    ] = None
    samples_per_case: Annotated[
        Positive, Field(description="Random patches per case and epoch; a 2-D network is trained on slices instead.")
    ] = 4
    slices_per_case: Annotated[
        Positive | None,
        Field(description="Random slices per case and epoch, for a 2-D network; default: each slice once."),
    ] = None
    batch_size: Annotated[Positive, Field(description="Samples of a step on each device.")] = 2
    accumulate: Annotated[Positive, Field(description="Batches whose gradients are accumulated before a step.")] = 1
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="Optimizer of torch.")] = "adamw"
    learning_rate: Annotated[AboveZero, Field(description="Largest learning rate.")] = 1e-3
    weight_decay: Annotated[Amount, Field(description="Weight decay of the optimizer.")] = 0.0
    schedule: Annotated[Literal["cosine", "constant"], Field(description="cosine: warm-up, then to 1 %.")] = "cosine"
    dice_weight: Annotated[Amount, Field(description="Weight of the soft Dice loss.")] = 1.0
    bce_weight: Annotated[Amount, Field(description="Weight of the binary cross-entropy.")] = 1.0
    batch_dice: Annotated[
        bool | None,
        Field(
            description="Soft Dice over all samples of a batch together instead of each sample; default: only for "
            "slices, many of which contain no liver."
        ),
    ] = None
    tumor_balance: Annotated[
        Amount,
        Field(
            description="Weight of the cross-entropy of tumor against liver, averaged over each of the two first; "
            "it keeps the tumor output from staying at background."
        ),
    ] = 1.0
    freeze_norm: Annotated[bool | None, Field(description="Batch norms keep their statistics; default: with init.")] = (
        None
    )
    early_stop: Annotated[
        Positive | None, Field(description="Stop after this many epochs without a better validation Dice.")
    ] = None
    checkpoint_every: Annotated[Positive, Field(description="Steps between checkpoints within an epoch.")] = 50


@dataclass(frozen=True, config=_STRICT)
class Augmentation:
    """Random augmentation of samples."""

    probability: Annotated[float, Field(ge=0, le=1, description="Probability of each augmentation."), _NUMERIC] = 0.5
    flip: Annotated[
        tuple[Axis, ...],
        Field(description="Axes of the network's input to mirror along."),
    ] = ()
    rotation: Annotated[float, Field(ge=0, le=180, description="Largest angle in degrees."), _NUMERIC] = 15.0
    scaling: Annotated[Share, Field(description="0.15: between 0.85 and 1.15.")] = 0.15
    noise: Annotated[Amount, Field(description="Standard deviation in HU, at most.")] = 15.0
    brightness: Annotated[Amount, Field(description="HU added, at most.")] = 15.0
    contrast: Annotated[Share, Field(description="0.1: HU times 0.9 to 1.1.")] = 0.1


@dataclass(frozen=True, config=_STRICT)
class Hardware:
    """Where the training runs; may change when a run is resumed."""

    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps"], Field(description="Kind of device.")] = "auto"
    devices: Annotated[Positive | Literal["auto"], Field(description="Number of devices on each machine.")] = 1
    nodes: Annotated[Positive, Field(description="Number of machines.")] = 1
    strategy: Annotated[str, Field(description="A strategy of Lightning: auto, ddp, fsdp, …")] = "auto"
    precision: Annotated[Literal["32-true", "16-mixed", "bf16-mixed"], Field(description="Number format.")] = "32-true"
    workers: Annotated[Count, Field(description="Processes that prepare samples.")] = 0


@dataclass(frozen=True, config=_STRICT)
class Finish:
    """The steps after training; may change when a run is resumed."""

    evaluate: Annotated[bool, Field(description="Evaluate each validation case at the end, on its own grid.")] = True
    surface: Annotated[bool, Field(description="Include surface distances.")] = True
    explain: Annotated[
        str | None,
        Field(description="Analyze some validation cases with this explanation method, e.g. seg-grad-cam."),
    ] = None
    examples: Annotated[Count, Field(description="Number of validation cases to analyze.")] = 1


@dataclass(frozen=True, config=_STRICT)
class Config:
    """A training run of LiverXAI."""

    data: Data
    name: Annotated[
        str,
        Field(
            pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$",
            description="Name of the run and of its model; default: the file's name.",
        ),
    ] = "model"
    title: Annotated[str, Field(description="One line for the model card.")] = ""
    output: Annotated[
        str | None, Field(description="Folder of the run; default: runs/<name> in the current folder.")
    ] = None
    seed: Annotated[Count, Field(description="Seed of the split, the initial weights, and the samples.")] = 0
    init: Annotated[
        str | None, Field(description="Start from this model: a name such as default, or a model folder.")
    ] = None
    stage: Annotated[
        str | None,
        Field(description="With init: which stage of that model to train; default: the one that segments tumors."),
    ] = None
    network: Network = Network()
    training: Training = Training()
    augmentation: Augmentation = Augmentation()
    hardware: Hardware = Hardware()
    finish: Finish = Finish()

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.output or f"runs/{self.name}")

    def plain(self) -> dict[str, Any]:
        """This configuration as YAML would load it, with all defaults written out."""
        plain: dict[str, Any] = _pruned(json.loads(json.dumps(dataclasses.asdict(self))))
        if self.init is not None:
            del plain["network"]
        return plain

    def recipe(self) -> dict[str, Any]:
        """The settings that determine the weights: a run is resumed only if they are unchanged."""
        plain = self.plain()
        return {key: value for key, value in plain.items() if key not in _NOT_RECIPE}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration, for editors that complete and validate YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(Config).json_schema()}


def _pruned(value: Any) -> Any:
    """Remove settings that are not set."""
    if not isinstance(value, dict):
        return value
    return {key: _pruned(inner) for key, inner in value.items() if inner is not None and inner != []}
