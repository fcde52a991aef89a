# SPDX-License-Identifier: Apache-2.0
"""Synthetic training data: from label maps and phantoms to images with lesions."""

from __future__ import annotations

from .generator import Generator, Sample, Source
from .repertoire import Repertoire
from .tissues import ContrastPhase, Tissue

__all__ = ["ContrastPhase", "Generator", "Repertoire", "Sample", "Source", "Tissue"]
