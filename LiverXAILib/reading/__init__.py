# SPDX-License-Identifier: Apache-2.0
"""refine(): what the reader decides about a result, as data beside the model's own answer; outline_lesion()."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .decisions import accept, add, labels_checksum, merge, refine, reject, resume, split
    from .outline import outline_lesion

__all__ = ["accept", "add", "labels_checksum", "merge", "outline_lesion", "refine", "reject", "resume", "split"]

__getattr__ = lazy_names(
    __name__,
    {
        "accept": "decisions",
        "add": "decisions",
        "labels_checksum": "decisions",
        "merge": "decisions",
        "outline_lesion": "outline",
        "refine": "decisions",
        "reject": "decisions",
        "resume": "decisions",
        "split": "decisions",
    },
)
