# SPDX-License-Identifier: Apache-2.0
"""Cases are found wherever they are, and each is identified uniquely, on every machine."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import string
import textwrap
import unicodedata
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from batch_toys import ROOT, write_dicom, write_good
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from LiverXAILib.batch import command
from LiverXAILib.batch.cases import content_hash, find_cases, image_files, safe_name, stamp
from LiverXAILib.batch.store import Shard
from LiverXAILib.benchmarks import batch as benchmark_batch
from LiverXAILib.errors import InputError, UsageError


def labels(found) -> list[str]:
    return [case.label for case in found.cases]


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_images_are_found_at_any_depth_and_other_files_are_not(tmp_path):
    touch(
        tmp_path, "a.nii", "b/c.nii.gz", "b/d e/f.NRRD", "g.mha", "h.txt", "i.pdf", ".hidden.nii", ".j/k.nii", "l.zip"
    )
    assert labels(find_cases(tmp_path)) == ["a.nii", "b/c.nii.gz", "b/d e/f.NRRD", "g.mha"]


def test_a_header_and_its_voxels_are_one_case_that_both_decide(tmp_path):
    for name in ("ct.mhd", "n.nhdr"):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(tmp_path / name))
    found = find_cases(tmp_path)
    assert labels(found) == ["ct.mhd", "n.nhdr"]
    assert found.cases[0].files == (tmp_path / "ct.mhd", tmp_path / "ct.raw")
    assert found.cases[1].files == (tmp_path / "n.nhdr", tmp_path / "n.raw")
    before = stamp(found.cases[0].files), content_hash(found.cases[0].files)
    (tmp_path / "ct.raw").write_bytes(b"changed in size")
    assert (stamp(found.cases[0].files), content_hash(found.cases[0].files)) != before


def test_a_phantom_and_other_cts_with_their_label_maps_are_one_case_each(tmp_path):
    """In every format, with voxels in a separate file, and whatever the name of the label map."""
    rng = np.random.default_rng(0)
    ct = sitk.GetImageFromArray(rng.integers(-1000, 500, (4, 4, 4)).astype(np.int16))
    truth = sitk.GetImageFromArray(rng.integers(0, 3, (4, 4, 4)).astype(np.uint8))
    sitk.WriteImage(ct, str(tmp_path / "phantom.nii.gz"))
    for name in ("phantom-truth.nrrd", "labels.nii.gz", "mask.mha", "parts.mhd", "signed.nrrd"):
        image = sitk.Cast(truth, sitk.sitkInt8) if name.startswith("signed") else truth
        sitk.WriteImage(image, str(tmp_path / name))
    found = find_cases(tmp_path)
    assert labels(found) == ["phantom.nii.gz"]
    assert {name for name, reason in found.passed_over if reason.startswith("a label map")} == {
        "phantom-truth.nrrd", "labels.nii.gz", "mask.mha", "parts.mhd", "signed.nrrd",
    }  # fmt: skip
    assert not [reason for _, reason in found.passed_over if "no header" in reason]


def test_results_links_in_circles_and_segmentations_are_not_searched(tmp_path):
    touch(tmp_path, "ct.nii", "cases/ct/heatmap.nrrd", "sub/ct.seg.nrrd", "sub/ct2.nii")
    touch(tmp_path, *(f"earlier/{name}" for name in ("provenance.json", "segmentation.seg.nrrd", "heatmap-liver.nrrd")))
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = find_cases(tmp_path, exclude=[tmp_path / "cases"])
    assert labels(found) == ["ct.nii", "sub/ct2.nii"]
    assert dict(found.passed_over) == {
        "sub/ct.seg.nrrd": "a segmentation",
        "earlier": "results of LiverXAI",
        "sub/loop": "the same folder as .",
    }


def test_what_cannot_be_opened_is_a_case_and_not_lost(tmp_path):
    (tmp_path / "broken.nii.gz").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.nrrd")
    assert labels(find_cases(tmp_path)) == ["broken.nii.gz", "pipe.nrrd"]


def test_nothing_within_earlier_results_is_searched_and_everything_beside_them(tmp_path):
    results = ("provenance.json", "segmentation.seg.nrrd", "layers/deep/heatmap.nrrd")
    touch(tmp_path, *(f"b/{name}" for name in results), "a/ct.nii", "b2/ct.nii", "c/ct.nii")
    said = []
    found = find_cases(tmp_path, progress=lambda text, fraction: said.append((text, fraction)))
    assert labels(found) == ["a/ct.nii", "b2/ct.nii", "c/ct.nii"]
    assert found.passed_over == (("b", "results of LiverXAI"),)
    assert {(f"Searching {name}", 0.0) for name in (tmp_path.name, "a", "b2", "c")} <= set(said)


def test_what_is_no_file_is_no_case_and_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "lost").symlink_to("nowhere")
    touch(tmp_path, "ct.nii")
    assert find_cases(tmp_path).passed_over == (
        *(("link", "not a regular file"), ("lost", "a link to nothing"), ("pipe", "not a regular file")),
    )


def test_names_are_told_only_if_they_are_kept(tmp_path):
    touch(tmp_path, "Jane Quimby.txt")
    kept, hidden = (find_cases(tmp_path, keep_names=keep) for keep in (True, False))
    assert kept.told == kept.passed_over == hidden.passed_over == (("Jane Quimby.txt", "not an image"),)
    ((name, reason),) = hidden.told
    assert (name[:5], len(name), reason) == ("file-", 17, "not an image")


def test_a_pattern_chooses_among_the_paths(tmp_path):
    touch(tmp_path, "1/ct.nii.gz", "1/label.nii.gz", "2/ct.nii.gz")
    assert labels(find_cases(tmp_path, pattern="*/ct.*")) == ["1/ct.nii.gz", "2/ct.nii.gz"]


def test_a_single_image_is_a_batch_of_one(tmp_path):
    for name in ("a.mhd", "b.mhd"):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(tmp_path / name))
    for kept in (True, False):
        # The same case, made of the same two files, as in a search of its folder.
        alone = find_cases(tmp_path / "b.mhd", keep_names=kept)
        assert alone.cases == find_cases(tmp_path, keep_names=kept).cases[1:]
        assert (labels(alone), alone.root) == (["b.mhd"], tmp_path)


def test_what_does_not_exist_is_told(tmp_path):
    with pytest.raises(InputError, match="no file or folder"):
        find_cases(tmp_path / "nothing")


# --- DICOM --------------------------------------------------------------------------------------------------------


def test_each_ct_scan_of_a_dicom_tree_is_a_case(tmp_path):
    study = generate_uid()
    first = write_dicom(tmp_path / "flat", study=study)
    second = write_dicom(tmp_path / "flat", study=study)
    third = write_dicom(tmp_path / "other" / "deep")
    found = find_cases(tmp_path)
    assert {case.series for case in found.cases} == {first, second, third}
    assert len({case.folder for case in found.cases}) == 3
    by_series = {case.series: case for case in found.cases}
    assert [len(by_series[uid].files) for uid in (first, second, third)] == [16, 16, 16]
    assert by_series[third].label == "other/deep [series 1]"
    assert by_series[third].path == tmp_path / "other" / "deep"


def test_what_is_no_scan_is_passed_over_if_its_study_has_one(tmp_path):
    study = generate_uid()
    scan = write_dicom(tmp_path / "ct", study=study)
    write_dicom(tmp_path / "mr", study=study, modality="MR")
    write_dicom(tmp_path / "check", study=study, slices=3)
    found = find_cases(tmp_path)
    assert [case.series for case in found.cases] == [scan]
    reasons = dict(found.passed_over)
    assert "MR" in reasons["mr [series 1]"]
    assert reasons["check [series 1]"] == "only 3 slices"


@pytest.mark.parametrize(("slices", "taken"), [(9, False), (10, True)])
def test_ten_slices_are_a_scan(tmp_path, slices, taken):
    study = generate_uid()
    write_dicom(tmp_path / "scan", study=study)
    write_dicom(tmp_path / "short", study=study, slices=slices)
    found = find_cases(tmp_path, keep_names=True)
    assert labels(found) == ["scan [series 1]", *["short [series 1]"] * taken]
    assert [re.sub("-[0-9a-f]{8}$", "", case.folder) for case in found.cases] == [
        *("scan_series_1", "short_series_1")[: 1 + taken]
    ]


def test_a_study_without_any_scan_is_not_lost(tmp_path):
    write_dicom(tmp_path / "mr", modality="MR")
    single = generate_uid()
    write_dicom(tmp_path / "ct1", slices=1, study=single)
    write_dicom(tmp_path / "ct2", slices=2, study=single)
    assert labels(find_cases(tmp_path)) == ["ct2 [series 1]", "mr [series 1]"]


def test_series_that_are_no_images_are_no_cases_even_alone(tmp_path):
    write_dicom(tmp_path / "report", modality="SR", slices=12)
    found = find_cases(tmp_path)
    assert (found.cases, found.passed_over) == ((), (("report [series 1]", "SR: not an image"),))


def test_series_without_a_study_belong_together_by_their_folder(tmp_path):
    for name in ("a", "b"):
        write_dicom(tmp_path / name, slices=2)
        for path in (tmp_path / name).iterdir():
            header = pydicom.dcmread(path)
            del header.StudyInstanceUID
            header.save_as(path)
    assert labels(find_cases(tmp_path)) == ["a [series 1]", "b [series 1]"]


# --- lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_names_images_and_their_own_options(tmp_path, delimiter):
    table = [
        [
            "input",
            "case",
            "allow-irregular",
            "min_lesion_ml",
            "explain",
            "series",
            "height",
            "weight",
            "RECIST targets",
        ],
        ["images/a.nii", "first", "yes", "0.5", "liver lesion:1", "", "172.5", "80", "2 1"],
        ["/elsewhere/b.nii", "", "", "", "", "2", "", "", ""],
    ]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(delimiter.join(row) for row in table), encoding="utf-8-sig")
    first, second = find_cases(path).cases
    assert (first.label, first.folder, first.path) == ("first", "first", tmp_path / "images" / "a.nii")
    assert first.options == {
        **{"allow_irregular": True, "min_lesion_ml": 0.5, "explain": ["liver", "lesion:1"]},
        **{"height": 172.5, "weight": 80.0, "recist_targets": [2, 1]},
    }
    assert (second.label, second.options) == ("/elsewhere/b.nii", {"series": "2"})


@pytest.mark.parametrize(
    ("word", "value"),
    [("1", True), ("YES", True), ("True", True), ("x", True), ("0", False), ("No", False), ("FALSE", False)],
)
def test_yes_and_no_have_several_spellings(tmp_path, word, value):
    (tmp_path / "list.csv").write_text(f"input,check\na.nii,{word}\n")
    (case,) = find_cases(tmp_path / "list.csv").cases
    assert case.options == {"check": value}


def test_a_json_list_holds_paths_or_objects(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(["a.nii", {"input": "b.nii", "check": True, "case": "zwölf"}]), encoding="utf-8")
    first, second = find_cases(path).cases
    assert (first.label, first.options) == ("a.nii", {})
    assert (second.label, second.options) == ("zwölf", {"check": True})
    assert second.folder.startswith("zwolf-")


def test_each_row_of_a_list_may_name_a_series_of_the_same_folder(tmp_path):
    touch(tmp_path, "scanner/2.dcm", "scanner/deep/1.dcm")
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"input": "scanner", "series": number} for number in (3, 4)]), encoding="utf-8")
    first, second = find_cases(path).cases
    assert (first.series, second.series) == ("3", "4")
    assert first.id != second.id
    assert first.files == second.files == (tmp_path / "scanner" / "2.dcm", tmp_path / "scanner" / "deep" / "1.dcm")


@pytest.mark.parametrize("listed", [False, True], ids=["alone", "in a list"])
@pytest.mark.parametrize("name", ["0", "DICOMDIR"])
def test_a_dicom_file_depends_on_all_of_its_series(tmp_path, name, listed):
    write_dicom(tmp_path / "ct", slices=3)
    slices = [path.rename(tmp_path / "ct" / str(k)) for k, path in enumerate(sorted((tmp_path / "ct").iterdir()))]
    index = tmp_path / "ct" / "DICOMDIR"
    index.write_bytes(bytes(128) + b"DICM")
    (tmp_path / "ct" / "notes.txt").write_text("not a slice")
    path = tmp_path / "ct" / name
    if listed:
        (tmp_path / "list.json").write_text(json.dumps([str(path)]))
        path = tmp_path / "list.json"
    (case,) = find_cases(path).cases
    assert case.files == (*slices, index)
    before = content_hash(case.files)
    slices[2].write_bytes(slices[2].read_bytes()[:-2] + b"\1\1")
    assert content_hash(case.files) != before


def test_results_in_the_folder_of_a_dicom_series_are_no_change_of_its_image(tmp_path, monkeypatch):
    write_dicom(tmp_path / "ct", slices=3)
    slices = tuple(sorted((tmp_path / "ct").iterdir()))
    (tmp_path / "list.json").write_text('["ct/../ct"]')
    touch(tmp_path / "ct" / "out", "cases.csv", "cohort.html", "cases/a/case.json", "cases/a/segmentation.dcm")
    monkeypatch.chdir(tmp_path)
    # A folder that the list names is never left out itself.
    for excluded in ([tmp_path / "ct" / "out" / "cases"], [Path("ct"), Path("ct/out/cases")]):
        (case,) = find_cases(tmp_path / "list.json", exclude=excluded).cases
        assert [path.resolve() for path in case.files] == [path.resolve() for path in slices]


@pytest.mark.parametrize("name", ["ct.hdr", "ct.img"])
def test_a_header_and_its_voxels_are_one_image_by_either_name(tmp_path, name):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(tmp_path / "ct.img"))
    # Voxels may look like the start of a DICOM file.
    (tmp_path / "ct.img").write_bytes(bytes([8, 0, 8, 0, *bytes(44)]))
    (case,) = find_cases(tmp_path / name).cases
    assert case.files == (tmp_path / "ct.hdr", tmp_path / "ct.img")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("l.csv", "input,sereis\na.nii,1\n", "line 2.*sereis.*series"),
        ("l.csv", "case\nx\n", "'input' is missing"),
        ("l.csv", "input,check\na.nii,maybe\n", "column 'check'.*yes or no"),
        ("l.csv", "input,min_lesion_ml\na.nii,small\n", "column 'min_lesion_ml'.*number"),
        ("l.csv", "input,height\na.nii,tall\n", "number"),
        ("l.csv", "input,recist-targets\na.nii,the first\n", "column 'recist_targets'.*whole numbers"),
        ("l.csv", "input\na.nii\na.nii\n", "same case"),
        ("l.csv", "input,case\na.nii,X\nb.nii,x\n", "same case"),
        ("l.csv", "input\na.nii,b.nii\n", "more cells"),
        ("l.json", '{"a": 1}', "must be a list"),
        ("l.json", "[1]", "must be a list"),
        ("l.json", '["a.nii", {"case": "x"}]', "entry 2: 'input' is missing"),
        ("l.json", "[" * 100_000, "not JSON"),
        ("l.json", "nonsense", "not JSON"),
        ("l.json", '[{"input": "a.nii", "case": 7, "sereis": 1}]', "entry 1: .*sereis.*Also allowed: input, case"),
    ],
)
def test_a_wrong_list_is_refused_with_the_place_and_the_reason(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=complaint):
        find_cases(tmp_path / name)


#: Wrong values of a column, as a cell of a table and in JSON, with the complaint about each.
WRONG = [
    ("min_lesion_ml", "-1", -1, "--min-lesion-ml must not be negative"),
    ("min_lesion_ml", "nan", float("nan"), "'nan' is not a number|must not be negative"),
    ("min_lesion_ml", "inf", float("inf"), "'inf' is not a number|must not be negative"),
    ("min_lesion_ml", "1,500", "0.5", "'1,500' is not a number|must be a number: '0.5'"),
    ("min_lesion_ml", "yes", True, "'yes' is not a number|must be a number: True"),
    ("height", "1.72", 1.72, "needs both height and weight"),
    ("recist_targets", "0", [0], "lesions are numbered from 1"),
    ("recist_targets", "1 2 3", [1, 2, 3], "at most 2 target lesions"),
    ("recist_targets", "1.5", [1.5], "whole numbers"),
    ("recist_targets", "-1", 1, "whole numbers"),
    ("explain", "liver x:", ["liver", "x:"], "not something that can be explained"),
    ("explain", "livr:", "liver", "not something that can be explained|must be a list of texts: 'liver'"),
    ("write", "sege", ["sege"], "There is no output 'sege'"),
    ("method", "magic", "magic", "There is no explanation method 'magic'"),
    ("sensitivity", "high", "high", "'high' is not a sensitivity"),
    ("sensitivity", "-1", 0.5, "'-1' is not a sensitivity|must be text: 0.5"),
    ("force", "never", "no", "'never' must be yes or no|must be true or false: 'no'"),
    ("report", "2", 1, "'2' must be yes or no|must be true or false: 1"),
    ("layer", None, 3, "must be text: 3"),
]


@pytest.mark.parametrize(("column", "cell", "value", "complaint"), WRONG)
def test_a_wrong_value_in_a_list_is_refused_when_the_list_is_read(tmp_path, column, cell, value, complaint):
    (tmp_path / "l.csv").write_text(f"input;{column}\na.nii;\nb.nii;{cell}\n")
    (tmp_path / "l.json").write_text(json.dumps(["a.nii", {"input": "b.nii", column: value}]))
    for name, place in (("l.csv", "line 3"), ("l.json", "entry 2")):
        if name == "l.json" or cell is not None:
            with pytest.raises(UsageError, match=f"{name}, {place}.*({complaint})") as refused:
                find_cases(tmp_path / name)
            assert "Also allowed" not in str(refused.value)


def test_numbers_in_json_may_name_cases_and_series(tmp_path):
    (tmp_path / "l.json").write_text('[{"input": "a.nii", "case": 0, "series": 2, "min_lesion_ml": 1}]')
    (case,) = find_cases(tmp_path / "l.json").cases
    assert (case.name, case.series, case.options) == ("0", "2", {"series": "2", "min_lesion_ml": 1})


def test_the_examples_of_the_documentation_are_right(tmp_path):
    text = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
    for kind, fence in (("csv", "text"), ("json", "json")):
        (example,) = re.findall(rf"  ```{fence}\n(.*?)```", text, re.DOTALL)
        path = tmp_path / f"list.{kind}"
        path.write_text(textwrap.dedent(example), encoding="utf-8")
        assert labels(find_cases(path)) == (["anna", "bert"] if kind == "csv" else ["anna/ct.nii.gz", "scanner/0815"])
    foreign = {"--no-splash", "--no-main-window", "--python-script", "--help", "--usage", "--array", "--cpus-per-task"}
    foreign |= {"--gres", "--mem", "--time", "--requeue"}
    use, measured = text.split("\n## Measured\n")
    for part, module, others in ((use, command, foreign), (measured, benchmark_batch, set())):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        known = {option for action in parser._actions for option in action.option_strings}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", part)) - others <= known


# --- identity -----------------------------------------------------------------------------------------------------


def test_a_case_is_the_same_wherever_the_folder_is_mounted_and_however_its_name_is_encoded(tmp_path):
    composed, decomposed = unicodedata.normalize("NFC", "Müller.nii"), unicodedata.normalize("NFD", "Müller.nii")
    touch(tmp_path / "one", composed, "x.nii")
    touch(tmp_path / "two", decomposed, "x.nii")
    one, two = find_cases(tmp_path / "one"), find_cases(tmp_path / "two")
    assert {(case.id, case.folder) for case in one.cases} == {(case.id, case.folder) for case in two.cases}


def test_the_identity_of_a_case_never_changes(tmp_path):
    """Otherwise no earlier result would be found again."""
    touch(tmp_path, "a/ct.nii")
    (case,) = find_cases(tmp_path).cases
    assert case.id == hashlib.sha256(b"a/ct.nii\0\0").hexdigest()[:16]


def test_names_that_look_alike_get_folders_of_their_own(tmp_path):
    touch(tmp_path, "a b.nii", "a_b.nii", "a/b.nii", "a b.nii.gz", "ä b.nii", "A B.nii")
    folders = [case.folder.casefold() for case in find_cases(tmp_path).cases]
    assert len(set(folders)) == 6


@given(st.text(max_size=200))
def test_any_name_becomes_a_safe_one(text):
    name = safe_name(text)
    assert 0 < len(name) <= 66
    assert set(name) <= {*string.ascii_letters, *string.digits, *"._-"}
    assert name[0] not in ".-"
    assert not name.endswith(".")


def test_of_a_long_name_the_end_stays_and_a_name_that_is_safe_is_the_folder(tmp_path):
    assert safe_name("a" * 30 + "b" * 60) == "b" * 60
    assert safe_name("Straße é-1.5_x (2)") == "Strasse_e-1.5_x_2"
    (tmp_path / "list.csv").write_text("input,case\na.nii,safe-1\nb.nii,not safe\n")
    safe, other = find_cases(tmp_path / "list.csv").cases
    assert safe.folder == "safe-1"
    assert other.folder == f"not_safe-{other.id[:8]}"


@pytest.mark.parametrize("name", ["con", "NUL", "com1.txt", "", "...", "漢字"])
def test_names_that_no_system_allows_are_changed(name):
    assert safe_name(name).startswith("case_")


def test_shards_divide_the_cases_without_gap_or_overlap(tmp_path):
    touch(tmp_path, *(f"{n}.nii" for n in range(200)))
    cases = find_cases(tmp_path).cases
    parts = [[case.id for case in cases if Shard(i, 7).holds(case.id)] for i in range(1, 8)]
    assert sorted(x for part in parts for x in part) == sorted(case.id for case in cases)
    assert all(10 <= len(part) <= 50 for part in parts)


def test_the_content_decides_and_not_the_time(tmp_path):
    path = write_good(tmp_path / "a.nrrd", 1)
    copy = tmp_path / "copy" / "a.nrrd"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert content_hash(image_files(path)) == content_hash(image_files(copy))
    os.utime(path, ns=(1, 1))
    assert stamp(image_files(path)) != stamp(image_files(copy))


def test_the_hash_of_an_image_does_not_depend_on_the_order_of_its_files(tmp_path):
    paths = [tmp_path / name for name in ("b", "a", "c")]
    for path in paths:
        path.write_text(path.name)
    assert len({content_hash(order) for order in itertools.permutations(paths)}) == 1
    paths[0].write_text("other")
    assert content_hash(paths) != content_hash(paths[1:])
    assert stamp(paths) == stamp(paths[::-1])
    odd = tmp_path / os.fsdecode(b"caf\xe9")  # its name is not Unicode
    odd.write_text("other")
    assert content_hash([odd]) != content_hash(paths[:1])
