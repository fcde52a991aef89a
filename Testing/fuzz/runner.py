# SPDX-License-Identifier: Apache-2.0
"""Runs cases in child processes: one after the other in the same child, which is replaced when it ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_TESTING = Path(__file__).parents[1]
#: Seconds until a child has imported everything and prepared the files for its cases.
_START_S = 900.0
#: A child is replaced after this many cases, so that a case that damages the process can be identified.
_CASES_OF_A_CHILD = 500


@dataclass
class Report:
    """The outcomes of the cases of one kind."""

    kind: str
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        return sum(self.outcomes.values()) + len(self.findings)

    def line(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        return (
            f"{self.kind}: seed {self.seed}, {self.tried} tried, {self.tried - len(self.findings)} survived "
            f"({counts}), {len(self.findings)} findings, {self.seconds:.0f} s"
        )


def attack(
    kind: str,
    seed: int,
    cases: int,
    first: int = 0,
    *,
    minutes: float | None = None,
    keep: Path | None = None,
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
) -> Report:
    """Run cases `first` to `first` + `cases` of a kind, in processes started by `start`."""
    report, started = Report(kind, seed), time.monotonic()
    end = None if minutes is None else started + 60 * minutes
    number, last = first, first + cases
    while number < last and (end is None or time.monotonic() < end):
        number = _child(report, number, min(last, number + _CASES_OF_A_CHILD), end, keep, start)
    report.seconds = time.monotonic() - started
    return report


def _child(report: Report, first: int, last: int, end: float | None, keep: Path | None, start: Any) -> int:
    """Run cases in one child until it ends, and return the number of the next case."""
    with tempfile.TemporaryDirectory(prefix="liverxai-fuzz-") as temporary, tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", "fuzz.child", report.kind, str(report.seed), str(first), str(last)]
        paths = [str(_TESTING), str(_TESTING / "Python"), str(_TESTING.parent), os.environ.get("PYTHONPATH", "")]
        process = start(
            [*command, str(keep) if keep else temporary, temporary],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "OMP_NUM_THREADS": "1",
                "LIVERXAI_BACKEND": "torch float32",
                "TMPDIR": temporary,
                "XDG_CONFIG_HOME": f"{temporary}/config",
            },
            start_new_session=True,
        )
        try:
            return _watch(report, process, errors, first, end)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _watch(report: Report, process: subprocess.Popen[bytes], errors: IO[bytes], first: int, end: float | None) -> int:
    lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
    wait_s, limit, current, number = _START_S, 0.0, -1, first
    while True:
        try:
            message = lines.get(timeout=wait_s)
        except queue.Empty:
            if current < 0:
                raise RuntimeError(f"the child for {report.kind} does not start") from None
            report.findings.append((current, f"hangs: not done after {wait_s:.0f} s"))
            return current + 1
        if message is None:
            code = process.wait()
            errors.seek(0)
            tail = errors.read().decode(errors="replace")[-2000:]
            if code == 0:
                return number
            if current < 0:
                raise RuntimeError(f"the child for {report.kind} does not start:\n{tail}")
            report.findings.append((current, f"the process ended with {code}\n{tail}"))
            return current + 1
        if "limit" in message:
            limit = message["limit"]
        elif "started" in message:
            current, wait_s = message["started"], limit
        elif message.get("finding"):
            report.findings.append((current, message["finding"]))
            number = current + 1
        else:
            report.outcomes[message["outcome"]] += 1
            number = current + 1
        if "outcome" in message and end is not None and time.monotonic() > end:
            return number


def _listen(stream: IO[bytes], lines: queue.Queue[dict[str, Any] | None]) -> None:
    for line in stream:
        lines.put(json.loads(line))
    lines.put(None)
