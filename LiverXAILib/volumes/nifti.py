# SPDX-License-Identifier: Apache-2.0
"""Reading NIfTI-1 and NIfTI-2 (.nii, .nii.gz): https://nifti.nimh.nih.gov.

ITK is not used for this format because it reads a truncated file as if zeros followed, and refuses or straightens
sheared geometry (gantry tilt), which the format's sform matrix holds well. Where a file holds two positions, the
same one is used as in ITK and 3D Slicer.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from .volume import LPS_TO_RAS, Grid


def _header_type(size: int, integer: str, real: str, fields: dict[str, tuple[str, int]]) -> np.dtype:
    formats = [code.replace("I", integer).replace("R", real) for code, _ in fields.values()]
    offsets = [offset for _, offset in fields.values()]
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": size})


#: The fields used here, by size of the header in bytes. I and R stand for the widths that differ.
_HEADERS = {
    348: _header_type(
        348,
        "i2",
        "f4",
        {
            "dim": ("8I", 40),
            "datatype": ("i2", 70),
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
        },
    ),
    540: _header_type(
        540,
        "i8",
        "f8",
        {
            "datatype": ("i2", 12),
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
#: Two positions in one file that agree better than this are the same one, rounded.
_SAME_PLACE_MM = 0.1


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read voxels and geometry of a three-dimensional NIfTI file.

    :return: array (k, j, i) with the file's scaling applied, ijk_to_lps (4x4, mm), warnings for the user.
    :raises LiverXAILib.errors.InputError: the file is damaged, incomplete, or not three-dimensional.
    """
    content = _content(path)
    header = _header(content, path)
    shape = _shape(header["dim"], path)
    code = _DATA_TYPES.get(int(header["datatype"]))
    if code is None:
        raise InputError(f"{path} holds colors or complex numbers, not a CT image.")
    data_type = np.dtype(code).newbyteorder(header.dtype["datatype"].byteorder)
    header_size, offset = header.dtype.itemsize, float(header["vox_offset"])
    start = int(offset) if offset >= header_size else header_size + 4
    count = int(np.prod(shape))
    if len(content) < start + count * data_type.itemsize:
        raise InputError(f"{path} is incomplete: it ends before its last voxel. Copy or export it again.")
    array = np.frombuffer(content, data_type, count, start).reshape(shape)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isfinite(slope) and slope != 0 and (slope, intercept) != (1.0, 0.0):
        array = array.astype(np.float64) * slope + intercept
    matrix, warnings = _ijk_to_lps(header, shape, path)
    return array, matrix, warnings


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged or incomplete and cannot be unpacked. Copy or export it again.") from error


def _header(content: bytes, path: Path) -> Any:
    """The header as a structured scalar; the header's own size tells the version and the byte order."""
    orders: tuple[Literal["<"], Literal[">"]] = ("<", ">")
    for order in orders:
        size = int(np.frombuffer(content, order + "i4", 1)[0]) if len(content) >= 4 else 0
        if size in _HEADERS and len(content) >= size:
            return np.frombuffer(content, _HEADERS[size].newbyteorder(order), 1)[0]
    raise InputError(f"{path} is not a NIfTI file, or it is damaged.")


def _shape(dim: np.ndarray, path: Path) -> tuple[int, int, int]:
    """(k, j, i); trailing axes of length 1 do not count."""
    if not 1 <= dim[0] <= 7:
        raise InputError(f"{path} is not a NIfTI file, or it is damaged.")
    sizes = [int(n) for n in dim[1 : dim[0] + 1]]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise InputError(f"{path} has {len(sizes)} dimensions; a CT volume with exactly three is needed.")
    if min(sizes) < 1:
        raise InputError(f"{path} is empty: its size is {' x '.join(map(str, sizes))} voxels.")
    i, j, k = sizes
    return k, j, i


def _ijk_to_lps(header: Any, shape: tuple[int, int, int], path: Path) -> tuple[np.ndarray, list[str]]:
    has_qform, has_sform = header["qform_code"] > 0, header["sform_code"] > 0
    scale = np.diag([_MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)] * 3 + [1.0])
    warnings = []
    try:
        if not has_qform and not has_sform:
            warnings.append("The file does not say how the patient lies: left and right may be swapped.")
            # ITK takes the voxel axes for L, P and S.
            return Grid(shape, scale @ np.diag([*np.abs(header["pixdim"][1:4]), 1.0])).ijk_to_lps, warnings
        # ITK's rule: sform code 1 (scanner) wins, then the qform, then an sform of another kind.
        name = "sform" if has_sform and (header["sform_code"] == 1 or not has_qform) else "qform"
        grids = {"sform": Grid(shape, scale @ _sform(header))} if has_sform else {}
        if has_qform:
            grids["qform"] = Grid(shape, scale @ _qform(header))
    except ValueError as error:
        raise InputError(f"{path} has no usable position and voxel size. Export it again.") from error
    if len(grids) == 2 and not grids["sform"].matches(grids["qform"], _SAME_PLACE_MM):
        warnings.append(f"The file gives two different positions (sform and qform); the {name} was used.")
    return LPS_TO_RAS @ grids[name].ijk_to_lps, warnings


def _sform(header: Any) -> np.ndarray:
    return np.vstack([header["srow"].astype(np.float64), [0, 0, 0, 1]])


def _qform(header: Any) -> np.ndarray:
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
    return matrix
