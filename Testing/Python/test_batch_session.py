# SPDX-License-Identifier: Apache-2.0
"""A worker that crashes is replaced, and its case is retried once before it is counted as failed."""

from __future__ import annotations

import queue
import sys
import textwrap
from types import SimpleNamespace

import pytest

from LiverXAILib.batch import session as module
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
        say(event="analyzed", case=case["id"])
        say(event="writing", case=case["id"])
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


# --- a worker that says what a test wants, at the time of the test's clock ----------------------------------------


@pytest.fixture
def parent(tmp_path, monkeypatch):
    """A session whose processes the test plays: `say` is what they say, `sent` what they are sent."""
    made = SimpleNamespace(clock=0.0, processes=[], events=[], store=Store(tmp_path / "out"))
    made.store.open()

    class Process:
        def __init__(self, python, name, *, threads, log, inbox):
            assert (python, name, threads) == ("python", module.CHILD, 3)
            self.sent, self.killed = [], 0
            made.processes.append(self)
            log.write(b"started\n")

        def send(self, message):
            self.sent.append(message)

        def kill(self):
            self.killed += 1

    monkeypatch.setattr(module, "ChildProcess", Process)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.clock))
    monkeypatch.setattr(module.threading, "Thread", lambda target, daemon: SimpleNamespace(start=bool, join=bool))
    session = Session(made.store, {"threads": 3}, made.events.append, time_limit=10, python="python")

    def serve(*messages):
        """Let the session handle messages, and end."""
        for message in (*messages, ("stop",)):
            session._inbox.put(message)
        session._run()

    def play(*steps):
        """Let the session handle steps one after the other: "submit aa", or what the present process says."""
        for step in steps:
            if isinstance(step, (int, float)):
                made.clock = float(step)
                continue
            word, _, name = step.partition(" ")
            if word == "submit":
                session._waiting.append({"id": name, "folder": name})
            elif word == "exit":
                session._on_news("ended", made.processes[-1], int(name))
            else:
                about = {"case": name} if name else {"pid": 1, "host": "here", "model": {"name": "toy"}}
                rest = {"record": {"case": name}} if word == "done" else {}
                session._on_news("message", made.processes[-1], {"event": word, **about, **rest})
            session._dispatch()
            session._check_limits()

    made.session, made.play, made.serve = session, play, serve
    made.told = lambda kind: [event for event in made.events if event["event"] == kind]
    made.sent = lambda number=-1: [one["id"] for one in made.processes[number].sent if "id" in one]
    session._start()
    yield made
    made.store.close()


def outcomes(parent):
    return {event["case"]: event.get("kind", event["state"]) for event in parent.told("finished")}


#: What a worker says while it writes "aa" and analyzes "bb".
BOTH = (
    *("ready", "submit aa", "submit bb", "reading aa", "read aa", "reading bb", "analyzing aa", "read bb"),
    *("analyzed aa", "analyzing bb", "writing aa"),
)


def test_a_worker_holds_two_cases_and_is_told_of_the_next_one_when_it_has_done_one(parent):
    parent.play("submit aa", "submit bb", "submit cc")
    assert parent.processes[0].sent == [{"threads": 3}]
    parent.play("ready")
    assert parent.sent() == ["aa", "bb"]
    assert parent.events[:2] == [
        {"event": "worker", "pid": 1, "host": "here"},
        {"event": "ready", "model": {"name": "toy"}},
    ]
    parent.play("reading aa", 1.5, "read aa", 2.0, "analyzing aa", 4.25, "done aa")
    assert parent.sent() == ["aa", "bb", "cc"]
    assert parent.told("running") == [{"event": "running", "case": "aa"}]
    # Waiting to be analyzed does not count.
    finished = {"event": "finished", "case": "aa", "seconds": 3.75, "state": "done", "record": {"case": "aa"}}
    assert parent.told("finished") == [finished]
    assert b"started" in (parent.store.logs / f"{parent.store.name}-workers.log").read_bytes()


def test_the_case_that_takes_too_long_is_ended_and_the_next_one_begun_anew(parent):
    parent.play("ready", "submit aa", "submit bb", "reading aa", "read aa", "reading bb", 5.0, "analyzing aa")
    parent.store.part("aa").mkdir()
    # The image of "bb" is slow to read, but nobody waits for it yet.
    parent.play(11.0, "progress aa")
    assert (len(parent.processes), parent.told("finished")) == (1, [])
    parent.play(15.51249, "read bb")
    (late,) = parent.told("finished")
    assert (late["case"], late["state"], late["kind"], late["seconds"]) == ("aa", "failed", "time limit", 10.512)
    assert late["error"] == "It exceeded the time limit of 10 s while analyzing."
    assert (parent.processes[0].killed, len(parent.processes)) == (1, 2)
    assert list(parent.store.cases.iterdir()) == []
    parent.play("ready", "reading bb", "read bb", "analyzing bb", "done bb")
    assert (parent.sent(), outcomes(parent)) == (["bb"], {"aa": "time limit", "bb": "done"})


