# SPDX-License-Identifier: Apache-2.0
"""Each row of the table in docs/inputs.md except DICOM's: the file is made, and the outcome is that of the table."""

from __future__ import annotations

import bz2
import gzip
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import a_body

from LiverXAILib.errors import InputError, LiverXAIError, UsageError
from LiverXAILib.volumes.io import read_volume, write_volume
from LiverXAILib.volumes.memory import MAX_MEMORY, memory_limit, parse_memory, require_memory
from LiverXAILib.volumes.volume import LPS_TO_RAS, Volume

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
BODY = a_body()
K, J, I = BODY.shape  # noqa: E741
MATRIX = np.array([[0.8, 0, 0, 10], [0, 0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
DIRECTIONS = "space directions: (0.8,0,0) (0,0.8,0) (0,0,2.5)\n"
SPACE, ORIGIN = "space: left-posterior-superior\n", "space origin: (10,20,30)\n"
PLACE = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 10 20 30\nElementSpacing = 0.8 0.8 2.5\n"


# --- files ---------------------------------------------------------------------------------------------------------


def nifti(path: Path, *edits: tuple, array: np.ndarray = BODY, matrix: np.ndarray = MATRIX) -> Path:
    """Written by nibabel; `edits` are (offset, struct format, values…) in the header."""
    image = nibabel.Nifti1Image(array.T, LPS_TO_RAS @ matrix)
    image.set_sform(LPS_TO_RAS @ matrix, 1)
    image.set_qform(LPS_TO_RAS @ matrix, 1)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    for offset, layout, *values in edits:
        struct.pack_into("<" + layout, content, offset, *values)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix.lower(), bytes)
    path.write_bytes(pack(bytes(content)))
    return path


def nrrd(
    path: Path,
    place: str = SPACE + DIRECTIONS + ORIGIN,
    *,
    encoding: str = "raw",
    data: bytes | None = None,
    endian: str = "endian: little\n",
    sizes: str = f"{I} {J} {K}",
    dtype: str = "short",
    dimension: int = 3,
) -> Path:
    pack: dict[str, Callable[[bytes], bytes]] = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}
    data = pack[encoding](BODY.tobytes()) if data is None else data
    head = f"NRRD0004\ntype: {dtype}\ndimension: {dimension}\nsizes: {sizes}\n{endian}encoding: {encoding}\n{place}\n"
    path.write_bytes(head.encode() + data)
    return path


def mha(path: Path, place: str = PLACE, *, compressed: bool = False, data: bytes | None = None, file: str = "LOCAL",
        sizes: str = f"{I} {J} {K}", dtype: str = "MET_SHORT", text: bool = False) -> Path:  # fmt: skip
    if data is None:
        data = zlib.compress(BODY.tobytes()) if compressed else BODY.tobytes()
    head = (
        f"ObjectType = Image\nNDims = {len(sizes.split())}\nBinaryData = {not text}\nBinaryDataByteOrderMSB = False\n"
        f"CompressedData = {compressed}\n{place}DimSize = {sizes}\nElementType = {dtype}\nElementDataFile = {file}\n"
    )
    path.write_bytes(head.encode() + (data if file == "LOCAL" else b""))
    return path


def all_formats(folder: Path, array: np.ndarray, matrix: np.ndarray = MATRIX) -> list[Path]:
    paths = [folder / f"x{ending}" for ending in (".nii", ".nii.gz", ".nrrd", ".mha")]
    for path in paths:
        write_volume(Volume(array, matrix), path)
    return paths


def itk_files(folder: Path, image: sitk.Image) -> list[Path]:
    paths = [folder / f"x{ending}" for ending in (".nii", ".nrrd", ".mha")]
    for path in paths:
        sitk.WriteImage(image, str(path))
    return paths


def compressed_files(folder: Path) -> list[Path]:
    return [
        nifti(folder / "a.nii.gz"),
        nifti(folder / "a.nii.bz2"),
        nrrd(folder / "a.nrrd", encoding="gzip"),
        nrrd(folder / "b.nrrd", encoding="bzip2"),
        mha(folder / "a.mha", compressed=True),
    ]


def plain_files(folder: Path) -> list[Path]:
    return [nifti(folder / "a.nii"), nrrd(folder / "a.nrrd"), mha(folder / "a.mha")]


def changed(paths: list[Path], change: Callable[[bytes], bytes]) -> list[Path]:
    for path in paths:
        path.write_bytes(change(path.read_bytes()))
    return paths


def flipped(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[2 * len(content) // 3] ^= 4
    return bytes(damaged)


def pair(folder: Path) -> list[Path]:
    nibabel.save(nibabel.Nifti1Pair(BODY.T, LPS_TO_RAS @ MATRIX), folder / "a.hdr")
    return [folder / "a.hdr", folder / "a.img"]


def without_voxels(folder: Path) -> list[Path]:
    header, voxels = pair(folder)
    voxels.unlink()
    return [header]


def analyze(folder: Path) -> list[Path]:
    header, _ = pair(folder)
    return changed([header], lambda content: content[:344] + bytes(4))


def detached(folder: Path) -> list[Path]:
    (folder / "n.raw").write_bytes(BODY.tobytes())
    (folder / "z.zraw").write_bytes(zlib.compress(BODY.tobytes()))
    return [mha(folder / "n.mhd", file="n.raw"), mha(folder / "z.mhd", file="z.zraw", compressed=True)]


def detached_nrrd(folder: Path) -> list[Path]:
    (folder / "n.raw").write_bytes(BODY.tobytes())
    return [nrrd(folder / "n.nhdr", SPACE + DIRECTIONS + ORIGIN + "data file: n.raw\n", data=b"")]


def elsewhere(folder: Path) -> list[Path]:
    (folder / "in").mkdir()
    (folder / "x.raw").write_bytes(BODY.tobytes())
    names = ["../x.raw", str(folder / "x.raw"), "/etc/passwd", "in/../../x.raw", "..", "C:x.raw", "..\\x.raw"]
    return [
        *(mha(folder / "in" / f"{n}.mhd", file=name) for n, name in enumerate(names)),
        *(
            nrrd(folder / "in" / f"{n}.nhdr", SPACE + DIRECTIONS + f"data file: {name}\n")
            for n, name in enumerate(names)
        ),
    ]


def linked(folder: Path) -> list[Path]:
    (folder / "in").mkdir()
    (folder / "x.raw").write_bytes(BODY.tobytes())
    (folder / "in" / "x.raw").symlink_to(folder / "x.raw")
    return [mha(folder / "in" / "a.mhd", file="x.raw")]


def several_files(folder: Path) -> list[Path]:
    return [
        mha(folder / "a.mhd", file="LIST"),
        mha(folder / "b.mhd", file="x%03d.raw 1 5 1"),
        nrrd(folder / "a.nhdr", SPACE + DIRECTIONS + "data file: LIST\nx.raw\n"),
        nrrd(folder / "b.nhdr", SPACE + DIRECTIONS + "data file: x%d.raw 1 999999999999 1\n"),
    ]


def pipes(folder: Path) -> list[Path]:
    paths = [folder / f"pipe{ending}" for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".hdr", "")]
    for path in paths:
        os.mkfifo(path)
    for path in (folder / "device.nii", folder / "device"):
        path.symlink_to("/dev/zero")
        paths.append(path)
    os.mkfifo(folder / "x.raw")
    return [*paths, mha(folder / "a.mhd", file="x.raw")]


def circle(folder: Path) -> list[Path]:
    (folder / "a.nii").symlink_to(folder / "b.nii")
    (folder / "b.nii").symlink_to(folder / "a.nii")
    return [folder / "a.nii"]


def named(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_bytes(b"PK\3\4 something")
    return [folder / name for name in names]


def scaled(folder: Path, factor: float) -> list[Path]:
    """A body of 26 x 26 x 20 cm, all of whose lengths are wrong by `factor`."""
    body = a_body((40, 130, 130))
    return all_formats(folder, body, np.diag([2 * factor, 2 * factor, 5 * factor, 1]))


def padded(array: np.ndarray) -> np.ndarray:
    _, j, i = np.indices(array.shape)
    outside = np.hypot(2 * j / J - 1, 2 * i / I - 1) > 1
    return np.where(outside, -2000, array).astype(np.int16)


def promised(folder: Path) -> list[Path]:
    return [
        nifti(folder / "a.nii", (42, "h", I + 1)),
        nrrd(folder / "a.nrrd", sizes=f"{I} {J} {K + 1}"),
        nrrd(folder / "b.nrrd", sizes=f"{I} {J + 1} {K}", encoding="gzip"),
        mha(folder / "a.mha", sizes=f"{I} {J} {K + 1}"),
        mha(folder / "b.mha", sizes=f"{I} {J} {K + 1}", compressed=True),
    ]


def huge(folder: Path) -> list[Path]:
    """Files of some kilobytes that expand to more than the test allows."""
    zeros = bytes(2 * 128**3)
    return [
        nifti(folder / "a.nii.gz", array=np.zeros((128, 128, 128), np.int16)),
        nrrd(folder / "a.nrrd", encoding="gzip", sizes="128 128 128", data=gzip.compress(zeros)),
        nrrd(folder / "b.nrrd", encoding="bzip2", sizes="128 128 128", data=bz2.compress(zeros)),
        mha(folder / "a.mha", compressed=True, sizes="128 128 128", data=zlib.compress(zeros)),
    ]


def other_values(folder: Path) -> list[Path]:
    body = BODY.astype(float)
    kinds = [body > 0, np.abs(body) + 5, (body - body.mean()) / body.std(), body * 10, body - 1024, body.clip(0)]
    return [nifti(folder / f"{n}.nii", array=array.astype(np.float32)) for n, array in enumerate(kinds)]


NAN = float("nan")
FILES: dict[tuple[str, str], Callable[[Path], list[Path]]] = {
    ("NIfTI", "`.nii`"): lambda d: [nifti(d / "a.nii")],
    ("NIfTI", "`.nii.gz`"): lambda d: [nifti(d / "a.nii.gz")],
    ("NIfTI", "`.nii.bz2`"): lambda d: [nifti(d / "a.nii.bz2")],
    ("NIfTI", "`.NII.GZ`: extension in capitals"): lambda d: [nifti(d / "A.NII.GZ"), nifti(d / "B.Nii")],
    ("NIfTI", "pair `.hdr` and `.img`, given by either name"): pair,
    ("NIfTI", "pair without its `.img`"): without_voxels,
    ("NIfTI", "ANALYZE 7.5"): analyze,
    ("NIfTI", "neither sform nor qform"): lambda d: [nifti(d / "a.nii", (252, "hh", 0, 0))],
    ("NIfTI", "sform and qform differ"): lambda d: [nifti(d / "a.nii", (268, "f", 77.0))],
    ("NIfTI", "sform of zeros, good qform"): lambda d: [nifti(d / "a.nii", (280, "12f", *[0.0] * 12))],
    ("NIfTI", "qform with NaN, good sform"): lambda d: [
        nifti(d / "a.nii", (256, "3f", NAN, NAN, NAN)),
        nifti(d / "b.nii", (268, "f", NAN)),
    ],
    ("NIfTI", "no usable position at all"): lambda d: [
        nifti(d / "a.nii", (280, "12f", *[0.0] * 12), (268, "f", NAN)),
        nifti(d / "b.nii", (252, "hh", 0, 0), (80, "3f", 0, 1, 1)),
    ],
    ("NIfTI", "sform with directions only"): lambda d: [
        nifti(d / "a.nii", (280, "12f", -1, 0, 0, -10, 0, -1, 0, -20, 0, 0, 1, 30))
    ],
    ("NIfTI", "`dim[4]` is 0"): lambda d: [nifti(d / "a.nii", (40, "h", 4), (48, "h", 0))],
    ("NIfTI", "lengths in meters"): lambda d: [
        nifti(d / "a.nii", (123, "B", 1), matrix=np.diag([1e-3, 1e-3, 1e-3, 1]) @ MATRIX)
    ],
    ("NIfTI", "bits per voxel do not match the data type"): lambda d: [nifti(d / "a.nii", (72, "h", 8))],
    ("NIfTI", "voxel offset of NaN"): lambda d: [
        nifti(d / f"{n}.nii", (108, "f", value)) for n, value in enumerate((NAN, float("inf"), -5.0, 1e9, 352.5))
    ],
    ("NIfTI", "colors"): lambda d: [nifti(d / "a.nii", (70, "hh", 128, 24)), nifti(d / "b.nii", (70, "h", 32))],
    ("NRRD", "raw, gzip, bzip2 or text"): lambda d: [
        *(nrrd(d / f"{encoding}.nrrd", encoding=encoding) for encoding in ("raw", "gzip", "bzip2")),
        changed(
            [nrrd(d / "t.nrrd", data=" ".join(map(str, BODY.ravel())).encode())],
            lambda content: content.replace(b"encoding: raw", b"encoding: text"),
        )[0],
    ],
    ("NRRD", "`.nhdr` with its data file"): detached_nrrd,
    ("NRRD", "space RAS or LAS"): lambda d: [
        nrrd(
            d / "ras.nrrd",
            "space: RAS\nspace directions: (-0.8,0,0) (0,-0.8,0) (0,0,2.5)\nspace origin: (-10,-20,30)\n",
        ),
        nrrd(
            d / "las.nrrd",
            "space: left-anterior-superior\nspace directions: (0.8,0,0) (0,-0.8,0) (0,0,2.5)\n"
            "space origin: (10,-20,30)\n",
        ),
    ],
    ("NRRD", "no space"): lambda d: [
        nrrd(d / "a.nrrd", DIRECTIONS + ORIGIN),
        nrrd(d / "b.nrrd", "spacings: 0.8 0.8 2.5\n"),
    ],
    ("NRRD", "space scanner-xyz"): lambda d: [nrrd(d / "a.nrrd", "space: scanner-xyz\n" + DIRECTIONS + ORIGIN)],
    ("NRRD", "no space origin"): lambda d: [nrrd(d / "a.nrrd", SPACE + DIRECTIONS)],
    ("NRRD", "no spacing"): lambda d: [nrrd(d / "a.nrrd", "")],
    ("NRRD", 'space units "cm"'): lambda d: [
        nrrd(
            d / "a.nrrd",
            SPACE + 'space units: "cm" "cm" "cm"\nspace directions: (0.08,0,0) (0,0.08,0) (0,0,0.25)\n'
            "space origin: (1,2,3)\n",
        ),
    ],
    ("NRRD", 'space units "parsec"'): lambda d: [
        nrrd(d / "a.nrrd", SPACE + 'space units: "parsec" "mm" "mm"\n' + DIRECTIONS + ORIGIN)
    ],
    ("NRRD", "spacing NaN"): lambda d: [nrrd(d / "a.nrrd", "spacings: 0.8 0.8 NaN\n")],
    ("NRRD", "decimal commas"): lambda d: [
        nrrd(d / "a.nrrd", SPACE + "space directions: (0,8,0,0) (0,0,8,0) (0,0,2,5)\n" + ORIGIN),
        nrrd(d / "b.nrrd", "spacings: 0,8 0,8 2,5\n"),
    ],
    ("NRRD", "an unknown field"): lambda d: [
        nrrd(d / "a.nrrd", SPACE + DIRECTIONS + "space origim: (10,20,30)\n"),
        nrrd(d / "b.nrrd", SPACE + SPACE + DIRECTIONS),
    ],
    ("NRRD", "no byte order"): lambda d: [nrrd(d / "a.nrrd", endian="")],
    ("MetaImage", "`.mha`, compressed or not"): lambda d: [mha(d / "a.mha"), mha(d / "b.mha", compressed=True)],
    ("MetaImage", "`.mhd` with its raw or zraw file"): detached,
    ("MetaImage", "voxels as text"): lambda d: [
        mha(d / "a.mha", text=True, data=" ".join(map(str, BODY.ravel())).encode())
    ],
    ("MetaImage", "no TransformMatrix"): lambda d: [mha(d / "a.mha", PLACE.partition("\n")[2])],
    ("MetaImage", "no Offset"): lambda d: [mha(d / "a.mha", PLACE.replace("Offset = 10 20 30\n", ""))],
    ("MetaImage", "no ElementSpacing"): lambda d: [
        mha(d / "a.mha", PLACE.replace("ElementSpacing = 0.8 0.8 2.5\n", ""))
    ],
    ("MetaImage", "DistanceUnits cm"): lambda d: [
        mha(
            d / "a.mha",
            "DistanceUnits = cm\n" + PLACE.replace("10 20 30", "1 2 3").replace("0.8 0.8 2.5", ".08 .08 .25"),
        )
    ],
    ("MetaImage", "scaling of intensities"): lambda d: [
        mha(d / "a.mha", PLACE + "ElementToIntensityFunctionSlope = 2\n")
    ],
    ("any", "extra bytes after the compressed voxels"): lambda d: changed(
        compressed_files(d), lambda content: content + b"more"
    ),
    ("any", "extra bytes after uncompressed voxels"): lambda d: changed(
        plain_files(d), lambda content: content + b"more"
    ),
    ("any", "a flipped bit in compressed voxels"): lambda d: changed(compressed_files(d), flipped),
    ("any", "half of the file"): lambda d: changed(
        [*compressed_files(d / "c"), *plain_files(d / "p")], lambda content: content[: len(content) // 2]
    ),
    ("any", "a header that declares more voxels than there are"): promised,
    ("any", "more voxels than memory"): huge,
    ("any", "two dimensions"): lambda d: itk_files(d, sitk.GetImageFromArray(BODY[0])),
    ("any", "four dimensions"): lambda d: itk_files(d, sitk.JoinSeries([sitk.GetImageFromArray(BODY)] * 2)),
    ("any", "several values in each voxel"): lambda d: itk_files(
        d, sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    )[1:],
    ("any", "NaN"): lambda d: all_formats(d, np.where(BODY[0, 0, 0] == BODY, NAN, BODY).astype(np.float32)),
    ("any", "all voxels the same"): lambda d: all_formats(d, np.full((4, 5, 6), -1000, np.int16)),
    ("any", "data file in another folder"): elsewhere,
    ("any", "data file that is a link to another folder"): linked,
    ("any", "data in a list or pattern of files"): several_files,
    ("any", "a pipe or a device"): pipes,
    ("any", "a circular link"): circle,
    ("any", "an archive (`.zip`, `.tar.gz`)"): lambda d: named(d, "a.zip", "B.TAR.GZ", "c.tgz", "d.7z"),
    ("any", "`.dcm.gz`"): lambda d: named(d, "a.dcm.gz", "B.DCM.GZ"),
    ("any", "a picture (`.png`)"): lambda d: named(d, "a.png", "b.JPG", "c.tiff"),
    ("any", "lengths in meters, declared as mm"): lambda d: scaled(d, 0.001),
    ("any", "lengths in micrometers, declared as mm"): lambda d: scaled(d, 1000),
    ("any", "lengths ten times too large"): lambda d: scaled(d, 10),
    ("any", "lengths ten times too small"): lambda d: scaled(d, 0.1),
    ("any", "values + 1024"): lambda d: all_formats(d, BODY + 1024),
    ("any", "values + 1024, padding -2000 around the field of view"): lambda d: all_formats(d, padded(BODY + 1024)),
    ("any", "HU with padding -2000 around the field of view"): lambda d: all_formats(d, padded(BODY)),
    ("any", "labels, MR, normalized values"): other_values,
}


# --- the table -----------------------------------------------------------------------------------------------------


def table() -> dict[tuple[str, str], tuple[str, str]]:
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (\w+) \| (.*?) ?\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {(kind, what): (happens, words) for kind, what, happens, words in rows if kind not in ("DICOM", "format")}


def test_the_table_and_the_tests_speak_of_the_same_files():
    assert set(table()) == set(FILES)


@pytest.mark.parametrize(("row", "make"), FILES.items(), ids=[f"{kind}: {what}" for kind, what in FILES])
def test_what_happens_is_what_the_table_says(row, make, tmp_path, monkeypatch):
    happens, words = table()[row]
    for name in ("c", "p"):
        (tmp_path / name).mkdir()
    if "memory" in row[1]:
        monkeypatch.setenv(MAX_MEMORY, "4 MB")
    paths = make(tmp_path)
    assert paths
    for path in paths:
        if happens == "refused":
            with pytest.raises(LiverXAIError) as caught:
                read_volume(path)
            assert isinstance(caught.value, InputError)
            message = str(caught.value)
            assert words in message
            assert path.name.split(".")[0] in message
            assert "\n" not in message
        else:
            volume = read_volume(path)
            warnings = " ".join(volume.metadata["warnings"])
            assert (words in warnings) if happens == "warning" else not warnings
            if "padding" not in row[1]:
                np.testing.assert_array_equal(volume.array, BODY)
            if not re.search(r"no spac|no Elem|no Off|no space|neither|differ", row[1]):
                np.testing.assert_allclose(volume.ijk_to_lps, MATRIX, atol=1e-4)


# --- headers of which the table has one line or none ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "warnings"),
    [
        ('spacings: 0.08 0.08 0.25\nunits: "cm" "cm" "cm"\n', 3),
        ("spacings: 0.8 0.08 2.5\nunits: mm cm mm\n", 3),
        ("spacings: 0.8 0.8 2.5\nunits: mm mm\n", 2),
        ("spacings: 0.8 0.8 2.5\nkinds: domain space DOMAIN\n", 2),
        ("space: scanner-xyz-time\nspacings: 0.8 0.8 2.5\n", 2),
    ],
)
def test_spacings_of_an_nrrd_file_have_their_own_units(tmp_path, place, warnings):
    volume = read_volume(nrrd(tmp_path / "a.nrrd", place))
    np.testing.assert_allclose(volume.ijk_to_lps, np.diag([0.8, 0.8, 2.5, 1]), atol=1e-12)
    assert len(volume.metadata["warnings"]) == warnings
    assert len(set(volume.metadata["warnings"])) == warnings


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("spacings: 0.8 0.8\n", "for the spacings"),
        (SPACE + "space directions: (0.8,0,0) (0,0.8,0)\n" + ORIGIN, "one direction for each axis"),
        (SPACE + "space directions: (0.8,0) (0,0.8) (0,0)\n" + ORIGIN, "do not lie in space"),
        (SPACE + "space directions: (0.8,0,0,9) (0,0.8,0,0) (0,0,2.5,0)\n" + ORIGIN, "do not lie in space"),
        (SPACE + DIRECTIONS + "space origin: (10,20,30) (1,2,3)\n", "for the space origin"),
        (SPACE + DIRECTIONS + "space origin: none\n", "for the space origin"),
        (SPACE + DIRECTIONS + "space origin: (10,20,30) x\n", "for a direction or position"),
        (SPACE + 'space units: "mm" "mm"\n' + DIRECTIONS, "three space units"),
        ("kinds: domain domain\n", "one kind for each axis"),
        ("kinds: vector domain domain\n", f"has {I} values in each voxel"),
        ("kinds: domain domain list\n", f"has {K} values in each voxel"),
    ],
)
def test_a_damaged_place_in_an_nrrd_header_is_refused(tmp_path, place, words):
    with pytest.raises(InputError, match=words):
        read_volume(nrrd(tmp_path / "a.nrrd", place))


@pytest.mark.parametrize("space", ["left-posterior-superior-time", "LPS-time"])
def test_components_along_an_axis_of_time_may_only_be_zero(tmp_path, space):
    place = f"space: {space}\nspace directions: (0.8,0,0,0) (0,0.8,0,0) (0,0,2.5,0)\nspace origin: (10,20,30,0)\n"
    volume = read_volume(nrrd(tmp_path / "a.nrrd", place))
    np.testing.assert_array_equal(volume.ijk_to_lps, MATRIX)
    assert volume.metadata["warnings"] == []


@pytest.mark.parametrize("endian", ["little", "big"])
def test_voxels_of_either_byte_order_are_read(tmp_path, endian):
    data = BODY.astype(BODY.dtype.newbyteorder("<" if endian == "little" else ">")).tobytes()
    big = f"{endian == 'big'}"
    for path in (
        nrrd(tmp_path / "a.nrrd", endian=f"endian: {endian}\n", data=data),
        mha(tmp_path / "a.mha", PLACE, data=data),
        mha(tmp_path / "b.mha", PLACE, data=data),
    ):
        if path.suffix == ".mha":  # the byte order has two names
            name = "BinaryDataByteOrderMSB" if path.stem == "a" else "ElementByteOrderMSB"
            old = b"BinaryDataByteOrderMSB = False"
            path.write_bytes(path.read_bytes().replace(old, f"{name} = {big}".encode()))
        np.testing.assert_array_equal(read_volume(path).array, BODY)


@pytest.mark.parametrize("matrix", ["TransformMatrix", "Rotation", "Orientation"])
@pytest.mark.parametrize("origin", ["Offset", "Position", "Origin"])
@pytest.mark.parametrize("spacing", ["ElementSpacing", "ElementSize"])
def test_each_name_of_a_place_in_metaimage_is_understood(tmp_path, matrix, origin, spacing):
    # The first row is the direction of the first axis: toward the back.
    place = f"{matrix} = 0 1 0 -1 0 0 0 0 1\n{origin} = 10 20 30\n{spacing} = 0.8 0.9 2.5\n"
    volume = read_volume(mha(tmp_path / "a.mha", place))
    expected = [[0, -0.9, 0, 10], [0.8, 0, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.ijk_to_lps, expected, atol=1e-12)
    assert volume.metadata["warnings"] == []


@pytest.mark.parametrize("name", ["TransformMatrix", "Offset", "ElementSpacing"])
def test_what_a_metaimage_header_leaves_out_is_assumed(tmp_path, name):
    lines = [line for line in PLACE.splitlines(keepends=True) if not line.startswith(name)]
    volume = read_volume(mha(tmp_path / "a.mha", "".join(lines)))
    expected = MATRIX.copy()
    if name == "Offset":
        expected[:3, 3] = 0
    elif name == "ElementSpacing":
        expected[:3, :3] = np.eye(3)
    np.testing.assert_array_equal(volume.ijk_to_lps, expected)
    assert len(volume.metadata["warnings"]) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 2**33), ("1500M", 1500 * 2**20), ("2.5 GB", 5 * 2**29), (" 3 kib ", 3072), ("1t", 2**40), ("77", 77)],
)
def test_an_amount_of_memory_is_understood_and_limits_the_image(monkeypatch, text, size):
    assert parse_memory(text) == size
    monkeypatch.setenv(MAX_MEMORY, text)
    assert memory_limit() == size
    require_memory(size, "x")
    with pytest.raises(InputError, match=r"^x needs about .* of memory"):
        require_memory(size + 1, "x")


