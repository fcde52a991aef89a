# SPDX-License-Identifier: Apache-2.0
"""A CT series: its slices arranged to a volume, and how good it is for finding a liver."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from ...errors import InputError
from ...progress import CancelToken, Progress, check_cancel, report_progress
from ..intensities import compact
from ..orientation import axis_codes
from ..stack import Stack, sort_slices
from ..volume import Grid
from .headers import CtSlice, integer, slices_in, strings, text, why_not_a_ct_slice
from .pixels import StoredPixels

#: Cosines, and relative pixel spacings, that differ by less than this are the same.
_SAME_DIRECTION, _SAME_SPACING = 1e-3, 1e-3
#: A series at least this long may show a whole liver.
_LIVER_MM = 100.0
_SHARP_WORDS = re.compile(r"lung|bone|edge|sharp|inner ?ear", re.IGNORECASE)
#: Siemens B50f and Br59 upward, Canon FC30 upward, and the sharp ones of Philips.
_SHARP_KERNEL = re.compile(r"\b[a-z]{1,2}[5-9]\d(?!\d)|\bfc[3-9]\d|^(d|e|l|y[a-d])$", re.IGNORECASE)
_PORTAL_VENOUS = re.compile(r"portal|ven(ous|ös|oes|eus|ose)|(?<![a-z])(pv|pvp)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class SeriesInfo:
    """What a list of series shows; nothing in it identifies the patient.

    `number` counts from 1, the best first, and is what ``series=`` takes. `size` is voxels along (i, j, k), `spacing`
    mm. `axes` is where the array's axes (k, j, i) run. `n_skipped` counts pictures of the series that are not slices.
    `problem` says in words why the series cannot be read as CT; `can_be_resampled` that ``allow_irregular=True`` reads
    it anyway.
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

    @property
    def name(self) -> str:
        """What a message calls the series."""
        number = f"series {self.series_number}" if self.series_number is not None else "series without a number"
        return f'DICOM {number} ("{self.description}")' if self.description else f"DICOM {number}"

    def summary(self) -> dict[str, Any]:
        """For :attr:`Volume.metadata`: everything but the UID."""
        return {"name": self.name, **{name: value for name, value in asdict(self).items() if name != "uid"}}


def rank(info: SeriesInfo) -> tuple[Any, ...]:
    """The rule by which the best CT series is chosen; the smallest tuple wins.

    1. It can be read (a series that needs ``allow_irregular`` comes after those that do not).
    2. Its slices are axial, rather than coronal or sagittal.
    3. It is long enough for a liver (100 mm).
    4. It is an original reconstruction, not derived from another one.
    5. Its kernel is for soft tissue, rather than for lung or bone.
    6. Its description says portal venous, the phase in which liver and lesions differ most.
    7. Its slices are closer together; then, it has more of them.
    8. It has the lower series number, at last the lower UID.
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
    """The files of a series, arranged as far as possible.

    :param study: Study Instance UID; "" if there is none.
    """

    files: frozenset[Path]
    slices: tuple[CtSlice, ...]
    arranged: Stack | None
    info: SeriesInfo
    study: str = ""

    @property
    def places(self) -> int:
        """How many different places its CT slices show (to 0.1 mm), as far as they say where they are."""
        known = {tuple(np.round(one.position, 1)) for one in self.slices if one.position is not None}
        return len(known) + sum(one.position is None for one in self.slices)

    @property
    def stack(self) -> Stack:
        if self.arranged is None:
            raise InputError(f"Cannot use {self.info.name}: {self.info.problem}.")
        return self.arranged

    def read(self, progress: Progress | None, cancel: CancelToken | None) -> tuple[np.ndarray, list[str]]:
        """Voxels in HU (n, j, i) in the order of the stack, and notes for the user."""
        images: list[np.ndarray] = []
        distrusted = False
        opened: StoredPixels | None = None
        for done, index in enumerate(self.stack.order):
            check_cancel(cancel)
            report_progress(progress, "Reading the image", done / len(self.slices))
            one = self.slices[index]
            if opened is None or opened.path != one.path:
                opened = StoredPixels(one.path)
            image, ignored_padding = opened.hounsfield(one)
            distrusted |= ignored_padding
            images.append(compact(image, self.info.name))
        report_progress(progress, "Reading the image", 1.0)
        notes = ["The padding value of the series lies within soft tissue and was ignored."] * distrusted
        return np.stack(images), notes


def arrange_series(members: list[tuple[Path, Dataset]]) -> Series:
    """Describe a series and arrange its slices; localizers and the like among them are left out."""
    reasons = [why_not_a_ct_slice(header) for _, header in members]
    kept = [member for member, reason in zip(members, reasons, strict=True) if reason is None]
    first = (kept or members)[0][1]
    info = SeriesInfo(
        number=0,
        uid=str(first.get("SeriesInstanceUID") or ""),
        series_number=integer(first.get("SeriesNumber")),
        modality=str(first.get("Modality") or "CT"),
        description=text(first.get("SeriesDescription")),
        kernel=text(first.get("ConvolutionKernel")),
        image_type="\\".join(strings(first.get("ImageType"))),
        slices=len(kept),
        n_skipped=len(members) - len(kept),
    )
    files = frozenset(path for path, _ in members)
    study = str(members[0][1].get("StudyInstanceUID") or "")
    if not kept:
        return Series(files, (), None, replace(info, problem=reasons[0]), study)
    try:
        slices = tuple(one for path, header in kept for one in slices_in(path, header))
        stack = _arrange_slices(slices)
    except (ValueError, TypeError, AttributeError):
        return Series(files, (), None, replace(info, problem="its headers are damaged"), study)
    info = replace(info, slices=len(slices))
    if isinstance(stack, str):
        return Series(files, slices, None, replace(info, problem=stack), study)
    rows, columns = slices[0].size
    grid = Grid((stack.count, rows, columns), stack.ijk_to_lps)
    info = replace(
        info,
        size=(columns, rows, stack.count),
        spacing=grid.spacing,
        axes=axis_codes(grid),
        tilt_degrees=round(stack.tilt_degrees, 2),
        problem=stack.problem,
        can_be_resampled=stack.can_be_resampled,
    )
    return Series(files, slices, stack, info, study)


def _arrange_slices(slices: tuple[CtSlice, ...]) -> Stack | str:
    """The stack of slices that agree in size, orientation and pixel spacing; or why there is none, in words."""
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
    if np.abs(np.array(orientations) - orientations[0]).max() > _SAME_DIRECTION:
        return "its slices differ in orientation"
    if np.abs(np.array(spacings) / spacings[0] - 1).max() > _SAME_SPACING:
        return "its slices differ in pixel size"
    return sort_slices(np.array(positions), row * spacings[0][1], column * spacings[0][0])
