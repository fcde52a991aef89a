# SPDX-License-Identifier: Apache-2.0
"""A fast stand-in for a batch worker: it reads and computes nothing, and commits results without images.

It replaces :mod:`LiverXAILib.batch.child` in tests of the parent.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from LiverXAILib.batch.store import Store
from LiverXAILib.subprocesses import Channel

_MODEL = {"name": "toy", "version": "1"}
#: Long enough for a signal to arrive while a case is being analyzed.
_ANALYZING_S = 0.3


def main() -> None:
    channel = Channel()
    config = json.loads(sys.stdin.buffer.readline())
    store = Store(Path(config["output"]), token=config["run"])
    channel.send("ready", pid=1, host="here", model=_MODEL)
    for line in sys.stdin.buffer:
        case = json.loads(line)
        for event in ("reading", "read", "analyzing"):
            channel.send(event, case=case["id"])
        time.sleep(_ANALYZING_S)
        for event in ("analyzed", "writing"):
            channel.send(event, case=case["id"])
        channel.send("done", case=case["id"], record=commit_toy_result(store, case))


def commit_toy_result(store: Store, case: dict[str, Any]) -> dict[str, Any]:
    """Commit the result of a case without a liver, and return its record."""
    part = store.part(case["folder"])
    part.mkdir()
    measured: dict[str, Any] = {"liver_volume_ml": 0.0, "liver_complete": True, "lesions": []}
    (part / "measurements.json").write_text(json.dumps(measured), encoding="utf-8")
    (part / "measurements.csv").write_text("structure\n", encoding="utf-8")
    (part / "provenance.json").write_text("{}", encoding="utf-8")
    record = {
        **{key: case[key] for key in ("label", "folder", "settings")},
        "case": case["id"],
        "state": "done",
        "run": store.token,
        "input": {"path": case["path"], "series": case["series"], "sha256": "0" * 64, "stamp": ""},
        "model": _MODEL,
        "software": "0",
        "device": "cpu",
        "host": "here",
        "times": {"started": 0.0, "reading": 0.1, "analyzing": 0.1, "writing": 0.1, "finished": 1.0},
        "warnings": [],
    }
    store.commit(part, case["folder"], record)
    return record


if __name__ == "__main__":
    main()
