# SPDX-License-Identifier: Apache-2.0
"""Reading NIfTI-1 and NIfTI-2 (.nii, .nii.gz, .nii.bz2, and pairs .hdr/.img): https://nifti.nimh.nih.gov.

ITK is not used for this format because it fills a truncated file with zeros, and refuses or straightens sheared
geometry (gantry tilt), which the format's sform matrix can represent. If a file holds two usable transforms (sform and
qform), the choice is the same as in ITK and 3D Slicer.

nibabel, which reads the label names in a file's extensions (:mod:`LiverXAILib.labels.segment_files`), is not used for
voxels and geometry, because it

* places some files elsewhere than ITK and 3D Slicer: it prefers an sform with any code to a qform, ignores the unit of
  lengths, and centers an image without either transform at the origin;
* returns a singular matrix from a file whose sform is empty;
* does not compare the checksum at the end of a gzip file, so damaged voxels go unnoticed;
* allocates what the header claims before it looks at the size of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from .header import NO_ORIENTATION, Header, three_axes
from .stream import GZIP_MAGIC, ByteStream, Compression, HeaderError, open_regular
from .volume import LPS_TO_RAS, Grid


def _header_type(size: int, integer: str, real: str, fields: dict[str, tuple[str, int]]) -> np.dtype:
    formats = [code.replace("I", integer).replace("R", real) for code, _ in fields.values()]
    offsets = [offset for _, offset in fields.values()]
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": size})


#: The fields used here, by size of the header in bytes. I and R stand for the types whose widths differ.
_HEADERS = {
    348: _header_type(
        348,
        "i2",
        "f4",
        {
            "dim": ("8I", 40),
            "datatype": ("i2", 70),
            "bitpix": ("i2", 72),
            "pixdim": ("8R", 76),
            "vox_offset": ("f4", 108),
            "scl_slope": ("R", 112),
            "scl_inter": ("R", 116),
            "xyzt_units": ("u1", 123),
            "qform_code": ("i2", 252),
            "sform_code": ("i2", 254),
            "quatern": ("3R", 256),
            "qoffset": ("3R", 268),
            "srow": ("(3,4)R", 280),
            "magic": ("V4", 344),
        },
    ),
    540: _header_type(
        540,
        "i8",
        "f8",
        {
            "magic": ("V4", 4),
            "datatype": ("i2", 12),
            "bitpix": ("i2", 14),
            "dim": ("8I", 16),
            "pixdim": ("8R", 104),
            "vox_offset": ("i8", 168),
            "scl_slope": ("R", 176),
            "scl_inter": ("R", 184),
            "qform_code": ("i4", 344),
            "sform_code": ("i4", 348),
            "quatern": ("3R", 352),
            "qoffset": ("3R", 376),
            "srow": ("(3,4)R", 400),
            "xyzt_units": ("i4", 500),
        },
    ),
}

_DATA_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
#: Millimeters per unit of length, by the lowest three bits of ``xyzt_units`` (1 m, 2 mm, 3 µm; 0 unknown).
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}
#: Two transforms in one file that agree within this distance differ by rounding only.
_SAME_PLACE_MM = 0.1
#: The greatest offset of the voxels, in bytes: extensions between header and voxels are shorter.
_MOST_OFFSET = 2**26
_EXPORT = "Export it again."


def nifti_header(path: Path) -> Header:
    """The header of a NIfTI file. `path` is a .nii file or the .hdr of a pair, compressed or not.

    :raises LiverXAILib.volumes.stream.HeaderError: it is damaged, or describes something that is not a volume.
    """
    with open_regular(path) as file:
        compression = _compression(file.read(3))
        file.seek(0)
        content = ByteStream(file, compression).read(max(_HEADERS))
    header = _header(content)
    sizes = [int(n) for n in header["dim"][1 : header["dim"][0] + 1]]
    # Some writers leave the unused sizes at 0.
    shape = three_axes([*sizes[:3], *(n or 1 for n in sizes[3:])])
    code = _DATA_TYPES.get(int(header["datatype"]))
    if code is None:
        raise HeaderError("holds colors or complex numbers, not a CT image.")
    dtype = np.dtype(code).newbyteorder(header.dtype["datatype"].byteorder)
    if header["bitpix"] not in (0, 8 * dtype.itemsize):
        raise HeaderError(f"is damaged: its header says {header['bitpix']} bits for a {dtype.name} voxel. {_EXPORT}")
    matrix, warnings = _ijk_to_lps(header, shape)
    data, offset = _data_file(path, header), _offset(header)
    if data != path:
        with open_regular(data) as file:
            compression = _compression(file.read(3))
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    scaled = np.isfinite(slope) and slope != 0
    return Header(
        shape,
        dtype,
        matrix,
        data,
        start=0 if compression else offset,
        offset=offset if compression else 0,
        scaling=(slope, intercept) if scaled else (1.0, 0.0),
        compression=compression,
        warnings=tuple(warnings),
    )


def _compression(first: bytes) -> Compression | None:
    if first.startswith(GZIP_MAGIC):
        return "gzip"
    return "bzip2" if first == b"BZh" else None


def _header(content: bytes) -> Any:
    """The header as a structured scalar; version and byte order follow from its size field."""
    orders: tuple[Literal["<"], Literal[">"]] = ("<", ">")
    for order in orders:
        size = int(np.frombuffer(content, order + "i4", 1)[0]) if len(content) >= 4 else 0
        if size in _HEADERS and len(content) >= size:
            header = np.frombuffer(content, _HEADERS[size].newbyteorder(order), 1)[0]
            if bytes(header["magic"])[:3] == bytes(3) and size == 348:
                raise HeaderError("is an ANALYZE 7.5 file, which leaves left and right undefined. Convert it to NIfTI.")
            if bytes(header["magic"])[:3] in (b"n+1", b"n+2", b"ni1", b"ni2") and 1 <= header["dim"][0] <= 7:
                return header
    raise HeaderError("is not a NIfTI file, or it is damaged.")


def _data_file(path: Path, header: Any) -> Path:
    """The file with the voxels: `path` itself, or the other file of a pair."""
    if bytes(header["magic"])[1:2] == b"+":
        return path
    name = path.name.lower()
    stem = path.name[: name.rindex(".hdr")] if ".hdr" in name else path.stem
    for ending in (".img", ".img.gz", ".IMG", ".IMG.GZ"):
        if (other := path.with_name(stem + ending)).exists():
            return other
    raise HeaderError(f"is the header of a pair, and its voxels, {stem}.img, are not in the same folder.")


def _offset(header: Any) -> int:
    """Where the voxels begin."""
    single = bytes(header["magic"])[1:2] == b"+"
    least = header.dtype.itemsize + 4 if single else 0
    offset = float(header["vox_offset"])
    if offset == 0:
        return least
    if not least <= offset <= _MOST_OFFSET or offset % 1:
        raise HeaderError(f"is damaged: its header says that the voxels begin at byte {offset:g}. {_EXPORT}")
    return int(offset)


def _ijk_to_lps(header: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    """The usable transform that ITK would choose, and warnings.

    An sform with code 1 (scanner) has precedence, then the qform, then an sform with another code.
    """
    unit = int(header["xyzt_units"]) & 7
    scale = np.diag([_MM_PER_UNIT.get(unit, 1.0)] * 3 + [1.0])
    warnings = []
    if unit in _MM_PER_UNIT:
        warnings.append(f"The file gives lengths in {'m' if unit == 1 else 'µm'}; they were converted to mm.")
    elif unit > 3:
        warnings.append("The file gives lengths in an undefined unit; mm was assumed.")
    grids: dict[str, Grid] = {}
    unusable = []
    for name, code in (("sform", header["sform_code"]), ("qform", header["qform_code"])):
        if code > 0:
            try:
                matrix, notes = _sform(header) if name == "sform" else _qform(header)
                grids[name] = Grid(shape, scale @ matrix)
                warnings += notes
            except ValueError:
                unusable.append(name)
    if not grids:
        if unusable:
            raise HeaderError(f"has no usable position and voxel size. {_EXPORT}")
        try:
            # Like ITK, assume that the voxel axes run toward L, P and S.
            grid = Grid(shape, scale @ np.diag([*np.abs(header["pixdim"][1:4].astype(np.float64)), 1.0]))
        except ValueError as error:
            raise HeaderError(f"has no usable position and voxel size. {_EXPORT}") from error
        return grid.ijk_to_lps, [*warnings, NO_ORIENTATION]
    chosen = "sform" if "sform" in grids and (header["sform_code"] == 1 or "qform" not in grids) else "qform"
    if unusable:
        warnings.append(f"The file's {unusable[0]} is not a usable transform; the {chosen} was used.")
    if len(grids) == 2 and not grids["sform"].matches(grids["qform"], _SAME_PLACE_MM):
        warnings.append(f"The file gives two different positions (sform and qform); the {chosen} was used.")
    return LPS_TO_RAS @ grids[chosen].ijk_to_lps, warnings


def _sform(header: Any) -> tuple[np.ndarray, list[str]]:
    """The sform matrix; if it holds directions only, the voxel size comes from pixdim, as in ITK."""
    matrix = np.vstack([header["srow"].astype(np.float64), [0, 0, 0, 1]])
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    sizes = np.abs(header["pixdim"][1:4].astype(np.float64))
    given = np.isfinite(sizes).all() and (sizes > 0).all() and not np.allclose(sizes, 1, atol=1e-3)
    if given and np.allclose(lengths, 1, atol=1e-3):
        matrix[:3, :3] *= sizes / lengths
        return matrix, ["The file's sform holds directions only; the voxel size was taken from pixdim, as in ITK."]
    return matrix, []


def _qform(header: Any) -> tuple[np.ndarray, list[str]]:
    """The rotation of the unit quaternion (a, b, c, d), the third axis reversed where pixdim[0] is negative."""
    b, c, d = header["quatern"].astype(np.float64)
    a = np.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    norm = np.sqrt(a * a + b * b + c * c + d * d)
    a, b, c, d = a / norm, b / norm, c / norm, d / norm
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    spacing = np.abs(header["pixdim"][1:4].astype(np.float64))
    matrix[:3, :3] *= spacing * (1, 1, -1 if header["pixdim"][0] < 0 else 1)
    matrix[:3, 3] = header["qoffset"]
    return matrix, []
