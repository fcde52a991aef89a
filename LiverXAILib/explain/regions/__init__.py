# SPDX-License-Identifier: Apache-2.0
"""The model's confidence in a lesion, divided among parts of the image that a reader can name."""

from __future__ import annotations

from .parts import Part, name_parts
from .shapley import coalitions, explain_regions, shapley_values

__all__ = ["Part", "coalitions", "explain_regions", "name_parts", "shapley_values"]
