# SPDX-License-Identifier: Apache-2.0
"""Options with several values do not swallow the INPUT."""

from __future__ import annotations

import pytest

from LiverXAILib.arguments import Parser
from LiverXAILib.cli import _parser
from LiverXAILib.errors import UsageError
from LiverXAILib.options import Options, add_arguments


def parsed(words: list[str]) -> tuple[str, Options]:
    parser = Parser()
    parser.add_argument("input")
    add_arguments(parser)
    arguments = parser.parse_args(words)
    return arguments.input, Options.from_arguments(arguments)


@pytest.mark.parametrize("ct", ["CT", "ct.nii.gz", "missing.NII", "sub/folder", ".", "tumors.nrrd", "liver 2"])
def test_an_input_after_a_list_of_words_is_the_input(ct, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CT").mkdir()
    (tmp_path / "liver 2").mkdir()
    for words, explain, write in (
        (["--explain", "liver", ct], ("liver",), None),
        (["--explain", "liver", "lesion:1", ct], ("liver", "lesion:1"), None),
        (["--explain", ct], (), None),
        ([ct, "--explain"], (), None),
        ([ct, "--explain", "tumor", "--explain", "liver"], ("tumor", "liver"), None),
        (["--explain=point:1,2,3", ct], ("point:1,2,3",), None),
        (["--write", "seg", "dicom", ct, "--explain", "tumor"], ("tumor",), ("seg", "dicom")),
        (["--explain", "tumor", "--write", "scene", "--force", ct], ("tumor",), ("scene",)),
        ([ct], None, None),
    ):
        where, options = parsed(words)
        assert (where, options.explain, options.write) == (ct, explain, write)


def test_a_folder_named_like_a_target_is_a_target_after_explain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liver").mkdir()
    assert parsed(["--explain", "liver", "liver/"])[1].explain == ("liver",)
    assert parsed(["liver", "--explain", "liver"])[1].explain == ("liver",)


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("analyze --segmentation seg.nii CT", {"input": "CT", "segmentation": "seg.nii"}),
        ("analyze --segm liver.nii tumor.nii CT", {"input": "CT", "segmentation": "liver.nii tumor.nii"}),
        ("analyze --prior R1 R2 CT --quiet", {"input": "CT", "prior": "R1 R2"}),
        ("analyze --prior R --prior-image P CT", {"input": "CT", "prior": "R", "prior_image": "P"}),
        ("analyze --prior R CT --prior-image -", {"input": "CT", "prior": "R", "prior_image": "-"}),
        ("analyze --prior R CT --explain liver", {"input": "CT", "prior": "R", "explain": "liver"}),
        ("analyze --segmentation s.nii --liver-label 1 2 CT", {"input": "CT", "liver_label": "1 2"}),
        ("analyze -o out --segmentation s.nii --liver-label 1 2 -- CT", {"input": "CT", "liver_label": "1 2"}),
        ("analyze CT --segmentation a.nii b.nii", {"input": "CT", "segmentation": "a.nii b.nii"}),
        ("analyze --segmentation=a.nii CT", {"input": "CT", "segmentation": "a.nii"}),
        ("analyze --recist-targets 1 -o out CT", {"input": "CT", "recist_targets": "1"}),
        ("analyze --recist-targets 1 2 CT", {"input": "CT", "recist_targets": "1 2"}),
        ("refine --image CT --accept 1,2 3 R", {"result": "R", "accept": "[1, 2] [3]"}),
        ("refine --image CT --merge 1 2 R --split 4", {"result": "R", "merge": "[[1], [2]]", "split": "[4]"}),
        ("refine --image CT --targets 1 R", {"result": "R", "targets": "[1]"}),
        ("refine --image CT --explain liver R.1/x", {"result": "R.1/x", "explain": "liver"}),
        ("compare --days 0 -92.5 A B", {"studies": "A B", "days": "0.0 -92.5"}),
        ("compare --recist-targets 1 A B --images a -", {"studies": "A B", "images": "a -"}),
        ("batch --write seg tables list.csv", {"source": "list.csv", "write": "seg tables"}),
        ("batch --explain liver --input list.csv", {"source": "None", "input": "list.csv", "explain": "liver"}),
        ("evaluate --liver-label 1 2 P --reference R", {"prediction": "P", "liver_label": "1 2"}),
        ("evaluate --liver-label 1 2 --cases list.csv", {"prediction": "None", "liver_label": "1 2"}),
        ("train --cases 5 10 config.yaml", {"source": "config.yaml", "cases": "5 10"}),
        ("benchmark border --replacements blurred air CT", {"cases": "CT", "replacements": "blurred air"}),
        ("benchmark explain --output out --methods a b --points 3 CT", {"cases": "CT", "methods": "a b"}),
    ],
)
def test_an_input_after_any_option_with_several_values_is_the_input(words, expected, in_a_folder):
    words = words.split()
    if words[0] in ("analyze", "batch", "compare") and "-o" not in words:
        words += ["--output", "out"]
    parsed = _parser(words[0]).parse_args([word for word in words if word != "--quiet"])
    found = {name: getattr(parsed, name) for name in expected}
    shown = {name: " ".join(map(str, one)) if isinstance(one, list) else str(one) for name, one in found.items()}
    assert shown == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("analyze --prior R1 R2 --prior-image P1 CT", "INPUT is missing: write it before --prior or --prior-image"),
        ("compare --images a b A B", "STUDY is missing: write it before --images"),
        ("analyze --segmentation seg.nii", "the following arguments are required: INPUT"),
        ("refine --image CT --accept 1 2", "the following arguments are required: RESULT"),
        ("refine R --image CT --accept 1 two", "'two' is not a list of numbers"),
        ("analyze CT --liver-label one", "argument --liver-label: invalid int value: 'one'"),
        ("analyze CT --explain other.nii", "argument --explain: 'other.nii' is a file or folder"),
        ("compare A --days 0 92 B", "argument --days: invalid float value: 'B'"),
    ],
)
def test_words_whose_meaning_is_unclear_are_refused(words, says, in_a_folder, capsys):
    with pytest.raises((SystemExit, UsageError)) as stopped:
        _parser(words.split()[0]).parse_args([*words.split(), "--output", "out"])
    assert says in capsys.readouterr().err + str(stopped.value)


@pytest.mark.parametrize(
    "words",
    [
        ["analyze", "", "-o", "out"],
        ["analyze", "CT", "-o", ""],
        ["analyze", "-o", "out", "--prior", "R", ""],
        ["batch", "", "-o", "out"],
        ["batch", "CTS", "--output="],
        ["batch", "--input", "", "-o", "out"],
        ["refine", "", "--image", "CT"],
        ["refine", "R", "--image", ""],
        ["compare", "A", "", "-o", "out"],
        ["evaluate", "P", "--reference", ""],
    ],
)
def test_an_empty_path_is_never_the_current_folder(words, capsys):
    with pytest.raises(SystemExit):
        _parser(words[0]).parse_args(words)
    assert "a path is empty; write . for the current folder" in capsys.readouterr().err
