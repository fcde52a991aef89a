# SPDX-License-Identifier: Apache-2.0
"""Training data in each layout is found, read with the right labels, and refused if it would be misleading."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import write_series
from training_toys import ball_case, write_msd

from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.training.config import Data
from LiverXAILib.training.layouts import find_data, read_case
from LiverXAILib.training.splits import draw_split, record_split, recorded_split
from LiverXAILib.volumes.dicom_seg import read_segment_masks
from LiverXAILib.volumes.io import read_volume, write_volume
from LiverXAILib.volumes.orientation import reorient
from LiverXAILib.volumes.volume import Volume

COUNT = 3


def msd(folder: Path) -> Path:
    return write_msd(folder, COUNT)


def nnunet(folder: Path) -> Path:
    """Like the Decathlon's, with a channel in image names, another file type, and swapped label values."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(COUNT):
        image, labels = ball_case(number)
        write_volume(image, folder / "imagesTr" / f"liver_{number}_0000.nrrd")
        write_volume(labels, folder / "labelsTr" / f"liver_{number}.nrrd")
    content = {"labels": {"background": 0, "liver": [1, 2], "Liver_Tumour": 2}, "channel_names": {"0": "CT"}}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def lits(folder: Path) -> Path:
    """In batches, as LiTS is distributed."""
    for number in range(COUNT):
        image, labels = ball_case(number)
        batch = folder / f"Training Batch {1 + number % 2}"
        batch.mkdir(parents=True, exist_ok=True)
        write_volume(image, batch / f"volume-{number}.nii")
        write_volume(labels, batch / f"segmentation-{number}.nii")
    return folder


def table(folder: Path) -> Path:
    """Label maps, liver and tumor apart, and one in another order of axes."""
    folder.mkdir()
    rows = []
    for number in range(COUNT):
        image, labels = ball_case(number)
        write_volume(image, folder / f"ct{number}.nii.gz")
        row = {"case": f"liver_{number}", "image": f"ct{number}.nii.gz", "label": "", "liver": "", "tumor": ""}
        if number == 1:
            for name, value in (("liver", 1), ("tumor", 2)):
                write_volume(labels.with_array((labels.array >= value) * np.uint8(255)), folder / f"{name}.nrrd")
                row[name] = f"{name}.nrrd"
        else:
            write_volume(reorient(labels, "SPL" if number else "LIP"), folder / f"truth{number}.nrrd")
            row["label"] = f"truth{number}.nrrd"
        rows.append(row)
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "cases.csv"


def dicom_seg(folder: Path) -> Path:
    """A series and a segmentation object for each case; the segments have codes, and meaningless names."""
    import highdicom

    code = pydicom.sr.coding.Code
    meanings = (
        ("123037004", "Anatomical Structure", "10200004", "Liver"),
        ("49755003", "Morphologically Altered Structure", "4147007", "Mass"),
    )
    for number in range(COUNT):
        image, labels = ball_case(number)
        write_series(folder / f"liver_{number}" / "ct", image.array, image.ijk_to_lps)
        slices = [pydicom.dcmread(path) for path in sorted((folder / f"liver_{number}" / "ct").iterdir())]
        descriptions = [
            highdicom.seg.SegmentDescription(
                segment_number=n + 1,
                segment_label=f"Segment {n + 1}",
                segmented_property_category=code(category, "SCT", category_name),
                segmented_property_type=code(kind, "SCT", name),
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
            )
            for n, (category, category_name, kind, name) in enumerate(meanings)
        ]
        for one in slices:
            one.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
            one.StudyInstanceUID = slices[0].StudyInstanceUID
            for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
                setattr(one, keyword, "")
            one.ReferringPhysicianName, one.SliceThickness = "", 8.0
        segmentation = highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=np.stack([labels.array >= 1, labels.array == 2], axis=-1),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=pydicom.uid.generate_uid(),
            series_number=9,
            sop_instance_uid=pydicom.uid.generate_uid(),
            instance_number=1,
            manufacturer="LiverXAI",
            manufacturer_model_name="tests",
            software_versions="0",
            device_serial_number="0",
            omit_empty_frames=True,
        )
        (folder / f"liver_{number}" / "seg").mkdir()
        segmentation.save_as(folder / f"liver_{number}" / "seg" / "objects.dcm")
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "msd": msd,
    "nnunet": nnunet,
    "lits": lits,
    "csv": table,
    "dicom-seg": dicom_seg,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_images_and_the_truth_that_were_written(layout: str, tmp_path: Path) -> None:
    dataset = find_data(Data(layout, str(LAYOUTS[layout](tmp_path / "data"))))
    names = [str(n) for n in range(COUNT)] if layout == "lits" else [f"liver_{n}" for n in range(COUNT)]
    assert [case.name for case in dataset.cases] == names
    for number, case in enumerate(dataset.cases):
        image, labels = ball_case(number)
        volume, truth = read_case(case, dataset.values)
        found = reorient(volume.with_array(truth), "SPL")
        np.testing.assert_array_equal(reorient(volume, "SPL").array, reorient(image, "SPL").array)
        np.testing.assert_array_equal(found.array, reorient(labels, "SPL").array)
        assert {0, 1, 2} == set(np.unique(truth))
        assert case.tumor_known


def test_liver_alone_means_that_tumors_are_unknown(tmp_path: Path) -> None:
    dataset = find_data(Data("msd", str(write_msd(tmp_path / "data", tumors=False))))
    assert dataset.values.tumor is None
    assert not any(case.tumor_known for case in dataset.cases)
    assert set(np.unique(read_case(dataset.cases[0], dataset.values)[1])) == {0, 1}


