# SPDX-License-Identifier: Apache-2.0
"""A worker that crashes is replaced, and its case is retried once before it is counted as failed."""

from __future__ import annotations

import queue
import sys
import textwrap

import pytest

from LiverXAILib.batch.session import Session
from LiverXAILib.batch.store import Store

#: A worker that crashes, or fails for a reason, as often as the case demands; a crash can come after "garbage".
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
        if len(tries.read_text()) <= len(case["fails"]):
            kind = case["fails"][len(tries.read_text()) - 1]
            say(event="failed", case=case["id"], kind=kind, error="It fails.", phase="analyzing", unreachable=False)
            continue
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
            session.submit({"folder": case["id"], "garbage": "", "crashes": 0, "fails": [], **case})
        outcome = {}
        running.workers = 0
        try:
            while len(outcome) < len(cases):
                event = events.get(timeout=60)
                if event["event"] == "fatal":
                    return {"fatal": event["error"]}
                assert event["event"] != "ended", event
                running.workers += event["event"] == "worker"
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


@pytest.mark.parametrize(
    ("fails", "outcome", "workers"),
    [
        (["memory"], "done", 2),
        (["memory", "memory"], "memory", 2),
        (["error"], "error", 1),
        (["input"], "input", 1),
        (["usage"], "usage", 1),
    ],
)
def test_only_a_lack_of_memory_is_a_reason_to_try_a_case_again(run, fails, outcome, workers):
    assert run({"id": "aa", "fails": fails}) == {"aa": outcome}
    assert run.workers == workers


@pytest.mark.parametrize(("kind", "workers"), [("input", 1), ("error", 2)])
def test_only_an_unforeseen_error_costs_a_worker(run, kind, workers):
    assert run({"id": "aa", "fails": [kind]}, {"id": "bb"}, {"id": "cc"}) == {"aa": kind, "bb": "done", "cc": "done"}
    assert run.workers == workers


def test_a_full_disk_is_the_end_of_a_session_and_of_no_case(run):
    assert run({"id": "aa", "fails": ["output"]}) == {"fatal": "It fails."}
