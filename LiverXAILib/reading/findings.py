# SPDX-License-Identifier: Apache-2.0
"""The lesions, candidates and rejected lesions of a result, which decisions refer to by number, place, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..errors import UsageError
from ..inference.lesions import Point
from ..inference.masks import Mask
from ..text import place_text
from ..volumes.box import Box, central_voxel
from ..volumes.volume import Grid


@dataclass(frozen=True, eq=False)
class Findings:
    """The findings of one kind.

    :param what: "lesion", "candidate" or "rejected lesion".
    :param grid: of the image.
    :param masks: the finding with number 1, then 2 …
    """

    what: str
    grid: Grid
    masks: Sequence[Mask]

    @staticmethod
    def numbered(what: str, grid: Grid, box: Box, numbers: np.ndarray) -> Findings:
        """The findings numbered from 1 by `numbers` (int; k, j, i) in the `box` of the image."""
        found = ndimage.find_objects(numbers) if numbers.size else []
        return Findings(
            what,
            grid,
            [Mask(Box(*own).shifted(box.start), numbers[own] == number) for number, own in enumerate(found, start=1)],
        )

    def mask(self, number: int) -> Mask:
        """The finding with this number."""
        return self.masks[number - 1]

    def place(self, number: int) -> Point:
        """The voxel of a finding nearest to its centroid, in LPS mm."""
        box, voxels = self.mask(number)
        x, y, z = self.grid.to_lps((central_voxel(np.argwhere(voxels)) + box.start)[::-1])
        return float(x), float(y), float(z)

    def at(self, place_lps_mm: Point) -> int:
        """The number of the finding that contains a point; 0 if none does."""
        voxel = self.grid.nearest_voxel(place_lps_mm)
        for number, (box, voxels) in enumerate(self.masks, start=1):
            inside = voxel - box.start
            if (inside >= 0).all() and (inside < box.shape).all() and voxels[tuple(inside)]:
                return number
        return 0

    def find(self, number: int, place_lps_mm: Point | None = None) -> int:
        """The number of the finding that a decision is about.

        :param number: its number, as far as whoever decided knows.
        :param place_lps_mm: a point in it, or its centroid, which need not lie in it. If the number now belongs to
            another finding, the place decides. None: the number decides.
        :raises LiverXAILib.errors.UsageError: there is none with this number, or at this place.
        """
        if place_lps_mm is None:
            self.require(number)
            return number
        if self.has_centroid(number, place_lps_mm):
            return number
        found = self.at(place_lps_mm)
        if not found:
            raise UsageError(
                f"There is no {self.what} at {place_text(place_lps_mm)}, where {self.what} {number} was: the result "
                "has changed since. Choose again from the current list."
            )
        return found

    def require(self, number: int) -> None:
        """Raise :class:`~LiverXAILib.errors.UsageError` unless there is a finding with this number."""
        if not 1 <= number <= len(self.masks):
            raise UsageError(missing(self.what, number, len(self.masks)))

    def has_centroid(self, number: int, place_lps_mm: Point) -> bool:
        """Whether there is a finding with this number, and its centroid is at this place."""
        if not 1 <= number <= len(self.masks):
            return False
        box, voxels = self.mask(number)
        centroid = self.grid.to_lps((np.argwhere(voxels).mean(axis=0) + box.start)[::-1])
        return bool(np.linalg.norm(centroid - place_lps_mm) < 0.5 * min(self.grid.spacing))


def missing(what: str, number: int, count: int) -> str:
    """A sentence that says that there is no finding with this number."""
    known = f"there {'is' if count == 1 else 'are'} {count}" if count else f"there is no {what}"
    return f"There is no {what} {number}: {known}."