@pytest.mark.parametrize(("late", "other"), [("aa", "bb"), ("bb", "cc")])
def test_a_case_is_ended_that_is_analyzed_or_written_too_long_and_the_other_one_is_not_blamed(parent, late, other):
    parent.play(*BOTH, 8.0)
    if late == "aa":
        # Waiting for "aa" to be written is not held against "bb".
        parent.play("analyzed bb", 10.0)
    else:
        parent.play("done aa", "submit cc", "reading cc", "read cc", 10.0, "progress bb")
    assert outcomes(parent) == ({} if late == "aa" else {"aa": "done"})
    parent.clock = 10.5
    parent.session._check_limits()
    phase = {"aa": "writing", "bb": "analyzing"}[late]
    told = parent.told("finished")[-1]
    assert (told["case"], told["kind"], told["error"]) == (
        *(late, "time limit"),
        f"It exceeded the time limit of 10 s while {phase}.",
    )
    parent.play("ready")
    assert parent.sent() == [other]


def test_waiting_for_the_case_before_to_be_written_does_not_count(parent):
    parent.play("ready", "submit aa", "submit bb", "reading aa", "analyzing aa", "analyzed aa", "writing aa")
    parent.play(
        "reading bb", "read bb", "analyzing bb", 2.0, "analyzed bb", 7.0, "done aa", "writing bb", 8.5, "done bb"
    )
    assert [event["seconds"] for event in parent.told("finished")] == [7.0, 3.5]
    writing = {"event": "progress", "step": "Writing", "fraction": 1.0}
    assert parent.told("progress") == [{**writing, "case": "aa"}, {**writing, "case": "bb"}]


def test_an_image_that_is_slow_to_read_does_no_harm_while_another_case_is_written(parent):
    parent.play("ready", "submit aa", "submit bb", "reading bb", 5.0, "reading aa", "analyzing aa", "analyzed aa")
    parent.play("writing aa", 10.5, "progress aa")
    assert outcomes(parent) == {}
    parent.play("done aa")
    assert outcomes(parent) == {"aa": "done", "bb": "time limit"}


def test_an_image_that_takes_too_long_to_read_is_ended_too(parent):
    parent.play("ready", "submit aa", "reading aa", 10.5)
    parent.session._check_limits()
    assert outcomes(parent) == {"aa": "time limit"}
    assert "while reading" in parent.told("finished")[0]["error"]


@pytest.mark.parametrize(("moment", "given_up"), [(900.0, False), (901.0, True)])
def test_a_model_that_does_not_load_ends_the_session(parent, moment, given_up):
    parent.clock = moment
    for _ in range(2):
        parent.session._check_limits()
    error = "The worker process did not load the model within 900 s."
    assert parent.events == [{"event": "fatal", "error": error, "usage": False}] * given_up


@pytest.mark.parametrize(
    ("kind", "more", "workers", "killed"),
    [("error", {}, 2, 1), *((kind, {"unreachable": kind == "input"}, 1, 0) for kind in ("input", "usage"))],
)
def test_a_failure_is_passed_on_in_the_words_of_the_worker(parent, kind, more, workers, killed):
    parent.play("ready", "submit aa", "submit bb", "reading aa", "analyzing aa", 2.51249)
    about = {"case": "aa", "kind": kind, "error": "It fails.", "phase": "analyzing"}
    failed = {"event": "failed", **about, "unreachable": kind == "input"}
    parent.session._on_news("message", parent.processes[0], failed)
    passed_on = {"case": "aa", "seconds": 2.512, "state": "failed", "kind": kind, "error": "It fails.", **more}
    assert parent.told("finished") == [{"event": "finished", **passed_on}]
    assert (len(parent.processes), parent.processes[0].killed) == (workers, killed)
    if killed:
        parent.play("ready")
    assert parent.sent() == (["bb"] if killed else ["aa", "bb"])


@pytest.mark.parametrize(
    ("kind", "error"),
    [("memory", "It fails."), ("crash", "The worker process ended while working on this case: exit code 7.")],
)
def test_what_fails_a_case_the_second_time_is_told_and_the_case_beside_it_is_done(parent, kind, error):
    failed = {"event": "failed", "case": "aa", "kind": "memory", "error": "It fails."}
    parent.play("ready", "submit aa", "submit bb")
    for number in range(2):
        parent.play(float(number), "reading aa", "analyzing aa", 3.12349 + number)
        assert parent.told("finished") == []
        if kind == "memory":
            parent.session._on_news("message", parent.processes[-1], failed)
            parent.play("ready")
        else:
            parent.play("exit 7", "ready")
        # A suspect is alone.
        assert parent.sent() == (["bb"] if number else ["aa"])
    values = {"case": "aa", "state": "failed", "seconds": 3.123, "kind": kind, "error": error}
    assert parent.told("finished") == [{"event": "finished", **values}]
    parent.play("reading bb", "analyzing bb", "done bb")
    assert (outcomes(parent), parent.told("fatal")) == ({"aa": kind, "bb": "done"}, [])


