# SPDX-License-Identifier: Apache-2.0
"""The content of an image file, before it is checked whether it is a CT or a label map."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import require_exists
from .formats import format_of
from .header import Header
from .metaimage import metaimage_header
from .nifti import nifti_header
from .nrrd import nrrd_header
from .stream import ByteStream, HeaderError, check_claimed_size, open_regular, parse_text, read_array, reading
from .volume import Grid


@dataclass(frozen=True, eq=False)
class ImageFile:
    """The content of an image file: `layers` (layers, k, j, i) in the file's own data type, on `grid`.

    `fields` are the header's other entries as text (the segments of a ``.seg.nrrd``, for example).
    """

    layers: np.ndarray = field(repr=False)
    grid: Grid
    fields: Mapping[str, str]
    warnings: tuple[str, ...]


def read_image_file(path: str | os.PathLike[str]) -> ImageFile:
    """The content of a NIfTI, NRRD or MetaImage file as it is: all layers, their grid, and the header's other fields.

    The segments of a ``.seg.nrrd`` are described in these fields, under the names that 3D Slicer uses.

    :raises LiverXAILib.errors.InputError: it is damaged or incomplete, is not three-dimensional, or needs more memory
        than may be used.
    """
    path = existing(path)
    with reading(path):
        return _read_voxels(_header(path), path)


def read_image_fields(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """The fields of :func:`read_image_file`, without reading the voxels; raises the same errors."""
    path = existing(path)
    with reading(path):
        return _header(path).fields


def image_files(path: Path) -> tuple[Path, ...]:
    """All files of an image: `path`, and the other one of a header and its voxels. Never raises."""
    try:
        path = existing(path)
        with reading(path):
            return tuple(dict.fromkeys((path, _header(path).data)))
    except InputError:
        return (path,)


def is_label_map(path: Path) -> bool:
    """Whether voxels have 8 bits, too few for CT (air is -1000 HU). Only the header is read; never raises."""
    try:
        with reading(path):
            header = _header(path)
            return header.dtype.itemsize == 1 and header.scaling == (1.0, 0.0)
    except InputError:
        return False


def existing(path: str | os.PathLike[str]) -> Path:
    """The path, which must exist; for a pair .hdr/.img always the header's."""
    path = require_exists(path)
    if (match := re.fullmatch(r"(.*)\.img(?:\.gz)?", path.name, re.IGNORECASE)) is not None:
        headers = [path.with_name(match[1] + ending) for ending in (".hdr", ".HDR")]
        path = next((header for header in headers if header.is_file()), path)
    return path


def _header(path: Path) -> Header:
    readers = {"NIfTI": nifti_header, "NRRD": nrrd_header, "MetaImage": metaimage_header}
    name = format_of(path)
    if name is None:
        raise InputError(f"{path} is not a NIfTI, NRRD or MetaImage file, so no labels can be read from it.")
    return readers[name](path)


def _read_voxels(header: Header, path: Path) -> ImageFile:
    """The voxels that belong to a header.

    :raises HeaderError: the file that holds them is damaged, incomplete, or contradicts the header.
    :raises LiverXAILib.errors.InputError: they need too much memory.
    """
    shape = (*header.shape, header.layers) if header.interleaved else (header.layers, *header.shape)
    count = prod(shape)
    size = count * header.dtype.itemsize
    voxels = " x ".join(str(n) for n in (*header.shape[::-1], *[header.layers] * (header.layers > 1)))
    warnings = list(header.warnings)
    with open_regular(header.data) as file:
        length = file.seek(0, 2)
        start = length - size if header.start < 0 else header.start
        if start < 0 or start > length:
            raise HeaderError("is incomplete: it ends before its first voxel. Copy or export it again.")
        available = length - start
        if header.limit is not None and header.limit > available:
            raise HeaderError("is incomplete: it ends before its last voxel. Copy or export it again.")
        file.seek(start)
        if header.text:
            check_claimed_size(40 * available, 40 * available, None, voxels, path)
            stream = ByteStream(file, header.compression)
            array = parse_text(stream.read(available), header.dtype, count)
        else:
            check_claimed_size(size + header.offset, available, header.compression, voxels, path)
            stream = ByteStream(file, header.compression, header.limit)
            stream.read(header.offset)
            array = read_array(stream, header.dtype, count)
        trailing = stream.trailing + (available - header.limit if header.limit is not None else 0)
        if trailing:
            warnings.append(f"{trailing:,} bytes follow the compressed voxels in the file; they were ignored.")
    array = array.reshape(shape)
    if header.interleaved:
        array = np.moveaxis(array, -1, 0)
    slope, intercept = header.scaling
    if (slope, intercept) != (1.0, 0.0):
        array = array.astype(np.float64) * slope + intercept
    return ImageFile(array, header.grid, header.fields, tuple(warnings))
