# SPDX-License-Identifier: Apache-2.0
"""General mutations of bytes, texts and JSON."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

from .kind import Generator


def flip_bits(rng: Generator, data: bytes, start: int = 0, most: int = 4) -> bytes:
    """`data` with some bits flipped, none before `start`."""
    if start >= len(data):
        return data
    array = bytearray(data)
    for _ in range(int(rng.integers(1, most + 1))):
        array[int(rng.integers(start, len(array)))] ^= 1 << int(rng.integers(8))
    return bytes(array)


def damage(rng: Generator, data: bytes) -> bytes:
    """`data` with bits flipped, truncated, extended, or with a part repeated, removed, zeroed or replaced by noise."""
    how = int(rng.integers(7))
    if how == 0 or not data:
        return flip_bits(rng, data) or b"\x00"
    a, b = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
    b = min(b, a + int(rng.integers(1, 200)))
    noise = rng.bytes(int(rng.integers(1, 300)))
    return {
        1: data[:a],
        2: data + noise,
        3: data[:a] + data[a:b] * 2 + data[b:],
        4: data[:a] + data[b:],
        5: data[:a] + bytes(b - a) + data[b:],
        6: data[:a] + noise + data[b:],
    }[how]


#: Values that a careless parser does not expect.
HOSTILE: list[Any] = [
    *(math.nan, math.inf, -math.inf, -1, 0, 1, -0.0, 0.5, 1e-300, 1e308, 2**31, 2**32 + 1, 2**63, 10**30, -(10**9)),
    *(None, True, False, [], {}, "", " ", "x", [None], {"": 0}, [[]], [1, 2], [-1, -1, -1], [0, 0, 0], [10**9] * 3),
    *("A" * 100_000, "\x1b[2J\x1b[31m", "\u202egnp.exe", "a\nb", "../../etc/passwd", "/etc/passwd", "C:\\x", "\x00"),
    *("$'a' * 10**9", "$'%0999999999d' % 1", "$1 / 0", "$[0] * 10**9", "$__import__('os').system('id')", "$9**9**9"),
    *("@network_def", "@names::0", "@a", "%x.json", "$@size + @size", "$int('9' * 9)", "$" + "(" * 500, "$-" * 400),
    *("nan", "1e999", "TorchScript", "ExportedProgram", "softmax", "kji", "SPL", "LLL", "monai.networks.nets.VNet"),
]


def deep(levels: int) -> Any:
    """A list nested `levels` deep."""
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def _value(rng: Generator) -> Any:
    choice = int(rng.integers(len(HOSTILE) + 2))
    if choice == len(HOSTILE):
        return deep(int(rng.integers(5, 400)))
    if choice > len(HOSTILE):
        return [int(n) for n in rng.integers(-5, 100_000, int(rng.integers(1, 3000)))]
    return copy.deepcopy(HOSTILE[choice])


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, item in items:
        found += _places(item, (*path, key))
    return found


def change_json(rng: Generator, data: Any, times: int = 3) -> Any:
    """`data` with up to `times` values replaced, removed, added, renamed or exchanged for one of its others."""
    data = copy.deepcopy(data)
    for _ in range(int(rng.integers(1, times + 1))):
        places = _places(data)
        if not places:
            return _value(rng)
        path = places[int(rng.integers(len(places)))]
        holder = data
        for key in path[:-1]:
            holder = holder[key]
        how = int(rng.integers(6))
        if how == 0 and isinstance(holder, dict):
            del holder[path[-1]]
        elif how == 1 and isinstance(holder, dict):
            holder[f"{path[-1]}_"] = holder.pop(path[-1])
        elif how == 2 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
        elif how == 3:
            other: Any = data
            for key in places[int(rng.integers(len(places)))]:
                other = other[key]
            holder[path[-1]] = copy.deepcopy(other)
        elif how == 4 and isinstance(holder[path[-1]], (int, float)) and not isinstance(holder[path[-1]], bool):
            holder[path[-1]] = type(holder[path[-1]])(holder[path[-1]] * float(rng.choice([-1, 0, 0.001, 3, 1000])))
        else:
            holder[path[-1]] = _value(rng)
    return data


def change_json_file(rng: Generator, path: Path) -> None:
    """Change values of a JSON file, or sometimes its bytes."""
    text = path.read_bytes()
    try:
        changed = json.dumps(change_json(rng, json.loads(text))) if rng.random() < 0.8 else None
    except (ValueError, RecursionError, LookupError):
        changed = None  # An earlier change made it invalid.
    if changed is None:
        path.write_bytes(damage(rng, text))
        return
    how = rng.random()
    if how < 0.03:
        changed = changed.replace("{", "[" * int(rng.integers(1000, 100_000)), 1)
    elif how < 0.06:
        changed = changed[:-1] + "," + changed[1:]
    path.write_text(changed, encoding="utf-8")
