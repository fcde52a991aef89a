# SPDX-License-Identifier: Apache-2.0
"""The import path of phantoms until version 0.1; they are now in :mod:`LiverXAILib.phantoms`."""

from __future__ import annotations

from ..phantoms import PHASES, TISSUES, Lesion, Phantom, make_phantom, write_phantom

__all__ = ["PHASES", "TISSUES", "Lesion", "Phantom", "make_phantom", "write_phantom"]
