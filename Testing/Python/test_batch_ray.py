# SPDX-License-Identifier: Apache-2.0
"""A cohort with the same bad cases on a Ray cluster of two workers, one of which is killed midway.

What becomes of cases when workers answer, refuse and are lost is tested without a cluster.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
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

from LiverXAILib.batch.cluster import ray_pool
from LiverXAILib.batch.cluster.ray_pool import CaseActor, RayWorkerPool
from LiverXAILib.batch.run import Settings
from LiverXAILib.batch.store import Shard, Store
from LiverXAILib.errors import UsageError


def test_a_lost_worker_changes_nothing_in_the_manifest(tmp_path):
    good = make_tree(tmp_path / "images", 6)
    (tmp_path / "images" / "crash.nrrd").unlink()  # crashes of the process inside a worker do not concern the cluster
    bad = {label: kind for label, (kind, _) in BAD.items() if label != "crash.nrrd"}
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
    assert Counter(state["state"] for state in states.values()) == {"done": 6, "failed": 9}, said
    assert {label: state["kind"] for label, state in states.items() if state["state"] == "failed"} == bad
    assert times_done(output) == Counter(good), "a case was done twice, or lost"
    handed_out = Counter(x["label"] for x in manifest_lines(output) if x.get("state") == "running")
    assert handed_out["patient 2/hang.nii.gz"] == 2, "the lost worker's case went to nobody else"
    assert not Path(f"/proc/{child}").exists(), "what the worker had started outlived it"
    for path in (output / "cases").iterdir():
        assert_whole(path)


# --- a cluster that answers as a test says ------------------------------------------------------------------------


class RayError(Exception):
    """What Ray raises when an actor is lost."""


class Actor:
    """Remote calls of an actor, known by its number and the name of the call or case."""

    def __init__(self, number, wound_down):
        self.ready = SimpleNamespace(remote=lambda: (number, "ready"))
        self.run = SimpleNamespace(remote=lambda case: (number, case["id"]))
        self.wind_down = SimpleNamespace(remote=lambda: wound_down.append(number))


class Ray:
    """A cluster with `resources`."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, resources):
        self.resources, self.actors, self.wound_down, self.killed, self.steps = resources, [], [], [], []

    def init(self, **settings):
        self.settings = settings

    def cluster_resources(self):
        return self.resources

    def remote(self, **needs):
        self.needs = needs
        return lambda kind: SimpleNamespace(remote=lambda *arguments: self.started(kind, arguments))

    def started(self, kind, arguments):
        assert kind is CaseActor
        self.arguments = arguments
        self.actors.append(Actor(len(self.actors), self.wound_down))
        return self.actors[-1]

    def wait(self, calls, num_returns, timeout):
        assert (num_returns, timeout) == (1, 0.1)
        if not self.steps or isinstance(self.steps[0], str):
            return [], calls
        *call, self.answer = self.steps.pop(0)
        assert tuple(call) in calls
        return [tuple(call)], [one for one in calls if one != tuple(call)]

    def get(self, call):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def kill(self, actor):
        self.killed.append(self.actors.index(actor))

    def shutdown(self):
        self.killed.append("cluster")


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Make a pool on a cluster that a test plays: messages to the pool are texts, answers are tuples."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "RAY" not in name})
    monkeypatch.setattr(ray_pool.threading, "Thread", lambda target, daemon: SimpleNamespace(start=bool, join=bool))

    waited = []
    monkeypatch.setattr(ray_pool, "time", SimpleNamespace(sleep=waited.append))

    def make(resources=None, *, workers=2, cpus=4.0, address=None, **settings):
        ray, events = Ray({"CPU": 16} if resources is None else resources), []
        monkeypatch.setitem(sys.modules, "ray", ray)
        store = Store(tmp_path / "out", Shard(2, 3))
        store.cases.mkdir(parents=True, exist_ok=True)
        made = RayWorkerPool(
            store, Settings(**settings), events.append, address=address, workers=workers, cpus_per_worker=cpus
        )

        class Inbox:
            """Holds the next steps of the test, as far as they are messages, and at the end "stop"."""

            def empty(self):
                return not ray.steps or not isinstance(ray.steps[0], str)

            def get(self):
                word, _, name = ray.steps.pop(0).partition(": ")
                return word, {"id": name, "folder": name}

        def play(*steps):
            ray.steps, made._inbox = [*steps, "stop"], Inbox()
            made._run()

        return SimpleNamespace(pool=made, ray=ray, events=events, store=store, play=play, waited=waited)

    return make


