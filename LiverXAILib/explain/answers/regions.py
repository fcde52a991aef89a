# SPDX-License-Identifier: Apache-2.0
"""The model's confidence in a lesion, divided among parts of the image that a reader can name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .answer import NOT_SAID, Answer
from .answer import probability_text as _p
from .answer import whole_ct_text as _whole_ct

#: A part with a smaller share than this is not named but grouped with the others.
_NAMED = 0.05
#: A part outside the lesion is notable if its share is at least this fraction of the sum of all positive shares.
_NOTABLE = 0.2


@dataclass(frozen=True, eq=False, repr=False)
class RegionShares(Answer):
    """How much each part of the image contributes to the model's confidence in a lesion: exact Shapley values.

    The evidence holds ``probability``, the model's mean probability of the lesion's label over the lesion in the
    examined box; ``replaced``, the same after every part was replaced; and ``parts``: ``name``, ``ml``, ``of_lesion``
    (whether it is a part of the lesion) and ``share``, by how much the part raises the probability, on average over
    all orders in which the parts could be restored. The shares sum to ``probability - replaced``. ``beyond`` is the
    difference between the whole image and the box (``in_image - probability``). ``replaced_by`` is the tissue that
    replaced a part, and ``tried``, for parts outside the liver, the probability with only that part replaced, by each
    tissue.
    ``alone`` is the probability of the lesion by itself in plain liver, as in a
    :class:`~LiverXAILib.explain.answers.Counterfactual`.
    """

    kind = "regions"
    title = "Which part the prediction depends on"

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
        """What the shares say about the model, in a sentence or two."""
        e = self.evidence
        difference, raising = e["probability"] - e["replaced"], sum(max(0.0, part["share"]) for part in parts)
        if difference < _NAMED:
            finding = "Together these parts do not raise it" if some_named else "What it sees here hardly matters"
            of_lesion = sum(part["share"] for part in parts if part["of_lesion"])
            if of_lesion >= _NAMED and e["in_image"] > 0.5:
                return f"{finding}: what the lesion adds ({_signed(of_lesion)}), other parts take away."
            reason = "the model says tumor for another reason" if e["in_image"] > 0.5 else NOT_SAID
            return f"{finding}: {reason}."
        around = [part for part in parts if not part["of_lesion"]]
        least = max(_NAMED, _NOTABLE * raising)
        needed = [part["name"] for part in around if part["share"] >= least]
        lowering = [part["name"] for part in around if part["share"] <= -least]
        of_lesion = sum(part["share"] for part in parts if part["of_lesion"])
        # The counterfactual says whether the lesion is enough by itself; this sentence must not contradict it.
        enough = e["alone"] > 0.5
        by_itself = f"In plain liver the lesion is enough by itself ({_p(e['alone'])}), but among its own surroundings "
        if needed and enough:
            lesion = "as well" if of_lesion >= least else "and hardly on the lesion"
            text = f"{by_itself}the prediction depends on {_listed(needed)} {lesion}: look there."
        elif needed:
            lesion = "not on the lesion alone" if of_lesion >= least else "hardly on the lesion"
            text = f"The prediction depends on {_listed(needed)}, and {lesion}: look there."
        elif of_lesion >= difference / 2 and enough:
            text = "It comes from the lesion itself."
        elif of_lesion >= difference / 2:
            text = (
                "Most of it comes from the lesion, but in plain liver the lesion is not enough by itself "
                f"({_p(e['alone'])}): the model needs something around it, even if only what replaced the parts."
            )
        else:
            whole = "from the surroundings as a whole"
            whole += " and from the lesion" if of_lesion >= least else ", and hardly from the lesion"
            text = f"{by_itself}the prediction comes {whole}." if enough else f"It comes {whole}."
        if lowering:
            text += f" It is lowered by {_listed(lowering)}."
        return f"{text}{self._disturbed([part for part in around if part['name'] not in needed])}"

    def _disturbed(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """The effect of replacing one of `parts` by the least favorable tissue; "" if it is not large."""
        tried = [(confidence, tissue, part["name"]) for part in parts for tissue, confidence in part["tried"].items()]
        confidence, tissue, name = min(tried, default=(1.0, "", ""))
        if self.evidence["in_image"] <= 0.5 or confidence > self.evidence["probability"] / 2:
            return ""
        return (
            f" It can be disturbed from elsewhere: if {tissue} took the place of {name}, the confidence would be "
            f"{_p(confidence)}."
        )


def _signed(share: float) -> str:
    """A share with its sign and two decimals; a share that rounds to 0 has no sign."""
    return f"{share:+.2f}".replace("-", "−") if abs(share) >= 0.005 else "0.00"


def _listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
