# SPDX-License-Identifier: Apache-2.0
"""What is to be done: cases found in a folder or named in a list, and how each is told from all others."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..options import Options
from ..progress import Progress, report_progress
from ..volumes.formats import image_ending, is_segmentation, without_ending
from ..volumes.image_file import image_files

#: Modalities of DICOM objects that are not images.
_NO_IMAGES = frozenset(
    ["SR", "PR", "KO", "SEG", "REG", "FID", "DOC", "ANN", "RWV", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "PLAN"]
)
#: A series that shows fewer places is not a scan of a liver, but a bolus tracking, a biopsy check or the like.
_FEWEST_SLICES = 10
_LONGEST_NAME = 60
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One image to be analyzed.

    :param id: 16 hexadecimal digits made from where the image is within INPUT and its series: the same in each run and
        on each machine.
    :param label: what the user knows it by: its path within INPUT.
    :param folder: name of its folder of results: readable, safe on each file system, unique.
    :param path: what :func:`LiverXAILib.volumes.io.read_volume` gets.
    :param files: all files whose change would change the image.
    :param options: its own options where they differ from those of the batch.
    """

    id: str
    label: str
    folder: str
    path: Path
    series: str | None = None
    files: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The cases in INPUT, in a stable order, and what was passed over, with the reason.

    `root` is the folder that must be there as long as the batch runs.
    """

    root: Path
    cases: tuple[Case, ...]
    passed_over: tuple[tuple[str, str], ...] = ()


def find_cases(
    source: Path,
    *,
    pattern: str | None = None,
    exclude: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """All cases in `source`.

    :param source: a folder (images and DICOM series at any depth), one image file, or a list (CSV or JSON).
    :param pattern: take only images whose path within `source` matches, e.g. "\\*/arterial/\\*.nii.gz".
    :param exclude: a folder that is not searched: that of the results.
    :raises LiverXAILib.errors.UsageError: `source` does not exist, or the list is wrong.
    """
    source = source.absolute()
    if not source.exists():
        raise UsageError(f"There is no file or folder {source}.")
    if source.suffix.lower() in (".csv", ".tsv", ".json"):
        found = Found(source.parent, tuple(_listed(source)))
    elif source.is_dir():
        found = _searched(source, exclude, progress)
    else:
        found = Found(source.parent, (_case(source.parent, source, files=image_files(source)),))
    if pattern is not None:
        found = dataclasses.replace(found, cases=tuple(case for case in found.cases if fnmatch(case.label, pattern)))
    _check_unique(found.cases)
    return found


# --- a folder -----------------------------------------------------------------------------------------------------


def _searched(root: Path, exclude: Path | None, progress: Progress | None) -> Found:
    images: list[Path] = []
    others: list[Path] = []
    passed_over: list[tuple[str, str]] = []
    for folder, names in _walk(root, exclude, passed_over):
        report_progress(progress, f"Searching {folder.name}", 0.0)
        for name in names:
            path = folder / name
            if is_segmentation(path):
                passed_over.append((_label(root, path), "a segmentation"))
            elif image_ending(path):
                images.append(path)
            else:
                others.append(path)
    cases = [_case(root, path, files=image_files(path)) for path in images]
    dicom, not_taken = _series(root, [path for path in others if path.is_file()], progress)
    return Found(root, tuple(sorted(cases + dicom, key=lambda case: case.label)), tuple(passed_over + not_taken))


def _series(root: Path, files: Sequence[Path], progress: Progress | None) -> tuple[list[Case], list[tuple[str, str]]]:
    """A case for each DICOM series that is a CT scan; the other series of its study are passed over.

    A scan that cannot be read is a case too, and fails with the reason. So is a study without any CT scan: its largest
    series stands for it, so that no study is lost without a word.
    """
    from ..volumes.dicom import Series, find_series

    studies: dict[str, list[Series]] = {}
    found = find_series(files, progress=progress)
    for series in found.series:
        if series.info.modality not in _NO_IMAGES:
            studies.setdefault(series.study or str(_common_folder(series.files)), []).append(series)
    cases, passed_over = [], [(_label(root, path), reason) for path, reason in found.damaged]
    for study in studies.values():
        taken = [one for one in study if one.places >= _FEWEST_SLICES] or [max(study, key=lambda one: len(one.files))]
        for one in study:
            folder = _common_folder(one.files)
            where = folder.name if folder == root else _label(root, folder)
            label = f"{where} [{one.info.name.removeprefix('DICOM ')}]"
            if one in taken:
                number = "" if one.info.series_number is None else f"_series_{one.info.series_number}"
                files_of = tuple(sorted(one.files))
                cases.append(
                    _case(
                        root, folder, series=one.info.lasting_key, files=files_of, label=label, name_hint=where + number
                    )
                )
            else:
                passed_over.append((label, one.info.problem or f"only {one.places} slices"))
    return cases, passed_over


def _common_folder(files: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in files]))


def _walk(root: Path, exclude: Path | None, problems: list[tuple[str, str]]) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of what is in them that is not a folder; links are followed, but not in circles.

    Anything hidden is passed over (as are the ``._*`` files that macOS strews). A name is listed even if it cannot be
    opened (a broken link, a pipe): as a case it will fail with a reason, and not be lost.
    """

    def note(error: OSError) -> None:
        problems.append((_label(root, Path(error.filename)), f"cannot be searched: {error.strerror}"))

    seen = {_inode(exclude)} if exclude is not None and exclude.exists() else set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=note):
        path = Path(folder)
        if _inode(path) in seen:
            folders.clear()
            continue
        seen.add(_inode(path))
        if {"provenance.json", "segmentation.seg.nrrd"} <= set(names):
            problems.append((_label(root, path), "results of LiverXAI"))
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield path, sorted(name for name in names if not name.startswith("."))


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


