# SPDX-License-Identifier: Apache-2.0
"""Common parts of the writers of DICOM objects: the extra that they need, and the series of which they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...volumes.volume import Volume


def require_extra() -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` if the extra ``dicom`` is not installed."""
    from ..dicom_objects import require_dicom_extra

    require_dicom_extra()


def check_source(volume: Volume) -> None:
    """Raise :class:`~LiverXAILib.errors.LiverXAIError` if no DICOM object can be made of an image."""
    from ..dicom_source import read_source

    read_source(volume)


def remarks_on_source(volume: Volume) -> list[str]:
    """Sentences about what DICOM objects repair in, or leave out of, the headers of their series."""
    from ..dicom_source import read_source

    return list(read_source(volume).notes)
