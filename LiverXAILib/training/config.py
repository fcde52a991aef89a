# SPDX-License-Identifier: Apache-2.0
"""The configuration of a training run: YAML, checked by ``config.schema.json``, as dataclasses with defaults."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..models.serialization import from_json_value
from ..models.spec import Intensity

#: What may change when a run is resumed.
_NOT_RECIPE = ("name", "title", "output", "hardware", "finish")
_SCHEMA = Path(__file__).with_name("config.schema.json")


@dataclass(frozen=True)
class Data:
    """What is trained on. Fields are described in the schema, here and below."""

    layout: str
    path: str
    labels: Mapping[str, Any] | None = None
    validation: float = 0.2
    validation_cases: tuple[str, ...] = ()
    folds: int | None = None
    fold: Any = 0
    exclude: tuple[str, ...] = ()
    training_cases: int | None = None
    phantoms: int | None = None
    phantom_seed: int = 3000
    phantom_spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)
    synthetic_lesions: bool = False
    cache: str = "memory"


@dataclass(frozen=True)
class Network:
    """The U-Net to train from nothing."""

    dimensions: int = 3
    features: tuple[int, ...] = (16, 32, 64, 96)
    norm: str = "batch"
    spacing: tuple[float | None, float | None, float | None] | None = None
    size: tuple[int | None, int | None, int | None] | None = None
    intensity: Intensity = field(default_factory=lambda: Intensity(-200.0, 300.0, 50.0, 120.0))


@dataclass(frozen=True)
class Training:
    """The loop and the loss."""

    epochs: int = 100
    patch: tuple[int, ...] | None = None
    samples_per_case: int = 4
    slices_per_case: int | None = None
    batch_size: int = 2
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"
    dice_weight: float = 1.0
    bce_weight: float = 1.0
    batch_dice: bool | None = None
    tumor_balance: float = 1.0
    freeze_norm: bool | None = None
    early_stop: int | None = None
    checkpoint_every: int = 50


@dataclass(frozen=True)
class Augmentation:
    """What happens to a sample at random."""

    probability: float = 0.5
    flip: tuple[int, ...] = ()
    rotation: float = 15.0
    scaling: float = 0.15
    noise: float = 15.0
    brightness: float = 15.0
    contrast: float = 0.1


@dataclass(frozen=True)
class Hardware:
    """Where it runs; may change when a run is resumed."""

    accelerator: str = "auto"
    devices: Any = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    workers: int = 0


@dataclass(frozen=True)
class Finish:
    """What comes after training; may change when a run is resumed."""

    evaluate: bool = True
    surface: bool = True
    explain: str | None = None
    examples: int = 1


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: Data
    name: str = "model"
    title: str = ""
    output: str | None = None
    seed: int = 0
    init: str | None = None
    stage: str | None = None
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    hardware: Hardware = field(default_factory=Hardware)
    finish: Finish = field(default_factory=Finish)

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.output or f"runs/{self.name}")

    def plain(self) -> dict[str, Any]:
        """What YAML would give for this configuration, with its defaults written out."""
        plain = _pruned(json.loads(json.dumps(dataclasses.asdict(self))))
        if self.init is not None:
            del plain["network"]
        else:
            # A network from nothing is the only stage: there is nothing that it could count HU from.
            del plain["network"]["intensity"]["centered"]
        return plain

    def recipe(self) -> dict[str, Any]:
        """What decides the weights: a run is only resumed under the same recipe."""
        plain = self.plain()
        return {key: value for key, value in plain.items() if key not in _NOT_RECIPE}


def read_config(path: Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, apply `changes` (dotted names such as "training.epochs"), and check the whole.

    :raises LiverXAILib.errors.UsageError: one sentence says which setting is wrong, why, and what it may be.
    """
    try:
        import yaml
    except ImportError as error:
        raise UsageError("Training needs more packages: run 'pip install \"liverxai[train]\"'.") from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where}: this is not YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a configuration is a list of settings such as 'data: …', and this is none.")
    for dotted, value in (changes or {}).items():
        _set(content, dotted.split("."), value)
    return parse_config({"name": path.stem, **content}, str(path))


