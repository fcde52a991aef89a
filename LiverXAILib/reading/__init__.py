# SPDX-License-Identifier: Apache-2.0
"""refine(): a reader's decisions about a result, recorded alongside the model's own result; outline_lesion()."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .decisions import (
        accept,
        add,
        change_sensitivity,
        choose_targets,
        dismiss,
        exclude,
        include,
        measure_lesion,
        merge,
        refine,
        reject,
        restore,
        resume,
        split,
        undo,
    )
    from .measuring import with_calipers, with_patient_size
    from .numbering import as_listed, listed_in, listed_in_table
    from .outline import correct_outline, outline_lesion

__all__ = [
    "accept",
    "add",
    "as_listed",
    "change_sensitivity",
    "choose_targets",
    "correct_outline",
    "dismiss",
    "exclude",
    "include",
    "listed_in",
    "listed_in_table",
    "measure_lesion",
    "merge",
    "outline_lesion",
    "refine",
    "reject",
    "restore",
    "resume",
    "split",
    "undo",
    "with_calipers",
    "with_patient_size",
]

__getattr__ = lazy_names(
    __name__,
    {
        "accept": "decisions",
        "add": "decisions",
        "as_listed": "numbering",
        "change_sensitivity": "decisions",
        "choose_targets": "decisions",
        "correct_outline": "outline",
        "dismiss": "decisions",
        "exclude": "decisions",
        "include": "decisions",
        "listed_in": "numbering",
        "listed_in_table": "numbering",
        "measure_lesion": "decisions",
        "merge": "decisions",
        "outline_lesion": "outline",
        "refine": "decisions",
        "reject": "decisions",
        "restore": "decisions",
        "resume": "decisions",
        "split": "decisions",
        "undo": "decisions",
        "with_calipers": "measuring",
        "with_patient_size": "measuring",
    },
)
