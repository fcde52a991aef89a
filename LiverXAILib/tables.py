# SPDX-License-Identifier: Apache-2.0
"""Reading tables written by people and spreadsheets, and writing tables that are safe to open in spreadsheets."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError
from .files import replacing, require_exists
from .text import one_line

#: UTF-32 first, because its byte order mark starts with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DELIMITERS = ",;\t"
#: A spreadsheet treats a cell that begins like this as a formula.
_FORMULA = re.compile(r"^\s*[=+\-@]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
#: Three digits after a comma are excluded, because the comma could also be a thousands separator.
_DECIMAL_COMMA = re.compile(r"[+-]?(0?,\d+|\d+,(\d{1,2}|\d{4,}))")


@dataclass(frozen=True)
class TableRow:
    """A row: its nonempty cells by column name, and its file and line for messages."""

    path: Path
    line: int
    cells: Mapping[str, str]

    def error(self, what: str, column: str = "") -> UsageError:
        """An error that names the file, the line and, if given, the column."""
        where = f", column {column!r}" if column else ""
        return UsageError(f"{self.path.name}, line {self.line}{where}: {what}")

    def number(self, column: str) -> float:
        """The number in a column; the decimal sign may be a comma.

        :raises LiverXAILib.errors.UsageError: it is not a number, or is ambiguous.
        """
        text = self.cells[column]
        if _DECIMAL_COMMA.fullmatch(text):
            text = text.replace(",", ".")
        elif not _NUMBER.fullmatch(text):
            raise self.error(f"{text!r} is not a number, or is ambiguous: write it with a decimal point.", column)
        return float(text)

    def path_in(self, column: str) -> Path | None:
        """The path in a column, relative to the folder of the table; None if the cell is empty."""
        return self.path.parent / self.cells[column] if column in self.cells else None


def read_table(path: Path) -> list[TableRow]:
    """Read the rows of a table whose first line holds the column names.

    The encoding is UTF-8, UTF-16 or Windows-1252, with or without a byte order mark; cells are separated by commas,
    semicolons or tabs. Column names are converted to lower case, with "_" for spaces and "-". Empty rows are omitted.

    :raises LiverXAILib.errors.InputError: there is no such file.
    :raises LiverXAILib.errors.UsageError: it is not a valid table; the message says where.
    """
    text = _decoded(path)
    first, _, rest = text.partition("\n")
    hint = re.fullmatch(r"sep=(.)", first.strip())
    start = 1 if hint else 0
    if hint:  # a line "sep=;" tells a spreadsheet which character separates cells
        text, first = rest, rest.partition("\n")[0]
    delimiter = hint[1] if hint else max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower().replace("-", "_").replace(" ", "_") for name in next(reader, [])]
        if not any(names):
            raise UsageError(f"{path.name} has no line with column names.")
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise UsageError(f"{path.name}, line {start + 1}: there are two columns named {twice!r}.")
        rows = [_row(path, start + reader.line_num, names, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise UsageError(f"{path.name}, line {start + reader.line_num}: {error}.") from error
    return [row for row in rows if row.cells]


def _row(path: Path, line: int, names: Sequence[str], cells: Sequence[str]) -> TableRow:
    row = TableRow(path, line, {name: cell for name, cell in zip(names, cells, strict=False) if name and cell})
    for number, cell in enumerate(cells):
        if cell and (number >= len(names) or not names[number]):
            raise row.error(
                f"{cell!r} is in column {number + 1}, which has no name: there are more cells than column names."
            )
    return row


def _decoded(path: Path) -> str:
    require_exists(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The table {path} cannot be read: {error.strerror or error}.") from error
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:2000]:
        # UTF-16 without a byte order mark: every second byte of Latin letters is zero.
        encoding = "utf-16-le" if data[1:2000:2].count(0) > data[0:2000:2].count(0) else "utf-16-be"
    for name in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            text = data.decode(name)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UsageError(f"The table {path.name} is not text. Save it as CSV in UTF-8.")


def write_table(
    path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, mark: bool = False
) -> None:
    """Atomically write a table (UTF-8, comma-separated) in which no spreadsheet finds a formula.

    Keys that are not columns are ignored. `mark` writes a byte order mark, by which spreadsheets recognize UTF-8.
    Raises OSError if the table cannot be written.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        file.write("\ufeff" if mark else "")
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({key: harmless_cell(value) for key, value in row.items()} for row in rows)


def harmless_cell(value: Any) -> Any:
    """Make a value safe for a table: prefix formulas with "'" and escape control characters."""
    if not isinstance(value, str):
        return value
    value = one_line(value)
    return f"'{value}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value
