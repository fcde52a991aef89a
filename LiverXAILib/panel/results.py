# SPDX-License-Identifier: Apache-2.0
"""The results of the chosen CT in numbers: summary, segments, and the table of lesions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import slicer
from slicer.i18n import tr as _

from ..mrml import moved_point, moved_since, show_changed_ct
from ..mrml.changed_cts import CHANGED_CT
from ..mrml.heatmaps import is_about
from ..mrml.nodes import get_attribute
from ..volumes.volume import lps_to_ras
from .heat_maps import HeatMaps, faithfulness_word
from .reading.edits import title_of
from .reading.frames import sets_to_choose
from .state import PanelState
from .words import number

#: What the result selector holds instead of a title, to keep the current result and make another.
NEW_RESULT = "NEW"

Point = tuple[float, float, float]


class Finding(NamedTuple):
    """A row of the table: its number, and a place (LPS mm) by which it is found even if it has another number now."""

    number: int
    place_lps_mm: Point


class ResultsView:
    """Shows the results of the chosen CT; moves the views to the chosen lesion."""

    def __init__(self, state: PanelState, heat_maps: HeatMaps) -> None:
        import qt

        self._state, self._ui, self._heat_maps, self._qt = state, state.ui, heat_maps, qt
        self.lesions: list[dict[str, str]] = []
        self.candidates: list[dict[str, Any]] = []
        self.rejected: list[dict[str, Any]] = []
        table = self._ui.lesionTable
        titles = [_("No."), _("Volume\n[ml]"), _("Axis\n[mm]"), _("Proba-\nbility"), _("Faithful\nmap")]
        titles += [_("Reliable"), _("Decided\nby")]
        table.setColumnCount(len(titles))
        table.setHorizontalHeaderLabels(titles)
        table.verticalHeader().hide()
        header = table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setStretchLastSection(True)
        header.highlightSections = False
        table.horizontalScrollBarPolicy = qt.Qt.ScrollBarAlwaysOff

    def show(self) -> None:
        """Show the tables and the list of heat maps of the chosen CT."""
        for _step in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """Run :meth:`show` in steps, so that Slicer stays responsive; each step shows the scene as it is by then."""
        ui = self._ui
        segmentation, table = self._state.result("segmentation"), self._state.result("measurements")
        ui.resultsButton.visible = ui.saveButton.visible = segmentation is not None
        ui.segmentsTable.setSegmentationNode(segmentation)
        ui.summaryLabel.text = _summary(table)
        ui.show3DButton.setSegmentationNode(segmentation)
        yield
        table = self._state.result("measurements")
        with self._state.filling():
            candidates, rejected = (
                (get_attribute(table, name) if table is not None else None) or [] for name in ("Candidates", "Rejected")
            )
            lesions = [row for row in table_rows(table) if row["structure"] == "lesion"]
            self._fill_lesions(lesions, candidates, rejected)
        self._show_answer()
        yield
        with self._state.filling():
            self._fill_sets()
        self._heat_maps.show()

    def _fill_sets(self) -> None:
        """List the results of this CT: the current one, those that were set aside, and a new one."""
        selector, volume = self._ui.resultSelector, self._state.volume_node
        current = self._state.result("segmentation")
        selector.clear()
        selector.addItem(_("New: Apply makes it") if current is None else title_of(current), "")
        for title in sets_to_choose(self._state.scene, volume) if volume is not None else ():
            selector.addItem(title, title)
        if current is not None:
            selector.addItem(_("New: Apply makes it, this one is kept"), NEW_RESULT)

    def _fill_lesions(
        self, lesions: list[dict[str, str]], candidates: list[dict[str, Any]], rejected: list[dict[str, Any]]
    ) -> None:
        """Add a row for each lesion, then for each candidate and rejected lesion; tool tips give the reasons."""
        table, heat_maps, changed = self._ui.lesionTable, self._of_lesions("heatmap"), self._of_lesions(CHANGED_CT)
        before = self.selected_lesion
        if (lesions, candidates, rejected) != (self.lesions, self.candidates, self.rejected):
            # A number may now refer to another lesion, unless the position is the same.
            same = before and _place(lesions, before) == _place(self.lesions, before)
            if not same:
                table.clearSelection()
                table.setCurrentCell(-1, -1)
        self.lesions, self.candidates, self.rejected = lesions, candidates, rejected
        rows = len(lesions) + len(candidates) + len(rejected)
        table.setRowCount(rows)
        for index, row in enumerate(lesions):
            texts = [
                row["number"],
                number(row["volume_ml"], 2),
                number(row["axial_long_mm"], 1),
                number(row["mean_probability"], 2),
                faithfulness_word(heat_maps.get(f"lesion:{row['number']}")),
                row.get("reliability_word", ""),
                _both(row.get("source", "")),
            ]
            answer = changed.get(f"lesion:{row['number']}")
            sentence = answer.GetAttribute("LiverXAI.Sentence") if answer is not None else ""
            reason = _reliability_words(row.get("reliability", ""), row.get("reliability_reason", ""))
            self._fill_row(index, texts, "\n".join(filter(None, [reason, sentence, row.get("source", "")])))
        others = [*map(_candidate_row, candidates), *map(_rejected_row, rejected)]
        for index, (texts, tip) in enumerate(others, len(lesions)):
            self._fill_row(index, texts, tip)
        table.visible = self._ui.explainLesionButton.visible = self._ui.withoutButton.visible = bool(rows)
        if rows:
            line = self._qt.QFontMetrics(table.font).lineSpacing()
            table.setFixedHeight(2 * line + 14 + min(rows, 6) * table.rowHeight(0))  # two lines of titles

    def _fill_row(self, index: int, texts: list[str], tip: str) -> None:
        for column, text in enumerate(texts):
            item = self._qt.QTableWidgetItem(text)
            item.setTextAlignment(self._qt.Qt.AlignCenter)
            item.setToolTip(tip)
            self._ui.lesionTable.setItem(index, column, item)

    def _of_lesions(self, kind: str) -> dict[str, Any]:
        """Return heat maps or changed CTs by target, except those whose numbers may now refer to other lesions."""
        nodes, segmentation = self._state.results(kind), self._state.result("segmentation")
        return {
            node.GetAttribute("LiverXAI.Target"): node
            for node in nodes
            if is_about(node, segmentation) and not get_attribute(node, "Stale")
        }

    @property
    def selected_lesion(self) -> int:
        """The number of the lesion chosen in the table, or 0."""
        row = self._ui.lesionTable.currentRow()
        return int(self.lesions[row]["number"]) if 0 <= row < len(self.lesions) else 0

    @property
    def selected_lesions(self) -> list[Finding]:
        """All lesions chosen in the table."""
        chosen = [self.lesions[row] for row in self._selected_rows() if row < len(self.lesions)]
        return [self._finding(lesion["number"], _centroid(lesion)) for lesion in chosen]

    @property
    def selected_candidates(self) -> list[Finding]:
        """All candidates chosen in the table that have not been accepted."""
        chosen = self._chosen(self.candidates, len(self.lesions))
        return [self._finding(one["number"], one["place_lps_mm"]) for one in chosen if one["status"] != "accepted"]

    @property
    def selected_rejected(self) -> list[Finding]:
        """All rejected lesions chosen in the table."""
        chosen = self._chosen(self.rejected, len(self.lesions) + len(self.candidates))
        return [self._finding(one["number"], one["place_lps_mm"]) for one in chosen]

    def place_of(self, lesion: int) -> Point:
        """Return the centroid of the lesion with this number, LPS mm, where the CT is now."""
        return self._now(_centroid(next(row for row in self.lesions if int(row["number"]) == lesion)))

    def _selected_rows(self) -> list[int]:
        return sorted({index.row() for index in self._ui.lesionTable.selectionModel().selectedRows()})

    def _chosen(self, findings: list[dict[str, Any]], first: int) -> list[dict[str, Any]]:
        """Return those of `findings`, whose rows begin with `first`, that are chosen in the table."""
        return [findings[row - first] for row in self._selected_rows() if 0 <= row - first < len(findings)]

    def _finding(self, number: Any, place_lps_mm: Sequence[float]) -> Finding:
        return Finding(int(number), self._now(place_lps_mm))

    def on_without(self, shown: bool) -> None:
        """Show or hide the CT without the chosen lesion."""
        if self._state.listens:
            answer = self._answer
            if shown and answer is not None:
                show_changed_ct(answer, self._state.volume_node)
            else:
                self._heat_maps.overlay()

    @property
    def _answer(self) -> Any:
        """The changed CT of the lesion chosen in the table, or None."""
        return self._of_lesions(CHANGED_CT).get(f"lesion:{self.selected_lesion}") if self.selected_lesion else None

    def _show_answer(self) -> None:
        """Show the model's result without the chosen lesion; the displayed CT stays unchanged."""
        ui, answer = self._ui, self._answer
        was_shown = ui.withoutButton.checked
        with self._state.filling():
            ui.withoutButton.checked = False
        ui.withoutButton.enabled = answer is not None
        ui.answerLabel.text = answer.GetAttribute("LiverXAI.Sentence") if answer is not None else ""
        ui.answerLabel.visible = answer is not None
        if was_shown:
            self._heat_maps.overlay()

    def on_lesion_selected(self) -> None:
        """Move all slice views to the lesion chosen by mouse or keyboard, and show its heat map."""
        if self._state.listens:
            self._show_answer()
            self._jump_to_lesion()
            heat_map = self._of_lesions("heatmap").get(f"lesion:{self.selected_lesion}")
            if heat_map is not None:
                self._heat_maps.choose(heat_map)

    def on_lesion_clicked(self, row: int, column: int) -> None:
        """Move the slice views to the lesion even if it is already chosen: the user may have scrolled away."""
        self._jump_to_lesion()

    def _jump_to_lesion(self) -> None:
        row = self._ui.lesionTable.currentRow()
        others = [*self.candidates, *self.rejected]
        if 0 <= row < len(self.lesions):
            place = _centroid(self.lesions[row])
        elif 0 <= row - len(self.lesions) < len(others):
            place = others[row - len(self.lesions)]["place_lps_mm"]
        else:
            return
        now = lps_to_ras(self._now(place))
        slicer.vtkMRMLSliceNode.JumpAllSlices(self._state.scene, *now)

    def _now(self, place_lps_mm: Sequence[float]) -> Point:
        """Return where a point of the table is now: the CT may have been transformed since the measurement."""
        matrix = moved_since(self._state.result("segmentation"), self._state.volume_node)
        return moved_point(matrix, place_lps_mm)

    def on_show_3d(self, shown: bool) -> None:
        """Center the 3D views on the surfaces that Slicer's own button has switched on."""
        segmentation, layout = self._state.result("segmentation"), slicer.app.layoutManager()
        if not shown or segmentation is None:
            return
        segmentation.GetDisplayNode().SetVisibility3D(True)
        for index in range(layout.threeDViewCount if layout is not None else 0):
            layout.threeDWidget(index).threeDView().resetFocalPoint()


