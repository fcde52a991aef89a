# SPDX-License-Identifier: Apache-2.0
"""DICOM SEG for series as in hospitals: valid, and read back voxel for voxel by LiverXAI and by highdicom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_checks import errors_of, masks_by_highdicom, needs_dciodvfy
from dicom_series import a_body, geometry, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.inference import Segmentation
from LiverXAILib.models import LIVER, TUMOR
from LiverXAILib.report import write_dicom_segmentation
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.dicom_seg import find_segs, read_segment_masks, read_segments, segmentation_grid
from LiverXAILib.volumes.io import read_volume
from LiverXAILib.volumes.volume import Grid, Volume

SHAPE = (8, 24, 28)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[1:6, 4:20, 5:22] = 1
LABELS[2:4, 8:12, 8:12] = 2
LABELS[4:5, 14:18, 15:20] = 2
Edit = Callable[[Dataset, int], None]


def each(**values: object) -> Edit:
    def edit(dataset: Dataset, k: int) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value(k) if callable(value) else value)

    return edit


def without(*keywords: str) -> Edit:
    def edit(dataset: Dataset, k: int) -> None:
        for keyword in keywords:
            if keyword in dataset:
                delattr(dataset, keyword)
        if "SOPInstanceUID" in keywords:
            dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()

    return edit


def segmentation_of(volume: Volume, labels: np.ndarray = LABELS) -> Segmentation:
    provenance = {"model": {"name": "toy", "version": "1"}, "warnings": []}
    return Segmentation(Volume(labels, volume.ijk_to_lps, volume.metadata), (LIVER, TUMOR), provenance=provenance)


def exported(folder: Path, edit: Edit | None = None, ijk_to_lps: np.ndarray | None = None, **options: object):
    """Write an unusual series and its SEG: return the CT, the file and the notes."""
    write_series(folder / "ct", a_body(SHAPE), geometry() if ijk_to_lps is None else ijk_to_lps, edit=edit)
    volume = read_volume(folder / "ct")
    notes = write_dicom_segmentation(segmentation_of(volume), folder / "seg.dcm", **options)
    return volume, folder / "seg.dcm", notes


def assert_read_back(volume: Volume, path: Path) -> None:
    masks = read_segment_masks(path, volume.grid)
    assert [segment.label for segment in read_segments(path)] == ["liver", "tumor"]
    np.testing.assert_array_equal(masks[1], LABELS > 0)
    np.testing.assert_array_equal(masks[2], LABELS == 2)


#: Headers of a series, and the expected note about it ("" if none).
HEADERS: dict[str, tuple[Edit, str]] = {
    "an ordinary series": (each(), ""),
    "Japanese": (each(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎"), ""),
    "Korean": (each(SpecificCharacterSet=["", "ISO 2022 IR 149"], PatientName="Hong^Gildong=洪^吉洞=홍^길동"), ""),
    "Chinese": (each(SpecificCharacterSet="GB18030", PatientName="Wang^XiaoDong=王^小东"), ""),
    "Cyrillic": (each(SpecificCharacterSet="ISO_IR 144", PatientName="Люкceмбypг"), ""),
    "umlauts": (each(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg"), ""),
    "a character set that does not exist": (each(SpecificCharacterSet="ISO_IR_100x"), ""),
    "sex in words": (each(PatientSex="Female"), ""),
    "sex unknown": (each(PatientSex="Unknown"), "Patient Sex"),
    "birth year": (each(PatientBirthDate="1970"), "Patient Birth Date"),
    "birth date with points": (each(PatientBirthDate="1970.02.03"), ""),
    "a day that does not exist": (each(StudyDate="20200231"), "Study Date"),
    "time with colons": (each(StudyTime="12:30:00"), ""),
    "a time that does not exist": (each(StudyTime="246060"), "Study Time"),
    "long identifiers": (each(PatientID="x" * 80, StudyID="y" * 20, AccessionNumber="z" * 20), "Accession Number"),
    "a long name": (each(PatientName="n" * 70 + "^a^b^c^d^e^f"), "Patient Name"),
    "two identifiers": (each(PatientID=["1", "2"]), ""),
    "no patient": (without("PatientID", "PatientName"), ""),
    "no study": (without("StudyInstanceUID"), "Study Instance UID"),
    "no series": (without("SeriesInstanceUID"), "Series Instance UID"),
    "no frame of reference": (without("FrameOfReferenceUID"), "Frame of Reference UID"),
    "a UID of letters": (each(StudyInstanceUID="study-of-x"), "Study Instance UID"),
    "studies for each slice": (each(StudyInstanceUID=lambda k: generate_uid()), "different Study Instance UIDs"),
    "frames for each slice": (each(FrameOfReferenceUID=lambda k: generate_uid()), "different Frame of Reference UIDs"),
    "one UID for all slices": (each(SOPInstanceUID="1.2.3.4"), "refers to no images"),
    "cosines that differ in the sixth digit": (each(ImageOrientationPatient=lambda k: [1, 1e-6 * k, 0, 0, 1, 0]), ""),
    "cosines of few digits": (each(ImageOrientationPatient=[0.9999, 0.0099, 0, -0.0099, 0.9999, 0]), ""),
    "negative spacing between slices": (each(SpacingBetweenSlices=-2.5), ""),
    "no thickness": (without("SliceThickness"), ""),
    "thickness of 0": (each(SliceThickness=0), ""),
    "rounded positions": (
        each(ImagePositionPatient=lambda k: [-30, -41.5, round(812 + 2.5 * k + 0.04 * (k % 2), 3)]),
        "",
    ),
}


@needs_dciodvfy
@pytest.mark.parametrize(("edit", "said"), HEADERS.values(), ids=HEADERS.keys())
def test_odd_headers_give_a_valid_segmentation_that_is_read_back(tmp_path, edit, said):
    volume, path, notes = exported(tmp_path, edit)
    assert errors_of(path) == []
    assert_read_back(volume, path)
    assert bool(notes) == bool(said)
    assert said in " ".join(notes)
    array = highdicom.seg.segread(path).get_volume().array
    assert array[..., 0].sum() == (LABELS > 0).sum()
    assert array[..., 1].sum() == (LABELS == 2).sum()


def rotated(tilt_degrees: float = 0.0, turn_degrees: float = 0.0, flip: tuple[int, int, int] = (1, 1, 1)) -> np.ndarray:
    """A scan whose planes are turned about the x and z axes, and whose axes may be reversed."""
    tilt, turn = np.radians(tilt_degrees), np.radians(turn_degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    matrix = geometry()
    matrix[:3, :3] = about_z @ about_x @ np.diag(np.array([0.8, 0.9, 2.5]) * flip)
    return matrix


def sheared(degrees: float) -> np.ndarray:
    """The gantry is tilted, the table moves straight."""
    matrix = rotated(degrees)
    matrix[:3, 2] = [0, 0, 2.5]
    return matrix


PLACES = {
    "upright": geometry(),
    "oblique": rotated(17, 23),
    "tilted gantry": sheared(18.5),
    "tilted gantry the other way": sheared(-20),
    "feet first, prone": rotated(flip=(-1, -1, 1)),
    "feet first, supine": rotated(flip=(-1, 1, -1)),
    "coronal": np.array([[0.8, 0, 0, -30], [0, 0, 2.5, -41.5], [0, -0.9, 0, 812], [0, 0, 0, 1.0]]),
}


@needs_dciodvfy
@pytest.mark.parametrize("ijk_to_lps", PLACES.values(), ids=PLACES.keys())
def test_a_segmentation_lies_on_its_slices_wherever_these_lie(tmp_path, ijk_to_lps):
    volume, path, notes = exported(tmp_path, ijk_to_lps=ijk_to_lps)
    assert notes == []
    assert errors_of(path) == []
    assert_read_back(volume, path)
    masks = masks_by_highdicom(path, volume.metadata["files"])
    np.testing.assert_array_equal(masks["liver"], LABELS > 0)
    np.testing.assert_array_equal(masks["tumor"], LABELS == 2)
    slices = {str(one.SOPInstanceUID): one for one in map(pydicom.dcmread, volume.metadata["files"])}
    order = {uid: k for k, uid in enumerate(slices)}
    dataset = pydicom.dcmread(path)
    for frame, image in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, slices[source].ImagePositionPatient, atol=1e-3)
        truth = (LABELS > 0, LABELS == 2)[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
        np.testing.assert_array_equal(image > 0, truth[order[source]])


@needs_dciodvfy
def test_the_patient_and_the_study_are_those_of_the_series(tmp_path):
    values = {"PatientID": "4711", "PatientName": "Roe^Jane", "PatientSex": "F", "StudyDate": "20200102"}
    volume, path, _ = exported(tmp_path, each(**values))
    source, dataset = pydicom.dcmread(volume.metadata["files"][0]), pydicom.dcmread(path)
    for keyword in (*values, "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[keyword].value == source[keyword].value
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    assert "research" in dataset.SeriesDescription
    assert "research" in dataset.ContentDescription


def test_each_lesion_can_be_a_segment_that_is_tracked(tmp_path):
    volume, path, _ = exported(tmp_path, lesions=True)
    dataset = pydicom.dcmread(path)
    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == ["liver", "tumor 1", "tumor 2"]
    assert len({segment.TrackingUID for segment in dataset.SegmentSequence}) == 3
    masks = read_segment_masks(path, volume.grid)
    np.testing.assert_array_equal(masks[2] | masks[3], LABELS == 2)
    assert not (masks[2] & masks[3]).any()
    again = tmp_path / "again.dcm"
    write_dicom_segmentation(segmentation_of(volume), again, lesions=True)
    uids = [[segment.TrackingUID for segment in pydicom.dcmread(one).SegmentSequence] for one in (path, again)]
    assert uids[0] == uids[1]


@needs_dciodvfy
def test_an_enhanced_file_gets_a_segmentation_without_references(tmp_path):
    write_enhanced(tmp_path / "ct" / "enhanced", a_body(SHAPE), geometry(), order=range(8))
    volume = read_volume(tmp_path / "ct")
    notes = write_dicom_segmentation(segmentation_of(volume), tmp_path / "seg.dcm")
    assert any("refers to no images" in note for note in notes)
    assert errors_of(tmp_path / "seg.dcm") == []
    assert_read_back(volume, tmp_path / "seg.dcm")


def test_nothing_found_and_other_formats_are_refused(tmp_path):
    write_series(tmp_path / "ct", a_body(SHAPE), geometry())
    volume = read_volume(tmp_path / "ct")
    with pytest.raises(UsageError, match="Nothing was found"):
        write_dicom_segmentation(segmentation_of(volume, 0 * LABELS), tmp_path / "seg.dcm")
    with pytest.raises(UsageError, match="read from DICOM"):
        write_dicom_segmentation(segmentation_of(Volume(a_body(SHAPE), geometry())), tmp_path / "seg.dcm")
    (tmp_path / "ct" / "003.dcm").unlink()
    with pytest.raises(InputError, match=r"003\.dcm can no longer be read"):
        write_dicom_segmentation(segmentation_of(volume), tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def made_by_highdicom(folder: Path, masks: np.ndarray, kept: slice = slice(None), **options: object) -> Volume:
    """A SEG made with highdicom alone, of some of the slices of a series."""
    folder.mkdir(exist_ok=True)
    write_series(folder / "ct", a_body(SHAPE), geometry(), edit=each(StudyID="", PatientSex="", SliceThickness=2.5))
    slices = [pydicom.dcmread(path) for path in sorted((folder / "ct").iterdir())]
    for one in slices:
        for keyword in ("PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"):
            setattr(one, keyword, "")
    codes = pydicom.sr.codedict.codes
    options = {"segmentation_type": "BINARY", **options}
    highdicom.seg.Segmentation(
        source_images=slices[kept],
        pixel_array=masks[kept].copy(),  # because highdicom scales it in place
        segment_descriptions=[
            highdicom.seg.SegmentDescription(
                segment_number=1,
                segment_label="liver",
                segmented_property_category=codes.SCT.AnatomicalStructure,
                segmented_property_type=codes.SCT.Liver,
                algorithm_type="MANUAL",
            )
        ],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
        **options,
    ).save_as(folder / "seg.dcm")
    return read_volume(folder / "ct")


@pytest.fixture(scope="module")
def liver_seg(tmp_path_factory):
    """A CT, and the file of a SEG of its liver, which nobody may change."""
    folder = tmp_path_factory.mktemp("liver")
    return made_by_highdicom(folder, (LABELS > 0).astype(np.uint8)), folder / "seg.dcm"


def test_slices_left_out_of_a_segmentation_are_not_filled(tmp_path):
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[[1, 3, 6], 4:20, 5:22] = 1
    for name, kept in {"by empty slices": slice(None), "by the source": slice(0, 8, 2)}.items():
        volume = made_by_highdicom(tmp_path / name, np.roll(drawn, 1, axis=0), kept)
        (mask,) = read_segment_masks(tmp_path / name / "seg.dcm", volume.grid).values()
        expected = np.zeros(SHAPE, bool)
        expected[kept] = np.roll(drawn, 1, axis=0)[kept] > 0
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_every_kind_of_segmentation_is_read(tmp_path, kind):
    truth = (LABELS > 0).astype(np.uint8)
    volume = made_by_highdicom(tmp_path, truth, segmentation_type=kind)
    masks = read_segment_masks(tmp_path / "seg.dcm", volume.grid)
    np.testing.assert_array_equal(masks[1], truth > 0)
    own = segmentation_grid(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_segment_masks(tmp_path / "seg.dcm", own)[1].sum(), truth.sum())


@pytest.mark.parametrize("keyword", ["CodeValue", "LongCodeValue", "URNCodeValue", None])
def test_a_code_is_read_wherever_it_stands_and_is_empty_where_there_is_none(liver_seg, tmp_path, keyword):
    """Code values longer than 16 characters, and URNs, have separate attributes."""
    dataset = pydicom.dcmread(liver_seg[1])
    code = dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    del code.CodeValue
    if keyword is not None:
        setattr(code, keyword, "10200004")
    dataset.save_as(tmp_path / "seg.dcm")
    (segment,) = read_segments(tmp_path / "seg.dcm")
    assert segment.type == ("SCT", "10200004" if keyword else "", "Liver")


def test_a_segmentation_is_carried_to_another_grid(liver_seg):
    volume, path = liver_seg
    finer = volume.ijk_to_lps.copy()
    finer[:3, :3] = finer[:3, :3] / 2
    grid = Grid(tuple(2 * n for n in SHAPE), finer)
    (mask,) = read_segment_masks(path, grid).values()
    assert mask.sum() == pytest.approx(8 * (LABELS > 0).sum(), rel=0.05)


def test_segmentations_of_thicker_slices_fill_the_image_between_them(tmp_path):
    volume = made_by_highdicom(tmp_path, np.repeat((LABELS > 0).astype(np.uint8)[1:2], 8, axis=0))
    finer = volume.ijk_to_lps.copy()
    finer[:3, 2] /= 4
    (mask,) = read_segment_masks(tmp_path / "seg.dcm", Grid((29, *SHAPE[1:]), finer)).values()
    assert mask.any(axis=(1, 2)).all()


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
def test_a_damaged_segmentation_is_refused_in_words(liver_seg, tmp_path, keep):
    volume, path = liver_seg
    whole = path.read_bytes()
    (tmp_path / "seg.dcm").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(InputError, match=r"seg\.dcm"):
        _ = read_segment_masks(tmp_path / "seg.dcm", volume.grid)[1]


@pytest.fixture(scope="module")
def edited_seg(tmp_path_factory):
    """Write a SEG of three slices of the body, k = 1, 3 and 6, after a change of its data set."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[[1, 3, 6], 4:20, 5:22] = 1
    originals = tmp_path_factory.mktemp("three-slices")
    for kind in ("BINARY", "FRACTIONAL"):
        made_by_highdicom(originals / kind, drawn, segmentation_type=kind)

    def write(folder: Path, change: Callable[[Dataset], None], kind: str = "BINARY") -> Path:
        dataset = pydicom.dcmread(originals / kind / "seg.dcm")
        change(dataset)
        dataset.save_as(folder / "seg.dcm")
        return folder / "seg.dcm"

    return write


