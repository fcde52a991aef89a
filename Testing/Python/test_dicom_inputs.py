# SPDX-License-Identifier: Apache-2.0
"""Each DICOM row of the table in docs/inputs.md: the files are made, and the outcome is that of the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_series import a_body, geometry, write_enhanced, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from test_dicom_damage import DAMAGE, ODD, damage, inserted
from test_dicom_identity import BLOCK, constant, merged
from test_dicom_seg import PLACES, each, without

from LiverXAILib.errors import InputError
from LiverXAILib.volumes.io import read_volume
from LiverXAILib.volumes.memory import MAX_MEMORY

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
BODY = a_body((5, 32, 40))
Make = Callable[[Path], list[Path]]


def plain(**options: object) -> Make:
    """A series with options of :func:`write_series`."""

    def make(folder: Path) -> list[Path]:
        write_series(folder, BODY, options.pop("ijk_to_lps", geometry()), **options)
        return [folder]

    return make


def several(*makes: Make) -> Make:
    return lambda folder: [path for number, make in enumerate(makes) for path in make(folder / str(number))]


def at(*heights: float) -> Make:
    return plain(edit=each(ImagePositionPatient=lambda k: [-30.0, -41.5, heights[k]]))


def damaged(name: str, *changes: Callable[[bytes], bytes]) -> Make:
    def make(folder: Path) -> list[Path]:
        for number, change in enumerate(changes):
            write_series(folder / str(number), BODY, geometry())
            for path in (folder / str(number)).glob(name):
                damage(path, change)
        return list(folder.iterdir())

    return make


def twice(one: dict[str, object], other: dict[str, object], shift_mm: float = 0.0) -> Make:
    def make(folder: Path) -> list[Path]:
        merged(folder, constant(**one), constant(**other), shift_mm, (BLOCK, BLOCK + np.int16(50)))
        return [folder]

    return make


def with_copy(folder: Path) -> list[Path]:
    write_series(folder, BODY, geometry())
    (folder / "copy.dcm").write_bytes((folder / "002.dcm").read_bytes())
    return [folder]


def enhanced(folder: Path) -> list[Path]:
    write_enhanced(folder / "all", BODY, geometry(), order=[3, 0, 4, 1, 2])
    return [folder]


def with_screens(folder: Path) -> list[Path]:
    def edit(dataset, k):
        if k == 5:
            dataset.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]

    write_series(folder, np.concatenate([BODY, BODY[:1]]), geometry(), edit=edit)
    return [folder]


def two_series(folder: Path) -> list[Path]:
    write_series(folder / "a", BODY, geometry())
    write_series(folder / "b", BODY, geometry(), SeriesNumber=9)
    return [folder]


def empty(folder: Path) -> list[Path]:
    folder.mkdir()
    (folder / "notes.txt").touch()
    return [folder]


def of_two_sizes(folder: Path) -> list[Path]:
    def edit(dataset, k):
        if k == 2:
            dataset.Rows, dataset.PixelData = 16, dataset.PixelData[: len(dataset.PixelData) // 2]

    write_series(folder, BODY, geometry(), edit=edit)
    return [folder]


SYNTAXES = (
    *(JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, RLELossless),
    *(DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian),
)
FRAMES = inserted(b"\x28\x00\x08\x00IS\x0a\x002147483647")
# BODY has as few rows as that damage leaves.
HARMFUL = [change for name, (change, _) in DAMAGE.items() if name != "fewer rows than pixels"]

FILES: dict[str, Make] = {
    "one file for each slice, in any order and with any name": plain(names=["z", "a.b", "IM3", "0", "m.dcm"]),
    "no file meta header, no preamble": plain(preamble=False, syntax=ImplicitVRLittleEndian),
    "JPEG 2000, JPEG-LS, lossless JPEG, RLE, deflated, big endian": several(*(plain(syntax=one) for one in SYNTAXES)),
    "one Enhanced CT file with all frames": enhanced,
    "tilted gantry, oblique or reversed planes": several(*(plain(ijk_to_lps=one) for one in PLACES.values())),
    "positions rounded to 0.1 mm": at(100.0, 102.4, 105.0, 107.6, 110.0),
    "text as series number, instance number or time": damaged(
        "*", *(ODD[name] for name in ("series number b'CT1A'", "instance number", "acquisition time"))
    ),
    "a character set that does not exist": damaged("*", ODD["character set"]),
    "two padding values, or one of the wrong type": damaged(
        "*", ODD["two padding values"], ODD["padding value as bytes"]
    ),
    "an acquisition number or a time for each slice": several(
        plain(edit=each(AcquisitionNumber=lambda k: k + 1)),
        plain(edit=each(AcquisitionTime=lambda k: f"1010{10 + k}")),
    ),
    "localizers and screenshots among the slices": with_screens,
    "a study or frame of reference for each slice": several(
        plain(edit=each(StudyInstanceUID=lambda k: generate_uid())),
        plain(edit=each(FrameOfReferenceUID=lambda k: generate_uid())),
    ),
    "no Rescale Slope and Intercept": plain(signed=True, intercept=0, edit=without("RescaleSlope", "RescaleIntercept")),
    "padding value within soft tissue": plain(edit=each(PixelPaddingValue=1064)),
    "last file damaged in header or pixels": damaged("004.dcm", *HARMFUL),
    "two acquisitions under one UID": several(
        twice({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, 1.25),
        twice({"AcquisitionTime": "101010"}, {"AcquisitionTime": "101110"}, 25.0),
    ),
    "two phases at the same places": several(
        twice({}, {}), twice({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2})
    ),
    "two kernels under one UID": twice({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}, 1.25),
    "two patients under one UID": twice({"PatientID": "1"}, {"PatientID": "2"}, 1.25),
    "two days under one UID": several(
        twice({"StudyDate": "20200131"}, {"StudyDate": "20210131"}, 1.25),
        twice(*({"AcquisitionDateTime": f"{year}0131101010"} for year in (2020, 2021)), 1.25),
    ),
    "two frames of reference under one UID": twice({"FrameOfReferenceUID": "1.2.5"}, {}, 1.25),
    "several series in one folder": two_series,
    "middle file damaged": damaged("002.dcm", *HARMFUL),
    "a rescaling that one slice lacks": plain(
        edit=lambda dataset, k: k == 2 and without("RescaleIntercept")(dataset, k)
    ),
    "a slice missing": at(0, 2.5, 5, 10, 12.5),
    "uneven spacing": at(0, 2.5, 5, 8.5, 12),
    "a duplicate file": with_copy,
    "slices of two sizes": of_two_sizes,
    "slices without a position": plain(edit=without("ImagePositionPatient")),
    "implausible number of frames in all files": damaged("*", FRAMES),
    "pixel size of 0": plain(edit=each(PixelSpacing=[0, 0])),
    "a single slice": plain(edit=each(SeriesInstanceUID=lambda k: generate_uid())),
    "MR": plain(Modality="MR"),
    "values that are not HU (Z_EFF)": plain(RescaleType="Z_EFF"),
    "a folder without DICOM": empty,
    "more voxels than memory": plain(),
}


def table() -> dict[str, tuple[str, str]]:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| DICOM \| (.+?) \| (\w+) \| (.*?) ?\|$", text, re.MULTILINE)
    return {what: (happens, words) for what, happens, words in rows}


def test_the_table_and_the_tests_speak_of_the_same_files():
    assert set(table()) == set(FILES)


@pytest.mark.parametrize(("row", "make"), FILES.items(), ids=FILES)
def test_what_happens_is_what_the_table_says(row, make, tmp_path, monkeypatch):
    happens, words = table()[row]
    if "memory" in row:
        monkeypatch.setenv(MAX_MEMORY, "20k")
    paths = make(tmp_path / "files")
    assert paths
    for path in paths:
        if happens == "refused":
            with pytest.raises(InputError, match=re.escape(words)) as caught:
                read_volume(path)
            assert "\n" not in str(caught.value)
            continue
        volume = read_volume(path)
        warnings = " ".join(volume.metadata["warnings"])
        assert (words in warnings) if happens == "warning" else not warnings
        if volume.shape == BODY.shape:
            np.testing.assert_array_equal(volume.array, BODY)
