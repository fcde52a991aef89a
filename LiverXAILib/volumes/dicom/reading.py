# SPDX-License-Identifier: Apache-2.0
"""Reading one DICOM series as a volume in Hounsfield units."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError, UsageError
from ...progress import CancelToken, Progress
from ..intensities import checked, looks_like_hu
from ..stack import resample_to_regular
from ..volume import Volume
from .finding import series_at
from .series import Series

_logger = logging.getLogger(__name__)


def read_dicom(
    path: Path,
    *,
    series: str | int | None = None,
    allow_irregular: bool = False,
    files: Sequence[Path] | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Volume:
    """Read a CT series; see :func:`LiverXAILib.volumes.io.read_volume`."""
    found, notes = series_at(path, files, progress, cancel)
    if series is None and path.is_file() and path.name.upper() != "DICOMDIR":
        chosen = next((one for one in found if path in one.files), None)
        if chosen is None:
            raise InputError(f"{path} does not hold an image.")
    else:
        chosen = _choose(found, series, path)
    info = chosen.info
    if info.problem and not (allow_irregular and info.can_be_resampled):
        others = sum(one.info.problem is None for one in found)
        hint = " It can be resampled to even spacing: --allow-irregular (allow_irregular=True)." * info.can_be_resampled
        hint += f" {others} other series here can be read: choose one with --series (series=)." * bool(others)
        raise InputError(f"Cannot use {info.name}: {info.problem}.{hint}")
    _logger.info("Reading DICOM series %d of %d: %d slices", info.number, len(found), info.slices)
    array, pixel_notes = chosen.read(progress, cancel)
    stack = chosen.stack
    if stack.problem:
        array = resample_to_regular(array, stack)
        notes.append(
            f"Resampled along the slices to an even {stack.spacing:.2f} mm, because {stack.problem}. Sizes along this "
            "direction are less certain."
        )
    notes += pixel_notes
    array = checked(array, info.name)
    if not looks_like_hu(array):
        notes.append("The intensities do not look like Hounsfield units, although the series says that it is CT.")
    if info.n_skipped:
        notes.append(
            f"{info.n_skipped} files of the series are not slices (localizers, saved screens) and were left out."
        )
    if series is None:
        notes += _choice_notes(chosen, found)
    metadata: dict[str, Any] = {
        "source_format": "DICOM",
        "modality": info.modality,
        "series": info.summary(),
        "other_series": [one.info.summary() for one in found if one is not chosen],
        "series_instance_uid": info.uid or None,
        "warnings": notes,
    }
    paths = [str(chosen.slices[index].path) for index in stack.order]
    if stack.problem is None and len(set(paths)) == len(array):
        metadata["files"] = paths
    return Volume(array, stack.ijk_to_lps, metadata)


def _choice_notes(chosen: Series, found: list[Series]) -> list[str]:
    """What the user should know about the series that were not taken."""
    notes = []
    usable = sum(one.info.problem is None for one in found)
    if usable > 1:
        notes.append(f"{chosen.info.name} was chosen of {usable} usable CT series; --series (series=) takes another.")
    for one in found:
        if one is not chosen and one.info.problem and len(one.slices) > 1:
            notes.append(f"{one.info.name}, {one.info.slices} slices, was passed over: {one.info.problem}.")
    return notes


def _choose(found: list[Series], series: str | int | None, path: Path) -> Series:
    """The series named by the user, or the best.

    :raises LiverXAILib.errors.UsageError: no series has that number or UID.
    """
    if series is None:
        return found[0]
    wanted = str(series).strip()
    for one in found:
        if wanted in (str(one.info.number), one.info.uid):
            return one
    listed = "; ".join(f"{one.info.number}: {one.info.name}" for one in found)
    raise UsageError(f"There is no series {wanted} in {path}. There are {listed}.")
