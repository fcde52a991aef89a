# SPDX-License-Identifier: Apache-2.0
"""Explanations that consist of numbers and a sentence rather than a heat map. Needs no torch.

Each of them has a kind, the target that was asked about, the evidence (numbers, JSON-ready) and a sentence that is made
from that evidence and nothing else, so that the text cannot contradict the measurements. A new kind is
one class in a module here; its computation is in a module of its own
(:mod:`LiverXAILib.explain.counterfactual`, :mod:`LiverXAILib.explain.border`,
:mod:`LiverXAILib.explain.regions`).
Heat maps are instances of :class:`~LiverXAILib.explain.explanation.Explanation`.
"""

from __future__ import annotations

from .answer import Answer
from .border import BorderNeed
from .lesions import Counterfactual, NeededChange
from .regions import RegionShares

__all__ = ["Answer", "BorderNeed", "Counterfactual", "NeededChange", "RegionShares"]
