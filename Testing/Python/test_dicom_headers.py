# SPDX-License-Identifier: Apache-2.0
"""The values of a header, as numbers: times, rescaling, places and what slices of one scan have in common."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from dicom_series import a_slice
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from LiverXAILib.errors import InputError
from LiverXAILib.volumes.dicom import is_dicom
from LiverXAILib.volumes.dicom.headers import CtSlice, pydicom_warnings_hidden, read_header

DAY = 86400.0
#: Days from January 1, 1970, to January 31 of 2020, by the calendar.
JANUARY_31 = 18292


def saved(path: Path, dataset: Dataset) -> Path:
    implicit = dataset.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    dataset.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format="SOPClassUID" in dataset)
    return path


def slices_with(folder: Path, pixels: np.ndarray | None = None, /, **tags: object) -> tuple[CtSlice, ...]:
    """The slices in a file with `tags`; None deletes one."""
    dataset = a_slice(np.zeros((2, 3), np.uint16) if pixels is None else pixels)
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    file = read_header(saved(folder / "file.dcm", dataset))
    assert file is not None
    assert file.not_a_slice is None
    return file.slices


def item(**values: object) -> list[Dataset]:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return [dataset]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (bytes(128) + b"DICM", True),
        (bytes(127) + b"DICM", False),
        (b"\x08\x00\x05\x00CS\x0a\x00", True),
        (b"\x02\x00\x00\x00UL\x04\x00", True),
        (b"\x08\x00\x05\x00CS\x0a", False),
        (b"\x03\x00\x05\x00CS\x0a\x00", False),
        (b"\x09\x00\x05\x00CS\x0a\x00", False),
        (b"\x08\x01\x05\x00CS\x0a\x00", False),
        (b"\x08\x00\x05\x01CS\x0a\x00", False),
    ],
)
def test_a_dicom_file_is_known_by_its_first_bytes(tmp_path, start, expected):
    (tmp_path / "file").write_bytes(start)
    assert is_dicom(tmp_path / "file") is expected


def test_what_cannot_be_opened_is_not_dicom(tmp_path):
    assert is_dicom(tmp_path) is False


TIMES: dict[str, tuple[dict[str, object], float | None]] = {
    "time of day": ({"AcquisitionTime": "111243.5"}, 40363.5),
    "hours only": ({"AcquisitionTime": "01"}, 3600.0),
    "hours and minutes": ({"AcquisitionTime": "0102"}, 3720.0),
    "colons": ({"AcquisitionTime": "11:12:43"}, 40363.0),
    "microseconds": ({"AcquisitionTime": "000001.250625"}, 1.250625),
    "date and time": (
        {"AcquisitionDate": "20200131", "AcquisitionTime": "000001"},
        JANUARY_31 * DAY + 1,
    ),
    "both in one": ({"AcquisitionDateTime": "20200131000001.25"}, JANUARY_31 * DAY + 1.25),
    "both in one with the zone": ({"AcquisitionDateTime": "20200131010203.500000+0100"}, JANUARY_31 * DAY + 3723.5),
    "both in one rather than apart": (
        {"AcquisitionDateTime": "20200131000001", "AcquisitionDate": "20190101", "AcquisitionTime": "120000"},
        JANUARY_31 * DAY + 1,
    ),
    "of the frame rather than of the file": (
        {
            "PerFrameFunctionalGroupsSequence": item(
                FrameContentSequence=item(FrameAcquisitionDateTime="20200131000002")
            ),
            "AcquisitionDateTime": "20200131000001",
        },
        JANUARY_31 * DAY + 2,
    ),
    "none": ({}, None),
    "date only": ({"AcquisitionDate": "20200131"}, None),
}


@pytest.mark.parametrize(("tags", "seconds"), TIMES.values(), ids=TIMES.keys())
def test_the_time_of_a_slice_is_read_to_the_second(tmp_path, tags, seconds):
    (one,) = slices_with(tmp_path, **tags)
    assert one.time == seconds


OF_THE_FILE = {
    "PatientID": "17",
    "PatientName": "Doe^A",
    "PatientBirthDate": "19700102",
    "PatientSex": "F",
    "StudyInstanceUID": "1.2.3",
    "FrameOfReferenceUID": "1.2.4",
    "SeriesNumber": 5,
    "SeriesDescription": "Abdomen",
    "ConvolutionKernel": ["Br38", "3"],
    "ContrastBolusAgent": "Iomeprol",
    "TemporalPositionIdentifier": 2,
    "NominalPercentageOfCardiacPhase": 70,
    "AcquisitionNumber": 4,
    "SliceThickness": "2.50",
    "KVP": "120.0",
}
IDENTITY = {
    "patient": "17^Doe^A^19700102^F",
    "study": "1.2.3",
    "frame of reference": "1.2.4",
    "series number": "5",
    "description": "Abdomen",
    "kernel": "Br38 3",
    "contrast agent": "Iomeprol",
    "temporal position": "2",
    "cardiac phase": "70.0",
    "acquisition": "4",
    "slice thickness": "2.5 mm",
    "tube voltage": "120 kV",
    "image type": "ORIGINAL PRIMARY AXIAL",
}


def test_what_slices_of_one_scan_have_in_common_is_read_from_the_header(tmp_path):
    (one,) = slices_with(tmp_path, **OF_THE_FILE)
    assert one.identity == IDENTITY


def test_values_of_a_frame_take_precedence_over_shared_ones_and_these_over_the_header(tmp_path):
    content = item(TemporalPositionIndex=9, FrameAcquisitionNumber=8)
    groups = {
        "CTReconstructionSequence": item(ConvolutionKernel="B70f"),
        "CardiacSynchronizationSequence": item(NominalPercentageOfCardiacPhase=30),
        "PixelMeasuresSequence": item(SliceThickness="1", PixelSpacing=[0.5, 0.6]),
    }
    shared = item(**groups, CTXRayDetailsSequence=item(KVP="80"))
    frames = [*item(FrameContentSequence=content), *item(CTXRayDetailsSequence=item(KVP="140"))]
    tags = {
        **OF_THE_FILE,
        "NumberOfFrames": 2,
        "PixelSpacing": [0.8, 0.8],
        "SharedFunctionalGroupsSequence": shared,
        "PerFrameFunctionalGroupsSequence": frames,
    }
    first, second = slices_with(tmp_path, np.zeros((2, 2, 3), np.uint16), **tags)
    common = {**IDENTITY, "kernel": "B70f", "cardiac phase": "30.0", "slice thickness": "1 mm"}
    assert first.identity == {**common, "temporal position": "9", "acquisition": "8", "tube voltage": "80 kV"}
    assert second.identity == {**common, "tube voltage": "140 kV"}
    assert [list(one.pixel_spacing) for one in (first, second)] == [[0.5, 0.6]] * 2
    assert [one.frame for one in (first, second)] == [0, 1]


def test_values_that_are_missing_or_no_numbers_are_left_out(tmp_path):
    (one,) = slices_with(tmp_path, ImageType=None, SeriesNumber=None, ConvolutionKernel="", SeriesDescription=None)
    assert set(one.identity) == {"patient", "study"}


RESCALING: dict[str, tuple[dict[str, object], tuple[float, float, bool]]] = {
    "both": ({"RescaleSlope": "2", "RescaleIntercept": "-1000"}, (2.0, -1000.0, True)),
    "no slope": ({"RescaleIntercept": "-1000"}, (1.0, -1000.0, True)),
    "no intercept": ({"RescaleSlope": "2"}, (2.0, 0.0, False)),
    "a slope of 0": ({"RescaleSlope": "0", "RescaleIntercept": "-1000"}, (1.0, -1000.0, True)),
    "empty": ({"RescaleSlope": "", "RescaleIntercept": ""}, (1.0, 0.0, False)),
    "none": ({}, (1.0, 0.0, False)),
}


@pytest.mark.parametrize(("tags", "expected"), RESCALING.values(), ids=RESCALING.keys())
def test_a_missing_part_of_the_rescaling_leaves_the_values_unchanged(tmp_path, tags, expected):
    (one,) = slices_with(tmp_path, **tags)
    assert (one.slope, one.intercept, one.rescaled) == expected


@pytest.mark.parametrize(
    ("keyword", "attribute", "values"),
    [
        ("ImagePositionPatient", "position", [1.0, 2.0, 3.0]),
        ("ImageOrientationPatient", "orientation", [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
        ("PixelSpacing", "pixel_spacing", [0.8, 0.9]),
    ],
)
def test_a_place_with_too_many_numbers_is_unknown(tmp_path, keyword, attribute, values):
    np.testing.assert_array_equal(getattr(slices_with(tmp_path, **{keyword: values})[0], attribute), values)
    assert getattr(slices_with(tmp_path, **{keyword: [*values, 1.0]})[0], attribute) is None


def test_a_slice_is_described_by_its_file(tmp_path):
    (one,) = slices_with(tmp_path, InstanceNumber=7)
    assert (one.path, one.frame, one.size, one.instance) == (tmp_path / "file.dcm", 0, (2, 3), (7, 0))
    (one,) = slices_with(tmp_path)
    assert one.instance == (0, 0)


def test_a_file_is_assigned_to_its_series_by_what_its_header_says(tmp_path):
    dataset = a_slice(np.zeros((2, 3), np.uint16))
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3", "1.2.4"
    dataset.ConvolutionKernel = ["Br38", "3"]
    path = saved(tmp_path / "file.dcm", dataset)
    file = read_header(path)
    assert (file.path, file.series, file.study, file.series_number) == (path, "1.2.3", "1.2.4", 3)
    assert (file.modality, file.description, file.kernel) == ("CT", "Abdomen", "Br38 3")
    assert file.image_type == "ORIGINAL\\PRIMARY\\AXIAL"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"):
        delattr(dataset, keyword)
    file = read_header(saved(path, dataset))
    assert (file.series, file.study, file.series_number) == ("", "", None)
    assert (file.modality, file.description) == ("CT", "")


@pytest.mark.parametrize("missing", ["Modality", "SOPClassUID", "SamplesPerPixel", "BitsAllocated", "ImageType"])
def test_a_ct_image_that_lacks_a_value_of_its_kind_is_a_slice(tmp_path, missing):
    assert len(slices_with(tmp_path, **{missing: None})) == 1


@pytest.mark.parametrize("kind", ["HU", "hu", "HU_MOD", "US", ""])
def test_values_that_are_called_hounsfield_units_or_nothing_are_those_of_a_slice(tmp_path, kind):
    assert len(slices_with(tmp_path, RescaleType=kind)) == 1


@pytest.mark.parametrize("image_type", ["localizer", "Screen Save", "DOSE_INFO"])
def test_pictures_are_known_by_any_of_their_types_in_any_case(tmp_path, image_type):
    dataset = a_slice(np.zeros((2, 3), np.uint16))
    dataset.ImageType = ["DERIVED", image_type]
    file = read_header(saved(tmp_path / "file.dcm", dataset))
    assert file.not_a_slice is not None
    assert file.slices == ()


@pytest.mark.parametrize("missing", ["Rows", "Columns"])
def test_a_ct_image_without_its_size_is_damaged(tmp_path, missing):
    with pytest.raises(InputError, match="header is incomplete"):
        slices_with(tmp_path, SeriesInstanceUID="1.2.3", **{missing: None})


@pytest.mark.parametrize("shape", [(1, 8192), (8192, 1), (1, 1)])
def test_images_of_the_smallest_and_largest_size_are_slices(tmp_path, shape):
    assert slices_with(tmp_path, np.zeros(shape, np.uint16))[0].size == shape


@pytest.mark.parametrize("shape", [(1, 8193), (8193, 1)])
def test_images_larger_than_any_ct_are_damaged(tmp_path, shape):
    with pytest.raises(InputError, match="size makes no sense"):
        slices_with(tmp_path, np.zeros(shape, np.uint16))


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_pixels_may_be_padded_to_an_even_length_and_must_otherwise_have_the_stated_one(tmp_path, bits, implicit):
    dataset = a_slice(np.zeros((3, 3), np.uint16))
    if implicit:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    padding = int(bits == 8)
    dataset.BitsAllocated, dataset.PixelData = bits, bytes(9 * bits // 8 + padding)
    path = saved(tmp_path / "file.dcm", dataset)
    assert len(read_header(path).slices) == 1
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 1 - padding])
    with pytest.raises(InputError, match="incomplete"):
        read_header(path)
    dataset.PixelData += bytes(2)
    with pytest.raises(InputError, match="stated size"):
        read_header(saved(path, dataset))


def test_pydicom_s_warnings_stay_hidden_until_the_last_of_several_threads_has_left_its_block(caplog):
    logger, filters = logging.getLogger("pydicom"), list(warnings.filters)
    own = logging.StreamHandler(io.StringIO())
    logger.addHandler(own)

    def shown():
        with warnings.catch_warnings(record=True) as heard:
            warnings.warn("The patient is called Quimby.", UserWarning, stacklevel=2)
        caplog.clear()
        own.stream.truncate(0)
        logger.warning("Quimby")
        logging.getLogger("pydicom.pixels").warning("Quimby")
        assert bool(own.stream.getvalue()) == bool(caplog.records)
        return bool(heard), bool(caplog.records)

    warnings.simplefilter("always")
    try:
        # As two threads do that overlap: the one that enters first leaves first.
        first, second = pydicom_warnings_hidden(), pydicom_warnings_hidden()
        assert shown() == (True, True)
        first.__enter__()
        second.__enter__()
        assert shown() == (False, False)
        first.__exit__(None, None, None)
        assert shown() == (False, False)
        second.__exit__(None, None, None)
        assert shown() == (True, True)
    finally:
        warnings.filters[:] = filters
        logger.removeHandler(own)


def test_hiding_warnings_leaves_the_levels_of_loggers_alone(monkeypatch):
    """Each change of a level empties the caches of all loggers, which would happen for each header of a series."""
    changed = []
    monkeypatch.setattr(logging.Logger, "setLevel", lambda *arguments: changed.append(arguments))
    with pydicom_warnings_hidden():
        pass
    assert changed == []
