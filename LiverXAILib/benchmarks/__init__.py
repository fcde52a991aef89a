# SPDX-License-Identifier: Apache-2.0
"""Measurements of LiverXAI itself: speed, memory, faithfulness of explanations. ``liverxai benchmark`` calls them."""
