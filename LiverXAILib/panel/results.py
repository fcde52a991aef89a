# SPDX-License-Identifier: Apache-2.0
"""The results of the chosen CT in numbers: summary, segments, and the table of lesions."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from .heat_maps import HeatMaps, faithfulness_word
from .state import PanelState
from .words import number


class ResultsView:
    """Shows what was found in the chosen CT; leads to a lesion that is chosen."""

    def __init__(self, state: PanelState, heat_maps: HeatMaps) -> None:
        import qt

        self._state, self._ui, self._heat_maps, self._qt = state, state.ui, heat_maps, qt
        self.lesions: list[dict[str, str]] = []
        table = self._ui.lesionTable
        table.setColumnCount(5)
        table.setHorizontalHeaderLabels(
            [_("No."), _("Volume\n[ml]"), _("Diameter\n[mm]"), _("Mean\nprobability"), _("Heat map\nfaithful")]
        )
        table.verticalHeader().hide()
        header = table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setStretchLastSection(True)
        header.highlightSections = False

    def show(self) -> None:
        """The tables and the list of heat maps of the chosen CT."""
        ui = self._ui
        segmentation, table = self._state.result("segmentation"), self._state.result("measurements")
        ui.resultsButton.visible = ui.saveButton.visible = segmentation is not None
        ui.segmentsTable.setSegmentationNode(segmentation)
        ui.summaryLabel.text = _summary(table)
        ui.show3DButton.setSegmentationNode(segmentation)
        with self._state.filling():
            self._fill_lesions([row for row in _rows(table) if row["structure"] == "lesion"])
        self._heat_maps.show()

    def _fill_lesions(self, lesions: list[dict[str, str]]) -> None:
        table, qt = self._ui.lesionTable, self._qt
        heat_maps = {node.GetAttribute("LiverXAI.Target"): node for node in self._state.results("heatmap")}
        if lesions != self.lesions:
            table.clearSelection()
            table.setCurrentCell(-1, -1)
        table.setRowCount(len(lesions))
        self.lesions = lesions
        for index, row in enumerate(lesions):
            texts = [
                row["number"],
                number(row["volume_ml"], 2),
                number(row["axial_long_mm"], 1),
                number(row["mean_probability"], 2),
                faithfulness_word(heat_maps.get(f"lesion:{row['number']}")),
            ]
            for column, text in enumerate(texts):
                item = qt.QTableWidgetItem(text)
                item.setTextAlignment(qt.Qt.AlignCenter)
                table.setItem(index, column, item)
        table.visible = self._ui.explainLesionButton.visible = bool(lesions)
        if lesions:
            line = qt.QFontMetrics(table.font).lineSpacing()
            table.setFixedHeight(2 * line + 14 + min(len(lesions), 5) * table.rowHeight(0))  # two lines of titles

    @property
    def selected_lesion(self) -> int:
        """The number of the lesion chosen in the table, or 0."""
        row = self._ui.lesionTable.currentRow()
        return int(self.lesions[row]["number"]) if 0 <= row < len(self.lesions) else 0

    def on_lesion_selected(self) -> None:
        """A lesion was chosen, by mouse or by keys: all slice views go there; its own heat map is shown."""
        if self._state.listens:
            self._jump_to_lesion()
            self._heat_maps.choose(f"lesion:{self.selected_lesion}")

    def on_lesion_clicked(self, row: int, column: int) -> None:
        """Also when it is chosen already: the user has scrolled away and wants back."""
        self._jump_to_lesion()

    def _jump_to_lesion(self) -> None:
        row = self._ui.lesionTable.currentRow()
        if 0 <= row < len(self.lesions):
            left, posterior, superior = (float(self.lesions[row][f"centroid_{axis}_mm"]) for axis in "lps")
            slicer.vtkMRMLSliceNode.JumpAllSlices(self._state.scene, -left, -posterior, superior)

    def on_show_3d(self, shown: bool) -> None:
        """Surfaces were switched on or off by Slicer's own button: they are of use only where they can be seen."""
        segmentation, layout = self._state.result("segmentation"), slicer.app.layoutManager()
        if not shown or segmentation is None:
            return
        segmentation.GetDisplayNode().SetVisibility3D(True)
        for index in range(layout.threeDViewCount if layout is not None else 0):
            layout.threeDWidget(index).threeDView().resetFocalPoint()


def _rows(table_node: Any) -> list[dict[str, str]]:
    """The rows of the measurements, as text by column."""
    if table_node is None:
        return []
    table = table_node.GetTable()
    names = [table.GetColumnName(column) for column in range(table.GetNumberOfColumns())]
    return [
        {name: table.GetValue(row, column).ToString() for column, name in enumerate(names)}
        for row in range(table.GetNumberOfRows())
    ]


def _summary(table_node: Any) -> str:
    """The lines about liver and tumor; lesions have their own table."""
    text = table_node.GetAttribute("LiverXAI.Summary") if table_node is not None else ""
    return "\n".join(" ".join(line.split()) for line in (text or "").splitlines() if not line.startswith(" "))