@pytest.mark.parametrize("text", ["0", "0.0001", "8X", "-1G", "G", "8 G B", ""])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(UsageError, match="Write it like 8G"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("size", "words"), [(2**27, "about 0.1 GB"), (2**27 - 2**20, "about 127.0 MB"), (5 * 2**30, "about 5.0 GB")]
)
def test_memory_is_told_in_a_fitting_unit(monkeypatch, size, words):
    monkeypatch.setenv(MAX_MEMORY, "1M")
    with pytest.raises(InputError, match=rf"{words} of memory; 1\.0 MB may be used"):
        require_memory(size, "x")


# --- why nibabel does not read the voxels -----------------------------------------------------------------------------


def nifti_with(path: Path, *, unit: str = "mm", codes: tuple[int, int] = (1, 1), shift: float = 0.0) -> None:
    """A file whose sform lies `shift` to the left of its qform; `codes` are those of sform and qform."""
    image = nibabel.Nifti1Image(BODY.T, np.eye(4))
    image.header.set_xyzt_units(unit)
    mm = {"mm": 1.0, "meter": 0.001}[unit]
    matrix = np.diag([mm, mm, mm, 1.0]) @ LPS_TO_RAS @ MATRIX
    image.set_qform(matrix, codes[1])
    matrix[0, 3] -= shift * mm
    image.set_sform(matrix, codes[0])
    nibabel.save(image, path)


@pytest.mark.parametrize(
    "made",
    [{"unit": "meter"}, {"codes": (2, 1), "shift": 50.0}, {"codes": (0, 0)}],
    ids=["lengths in meters", "two transforms", "no transform"],
)
def test_nibabel_would_place_some_files_elsewhere_than_itk(tmp_path: Path, made: dict) -> None:
    path = tmp_path / "a.nii"
    nifti_with(path, **made)
    ours = LPS_TO_RAS @ read_volume(path).ijk_to_lps
    assert not np.allclose(ours, nibabel.load(path).affine, atol=0.01)
    grid, image = read_volume(path).grid, sitk.ReadImage(str(path))
    np.testing.assert_allclose(grid.origin, image.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(grid.spacing, image.GetSpacing(), rtol=1e-4)


def test_nibabel_would_not_notice_a_wrong_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nifti_with(path)
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(data)
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(path).dataobj).T, BODY)
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)