def ready(number):
    return number, "ready", {"event": "ready", "model": {"name": "toy"}, "pid": number, "host": "node"}


def done(number, case):
    return number, case, {"event": "finished", "case": case, "state": "done"}


def told(events):
    """The events in short."""
    return [" ".join(str(one[key]) for key in ("event", "case", "state", "kind") if key in one) for one in events]


@pytest.mark.parametrize(
    ("resources", "workers", "settings", "made", "needs", "threads"),
    [
        ({"CPU": 16}, None, {}, 4, {"num_cpus": 4.0}, 4),
        ({"CPU": 10}, None, {}, 2, {"num_cpus": 4.0}, 4),
        ({"CPU": 10}, None, {"threads": 3}, 2, {"num_cpus": 4.0}, 3),
        ({"CPU": 2}, None, {}, 1, {"num_cpus": 2}, 2),
        ({"CPU": 2}, 4, {}, 4, {"num_cpus": 0.5}, 1),
        ({"CPU": 16}, 2, {}, 2, {"num_cpus": 4.0}, 4),
        ({}, None, {}, 1, {"num_cpus": 1}, 1),
        ({}, 2, {}, 2, {"num_cpus": 0.5}, 1),
        ({"CPU": 16, "GPU": 2}, None, {}, 2, {"num_gpus": 1, "num_cpus": 1}, 0),
        ({"CPU": 16, "GPU": 2}, 1, {"threads": 5}, 1, {"num_gpus": 1, "num_cpus": 1}, 5),
        ({"CPU": 16, "GPU": 2}, None, {"devices": ("cpu",)}, 4, {"num_cpus": 4.0}, 4),
    ],
)
def test_a_cluster_gets_as_many_workers_as_it_has_room_for(pool, resources, workers, settings, made, needs, threads):
    one = pool(resources, workers=workers, **settings)
    assert one.pool.free_slots() == 2 * made
    one.play()
    assert len(one.ray.actors) == made
    assert one.ray.needs == {"max_concurrency": 4, "max_restarts": 0, "max_task_retries": 0, **needs}
    output, shard, token, config, limit = one.ray.arguments
    assert (output, shard, token) == (str(one.store.output), {"index": 2, "count": 3}, one.store.token)
    assert config == Settings(**settings).config(one.store) | {"threads": threads}
    assert limit == Settings().time_limit


def test_a_cluster_is_joined_where_it_is_named_or_made_here_and_reports_nothing(pool, monkeypatch):
    monkeypatch.setattr(ray_pool.os, "cpu_count", lambda: 5)
    here = {"include_dashboard": False, "num_cpus": 5, "object_store_memory": 100 << 20}
    usual = {"logging_level": "error", "log_to_driver": False}
    paths = {"runtime_env": {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}}
    for told_by, environment_says, address in [(None, None, None), ("a:1", "b:2", "a:1"), (None, "b:2", "b:2")]:
        if environment_says is not None:
            os.environ["RAY_ADDRESS"] = environment_says
        ray = pool(address=told_by).ray
        root, _, rest = ray.settings["runtime_env"]["env_vars"]["PYTHONPATH"].partition(os.pathsep)
        ray.settings["runtime_env"]["env_vars"]["PYTHONPATH"] = rest
        assert Path(root) == Path(ray_pool.__file__).parents[3]
        assert ray.settings == {"address": address, **usual, **paths, **(here if address is None else {})}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_without_ray_the_message_says_how_to_get_it(pool, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"Ray is not installed: .*scale.*leave out --engine ray"):
        RayWorkerPool(Store(tmp_path), Settings(), print, address=None, workers=1, cpus_per_worker=1)


