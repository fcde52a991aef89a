# SPDX-License-Identifier: Apache-2.0
"""Invalid messages from a worker: the client reports one failure, and never raises."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from LiverXAILib.worker import WorkerClient

from .kind import BrokenPromiseError, Generator, Kind
from .mutate import change_json, damage

_GOOD = [
    {"event": "progress", "id": 1, "step": "Segmenting", "fraction": 0.5, "remaining_s": 3.0},
    {"event": "done", "id": 1, "result": {"versions": {}, "devices": ["cpu"], "platform": "x"}},
    {"event": "failed", "id": 1, "kind": "input", "error": "No.", "details": "…"},
]
_WAIT_S = 20.0


class Wire(Kind):
    """Gives a client a worker that sends random messages, then ends or stays silent."""

    limit_s = 60.0

    def run(self, rng: Generator, folder: Path) -> str:
        lines = []
        for _ in range(int(rng.integers(0, 5))):
            message = _GOOD[int(rng.integers(len(_GOOD)))]
            if rng.random() < 0.8:
                message = change_json(rng, message)
            line = json.dumps(message).encode()
            how = rng.random()
            lines.append(damage(rng, line) if how < 0.4 else b"[" * 5000 if how < 0.45 else line)
        said = folder / "said"
        said.write_bytes(b"\n".join(lines) + (b"\n" if rng.random() < 0.8 else b""))
        worker = folder / "worker.sh"
        end = ["exit 0", "exit 3", "kill -SEGV $$", "kill -9 $$"][int(rng.integers(4))]
        worker.write_text(f'#!/bin/sh\ncat "{said}"\n{end}\n')
        worker.chmod(0o755)
        client = WorkerClient(python=str(worker), threads=1)
        client.environment()
        private = client._folder
        try:
            outcome = self._ends(client)
        finally:
            client.close()
            shutil.rmtree(folder / "said", ignore_errors=True)
        if private is not None and private.exists():
            raise BrokenPromiseError("the private folder with the patient's voxels is still there")
        return outcome

    @staticmethod
    def _ends(client: WorkerClient) -> str:
        """Poll until the request has ended; one end is allowed."""
        ends = []
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline and (client.busy or not ends):
            try:
                ends += [event for event in client.poll() if event.kind in ("done", "failed")]
            except Exception as error:
                raise BrokenPromiseError(f"poll() raised {error!r}") from error
            time.sleep(0.005)
        if len(ends) != 1:
            raise BrokenPromiseError(f"the request ended {len(ends)} times")
        if ends[0].kind == "failed" and not str(ends[0].error).strip():
            raise BrokenPromiseError("a failure without a message")
        return ends[0].kind
