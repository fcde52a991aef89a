# SPDX-License-Identifier: Apache-2.0
"""The host with Qt: ``qt``, ``ctk``, MRML widgets, and a scripted module's panel on the screen or off-screen."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from . import pythonqt

qt = pythonqt.install()

import PySide6  # noqa: E402
import slicer  # noqa: E402
from PySide6 import QtCore, QtWidgets  # noqa: E402
from PySide6.QtTest import QTest  # noqa: E402

from . import host, modules  # noqa: E402


class QtApplication(host.Application):
    """``slicer.app`` with its Qt part."""

    def __init__(self, started: host.Host) -> None:
        super().__init__(started)
        self._module_manager = started.app.moduleManager()

    applicationName = "Slicer"

    def clipboard(self) -> Any:
        return QtWidgets.QApplication.clipboard()

    def processEvents(self, flags: Any = None) -> None:
        QtWidgets.QApplication.processEvents()


def start() -> host.Host:
    """The host with Qt; the same one on each call."""
    started = host.start()
    if not isinstance(started.app, QtApplication):
        application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["slicerhost"])
        application.setStyle("Fusion")
        started.app = slicer.app = QtApplication(started)
        started.app.testing = True  # as Slicer --testing: message boxes are logged, not shown
        started.qt_application = application
        from . import ctkwidgets, mrmlwidgets, uiloader

        sys.modules["ctk"] = ctk = ModuleType("ctk")
        for cls in ctkwidgets.classes:
            setattr(ctk, cls.__name__, cls)
        for cls in mrmlwidgets.classes:
            setattr(slicer, cls.__name__, cls)
        uiloader.custom_widgets.update({cls.__name__: cls for cls in (*ctkwidgets.classes, *mrmlwidgets.classes)})
        vars(qt)["QUiLoader"] = uiloader.QUiLoader
    return started


class Panel:
    """A module's panel as Slicer makes it: ``setup``, ``enter``; and ``exit``, ``cleanup`` at the end."""

    def __init__(self, path: str | Path, *, size: tuple[int, int] = (480, 900)) -> None:
        self.host = start()
        self.module = modules.load_module(self.host, path)
        name = Path(path).stem
        self.parent = slicer.qMRMLWidget()
        self.parent.setLayout(QtWidgets.QVBoxLayout())
        self.parent.setMRMLScene(self.host.scene)
        self.scroll = QtWidgets.QScrollArea()  # Slicer's module panel scrolls
        self.scroll.setWidgetResizable(True)
        self.scroll.setFrameShape(QtWidgets.QFrame.NoFrame)
        self.scroll.setWidget(self.parent)
        self.widget = getattr(self.module, f"{name}Widget")(self.parent)
        self.widget.setup()
        self.scroll.resize(*size)
        self.scroll.show()
        self.widget.enter()
        process_events()

    @property
    def ui(self) -> Any:
        return self.widget.ui

    def click(self, widget: Any) -> None:
        """Press and release the left mouse button in the center of a widget."""
        assert widget.enabled, f"{widget.name} is disabled"
        self.scroll.ensureWidgetVisible(widget)
        process_events()
        QTest.mouseClick(widget, QtCore.Qt.LeftButton)
        process_events()

    def choose(self, combo: Any, data: Any) -> None:
        """Choose the item with `data` in a combo box with the keyboard, as a user would."""
        index = combo.findData(data)
        assert index >= 0, f"{combo.name} has no item {data!r}"
        combo.setFocus()
        last = combo.count - 1
        if min(index, last - index) + 1 < abs(index - combo.currentIndex):
            QTest.keyClick(combo, QtCore.Qt.Key_Home if index < last - index else QtCore.Qt.Key_End)
        while combo.currentIndex != index:
            before = combo.currentIndex
            QTest.keyClick(combo, QtCore.Qt.Key_Down if before < index else QtCore.Qt.Key_Up)
            assert combo.currentIndex != before, f"{combo.name} does not follow the keys"
        process_events()

    def close(self) -> None:
        """Remove the panel as Slicer does when the module is unloaded or reloaded."""
        self.widget.exit()
        self.host.app.moduleManager().unload(self.widget.moduleName)
        for widget in self.parent.findChildren(slicer.qMRMLWidget):
            widget.setMRMLScene(None)  # C++ widgets stop observing the scene when they are deleted
        self.scroll.close()
        self.scroll.deleteLater()
        process_events()


def run_event_loop_holding_the_gil(until: Callable[[], bool], seconds: float = 120) -> None:
    """Run the event loop until `until` holds, as Slicer does: its main loop keeps Python's global lock.

    Unlike PySide, CTK starts Qt's loop from C++ and never releases the lock. Threads of Python run only while the main
    thread runs Python code in slots, such as those of timers.
    """
    library = Path(PySide6.__file__).parent / "Qt" / "lib" / "libQt6Core.so.6"
    run = ctypes.PyDLL(str(library))._ZN16QCoreApplication4execEv  # QCoreApplication::exec()
    end, timer = time.monotonic() + seconds, QtCore.QTimer()

    def check() -> None:
        if until() or time.monotonic() > end:
            QtCore.QCoreApplication.quit()

    timer.timeout.connect(check)
    timer.start(50)
    run()
    timer.stop()
    assert until(), f"waited {seconds} s in vain"


def process_events() -> None:
    """Process all pending events, including deletions."""
    QtWidgets.QApplication.processEvents()
    QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.DeferredDelete)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Run the event loop until `condition` holds."""
    end = time.monotonic() + seconds
    # Qt ignores WaitForMoreEvents where the time is limited, and asking again and again takes a processor from the
    # worker that is waited for. Without a limit, the timer's events end the wait.
    timer, flags = QtCore.QTimer(), QtCore.QEventLoop.AllEvents | QtCore.QEventLoop.WaitForMoreEvents
    timer.start(10)
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        QtWidgets.QApplication.processEvents(flags)
    timer.stop()
