# SPDX-License-Identifier: Apache-2.0
"""Why the model answered as it did: questions, methods, exact maps from windows, and checks of their faithfulness."""

from .engine import explain, explain_all
from .explanation import Explanation
from .layers import default_layer
from .methods import METHODS, Method
from .targets import EmptyTargetError, Target

__all__ = ["METHODS", "EmptyTargetError", "Explanation", "Method", "Target", "default_layer", "explain", "explain_all"]
