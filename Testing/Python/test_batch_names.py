# SPDX-License-Identifier: Apache-2.0
"""No table, log or manifest of a batch has patients' names from paths or headers unless this is requested."""

from __future__ import annotations

import csv
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from batch_toys import (
    ROOT,
    environment,
    final_states,
    manifest_lines,
    phantom,
    rows,
    run_batch,
    write_dicom,
    write_good,
    write_model,
)
from forking import Process

from LiverXAILib.batch.cases import find_cases
from LiverXAILib.batch.command import _explain_names
from LiverXAILib.batch.names import NAMES, passed_over_without_names, without_descriptions, without_names, write_names
from LiverXAILib.batch.store import Store
from LiverXAILib.volumes.io import write_volume

#: Parts of all patients' names below to search for; none can be part of a checksum or a time.
NAMED = ("quimby", "jane", "müller", "mueller", "1950-01", "k4711")
FAST = ("--explain", "--no-report", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    return SimpleNamespace(folder=folder, model=write_model(folder / "model"), env=environment(folder / "env"))


def write_archive(folder: Path) -> Path:
    """Images whose paths name patients: good, damaged, of another modality; and files that are not images."""
    write_dicom(folder / "QUIMBY^JANE 1950-01-01" / "CT")
    for path in (folder / "QUIMBY^JANE 1950-01-01" / "CT").iterdir():
        header = pydicom.dcmread(path)
        header.PatientName, header.PatientID, header.SeriesDescription = "QUIMBY^JANE", "K4711", "Quimby 1950-01"
        header.save_as(path)
        path.rename(path.with_name(f"Quimby_{path.name}"))
    write_dicom(folder / "Jane Quimby MR", modality="MR")
    write_good(folder / "quimby_jane.nii.gz")
    whole = (folder / "quimby_jane.nii.gz").read_bytes()
    (folder / "Frau Müller.nii.gz").write_bytes(whole[: len(whole) // 2])
    volume = phantom()
    broken = volume.array.astype(np.float32)
    broken[3, 4, 5] = np.nan
    write_volume(volume.with_array(broken), folder / "Quimby NaN.nrrd")
    (folder / "Mueller" / "K4711 crash").mkdir(parents=True)
    write_good(folder / "Mueller" / "K4711 crash" / "crash.nrrd")
    (folder / "letter of Quimby.txt").write_text("x")
    (folder / "Quimby.dcm").write_bytes(b"hello")
    if os.name != "nt":
        (folder / "Jane again").symlink_to(folder / "Mueller")
    return folder


def run(*arguments, env):
    command = [sys.executable, "-m", "LiverXAILib", "batch", *map(str, arguments)]
    with Process(command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, *said)


def naming(output: Path) -> list[str]:
    """Files below `output` that name a patient, except for the table that may, and the contents of results."""
    found = []
    for path in sorted(output.rglob("*")):
        inside = path.relative_to(output).as_posix()
        text = "" if path.is_dir() or path.name == NAMES else path.read_text(encoding="utf-8", errors="replace")
        kept = inside if inside.startswith("cases/") and path.name != "case.json" else f"{inside} {text}"
        found += [f"{word} in {inside}" for word in NAMED if word in kept.lower().replace(str(output).lower(), "")]
    return found


def test_tables_logs_and_manifest_name_no_patient_and_a_private_table_says_who_is_who(place, tmp_path):
    source, output = write_archive(tmp_path / "in"), tmp_path / "out"
    first = run(source, "-o", output, "--model", place.model, *FAST, env=place.env)
    assert first.returncode == 1, first.stdout + first.stderr
    assert naming(output) == []
    assert not [word for word in NAMED if word in (first.stdout + first.stderr).lower()]
    states = [row["state"] for row in rows(output / "cases.csv")]
    assert sorted(states) == ["done", "done", *["failed"] * 4]
    assert {row["case"] for row in rows(output / "cases.csv")} == {
        f"case-{case.id[:12]}" for case in find_cases(source).cases
    }
    with (output / NAMES).open(encoding="utf-8-sig", newline="") as file:
        names = {row["case"]: row for row in csv.DictReader(file)}
    assert {row["name"] for row in names.values()} >= {
        "quimby_jane.nii.gz",
        "QUIMBY^JANE 1950-01-01/CT [series 1]",
        "Quimby.dcm",
    }
    assert Path(next(row["path"] for row in names.values() if row["name"] == "quimby_jane.nii.gz")).is_file()
    passed = [
        name for name, _ in next(line for line in manifest_lines(output) if line["event"] == "run")["passed_over"]
    ]
    assert set(passed) <= set(names)
    if os.name != "nt":
        assert stat.S_IMODE((output / NAMES).stat().st_mode) == 0o600


def test_a_batch_goes_on_under_the_other_names_without_doing_a_case_again(place, tmp_path):
    write_good(tmp_path / "in" / "jane.nii.gz")
    arguments = (tmp_path / "in", "-o", tmp_path / "out", "--model", place.model, *FAST)
    first = run(*arguments, env=place.env)
    assert first.returncode == 0
    assert naming(tmp_path / "out") == []
    again = run(*arguments, env=place.env)
    assert "1 was done before" in again.stdout
    named = run_batch(*arguments, env=place.env)
    assert "1 was done before" in named.stdout, named.stdout
    (row,) = rows(tmp_path / "out" / "cases.csv")
    assert (row["case"], row["image"]) == ("jane.nii.gz", str(tmp_path / "in" / "jane.nii.gz"))
    assert [path.name for path in (tmp_path / "out" / "cases").iterdir()] == [row["folder"]]
    assert "jane" in row["folder"]
    assert "contain the names of files" not in first.stdout + again.stdout
    last = run(*arguments, env=place.env)
    assert "1 was done before" in last.stdout
    assert "An earlier run into this folder used --keep-names" in last.stdout
    (row,) = rows(tmp_path / "out" / "cases.csv")
    assert "jane" not in str(row)
    assert [line["state"] for line in final_states(tmp_path / "out").values()] == ["done"] * 2


def test_names_that_a_list_gives_stay(tmp_path):
    write_good(tmp_path / "quimby.nii.gz")
    (tmp_path / "list.csv").write_text("case,input\np01,quimby.nii.gz\n,quimby.nii.gz\n")
    one, other = find_cases(tmp_path / "list.csv").cases
    assert (one.name, one.folder) == ("p01", "p01")
    assert other.name == other.folder == f"case-{other.id[:12]}"


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("Cannot read /d/Quimby Jane/CT/IM 1.dcm: denied.", "Cannot read X: denied."),
        ("Cannot read /d/Quimby Jane/CT/other: denied.", "Cannot read X/other: denied."),
        ("Quimby Jane: not a CT, and 12 slices.", "X: not a CT, and 12 slices."),
        ("IM 1.dcm (series 3) is cut; see 'IM 1'.", "X (series 3) is cut; see 'X'."),
        ("quimbyJanes are no Quimby", "quimbyJanes are no Quimby"),
        ('DICOM series 3 ("Jane ("x")"), B30f: few; series without a number ("Quimby").', None),
    ],
)
def test_a_sentence_tells_no_name(sentence, told):
    label, paths = "Quimby Jane/CT [series 1]", ["/d/Quimby Jane/CT", "/d/Quimby Jane/CT/IM 1.dcm"]
    assert without_names(sentence, "X", label, paths) == (told or "DICOM series 3, B30f: few; series without a number.")
    assert without_descriptions(sentence) == (sentence if told else without_names(sentence, "X", "", ()))


@pytest.mark.parametrize(
    ("label", "told"),
    [
        *(("Li", "Li in Li"), ("Lin", "X in X"), ("1234", "1234 in 1234"), ("12345", "X in X")),
        *(("CT/Li", "Li in X"), ("CT/Lin", "X in X")),
    ],
)
def test_names_of_three_letters_and_numbers_of_five_digits_are_hidden(label, told):
    assert without_names(f"{label.split('/')[-1]} in {label}", "X", label, []) == told


def test_what_was_passed_over_is_told_without_names():
    name, reason = passed_over_without_names("Quimby/a.txt", "Quimby/a.txt is the same as a.txt")
    assert name.startswith("file-")
    assert reason == f"{name} is the same as {name}"
    assert passed_over_without_names(os.fsdecode(b"caf\xe9.txt"), "empty")[1] == "empty"
    assert passed_over_without_names("x", "the same folder as Quimby")[1] == "the same folder as another one"


def test_the_table_of_names_grows_and_survives_damage(tmp_path):
    write_names(tmp_path, [{"case": "case-1", "name": "=a", "path": "/a"}])
    write_names(tmp_path, [{"case": "case-2", "name": "b", "path": "/b"}])
    assert [row["name"] for row in rows(tmp_path / NAMES)] == ["'=a", "b"]
    assert (tmp_path / NAMES).read_bytes().startswith(b"\xef\xbb\xbf")  # for spreadsheets
    assert [path.name for path in tmp_path.iterdir()] == [NAMES]
    for number, content in enumerate((b"\xff\x00no table", b"name;path\nb;/b\n"), 1):
        (tmp_path / NAMES).write_bytes(content)
        said = write_names(tmp_path, [{"case": "c", "name": "c", "path": "/c"}])
        assert f"kept as names-damaged-{number}.csv" in said
        assert (tmp_path / f"names-damaged-{number}.csv").read_bytes() == content
        assert [row["case"] for row in rows(tmp_path / NAMES)] == ["c"]


def test_a_damaged_table_of_names_is_reported_with_the_summary(tmp_path):
    store = Store(tmp_path)
    (tmp_path / NAMES).write_text("no table")
    found = SimpleNamespace(cases=[SimpleNamespace(name="case-1", label="a", path="/a")], told=[], passed_over=[])
    _explain_names(store, found)
    (sentence,) = store.damage
    assert sentence.startswith("Damaged: names.csv cannot be read; kept as names-damaged-1.csv.")
