# SPDX-License-Identifier: Apache-2.0
"""A worker tells what became of each case, whose fault a failure is, and no patient's name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import queue
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from batch_toys import write_dicom, write_good

import LiverXAILib.inference
import LiverXAILib.models
import LiverXAILib.pipeline
from LiverXAILib._version import __version__
from LiverXAILib.batch import child
from LiverXAILib.batch.cases import content_hash, stamp
from LiverXAILib.batch.store import OutputError, Store, host_name
from LiverXAILib.errors import DeviceError, InputError, UsageError
from LiverXAILib.options import Options

FULL = OSError(28, "No space left on device")
PATIENT = "Quimby^Jane"


class Channel:
    """Keeps the messages to the parent."""

    def __init__(self) -> None:
        self.sent: list[tuple] = []

    def send(self, event, **values):
        self.sent.append((event, values))


@pytest.fixture
def made(tmp_path):
    """Make a worker of a run "r" that has no network."""

    def make(**config):
        usual = {"output": str(tmp_path / "out"), "run": "r", "options": dataclasses.asdict(Options(write=("tables",)))}
        model = SimpleNamespace(
            spec=SimpleNamespace(name="toy", version="2", to_json=lambda: "the card"), sha256=("w1", "w2")
        )
        channel = Channel()
        worker = child._Worker(model, {**usual, "device": "cpu", "keep_names": False, **config}, channel)
        Store(tmp_path / "out").cases.mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(worker=worker, channel=channel, sent=channel.sent, store=worker._store)

    return make


def a_case(path: Path, **changes):
    usual = {"id": "ab", "label": path.name, "name": "case-ab", "folder": "f", "path": str(path), "series": "3"}
    return {**usual, "files": [str(path)], "options": {}, "settings": {"a": 1}, "alone": False, **changes}


def feed(*things):
    """A queue of these things whose end leaves the worker's endless loop."""
    return SimpleNamespace(get=iter(things).__next__)


def test_a_model_is_known_by_its_name_its_card_and_its_weights(made):
    assert made().worker._identity == {
        "name": "toy",
        "version": "2",
        "card_sha256": hashlib.sha256(b"the card").hexdigest(),
        "weights_sha256": ["w1", "w2"],
    }


# --- reading ------------------------------------------------------------------------------------------------------


def test_an_image_is_read_with_its_own_options_and_its_checksums_recorded(made, tmp_path, monkeypatch):
    one = made()
    write_dicom(tmp_path / "ct", slices=2)
    files = sorted((tmp_path / "ct").iterdir())
    read = []
    monkeypatch.setattr(child, "time", SimpleNamespace(time=iter((1000.00049, 1002.12345)).__next__))
    monkeypatch.setattr(Options, "read", lambda self, *about: read.append((self.height, self.write, *about)) or "image")
    case = a_case(tmp_path / "ct", files=[str(path) for path in files[:1]], options={"height": 170.0})
    with pytest.raises(StopIteration):
        one.worker.read_all(feed(case))
    record = logging.LogRecord("x", logging.INFO, "", 0, f"{tmp_path / 'ct'} is odd", None, None)
    assert one.worker.filter(record)
    assert record.getMessage() == "case-ab is odd"
    # Of the folder only the files of this case: there may be other series in it.
    assert read == [(170.0, ("tables",), tmp_path / "ct", files[:1])]
    assert one.sent == [("reading", {"case": "ab"}), ("read", {"case": "ab"})]
    told, options, volume, about = one.worker._read.get_nowait()
    assert (told, options.height, volume) == (case, 170.0, "image")
    assert about["input"] == {"stamp": stamp(files[:1]), "sha256": content_hash(files[:1])}
    assert about["times"] == {"started": 1000.0, "reading": 2.123}


