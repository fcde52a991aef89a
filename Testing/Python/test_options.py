# SPDX-License-Identifier: Apache-2.0
"""Options with several values do not swallow the INPUT."""

from __future__ import annotations

import argparse

import pytest

from LiverXAILib.options import Options, add_arguments, separate_lists


def parsed(words: list[str]) -> tuple[str, Options]:
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    add_arguments(parser)
    arguments = parser.parse_args(separate_lists(words))
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
