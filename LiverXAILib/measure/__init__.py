# SPDX-License-Identifier: Apache-2.0
"""measure(): quantities of liver and lesions; entropy_map(), measure_uncertainty(): where the model is uncertain.

The package itself can be called: ``LiverXAILib.measure(volume, segmentation)`` is :func:`measure`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from .candidates import measure_candidates
    from .disagreement import LesionUncertainty, Uncertainty, measure_uncertainty
    from .measurements import AxialDiameters, Candidate, LesionMeasurements, Measurements
    from .measuring import measure
    from .uncertainty import entropy_map

__all__ = [
    "AxialDiameters",
    "Candidate",
    "LesionMeasurements",
    "LesionUncertainty",
    "Measurements",
    "Uncertainty",
    "entropy_map",
    "measure",
    "measure_candidates",
    "measure_uncertainty",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AxialDiameters": "measurements",
        "Candidate": "measurements",
        "LesionMeasurements": "measurements",
        "LesionUncertainty": "disagreement",
        "Measurements": "measurements",
        "Uncertainty": "disagreement",
        "entropy_map": "uncertainty",
        "measure": "measuring",
        "measure_candidates": "candidates",
        "measure_uncertainty": "disagreement",
    },
)
make_callable(__name__)
