# SPDX-License-Identifier: Apache-2.0
"""NIfTI, NRRD and MetaImage files: read as ITK reads them, written atomically, refused if they are not a CT volume."""

from __future__ import annotations

import bz2
import errno
import gzip
import io as io_of_python
import itertools
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import a_body
from scipy.spatial.transform import Rotation

from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.volumes import io, stream
from LiverXAILib.volumes.image_file import image_files, is_label_map, read_image_fields, read_image_file
from LiverXAILib.volumes.io import list_series, read_labels, read_volume, write_volume
from LiverXAILib.volumes.stream import ByteStream, HeaderError, check_claimed_size, parse_text
from LiverXAILib.volumes.volume import LPS_TO_RAS, Volume

ENDINGS = [".nii", ".nii.gz", ".nrrd", ".mha"]
ROTATION = Rotation.from_euler("xyz", [20, -31, 14], degrees=True).as_matrix()
SHEAR = np.array([[1, 0, 0], [0, 1, np.sin(np.radians(18.5))], [0, 0, np.cos(np.radians(18.5))]])
DIRECTIONS = {
    "upright": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "left-handed": np.diag([1.0, 1.0, -1.0]),
    "permuted": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "oblique": ROTATION,
    "left-handed oblique": ROTATION * (1, -1, 1),
}


def an_affine(direction: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = direction * (0.7, 1.3, 2.9)
    matrix[:3, 3] = (-120.25, 33.5, 870.0)
    return matrix


def a_volume(direction: np.ndarray | None = None) -> Volume:
    return Volume(a_body((4, 20, 24)), an_affine(np.eye(3) if direction is None else direction))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "ITK" not in message
    assert str(path) in message
    return message


def itk_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(str(path))
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), matrix


def nifti(
    path: Path,
    array: np.ndarray,
    *,
    sform: np.ndarray | None = None,
    sform_code: int = 0,
    qform_code: int = 0,
    quaternion: tuple[float, float, float] = (0, 0, 0),
    spacing: tuple[float, float, float] = (0.7, 1.3, 2.9),
    qfac: float = 1,
    offset: tuple[float, float, float] = (5, 6, 7),
    scaling: tuple[float, float] = (1, 0),
    datatype: int = 4,
    units: int = 2,
    dim: list[int] | None = None,
    order: str = "<",
    version: int = 1,
) -> None:
    """A NIfTI file written strictly by the standard, independently of the reader."""
    shape = dim or [array.ndim, *array.shape[::-1]]
    shape = shape + [1] * (8 - len(shape))
    rows = (np.eye(4) if sform is None else sform)[:3].ravel()
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    header = bytearray(348 if version == 1 else 540)

    def put(layout: str, at: int, *values: float) -> None:
        struct.pack_into(order + layout, header, at, *values)

    bits = array.dtype.itemsize * 8
    pixdim = (qfac, *spacing, 1, 1, 1, 1)
    if version == 1:
        put("i", 0, 348)
        put("8h", 40, *shape)
        put("hh", 70, datatype, bits)
        put("8f", 76, *pixdim)
        put("3f", 108, 352, *scaling)
        put("B", 123, units)
        put("hh", 252, qform_code, sform_code)
        put("6f", 256, *quaternion, *offset)
        put("12f", 280, *rows)
        header[344:348] = b"n+1\0"
    else:
        put("i", 0, 540)
        header[4:12] = b"n+2\0\r\n\x1a\n"
        put("hh", 12, datatype, bits)
        put("8q", 16, *shape)
        put("8d", 104, *pixdim)
        put("q", 168, 544)
        put("2d", 176, *scaling)
        put("ii", 344, qform_code, sform_code)
        put("6d", 352, *quaternion, *offset)
        put("12d", 400, *rows)
        put("i", 500, units)
    content = bytes(header) + bytes(4) + data
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS.keys())
def test_what_is_written_is_read_back_and_itk_agrees(tmp_path, ending, direction):
    volume = a_volume(direction)
    path = tmp_path / f"ct{ending}"
    write_volume(volume, path)
    for array, matrix in (itk_volume(path), (read_volume(path).array, read_volume(path).ijk_to_lps)):
        np.testing.assert_array_equal(array, volume.array)
        # NIfTI's header holds 32-bit numbers.
        tolerance = 1e-4 if ".nii" in ending else 1e-10
        np.testing.assert_allclose(matrix, volume.ijk_to_lps, atol=tolerance)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_shear_survives_in_nrrd_and_metaimage(tmp_path, ending):
    volume = a_volume(SHEAR)
    write_volume(volume, tmp_path / f"ct{ending}")
    np.testing.assert_allclose(read_volume(tmp_path / f"ct{ending}").ijk_to_lps, volume.ijk_to_lps, atol=1e-10)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_shear_is_not_written_to_nifti_where_itk_would_straighten_it(tmp_path, ending):
    with pytest.raises(UsageError, match=r"sheared.*\.nrrd or \.mha"):
        write_volume(a_volume(SHEAR), tmp_path / f"ct{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codes", [(0, 1), (1, 1)], ids=["sform alone", "with a straight qform"])