def test_an_image_that_cannot_be_read_is_told_and_the_next_one_read(made, tmp_path):
    one = made()
    good = write_good(tmp_path / "good.nrrd")
    with pytest.raises(StopIteration):
        one.worker.read_all(feed(a_case(tmp_path / "gone.nrrd"), a_case(good, id="cd")))
    assert [(event, values["case"]) for event, values in one.sent] == [
        *(("reading", "ab"), ("failed", "ab"), ("reading", "cd"), ("read", "cd"))
    ]
    failed = one.sent[1][1]
    assert (failed["kind"], failed["phase"], failed["unreachable"]) == ("input", "reading", True)
    assert failed["error"] == "Cannot read case-ab: No such file or directory."


@pytest.mark.parametrize(
    ("error", "phase", "name", "unreachable"),
    [
        (InputError("Odd."), "reading", "there.nii", False),
        (InputError("Odd."), "reading", "gone.nii", True),
        (InputError("Odd."), "analyzing", "gone.nii", False),
        (OSError(5, "Input/output error", "x"), "reading", "there.nii", True),
        (OSError(5, "Input/output error", "x"), "analyzing", "there.nii", False),
    ],
)
def test_only_an_image_that_cannot_be_reached_while_it_is_read_hints_at_a_lost_drive(
    made, tmp_path, error, phase, name, unreachable
):
    (tmp_path / "there.nii").touch()
    one = made()
    one.worker._fail(a_case(tmp_path / name), error, phase)
    assert one.sent[0][1]["unreachable"] is unreachable


# --- whose fault it is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "phase", "kind", "sentence"),
    [
        (OutputError("Full."), "writing", "output", "Full."),
        (FULL, "writing", "output", "[Errno 28] No space left on device"),
        (ValueError("a\n b"), "writing", "error", "ValueError: a b"),
        (KeyError(), "analyzing", "error", "KeyError: KeyError"),
        (FULL, "analyzing", "error", "OSError: [Errno 28] No space left on device"),
        (OSError(13, "Denied", "/a"), "reading", "input", "Cannot read /a: Denied."),
        (OSError("odd"), "reading", "input", "Cannot read None: odd."),
        (InputError("Cut."), "reading", "input", "Cut."),
        (UsageError("No such layer."), "analyzing", "usage", "No such layer."),
        (
            MemoryError(),
            "analyzing",
            "memory",
            "There was not enough memory for this image. Use a machine with more memory, or crop the image.",
        ),
        (
            DeviceError("Free the GPU."),
            "analyzing",
            "memory",
            "There was not enough memory for this image. Free the GPU.",
        ),
    ],
)
def test_a_failure_is_the_fault_of_the_image_the_options_the_machine_or_the_disk(made, error, phase, kind, sentence):
    assert made().worker._classify(error, phase) == (kind, sentence)


def test_whatever_fails_while_nothing_can_be_written_is_the_fault_of_the_disk(made):
    one = made()
    one.store.cases.rmdir()
    kind, sentence = one.worker._classify(ValueError("odd"), "writing")
    assert kind == "output"
    assert sentence.startswith("The results cannot be written")
    assert one.worker._classify(ValueError("odd"), "analyzing") == ("error", "ValueError: odd")


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_names_stay_out_of_sentences_and_of_log_messages_unless_they_are_kept(made, tmp_path, kept):
    one = made(keep_names=kept)
    case = a_case(tmp_path / "Quimby.nii", files=[str(tmp_path / "Quimby.nii"), str(tmp_path / "Jane.raw")])
    one.worker._inside = {"ab": case, "cd": a_case(tmp_path / "Doe.nii", id="cd", name="case-cd")}
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s, Jane.raw and Doe.nii", ("Quimby.nii",), None)
    assert one.worker.filter(record)
    hidden = "case-ab, case-ab and case-cd"
    assert record.getMessage() == ("Quimby.nii, Jane.raw and Doe.nii" if kept else hidden)
    one.worker._fail(case, InputError("Quimby.nii is cut."), "reading")
    assert one.sent[0][1]["error"] == ("Quimby.nii is cut." if kept else "case-ab is cut.")


