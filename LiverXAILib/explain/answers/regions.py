# SPDX-License-Identifier: Apache-2.0
"""The model's confidence in a lesion divided among parts of the body that a reader can name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .answer import NOT_SAID, Answer
from .answer import probability_text as _p
from .answer import whole_ct_text as _whole_ct

#: A part with less than this is not named, but counted with the others.
_NAMED = 0.05
#: A part outside the lesion with at least this share of all that raises the confidence is something to look at.
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
        others = parts[len(named) :]
        text = (
            f"The model's confidence in {self.target.describe()} is {_p(e['probability'])}"
            f"{_whole_ct(e['probability'], e['in_image'])}; with every part replaced it is {_p(e['replaced'])}."
        )
        if named:
            shares = [f"{_signed(part['share'])} from {part['name']}" for part in named]
            shares[0] = shares[0].replace(" from ", " comes from ", 1)
            if others:
                rest = "the other part" if len(others) == 1 else f"the other {len(others)} parts together"
                shares.append(f"{_signed(sum(part['share'] for part in others))} from {rest}")
            text += f" Of the difference, {_listed(shares)}."
        if abs(e["beyond"]) >= _NAMED:
            text += f" What lies beyond the examined box changes it by {_signed(e['beyond'])}."
        return f"{text} {self._verdict(parts, bool(named))}"

    def _verdict(self, parts: Sequence[Mapping[str, Any]], some_named: bool) -> str:
        """What the shares say of the model, in a sentence or two."""
        e = self.evidence
        difference, raising = e["probability"] - e["replaced"], sum(max(0.0, part["share"]) for part in parts)
        if difference < _NAMED:
            finding = "Together these parts do not raise it" if some_named else "What it sees here hardly matters"
            reason = "the model says tumor for another reason" if e["in_image"] > 0.5 else NOT_SAID
            return f"{finding}: {reason}."
        around = [part for part in parts if not part["of_lesion"]]
        least = max(_NAMED, _NOTABLE * raising)
        needed = [part["name"] for part in around if part["share"] >= least]
        lowering = [part["name"] for part in around if part["share"] <= -least]
        of_lesion = sum(part["share"] for part in parts if part["of_lesion"])
        if needed:
            lesion = "not on the lesion alone" if of_lesion >= least else "hardly on the lesion"
            text = f"The answer depends on {_listed(needed)}, and {lesion}: look there."
        elif of_lesion >= difference / 2:
            text = "It comes from the lesion itself."
        else:
            text = "It comes from the surroundings as a whole, and hardly from the lesion."
        return f"{text} It is lowered by {_listed(lowering)}." if lowering else text


def _signed(share: float) -> str:
    """With its sign, and hundredths; a share that rounds to 0 has none."""
    return f"{share:+.2f}".replace("-", "−") if abs(share) >= 0.005 else "0.00"


def _listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
