# SPDX-License-Identifier: Apache-2.0
"""Everything that was found out about one CT: what the panel shows, the batch writes and the report prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .explain.answers import Answer
    from .explain.explanation import Explanation
    from .inference.segmentation import Segmentation
    from .measure.measurements import Measurements
    from .models.spec import ModelSpec
    from .volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Analysis:
    """One CT, its segmentation, the explanations, the measurements, and how they came about.

    `explanations` are heat maps; `answers` are those answers to "why?" that are numbers and a sentence. `provenance` is
    JSON-ready and complete: with the image, the model file and it, the result can be made again.
    """

    volume: Volume
    model: ModelSpec
    segmentation: Segmentation
    explanations: tuple[Explanation, ...]
    measurements: Measurements
    provenance: Mapping[str, Any] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
