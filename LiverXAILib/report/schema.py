# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of ``measurements.json``, generated from the data types that are written.

After a change of these types, ``python -m LiverXAILib.report.schema`` rewrites it; increase
:data:`~LiverXAILib.measure.measurements.SCHEMA_VERSION` then.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..measure.measurements import SCHEMA_VERSION, Measurements

SCHEMA_FILE = Path(__file__).with_name("measurements.schema.json")
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def measurements_schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12): all fields are required, null where nothing was measured."""
    added = {"liver_complete": {"type": "boolean"}}
    return file_schema(Measurements, "measurements.json", SCHEMA_VERSION, added, "Positions are LPS in mm.")


def file_schema(kind: type, file: str, version: int, added: Mapping[str, Any], note: str) -> dict[str, Any]:
    """The schema of a JSON file that holds an object of `kind`, its version, and properties `added` to it.

    :param note: a sentence for whoever reads the file.
    """
    schema = schema_of(kind)
    schema["properties"] |= {"schema_version": {"const": version}, **added}
    schema["required"] = sorted(schema["properties"])
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{file} of LiverXAI",
        "description": f"Names end in their unit: _ml, _mm, _hu, _percent. {note}",
    }
    return {**head, **schema}


def schema_of(kind: Any) -> dict[str, Any]:
    """The schema of values of a type: dataclasses, tuples, mappings, unions and plain types."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner, nothing = [schema_of(one) for one in arguments if one is not type(None)], {"type": "null"}
        return {"anyOf": [*inner, nothing]}
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return {"type": "array", "items": schema_of(arguments[0])}
        size, items = len(arguments), [schema_of(one) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": size, "maxItems": size}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": schema_of(arguments[1])}
    if dataclasses.is_dataclass(kind):
        properties = {name: schema_of(hint) for name, hint in get_type_hints(kind).items()}
        return {
            "type": "object",
            "properties": properties,
            "required": sorted(properties),
            "additionalProperties": False,
        }
    return {"type": _TYPES[kind]}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(measurements_schema(), indent=2) + "\n", encoding="utf-8")
