# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by several test files."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# One thread for this process and for each of its children, because test processes run in parallel.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", os.environ["OMP_NUM_THREADS"])
# As in LiverXAI's programs, threads that wait sleep: tests that use several would otherwise spin for seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# numexpr, which nnU-Net imports, starts its threads on import, and no server is forked from a process with threads.
os.environ["NUMEXPR_MAX_THREADS"] = "1"

# Exclude objects from imports during collection from garbage collection, which would scan them again and again.
gc.disable()

# No test depends on the speed of the machine.
settings.register_profile("liverxai", deadline=None)
settings.load_profile("liverxai")


#: The signals by which a process is stopped, as far as the system knows them.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
#: Files that take or wait longest. They run first, so that no process is left with one at the end.
_LONG = ("test_batch_ray", "test_batch_cohort", "test_signals", "test_train_run")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Put long files first; a random order is applied later and remains random."""
    items.sort(key=lambda item: item.path.stem not in _LONG)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session):
    """Start the fork server after collection, when everything is imported and nothing is computed: see forking.py.

    This wrapper is outside the one in which Pytest catches the warnings during collection.
    """
    result = yield
    if session.testscollected and hasattr(os, "fork"):
        from forking import start_server

        start_server()
    return result


@pytest.fixture(scope="session", autouse=True)
def reference_backend():
    """Compute with torch in single precision, whatever is fastest on this machine; tests of backends override this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIVERXAI_BACKEND", "torch float32")
        yield


@pytest.fixture(scope="session", autouse=True)
def settings_of_nobody(tmp_path_factory):
    """Keep tests from reading or writing the settings of the user who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Undo what a library leaves behind in the process of the next test: environment variables, signal handlers."""
    environment, handlers = dict(os.environ), {number: signal.getsignal(number) for number in _SIGNALS}
    yield
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.fixture(scope="module", autouse=True)
def kept_memory():
    """Keep freed memory until the end of a file: otherwise the kernel spends a third of the time zeroing pages."""
    if "torch" not in sys.modules:  # a single file that computes nothing
        yield
        return
    import torch

    from LiverXAILib.inference.backends import keep_freed_memory

    with keep_freed_memory(torch.device("cpu")):
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Compute with one thread in the tests of one file, which is faster for small networks."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def few_border_points(monkeypatch):
    """Examine few points of an organ's border in an analysis, which otherwise is half of its time."""
    monkeypatch.setattr("LiverXAILib.pipeline.POINTS", 10)


@pytest.fixture(scope="module")
def forked_children():
    """Fork the workers that tests of one file start (see forking.py), so that they need not import torch."""
    from forking import let_liverxai_fork

    with pytest.MonkeyPatch.context() as patch:
        let_liverxai_fork(patch)
        yield


@pytest.fixture
def scene():
    """Slicer's scene in the test host, empty before and after the test, without views."""
    import slicerhost

    host = slicerhost.start()
    host.reset()
    yield host.scene
    host.reset()


@pytest.fixture(scope="module")
def opened_panel(forked_children):
    """The module's panel in the host with Qt; its worker is kept for the tests of one file."""
    from slicerhost import qtapplication

    host = qtapplication.start()
    host.reset()
    host.app.testing = True
    panel = qtapplication.Panel(Path(__file__).parents[2] / "LiverXAI" / "LiverXAI.py")
    yield panel
    panel.close()
    host.reset()
    host.app.testing = False


@pytest.fixture
def panel(opened_panel):
    """The panel with an empty scene; errors that PythonQt would print fail the test."""
    from slicerhost import pythonqt

    opened_panel.host.reset()
    pythonqt.problems.clear()
    yield opened_panel
    if opened_panel.widget.runner.busy:
        opened_panel.host.clear()  # closing the scene cancels running work
    assert pythonqt.problems == []


@pytest.fixture(scope="session")
def segmented(tmp_path_factory):
    """Segment CTs of the evaluation data, each once for all tests and test processes of a run."""
    from filelock import FileLock

    from LiverXAILib.inference import segment
    from LiverXAILib.models import load_model
    from LiverXAILib.volumes.io import read_volume

    shared = tmp_path_factory.getbasetemp()  # empty when the run begins
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def segmenting(case: str, model: str = "default"):
        path = shared / f"{case}-{model}.pickle"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                volume = read_volume(Path(os.environ["LIVERXAI_TEST_DATA"]) / "ct" / case / "image.nii.gz")
                path.write_bytes(pickle.dumps(segment(volume, load_model(model), device="cpu")))
            return pickle.loads(path.read_bytes())

    return segmenting


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory):
    """The folder of a tiny model that segments by thresholds."""
    from batch_toys import write_model

    return str(write_model(tmp_path_factory.mktemp("models") / "toy"))