def test_the_log_shows_where_an_unforeseen_error_arose_without_its_message(made, tmp_path, caplog):
    try:
        int(PATIENT)
    except ValueError as error:
        made().worker._fail(a_case(tmp_path / "a.nii"), error, "analyzing")
    assert "case ab: ValueError" in caplog.text
    assert Path(__file__).name in caplog.text
    assert PATIENT not in caplog.text
    caplog.clear()
    made().worker._fail(a_case(tmp_path / "a.nii"), InputError("Cut."), "analyzing")
    assert caplog.text == ""


# --- analyzing and writing ----------------------------------------------------------------------------------------


@pytest.fixture
def analyzed(made, tmp_path, monkeypatch):
    """Let a worker do one case, whose analysis or writing may fail, and see what it says."""

    def do(*, kept=False, error=None, written_error=None, failures=(), alone=False):
        one = made(keep_names=kept)

        def analyze(self, volume, model, context):
            if error is not None:
                raise error
            one.device = context.device
            context.progress("Segmenting", 0.12345)
            provenance = {"warnings": ["Quimby.nii is tilted."]}
            return SimpleNamespace(
                segmentation=SimpleNamespace(provenance={"device": "cpu"}), provenance=provenance, volume=volume
            )

        def write(analysis, part, writers):
            one.written = (analysis.volume, [writer.name for writer in writers])
            (part / "result.txt").write_text("whole")
            if written_error is not None:
                raise written_error
            return SimpleNamespace(failures=dict(enumerate(failures)), warnings=["No report."])

        monkeypatch.setattr(Options, "analyze", analyze)
        monkeypatch.setattr(LiverXAILib.pipeline, "write_files", write)
        clock = iter((1000.0, 1002.12345, 1002.5, 1006.12349))
        monkeypatch.setattr(child, "time", SimpleNamespace(time=clock.__next__, monotonic=lambda: 1.0))
        about = {"input": {"stamp": "s", "sha256": "h"}, "times": {"started": 1.0, "reading": 2.0}}
        case = a_case(tmp_path / "Quimby.nii", alone=alone)
        one.worker._inside["ab"] = case
        one.worker._read = feed((case, Options(write=("tables",)), "image", about))
        with pytest.raises(StopIteration):
            one.worker.analyze_all()
        one.worker._analyzed.get = functools.partial(one.worker._analyzed.get, block=False)
        with pytest.raises(queue.Empty):
            one.worker.write_all()
        return one

    return do


@pytest.mark.parametrize("kept", [True, False])
def test_a_result_is_committed_with_all_that_it_depends_on(analyzed, tmp_path, kept):
    one = analyzed(kept=kept)
    assert (one.device, one.written) == ("cpu", ("image", ["own-result", "seg", "tables"]))
    assert [event for event, _ in one.sent] == ["analyzing", "progress", "analyzed", "writing", "done"]
    assert one.sent[1][1] == {"case": "ab", "step": "Segmenting", "fraction": 0.123}
    record = one.sent[4][1]["record"]
    assert json.loads((one.store.cases / "f" / "case.json").read_text()) == record
    assert (one.store.cases / "f" / "result.txt").read_text() == "whole"
    assert [path.name for path in one.store.cases.iterdir()] == ["f"]
    times = {"started": 1.0, "reading": 2.0, "analyzing": 2.123, "writing": 3.623, "finished": 1006.123}
    assert record == {
        **{"case": "ab", "label": "case-ab", "folder": "f", "state": "done", "run": "r"},
        "input": {
            **{"path": str(tmp_path / "Quimby.nii") if kept else "case-ab"},
            **{"series": "3", "stamp": "s", "sha256": "h"},
        },
        **{"model": one.worker._identity, "settings": {"a": 1}, "software": __version__, "device": "cpu"},
        **{"host": host_name().split()[0], "times": times},
        "warnings": ["Quimby.nii is tilted." if kept else "case-ab is tilted.", "No report."],
    }


