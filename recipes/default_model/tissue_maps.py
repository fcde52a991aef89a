# SPDX-License-Identifier: Apache-2.0
"""Tissue classes from intensity alone, and morphology for preparing the sources; arrays are (k, j, i)."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from LiverXAILib.volumes.box import components, largest_component

from .synthesis import Tissue

FAT_HU = -100.0


def tissues_by_hu(ct: np.ndarray) -> np.ndarray:
    """Classify tissues by intensity alone: air, table, fat, soft tissue, enhanced, bone, gas, lung."""
    body = _body(ct)
    tissues = np.full(ct.shape, int(Tissue.SOFT), dtype=np.uint8)
    tissues[ct < -30] = int(Tissue.FAT)
    tissues[ct > 110] = int(Tissue.ENHANCED)
    tissues[ct > 190] = int(Tissue.BONE)
    hollow = body & (ct < -300)
    tissues[hollow] = int(Tissue.GAS)
    tissues[_large(hollow & (ct > -970), 20_000)] = int(Tissue.LUNG)
    tissues[~body] = int(Tissue.AIR)
    tissues[~body & (ct > -700)] = int(Tissue.TABLE)
    return tissues


def _body(ct: np.ndarray) -> np.ndarray:
    """The patient including lungs and bowel gas: the largest dense component, filled slice by slice."""
    body = largest_component(opened_slices(ct > -300))
    filled = [sitk.GetArrayFromImage(sitk.BinaryFillhole(_image(plane.astype(np.uint8)))) for plane in body]
    return np.stack(filled) > 0


def _large(mask: np.ndarray, voxels: int) -> np.ndarray:
    numbers = components(mask)
    large = np.bincount(numbers.ravel()) >= voxels
    large[0] = False
    return large[numbers]


def opened_slices(mask: np.ndarray) -> np.ndarray:
    image = _image(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.BinaryMorphologicalOpening(image, [1, 1, 0])) > 0


def _image(array: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(array)


def opened_by_ball(mask: np.ndarray, radius: int) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.BinaryMorphologicalOpening(_image(mask.astype(np.uint8)), [radius] * 3)) > 0


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    image = _image(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.BinaryDilate(image, [radius] * 3)) > 0


def smoothed(ct: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Smooth `ct` with a Gaussian of 2.4 mm."""
    image = _image(ct.astype(np.float32))
    return sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, 2.4 / spacing_mm))  # voxels: no spacing is set
