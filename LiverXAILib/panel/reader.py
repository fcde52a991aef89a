# SPDX-License-Identifier: Apache-2.0
"""The buttons by which the reader decides: measure again, accept, reject, add; and which result is shown."""

from __future__ import annotations

from .. import mrml
from ..analysis import Decision
from ..errors import LiverXAIError
from .analyses import Analyses
from .edits import free_title, is_edited
from .questions import Questions
from .results import ResultsView
from .state import PanelState
from .status import StatusLine
from .tasks import TaskRunner


class Reader:
    """The buttons by which the reader decides."""

    def __init__(
        self,
        state: PanelState,
        status: StatusLine,
        questions: Questions,
        results: ResultsView,
        runner: TaskRunner,
        analyses: Analyses,
    ) -> None:
        self._state, self._ui, self._status, self._questions = state, state.ui, status, questions
        self._results, self._runner, self._analyses = results, runner, analyses

    def update(self) -> None:
        """What can be pressed, and whether the numbers are from before an edit."""
        ui, node = self._ui, self._state.result("segmentation")
        edited, idle = is_edited(node), node is not None and not self._runner.busy
        ui.editedLabel.visible = edited
        ui.measureButton.visible = node is not None and not self._analyses.is_up_to_date(node)
        ui.measureButton.enabled = idle
        candidate = self._results.selected_candidate
        ui.acceptButton.enabled = idle and not edited and candidate > 0
        ui.rejectButton.enabled = idle and not edited and self._results.selected_lesion > 0
        ui.addButton.enabled = idle
        ui.saveButton.enabled = ui.compareButton.enabled = idle and self._analyses.is_up_to_date(node)

    def on_measure(self) -> None:
        """Measure the segmentation as it is now."""
        self._analyses.refine(())

    def on_accept(self) -> None:
        """The candidate chosen in the table is a lesion."""
        self._analyses.refine([Decision("accept", (self._results.selected_candidate,))])

    def on_reject(self) -> None:
        """The lesion chosen in the table is none."""
        self._analyses.refine([Decision("reject", (self._results.selected_lesion,))])

    def on_add(self) -> None:
        """There is a lesion at the crosshair."""
        try:
            r, a, s = self._questions.crosshair()
        except LiverXAIError as error:
            self._status.show(str(error))
        else:
            self._analyses.refine([Decision("add", (), (-r, -a, s))])

    def on_result_chosen(self) -> None:
        """Another set of results of this CT was chosen."""
        if self._state.listens:
            title = self._ui.resultSelector.currentData
            if title:
                scene, volume = self._state.scene, self._state.volume_node
                mrml.put_aside(scene, volume, free_title(scene, volume, self._state.result("segmentation")))
                mrml.bring_back(scene, volume, title)
                with self._state.writing() as parameters:
                    parameters.heatMap = None
                self._results.show()