def _candidate_row(candidate: dict[str, Any]) -> tuple[list[str], str]:
    """Return the cells of a candidate's row, and the tool tip."""
    reliability = candidate.get("reliability")
    words = {"open": _("candidate"), "accepted": _("accepted"), "rejected": _("rejected")}
    texts = [
        f"C{candidate['number']}",
        number(candidate["volume_ml"], 2),
        number(candidate["axial"]["long_mm"], 1),
        number(candidate["mean_probability"], 2),
        "",
        reliability["word"] if reliability else "",
        words[candidate["status"]],
    ]
    reason = _reliability_words(reliability["probability"], reliability["reason"]) if reliability else ""
    return texts, "\n".join(filter(None, [candidate["reason"], reason]))


def _rejected_row(lesion: dict[str, Any]) -> tuple[list[str], str]:
    """Return the cells of a rejected lesion's row, and the tool tip."""
    probability = lesion["mean_probability"]
    texts = [
        f"R{lesion['number']}",
        number(lesion["volume_ml"], 2),
        number(lesion["axial"]["long_mm"], 1),
        "–" if probability is None else number(probability, 2),
        "",
        "",
        _("rejected\nby reader"),
    ]
    words = _("Rejected by {who}, {when}; not counted. Accept makes it a lesion again.")
    return texts, words.format(who=lesion["who"], when=lesion["when"][:16].replace("T", " "))


