# SPDX-License-Identifier: Apache-2.0
"""The user's view: a bar with the remaining time on a terminal, lines elsewhere; and the cohort page."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from LiverXAILib.batch.command import Screen, _tell, _warn_of_names
from LiverXAILib.batch.manifest import Manifest
from LiverXAILib.batch.run import RunSummary
from LiverXAILib.batch.store import Store
from LiverXAILib.batch.summary import _figure, outliers


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_cases_step_and_remaining_time(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Screen() as screen:
        screen.show(0, 0, "Loading the model")
        screen.show(0, 60, "a.nii: Reading")
        screen.show(12.5, 60, "b.nii: Segmenting")
    text = terminal.getvalue()
    assert "Loading the model" in text
    assert "b.nii: Segmenting" in text
    assert "12.5/60" in text
    assert "<" in text.split("12.5/60")[1]


def test_without_a_terminal_there_are_lines_and_no_bar(capsys):
    with Screen() as screen:
        screen.show(1, 60, "a.nii: Reading")
        screen.say("done    Größe.nii")
        screen.say(os.fsdecode(b"done    caf\xe9"))
    captured = capsys.readouterr()
    assert captured.out == "done    Größe.nii\ndone    caf\\udce9\n"
    assert captured.err == ""


def test_the_log_file_gets_what_is_said_and_other_log_messages_only_during_the_batch(tmp_path):
    logger = logging.getLogger("LiverXAILib")
    before = logger.level, list(logger.handlers)
    with Screen() as screen:
        screen.open_log(tmp_path / "log.txt")
        screen.say("done    a.nii")
        logger.getChild("volumes").info("read twice")
    logger.getChild("volumes").warning("too late")
    assert [line.split(" INFO ")[1] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        *("done    a.nii", "read twice")
    ]
    assert (logger.level, logger.handlers) == before


def test_nobody_listening_does_not_stop_a_batch(monkeypatch):
    def broken(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=broken, flush=lambda: None))
    with Screen() as screen:
        screen.say("done")


@pytest.mark.parametrize(
    ("summary", "lines"),
    [
        (RunSummary(), ["0 done, 0 failed.", "Nothing to do."]),
        (RunSummary(done_before=2), ["0 done, 0 failed, 2 were done before.", "Nothing to do."]),
        (RunSummary(["a"], done_before=1), ["1 done, 0 failed, 1 was done before."]),
        (RunSummary(failed_before=3), ["0 done, 0 failed, 3 had failed before."]),
        (
            RunSummary(["a", "b"], {"c": "Cut."}),
            ["2 done, 1 failed.", "Run the same command again to retry the failed cases."],
        ),
        (RunSummary([], {"c": "Cut."}, stopped="Full."), ["0 done, 1 failed.", "Stopped: Full."]),
        (
            RunSummary(["a"], signal=2),
            ["1 done, 0 failed.", "Stopped. Finished cases are complete; run the same command again to continue."],
        ),
    ],
)
def test_the_outcome_of_a_batch_is_told_in_a_few_lines(summary, lines):
    said = []
    files = [Path("out/cases.csv")]
    _tell(summary, SimpleNamespace(say=said.append), files, ["Damaged: a.", "Damaged: b.", "Damaged: a."])
    assert said == [*lines, "Damaged: a.", "Damaged: b.", "  out/cases.csv"]


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        ([("run", {"keep_names": True}), ("run", {"keep_names": False})], True),
        ([("run", {"keep_names": False}), ("end", {})], False),
        ([("run", {}), ("end", {"keep_names": True})], False),
    ],
)
def test_names_that_earlier_runs_left_in_the_output_are_warned_of(tmp_path, lines, warned):
    store, said = Store(tmp_path), []
    store.manifest.mkdir()
    manifest = Manifest(store)
    for event, values in lines:
        manifest.append(event, **values)
    manifest.close()
    _warn_of_names(store, SimpleNamespace(say=said.append))
    assert [line.startswith("An earlier run into this folder used --keep-names") for line in said] == [True] * warned


def rows(volumes):
    return [
        {
            "case": str(n),
            "liver_volume_ml": v,
            "liver_mean_hu": 100.0,
            "tumor_burden_percent": None,
            "lesion_count": n % 3,
            "longest_lesion_mm": None,
        }
        for n, v in enumerate(volumes)
    ]


def test_an_unusual_liver_is_named_with_its_distance_from_the_others():
    volumes = [1400, 1500, 1450, 1550, 1600, 1480, 1520, 1490, 4000, 1510]
    (found,) = outliers(rows(volumes))
    assert found["row"]["case"] == "8"
    deviations = sorted(abs(v - 1505) for v in volumes)
    assert found["z"] == pytest.approx(0.6745 * (4000 - 1505) / ((deviations[4] + deviations[5]) / 2))


def test_values_far_above_and_below_are_named_the_farthest_first():
    volumes = [1400, 1500, 1450, 1550, 1600, 1480, 1520, 1490, 300, 4000, 1510]
    found = outliers(rows(volumes))
    assert [(item["row"]["case"], item["value"], item["median"], item["z"] > 0) for item in found] == [
        *(("9", 4000, 1500, True), ("8", 300, 1500, False))
    ]
    assert {(item["title"], item["unit"]) for item in found} == {("Liver volume", "ml")}
    # Eight patients are enough; z = 0.6745 (x - 4.5) / 2 reaches 3.5 at 14.88.
    for value, told in ((14.8, 0), (15.0, 1)):
        assert len(outliers(rows([1, 2, 3, 4, 5, 6, 7, value]))) == told
        assert outliers(rows([1, 2, 3, 4, 5, 6, 100 * value])) == []


def test_an_unusual_lesion_is_named_among_patients_without_any():
    """Although there are fewer tumor burdens than it takes to call one unusual."""
    patients = rows([1500.0] * 12)
    for row, size in zip(patients, [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 90.0], strict=False):
        row["longest_lesion_mm"] = size
    assert [(item["title"], item["value"], item["median"]) for item in outliers(patients)] == [
        ("Longest lesion diameter", 90.0, 13.5)
    ]


def test_equal_values_and_few_patients_have_no_outliers():
    assert outliers(rows([1500.0] * 9 + [1501.0])) == []
    assert outliers(rows([1500, 1510, 9000])) == []


def test_the_cohort_is_drawn_as_histograms_with_the_median_of_each_quantity(monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **about: drawn.append(self) or file.write("xml <svg/>"))
    patients = [
        {**row, "seconds": None if row["case"] == "0" else float(row["case"])}
        for row in rows([100.0 * number for number in range(16)])
    ]
    for row, count in zip(patients, [0, 1, 1, 3, *[None] * 12], strict=True):
        row["lesion_count"] = count
    assert _figure(patients) == "<svg/>"
    axes = {axis.get_title(loc="left"): axis for axis in drawn[0].axes}
    lesions, volumes, times = axes["Lesions"], axes["Liver volume"], axes["Time"]
    assert [bar.get_height() for bar in lesions.patches] == [1, 2, 0, 1]
    assert [bar.get_x() for bar in lesions.patches] == [-0.5, 0.5, 1.5, 2.5]
    assert [axis.lines[0].get_xdata()[0] for axis in (lesions, volumes, times)] == [1, 750.0, 8.0]
    # 1.5 times the square root of the number of patients.
    assert [len(axis.patches) for axis in (volumes, times)] == [6, 6]
    assert np.sum([bar.get_height() for bar in volumes.patches]) == 16
    assert (volumes.get_xlabel(), lesions.get_xlabel()) == ("ml", "per case")
    (nothing,) = axes["Tumor burden"].texts
    assert (nothing.get_text(), len(axes["Tumor burden"].patches)) == ("no values", 0)


@pytest.mark.parametrize(("count", "bars"), [(1, 5), (9, 5), (400, 20)])
def test_a_histogram_has_five_to_twenty_bars(count, bars, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **about: drawn.append(self) or file.write("<svg/>"))
    _figure([{**row, "seconds": 1.0} for row in rows(range(count))])
    assert len(drawn[0].axes[0].patches) == bars
    assert _figure([]) == ""
