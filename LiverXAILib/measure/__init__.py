# SPDX-License-Identifier: Apache-2.0
"""measure(): quantities of the liver and its lesions."""

from __future__ import annotations

from .diameters import AxialDiameters
from .measurements import LesionMeasurements, Measurements, measure

__all__ = ["AxialDiameters", "LesionMeasurements", "Measurements", "measure"]
