# SPDX-License-Identifier: Apache-2.0
"""A case is named after its path as given, two cases never share a name, and no file is lost silently."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import pydicom
import pytest
from batch_toys import write_dicom, write_good

from LiverXAILib.batch.cases import find_cases
from LiverXAILib.errors import UsageError
from LiverXAILib.evaluation.cases import case_name, pair_folders, read_cases
from LiverXAILib.training.config import Data
from LiverXAILib.training.layouts import find_data


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_a_link_is_called_by_its_own_name(tmp_path, monkeypatch):
    touch(tmp_path / "store" / "seg.nii.gz")
    (tmp_path / "CASE1.NII.GZ").symlink_to(tmp_path / "store" / "seg.nii.gz")
    (tmp_path / "folder").symlink_to(tmp_path / "store")
    assert case_name(tmp_path / "CASE1.NII.GZ") == "CASE1"
    assert case_name(tmp_path / "folder") == "folder"
    monkeypatch.chdir(tmp_path / "store")
    assert case_name(Path()) == "store"
    assert case_name(Path("..")) == tmp_path.name


@pytest.mark.parametrize("second", ["a.nii.gz", "a.NRRD", "a.seg.nrrd"])
def test_two_files_of_one_name_are_an_error_where_folders_are_paired(tmp_path, second):
    for folder in ("p", "r"):
        touch(tmp_path / folder / "a.nii")
    for folder in ("p", "r"):
        extra = touch(tmp_path / folder / second)
        with pytest.raises(UsageError, match="There are two cases 'a'"):
            pair_folders(tmp_path / "p", tmp_path / "r")
        extra.unlink()
    assert [case.name for case in pair_folders(tmp_path / "p", tmp_path / "r")] == ["a"]


def test_two_rows_of_one_name_are_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("prediction,reference\nx/a.nii,r.nii\ny/a.nii.gz,r.nii\n")
    with pytest.raises(UsageError, match="two cases 'a'"):
        read_cases(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("msd", ["imagesTr/a.nii", "imagesTr/a.nii.gz", "labelsTr/a.nii"]),
        ("nnunet", ["imagesTr/a_0000.nii", "imagesTr/a_0000.NII.GZ", "labelsTr/a.nii"]),
        ("lits", ["one/volume-0.nii", "two/volume-0.nii", "one/segmentation-0.nii", "two/segmentation-0.nii"]),
    ],
)
def test_two_cases_of_one_name_are_an_error_in_each_layout(tmp_path, layout, names):
    for name in names:
        touch(tmp_path / name)
    with pytest.raises(UsageError, match="There are two cases"):
        find_data(Data(layout=layout, path=str(tmp_path)))


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_linked_folders_are_followed_but_circles_are_not(tmp_path):
    write_good(tmp_path / "elsewhere" / "ct.nii.gz")
    source = tmp_path / "in"
    write_good(source / "a" / "ct.nii.gz")
    (source / "b").symlink_to(tmp_path / "elsewhere")
    (source / "a" / "circle").symlink_to(source)
    (source / "c").symlink_to(tmp_path / "elsewhere")
    (source / "nowhere").symlink_to(tmp_path / "gone")
    found = find_cases(source)
    assert [case.label for case in found.cases] == ["a/ct.nii.gz", "b/ct.nii.gz"]
    assert dict(found.passed_over) == {
        "a/circle": "the same folder as .",
        "c": "the same folder as b",
        "nowhere": "a link to nothing",
    }


def test_every_file_of_a_tree_is_a_case_or_passed_over_with_a_reason(tmp_path):
    write_good(tmp_path / "good.nii.gz")
    write_dicom(tmp_path / "scan")
    slices = sorted((tmp_path / "scan").iterdir())
    raw = slices[0].read_bytes()
    others = {
        "empty/a.dcm": (b"", "empty"),
        "empty/noending": (b"", "empty (0 bytes)"),
        "cut/a.dcm": (raw[:300], ""),
        "text/a.dcm": (b"hello", "does not start like DICOM"),
        "gz/a.dcm.gz": (gzip.compress(raw), "compressed"),
        "ct.nii.xz": (b"x", "compressed in a way"),
        "alone.img": (b"x", "no header"),
        "notes.txt": (b"x", "not an image"),
        "labels.seg.nrrd": (b"x", "a segmentation"),
        ".DS_Store": (b"x", "hidden"),
        "DICOMDIR": (b"x", "DICOM index"),
    }
    for name, (content, _) in others.items():
        touch(tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("a.dcm", raw)
    for name in ("pair.hdr", "ct.nii.bz2"):
        touch(tmp_path / name)
    found = find_cases(tmp_path)
    assert [case.label for case in found.cases if "scan" not in case.label] == ["ct.nii.bz2", "good.nii.gz", "pair.hdr"]
    assert len(found.cases) == 4
    reasons = dict(found.passed_over)
    assert reasons.keys() == {*others, "archive.zip"}
    assert "unpack" in reasons["archive.zip"]
    for name, (_, part) in others.items():
        assert part in reasons[name]
        assert reasons[name]


def test_what_does_not_match_the_pattern_is_counted(tmp_path):
    for name in ("a/ct.nii", "a/pet.nii"):
        touch(tmp_path / name)
    found = find_cases(tmp_path, pattern="*/ct.*")
    assert [case.label for case in found.cases] == ["a/ct.nii"]
    assert found.passed_over == (("a/pet.nii", "does not match --pattern"),)


def test_descriptions_of_series_stay_out_unless_they_are_asked_for(tmp_path):
    write_dicom(tmp_path / "scan")
    for path in (tmp_path / "scan").iterdir():
        header = pydicom.dcmread(path)
        header.SeriesDescription, header.ProtocolName = 'Doe^Jane ("born") 1970-01-01', "Doe Protocol"
        header.save_as(path)
    (case,) = find_cases(tmp_path).cases
    assert "Doe" not in case.label + case.folder
    (named,) = find_cases(tmp_path, keep_names=True).cases
    assert "Doe" in named.label
    assert case.id == named.id
    assert (case.name, case.folder) == (f"case-{case.id[:12]}",) * 2


def test_a_list_names_cases_as_a_folder_does(tmp_path):
    touch(tmp_path / "Doe^Jane" / "ct.nii")
    listed = tmp_path / "cases.csv"
    listed.write_text("input\nDoe^Jane/ct.nii\n", encoding="utf-8")
    (hidden,), (named,) = (find_cases(listed, keep_names=kept).cases for kept in (False, True))
    (expected,) = find_cases(tmp_path / "Doe^Jane", keep_names=True).cases
    assert "Doe" not in hidden.name + hidden.folder
    assert "Doe" in named.name
    assert named.name.endswith(expected.name)
