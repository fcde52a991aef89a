# SPDX-License-Identifier: Apache-2.0
"""Run the command line in a fresh process and record its time by part: the measured process of ``benchmark wait``.

It may run in the process of another checkout of LiverXAI, whose modules it measures from outside: this file imports
nothing of LiverXAI itself, and functions that a checkout lacks are skipped. Called as ``python -c CODE RESULT WARM
WORD...``; RESULT is the JSON file that it writes, WARM the number of further runs in the same process, and the words
are the arguments of the command line.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

#: What is measured: module, name (of a function, or Class.method) and the name of its part of the time. "{}" stands for
#: the name of the function's argument with this number.
_PARTS: tuple[tuple[str, str, str, int | None], ...] = (
    ("LiverXAILib.options", "Options.read", "read the CT", None),
    ("LiverXAILib.volumes.io", "read_volume", "read the CT", None),
    ("LiverXAILib.models.loading", "load_model", "load the model", None),
    ("LiverXAILib.inference.segmenter", "run_stage", "stage {}", 2),
    ("LiverXAILib.inference.segmenter", "outline_again", "outlines", None),
    ("LiverXAILib.inference.segmenter", "segment", "labels", None),
    ("LiverXAILib.explain.explainer", "explain_all", "heat maps", None),
    ("LiverXAILib.explain.border.need", "explain_border", "border analysis", None),
    ("LiverXAILib.explain.counterfactual", "explain_lesions", "counterfactuals", None),
    ("LiverXAILib.measure.measuring", "measure", "measure", None),
    ("LiverXAILib.measure.disagreement", "measure_uncertainty", "uncertainty", None),
)
#: The function that writes outputs: the writers among its arguments are measured one by one.
_WRITING = "LiverXAILib.pipeline", "write_files"
IMPORTS, WAITING, OTHER = "imports", "wait for another thread", "everything else"


class Timeline(threading.local):
    """Seconds of a thread by part; the time of a nested part is not counted twice.

    :ivar seconds: of the main thread; `beside`: of all other threads together.
    """

    #: Shared by all threads; all other attributes belong to one thread.
    _beside: ClassVar[dict[str, float]] = {}

    def __init__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self.seconds: dict[str, float] = {} if main else self._beside
        self._inner: list[float] = []

    @property
    def beside(self) -> dict[str, float]:
        """Seconds of other threads, by part."""
        return self._beside

    def start(self) -> None:
        """Start counting from 0."""
        self.seconds.clear()
        self._beside.clear()

    @contextmanager
    def part(self, name: str) -> Any:
        """Count the time of the block as part `name`."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            own = passed - self._inner.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            if self._inner:
                self._inner[-1] += passed

    def measured(self, function: Callable[..., Any], name: str, argument: int | None = None) -> Callable[..., Any]:
        """Return `function` wrapped so that its time counts as part `name`."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            named = args[argument] if argument is not None and argument < len(args) else None
            with self.part(name.format(getattr(named, "name", named))):
                return function(*args, **kwargs)

        return run


class _Measuring(importlib.abc.MetaPathFinder):
    """Wraps the functions of :data:`_PARTS` when their modules are imported, before others refer to the plain ones."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if name != _WRITING[0] and all(name != module for module, *_ in _PARTS):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_wrap(module: Any) -> None:
            run(module)
            self._wrap(module, name)

        spec.loader.exec_module = run_and_wrap  # type: ignore[method-assign]
        return spec

    def _wrap(self, module: Any, module_name: str) -> None:
        for home, path, part, argument in _PARTS:
            owner, _, name = path.rpartition(".")
            holder = getattr(module, owner, None) if owner else module
            if home == module_name and hasattr(holder, name):
                setattr(holder, name, self._timeline.measured(getattr(holder, name), part, argument))
        if module_name == _WRITING[0] and hasattr(module, _WRITING[1]):
            write = getattr(module, _WRITING[1])
            setattr(module, _WRITING[1], self._with_writers(write))

    def _with_writers(self, write: Callable[..., Any]) -> Callable[..., Any]:
        import dataclasses

        def measured(writer: Any) -> Any:
            changed = {"write": self._timeline.measured(writer.write, f"write: {writer.name}")}
            if getattr(writer, "prepare", None) is not None:
                changed["prepare"] = self._timeline.measured(writer.prepare, f"draw: {writer.name}")
            return dataclasses.replace(writer, **changed)

        @functools.wraps(write)
        def run(analysis: Any, folder: Any, writers: Any, *args: Any, **kwargs: Any) -> Any:
            with self._timeline.part("write: all together"):
                return write(analysis, folder, [measured(writer) for writer in writers], *args, **kwargs)

        return run


def _measure_python(timeline: Timeline) -> None:
    """Count imports, and waiting of the main thread for another one, as separate parts."""
    wait = Future.result
    counted = timeline.measured(wait, WAITING)

    # What another thread waits for are the threads that do its work, such as drawing.
    @functools.wraps(wait)
    def result(*args: Any, **kwargs: Any) -> Any:
        main = threading.current_thread() is threading.main_thread()
        return (counted if main else wait)(*args, **kwargs)

    Future.result = result  # type: ignore[method-assign]
    builtins.__import__ = timeline.measured(builtins.__import__, IMPORTS)
    importlib.import_module = timeline.measured(importlib.import_module, IMPORTS)


def peak_mib() -> float | None:
    """Return the peak memory of this process; None if the system does not report it."""
    try:  # getrusage would report the parent process if that was larger
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        pass
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return None


def _run(words: Sequence[str], timeline: Timeline) -> dict[str, Any]:
    """Run the command line once: wall time, processor time, and seconds by part."""
    timeline.start()
    started, busy = time.perf_counter(), time.process_time()
    with timeline.part(OTHER):
        # By its full name, to import from the checkout under test, which need not be this file's.
        code = importlib.import_module("LiverXAILib.cli").main(list(words))
    return {
        "code": code,
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - busy,
        "parts": dict(timeline.seconds),
        "beside": dict(timeline.beside),
        "peak_mib": peak_mib(),
    }


def main() -> None:
    """Run the command line, and write the result."""
    begun = time.time()
    result, warm, *words = sys.argv[1:]
    timeline = Timeline()
    sys.meta_path.insert(0, _Measuring(timeline))
    _measure_python(timeline)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        runs = [_run(words, timeline) for _ in range(1 + int(warm))]
    Path(result).write_text(json.dumps({"begun": begun, "runs": runs, "ended": time.time()}), encoding="utf-8")


if __name__ == "__main__":
    main()
