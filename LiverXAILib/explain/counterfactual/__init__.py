# SPDX-License-Identifier: Apache-2.0
"""The model's predictions for changed CTs: a lesion removed, moved, or isolated; a place made to look like a lesion."""

from __future__ import annotations

from .changes import DRAWS, confidence_alone, explain_lesions
from .examined import ExaminedBox, FarContextError

__all__ = [
    "DRAWS",
    "ExaminedBox",
    "FarContextError",
    "confidence_alone",
    "explain_lesions",
]
