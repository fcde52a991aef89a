# SPDX-License-Identifier: Apache-2.0
"""Format values as text for labels and table cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slicer.i18n import tr as _


def number(text: str, digits: int) -> str:
    """Round a number given as text; "–" if there is none."""
    return f"{float(text):.{digits}f}" if text else "–"


def place_words(lps_mm: Sequence[float]) -> str:
    """Format a position in the patient, LPS mm, as radiologists write it: "at L 12 P 40 S 88 mm"."""
    letters = (("L", "R"), ("P", "A"), ("S", "I"))
    parts = (f"{names[value < 0]} {abs(value):.0f}" for names, value in zip(letters, lps_mm, strict=True))
    return _("at {place} mm").format(place=" ".join(parts))


def remaining_time(seconds: float | None) -> str:
    """Format the remaining time for the end of a progress line, if it is known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return _(", about {seconds:.0f} s left").format(seconds=seconds)
    return _(", about {minutes:.0f} min left").format(minutes=seconds / 60)


def one_line(value: Any) -> str:
    """Format a free-form entry of a model card as one line."""
    if isinstance(value, Mapping):
        parts = ((key.replace("_", " "), one_line(item)) for key, item in value.items())
        return "; ".join(item if key == "note" else f"{key} {item}" for key, item in parts)
    return "; ".join(map(one_line, value)) if isinstance(value, (list, tuple)) else str(value)
