# SPDX-License-Identifier: Apache-2.0
"""Reading DICOM Segmentation objects (SEG): binary, fractional and label maps, on any regular or sheared stack.

A SEG need not store empty frames; where none is stored there is background. Frames that lie on the slices of the
requested grid are copied unchanged, so that slices without annotations stay empty; others are resampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from ..errors import InputError
from .dicom.headers import is_dicom, pydicom_warnings_hidden
from .resample import resample
from .stack import DUPLICATE_MM, ROUNDING_MM, SPACING_TOLERANCE
from .volume import Grid

Code = tuple[str, str, str]

#: Frames lie on the pixels of a grid if their offset is below this fraction of a pixel and their axes differ by less
#: than this fraction.
_SAME_PIXELS, _SAME_AXES = 0.1, 1e-3
#: A segmentation whose slice thickness and spacing both exceed the image's slice spacing by this factor was drawn on
#: thicker slices.
_THICKER = 1.5
#: No CT has this many voxels: if a grid needs more, a position is damaged.
_MOST_VOXELS = 1 << 32


@dataclass(frozen=True)
class Segment:
    """One segment as described in a SEG: `label` is free text; codes are (scheme, value, meaning)."""

    number: int
    label: str
    category: Code | None
    type: Code | None
    regions: tuple[Code, ...] = ()


def find_segs(folder: Path) -> Iterator[Path]:
    """The DICOM Segmentation files in `folder`, at any depth, sorted by path."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and is_dicom(path)):
        try:
            with pydicom_warnings_hidden():
                header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["Modality"])
                found = header.get("Modality") == "SEG"
        except Exception:  # pydicom raises almost any type; a damaged file is not a segmentation
            continue
        if found:
            yield path


def read_segments(path: Path) -> list[Segment]:
    """The segments of a DICOM SEG, without their voxels.

    :raises LiverXAILib.errors.InputError: the file is damaged.
    """
    with _readable(path):
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        return [
            Segment(
                int(item.SegmentNumber),
                str(item.get("SegmentLabel", "")),
                next(iter(_codes(item, "SegmentedPropertyCategoryCodeSequence")), None),
                next(iter(_codes(item, "SegmentedPropertyTypeCodeSequence")), None),
                _codes(item, "AnatomicRegionSequence"),
            )
            for item in header.get("SegmentSequence") or ()
        ]


def _codes(item: Dataset, keyword: str) -> tuple[Code, ...]:
    return tuple(
        (
            str(code.get("CodingSchemeDesignator", "")),
            str(code.get("CodeValue", "") or code.get("LongCodeValue", "") or code.get("URNCodeValue", "")),
            str(code.get("CodeMeaning", "")),
        )
        for code in item.get(keyword) or ()
    )


def segmentation_grid(path: Path) -> Grid:
    """The grid on which a DICOM SEG was drawn, cropped to the extent of its frames.

    :raises LiverXAILib.errors.InputError: the file is damaged or its frames do not form a volume.
    """
    with _readable(path):
        return _Frames(pydicom.dcmread(path, stop_before_pixels=True, force=True)).own_grid()[0]


def read_segment_masks(path: Path, grid: Grid) -> dict[int, np.ndarray]:
    """The mask of each segment, by its number: bool (k, j, i) on `grid`, which may differ from the segmentation's own.

    :raises LiverXAILib.errors.InputError: the file is damaged or its frames do not form a volume.
    """
    # A LABELMAP segmentation may list its background as segment 0.
    numbers = [segment.number for segment in read_segments(path) if segment.number > 0]
    with _readable(path):
        dataset = pydicom.dcmread(path, force=True)
        frames = _Frames(dataset)
        pixels = dataset.pixel_array.reshape(-1, *frames.size)
        if len(pixels) != len(frames.positions):
            raise ValueError(f"it has {len(pixels)} frames but describes {len(frames.positions)}")
        drawn = {number: frames.of_segment(number, pixels) for number in numbers}
        if (places := frames.places_in(grid)) is not None:
            return {number: _placed(images, places, grid) for number, images in drawn.items()}
        own, slices = frames.own_grid()
        result = {}
        for number, images in drawn.items():
            array = np.zeros(own.shape, np.float32)
            for index, image in images:
                array[slices[index]] = np.maximum(array[slices[index]], image)
            result[number] = (resample(array, own, grid, antialias=False) > 0.5).numpy()
        return result


def _placed(images: list[tuple[int, np.ndarray]], places: np.ndarray, grid: Grid) -> np.ndarray:
    """The mask on `grid` of frames placed at (i, j, k), clipped to the grid."""
    mask = np.zeros(grid.shape, bool)
    for index, image in images:
        i, j, k = places[index]
        if not 0 <= k < grid.shape[0]:
            continue
        rows = slice(max(0, j), max(0, min(grid.shape[1], j + image.shape[0])))
        columns = slice(max(0, i), max(0, min(grid.shape[2], i + image.shape[1])))
        mask[k, rows, columns] |= image[rows.start - j : rows.stop - j, columns.start - i : columns.stop - i]
    return mask