def _reliability_words(probability: Any, reason: str) -> str:
    """Describe how often findings like this one are true, and the reason for doubt."""
    if probability in ("", None):
        return ""
    text = _("About {percent:.0f} % of findings like this one are true").format(percent=100 * float(probability))
    return f"{text}: {reason}." if reason else f"{text}."


def _both(source: str) -> str:
    """Describe who outlined a lesion, briefly enough for a table column."""
    return _("both") if source.startswith("model,") else source


def _centroid(lesion: dict[str, str]) -> Point:
    """Return the centroid of a lesion's row, LPS mm."""
    left, posterior, superior = (float(lesion[f"centroid_{axis}_mm"]) for axis in "lps")
    return left, posterior, superior


def _place(lesions: list[dict[str, str]], number: int) -> list[str]:
    """Return the position of the lesion with this number, as text."""
    return [row[f"centroid_{axis}_mm"] for row in lesions if int(row["number"]) == number for axis in "lps"]


def table_rows(table_node: Any) -> list[dict[str, str]]:
    """Return the rows of the measurements, as text by column."""
    if table_node is None:
        return []
    table = table_node.GetTable()
    names = [table.GetColumnName(column) for column in range(table.GetNumberOfColumns())]
    return [
        {name: table.GetValue(row, column).ToString() for column, name in enumerate(names)}
        for row in range(table.GetNumberOfRows())
    ]


def _summary(table_node: Any) -> str:
    """Return the lines about liver and tumor; lesions have their own table."""
    text = table_node.GetAttribute("LiverXAI.Summary") if table_node is not None else ""
    return "\n".join(" ".join(line.split()) for line in (text or "").splitlines() if not line.startswith(" "))
