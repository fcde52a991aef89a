# SPDX-License-Identifier: Apache-2.0
"""Sixty cases, ten of them bad; a batch that is killed and resumed loses nothing and does nothing twice."""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from batch_toys import (
    BAD,
    COHORT_ARGUMENTS,
    assert_whole,
    environment,
    final_states,
    make_tree,
    manifest_lines,
    phantom,
    rows,
    run_batch,
    start_batch,
    times_done,
    wait_for,
    write_model,
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    good = make_tree(folder / "images", 50)
    return SimpleNamespace(
        images=folder / "images",
        model=write_model(folder / "model"),
        env=environment(folder / "env"),
        output=folder / "results",
        good=good,
    )


@pytest.fixture(scope="module")
def finished(cohort):
    """The batch, killed at a random moment and run again."""
    arguments = (cohort.images, "-o", cohort.output, "--model", cohort.model, *COHORT_ARGUMENTS)
    process = start_batch(*arguments, env=cohort.env)
    moment = random.randint(3, 40)
    wait_for(lambda: sum(times_done(cohort.output).values()) >= moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = [line["pid"] for line in manifest_lines(cohort.output) if line["event"] == "worker"]
    assert workers
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10)
    cohort.whole_after_kill = {path.name: path.stat().st_mtime_ns for path in (cohort.output / "cases").glob("[!.]*")}
    for name in cohort.whole_after_kill:
        assert_whole(cohort.output / "cases" / name)
    cohort.result = run_batch(*arguments, env=cohort.env)
    return cohort


def test_fifty_are_done_once_and_ten_are_recorded_with_the_reason(finished):
    states = final_states(finished.output)
    assert finished.result.returncode == 1, finished.result.stdout
    assert set(states) == {*finished.good, *BAD}
    assert Counter(state["state"] for state in states.values()) == {"done": 50, "failed": 10}
    for label, (kind, word) in BAD.items():
        assert (states[label]["kind"], word in states[label]["error"]) == (kind, True), states[label]
    assert times_done(finished.output) == Counter(finished.good), "a case was done twice, or lost"


def test_every_case_has_a_whole_folder_of_its_own(finished):
    folders = {state["folder"] for state in final_states(finished.output).values() if state["state"] == "done"}
    assert {path.name for path in (finished.output / "cases").iterdir()} == folders, "something half done is left"
    assert all(folder.isascii() and " " not in folder for folder in folders)
    for folder in folders:
        assert_whole(finished.output / "cases" / folder)


def test_what_was_whole_when_the_process_was_killed_was_not_done_again(finished):
    assert finished.whole_after_kill
    for name, changed in finished.whole_after_kill.items():
        assert (finished.output / "cases" / name).stat().st_mtime_ns == changed


def test_the_tables_have_one_row_per_case_and_per_lesion(finished):
    cases, lesions = rows(finished.output / "cases.csv"), rows(finished.output / "lesions.csv")
    assert Counter(row["state"] for row in cases) == {"done": 50, "failed": 10}
    assert {row["case"] for row in cases} == {*finished.good, *BAD}
    assert {row["case"] for row in lesions} == set(finished.good), "each phantom has one lesion"
    by_case = {row["case"]: row for row in cases}
    truth = phantom(7)
    milliliters = (truth.array >= 100).sum() * truth.grid.voxel_volume_mm3 / 1000
    assert float(by_case["patient 0/case07.nrrd"]["liver_volume_ml"]) == pytest.approx(milliliters, rel=0.02)


def test_the_cohort_page_names_what_failed(finished):
    page = (finished.output / "cohort.html").read_text(encoding="utf-8")
    assert "Bauch groß, Frau Müller (Kopie 2).nii.gz" in page
    assert page.count("the image cannot be used") == 8
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://creativecommons.org", "").replace(
        "http://purl.org", ""
    ).replace("https://matplotlib.org", "")


def test_when_all_is_done_there_is_nothing_to_do(finished):
    before = len(manifest_lines(finished.output))
    result = run_batch(
        finished.images,
        *("-o", finished.output, "--model", finished.model, "--keep-failed"),
        *COHORT_ARGUMENTS,
        env=finished.env,
    )
    assert result.returncode == 1, result.stdout
    assert "50 were done before, 10 had failed before" in result.stdout
    new = manifest_lines(finished.output)[before:]
    assert not [line for line in new if line["event"] == "case"]


def test_lesions_are_listed_with_their_reliability_and_what_the_model_says_without_them(tmp_path):
    from LiverXAILib.batch.records import Result
    from LiverXAILib.batch.summary import _lesion_table, _summarize

    lesions = [
        {"structure": "lesion", "number": "1", "reliability": "0.97", "reliability_word": "likely"},
        {"structure": "lesion", "number": "2", "reliability": "0.2", "reliability_word": "doubtful"},
    ]
    evidence = {"probability": 0.94, "without": 0.0125, "elsewhere": None, "alone": 0.9}
    answers = [{"kind": "counterfactual", "target": "lesion:2", "evidence": evidence}]
    record = {"times": {"reading": 1, "analyzing": 1, "writing": 1}, "warnings": [], "software": "1"}
    record |= {"model": {"name": "m", "version": "1"}, "input": {"path": "a", "sha256": "b"}}
    result = Result(record, {"lesions": [], "liver_volume_ml": 1.0}, [], lesions, answers)
    case = _summarize(SimpleNamespace(result=lambda folder: result), {"label": "a", "folder": "f", "state": "done"})
    assert case.row["doubtful_lesions"] == 1
    unrated = Result(record, {"lesions": [], "liver_volume_ml": 1.0}, [], [{"structure": "lesion", "number": "1"}], [])
    other = _summarize(SimpleNamespace(result=lambda folder: unrated), {"label": "a", "folder": "f", "state": "done"})
    assert other.row["doubtful_lesions"] is None
    columns, table = _lesion_table([case])
    assert [row["confidence_without"] for row in table] == ["", "0.0125"]
    assert [row["confidence_alone"] for row in table] == ["", "0.9"]
    assert "confidence_elsewhere" not in columns


