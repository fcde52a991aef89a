# SPDX-License-Identifier: Apache-2.0
"""measure(): quantities of the liver and its lesions; entropy_map(): where the model hesitates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .diameters import AxialDiameters
    from .measurements import LesionMeasurements, Measurements, measure
    from .uncertainty import entropy_map

__all__ = ["AxialDiameters", "LesionMeasurements", "Measurements", "entropy_map", "measure"]

__getattr__ = lazy_names(
    __name__,
    {
        "AxialDiameters": "diameters",
        "LesionMeasurements": "measurements",
        "Measurements": "measurements",
        "entropy_map": "uncertainty",
        "measure": "measurements",
    },
)
