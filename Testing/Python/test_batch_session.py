# SPDX-License-Identifier: Apache-2.0
"""A worker that crashes is replaced, and its case is retried once before it is counted as failed."""

from __future__ import annotations

import queue
import sys
import textwrap

import pytest

from LiverXAILib.batch.session import Session
from LiverXAILib.batch.store import Store

#: A worker that crashes as often as the case demands, if requested after printing "garbage".
TOY = """
    import json, os, sys
    from pathlib import Path
    here = Path({here!r})
    json.loads(sys.stdin.readline())
    def say(**values):
        print(json.dumps(values), flush=True)
    say(event="ready", pid=os.getpid(), host="here", model={{"name": "toy"}})
    for line in sys.stdin:
        case = json.loads(line)
        say(event="reading", case=case["id"])
        say(event="analyzing", case=case["id"])
        tries = here / case["id"]
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        if len(tries.read_text()) <= case["crashes"]:
            if case["garbage"]:
                print(case["garbage"], flush=True)
                sys.stdin.read()
            os._exit(1)
        say(event="done", case=case["id"], record={{"case": case["id"]}})
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run cases in a session with toy workers; return the outcome of each."""
    (tmp_path / "toy_batch_child.py").write_text(textwrap.dedent(TOY.format(here=str(tmp_path))))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("LiverXAILib.batch.session.CHILD", "toy_batch_child")
    store = Store(tmp_path / "out")
    store.open()

    def running(*cases: dict) -> dict[str, str]:
        events: queue.Queue = queue.Queue()
        session = Session(store, {"threads": 0}, events.put, time_limit=0, python=sys.executable)
        for case in cases:
            session.submit({"folder": case["id"], "garbage": "", **case})
        outcome = {}
        try:
            while len(outcome) < len(cases):
                event = events.get(timeout=60)
                assert event["event"] not in ("fatal", "ended"), event
                if event["event"] == "finished":
                    outcome[event["case"]] = event.get("kind", event["state"])
        finally:
            session.stop()
        return outcome

    yield running
    store.close()


@pytest.mark.parametrize("garbage", ["", "no message", '{"event": "done"}'])
@pytest.mark.parametrize(("crashes", "outcome"), [(1, "done"), (2, "crash")])
def test_a_case_has_a_second_chance_and_no_third(run, crashes, outcome, garbage):
    assert run({"id": "aa", "crashes": crashes, "garbage": garbage}) == {"aa": outcome}


def test_a_case_is_not_blamed_for_its_neighbor(run):
    cases = [{"id": "aa", "crashes": 0}, {"id": "bb", "crashes": 9}, {"id": "cc", "crashes": 1}]
    assert run(*cases) == {"aa": "done", "bb": "crash", "cc": "done"}
