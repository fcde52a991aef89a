# SPDX-License-Identifier: Apache-2.0
"""The module is unloaded while it works. No other panel may be open then: Slicer tells all panels of a module."""

from __future__ import annotations

from pathlib import Path

import pytest
from panel_toys import prepare, wait_running
from worker_toys import alive, roomy_phantom

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")

MODULE = Path(__file__).parents[2] / "LiverXAI" / "LiverXAI.py"


@pytest.mark.usefixtures("forked_children")
def test_unloading_the_module_during_the_run_leaves_no_process(toy_model):
    from slicerhost import pythonqt

    host = qtapplication.start()
    host.clear()
    pythonqt.problems.clear()
    host.app.testing = True
    first = qtapplication.Panel(MODULE)
    prepare(first, roomy_phantom(), toy_model)
    first.choose(first.ui.methodSelector, "occlusion")
    first.click(first.ui.applyButton)
    wait_running(first)
    pid = first.widget.runner.client.pid
    first.close()
    assert not alive(pid)
    second = qtapplication.Panel(MODULE)
    assert second.ui.inputSelector.currentNode() is not None
    second.close()
    host.clear()
    host.app.testing = False
    assert pythonqt.problems == []
