# SPDX-License-Identifier: Apache-2.0
"""What the model would say if the CT were different: a lesion removed, moved, alone; a place made to look like one."""

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
