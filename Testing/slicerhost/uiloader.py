# SPDX-License-Identifier: Apache-2.0
"""``qt.QUiLoader``: the .ui files of Qt Designer with Slicer's widgets in them."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import pythonqt

#: Widget classes that are not Qt's, by the name that a .ui file uses.
custom_widgets: dict[str, type] = {}


class QUiLoader(QtUiTools.QUiLoader):
    """Loads a .ui file as Slicer does; a widget class or a connection that does not exist is reported."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        for cls in custom_widgets.values():
            self.registerCustomWidget(cls)

    def load(self, device: Any, parent: Any = None) -> Any:
        root = ElementTree.fromstring(bytes(device.readAll().data()))
        for element in root.iter("widget"):
            name = element.get("class", "")
            if name not in custom_widgets and not hasattr(QtWidgets, name):
                pythonqt.report(f"the .ui file has a widget of the unknown class {name!r}")
        # PySide6 cannot connect signals that carry MRML objects.
        connections = root.find("connections")
        wanted = [] if connections is None else [[part.text or "" for part in item] for item in connections]
        if connections is not None:
            root.remove(connections)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.ReadOnly)
        with pythonqt.relaxed():
            widget = super().load(buffer, parent)
        for sender, signal, receiver, slot, *_ in wanted:
            objects = [
                widget if name == widget.objectName else widget.findChild(QtCore.QObject, name)
                for name in (sender, receiver)
            ]
            if None in objects or not hasattr(objects[1], slot.split("(")[0]):
                pythonqt.report(f"the .ui file connects {sender}.{signal} to {receiver}.{slot}, which does not exist")
            else:
                objects[0].connect(signal, getattr(objects[1], slot.split("(")[0]))
        return widget
