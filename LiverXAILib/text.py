# SPDX-License-Identifier: Apache-2.0
"""Human-readable forms of keys and numbers, and safe forms of untrusted text."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence

#: Spelling of the abbreviations in names of measured quantities.
_WRITTEN = {"assd": "ASSD", "hd95": "HD95", "dice": "Dice", "hu": "HU", "ct": "CT"}
_UNITS = {"mm": "mm", "ml": "ml", "hu": "HU", "percent": "%", "seconds": "s"}


def humanize_key(key: str) -> str:
    """Make a key of a card human-readable: "liver_assd_mm" becomes "liver ASSD (mm)"; keys with spaces stay."""
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
    """Make `text` safe for a terminal or a log: replace control characters and those that change text direction."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\ufffd" if char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs") else char for char in text
    )


def place_text(place_lps_mm: Sequence[float]) -> str:
    """A point in LPS mm as Slicer shows it, in RAS mm: "RAS (12, -40, 88) mm"."""
    left, posterior, superior = (round(value) for value in place_lps_mm)
    return f"RAS ({-left}, {-posterior}, {superior}) mm"


def how_to_install(extra: str) -> str:
    """How to install the packages of an extra: from the sources or the wheel, because no package index has LiverXAI."""
    # In double quotes, because cmd.exe on Windows would pass single ones on to pip.
    command = f'pip install ".[{extra}]"'
    return f"in LiverXAI's source folder, run: {command} (for a wheel, replace the dot by its file name)"


def one_line(text: str) -> str:
    """Make untrusted `text` (from files, headers, names) safe in one line of a log, a terminal or a table.

    Line breaks, escape sequences, and characters that are invisible or change the text direction are written as
    backslash escapes, so that the text cannot imitate a separate line or conceal its content.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn")
        else character
        for character in text
    )


def whole_sentence(text: str) -> str:
    """A help text as a sentence: "list models" becomes "List models."."""
    return f"{text[:1].upper()}{text[1:]}."


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 lesion", "2 lesions".

    :param many: the plural, if it is not `one` with an s.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def warn(sentence: str) -> None:
    """Print a warning to standard error, where it does not mix with a command's output."""
    if sys.stderr is not None:
        sys.stderr.write(f"warning: {one_line(sentence)}\n")
