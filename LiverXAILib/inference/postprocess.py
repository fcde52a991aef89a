# SPDX-License-Identifier: Apache-2.0
"""From scores to labels: what is kept of a network's answer, by rules that follow from anatomy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..volumes.box import bounding_box, components, largest_component


@dataclass(frozen=True)
class Postprocessing:
    """The rules; all can be switched off.

    :param largest_component: keep only the largest connected liver (there is one).
    :param fill_holes: fill cavities that the liver encloses in 3-D (vessels, necrotic lesions).
    :param lesions_in_liver: drop lesions of which less than half lies in the kept liver. A liver is taught and asked
        with its lesions, so a network that says "lesion, but not liver" contradicts itself: it sees an effusion, a
        gallbladder, bowel.
    :param min_lesion_ml: drop smaller lesions: a ball of 4.6 mm diameter at the default of 0.05 ml, below what CT
        slices resolve.
    """

    largest_component: bool = True
    fill_holes: bool = True
    lesions_in_liver: bool = True
    min_lesion_ml: float = 0.05


def clean_organ(mask: np.ndarray, rules: Postprocessing) -> np.ndarray:
    """The organ's mask (k, j, i), bool, after the rules for organs."""
    if not mask.any():
        return mask
    if rules.largest_component:
        mask = largest_component(mask)
    if rules.fill_holes:
        mask = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(mask.view(np.uint8)))) > 0
    return mask


def clean_lesions(lesions: np.ndarray, organ: np.ndarray, voxel_volume_mm3: float, rules: Postprocessing) -> np.ndarray:
    """The lesions' mask (k, j, i), bool, after the rules for lesions.

    :param organ: the cleaned organ as the network sees it, its lesions included.
    """
    box = bounding_box(lesions)
    if box is None:
        return lesions
    labels = components(lesions[box], corners=True)
    sizes = np.bincount(labels.ravel())
    keep = sizes * voxel_volume_mm3 >= rules.min_lesion_ml * 1000.0
    if rules.lesions_in_liver:
        keep &= 2 * np.bincount(labels[organ[box]], minlength=sizes.size) >= sizes
    keep[0] = False
    kept = np.zeros_like(lesions)
    kept[box] = keep[labels]
    return kept
