# SPDX-License-Identifier: Apache-2.0
"""Tests with a separate panel: all panels of a module are notified of its unloading, and share the font."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from batch_toys import phantom
from panel_toys import apply_and_wait, clipped_texts, prepare, wait_idle, wait_running
from worker_toys import alive, roomy_phantom

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")

MODULE = Path(__file__).parents[2] / "LiverXAI" / "LiverXAI.py"


@pytest.fixture
def host(forked_children):
    """The host in which the test opens panels."""
    from slicerhost import pythonqt

    host = qtapplication.start()
    host.clear()
    pythonqt.problems.clear()
    host.app.testing = True
    yield host
    host.clear()
    host.app.testing = False
    assert pythonqt.problems == []


@pytest.fixture
def font():
    """Set the size of the application's font, which is restored afterwards."""
    from PySide6 import QtGui, QtWidgets

    application = QtWidgets.QApplication.instance()
    usual = application.font()

    def enlarge(scale):
        larger = QtGui.QFont(usual)
        larger.setPointSizeF(usual.pointSizeF() * scale)
        application.setFont(larger)

    yield enlarge
    application.setFont(usual)


def test_unloading_the_module_during_the_run_leaves_no_process(host, toy_model):
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


@pytest.mark.parametrize(("width", "scale"), [(330, 1.0), (440, 1.0), (660, 1.5), (880, 2.0)])
def test_no_text_is_clipped_on_a_small_screen_or_with_large_fonts(host, font, toy_model, width, scale):
    """A panel of 330 pixels leaves 950 of a 1280×720 screen to the views; large fonts stand for high-DPI screens."""
    font(scale)
    panel = qtapplication.Panel(MODULE, size=(width, 650))
    prepare(panel, phantom(lesions=2), toy_model, "both")
    apply_and_wait(panel)
    panel.ui.advancedButton.collapsed = False
    wait_idle(panel)
    qtapplication.process_events()
    assert not panel.scroll.horizontalScrollBar().visible, "the panel is wider than its place"
    for method in range(panel.ui.methodSelector.count):  # each has its own hint, of up to three lines
        panel.ui.methodSelector.setCurrentIndex(method)
        # Wrapped labels request their height only after they have a width: the layout takes a few iterations.
        with contextlib.suppress(AssertionError):
            qtapplication.wait_until(lambda: clipped_texts(panel) == [], seconds=5)
        assert clipped_texts(panel) == [], panel.ui.methodSelector.currentText
    panel.close()
