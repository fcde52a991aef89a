# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the CTK widgets that the panel uses, with only the properties and signals it needs."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

_HEADER = 24


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A header with a triangle; a click on it hides the contents below."""

    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, _HEADER, 0, 0)
        self.setFocusPolicy(QtCore.Qt.TabFocus)
        self.setSizePolicy(QtWidgets.QSizePolicy.Preferred, QtWidgets.QSizePolicy.Preferred)

    def _get_text(self) -> str:
        return self._text

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, collapsed: bool) -> None:
        self._collapsed = bool(collapsed)
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget):
                child.setVisible(not self._collapsed)
        self.setMaximumHeight(_HEADER if self._collapsed else 16777215)
        self.updateGeometry()
        self.contentsCollapsed.emit(self._collapsed)

    text = QtCore.Property(str, _get_text, _set_text)
    collapsed = QtCore.Property(bool, _get_collapsed, _set_collapsed)

    def childEvent(self, event: Any) -> None:
        if self._collapsed and event.added() and event.child().isWidgetType():
            event.child().hide()

    def showEvent(self, event: Any) -> None:
        if self._collapsed:
            self._set_collapsed(True)

    def mousePressEvent(self, event: Any) -> None:
        if event.position().y() < _HEADER:
            self._set_collapsed(not self._collapsed)

    def keyPressEvent(self, event: Any) -> None:
        if event.key() == QtCore.Qt.Key_Space:
            self._set_collapsed(not self._collapsed)

    def paintEvent(self, event: Any) -> None:
        painter = QtGui.QPainter(self)
        area = QtCore.QRect(0, 0, self.width, _HEADER - 2)
        painter.fillRect(area, self.palette.color(QtGui.QPalette.Button).darker(107))
        option = QtWidgets.QStyleOption()
        option.initFrom(self)
        option.rect = QtCore.QRect(6, 5, 12, 12)
        arrow = QtWidgets.QStyle.PE_IndicatorArrowRight if self._collapsed else QtWidgets.QStyle.PE_IndicatorArrowDown
        self.style().drawPrimitive(arrow, option, painter, self)
        painter.drawText(area.adjusted(26, 0, 0, 0), QtCore.Qt.AlignVCenter, self._text)


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider and a spin box for one number."""

    valueChanged = QtCore.Signal(float)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Horizontal)
        self._spin = QtWidgets.QDoubleSpinBox()
        self._spin.setObjectName("")
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider)
        row.addWidget(self._spin)
        self.setFocusProxy(self._slider)
        self._slider.setRange(0, 1000)
        self._slider.valueChanged.connect(self._slid)
        self._spin.valueChanged.connect(self._typed)

    def _slid(self, position: int) -> None:
        low, high = self._spin.minimum, self._spin.maximum
        self._spin.setValue(low + (high - low) * position / 1000)

    def _typed(self, value: float) -> None:
        low, high = self._spin.minimum, self._spin.maximum
        blocked = self._slider.blockSignals(True)
        self._slider.setValue(round(1000 * (value - low) / (high - low)) if high > low else 0)
        self._slider.blockSignals(blocked)
        self.valueChanged.emit(value)

    minimum = QtCore.Property(float, lambda self: self._spin.minimum, lambda self, x: self._spin.setMinimum(x))
    maximum = QtCore.Property(float, lambda self: self._spin.maximum, lambda self, x: self._spin.setMaximum(x))
    singleStep = QtCore.Property(float, lambda self: self._spin.singleStep, lambda self, x: self._spin.setSingleStep(x))
    value = QtCore.Property(float, lambda self: self._spin.value, lambda self, x: self._spin.setValue(x))


class ctkPathLineEdit(QtWidgets.QWidget):
    """A path that can be typed, or chosen with a button."""

    currentPathChanged = QtCore.Signal(str)
    Files, Dirs = 0x0001, 0x0002

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._edit, self._browse = QtWidgets.QLineEdit(), QtWidgets.QToolButton()
        self._filters = self.Files
        self._browse.setText("…")
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._edit)
        row.addWidget(self._browse)
        self.setFocusProxy(self._edit)
        self._edit.textChanged.connect(self.currentPathChanged.emit)

    def _set_filters(self, filters: int) -> None:
        self._filters = filters

    currentPath = QtCore.Property(str, lambda self: self._edit.text, lambda self, x: self._edit.setText(x))
    filters = QtCore.Property(int, lambda self: self._filters, _set_filters)


classes = (ctkCollapsibleButton, ctkSliderWidget, ctkPathLineEdit)
