# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster as the pool of workers: actors on its nodes hold the model, the driver keeps the manifest.

Each actor has its own :class:`~LiverXAILib.batch.session.Session`, which distinguishes the two ways to lose a worker: a
*case* that crashes or hangs takes down only the process inside the session and is recorded as its own failure; a lost
*node* (or actor) takes down the actor, and its cases are given to another one. Images and results go through the file
system shared by all nodes; Ray transfers only names and records.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...text import how_to_install
from ..run import Settings
from ..session import DEPTH, Emit, Session
from ..store import Store

_log = logging.getLogger(__name__)

#: A case whose actor was lost this many times is recorded as failed, because it may be what brings the nodes down.
_MAX_LOSSES = 3
#: After this many actors lost in a row without finishing a case, the cause is not a case.
_MAX_FAILED_ACTORS = 5
#: Ray's shared memory on our own cluster; small, because little data goes through Ray.
_OBJECT_STORE_BYTES = 100 << 20
#: Time after which the pool looks for new messages, in seconds.
_WAIT_S = 0.1
_ROOT = Path(__file__).resolve().parents[3]


class RayWorkerPool:
    """Distributes cases over actors: one per GPU of the cluster, or one per `cpus_per_worker` cores if it has no GPU.

    :param address: address of a running cluster; None: that in RAY_ADDRESS, or a new one on this machine.
    :param workers: number of actors; None: as many as the cluster has room for.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        emit: Emit,
        *,
        address: str | None,
        workers: int | None,
        cpus_per_worker: float,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError(f"Ray is not installed: {how_to_install('scale')}; or leave out --engine ray.") from error
        self.ends = 1
        self._ray = ray
        self._store = store
        self._emit = emit
        address = address or os.environ.get("RAY_ADDRESS")
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        # No user data may leave the machine: by default, Ray sends usage statistics to its developers.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local: dict[str, Any] = {}
        if address is None:
            local = {"include_dashboard": False, "num_cpus": os.cpu_count(), "object_store_memory": _OBJECT_STORE_BYTES}
        ray.init(
            address=address,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            logging_level="error",
            log_to_driver=False,
            **local,
        )
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if settings.devices != ("cpu",) else 0
        cpus = min(cpus_per_worker, resources.get("CPU", 1))
        self._workers = workers or gpus or max(1, int(resources.get("CPU", 1) // cpus))
        if workers:
            cpus = min(cpus, resources.get("CPU", 1) / workers)
        needs = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": cpus}
        config = settings.config(store) | {"threads": settings.threads or (0 if gpus else max(1, int(cpus)))}
        # Several calls run in each actor at the same time: see DEPTH.
        self._actor_class = ray.remote(max_concurrency=DEPTH + 2, max_restarts=0, max_task_retries=0, **needs)(
            CaseActor
        )
        self._arguments = (str(store.output), asdict(store.shard), store.token, config, settings.time_limit)
        self._waiting: deque[dict[str, Any]] = deque()
        self._actors: dict[Any, dict[str, dict[str, Any]]] = {}
        self._calls: dict[Any, tuple[Any, dict[str, Any] | None]] = {}
        self._losses: dict[str, int] = {}
        self._failed_actors = 0
        self._outstanding = 0
        self._inbox: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # --- the driver's side: see run.WorkerPool ---------------------------------------------------------------------

    def free_slots(self) -> int:
        return DEPTH * self._workers - self._outstanding

    def submit(self, case: dict[str, Any]) -> None:
        self._outstanding += 1
        self._inbox.put(("submit", case))

    def acknowledge(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "finished":
            self._outstanding -= 1

    def wind_down(self) -> None:
        self._inbox.put(("wind down", None))

    def stop(self) -> None:
        self._inbox.put(("stop", None))
        self._thread.join()
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()

    # --- the pool's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            _log.exception("The pool has failed")
            self._emit({"event": "fatal", "error": f"{type(error).__name__}: {error}"})
        self._emit({"event": "ended"})

    def _serve(self) -> None:
        for _ in range(self._workers):
            self._start_actor()
        winding_down = False
        while not self._over:
            while not self._inbox.empty():
                word, case = self._inbox.get()
                if word == "stop":
                    self._over = True
                elif word == "wind down":
                    winding_down = True
                    self._waiting.clear()
                    for actor in self._actors:
                        actor.wind_down.remote()
                else:
                    self._waiting.append(case)
            self._dispatch()
            if self._calls:
                finished, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_WAIT_S)
                for call in finished:
                    self._on_message(call, restart=not winding_down)
            elif not winding_down:  # all workers are ready, and the driver still looks at the cases
                time.sleep(_WAIT_S)
            if winding_down and not any(case for _, case in self._calls.values()):
                self._over = True

    def _start_actor(self) -> None:
        actor = self._actor_class.remote(*self._arguments)
        # Only an actor that has loaded its model receives cases, so no case waits for an actor without a free node.
        self._calls[actor.ready.remote()] = (actor, None)

    def _dispatch(self) -> None:
        while self._waiting and self._actors:
            actor = min(self._actors, key=lambda one: len(self._actors[one]))
            if len(self._actors[actor]) >= DEPTH:
                return
            case = self._waiting.popleft()
            if (record := self._committed(case)) is not None:
                self._emit({"event": "finished", "case": case["id"], "state": "done", "record": record})
                continue
            self._actors[actor][case["id"]] = case
            self._calls[actor.run.remote(case)] = (actor, case)
            self._emit({"event": "running", "case": case["id"]})

    def _committed(self, case: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a case that was committed in this run by an actor that was lost before it could report it."""
        record = self._store.record(case["folder"])
        return record if record is not None and record.get("run") == self._store.token else None

    def _on_message(self, call: Any, restart: bool) -> None:
        actor, case = self._calls.pop(call)
        try:
            message = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self._lose(actor, case, str(error), restart)
            return
        if case is not None:
            self._actors.get(actor, {}).pop(case["id"], None)
        if message["event"] == "ready":
            self._actors[actor] = {}
            self._emit({"event": "worker", "pid": message["pid"], "host": message["host"]})
            self._emit({"event": "ready", "model": message["model"]})
        elif message["event"] != "dropped":
            self._failed_actors = 0 if message["event"] == "finished" else self._failed_actors
            self._emit(message)

    def _lose(self, actor: Any, case: dict[str, Any] | None, error: str, restart: bool) -> None:
        """Give the cases of a lost actor or node to others; called once for each of the actor's calls."""
        if self._actors.pop(actor, None) is not None or case is None:
            self._failed_actors += 1
            if self._failed_actors >= _MAX_FAILED_ACTORS:
                self._emit({"event": "fatal", "error": f"Ray lost {_MAX_FAILED_ACTORS} workers in a row: {error}"})
                return
            if restart:
                self._start_actor()
        if case is None:
            return
        self._losses[case["id"]] = self._losses.get(case["id"], 0) + 1
        if self._losses[case["id"]] < _MAX_LOSSES:
            self._waiting.appendleft(case)
        elif (record := self._committed(case)) is not None:
            self._emit({"event": "finished", "case": case["id"], "state": "done", "record": record})
        else:
            sentence = f"The machines working on this case were lost {_MAX_LOSSES} times."
            self._emit({"event": "finished", "case": case["id"], "state": "failed", "kind": "lost", "error": sentence})


