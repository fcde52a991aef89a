# SPDX-License-Identifier: Apache-2.0
"""Keys and words as people read them, and words that others wrote as they can be shown."""

from __future__ import annotations

import sys
import unicodedata

#: How parts of the names of measured quantities are written.
_WRITTEN = {"assd": "ASSD", "hd95": "HD95", "dice": "Dice", "hu": "HU", "ct": "CT"}
_UNITS = {"mm": "mm", "ml": "ml", "hu": "HU", "percent": "%", "seconds": "s"}


def humanize_key(key: str) -> str:
    """A key of a card as a person reads it: "liver_assd_mm" is "liver ASSD (mm)"; what has spaces stays as it is."""
    parts = key.split("_")
    if " " in key or len(parts) == 1:
        return key
    unit = _UNITS.get(parts[-1], "")
    if unit:
        parts.pop()
        # "over_20_mm" is a size, "liver_ml" a quantity.
        unit = f" {unit}" if parts[-1].isdigit() else f" ({unit})"
    return " ".join(_WRITTEN.get(part, part) for part in parts) + unit


def displayable(text: str) -> str:
    """`text` for a terminal or a log: characters that would control it, or the direction of writing, are replaced."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\ufffd" if char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs") else char for char in text
    )


def how_to_install(extra: str) -> str:
    """How the packages of an extra are installed: from the sources or the wheel, which no index has."""
    return f"in the folder of LiverXAI's sources, run: pip install '.[{extra}]' (with a wheel: its name for the dot)"


def one_line(text: str) -> str:
    """`text` that others wrote (in files, headers, names), safe in a line of a log, a terminal or a table.

    Line ends, escape sequences, and characters that turn the direction of writing or cannot be seen are written as
    backslash escapes, so that nothing can look like a line of its own or hide what it says.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn")
        else character
        for character in text
    )


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 lesion", "2 lesions".

    :param many: the plural, where it is not `one` with an s.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def warn(sentence: str) -> None:
    """A warning of the command line, on the error stream, where it does not mix with what a command prints."""
    if sys.stderr is not None:
        sys.stderr.write(f"warning: {one_line(sentence)}\n")
