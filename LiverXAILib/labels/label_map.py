# SPDX-License-Identifier: Apache-2.0
"""Reading the liver and its tumors from any segmentation file into one common form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError, UsageError
from ..volumes.box import Box
from ..volumes.formats import FILE_FORMATS, image_ending, without_ending
from ..volumes.orientation import axis_codes, reorient
from ..volumes.volume import Grid, Volume
from .segment_files import NamedMask, dicom_segments, nifti_label_names, nrrd_segment_names, nrrd_segments
from .vocabulary import PART, STRUCTURES, is_name, is_vague, liver_segment, structure_of, structure_of_name

#: Two grids count as the same if no voxel is displaced by more than this fraction of its shortest side.
GRID_TOLERANCE = 0.1

#: The values of structures in a label map: one, or several for a liver that is drawn in parts.
Values = Mapping[str, int | Sequence[int]]


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The liver and its tumors in a segmentation.

    :param volume: uint8 (k, j, i) with the values :data:`~LiverXAILib.labels.vocabulary.STRUCTURES`; tumors overwrite
        the liver.
    :param structures: the structures that the segmentation describes. A structure that is not listed was not searched
        for; one that is listed but has no voxels was searched for and not found.
    :param extends: outside its voxels there is background, as in files that are cropped to the segments.
    :param assumed: nothing says what its values mean: 1 was taken for the liver and 2 for tumors.
    """

    volume: Volume
    structures: tuple[str, ...]
    extends: bool = False
    assumed: bool = False

    def mask(self, structure: str) -> np.ndarray:
        """The mask of a structure: bool (k, j, i). The liver includes its tumors."""
        array = self.volume.array
        return array > 0 if structure == "liver" else array == STRUCTURES[structure]

    def on(self, grid: Grid, name: str = "segmentation", other: str = "image") -> LabelMap:
        """Return the label map on `grid`, whose axes may be in another order. Nothing is resampled.

        :raises LiverXAILib.errors.InputError: the voxels lie in different places.
        """
        if not self.extends:
            return replace(self, volume=Volume(aligned(self.volume, grid, name, other), grid.ijk_to_lps))
        volume = reorient(self.volume, axis_codes(grid))
        box = grid.box_of(volume.grid)
        if not grid.cropped(box).matches(volume.grid, GRID_TOLERANCE * min(grid.spacing)):
            raise InputError(
                f"The voxels of the {name} and of the {other} lie in different places (origin, direction or spacing "
                "differ), and nothing is resampled here: bring both to the grid of the CT."
            )
        array = np.zeros(grid.shape, np.uint8)
        if (inside := box.intersection(Box.full(grid.shape))) is not None:
            array[inside] = volume.array[inside.relative_to(box)]
        if np.count_nonzero(array) < np.count_nonzero(volume.array):
            raise InputError(f"The {name} extends beyond the {other}. Was it drawn on another image?")
        return LabelMap(Volume(array, grid.ijk_to_lps), self.structures)


def read_label_map(
    path: Path, values: Values | None = None, *, others: bool = False, grid: Grid | None = None, advice: str = ""
) -> LabelMap:
    """Read a segmentation: NIfTI, NRRD, MetaImage, ``.seg.nrrd`` or DICOM SEG.

    The meaning of values is taken from `values`; otherwise from the file itself (segments of Slicer and DICOM by name
    and code, a label table in a NIfTI header); otherwise from a ``dataset.json`` in the file's folder or the folder
    above; otherwise 1 is liver and 2 is tumor, and a map without 2 does not describe tumors.

    :param values: values of "liver" and "tumor"; a structure that is missing is not described.
    :param others: treat values of unknown meaning as background.
    :param grid: for a DICOM SEG: the grid of the result; None: its own.
    :param advice: a sentence for error messages that says how the user can define values.
    :raises LiverXAILib.errors.InputError: the file is damaged, contains values of unknown meaning, or contains neither
        liver nor tumor.
    """
    from ..volumes.dicom import is_dicom
    from ..volumes.io import read_labels

    kind = FILE_FORMATS.get(image_ending(path) or "")
    if kind is None and path.is_file() and is_dicom(path):
        return _from_segments(path, *dicom_segments(path, grid))
    if values is None and _is_nrrd(path):
        found = nrrd_segments(path)
        if found is not None:
            return _from_segments(path, *found)
    volume = read_labels(path)
    names: Mapping[str, Sequence[int]] = {}
    if values is None and kind == "NIfTI":
        table = nifti_label_names(path)
        names = {text: [value for value, other in table.items() if other == text] for text in table.values()}
    if values is None and not names:
        names = dataset_labels(path.parent) or dataset_labels(path.parent.parent) or {}
    if names:
        values, known = values_of_names(names)
        if not values:
            raise InputError(f"{path} has no label for the liver or its tumors; it has {', '.join(names)}.")
        ours = {value for several in values.values() for value in several}
        array = np.where(np.isin(volume.array, list(known - ours)), 0, volume.array)
        volume = volume.with_array(array)
    try:
        return replace(label_map(volume, values, others=others, advice=advice), assumed=values is None)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def described_structures(path: Path) -> set[str] | None:
    """The structures named in a file's header; None if it names no segments.

    :raises LiverXAILib.errors.InputError: the header is damaged.
    """
    segments = nrrd_segment_names(path) if _is_nrrd(path) else None
    if segments is None:
        return None
    found = (structure_of(segment.name, segment.category, segment.kind, segment.regions) for segment in segments)
    return {structure for structure in found if structure in STRUCTURES}