def test_lesions_of_all_cases_share_a_table_without_empty_columns():
    from LiverXAILib.batch.summary import CaseSummary, _lesion_table

    rows = [{"case": name, "folder": f"f{name}"} for name in "ab"]
    lesions = [
        {"structure": "lesion", "number": "1", "hu": "", "late": ""},
        {"structure": "lesion", "number": "2", "hu": "5"},
    ]
    cases = [
        CaseSummary(rows[0], [{**lesions[0], "hu": ""}, {**lesions[1], "late": ""}]),
        CaseSummary(rows[1], [lesions[0]]),
    ]
    columns, table = _lesion_table(cases)
    assert columns == ["case", "number", "hu", "folder"]
    assert [(row["case"], row["number"], row["hu"], row["folder"]) for row in table] == [
        *(("a", "1", "", "fa"), ("a", "2", "5", "fa"), ("b", "1", "", "fb"))
    ]
    assert _lesion_table([CaseSummary(rows[0])]) == (["case", "folder"], [])


def page_row(**values):
    from LiverXAILib.batch.summary import CASE_COLUMNS

    row = dict.fromkeys(CASE_COLUMNS) | {"state": "done", "liver_volume_ml": 900.0, "liver_complete": True}
    row |= {"model": "m 1", "software": "1", "seconds": 1.0, "warnings": ""} | values
    return row | {"folder": row["case"]}


def test_the_cohort_page_sorts_cases_by_what_is_to_be_looked_at(monkeypatch):
    from LiverXAILib.batch import summary

    seen = {}
    monkeypatch.setattr(summary, "_figure", lambda rows: "")
    monkeypatch.setattr(summary, "render_page", lambda path, context: seen.update(context) or "")
    checks = [
        {"target": str(n), "faithfulness": {"passed": n % 2 == 0, "curves": {"gain": 1 - n / 100}}} for n in range(23)
    ]
    cases = [
        summary.CaseSummary(page_row(case="good"), explanations=checks),
        summary.CaseSummary(page_row(case="empty", liver_volume_ml=0.0, liver_complete=False, model="m 2")),
        summary.CaseSummary(page_row(case="cut", liver_complete=False, plausible=True, software="2")),
        summary.CaseSummary(page_row(case="odd", plausible=False)),
        summary.CaseSummary(page_row(case="bad", state="failed", model=None, software=None)),
        summary.CaseSummary(page_row(case="later", state="open", model=None, software=None)),
    ]
    summary._page(cases, SimpleNamespace(told=[("a", "b")]))
    lists = {name: [row["case"] for row in seen[name]] for name in ("done", "failed", "open", "implausible")}
    assert lists == {
        "done": ["good", "empty", "cut", "odd"],
        "failed": ["bad"],
        "open": ["later"],
        "implausible": ["odd"],
    }
    assert [[row["case"] for row in seen[name]] for name in ("no_liver", "cut_off")] == [["empty"], ["cut"]]
    assert (seen["models"], seen["versions"], seen["passed_over"]) == (["m 1", "m 2"], ["1", "2"], [("a", "b")])
    assert (seen["checks"], len(seen["checked"])) == (23, 20)
    order = [int(item["explanation"]["target"]) for item in seen["checked"]]
    assert order == [*range(21, 0, -2), *range(22, 4, -2)]
    assert seen["checked"][0]["gain"] == pytest.approx(0.79)


@pytest.mark.parametrize("counts", [(2, None), (None, 2)])
def test_the_cohort_page_adds_up_the_lesions_of_models_that_look_for_them(counts, monkeypatch):
    from LiverXAILib.batch import summary

    monkeypatch.setattr(summary, "_figure", lambda rows: "")
    cases = [summary.CaseSummary(page_row(case=str(n), lesion_count=count)) for n, count in enumerate(counts)]
    page = summary._page(cases, SimpleNamespace(told=[]))
    assert "<b>2</b><span>lesions found</span>" in page
    nobody = summary._page([summary.CaseSummary(page_row(case="a"))], SimpleNamespace(told=[]))
    assert "<b>–</b><span>lesions found</span>" in nobody


def test_the_cohort_page_names_implausible_results_first():
    from LiverXAILib.batch.summary import CASE_COLUMNS, CaseSummary, _page

    row = dict.fromkeys(CASE_COLUMNS) | {"state": "done", "liver_volume_ml": 900.0, "liver_complete": True}
    row |= {"model": "m 1", "software": "1", "seconds": 1.0, "warnings": ""}
    cases = [
        CaseSummary({**row, "case": name, "folder": name, "plausible": plausible, "liver_complete": plausible})
        for name, plausible in (("upright", True), ("turned", False))
    ]
    page = _page(cases, SimpleNamespace(cases=[], told=[]))
    listed = page[page.index("Implausible results") : page.index("reaches the border")]
    assert "turned" in listed
    assert "upright" not in listed