@pytest.mark.parametrize(
    ("wrong", "phase", "kind"),
    [
        ({"error": InputError("No liver.")}, "analyzing", "input"),
        ({"written_error": ValueError("odd")}, "writing", "error"),
        ({"written_error": FULL}, "writing", "output"),
        ({"failures": [ValueError("odd"), FULL]}, "writing", "output"),
        ({"failures": [ValueError("odd"), MemoryError()]}, "writing", "memory"),
    ],
)
def test_a_case_that_fails_leaves_nothing_and_is_told_with_the_reason(analyzed, wrong, phase, kind):
    one = analyzed(**wrong)
    event, told = one.sent[-1]
    assert (event, told["case"], told["phase"], told["kind"]) == ("failed", "ab", phase, kind)
    assert list(one.store.cases.iterdir()) == []


@pytest.mark.parametrize("failed", [{"failures": [ValueError("odd")]}, {"failures": [MemoryError()], "alone": True}])
def test_a_single_output_that_fails_is_a_warning_unless_memory_may_be_short_because_of_other_cases(analyzed, failed):
    assert [event for event, _ in analyzed(**failed).sent][-1] == "done"


@pytest.mark.parametrize("wrong", [{}, {"error": InputError("No liver.")}, {"written_error": ValueError("odd")}])
def test_the_name_of_a_finished_case_is_not_looked_for(analyzed, wrong):
    assert analyzed(**wrong).worker._inside == {}


def test_the_names_of_the_cases_in_progress_are_removed_however_many_images_cannot_be_read(made, tmp_path):
    one = made()
    cases = [a_case(write_good(tmp_path / "Quimby.nrrd"), id="0", name="case-0")]
    cases += [a_case(tmp_path / f"gone{n}.nrrd", id=f"{n}", name=f"case-{n}") for n in range(1, 6)]
    with pytest.raises(StopIteration):
        one.worker.read_all(feed(*cases))
    record = logging.LogRecord("x", logging.INFO, "", 0, "Quimby.nrrd is odd", None, None)
    assert one.worker.filter(record)
    assert record.getMessage() == "case-0 is odd"


