# SPDX-License-Identifier: Apache-2.0
"""The answer to "why liver?": how much of its surroundings the network needs to draw the border where it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...text import counted
from .answer import Answer


@dataclass(frozen=True, eq=False)
class BorderNeed(Answer):
    """How far around a point of an organ's surface the network must see to draw the border where it drew it.

    The evidence holds

    * ``points``: how many points of the surface were examined, evenly spread;
    * ``radii_mm``: the radii that were tried, and ``counts``: how many points need each; the last count is that of
      the points for which none suffices;
    * ``tolerance_mm``: a border that moved by no more is the same;
    * ``compared_within_mm``: the border is compared so far around each point;
    * ``replaced_by``: what took the place of everything farther away;
    * ``far``: where none suffices, that is, where the border hangs on far context; the largest place first: ``lps_mm``
      of the point in its middle, ``points``, and ``where`` in words.

    Volumes: "need", int16 mm on the network's grid, cropped to the organ: at each voxel of the surface the need of
    the nearest point (where no radius suffices, the largest radius and half as much again), 0 elsewhere.
    """

    kind = "border"
    title = "What the border was drawn from"

    @property
    def sentence(self) -> str:
        e = self.evidence
        reach = f"{e['radii_mm'][-1]:g} mm"
        label, count = self.target.label, e["points"]
        half, most = _quantile(e, 0.5), _quantile(e, 0.9)
        text = (
            f"To draw the border of the {label} where it did (within {e['tolerance_mm']:g} mm), the model needs to see "
            f"{_within(e, half)} around it in half of {count} places"
        )
        # Places that need more than the largest radius are counted in the next sentence.
        told = most == half or most == len(e["radii_mm"])
        text += "." if told else f", and {_within(e, most)} in nine of ten."
        far = sum(place["points"] for place in e["far"])
        if not far:
            return f"{text} Nowhere does the border hang on what is farther than {reach} away."
        text += f" In {counted(far, 'place')} ({far / count:.0%}) the border hangs on what is farther than {reach} away"
        return f"{text}, mostly {e['far'][0]['where']}: look at the border there."


def _quantile(evidence: Mapping[str, Any], part: float) -> int:
    """The number of the radius that is enough for this part of the points; the number of radii if none is."""
    counts: Sequence[int] = evidence["counts"]
    total = 0
    for number, count in enumerate(counts):
        total += count
        if total >= part * sum(counts):
            return number
    raise AssertionError("counts are empty")


def _within(evidence: Mapping[str, Any], number: int) -> str:
    radii = evidence["radii_mm"]
    return f"no more than {radii[number]:g} mm" if number < len(radii) else f"more than {radii[-1]:g} mm"
