# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# One thread for each process, this one and those it starts, because test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", os.environ["OMP_NUM_THREADS"])

# What is imported while tests are collected is no garbage, and is not looked through again and again.
gc.disable()

# No test depends on how fast the machine is.
settings.register_profile("liverxai", deadline=None)
settings.load_profile("liverxai")


#: Files that take a minute or more. Processes begin with them, so that none works alone at the end.
_LONG = ("test_train_run", "test_signals", "test_batch_ray", "test_batch_cohort", "test_explain_counterfactual")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Long files first; a random order comes after this, and stays random."""
    items.sort(key=lambda item: item.path.stem not in _LONG)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session):
    """When tests have been collected, all they import is here and nothing has been computed: see forking.py.

    This wrapper is outside the one in which Pytest catches the warnings of a collection.
    """
    result = yield
    if session.testscollected and hasattr(os, "fork"):
        from forking import start_server

        start_server()
    return result


@pytest.fixture(scope="session", autouse=True)
def reference_backend():
    """Tests compute with torch in single precision, whatever is fastest on this machine; tests of backends say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIVERXAI_BACKEND", "torch float32")
        yield


@pytest.fixture(scope="session", autouse=True)
def settings_of_nobody(tmp_path_factory):
    """Tests neither read nor write the settings of the user who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield


@pytest.fixture(scope="module", autouse=True)
def kept_memory():
    """Freed memory is kept to the end of a file: otherwise the kernel spends a third of the time on zeroing pages."""
    if "torch" not in sys.modules:  # a file alone that computes nothing
        yield
        return
    import torch

    from LiverXAILib.inference.backends import keep_freed_memory

    with keep_freed_memory(torch.device("cpu")):
        yield


@pytest.fixture(scope="module")
def one_thread():
    """The tests of one file compute with one thread: small networks are faster so, and other files do not notice."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def forked_children():
    """The workers that tests of one file start are forked (see forking.py) instead of importing torch anew."""
    from forking import let_liverxai_fork

    with pytest.MonkeyPatch.context() as patch:
        let_liverxai_fork(patch)
        yield


@pytest.fixture
def scene():
    """Slicer's scene in the test host, empty before and after the test."""
    import slicerhost

    host = slicerhost.start()
    host.clear()
    yield host.scene
    host.clear()


@pytest.fixture(scope="module")
def opened_panel(forked_children):
    """The module's panel in the host with Qt; its worker stays alive for the tests of one file."""
    from slicerhost import qtapplication

    host = qtapplication.start()
    host.clear()
    host.app.testing = True
    panel = qtapplication.Panel(Path(__file__).parents[2] / "LiverXAI" / "LiverXAI.py")
    yield panel
    panel.close()
    host.clear()
    host.app.testing = False


@pytest.fixture
def panel(opened_panel):
    """The panel with an empty scene; what PythonQt would have complained about fails the test."""
    from slicerhost import pythonqt

    opened_panel.host.clear()
    pythonqt.problems.clear()
    yield opened_panel
    if opened_panel.widget.runner.busy:
        opened_panel.host.clear()  # closing the scene ends what runs
    assert pythonqt.problems == []


@pytest.fixture(scope="session")
def segmented(tmp_path_factory):
    """Segments CTs of the evaluation data, each once for all tests and test processes of one run."""
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
