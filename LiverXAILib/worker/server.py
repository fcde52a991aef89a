# SPDX-License-Identifier: Apache-2.0
"""The child process: holds the model, the image and its segmentation, and processes one request at a time.

``python -m LiverXAILib.worker.server`` exchanges JSON lines over its standard input and output. In: first the
configuration (``folder`` for images, ``threads``), then requests (``id``, ``action`` and its arguments) and
``{"cancel": id}``. Out: for each request "progress" and one of "done" and "failed". It ends when its input does, so
that it never outlives its parent.

The log (standard error) contains actions, times and kinds of errors, but nothing that comes from a user, a file or an
image.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import logging
import os
import platform
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..context import RunContext
from ..errors import DeviceError, UsageError, is_memory
from ..files import remove
from ..progress import CancelToken, Progress
from ..subprocesses import Channel, volunteer_for_the_oom_killer
from ..text import counted
from .wire import KINDS, Explained, pack_analysis, pack_explained, unpack_segmentation, unpack_volume

if TYPE_CHECKING:
    from ..analysis import Analysis
    from ..inference import Segmentation
    from ..models import Model
    from ..volumes.volume import Volume

_log = logging.getLogger("LiverXAI.worker")

#: Maximum number of progress messages per second.
_PROGRESS_RATE = 10.0


def main() -> int:
    """Process requests until the parent closes the input; return the exit code."""
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # Warnings from libraries may contain file names.
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    channel = Channel()
    config = json.loads(sys.stdin.buffer.readline())
    volunteer_for_the_oom_killer()
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    handler = RequestHandler(Path(config["folder"]), channel)
    threading.Thread(target=_listen, args=(requests, handler), daemon=True).start()
    _log.info("LiverXAI %s, Python %s, %s", __version__, platform.python_version(), platform.platform())
    RunContext(threads=config["threads"]).limit_threads()
    while True:
        handler.answer(requests.get())


def _listen(requests: queue.Queue[dict[str, Any]], handler: RequestHandler) -> None:
    """Receive requests; when the parent is gone, end the process, whatever it is doing."""
    code = 0
    try:
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "cancel" in message:
                handler.cancel(message["cancel"])
            else:
                requests.put({"id": message["id"], "action": message["action"], **message})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        _log.error("Invalid request: this process ends")
        code = 2
    remove(handler.folder)
    os._exit(code)


class RequestHandler:
    """Processes requests, and keeps the model, the image and the results loaded between them.

    :param folder: the folder through which images are exchanged.
    """

    def __init__(self, folder: Path, channel: Channel) -> None:
        self.folder = folder
        self._channel = channel
        self._model: tuple[str, Model] | None = None
        self._volume: tuple[str, Volume] | None = None
        self._segmentation: tuple[str, Segmentation] | None = None
        self._analysis: tuple[str, Analysis] | None = None
        self._result = ""  # the token of the analysis's labels: one image may have several results
        self._tokens: dict[int, CancelToken] = {}
        self._lock = threading.Lock()
        self._actions: dict[str, Callable[..., dict[str, Any]]] = {
            "analyze": self._analyze,
            "explain": self._explain,
            "refine": self._refine,
            "write": self._write,
            "compare": self._compare,
            "download": self._download,
            "import": self._import,
            "environment": self._environment,
        }

    def cancel(self, number: int) -> None:
        """Cancel a request that is running or has not begun."""
        self._token(number).cancel()

    def answer(self, request: Mapping[str, Any]) -> None:
        """Carry out a request and send the outcome; never raises."""
        number, action = request["id"], request["action"]
        arguments = {key: value for key, value in request.items() if key not in ("id", "action")}
        token, started = self._token(number), time.monotonic()
        try:
            token.check()
            result = self._actions[action](**arguments, context=RunContext(self._progress(number), token))
        except BaseException as error:
            kind, sentence, details = _classify(error)
            _log.info("%s: %s (%s) after %.2f s", action, kind, type(error).__name__, time.monotonic() - started)
            self._channel.send("failed", id=number, kind=kind, error=sentence, details=details)
        else:
            _log.info("%s: done after %.2f s", action, time.monotonic() - started)
            self._channel.send("done", id=number, result=result)
        finally:
            with self._lock:
                self._tokens.pop(number, None)

    def _token(self, number: int) -> CancelToken:
        with self._lock:
            return self._tokens.setdefault(number, CancelToken())

    def _progress(self, number: int) -> Progress:
        started = time.monotonic()
        last, last_step = 0.0, ""

        def send(step: str, fraction: float) -> None:
            nonlocal last, last_step
            now = time.monotonic()
            if now - last > 1 / _PROGRESS_RATE or step != last_step:
                last, last_step = now, step
                remaining = round((now - started) * (1 - fraction) / fraction, 1) if fraction > 0.05 else None
                self._channel.send("progress", id=number, step=step, fraction=round(fraction, 4), remaining_s=remaining)

        return send

    # --- actions: keyword arguments are those of the request; each returns the result, JSON-ready --------------------
    # A request that fails leaves the analysis as it was, unless its image was replaced.

    def _analyze(
        self,
        image: Mapping[str, Any],
        options: Mapping[str, Any],
        model: str,
        device: str,
        context: RunContext,
    ) -> dict[str, Any]:
        from ..options import Options

        volume = self._get_volume(image)
        loaded = self._get_model(model, context)
        chosen = Options.from_mapping(options)
        analysis = chosen.analyze(volume, loaded, context.part(0.02, 1.0).on(device))
        packed = pack_analysis(analysis, self.folder)
        self._segmentation = (image["token"], analysis.segmentation)
        self._analysis, self._result = (image["token"], analysis), image["token"]
        return packed

    def _explain(
        self,
        image: Mapping[str, Any],
        labels: Mapping[str, Any],
        targets: list[str],
        method: str,
        layer: str | None,
        check: bool,
        model: str,
        device: str,
        context: RunContext,
    ) -> dict[str, Any]:
        from ..explain import Target, explain_all, explain_lesions

        volume = self._get_volume(image)
        loaded = self._get_model(model, context)
        if "labels" in labels:
            self._segmentation = (labels["token"], unpack_segmentation(labels, self.folder, loaded.spec))
        held = self._segmentation
        if held is None or held[0] != labels["token"]:
            raise UsageError("The segmentation to be explained is no longer available. Press Apply again.")
        explanations = explain_all(
            volume,
            loaded,
            held[1],
            targets,
            method,
            layer,
            check=check,
            **context.part(0.02, 0.9).on(device).keywords,
        )
        refusals: list[str] = []
        answers = explain_lesions(
            volume,
            loaded,
            held[1],
            [one for one in map(Target.parse, targets) if one.asks_for_changed_cts],
            refusals=refusals,
            **context.part(0.9, 1.0).on(device).keywords,
        )
        if self._analysis is not None and self._analysis[1].segmentation is held[1]:
            analysis = self._analysis[1]
            asked = {(str(new.target), new.method, new.layer) for new in explanations}
            kept = [old for old in analysis.explanations if (str(old.target), old.method, old.layer) not in asked]
            known = {(old.kind, str(old.target)): old for old in (*analysis.answers, *answers)}
            self._analysis = (
                self._analysis[0],
                dataclasses.replace(analysis, explanations=(*kept, *explanations), answers=tuple(known.values())),
            )
        return pack_explained(Explained(tuple(explanations), tuple(answers), tuple(refusals)), self.folder)

    def _refine(
        self,
        image: Mapping[str, Any],
        labels: Mapping[str, Any],
        decisions: list[dict[str, Any]],
        earlier: list[dict[str, Any]],
        base: str,
        edited: bool,
        left: str,
        who: str,
        sensitivity: str,
        sensitivity_before: str,
        patient: Mapping[str, Any],
        model: str,
        device: str,
        context: RunContext,
    ) -> dict[str, Any]:
        """Apply the reader's decisions to the current labels; recompute the model's own result if it was lost."""
        from ..analysis import Decision
        from ..inference.segmentation import labels_checksum
        from ..inference.sensitivity import STANDARD
        from ..options import Options
        from ..reading import change_sensitivity, refine, resume, undo, with_patient_size

        volume = self._get_volume(image)
        loaded = self._get_model(model, context)
        now = unpack_segmentation(labels, self.folder, loaded.spec).labels if "labels" in labels else None
        measured = self._analysis is not None and self._analysis[0] == image["token"] and self._result == base
        if measured:
            assert self._analysis is not None
            current = self._analysis[1]
        else:
            options = Options(explain=(), answers=False, sensitivity=sensitivity_before, **patient)
            current = options.analyze(volume, loaded, context.part(0.02, 0.8).on(device))
            assert now is not None
            measured = not earlier and _same(now, current.segmentation.labels)
            if not measured:
                before = tuple(map(Decision.from_dict, earlier))
                edited = edited and labels_checksum(now) != left
                current = resume(current, now, before, edited=edited, who=who)
        context.report("Measuring", 0.9)
        if now is not None and not _same(now, current.segmentation.labels):
            current, measured = refine(current, (), now, who=who), True
        current = with_patient_size(current, patient.get("height"), patient.get("weight"))
        asked = tuple(map(Decision.from_dict, decisions))
        while asked and asked[0].kind == "undo":
            current, measured, asked = undo(current), True, asked[1:]
        chosen = (current.own or current).segmentation.provenance.get("sensitivity", {}).get("asked", STANDARD)
        measured = measured or chosen != sensitivity  # another sensitivity is measured anyway
        refined = refine(current, asked, who=who) if asked or not measured else current
        # After the decisions, because they use the numbers that the reader has seen.
        if chosen != sensitivity:
            refined = change_sensitivity(refined, sensitivity)
        packed = pack_analysis(dataclasses.replace(refined, explanations=()), self.folder)
        self._analysis, self._result = (image["token"], refined), labels["token"]
        self._segmentation = (labels["token"], refined.segmentation)
        return packed

    def _write(
        self,
        token: str,
        result: str,
        folder: str,
        dicom_files: list[str],
        options: Mapping[str, Any],
        context: RunContext,
    ) -> dict[str, Any]:
        from ..options import Options

        # By default, no scene: it is written by Slicer, where this process runs.
        chosen = Options.from_mapping(options if "write" in options else {"scene": False, **options})
        chosen.require_valid()
        analysis = self._held_analysis(token, result, "written")
        if dicom_files:
            analysis = _with_dicom_files(analysis, list(map(Path, dicom_files)))
        context.report("Writing", 0.5)
        for writer in chosen.writers():
            writer.check(analysis.volume)
        written = chosen.save(analysis, Path(folder))
        files = {role: str(path) for role, path in written.files.items()}
        return {"files": files, "warnings": written.warnings}

    def _compare(
        self, token: str, result: str, prior: list[str], folder: str, days: list[float] | None, context: RunContext
    ) -> dict[str, Any]:
        from ..followup import compare, write_comparison

        found = compare([*prior, self._held_analysis(token, result, "compared")], days=days, **context.keywords)
        files = {role: str(path) for role, path in write_comparison(found, folder).items()}
        return {"files": files, "summary": found.findings.summary(), "warnings": list(found.findings.remarks)}

    def _download(self, model: str, accept_license: bool, context: RunContext) -> dict[str, Any]:
        from ..models import download

        return {"folder": str(download(model, context.progress, context.cancel, accept_license=accept_license))}

    def _import(self, source: str, context: RunContext) -> dict[str, Any]:
        from ..models import import_model

        context.report("Importing", 0.0)
        name, folder = import_model(source)
        return {"name": name, "folder": str(folder)}

    def _environment(self, context: RunContext) -> dict[str, Any]:
        """Versions, and the available devices, keyed by the value of `device`."""
        import torch

        threads = torch.get_num_threads()
        devices = {"cpu": f"CPU, {counted(threads, 'thread')}"}
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(index)
                devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        if torch.backends.mps.is_available():
            devices["mps"] = "Apple GPU"
        versions = {"LiverXAI": __version__, "Python": platform.python_version(), "torch": torch.__version__}
        return {"devices": devices, "versions": versions, "platform": platform.platform()}

    def _held_analysis(self, token: str, result: str, purpose: str) -> Analysis:
        """The analysis of the image with this token, if it is the result that was asked for."""
        if self._analysis is None or self._analysis[0] != token or self._result != result:
            raise UsageError(
                f"This result is no longer available, so it cannot be {purpose}. Press Apply again, or Measure again."
            )
        return self._analysis[1]

    # --- what stays loaded -------------------------------------------------------------------------------------------

    def _get_model(self, name: str, context: RunContext) -> Model:
        if self._model is None or self._model[0] != name:
            from ..models import load_model

            context.report("Loading the model", 0.0)
            self._model = None
            self._model = (name, load_model(name))
        return self._model[1]

    def _get_volume(self, image: Mapping[str, Any]) -> Volume:
        """The image of the request, which includes the voxels only if they are not already held."""
        if "file" in image:
            from ..volumes.intensities import validate_ct

            volume = unpack_volume(image, self.folder)
            advice = "Choose another volume, or, if you are sure, check 'Accept any intensities' under Advanced."
            array = validate_ct(volume.array, volume.grid, "The image", force=image["force"], advice=advice)
            self._segmentation = self._analysis = None
            self._volume = (image["token"], volume.with_array(array))
        if self._volume is None or self._volume[0] != image["token"]:
            raise UsageError("The image is no longer available. Press Apply again.")
        return self._volume[1]


def _with_dicom_files(analysis: Analysis, files: list[Path]) -> Analysis:
    """Record the files that the image was loaded from, so that DICOM objects of their series can be made."""
    from ..report.dicom_source import files_of_slices

    in_order = [str(path) for path in files_of_slices(files, analysis.volume.grid)]

    def with_files(volume: Volume) -> Volume:
        return dataclasses.replace(volume, metadata={**volume.metadata, "files": in_order})

    labels = with_files(analysis.segmentation.labels)
    return dataclasses.replace(
        analysis,
        volume=with_files(analysis.volume),
        segmentation=dataclasses.replace(analysis.segmentation, labels=labels),
    )


def _same(first: Volume, second: Volume) -> bool:
    """Whether two label maps have the same voxels."""
    return first.shape == second.shape and bool((first.array == second.array).all())


def _classify(error: BaseException) -> tuple[str, str, str]:
    """The kind of an error, a sentence for the user, and details for a bug report."""
    sentence = " ".join(str(error).split()) or type(error).__name__
    details = "".join(traceback.format_exception(error))
    if is_memory(error) and not (isinstance(error, DeviceError) and "memory" not in sentence):
        advice = "Close other programs, crop the image, or choose the CPU under Advanced."
        return "device", f"There was not enough memory. {advice}", details
    for kind, kind_class in KINDS.items():
        if isinstance(error, kind_class):
            return kind, sentence, details
    if isinstance(error, ImportError):
        return "usage", f"A Python package is missing: {sentence}. Press Apply to install it.", details
    # The stack frames without the message, which may contain a file name.
    _log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return "error", f"Something unexpected went wrong ({type(error).__name__}: {sentence}).", details


if __name__ == "__main__":
    sys.exit(main())
