# SPDX-License-Identifier: Apache-2.0
"""Layouts of training data in hospitals and challenges: where images and labels are, and how to read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..context import RunContext
from ..errors import InputError, UsageError
from ..evaluation.cases import by_name, case_name
from ..files import walk
from ..inference.geometry import AIR_HU
from ..labels.label_map import (
    aligned,
    dataset_labels,
    described_structures,
    read_label_map,
    read_mask,
    values_of_names,
)
from ..labels.vocabulary import STRUCTURES, structure_of
from ..phantoms import make_phantom, write_phantom
from ..progress import Progress
from ..tables import read_table
from ..volumes.dicom_seg import Segment, find_segs, read_segment_masks, read_segments
from ..volumes.formats import image_ending
from ..volumes.io import read_volume
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume
from .config import Data, Labels

_ADVICE = "State its meaning in data.labels, or treat it as background with 'others: background' there."


@dataclass(frozen=True)
class Values:
    """The values in label maps.

    :param liver: values of liver tissue; tumors always belong to the liver.
    :param tumor: values of tumors; None: tumors are not labeled.
    :param others: whether other values are allowed, as background.
    :param assumed: these values are only a default: what a file declares takes precedence.
    """

    liver: tuple[int, ...] = (STRUCTURES["liver"],)
    tumor: tuple[int, ...] | None = (STRUCTURES["tumor"],)
    others: bool = False
    assumed: bool = False

    def mapping(self) -> dict[str, tuple[int, ...]] | None:
        """The values as :func:`LiverXAILib.labels.label_map.read_label_map` takes them."""
        if self.assumed:
            return None
        return {"liver": self.liver, **({} if self.tumor is None else {"tumor": self.tumor})}


@dataclass(frozen=True)
class TrainingCase:
    """One labeled CT, with a label map, files for liver and tumor, or DICOM segmentations.

    :param tumor_known: whether its tumors are labeled (there may be none).
    """

    name: str
    image: Path
    label: Path | None = None
    liver: Path | None = None
    tumor: Path | None = None
    segs: tuple[Path, ...] = ()
    tumor_known: bool = True

    @property
    def files(self) -> list[Path]:
        """All files of the case; the image may be a folder."""
        return [path for path in (self.image, self.label, self.liver, self.tumor, *self.segs) if path is not None]


@dataclass(frozen=True)
class DataSet:
    """The cases of a data set and the values in its label maps."""

    cases: tuple[TrainingCase, ...]
    values: Values


def find_data(data: Data, *, progress: Progress | None = None) -> DataSet:
    """Find the cases of a configured data set, ordered by name; missing phantoms are generated.

    :raises LiverXAILib.errors.InputError: the folder does not have the expected layout.
    :raises LiverXAILib.errors.UsageError: settings do not match the data.
    """
    path = Path(data.path).expanduser()
    if data.layout == "phantoms":
        _make_phantoms(data, path, progress)
    elif not path.exists():
        raise InputError(f"There is no file or folder {path} (data.path).")
    cases, own_values = _LAYOUTS[data.layout](path)
    values = own_values if data.labels is None else _configured(data.labels)
    if data.layout == "phantoms":
        last = data.phantom_seed + (data.phantoms or 0)
        wanted = {f"phantom-{seed}" for seed in range(data.phantom_seed, last)}
        cases = [case for case in cases if case.name in wanted]
    if values.tumor is None:
        cases = [_without_tumor(case) for case in cases]
    known = set(by_name((case.name, case.image) for case in cases))
    if wrong := sorted({*data.exclude, *data.validation_cases} - known):
        raise UsageError(f"The configuration names case {wrong[0]!r}, which is not in {path}.")
    cases = [case for case in cases if case.name not in data.exclude]
    if len(cases) < 2:
        raise InputError(f"{path} has {len(cases)} usable cases; training and validation need at least two.")
    return DataSet(tuple(sorted(cases, key=lambda case: _natural(case.name))), values)


def read_case(case: TrainingCase, values: Values) -> tuple[Volume, np.ndarray]:
    """Read the CT and its ground truth on the CT's grid: uint8 (k, j, i), 0 background, 1 liver, 2 tumor.

    :raises LiverXAILib.errors.InputError: a file is unreadable, does not overlap the CT, or has other values.
    """
    try:
        volume = read_volume(case.image)
        if case.segs:
            return volume, _read_segs(case, volume.grid)
        if case.liver is not None:
            truth = _mask(case.liver, volume.grid, "liver").copy()
            if case.tumor is not None:
                truth[_mask(case.tumor, volume.grid, "tumor") != 0] = STRUCTURES["tumor"]
            return volume, truth
        assert case.label is not None
        labels = read_label_map(case.label, values.mapping(), others=values.others, grid=volume.grid, advice=_ADVICE)
        return volume, labels.on(volume.grid, "label map").volume.array
    except InputError as error:
        raise InputError(f"Case {case.name!r}: {error}") from error


def on_grid(volume: Volume, truth: np.ndarray, grid: Grid) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Resample a case to a network's grid: HU (float32), liver with its tumors, and tumor (bool), all (k, j, i).

    :param truth: (k, j, i) on the volume's grid, 0 background, 1 liver, 2 tumor.
    """
    image = resample(volume.array, volume.grid, grid, fill=AIR_HU)
    liver, tumor = (
        resample(mask.astype(np.float32), volume.grid, grid) > 0.5 for mask in (truth > 0, truth == STRUCTURES["tumor"])
    )
    return image, liver, tumor


