# SPDX-License-Identifier: Apache-2.0
"""Axis-aligned boxes of voxels, and the connected components of masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import SimpleITK as sitk

    from .volume import Grid

#: Numbers of voxels along (k, j, i).
Triple = Sequence[int] | np.ndarray


class Box(NamedTuple):
    """A part of an array: slices along (k, j, i) with explicit start and stop and step 1, so that ``array[box]`` works.

    The voxels of a box are those with ``start <= index < stop`` along each axis.
    """

    k: slice
    j: slice
    i: slice

    @staticmethod
    def between(start: Triple, stop: Triple) -> Box:
        """The box from `start` to `stop`, both (k, j, i)."""
        k, j, i = (slice(int(low), int(high)) for low, high in zip(start, stop, strict=True))
        return Box(k, j, i)

    @staticmethod
    def full(shape: Triple) -> Box:
        """All voxels of an array of `shape` (k, j, i)."""
        return Box.between((0, 0, 0), shape)

    @staticmethod
    def union(boxes: Iterable[Box | None]) -> Box:
        """The smallest box around all `boxes`; at least one of them must not be None."""
        found = [box for box in boxes if box is not None]
        return Box.between(np.min([box.start for box in found], axis=0), np.max([box.stop for box in found], axis=0))

    @property
    def start(self) -> tuple[int, int, int]:
        """(k, j, i) of the first voxel."""
        return self.k.start, self.j.start, self.i.start

    @property
    def stop(self) -> tuple[int, int, int]:
        """(k, j, i), one beyond the last voxel."""
        return self.k.stop, self.j.stop, self.i.stop

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (k, j, i)."""
        return self.k.stop - self.k.start, self.j.stop - self.j.start, self.i.stop - self.i.start

    def shifted(self, offset: Triple) -> Box:
        """Moved by `offset` (k, j, i) voxels."""
        return Box.between(np.add(self.start, offset), np.add(self.stop, offset))

    def relative_to(self, outer: Box) -> Box:
        """The same voxels, counted from the first voxel of `outer`: ``array[outer][box.relative_to(outer)]``."""
        return self.shifted(np.negative(outer.start))

    def grown(self, margins: Triple, shape: Triple) -> Box:
        """Extended by `margins` (k, j, i) on both sides, but not beyond an array of `shape`."""
        return Box.between(
            np.maximum(np.subtract(self.start, margins), 0), np.minimum(np.add(self.stop, margins), shape)
        )

    def intersection(self, other: Box) -> Box | None:
        """The voxels in both boxes; None if there are none."""
        low, high = np.maximum(self.start, other.start), np.minimum(self.stop, other.stop)
        return Box.between(low, high) if (low < high).all() else None

    def projected(self, source: Grid, target: Grid, margin_mm: float = 0.0) -> Box:
        """The smallest box on `target` around this box on `source`.

        :param margin_mm: the result is grown by this on each side, then clipped to `target`; it has at least one
            voxel.
        """
        ends = [(s.start - 0.5, s.stop - 0.5) for s in (self.i, self.j, self.k)]
        ijk = target.to_ijk(source.to_lps(np.array(list(product(*ends)))))
        margin = margin_mm / np.array(target.spacing)
        sizes = np.array(target.shape[::-1])
        low = np.clip(np.floor(ijk.min(axis=0) - margin + 0.5 + 1e-3), 0, sizes - 1).astype(int)
        high = np.clip(np.ceil(ijk.max(axis=0) + margin + 0.5 - 1e-3), low + 1, sizes).astype(int)
        return Box.between(low[::-1], high[::-1])


def bounding_box(mask: np.ndarray) -> Box | None:
    """The smallest box around the nonzero voxels of `mask` (k, j, i), or None if there are none."""
    k = np.flatnonzero(mask.any(axis=(1, 2)))
    if k.size == 0:
        return None
    plane = mask[k[0] : k[-1] + 1].any(axis=0)
    j, i = np.flatnonzero(np.any(plane, axis=1)), np.flatnonzero(np.any(plane, axis=0))
    return Box.between((k[0], j[0], i[0]), (k[-1] + 1, j[-1] + 1, i[-1] + 1))


def central_voxel(voxels: np.ndarray) -> np.ndarray:
    """The one of `voxels` (n, 3) nearest to their centroid, measured in voxels; the first of several equally near."""
    nearest: np.ndarray = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return nearest


def components(mask: np.ndarray, *, corners: bool = False, largest_first: bool = False) -> np.ndarray:
    """Number the connected components of a mask (k, j, i): int32 of the same shape, 0 where `mask` is 0.

    :param corners: voxels that touch at an edge or a corner are connected too (26 neighbors instead of 6).
    :param largest_first: number them by decreasing size, ties in scan order; otherwise all in scan order.
    """
    import SimpleITK as sitk  # imported only here: Slicer's module imports this file at startup

    numbers = np.zeros(mask.shape, dtype=np.int32)
    box = bounding_box(mask)
    if box is not None:
        numbered = _numbered(mask[box], corners, largest_first)  # must outlive the view of its buffer
        numbers[box] = sitk.GetArrayViewFromImage(numbered)
    return numbers


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest component (6-neighbors) of a mask (k, j, i), as bool; of several the first in scan order."""
    import SimpleITK as sitk

    largest = np.zeros(mask.shape, dtype=bool)
    box = bounding_box(mask)
    if box is not None:
        numbered = _numbered(mask[box], corners=False, largest_first=True)
        largest[box] = sitk.GetArrayViewFromImage(numbered) == 1
    return largest


def without_holes(mask: np.ndarray) -> np.ndarray:
    """A mask (k, j, i) with the cavities that it encloses filled, as bool; cavities are connected by their faces."""
    box = bounding_box(mask) or Box.full((0, 0, 0))
    # All that is connected to a corner of the surroundings lies outside. Faster than ITK's filter.
    numbers = components(np.pad(mask[box], 1) == 0)
    filled = np.zeros(mask.shape, dtype=bool)
    filled[box] = numbers[1:-1, 1:-1, 1:-1] != numbers[0, 0, 0]
    return filled


def touching(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The components (26 neighbors) of a mask that share voxels with another mask, both bool (k, j, i)."""
    numbers = components(mask, corners=True)
    kept = np.zeros(int(numbers.max(initial=0)) + 1, bool)
    kept[numbers[other]] = True
    kept[0] = False
    return kept[numbers]


def _numbered(mask: np.ndarray, corners: bool, largest_first: bool) -> sitk.Image:
    """The numbering of :func:`components` for a whole array, as a SimpleITK image."""
    import SimpleITK as sitk

    image = sitk.ConnectedComponent(sitk.GetImageFromArray((mask != 0).view(np.uint8)), corners)
    return sitk.RelabelComponent(image, sortByObjectSize=True) if largest_first else image
