# SPDX-License-Identifier: Apache-2.0
"""Voxels of a mask as a short text, for files and attributes that hold text."""

from __future__ import annotations

import base64
import zlib
from math import ceil, prod

import numpy as np

from ..inference.masks import Mask
from ..volumes.box import Box, bounding_box

#: A CT of 4,000 slices has as many.
_MOST_VOXELS = 2**30


def pack_mask(mask: np.ndarray) -> str:
    """Where `mask` (bool; k, j, i) is true: first voxel and shape of the box around it, and its compressed bits.

    "" if it is true nowhere. Some hundred characters for a lesion.
    """
    box = bounding_box(mask)
    if box is None:
        return ""
    bits = zlib.compress(np.packbits(mask[box]).tobytes(), 9)
    return " ".join(map(str, (*box.start, *box.shape))) + " " + base64.b64encode(bits).decode("ascii")


def unpack_mask(text: str) -> Mask:
    """The reverse of :func:`pack_mask`; an empty box for "".

    :raises ValueError: it is damaged. No more is unpacked than its shape asks for.
    """
    if not text:
        return Mask(Box.full((0, 0, 0)), np.zeros((0, 0, 0), bool))
    *numbers, bits = text.split(" ")
    k, j, i, *size = map(int, numbers)
    shape = (size[0], size[1], size[2])
    voxels = prod(shape)
    if min(k, j, i) < 0 or min(shape) < 1 or voxels > _MOST_VOXELS:
        raise ValueError(f"a mask of {shape} voxels from {k, j, i} on")
    size_bytes, unpacker = ceil(voxels / 8), zlib.decompressobj()
    try:
        # One byte more than there is: only at the end of the stream its checksum is looked at.
        raw = unpacker.decompress(base64.b64decode(bits), size_bytes + 1)
    except zlib.error as error:
        raise ValueError("the bits of a mask cannot be unpacked") from error
    if len(raw) != size_bytes or not unpacker.eof:
        raise ValueError(f"these bits are not those of a mask of {voxels} voxels")
    mask = np.unpackbits(np.frombuffer(raw, np.uint8), count=voxels).reshape(shape).astype(bool)
    return Mask(Box.full(shape).shifted((k, j, i)), mask)
