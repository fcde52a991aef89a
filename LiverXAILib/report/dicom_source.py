# SPDX-License-Identifier: Apache-2.0
"""What a DICOM object made from a CT series takes over from it: patient, study, frame of reference, slices.

Headers from hospitals and anonymizers violate the standard in many ways, and so would a derived object that copied
them. Therefore nothing is copied unchanged: each value is read and converted to the standard's form, or left empty. A
sentence says what was repaired or left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, generate_uid

from ..errors import InputError, UsageError
from ..volumes.dicom.headers import pydicom_warnings_hidden, read_header
from ..volumes.volume import Grid, Volume

_TAGS = [
    *("SpecificCharacterSet", "PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "SeriesDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "SeriesInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("SOPClassUID", "SOPInstanceUID", "Modality", "Rows", "Columns", "SliceThickness", "InstanceNumber"),
]
#: The maximum length of each text, by value representation.
_LONGEST = {"SH": 16, "LO": 64, "PN": 64}
_SEXES = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "O": "O", "OTHER": "O"}
#: Distance, in voxels, within which a slice is where its file says.
_SAME_PLACE = 0.05
#: Significant digits that fit into the 16 characters of a DICOM decimal string.
_DECIMALS = 9


@dataclass(frozen=True, eq=False)
class DicomSource:
    """The series that derived objects belong to.

    :param headers: one for each slice of the volume, in their order: the values that derived objects need, all in the
        form that the standard requires. Positions are those of the volume's grid.
    :param can_be_referenced: whether the headers' instances exist, so that an object may refer to them. Otherwise
        their UIDs were generated (multi-frame files, resampled slices, missing UIDs).
    :param notes: sentences about what was repaired or left out.
    """

    headers: tuple[Dataset, ...]
    can_be_referenced: bool
    notes: tuple[str, ...]

    @property
    def first(self) -> Dataset:
        return self.headers[0]


def read_source(volume: Volume) -> DicomSource:
    """The source of a CT that was read from DICOM.

    :raises LiverXAILib.errors.UsageError: it was not read from DICOM.
    :raises LiverXAILib.errors.InputError: a file of the series can no longer be read.
    """
    files = volume.metadata.get("files")
    if not files:
        raise UsageError("DICOM objects can only be made from a CT that was read from DICOM files.")
    cleaned = _Cleaned([_header(Path(name)) for name in files])
    resampled = (volume.metadata.get("series") or {}).get("problem") is not None
    instances = cleaned.instances() if len(files) == volume.shape[0] and not resampled else None
    common = cleaned.common(volume)
    referenced = instances is not None
    if instances is None:
        note = "The object refers to no images: the series does not have an instance with valid UIDs for each slice."
        cleaned.notes[note] = None
        instances = [generate_uid(entropy_srcs=[cleaned.series, str(k)]) for k in range(volume.shape[0])]
        common.SOPClassUID = CTImageStorage
    headers = []
    for k, instance in enumerate(instances):
        header = Dataset()
        header.update(common)
        header.SOPInstanceUID, header.InstanceNumber = instance, k + 1
        header.ImagePositionPatient = _decimals(volume.grid.to_lps(np.array([0.0, 0.0, float(k)])))
        headers.append(header)
    return DicomSource(tuple(headers), referenced, tuple(cleaned.notes))


def files_of_slices(files: Sequence[Path], grid: Grid) -> list[Path]:
    """Sort the files of a series by the slices of a volume that was made from them elsewhere, such as in Slicer.

    :param files: one for each slice, in any order.
    :param grid: the volume's, LPS mm.
    :raises LiverXAILib.errors.UsageError: the volume's slices are not those of the files, or not where they were
        acquired.
    :raises LiverXAILib.errors.InputError: a file can no longer be read.
    """
    to_index = np.linalg.inv(grid.ijk_to_lps)
    found: dict[int, Path] = {}
    for path in files:
        corners = to_index @ _corners(path)
        k = round(float(corners[2, 0]))
        expected = [[0, grid.shape[2] - 1], [0, grid.shape[1] - 1], [k, k]]
        if np.abs(corners[:3] - expected).max() < _SAME_PLACE and 0 <= k < grid.shape[0]:
            found[k] = path
    if len(found) != grid.shape[0]:
        raise UsageError(
            f"Of the {grid.shape[0]} slices of the CT, {len(found)} are where its DICOM files say. It was transformed, "
            "cropped or resampled since it was loaded, so no DICOM object of its series can be made. Load it again, or "
            "do not choose DICOM files."
        )
    return [found[k] for k in range(grid.shape[0])]


def _corners(path: Path) -> np.ndarray:
    """The centers of the first and the last pixel of a slice, LPS mm, as columns (x, y, z, 1); NaN if unknown."""
    try:
        header = read_header(path)
    except (InputError, OSError) as error:
        raise InputError(f"{path} can no longer be read, so no DICOM object can refer to it.") from error
    if header is None or len(header.slices) != 1:
        return np.full((4, 2), np.nan)
    (one,) = header.slices
    if one.position is None or one.orientation is None or one.pixel_spacing is None:
        return np.full((4, 2), np.nan)
    across, down = one.orientation.reshape(2, 3) * one.pixel_spacing[::-1, None]
    last = one.position + across * (one.size[1] - 1) + down * (one.size[0] - 1)
    return np.array([[*one.position, 1.0], [*last, 1.0]]).T


def study_text(volume: Volume) -> str:
    """Study and series date, series number and description of a CT that was read from DICOM; "" for other images.

    :raises LiverXAILib.errors.InputError: the first file of the series can no longer be read.
    """
    files = volume.metadata.get("files")
    if not files:
        return ""
    header, series = _header(Path(files[0])), volume.metadata.get("series") or {}
    days = {name: _date(str(header.get(f"{name}Date") or "")) for name in ("Study", "Series")}
    known = [f"{name.lower()} of {day[:4]}-{day[4:6]}-{day[6:]}" for name, day in days.items() if day]
    return ", ".join([*known, *filter(None, [str(series.get("name") or "").removeprefix("DICOM ")])])


def _header(path: Path) -> Dataset:
    try:
        with pydicom_warnings_hidden():
            return pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
    except Exception as error:  # pydicom raises almost any type
        raise InputError(f"{path} can no longer be read, so no DICOM object can refer to it.") from error


@dataclass
class _Cleaned:
    """The values of a series in the standard's form; `notes` holds the notes in the order in which they arose."""

    raw: Sequence[Dataset]
    notes: dict[str, None] = field(default_factory=dict)

    def common(self, volume: Volume) -> Dataset:
        """The values that all slices share. Texts are Unicode and become UTF-8 in the file, whatever their encoding."""
        header = Dataset()
        header.SpecificCharacterSet = "ISO_IR 192"
        for keyword, kind in (("PatientID", "LO"), ("StudyID", "SH"), ("AccessionNumber", "SH")):
            setattr(header, keyword, self._text(keyword, kind))
        for keyword in ("PatientName", "ReferringPhysicianName"):
            setattr(header, keyword, self._text(keyword, "PN"))
        header.PatientBirthDate = self._converted("PatientBirthDate", _date)
        header.PatientSex = self._converted("PatientSex", lambda text: _SEXES.get(text.upper()))
        header.StudyDate, header.StudyTime = self._converted("StudyDate", _date), self._converted("StudyTime", _time)
        if description := self._text("StudyDescription", "LO"):
            header.StudyDescription = description
        header.StudyInstanceUID, header.SeriesInstanceUID = self._uid("StudyInstanceUID"), self.series
        header.FrameOfReferenceUID = self._uid("FrameOfReferenceUID")
        header.PositionReferenceIndicator = self._text("PositionReferenceIndicator", "LO")
        header.SOPClassUID, header.Modality = self._storage(), "CT"
        header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        _, header.Rows, header.Columns = volume.shape
        i, j, _ = volume.spacing
        across = np.cross(*volume.grid.direction.T[:2])
        between = abs(float(volume.ijk_to_lps[:3, 2] @ across / np.linalg.norm(across)))
        header.PixelSpacing = _decimals([j, i])
        header.ImageOrientationPatient = _decimals(_orthonormal(volume.grid.direction))
        header.SliceThickness = _decimals([self._thickness() or between])[0]
        header.SpacingBetweenSlices = _decimals([between])[0]
        return header

    @property
    def series(self) -> str:
        return self._uid("SeriesInstanceUID")

    def instances(self) -> list[str] | None:
        """The SOP Instance UIDs of the files; None if they cannot be used as references."""
        found = [
            _valid_uid(_value(raw, "SOPInstanceUID")) or _valid_uid(raw.file_meta.get("MediaStorageSOPInstanceUID"))
            for raw in self.raw
        ]
        uids = [uid for uid in found if uid]
        known = _valid_uid(_value(self.raw[0], "SeriesInstanceUID"))
        return uids if known and len(set(uids)) == len(self.raw) else None

    def _uid(self, keyword: str) -> str:
        """The UID that all files should share; without one, a new UID that is the same each time."""
        found = Counter(uid for raw in self.raw if (uid := _valid_uid(_value(raw, keyword))))
        name = keyword.removesuffix("UID").replace("OfReference", " of Reference").replace("Instance", " Instance")
        if not found:
            self.notes[f"The series has no valid {name} UID; a new one was made for the object."] = None
            names = sorted(str(_value(raw, "SOPInstanceUID") or raw.filename) for raw in self.raw)
            return generate_uid(entropy_srcs=[keyword, *names])
        if len(found) > 1:
            self.notes[f"The slices have different {name} UIDs; the most common one was taken."] = None
        return min(found, key=lambda uid: (-found[uid], uid))

    def _storage(self) -> str:
        return _valid_uid(_value(self.raw[0], "SOPClassUID")) or str(CTImageStorage)

    def _thickness(self) -> float | None:
        try:
            thickness = float(_value(self.raw[0], "SliceThickness"))
        except (TypeError, ValueError):
            return None
        return thickness if np.isfinite(thickness) and thickness > 0 else None

    def _text(self, keyword: str, kind: str) -> str:
        value = _value(self.raw[0], keyword)
        if isinstance(value, (list, pydicom.multival.MultiValue)):
            value = value[0] if value else None
        if value is None and self.raw[0].get_item(keyword) is not None:
            self.notes[f"{_words(keyword)} cannot be read and was left empty."] = None
        text = "".join(one for one in str(value or "") if one.isprintable() and one != "\\").strip()
        if kind == "PN":
            groups = text.split("=")[:3]
            short = "=".join("^".join(group.split("^")[:5])[: _LONGEST[kind]] for group in groups)
        else:
            short = text[: _LONGEST[kind]]
        if short != text:
            self.notes[f"{_words(keyword)} is longer than DICOM allows and was cut."] = None
        return short

    def _converted(self, keyword: str, convert: Callable[[str], str | None]) -> str:
        value = _value(self.raw[0], keyword)
        text = str(value if value is not None else "").strip()
        converted = convert(text) if text else ""
        if converted is None or (value is None and self.raw[0].get_item(keyword) is not None):
            self.notes[f"{_words(keyword)} is not what DICOM allows and was left empty."] = None
        return converted or ""


