# SPDX-License-Identifier: Apache-2.0
"""A cohort with the same bad cases on a Ray cluster of two workers, one of which is killed midway."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

from batch_toys import (
    BAD,
    COHORT_ARGUMENTS,
    assert_whole,
    environment,
    final_states,
    make_tree,
    manifest_lines,
    start_batch,
    times_done,
    wait_for,
    write_model,
)


def test_a_lost_worker_changes_nothing_in_the_manifest(tmp_path):
    good = make_tree(tmp_path / "images", 20)
    output = tmp_path / "out"
    process = start_batch(
        tmp_path / "images",
        *("-o", output, "--model", write_model(tmp_path / "model"), "--engine", "ray", "--workers", 2),
        *COHORT_ARGUMENTS,
        env=environment(tmp_path / "env"),
        start=subprocess.Popen,
    )

    # The lost worker is the one that hangs: whatever the other one does, this one has a case to lose.
    wait_for(lambda: list((tmp_path / "env").glob("hangs *")))
    worker, child = map(int, next((tmp_path / "env").glob("hangs *")).name.split()[1:])
    assert worker in [line["pid"] for line in manifest_lines(output) if line["event"] == "worker"]
    os.kill(worker, signal.SIGKILL)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1, said

    states = final_states(output)
    assert Counter(state["state"] for state in states.values()) == {"done": 20, "failed": 10}, said
    assert {label: state["kind"] for label, state in states.items() if state["state"] == "failed"} == {
        label: kind for label, (kind, _) in BAD.items()
    }
    assert times_done(output) == Counter(good), "a case was done twice, or lost"
    handed_out = Counter(x["label"] for x in manifest_lines(output) if x.get("state") == "running")
    assert handed_out["patient 2/hang.nii.gz"] == 2, "the lost worker's case went to nobody else"
    assert not Path(f"/proc/{child}").exists(), "what the worker had started outlived it"
    for path in (output / "cases").iterdir():
        assert_whole(path)
