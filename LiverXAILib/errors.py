# SPDX-License-Identifier: Apache-2.0
"""The exceptions of LiverXAI: each message says what is wrong and what to do about it."""

from __future__ import annotations

from .text import displayable


class LiverXAIError(Exception):
    """Base class of every error that LiverXAI raises on purpose.

    Messages quote names that others wrote; what could control a terminal or a log is replaced in them.
    """

    def __init__(self, *values: object) -> None:
        super().__init__(*(displayable(value) if isinstance(value, str) else value for value in values))


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
