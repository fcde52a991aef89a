# SPDX-License-Identifier: Apache-2.0
"""NRRD (.nrrd, .nhdr): https://teem.sourceforge.net/nrrd/format.html.

Read and written here, not by ITK, whose parser takes the decimal sign from the C locale, writes out of bounds on
malicious headers, and opens any file that a header names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, BinaryIO

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
    side,
    storable,
    three_axes,
)
from .stream import Compression, HeaderError, detached_file, fast_zlib, open_regular, shown
from .volume import Volume

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names}
_ENCODINGS: dict[str, Compression | None] = {
    "raw": None, "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2",
}  # fmt: skip
_TEXT_ENCODINGS = ("ascii", "text", "txt")
#: Signs that convert the coordinates of a space to LPS.
_SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
#: Spaces that do not define the patient's orientation.
_VAGUE_SPACES = ("scanner-xyz", "3d-right-handed", "3d-left-handed")
#: All fields of the format, with the spaces removed.
_FIELDS = frozenset(
    [
        "content",
        "number",
        "type",
        "blocksize",
        "dimension",
        "space",
        "spacedimension",
        "sizes",
        "spacings",
        "thicknesses",
        "axismins",
        "axismaxs",
        "centers",
        "centerings",
        "labels",
        "units",
        "min",
        "max",
        "oldmin",
        "oldmax",
        "endian",
        "encoding",
        "lineskip",
        "byteskip",
        "sampleunits",
        "spaceunits",
        "spaceorigin",
        "spacedirections",
        "measurementframe",
        "datafile",
        "kinds",
    ]
)


def nrrd_header(path: Path) -> Header:
    """The header of an NRRD file.

    :raises LiverXAILib.volumes.stream.HeaderError: it is damaged, or describes something that is not a volume.
    """
    with open_regular(path) as file:
        fields, values, end = _lines(file)
        length = file.seek(0, 2)
    dimension = integer(_field(fields, "dimension"), "dimension", 1, 16)
    sizes = [side(text, "sizes") for text in _field(fields, "sizes").split()]
    if len(sizes) != dimension:
        raise HeaderError(f"is damaged: its header has {dimension} dimensions and {len(sizes)} sizes. Export it again.")
    axes, others = _spatial_axes(fields, sizes)
    shape = three_axes([sizes[axis] for axis in axes])
    if len(others) > 1 or any(sizes[axis] < 1 for axis in others):
        raise HeaderError(f"has {dimension} dimensions; a CT volume with exactly three is needed.")
    encoding = _field(fields, "encoding").lower()
    if encoding not in _ENCODINGS and encoding not in _TEXT_ENCODINGS:
        raise HeaderError(f"stores its voxels as {shown(encoding)}, which cannot be read. Export it again.")
    compression = _ENCODINGS.get(encoding)
    matrix, warnings = _geometry(fields, axes[:3], shape)
    data, start = path, end
    if (name := fields.get("datafile")) is not None:
        data, start = detached_file(path, name), 0
    elif end >= length:
        raise HeaderError("is incomplete: it ends before its first voxel. Copy or export it again.")
    text = encoding in _TEXT_ENCODINGS
    return Header(
        shape,
        _dtype(fields, text),
        matrix,
        data,
        _skipped(fields, data, start, compression or text),
        layers=sizes[others[0]] if others else 1,
        interleaved=bool(others) and others[0] == 0,
        compression=compression,
        text=text,
        fields=values,
        warnings=tuple(warnings),
    )


def _lines(file: BinaryIO) -> tuple[dict[str, str], dict[str, str], int]:
    """Fields (names in lower case, without spaces), key-value pairs, and where the voxels begin."""
    first = file.readline(80)
    if not re.fullmatch(rb"NRRD000[1-5]\r?\n", first):
        raise HeaderError("is not an NRRD file, or it is damaged.")
    fields: dict[str, str] = {}
    values: dict[str, str] = {}
    while line := file.readline(LONGEST_HEADER):
        if file.tell() > LONGEST_HEADER:
            raise HeaderError("has a header of more than 1 MB: it is damaged. Export it again.")
        text = line.decode("utf-8", "replace").strip("\r\n")
        if not text:
            break
        if text.startswith("#"):
            continue
        pair = re.fullmatch(r"([^:]+):([=\s])\s*(.*?)\s*", text, re.DOTALL)
        if pair is None:
            raise HeaderError(f"is damaged: its header has the line {shown(text)}. Export it again.")
        if pair[2] == "=":
            values[pair[1]] = _unescaped(text[len(pair[1]) + 2 :])
            continue
        name = re.sub(r"[\s_-]", "", pair[1].lower())
        if name not in _FIELDS or name in fields:
            raise HeaderError(f"is damaged: its header has the line {shown(text)}. Export it again.")
        fields[name] = pair[3]
        if name == "datafile" and pair[3].startswith("LIST"):
            break
    return fields, values, file.tell()


def _unescaped(text: str) -> str:
    return re.sub(r"\\([n\\])", lambda match: "\n" if match[1] == "n" else "\\", text)


def _field(fields: Mapping[str, str], name: str) -> str:
    if name not in fields:
        raise HeaderError(f"is damaged: its header lacks the field {name}. Export it again.")
    return fields[name]


def _spatial_axes(fields: Mapping[str, str], sizes: list[int]) -> tuple[list[int], list[int]]:
    """The axes that are directions in space, and those that are not (values of a voxel, layers, time)."""
    everything = list(range(len(sizes)))
    if (text := fields.get("spacedirections")) is not None:
        vectors = _vectors(text)
        if len(vectors) != len(sizes):
            raise HeaderError("is damaged: its header does not have one direction for each axis. Export it again.")
        axes = [axis for axis in everything if vectors[axis] is not None]
    elif (text := fields.get("kinds")) is not None:
        kinds = text.lower().split()
        if len(kinds) != len(sizes):
            raise HeaderError("is damaged: its header does not have one kind for each axis. Export it again.")
        axes = [axis for axis in everything if kinds[axis] in ("domain", "space", "???", "none")]
    else:
        axes = everything
    if len(axes) < 3 and len(sizes) >= 3 and len(axes) + 1 == len(sizes):
        other = next(axis for axis in everything if axis not in axes)
        raise HeaderError(f"has {sizes[other]} values in each voxel (colors or a vector); a CT image has one.")
    # An axis of length 1 beyond the third is not a dimension.
    return axes, [axis for axis in everything if axis not in axes and sizes[axis] != 1]


def _vectors(text: str) -> list[list[float] | None]:
    """Vectors like "none (1,0,0) (0,1,0) (0,0,1)"."""
    parts = re.findall(r"none|\([^()]*\)", text, re.IGNORECASE)
    if re.sub(r"none|\([^()]*\)|\s", "", text, flags=re.IGNORECASE) or len(parts) > 16:
        raise HeaderError(f"is damaged: its header says {shown(text)} for a direction or position. Export it again.")
    return [
        None if part.lower() == "none" else [number(one.strip(), "a direction") for one in part[1:-1].split(",")]
        for part in parts
    ]


def _geometry(fields: Mapping[str, str], axes: list[int], shape: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    warnings = []
    space = fields.get("space", "").lower().removesuffix("-time")
    signs = _SPACES.get(space)
    if signs is None:
        if space not in ("", *_VAGUE_SPACES):
            raise HeaderError(f"is in the space {shown(space)}, which is not a known space. Export it again.")
        warnings.append(NO_ORIENTATION)
        signs = (1, 1, 1)
    units = re.findall(r'"([^"]*)"|(\S+)', fields.get("spaceunits", ""))
    unit = np.array([millimeters(quoted or plain) for quoted, plain in units[:3]] or [1.0] * 3)
    if len(unit) != 3:
        raise HeaderError("is damaged: its header does not have three space units. Export it again.")
    warnings += converted(fields.get("spaceunits", ""), float(unit.prod()))
    to_lps = np.diag(np.array(signs) * unit)
    if (text := fields.get("spacedirections")) is not None:
        vectors = _vectors(text)
        directions = np.column_stack([_three(vectors[axis] or []) for axis in axes])
    else:
        if NO_ORIENTATION not in warnings:
            warnings.append(NO_ORIENTATION)
        directions, notes = _spacings(fields, axes)
        warnings += notes
    origin = np.zeros(3)
    if (text := fields.get("spaceorigin")) is not None:
        vectors = _vectors(text)
        if len(vectors) != 1 or vectors[0] is None:
            raise HeaderError(f"is damaged: its header says {shown(text)} for the space origin. Export it again.")
        origin = _three(vectors[0])
    else:
        warnings.append(NO_ORIGIN)
    return affine(to_lps @ directions, to_lps @ origin, shape), warnings


def _three(vector: list[float]) -> np.ndarray:
    """The first three components of a vector; further ones (of a time axis) must be 0."""
    if len(vector) < 3 or any(vector[3:]):
        raise HeaderError("is damaged: its header has directions that do not lie in space. Export it again.")
    return np.array(vector[:3])


def _spacings(fields: Mapping[str, str], axes: list[int]) -> tuple[np.ndarray, list[str]]:
    """Directions from the spacings, along the voxel axes, and warnings about units."""
    if (text := fields.get("spacings")) is None:
        return np.eye(3), [NO_SPACING]
    parts = text.split()
    if len(parts) <= max(axes):
        raise HeaderError(f"is damaged: its header says {shown(text)} for the spacings. Export it again.")
    units = re.findall(r'"([^"]*)"|(\S+)', fields.get("units", ""))
    factors = [millimeters(units[axis][0] or units[axis][1]) if axis < len(units) else 1.0 for axis in axes]
    sizes = [number(parts[axis], "spacings") * mm for axis, mm in zip(axes, factors, strict=True)]
    return np.diag(sizes), converted(fields.get("units", ""), float(np.prod(factors)))


def _dtype(fields: Mapping[str, str], text: bool) -> np.dtype:
    code = _DTYPES.get(" ".join(_field(fields, "type").lower().split()))
    if code is None:
        raise HeaderError(f"holds voxels of the type {shown(fields['type'])}, not numbers. Export it again.")
    endian = fields.get("endian", "").lower()
    if endian not in ("little", "big") and not (code.endswith("1") or text):
        raise HeaderError("is damaged: its header does not specify the byte order (endian). Export it again.")
    return np.dtype(code).newbyteorder(">" if endian == "big" else "<")


def _skipped(fields: Mapping[str, str], data: Path, start: int, encoded: object) -> int:
    """The byte of the data file at which the voxels begin; -1: the voxels end with the file."""
    lines = integer(fields.get("lineskip", "0"), "line skip", 0, 10_000)
    skip = integer(fields.get("byteskip", "0"), "byte skip", -1, 2**40)
    if lines:
        with open_regular(data) as file:
            file.seek(start)
            for _ in range(lines):
                file.readline(LONGEST_HEADER)
            start = file.tell()
    if skip < 0 and encoded:
        raise HeaderError("is damaged: only uncompressed voxels can be located from the end. Export it again.")
    return -1 if skip < 0 else start + skip


def write_nrrd(volume: Volume, file: IO[bytes], fields: Mapping[str, str] | None = None) -> None:
    """Write a volume, compressed, with all digits of its geometry; `fields` go into the header as key-value pairs."""
    array, grid = storable(volume.array), volume.grid
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    code = array.dtype.str[1:]
    steps = grid.ijk_to_lps[:3, :3].T
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {_TYPES[code][0]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in volume.shape[::-1])}",
        f"space directions: {' '.join(_vector(step) for step in steps)}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(grid.origin)}",
        *(f"{key}:={_escaped(value)}" for key, value in (fields or {}).items()),
    ]
    file.write("\n".join([*lines, "", ""]).encode())
    packer = fast_zlib.compressobj(LEVEL, wbits=31)
    for plane in array:
        file.write(packer.compress(np.ascontiguousarray(plane)))
    file.write(packer.flush())


#: Fast; higher levels make CT only a few percent smaller (both in isal and in zlib, whose levels differ).
LEVEL = 2


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", " ")
