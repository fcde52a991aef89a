# SPDX-License-Identifier: Apache-2.0
"""Masks stored only in a box around the structure: a liver fills a tenth of a CT, and so operations cost a tenth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..volumes.box import Box, bounding_box


class Mask(NamedTuple):
    """A structure in an image: `voxels`, bool (k, j, i), in the `box` of the image; False outside it."""

    box: Box
    voxels: np.ndarray

    def __repr__(self) -> str:
        return f"Mask({' x '.join(str(n) for n in self.box.shape[::-1])} voxels)"

    @staticmethod
    def empty() -> Mask:
        """The mask of a structure that was not found."""
        return Mask(Box.full((1, 1, 1)), np.zeros((1, 1, 1), dtype=bool))

    def bounding_box(self) -> Box | None:
        """The smallest box of the image around the structure, or None."""
        found = bounding_box(self.voxels)
        return None if found is None else found.shifted(self.box.start)

    def on(self, box: Box) -> np.ndarray:
        """The mask in another `box` of the image; voxels outside that box are dropped."""
        if box == self.box:
            return self.voxels
        result = np.zeros(box.shape, dtype=bool)
        if (common := self.box.intersection(box)) is not None:
            result[common.relative_to(box)] = self.voxels[common.relative_to(self.box)]
        return result
