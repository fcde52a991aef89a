# SPDX-License-Identifier: Apache-2.0
"""Tables are read as saved by spreadsheets in any locale, and written so that no cell is run as a formula."""

from __future__ import annotations

import csv

import pytest

from LiverXAILib.batch.cases import find_cases
from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.evaluation.cases import read_cases
from LiverXAILib.tables import harmless_cell, read_table, write_table
from LiverXAILib.text import one_line

TEXT = "Case,Input File\nMüller,a b.nii\n\nÅse,\n"
ROWS = [(2, {"case": "Müller", "input_file": "a b.nii"}), (4, {"case": "Åse"})]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_every_encoding_and_delimiter_of_spreadsheets_is_read(tmp_path, encoding, delimiter, end):
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.replace(",", delimiter).replace("\n", end).encode(encoding))
    assert [(row.line, dict(row.cells)) for row in read_table(path)] == ROWS


def test_quotes_hints_and_cells_of_several_lines_are_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('sep=;\ncase;note\n"a;b";"two\nlines"\nc;d\n', encoding="utf-8")
    assert [(row.line, dict(row.cells)) for row in read_table(path)] == [
        (4, {"case": "a;b", "note": "two\nlines"}),
        (5, {"case": "c", "note": "d"}),
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.5", 1.5), ("1,5", 1.5), ("0,125", 0.125), ("-12,25", -12.25), ("1,2345", 1.2345), ("7", 7.0), ("1e-3", 1e-3)],
)
def test_a_decimal_comma_is_understood_where_it_can_only_be_one(tmp_path, text, number):
    path = tmp_path / "t.csv"
    path.write_text(f"value;x\n{text};1\n", encoding="utf-8")
    assert read_table(path)[0].number("value") == number


@pytest.mark.parametrize("text", ["1,234", "1.234,5", "1,2,3", "x", "nan", "inf", "0x10", "１"])
def test_what_could_be_two_numbers_or_none_is_refused_with_line_and_column(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(f"value;x\n{text};1\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"t\.csv, line 2, column 'value'"):
        read_table(path)[0].number("value")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no line with column names"),
        (b"\n\n", "no line with column names"),
        (b"a,a\n1,2\n", "line 1: there are two columns named 'a'"),
        (b"a,b\n1,2\n1,2,3\n", "line 3: .*more cells"),
        (b"a,,b\n1,2,3\n", "column 2"),
        (b'a,b\n"open,2\n', "line 2"),
        (b"\x89PNG\r\n\x00\x00\x00", "is not text"),
        (b"a,b\n\x81\x8d\x8f\n", "is not text"),
    ],
)
def test_what_is_not_a_table_is_refused_in_words(tmp_path, content, sentence):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        read_table(path)


def test_a_table_that_cannot_be_opened_is_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="There is no file or folder"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(tmp_path)


def test_all_lists_of_cases_are_read_by_the_same_function(tmp_path):
    text = "case;prediction;reference;input;min_lesion_ml\nMüller;p.nii;r.nii;ct.nii;0,5\n"
    (tmp_path / "t.csv").write_bytes(text.encode("cp1252"))
    (case,) = read_cases(tmp_path / "t.csv")
    assert (case.name, case.prediction) == ("Müller", tmp_path / "p.nii")
    (tmp_path / "b.csv").write_bytes("case;input;min_lesion_ml\nMüller;ct.nii;0,5\n".encode("utf-16"))
    (listed,) = find_cases(tmp_path / "b.csv").cases
    assert (listed.label, listed.options) == ("Müller", {"min_lesion_ml": 0.5})


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\t=1", "\\t=1"),
        ("-2.5", "-2.5"),
        ("+3e5", "+3e5"),
        ("a=b", "a=b"),
        (-2.5, -2.5),
        (None, None),
        ("two\nlines", "two\\nlines"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("abc\u202egnp", "abc\\u202egnp"),
    ],
)
def test_cells_are_text_and_numbers_and_nothing_that_runs(tmp_path, value, cell):
    assert harmless_cell(value) == cell
    write_table(tmp_path / "t.csv", ["a"], [{"a": value, "left out": 1}])
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "" if cell is None else str(cell)}] or cell is None


def test_lines_of_logs_cannot_be_forged():
    forged = "case 1\r\nINFO all is well\u2028\x1b]0;title\x07\u202e\u200b\x85end"
    told = one_line(forged)
    assert told.isprintable()
    assert len(told.splitlines()) == 1
    assert one_line("Müller 肝臓 (a–b) 1 µm") == "Müller 肝臓 (a–b) 1 µm"
