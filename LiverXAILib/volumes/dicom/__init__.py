# SPDX-License-Identifier: Apache-2.0
"""CT series from DICOM files: finding, choosing and decoding them.

Headers are read with pydicom. Positions and intensities always come from the header: see
:mod:`LiverXAILib.volumes.stack` for the geometry, :mod:`LiverXAILib.volumes.dicom.pixels` for the intensities.
"""

from __future__ import annotations

from .finding import FoundSeries, files_at, find_series, list_series
from .headers import is_dicom
from .reading import read_dicom
from .series import Series, SeriesInfo, rank

__all__ = [
    "FoundSeries",
    "Series",
    "SeriesInfo",
    "files_at",
    "find_series",
    "is_dicom",
    "list_series",
    "rank",
    "read_dicom",
]
