# SPDX-License-Identifier: Apache-2.0
"""A parser of command lines in which an INPUT may follow an option with several values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import LiverXAIError

_NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """Gives the INPUT to a command, not to an option with several values that it follows: ``--explain liver CT``.

    Such an option ends before the first word that its `type` refuses. If it takes any word, as a list of files does,
    its last one is the INPUT. This happens only where the INPUT would be missing otherwise.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, path_of)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse `args`, as :class:`argparse.ArgumentParser` does, with the INPUT behind a "--" at their end."""
        return super().parse_known_args(None if args is None else self._separated(list(args)), namespace)

    def _separated(self, words: list[str]) -> list[str]:
        inputs = [action for action in self._actions if not action.option_strings]
        options = self._options(words)
        if options is None or len(inputs) != 1 or inputs[0].nargs == argparse.PARSER:
            return words
        spare = [_first_refused(one) for one in options]
        if inputs[0].nargs in (None, "+") and not any(spare):
            spare = self._last_words(options, inputs[0])
        kept: list[str] = []
        moved: list[str] = []
        for one, count in zip(options, spare, strict=True):
            kept += [one.word, *one.values[: len(one.values) - count]]
            moved += one.values[len(one.values) - count :]
        return [*kept, "--", *moved] if moved else words

    def _last_words(self, options: Sequence[_Option], needed: argparse.Action) -> list[int]:
        """1 for the option whose last value is the INPUT, 0 for the others."""
        long = [one for one in options if one.takes_any_word and len(one.values) > 1]
        if long and (len(long) > 1 or needed.nargs is not None):
            names = " or ".join(one.word for one in long)
            self.error(f"{needed.metavar} is missing: write it before {names}, which takes all the words after it")
        return [int(one in long) for one in options]

    def _options(self, words: Sequence[str]) -> list[_Option] | None:
        """The options in `words` with the values that they would take; None if words remain that are no values."""
        found: list[_Option] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--" or not _is_option(word):
                return None
            action = self._named(word)
            values: list[str] = []
            while rest and not _is_option(rest[0]) and len(values) < _most_values(action):
                values.append(rest.pop(0))
            found.append(_Option(word, action, values))
        return found

    def _named(self, word: str) -> argparse.Action | None:
        """The option that `word` names, perhaps abbreviated; None if it has its value in it, or is not known."""
        if word in self._option_string_actions:
            return self._option_string_actions[word]
        meant = {id(action): action for name, action in self._option_string_actions.items() if name.startswith(word)}
        return next(iter(meant.values())) if word.startswith("--") and len(meant) == 1 else None


def path_of(text: str) -> Path:
    """A path from the command line; an empty one, as from an unset shell variable, is not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("a path is empty; write . for the current folder")
    return Path(text)


class _Option(NamedTuple):
    """An option as it was written, and its values."""

    word: str
    action: argparse.Action | None
    values: list[str]

    @property
    def several(self) -> bool:
        return self.action is not None and self.action.nargs in ("+", "*")

    @property
    def takes_any_word(self) -> bool:
        action = self.action
        return self.several and action is not None and action.type in (None, Path) and action.choices is None


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and not _NEGATIVE_NUMBER.fullmatch(word)


def _most_values(action: argparse.Action | None) -> float:
    if action is None:
        return 0
    if action.nargs is None or action.nargs == "?":
        return 1
    return action.nargs if isinstance(action.nargs, int) else float("inf")


def _first_refused(option: _Option) -> int:
    """How many of an option's values follow from the first one on that it refuses."""
    if option.action is None or not option.several:
        return 0
    return next((len(option.values) - n for n, value in enumerate(option.values) if _refuses(option.action, value)), 0)


def _refuses(action: argparse.Action, value: str) -> bool:
    try:
        converted = action.type(value) if callable(action.type) else value
    except (ValueError, TypeError, argparse.ArgumentTypeError, LiverXAIError):
        return True
    return action.choices is not None and converted not in action.choices
