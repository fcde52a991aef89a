# SPDX-License-Identifier: Apache-2.0
"""A small fixed set of the attacks of ``Testing/fuzz``; ``make fuzz`` runs more, with any seed."""

from __future__ import annotations

import os

import pytest
from forking import Process
from fuzz.runner import attack

pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits of processes, pipes and links are POSIX's")


@pytest.mark.parametrize(
    ("kind", "cases"),
    [("images", 60), ("dicom", 40), ("models", 40), ("records", 25), ("wire", 25), ("kills", 12), ("disks", 12)],
)
def test_hostile_files_and_faults_break_no_promise(kind, cases):
    report = attack(kind, seed=2026, cases=cases, start=Process)
    assert report.tried == cases
    assert not report.findings, "\n\n".join(f"case {case}: {text}" for case, text in report.findings)


def test_a_case_is_the_same_each_time():
    first, again = (attack("images", seed=5, cases=20, start=Process) for _ in range(2))
    assert first.outcomes == again.outcomes
    assert len(first.outcomes) > 1
