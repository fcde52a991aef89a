# SPDX-License-Identifier: Apache-2.0
"""The model's confidence in a lesion divided among parts of the body that a reader can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .answer import Answer
from .answer import probability_text as _p

#: A part with less than this is not named.
_NAMED = 0.05
#: A part outside the lesion with at least this share of the confidence is something to look at.
_NOTABLE = 0.2


@dataclass(frozen=True, eq=False)
class RegionShares(Answer):
    """How much of the model's confidence in a lesion comes from which part of the image: exact Shapley values.

    The evidence holds ``probability``, the model's mean probability of the lesion's label over the lesion in the
    examined box; ``replaced``, the same after every part was replaced; and ``parts``: ``name``, ``ml``, ``of_lesion``
    (whether it is a part of the lesion) and ``share``, by how much the part raises the probability, on average over
    all orders in which the parts could be restored. The shares sum to ``probability - replaced``. ``beyond`` is what
    the whole image adds to the box (``in_image - probability``).
    """

    kind = "regions"
    title = "Which part the answer comes from"

    @property
    def sentence(self) -> str:
        e = self.evidence
        parts = sorted(e["parts"], key=lambda part: -abs(part["share"]))
        named = [part for part in parts if abs(part["share"]) >= _NAMED]
        before = f"The model's confidence in {self.target.describe()} is {_p(e['probability'])}"
        if not named:
            return (
                f"{before}, and {_p(e['replaced'])} with every part replaced: what it sees here hardly matters. The "
                "model says tumor for another reason."
            )
        shares = [f"{part['share']:+.2f} from {part['name']}".replace("-", "−", 1) for part in named]
        shares[0] = shares[0].replace(" from ", " comes from ", 1)
        text = f"{before}; with every part replaced it is {_p(e['replaced'])}. Of the difference, {', '.join(shares)}."
        if abs(e["beyond"]) >= _NAMED:
            text += f" What lies beyond the examined box changes it by {e['beyond']:+.2f}.".replace("-", "−")
        elsewhere = [part for part in named if not part["of_lesion"] and part["share"] >= _NOTABLE * _span(e)]
        if elsewhere:
            names = " and ".join(part["name"] for part in elsewhere)
            return f"{text} The answer depends on {names}, and not on the lesion alone: look there."
        return f"{text} It comes from the lesion itself."


def _span(evidence: Mapping[str, Any]) -> float:
    return max(1e-6, float(evidence["probability"] - evidence["replaced"]))
