# SPDX-License-Identifier: Apache-2.0
"""The stored values of a DICOM file in Hounsfield units.

Uncompressed pixels are read by pydicom; compressed ones (JPEG, JPEG-LS, JPEG 2000, RLE) are decoded by the GDCM in
SimpleITK, which needs no plugins. Rescaling and padding always come from the header.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_fragments
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from ...errors import InputError
from ...files import staging_folder
from ..intensities import PADDING_HU
from ..itk import itk_warnings_hidden
from .headers import CtSlice, pydicom_warnings_hidden

#: A class for any number of grayscale frames and nothing else, in which GDCM decodes pixels without interpreting them.
_GRAY_FRAMES_CLASS = UID("1.2.840.10008.5.1.4.1.1.7.3")
#: A padding value in the range of soft tissue would punch holes into organs, so it is ignored.
_TISSUE_HU = (-200.0, 300.0)
_PIXEL_KEYWORDS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData")


class StoredPixels:
    """The stored values of one file.

    :raises LiverXAILib.errors.InputError: the file is damaged; the message describes how, without the path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pydicom_warnings_hidden():
                self._dataset = pydicom.dcmread(path, force=True)
        except Exception as error:  # pydicom, and zlib for deflated files, raise almost any type
            raise InputError("it is damaged and cannot be read") from error

    @cached_property
    def _frames(self) -> np.ndarray:
        """(frames, rows, columns), before rescaling."""
        dataset = self._dataset
        if "TransferSyntaxUID" not in dataset.file_meta:
            # A file without a meta header is uncompressed; pydicom has detected how its elements are encoded.
            implicit, _ = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        syntax = dataset.file_meta.TransferSyntaxUID
        try:
            with pydicom_warnings_hidden(), itk_warnings_hidden():
                if syntax.is_encapsulated:
                    _check_segments(dataset, syntax)
                    frames = _unpacked_by_gdcm(dataset, syntax)
                else:
                    _check_length(dataset)
                    frames = _unpacked_by_pydicom(dataset)
                return frames.reshape(-1, dataset.Rows, dataset.Columns)
        except Exception as error:  # the two libraries raise almost any type
            raise InputError("its pixels are damaged, incomplete or compressed in an unknown way") from error

    def hounsfield(self, one: CtSlice) -> tuple[np.ndarray, str | None]:
        """A slice in HU with its padding set to air, and a sentence about its padding value if that was ignored."""
        if one.frame >= len(self._frames):
            raise InputError("its pixels are incomplete")
        stored = self._frames[one.frame]
        image = stored * one.slope + one.intercept
        try:
            ranges = list(self._padding())
        except Exception:  # pydicom raises almost any type about odd values
            return image, "The padding value of the series cannot be read and was ignored."
        note = None
        for first, last in ranges:
            low, high = sorted((first * one.slope + one.intercept, last * one.slope + one.intercept))
            if high >= _TISSUE_HU[0] and low <= _TISSUE_HU[1]:
                note = "The padding value of the series lies within soft tissue and was ignored."
            else:
                image[(stored >= first) & (stored <= last)] = PADDING_HU
        return image, note

    def _padding(self) -> Iterator[tuple[int, int]]:
        """Ranges of stored values that mean padding."""
        values, limits = self._stored_numbers("PixelPaddingValue"), self._stored_numbers("PixelPaddingRangeLimit")
        if len(values) == len(limits) == 1:
            yield min(values + limits), max(values + limits)
        else:
            yield from ((value, value) for value in values)

    def _stored_numbers(self, keyword: str) -> list[int]:
        value = self._dataset.get(keyword)
        if value is None or value == "":
            return []
        # The header may hold a signed value as unsigned, as in 63536 for -2000, or as bytes.
        bits, signed = int(self._dataset.BitsAllocated), bool(self._dataset.PixelRepresentation)
        numbers = [int(one) % (1 << bits) for one in self._plain_numbers(value, bits)]
        return sorted({one - (1 << bits) if signed and one >= 1 << (bits - 1) else one for one in numbers})

    def _plain_numbers(self, value: Any, bits: int) -> list[Any]:
        if isinstance(value, bytes):
            order = "<" if self._dataset.original_encoding[1] is not False else ">"
            return np.frombuffer(value, f"{order}u{bits // 8}").tolist()
        return list(value) if isinstance(value, (list, MultiValue)) else [value]


def _check_length(dataset: Dataset) -> None:
    """Refuse uncompressed pixels whose number differs from the header's: damage to either would shift all lines."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    expected = dataset.Rows * dataset.Columns * frames * dataset.BitsAllocated // 8
    if len(dataset.PixelData) not in (expected, expected + 1):
        raise ValueError(f"{len(dataset.PixelData)} bytes of pixels instead of {expected}")


def _unpacked_by_pydicom(dataset: Dataset) -> np.ndarray:
    """The stored values of uncompressed pixels, which old files may keep in the upper bits of each word.

    pydicom ignores High Bit. So do files that state it wrongly, but then the lower bits are in use.
    """
    stored, unused = int(dataset.BitsStored), int(dataset.get("HighBit", 0)) + 1 - int(dataset.BitsStored)
    if unused > 0 and stored + unused <= dataset.BitsAllocated:
        dataset.BitsStored = stored + unused
        frames: np.ndarray = dataset.pixel_array
        if not (frames & ((1 << unused) - 1)).any():
            return frames >> unused
        dataset.BitsStored = stored
    return dataset.pixel_array


def _check_segments(dataset: Dataset, syntax: UID) -> None:
    """Refuse run-length encoded frames of no segments: GDCM divides by their number, which would end the process."""
    # The first item is the table of offsets.
    frames = islice(generate_fragments(dataset.PixelData), 1, None) if syntax == RLELossless else ()
    if any(int.from_bytes(frame[:4], "little") == 0 for frame in frames):
        raise ValueError("a frame has no segments")


def _unpacked_by_gdcm(dataset: Dataset, syntax: UID) -> np.ndarray:
    """The stored values of compressed pixels, decoded through a temporary file that holds nothing else."""
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    bare.SOPClassUID = bare.file_meta.MediaStorageSOPClassUID = _GRAY_FRAMES_CLASS
    bare.SOPInstanceUID = bare.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    bare.Modality = "OT"
    bare.PhotometricInterpretation = "MONOCHROME2"
    for keyword in _PIXEL_KEYWORDS:
        bare[keyword] = dataset[keyword]
    bare.SamplesPerPixel = 1
    bare.NumberOfFrames = dataset.get("NumberOfFrames") or 1
    with staging_folder(Path(tempfile.gettempdir()) / "liverxai-pixels", private=True) as folder:
        path = folder / "pixels.dcm"
        bare.save_as(path, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
