# SPDX-License-Identifier: Apache-2.0
"""Heat maps and answers that still hold after outlines have changed, under the lesions' new numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ..analysis import Analysis
from ..explain.answers import Answer
from ..explain.explanation import LABELS, Explanation
from ..explain.subject import subject_checksum
from ..explain.targets import EmptyTargetError, Target
from ..inference.lesions import numbered_lesions, same_lesions
from ..inference.segmentation import Segmentation
from ..models.spec import ModelSpec
from ..text import place_text
from .findings import Findings


def carried(analysis: Analysis, segmentation: Segmentation, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an analysis with another segmentation: with the heat maps and answers that still hold for it.

    Those about a lesion hold if its voxels are the same; other heat maps and answers, if the voxels that they are about
    are. Other heat maps stay even if they no longer hold, because they record the label map that they explain. If a
    lesion has the model's outline again, the heat maps and answers of the model's own result are back.

    :param provenance: of the result; its warnings and the uncertainty about each lesion are updated.
    :return: `segmentation`, `explanations`, `answers` and `provenance`.
    """
    found: dict[tuple[str, ...], Explanation | Answer] = {}
    present: set[str] = set()
    lost: set[str] = set()
    for source in (analysis,) if analysis.own is None else (analysis, analysis.own):
        change = _Change(source.segmentation, segmentation)
        explained: tuple[Explanation | Answer, ...] = (*source.explanations, *source.answers)
        for one in explained:
            if isinstance(one, Explanation) and one.target.lesion is None:
                if change.holds(one, analysis.model):
                    before = found.get(_key(one))
                    if not (isinstance(before, Explanation) and before.is_about(segmentation)):
                        found[_key(one)] = _about(one, segmentation)
                elif source is analysis:
                    found[_key(one)] = one
                continue
            target = change.target(one.target)
            if target is None:
                if source is analysis:  # losses of the model's own result were named when they occurred
                    lost.update(change.loss(one.target))
                continue
            present.update(change.loss(one.target))
            new: Explanation | Answer = dataclasses.replace(one, target=target)
            if isinstance(new, Explanation) and new.is_about(source.segmentation):
                new = _about(new, segmentation)
            found.setdefault(_key(new), new)
    in_order = sorted(found.values(), key=lambda one: one.target.lesion or 0)
    warnings = dict.fromkeys([*provenance.get("warnings", ()), *sorted(lost)])
    return {
        "segmentation": segmentation,
        "explanations": tuple(one for one in in_order if isinstance(one, Explanation)),
        "answers": tuple(one for one in in_order if isinstance(one, Answer)),
        "provenance": {
            **provenance,
            **_renumbered_uncertainty(analysis.own or analysis, segmentation),
            "warnings": [sentence for sentence in warnings if sentence not in present],
        },
    }


def _renumbered_uncertainty(own: Analysis, segmentation: Segmentation) -> dict[str, Any]:
    """The model's uncertainty about its lesions under their new numbers; those with other voxels are left out."""
    known = own.provenance.get("uncertainty")
    if not known:
        return {}
    numbers = same_lesions(own.segmentation, segmentation)
    lesions = [{**one, "number": numbers[one["number"]]} for one in known["lesions"] if one["number"] in numbers]
    return {"uncertainty": {**known, "lesions": sorted(lesions, key=lambda one: one["number"])}}


class _Change:
    """A change from one segmentation to another, and what it means for questions about the first one."""

    def __init__(self, before: Segmentation, after: Segmentation) -> None:
        self._before, self._after = before, after

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return same_lesions(self._before, self._after)

    @cached_property
    def _lesions(self) -> Findings:
        return Findings.numbered("lesion", self._before.labels.grid, *numbered_lesions(self._before))

    def holds(self, explanation: Explanation, model: ModelSpec) -> bool:
        """Whether a heat map that is not about a lesion depends only on voxels that are the same after the change."""
        subject = explanation.subject_sha256
        if subject is None and explanation.is_about(self._before):
            subject = subject_checksum(explanation.target, self._before, model)
        return subject is not None and subject == subject_checksum(explanation.target, self._after, model)

    def target(self, target: Target) -> Target | None:
        """The same target after the change; None if its voxels are not the same."""
        if target.is_whole_label:
            return target if self._before.has_same(target.label, self._after) else None
        if target.lesion is None:
            try:
                is_same = np.array_equal(target.mask(self._before), target.mask(self._after))
            except EmptyTargetError:
                return None
            return target if is_same else None
        number = self._numbers.get(target.lesion)
        return None if number is None else target.of_lesion(number)

    def loss(self, target: Target) -> list[str]:
        """A sentence that says that explanations of a target were dropped; none if the lesion is gone altogether."""
        what = target.describe()
        if target.lesion is not None:
            box, voxels = self._lesions.mask(target.lesion)
            if not (self._after.mask("tumor", box) & voxels).any():
                return []
            what = f"the lesion at {place_text(self._lesions.place(target.lesion))}"
        return [
            f"The explanation of {what} was dropped, because the outlines there have changed. Ask again to get it for "
            "the new ones ('Explain lesion' in 3D Slicer, --explain on the command line)."
        ]


def _about(explanation: Explanation, segmentation: Segmentation) -> Explanation:
    """An explanation that holds for this segmentation, with a record of that."""
    return dataclasses.replace(explanation, provenance={**explanation.provenance, LABELS: segmentation.checksum})


def _key(one: Explanation | Answer) -> tuple[str, ...]:
    if isinstance(one, Answer):
        return one.kind, str(one.target)
    return str(one.target), one.method, one.layer