# --- layouts ------------------------------------------------------------------------------------------------------


def _msd(folder: Path) -> tuple[list[TrainingCase], Values]:
    """Medical Segmentation Decathlon: imagesTr/liver_1.nii.gz and labelsTr/liver_1.nii.gz."""
    images, labels = _files(folder / "imagesTr"), _files(folder / "labelsTr")
    return _paired(images, labels, folder / "labelsTr"), _named_values(folder)


def _nnunet(folder: Path) -> tuple[list[TrainingCase], Values]:
    """nnU-Net raw: imagesTr/case_0000.nii.gz and labelsTr/case.nii.gz; a CT has only channel 0000."""
    images, labels = _files(folder / "imagesTr"), _files(folder / "labelsTr")
    if extra := [name for name in images if re.search(r"_(?!0000)\d{4}$", name)]:
        raise InputError(f"{folder} has images with more than one channel ({extra[0]}); a CT has one (_0000).")
    images = {name.removesuffix("_0000"): path for name, path in images.items()}
    return _paired(images, labels, folder / "labelsTr"), _named_values(folder)


def _lits(folder: Path) -> tuple[list[TrainingCase], Values]:
    """LiTS: volume-0.nii and segmentation-0.nii, at any depth."""
    files = [place / name for place, names in walk(folder) for name in names if image_ending(name)]
    images, labels = (
        by_name((case_name(path)[len(prefix) :], path) for path in files if path.name.lower().startswith(prefix))
        for prefix in ("volume-", "segmentation-")
    )
    return _paired(images, labels, folder), Values(assumed=True)


def _csv(path: Path) -> tuple[list[TrainingCase], Values]:
    """A table with the columns image, and label or liver (and tumor); case is optional; empty tumor: unlabeled."""
    if not path.is_file():
        raise InputError(f"{path} is not a CSV file (data.path).")
    cases = []
    for row in read_table(path):
        image, label, liver, tumor = (row.path_in(column) for column in ("image", "label", "liver", "tumor"))
        if image is None or (label is None) == (liver is None):
            raise row.error("a case needs an image, and either a label or a liver.")
        name = row.cells.get("case") or case_name(image)
        known = tumor is not None or (label is not None and described_structures(label) != {"liver"})
        cases.append(TrainingCase(name, image, label, liver, tumor, (), known))
    return cases, Values(assumed=True)


def _dicom_seg(folder: Path) -> tuple[list[TrainingCase], Values]:
    """One folder per case, containing a CT series and its segmentation objects at any depth."""
    cases = []
    with_tumor = False
    for place in _visible(folder.iterdir() if folder.is_dir() else ()):
        segs = []
        for path in find_segs(place) if place.is_dir() else ():
            meanings = {_meaning(segment) for segment in read_segments(path)}
            with_tumor = with_tumor or "tumor" in meanings
            if meanings & set(STRUCTURES):
                segs.append(path)
        if segs:
            cases.append(TrainingCase(place.name, place, segs=tuple(segs)))
    if not cases:
        raise InputError(
            f"{folder} has no case: each needs a folder with a CT series and a DICOM SEG that has a segment of the "
            "liver (SNOMED CT 10200004, or labeled 'liver')."
        )
    return cases, Values((), () if with_tumor else None)


