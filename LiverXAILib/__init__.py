# SPDX-License-Identifier: Apache-2.0
"""LiverXAI: liver and liver tumor segmentation in CT, with explanations. For research use only.

>>> import LiverXAILib as lx
>>> volume = lx.read_volume("ct.nii.gz")                      # doctest: +SKIP
>>> analysis = lx.analyze(volume, lx.load_model("default"))   # doctest: +SKIP
>>> lx.write_analysis(analysis, "result")                     # doctest: +SKIP

Importing this package is cheap: torch and the image libraries are loaded when a function that needs them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names
from ._version import __version__
from .errors import Cancelled, DeviceError, InputError, LiverXAIError, ModelError, UsageError
from .progress import CancelToken, Progress

if TYPE_CHECKING:
    from .analysis import Analysis
    from .explain import (
        METHODS,
        Explanation,
        Target,
        explain,
        explain_all,
        explain_border,
        explain_lesions,
        explain_regions,
    )
    from .followup import Comparison, compare, write_comparison
    from .inference import Postprocessing, Segmentation, read_segmentation, segment
    from .measure import Measurements, measure
    from .models import Model, ModelSpec, load_model, save_model
    from .pipeline import analyze, write_analysis
    from .reading import refine
    from .volumes.io import list_series, read_volume, write_volume
    from .volumes.volume import Grid, Volume

#: The module that defines each public name; it is imported when the name is first used (PEP 562).
_HOMES = {
    "Analysis": "analysis",
    "Comparison": "followup",
    "Explanation": "explain",
    "Grid": "volumes.volume",
    "METHODS": "explain",
    "Measurements": "measure",
    "Model": "models",
    "ModelSpec": "models",
    "Postprocessing": "inference",
    "Segmentation": "inference",
    "Target": "explain",
    "Volume": "volumes.volume",
    "analyze": "pipeline",
    "compare": "followup",
    "explain": "explain",
    "explain_all": "explain",
    "explain_border": "explain",
    "explain_lesions": "explain",
    "explain_regions": "explain",
    "list_series": "volumes.io",
    "load_model": "models",
    "measure": "measure",
    "read_segmentation": "inference",
    "read_volume": "volumes.io",
    "refine": "reading",
    "save_model": "models",
    "segment": "inference",
    "write_analysis": "pipeline",
    "write_comparison": "followup",
    "write_volume": "volumes.io",
}

__all__ = [
    "Analysis",
    "CancelToken",
    "Cancelled",
    "Comparison",
    "DeviceError",
    "Explanation",
    "Grid",
    "InputError",
    "LiverXAIError",
    "METHODS",
    "Measurements",
    "Model",
    "ModelError",
    "ModelSpec",
    "Postprocessing",
    "Progress",
    "Segmentation",
    "Target",
    "UsageError",
    "Volume",
    "__version__",
    "analyze",
    "compare",
    "explain",
    "explain_all",
    "explain_border",
    "explain_lesions",
    "explain_regions",
    "list_series",
    "load_model",
    "measure",
    "read_segmentation",
    "read_volume",
    "refine",
    "save_model",
    "segment",
    "write_analysis",
    "write_comparison",
    "write_volume",
]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
