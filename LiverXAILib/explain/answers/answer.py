# SPDX-License-Identifier: Apache-2.0
"""The base of all explanations in numbers and a sentence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...errors import InputError
from ...volumes.volume import Volume
from ..targets import Target

#: The classes by their kind.
_KINDS: dict[str, type[Answer]] = {}


@dataclass(frozen=True, eq=False)
class Answer(ABC):
    """An explanation in numbers and a sentence, for one question.

    :param target: what was asked about.
    :param evidence: JSON-ready numbers, documented in each class.
    :param volumes: images that belong to it, by name, documented in each class.
    :param warnings: sentences for the user.
    :param provenance: JSON-ready: model, stage, passes, time.
    """

    target: Target
    evidence: Mapping[str, Any]
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    #: The kind of explanation, as written in files and in the worker's messages.
    kind: ClassVar[str]
    #: The heading in a report.
    title: ClassVar[str]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target})"

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls

    @property
    @abstractmethod
    def sentence(self) -> str:
        """The explanation as text, made from the evidence."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the volumes, JSON-ready."""
        return {
            "kind": self.kind,
            "target": str(self.target),
            "evidence": dict(self.evidence),
            "sentence": self.sentence,
            "warnings": list(self.warnings),
            "provenance": dict(self.provenance),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], volumes: Mapping[str, Volume] | None = None) -> Answer:
        """The explanation from the output of :meth:`to_dict`.

        :raises LiverXAILib.errors.InputError: this version does not support that kind of explanation.
        """
        if values["kind"] not in _KINDS:
            raise InputError(
                f"This version of LiverXAI does not support explanations of kind {values['kind']!r}. Install the newer "
                "version that wrote it."
            )
        return _KINDS[values["kind"]](
            Target.parse(values["target"]),
            values["evidence"],
            volumes or {},
            tuple(values["warnings"]),
            values["provenance"],
        )


#: The remark about a lesion that somebody else outlined, or that is only a candidate.
NOT_SAID = "the model does not say tumor here"


def whole_ct_text(probability: float, in_image: float) -> str:
    """A remark on why a confidence differs from that in the table of lesions; "" if both are the same.

    :param probability: in the examined part of the CT.
    :param in_image: in the whole CT, as in the table of lesions.
    """
    here, there = probability_text(probability), probability_text(in_image)
    return "" if here == there else f" in the examined part of the CT ({there} in the whole CT)"


def probability_text(probability: float) -> str:
    """A probability with enough digits to distinguish it from 0 and 1."""
    if probability < 0.0005:
        return "below 0.001"
    if probability >= 0.9995:
        return "above 0.999"
    return f"{probability:.2f}" if 0.005 <= probability < 0.995 else f"{probability:.3f}"
