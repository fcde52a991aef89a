# SPDX-License-Identifier: Apache-2.0
"""Display of text from other sources."""

from __future__ import annotations

import pytest

from LiverXAILib.errors import InputError, LiverXAIError
from LiverXAILib.text import counted, displayable


@pytest.mark.parametrize("char", ["\x1b", "\x07", "\r", "\x00", "\x9b", "\u202e", "\u2066", "\u200f", "\ud800"])
def test_what_controls_a_terminal_is_replaced(char):
    assert displayable(f"a{char}b") == "a\ufffdb"
    assert str(InputError(f"The series {char}[2J is empty.")) == "The series \ufffd[2J is empty."


def test_a_message_with_an_endless_name_keeps_its_beginning_and_its_end():
    message = str(InputError(f"The series {'A' * 100_000} is empty."))
    assert len(message) < 2100
    assert message.startswith("The series AAA")
    assert message.endswith("AAA is empty.")


@pytest.mark.parametrize("text", ["Größe ÄÖÜ", "肝臓", "two\nlines\tand a tab", "", "ñ é"])
def test_words_in_any_language_stay(text):
    assert displayable(text) == text
    assert str(LiverXAIError(text)) == text


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("lesion",), "0 lesions"),
        (1, ("lesion",), "1 lesion"),
        (2, ("lesion",), "2 lesions"),
        (1, ("series", "series"), "1 series"),
        (2, ("file or series", "files or series"), "2 files or series"),
    ],
)
def test_a_number_and_its_noun_agree(number, words, text):
    assert counted(number, *words) == text
