# SPDX-License-Identifier: Apache-2.0
"""Voxels of a mask as a short text, for files and attributes that hold text."""

from __future__ import annotations

import base64
import zlib

import numpy as np

from .box import Box, bounding_box


def pack_mask(mask: np.ndarray) -> str:
    """Where `mask` (bool; k, j, i) is true: first voxel and shape of the box around it, and its compressed bits.

    "" if it is true nowhere. Some hundred characters for a lesion.
    """
    box = bounding_box(mask)
    if box is None:
        return ""
    bits = zlib.compress(np.packbits(mask[box]).tobytes(), 9)
    return " ".join(map(str, (*box.start, *box.shape))) + " " + base64.b64encode(bits).decode("ascii")


def unpack_mask(text: str) -> tuple[Box, np.ndarray]:
    """The reverse of :func:`pack_mask`: the box, and the mask (bool) in it; an empty box for ""."""
    if not text:
        return Box.full((0, 0, 0)), np.zeros((0, 0, 0), bool)
    *numbers, bits = text.split(" ")
    k, j, i, *size = map(int, numbers)
    shape = (size[0], size[1], size[2])
    raw = np.frombuffer(zlib.decompress(base64.b64decode(bits)), np.uint8)
    mask = np.unpackbits(raw, count=int(np.prod(shape))).reshape(shape).astype(bool)
    return Box.full(shape).shifted((k, j, i)), mask
