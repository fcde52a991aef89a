# SPDX-License-Identifier: Apache-2.0
"""The long and short axes of the chosen lesion as lines in the views; moving an end measures the lesion again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from ...mrml import moved_point, moved_since
from ...mrml.nodes import get_attribute
from ...volumes.volume import lps_to_ras, ras_to_lps
from ..state import PanelState

#: The axes: key of the measurements, title, color.
_AXES = (
    ("long_ends_lps_mm", _("long axis"), (1.0, 0.85, 0.2)),
    ("short_ends_lps_mm", _("short axis"), (0.4, 0.9, 1.0)),
)
Points = tuple[tuple[float, float, float], ...]
#: Smallest distance in mm by which an end counts as moved.
_LEAST_MM = 1e-3


class Calipers(VTKObservationMixin):
    """Two markups lines for the lesion chosen in the table.

    :param moved: takes the lesion's number and the four ends (LPS mm: long axis, short axis) that the reader has set.
    :param may_move: whether they can be moved now; if not, the lines are locked.
    """

    def __init__(self, state: PanelState, moved: Callable[[int, Points], None], may_move: Callable[[], bool]) -> None:
        import qt

        super().__init__()
        self._state, self._moved, self._may_move = state, moved, may_move
        self._lines: list[Any] = []
        #: What the lines show: lesion, segmentation node's ID, ends (LPS mm: long axis, short axis).
        self._shown: tuple[int, str, Points] | None = None
        #: Whether a line was moved since it was shown.
        self._is_moved = False
        # Deferred until after the event, because the line is removed in response.
        self._timer = qt.QTimer()
        self._timer.singleShot = True
        self._timer.interval = 0
        self._timer.connect("timeout()", self._tell)

    def follow(self, lesion: int) -> None:
        """Show the axes of a lesion of the current result as measured, wherever its CT is now; 0: none."""
        wanted = self._axes_of(lesion)
        if wanted != self._shown:
            self._show(wanted)

    def _axes_of(self, lesion: int) -> tuple[int, str, Points] | None:
        table, segmentation = self._state.result("measurements"), self._state.result("segmentation")
        if not lesion or table is None or segmentation is None:
            return None
        axes = (get_attribute(table, "Axes") or {}).get(str(lesion))
        if axes is None:
            return None
        matrix = moved_since(segmentation, self._state.volume_node)
        ends = tuple(moved_point(matrix, end) for key, _title, _color in _AXES for end in axes[key])
        return lesion, segmentation.GetID(), ends

    def _show(self, wanted: tuple[int, str, Points] | None) -> None:
        self.hide()
        if wanted is None:
            return
        self._shown = wanted
        lesion, _segmentation, ends = wanted
        for number, (_key, title, color) in enumerate(_AXES):
            line = self._state.scene.AddNewNodeByClass("vtkMRMLMarkupsLineNode", f"{_('Lesion')} {lesion}, {title}")
            line.SetSaveWithScene(False)
            line.SetHideFromEditors(True)
            for end in ends[2 * number : 2 * number + 2]:
                line.AddControlPointWorld(*lps_to_ras(end))
            line.CreateDefaultDisplayNodes()
            display = line.GetDisplayNode()
            display.SetSelectedColor(*color)
            display.SetColor(*color)
            display.SetPointLabelsVisibility(False)
            display.SetPropertiesLabelVisibility(True)
            self.addObserver(line, line.PointEndInteractionEvent, self._on_end)
            self._lines.append(line)
        self.update()

    def update(self) -> None:
        """Lock the lines while they cannot be moved; restore the measured axes if a new measurement failed."""
        if self._is_moved and self._may_move():
            self._show(self._shown)
        for line in self._lines:
            if self._state.contains(line):
                line.SetLocked(not self._may_move())

    def hide(self) -> None:
        """Hide the lines."""
        lines = self._lines
        self.forget()
        for line in lines:
            if self._state.contains(line):
                self._state.scene.RemoveNode(line)

    def forget(self) -> None:
        """Drop the lines after the scene was closed."""
        self._timer.stop()
        self.removeObservers()
        self._lines, self._shown, self._is_moved = [], None, False

    def _on_end(self, caller: Any, event: Any) -> None:
        self._timer.start()

    def _tell(self) -> None:
        if self._shown is None or not all(self._state.contains(line) for line in self._lines):
            return
        lesion, _segmentation, ends = self._shown
        moved = tuple(_end(line, number) for line in self._lines for number in range(2))
        if self._axes_of(lesion) != self._shown or not self._may_move():
            # The result changed, or a task started, while an end was being moved.
            self._show(self._axes_of(lesion))
        elif not np.allclose(moved, ends, rtol=0, atol=_LEAST_MM):  # a click moves nothing
            self._is_moved = True
            self._moved(lesion, moved)


def _end(line: Any, number: int) -> tuple[float, float, float]:
    """Return an end of a line, LPS mm."""
    place: Sequence[float] = [0.0, 0.0, 0.0]
    line.GetNthControlPointPositionWorld(number, place)
    return ras_to_lps(place)
