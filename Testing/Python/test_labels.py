# SPDX-License-Identifier: Apache-2.0
"""The meaning of label maps and segments from any program; values without a meaning are refused with a message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from LiverXAILib import cli
from LiverXAILib.errors import InputError
from LiverXAILib.labels import terminology
from LiverXAILib.labels.label_map import label_map, on_common_grid, read_label_map, read_mask
from LiverXAILib.labels.vocabulary import PART, is_name, liver_segment, structure_of, structure_of_name
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.volume import Volume

SHAPE = (10, 20, 24)
TRUTH = np.zeros(SHAPE, np.uint8)
TRUTH[2:8, 4:16, 4:20] = 1
TRUTH[4:6, 8:12, 8:12] = 2
COLUMN = np.indices(SHAPE)[2]
MATRIX = np.diag([1.0, 1.0, 2.0, 1.0])
TISSUE = ("SCT", "85756007", "Tissue")
KIDNEY = ("SCT", "64033007", "Kidney")
CYST = ("SCT", "12494005", "Cyst")
ALTERED, MASS, LIVER = terminology.MORPHOLOGICALLY_ALTERED, terminology.MASS, terminology.LIVER


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        *((name, "liver") for name in ("liver", " Liver", "LIVER", "whole_liver", "liver parenchyma", "Leber", "foie")),
        *((name, "tumor") for name in ("tumor", "Tumour", "tumors", "lesion 12", "Mass", "HCC", "Metastases")),
        *((name, "tumor") for name in ("liver_tumor", "LiverTumor", "livertumor01", "Liver_Tumours", "hepatic lesion")),
        *((name, PART) for name in ("liver_segment_4", "liver_vessels", "Couinaud segment IVa", "left liver lobe")),
        *((name, None) for name in ("spleen", "kidney tumor", "kidney_cyst_left", "Segment_1", "vertebrae_L1", "")),
        *((name, None) for name in ("delivery", "liver_cyst", "lung lesion", "pancreas mass", "portal vein")),
    ],
)
def test_names_of_common_programs_are_understood(name: str, structure: str | None) -> None:
    assert structure_of_name(name) == structure


def test_numbered_names_say_nothing() -> None:
    assert [is_name(name) for name in ("Segment_1", "label 3", "17", "", "spleen")] == [False] * 4 + [True]
    assert [liver_segment(f"liver_segment_{n}") for n in ("1", "4b", "viii", "9")] == [1, 4, 8, None]


@pytest.mark.parametrize(
    ("name", "codes", "structure"),
    [
        ("Segment 1", (terminology.ANATOMICAL_STRUCTURE, LIVER, ()), "liver"),
        ("x", (terminology.ANATOMICAL_STRUCTURE, ("SRT", "T-62000", "Liver"), ()), "liver"),
        ("liver", (TISSUE, TISSUE, ()), "liver"),
        ("Segment 2", (ALTERED, MASS, (LIVER,)), "tumor"),
        ("Segment 2", (ALTERED, MASS, ()), "tumor"),
        ("tumor", (ALTERED, MASS, (("SCT", "113345001", "Abdomen"),)), "tumor"),
        ("metastasis", (ALTERED, ("SCT", "14799000", "Neoplasm, metastatic"), (LIVER,)), "tumor"),
        ("Segment 2", (ALTERED, MASS, (KIDNEY,)), None),
        ("tumor", (ALTERED, MASS, (KIDNEY,)), None),
        ("kidney tumor", (ALTERED, MASS, ()), None),
        ("cyst", (ALTERED, CYST, (LIVER,)), None),
        ("S5", (terminology.ANATOMICAL_STRUCTURE, terminology.LIVER_SEGMENTS[4], ()), PART),
        ("liver", (None, None, ()), "liver"),
        ("liver", (("99X", "1", "y"), ("99X", "2", "z"), ()), "liver"),
    ],
)
def test_codes_are_understood_with_their_region(name: str, codes: tuple, structure: str | None) -> None:
    assert structure_of(name, *codes) == structure


@pytest.mark.parametrize(
    ("name", "codes"),
    [("tumor", (None, LIVER, ())), ("liver", (ALTERED, MASS, (LIVER,))), ("liver tumor", (ALTERED, MASS, (KIDNEY,)))],
)
def test_a_name_that_contradicts_its_code_is_refused(name: str, codes: tuple) -> None:
    with pytest.raises(InputError, match="contradict"):
        structure_of(name, *codes)


def test_terminology_is_written_and_read_alike() -> None:
    entry = terminology.terminology_entry(ALTERED, MASS, LIVER)
    assert terminology.parse_terminology_entry(entry) == (ALTERED, MASS, LIVER)
    entry = terminology.terminology_entry(terminology.ANATOMICAL_STRUCTURE, LIVER, None)
    assert terminology.parse_terminology_entry(entry)[1:] == (LIVER, None)
    assert terminology.parse_terminology_entry("damaged") == (None, None, None)


def _seg_nrrd(
    path: Path, layers: list[np.ndarray], segments: list[dict[str, object]], start: tuple[int, int, int] = (0, 0, 0)
) -> Path:
    """A file as Slicer writes it; `start` is where its voxels begin (k, j, i)."""
    images = [sitk.GetImageFromArray(layer) for layer in layers]
    image = images[0] if len(images) == 1 else sitk.Compose(images)
    image.SetSpacing((1, 1, 2))
    image.SetOrigin((float(start[2]), float(start[1]), 2.0 * start[0]))
    for number, fields in enumerate(segments):
        for key, value in fields.items():
            image.SetMetaData(f"Segment{number}_{key}", str(value))
    sitk.WriteImage(image, str(path))
    return path


def _named(*values: tuple[str, int]) -> list[dict[str, object]]:
    return [{"Name": name, "LabelValue": value, "Layer": 0} for name, value in values]


BOX = np.s_[1:9, 3:17, 2:21]
WHOLE = (TRUTH > 0).astype(np.uint8)
TUMOR = (TRUTH == 2).astype(np.uint8)
SEG_FILES = {
    "values in the order of drawing": ([np.array([0, 2, 1], np.uint8)[TRUTH]], _named(("tumor", 1), ("liver", 2))),
    "two layers": (
        [WHOLE, TUMOR],
        [{"Name": "liver", "LabelValue": 1, "Layer": 0}, {"Name": "tumor", "LabelValue": 1, "Layer": 1}],
    ),
    "two layers, values of their own": (
        [WHOLE * 7, TUMOR * 9],
        [{"Name": "Liver", "LabelValue": 7, "Layer": 0}, {"Name": "lesion", "LabelValue": 9, "Layer": 1}],
    ),
    "before Slicer 4.11": ([TUMOR, WHOLE], [{"Name": "tumor"}, {"Name": "liver"}]),
    "by code alone": (
        [TRUTH],
        [
            {
                **_named(("a", value))[0],
                "Name": f"Segment_{value}",
                "Tags": f"x:y|TerminologyEntry:{terminology.terminology_entry(*codes)}|",
            }
            for value, codes in ((1, (TISSUE, LIVER, None)), (2, (ALTERED, MASS, LIVER)))
        ],
    ),
    "several lesions and a spleen": (
        [(TRUTH + (TUMOR & (COLUMN < 10)) + 4 * (COLUMN > 22)).astype(np.uint8)],
        _named(("liver", 1), ("lesion 1", 2), ("lesion 2", 3), ("spleen", 4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEG_FILES)
@pytest.mark.parametrize("cropped", [False, True])
def test_a_seg_nrrd_is_what_its_header_says(kind: str, cropped: bool, tmp_path: Path) -> None:
    layers, segments = SEG_FILES[kind]
    if cropped and "spleen" in kind:
        layers = [np.where(layer == 4, 0, layer) for layer in layers]
    start = tuple(s.start for s in BOX) if cropped else (0, 0, 0)
    path = _seg_nrrd(tmp_path / "x.seg.nrrd", [layer[BOX] if cropped else layer for layer in layers], segments, start)
    found = read_label_map(path)
    assert found.structures == ("liver", "tumor")
    on_image = found.on(Volume(TRUTH, MATRIX).grid)
    np.testing.assert_array_equal(on_image.volume.array, TRUTH)


def test_two_cropped_files_are_compared_on_a_grid_that_holds_both(tmp_path: Path) -> None:
    boxes = (np.s_[1:6, 3:17, 2:21], np.s_[3:9, 2:18, 4:24])
    first, second = (
        read_label_map(
            _seg_nrrd(tmp_path / f"{n}.seg.nrrd", [TRUTH[box]], _named(("liver", 1), ("tumor", 2)),
                      tuple(s.start for s in box))
        )
        for n, box in enumerate(boxes)
    )  # fmt: skip
    one, other = on_common_grid(first, second)
    assert one.volume.grid.matches(other.volume.grid)
    assert np.count_nonzero(one.mask("liver")) == np.count_nonzero(TRUTH[boxes[0]])
    assert np.count_nonzero(other.mask("liver")) == np.count_nonzero(TRUTH[boxes[1]])
    both = np.zeros(SHAPE, bool)
    both[3:6, 3:17, 4:21] = True
    assert np.count_nonzero(one.mask("liver") & other.mask("liver")) == np.count_nonzero(TRUTH[both])


@pytest.mark.parametrize(
    ("layers", "segments", "sentence"),
    [
        ([TRUTH], _named(("liver", 1)), "value 2, which belongs to none"),
        ([TRUTH], _named(("spleen", 1), ("kidney", 2)), "no segment of the liver.*'spleen', 'kidney'"),
        ([TRUTH], _named(("liver", 1), ("Segment_2", 2)), "does not say what its segment 'Segment_2'"),
        ([TRUTH], [{"Name": "liver"}, {"Name": "tumor"}], "does not say which of its values belongs to 'tumor'"),
    ],
)
def test_a_seg_nrrd_that_leaves_something_open_is_refused(
    layers: list[np.ndarray], segments: list[dict[str, object]], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        read_label_map(_seg_nrrd(tmp_path / "x.seg.nrrd", layers, segments))


def test_a_cropped_file_of_another_image_is_refused(tmp_path: Path) -> None:
    beyond = read_label_map(_seg_nrrd(tmp_path / "x.seg.nrrd", [TRUTH], _named(("liver", 1), ("tumor", 2)), (5, 0, 0)))
    with pytest.raises(InputError, match="extends beyond"):
        beyond.on(Volume(TRUTH, MATRIX).grid)
    half = read_label_map(_seg_nrrd(tmp_path / "y.seg.nrrd", [TRUTH], _named(("liver", 1), ("tumor", 2)), (0, 0.5, 0)))
    with pytest.raises(InputError, match="different places"):
        half.on(Volume(TRUTH, MATRIX).grid)


def test_eight_hepatic_segments_are_a_liver_and_one_is_not(tmp_path: Path) -> None:
    parts = np.zeros(SHAPE, np.uint8)
    parts[2:8] = np.arange(24)[None, None] % 8 + 1
    names = [(f"liver_segment_{n}", n) for n in range(1, 9)]
    found = read_label_map(_seg_nrrd(tmp_path / "x.seg.nrrd", [parts], _named(*names)))
    np.testing.assert_array_equal(found.volume.array, parts > 0)
    with pytest.raises(InputError, match="no segment of the liver"):
        read_label_map(_seg_nrrd(tmp_path / "y.seg.nrrd", [(parts == 1).astype(np.uint8)], _named(names[0])))


def test_a_nifti_file_with_a_table_of_labels_is_read_by_its_names(tmp_path: Path) -> None:
    import nibabel

    values = np.array([0, 5, 1], np.uint8)[TRUTH]
    values[9, 19] = 2
    image = nibabel.Nifti1Image(values.T, np.diag([-1.0, -1, 2, 1]))
    table = "".join(
        f'<Label Key="{key}" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[{name}]]></Label>'
        for key, name in ((1, "liver_tumor"), (2, "spleen"), (5, "liver"))
    )
    text = f"<CaretExtension><VolumeInformation><LabelTable>{table}</LabelTable></VolumeInformation></CaretExtension>"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, text.encode()))
    nibabel.save(image, tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(read_label_map(tmp_path / "x.nii.gz").volume.array, TRUTH)


def test_a_data_set_beside_a_label_map_says_what_its_values_are(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    write_volume(Volume(np.where(TRUTH == 1, 3, TRUTH), MATRIX), tmp_path / "labelsTr" / "a.nii.gz")
    content = {"labels": {"background": 0, "liver": [2, 3], "Liver_Tumour": 2, "spleen": 4}}
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    found = read_label_map(tmp_path / "labelsTr" / "a.nii.gz")
    assert found.structures == ("liver", "tumor")
    np.testing.assert_array_equal(found.volume.array, TRUTH)


@pytest.mark.parametrize(
    "array",
    [WHOLE * 255, np.where(TRUTH == 1, 127, TRUTH * 127).astype(np.uint8), np.where(TRUTH == 2, 3, TRUTH),
     np.where(TRUTH > 0, 60, -990).astype(np.int16)],
    ids=["0 and 255", "0, 127 and 254", "0, 1 and 3", "the CT itself"],
)  # fmt: skip
def test_values_that_nobody_explained_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    write_volume(Volume(array, MATRIX), tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match="neither liver nor tumor"):
        read_label_map(tmp_path / "x.nii.gz")


def test_values_can_be_explained_and_others_declared_background() -> None:
    odd = Volume(np.array([0, 5, 77], np.uint8)[TRUTH], MATRIX)
    np.testing.assert_array_equal(label_map(odd, {"liver": 5, "tumor": 77}).volume.array, TRUTH)
    with pytest.raises(InputError, match="value 77"):
        label_map(odd, {"liver": 5})
    found = label_map(odd, {"liver": 5}, others=True)
    assert found.structures == ("liver",)
    np.testing.assert_array_equal(found.volume.array, TRUTH == 1)
    np.testing.assert_array_equal(label_map(odd, {"liver": [5, 77]}).volume.array, TRUTH > 0)


@pytest.mark.parametrize(
    ("array", "structures"),
    [(TRUTH, ("liver", "tumor")), (WHOLE, ("liver",)), (TUMOR * 2, ("tumor",)), (TRUTH * 0, ("liver",))],
)
def test_a_map_speaks_of_what_it_holds(array: np.ndarray, structures: tuple[str, ...]) -> None:
    assert label_map(Volume(array, MATRIX)).structures == structures


def test_a_declared_tumor_value_that_does_not_occur_means_no_tumor() -> None:
    assert label_map(Volume(WHOLE, MATRIX), {"liver": 1, "tumor": 2}).structures == ("liver", "tumor")


def test_a_mask_has_one_value_or_ours(tmp_path: Path) -> None:
    for array in (WHOLE, WHOLE * 255, TRUTH):
        write_volume(Volume(array, MATRIX), tmp_path / "x.nii.gz")
        np.testing.assert_array_equal(read_mask(tmp_path / "x.nii.gz", "liver").array, WHOLE)
    write_volume(Volume(np.where(TRUTH > 0, 60, -990).astype(np.int16), MATRIX), tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match="a mask of the liver has only one"):
        read_mask(tmp_path / "x.nii.gz", "liver")


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_dicom_segmentation_is_read_by_its_codes_on_its_own_grid(kind: str, tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    import pydicom
    from dicom_series import write_series

    write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16), MATRIX)
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    for one in slices:
        one.FrameOfReferenceUID, one.StudyInstanceUID = slices[0].FrameOfReferenceUID, slices[0].StudyInstanceUID
        for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
            setattr(one, keyword, "")
        one.ReferringPhysicianName, one.SliceThickness = "", 2.0
    code = pydicom.sr.coding.Code
    masks = {
        ("liver", terminology.ANATOMICAL_STRUCTURE, LIVER, None): TRUTH == 1,
        ("one", ALTERED, MASS, LIVER): TRUTH == 2,
        ("two", ALTERED, MASS, KIDNEY): np.indices(SHAPE)[2] == 1,
    }
    segmentation = highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=np.stack(list(masks.values()), axis=-1).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues[kind],
        segment_descriptions=[
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=name,
                segmented_property_category=code(category[1], category[0], category[2]),
                segmented_property_type=code(what[1], what[0], what[2]),
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
                anatomic_regions=[code(region[1], region[0], region[2])] if region else None,
            )
            for number, (name, category, what, region) in enumerate(masks, start=1)
        ],
        series_instance_uid=pydicom.uid.generate_uid(),
        series_number=9,
        sop_instance_uid=pydicom.uid.generate_uid(),
        instance_number=1,
        manufacturer="LiverXAI",
        manufacturer_model_name="tests",
        software_versions="0",
        device_serial_number="0",
    )
    segmentation.save_as(tmp_path / "objects")
    found = read_label_map(tmp_path / "objects")
    assert found.structures == ("liver", "tumor")
    np.testing.assert_array_equal(found.on(Volume(TRUTH, MATRIX).grid).volume.array, TRUTH)


def test_the_command_leaves_out_tumors_of_which_one_side_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volume(Volume(TRUTH, MATRIX), tmp_path / "p.nii.gz")
    write_volume(Volume(WHOLE, MATRIX), tmp_path / "r.nii.gz")
    command = ["evaluate", str(tmp_path / "p.nii.gz"), "--reference", str(tmp_path / "r.nii.gz"), "--no-surface"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "p     tumor" not in text
    assert "The reference does not describe the tumor" in text
    assert cli.main([*command, "--tumor-label", "2"]) == 0
    assert "p     tumor" in capsys.readouterr().out


def test_the_command_says_how_values_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_volume(Volume(TRUTH, MATRIX), tmp_path / "p.nii.gz")
    write_volume(Volume(WHOLE * 255, MATRIX), tmp_path / "r.nii.gz")
    command = ["evaluate", str(tmp_path / "p.nii.gz"), "--reference", str(tmp_path / "r.nii.gz"), "--no-surface"]
    assert cli.main(command) == 1
    assert "value 255" in (text := capsys.readouterr().err)
    assert "--liver-label" in text
    assert cli.main([*command, "--liver-label", "255", "--tumor-label", "0"]) == 0
