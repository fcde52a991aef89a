# SPDX-License-Identifier: Apache-2.0
"""Why the model answered as it did: questions, methods, exact maps from windows, and checks of their faithfulness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from .explanation import DEFAULT_METHOD, Explanation
from .targets import EmptyTargetError, Target

if TYPE_CHECKING:
    from .engine import explain, explain_all
    from .methods import METHODS, Method

__all__ = ["DEFAULT_METHOD", "METHODS", "EmptyTargetError", "Explanation", "Method", "Target", "explain", "explain_all"]

# What needs torch is imported when it is first used: Slicer's main process shows heat maps and never loads torch.
__getattr__ = lazy_names(
    __name__, {"METHODS": "methods", "Method": "methods", "explain": "engine", "explain_all": "engine"}
)
