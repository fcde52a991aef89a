# SPDX-License-Identifier: Apache-2.0
"""Explanations of the model's answers: targets, methods, exact maps from windows, and checks of their faithfulness.

The package itself is callable: ``LiverXAILib.explain(volume, model, segmentation)`` is :func:`explain`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from .answers import Answer, BorderNeed, Counterfactual, NeededChange, RegionShares
    from .border import explain_border
    from .catalog import CATALOG, DEFAULT_METHOD, MethodInfo
    from .counterfactual import explain_lesions
    from .explainer import explain, explain_all
    from .explanation import Explanation
    from .methods import METHODS, Method
    from .regions import explain_regions
    from .targets import (
        BoxTarget,
        Contrast,
        EmptyTargetError,
        LabelTarget,
        LesionTarget,
        PlaceTarget,
        PointTarget,
        Target,
        WhyNot,
    )

__all__ = [
    "CATALOG",
    "DEFAULT_METHOD",
    "METHODS",
    "Answer",
    "BorderNeed",
    "BoxTarget",
    "Contrast",
    "Counterfactual",
    "EmptyTargetError",
    "Explanation",
    "LabelTarget",
    "LesionTarget",
    "Method",
    "MethodInfo",
    "NeededChange",
    "PlaceTarget",
    "PointTarget",
    "RegionShares",
    "Target",
    "WhyNot",
    "explain",
    "explain_all",
    "explain_border",
    "explain_lesions",
    "explain_regions",
]

# Modules that need torch are imported on first use: Slicer's main process shows heat maps and never loads torch.
__getattr__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(("Answer", "BorderNeed", "Counterfactual", "NeededChange", "RegionShares"), "answers"),
        **dict.fromkeys(("CATALOG", "DEFAULT_METHOD", "MethodInfo"), "catalog"),
        "explain_border": "border",
        "explain_lesions": "counterfactual",
        **dict.fromkeys(("explain", "explain_all"), "explainer"),
        "explain_regions": "regions",
        "Explanation": "explanation",
        **dict.fromkeys(("METHODS", "Method"), "methods"),
        **dict.fromkeys(
            (
                "BoxTarget", "Contrast", "EmptyTargetError", "LabelTarget", "LesionTarget", "PlaceTarget",
                "PointTarget", "Target", "WhyNot",
            ),
            "targets",
        ),
    },
)  # fmt: skip
make_callable(__name__)
