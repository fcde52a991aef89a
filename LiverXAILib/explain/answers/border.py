# SPDX-License-Identifier: Apache-2.0
"""The border need ("why liver?"): how much of the surroundings the network needs to draw the border where it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...text import counted
from .answer import Answer


@dataclass(frozen=True, eq=False, repr=False)
class BorderNeed(Answer):
    """How far around a point of an organ's surface the network must see to draw the border where it drew it.

    The evidence holds

    * ``points``: how many evenly distributed points of the surface were examined;
    * ``radii_mm``: the radii that were tried, and ``counts``: how many points need each; the last count is that of
      the points for which no radius suffices;
    * ``tolerance_mm``: a border that moved by no more than this counts as unchanged;
    * ``compared_within_mm``: the distance around each point within which the border is compared;
    * ``replaced_by``: what replaced everything farther away;
    * ``far``: the places where no radius suffices, that is, where the border depends on far context, the largest
      first: ``lps_mm`` of the point in its middle, ``points``, and a description, ``where``.

    Volumes: "need", int16 mm on the network's grid, cropped to the organ: at each voxel of the surface the need of
    the nearest point (where no radius suffices, the largest radius and half as much again), 0 elsewhere.
    """

    kind = "border"
    title = "What the border was based on"

    @property
    def sentence(self) -> str:
        e = self.evidence
        reach = f"{e['radii_mm'][-1]:g} mm"
        label, count = self.target.label, e["points"]
        half, most = _quantile(e, 0.5), _quantile(e, 0.9)
        text = (
            f"To draw the border of the {label} where it did (within {e['tolerance_mm']:g} mm), the model needs to see "
            f"{_within(e, half)} around it at half of {count} points"
        )
        # Points that need more than the largest radius are counted in the next sentence.
        is_complete = most == half or most == len(e["radii_mm"])
        text += "." if is_complete else f", and {_within(e, most)} at nine out of ten."
        far = sum(place["points"] for place in e["far"])
        if not far:
            return f"{text} Nowhere does the border depend on what is farther than {reach} away."
        text += f" At {counted(far, 'point')} ({far / count:.0%}) the border depends on what is farther than {reach}"
        return f"{text} away, mostly {e['far'][0]['where']}: check the border there."


def _quantile(evidence: Mapping[str, Any], part: float) -> int:
    """The index of the radius that suffices for this fraction of the points; the number of radii if none does."""
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
