# SPDX-License-Identifier: Apache-2.0
"""Which buttons are enabled, and one line that says what to do next."""

from __future__ import annotations

from slicer.i18n import tr as _

from .model_choice import ModelChoice
from .reading.edits import is_edited
from .results import ResultsView
from .state import PanelState, is_result
from .status import StatusLine
from .tasks import TaskRunner


class Guide:
    """Enables and disables the buttons; shows what to do next if there is no other message."""

    def __init__(
        self, state: PanelState, status: StatusLine, models: ModelChoice, results: ResultsView, runner: TaskRunner
    ) -> None:
        self._state, self._ui, self._status = state, state.ui, status
        self._models, self._results, self._runner = models, results, runner

    def update(self) -> None:
        """Update after anything that may change which buttons are enabled."""
        if self._state.parameters is None:
            return
        ui, node, busy = self._ui, self._state.volume_node, self._runner.busy
        ready = self._models.is_ready()
        ui.applyButton.text = _("Cancel") if busy else _("Apply")
        can_apply = node is not None and not is_result(node) and ready
        ui.applyButton.enabled = not self._runner.showing if busy else can_apply
        ui.downloadButton.visible = self._models.can_be_fetched()
        ui.downloadButton.enabled = not busy
        ui.progressBar.visible = busy
        found = self._state.result("segmentation") is not None and not busy
        ui.explainButton.enabled = found and ui.targetSelector.currentData != "nothing"
        edited = is_edited(self._state.result("segmentation"))
        # After an edit, the rows of the earlier measurement may refer to other lesions.
        ui.explainLesionButton.enabled = found and not edited and self._results.selected_lesion > 0
        ui.detailsButton.visible = bool(self._status.details)
        if not busy and not self._status.details:
            notes = [_("The segmentation was edited; the numbers are from before the edit.")] if edited else []
            self._status.show_step("\n".join([*notes, *self._status.notes]) or self._next_step(ready))

    def _next_step(self, ready: bool) -> str:
        node, model = self._state.volume_node, self._state.parameters.model
        if node is None and self._state.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0:
            return _("Load a CT of the abdomen, or get CTLiver from the module Sample Data.")
        if node is None:
            return _("Choose a CT.")
        if is_result(node):
            return _("This volume is a result of LiverXAI. Choose the CT.")
        if not ready and self._models.entry is not None:
            return _("The model is not on this computer yet. Press Download.")
        if self._models.is_zip_file:
            return _("Press Import.") if self._models.can_be_fetched() else _("Choose the zip file of a model.")
        if not ready and model:
            return _("The model {name} is not on this computer. Choose another, or import it from a zip file.").format(
                name=model
            )
        if not ready:
            return _("Choose the folder of a model.")
        return _("Press Apply. For research use only.")
