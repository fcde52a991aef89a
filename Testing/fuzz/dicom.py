# SPDX-License-Identifier: Apache-2.0
"""DICOM folders: damaged files, invalid tags, foreign files among the slices."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from LiverXAILib.volumes.io import read_volume

from .kind import BrokenPromiseError, Generator, Kind
from .mutate import damage

_TAGS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "InstanceNumber", "SeriesNumber", "SeriesInstanceUID", "SOPInstanceUID", "Modality"),
    *(
        "PixelPaddingValue",
        "NumberOfFrames",
        "ImageType",
        "SeriesDescription",
        "PixelData",
        "PhotometricInterpretation",
    ),
    *("RescaleType", "GantryDetectorTilt", "AcquisitionNumber", "FrameOfReferenceUID", "SOPClassUID"),
)
_VALUES: tuple[object, ...] = (
    *(0, 1, -1, 65535, 2, 3, 7, "", "x", "nan", "1e999", "-1e-320", b"", b"\x00" * 7, None, 10**12),
    *(["0", "0", "0"], ["nan"] * 3, ["1", "0", "0", "1", "0", "0"], ["0"] * 6, ["1"], ["1e30", "1e30"], "A" * 10_000),
    *("\x1b[2J", "SOMEONE^NAMED", ["1", "0", "0", "0", "1", "0", "0"], "MONOCHROME1", "1.2.3", "MR"),
)


class Dicom(Kind):
    """Reads a folder of slices, some of which were changed."""

    limit_s = 60.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        warnings.simplefilter("ignore")
        rng = np.random.default_rng(0)
        series, study = generate_uid(), generate_uid()
        for k in range(5):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
            meta.MediaStorageSOPInstanceUID = generate_uid()
            one = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
            one.SOPClassUID, one.SOPInstanceUID, one.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
            one.SeriesInstanceUID, one.StudyInstanceUID, one.InstanceNumber = series, study, k + 1
            one.ImagePositionPatient = ["-10", "-20", str(2.5 * k)]
            one.ImageOrientationPatient, one.PixelSpacing = ["1", "0", "0", "0", "1", "0"], ["0.8", "0.8"]
            one.Rows = one.Columns = 24
            one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
            one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
            one.RescaleSlope, one.RescaleIntercept, one.SliceThickness = "1", "0", "2.5"
            y, x = np.indices((24, 24)) - 12
            pixels = np.where(x**2 + y**2 < 100, 60, -1000) + rng.integers(-20, 20, (24, 24))
            one.PixelData = pixels.astype("<i2").tobytes()
            one.save_as(folder / f"{k}.dcm", enforce_file_format=True)

    def run(self, rng: Generator, folder: Path) -> str:
        shutil.copytree(self.base, folder / "ct")
        files = sorted((folder / "ct").iterdir())
        for _ in range(int(rng.integers(1, 4))):
            path = files[int(rng.integers(len(files)))]
            how = int(rng.integers(6))
            if how < 3 and path.is_file():
                self._change_tags(rng, files if how == 0 else [path])
            elif how == 3 and path.is_file():
                path.write_bytes(damage(rng, path.read_bytes()))
            elif how == 4:
                self._add_stranger(rng, path)
            elif path.is_file():
                path.write_bytes(rng.bytes(int(rng.integers(0, 2000))))
        volume = read_volume(folder / "ct")
        if volume.array.ndim != 3 or not np.isfinite(volume.array).all() or not np.isfinite(volume.ijk_to_lps).all():
            raise BrokenPromiseError("a series that makes no sense was read")
        return "read"

    @staticmethod
    def _change_tags(rng: Generator, files: list[Path]) -> None:
        name, value = _TAGS[int(rng.integers(len(_TAGS)))], _VALUES[int(rng.integers(len(_VALUES)))]
        for path in files:
            try:
                one = pydicom.dcmread(path)
                if rng.random() < 0.2 and name in one:
                    delattr(one, name)
                elif rng.random() < 0.1:
                    nested = Dataset()
                    for _ in range(50):
                        outer = Dataset()
                        outer.ReferencedSeriesSequence = [nested]
                        nested = outer
                    one.ReferencedSeriesSequence = [nested]
                else:
                    setattr(one, name, value)
                one.save_as(path, enforce_file_format=False)
            except Exception:
                # pydicom cannot write every invalid value; the file is truncated instead.
                path.write_bytes(path.read_bytes()[: int(rng.integers(0, 2000))])

    @staticmethod
    def _add_stranger(rng: Generator, path: Path) -> None:
        place = path.parent / f"stranger-{int(rng.integers(10**6))}"
        how = int(rng.integers(6))
        if how == 0:
            os.mkfifo(place)
        elif how == 1:
            place.symlink_to(place.name)
        elif how == 2:
            place.symlink_to("..")
        elif how == 3 and path.is_file():
            shutil.copyfile(path, place)
        elif how == 4:
            place.mkdir()
        else:
            place.write_bytes(bytes(128) + b"DICM" + rng.bytes(200))
