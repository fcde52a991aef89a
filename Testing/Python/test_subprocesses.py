# SPDX-License-Identifier: Apache-2.0
"""Messages of child processes arrive before their end, and no descendants are left running."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from LiverXAILib.subprocesses import ChildProcess, describe_end, process_exists


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a child that runs the given code; return it and its inbox."""
    children = []

    def starting(text: str, threads: int = 0) -> tuple[ChildProcess, queue.Queue]:
        (tmp_path / "toy_child.py").write_text(textwrap.dedent(text), encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        inbox: queue.Queue = queue.Queue()
        with Path(os.devnull).open("ab") as log:
            children.append(ChildProcess(sys.executable, "toy_child", threads=threads, log=log, inbox=inbox))
        return children[-1], inbox

    yield starting
    for child in children:
        child.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_test_processes_are_forked_from_this_one_whatever_was_collected_with_it():
    """A library that starts a thread on import would prevent that unnoticed, and every process would import again."""
    from forking import Process

    told = "import sys; print('test_subprocesses' in sys.modules)"
    with Process([sys.executable, "-c", told], stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=60)[0].strip() == "True"


def news(inbox: queue.Queue) -> list[tuple[str, object]]:
    """All messages, including the end."""
    heard = []
    while not heard or heard[-1][0] != "ended":
        kind, _, value = inbox.get(timeout=60)
        heard.append((kind, value))
    return heard


def test_messages_come_in_order_and_the_end_comes_last(start):
    child, inbox = start("""
        import json, sys
        for line in sys.stdin:
            print(json.dumps({"event": "echo", "value": json.loads(line)}), flush=True)
            if json.loads(line) == "end":
                sys.exit(3)
    """)
    for word in ("one", {"two": 2}, "end"):
        child.send(word)
    echoes = [("message", {"event": "echo", "value": value}) for value in ("one", {"two": 2}, "end")]
    assert news(inbox) == [*echoes, ("ended", 3)]


def test_every_numerical_library_of_a_child_is_told_how_many_threads_it_has(start, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # the user's setting is kept
    for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    _, inbox = start(
        """
        import json, os
        import SimpleITK as sitk
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")
        told = {name: os.environ.get(name) for name in names}
        told["ITK"] = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        print(json.dumps({"event": "threads", "told": told}), flush=True)
        """,
        threads=3,
    )
    told = {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "ITK": 3}
    assert news(inbox) == [("message", {"event": "threads", "told": told}), ("ended", 0)]


@pytest.mark.parametrize(
    ("said", "garbage"),
    [
        (b"hello\n", True),
        (b"[1, 2]\n", True),
        (b"{}\n", True),
        (b'{"event": 5}\n', True),
        (b"[" * 100_000 + b"\n", True),
        (b"\x00\xff\n", True),
        (b'{"event": "cut', False),
        (b"", False),
    ],
    ids=["word", "list", "empty", "number", "deep", "bytes", "cut", "nothing"],
)
def test_what_is_not_a_message_ends_the_child(start, tmp_path, said, garbage):
    (tmp_path / "said").write_bytes(said)
    _, inbox = start(f"""
        import sys, time
        from pathlib import Path
        sys.stdout.buffer.write(Path({str(tmp_path / "said")!r}).read_bytes())
        sys.stdout.flush()
        time.sleep({600 if garbage else 0})
    """)
    assert [kind for kind, _ in news(inbox)] == (["garbage", "ended"] if garbage else ["ended"])


def test_a_kill_ends_all_that_the_child_has_started_and_may_come_twice(start):
    child, inbox = start("""
        import json, subprocess, sys, time
        inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(json.dumps({"event": "started", "pid": inner.pid}), flush=True)
        time.sleep(600)
    """)
    _, _, message = inbox.get(timeout=60)
    child.kill()
    child.kill()
    assert news(inbox) == [("ended", -9 if os.name != "nt" else 1)]
    until = time.monotonic() + 20
    while _runs(message["pid"]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(message["pid"])


def _runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return process_exists(pid)


def test_sending_never_waits_nor_fails_when_nobody_reads(start):
    child, inbox = start("import time; time.sleep(600)")
    child.send("x" * 3_000_000)
    child.send("more")
    child.kill()
    child.send("too late")
    assert [kind for kind, _ in news(inbox)] == ["ended"]


def test_what_is_not_json_is_refused_before_it_is_sent(start):
    child, inbox = start("import sys; sys.stdin.read()")
    with pytest.raises(ValueError, match="not JSON serializable"):
        child.send({"value": object()})
    child.kill()
    assert [kind for kind, _ in news(inbox)] == ["ended"]


def test_ends_are_told_in_words():
    assert describe_end(3) == "exit code 3"
    assert "out of memory" in describe_end(-9)


@pytest.mark.parametrize("number", [0, -1, -5, 10**30])
def test_what_is_not_a_number_of_a_process_is_none(number):
    assert not process_exists(number)
    assert process_exists(os.getpid())