@pytest.mark.parametrize("version", [1, 2])
def test_shear_is_read_from_niftis_sform(tmp_path, codes, version):
    matrix = an_affine(ROTATION @ SHEAR)
    path = tmp_path / "ct.nii.gz"
    nifti(path, a_body(), sform=LPS_TO_RAS @ matrix, qform_code=codes[0], sform_code=codes[1], version=version)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.ijk_to_lps, matrix, atol=1e-4)
    np.testing.assert_array_equal(volume.array, a_body())
    assert any("two different positions" in one for one in volume.metadata["warnings"]) == (codes[0] == 1)


@pytest.mark.parametrize("sform_code", [0, 1, 2, 3])
@pytest.mark.parametrize("qform_code", [0, 1, 2])
@pytest.mark.parametrize("qfac", [1, -1])
def test_of_sform_and_qform_the_same_is_used_as_in_itk(tmp_path, sform_code, qform_code, qfac):
    x, y, z, w = Rotation.from_euler("xyz", [-11, 40, 75], degrees=True).as_quat()
    path = tmp_path / "ct.nii"
    nifti(
        path,
        a_body(),
        sform=LPS_TO_RAS @ an_affine(ROTATION),
        sform_code=sform_code,
        qform_code=qform_code,
        quaternion=tuple(np.array([x, y, z]) * np.sign(w)),
        qfac=qfac,
    )
    volume = read_volume(path)
    array, matrix = itk_volume(path)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.ijk_to_lps, matrix, atol=1e-4)
    warnings = " ".join(volume.metadata["warnings"])
    assert ("two different positions" in warnings) == (sform_code > 0 and qform_code > 0)
    assert ("left and right may be swapped" in warnings) == (sform_code == qform_code == 0)


def test_a_half_turn_in_the_qform_is_read_like_itk(tmp_path):
    nifti(tmp_path / "ct.nii", a_body(), qform_code=1, quaternion=(0, 0, 1))
    np.testing.assert_allclose(
        read_volume(tmp_path / "ct.nii").ijk_to_lps, itk_volume(tmp_path / "ct.nii")[1], atol=1e-5
    )


@pytest.mark.parametrize(("units", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (4, 1), (7, 1), (10, 1), (12, 1)])
def test_niftis_unit_of_length_is_honored(tmp_path, units, factor):
    path = tmp_path / "ct.nii"
    sform = LPS_TO_RAS @ an_affine(np.eye(3))
    sform[:3] /= factor
    nifti(path, a_body(), sform=sform, sform_code=1, units=units)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.ijk_to_lps, an_affine(np.eye(3)), rtol=1e-6)
    assert any("converted to mm" in one for one in volume.metadata["warnings"]) == (factor != 1)
    # The lowest three bits are the unit of length, of which 4 to 7 are not defined; the others are that of time.
    assert any("undefined unit" in one for one in volume.metadata["warnings"]) == (units % 8 > 3)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("length", [1.0, 1.25])
def test_a_quaternion_that_is_too_long_is_a_half_turn_all_the_same(tmp_path, axis, length):
    nifti(tmp_path / "ct.nii", a_body(), qform_code=1, quaternion=tuple(length * np.eye(3)[axis]), qfac=0)
    signs = np.where(np.arange(3) == axis, 1, -1)
    expected = (LPS_TO_RAS[:3, :3] * signs) @ np.diag([0.7, 1.3, 2.9])
    np.testing.assert_allclose(read_volume(tmp_path / "ct.nii").ijk_to_lps[:3, :3], expected, atol=1e-6)


@pytest.mark.parametrize(("offset", "said"), [(0.05, False), (0.2, True)])
def test_two_positions_in_a_nifti_file_may_differ_by_rounding(tmp_path, offset, said):
    sform = np.diag([0.7, 1.3, 2.9, 1])
    sform[:3, 3] = 5 + offset, 6, 7
    nifti(tmp_path / "ct.nii", a_body(), sform=sform, sform_code=1, qform_code=1)
    assert bool(read_volume(tmp_path / "ct.nii").metadata["warnings"]) == said


