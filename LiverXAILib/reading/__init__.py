# SPDX-License-Identifier: Apache-2.0
"""refine(): what the reader decides about a result, as data beside the model's own answer; outline_lesion()."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .decisions import accept, add, merge, refine, reject, split
    from .outline import outline_lesion

__all__ = ["accept", "add", "merge", "outline_lesion", "refine", "reject", "split"]

__getattr__ = lazy_names(
    __name__,
    {
        "accept": "decisions",
        "add": "decisions",
        "merge": "decisions",
        "outline_lesion": "outline",
        "refine": "decisions",
        "reject": "decisions",
        "split": "decisions",
    },
)