def test_a_crash_makes_suspects_of_the_case_analyzed_and_of_the_one_written_but_not_of_one_that_waits(parent):
    parent.play(*BOTH, "submit cc", "exit 7", "ready")
    for name in ("aa", "bb"):
        assert parent.sent()[-1:] == [name]
        assert parent.processes[-1].sent[-1]["alone"]
        parent.play(f"reading {name}", f"analyzing {name}", f"analyzed {name}", f"writing {name}", f"done {name}")
    parent.play("submit dd", "reading cc", "analyzing cc", "analyzed cc", "writing cc")
    parent.play("reading dd", "analyzing dd", "analyzed dd")
    assert [one["alone"] for one in parent.processes[-1].sent[-2:]] == [False, False]
    parent.play("exit 7", "ready")
    # Only "cc" was being worked on.
    assert parent.session._crashes == {"aa": 1, "bb": 1, "cc": 1}
    parent.play("reading cc", "analyzing cc", "done cc", "reading dd", "analyzing dd", "done dd")
    assert (outcomes(parent), len(parent.processes)) == (dict.fromkeys(("aa", "bb", "cc", "dd"), "done"), 3)


@pytest.mark.parametrize(("failing", "other"), [("aa", "bb"), ("bb", "aa")])
def test_a_lack_of_memory_is_held_against_the_case_that_met_it_which_is_tried_again_alone(parent, failing, other):
    parent.play(*BOTH)
    for name in ("aa", "bb"):
        parent.store.part(name).mkdir()
    failed = {"event": "failed", "case": failing, "kind": "memory", "error": "It fails."}
    parent.session._on_news("message", parent.processes[0], failed)
    assert (outcomes(parent), list(parent.store.cases.iterdir())) == ({}, [])
    parent.play("ready")
    assert (parent.sent(), parent.processes[-1].sent[-1]["alone"]) == (["aa"], failing == "aa")
    parent.play("reading aa", "analyzing aa", "done aa")
    assert (parent.sent(), parent.processes[-1].sent[-1]["alone"]) == (["aa", "bb"], failing == "bb")
    assert parent.session._crashes == {failing: 1}


def test_a_case_that_was_written_beside_an_unforeseen_error_is_reported_once_and_not_done_again(parent):
    parent.play(*BOTH)
    part = parent.store.part("aa")
    part.mkdir()
    record = {"case": "aa", "run": parent.store.token, "input": {}}
    parent.store.commit(part, "aa", record)
    old = parent.processes[0]
    failed = {"event": "failed", "case": "bb", "kind": "error", "error": "It fails.", "unreachable": False}
    parent.session._on_news("message", old, failed)
    parent.session._start = bool
    parent.serve(("message", old, {"event": "done", "case": "aa", "record": record}), ("ended", old, -9))
    assert [(event["case"], event["state"]) for event in parent.told("finished")] == [("bb", "failed"), ("aa", "done")]
    assert parent.sent() == []


def test_a_full_disk_leaves_nothing_of_the_cases_in_progress_and_blames_none(parent):
    parent.play(*BOTH)
    for name in ("aa", "bb"):
        parent.store.part(name).mkdir()
    failed = {"event": "failed", "case": "aa", "kind": "output", "error": "Full."}
    parent.session._start = bool
    parent.serve(("message", parent.processes[0], failed))
    assert parent.events[-2:] == [{"event": "fatal", "error": "Full.", "usage": False}, {"event": "ended"}]
    assert (outcomes(parent), list(parent.store.cases.iterdir())) == ({}, [])


def test_three_workers_in_a_row_that_do_nothing_end_the_session(parent):
    parent.play("submit aa", "exit 1", "exit 1")
    assert (len(parent.processes), parent.events) == (3, [])
    parent.play("exit -9")
    (fatal,) = parent.events
    assert fatal["error"].startswith("The worker process ended 3 times without finishing a case (SIGKILL")
    assert str(parent.store.logs) in fatal["error"]


def test_workers_that_end_are_forgiven_once_a_case_is_done(parent):
    for name in ("aa", "bb"):
        parent.play("ready", f"submit {name}", f"reading {name}", f"done {name}", "exit 1", "exit 1")
    assert outcomes(parent) == {"aa": "done", "bb": "done"}
    assert parent.told("fatal") == []


