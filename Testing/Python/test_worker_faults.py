# SPDX-License-Identifier: Apache-2.0
"""Whatever a worker does or sends, poll() never raises, each request ends once, and no image data remain on disk."""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from LiverXAILib.volumes.volume import Volume
from LiverXAILib.worker import WorkerClient, WorkerError

VOLUME = Volume(np.zeros((8, 8, 8), np.int16), np.eye(4), {})
#: A worker that answers the first request with the contents of the file "answer", then waits or ends.
TOY = """
    import json, sys, time
    from pathlib import Path
    sys.stdin.readline()
    request = json.loads(sys.stdin.readline())
    here = Path({here!r})
    sys.stdout.buffer.write((here / "answer").read_bytes().replace(b"NUMBER", str(request["id"]).encode()))
    sys.stdout.flush()
    {then}
"""


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A client whose worker is a toy; its temporary files go to a folder of the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    made = WorkerClient(threads=1)
    yield made
    made.close()
    assert list((tmp_path / "temporary").iterdir()) == []


def answering(monkeypatch, tmp_path: Path, answer: bytes, then: str = "time.sleep(600)") -> None:
    """Make workers answer their first request with `answer`."""
    package = tmp_path / "toy" / "toy_worker"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text(textwrap.dedent(TOY.format(here=str(tmp_path), then=then)))
    (tmp_path / "answer").write_bytes(answer)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "toy"))
    monkeypatch.setattr("LiverXAILib.worker.client.SERVER", "toy_worker.server")


def outcome(client: WorkerClient) -> list:
    """All events except progress until the client is idle, and for a short time after."""
    events, until = [], time.monotonic() + 60
    while client.busy and time.monotonic() < until:
        events += [event for event in client.poll() if event.kind != "progress"]
        time.sleep(0.02)
    time.sleep(0.1)
    return events + client.poll()


def message(**values: object) -> bytes:
    return json.dumps({"id": 1, **values}).encode() + b"\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"hello\n",
        b"\x00\xff\xfe\n",
        b"[]\n",
        b'{"event": "done", "id": 1',
        message(event="done"),
        message(event="done", result=None),
        message(event="done", result=[]),
        message(event="done", result={"segmentation": 5}),
        message(event="done", result={"model": "{}"}),
        message(event="progress"),
        message(event="progress", step="x", fraction="much", remaining_s=None),
        message(event="failed"),
        message(event="failed", kind=["input"], error=5, details=None),
        message(event="failed", kind="input", error=" \t\n ", details=None),
        message(event="failed", kind="input", error="\x1b\x00\u202e", details=None),
        message(event="what"),
        b"",
    ],
    ids=range(17),
)
@pytest.mark.parametrize("then", ["sys.exit(3)", "time.sleep(600)"], ids=["and ends", "and waits"])
def test_an_answer_without_meaning_is_one_failure_in_words(client, monkeypatch, tmp_path, answer, then):
    if then != "sys.exit(3)" and (not answer or not answer.endswith(b"\n")):
        then = "sys.exit(0)"  # a silent worker may be computing
    answering(monkeypatch, tmp_path, answer, then)
    client.analyze(VOLUME, "ct")
    (event,) = outcome(client)
    assert event.kind == "failed"
    assert isinstance(event.error, Exception)
    assert str(event.error).strip()
    assert not client.busy


def test_a_result_whose_files_have_vanished_is_a_failure(client, monkeypatch, tmp_path):
    volume = {"file": "gone.npy", "ijk_to_lps": np.eye(4).tolist(), "metadata": {}}
    explanation = {"heatmap": volume, "target": "liver", "warnings": []}
    answering(monkeypatch, tmp_path, message(event="done", result={"explanations": [explanation]}))
    client.explain(["liver"], "ct", volume=VOLUME)
    (event,) = outcome(client)
    assert isinstance(event.error, WorkerError)
    assert "gone.npy" in event.details


@pytest.mark.parametrize(
    "metadata", [{"x": np.float32(1)}, {"x": object()}, {(1, 2): 3}], ids=["numpy", "object", "key"]
)
def test_what_cannot_be_sent_is_a_failure(client, monkeypatch, tmp_path, metadata):
    answering(monkeypatch, tmp_path, b"")
    client.analyze(Volume(VOLUME.array, VOLUME.ijk_to_lps, metadata), "ct")
    (event,) = outcome(client)
    assert event.kind == "failed"
    assert "cannot be sent to the worker" in str(event.error)


@pytest.mark.parametrize("size", [0, 300_000])
def test_a_worker_that_dies_at_once_is_a_failure_and_the_next_one_starts(client, monkeypatch, tmp_path, size):
    answering(monkeypatch, tmp_path, b"", "sys.exit(0)")
    (tmp_path / "toy" / "toy_worker" / "server.py").write_text("raise SystemExit(4)")
    for _ in range(2):
        client.analyze(Volume(VOLUME.array, VOLUME.ijk_to_lps, {"x": "x" * size}), "ct")
        (event,) = outcome(client)
        assert "exit code 4" in str(event.error)


@pytest.mark.parametrize("end", ["the worker dies", "close"])
def test_an_image_that_is_written_while_the_worker_ends_is_not_left_behind(client, monkeypatch, end):
    begun, ended = threading.Event(), threading.Event()
    folders = []

    def pack(volume, folder):
        folders.append(folder)
        begun.set()
        ended.wait(60)
        folder.mkdir(exist_ok=True)  # as if the folder was removed between two of its files
        (folder / "image.npy").write_bytes(b"voxels")
        return {}

    monkeypatch.setattr("LiverXAILib.worker.client.pack_volume", pack)
    if end == "close":
        client.analyze(VOLUME, "ct")
        assert begun.wait(60)
        threading.Timer(0.2, ended.set).start()
        client.close()
        assert ended.is_set()
    else:
        client._python = "/bin/false"
        client.analyze(VOLUME, "ct")
        assert begun.wait(60)
        (event,) = outcome(client)
        assert event.kind == "failed"
        ended.set()
        client._sending.join()
    assert not folders[0].exists()


def test_a_request_whose_folder_vanishes_is_a_failure(client, monkeypatch, tmp_path):
    answering(monkeypatch, tmp_path, b"")
    start = WorkerClient._start

    def start_without_folder(self):
        start(self)
        self._folder.rmdir()

    monkeypatch.setattr(WorkerClient, "_start", start_without_folder)
    client.analyze(VOLUME, "ct")
    (event,) = outcome(client)
    assert event.kind == "failed"
    assert "cannot be sent to the worker" in str(event.error)


def test_a_worker_that_cannot_be_started_is_an_error_and_leaves_nothing(client):
    client._python = str(Path(sys.executable).parent / "missing")
    with pytest.raises(WorkerError, match="cannot be started"):
        client.analyze(VOLUME, "ct")
    assert not client.busy
