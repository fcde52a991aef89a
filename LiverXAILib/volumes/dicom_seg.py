# SPDX-License-Identifier: Apache-2.0
"""Reading DICOM Segmentation objects (SEG)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from ..errors import InputError, UsageError
from .resample import resample
from .volume import Grid

if TYPE_CHECKING:
    import highdicom

Code = tuple[str, str, str]


@dataclass(frozen=True)
class Segment:
    """What a SEG says of one segment: `label` is free text; codes are (scheme, value, meaning)."""

    number: int
    label: str
    category: Code | None
    type: Code | None
    regions: tuple[Code, ...] = ()


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
        category, kind = (_codes(item, f"SegmentedProperty{what}CodeSequence") for what in ("Category", "Type"))
        segments.append(
            Segment(
                int(item.SegmentNumber),
                str(item.get("SegmentLabel", "")),
                category[0] if category else None,
                kind[0] if kind else None,
                _codes(item, "AnatomicRegionSequence"),
            )
        )
    return segments


def _codes(item: pydicom.Dataset, keyword: str) -> tuple[Code, ...]:
    return tuple(
        (
            str(code.get("CodingSchemeDesignator", "")),
            str(code.get("CodeValue", "") or code.get("LongCodeValue", "")),
            str(code.get("CodeMeaning", "")),
        )
        for code in item.get(keyword) or ()
    )


def segmentation_grid(path: Path) -> Grid:
    """The grid on which a DICOM SEG was drawn, as far as its frames reach.

    :raises LiverXAILib.errors.LiverXAIError: as :func:`read_segment_masks`.
    """
    with _opened(path) as segmentation:
        geometry = segmentation.get_volume_geometry(allow_missing_positions=True)
        if geometry is None:
            raise InputError(f"{path} cannot be read as a DICOM segmentation: its frames do not make a volume.")
        return _grid(geometry.spatial_shape, geometry.affine)


def read_segment_masks(path: Path, grid: Grid) -> dict[int, np.ndarray]:
    """Where each segment is, by its number: bool (k, j, i) on `grid`, which need not be the segmentation's own.

    :raises LiverXAILib.errors.UsageError: the extra ``dicom`` is not installed.
    :raises LiverXAILib.errors.InputError: the file is damaged or its frames do not make a volume.
    """
    # A LABELMAP segmentation may list its background as segment 0.
    numbers = [segment.number for segment in read_segments(path) if segment.number > 0]
    with _opened(path) as segmentation:
        volume = segmentation.get_volume(segment_numbers=numbers)
    source = _grid(volume.array.shape[:3], volume.affine)
    return {
        number: (resample(volume.array[..., n].astype(np.float32), source, grid, antialias=False) > 0.5).numpy()
        for n, number in enumerate(numbers)
    }


@contextmanager
def _opened(path: Path) -> Iterator[highdicom.seg.Segmentation]:
    try:
        import highdicom
    except ImportError as error:
        raise UsageError("Reading DICOM SEG needs highdicom: run 'pip install \"liverxai[dicom]\"'.") from error
    try:
        yield highdicom.seg.segread(path)
    except (InvalidDicomError, OSError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a DICOM segmentation: {error}") from error


def _grid(shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    """highdicom's matrix takes (k, j, i), ours (i, j, k); both lead to LPS."""
    k, j, i = shape
    return Grid((k, j, i), affine[:, [2, 1, 0, 3]])
