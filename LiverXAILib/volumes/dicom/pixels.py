# SPDX-License-Identifier: Apache-2.0
"""The stored values of a DICOM file in Hounsfield units.

Uncompressed pixels are read by pydicom; compressed ones (JPEG, JPEG-LS, JPEG 2000, RLE) are unpacked by the GDCM in
SimpleITK, which needs no plugins. Intensities always come from the header.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ...errors import InputError
from ..intensities import PADDING_HU
from ..itk import itk_warnings_hidden
from .headers import CtSlice, pydicom_warnings_hidden

#: Any number of gray frames and nothing else: the wrapping in which GDCM unpacks pixels without interpreting them.
_GRAY_FRAMES_CLASS = UID("1.2.840.10008.5.1.4.1.1.7.3")
#: A padding value that means soft tissue would punch holes into organs: it is not believed.
_TISSUE_HU = (-200.0, 300.0)


class StoredPixels:
    """The stored values of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pydicom_warnings_hidden():
                self._dataset = pydicom.dcmread(path, force=True)
        except Exception as error:
            raise InputError(f"{path} is damaged and cannot be read. Copy or export it again.") from error

    @cached_property
    def _frames(self) -> np.ndarray:
        """(frames, rows, columns), before rescaling."""
        dataset = self._dataset
        if "TransferSyntaxUID" not in dataset.file_meta:
            # A file without meta header is uncompressed; pydicom found out how its elements are encoded.
            implicit, _ = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        syntax = dataset.file_meta.TransferSyntaxUID
        try:
            with pydicom_warnings_hidden(), itk_warnings_hidden():
                frames = _unpacked_by_gdcm(dataset, syntax) if syntax.is_encapsulated else dataset.pixel_array
                return frames.reshape(-1, dataset.Rows, dataset.Columns)
        except Exception as error:  # the two libraries raise nearly every kind
            raise InputError(
                f"The pixels of {self.path} are damaged, incomplete or compressed in an unknown way. Copy or export "
                "the series again."
            ) from error

    def hounsfield(self, one: CtSlice) -> tuple[np.ndarray, bool]:
        """A slice in HU with its padding set to air, and whether its padding value was distrusted instead."""
        if one.frame >= len(self._frames):
            raise InputError(f"The pixels of {self.path} are incomplete. Copy or export the series again.")
        stored = self._frames[one.frame]
        image = stored * one.slope + one.intercept
        padding = self._padding()
        if padding is None:
            return image, False
        low, high = sorted(value * one.slope + one.intercept for value in padding)
        if high >= _TISSUE_HU[0] and low <= _TISSUE_HU[1]:
            return image, True
        image[(stored >= padding[0]) & (stored <= padding[1])] = PADDING_HU
        return image, False

    def _padding(self) -> tuple[int, int] | None:
        """Lowest and highest stored value that mean padding."""
        first = self._stored_number("PixelPaddingValue")
        if first is None:
            return None
        limit = self._stored_number("PixelPaddingRangeLimit")
        last = first if limit is None else limit
        return min(first, last), max(first, last)

    def _stored_number(self, keyword: str) -> int | None:
        value = self._dataset.get(keyword)
        if value is None or value == "":
            return None
        # The header may hold a signed value as unsigned, as in 63536 for -2000.
        bits, signed = int(self._dataset.BitsAllocated), bool(self._dataset.PixelRepresentation)
        number = int(value) % (1 << bits)
        return number - (1 << bits) if signed and number >= 1 << (bits - 1) else number


def _unpacked_by_gdcm(dataset: Dataset, syntax: UID) -> np.ndarray:
    """The stored values of compressed pixels, by way of a temporary file that holds nothing else."""
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    bare.SOPClassUID = bare.file_meta.MediaStorageSOPClassUID = _GRAY_FRAMES_CLASS
    bare.SOPInstanceUID = bare.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    bare.Modality = "OT"
    bare.PhotometricInterpretation = "MONOCHROME2"
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"):
        bare[keyword] = dataset[keyword]
    bare.SamplesPerPixel = 1
    bare.NumberOfFrames = dataset.get("NumberOfFrames") or 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.dcm"
        bare.save_as(path, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
