# SPDX-License-Identifier: Apache-2.0
"""How an organ's border was determined: the neighborhood that the network needs at each point of the surface."""

from __future__ import annotations

from .need import POINTS, RADII_MM, ROUTINE_POINTS, explain_border
from .probe import is_fixed
from .replacements import REPLACEMENTS

__all__ = ["POINTS", "RADII_MM", "REPLACEMENTS", "ROUTINE_POINTS", "explain_border", "is_fixed"]