class CaseActor:
    """The actor on a node: a session, with one call for each case."""

    def __init__(
        self, output: str, shard: dict[str, int], token: str, config: dict[str, Any], time_limit: float
    ) -> None:
        from ..store import Shard

        self._answers: dict[str, queue.Queue[dict[str, Any]]] = {"": queue.Queue()}
        self._over: dict[str, Any] | None = None
        store = Store(Path(output), Shard(**shard), token)
        self._session = Session(store, config, self._note, time_limit=time_limit, python=sys.executable)

    def ready(self) -> dict[str, Any]:
        """Wait for the model; return the event "ready" with its identity, or "fatal"."""
        answer = self._answers[""].get()
        return answer | {"pid": os.getpid(), "host": os.uname().nodename if hasattr(os, "uname") else "node"}

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """Run a case; return the event "finished", "fatal" or "dropped"."""
        answer: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers[case["id"]] = answer
        if self._over is not None:
            return self._over
        self._session.submit(case)
        return answer.get()

    def wind_down(self) -> None:
        """Finish the cases that are being analyzed or written; drop the others."""
        self._session.wind_down()

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            self._answers[""].put(event)
        elif event["event"] == "finished":
            self._answers.pop(event["case"]).put(event)
        elif event["event"] in ("fatal", "ended"):
            self._over = self._over or (event if event["event"] == "fatal" else {"event": "dropped"})
            for answer in list(self._answers.values()):
                answer.put(self._over)
