# SPDX-License-Identifier: Apache-2.0
"""The import path that phantoms had until version 0.1; they are a package of their own: :mod:`LiverXAILib.phantoms`."""

from __future__ import annotations

from ..phantoms import PHASES, TISSUES, Lesion, Phantom, make_phantom, write_phantom

__all__ = ["PHASES", "TISSUES", "Lesion", "Phantom", "make_phantom", "write_phantom"]