def test_cases_go_to_the_worker_with_the_least_to_do_once_it_has_loaded_its_model(pool):
    one = pool()
    full = {"event": "fatal", "error": "Full."}
    one.play(
        *("case: aa", "case: bb", "case: cc", "case: dd", "case: ee"),
        *(ready(1), done(1, "aa"), ready(0), done(1, "bb"), (0, "dd", full)),
    )
    assert one.events[:2] == [
        {"event": "worker", "pid": 1, "host": "node"},
        {"event": "ready", "model": {"name": "toy"}},
    ]
    assert told(one.events[2:]) == [
        *("running aa", "running bb", "finished aa done", "running cc", "worker", "ready"),
        *("running dd", "running ee", "finished bb done", "fatal", "ended"),
    ]
    assert sorted(one.pool._calls) == [(0, "ee"), (1, "cc")]


def test_stopping_kills_the_workers_and_leaves_the_cluster(pool):
    one = pool()
    one.play(ready(1), ready(0))
    assert one.waited == [0.1]  # there was nothing to wait for
    one.pool._inbox = SimpleNamespace(put=one.ray.killed.append)
    one.pool.stop()
    assert one.ray.killed == [("stop", None), 1, 0, "cluster"]


def test_what_waits_and_what_is_answered_is_counted(pool):
    one = pool(workers=3)
    for name in ("aa", "bb"):
        one.pool.submit({"id": name})
    assert one.pool.free_slots() == 4
    for event in ("running", "finished"):
        one.pool.acknowledge({"event": event, "case": "aa"})
    assert one.pool.free_slots() == 5
    one.pool.wind_down()
    one.pool.stop()
    sent = [one.pool._inbox.get_nowait() for _ in range(4)]
    assert sent == [("submit", {"id": "aa"}), ("submit", {"id": "bb"}), ("wind down", None), ("stop", None)]


LOST = RayError("The node died.")


def test_the_cases_of_a_lost_worker_are_given_to_others(pool):
    one = pool()
    one.play("case: aa", "case: bb", ready(0), (0, "aa", LOST), (0, "bb", LOST), ready(2), done(2, "aa"))
    assert len(one.ray.actors) == 3  # one was lost, though two of its calls failed
    assert told(one.events) == [
        *("worker", "ready", "running aa", "running bb", "worker", "ready", "running bb", "running aa"),
        *("finished aa done", "ended"),
    ]


@pytest.mark.parametrize("committed", [None, "this", "earlier"])
def test_a_case_whose_workers_are_lost_three_times_is_done_if_the_last_one_committed_it_or_else_lost(pool, committed):
    one = pool(workers=1)
    if committed is not None:
        run = one.store.token if committed == "this" else "earlier"
        (one.store.cases / "aa").mkdir()
        record = {"case": "aa", "run": run}
    steps = [step for number in range(3) for step in (ready(number), (number, "aa", LOST))]
    answered = one.ray.get

    def get(call):
        if call == (2, "aa") and committed is not None:
            (one.store.cases / "aa" / "case.json").write_text(json.dumps(record), encoding="utf-8")
        return answered(call)

    one.ray.get = get
    one.play("case: aa", *steps)
    assert len(one.ray.actors) == 4
    *_, finished, ended = one.events
    assert ended == {"event": "ended"}
    if committed == "this":
        assert finished == {"event": "finished", "case": "aa", "state": "done", "record": record}
    else:
        sentence = "The machines working on this case were lost 3 times."
        failed = {"state": "failed", "kind": "lost", "error": sentence}
        assert finished == {"event": "finished", "case": "aa", **failed}


def test_what_a_lost_worker_has_committed_is_not_done_again(pool):
    one = pool(workers=1)
    record = {"case": "aa", "run": one.store.token}
    (one.store.cases / "aa").mkdir()
    (one.store.cases / "aa" / "case.json").write_text(json.dumps(record), encoding="utf-8")
    one.play("case: aa", "case: bb", ready(0), done(0, "bb"))
    assert one.events[2] == {"event": "finished", "case": "aa", "state": "done", "record": record}
    assert told(one.events[3:]) == ["running bb", "finished bb done", "ended"]


