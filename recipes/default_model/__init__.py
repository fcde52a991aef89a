# SPDX-License-Identifier: Apache-2.0
"""How the bundled default model is made. Not part of the wheel; run from a clone (docs/default-model.md)."""
