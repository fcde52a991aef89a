# SPDX-License-Identifier: Apache-2.0
"""The exceptions of LiverXAI: each message says what is wrong and what to do about it."""

from __future__ import annotations

from .text import displayable

#: Most characters of a message.
_LONGEST = 2000


class LiverXAIError(Exception):
    """Base class of every error that LiverXAI raises on purpose.

    Messages quote names that others wrote: what could control a terminal or a log is replaced in them, and what is
    endless is cut.
    """

    def __init__(self, *values: object) -> None:
        super().__init__(*(_shown(value) if isinstance(value, str) else value for value in values))


def _shown(text: str) -> str:
    text = displayable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


class InputError(LiverXAIError):
    """The image (or another input file) cannot be used as it is."""


class ModelError(LiverXAIError):
    """A model is missing, damaged, unsafe to load, or of an unsupported kind."""


class DeviceError(LiverXAIError):
    """The requested compute device does not exist or ran out of memory."""


class UsageError(LiverXAIError):
    """An argument is wrong: unknown name, value out of range, impossible combination."""


class Cancelled(LiverXAIError):
    """The user cancelled; nothing was written."""
