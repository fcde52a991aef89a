# SPDX-License-Identifier: Apache-2.0
"""Findings that are listed for the reader but not counted: candidates below the operating point, rejected lesions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from ..inference.lesions import numbered_candidates
from ..inference.segmentation import Segmentation
from ..volumes.box import Box, central_voxel
from ..volumes.volume import Volume
from .diameters import axial_diameters
from .known import Known, measured_before
from .measurements import Candidate, RejectedLesion
from .reliability import finding_reliability


def measure_candidates(volume: Volume, segmentation: Segmentation, known: Known = ()) -> tuple[Candidate, ...]:
    """Measure the candidates of a segmentation that the model made.

    :param volume: the CT in HU, on the segmentation's grid.
    :param known: as for :func:`~LiverXAILib.measure.measure`.
    """
    box, numbers = numbered_candidates(segmentation)
    probability = segmentation.probabilities.get("tumor")
    if probability is None:
        return ()
    needed = segmentation.provenance.get("peak_probability", {}).get("tumor")
    least_ml = segmentation.provenance.get("postprocessing", {}).get("min_lesion_ml", 0.0)
    before = measured_before(segmentation, known, numbered_candidates, lambda measured: measured.candidates)
    candidates = []
    for number, inside in enumerate(ndimage.find_objects(numbers) if numbers.size else (), start=1):
        if number in before:
            one = before[number]
            reason = _reason(one.peak_probability, needed, one.volume_ml, least_ml)
            candidates.append(dataclasses.replace(one, number=number, reason=reason))
            continue
        own, mask = Box(*inside).shifted(box.start), numbers[inside] == number
        values = _probabilities(probability, volume, own, mask)
        peak = float(values.max())
        measured = _measured(number, volume, own, mask)
        candidates.append(
            Candidate(
                **measured,
                mean_probability=float(values.mean()),
                peak_probability=peak,
                reason=_reason(peak, needed, measured["volume_ml"], least_ml),
                reliability=next(finding_reliability(mask.astype(np.int32), segmentation, own), None),
            )
        )
    return tuple(candidates)


def measure_rejected(
    volume: Volume, segmentation: Segmentation, pieces: Sequence[tuple[Box, np.ndarray, str, str]]
) -> tuple[RejectedLesion, ...]:
    """Measure lesions that a reader has rejected, in the order of `pieces`.

    :param volume: the CT in HU, on the segmentation's grid.
    :param segmentation: the model's, with its probabilities.
    :param pieces: for each lesion its box in the image, its voxels in the box (bool; k, j, i), who rejected it, and
        when.
    """
    probability = segmentation.probabilities.get("tumor")
    return tuple(
        RejectedLesion(
            **_measured(number, volume, box, mask),
            mean_probability=None
            if probability is None
            else float(_probabilities(probability, volume, box, mask).mean()),
            who=who,
            when=when,
        )
        for number, (box, mask, who, when) in enumerate(pieces, start=1)
    )


def _measured(number: int, volume: Volume, box: Box, mask: np.ndarray) -> dict[str, Any]:
    """The measurements common to both; `mask` holds the finding's voxels in its `box` of the image."""
    x, y, z = volume.grid.to_lps((central_voxel(np.argwhere(mask)) + box.start)[::-1])
    axial = axial_diameters(mask, volume.grid.cropped(box))
    start = box.start[2 - "ijk".index(axial.slice_axis)]
    return {
        "number": number,
        "volume_ml": int(np.count_nonzero(mask)) * volume.grid.voxel_volume_mm3 / 1000,
        "mean_hu": float(volume.array[box][mask].astype(np.float64).mean()),
        "axial": dataclasses.replace(axial, slice_index=axial.slice_index + start),
        "place_lps_mm": (float(x), float(y), float(z)),
    }


def _probabilities(probability: Volume, volume: Volume, box: Box, mask: np.ndarray) -> np.ndarray:
    """The probability in each voxel of `mask`; 0 outside the part of the image for which it is known."""
    values = np.zeros(mask.shape)
    known = volume.grid.box_of(probability.grid)
    if (common := known.intersection(box)) is not None:
        values[common.relative_to(box)] = probability.array[common.relative_to(known)]
    return values[mask]


def _reason(peak: float, needed: float | None, volume_ml: float, least_ml: float) -> str:
    sentence = f"The model's highest tumor probability in it is {100 * peak:.1f} %"
    if needed is not None and peak < needed:
        return f"{sentence}; a lesion is counted from {100 * needed:.1f} %."
    if volume_ml < least_ml:
        return f"{sentence}; its volume is {volume_ml:.2f} ml, and a lesion is counted from {least_ml:g} ml."
    return f"{sentence}."
