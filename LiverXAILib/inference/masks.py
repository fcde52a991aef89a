# SPDX-License-Identifier: Apache-2.0
"""Masks that are kept only where they are: a liver fills a tenth of a CT, and everything done to it costs a tenth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..volumes.volume import bounding_box
from .windows import Box


class Mask(NamedTuple):
    """A structure in an image: `voxels`, bool (k, j, i), in the `box` of the image; outside it there is nothing."""

    box: Box
    voxels: np.ndarray

    @staticmethod
    def empty() -> Mask:
        """A structure that was looked for and not found."""
        return Mask((slice(0, 1), slice(0, 1), slice(0, 1)), np.zeros((1, 1, 1), dtype=bool))

    def tight(self) -> Box | None:
        """The smallest box of the image around the structure, or None."""
        found = bounding_box(self.voxels)
        if found is None:
            return None
        k, j, i = (slice(o.start + s.start, o.start + s.stop) for o, s in zip(self.box, found, strict=True))
        return k, j, i

    def within(self, box: Box) -> np.ndarray:
        """The mask in a `box` of the image that holds its own."""
        if box == self.box:
            return self.voxels
        result = np.zeros([s.stop - s.start for s in box], dtype=bool)
        k, j, i = (slice(s.start - o.start, s.stop - o.start) for o, s in zip(box, self.box, strict=True))
        result[k, j, i] = self.voxels
        return result


def around(boxes: Iterable[Box | None]) -> Box:
    """The smallest box around all `boxes`, of which at least one is not None."""
    found = [box for box in boxes if box is not None]
    k, j, i = (slice(min(b[axis].start for b in found), max(b[axis].stop for b in found)) for axis in range(3))
    return k, j, i
