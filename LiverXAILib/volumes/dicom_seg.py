# SPDX-License-Identifier: Apache-2.0
"""Reading DICOM Segmentation objects (SEG)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from ..errors import InputError, UsageError
from .resample import resample
from .volume import Grid


@dataclass(frozen=True)
class Segment:
    """What a SEG says of one segment: `label` is free text; `category` and `type` are code values (SNOMED CT)."""

    number: int
    label: str
    category: str
    type: str


def find_segs(folder: Path) -> Iterator[Path]:
    """The files in `folder`, at any depth, that are DICOM Segmentations, in order of their names."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
        except (InvalidDicomError, OSError):
            continue
        if header.get("Modality") == "SEG":
            yield path


def read_segments(path: Path) -> list[Segment]:
    """The segments of a DICOM SEG, without their voxels."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    segments = []
    for item in header.get("SegmentSequence", ()):
        codes = [
            str(item[keyword][0].get("CodeValue", "")) if item.get(keyword) else ""
            for keyword in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence")
        ]
        segments.append(Segment(int(item.SegmentNumber), str(item.get("SegmentLabel", "")), codes[0], codes[1]))
    return segments


def read_segment_masks(path: Path, grid: Grid) -> dict[int, np.ndarray]:
    """Where each segment is, by its number: bool (k, j, i) on `grid`, which need not be the segmentation's own.

    :raises LiverXAILib.errors.UsageError: the extra ``dicom`` is not installed.
    :raises LiverXAILib.errors.InputError: the file is damaged or its frames do not make a volume.
    """
    try:
        import highdicom
    except ImportError as error:
        raise UsageError("Reading DICOM SEG needs highdicom: run 'pip install \"liverxai[dicom]\"'.") from error
    try:
        volume = highdicom.seg.segread(path).get_volume()
    except (InvalidDicomError, OSError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a DICOM segmentation: {error}") from error
    # highdicom's matrix takes (k, j, i); ours takes (i, j, k). Both lead to LPS.
    source = Grid(volume.array.shape[:3], volume.affine[:, [2, 1, 0, 3]])
    return {
        segment.number: (resample(volume.array[..., n].astype(np.float32), source, grid, antialias=False) > 0.5).numpy()
        for n, segment in enumerate(read_segments(path))
    }