class _Frames:
    """The frames of a SEG: where they lie and what they show.

    :raises Exception: of almost any type if the header is damaged; use within :func:`_readable`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or []), Dataset())
        self._groups = [(frame, shared) for frame in dataset.get("PerFrameFunctionalGroupsSequence") or []]
        if not self._groups:
            raise ValueError("it has no frames in the patient's coordinates")
        self.size = (int(dataset.Rows), int(dataset.Columns))
        self.positions = np.array(
            [self._numbers(n, "PlanePosition", "ImagePosition") for n in range(len(self._groups))]
        )
        cosines = np.array([self._numbers(n, "PlaneOrientation", "ImageOrientation") for n in range(len(self._groups))])
        if np.abs(cosines - cosines[0]).max() > _SAME_AXES:
            raise ValueError("its frames lie in different planes")
        rows_mm, columns_mm = (float(mm) for mm in self._value(0, "PixelMeasuresSequence", "PixelSpacing"))
        self.row, self.column = cosines[0][:3] * columns_mm, cosines[0][3:] * rows_mm
        self._normal = np.cross(cosines[0][:3], cosines[0][3:])
        between = self._value(0, "PixelMeasuresSequence", "SpacingBetweenSlices")
        thickness = self._value(0, "PixelMeasuresSequence", "SliceThickness")
        # Some programs write the spacing with the sign of the direction.
        self._between, self._thickness = (abs(float(mm or 0)) for mm in (between, thickness))

    def _value(self, frame: int, group: str, keyword: str) -> Any:
        for source in self._groups[frame]:
            for item in source.get(group) or []:
                if item.get(keyword) is not None:
                    return item.get(keyword)
        return None

    def _numbers(self, frame: int, group: str, keyword: str) -> list[float]:
        return [float(number) for number in self._value(frame, f"{group}Sequence", f"{keyword}Patient")]

    def of_segment(self, number: int, pixels: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """The frames of a segment: their indices and masks (bool (rows, columns))."""
        kind = self._dataset.get("SegmentationType")
        if kind == "LABELMAP":
            return [(index, image == number) for index, image in enumerate(pixels)]
        half = float(self._dataset.get("MaximumFractionalValue") or 1) / 2 if kind == "FRACTIONAL" else 0.0
        return [
            (index, image > half)
            for index, image in enumerate(pixels)
            if self._value(index, "SegmentIdentificationSequence", "ReferencedSegmentNumber") == number
        ]

    def places_in(self, grid: Grid) -> np.ndarray | None:
        """The voxel (i, j, k) of `grid` at which each frame starts; None if the frames do not lie on its slices."""
        axes = grid.ijk_to_lps[:3, :2].T
        for own, other in ((self.row, axes[0]), (self.column, axes[1])):
            if np.abs(own - other).max() > _SAME_AXES * np.linalg.norm(other):
                return None
        between = abs(float(grid.ijk_to_lps[:3, 2] @ self._normal))
        if min(self._between, self._thickness) > _THICKER * between:
            return None
        exact = grid.to_ijk(self.positions)
        places = np.rint(exact)
        beside = np.abs(exact - places)
        allowed = max(SPACING_TOLERANCE, ROUNDING_MM / between)
        if beside[:, :2].max() > max(_SAME_PIXELS, ROUNDING_MM / min(grid.spacing[:2])) or beside[:, 2].max() > allowed:
            return None
        return places.astype(int)

    def own_grid(self) -> tuple[Grid, np.ndarray]:
        """The regular stack of the frames, and the slice (k) of each frame in it.

        :raises ValueError: the frames do not form one.
        """
        depths = self.positions @ self._normal
        order = np.argsort(depths, kind="stable")
        low, high = order[0], order[-1]
        gaps = np.diff(depths[order])
        gaps = gaps[gaps > DUPLICATE_MM]
        extent = float(depths[high] - depths[low])
        step = self._between or self._thickness or 1.0
        if len(gaps):
            smallest = float(gaps.min())
            # The header's spacing is preferred where it fits the positions: frames may be missing in every gap.
            step = self._between if 0 < self._between <= smallest + ROUNDING_MM else smallest
        count = round(extent / step) + 1
        if not 0 < count * self.size[0] * self.size[1] < _MOST_VOXELS:
            raise ValueError("its frames lie too far apart")
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1], matrix[:3, 3] = self.row, self.column, self.positions[low]
        across = self.positions[high] - self.positions[low] if count > 1 else self._normal * step
        matrix[:3, 2] = across / max(1, count - 1)
        grid = Grid((count, *self.size), matrix)
        places = np.rint(grid.to_ijk(self.positions)[:, 2]).astype(int)
        beside = self.positions - grid.to_lps(np.stack([0 * places, 0 * places, places], axis=1).astype(float))
        if np.linalg.norm(beside, axis=1).max() > max(SPACING_TOLERANCE * step, ROUNDING_MM):
            raise ValueError("its frames are not evenly spaced")
        return grid, places


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn any exception about a file into an :class:`~LiverXAILib.errors.InputError` that names the file."""
    try:
        with pydicom_warnings_hidden():
            yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} cannot be read as a DICOM segmentation: {error}.") from error
    except Exception as error:  # pydicom raises almost any type
        raise InputError(f"{path} cannot be read as a DICOM segmentation: it is damaged or incomplete.") from error