def read_structures(
    paths: Sequence[Path], grid: Grid, values: Values | None = None, *, others: bool = False, advice: str = ""
) -> LabelMap:
    """Combine the liver and tumors of one or several files on `grid`; later files add to earlier ones.

    If there are several files, one that is named after a structure ("tumor.nii.gz") is read as the mask of that
    structure; all others are read by :func:`read_label_map`, which describes the other parameters.

    :raises LiverXAILib.errors.InputError: as in :func:`read_label_map`; the voxels do not lie on `grid`; or a file in
        which only 1 is drawn may just as well show tumors, by its name or because another file has the liver.
    """
    array = np.zeros(grid.shape, np.uint8)
    structures: set[str] = set()
    unclear, livers = "", 0
    for path in paths:
        named = structure_of_name(without_ending(path.name))
        if values is None and named in STRUCTURES and len(paths) > 1:
            mask = read_mask(path, named)
            found = LabelMap(mask.with_array(mask.array * np.uint8(STRUCTURES[named])), (named,))
        else:
            found = read_label_map(path, values, others=others, grid=grid, advice=advice)
        on_grid = found.on(grid, path.name).volume.array
        array = np.maximum(array, on_grid)
        structures.update(found.structures)
        livers += "liver" in found.structures
        if found.assumed and found.structures == ("liver",):
            unclear = path.name
            livers += named == "tumor"
    if unclear and livers > 1:
        raise InputError(
            f"{unclear}: nothing says whether its value 1 is the liver or a tumor. Name the files 'liver' and 'tumor', "
            f"with their extensions. {advice}".rstrip()
        )
    return LabelMap(Volume(array, grid.ijk_to_lps), tuple(name for name in STRUCTURES if name in structures))


def label_map(volume: Volume, values: Values | None = None, *, others: bool = False, advice: str = "") -> LabelMap:
    """Interpret the values of a label map; arguments as in :func:`read_label_map`.

    :raises LiverXAILib.errors.InputError: it contains values of unknown meaning.
    """
    present = _present_values(volume.array)
    if values is None:
        values = {name: value for name, value in STRUCTURES.items() if value in present} or {"liver": 1}
    meant = {name: (several,) if isinstance(several, int) else tuple(several) for name, several in values.items()}
    if unknown := set(meant) - set(STRUCTURES):
        raise UsageError(f"There is no structure {min(unknown)!r}; there are {', '.join(STRUCTURES)}.")
    strange = sorted(present - {0, *(value for several in meant.values() for value in several)})
    if strange and not others:
        many = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise InputError(
            f"the label map has the value {strange[0]:g}{many}, which is defined as neither liver nor "
            f"tumor{': is it an image?' if strange[0] < 0 else '.'} {advice}".strip()
        )
    array = np.zeros(volume.shape, np.uint8)
    for name, value in STRUCTURES.items():
        if name in meant:
            array[np.isin(volume.array, meant[name])] = value
    return LabelMap(Volume(array, volume.ijk_to_lps), tuple(name for name in STRUCTURES if name in meant))


def read_mask(path: Path, structure: str) -> Volume:
    """Read the file of one structure as a mask: uint8, 1 inside the structure.

    Its values may be 0 and one other value, or those of :data:`~LiverXAILib.labels.vocabulary.STRUCTURES`.

    :raises LiverXAILib.errors.InputError: it has other values, so it is not the mask of one structure.
    """
    from ..volumes.io import read_labels

    segments = nrrd_segments(path) if _is_nrrd(path) else None
    if segments is not None:
        found = _from_segments(path, *segments)
        return found.volume.with_array(found.mask(structure).astype(np.uint8))
    volume = read_labels(path)
    present = _present_values(volume.array) - {0}
    if len(present) > 1 and not present <= set(STRUCTURES.values()):
        listed = ", ".join(f"{value:g}" for value in sorted(present)[:4])
        raise InputError(
            f"{path} has the values {listed}{' …' if len(present) > 4 else ''}; a mask of the {structure} has only one "
            "besides 0."
        )
    return volume.with_array((volume.array != 0).astype(np.uint8))


def on_common_grid(prediction: LabelMap, reference: LabelMap) -> tuple[LabelMap, LabelMap]:
    """Put both on one grid: the reference's; if that is cropped, the prediction's; if both are, one that contains both.

    :raises LiverXAILib.errors.InputError: their voxels lie in different places.
    """
    grid = reference.volume.grid
    if reference.extends:
        grid = prediction.volume.grid
        if prediction.extends:
            grid = _around(grid, reference.volume.grid)
    return prediction.on(grid, "prediction", "reference"), reference.on(grid, "reference", "prediction")


