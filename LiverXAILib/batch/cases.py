# SPDX-License-Identifier: Apache-2.0
"""The cases of a batch: found in a folder or named in a list, each with a unique identity."""

from __future__ import annotations

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
from typing import Any, NamedTuple

from ..context import RunContext
from ..errors import UsageError
from ..files import require_exists, walk
from ..options import Options, option_in
from ..progress import Progress
from ..report.writers import PROVENANCE
from ..tables import read_table
from ..text import one_line
from ..volumes.formats import VOXEL_FILES, image_ending, is_segmentation, why_not_read, without_ending
from ..volumes.image_file import image_files, is_label_map
from ..volumes.stream import open_regular
from .names import passed_over_without_names, pseudonym, without_descriptions

#: Modalities of DICOM objects that are not images.
_NO_IMAGES = frozenset(
    ["SR", "PR", "KO", "SEG", "REG", "FID", "DOC", "ANN", "RWV", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "PLAN"]
)
#: A series with fewer slice positions is not a scan of the liver but bolus tracking, a biopsy check or the like.
_FEWEST_SLICES = 10
_LONGEST_NAME = 60
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One image to be analyzed.

    :param id: 16 hexadecimal digits derived from the image's path within INPUT and its series: the same in each run
        and on each machine.
    :param label: the name by which the user knows the case: its path within INPUT.
    :param name: the name in tables, logs and the manifest: the label, or a pseudonym.
    :param folder: name of the results folder: safe on every file system and unique; readable unless it is a pseudonym.
    :param path: the path passed to :func:`LiverXAILib.volumes.io.read_volume`.
    :param files: all files on which the image depends.
    :param options: the case's own options where they differ from those of the batch.
    """

    id: str
    label: str
    name: str
    folder: str
    path: Path
    series: str | None = None
    files: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The cases in INPUT, in a stable order, and what was skipped, with the reason.

    `root` is the folder that must remain available while the batch runs.
    """

    root: Path
    cases: tuple[Case, ...]
    passed_over: tuple[tuple[str, str], ...] = ()
    keep_names: bool = True

    @property
    def told(self) -> tuple[tuple[str, str], ...]:
        """What was skipped, in a form suitable for tables, logs and the manifest."""
        return (
            self.passed_over
            if self.keep_names
            else tuple(passed_over_without_names(label, reason) for label, reason in self.passed_over)
        )


def find_cases(
    source: Path,
    *,
    pattern: str | None = None,
    exclude: Sequence[Path] = (),
    keep_names: bool = False,
    progress: Progress | None = None,
) -> Found:
    """Find all cases in `source`.

    :param source: a folder (images and DICOM series at any depth), one image file, or a list (CSV or JSON).
    :param pattern: take only images whose path within `source` matches, e.g. "\\*/arterial/\\*.nii.gz".
    :param exclude: folders that are not searched, namely those of the results.
    :param keep_names: name cases by their paths, and DICOM series by their descriptions, which may name patients.
    :raises LiverXAILib.errors.InputError: `source` does not exist.
    :raises LiverXAILib.errors.UsageError: the list is invalid.
    """
    source = require_exists(source).absolute()
    if source.suffix.lower() in (".csv", ".tsv", ".json"):
        found = Found(source.parent, tuple(_listed(source, exclude, keep_names)))
    elif source.is_dir():
        found = _searched(source, exclude, keep_names, progress)
    else:
        from ..volumes.dicom import files_at

        case = _case(source.parent, source, keep_names=keep_names, files=files_at(source, exclude))
        found = Found(source.parent, (case,))
    if pattern is not None:
        fitting = tuple(case for case in found.cases if fnmatch(case.label, pattern))
        others = tuple((case.label, "does not match --pattern") for case in found.cases if case not in fitting)
        found = dataclasses.replace(found, cases=fitting, passed_over=found.passed_over + others)
    found = dataclasses.replace(found, keep_names=keep_names)
    _check_unique(found.cases)
    return found


# --- a folder -----------------------------------------------------------------------------------------------------


