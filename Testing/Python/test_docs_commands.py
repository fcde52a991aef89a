# SPDX-License-Identifier: Apache-2.0
"""The command line accepts every ``liverxai`` command and option in the documentation; the scripts and modules that
readers are told to run exist, and so do the pictures, pages and headings to which pages link."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from LiverXAILib.cli import _ANYWHERE, _COMMANDS, _parser

ROOT = Path(__file__).parents[2]
#: How documents call the command line.
CALL = re.compile(r"(?:^|\s)(?:\S*/)?(?:liverxai|python -m LiverXAILib|-m LiverXAILib)\s+")
#: What stands for words that readers choose or that the shell fills in, and brackets around what is optional.
FILLED_IN, BRACKETS = re.compile(r"\$\w+|…"), re.compile(r"[\[\]]")
#: Options of pytest, which a page names.
OF_PYTEST = {"--durations"}
#: Where the other programs of this repository are.
PROGRAMS = ("recipes/**/*.py", "docs/*.py", "Testing/*.py", "Testing/fuzz/*.py", "LiverXAI/Scripts/*.py")


def pages() -> list[str]:
    """The pages of the documentation."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    return sorted(file.relative_to(ROOT).as_posix() for file in files if file.name != "CHANGELOG.md")


def parts(page: str) -> tuple[list[tuple[str, str]], str]:
    """The code blocks of a page, each with its language, and its text without them."""
    pieces = re.split(r"^ *```(.*)\n", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    # text, language, block, "" of the closing fence, text, language, …
    return list(zip(pieces[1::4], pieces[2::4], strict=True)), "\n".join(pieces[::4])


def commands_in_blocks(page: str) -> list[list[str]]:
    """The words of each complete command in the code blocks of a page, without the name of the program."""
    found = []
    for language, block in parts(page)[0]:
        if language not in ("", "sh", "bash", "text"):
            continue
        for line in re.split(r"\n|; ", block.replace("\\\n", " ")):
            if not line.startswith("#") and (call := CALL.search(line)):
                words = BRACKETS.sub("", FILLED_IN.sub("1", line[call.end() :]))
                found.append(shlex.split(words, comments=True))
    return found


def spans(page: str) -> list[str]:
    """What is marked as code within the sentences of a page."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", parts(page)[1])]


def commands_in_sentences(page: str) -> list[list[str]]:
    """The words of each command within sentences, which may give only a part of it."""
    return [shlex.split(span[call.end() :]) for span in spans(page) if (call := CALL.match(span))]


def parameters(kind: Callable[[str], list[list[str]]]) -> list[object]:
    """A parameter for each different command, named by its page."""
    found = {(page, tuple(words)) for page in pages() for words in kind(page) if words and words[0] in _COMMANDS}
    return [pytest.param(list(words), id=f"{page}: {' '.join(words)}") for page, words in sorted(found)]


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, or of the actions of a command such as ``models``."""
    return {name: one for action in parser._actions for name, one in named(action.choices).items()}


def named(choices: object) -> dict[str, argparse.ArgumentParser]:
    return choices if isinstance(choices, dict) else {}


def options_of(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """The options that a command takes; without words, those that any of its actions takes."""
    known = set(parser._option_string_actions) | set(_ANYWHERE)
    for name, one in subparsers(parser).items():
        if not words or name in words:
            known |= options_of(one, words[1:])
    return known


def unknown_options(words: list[str], known: set[str]) -> list[str]:
    return [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("words", parameters(commands_in_blocks))
def test_a_command_in_a_block_can_be_typed(words):
    _parser(words[0]).parse_args([word for word in words if word not in _ANYWHERE])


@pytest.mark.parametrize("words", parameters(commands_in_sentences))
def test_the_options_of_a_command_in_a_sentence_exist(words):
    assert unknown_options(words, options_of(_parser(words[0]), words)) == []


@pytest.mark.parametrize("page", pages())
def test_every_option_that_a_page_names_exists(page):
    known = OF_PYTEST.union(*(options_of(subparsers(_parser(name))[name], []) for name in _COMMANDS))
    sources = [file.read_text(encoding="utf-8") for pattern in PROGRAMS for file in ROOT.glob(pattern)]
    known |= set(re.findall(r'"(--[a-z-]+)"', "\n".join(sources)))
    named_ones = [span.split() for span in spans(page) if span.startswith("--")]
    assert [unknown for words in named_ones for unknown in unknown_options(words[:1], known)] == []


def test_commands_are_found_in_blocks_and_in_sentences():
    assert len(parameters(commands_in_blocks)) > 40
    assert len(parameters(commands_in_sentences)) > 20


@pytest.mark.parametrize("page", pages())
def test_every_script_and_module_that_a_page_runs_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    scripts = re.findall(r"python ((?:docs|Testing|recipes|\.ci)/[\w./-]+)", text)
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    modules = re.findall(r"python -m ((?:recipes|LiverXAILib)(?:\.\w+)*)", text)
    assert [module for module in modules if find_spec(module) is None] == []


def anchors(file: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", parts(file.relative_to(ROOT).as_posix())[1], re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", pages())
def test_what_a_page_links_to_exists(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", parts(page)[1]):
        name, _, anchor = link.partition("#")
        if link.startswith("https://") or name.startswith("reference/"):  # made when the site is built
            continue
        target = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
