# SPDX-License-Identifier: Apache-2.0
"""The long and short axes of the chosen lesion as lines in the views; moving an end measures the lesion again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from ..mrml import moved_point, moved_since
from ..mrml.nodes import get_attribute
from .state import PanelState

#: The axes: key of the measurements, title, color.
_AXES = (
    ("long_ends_lps_mm", _("long axis"), (1.0, 0.85, 0.2)),
    ("short_ends_lps_mm", _("short axis"), (0.4, 0.9, 1.0)),
)
Points = tuple[tuple[float, float, float], ...]


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
        self._lesion = 0
        # Deferred until after the event, because the line is removed in response.
        self._timer = qt.QTimer()
        self._timer.singleShot = True
        self._timer.interval = 0
        self._timer.connect("timeout()", self._tell)

    def show(self, lesion: int) -> None:
        """Show the axes of a lesion; 0: none."""
        table = self._state.result("measurements")
        axes = (get_attribute(table, "Axes") or {}).get(str(lesion)) if table is not None and lesion else None
        self.hide()
        if axes is None:
            return
        self._lesion = lesion
        matrix = moved_since(self._state.result("segmentation"), self._state.volume_node)
        for key, title, color in _AXES:
            line = self._state.scene.AddNewNodeByClass("vtkMRMLMarkupsLineNode", f"{_('Lesion')} {lesion}, {title}")
            line.SetSaveWithScene(False)
            line.SetHideFromEditors(True)
            for left, posterior, superior in (moved_point(matrix, end) for end in axes[key]):
                line.AddControlPointWorld(-left, -posterior, superior)
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
        """Lock the lines while they cannot be moved."""
        for line in self._lines:
            if self._state.contains(line):
                line.SetLocked(not self._may_move())

    def hide(self) -> None:
        """Hide the lines."""
        self._timer.stop()
        self.removeObservers()
        lines, self._lines, self._lesion = self._lines, [], 0
        for line in lines:
            if self._state.contains(line):
                self._state.scene.RemoveNode(line)

    def forget(self) -> None:
        """Drop the lines after the scene was closed."""
        self._timer.stop()
        self.removeObservers()
        self._lines, self._lesion = [], 0

    def _on_end(self, caller: Any, event: Any) -> None:
        self._timer.start()

    def _tell(self) -> None:
        if self._lesion and all(self._state.contains(line) for line in self._lines):
            if self._may_move():
                self._moved(self._lesion, tuple(_end(line, number) for line in self._lines for number in range(2)))
            else:  # a task started while an end was being moved: restore the measured axes
                self.show(self._lesion)


def _end(line: Any, number: int) -> tuple[float, float, float]:
    """Return an end of a line, LPS mm."""
    place: Sequence[float] = [0.0, 0.0, 0.0]
    line.GetNthControlPointPositionWorld(number, place)
    return -place[0], -place[1], place[2]