@pytest.mark.parametrize(
    ("lengths", "spacing", "result"),
    [
        ((1.0008, 0.9995, 1), (0.7, 1.3, 2.9), (0.7, 1.3, 2.9)),
        ((1, 1, 1), (0.7, 1.3, 1.9), (0.7, 1.3, 1.9)),
        ((1, 1, 1), (1.0005, 1, 1), (1, 1, 1)),
        ((1, 1, 1), (0, 1.3, 2.9), (1, 1, 1)),
        ((1, 1, 1), (float("nan"), 1.3, 2.9), (1, 1, 1)),
        ((1.002, 1, 1), (0.7, 1.3, 2.9), (1.002, 1, 1)),
    ],
    ids=["rounded", "small voxels", "1 mm", "zero", "nan", "not of length 1"],
)
def test_an_sform_of_directions_takes_the_voxel_size_from_pixdim_if_it_is_one(tmp_path, lengths, spacing, result):
    sform = np.eye(4)
    sform[:3, :3] = ROTATION * lengths
    nifti(tmp_path / "ct.nii", a_body(), sform=sform, sform_code=1, spacing=spacing)
    volume = read_volume(tmp_path / "ct.nii")
    np.testing.assert_allclose(LPS_TO_RAS[:3, :3] @ volume.ijk_to_lps[:3, :3], ROTATION * result, atol=1e-6)
    taken = any("directions only" in one for one in volume.metadata["warnings"])
    assert taken == (result == spacing)


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_extensions_between_a_nifti_header_and_its_voxels_are_passed_over(tmp_path, name, version):
    nifti(tmp_path / "plain.nii", a_body(), sform=np.eye(4), sform_code=1, version=version)
    content = (tmp_path / "plain.nii").read_bytes()
    size = 352 if version == 1 else 544
    offset = struct.pack("<f" if version == 1 else "<q", size + 16)
    at = 108 if version == 1 else 168
    content = content[:at] + offset + content[at + len(offset) : size] + b"sixteen bytes..." + content[size:]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, a_body())


def test_a_nifti_header_may_leave_out_the_bits_and_the_offset(tmp_path):
    nifti(tmp_path / "ct.nii", a_body(), sform=np.eye(4), sform_code=1)
    content = bytearray((tmp_path / "ct.nii").read_bytes())
    struct.pack_into("<h", content, 72, 0)
    struct.pack_into("<f", content, 108, 0)
    (tmp_path / "ct.nii").write_bytes(content)
    np.testing.assert_array_equal(read_volume(tmp_path / "ct.nii").array, a_body())


@pytest.mark.parametrize("name", ["ct.old.hdr", "CT.HDR", "a.hdr.b.hdr"])
@pytest.mark.parametrize("offset", [0, 16])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_voxels_of_a_pair_may_be_compressed_and_begin_later(tmp_path, name, offset, compressed):
    nifti(tmp_path / "ct.nii", a_body(), sform=np.eye(4), sform_code=1)
    header = bytearray((tmp_path / "ct.nii").read_bytes()[:348])
    struct.pack_into("<f", header, 108, offset)
    header[344:347] = b"ni1"
    (tmp_path / name).write_bytes(header)
    voxels = bytes(offset) + a_body().tobytes()
    ending = ".IMG" if name.isupper() else ".img"
    if compressed:
        ending += ".GZ" if name.isupper() else ".gz"
    other = tmp_path / (name[:-4] + ending)
    other.write_bytes(gzip.compress(voxels) if compressed else voxels)
    for path in (tmp_path / name, other):
        np.testing.assert_array_equal(read_volume(path).array, a_body())
        assert image_files(path if path != other else tmp_path / name) == (tmp_path / name, other)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("datatype", "numpy_type"),
    [(4, "i2"), (8, "i4"), (16, "f4"), (64, "f8"), (1024, "i8"), (512, "u2"), (768, "u4"), (1280, "u8")],
)
def test_every_number_type_and_byte_order_of_nifti_is_read(tmp_path, order, datatype, numpy_type):
    body = a_body()
    shift = 1024 if numpy_type.startswith("u") else 0
    path = tmp_path / "ct.nii"
    stored = (body.astype(int) + shift).astype(numpy_type)
    nifti(path, stored, sform=np.eye(4), sform_code=1, datatype=datatype, order=order, scaling=(1, -shift))
    volume = read_volume(path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, body)
    np.testing.assert_array_equal(volume.array, itk_volume(path)[0])


@pytest.mark.parametrize("scaling", [(2.5, -10.25), (0, 7), (float("nan"), 0), (1, -3)])
def test_niftis_scaling_is_honored(tmp_path, scaling):
    path = tmp_path / "ct.nii.gz"
    nifti(path, a_body(), sform=np.eye(4), sform_code=1, scaling=scaling)
    slope, intercept = scaling if np.isfinite(scaling[0]) and scaling[0] != 0 else (1, 0)
    volume = read_volume(path, force=True)
    np.testing.assert_allclose(volume.array, a_body() * slope + intercept)
    assert volume.array.dtype == (np.float32 if slope == 2.5 else np.int16)


