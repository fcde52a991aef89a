# SPDX-License-Identifier: Apache-2.0
"""Conversion of volumes to SimpleITK images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import SimpleITK as sitk

from .header import storable
from .volume import Volume


def to_itk(volume: Volume) -> sitk.Image:
    """The volume as a SimpleITK image (bool as uint8, float16 as float32); a sheared direction is kept."""
    image = sitk.GetImageFromArray(storable(volume.array))
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.grid.origin.tolist())
    image.SetDirection(volume.grid.direction.ravel().tolist())
    return image


@contextmanager
def itk_warnings_hidden() -> Iterator[None]:
    """Keep ITK from printing warnings that also become exceptions or do not matter."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
