# SPDX-License-Identifier: Apache-2.0
"""Reading and checking a configuration; an error message is one sentence that names the setting."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..errors import UsageError
from ..files import require_exists
from .config import Config, Data, json_schema


def read_config(path: Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, apply `changes` (dotted names such as "training.epochs"), and check the whole.

    :raises LiverXAILib.errors.InputError: there is no such file.
    :raises LiverXAILib.errors.UsageError: a setting is wrong; the message says which, why, and what is allowed.
    """
    require_exists(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where}: this is not YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: this is not a configuration, which consists of settings such as 'data: …'.")
    for dotted, value in (changes or {}).items():
        _set(content, dotted.split("."), value)
    return parse_config({"name": path.stem, **content}, str(path))


def parse_config(content: Mapping[str, Any], source: str = "the configuration") -> Config:
    """Check parsed YAML; see :func:`read_config`."""
    try:
        config = TypeAdapter(Config).validate_python(content)
    except ValidationError as error:
        raise UsageError(f"{source}: {_sentence(error)}") from None
    if sentence := _contradiction(config, content):
        raise UsageError(f"{source}: {sentence}")
    return config


def _set(content: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = content.get(key)
        content[key] = inner = dict(inner) if isinstance(inner, dict) else {}
        content = inner
    content[keys[-1]] = value


#: Messages by the type of pydantic's error; the fields in braces come from the error's context.
_RULES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dataclass_type": "must be a group of settings",
    "literal_error": "must be one of {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must begin with a letter or digit and hold only these, '.', '_' and '-'",
}


def _sentence(error: ValidationError) -> str:
    """Pydantic's first error as a readable sentence; alternatives of one setting are joined by "or"."""
    problems = error.errors(include_url=False)
    first = _setting(problems[0])
    problem, name = problems[0], ".".join(map(str, first))
    if problem["type"] == "unexpected_keyword_argument":
        known, (*groups, wrong) = _names(first[:-1]), first
        near = difflib.get_close_matches(str(wrong), known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
        where = ".".join(map(str, groups))
        return f"there is no setting {str(wrong)!r}{f' in {where!r}' if where else ''}. {hint}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"the setting {name} is missing."
    rules = []
    for other in problems:
        if _setting(other) == first:
            context = {key: _shown(key, value) for key, value in other.get("ctx", {}).items()}
            rules.append(_RULES.get(other["type"], f"is wrong: {other['msg']}").format(**context))
    text = " or ".join([rules[0], *(rule.removeprefix("must be ") for rule in dict.fromkeys(rules[1:]))])
    given = problem["input"]
    value = "these settings" if isinstance(given, Mapping) else json.dumps(given, ensure_ascii=False, default=str)
    return f"{name or 'it'} {text}, not {value}."


def _setting(problem: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The setting a problem is in, without the alternatives of a union, which pydantic appends to its path."""
    place: list[str | int] = []
    for part in problem["loc"]:
        if isinstance(part, str) and place and not _names(place):
            break
        place.append(part)
    return tuple(place)


def _names(place: Sequence[str | int]) -> list[str]:
    """The settings of the group at `place`; empty if that is a single setting."""
    schema = json_schema()
    node: Mapping[str, Any] = schema
    for part in place:
        node = node.get("properties", {}).get(part, {})
        for alternative in (node, *node.get("anyOf", ())):
            if "$ref" in alternative:
                node = schema["$defs"][alternative["$ref"].rpartition("/")[2]]
    return list(node.get("properties", ()))


def _shown(key: str, value: Any) -> str:
    """Format a bound without ".0", and choices without quotation marks."""
    if key == "expected":
        return str(value).replace("'", "").replace(" or ", ", ")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _contradiction(config: Config, content: Mapping[str, Any]) -> str | None:
    """Contradictions that a schema cannot express, as a sentence; None if there is none."""
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
        return "training.patch is needed if images have no fixed size."
    if config.training.patch is None:
        divisor = network.stem_stride * 2 ** (len(network.features) - 1)
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
        return f"data.fold must be less than data.folds ({data.folds}): folds are counted from 0."
    if data.folds is not None and data.validation_cases:
        return "data.folds and data.validation_cases exclude each other."
    return None