def parse_config(content: Mapping[str, Any], source: str = "the configuration") -> Config:
    """Check parsed YAML; see :func:`read_config`."""
    import jsonschema

    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(content))
    if error is not None:
        raise UsageError(f"{source}: {_sentence(error)}")
    try:
        config = from_json_value(Config, content)
    except ValueError as problem:
        raise UsageError(f"{source}: {problem}.") from problem
    if sentence := _contradiction(config, content):
        raise UsageError(f"{source}: {sentence}")
    return config


def _pruned(value: Any) -> Any:
    """Without what is not set."""
    if not isinstance(value, dict):
        return value
    return {key: _pruned(inner) for key, inner in value.items() if inner is not None and inner != []}


def _set(content: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = content.get(key)
        content[key] = inner = dict(inner) if isinstance(inner, dict) else {}
        content = inner
    content[keys[-1]] = value


def _sentence(error: Any) -> str:
    """What jsonschema found, for people."""
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        wrong = sorted(set(error.instance) - set(known))[0]
        near = difflib.get_close_matches(str(wrong), known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
        return f"there is no setting {wrong!r}{f' in {where!r}' if where else ''}. {hint}"
    if error.validator == "required":
        missing = sorted(set(error.validator_value) - set(error.instance))[0]
        return f"the setting {f'{where}.' if where else ''}{missing} is missing."
    rules = {
        "enum": lambda value: f"must be one of {', '.join(map(str, value))}",
        "type": lambda value: f"must be {_types(value)}",
        "minimum": lambda value: f"must be at least {value}",
        "maximum": lambda value: f"must be at most {value}",
        "exclusiveMinimum": lambda value: f"must be more than {value}",
        "exclusiveMaximum": lambda value: f"must be less than {value}",
        "minItems": lambda value: f"must have at least {value} entries",
        "maxItems": lambda value: f"must have at most {value} entries",
    }
    rule = rules.get(error.validator)
    text = rule(error.validator_value) if rule else f"is wrong: {error.message}"
    given = json.dumps(error.instance, ensure_ascii=False) if not isinstance(error.instance, dict) else "these settings"
    return f"{where or 'it'} {text}, not {given}."


def _types(value: str | Sequence[str]) -> str:
    words = {
        "array": "a list",
        "boolean": "true or false",
        "integer": "a whole number",
        "null": "null",
        "number": "a number",
        "object": "a group of settings",
        "string": "text",
    }
    return " or ".join(words[name] for name in ([value] if isinstance(value, str) else value))


def _contradiction(config: Config, content: Mapping[str, Any]) -> str | None:
    """What no schema can say, as a sentence; None if all is well."""
    network, data = config.network, config.data
    if math.isclose(config.training.dice_weight + config.training.bce_weight, 0):
        return "training.dice_weight and training.bce_weight cannot both be 0."
    if config.init is not None:
        if "network" in content:
            return "init brings its own network: leave out 'network', or 'init'."
        return _data_contradiction(data)
    if config.stage is not None:
        return "stage names a stage of the model that init names, but there is no init."
    if (network.spacing is None) == (network.size is None):
        return "network needs either spacing or size."
    whole = network.size is not None and None not in network.size[3 - network.dimensions :]
    if config.training.patch is None and not whole:
        return "training.patch is needed where images have no fixed size."
    if config.training.patch is None:
        divisor = 2 ** (len(network.features) - 1)
        if any((n or 0) % divisor for n in (network.size or ())[3 - network.dimensions :]):
            return (
                f"a U-Net with {len(network.features)} levels needs sizes divisible by {divisor}: change network.size "
                "or network.features."
            )
    if any(axis >= network.dimensions for axis in config.augmentation.flip):
        return f"augmentation.flip names an axis that a {network.dimensions}-D network does not have."
    return _data_contradiction(data)


def _data_contradiction(data: Data) -> str | None:
    if (data.layout == "phantoms") != (data.phantoms is not None):
        return "data.phantoms (how many) goes with the layout 'phantoms', and only with it."
    if data.folds is None and data.fold != 0:
        return "data.fold is given, but not data.folds."
    if data.folds is not None and data.fold != "all" and data.fold >= data.folds:
        return f"data.fold must be less than data.folds ({data.folds}): parts are counted from 0."
    if data.folds is not None and data.validation_cases:
        return "data.folds and data.validation_cases exclude each other."
    return None