def test_trailing_axes_of_one_are_no_fourth_dimension(tmp_path):
    body = a_body()
    nifti(tmp_path / "ct.nii", body, sform=np.eye(4), sform_code=1, dim=[5, *body.shape[::-1], 1, 1])
    np.testing.assert_array_equal(read_volume(tmp_path / "ct.nii").array, body)
    image = sitk.JoinSeries([sitk.GetImageFromArray(body)])
    for ending in (".nrrd", ".mha"):
        sitk.WriteImage(image, str(tmp_path / f"ct{ending}"))
        np.testing.assert_array_equal(read_volume(tmp_path / f"ct{ending}").array, body)


def test_detached_headers_and_other_spaces_are_read(tmp_path):
    body = a_body()
    for ending in (".nhdr", ".mhd"):
        sitk.WriteImage(sitk.GetImageFromArray(body), str(tmp_path / f"ct{ending}"))
        np.testing.assert_array_equal(read_volume(tmp_path / f"ct{ending}").array, body)
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 80 64 5\n"
        "space directions: (0.7,0,0) (0,1.3,0.5) (0,0,2.9)\nspace origin: (1,2,3)\nencoding: raw\nendian: little\n\n"
    )
    (tmp_path / "ras.nrrd").write_bytes(header.encode() + body.tobytes())
    expected = [[-0.7, 0, 0, -1], [0, -1.3, 0, -2], [0, 0.5, 2.9, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(read_volume(tmp_path / "ras.nrrd").ijk_to_lps, expected, atol=1e-12)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "float16", "float32", "float64"])
def test_every_array_type_and_memory_layout_can_be_written(tmp_path, ending, dtype):
    array = (np.arange(4 * 5 * 6).reshape(6, 5, 4) % 2).astype(dtype).transpose(2, 1, 0)[::-1]
    path = tmp_path / f"labels{ending}"
    write_volume(Volume(array, np.eye(4)), path)
    np.testing.assert_array_equal(read_labels(path).array, array)


def mhd(path: Path, data: bytes, *lines: str) -> Path:
    """A MetaImage header for the body, and its voxels in another file."""
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 80 64 5\nElementType = MET_SHORT\n"
    path.write_text(head + "".join(f"{line}\n" for line in lines) + "ElementDataFile = x.raw\n")
    path.with_name("x.raw").write_bytes(data)
    return path


def nhdr(path: Path, data: bytes, *lines: str) -> Path:
    """An NRRD header for the body, and its voxels in another file."""
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 80 64 5\nendian: little\n"
    path.write_text(head + "".join(f"{line}\n" for line in lines) + "data file: x.raw\n")
    path.with_name("x.raw").write_bytes(data)
    return path


@pytest.mark.parametrize("skipped", [b"", b"a\nb\nline", bytes(20000)])
def test_bytes_before_the_voxels_of_a_detached_file_are_passed_over(tmp_path, skipped):
    data = skipped + a_body().tobytes()
    paths = [
        mhd(tmp_path / "a.mhd", data, f"HeaderSize = {len(skipped)}"),
        mhd(tmp_path / "b.mhd", data, "HeaderSize = -1"),
        nhdr(tmp_path / "a.nhdr", data, "encoding: raw", f"byte skip: {len(skipped)}"),
        nhdr(tmp_path / "b.nhdr", data, "encoding: raw", "byte skip: -1"),
    ]
    if lines := skipped.count(b"\n"):
        rest = len(skipped) - skipped.rindex(b"\n") - 1
        paths.append(nhdr(tmp_path / "c.nhdr", data, "encoding: raw", f"line skip: {lines}", f"byte skip: {rest}"))
    for path in paths:
        np.testing.assert_array_equal(read_volume(path).array, a_body())
        assert image_files(path) == (path, tmp_path / "x.raw")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        *((f"dimension: {text}", "dimension") for text in ("0", "17", "x", "3.0")),
        *((f"sizes: 80 64 {text}", "sizes") for text in ("-5", "5.0", "x")),
        *((f"line skip: {text}", "line skip") for text in ("-1", "10001")),
        *((f"byte skip: {text}", "byte skip") for text in ("-2", str(2**40 + 1))),
        *((f"NDims = {text}", "NDims") for text in ("0", "11", "x")),
        *((f"DimSize = 80 64 {text}", "DimSize") for text in ("-5", "5.0", "x")),
        *((f"ElementNumberOfChannels = {text}", "ElementNumberOfChannels") for text in ("0", "10001")),
        *((f"HeaderSize = {text}", "HeaderSize") for text in ("-2", str(2**40 + 1))),
        *((f"CompressedDataSize = {text}", "CompressedDataSize") for text in ("-1", str(2**50 + 1))),
        *((f"TransformMatrix = 1 0 0 0 1 0 0 0 {text}", "TransformMatrix") for text in ("x", "1 0")),
        *((f"ElementSpacing = 1 1 {text}", "ElementSpacing") for text in ("inf", "1 1")),
        *((f"Offset = 0 0 {text}", "Offset") for text in ("1.1e12", "1_0", "")),
    ],
)
def test_a_header_with_a_number_that_makes_no_sense_is_refused_with_the_name_of_its_field(tmp_path, line, name):
    path = tmp_path / "a.mhd"
    if "=" in line:
        mhd(path, b"", "CompressedData = True")
    else:
        path = nhdr(tmp_path / "a.nhdr", b"", "encoding: raw")
    key = line.replace(":", " ").split("=")[0].split()[0]
    lines = path.read_text().splitlines()
    kept = [one for one in lines if not one.startswith(key) or one.startswith("ElementDataFile")]
    # The magic line stays the first, and the file with the voxels the last.
    path.write_text("\n".join([*kept[:1], line, *kept[1:]]) + "\n")
    assert f"'{name}'" in refusal(path)


