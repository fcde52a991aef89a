# SPDX-License-Identifier: Apache-2.0
"""Reading one DICOM series as a volume in Hounsfield units."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...context import RunContext
from ...errors import InputError, UsageError
from ..intensities import looks_like_hu, to_smallest_dtype, validate_ct
from ..memory import require_memory
from ..stack import resample_to_regular
from ..volume import Grid, Volume
from .finding import FoundSeries, damage_note, series_at
from .pixels import StoredPixels
from .series import Series

_logger = logging.getLogger(__name__)

#: Slices are held twice, at most as float32, while they are stacked to a volume.
_BYTES_PER_VOXEL = 8


def read_dicom(
    path: Path,
    context: RunContext,
    *,
    series: str | int | None = None,
    allow_irregular: bool = False,
    files: Sequence[Path] | None = None,
) -> Volume:
    """Read a CT series; see :func:`LiverXAILib.volumes.io.read_volume`."""
    found = series_at(path, files, context)
    if series is None and path.is_file() and path.name.upper() != "DICOMDIR":
        chosen = _series_of(path, found)
    else:
        chosen = _choose(found, series, path)
    _check_usable(chosen, found, allow_irregular)
    _logger.info("Reading DICOM series %d of %d: %d slices", chosen.info.number, len(found.series), chosen.info.slices)
    chosen, array, notes = _decoded(chosen, found, allow_irregular, context)
    info, stack = chosen.info, chosen.stack
    notes = [*found.notes(), *chosen.notes, *notes]
    if stack.problem:
        array = resample_to_regular(array, stack)
        notes.append(
            f"Resampled across the slices to an even {stack.spacing:.2f} mm, because {stack.problem}. Sizes along this "
            "direction are less certain."
        )
    array = validate_ct(array, Grid(array.shape, stack.ijk_to_lps), info.name, force=True)
    if not looks_like_hu(array):
        notes.append("The intensities do not look like Hounsfield units, although the modality of the series is CT.")
    if info.n_skipped:
        notes.append(
            f"Images of the series that are not slices (localizers, screen captures) were left out: {info.n_skipped}."
        )
    others = [one for one in found.series if one.info.key != info.key]
    notes += _choice_notes(chosen, others, series)
    metadata: dict[str, Any] = {
        "source_format": "DICOM",
        "modality": info.modality,
        "series": info.summary(),
        "other_series": [one.info.summary() for one in others],
        "series_instance_uid": info.uid or None,
        "warnings": notes,
        "files": list(dict.fromkeys(str(chosen.slices[index].path) for index in stack.order)),
    }
    return Volume(array, stack.ijk_to_lps, metadata)


def _series_of(path: Path, found: FoundSeries) -> Series:
    """The series, or the part of one, that a file belongs to."""
    damaged = dict(found.damaged)
    if path in damaged:
        raise InputError(f"{path} is damaged: {damaged[path]}. Copy or export it again.")
    chosen = next((one for one in found.series if any(path == slice_.path for slice_ in one.slices)), None)
    chosen = chosen or next((one for one in found.series if path in one.files), None)
    if chosen is None:
        raise InputError(f"{path} does not hold an image.")
    return chosen


def _choose(found: FoundSeries, series: str | int | None, path: Path) -> Series:
    """The series that the user named, or the best; if it has several parts and none was named, its best part.

    :raises LiverXAILib.errors.UsageError: no series has that number or UID.
    """
    if series is None:
        return found.series[0]
    wanted = str(series).strip()
    for one in found.series:
        if wanted in (one.info.key, one.info.lasting_key, str(one.info.number), one.info.uid):
            return one
    listed = "; ".join(f"{one.info.key}: {one.info.name}" for one in found.series)
    raise UsageError(f"There is no series {wanted} in {path}. It contains {listed}.")


def _check_usable(chosen: Series, found: FoundSeries, allow_irregular: bool) -> None:
    """Raise :class:`~LiverXAILib.errors.InputError`, with what can be done, if the series does not form a volume."""
    info = chosen.info
    if not info.problem or (allow_irregular and info.can_be_resampled):
        return
    others = sum(one.info.problem is None for one in found.series)
    hints = [f"Cannot use {info.name}: {info.problem}.", *found.notes()]
    if info.can_be_resampled:
        hints.append("It can be resampled to even spacing: --allow-irregular (allow_irregular=True).")
    if others:
        hints.append(f"{others} other series here can be read: choose one with --series (series=).")
    raise InputError(" ".join(hints))


def _decoded(
    chosen: Series, found: FoundSeries, allow_irregular: bool, context: RunContext
) -> tuple[Series, np.ndarray, list[str]]:
    """The series, its voxels in HU (n, j, i) in the order of the stack, and notes for the user.

    A file whose pixels are damaged is skipped; the remaining slices must still form a volume.
    """
    rows, columns = chosen.slices[0].size
    size = f"{columns} x {rows} x {len(chosen.slices)} voxels"
    require_memory(_BYTES_PER_VOXEL * columns * rows * len(chosen.slices), f"{chosen.info.name} ({size})")
    images: dict[int, np.ndarray] = {}
    notes: dict[str, None] = {}
    damaged: dict[Path, str] = {}
    opened: StoredPixels | None = None
    for done, index in enumerate(chosen.stack.order):
        context.check()
        context.report("Reading the image", done / len(chosen.slices))
        one = chosen.slices[index]
        if one.path in damaged:
            continue
        try:
            if opened is None or opened.path != one.path:
                opened = StoredPixels(one.path)
            image, note = opened.hounsfield(one)
        except InputError as error:
            damaged[one.path] = str(error)
            continue
        if note:
            notes[note] = None
        images[id(one)] = to_smallest_dtype(image, chosen.info.name)
    if damaged:
        chosen = chosen.without(damaged)
        note = damage_note(list(damaged.items()))
        if not chosen.slices or (chosen.info.problem and not (allow_irregular and chosen.info.can_be_resampled)):
            raise InputError(f"Cannot use {chosen.info.name}: {note} Copy or export the series again.")
        notes[note] = None
    context.report("Reading the image", 1.0)
    return chosen, np.stack([images[id(chosen.slices[index])] for index in chosen.stack.order]), list(notes)


def _choice_notes(chosen: Series, others: list[Series], asked: str | int | None) -> list[str]:
    """Notes for the user about the series that were not chosen."""
    notes = []
    usable = [one for one in others if one.info.problem is None]
    siblings = [one for one in others if one.info.number == chosen.info.number]
    if siblings and str(asked) not in (chosen.info.key, chosen.info.lasting_key):
        listed = "; ".join(f"--series {one.info.key}: {one.info.distinction}" for one in siblings)
        notes.append(f"The series holds {len(siblings) + 1} scans, of which {chosen.info.name} was chosen ({listed}).")
    if asked is not None:
        return notes
    if usable:
        notes.append(
            f"{chosen.info.name} was chosen of {len(usable) + 1} usable CT series; --series (series=) selects another."
        )
    for one in others:
        if one.info.problem and len(one.slices) > 1:
            notes.append(f"{one.info.name}, {one.info.slices} slices, was skipped: {one.info.problem}.")
    return notes
