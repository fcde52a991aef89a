# SPDX-License-Identifier: Apache-2.0
"""Findings that were measured before, in another segmentation of the same image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ..inference.lesions import same_numbers
from ..inference.segmentation import Segmentation
from ..volumes.box import Box
from .measurements import Candidate, LesionMeasurements, Measurements

#: Segmentations of one image with the same probabilities, and their measurements.
Known = Sequence[tuple[Segmentation, Measurements]]

_Finding = TypeVar("_Finding", LesionMeasurements, Candidate)


def measured_before(
    segmentation: Segmentation,
    known: Known,
    numbered: Callable[[Segmentation], tuple[Box, np.ndarray]],
    findings: Callable[[Measurements], Sequence[_Finding]],
) -> dict[int, _Finding]:
    """The findings of `known` that have the same voxels in `segmentation`, by their numbers there.

    What is measured of a finding depends on the whole liver, too: none if that has changed.

    :param numbered: the numbers of the findings of a segmentation, in a box.
    :param findings: their measurements.
    """
    found: dict[int, _Finding] = {}
    count = int(numbered(segmentation)[1].max(initial=0))
    for other, measured in known:
        if len(found) < count and segmentation.has_same("liver", other):
            earlier = {finding.number: finding for finding in findings(measured)}
            for old, new in same_numbers(numbered(other), numbered(segmentation)).items():
                if old in earlier:
                    found.setdefault(new, earlier[old])
    return found
