# SPDX-License-Identifier: Apache-2.0
"""Volumes to SimpleITK images and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import SimpleITK as sitk

from .volume import Volume


def to_itk(volume: Volume) -> sitk.Image:
    """The volume as a SimpleITK image (bool as uint8, float16 as float32); a sheared direction is kept."""
    array = volume.array
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.grid.origin.tolist())
    image.SetDirection(volume.grid.direction.ravel().tolist())
    return image


def from_itk(image: sitk.Image) -> Volume:
    """A three-dimensional SimpleITK image with one value a voxel as a volume.

    :raises ValueError: its geometry is degenerate.
    """
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image).reshape(image.GetSize()[::-1]), matrix)


@contextmanager
def itk_warnings_hidden() -> Iterator[None]:
    """Keep ITK from printing to the console what becomes an exception or does not matter."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
