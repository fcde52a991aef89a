# SPDX-License-Identifier: Apache-2.0
"""One point placed by a click in a slice view, with Slicer's markups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from ..state import PanelState
from ..status import StatusLine

Receiver = Callable[[tuple[float, float, float]], None]


class PointPlacing(VTKObservationMixin):
    """Keeps a button pressed until the reader clicks in a slice view, then passes on the point (RAS mm)."""

    def __init__(self, state: PanelState, status: StatusLine) -> None:
        import qt

        super().__init__()
        self._state, self._status = state, status
        self._button: Any = None
        self._receive: Receiver | None = None
        self._node: Any = None
        self._timer = qt.QTimer()
        self._timer.singleShot = True
        self._timer.interval = 0
        self._timer.connect("timeout()", self._finish)

    def close(self) -> None:
        """Stop waiting for a point."""
        self._timer.stop()
        self.removeObservers()
        node, self._node = self._node, None
        button, self._button = self._button, None
        if button is not None:
            button.checked = False
        if self._state.contains(node):
            self._interaction().SwitchToViewTransformMode()
            self._state.scene.RemoveNode(node)

    def start(self, button: Any, receive: Receiver) -> None:
        """Wait for a point, or stop waiting if the same button is pressed again.

        :param button: the one that was pressed.
        :param receive: takes the point.
        """
        again = button is self._button
        self.close()
        if again:
            self._status.show()
            return
        logic = slicer.app.applicationLogic()
        self._button, self._receive = button, receive
        button.checked = True
        self._node = self._state.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", _("Place"))
        self._node.SetSaveWithScene(False)
        self._node.SetHideFromEditors(True)
        self._node.SetMaximumNumberOfControlPoints(1)
        selection = logic.GetSelectionNode()
        selection.SetReferenceActivePlaceNodeClassName(self._node.GetClassName())
        selection.SetActivePlaceNodeID(self._node.GetID())
        interaction = self._interaction()
        self.addObserver(self._node, self._node.PointPositionDefinedEvent, self._on_event)
        interaction.SwitchToSinglePlaceMode()
        self.addObserver(interaction, interaction.InteractionModeChangedEvent, self._on_event)
        self._status.show(_("Click the position in a slice view; right-click to cancel."))

    def _on_event(self, caller: Any, event: Any) -> None:
        # Deferred: the sender of the event still uses the node.
        self._timer.start()

    def _finish(self) -> None:
        node, receive = self._node, self._receive
        if not self._state.contains(node) or receive is None:
            self.close()
            return
        if node.GetNumberOfDefinedControlPoints() == 0:
            if self._interaction().GetCurrentInteractionMode() != slicer.vtkMRMLInteractionNode.Place:
                self.close()
                self._status.show()
            return
        place = [0.0, 0.0, 0.0]
        node.GetNthControlPointPositionWorld(0, place)
        self.close()
        self._status.show()
        receive((place[0], place[1], place[2]))

    def _interaction(self) -> Any:
        return slicer.app.applicationLogic().GetInteractionNode()
