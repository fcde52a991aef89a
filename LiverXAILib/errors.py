# SPDX-License-Identifier: Apache-2.0
"""The exceptions of LiverXAI: each message says what is wrong and what to do about it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

from .text import displayable

P = ParamSpec("P")
R = TypeVar("R")

#: Maximum number of characters in a message.
_LONGEST = 2000


class LiverXAIError(Exception):
    """Base class of every error that LiverXAI raises deliberately.

    Messages quote untrusted names, so characters that could control a terminal or a log are replaced, and overlong
    messages are shortened.
    """

    def __init__(self, *values: object) -> None:
        super().__init__(*(_shown(value) if isinstance(value, str) else value for value in values))


def _shown(text: str) -> str:
    text = displayable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


class InputError(LiverXAIError):
    """The image (or another input file) cannot be used."""


class ModelError(LiverXAIError):
    """A model is missing, damaged, unsafe to load, or of an unsupported kind."""


class DeviceError(LiverXAIError):
    """The requested compute device does not exist or ran out of memory."""


class UsageError(LiverXAIError):
    """An argument is invalid: unknown name, value out of range, impossible combination."""


class Cancelled(LiverXAIError):
    """The user cancelled; nothing was written."""


def require_type(value: object, kind: type | tuple[type, ...], noun: str, advice: str, argument: str = "path") -> None:
    """Raise :class:`UsageError` unless an argument of a public function is of the right type.

    :param noun: what is needed, as the beginning of the sentence: "An image".
    :param advice: how to get it; "{}" in it stands for the value, if that is a path, and otherwise for `argument`.
    """
    if not isinstance(value, kind):
        given = repr(str(value)) if isinstance(value, str | os.PathLike) else argument
        raise UsageError(f"{noun} is needed, not {type(value).__name__}: {advice.format(given)}.")


def require_several(values: object, noun: str) -> None:
    """Raise :class:`UsageError` unless `values` is a list or another iterable; a text would be one of its letters.

    :param noun: what the list holds: "targets".
    """
    if isinstance(values, str | bytes | os.PathLike) or not isinstance(values, Iterable):
        raise UsageError(f"A list of {noun} is needed, not {type(values).__name__}: put even a single one into a list.")


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its chain of causes, each once, even if the chain is circular.

    The chain is circular if an error is raised again while another error that it caused is being handled.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a lack of memory."""
    return any(
        isinstance(one, (MemoryError, DeviceError)) or "allocate memory" in str(one) or "out of memory" in str(one)
        for one in with_causes(error)
    )


def own_errors(failed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that any exception from another library is raised as a :class:`LiverXAIError`.

    A call with wrong arguments still raises TypeError, as for any function.

    :param failed: what failed, as the beginning of a sentence: "The CT cannot be analyzed".
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