def _phantoms(folder: Path) -> tuple[list[TrainingCase], Values]:
    cases = [
        TrainingCase(case_name(path), path, path.with_name(f"{case_name(path)}-truth.nrrd"))
        for path in _visible(folder.glob("phantom-*.nii.gz"))
    ]
    return cases, Values()


_LAYOUTS = {
    "msd": _msd,
    "nnunet": _nnunet,
    "lits": _lits,
    "csv": _csv,
    "dicom-seg": _dicom_seg,
    "phantoms": _phantoms,
}


def _make_phantoms(data: Data, folder: Path, progress: Progress | None) -> None:
    """Write the phantoms that do not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    context = RunContext(progress)
    count = data.phantoms or 0
    for number in range(count):
        path = folder / f"phantom-{data.phantom_seed + number}.nii.gz"
        context.report(f"Making phantom {number + 1} of {count}", number / count)
        truth = path.with_name(f"{case_name(path)}-truth.nrrd")
        if not (path.is_file() and truth.is_file()):
            write_phantom(make_phantom(data.phantom_seed + number, spacing_mm=data.phantom_spacing), path)
    context.report("Phantoms are ready", 1.0)


# --- parts --------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, Path]:
    """Images of a folder by name, without hidden files: the Decathlon's archives have one for each image."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: data.layout does not fit data.path.")
    return by_name((case_name(path), path) for path in _visible(folder.iterdir()) if image_ending(path))


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith("."))


def _paired(images: Mapping[str, Path], labels: Mapping[str, Path], where: Path) -> list[TrainingCase]:
    """Labeled images; an image without a label is refused, or a mistyped name would go unnoticed."""
    if not labels:
        raise InputError(f"{where} has no label maps: data.layout does not fit data.path.")
    if missing := sorted(set(labels) ^ set(images), key=_natural):
        what = "label map" if missing[0] in images else "image"
        raise InputError(f"Case {missing[0]!r} in {where} has no {what}; add it, or remove the case.")
    return [TrainingCase(name, images[name], labels[name]) for name in labels]


def _named_values(folder: Path) -> Values:
    """The values of liver and tumor in ``dataset.json``."""
    names = dataset_labels(folder)
    if names is None:
        return Values(assumed=True)
    found, _ = values_of_names(names)
    if "liver" not in found:
        raise UsageError(
            f"{folder / 'dataset.json'} does not name a liver: state in data.labels which values are liver and tumor."
        )
    return Values(found["liver"], found.get("tumor"))


def _configured(labels: Labels) -> Values:
    """The configured values in label maps."""
    return Values(_numbers(labels.liver) or (), _numbers(labels.tumor), labels.others is not None)


def _numbers(value: int | Sequence[int] | None) -> tuple[int, ...] | None:
    return (value,) if isinstance(value, int) else value if value is None else tuple(value)


def _meaning(segment: Segment) -> str | None:
    """The structure that a segment shows, or None."""
    return structure_of(segment.label, segment.category, segment.type, segment.regions)


def _read_segs(case: TrainingCase, grid: Grid) -> np.ndarray:
    truth = np.zeros(grid.shape, np.uint8)
    masks: dict[str, list[np.ndarray]] = {"liver": [], "tumor": []}
    for path in case.segs:
        segments = {segment.number: _meaning(segment) for segment in read_segments(path)}
        for number, mask in read_segment_masks(path, grid).items():
            if (meaning := segments.get(number)) in STRUCTURES:
                masks[meaning].append(mask)
    for name, value in STRUCTURES.items():
        for mask in masks[name]:
            truth[mask] = value
    if not truth.any():
        raise InputError("its segmentations lie outside the CT series. Is this the series they were drawn on?")
    return truth


def _mask(path: Path, grid: Grid, name: str) -> np.ndarray:
    return aligned(read_mask(path, name), grid, f"{name}'s file", "image")


def _without_tumor(case: TrainingCase) -> TrainingCase:
    return TrainingCase(case.name, case.image, case.label, case.liver, None, case.segs, False)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that places liver_2 before liver_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