def test_values_can_be_named_and_others_are_refused_unless_they_are_said_to_be_background(tmp_path: Path) -> None:
    folder = write_msd(tmp_path / "data", 2)
    for path in (folder / "labelsTr").glob("liver*"):
        labels = read_volume(path, force=True)
        write_volume(labels.with_array(np.array([0, 5, 77], np.int16)[labels.array]), path)
    dataset = find_data(Data("msd", str(folder)))
    with pytest.raises(InputError, match=r"'liver_0'.*value 5.*neither liver nor tumor"):
        read_case(dataset.cases[0], dataset.values)
    named = find_data(Data("msd", str(folder), labels={"liver": [5], "tumor": 77}))
    expected = ball_case(0)[1].array
    np.testing.assert_array_equal(read_case(named.cases[0], named.values)[1], expected)
    only = find_data(Data("msd", str(folder), labels={"liver": 5, "others": "background"}))
    np.testing.assert_array_equal(read_case(only.cases[0], only.values)[1], expected == 1)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda folder: (folder / "labelsTr" / "liver_1.nii.gz").unlink(), InputError, "'liver_1'.*no label map"),
        (lambda folder: (folder / "imagesTr" / "liver_1.nii.gz").unlink(), InputError, "'liver_1'.*no image"),
        (lambda folder: shutil.rmtree(folder / "imagesTr"), InputError, "layout does not fit"),
        (
            lambda folder: (folder / "dataset.json").write_text('{"labels": {"1": "spleen"}}', encoding="utf-8"),
            UsageError,
            "does not name a liver",
        ),
        (lambda folder: (folder / "dataset.json").write_text("{", encoding="utf-8"), InputError, "understood"),
    ],
)
def test_a_data_set_that_is_not_whole_is_refused(
    change: Callable[[Path], object], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    folder = write_msd(tmp_path / "data", 3)
    change(folder)
    with pytest.raises(error, match=sentence):
        find_data(Data("msd", str(folder)))


def test_labels_on_another_grid_are_refused_by_the_name_of_their_case(tmp_path: Path) -> None:
    folder = write_msd(tmp_path / "data", 2)
    path = folder / "labelsTr" / "liver_1.nii.gz"
    labels = read_volume(path, force=True)
    moved = labels.ijk_to_lps.copy()
    moved[0, 3] += 40
    write_volume(Volume(labels.array, moved), path)
    dataset = find_data(Data("msd", str(folder)))
    with pytest.raises(InputError, match=r"'liver_1'.*different places"):
        read_case(dataset.cases[1], dataset.values)


def test_a_table_row_without_labels_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("image,label\na.nii.gz,\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 2"):
        find_data(Data("csv", str(tmp_path / "cases.csv")))


def test_unknown_names_in_the_configuration_are_refused(tmp_path: Path) -> None:
    folder = write_msd(tmp_path / "data", 3)
    with pytest.raises(UsageError, match="'liver_9'"):
        find_data(Data("msd", str(folder), exclude=("liver_9",)))
    assert len(find_data(Data("msd", str(folder), exclude=("liver_1",))).cases) == 2


def test_phantoms_are_made_once_and_only_those_that_are_missing(tmp_path: Path) -> None:
    data = Data("phantoms", str(tmp_path), phantoms=2, phantom_spacing=(12, 12, 12))
    first = find_data(data)
    assert [case.name for case in first.cases] == ["phantom-3000", "phantom-3001"]
    times = [case.image.stat().st_mtime_ns for case in first.cases]
    first.cases[1].label.unlink()  # type: ignore[union-attr]
    again = find_data(data)
    assert again.cases[0].image.stat().st_mtime_ns == times[0]
    assert again.cases[1].image.stat().st_mtime_ns > times[1]
    assert 1 in read_case(again.cases[1], again.values)[1]


def test_folds_share_no_validation_case_and_cover_all(tmp_path: Path) -> None:
    cases = find_data(Data("msd", str(write_msd(tmp_path / "data", 7)))).cases
    data = Data("msd", "anywhere", folds=3)
    splits = [draw_split(cases, data, 5, fold) for fold in range(3)]
    judged = [case.name for split in splits for case in split.validation]
    assert sorted(judged) == sorted(case.name for case in cases)
    for split in splits:
        assert not {c.name for c in split.training} & {c.name for c in split.validation}
        assert len(split.training) + len(split.validation) == 7
    few = draw_split(cases, Data("msd", "anywhere", folds=3, training_cases=2), 5, 0)
    assert few.training == splits[0].training[:2]
    assert few.validation == splits[0].validation


def test_a_recorded_split_stays_when_cases_are_added(tmp_path: Path) -> None:
    cases = find_data(Data("msd", str(write_msd(tmp_path / "data", 5)))).cases
    split = draw_split(cases[:4], Data("msd", "anywhere"), 0)
    record_split(split, tmp_path / "splits.json")
    assert recorded_split(cases, tmp_path / "splits.json") == split
    with pytest.raises(InputError, match="no longer in the data set"):
        recorded_split(cases[1:3], tmp_path / "splits.json")


def test_a_real_segmentation_object_lies_where_its_series_lies() -> None:
    if "LIVERXAI_TEST_DATA" not in os.environ:
        pytest.skip("LIVERXAI_TEST_DATA is not set")
    folder = Path(os.environ["LIVERXAI_TEST_DATA"]) / "dicom" / "ct_with_seg"
    from LiverXAILib.volumes.dicom_seg import find_segs, read_segments

    (path,) = find_segs(folder)
    (segment,) = read_segments(path)
    assert segment.label == "Liver"
    volume = read_volume(folder)
    (mask,) = read_segment_masks(path, volume.grid).values()
    assert mask.any()
    assert 0 < volume.array[mask].mean() < 200  # HU of a liver
