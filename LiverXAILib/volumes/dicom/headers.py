# SPDX-License-Identifier: Apache-2.0
"""What a DICOM file's header says of its pictures: whether they are slices of a CT, and where they lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

#: CT Image, Enhanced CT Image and Legacy Converted Enhanced CT Image Storage.
_CT_CLASSES = {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
#: Values of Image Type of pictures that are not slices of a scan.
_NOT_SLICE_TYPES = {"LOCALIZER", "SCREEN SAVE", "CT_SOM5 PROT", "DOSE", "DOSE_INFO"}
#: Values of Rescale Type under which a CT holds Hounsfield units ("US" is unspecified).
_HU_TYPES = {"", "HU", "HU_MOD", "US"}
HEADER_TAGS = [
    "SOPClassUID",
    "StudyInstanceUID",
    "Modality",
    "ImageType",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ConvolutionKernel",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, eq=False)
class CtSlice:
    """One frame of one file; geometry is None where the header has none."""

    path: Path
    frame: int
    size: tuple[int, int]
    position: np.ndarray | None
    orientation: np.ndarray | None
    pixel_spacing: np.ndarray | None
    slope: float
    intercept: float


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM, with or without the 128 bytes of preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    # Without preamble, a data set starts with an element of group 0002 or 0008 and a low element number.
    return start[128:] == b"DICM" or (len(start) >= 8 and start[0] in (2, 8) and start[1] == 0 and start[3] == 0)


def why_not_a_ct_slice(header: Dataset) -> str | None:
    """Why a file is not a slice of a CT scan, in words; None if it is one."""
    modality, storage = str(header.get("Modality") or ""), sop_class(header)
    if modality not in ("CT", ""):
        return f"it is {modality}, not CT"
    if storage and storage not in _CT_CLASSES:
        return f"it is not a CT image ({UID(storage).name})"
    image_types = {value.upper() for value in strings(header.get("ImageType"))}
    if "LOCALIZER" in image_types:
        return "it is a localizer (scout)"
    if image_types & _NOT_SLICE_TYPES:
        return "it is a saved screen, not a slice"
    if "Rows" not in header or "Columns" not in header:
        return "it does not hold an image"
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "it is a color picture"
    rescale_type = text(header.get("RescaleType")).upper()
    if rescale_type not in _HU_TYPES:
        return f"its values are {rescale_type}, not Hounsfield units"
    return None


def slices_in(path: Path, header: Dataset) -> Iterator[CtSlice]:
    """The frames of a file with what their functional groups say, or its only frame."""
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or []), Dataset())
    frames = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * int(header.get("NumberOfFrames") or 1)

    def value(frame: Dataset, group: str, keyword: str) -> Any:
        for source in (frame, shared):
            for item in source.get(group) or []:
                if keyword in item:
                    return item[keyword].value
        return header.get(keyword)

    for index, frame in enumerate(frames):
        slope = value(frame, "PixelValueTransformationSequence", "RescaleSlope")
        intercept = value(frame, "PixelValueTransformationSequence", "RescaleIntercept")
        yield CtSlice(
            path=path,
            frame=index,
            size=(int(header.Rows), int(header.Columns)),
            position=_numbers(value(frame, "PlanePositionSequence", "ImagePositionPatient"), 3),
            orientation=_numbers(value(frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6),
            pixel_spacing=_numbers(value(frame, "PixelMeasuresSequence", "PixelSpacing"), 2),
            # A slope of 0 would wipe out the image; it stands for "none".
            slope=float(slope or 1.0),
            intercept=float(intercept or 0.0),
        )


def sop_class(header: Dataset) -> str:
    """The SOP class, from the file's meta header where the data set lost it."""
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """`count` finite numbers, or None."""
    if value is None or value == "" or len(value) != count:
        return None
    numbers = np.array([float(number) for number in value])
    return numbers if np.isfinite(numbers).all() else None


def integer(value: Any) -> int | None:
    return None if value is None or value == "" else int(value)


def strings(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else [str(one) for one in value]


def text(value: Any) -> str:
    return " ".join(strings(value)).strip()


@contextmanager
def pydicom_warnings_hidden() -> Iterator[None]:
    """Keep pydicom from warning about deviations from the standard that do not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
