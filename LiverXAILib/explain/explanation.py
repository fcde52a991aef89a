# SPDX-License-Identifier: Apache-2.0
"""A heat map, the question it answers, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..inference.segmentation import Segmentation
from ..volumes.volume import Volume
from .targets import Target

#: Key in the provenance of an explanation: the checksum of the label map that it explains.
LABELS = "labels_sha256"
#: Key in the provenance of an explanation: the checksum of the voxels that it depends on, see :mod:`.subject`.
SUBJECT = "subject_sha256"
_BEFORE = "Made before the segmentation was changed: it explains the segmentation as it was then."


@dataclass(frozen=True, eq=False)
class Explanation:
    """A heat map on the input's grid.

    :param heatmap: float32 in [0, 1]; 1 is the most influential place of the whole image (one normalization).
    :param raw_maximum: the value before normalization that became 1; with it, maps of the same model, method and
        layer can be compared. 0 means that the map is empty.
    :param target: the question.
    :param method: name of the method, e.g. "hires-cam".
    :param layer: dotted name of the explained layer of the network, or "" for methods that need no layer.
    :param faithfulness: JSON-ready result of the checks, or None if they were not run.
    :param warnings: sentences for the user (degenerate layer, empty map …).
    :param provenance: JSON-ready: model, stage, windows, time.
    """

    heatmap: Volume
    raw_maximum: float
    target: Target
    method: str
    layer: str
    faithfulness: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        layer = f" at {self.layer}" if self.layer else ""
        return f"Explanation({self.target} by {self.method}{layer})"

    @property
    def labels_sha256(self) -> str | None:
        """The checksum of the label map that it explains; None if it is not recorded."""
        return self.provenance.get(LABELS)

    @property
    def subject_sha256(self) -> str | None:
        """The checksum of the voxels that it depends on; None if it is not recorded."""
        return self.provenance.get(SUBJECT)

    def is_about(self, segmentation: Segmentation) -> bool:
        """Whether it explains these labels, not those before a change. True if that is not recorded."""
        return self.labels_sha256 in (None, segmentation.checksum)

    def remarks(self, segmentation: Segmentation) -> tuple[str, ...]:
        """Its warnings; and, if it was made before the changes that led to `segmentation`, a sentence that says so."""
        return self.warnings if self.is_about(segmentation) else (*self.warnings, _BEFORE)
