# SPDX-License-Identifier: Apache-2.0
"""Counterfactuals of lesions, and of places where none was found."""

from __future__ import annotations

from dataclasses import dataclass

from .answer import NOT_SAID, Answer
from .answer import probability_text as _p
from .answer import whole_ct_text as _whole_ct

#: A change of the model's confidence below this counts as no change.
_NO_CHANGE = 0.1


@dataclass(frozen=True, eq=False, repr=False)
class Counterfactual(Answer):
    """The model's predictions when a lesion is removed, moved, or left without its surroundings.

    The evidence holds mean probabilities of the lesion's label over the lesion's voxels:

    * ``probability``: in the unchanged CT, in the examined part around the lesion, and ``in_image``: in the whole CT;
    * ``without``: at the lesion's place after the lesion was replaced by this patient's own liver; the median over
      ``draws``, and the ``draws`` themselves;
    * ``elsewhere``: at the place in healthy liver to which the same lesion was moved, and ``elsewhere_lps_mm``, that
      place; None if the lesion fits nowhere;
    * ``alone``: of the lesion in plain liver that replaces all of its surroundings in the examined box.

    ``level_hu`` is the HU of the liver that replaces the lesion; ``fill`` describes where its level and texture were
    taken from (see :mod:`LiverXAILib.explain.fill`). Volumes, in HU, cropped to the changed part:
    "without" and "elsewhere" on the CT's grid, "alone" on the network's.
    """

    kind = "counterfactual"
    title = "If the lesion were not there"

    @property
    def sentence(self) -> str:
        e = self.evidence
        before, after = e["probability"], e["without"]
        text = (
            f"With {self.target.describe()} replaced by this patient's own liver, the model's confidence goes from "
            f"{_p(before)} to {_p(after)}{_whole_ct(before, e['in_image'])}"
        )
        if e["in_image"] <= 0.5 and after <= 0.5:  # outlined by somebody else: there is nothing to lose or recover
            elsewhere = "" if e["elsewhere"] is None else f"; it is {_p(e['elsewhere'])} where the lesion was moved to"
            return f"{text}: {NOT_SAID}, with it or without{elsewhere}, and {_p(e['alone'])} in plain liver."
        unneeded = e["in_image"] > 0.5 and after > 0.5 and before - after < _NO_CHANGE
        if e["in_image"] <= 0.5:
            text += ": the model says tumor here only without it"
        elif unneeded:
            text += ": the model says tumor here for a reason other than this lesion"
        elif after > before / 2:
            text += ": part of the reason lies elsewhere"
        text += "."
        if e["elsewhere"] is not None:
            moved = e["elsewhere"]
            if e["in_image"] > 0.5:
                verdict = "is recognized there as well" if moved > 0.5 else "is not recognized there: the place matters"
            else:
                verdict = "is recognized there: the place matters" if moved > 0.5 else "is not recognized there either"
            text += f" Moved to another place in the liver, it {verdict} ({_p(moved)})."
        alone = e["alone"]
        if unneeded and alone > 0.5:  # the lesion need not be the reason for that either
            return f"{text} In plain liver the model says tumor here as well ({_p(alone)})."
        verdict = "is enough" if alone > 0.5 else "is not enough: the model needs its surroundings"
        return f"{text} By itself, in plain liver, it {verdict} ({_p(alone)})."


@dataclass(frozen=True, eq=False, repr=False)
class NeededChange(Answer):
    """What would have to change at a place for the model to find a lesion there ("why not?").

    A ball of liver is made darker (or brighter) by a number of HU. The evidence holds ``diameters_mm``,
    ``contrasts_hu`` (negative: darker) and ``probabilities``, the mean probability over the ball, in a row for each
    diameter; ``probability``, that of the unchanged place, and ``in_image``, as for a :class:`Counterfactual`;
    ``level_hu``, the HU of the liver around the place; ``needed``: the smallest change that is enough at each diameter,
    or None.
    """

    kind = "needed-change"
    title = "What would have to change"

    @property
    def sentence(self) -> str:
        found: list[tuple[float, float]] = []
        for diameter, contrast in zip(self.evidence["diameters_mm"], self.evidence["needed"], strict=True):
            # A larger ball is worth listing only if it needs less contrast.
            if contrast is not None and (not found or abs(contrast) < abs(found[-1][1])):
                found.append((diameter, contrast))
        place, label = self.target.describe().removeprefix("why no "), self.target.label
        least = f"{self.evidence['diameters_mm'][-1]:g} mm"
        part = _whole_ct(self.evidence["probability"], self.evidence["in_image"])
        now = f"The model's confidence in {place} is {_p(self.evidence['probability'])}{part}. "
        if self.evidence["in_image"] > 0.5:  # a candidate, or contours that somebody else drew
            return f"{now}It already says {label} here, although this is not counted."
        if not found:
            hardest = max(abs(contrast) for contrast in self.evidence["contrasts_hu"])
            return (
                f"{now}No ball up to {least} across and up to {hardest:g} HU darker than the liver would make it say "
                f"{label} here."
            )
        options = " or ".join(
            f"{abs(contrast):g} HU {'darker' if contrast < 0 else 'brighter'} over {diameter:g} mm"
            for diameter, contrast in found
        )
        return f"{now}It would say {label} if the liver here were {options}."
