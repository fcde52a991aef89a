# SPDX-License-Identifier: Apache-2.0
"""Masks and labels packed as short text, for files and attributes that hold text."""

from __future__ import annotations

import base64
import zlib
from math import ceil, prod

import numpy as np

from ..inference.masks import Mask
from ..volumes.box import Box, bounding_box

#: The number of voxels of a CT with about 4,000 slices.
_MOST_VOXELS = 2**30


def pack_mask(mask: np.ndarray, within: Box | None = None) -> str:
    """Pack `mask` (bool; k, j, i): first voxel and shape of its bounding box, and its compressed bits.

    "" if the mask is empty. A lesion takes a few hundred characters.

    :param within: the box of the image that `mask` covers; None: the whole image.
    """
    box = bounding_box(mask)
    if box is None:
        return ""
    start = box.start if within is None else box.shifted(within.start).start
    return " ".join(map(str, (*start, *box.shape))) + " " + _packed(np.packbits(mask[box]))


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
    mask = np.unpackbits(_unpacked(bits, ceil(voxels / 8)), count=voxels).reshape(shape).astype(bool)
    return Mask(Box.full(shape).shifted((k, j, i)), mask)


def pack_labels(labels: np.ndarray) -> str:
    """Pack the labels (uint8; n) of the voxels of a mask, in scan order; "" if there are none."""
    return _packed(labels) if labels.size else ""


def unpack_labels(text: str, count: int) -> np.ndarray:
    """The reverse of :func:`pack_labels`.

    :raises ValueError: the text is damaged, or it does not hold `count` labels.
    """
    return _unpacked(text, count) if text else np.zeros(0, np.uint8)


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode("ascii")


def _unpacked(text: str, size_bytes: int) -> np.ndarray:
    unpacker = zlib.decompressobj()
    try:
        # Ask for one byte too many, because zlib verifies the checksum only at the end of the stream.
        raw = unpacker.decompress(base64.b64decode(text), size_bytes + 1)
    except zlib.error as error:
        raise ValueError("packed voxels cannot be unpacked") from error
    if len(raw) != size_bytes or not unpacker.eof:
        raise ValueError(f"these are not {size_bytes} bytes of voxels")
    return np.frombuffer(raw, np.uint8)
