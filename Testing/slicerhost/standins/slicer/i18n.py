# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``slicer.i18n``: no translation, the English text."""

from __future__ import annotations


def tr(text: str) -> str:
    return text


def translate(context: str, text: str) -> str:
    return text