def _searched(root: Path, exclude: Sequence[Path], keep_names: bool, progress: Progress | None) -> Found:
    images: list[Path] = []
    others: list[Path] = []
    label_maps: list[Path] = []
    passed_over: list[tuple[str, str]] = []

    def note(path: Path, reason: str) -> None:
        passed_over.append((_label(root, path), reason))

    context = RunContext(progress)
    results: list[Path] = []
    for folder, names in walk(root, without=exclude, passed_over=note):
        if any(folder.is_relative_to(result) for result in results):
            continue
        if {PROVENANCE, "segmentation.seg.nrrd"} <= set(names):
            results.append(folder)
            note(folder, "results of LiverXAI")
            continue
        context.report(f"Searching {one_line(folder.name)}", 0.0)
        for name in names:
            path = folder / name
            if is_segmentation(path):
                note(path, "a segmentation")
            elif image_ending(path) and is_label_map(path):
                note(path, "a label map: its 8-bit voxels cannot hold a CT")
                label_maps.append(path)
            elif image_ending(path):
                images.append(path)
            else:
                others.append(path)
    cases = [_case(root, path, keep_names=keep_names, files=image_files(path)) for path in images]
    dicom, not_taken = _series(root, [path for path in others if path.is_file()], keep_names, progress)
    known = not_taken.known.union(*(case.files for case in cases), *map(image_files, label_maps))
    for path in others:
        if path not in known:
            note(path, _why_not_an_image(path))
    passed_over += not_taken.notes
    return Found(root, tuple(sorted(cases + dicom, key=lambda case: case.label)), tuple(passed_over))


class _NotTaken(NamedTuple):
    """Series and files that are not cases, with the reasons; and all files that were accounted for as DICOM."""

    notes: list[tuple[str, str]]
    known: set[Path]


def _series(
    root: Path, files: Sequence[Path], keep_names: bool, progress: Progress | None
) -> tuple[list[Case], _NotTaken]:
    """Return a case for each DICOM series that is a CT scan; the other series of its study are skipped.

    A scan that cannot be read is a case too, and fails with the reason. A study without any CT scan is represented by
    its largest series, so that no study is dropped silently.
    """
    from ..volumes.dicom import Series, find_series

    studies: dict[str, list[Series]] = {}
    found = find_series(files, RunContext(progress))
    notes = [(_label(root, path), reason) for path, reason in found.damaged]
    known = {path for path, _ in found.damaged}.union(*(series.files for series in found.series))

    def described(series: Series) -> tuple[str, str]:
        folder = _common_folder(series.files)
        where = folder.name if folder == root else _label(root, folder)
        name = series.info.name if keep_names else without_descriptions(series.info.name)
        return where, f"{where} [{name.removeprefix('DICOM ')}]"

    for series in found.series:
        if series.info.modality in _NO_IMAGES:
            notes.append((described(series)[1], f"{series.info.modality}: not an image"))
        else:
            studies.setdefault(series.study or str(_common_folder(series.files)), []).append(series)
    cases = []
    for study in studies.values():
        taken = [one for one in study if one.places >= _FEWEST_SLICES] or [max(study, key=lambda one: len(one.files))]
        for one in study:
            where, label = described(one)
            if one in taken:
                number = "" if one.info.series_number is None else f"_series_{one.info.series_number}"
                cases.append(
                    _case(
                        root,
                        _common_folder(one.files),
                        keep_names=keep_names,
                        series=one.info.lasting_key,
                        files=tuple(sorted(one.files)),
                        label=label,
                        name_hint=where + number,
                    )
                )
            else:
                notes.append((label, one.info.problem or f"only {one.places} slices"))
    return cases, _NotTaken(notes, known)


def _why_not_an_image(path: Path) -> str:
    """Why a file that is neither an image by its name nor part of a DICOM series is skipped."""
    if not path.is_file():
        return "not a regular file" if path.exists() else "a link to nothing"
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if size == 0:
        return "empty (0 bytes)"
    if path.name.lower().endswith(VOXEL_FILES):
        return "voxels with no header in the same folder"
    return why_not_read(path) or ("a DICOM index" if path.name.upper() == "DICOMDIR" else "not an image")


