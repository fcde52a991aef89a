# SPDX-License-Identifier: Apache-2.0
"""Whether a heat map is faithful to the model: measurements, controls, and the verdict made from them."""

from __future__ import annotations

from .evaluator import DRAWS, FaithfulnessEvaluator, check_faithfulness, energy_lift

__all__ = ["DRAWS", "FaithfulnessEvaluator", "check_faithfulness", "energy_lift"]