def _value(header: Dataset, keyword: str) -> Any:
    try:
        with pydicom_warnings_hidden():
            value = header.get(keyword)
            # Names are decoded only on access.
            str(value)
            return value
    except Exception:  # pydicom raises almost any type
        return None


def _valid_uid(value: Any) -> str | None:
    text = str(value or "").strip()
    return text if len(text) <= 64 and UID(text).is_valid and "." in text else None


def _date(text: str) -> str | None:
    """YYYYMMDD; also from YYYY.MM.DD, as before 1993, and YYYY-MM-DD."""
    match = re.fullmatch(r"(\d{4})([.\-/]?)(\d\d)\2(\d\d)", text)
    if match is None:
        return None
    try:
        np.datetime64(f"{match[1]}-{match[3]}-{match[4]}", "D")
    except ValueError:
        return None
    return match[1] + match[3] + match[4]


def _time(text: str) -> str | None:
    """HHMMSS.FFFFFF, or as much of it as is given; also from HH:MM:SS."""
    match = re.fullmatch(r"([01]\d|2[0-3])(?::?([0-5]\d)(?::?([0-5]\d)(\.\d{1,6})?)?)?", text)
    return "".join(part or "" for part in match.groups()) if match else None


def _words(keyword: str) -> str:
    """The keyword as words: "Patient Birth Date"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", keyword)


def _orthonormal(direction: np.ndarray) -> np.ndarray:
    """Two orthonormal direction cosines (6 numbers) close to the first two columns of a direction matrix."""
    row = direction[:, 0] / np.linalg.norm(direction[:, 0])
    column = direction[:, 1] - (direction[:, 1] @ row) * row
    return np.concatenate([row, column / np.linalg.norm(column)])


def _decimals(values: Sequence[float] | np.ndarray) -> list[float]:
    """Numbers that fit into decimal strings."""
    return [float(f"{value:.{_DECIMALS}g}") + 0.0 for value in values]
