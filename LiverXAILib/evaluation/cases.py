# SPDX-License-Identifier: Apache-2.0
"""Pairs of files to be compared, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError, UsageError
from ..labels.label_map import LabelMap, Values, aligned, read_label_map, read_mask
from ..labels.vocabulary import STRUCTURES
from ..tables import read_table
from ..volumes.formats import image_ending, without_ending
from ..volumes.volume import Volume

#: Name of the segmentation file that ``analyze`` writes.
SEGMENTATION_FILE = "segmentation.seg.nrrd"
_ADVICE = "Specify the values with --{0}liver-label and --{0}tumor-label, or ignore others with --ignore-other-labels."


@dataclass(frozen=True)
class Case:
    """Files of one case: a prediction, and, as the reference, a label map or a liver mask with or without a tumor mask.

    :param probabilities: of "liver" (tumors included) and "tumor", if calibration is to be evaluated.
    """

    name: str
    prediction: Path
    reference: Path | None = None
    liver: Path | None = None
    tumor: Path | None = None
    probabilities: Mapping[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Everything that is read for this case."""
        paths = (self.prediction, self.reference, self.liver, self.tumor, *self.probabilities.values())
        return [path for path in paths if path is not None]


def read_prediction(path: Path, values: Values | None = None, *, others: bool = False) -> LabelMap:
    """Read a prediction. `path` is a segmentation file or a folder written by ``analyze``.

    :param values, others: see :func:`LiverXAILib.labels.label_map.read_label_map`.
    """
    if path.is_dir():
        path = path / SEGMENTATION_FILE
    return read_label_map(path, values, others=others, advice=_ADVICE.format("predicted-"))


def read_reference(case: Case, values: Values | None = None, *, others: bool = False) -> LabelMap:
    """Read the reference of a case, from one file or from separate files of liver and tumor."""
    if case.reference is not None:
        return read_label_map(case.reference, values, others=others, advice=_ADVICE.format(""))
    if case.liver is None:
        raise UsageError(f"Case {case.name!r} has no reference.")
    liver = read_mask(case.liver, "liver")
    if case.tumor is None:
        return LabelMap(liver, ("liver",))
    array = liver.array.copy()
    array[aligned(read_mask(case.tumor, "tumor"), liver.grid, "tumor's file", "liver's") != 0] = STRUCTURES["tumor"]
    return LabelMap(liver.with_array(array), tuple(STRUCTURES))


def read_probabilities(case: Case) -> dict[str, Volume]:
    """Read the probabilities of a case, by structure; values outside 0 to 1 are an error."""
    from ..volumes.io import read_volume

    volumes = {name: read_volume(path, force=True) for name, path in case.probabilities.items()}
    for name, volume in volumes.items():
        if volume.array.min() < 0 or volume.array.max() > 1:
            raise InputError(f"{case.probabilities[name]} holds values outside 0 to 1: these are not probabilities.")
    return volumes


def pair_folders(predictions: Path, references: Path) -> list[Case]:
    """Cases of two folders, paired by name.

    A prediction is a file, or a folder written by ``analyze``; a reference is a file, or a folder that contains
    ``liver`` and perhaps ``tumor``. The name is that of the folder, or of the file without its extension.

    :raises LiverXAILib.errors.UsageError: the folders have no name in common, or predictions are missing.
    """
    found = predictions_in(predictions)
    wanted = by_name(
        (case_name(path), path) for path in _entries(references) if path.is_file() or _file_called(path, "liver")
    )
    cases, missing = [], []
    for name, path in wanted.items():
        liver, tumor = (_file_called(path, part) for part in ("liver", "tumor"))
        if name not in found:
            missing.append(name)
        elif path.is_dir():
            cases.append(Case(name, found[name], liver=liver, tumor=tumor))
        else:
            cases.append(Case(name, found[name], reference=path))
    if missing or not cases:
        what = f"No prediction for {', '.join(missing)}" if missing else "No case"
        raise UsageError(f"{what} was found in {predictions}: files are paired by name with those in {references}.")
    return cases


def predictions_in(folder: Path) -> dict[str, Path]:
    """Files, and folders written by ``analyze``, in a folder of predictions, by the names of their cases."""
    entries = _entries(folder)
    return by_name((case_name(p), p) for p in entries if p.is_file() or (p / SEGMENTATION_FILE).is_file())


def read_cases(path: Path) -> list[Case]:
    """Cases from a table with the columns case, prediction, and reference or liver and tumor.

    The columns liver_probability and tumor_probability are for calibration. Relative paths start at the table's folder;
    a column may be missing or a cell empty. For the format, see :func:`read_table`.

    :raises LiverXAILib.errors.UsageError: it is not such a table, or two cases have the same name.
    """
    cases = []
    for row in read_table(path):
        prediction = row.path_in("prediction")
        if prediction is None or not row.cells.keys() & {"reference", "liver"}:
            raise row.error("a case needs a prediction, and a reference or a liver.")
        name = row.cells.get("case") or case_name(prediction)
        probabilities = {structure: row.path_in(f"{structure}_probability") for structure in STRUCTURES}
        found = {structure: file for structure, file in probabilities.items() if file is not None}
        reference, liver, tumor = (row.path_in(column) for column in ("reference", "liver", "tumor"))
        cases.append(Case(name, prediction, reference, liver, tumor, found))
    if not cases:
        raise UsageError(f"{path} lists no cases.")
    by_name((case.name, case.prediction) for case in cases)
    return cases


def by_name(items: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files by the names of their cases.

    :raises LiverXAILib.errors.UsageError: two cases have the same name; the message says where they are.
    """
    found: dict[str, Path] = {}
    for name, path in items:
        if name in found:
            raise UsageError(f"There are two cases {name!r}: {found[name]} and {path}. Rename one, or leave it out.")
        found[name] = path
    return found


def case_name(path: Path) -> str:
    """The name of a path as it is given, without the extension of an image; a link is not followed."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 (Path.absolute keeps "..", Path.resolve follows links)
    return path.name if path.is_dir() else without_ending(path.name)


def _entries(folder: Path) -> list[Path]:
    """Folders, and files with the extension of an image, sorted, without hidden ones."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder, although a folder of references was given.")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in entries if path.is_dir() or image_ending(path)]


def _file_called(folder: Path, name: str) -> Path | None:
    if not folder.is_dir():
        return None
    images = sorted(path for path in folder.iterdir() if image_ending(path) and path.is_file())
    return next((path for path in images if without_ending(path.name).lower() == name), None)
