# SPDX-License-Identifier: Apache-2.0
"""Lesions that the model is not sure of: kept and listed for the reader, not counted."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..inference.lesions import numbered_candidates
from ..inference.segmentation import Segmentation
from ..volumes.box import bounding_box, central_voxel
from ..volumes.volume import Volume
from .diameters import axial_diameters
from .measurements import Candidate
from .reliability import finding_reliability


def measure_candidates(volume: Volume, segmentation: Segmentation) -> tuple[Candidate, ...]:
    """Measure the candidates of a segmentation that the model made.

    :param volume: the CT in HU, on the segmentation's grid.
    """
    box, numbers = numbered_candidates(segmentation)
    probability = segmentation.probabilities.get("tumor")
    if probability is None:
        return ()
    offset = volume.grid.box_of(probability.grid).start
    needed = segmentation.provenance.get("peak_probability", {}).get("tumor")
    reliable = list(finding_reliability(numbers, segmentation, box))
    candidates = []
    for number in range(1, int(numbers.max(initial=0)) + 1):
        inside = bounding_box(numbers == number)
        assert inside is not None
        own, mask = inside.shifted(box.start), numbers[inside] == number
        voxels = np.argwhere(mask) + own.start
        values = probability.array[tuple((voxels - offset).T)].astype(np.float64)
        x, y, z = volume.grid.to_lps(central_voxel(voxels)[::-1])
        axial = axial_diameters(mask, volume.grid.cropped(own))
        start = own.start[2 - "ijk".index(axial.slice_axis)]
        candidates.append(
            Candidate(
                number=number,
                volume_ml=len(voxels) * volume.grid.voxel_volume_mm3 / 1000,
                mean_hu=float(volume.array[tuple(voxels.T)].astype(np.float64).mean()),
                axial=dataclasses.replace(axial, slice_index=axial.slice_index + start),
                mean_probability=float(values.mean()),
                peak_probability=float(values.max()),
                place_lps_mm=(float(x), float(y), float(z)),
                reason=_reason(float(values.max()), needed),
                reliability=reliable[number - 1],
            )
        )
    return tuple(candidates)


def _reason(peak: float, needed: float | None) -> str:
    sentence = f"The model's probability of tumor is at most {100 * peak:.0f} % in it"
    return f"{sentence}." if needed is None else f"{sentence}; a lesion counts from {100 * needed:.1f} % on."