def _common_folder(files: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in files]))


# --- a list -------------------------------------------------------------------------------------------------------


def _listed(path: Path, exclude: Sequence[Path], keep_names: bool) -> Iterator[Case]:
    from ..volumes.dicom import files_at

    place = path.absolute().parent
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
    for where, row in rows:
        values = dict(row)
        texts = (values.pop(key, None) for key in ("case", "input", "series"))
        name, given, series = ("" if text is None else str(text) for text in texts)
        if not given:
            raise UsageError(f"{path.name}, {where}: 'input' is missing.")
        if series:
            values["series"] = series
        try:
            Options.from_mapping(values).require_valid()
        except UsageError as error:
            unknown = set(values) - {option.name for option in dataclasses.fields(Options)}
            hint = " Also allowed: input, case." if unknown else ""
            raise UsageError(f"{path.name}, {where}: {error}{hint}") from error
        image = place / given
        files = files_at(image, exclude)
        yield _case(place, image, keep_names=keep_names, series=series or None, files=files, options=values, name=name)


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"The list {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} is not JSON in UTF-8: {error}.") from error
    if not isinstance(data, list) or not all(isinstance(item, (str, dict)) for item in data):
        raise UsageError(f"{path.name} must be a list of paths or of objects with 'input'.")
    for number, item in enumerate(data, start=1):
        yield f"entry {number}", {"input": item} if isinstance(item, str) else item


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in read_table(path):
        yield f"line {row.line}", {name: option_in(row, name) for name in row.cells}


# --- identity -----------------------------------------------------------------------------------------------------


def _case(
    root: Path,
    path: Path,
    *,
    keep_names: bool,
    series: str | None = None,
    files: Sequence[Path] = (),
    options: Mapping[str, Any] | None = None,
    name: str = "",
    label: str = "",
    name_hint: str = "",
) -> Case:
    label = label or _label(root, path)
    # Unicode can encode the same characters in two ways; a copy on another system may use the other one.
    identity = unicodedata.normalize("NFC", "\0".join([_label(root, path), series or "", name]))
    case_id = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    own = {} if options is None else dict(options)
    if not name and not keep_names:
        hidden = pseudonym(case_id)
        return Case(case_id, label, hidden, hidden, path, series, tuple(files), own)
    readable = safe_name(name or name_hint or without_ending(label))
    folder = name if name and name == readable else f"{readable}-{case_id[:8]}"
    return Case(case_id, name or label, name or label, folder, path, series, tuple(files), own)


def _label(root: Path, path: Path) -> str:
    """The path relative to `root`, or the full path if it lies elsewhere, in the same form on every system."""
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
        # Some file systems do not distinguish "A" from "a".
        other = seen.setdefault(case.folder.casefold(), case)
        if other is not case:
            raise UsageError(
                f"{other.label!r} and {case.label!r} are the same case. Give each row its own 'case' name."
            )


# --- has it changed? ----------------------------------------------------------------------------------------------


def stamp(files: Sequence[Path]) -> str:
    """Hash the names, sizes and modification times of `files`; while it is the same, so are their contents.

    :raises OSError: a file does not exist.
    """
    statuses = [(path.name, path.stat()) for path in sorted(files)]
    facts = [[name, status.st_size, status.st_mtime_ns] for name, status in statuses]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def content_hash(files: Sequence[Path]) -> str:
    """SHA-256 of the names and contents of `files`, regardless of their folder.

    :raises OSError: a file cannot be read.
    :raises LiverXAILib.errors.InputError: it is a pipe or a device, which might never end.
    """
    parts = []
    for path in files:
        digest = hashlib.sha256()
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        parts.append(f"{digest.hexdigest()} {path.name}")
    return hashlib.sha256("\n".join(sorted(parts)).encode("utf-8", "surrogateescape")).hexdigest()
