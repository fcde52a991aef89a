# SPDX-License-Identifier: Apache-2.0
"""Masks packed as short text, for files and attributes that hold text."""

from __future__ import annotations

import base64
import zlib
from math import ceil, prod

import numpy as np

from ..inference.masks import Mask
from ..volumes.box import Box, bounding_box

#: The number of voxels of a CT with about 4,000 slices.
_MOST_VOXELS = 2**30


def pack_mask(mask: np.ndarray) -> str:
    """Pack `mask` (bool; k, j, i): first voxel and shape of its bounding box, and its compressed bits.

    "" if the mask is empty. A lesion takes a few hundred characters.
    """
    box = bounding_box(mask)
    if box is None:
        return ""
    bits = zlib.compress(np.packbits(mask[box]).tobytes(), 9)
    return " ".join(map(str, (*box.start, *box.shape))) + " " + base64.b64encode(bits).decode("ascii")


def unpack_mask(text: str) -> Mask:
    """The reverse of :func:`pack_mask`; an empty box for "".

    :raises ValueError: the text is damaged. No more is unpacked than its shape requires.
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
        # Ask for one byte too many, because zlib verifies the checksum only at the end of the stream.
        raw = unpacker.decompress(base64.b64decode(bits), size_bytes + 1)
    except zlib.error as error:
        raise ValueError("the bits of a mask cannot be unpacked") from error
    if len(raw) != size_bytes or not unpacker.eof:
        raise ValueError(f"these bits are not those of a mask of {voxels} voxels")
    mask = np.unpackbits(np.frombuffer(raw, np.uint8), count=voxels).reshape(shape).astype(bool)
    return Mask(Box.full(shape).shifted((k, j, i)), mask)