def test_voxels_that_end_with_their_file_must_all_be_in_it(tmp_path):
    data = a_body().tobytes()[2:]
    assert "ends before its first voxel" in refusal(mhd(tmp_path / "a.mhd", data, "HeaderSize = -1"))
    assert "ends before its first voxel" in refusal(nhdr(tmp_path / "a.nhdr", data, "encoding: raw", "byte skip: -1"))
    long = f"HeaderSize = {len(data) + 1}"
    assert "ends before its first voxel" in refusal(mhd(tmp_path / "b.mhd", data, long))
    assert "only uncompressed voxels" in refusal(nhdr(tmp_path / "b.nhdr", data, "encoding: gzip", "byte skip: -1"))
    packed = ("CompressedData = True", "HeaderSize = 4")
    assert "only uncompressed voxels" in refusal(mhd(tmp_path / "c.mhd", data, *packed))


#: Half of them hard to compress.
BYTES = np.random.default_rng(1).integers(0, 256, 400, np.uint8).tobytes() + bytes(400)
PACKED = {"gzip": gzip.compress, "zlib": zlib.compress, "bzip2": bz2.compress}


def streamed(data, compression, limit=None):
    return ByteStream(io_of_python.BytesIO(data), compression, limit)


@pytest.mark.parametrize("chunk", [2, 7, 64, 1 << 20])
@pytest.mark.parametrize("compressed", ["gzip", "gzip gzip gzip", "zlib", "bzip2", "bzip2 bzip2 bzip2"])
def test_a_stream_is_read_whole_wherever_its_chunks_and_members_end(monkeypatch, compressed, chunk):
    compression, members = compressed.split()[0], len(compressed.split())
    monkeypatch.setattr(stream, "_CHUNK", chunk)
    ends = np.linspace(0, len(BYTES), members + 1).astype(int)
    packed = b"".join(PACKED[compression](BYTES[a:b]) for a, b in itertools.pairwise(ends))
    for trailing in (b"", b"B", b"\x1f", b"BZ", b"\x1f\x8a", b"more than a chunk"):
        one = streamed(packed + trailing, compression)
        assert one.read(5) + one.read(790) + one.read(99) == BYTES
        one.finish()
        assert one.trailing == len(trailing)
    limited = streamed(packed + b"more", compression, len(packed))
    assert (limited.read(len(BYTES)), limited.read(1), limited.trailing) == (BYTES, b"", 0)
    one = streamed(packed, compression)
    assert one.read(len(BYTES) - 1) == BYTES[:-1]
    with pytest.raises(HeaderError, match="holds more voxels"):
        one.finish()
    with pytest.raises(HeaderError, match="is incomplete: its compressed voxels end prematurely"):
        streamed(packed[:-1], compression).read(len(BYTES) + 1)
    with pytest.raises(HeaderError, match="is damaged: its compressed voxels cannot be decompressed"):
        streamed(b"not compressed at all", compression).read(1)


@pytest.mark.parametrize("limit", [None, 9])
def test_bytes_that_are_not_compressed_end_with_the_file_or_at_their_limit(monkeypatch, limit):
    monkeypatch.setattr(stream, "_CHUNK", 4)
    one = streamed(b"0123456789", None, limit)
    assert (one.read(3), one.read(3), one.read(9)) == (b"012", b"345", b"6789"[: limit and 3])
    one.finish()
    with pytest.raises(HeaderError, match="holds more voxels"):
        streamed(b"0123456789", None, limit).finish()


