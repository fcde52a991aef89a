# SPDX-License-Identifier: Apache-2.0
"""From scores to labels: which regions of a network's output are kept, by rules based on anatomy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..volumes.box import bounding_box, components, largest_component, without_holes


@dataclass(frozen=True)
class Postprocessing:
    """The rules; all can be switched off.

    :param largest_component: keep only the largest connected component of the liver.
    :param fill_holes: fill cavities that the liver encloses in 3-D (vessels, necrotic lesions).
    :param lesions_in_liver: drop lesions of which less than half lies in the kept liver. The liver label includes its
        lesions in training and in inference, so voxels that are lesion but not liver are contradictory: an effusion, a
        gallbladder, bowel.
    :param min_lesion_ml: drop lesions smaller than this; the default of 0.05 ml is a sphere of 4.6 mm diameter, below
        the resolution of CT slices.
    """

    largest_component: bool = True
    fill_holes: bool = True
    lesions_in_liver: bool = True
    min_lesion_ml: float = 0.05


def clean_organ(mask: np.ndarray, rules: Postprocessing) -> np.ndarray:
    """The organ's mask (k, j, i), bool, after applying the rules for organs."""
    mask = largest_component(mask) if rules.largest_component else mask
    return without_holes(mask) if rules.fill_holes else mask


def clean_lesions(lesions: np.ndarray, organ: np.ndarray, voxel_volume_mm3: float, rules: Postprocessing) -> np.ndarray:
    """The lesions' mask (k, j, i), bool, after applying the rules for lesions.

    :param organ: the cleaned mask of the organ, including its lesions.
    """
    box = bounding_box(lesions)
    if box is None:
        return lesions
    voxels = lesions[box].nonzero()  # far fewer than there are in the box
    numbers = components(lesions[box], corners=True)[voxels]
    sizes = np.bincount(numbers)
    keep = sizes * voxel_volume_mm3 >= rules.min_lesion_ml * 1000.0
    if rules.lesions_in_liver:
        keep &= 2 * np.bincount(numbers[organ[box][voxels]], minlength=sizes.size) >= sizes
    kept = np.zeros(lesions.shape, dtype=bool)
    kept[box][voxels] = keep[numbers]
    return kept
