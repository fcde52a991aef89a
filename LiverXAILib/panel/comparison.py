# SPDX-License-Identifier: Apache-2.0
"""Two results of the chosen CT at the same time: the outlines of both, and how far they agree."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import slicer
from slicer.i18n import tr as _

from .. import mrml
from ..errors import LiverXAIError
from ..models import ModelSpec
from ..mrml.comparison import COMPARED_COLORS, compared_node
from ..mrml.nodes import SET, remove_result
from ..mrml.side_by_side import end_side_by_side, is_side_by_side, layout_of, show_on_the_right, show_side_by_side
from ..reading.agreement import Agreement, agreement
from ..volumes.volume import lps_to_ras
from .model_choice import ModelChoice
from .reading.edits import is_edited
from .reading.frames import sets_to_choose
from .state import PanelState
from .tasks import POLL_MS


class Comparison:
    """The choice of another result of the CT, its outlines in the slice views, and the table of agreement.

    The outlines are in a temporary node. Nothing else in the scene or in the views changes, so that everything is as it
    was when the comparison ends. Side by side, both results are in views of their own, until that is switched off.
    """

    def __init__(self, state: PanelState, models: ModelChoice) -> None:
        import qt

        self._state, self._ui, self._models, self._qt = state, state.ui, models, qt
        #: The segmentation nodes that are compared, by ID: the current result and the other one; "" without one.
        self._current = self._other = ""
        #: The states of both for which the comparison is shown or being computed.
        self._asked: tuple[str, str] = ("", "")
        self._node: Any = None
        self._places: list[Any] = []
        self._work: Future[Any] | None = None
        self._thread = ThreadPoolExecutor(1, "LiverXAI-comparison")
        self._timer = qt.QTimer()
        self._timer.interval = POLL_MS
        self._timer.connect("timeout()", self._poll)
        table = self._ui.comparisonTable
        titles = ["", _("This\nresult"), _("Other\nresult"), _("Dice")]
        table.setColumnCount(len(titles))
        table.setHorizontalHeaderLabels(titles)
        table.verticalHeader().hide()
        table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.Stretch)
        table.horizontalScrollBarPolicy = qt.Qt.ScrollBarAlwaysOff

    @property
    def outlines(self) -> Any:
        """The node with the outlines of the other result, or None."""
        return self._node if self._state.contains(self._node) else None

    def update(self) -> None:
        """Follow the chosen CT, its results, and changes of both results that are compared."""
        ui, current = self._ui, self._state.result("segmentation")
        others, before = self._others(), (self._current, self._other)
        ui.comparisonButton.visible = current is not None
        ui.comparisonLabel.enabled = ui.comparisonSelector.enabled = bool(others)
        if current is not None and current.GetID() == self._other:
            # The reader has chosen the other result as the current one: both are still compared.
            self._other = self._current
        self._current = current.GetID() if current is not None else ""
        if self._other not in others.values():
            self._other = ""
        if (self._current, self._other) != before:
            self.end_side_by_side()
        self._fill(others)
        spec = self._models.spec()
        if current is None or not self._other or spec is None:
            self._clear()
        elif is_edited(current):  # numbers of lesions are from before the edit
            if self.outlines is None:
                self._say(_("Press Measure again first: the segmentation was edited."))
        else:
            self._compare(spec, current, self._state.scene.GetNodeByID(self._other))
        self._show_button()

    def on_chosen(self) -> None:
        """Compare with the result that was chosen from the list, or with none."""
        if self._state.listens:
            self.end_side_by_side()
            self._other = self._ui.comparisonSelector.currentData or ""
            self.update()

    def on_side_by_side(self, wanted: bool) -> None:
        """Show both results in one view each, next to each other, or end that."""
        if not self._state.listens:
            return
        if wanted:
            current = self._state.scene.GetNodeByID(self._current)
            show_side_by_side(self._state.scene, self._state.volume_node, current, self.outlines)
        else:
            self.end_side_by_side()

    def end_side_by_side(self) -> None:
        """Restore layout, views and outlines, if both results are shown side by side."""
        if is_side_by_side(self._state.scene):
            end_side_by_side(self._state.scene)
        self._show_button()

    def on_row(self, row: int, column: int) -> None:
        """Move the slice views to the lesion of a row."""
        place = self._places[row]
        if place is not None:
            slicer.vtkMRMLSliceNode.JumpAllSlices(self._state.scene, *lps_to_ras(place))

    def follow_transform(self) -> None:
        """Move the outlines with the CT."""
        if self.outlines is not None:
            mrml.place_result(self._node, self._state.volume_node)

    def forget(self) -> None:
        """Drop all state after the scene was closed."""
        self._current = self._other = ""
        self._clear()

    def close(self) -> None:
        """End the comparison, the thread and the timer."""
        self.forget()
        self._thread.shutdown(wait=False, cancel_futures=True)  # what is being compared is not needed any more

    def _others(self) -> dict[str, str]:
        """Return the CT's results that were set aside: title and the ID of the segmentation node."""
        volume, scene = self._state.volume_node, self._state.scene
        if volume is None:
            return {}
        titles = sets_to_choose(scene, volume)
        nodes = mrml.all_results(scene, volume, "segmentation")
        return {node.GetAttribute(SET): node.GetID() for node in nodes if node.GetAttribute(SET) in titles}

    def _fill(self, others: dict[str, str]) -> None:
        selector = self._ui.comparisonSelector
        wanted = [(_("No other result"), ""), *others.items()]
        shown = [(selector.itemText(row), selector.itemData(row)) for row in range(selector.count)]
        with self._state.filling():
            if shown != wanted:
                selector.clear()
                for title, identifier in wanted:
                    selector.addItem(title, identifier)
            selector.setCurrentIndex(selector.findData(self._other))

    def _compare(self, spec: ModelSpec, current: Any, other: Any) -> None:
        """Start to compare both results, unless that is done or under way."""
        asked = mrml.labels_token(current), mrml.labels_token(other)
        if asked == self._asked:
            return
        self._asked = asked
        try:
            first, second = (mrml.read_segments(node, self._state.volume_node, spec) for node in (current, other))
        except LiverXAIError as error:
            self._clear()
            self._asked = asked
            self._say(str(error))
            return

        def compare() -> tuple[Any, Agreement]:
            labels = second()
            return mrml.segment_layers(labels), agreement(first(), labels)

        self._work = self._thread.submit(compare)
        self._say(_("Comparing…"))
        self._timer.start()

    def _poll(self) -> None:
        if self._work is None or not self._work.done():
            return
        work, self._work = self._work, None
        self._timer.stop()
        try:
            layers, found = work.result()
        except LiverXAIError as error:
            self._say(str(error))
            return
        other = self._state.scene.GetNodeByID(self._other)
        if other is not None:
            self._remove_outlines()
            title = other.GetAttribute(SET) or other.GetName()
            self._node = compared_node(layers, self._state.scene, self._state.volume_node, title)
            if is_side_by_side(self._state.scene):
                show_on_the_right(self._node)
            self._show(found)
            self._show_button()

    def _show(self, found: Agreement) -> None:
        """Show the numbers, and what the outlines are."""
        rows = [
            (_(name), _ml(one.first_ml), _ml(one.second_ml), _dice(one.dice)) for name, one in found.structures.items()
        ]
        self._places = [None] * len(rows)
        for lesion in found.lesions:
            dice = lesion.dice if lesion.first and lesion.second else None
            rows.append((_("lesion"), _numbers(lesion.first), _numbers(lesion.second), _dice(dice)))
            self._places.append(lesion.place_lps_mm)
        table = self._ui.comparisonTable
        table.setRowCount(len(rows))
        for row, texts in enumerate(rows):
            for column, text in enumerate(texts):
                item = self._qt.QTableWidgetItem(text)
                item.setTextAlignment(self._qt.Qt.AlignCenter)
                table.setItem(row, column, item)
        line = self._qt.QFontMetrics(table.font).lineSpacing()
        table.setFixedHeight(2 * line + 14 + min(len(rows), 6) * table.rowHeight(0))
        table.visible = True
        both, only_this, only_other = found.counts
        words = _("Lesions: {both} in both, {this} only in this result, {other} only in the other.")
        legend = _("Thin outlines: the other result ({organ} liver, {lesion} tumor).")
        squares = [f'<b style="color:{_html(color)}">■</b>' for color in COMPARED_COLORS]
        colors = dict(zip(("organ", "lesion"), squares, strict=True))
        self._say(f"{words.format(both=both, this=only_this, other=only_other)}<br>{legend.format(**colors)}")

    def _say(self, text: str) -> None:
        self._ui.agreementLabel.text = text
        self._ui.agreementLabel.visible = bool(text)

    def _show_button(self) -> None:
        with self._state.filling():
            self._ui.sideBySideButton.enabled = self.outlines is not None and layout_of(self._state.scene) is not None
            self._ui.sideBySideButton.checked = is_side_by_side(self._state.scene)

    def _clear(self) -> None:
        """Remove the outlines and the numbers."""
        self.end_side_by_side()
        self._timer.stop()
        self._work, self._asked, self._places = None, ("", ""), []
        self._ui.comparisonTable.visible = False
        self._say("")
        self._remove_outlines()

    def _remove_outlines(self) -> None:
        node, self._node = self._node, None
        if self._state.contains(node):
            remove_result(node)


def _ml(volume: float) -> str:
    return _("{volume:.1f} ml").format(volume=volume)


def _dice(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _numbers(lesions: tuple[int, ...]) -> str:
    return ", ".join(map(str, lesions)) or "–"


def _html(color: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
