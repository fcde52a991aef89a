# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the MRML widgets that the panel uses, over the real scene."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .pythonqt import emit


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that has the scene and passes it on to its children."""

    mrml_signals = ("mrmlSceneChanged(vtkMRMLScene*)",)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            emit(self, "mrmlSceneChanged(vtkMRMLScene*)", scene)


class qMRMLSortFilterProxyModel(QtCore.QObject):
    """The filter of nodes in a combo box."""

    def __init__(self, combo: Any) -> None:
        super().__init__(combo)
        self._hidden: list[str] = []

    def _hide(self, identifiers: Any) -> None:
        self._hidden = list(identifiers)
        self.parent()._fill()

    hiddenNodeIDs = QtCore.Property("QStringList", lambda self: list(self._hidden), _hide)


class qMRMLNodeComboBox(qMRMLWidget):
    """A combo box for the nodes of some classes that follows the scene."""

    mrml_signals = (*qMRMLWidget.mrml_signals, "currentNodeChanged(vtkMRMLNode*)")

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._combo = QtWidgets.QComboBox()
        self._proxy = qMRMLSortFilterProxyModel(self)
        self._types: list[str] = []
        self._flags = {"noneEnabled": False, "addEnabled": True, "removeEnabled": True, "showChildNodeTypes": True}
        self._nodes: list[Any] = []
        self._current: Any = None
        self._observers: list[int] = []
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._combo)
        self.setFocusProxy(self._combo)
        self._combo.activated.connect(self._activated)

    def setMRMLScene(self, scene: Any) -> None:
        for tag in self._observers:
            self._scene.RemoveObserver(tag)
        events = slicer.vtkMRMLScene
        self._observers = []
        if scene is not None:
            for event in (events.NodeAddedEvent, events.NodeRemovedEvent, events.EndCloseEvent, events.EndImportEvent):
                self._observers.append(scene.AddObserver(event, self._scene_changed))
        super().setMRMLScene(scene)
        self._fill()

    def sortFilterProxyModel(self) -> Any:
        return self._proxy

    def currentNode(self) -> Any:
        return self._current

    def setCurrentNode(self, node: Any) -> None:
        self._select(node if node is not None and node in self._nodes else None)

    def _scene_changed(self, caller: Any, event: str) -> None:
        if not (self._scene.IsClosing() or self._scene.IsImporting()):
            self._fill()

    def _fill(self) -> None:
        scene, current = self._scene, self._current
        self._nodes = []
        if scene is not None:
            for index in range(scene.GetNumberOfNodes()):
                node = scene.GetNthNode(index)
                exact = node.GetClassName() in self._types
                child = self._flags["showChildNodeTypes"] and any(node.IsA(name) for name in self._types)
                hidden = node.GetHideFromEditors() or node.GetID() in self._proxy.hiddenNodeIDs
                if (exact or child) and not hidden:
                    self._nodes.append(node)
        self._combo.clear()
        if self._flags["noneEnabled"]:
            self._combo.addItem("None")
        for node in self._nodes:
            self._combo.addItem(node.GetName())
        self._select(current if current in self._nodes else None)

    def _select(self, node: Any) -> None:
        offset = 1 if self._flags["noneEnabled"] else 0
        self._combo.setCurrentIndex(self._nodes.index(node) + offset if node is not None else offset - 1)
        if node is not self._current:
            self._current = node
            emit(self, "currentNodeChanged(vtkMRMLNode*)", node)

    def _activated(self, index: int) -> None:
        index -= 1 if self._flags["noneEnabled"] else 0
        self._select(self._nodes[index] if index >= 0 else None)

    def _set_types(self, types: Any) -> None:
        self._types = list(types)
        self._fill()

    def _flag(name: str) -> Any:  # type: ignore[misc]
        def put(self: Any, value: bool) -> None:
            self._flags[name] = bool(value)
            self._fill()

        return QtCore.Property(bool, lambda self: self._flags[name], put)

    nodeTypes = QtCore.Property("QStringList", lambda self: list(self._types), _set_types)
    noneEnabled, addEnabled = _flag("noneEnabled"), _flag("addEnabled")
    removeEnabled, showChildNodeTypes = _flag("removeEnabled"), _flag("showChildNodeTypes")


class qMRMLSegmentsTableView(qMRMLWidget):
    """The segments of a segmentation node: shown or not, color, name."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._tags: list[tuple[Any, int]] = []
        self._table = QtWidgets.QTableWidget(0, 3)
        self._table.setHorizontalHeaderLabels(["", "", "Name"])
        self._table.horizontalHeader().setStretchLastSection(True)
        self._table.verticalHeader().hide()
        self._table.setColumnWidth(0, 28)
        self._table.setColumnWidth(1, 28)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._table)
        self._table.itemChanged.connect(self._checked)

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        for observed, tag in self._tags:
            observed.RemoveObserver(tag)
        self._node, self._tags = node, []
        if node is not None:
            segments = node.GetSegmentation()
            for event in (segments.SegmentAdded, segments.SegmentRemoved, segments.SegmentModified):
                self._tags.append((segments, segments.AddObserver(event, self._changed)))
        self._changed(None, "")

    def _changed(self, caller: Any, event: str) -> None:
        table, blocked = self._table, self._table.blockSignals(True)
        identifiers = list(self._node.GetSegmentation().GetSegmentIDs()) if self._node is not None else []
        table.setRowCount(len(identifiers))
        for row, identifier in enumerate(identifiers):
            segment = self._node.GetSegmentation().GetSegment(identifier)
            shown = QtWidgets.QTableWidgetItem()
            shown.setData(QtCore.Qt.UserRole, identifier)
            display = self._node.GetDisplayNode()
            visible = display is None or display.GetSegmentVisibility(identifier)
            shown.setCheckState(QtCore.Qt.Checked if visible else QtCore.Qt.Unchecked)
            color = QtWidgets.QTableWidgetItem()
            color.setBackground(QtGui.QColor.fromRgbF(*segment.GetColor()))
            for column, item in enumerate((shown, color, QtWidgets.QTableWidgetItem(segment.GetName()))):
                table.setItem(row, column, item)
        table.blockSignals(blocked)

    def _checked(self, item: Any) -> None:
        if item.column() == 0:
            shown = item.checkState() == QtCore.Qt.Checked
            self._node.GetDisplayNode().SetSegmentVisibility(item.data(QtCore.Qt.UserRole), shown)