@pytest.mark.parametrize(
    ("start", "stop"),
    [((2, 6, 8), (5, 15, 17)), ((-2, -3, -4), (9, 30, 31)), ((0, 10, 10), (8, 24, 28)), ((0, 21, 0), (8, 24, 28))],
    ids=["part", "more", "end", "beside"],
)
def test_a_segmentation_is_cut_to_the_grid_or_surrounded_by_background(liver_seg, start, stop):
    volume, path = liver_seg
    (mask,) = read_segment_masks(path, volume.grid.cropped(Box.between(start, stop))).values()
    around = np.pad(LABELS > 0, 9)
    box = Box.between(start, stop).shifted((9, 9, 9))
    np.testing.assert_array_equal(mask, around[box])


@pytest.mark.parametrize(("most", "least"), [(255, 128), (100, 51), (2, 2), (None, 1)])
def test_a_fraction_counts_from_more_than_half_of_the_greatest(edited_seg, tmp_path, most, least):
    def change(dataset: Dataset) -> None:
        dataset.MaximumFractionalValue = most
        pixels = np.zeros(dataset.pixel_array.shape, np.uint8)
        pixels[:, 5, 6], pixels[:, 5, 7] = least, least - 1
        dataset.PixelData = pixels.tobytes()

    path = edited_seg(tmp_path, change, "FRACTIONAL")
    (mask,) = read_segment_masks(path, Grid(SHAPE, geometry())).values()
    assert [tuple(voxel) for voxel in np.argwhere(mask)] == [(1, 5, 6), (3, 5, 6), (6, 5, 6)]


