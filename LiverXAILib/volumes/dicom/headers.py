# SPDX-License-Identifier: Apache-2.0
"""Reading the headers of DICOM files: whether their images are slices of a CT, where they lie, which scan they are of.

This is the only module that reads values from the headers of input files. Any exception of pydicom about a file becomes
an :class:`~LiverXAILib.errors.InputError` that names the file. Descriptive values (a series number, a kernel) are left
out if they cannot be read; a file without the values that determine intensities or geometry counts as damaged.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from ...errors import InputError

#: CT Image, Enhanced CT Image and Legacy Converted Enhanced CT Image Storage.
_CT_CLASSES = {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
#: Values of Image Type that mark images that are not slices of a scan.
_NOT_SLICE_TYPES = {"LOCALIZER", "SCREEN SAVE", "CT_SOM5 PROT", "DOSE", "DOSE_INFO"}
#: Values of Rescale Type of a CT in Hounsfield units ("US" means unspecified).
_HU_TYPES = {"", "HU", "HU_MOD", "US"}
#: No CT image has more rows or columns than this; a header with larger values is damaged.
_LARGEST_MATRIX = 8192
#: The largest compression factor of Deflate.
_DEFLATE_FACTOR = 1032
#: Each compressed frame takes at least the header of one item.
_SMALLEST_FRAME_BYTES = 8

_HEADER_TAGS = [
    *("SOPClassUID", "Modality", "ImageType", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    "StudyDate",
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("SeriesNumber", "SeriesDescription", "ConvolutionKernel", "InstanceNumber", "SliceThickness", "KVP"),
    *("AcquisitionNumber", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ContrastBolusAgent"),
    *("TemporalPositionIdentifier", "TemporalPositionIndex", "NominalPercentageOfCardiacPhase"),
    *("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]


@dataclass(frozen=True, eq=False)
class CtSlice:
    """One frame of one file.

    :param size: rows, columns.
    :param position: LPS mm of the center of the first pixel; geometry is None where the header has none.
    :param rescaled: whether the header specifies the conversion of stored values to HU; a slope alone does not.
    :param instance: Instance Number, then the index of the frame.
    :param time: when it was acquired, in seconds; None if unknown.
    :param identity: values that slices of one scan have in common, by the names used in
        :mod:`LiverXAILib.volumes.dicom.identity`; absent if unknown.
    """

    path: Path
    frame: int
    size: tuple[int, int]
    position: np.ndarray | None
    orientation: np.ndarray | None
    pixel_spacing: np.ndarray | None
    slope: float = 1.0
    intercept: float = 0.0
    rescaled: bool = True
    instance: tuple[int, int] = (0, 0)
    time: float | None = None
    identity: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DicomFile:
    """The values of one file that assign it to a series.

    :param series: Series Instance UID; "" if there is none.
    :param study: Study Instance UID; "" if there is none.
    :param not_a_slice: a clause that says why it does not show slices of a CT scan; None if it does.
    """

    path: Path
    series: str
    study: str
    series_number: int | None
    modality: str
    description: str
    kernel: str
    image_type: str
    not_a_slice: str | None
    slices: tuple[CtSlice, ...]


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM, with or without the 128 bytes of preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    # Without a preamble, a data set starts with an element of group 0002 or 0008 and a low element number.
    return start[128:] == b"DICM" or (len(start) >= 8 and start[0] in (2, 8) and start[1] == 0 and start[3] == 0)


def read_header(path: Path) -> DicomFile | None:
    """The header values of a file; None if it is a DICOM directory or holds no object at all.

    :raises LiverXAILib.errors.InputError: it is damaged; the message describes how, without the path.
    """
    try:
        with pydicom_warnings_hidden(), path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_HEADER_TAGS)
            return _described(path, header, _pixel_bytes(file, header))
    except InputError:
        raise
    except Exception as error:  # pydicom raises almost any type
        raise InputError("its header is damaged") from error


def _pixel_bytes(file: BinaryIO, header: Dataset) -> int:
    """The number of bytes of pixels that follow in the file: their stated length, limited by the end of the file."""
    start, begin = file.read(12), file.tell()
    rest = file.seek(0, os.SEEK_END) - begin
    implicit, little = header.original_encoding
    order: Literal["little", "big"] = "big" if little is False else "little"
    length = int.from_bytes(start[4:8] if implicit else start[8:12], order)
    # 0xFFFFFFFF means an undefined length: up to the end of the compressed frames.
    return min(length, rest + 4 * bool(implicit))


def _described(path: Path, header: Dataset, pixel_bytes: int) -> DicomFile | None:
    if _sop_class(header) == _DIRECTORY_CLASS or not (_sop_class(header) or header.get("Modality")):
        return None
    if "SeriesInstanceUID" not in header and "Rows" not in header:
        raise InputError("its header is incomplete")
    reason = _why_not_a_ct_slice(header)
    number = _lenient(header, "SeriesNumber", int)
    return DicomFile(
        path=path,
        series=_lenient(header, "SeriesInstanceUID", str) or "",
        study=_lenient(header, "StudyInstanceUID", str) or "",
        series_number=number,
        modality=_text(header, "Modality") or "CT",
        description=_text(header, "SeriesDescription"),
        kernel=_text(header, "ConvolutionKernel"),
        image_type="\\".join(_strings(header.get("ImageType"))),
        not_a_slice=reason,
        slices=() if reason else tuple(_slices(path, header, pixel_bytes)),
    )


def _why_not_a_ct_slice(header: Dataset) -> str | None:
    modality, storage = str(header.get("Modality") or ""), _sop_class(header)
    if modality not in ("CT", ""):
        return f"it is {modality}, not CT"
    if storage and storage not in _CT_CLASSES:
        return f"it is not a CT image ({UID(storage).name})"
    image_types = {value.upper() for value in _strings(header.get("ImageType"))}
    if "LOCALIZER" in image_types:
        return "it is a localizer (scout)"
    if image_types & _NOT_SLICE_TYPES:
        return "it is a screen capture, not a slice"
    if "Rows" not in header or "Columns" not in header:
        if storage in _CT_CLASSES:
            raise InputError("its header is incomplete")
        return "it does not hold an image"
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "it is a color image"
    # A multi-frame file holds the type in its functional groups, usually the same for all frames.
    shared, frame = (
        next(iter(header.get(name) or []), Dataset())
        for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    )
    rescale_type = _FrameValues(header, shared, frame).text("RescaleType", "PixelValueTransformationSequence").upper()
    if rescale_type not in _HU_TYPES:
        return f"its values are {rescale_type}, not Hounsfield units"
    return None


def _slices(path: Path, header: Dataset, pixel_bytes: int) -> Iterator[CtSlice]:
    """The frames of a file, with the values of their functional groups, or its only frame."""
    count = int(header.get("NumberOfFrames") or 1)
    _check_pixel_size(header, count, pixel_bytes)
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or []), Dataset())
    frames = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * count
    if len(frames) != count:
        raise InputError(f"it has {count} frames but describes {len(frames)}")
    for index, frame in enumerate(frames):
        found = _FrameValues(header, shared, frame)
        slope = _finite(found.value("RescaleSlope", "PixelValueTransformationSequence"))
        intercept = _finite(found.value("RescaleIntercept", "PixelValueTransformationSequence"))
        yield CtSlice(
            path=path,
            frame=index,
            size=(int(header.Rows), int(header.Columns)),
            position=_numbers(found.value("ImagePositionPatient", "PlanePositionSequence"), 3),
            orientation=_numbers(found.value("ImageOrientationPatient", "PlaneOrientationSequence"), 6),
            pixel_spacing=_numbers(found.value("PixelSpacing", "PixelMeasuresSequence"), 2),
            # A slope of 0 would make the image constant; it means that there is none.
            slope=slope or 1.0,
            intercept=intercept or 0.0,
            rescaled=intercept is not None,
            instance=(_lenient(header, "InstanceNumber", int) or 0, index),
            time=found.seconds(),
            identity=found.identity(),
        )


class _FrameValues:
    """The values of one frame: from its own functional groups, the shared ones, or the file's header."""

    def __init__(self, header: Dataset, shared: Dataset, frame: Dataset) -> None:
        self._header, self._groups = header, (frame, shared)

    def value(self, keyword: str, group: str) -> Any:
        for source in self._groups:
            for item in source.get(group) or []:
                if keyword in item:
                    return item[keyword].value
        return self._header.get(keyword)

    def text(self, keyword: str, group: str = "") -> str:
        try:
            return " ".join(_strings(self.value(keyword, group) if group else self._header.get(keyword))).strip()
        except Exception:  # pydicom raises almost any type; descriptive values may be missing
            return ""

    def seconds(self) -> float | None:
        """The acquisition time in seconds, since January 1 of year 0 or since midnight."""
        stamp = self.text("FrameAcquisitionDateTime", "FrameContentSequence") or self.text("AcquisitionDateTime")
        date, time = (stamp[:8], stamp[8:]) if stamp else (self.text("AcquisitionDate"), self.text("AcquisitionTime"))
        time = time.replace(":", "")
        try:
            day = np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:8]}", "D").astype(int) if len(date) >= 8 else 0
            return 86400.0 * int(day) + 3600 * int(time[:2]) + 60 * int(time[2:4] or 0) + float(time[4:13] or 0)
        except ValueError:
            return None

    def identity(self) -> dict[str, str]:
        position = self.text("TemporalPositionIndex", "FrameContentSequence")
        values = {
            "patient": "^".join(self.text(k) for k in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")),
            "study": self.text("StudyInstanceUID"),
            "study date": self.text("StudyDate"),
            "frame of reference": self.text("FrameOfReferenceUID"),
            "series number": self.text("SeriesNumber"),
            "description": self.text("SeriesDescription"),
            "kernel": self.text("ConvolutionKernel", "CTReconstructionSequence"),
            "contrast agent": self.text("ContrastBolusAgent"),
            "temporal position": position or self.text("TemporalPositionIdentifier"),
            "cardiac phase": self.text("NominalPercentageOfCardiacPhase", "CardiacSynchronizationSequence"),
            "acquisition": self.text("FrameAcquisitionNumber", "FrameContentSequence")
            or self.text("AcquisitionNumber"),
            "slice thickness": _plain(self.text("SliceThickness", "PixelMeasuresSequence"), "mm"),
            "tube voltage": _plain(self.text("KVP", "CTXRayDetailsSequence"), "kV"),
            "image type": self.text("ImageType"),
        }
        return {name: value for name, value in values.items() if value}


def _check_pixel_size(header: Dataset, frames: int, pixel_bytes: int) -> None:
    """Refuse a file that cannot hold the pixels that its header specifies."""
    rows, columns, bits = int(header.Rows), int(header.Columns), int(header.get("BitsAllocated") or 16)
    if not (1 <= rows <= _LARGEST_MATRIX and 1 <= columns <= _LARGEST_MATRIX and frames >= 1 and bits in (8, 16, 32)):
        raise InputError(f"its size makes no sense ({columns} x {rows} pixels of {bits} bits, {frames} frames)")
    # Checked before any memory is allocated.
    expected = rows * columns * frames * bits // 8
    syntax = UID(header.file_meta.get("TransferSyntaxUID", ""))
    if syntax.is_valid and syntax.is_transfer_syntax and syntax.is_encapsulated:
        fits = frames * _SMALLEST_FRAME_BYTES <= pixel_bytes
    elif syntax == DeflatedExplicitVRLittleEndian:
        fits = expected <= _DEFLATE_FACTOR * Path(header.filename).stat().st_size if header.filename else True
    else:
        # One byte may pad an odd length. Any other difference means that the size or the pixels are damaged.
        fits = pixel_bytes in (expected, expected + 1)
    if not fits:
        raise InputError("its pixels are incomplete, or do not have the stated size")


def _sop_class(header: Dataset) -> str:
    """The SOP class, from the file meta information if the data set lacks it."""
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")


def _lenient(header: Dataset, keyword: str, convert: Callable[[Any], Any]) -> Any:
    """A descriptive value; None if it is missing or cannot be read."""
    try:
        value = header.get(keyword)
        return None if value is None or value == "" else convert(value)
    except Exception:  # pydicom raises almost any type
        return None


def _text(header: Dataset, keyword: str) -> str:
    return " ".join(_lenient(header, keyword, _strings) or []).strip()


def _finite(value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = float(value)
    if not np.isfinite(number):
        raise InputError("its rescaling to Hounsfield units is not a number")
    return number


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """`count` finite numbers, or None."""
    if value is None or value == "" or len(value) != count:
        return None
    numbers = np.array([float(number) for number in value])
    return numbers if np.isfinite(numbers).all() else None


def _plain(number: str, unit: str) -> str:
    """The same text for equal numbers ("5.0" and "5.000"); "" if it is not a number."""
    try:
        return f"{float(number):g} {unit}"
    except ValueError:
        return ""


def _strings(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    return (
        [str(one) for one in value] if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [str(value)]
    )


@contextmanager
def pydicom_warnings_hidden() -> Iterator[None]:
    """Suppress pydicom's warnings about irrelevant deviations from the standard, which quote the patient's values.

    They are suppressed in all threads, until the last of them has left its block.
    """
    global _hiding
    with _hiding_lock:
        if not _hiding:
            _hidden.enter_context(_nothing_shown())
        _hiding += 1
    try:
        yield
    finally:
        with _hiding_lock:
            _hiding -= 1
            if not _hiding:
                _hidden.close()


#: How many blocks of :func:`pydicom_warnings_hidden` are active.
_hiding = 0
_hiding_lock = threading.Lock()
_hidden = ExitStack()


@contextmanager
def _nothing_shown() -> Iterator[None]:
    # Another level would empty the caches of all loggers, each time a header is read.
    logger = logging.getLogger("pydicom")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
