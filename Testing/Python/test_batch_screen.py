# SPDX-License-Identifier: Apache-2.0
"""The user's view: a bar with the remaining time on a terminal, lines elsewhere; and the cohort page."""

from __future__ import annotations

import io
import logging
import os
import sys
from types import SimpleNamespace

import pytest

from LiverXAILib.batch.command import Screen
from LiverXAILib.batch.summary import outliers


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_cases_stage_and_remaining_time(monkeypatch):
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


def test_equal_values_and_few_patients_have_no_outliers():
    assert outliers(rows([1500.0] * 9 + [1501.0])) == []
    assert outliers(rows([1500, 1510, 9000])) == []