def measures(**values: float | None) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        item = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        for keyword, value in values.items():
            setattr(item, keyword, value)

    return change


@pytest.mark.parametrize(
    ("values", "count", "step"),
    [
        ({"SpacingBetweenSlices": 2.5}, 6, 2.5),
        ({"SpacingBetweenSlices": -2.5}, 6, 2.5),
        ({"SpacingBetweenSlices": 1.25}, 11, 1.25),
    ],
)
def test_a_segmentation_s_own_grid_spans_its_frames_at_the_spacing_of_its_header(
    edited_seg, tmp_path, values, count, step
):
    own = segmentation_grid(edited_seg(tmp_path, measures(**values)))
    assert own.shape == (count, *SHAPE[1:])
    expected = geometry(spacing=(0.8, 0.9, step))
    expected[2, 3] += 2.5
    np.testing.assert_allclose(own.ijk_to_lps, expected, atol=1e-6)


@pytest.mark.parametrize("values", [(None, 3.0, 3.0), (4.0, 3.0, 4.0), (None, None, 1.0)])
def test_a_segmentation_of_one_frame_is_as_thick_as_its_header_says(tmp_path, values):
    between, thickness, step = values
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[3, 4:20, 5:22] = 1
    made_by_highdicom(tmp_path, drawn)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    measures(SpacingBetweenSlices=between, SliceThickness=thickness)(dataset)
    dataset.save_as(tmp_path / "seg.dcm")
    own = segmentation_grid(tmp_path / "seg.dcm")
    assert own.shape == (1, *SHAPE[1:])
    np.testing.assert_allclose(own.spacing, (0.8, 0.9, step), atol=1e-6)
    np.testing.assert_allclose(own.origin, geometry()[:3, 3] + (0, 0, 7.5), atol=1e-6)


