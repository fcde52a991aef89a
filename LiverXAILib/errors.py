# SPDX-License-Identifier: Apache-2.0
"""The exceptions of LiverXAI: each message says what is wrong and what to do about it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from .text import displayable

P = ParamSpec("P")
R = TypeVar("R")

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


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on: each once, also where they go around in a circle.

    An error that is raised again while another one that it caused is handled is in such a circle.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_memory(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is a lack of memory."""
    return any(
        isinstance(one, (MemoryError, DeviceError)) or "allocate memory" in str(one) or "out of memory" in str(one)
        for one in with_causes(error)
    )


def own_errors(failed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that whatever another library raises in it leaves as one of our errors.

    A call with wrong arguments is a TypeError, as of any function.

    :param failed: what has failed, as the beginning of a sentence: "The CT cannot be analyzed".
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def guarded(*arguments: P.args, **named: P.kwargs) -> R:
            try:
                signature.bind(*arguments, **named)
            except TypeError:
                return function(*arguments, **named)  # raises it with the function's name
            try:
                return function(*arguments, **named)
            except LiverXAIError:
                raise
            except Exception as error:
                if is_memory(error):
                    raise DeviceError(
                        "There was not enough memory. Close other programs, or crop the image."
                    ) from error
                raise LiverXAIError(f"{failed}: unexpected {type(error).__name__}: {error}") from error

        return guarded

    return decorate