class qMRMLSegmentationShow3DButton(QtWidgets.QPushButton):
    """A toggle button that makes surfaces of the segmentation, or removes them, as in Slicer."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._tags: list[int] = []
        self.setText("Show 3D")
        self.setCheckable(True)
        self.setEnabled(False)
        QtCore.QObject.connect(self, QtCore.SIGNAL("toggled(bool)"), self._toggled)

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        if node is self._node:
            return
        for tag in self._tags:
            self._node.RemoveObserver(tag)
        self._node, self._tags = node, []
        if node is not None:
            segmentation = slicer.vtkSegmentation
            events = (segmentation.SegmentAdded, segmentation.SegmentRemoved)
            for event in ("ModifiedEvent", *events, segmentation.ContainedRepresentationNamesModified):
                self._tags.append(node.AddObserver(event, self._update_from_mrml))
        self._update_from_mrml()

    def _update_from_mrml(self, caller: Any = None, event: str = "") -> None:
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        self.setEnabled(segmentation is not None and segmentation.GetNumberOfSegments() > 0)
        if segmentation is not None:
            blocked = self.blockSignals(True)
            self.setChecked(segmentation.ContainsRepresentation(surface))
            self.blockSignals(blocked)

    def _toggled(self, on: bool) -> None:
        if self._node is None:
            return
        segmentation, display = self._node.GetSegmentation(), self._node.GetDisplayNode()
        surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        if not on:
            segmentation.RemoveRepresentation(surface)
        elif segmentation.CreateRepresentation(surface) and display is not None:
            display.SetPreferredDisplayRepresentationName3D(surface)


classes = (qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentsTableView, qMRMLSegmentationShow3DButton)