def turn(dataset: Dataset) -> None:
    (plane,) = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    frame = dataset.PerFrameFunctionalGroupsSequence[1]
    frame.PlaneOrientationSequence = [Dataset()]
    frame.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 0.999, 0.04]
    assert plane.ImageOrientationPatient != frame.PlaneOrientationSequence[0].ImageOrientationPatient


def raised_by(millimeters: float) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        measures(SpacingBetweenSlices=None)(dataset)
        place = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
        x, y, z = place.ImagePositionPatient
        place.ImagePositionPatient = [x, y, z + millimeters]

    return change


def without_a_frame(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[2]


def without_frames(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (turn, "its frames lie in different planes"),
        (raised_by(4.0), "its frames are not evenly spaced"),
        (raised_by(1e9), "its frames lie too far apart"),
        (without_a_frame, "it has 3 frames but describes 2"),
        (without_frames, "it has no frames in the patient's coordinates"),
    ],
)
def test_frames_that_form_no_volume_are_refused_with_the_reason(edited_seg, tmp_path, change, words):
    path = edited_seg(tmp_path, change)
    finer = geometry(spacing=(0.4, 0.45, 2.5))
    with pytest.raises(InputError, match=rf"seg\.dcm cannot be read as a DICOM segmentation: {words}"):
        read_segment_masks(path, Grid(SHAPE, finer))


def test_segmentations_are_found_at_any_depth_among_other_files(liver_seg, tmp_path):
    (tmp_path / "b").mkdir()
    write_series(tmp_path / "b" / "ct", a_body(SHAPE), geometry())
    (tmp_path / "a" / "c").mkdir(parents=True)
    whole = liver_seg[1].read_bytes()
    (tmp_path / "b" / "seg.dcm").write_bytes(whole)
    (tmp_path / "a" / "c" / "copy").write_bytes(whole)
    (tmp_path / "a" / "damaged.dcm").write_bytes(whole[:140])
    (tmp_path / "a" / "notes.txt").write_text("SEG")
    assert list(find_segs(tmp_path)) == [tmp_path / "a" / "c" / "copy", tmp_path / "b" / "seg.dcm"]
