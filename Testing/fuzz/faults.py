# SPDX-License-Identifier: Apache-2.0
"""Processes killed while writing, and full disks: either the old or the new result must be complete."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
from toys import ball_phantom, threshold_model

from LiverXAILib.analysis import Analysis
from LiverXAILib.pipeline import analyze, write_analysis
from LiverXAILib.volumes.volume import Grid

from .kind import BrokenPromiseError, Generator, Kind

#: Audit events of the steps of writing: files opened, renamed, removed.
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.listdir", "os.scandir", "os.chmod")


#: Fraction of the kills that come from the parent at any time. Both processes draw the same numbers.
_BESIDE = 0.3


class _Writing(Kind):
    """Replaces an old result by a new one while a fault occurs."""

    limit_s = 60.0
    limit_mb = 4000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        volume, _ = ball_phantom(Grid((20, 24, 24), np.diag([6.0, 6.0, 6.0, 1.0])))
        self.new = analyze(volume, threshold_model(), targets=["liver"], method="seg-grad-cam", device="cpu")
        first = analyze(volume, threshold_model(), targets=["tumor"], method="seg-grad-cam", device="cpu")
        self.old = dataclasses.replace(first, provenance={**first.provenance, "patient": "another"})
        self.states = [self._expected(self.old, folder / "old"), self._expected(self.new, folder / "new")]
        started = time.monotonic()
        self._expected(self.new, folder / "old")
        self.seconds = time.monotonic() - started

    def _expected(self, analysis: Analysis, folder: Path) -> dict[str, str]:
        write_analysis(analysis, folder, report=False)
        return self._state(folder)

    @staticmethod
    def _state(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}

    def run(self, rng: Generator, folder: Path) -> str:
        result = folder / "result"
        write_analysis(self.old, result, report=False)
        (result / "notes of the user.txt").write_text("keep me")
        child = os.fork()
        if child == 0:
            self._in_child(rng, result)
        self._beside(rng, child)
        _, status = os.waitpid(child, 0)
        state = self._state(result) if result.exists() else {}
        if state.pop("notes of the user.txt", None) is None:
            raise BrokenPromiseError("a file of the user is gone")
        if state not in self.states and not self._left_something_out(result, state):
            raise BrokenPromiseError(f"neither the old nor the new result: {sorted(state)}")
        became = "old" if state == self.states[0] else "new"
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 and became == "old":
            raise BrokenPromiseError("the writing ended well and wrote nothing")
        write_analysis(self.new, result, report=False)
        if left := [path.name for path in folder.iterdir() if path != result]:
            raise BrokenPromiseError(f"left behind: {left}")
        return f"{became} result"

    def _left_something_out(self, result: Path, state: dict[str, str]) -> bool:
        """Whether the result is the new one without an optional output, and states that."""
        provenance = json.loads((result / "provenance.json").read_text())
        said = any(warning.startswith("Not written:") for warning in provenance["warnings"])
        return said and all(
            self.states[1][name] == digest for name, digest in state.items() if name != "provenance.json"
        )

    def _in_child(self, rng: Generator, result: Path) -> None:
        """Write the new result in a child process, and wait for its end."""
        code = 1
        try:
            self._prepare(rng)
            write_analysis(self.new, result, report=False)
            code = 0
        except Exception:
            code = 2
        finally:
            os._exit(code)

    def _prepare(self, rng: Generator) -> None:
        """Prepare the fault in the child before it writes."""

    def _beside(self, rng: Generator, child: int) -> None:
        """Cause the fault from the parent while the child writes."""


class Kills(_Writing):
    """Kills the process at any time, or just before any step of the writing."""

    def _prepare(self, rng: Generator) -> None:
        if rng.random() < _BESIDE:
            return
        left = int(rng.integers(1, 120))

        def hook(event: str, _: object) -> None:
            nonlocal left
            if event in _EVENTS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    def _beside(self, rng: Generator, child: int) -> None:
        if rng.random() < _BESIDE:
            time.sleep(float(rng.random()) * self.seconds)
            os.kill(child, signal.SIGKILL)


class Disks(_Writing):
    """Limits the size of files, or makes any single step fail as on a full disk."""

    def _prepare(self, rng: Generator) -> None:
        if rng.random() < 0.5:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(rng.integers(0, 30_000)),) * 2)
            return
        left = int(rng.integers(1, 120))

        def hook(event: str, _: object) -> None:
            nonlocal left
            if event in _EVENTS:
                left -= 1
                if left == 0:
                    raise OSError(28, os.strerror(28))

        sys.addaudithook(hook)