# --- a list -------------------------------------------------------------------------------------------------------


def _listed(path: Path) -> Iterator[Case]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The list {path} cannot be read: {error}. Save it as UTF-8.") from error
    rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(text)
    for where, row in rows:
        values = dict(row)
        name = str(values.pop("case", "") or "")
        given = values.pop("input", None)
        if not given:
            raise UsageError(f"{path.name}, {where}: there is no 'input'.")
        try:
            Options.from_mapping(values)
        except UsageError as error:
            raise UsageError(f"{path.name}, {where}: {error} Besides: input, case.") from error
        image = path.absolute().parent / str(given)
        series = None if values.get("series") is None else str(values["series"])
        files = tuple(sorted(p for p in image.rglob("*") if p.is_file())) if image.is_dir() else image_files(image)
        yield _case(path.absolute().parent, image, series=series, files=files, options=values, name=name)


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path.name} is not JSON: {error}.") from error
    if not isinstance(data, list) or not all(isinstance(item, (str, dict)) for item in data):
        raise UsageError(f"{path.name} must be a list of paths or of objects with 'input'.")
    for number, item in enumerate(data, start=1):
        yield f"entry {number}", {"input": item} if isinstance(item, str) else item


def _csv_rows(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    types = {option.name: str(option.type) for option in dataclasses.fields(Options)}
    for row in reader:
        where = f"line {reader.line_num}"
        values: dict[str, Any] = {}
        for column, cell in row.items():
            if column is None or not isinstance(cell or "", str):
                raise UsageError(f"{where}: there are more cells than columns.")
            if (cell or "").strip():
                name = column.strip().lower().replace("-", "_")
                values[name] = _cell(cell.strip(), types.get(name, ""), f"{where}, {name}")
        yield where, values


def _cell(text: str, kind: str, where: str) -> Any:
    if kind == "bool":
        if text.lower() in ("1", "yes", "true", "x"):
            return True
        if text.lower() in ("0", "no", "false"):
            return False
        raise UsageError(f"{where}: {text!r} must be yes or no.")
    if kind.startswith("float"):
        try:
            return float(text)
        except ValueError as error:
            raise UsageError(f"{where}: {text!r} must be a number.") from error
    return text.split() if kind.startswith("tuple") else text


# --- identity -----------------------------------------------------------------------------------------------------


def _case(
    root: Path,
    path: Path,
    *,
    series: str | None = None,
    files: Sequence[Path] = (),
    options: Mapping[str, Any] | None = None,
    name: str = "",
    label: str = "",
    name_hint: str = "",
) -> Case:
    label = label or _label(root, path)
    # The same characters can be encoded in two ways; a copy on another system may have the other one.
    identity = unicodedata.normalize("NFC", "\0".join([_label(root, path), series or "", name]))
    case_id = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    readable = safe_name(name or name_hint or without_ending(label))
    folder = name if name and name == readable else f"{readable}-{case_id[:8]}"
    own = {} if options is None else dict(options)
    return Case(case_id, name or label, folder, path, series, tuple(files), own)


def _label(root: Path, path: Path) -> str:
    """The path within `root`, or the whole path if it lies elsewhere, in the same way on each system."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def safe_name(text: str) -> str:
    """`text` as the name of a folder on any file system: ASCII letters, digits, "-", "_" and inner "."."""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss")).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9.-]+", "_", plain)[-_LONGEST_NAME:].strip("._-")
    return f"case_{safe}" if not safe or _RESERVED.fullmatch(safe) else safe


def _check_unique(cases: Sequence[Case]) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` if two cases would share a folder of results."""
    seen: dict[str, Case] = {}
    for case in cases:
        # Some file systems do not tell "A" from "a".
        other = seen.setdefault(case.folder.casefold(), case)
        if other is not case:
            raise UsageError(
                f"{other.label!r} and {case.label!r} are the same case. Give each row its own 'case' name."
            )


# --- has it changed? ----------------------------------------------------------------------------------------------


def stamp(files: Sequence[Path]) -> str:
    """Names, sizes and times of `files` in one number: if it is the same, so is what is in them.

    :raises OSError: a file is not there.
    """
    facts = []
    for path in sorted(files):
        status = path.stat()
        facts.append([path.name, status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def content_hash(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents of `files`; the folder in which they lie does not matter.

    :raises OSError: a file cannot be read.
    """
    parts = []
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        parts.append(f"{digest.hexdigest()} {path.name}")
    return hashlib.sha256("\n".join(sorted(parts)).encode("utf-8", "surrogateescape")).hexdigest()
