# SPDX-License-Identifier: Apache-2.0
"""The worker process: holds the model; while it analyzes a case, it writes the one before and reads the next one.

``python -m LiverXAILib.batch.child`` exchanges JSON lines over its standard input and output. In: first the
configuration, then cases. Out: "ready", then for each case "reading", "read", "analyzing", "progress", "analyzed",
"writing" and "done" or "failed". It ends when its input does, so that it never outlives its parent.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..context import RunContext
from ..errors import InputError, LiverXAIError, UsageError, is_memory
from ..options import Options
from ..progress import Progress
from ..subprocesses import Channel, volunteer_for_the_oom_killer
from .cases import content_hash, stamp
from .names import without_names
from .store import OutputError, Store, host_name, is_lost_place

if TYPE_CHECKING:
    from ..analysis import Analysis
    from ..models import Model
    from ..pipeline import Written
    from ..volumes.volume import Volume

_log = logging.getLogger(__name__)

#: Maximum number of progress messages per second.
_PROGRESS_RATE = 4.0


def main() -> int:
    """Run until the parent closes the input; return the exit code."""
    faulthandler.enable()
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    channel = Channel()
    config = json.loads(sys.stdin.buffer.readline())
    volunteer_for_the_oom_killer()
    try:
        model = _load(config)
    except ImportError as error:
        advice = (
            "In Slicer, press Apply in the module once: it installs what it needs. Elsewhere, install LiverXAI as "
            "docs/start.md describes."
        )
        channel.send("refused", error=f"The Python package {error.name!r} is missing. {advice}", usage=False)
        return 1
    except (LiverXAIError, OSError) as error:
        channel.send("refused", error=str(error), usage=isinstance(error, UsageError))
        return 1
    todo: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(todo,), daemon=True).start()
    channel.send("ready", pid=os.getpid(), host=host_name(), model=identity(model))
    worker = _Worker(model, config, channel)
    for handler in logging.getLogger().handlers:
        handler.addFilter(worker.filter)
    threading.excepthook = _end_process
    threading.Thread(target=worker.read_all, args=(todo,), daemon=True).start()
    threading.Thread(target=worker.write_all, daemon=True).start()
    worker.analyze_all()
    return 0


def identity(model: Model) -> dict[str, Any]:
    """The identity of a model, JSON-ready: name, version and checksums of card and weights."""
    import hashlib

    card = hashlib.sha256(model.spec.to_json().encode()).hexdigest()
    return {
        "name": model.spec.name,
        "version": model.spec.version,
        "card_sha256": card,
        "weights_sha256": list(model.sha256),
    }


def _load(config: Mapping[str, Any]) -> Model:
    """Load the model onto the device; refuse options that are invalid for any image."""
    from ..inference import select_device
    from ..models import load_model
    from ..pipeline import check_request

    RunContext(threads=config["threads"]).limit_threads()
    options = Options.from_mapping(config["options"])
    options.require_valid()
    device = select_device(config["device"])
    model = load_model(config["model"])
    check_request(model, options.explain, options.method, options.layer, options.sensitivity)
    return model.to(device)


class _Worker:
    """Three threads: one reads, one analyzes and one writes, each one case at a time.

    The parent limits the cases in progress, and thereby the images and results in memory.
    """

    def __init__(self, model: Model, config: Mapping[str, Any], channel: Channel) -> None:
        self._model = model
        self._identity = identity(model)
        self._config = config
        self._channel = channel
        self._options = Options.from_mapping(config["options"])
        self._store = Store(Path(config["output"]), token=config["run"])
        #: The cases in progress, by their ids.
        self._inside: dict[str, dict[str, Any]] = {}
        self._read: queue.Queue[tuple[dict[str, Any], Options, Volume, dict[str, Any]]] = queue.Queue()
        self._analyzed: queue.Queue[tuple[dict[str, Any], Options, Analysis, dict[str, Any]]] = queue.Queue()

    def read_all(self, todo: queue.Queue[dict[str, Any]]) -> None:
        """Read the images of cases as they arrive, in an endless loop."""
        while True:
            self._read_one(todo.get())

    def analyze_all(self) -> None:
        """Analyze cases as they are read, in an endless loop."""
        while True:
            self._analyze(*self._read.get())

    def write_all(self) -> None:
        """Write cases as they are analyzed, in an endless loop."""
        while True:
            self._write(*self._analyzed.get())

    def _read_one(self, case: dict[str, Any]) -> None:
        self._inside[case["id"]] = case
        self._channel.send("reading", case=case["id"])
        started = time.time()
        try:
            options = Options.from_mapping(case["options"], self._options)
            files = [Path(name) for name in case["files"]]
            source = {"stamp": stamp(files), "sha256": content_hash(files)}
            path = Path(case["path"])
            volume = options.read(path, files if path.is_dir() else None)
            seconds = time.time() - started
        except BaseException as error:
            self._fail(case, error, "reading")
            return
        self._channel.send("read", case=case["id"])
        times = {"started": round(started, 3), "reading": round(seconds, 3)}
        self._read.put((case, options, volume, {"input": source, "times": times}))

    def _analyze(self, case: dict[str, Any], options: Options, volume: Volume, record: dict[str, Any]) -> None:
        self._channel.send("analyzing", case=case["id"])
        started = time.time()
        try:
            context = RunContext(self._progress(case["id"]), device=self._config["device"])
            analysis = options.analyze(volume, self._model, context)
        except BaseException as error:
            self._fail(case, error, "analyzing")
            return
        record["times"]["analyzing"] = round(time.time() - started, 3)
        self._channel.send("analyzed", case=case["id"])
        self._analyzed.put((case, options, analysis, record))

    def _write(self, case: dict[str, Any], options: Options, analysis: Analysis, record: dict[str, Any]) -> None:
        from ..pipeline import write_files

        self._channel.send("writing", case=case["id"])
        started = time.time()
        try:
            part = self._store.part(case["folder"])
            self._store.discard(case["folder"])
            # Without parents: if the drive is gone, nothing may be written to its mount point.
            part.mkdir()
            written = write_files(analysis, part, options.writers())
            for error in written.failures.values():
                # Memory may be short because of the other case: the parent tries this one again, alone.
                if is_lost_place(error) or (is_memory(error) and not case["alone"]):
                    raise error
            self._store.probe()
            finished = time.time()
            record["times"] |= {"writing": round(finished - started, 3), "finished": round(finished, 3)}
            record = self._record(case, analysis, written, record)
            self._store.commit(part, case["folder"], record)
        except BaseException as error:
            self._store.discard(case["folder"])
            self._fail(case, error, "writing")
            return
        self._channel.send("done", case=case["id"], record=record)
        self._inside.pop(case["id"], None)

    def _record(
        self, case: dict[str, Any], analysis: Analysis, written: Written, known: dict[str, Any]
    ) -> dict[str, Any]:
        """The record of a finished case: `known` ("input", "times") and everything else that it depends on."""
        return {
            "case": case["id"],
            "label": case["name"],
            "folder": case["folder"],
            "state": "done",
            "run": self._store.token,
            "input": {
                "path": case["path"] if self._config["keep_names"] else case["name"],
                "series": case["series"],
                **known["input"],
            },
            "model": self._identity,
            "settings": case["settings"],
            "software": __version__,
            "device": str(analysis.segmentation.provenance.get("device", "")),
            "host": host_name().split()[0],
            "times": known["times"],
            "warnings": [
                self._telling(text, case) for text in (*analysis.provenance.get("warnings", ()), *written.warnings)
            ],
        }

    def _progress(self, case_id: str) -> Progress:
        last = 0.0

        def send(step: str, fraction: float) -> None:
            nonlocal last
            if time.monotonic() - last > 1 / _PROGRESS_RATE:
                last = time.monotonic()
                self._channel.send("progress", case=case_id, step=step, fraction=round(fraction, 3))

        return send

    def _fail(self, case: dict[str, Any], error: BaseException, phase: str) -> None:
        kind, sentence = self._classify(error, phase)
        sentence = self._telling(sentence, case)
        unreachable = phase == "reading" and (is_lost_place(error) or not os.path.lexists(case["path"]))
        if kind == "error":
            _log.error("case %s: %s", case["id"], _frames(error))
        self._channel.send("failed", case=case["id"], kind=kind, error=sentence, phase=phase, unreachable=unreachable)
        self._inside.pop(case["id"], None)

    def _telling(self, sentence: str, case: Mapping[str, Any]) -> str:
        """Make a sentence about a case suitable for the manifest, tables and logs."""
        if self._config["keep_names"]:
            return sentence
        return without_names(sentence, case["name"], case["label"], [case["path"], *case["files"]])

    def filter(self, record: logging.LogRecord) -> bool:
        """Remove names from log messages about the cases in progress (see :class:`logging.Filter`)."""
        text = record.getMessage()
        for case in list(self._inside.values()):
            text = self._telling(text, case)
        record.msg, record.args = text, None
        return True

    def _classify(self, error: BaseException, phase: str) -> tuple[str, str]:
        """Classify `error`, and describe it in a sentence."""
        sentence = " ".join(str(error).split()) or type(error).__name__
        if phase == "writing":
            if isinstance(error, OutputError):
                return "output", sentence
            try:
                self._store.probe()
            except OutputError as full:
                return "output", str(full)
            if is_lost_place(error):
                return "output", sentence
        if is_memory(error):
            return "memory", "There was not enough memory for this image. " + (
                sentence if isinstance(error, LiverXAIError) else "Use a machine with more memory, or crop the image."
            )
        if isinstance(error, UsageError):
            return "usage", sentence
        if isinstance(error, OSError) and phase == "reading":
            return "input", f"Cannot read {error.filename}: {error.strerror or sentence}."
        if isinstance(error, InputError):
            return "input", sentence
        return "error", f"{type(error).__name__}: {sentence}"


def _frames(error: BaseException | None) -> str:
    """An error's type and stack frames, without its message, which may contain patient data from a header."""
    frames = [] if error is None else traceback.format_tb(error.__traceback__)
    return f"{type(error).__name__}\n{''.join(frames)}"


def _end_process(died: threading.ExceptHookArgs) -> None:
    """End the process if one of its threads cannot go on: the parent would wait for its cases forever."""
    _log.error("A thread has ended: %s", _frames(died.exc_value))
    os._exit(1)


def _listen(todo: queue.Queue[dict[str, Any]]) -> None:
    """Receive cases from the parent; when the parent is gone, end the process, whatever it is doing."""
    for line in sys.stdin.buffer:
        todo.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
