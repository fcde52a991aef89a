# SPDX-License-Identifier: Apache-2.0
"""A CT series: its slices arranged to a volume, and how well it is suited to segmenting a liver."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..orientation import axis_codes
from ..stack import Stack, sort_slices
from ..volume import Grid
from .headers import CtSlice, DicomFile
from .identity import SAME_DIRECTION, SAME_SPACING, split

#: A series at least this long may show a whole liver.
_LIVER_MM = 100.0
_SHARP_WORDS = re.compile(r"lung|bone|edge|sharp|inner ?ear", re.IGNORECASE)
#: Siemens B50f and Br59 upward, Canon FC30 upward, and the sharp kernels of Philips.
_SHARP_KERNEL = re.compile(r"\b[a-z]{1,2}[5-9]\d(?!\d)|\bfc[3-9]\d|^(d|e|l|y[a-d])$", re.IGNORECASE)
_PORTAL_VENOUS = re.compile(r"portal|ven(ous|ös|oes|eus|ose)|(?<![a-z])(pv|pvp)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class SeriesInfo:
    """One entry in a list of series; nothing in it identifies the patient.

    `number` counts from 1, the best first. A series that holds several scans is listed as several parts: `part`
    counts them, the best first, and `distinction` states how they differ. :attr:`key` is the value for ``series=``.
    `size` is in voxels and `spacing` in mm, along (i, j, k). `axes` are the directions of the array's axes (k, j, i).
    `n_skipped` counts images of the series that are not slices. `problem` is a clause that says why the series cannot
    be read as CT; `can_be_resampled` is whether ``allow_irregular=True`` reads it anyway.
    """

    number: int
    uid: str
    series_number: int | None
    modality: str
    description: str
    kernel: str
    image_type: str
    slices: int
    n_skipped: int = 0
    size: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    axes: str | None = None
    tilt_degrees: float = 0.0
    problem: str | None = None
    can_be_resampled: bool = False
    part: int | None = None
    distinction: str = ""

    @property
    def key(self) -> str:
        """The value for ``--series``: "3", or "3/2" for the second part of the third series."""
        return str(self.number) if self.part is None else f"{self.number}/{self.part}"

    @property
    def lasting_key(self) -> str:
        """The same with the Series Instance UID, which does not depend on what else is in the folder."""
        return self.uid if self.part is None else f"{self.uid}/{self.part}"

    @property
    def name(self) -> str:
        """The name of the series in messages."""
        number = f"series {self.series_number}" if self.series_number is not None else "series without a number"
        described = f' ("{self.description}")' * bool(self.description)
        return f"DICOM {number}{described}" + f", {self.distinction}" * bool(self.distinction)

    def summary(self) -> dict[str, Any]:
        """For :attr:`Volume.metadata`: everything but the UID."""
        facts = {name: value for name, value in asdict(self).items() if name != "uid"}
        return {"name": self.name, "key": self.key, **facts}


def rank(info: SeriesInfo) -> tuple[Any, ...]:
    """The rule by which the best CT series is chosen; the smallest tuple wins.

    1. It can be read (a series that needs ``allow_irregular`` comes after those that do not).
    2. Its slices are axial, rather than coronal or sagittal.
    3. It is long enough for a liver (100 mm).
    4. It is an original reconstruction, not derived from another one.
    5. Its kernel is for soft tissue, rather than for lung or bone.
    6. Its description names the portal venous phase, in which liver and lesions differ most.
    7. Its slices are closer together; then, it has more of them.
    8. It has the lower series number; last, the lower UID.
    """
    length = (info.slices - 1) * info.spacing[2] if info.spacing else 0.0
    return (
        info.problem is not None,
        not info.can_be_resampled,
        not (info.axes or "").startswith(("S", "I")),
        length < _LIVER_MM,
        not info.image_type.startswith("ORIGINAL"),
        bool(_SHARP_WORDS.search(f"{info.kernel} {info.description}") or _SHARP_KERNEL.search(info.kernel)),
        not _PORTAL_VENOUS.search(info.description),
        round(info.spacing[2], 2) if info.spacing else np.inf,
        -info.slices,
        info.series_number if info.series_number is not None else np.inf,
        info.uid,
    )


@dataclass(frozen=True, eq=False)
class Series:
    """The files of a series, or of a part of one, arranged to a stack if possible.

    :param files: all files of the series: its division into parts depends on each of them.
    :param study: Study Instance UID; "" if there is none.
    :param notes: sentences for the user about decisions made when the slices were arranged.
    """

    files: frozenset[Path]
    slices: tuple[CtSlice, ...]
    arranged: Stack | None
    info: SeriesInfo
    study: str = ""
    notes: tuple[str, ...] = ()

    @property
    def places(self) -> int:
        """The number of different positions of its CT slices (to 0.1 mm), as far as these are known."""
        known = {tuple(np.round(one.position, 1)) for one in self.slices if one.position is not None}
        return len(known) + sum(one.position is None for one in self.slices)

    @property
    def stack(self) -> Stack:
        if self.arranged is None:
            raise InputError(f"Cannot use {self.info.name}: {self.info.problem}.")
        return self.arranged

    def without(self, damaged: Collection[Path]) -> Series:
        """The same series without the slices of some files, arranged anew."""
        slices = tuple(one for one in self.slices if one.path not in damaged)
        return _arranged(replace(self, files=self.files - set(damaged)), slices)


def arrange_series(files: Sequence[DicomFile]) -> list[Series]:
    """The series of `files`, which share one Series Instance UID; several parts if they hold more than one scan.

    Localizers and similar images are left out. The best part comes first.
    """
    kept = [file for file in files if file.not_a_slice is None]
    first = (kept or files)[0]
    info = SeriesInfo(
        number=0,
        uid=first.series,
        series_number=first.series_number,
        modality=first.modality,
        description=first.description,
        kernel=first.kernel,
        image_type=first.image_type,
        slices=sum(len(file.slices) for file in kept),
        n_skipped=len(files) - len(kept),
    )
    paths = frozenset(file.path for file in files)
    if not kept:
        return [Series(paths, (), None, replace(info, problem=first.not_a_slice), first.study)]
    parts = split([one for file in kept for one in file.slices], arrange_slices)
    if len(parts) == 1:
        whole = Series(paths, (), None, info, first.study, parts[0].notes)
        return [_arranged(whole, parts[0].slices)]
    by_path = {file.path: file for file in kept}
    found = []
    for part in parts:
        file = by_path[part.slices[0].path]
        of_part = replace(
            info,
            series_number=file.series_number,
            description=file.description,
            kernel=file.kernel,
            image_type=file.image_type,
            distinction=", ".join(part.distinction),
        )
        found.append(_arranged(Series(paths, (), None, of_part, file.study, part.notes), part.slices))
    found.sort(key=lambda series: rank(series.info))
    return [replace(one, info=replace(one.info, part=number)) for number, one in enumerate(found, start=1)]


def _arranged(series: Series, slices: tuple[CtSlice, ...]) -> Series:
    """The series with its slices in a stack, or with the reason why they do not form one."""
    info = replace(series.info, slices=len(slices), problem=None, can_be_resampled=False)
    if not all(one.rescaled for one in slices):
        note = "The series does not specify a rescaling to Hounsfield units; its values were used unchanged."
        series = replace(series, notes=tuple({**dict.fromkeys(series.notes), note: None}))
    try:
        stack = arrange_slices(slices)
        if isinstance(stack, str):
            return replace(series, slices=slices, arranged=None, info=replace(info, problem=stack))
        rows, columns = slices[0].size
        grid = Grid((stack.count, rows, columns), stack.ijk_to_lps)
        if not np.isfinite(grid.spacing).all():
            raise ValueError("the distance between slices is too large for a number")
    except (ValueError, ArithmeticError):
        # Positions may be numbers but not a valid geometry: 1e300 mm, for example.
        problem = "its orientation or pixel size makes no sense"
        return replace(series, slices=slices, arranged=None, info=replace(info, problem=problem))
    info = replace(
        info,
        size=(columns, rows, stack.count),
        spacing=grid.spacing,
        axes=axis_codes(grid),
        tilt_degrees=round(stack.tilt_degrees, 2),
        problem=stack.problem,
        can_be_resampled=stack.can_be_resampled,
    )
    return replace(series, slices=slices, arranged=stack, info=info)


def arrange_slices(slices: Sequence[CtSlice]) -> Stack | str:
    """The stack of slices that agree in size, orientation and pixel spacing; or a clause that says why they do not."""
    sizes = {one.size for one in slices}
    if len(sizes) > 1:
        listed = ", ".join(f"{columns} x {rows}" for rows, columns in sorted(sizes))
        return f"its slices differ in size ({listed})"
    positions = [one.position for one in slices if one.position is not None]
    orientations = [one.orientation for one in slices if one.orientation is not None]
    spacings = [one.pixel_spacing for one in slices if one.pixel_spacing is not None]
    if min(len(positions), len(orientations), len(spacings)) < len(slices):
        return "its slices lack a position, an orientation or a pixel size"
    if len(slices) < 2:
        return "it is a single slice; a CT volume is needed"
    row, column = orientations[0][:3], orientations[0][3:]
    skew = abs(row @ column) + abs(np.linalg.norm(row) - 1) + abs(np.linalg.norm(column) - 1)
    if not skew < 0.01 or not (spacings[0] > 0).all():
        return "its orientation or pixel size makes no sense"
    if np.abs(np.array(orientations) - orientations[0]).max() > SAME_DIRECTION:
        return "its slices differ in orientation"
    if np.abs(np.array(spacings) / spacings[0] - 1).max() > SAME_SPACING:
        return "its slices differ in pixel size"
    unscaled = sum(not one.rescaled for one in slices)
    if 0 < unscaled < len(slices):
        return f"{unscaled} of its {len(slices)} slices do not specify their rescaling to Hounsfield units"
    return sort_slices(np.array(positions), row * spacings[0][1], column * spacings[0][0])
