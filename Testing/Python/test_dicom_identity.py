# SPDX-License-Identifier: Apache-2.0
"""Several scans under one Series Instance UID are never merged, and an ordinary scan is never split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_series import a_body, geometry, write_series
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from LiverXAILib.volumes.dicom import find_series
from LiverXAILib.volumes.io import list_series, read_volume

SHAPE = (6, 16, 20)
FIRST, SECOND = a_body(SHAPE), a_body(SHAPE, seed=1) + np.int16(70)
BLOCK = a_body((10, 16, 20))
Values = Callable[[int], dict[str, object]]


def merged(
    folder: Path, one: Values, other: Values, shift_mm: float, arrays: tuple[np.ndarray, np.ndarray] = (FIRST, SECOND)
) -> None:
    """Two scans of 2.5 mm under one UID, the second `shift_mm` higher; each slice k has distinct values."""
    same = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4"}

    def edit(values: Values, first: int) -> Callable[[Dataset, int], None]:
        def change(dataset: Dataset, k: int) -> None:
            dataset.InstanceNumber = first + k
            for keyword, value in {**same, **values(k)}.items():
                setattr(dataset, keyword, value)

        return change

    names = [[f"{letter}{k:02d}" for k in range(len(arrays[0]))] for letter in "ab"]
    write_series(folder, arrays[0], geometry(), names=names[0], edit=edit(one, 1))
    higher = geometry()
    higher[2, 3] += shift_mm
    write_series(folder, arrays[1], higher, names=names[1], edit=edit(other, 101))


def constant(**values: object) -> Values:
    return lambda k: values


#: Differences between two scans, and their description in a list.
DIFFERENCES: dict[str, tuple[Values, Values, str]] = {
    "patient": (constant(PatientID="1"), constant(PatientID="2"), "patient 2 of 2"),
    "patient's name": (constant(PatientName="Doe^A"), constant(PatientName="Doe^B"), "patient 2 of 2"),
    "study": (constant(StudyInstanceUID="1.2.5"), constant(StudyInstanceUID="1.2.6"), "study 2 of 2"),
    "frame of reference": (
        constant(FrameOfReferenceUID="1.2.5"),
        constant(FrameOfReferenceUID="1.2.6"),
        "frame of reference 2 of 2",
    ),
    "kernel": (constant(ConvolutionKernel="B30f"), constant(ConvolutionKernel="B70f"), "kernel B70f"),
    "contrast agent": (constant(), constant(ContrastBolusAgent="Iomeprol"), "contrast agent Iomeprol"),
    "acquisition": (constant(AcquisitionNumber=1), constant(AcquisitionNumber=2), "acquisition 2"),
    "temporal position": (
        constant(TemporalPositionIdentifier=1),
        constant(TemporalPositionIdentifier=2),
        "temporal position 2",
    ),
    "cardiac phase": (
        constant(NominalPercentageOfCardiacPhase=30),
        constant(NominalPercentageOfCardiacPhase=70),
        "cardiac phase 70",
    ),
    "tube voltage": (constant(KVP=80), constant(KVP=140), "tube voltage 140 kV"),
    "time of each acquisition": (
        constant(AcquisitionTime="101010"),
        constant(AcquisitionTime="101040"),
        "acquired at 10:10:40",
    ),
    "time of each slice": (
        lambda k: {"AcquisitionTime": f"1010{10 + 0.4 * k:04.1f}"},
        lambda k: {"AcquisitionTime": f"1010{40 + 0.4 * k:04.1f}"},
        "acquired at 10:10:40",
    ),
    "date and time of each slice": (
        lambda k: {"AcquisitionDateTime": f"20200131235959.{k:02d}"},
        lambda k: {"AcquisitionDateTime": f"20200201000030.{k:02d}"},
        "acquired at 00:00:30",
    ),
}


@pytest.mark.parametrize("shift_mm", [0.0, 1.25], ids=["same places", "between each other"])
@pytest.mark.parametrize(("one", "other", "told"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_two_scans_under_one_uid_are_two_choices(tmp_path, one, other, told, shift_mm):
    merged(tmp_path, one, other, shift_mm)
    found = list_series(tmp_path)
    assert sorted(info.key for info in found) == ["1/1", "1/2"]
    assert [info.problem for info in found] == [None, None]
    assert any(told in info.name for info in found)
    assert len({info.name for info in found}) == 2
    read = {info.key: read_volume(tmp_path, series=info.key) for info in found}
    arrays = sorted((volume.array for volume in read.values()), key=np.median)
    np.testing.assert_array_equal(arrays[0], FIRST)
    np.testing.assert_array_equal(arrays[1], SECOND)


def test_the_choice_between_scans_that_overlap_is_reported_and_lasts(tmp_path):
    merged(tmp_path, constant(AcquisitionNumber=1), constant(AcquisitionNumber=2), 10.0)
    chosen = read_volume(tmp_path)
    assert any("holds 2 scans" in warning and "--series 1/2" in warning for warning in chosen.metadata["warnings"])
    for series in find_series(sorted(tmp_path.iterdir())).series:
        again = read_volume(tmp_path, series=series.info.lasting_key, files=sorted(series.files))
        assert again.metadata["series"]["name"] == series.info.name
    assert read_volume(tmp_path / "b03").array.mean() > read_volume(tmp_path / "a03").array.mean() + 20


def test_nothing_that_identifies_the_patient_tells_parts_apart(tmp_path):
    merged(tmp_path, constant(PatientName="Doe^A", PatientID="77001"), constant(PatientName="Roe^B"), 0.0)
    volume = read_volume(tmp_path)
    assert not any(secret in repr(volume.metadata) for secret in ("Doe", "Roe", "77001"))


def test_phases_known_by_their_instance_numbers_alone_are_choices(tmp_path):
    merged(tmp_path, constant(), constant(), 0.0)
    assert [info.distinction for info in list_series(tmp_path)] == ["phase 1 of 2", "phase 2 of 2"]
    np.testing.assert_array_equal(read_volume(tmp_path, series="1/2").array, SECOND)


def test_duplicates_that_nothing_tells_apart_are_refused(tmp_path):
    merged(tmp_path, constant(), lambda k: {"InstanceNumber": k + 1}, 0.0)
    (info,) = list_series(tmp_path)
    assert "duplicate positions" in info.problem


def test_reformations_in_other_planes_are_choices(tmp_path):
    upright = geometry()
    coronal = np.array([[0.8, 0, 0, -30], [0, 0, 2.5, -41.5], [0, -0.9, 0, 812], [0, 0, 0, 1]])
    uid, frame = generate_uid(), generate_uid()
    same = {"SeriesInstanceUID": uid, "StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": frame}
    write_series(tmp_path, FIRST, upright, names=[f"a{k}" for k in range(6)], **same)
    write_series(tmp_path, SECOND, coronal, names=[f"b{k}" for k in range(6)], **same)
    assert [(info.key, info.axes) for info in list_series(tmp_path)] == [("1/1", "SPL"), ("1/2", "PIL")]


ORDINARY: dict[str, Values] = {
    "one acquisition": constant(AcquisitionNumber=1, AcquisitionTime="101010"),
    "a time for each slice": lambda k: {"AcquisitionTime": f"1010{10 + 0.4 * k:04.1f}"},
    "an acquisition for each slice": lambda k: {"AcquisitionNumber": k + 1, "AcquisitionTime": f"1010{10 + 3 * k:02d}"},
    "an acquisition for two slices": lambda k: {"AcquisitionNumber": k // 2, "AcquisitionTime": f"1010{k // 2:02d}"},
    "breath held twice": lambda k: {"AcquisitionNumber": 1 + k // 3, "AcquisitionTime": f"101{k // 3}10"},
    "thicker slices further up": lambda k: {"SliceThickness": 2.5 if k < 3 else 5.0},
    "from feet to head and back in numbers": lambda k: {"InstanceNumber": 6 - k},
    "a value that one slice lacks": lambda k: {"ConvolutionKernel": "B30f" if k else ""},
    "zeros written differently": lambda k: {"SliceThickness": "5.0" if k % 2 else "5.000"},
}


@pytest.mark.parametrize("values", ORDINARY.values(), ids=ORDINARY.keys())
def test_an_ordinary_scan_is_one_volume(tmp_path, values):
    def edit(dataset: Dataset, k: int) -> None:
        for keyword, value in values(k).items():
            setattr(dataset, keyword, value)

    write_series(tmp_path, FIRST, geometry(), edit=edit)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, FIRST)
    assert volume.metadata["warnings"] == []


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_identifiers_that_a_program_made_for_each_file_are_ignored_with_a_warning(tmp_path, keyword):
    def edit(dataset: Dataset, k: int) -> None:
        setattr(dataset, keyword, generate_uid())

    write_series(tmp_path, FIRST, geometry(), edit=edit)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, FIRST)
    assert any("Each slice has its own" in warning for warning in volume.metadata["warnings"])


@pytest.mark.parametrize(("minutes", "choices"), [(0, 1), (1, 2)])
def test_blocks_above_each_other_are_two_scans_only_if_time_passed_between_them(tmp_path, minutes, choices):
    merged(
        tmp_path,
        constant(AcquisitionNumber=1, AcquisitionTime="101010"),
        constant(AcquisitionNumber=2, AcquisitionTime=f"10{10 + minutes}12"),
        2.5 * len(BLOCK),
        (BLOCK, BLOCK),
    )
    assert len(list_series(tmp_path)) == choices
