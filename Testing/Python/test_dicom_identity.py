# SPDX-License-Identifier: Apache-2.0
"""Several scans under one Series Instance UID are never merged, and an ordinary scan is never split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_series import a_body, geometry, write_series
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from LiverXAILib.volumes.dicom import find_series
from LiverXAILib.volumes.dicom.headers import CtSlice
from LiverXAILib.volumes.dicom.identity import Part, split
from LiverXAILib.volumes.dicom.series import arrange_slices
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
    "date of the study": (constant(StudyDate="20200131"), constant(StudyDate="20210131"), "study date 2 of 2"),
    "day of each acquisition": (
        constant(AcquisitionDate="20200131", AcquisitionTime="101010"),
        constant(AcquisitionDate="20210131", AcquisitionTime="101010"),
        "acquired at 10:10:10 on day 2 of 2",
    ),
    "date and time of each slice, on days when the scan began at the same time": (
        lambda k: {"AcquisitionDateTime": f"20200131101010.{k:02d}"},
        lambda k: {"AcquisitionDateTime": f"20210131101010.{k:02d}"},
        "acquired at 10:10:10 on day 2 of 2",
    ),
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
    dates = [constant(StudyDate=f"{year}0131", AcquisitionDateTime=f"{year}0131101010") for year in (2020, 2021)]
    merged(tmp_path / "dates", *dates, 0.0)
    for folder in (tmp_path, tmp_path / "dates"):
        metadata = {name: value for name, value in read_volume(folder).metadata.items() if name != "files"}
        assert not any(secret in repr(metadata) for secret in ("Doe", "Roe", "77001", "0131"))


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
    "a time that one slice lacks": lambda k: {"AcquisitionTime": f"1010{10 + k}" if k else ""},
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


UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def at(height: float, number: int, time: float | None = None, **options: object) -> CtSlice:
    """The slice at a height in mm with an instance number; `options` are values of :class:`CtSlice` or its identity."""
    known = {name: options.pop(name) for name in list(options) if name in CtSlice.__dataclass_fields__}
    identity = {name.replace("_", " "): str(value) for name, value in options.items()}
    fields = {
        "size": (16, 20),
        "position": np.array([0.0, 0.0, height]),
        "orientation": UPRIGHT,
        "pixel_spacing": (0.8, 0.8),
        **known,
    }
    for name in ("orientation", "pixel_spacing"):
        fields[name] = None if fields[name] is None else np.array(fields[name])
    return CtSlice(Path(str(number)), 0, instance=(number, 0), time=time, identity=identity, **fields)


def parts_of(*slices: CtSlice) -> list[Part]:
    parts = split(slices, arrange_slices)
    assert sorted(one.instance for part in parts for one in part.slices) == sorted(one.instance for one in slices)
    return parts


def told(parts: list[Part]) -> list[tuple[str, ...]]:
    return [part.distinction for part in parts]


def test_parts_are_listed_in_the_order_of_their_times_then_of_their_numbers():
    kinds = {"A": (40, None), "B": (20, None), "C": (10, 60.0), "D": (30, 50.0)}
    slices = [at(3.0 * k, number + k, time, kernel=name) for name, (number, time) in kinds.items() for k in range(3)]
    assert told(parts_of(*slices)) == [(f"kernel {name}",) for name in "DCBA"]


def test_two_kinds_of_differences_are_both_told():
    kinds = [(kernel, agent) for kernel in "AB" for agent in ("", "Iomeprol")]
    slices = [
        at(3 * k, 10 * n + k, kernel=kernel, **({"contrast_agent": agent} if agent else {}))
        for n, (kernel, agent) in enumerate(kinds)
        for k in range(3)
    ]
    assert told(parts_of(*slices)) == [
        (f"kernel {kernel}", f"contrast agent {agent or 'not given'}") for kernel, agent in kinds
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("patient", ["1 of 2", "2 of 2"]),
        ("kernel", ["a", "b"]),
        ("acquisition", ["a at 10:00:00", "b at 11:59:59"]),
    ],
)
def test_parts_are_told_by_value_and_time_or_only_counted(name, shown):
    # Each from above to below, so that the earliest time is not that of the lowest slice.
    one = [at(3.0 * k, 10 + k, 36002.0 - k, **{name: "a"}) for k in range(3)]
    other = [at(3.0 * k + 1, 20 + k, 43201.0 - k, **{name: "b"}) for k in range(3)]
    assert told(parts_of(*one, *other)) == [(f"{name} {text}",) for text in shown]


def test_warnings_about_a_series_stay_with_each_of_its_parts():
    slices = [at(3.0 * k, k, acquisition=k % 2, study=k, frame_of_reference=k) for k in range(6)]
    parts = parts_of(*slices)
    assert len(parts) == 2
    for part in parts:
        assert [note.split(",")[0] for note in part.notes] == [
            "Each slice has its own study",
            "Each slice has its own frame of reference",
        ]


def test_two_slices_of_two_studies_are_not_taken_for_one_scan():
    assert len(parts_of(at(0, 1, study="a"), at(3, 2, study="b"))) == 2
    assert len(parts_of(at(0, 1, study="a"), at(3, 2, study="b"), at(6, 3, study="c"))) == 1


OTHER_GEOMETRIES = {
    "another plane": {"orientation": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)},
    "another size": {"size": (16, 24)},
    "another pixel size": {"pixel_spacing": (0.4, 0.4)},
    "a pixel size that differs by an eighth of a percent": {"pixel_spacing": (0.8, 0.801)},
}


@pytest.mark.parametrize("other", OTHER_GEOMETRIES.values(), ids=OTHER_GEOMETRIES.keys())
def test_two_slices_each_of_two_geometries_are_two_choices(other):
    places = [np.array([0.0, 3.0 * k, 3.0 * k]) for k in range(2)]
    slices = [at(0, k, position=place) for k, place in enumerate(places)]
    slices += [at(0, 10 + k, position=place, **other) for k, place in enumerate(places)]
    assert told(parts_of(*slices)) == [("geometry 1",), ("geometry 2",)]


def test_directions_within_the_tolerance_are_one_stack():
    turned = (1.0, 1e-3, 0.0, 0.0, 1.0, 0.0)
    slices = [at(3.0 * k, k, orientation=turned if k > 1 else UPRIGHT) for k in range(4)]
    assert told(parts_of(*slices)) == [()]
    assert not isinstance(arrange_slices(slices), str)


def test_copies_with_an_acquisition_number_for_each_file_are_not_torn_into_single_slices():
    slices = [at(3.0 * (k // 2), k // 2, acquisition=k) for k in range(6)]
    assert told(parts_of(*slices)) == [()]


@pytest.mark.parametrize("unknown", ["position", "orientation"])
def test_slices_of_unknown_places_stay_together(unknown):
    slices = [at(3.0 * k, k, acquisition=k % 2, **{unknown: None}) for k in range(6)]
    assert told(parts_of(*slices)) == [()]


@pytest.mark.parametrize("upper_first", [False, True])
@pytest.mark.parametrize(("pause", "choices"), [(29.5, 1), (30.0, 2)])
def test_a_pause_of_half_a_minute_between_blocks_makes_two_scans(pause, choices, upper_first):
    blocks = [[at(3.0 * k, k, 1.0 * k, acquisition=1) for k in range(10)]]
    blocks.append([at(30 + 3.0 * k, 20 + k, 9 + pause + k, acquisition=2) for k in range(10)])
    if upper_first:
        blocks = [[replace(one, position=-one.position) for one in block] for block in blocks]
    parts = parts_of(*blocks[0], *blocks[1])
    apart = [("acquisition 1 at 00:00:00",), (f"acquisition 2 at 00:00:{int(9 + pause)}",)]
    assert told(parts) == (apart if choices == 2 else [()])
    assert [part.notes for part in parts] == [()] * choices


@pytest.mark.parametrize("known", [None, 36000.0], ids=["no time", "a time of one block"])
def test_blocks_whose_times_are_unknown_are_one_scan_with_a_warning(known):
    slices = [at(3.0 * k, k, known if k < 10 else None, acquisition=k // 10) for k in range(20)]
    (part,) = parts_of(*slices)
    assert part.distinction == ()
    (note,) = part.notes
    assert "2 acquisitions" in note
    assert "times are unknown" in note


@pytest.mark.parametrize(
    ("usual", "pause", "choices"), [(3.0, 15.0, 1), (3.0, 15.5, 2), (0.25, 2.0, 1), (0.25, 2.25, 2)]
)
def test_interleaved_slices_are_two_scans_if_the_pause_between_them_is_unusually_long(usual, pause, choices):
    first = [at(6.0 * k, k, 36000 + usual * k) for k in range(4)]
    start = 36000 + 3 * usual + pause
    second = [at(6.0 * k + 3, 10 + k, start + usual * k) for k in range(4)]
    parts = parts_of(*first, *second)
    times = ["10:00:00", f"10:00:{int(start - 36000):02d}"]
    assert told(parts) == ([()] if choices == 1 else [(f"acquired at {time}",) for time in times])


@pytest.mark.parametrize(("steps", "choices"), [((1, 90, 1), 2), ((90, 1), 1)])
def test_an_unusual_pause_shows_among_three_steps_and_not_among_two(steps, choices):
    times = np.cumsum((36000.0, *steps))
    slices = [at(6.0 * (k // 2) + 3 * (k % 2), k, time) for k, time in zip((0, 2, 1, 3), times, strict=False)]
    assert len(parts_of(*slices)) == choices


def test_phases_at_regular_times_are_choices():
    slices = [at(3.0 * k, 10 * phase + k, 36000 + 2.0 * phase) for phase in range(3) for k in range(2)]
    assert told(parts_of(*slices)) == [(f"acquired at 10:00:0{2 * phase}",) for phase in range(3)]


def test_a_copy_does_not_tear_a_scan_of_which_two_slices_share_a_time_into_pieces():
    slices = [at(3.0 * k, k, 36000.0 + max(k, 1)) for k in range(6)]
    assert told(parts_of(*slices, at(9.0, 9, 36007.0))) == [()]


@pytest.mark.parametrize(
    ("passes", "choices"),
    [([2, 2], 2), ([4, 4, 4], 3), ([1, 1], 1), ([4, 2], 1), ([2, 4], 1)],
    ids=["two places", "three passes", "one place", "the second ends early", "the first ended early"],
)
def test_only_whole_passes_through_the_same_places_are_phases(passes, choices):
    slices = [at(3.0 * k, 10 * number + k) for number, count in enumerate(passes) for k in range(count)]
    slices.sort(key=lambda one: one.position[2])
    shown = [(f"phase {number} of {choices}",) for number in range(1, choices + 1)]
    assert told(parts_of(*slices)) == (shown if choices > 1 else [()])


@pytest.mark.parametrize("direction", [1, -1], ids=["upward", "downward"])
@pytest.mark.parametrize(
    ("counts", "offset", "choices"),
    [((10, 10), 3.0, 2), ((10, 10, 10), 2.0, 3), ((10, 10), 60.0, 1), ((10, 9), 3.0, 1), ((20,), 3.0, 1)],
    ids=["twice", "three times", "one block above the other", "too few to tell", "once"],
)
def test_interleaved_slices_are_several_scans_if_their_numbers_pass_through_the_body_anew(
    counts, offset, choices, direction
):
    slices = [
        at(direction * (6.0 * k + number * offset), 100 * number + k)
        for number, count in enumerate(counts)
        for k in range(count)
    ]
    parts = parts_of(*slices)
    apart = [(f"phase {n + 1} of {choices}",) for n in range(choices)]
    assert told(parts) == (apart if choices > 1 else [()])
    assert [len(part.slices) for part in parts] == (list(counts) if choices > 1 else [sum(counts)])


@pytest.mark.parametrize("seed", range(5))
def test_numbers_in_no_order_do_not_divide_a_scan(seed):
    numbers = np.random.default_rng(seed).permutation(40)
    assert told(parts_of(*(at(3.0 * k, int(number)) for k, number in enumerate(numbers)))) == [()]
    assert told(parts_of(*(at(3.0 * k, 20 - k if k % 2 else 20 + k) for k in range(40)))) == [()]
