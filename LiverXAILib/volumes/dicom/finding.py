# SPDX-License-Identifier: Apache-2.0
"""All DICOM series among files, the best CT for finding a liver first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...context import UNATTENDED, RunContext
from ...errors import InputError
from ..formats import image_ending
from ..image_file import existing, image_files
from .headers import DicomFile, is_dicom, read_header
from .series import Series, SeriesInfo, arrange_series, rank

#: Endings of DICOM files that have one: such a file is damaged if it does not start like DICOM.
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
#: How many damaged files a message names.
_NAMED = 3


@dataclass(frozen=True)
class FoundSeries:
    """The series among files, numbered from the best; and the files that were skipped, each with the reason."""

    series: tuple[Series, ...]
    damaged: tuple[tuple[Path, str], ...] = ()

    def notes(self) -> list[str]:
        """Warnings for the user about damaged files."""
        return [damage_note(self.damaged)] if self.damaged else []


def damage_note(damaged: Sequence[tuple[Path, str]]) -> str:
    """A sentence that names damaged files and says what is wrong with them."""
    named = "; ".join(f"{path.name}: {reason}" for path, reason in damaged[:_NAMED])
    more = f"; and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    if len(damaged) == 1:
        return f"1 damaged DICOM file was skipped ({named})."
    return f"{len(damaged)} damaged DICOM files were skipped ({named}{more})."


def list_series(path: Path, context: RunContext) -> list[SeriesInfo]:
    """All series in a folder, at any depth, or in the folder of a file; the best CT first, by :func:`rank`.

    :raises LiverXAILib.errors.InputError: there is no DICOM image.
    """
    return [series.info for series in series_at(path, None, context).series]


def find_series(files: Sequence[Path], context: RunContext = UNATTENDED) -> FoundSeries:
    """All series among `files`, with the files of each; the best CT first, by :func:`rank`. May be empty."""
    groups: dict[str, list[DicomFile]] = {}
    damaged: list[tuple[Path, str]] = []
    for done, path in enumerate(files):
        context.check()
        context.report("Looking for DICOM series", done / len(files))
        if not is_dicom(path):
            if path.name.lower().endswith(_DICOM_ENDINGS):
                damaged.append((path, "it is empty" if path.stat().st_size == 0 else "it does not start like DICOM"))
            continue
        try:
            file = read_header(path)
        except InputError as error:
            damaged.append((path, str(error)))
            continue
        if file is not None:
            # Files without a UID belong together if they are in the same folder.
            groups.setdefault(file.series or f"without UID in {path.parent}", []).append(file)
    parts = sorted((arrange_series(members) for members in groups.values()), key=lambda parts: rank(parts[0].info))
    return FoundSeries(
        tuple(
            replace(one, info=replace(one.info, number=number))
            for number, series in enumerate(parts, start=1)
            for one in series
        ),
        tuple(damaged),
    )


def files_at(path: Path, without: Sequence[Path] = ()) -> tuple[Path, ...]:
    """All files that decide what is read at `path`, in any format; for a DICOM file those of its series are among them.

    Other DICOM files beside it are included, because only their headers tell whether they belong to the series.

    :param without: folders below it that are left out, such as those of results that are written there.
    """
    if not path.is_dir() and not (path.is_file() and image_ending(existing(path)) is None and is_dicom(path)):
        return image_files(path)
    place = path if path.is_dir() else path.parent
    root = place.resolve()
    # In terms of `place`, because the files are not resolved.
    left_out = [place / one.resolve().relative_to(root) for one in without if root in one.resolve().parents]
    files = [file for file in _searched(path) if not any(file.is_relative_to(folder) for folder in left_out)]
    dicom = [file for file in files if file.name.lower().endswith(_DICOM_ENDINGS) or is_dicom(file)]
    return tuple(dicom or files)


def series_at(path: Path, files: Sequence[Path] | None, context: RunContext) -> FoundSeries:
    """All series in a folder, or in that of a file, or among `files`.

    :raises LiverXAILib.errors.InputError: there is none.
    """
    files = _searched(path) if files is None else files
    found = find_series(files, context)
    if not found.series:
        raise InputError(" ".join([_nothing_found(path, files), *found.notes()]))
    return found


def _searched(path: Path) -> list[Path]:
    """The files among which the series at a path are looked for."""
    if path.is_dir():
        candidates = path.rglob("*")
    elif path.name.upper() == "DICOMDIR":
        candidates = path.parent.rglob("*")
    else:
        candidates = path.parent.iterdir()
    return sorted(file for file in candidates if file.is_file())


def _nothing_found(path: Path, files: Sequence[Path]) -> str:
    other = [file.name for file in files if image_ending(file)]
    if other:
        return f"There are no DICOM images in {path}. To read {other[0]}, name the file itself."
    return f"There are no DICOM images in {path}."