def _around(grid: Grid, other: Grid) -> Grid:
    """Extend `grid` by whole voxels so that it also contains `other`."""
    k, j, i = (n - 1 for n in other.shape)
    corners = np.rint(grid.to_ijk(other.to_lps(np.array([(x, y, z) for x in (0, i) for y in (0, j) for z in (0, k)]))))
    low = np.minimum(corners.min(axis=0), 0).astype(int)
    high = np.maximum(corners.max(axis=0) + 1, grid.shape[::-1]).astype(int)
    return grid.cropped(Box.between(low[::-1], high[::-1]))


def values_of_names(names: Mapping[str, Sequence[int]]) -> tuple[dict[str, tuple[int, ...]], set[int]]:
    """The values of our structures among named ones, and all values with a meaningful name (including background)."""
    found: dict[str, list[int]] = {}
    known = {0}
    for name, several in names.items():
        if is_name(name):
            known.update(several)
        structure = structure_of_name(name)
        if structure is not None and tuple(several) != (0,):
            found.setdefault(structure, []).extend(several)
    if "liver" in found or {liver_segment(name) for name in names} >= set(range(1, 9)):
        found.setdefault("liver", []).extend(found.get(PART, ()))
    return {name: tuple(dict.fromkeys(found[name])) for name in STRUCTURES if name in found}, known


def dataset_labels(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """The labels in a folder's ``dataset.json`` (Decathlon, nnU-Net): name → values; None without such a file.

    Both directions are accepted: {"1": "liver"} and {"liver": 1 or [1, 2]}.

    :raises LiverXAILib.errors.InputError: the file cannot be understood.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    names: dict[str, tuple[int, ...]] = {}
    try:
        for key, value in json.loads(path.read_text(encoding="utf-8")).get("labels", {}).items():
            name, number = (value, int(key)) if isinstance(value, str) else (key, value)
            values = tuple(int(n) for n in number) if isinstance(number, list) else (int(number),)
            names[name] = (*names.get(name, ()), *values)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} cannot be understood: {error}.") from error
    return names


def aligned(volume: Volume, grid: Grid, name: str = "prediction", other: str = "reference") -> np.ndarray:
    """The array of `volume` in the axis order of `grid`.

    :raises LiverXAILib.errors.InputError: the voxels lie in different places.
    """
    volume = reorient(volume, axis_codes(grid))
    if volume.shape != grid.shape:
        raise InputError(
            f"The {name} has {_size(volume.grid)} voxels, the {other} {_size(grid)}, and nothing is resampled here: "
            "bring both to the grid of the CT."
        )
    if not volume.grid.matches(grid, GRID_TOLERANCE * min(grid.spacing)):
        raise InputError(
            f"The {name} and the {other} have the same size but lie in different places (origin, direction or "
            "spacing differ), and nothing is resampled here: bring both to the grid of the CT."
        )
    return volume.array


def _from_segments(path: Path, grid: Grid, segments: Sequence[NamedMask]) -> LabelMap:
    """The structures among the segments of a file."""
    meanings = [
        (structure_of(segment.name, segment.category, segment.kind, segment.regions), segment) for segment in segments
    ]
    found = {meaning for meaning, _ in meanings}
    names = ", ".join(repr(segment.name) for segment in segments) or "none"
    if found >= {PART} and {liver_segment(segment.name) for segment in segments} >= set(range(1, 9)):
        found.add("liver")
    if not found & set(STRUCTURES):
        raise InputError(
            f"{path} has no segment of the liver or its tumors; its segments are {names}. Rename the liver's segment "
            "to 'liver' and the tumors' segment to 'tumor'."
        )
    for meaning, segment in meanings:
        if meaning is None and not _is_explained(segment) and segment.mask.any():
            raise InputError(
                f"{path} does not say what its segment {segment.name!r} is: rename it ('liver' or 'tumor' if it is "
                "one of these)."
            )
    array = np.zeros(grid.shape, np.uint8)
    for wanted in ("liver", PART, "tumor") if "liver" in found else ("tumor",):
        for meaning, segment in meanings:
            if meaning == wanted:
                array[segment.mask] = STRUCTURES.get(wanted, STRUCTURES["liver"])
    return LabelMap(Volume(array, grid.ijk_to_lps), tuple(name for name in STRUCTURES if name in found), True)


def _is_explained(segment: NamedMask) -> bool:
    """Whether the name or code of a segment that is not the liver or a tumor says what it is."""
    return is_name(segment.name) or (segment.kind is not None and not is_vague(segment.kind))


def _is_nrrd(path: Path) -> bool:
    return path.is_file() and FILE_FORMATS.get(image_ending(path) or "") == "NRRD"


def _present_values(array: np.ndarray) -> set[float]:
    """The distinct values of an array."""
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 2:  # counting is many times faster than sorting
        low = int(array.min())
        return {int(n) + low for n in np.flatnonzero(np.bincount((array.astype(np.int32) - low).ravel()))}
    return set(np.unique(array).tolist())


def _size(grid: Grid) -> str:
    return " x ".join(str(n) for n in grid.shape[::-1])