def test_a_case_that_a_dying_worker_has_committed_is_done(parent):
    parent.play("ready", "submit aa", "reading aa", "analyzing aa")
    part = parent.store.part("aa")
    part.mkdir()
    record = {"case": "aa", "run": parent.store.token, "input": {}}
    parent.store.commit(part, "aa", record)
    parent.play("exit -11")
    assert parent.told("finished") == [{"event": "finished", "case": "aa", "state": "done", "record": record}]
    # The result of another case or of an earlier run is none of this one.
    parent.play("ready", "submit bb", "reading bb")
    for other in ({"case": "aa"}, {"run": "earlier"}):
        parent.store.part("bb").mkdir()
        parent.store.commit(parent.store.part("bb"), "bb", record | {"case": "bb"} | other)
        assert not parent.session._committed({"id": "bb", "folder": "bb"})


@pytest.mark.parametrize(("begun", "dropped"), [("analyzing", False), ("reading", True)])
def test_when_the_session_winds_down_only_what_is_being_analyzed_is_finished(parent, begun, dropped):
    parent.play("ready", "submit aa", "submit bb", "submit cc", f"{begun} aa", "reading bb")
    about = [("message", parent.processes[0], {"event": "done", "case": "aa", "record": {}})]
    parent.store.part("bb").mkdir()
    parent.session._start = bool  # the process is there already
    parent.serve(("wind down",), *about)
    assert outcomes(parent) == ({} if dropped else {"aa": "done"})
    assert parent.events[-1] == {"event": "ended"}
    assert parent.sent() == ["aa", "bb"]
    assert (parent.processes[0].killed, list(parent.store.cases.iterdir())) == (1, [])


@pytest.mark.parametrize("phases", [["analyzing"], ["analyzing", "analyzed"], ["analyzing", "analyzed", "writing"]])
@pytest.mark.parametrize("first", ["aa", "bb"])
def test_when_the_session_winds_down_both_the_case_analyzed_and_the_one_written_are_finished(parent, phases, first):
    parent.play("ready", "submit aa", "submit bb", "reading aa", "read aa", "analyzing aa", "analyzed aa", "writing aa")
    parent.play("reading bb", "read bb", *(f"{phase} bb" for phase in phases))
    failed = {"event": "failed", "kind": "input", "error": "No liver.", "unreachable": False}
    done = {"event": "done", "record": {}}
    said = [{**(done if name == "aa" else failed), "case": name} for name in (first, {"aa": "bb", "bb": "aa"}[first])]
    parent.session._start = bool
    parent.serve(("wind down",), *(("message", parent.processes[0], one) for one in said))
    assert outcomes(parent) == {"aa": "done", "bb": "input"}
    assert parent.processes[0].killed == 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_case_begun_after_the_session_began_to_wind_down_neither_ends_nor_prolongs_it(parent, fails):
    parent.play("ready", "submit aa", "submit bb", "reading aa", "read aa", "analyzing aa", "reading bb", "read bb")
    said = [{"event": event, "case": "aa"} for event in ("analyzed", "writing")]
    said += [{"event": "analyzing", "case": "bb"}]
    if fails:
        said += [{"event": "failed", "case": "bb", "kind": "input", "error": "No liver.", "unreachable": False}]
    said += [{"event": "done", "case": "aa", "record": {}}, {"event": "done", "case": "bb", "record": {}}]
    parent.session._start = bool
    parent.serve(("wind down",), *(("message", parent.processes[0], one) for one in said))
    assert outcomes(parent) == {"aa": "done"} | ({"bb": "input"} if fails else {})
    assert parent.processes[0].killed == 1


def test_a_worker_that_refuses_the_request_or_cannot_be_started_ends_the_session(parent, monkeypatch):
    refused = {"event": "refused", "error": "No such layer.", "usage": True}
    parent.session._on_news("message", parent.processes[0], refused)
    assert parent.events == [{"event": "fatal", "error": "No such layer.", "usage": True}]
    parent.store.logs.rename(parent.store.output / "elsewhere")
    parent.session._start()
    error = "The worker process cannot be started: No such file or directory."
    assert parent.events[1:] == [{"event": "fatal", "error": error, "usage": False}]


def test_news_of_a_worker_that_was_replaced_is_not_heard(parent):
    parent.play("ready", "submit aa", "reading aa", "exit 1")
    old = parent.processes[0]
    parent.session._start = bool
    parent.serve(("message", old, {"event": "done", "case": "aa", "record": {}}), ("ended", old, 1))
    assert outcomes(parent) == {}
    assert len(parent.processes) == 2


def test_a_session_that_fails_itself_says_so(parent):
    parent.session._start = lambda: 1 / 0
    parent.serve()
    assert parent.events == [
        {"event": "fatal", "error": "ZeroDivisionError: division by zero"},
        {"event": "ended"},
    ]
