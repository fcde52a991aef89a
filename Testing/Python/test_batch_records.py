# SPDX-License-Identifier: Apache-2.0
"""Cases with damaged records are open again; the records are reported and set aside, and the batch continues."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

import pytest
from batch_toys import RESULT_MEASUREMENTS as MEASURED
from batch_toys import RESULT_RECORD as RECORD
from batch_toys import write_result_files

from LiverXAILib.batch import summary
from LiverXAILib.batch.cases import Case, Found
from LiverXAILib.batch.manifest import last_states, read_manifest
from LiverXAILib.batch.records import is_plain_name
from LiverXAILib.batch.run import Settings, resume_decision
from LiverXAILib.batch.store import BusyError, Store
from LiverXAILib.batch.summary import write_summary
from LiverXAILib.subprocesses import host_name

LINE = {"event": "case", "time": 1.0, "run": "r", "case": "ab", "label": "x", "folder": "x", "state": "done"}


@dataclass
class Output:
    """An output folder with a case "ab" in the folder "x"."""

    store: Store
    found: Found

    def state(self) -> str:
        """The state of the case in the summary."""
        write_summary(self.store, self.found)
        (row,) = [case.row for case in summary.collect(self.store, self.found) if case.row["folder"] == "x"]
        return str(row["state"])

    def damage(self, name: str, text: str | bytes | None) -> None:
        path = self.store.cases / "x" / name
        if text is None:
            path.unlink()
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "_figure", lambda rows: "")
    store = Store(tmp_path)
    (store.cases / "x").mkdir(parents=True)
    store.manifest.mkdir()
    (store.manifest / "a.jsonl").write_text(json.dumps(LINE) + "\n")
    made = Output(store, Found(tmp_path, (Case("ab", "x", "x", "x", tmp_path / "missing"),)))
    made.damage("case.json", json.dumps(RECORD))
    write_result_files(store.cases / "x")
    return made


def without(mapping: dict, *path: str) -> str:
    """`mapping` as JSON without the value at `path`."""
    copy = json.loads(json.dumps(mapping))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(copy)


def test_a_whole_record_is_a_finished_case(output):
    assert output.state() == "done"
    assert output.store.damage == []


def test_a_finished_case_is_summed_up_in_its_row(output):
    checks = [
        {"target": target, "faithfulness": {"passed": passed, "sentence": "", "curves": {"gain": gain}}}
        for target, passed, gain in (("liver", True, 0.5), ("tumor", False, 0.2), ("lesion:1", True, 0.4))
    ]
    output.damage("provenance.json", json.dumps({"explanations": [*checks, {"target": "unchecked"}]}))
    lesions = [{"axial": {"long_mm": size}} for size in (12.0, 31.5, 7.0)]
    output.damage(
        "measurements.json", json.dumps({**MEASURED, "lesions": lesions, "lesion_count": 3, "plausible": False})
    )
    times = {"reading": 1.25, "analyzing": 20.5, "writing": 0.125}
    output.damage("case.json", json.dumps({**RECORD, "times": times, "warnings": ["One.", "Two."]}))
    (case,) = summary.collect(output.store, output.found)
    expected = {
        **{"case": "x", "state": "done", "folder": "x", "reason": None, "error": None, "plausible": False},
        **{"liver_volume_ml": 1500.0, "liver_complete": True, "lesion_count": 3, "longest_lesion_mm": 31.5},
        **{"lowest_faithfulness": 0.2, "faithfulness_passed": False, "doubtful_lesions": None},
        **{
            "warnings": "One. Two.",
            "seconds": 21.88,
            "model": "a 1",
            "software": "1",
            "image": "p",
            "image_sha256": "s",
        },
    }
    assert {name: case.row[name] for name in expected} == expected
    assert list(case.row) == list(summary.CASE_COLUMNS)
    assert case.explanations == checks


def test_cases_of_earlier_runs_and_cases_not_begun_have_rows_of_their_own(output):
    others = [
        {
            **LINE,
            "case": "f",
            "label": "failed",
            "folder": "f",
            "state": "failed",
            "kind": "memory",
            "error": "E.",
            "seconds": 3,
        },
        {**LINE, "case": "u", "label": "unheard", "folder": "u", "state": "failed", "kind": "of", "error": "E."},
        {**LINE, "case": "r", "label": "running", "folder": "r", "state": "running"},
        {**LINE, "case": "d", "label": "dropped", "folder": "d", "state": "dropped"},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in others)
    (output.store.manifest / "b.jsonl").write_text(text)
    cases = (Case("new", "New", "New", "n", output.store.output), Case("ab", "x", "renamed", "x", output.store.output))
    rows = {
        case.row["case"]: tuple(case.row[name] for name in ("state", "reason", "error", "seconds", "folder"))
        for case in summary.collect(output.store, Found(output.store.output, cases))
    }
    assert list(rows) == ["New", "dropped", "failed", "renamed", "running", "unheard"]
    assert rows["failed"] == ("failed", "memory", "E.", 3, "f")
    assert rows["unheard"] == ("failed", "error", "E.", None, "u")
    assert rows["renamed"][0] == "done"
    assert [rows[name] for name in ("New", "running", "dropped")] == [
        ("open", None, None, None, name) for name in "nrd"
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("case.json", b""),
        ("case.json", b"[]"),
        ("case.json", b"null"),
        ("case.json", b"\xff\xfe{"),
        ("case.json", b"[" * 100_000),
        *(("case.json", without(RECORD, key)) for key in RECORD),
        ("case.json", json.dumps({**RECORD, "times": {"reading": "1", "analyzing": 1, "writing": 1}})),
        ("case.json", json.dumps({**RECORD, "times": {"reading": float("nan"), "analyzing": 1, "writing": 1}})),
        ("case.json", json.dumps({**RECORD, "warnings": "text"})),
        ("case.json", json.dumps({**RECORD, "warnings": [5]})),
        ("case.json", json.dumps({**RECORD, "input": None})),
        ("measurements.json", b'{"les'),
        ("measurements.json", None),
        ("measurements.json", b"{}"),
        ("measurements.json", json.dumps({**MEASURED, "liver_volume_ml": "large"})),
        ("measurements.json", json.dumps({**MEASURED, "liver_volume_ml": None})),
        ("measurements.json", json.dumps({**MEASURED, "liver_volume_ml": True})),
        ("measurements.json", json.dumps({**MEASURED, "lesions": [{"axial": {}}]})),
        ("measurements.json", json.dumps({**MEASURED, "lesions": {"axial": 1}})),
        ("measurements.csv", None),
        ("measurements.csv", b""),
        ("measurements.csv", b"x\n1\n"),
        ("measurements.csv", b"structure,volume_ml\nlesion,1,2\n"),
        ("measurements.csv", b"structure,volume_ml\nlesion\n"),
        ("measurements.csv", b"structure\n\xff\xff\n"),
        ("measurements.csv", b'structure\n\x00\n"open'),
        ("provenance.json", None),
        ("provenance.json", b"[]"),
        ("provenance.json", b'{"explanations": 5}'),
        ("provenance.json", json.dumps({"explanations": [{"faithfulness": {"passed": True}}]})),
        ("provenance.json", b'{"answers": 5}'),
        ("provenance.json", b'{"answers": [{"kind": "counterfactual", "target": "lesion:1"}]}'),
    ],
)
def test_a_damaged_record_opens_its_case_again_and_is_kept_aside(output, name, text):
    output.damage(name, text)
    assert output.state() == "open"
    (sentence,) = output.store.damage
    assert sentence.startswith("Damaged: x/")
    output.store.open()
    try:
        decision = resume_decision(output.found.cases[0], output.store, {}, Settings(), LINE, refresh=True)
    finally:
        output.store.close()
    assert (decision.finished, decision.reason) == (False, "new")
    if name != "case.json" or text is not None:
        (kept,) = (output.store.manifest / "damaged").iterdir()
        assert (kept / name).exists() == (text is not None)
    assert output.state() == "open"


@pytest.mark.parametrize(
    "line",
    [
        without(LINE, "case"),
        without(LINE, "label"),
        without(LINE, "state"),
        without(LINE, "folder"),
        without(LINE, "run"),
        json.dumps({**LINE, "time": "x"}),
        json.dumps({**LINE, "time": None}),
        json.dumps({**LINE, "time": float("inf")}),
        json.dumps({**LINE, "case": []}),
        json.dumps({**LINE, "folder": "../../elsewhere"}),
        json.dumps({**LINE, "folder": ""}),
        json.dumps({**LINE, "state": "failed"}),
        json.dumps({**LINE, "state": "failed", "kind": "input", "error": 5}),
        "[]",
        "5",
        "\x00",
        "{",
        "[" * 100_000,
    ],
)
def test_a_damaged_line_of_the_manifest_is_reported_and_the_others_count(output, line):
    good = {**LINE, "case": "cd", "folder": "y", "label": "y", "state": "failed", "kind": "unheard of", "error": "e"}
    (output.store.manifest / "b.jsonl").write_text(f"{line}\n{json.dumps(good)}\n")
    damage: list[str] = []
    states = last_states(read_manifest(output.store.manifest, damage))
    assert set(states) == {"ab", "cd"}
    assert damage == ["Damaged: 1 line of manifest/b.jsonl cannot be read and will be ignored."]
    assert output.state() == "done"


def test_a_line_cut_short_by_a_kill_is_no_damage(output):
    (output.store.manifest / "b.jsonl").write_text(json.dumps(LINE) + "\n" + json.dumps(LINE)[:40])
    damage: list[str] = []
    read_manifest(output.store.manifest, damage)
    assert damage == []


@pytest.mark.parametrize("name", ["lock-1-of-1.json", "lock-2-of-3.json", "lock-x.json", "lock--of-.json"])
@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "",
        "{",
        json.dumps({"host": host_name(), "pid": None}),
        json.dumps({"host": host_name(), "pid": 10**30}),
        json.dumps({"host": host_name(), "pid": "7"}),
        json.dumps({"host": 5, "pid": 1}),
    ],
)
def test_a_lock_without_meaning_ages_and_goes(tmp_path, monkeypatch, name, text):
    store = Store(tmp_path)
    store.manifest.mkdir(parents=True)
    lock = store.manifest / name
    lock.write_text(text)
    hour_ago = time.time() - 3600
    os.utime(lock, (hour_ago, hour_ago))
    store.open()
    store.close()
    assert not lock.exists()


def test_a_lock_from_the_future_is_watched_and_goes_unless_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr("LiverXAILib.batch.store._STALE_SECONDS", 1.0)
    store = Store(tmp_path)
    store.manifest.mkdir(parents=True)
    lock = store.manifest / "lock-1-of-1.json"
    lock.write_text(json.dumps({"token": "t", "host": "another machine", "pid": 7, "shard": "1/1"}))
    tomorrow = time.time() + 86400
    os.utime(lock, (tomorrow, tomorrow))
    notes: list[str] = []
    store.open(notes.append)
    store.close()
    assert "process 7 on another machine" in notes[0]
    assert not lock.exists()


def test_a_second_batch_is_told_who_holds_the_folder(tmp_path):
    first = Store(tmp_path)
    first.open()
    lock = first.manifest / "lock-1-of-1.json"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "pid": os.getppid()}))
    with pytest.raises(BusyError, match=f"process {os.getppid()} on"):
        Store(tmp_path).open()


def test_names_that_lead_elsewhere_are_not_names():
    assert all(is_plain_name(name) for name in ("x", "a b", "..x", "Müller-1234"))
    assert not any(is_plain_name(name) for name in ("", "a/b", "/", "x\0y"))
