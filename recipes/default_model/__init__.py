# SPDX-License-Identifier: Apache-2.0
"""The recipe of the bundled default model; not in the wheel, run from a clone (docs/default-model.md)."""