def test_the_parent_hears_of_the_progress_four_times_a_second(made, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(child, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    one = made()
    progress = one.worker._progress("ab")
    for number in range(9):
        progress("Segmenting", number / 8)
        clock[0] += 0.125
    assert [values["fraction"] for _, values in one.sent] == [0.0, 0.375, 0.75]


# --- the process --------------------------------------------------------------------------------------------------


@pytest.fixture
def process(monkeypatch):
    """Run the child's `main` in this process, with what it reads, loads and starts replaced."""
    ran = SimpleNamespace(channel=Channel(), threads=[], calls=[], worker=None)
    model = SimpleNamespace(spec=SimpleNamespace(name="toy", version="2", to_json=lambda: "card"), sha256=())
    handler = logging.NullHandler()

    class Thread:
        def __init__(self, *, target, args=(), daemon):
            ran.threads.append((target, args, daemon))

        def start(self):
            ran.calls.append("thread")

    class Worker:
        def __init__(self, model, config, channel):
            ran.worker, self.read_all, self.filter = (model, config, channel), "read all", "filter"
            self.write_all = "write all"

        def analyze_all(self):
            assert handler.filters == ["filter"]
            assert ran.threading.excepthook is child._end_process
            ran.calls.append("analyze all")

    def run(error=None):
        def load(config):
            if error is not None:
                raise error
            return model

        ran.model = model
        monkeypatch.setattr(child, "_load", load)
        return child.main()

    monkeypatch.setattr(child, "Channel", lambda: ran.channel)
    monkeypatch.setattr(child, "_Worker", Worker)
    ran.threading = SimpleNamespace(Thread=Thread)
    monkeypatch.setattr(child, "threading", ran.threading)
    monkeypatch.setattr(child, "faulthandler", SimpleNamespace(enable=lambda: ran.calls.append("faults")))
    monkeypatch.setattr(child, "volunteer_for_the_oom_killer", lambda: ran.calls.append("killer"))
    log = SimpleNamespace(captureWarnings=ran.calls.append, getLogger=lambda: SimpleNamespace(handlers=[handler]))
    log.INFO, log.basicConfig = logging.INFO, lambda level, format, stream: ran.calls.append((level, stream))
    monkeypatch.setattr(child, "logging", log)
    monkeypatch.setattr(child.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"run": "r"}\n{"id": "ab"}\n')))
    ran.run = run
    return ran


def test_the_process_says_who_it_is_and_reads_and_writes_cases_while_it_analyzes_one(process):
    assert process.run() == 0
    about = {"pid": os.getpid(), "host": host_name(), "model": child.identity(process.model)}
    assert process.channel.sent == [("ready", about)]
    assert process.worker == (process.model, {"run": "r"}, process.channel)
    (listen, cases, _), (read, same, _), (write, _, _) = process.threads
    assert (listen, read, write, cases) == (child._listen, "read all", "write all", same)
    assert all(daemon for _, _, daemon in process.threads)
    # The log goes where the parent keeps it: standard output belongs to the messages.
    assert process.calls == ["faults", True, (logging.INFO, child.sys.stderr), "killer", *["thread"] * 3, "analyze all"]


@pytest.mark.parametrize(
    ("error", "sentence", "usage"),
    [
        (ImportError("no", name="torch"), "The Python package 'torch' is missing. In Slicer, press Apply", False),
        (UsageError("No such layer."), "No such layer.", True),
        (InputError("Damaged."), "Damaged.", False),
        (OSError("The drive is gone."), "The drive is gone.", False),
    ],
)
def test_a_process_that_cannot_load_the_model_says_why_and_ends(process, error, sentence, usage):
    assert process.run(error) == 1
    ((event, told),) = process.channel.sent
    assert (event, told["usage"], told["error"][: len(sentence)]) == ("refused", usage, sentence)
    assert (process.worker, process.threads) == (None, [])


def test_the_process_ends_if_one_of_its_threads_does_and_says_where_without_the_message(monkeypatch, caplog):
    ended = []
    monkeypatch.setattr(child, "os", SimpleNamespace(_exit=ended.append))
    monkeypatch.setattr(threading, "excepthook", child._end_process)
    thread = threading.Thread(target=int, args=(PATIENT,))
    thread.start()
    thread.join()
    assert ended == [1]
    assert "A thread has ended: ValueError" in caplog.text
    assert PATIENT not in caplog.text


def test_the_process_ends_with_its_parent(process, monkeypatch):
    ended, todo = [], queue.Queue()
    monkeypatch.setattr(child, "os", SimpleNamespace(_exit=ended.append))
    child._listen(todo)
    assert [todo.get_nowait() for _ in range(2)] == [{"run": "r"}, {"id": "ab"}]
    assert (ended, todo.empty()) == ([0], True)


def test_the_model_is_loaded_onto_the_device_once_the_request_is_valid(monkeypatch):
    asked = []
    model = SimpleNamespace(to=lambda device: ("model", device))
    monkeypatch.setattr(LiverXAILib.inference, "select_device", lambda name: asked.append(name) or "device")
    monkeypatch.setattr(LiverXAILib.models, "load_model", lambda name: asked.append(name) or model)
    monkeypatch.setattr(LiverXAILib.pipeline, "check_request", lambda *about: asked.append(about))
    monkeypatch.setattr(child.RunContext, "limit_threads", lambda self: asked.append(self.threads))
    options = Options(explain=("tumor",), method="hires-cam", layer="deep", sensitivity="0.5")
    config = {"threads": 3, "options": dataclasses.asdict(options), "device": "cpu", "model": "toy"}
    assert child._load(config) == ("model", "device")
    assert asked == [3, "cpu", "toy", (model, ("tumor",), "hires-cam", "deep", "0.5")]
    with pytest.raises(UsageError, match="is not a sensitivity"):
        child._load({**config, "options": {**config["options"], "sensitivity": "much"}})
    assert asked[4:] == [3]  # nothing was loaded