@pytest.mark.parametrize("forgiven", [False, True])
def test_five_workers_lost_in_a_row_end_the_batch(pool, forgiven):
    one = pool(workers=1)
    lost = [(number, "ready", LOST) for number in range(4)]
    between = [ready(4), done(4, "aa"), (4, "bb", LOST)] if forgiven else [(4, "ready", LOST)]
    one.play("case: aa", "case: bb", *lost, *between)
    fatal = {"event": "fatal", "error": "Ray lost 5 workers in a row: The node died."}
    assert [event for event in one.events if event["event"] == "fatal"] == [fatal] * (not forgiven)
    assert len(one.ray.actors) == (6 if forgiven else 5)


def test_when_the_batch_winds_down_only_what_is_begun_is_finished_and_nobody_is_replaced(pool):
    one = pool()
    ends = [(0, "bb", {"event": "dropped"}), (0, "aa", LOST)]
    one.play("case: aa", "case: bb", "case: cc", ready(0), ready(1), "wind down", *ends, "not read")
    assert one.ray.wound_down == [0, 1]
    assert len(one.ray.actors) == 2
    assert told(one.events) == ["worker", "ready", "running aa", "running bb", "worker", "ready", "ended"]
    assert one.ray.steps == ["not read", "stop"]


def test_when_the_batch_winds_down_before_it_begins_nothing_is_waited_for(pool):
    one = pool()
    never = (0, "aa", LOST)
    one.play(ready(0), ready(1), "wind down", never)
    assert (one.waited, one.ray.steps) == ([], [never, "stop"])
    assert told(one.events)[-1] == "ended"


def test_a_pool_that_fails_itself_says_so(pool, caplog):
    one = pool()
    one.ray.started = lambda *about: 1 / 0
    with caplog.at_level(logging.ERROR):
        one.play()
    fatal = {"event": "fatal", "error": "ZeroDivisionError: division by zero"}
    assert one.events == [fatal, {"event": "ended"}]
    assert "The pool has failed" in caplog.text


@pytest.fixture
def actor(tmp_path, monkeypatch):
    """An actor whose session says what `say` holds for the case that it is given."""
    made = SimpleNamespace(say={}, given=[])

    def session(store, config, note, *, time_limit, python):
        made.about = (store.output, store.shard, store.token, config, time_limit, python)
        made.note = note

        def submit(case):
            made.given.append(case["id"])
            note(made.say[case["id"]])

        return SimpleNamespace(submit=submit, wind_down=lambda: made.given.append("wind down"))

    monkeypatch.setattr(ray_pool, "Session", session)
    made.actor = CaseActor(str(tmp_path), {"index": 2, "count": 3}, "token", {"threads": 1}, 7.0)
    return made


def test_an_actor_answers_each_call_with_what_became_of_its_case(actor, tmp_path):
    assert actor.about == (tmp_path, Shard(2, 3), "token", {"threads": 1}, 7.0, sys.executable)
    for event in ({"event": "worker", "pid": 9}, {"event": "ready", "model": {"name": "toy"}}):
        actor.note(event)
    about = {"pid": os.getpid(), "host": os.uname().nodename}
    assert actor.actor.ready() == {"event": "ready", "model": {"name": "toy"}, **about}
    actor.say = {name: {"event": "finished", "case": name, "state": "done"} for name in ("aa", "bb")}
    for name in ("aa", "bb"):
        assert actor.actor.run({"id": name}) == actor.say[name]
    actor.actor.wind_down()
    assert actor.given == ["aa", "bb", "wind down"]
    assert list(actor.actor._answers) == [""]


@pytest.mark.parametrize(
    ("first", "answer"),
    [({"event": "fatal", "error": "Full."}, {"event": "fatal", "error": "Full."}), ({"event": "ended"}, "dropped")],
)
def test_an_actor_whose_session_is_over_answers_all_calls_with_that(actor, first, answer):
    expected = {"event": "dropped"} if answer == "dropped" else answer
    actor.say = {"aa": first}
    assert actor.actor.run({"id": "aa"}) == expected
    actor.note({"event": "ended"})
    assert actor.actor.run({"id": "bb"}) == expected
    assert actor.given == ["aa"]
    assert actor.actor.ready()["event"] == expected["event"]
