# SPDX-License-Identifier: Apache-2.0
"""The result of a segmentation: labels, their meaning, probabilities, and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from ..errors import UsageError, require_type
from ..models.spec import LabelSpec
from ..volumes.box import Box, bounding_box
from ..volumes.volume import Grid, Volume


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Labels on the input's grid.

    :param labels: uint8 :class:`Volume`; 0 is background, other values are those of `specs`.
    :param specs: the labels' names, values, colors and terminology.
    :param probabilities: for each label a float16 :class:`Volume` in [0, 1] cropped to the region where the label may
        be; outside it the probability is (nearly) 0. Above 0.5 the label's score exceeds that of every rival.
    :param stage_grids: the grids on which the model's stages ran; explanations run on the same grids.
    :param provenance: JSON-ready: model, settings, device, warnings and steps.
    :param network_probabilities: for labels that were refined (:mod:`.outlines`), the probabilities of the
        model's last stage, to which explanations refer.
    :param stage_centers: the HU at the center of the intensity, for stages with a centered intensity
        (:class:`~LiverXAILib.models.spec.Intensity`).
    """

    labels: Volume
    specs: tuple[LabelSpec, ...]
    probabilities: Mapping[str, Volume] = field(default_factory=dict)
    stage_grids: Mapping[str, Grid] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stage_centers: Mapping[str, float] = field(default_factory=dict)
    network_probabilities: Mapping[str, Volume] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Segmentation({', '.join(spec.name for spec in self.specs)} on {self.labels.grid.summary()})"

    def spec(self, name: str) -> LabelSpec:
        """The label called `name`; raises :class:`~LiverXAILib.errors.UsageError` if there is none."""
        for spec in self.specs:
            if spec.name == name:
                return spec
        raise UsageError(f"The segmentation has no label {name!r}; it has {[spec.name for spec in self.specs]}.")

    @cached_property
    def box(self) -> Box | None:
        """The smallest box around all labels; None if nothing was found."""
        return bounding_box(self.labels.array)

    @cached_property
    def checksum(self) -> str:
        """The :func:`labels_checksum` of its labels."""
        return labels_checksum(self.labels)

    def network_probability(self, name: str) -> Volume | None:
        """The probability by the network of the model's last stage alone; None if it is not known."""
        if (self.provenance.get("outlines") or {}).get("label") == name:
            return self.network_probabilities.get(name)
        return self.probabilities.get(name)

    def mask(self, name: str, box: Box | None = None) -> np.ndarray:
        """The mask of the structure `name`, including its parts: bool (k, j, i). The liver includes its tumors.

        :param box: only this part of the image; None: all of it.
        """
        self.spec(name)
        if box is None:
            mask = np.zeros(self.labels.shape, dtype=bool)
            if self.box is not None:
                mask[self.box] = self.mask(name, self.box)
            return mask
        values = [spec.value for spec in self.specs if name in self._ancestry(spec)]
        labels = self.labels.array[box]
        mask = labels == values[0]
        for value in values[1:]:  # one by one: several times faster than np.isin
            mask |= labels == value
        return mask

    def has_same(self, name: str, other: Segmentation) -> bool:
        """Whether the structure `name` has the same voxels in another segmentation of the image."""
        boxes = [box for box in (self.box, other.box) if box is not None]
        if not boxes:
            return True
        around = Box.union(boxes)
        return bool((self.mask(name, around) == other.mask(name, around)).all())

    def _ancestry(self, spec: LabelSpec) -> list[str]:
        names = [spec.name]
        while spec.parent is not None and spec.parent not in names:
            names.append(spec.parent)
            spec = self.spec(spec.parent)
        return names


def require_segmentation(value: object) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` unless `value` is a :class:`Segmentation`."""
    advice = "make it first, with segment(volume, model), or read it with read_segmentation({}, volume)"
    require_type(value, Segmentation, "A segmentation", advice)


def labels_checksum(labels: Volume) -> str:
    """SHA-256 of the voxels of a label map, which reveals manual edits and links explanations to their segmentation."""
    return sha256(np.ascontiguousarray(labels.array, dtype=np.uint8).data).hexdigest()