@pytest.mark.parametrize(
    ("size", "available", "compression", "problem"),
    [
        *((100, 100, None, None), (101, 100, None, "incomplete"), (99, 100, None, "damaged")),
        *((103_200, 100, "gzip", None), (103_201, 100, "gzip", "damaged"), (1, 100, "gzip", None)),
        *((103_200, 100, "zlib", None), (103_201, 100, "zlib", "damaged")),
        *((200_000_000, 100, "bzip2", None), (200_000_001, 100, "bzip2", "damaged")),
    ],
)
def test_a_header_may_promise_what_its_bytes_can_hold(monkeypatch, size, available, compression, problem):
    needed = []
    monkeypatch.setattr(stream, "require_memory", lambda size, what: needed.append((size, what)))
    if problem is None:
        check_claimed_size(size, available, compression, "7 x 8", Path("a.nii"))
        assert needed == [(3 * size, "a.nii (7 x 8 voxels)")]
    else:
        with pytest.raises(HeaderError, match=f"is {problem}: its header specifies 7 x 8 voxels"):
            check_claimed_size(size, available, compression, "7 x 8", Path("a.nii"))
        assert needed == []


@pytest.mark.parametrize(
    ("text", "dtype", "numbers"),
    [
        (b"0 255", "uint8", [0, 255]),
        (b"-128,\n127\t", "int8", [-128, 127]),
        (b"1e2, 2.0", "int16", [100, 2]),
        (b"0.5 nan", "float32", [0.5, np.nan]),
        *((text, "uint8", "voxel type cannot represent") for text in (b"0 256", b"-1 0", b"0.5 1", b"nan 0")),
        *((text, "uint8", "should hold 2 voxels but holds") for text in (b"", b"0", b"0 1 2")),
        (b"0 x", "uint8", "holds text where numbers are expected"),
    ],
)
def test_numbers_written_as_text_are_those_of_the_voxel_type(text, dtype, numbers):
    if isinstance(numbers, str):
        with pytest.raises(HeaderError, match=numbers):
            parse_text(text, np.dtype(dtype), 2)
    else:
        parsed = parse_text(text, np.dtype(dtype), 2)
        assert parsed.dtype == dtype
        np.testing.assert_array_equal(parsed, numbers)


def test_compressed_voxels_may_follow_a_skipped_part_and_be_followed_by_others(tmp_path):
    packed = gzip.compress(a_body().tobytes())
    path = nhdr(tmp_path / "a.nhdr", b"first\nxx" + packed + b"more", "encoding: gz", "line skip: 1", "byte skip: 2")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, a_body())
    assert any(one.startswith("4 bytes follow") for one in volume.metadata["warnings"])
    write_volume(a_volume(), tmp_path / "ct.mha")
    (tmp_path / "ct.mha").write_bytes((tmp_path / "ct.mha").read_bytes() + b"others")
    volume = read_volume(tmp_path / "ct.mha")
    np.testing.assert_array_equal(volume.array, a_volume().array)
    assert [one[:14] for one in volume.metadata["warnings"]] == ["6 bytes follow"]


@pytest.mark.parametrize(
    ("dtype", "scaling", "expected"),
    [("uint8", (1, 0), True), ("uint8", (2, 0), False), ("uint8", (1, 5), False), ("int16", (1, 0), False)],
)
def test_bytes_that_are_not_scaled_are_labels_by_the_header(tmp_path, dtype, scaling, expected):
    array = np.ones((3, 4, 5), dtype)
    nifti(tmp_path / "x.nii", array, datatype=2 if dtype == "uint8" else 4, scaling=scaling)
    assert is_label_map(tmp_path / "x.nii") == expected
    (tmp_path / "x.nii").write_bytes(bytes(400))
    assert not is_label_map(tmp_path / "x.nii")
    assert image_files(tmp_path / "x.nii") == (tmp_path / "x.nii",)


def test_layers_and_other_fields_of_a_file_are_kept(tmp_path):
    layers = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    head = "NRRD0004\ntype: uchar\ndimension: 4\nencoding: raw\nSegment0_Name:=a \\\\ b\\nc\n"
    space = "space: LPS\nspace origin: (1,2,3)\n"
    axes, direction = "(2,0,0) (0,3,0) (0,0,4)", "space directions: "
    for name, sizes, vectors, data in (
        ("first", "2 5 4 3", f"none {axes}", np.moveaxis(layers, 0, -1)),
        ("last", "5 4 3 2", f"{axes} none", layers),
    ):
        text = f"{head}sizes: {sizes}\n{space}{direction}{vectors}\n\n"
        (tmp_path / f"{name}.nrrd").write_bytes(text.encode() + np.ascontiguousarray(data).tobytes())
        image = read_image_file(tmp_path / f"{name}.nrrd")
        np.testing.assert_array_equal(image.layers, layers)
        assert image.fields == read_image_fields(tmp_path / f"{name}.nrrd") == {"Segment0_Name": "a \\ b\nc"}
        expected = [[2, 0, 0, 1], [0, 3, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]]
        np.testing.assert_array_equal(image.grid.ijk_to_lps, expected)
        with pytest.raises(InputError, match="2 layers"):
            read_labels(tmp_path / f"{name}.nrrd")
        (tmp_path / f"{name}.nrrd").write_bytes(text.encode() + bytes(119))
        with pytest.raises(InputError, match="specifies 5 x 4 x 3 x 2 voxels, 120 bytes, but 119 are there"):
            read_labels(tmp_path / f"{name}.nrrd")


