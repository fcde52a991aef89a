# SPDX-License-Identifier: Apache-2.0
"""The progress reports of a run, and its cancellation."""

from __future__ import annotations

import pytest

from LiverXAILib.context import RunContext
from LiverXAILib.errors import Cancelled
from LiverXAILib.progress import CancelToken


def test_parts_of_parts_report_fractions_of_the_whole():
    heard = []
    context = RunContext(lambda step, fraction: heard.append((step, round(fraction, 6))))
    context.part(0.2, 0.6).step(1, 2).report("second half", 0.5)
    context.part(0.2, 0.6).report("end", 1.0)
    assert heard == [("second half", 0.5), ("end", 0.6)]


def test_a_cancelled_run_raises_in_each_of_its_parts():
    token = CancelToken()
    part = RunContext(cancel=token).part(0.0, 0.5)
    part.check()
    token.cancel()
    with pytest.raises(Cancelled):
        part.check()


def test_nobody_needs_to_listen():
    context = RunContext().part(0.0, 0.5)
    context.report("anything", 1.0)
    context.check()


def test_the_keywords_are_those_of_public_functions():
    token = CancelToken()
    assert RunContext(None, token, "cpu").keywords == {"device": "cpu", "progress": None, "cancel": token}


def test_a_silent_part_of_a_run_reports_to_nobody_and_can_be_cancelled():
    heard, token = [], CancelToken()
    context = RunContext(lambda step, fraction: heard.append(step), token, "cpu", threads=3)
    context.silent.report("within", 0.5)
    assert heard == []
    assert (context.silent.device, context.silent.threads) == ("cpu", 3)
    token.cancel()
    with pytest.raises(Cancelled):
        context.silent.check()
