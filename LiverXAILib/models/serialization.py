# SPDX-License-Identifier: Apache-2.0
"""Strict reading of untrusted JSON: bounded size, finite numbers, no duplicate, unknown or wrongly typed fields."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import ModelError

T = TypeVar("T")

#: Largest JSON file that is read, in bytes: nnU-Net lists all training cases in one file.
_MOST_BYTES = 32_000_000
#: The longest list of stages, labels, layers …: checking far more of them than any model has would take minutes.
_MOST_OBJECTS = 1000
_type_hints = functools.cache(get_type_hints)


def read_json(path: Path, kind: type[T], what: str) -> T:
    """Read a JSON file as a value of type `kind`.

    :param what: what the file is, for messages: "the model card".
    :raises LiverXAILib.errors.ModelError: it cannot be read, or is not such a value.
    """
    return parse_json(read_text(path, what), kind, f"{what} {path}")


def read_text(path: Path, what: str) -> str:
    """The text of a file of bounded size; raises :class:`~LiverXAILib.errors.ModelError` if it cannot be read."""
    try:
        # Refuse a pipe or device, which might never end.
        if not path.is_file():
            raise ModelError(f"{what[:1].upper()}{what[1:]} {path} is missing, or is not a regular file.")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ModelError(f"{path} has more than {_MOST_BYTES // 1_000_000} MB, which is too much for {what}.")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{what[:1].upper()}{what[1:]} {path} cannot be read: {error}.") from error


def parse_json(text: str, kind: type[T], what: str) -> T:
    """`text` as a value of type `kind`; ``dict`` accepts any JSON object unchanged.

    :raises LiverXAILib.errors.ModelError: it is not such a value; the message says where.
    """
    try:
        data = json.loads(text, parse_constant=_not_finite, parse_float=_finite, object_pairs_hook=_object)
        if kind is dict:
            if not isinstance(data, dict):
                raise ValueError("it must be an object")
            return data  # type: ignore[return-value]
        return from_json_value(kind, data)
    except ModelError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else _shortened(str(error))
        raise ModelError(f"{what[:1].upper()}{what[1:]} cannot be understood: {reason}.") from error


def _shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[:most] + " …"


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_shortened(text, 40)} is not a finite number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the field {_shortened(next(n for n in names if names.count(n) > 1), 40)!r} appears twice")
    return data


def from_json_value(kind: Any, data: Any, where: str = "") -> Any:
    """Build a value of type `kind` from the output of :mod:`json`: lists become tuples, objects dataclasses.

    :param where: path of `data` in the document, for messages.
    :raises ValueError: `data` is not such a value; the message says where.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return _tuples(data)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        (kind,) = [option for option in arguments if option is not type(None)]
        return from_json_value(kind, data, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise ValueError(f"{where or 'it'} must be a list")
        kinds = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else list(arguments)
        if len(data) > _MOST_OBJECTS and any(map(dataclasses.is_dataclass, kinds[:1])):
            raise ValueError(f"{where or 'it'} has {len(data)} entries; at most {_MOST_OBJECTS} make sense")
        if len(kinds) != len(data):
            raise ValueError(f"{where or 'it'} must have {len(kinds)} entries, not {len(data)}")
        return tuple(
            from_json_value(k, item, f"{where}[{n}]") for n, (k, item) in enumerate(zip(kinds, data, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise ValueError(f"{where or 'it'} must be an object")
        return {key: from_json_value(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    allowed = (int, float) if kind is float else kind
    if not isinstance(data, allowed) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where or 'it'} must be of type {kind.__name__}, not {_shortened(repr(data), 80)}")
    return data


def _dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or 'it'} must be an object")
    hints = _type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := set(data) - set(fields):
        raise ValueError(f"{where or 'it'} has unknown fields: {', '.join(sorted(map(str, unknown)))}")
    optional = {
        name
        for name, field in fields.items()
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    if missing := set(fields) - optional - set(data):
        raise ValueError(f"{where or 'it'} lacks: {', '.join(sorted(missing))}")
    prefix = f"{where}." if where else ""
    return kind(**{name: from_json_value(hints[name], value, prefix + name) for name, value in data.items()})


def _tuples(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_tuples(item) for item in data)
    return data
