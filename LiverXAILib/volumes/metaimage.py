# SPDX-License-Identifier: Apache-2.0
"""MetaImage (.mha, .mhd): https://itk.org/Wiki/ITK/MetaIO/Documentation.

Read and written here, not by ITK, which does not detect damaged compressed voxels, allocates whatever size a header
claims, opens any file that the header names, and takes the decimal sign from the C locale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .header import (
    LONGEST_HEADER,
    NO_ORIENTATION,
    NO_ORIGIN,
    NO_SPACING,
    Header,
    affine,
    converted,
    integer,
    millimeters,
    number,
    numbers,
    side,
    storable,
    three_axes,
)
from .stream import HeaderError, detached_file, fast_zlib, open_regular, shown
from .volume import Volume

#: MET_LONG has four bytes on every machine.
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip


def metaimage_header(path: Path) -> Header:
    """The header of a MetaImage file.

    :raises LiverXAILib.volumes.stream.HeaderError: it is damaged, or describes something that is not a volume.
    """
    with open_regular(path) as file:
        fields, end = _lines(file)
    if fields.get("ObjectType", "Image").lower() != "image":
        raise HeaderError(f"holds the object {shown(fields['ObjectType'])}, not an image.")
    dimension = integer(_field(fields, "NDims"), "NDims", 1, 10)
    sizes = [side(text, "DimSize") for text in _field(fields, "DimSize").split()]
    if len(sizes) != dimension:
        raise HeaderError(f"is damaged: its header has {dimension} dimensions and {len(sizes)} sizes. Export it again.")
    shape = three_axes(sizes)
    channels = integer(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels", 1, 10_000)
    text = not _flag(fields, "BinaryData", default=False)
    matrix, warnings = _geometry(fields, dimension, shape)
    if _scaling(fields) != (1.0, 0.0):
        warnings.append("The header specifies a rescaling of intensities, which is not applied here (nor by ITK).")
    name = _field(fields, "ElementDataFile")
    local = name.upper() == "LOCAL"
    compressed = _flag(fields, "CompressedData", default=False)
    skip = integer(fields.get("HeaderSize", "0"), "HeaderSize", -1, 2**40)
    if skip and (compressed or text):
        raise HeaderError("is damaged: only uncompressed voxels can follow a HeaderSize. Export it again.")
    limit = fields.get("CompressedDataSize") if compressed else None
    return Header(
        shape,
        _dtype(fields),
        matrix,
        path if local else detached_file(path, name),
        -1 if skip < 0 else skip or (end if local else 0),
        layers=channels,
        interleaved=channels > 1,
        compression="zlib" if compressed else None,
        limit=None if limit is None else integer(limit, "CompressedDataSize", 0, 2**50),
        text=text,
        fields={key: value for key, value in fields.items() if key not in _KNOWN},
        warnings=tuple(warnings),
    )


_KNOWN = frozenset(
    [
        "ObjectType",
        "NDims",
        "BinaryData",
        "BinaryDataByteOrderMSB",
        "ElementByteOrderMSB",
        "CompressedData",
        "CompressedDataSize",
        "DimSize",
        "TransformMatrix",
        "Offset",
        "ElementSpacing",
        "ElementSize",
        "ElementType",
        "ElementNumberOfChannels",
        "ElementDataFile",
    ]
)


def _lines(file: BinaryIO) -> tuple[dict[str, str], int]:
    """The fields, and where the voxels begin: after the line ElementDataFile."""
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields:
        line = file.readline(LONGEST_HEADER)
        if file.tell() > LONGEST_HEADER:
            raise HeaderError("has a header of more than 1 MB: it is damaged. Export it again.")
        text = line.decode("utf-8", "replace").strip()
        if line and not text:
            continue
        pair = re.fullmatch(r"(\w+)\s*=\s*(.*)", text, re.DOTALL)
        if pair is None or not line.endswith(b"\n"):
            raise HeaderError("is not a MetaImage file, or it is damaged.")
        if pair[1] in fields:
            raise HeaderError(f"is damaged: its header has {shown(pair[1])} twice. Export it again.")
        fields[pair[1]] = pair[2]
    return fields, file.tell()


def _field(fields: Mapping[str, str], name: str) -> str:
    if name not in fields:
        raise HeaderError(f"is damaged: its header lacks {name}. Export it again.")
    return fields[name]


def _flag(fields: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = fields.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false", "1", "0"):
        raise HeaderError(f"is damaged: its header says {shown(text)} for {name}. Export it again.")
    return text.lower() in ("true", "1")


def _dtype(fields: Mapping[str, str]) -> np.dtype:
    name = _field(fields, "ElementType")
    code = _TYPES.get(name.upper())
    if code is None:
        raise HeaderError(f"holds voxels of the type {shown(name)}, not numbers. Export it again.")
    big = _flag(fields, "BinaryDataByteOrderMSB", default=_flag(fields, "ElementByteOrderMSB", default=False))
    return np.dtype(code).newbyteorder(">" if big else "<")


def _first(fields: Mapping[str, str], *names: str) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _geometry(fields: Mapping[str, str], dimension: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    unit_name = fields.get("DistanceUnits", "mm")
    unit = millimeters(unit_name)
    warnings = converted(unit_name, unit)
    directions = np.eye(dimension)
    if (text := _first(fields, "TransformMatrix", "Rotation", "Orientation")) is not None:
        # Each row of the file is the direction of one axis of the voxels.
        directions = np.reshape(numbers(text, "TransformMatrix", dimension**2), (dimension, dimension)).T
    else:
        warnings.append(NO_ORIENTATION)
    spacing = [1.0] * dimension
    if (text := _first(fields, "ElementSpacing", "ElementSize")) is not None:
        spacing = numbers(text, "ElementSpacing", dimension)
    else:
        warnings.append(NO_SPACING)
    origin = [0.0] * dimension
    if (text := _first(fields, "Offset", "Position", "Origin")) is not None:
        origin = numbers(text, "Offset", dimension)
    else:
        warnings.append(NO_ORIGIN)
    if min(spacing[:3]) <= 0:
        raise HeaderError(f"is damaged: its header gives the voxel size {spacing[:3]}. Export it again.")
    if directions[3:, :3].any():
        raise HeaderError("is damaged: its header has directions that do not lie in space. Export it again.")
    steps = directions[:3, :3] * spacing[:3] * unit
    return affine(steps, np.array(origin[:3]) * unit, shape), warnings


def _scaling(fields: Mapping[str, str]) -> tuple[float, float]:
    slope = number(fields.get("ElementToIntensityFunctionSlope", "1"), "ElementToIntensityFunctionSlope")
    return slope, number(fields.get("ElementToIntensityFunctionOffset", "0"), "ElementToIntensityFunctionOffset")


#: Fast; higher levels make CT only a few percent smaller.
_LEVEL = 2
#: The type names used for writing.
_NAMES = {code: name for name, code in _TYPES.items() if "LONG" not in name or "LONG_LONG" in name}


def write_metaimage(volume: Volume, file: BinaryIO) -> None:
    """Write a volume as .mha, compressed, with all digits of its geometry."""
    array = storable(volume.array)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    packer = fast_zlib.compressobj(_LEVEL)
    packed = [packer.compress(np.ascontiguousarray(plane)) for plane in array]
    packed.append(packer.flush())
    grid = volume.grid
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {sum(map(len, packed))}",
        f"TransformMatrix = {_joined(grid.direction.T.ravel())}",
        f"Offset = {_joined(grid.origin)}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_joined(grid.spacing)}",
        f"DimSize = {' '.join(str(n) for n in volume.shape[::-1])}",
        f"ElementType = {_NAMES[array.dtype.str[1:]]}",
        "ElementDataFile = LOCAL",
        "",
    ]
    file.write("\n".join(lines).encode())
    file.writelines(packed)


def _joined(values: object) -> str:
    return " ".join(repr(float(value)) for value in np.asarray(values))
