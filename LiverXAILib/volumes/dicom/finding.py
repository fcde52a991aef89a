# SPDX-License-Identifier: Apache-2.0
"""All DICOM series among files, the best CT for finding a liver first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from ...errors import InputError
from ...progress import CancelToken, Progress, check_cancel, report_progress
from ..formats import image_ending
from .headers import HEADER_TAGS, is_dicom, pydicom_warnings_hidden, sop_class
from .series import Series, SeriesInfo, arrange_series, rank

_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"


def list_series(path: Path, *, progress: Progress | None = None, cancel: CancelToken | None = None) -> list[SeriesInfo]:
    """All series in a folder, at any depth, or in the folder of a file; the best CT first, as :func:`rank` says.

    :raises LiverXAILib.errors.InputError: there is no DICOM image.
    """
    return [series.info for series in series_at(path, None, progress, cancel)[0]]


def find_series(
    files: Sequence[Path], *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> list[Series]:
    """All series among `files`, with the files of each; the best CT first, as :func:`rank` says. May be empty."""
    return _series_among(files, progress, cancel)[0]


def series_at(
    path: Path, files: Sequence[Path] | None, progress: Progress | None, cancel: CancelToken | None
) -> tuple[list[Series], list[str]]:
    """All series in a folder, or in that of a file, or among `files`; numbered, the best first, and notes for the user.

    :raises LiverXAILib.errors.InputError: there is none.
    """
    if files is None:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
        elif path.name.upper() == "DICOMDIR":
            files = sorted(file for file in path.parent.rglob("*") if file.is_file())
        else:
            files = sorted(file for file in path.parent.iterdir() if file.is_file())
    found, notes = _series_among(files, progress, cancel)
    if not found:
        raise InputError(_nothing_found(path, files))
    return found, notes


def _series_among(
    files: Sequence[Path], progress: Progress | None, cancel: CancelToken | None
) -> tuple[list[Series], list[str]]:
    groups: dict[str, list[tuple[Path, Dataset]]] = {}
    unreadable = 0
    with pydicom_warnings_hidden():
        for done, file in enumerate(files):
            check_cancel(cancel)
            report_progress(progress, "Looking for DICOM series", done / len(files))
            if not is_dicom(file):
                continue
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=HEADER_TAGS)
                if sop_class(header) == _DIRECTORY_CLASS or not (sop_class(header) or header.get("Modality")):
                    continue
                if "SeriesInstanceUID" not in header and "Rows" not in header:
                    unreadable += 1
                    continue
                # Files without a UID belong together if they lie together.
                key = str(header.get("SeriesInstanceUID") or "") or f"without UID in {file.parent}"
                groups.setdefault(key, []).append((file, header))
            except Exception:  # pydicom raises nearly every kind; one damaged file must not hide the others
                unreadable += 1
        found = [arrange_series(members) for members in groups.values()]
    found.sort(key=lambda series: rank(series.info))
    found = [replace(one, info=replace(one.info, number=number)) for number, one in enumerate(found, start=1)]
    notes = [f"{unreadable} damaged DICOM files were passed over."] if unreadable else []
    return found, notes


def _nothing_found(path: Path, files: Sequence[Path]) -> str:
    other = [file.name for file in files if image_ending(file)]
    if other:
        return f"There are no DICOM images in {path}. To read {other[0]}, name the file itself."
    return f"There are no DICOM images in {path}."
