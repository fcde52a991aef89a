# SPDX-License-Identifier: Apache-2.0
"""Dataclasses from parsed JSON, strictly: no unknown field, no missing field, no value of another type."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints


def from_json_value(kind: Any, data: Any, where: str = "") -> Any:
    """Build a value of type `kind` from `data` as :mod:`json` gives it: lists become tuples, objects dataclasses.

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
        raise ValueError(f"{where or 'it'} must be of type {kind.__name__}, not {data!r}")
    return data


def _dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or 'it'} must be an object")
    hints = get_type_hints(kind)
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
