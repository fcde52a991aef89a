# SPDX-License-Identifier: Apache-2.0
"""The reader's part of the panel: decisions, edits, axes, frames, and sensitivity."""