def test_fractions_stay_as_float32(tmp_path):
    array = a_body() + np.float32(0.25)
    write_volume(Volume(array, np.eye(4)), tmp_path / "ct.nrrd")
    volume = read_volume(tmp_path / "ct.nrrd")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array)


def test_an_older_file_is_replaced_and_a_failure_leaves_it_whole(tmp_path, monkeypatch):
    path = tmp_path / "ct.nrrd"
    write_volume(a_volume(), path)
    before = path.read_bytes()

    def full_disk(volume: Volume, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(io, "write_nrrd", full_disk)
    with pytest.raises(InputError, match="Cannot write"):
        write_volume(a_volume(ROTATION), path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    write_volume(a_volume(ROTATION), path)
    assert path.read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["ct.nrrd"]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("room", [0, 3, 4096, 100_000])
def test_a_disk_that_is_full_leaves_the_older_file_whole_in_every_format(tmp_path, ending, room):
    import resource

    path = tmp_path / f"ct{ending}"
    write_volume(a_volume(), path)
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(-1000, 1000, (30, 60, 60)).astype(np.int16)  # does not compress
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(InputError, match="Cannot write"):
            write_volume(Volume(noise, np.eye(4)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    write_volume(Volume(noise, np.eye(4)), path)
    np.testing.assert_array_equal(read_volume(path, force=True).array, noise)


def test_only_the_four_one_file_formats_are_written(tmp_path):
    for name in ("ct.mhd", "ct.nhdr", "ct.dcm", "ct"):
        with pytest.raises(UsageError, match=r"\.nii, \.nii\.gz, \.nrrd, \.mha"):
            write_volume(a_volume(), tmp_path / name)
    with pytest.raises(InputError, match="Cannot write"):
        write_volume(a_volume(), tmp_path / "missing" / "ct.nrrd")


def test_metadata_tells_the_format(tmp_path):
    for ending, name in ((".nii.gz", "NIfTI"), (".nrrd", "NRRD"), (".mha", "MetaImage")):
        write_volume(a_volume(), tmp_path / f"ct{ending}")
        metadata = read_volume(tmp_path / f"ct{ending}").metadata
        assert metadata == {"source_format": name, "modality": None, "warnings": []}


# ---- refusals


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kept", [0.95, 0.5, 0.01])
def test_a_file_cut_short_is_refused_in_every_format(tmp_path, ending, compressed, kept):
    path = tmp_path / f"ct{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(a_body()), str(path), compressed)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = refusal(path)
    assert "damaged" in message or "incomplete" in message or "not a NIfTI file" in message


@pytest.mark.parametrize("ending", [*ENDINGS, ".nhdr", ".mhd"])
@pytest.mark.parametrize("content", [b"", b"hello, this is no image", bytes(1000)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_something_else_is_refused(tmp_path, ending, content):
    path = tmp_path / f"ct{ending}"
    path.write_bytes(content)
    refusal(path)


def test_damage_within_compressed_nifti_is_noticed(tmp_path):
    path = tmp_path / "ct.nii.gz"
    write_volume(a_volume(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_two_and_four_dimensions_are_refused(tmp_path):
    body = a_body()
    flat, twice = sitk.GetImageFromArray(body[0]), sitk.JoinSeries([sitk.GetImageFromArray(body)] * 2)
    for ending in ENDINGS:
        for name, image, reason in (("flat", flat, "2 dimensions"), ("twice", twice, "4 dimensions")):
            path = tmp_path / f"{name}{ending}"
            sitk.WriteImage(image, str(path))
            assert reason in refusal(path)
        slab = tmp_path / f"slab{ending}"
        sitk.WriteImage(sitk.GetImageFromArray(body[:1]), str(slab))
        assert "single slice" in refusal(slab)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_nan_and_infinity_are_refused(tmp_path, ending, bad, everywhere):
    array = a_body().astype(np.float32)
    array[...] = bad if everywhere else array
    array[1, 2, 3] = bad
    path = tmp_path / f"ct{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    count = array.size if everywhere else 1
    assert f"holds {count} voxels that are not finite" in refusal(path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("value", [0, -1024])
def test_an_image_of_one_value_is_refused(tmp_path, ending, value):
    path = tmp_path / f"ct{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 5, 6), value, np.int16)), str(path))
    assert f"every voxel has the value {value}" in refusal(path)


def test_an_image_without_voxels_is_refused(tmp_path):
    nifti(tmp_path / "ct.nii", a_body(), sform=np.eye(4), sform_code=1, dim=[3, 0, 64, 5])
    assert "empty: its size is 0 x 64 x 5" in refusal(tmp_path / "ct.nii")
    header = "ObjectType = Image\nNDims = 3\nDimSize = 0 5 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "ct.mha").write_text(header)
    assert "empty: its size is 0 x 5 x 4" in refusal(tmp_path / "ct.mha")


def test_colors_are_refused(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    for ending in (".nrrd", ".mha"):
        sitk.WriteImage(image, str(tmp_path / f"rgb{ending}"))
        assert "3 values in each voxel" in refusal(tmp_path / f"rgb{ending}")
    nifti(tmp_path / "rgb.nii", np.zeros((4, 5, 18), np.uint8), datatype=128, dim=[3, 6, 5, 4])
    assert "holds colors" in refusal(tmp_path / "rgb.nii")


@pytest.mark.parametrize(
    "sform", [np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan)], ids=["zero", "flat", "nan"]
)
def test_unusable_geometry_is_refused(tmp_path, sform):
    nifti(tmp_path / "ct.nii", a_body(), sform=sform, sform_code=1)
    assert "position and voxel size" in refusal(tmp_path / "ct.nii")


def test_singular_nrrd_geometry_is_refused(tmp_path):
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 80 64 5\n"
        "space directions: (1,0,0) (0,1,0) (0,1,0)\nspace origin: (1,2,3)\nencoding: raw\nendian: little\n\n"
    )
    (tmp_path / "ct.nrrd").write_bytes(header.encode() + a_body().tobytes())
    assert "damaged" in refusal(tmp_path / "ct.nrrd")


NOT_CT = {
    "MR": lambda body: np.abs(body) + 5,
    "CT stored with an offset": lambda body: body + 1024,
    "normalized": lambda body: (body - body.mean()) / body.std(),
    "labels": lambda body: (body > 0).astype(np.uint8),
    "8-bit picture": lambda body: np.clip((body + 1024) / 8, 0, 255).astype(np.uint8),
    "no soft tissue": lambda body: np.where(body > -500, 2000 + body, -1000),
}


@pytest.mark.parametrize("change", NOT_CT.values(), ids=NOT_CT.keys())
def test_intensities_that_cannot_be_hounsfield_units_are_refused_unless_forced(tmp_path, change):
    array = change(a_body().astype(np.float32))
    path = tmp_path / "image.nii.gz"
    write_volume(Volume(array, np.eye(4)), path)
    assert "does not look like CT" in refusal(path)
    assert "--force" in refusal(path)
    np.testing.assert_allclose(read_volume(path, force=True).array, array, rtol=1e-6)


def test_windowed_ct_still_looks_like_ct(tmp_path):
    write_volume(Volume(a_body().clip(-160, 240), np.eye(4)), tmp_path / "ct.nrrd")
    assert read_volume(tmp_path / "ct.nrrd").array.min() == -160


@pytest.mark.parametrize(("percent", "taken"), [(9, True), (11, False)])
def test_up_to_a_tenth_of_a_body_may_be_as_dense_as_cortical_bone(tmp_path, percent, taken):
    array = a_body()
    body = np.flatnonzero(array >= -300)
    array.flat[body[: len(body) * percent // 100]] = 1000
    write_volume(Volume(array, np.eye(4)), tmp_path / "ct.nrrd")
    if taken:
        assert read_volume(tmp_path / "ct.nrrd").array.max() == 1000
    else:
        assert "does not look like CT" in refusal(tmp_path / "ct.nrrd")


def test_paths_that_lead_nowhere_are_refused(tmp_path):
    assert "no file or folder" in refusal(tmp_path / "missing.nii")
    (tmp_path / "ct.xyz").write_text("hello")
    assert "neither DICOM nor" in refusal(tmp_path / "ct.xyz")
    write_volume(a_volume(), tmp_path / "ct.nii")
    with pytest.raises(UsageError, match="DICOM"):
        read_volume(tmp_path / "ct.nii", series=1)
    with pytest.raises(InputError, match="not a folder of DICOM files"):
        list_series(tmp_path / "ct.nii")


def test_labels_may_be_empty_but_not_fractions(tmp_path):
    write_volume(Volume(np.zeros((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "none.nii.gz")
    labels = read_labels(tmp_path / "none.nii.gz")
    assert labels.array.dtype == np.int16
    assert not labels.array.any()
    write_volume(Volume(np.full((3, 4, 5), 0.5), np.eye(4)), tmp_path / "half.nrrd")
    with pytest.raises(InputError, match="fractions"):
        read_labels(tmp_path / "half.nrrd")
    with pytest.raises(InputError, match="no labels"):
        read_labels(tmp_path)
