# SPDX-License-Identifier: Apache-2.0
"""The buttons for the reader's decisions about lesions, measuring after edits, and the choice of the result."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from ... import mrml
from ...analysis import Decision
from ...errors import LiverXAIError
from ...measure.recist import MOST_TARGETS
from ...volumes.volume import ras_to_lps
from ..analyses import Analyses
from ..heat_maps import HeatMaps
from ..questions import Questions
from ..results import NEW_RESULT, Finding, ResultsView
from ..state import PanelState
from ..status import StatusLine
from ..tasks import TaskRunner
from .calipers import Points
from .edits import has_decisions, is_edited, title_of
from .placing import PointPlacing

#: Delay between the last edit and the new measurement, in ms.
IDLE_MS = 2000


class Reader:
    """The buttons for the reader's decisions."""

    def __init__(
        self,
        state: PanelState,
        status: StatusLine,
        questions: Questions,
        heat_maps: HeatMaps,
        results: ResultsView,
        runner: TaskRunner,
        analyses: Analyses,
    ) -> None:
        self._state, self._ui, self._status, self._questions = state, state.ui, status, questions
        self._heat_maps, self._results, self._runner, self._analyses = heat_maps, results, runner, analyses
        import qt

        #: The tool tips of buttons that say, while they are disabled, why they are.
        self._tool_tips = [(button, button.toolTip) for button in (state.ui.saveButton, state.ui.compareButton)]
        self._timer = qt.QTimer()
        self._timer.singleShot = True
        self._timer.interval = IDLE_MS
        self._timer.connect("timeout()", self._measure_if_idle)
        self.placing = PointPlacing(state, status)

    def close(self) -> None:
        """Cancel what is pending."""
        self._timer.stop()
        self.placing.close()

    def on_touched(self) -> None:
        """Schedule a new measurement after an edit; it runs when the reader pauses."""
        self._timer.start()

    def _measure_if_idle(self) -> None:
        parameters, node = self._state.parameters, self._state.result("segmentation")
        if parameters is None or not parameters.autoMeasure or not is_edited(node):
            return
        if self._runner.busy:
            self._timer.start()
        elif self._analyses.can_measure(node):
            self._analyses.refine(())

    def update(self) -> None:
        """Enable the valid buttons, and show whether the numbers are from before an edit."""
        if self._runner.busy:
            self.placing.close()  # a click now would apply to another result
        ui, node = self._ui, self._state.result("segmentation")
        edited, idle = is_edited(node), node is not None and not self._runner.busy
        ui.editedLabel.visible = edited
        ui.measureButton.visible = node is not None and not self._analyses.is_up_to_date(node)
        ui.measureButton.enabled = idle
        candidates, chosen = self._results.selected_candidates, self._results.selected_lesions
        ui.acceptButton.enabled = idle and not edited and bool(candidates or self._results.selected_rejected)
        ui.rejectButton.enabled = idle and not edited and bool(candidates or chosen)
        ui.undoButton.enabled = idle and not edited and has_decisions(node)
        ui.mergeButton.enabled = idle and not edited and len(chosen) > 1
        ui.splitButton.enabled = idle and not edited and len(chosen) == 1
        ui.targetsButton.enabled = idle and not edited and 0 < len(chosen) <= MOST_TARGETS
        ui.addButton.enabled = ui.placeButton.enabled = idle
        ui.includeButton.enabled = ui.excludeButton.enabled = idle and bool(self._results.lesions)
        ui.resultSelector.enabled = not self._runner.busy  # the running task belongs to the current result
        ui.editButton.enabled = ui.tableButton.enabled = node is not None
        obstacle = self._obstacle_to_saving(node)
        for button, tool_tip in self._tool_tips:
            button.enabled = not obstacle
            button.toolTip = obstacle or tool_tip

    def _obstacle_to_saving(self, node: Any) -> str:
        """Return what has to be done before the current result can be saved or compared; "" if nothing."""
        if self._runner.busy or node is None:
            return _("Wait until the result is there.")
        if self._analyses.is_up_to_date(node):
            return ""
        if not self._analyses.can_measure(node):
            return _("Choose the model that made this result, and press Measure again.")
        if is_edited(node):
            return _("The numbers are from before the edit. Press Measure again first.")
        if self._analyses.holds(node):
            return _("The patient's height or weight was changed. Press Measure again first.")
        return _("Press Measure again first: this result is from an earlier session, or another one was made since.")

    def on_measure(self) -> None:
        """Measure the segmentation as it is now."""
        self._analyses.refine(())

    def on_accept(self) -> None:
        """Count the candidates and rejected lesions chosen in the table as lesions."""
        accepted = [_about("accept", one) for one in self._results.selected_candidates]
        self._analyses.refine([*accepted, *(_about("restore", one) for one in self._results.selected_rejected)])

    def on_reject(self) -> None:
        """Reject the lesions and candidates chosen in the table."""
        rejected = [_about("reject", one) for one in self._results.selected_lesions]
        self._analyses.refine([*rejected, *(_about("dismiss", one) for one in self._results.selected_candidates)])

    def on_undo(self) -> None:
        """Take back the last decision."""
        self._analyses.refine([Decision("undo")])

    def on_merge(self) -> None:
        """Merge the lesions chosen in the table."""
        self._analyses.refine([_about("merge", *self._results.selected_lesions)])

    def on_split(self) -> None:
        """Split the lesion chosen in the table into two."""
        self._analyses.refine([_about("split", *self._results.selected_lesions)])

    def on_targets(self) -> None:
        """Make the lesions chosen in the table the target lesions of RECIST 1.1."""
        self._analyses.refine([_about("target", *self._results.selected_lesions)])

    def can_measure_lesion(self) -> bool:
        """Return whether axes may be moved: not during a task, nor while the table is from before an edit."""
        return not self._runner.busy and not is_edited(self._state.result("segmentation"))

    def on_measured(self, lesion: int, points_lps_mm: Points) -> None:
        """Record axes of a lesion that the reader has moved."""
        place = self._results.place_of(lesion)
        self._analyses.refine([Decision("measure", (lesion,), place, points_lps_mm=points_lps_mm)])

    def on_add(self) -> None:
        """Add a lesion at the crosshair."""
        try:
            place = self._questions.crosshair()
        except LiverXAIError as error:
            self._status.show(str(error))
        else:
            self._decide_at("add", place)

    def on_place(self) -> None:
        """Let the reader click a missed lesion in a slice view."""
        self.placing.start(self._ui.placeButton, self._add_at)

    def on_include(self) -> None:
        """Let the reader click a position that a lesion should include."""
        self.placing.start(self._ui.includeButton, self._include_at)

    def on_exclude(self) -> None:
        """Let the reader click a position that should not belong to a lesion."""
        self.placing.start(self._ui.excludeButton, self._exclude_at)

    def _add_at(self, place_ras_mm: tuple[float, float, float]) -> None:
        self._decide_at("add", place_ras_mm)

    def _include_at(self, place_ras_mm: tuple[float, float, float]) -> None:
        self._decide_at("include", place_ras_mm)

    def _exclude_at(self, place_ras_mm: tuple[float, float, float]) -> None:
        self._decide_at("exclude", place_ras_mm)

    def _decide_at(self, kind: str, place_ras_mm: tuple[float, float, float]) -> None:
        self._analyses.refine([Decision(kind, (), ras_to_lps(place_ras_mm))])

    def on_result_chosen(self) -> None:
        """Show the chosen set of results of this CT, or make room for a new one."""
        chosen = self._ui.resultSelector.currentData
        if chosen:
            scene, volume = self._state.scene, self._state.volume_node
            mrml.put_aside(scene, volume, title_of(self._state.result("segmentation")))
            if chosen != NEW_RESULT:
                mrml.bring_back(scene, volume, chosen)
            self._heat_maps.show_latest()
            self._results.show()


def _about(kind: str, *findings: Finding) -> Decision:
    """Return a decision about rows of the table, which go by their places: numbers may be those of an older list."""
    places = tuple(one.place_lps_mm for one in findings)
    several = places if kind in ("merge", "target") else ()
    return Decision(kind, tuple(one.number for one in findings), places[0], points_lps_mm=several)
