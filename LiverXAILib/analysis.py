# SPDX-License-Identifier: Apache-2.0
"""The complete result for one CT: what the panel shows, the batch writes and the report prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import require_type
from .text import counted

if TYPE_CHECKING:
    import numpy as np

    from .explain.answers import Answer
    from .explain.explanation import Explanation
    from .followup.findings import Findings
    from .inference.segmentation import Segmentation
    from .measure.measurements import Measurements
    from .models.spec import ModelSpec
    from .volumes.volume import Volume


@dataclass(frozen=True)
class Decision:
    """What a reader decided about a result.

    :param kind: "accept" or "dismiss" a candidate, "reject", "merge" or "split" lesions, "restore" a rejected one,
        "add" a lesion, "include" a point in a lesion or "exclude" it, "measure" a lesion's diameters, "target" the
        RECIST target lesions, or "edit" for manual edits. A request to a worker may also hold "undo", which takes back
        the decision before and is not recorded.
    :param numbers: numbers of the candidate or the lesions at the time of the decision.
    :param place_lps_mm: a voxel of the candidate or lesion (LPS mm), which identifies it even after renumbering; None
        for manual edits.
    :param who: name of the reader.
    :param when: ISO 8601.
    :param points_lps_mm: for "measure": both ends of the long axis, then of the short axis; for "merge" and "target": a
        voxel of each lesion (LPS mm).
    :param voxels: the voxels whose label the decision changed, packed by
        :func:`~LiverXAILib.reading.packing.pack_mask`; a rejected lesion is identified and restored from them. For
        "dismiss", those of the candidate; for "measure", those of the lesion, whose diameters apply to this outline
        only. "" if there are none.
    :param before: the labels of these voxels before the decision, packed by
        :func:`~LiverXAILib.reading.packing.pack_labels`; "" for "measure" and "target".
    :param remark: why the decision no longer has an effect; "" if it has.
    """

    kind: str
    numbers: tuple[int, ...] = ()
    place_lps_mm: tuple[float, float, float] | None = None
    who: str = ""
    when: str = ""
    points_lps_mm: tuple[tuple[float, float, float], ...] = ()
    voxels: str = field(default="", repr=False)
    before: str = field(default="", repr=False)
    remark: str = ""

    @property
    def changes_outlines(self) -> bool:
        """Whether the decision changes the segmentation, not only the measurements or the status of a candidate."""
        return self.kind not in ("dismiss", "measure", "target")

    def to_dict(self) -> dict[str, Any]:
        """The decision, JSON-ready."""
        place = None if self.place_lps_mm is None else [round(value, 3) for value in self.place_lps_mm]
        points = [[round(value, 3) for value in point] for point in self.points_lps_mm]
        whole = {**dataclasses.asdict(self), "numbers": list(self.numbers), "place_lps_mm": place}
        whole["points_lps_mm"] = points
        optional = ("points_lps_mm", "voxels", "before", "remark")
        return {key: value for key, value in whole.items() if value or key not in optional}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Decision:
        """The reverse of :meth:`to_dict`."""
        place = values["place_lps_mm"]
        points = tuple((float(x), float(y), float(z)) for x, y, z in values.get("points_lps_mm", ()))
        return Decision(
            values["kind"],
            tuple(values["numbers"]),
            None if place is None else (float(place[0]), float(place[1]), float(place[2])),
            values["who"],
            values["when"],
            points,
            values.get("voxels", ""),
            values.get("before", ""),
            values.get("remark", ""),
        )


def require_analysis(value: object) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` unless `value` is an :class:`Analysis`."""
    require_type(value, Analysis, "An analysis", "make it first, with analyze(volume, model)")


@dataclass(frozen=True, eq=False)
class Analysis:
    """One CT, its segmentation, explanations and measurements, and how they were obtained.

    `explanations` are heat maps; `answers` are explanations that consist of numbers and a sentence.
    `provenance` is JSON-ready and complete: together with the image and the model file it is enough to reproduce the
    result.

    :param decisions: what a reader has changed, in order; empty: the result is the model's alone.
    :param own: the model's unchanged result, if a reader has changed it.
    :param follow_up: findings of a comparison with earlier studies; this study is the last one.
    :param touched: the voxels (bool, k, j, i) whose label a reader has ever changed; None: none.
    :param standard: the segmentation at the operating point in the model card, if another sensitivity was chosen.
    """

    volume: Volume
    model: ModelSpec
    segmentation: Segmentation
    explanations: tuple[Explanation, ...]
    measurements: Measurements
    provenance: Mapping[str, Any] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    decisions: tuple[Decision, ...] = ()
    own: Analysis | None = None
    follow_up: Findings | None = None
    standard: Segmentation | None = None
    touched: np.ndarray | None = None

    def __repr__(self) -> str:
        made = (counted(len(self.explanations), "explanation"), counted(len(self.answers), "answer"))
        decided = f", {counted(len(self.decisions), 'decision')}" if self.decisions else ""
        return f"Analysis({self.volume.grid.summary()}; {self.measurements!r}; {', '.join(made)}{decided})"
