# SPDX-License-Identifier: Apache-2.0
"""Transfer the user's choices between the widgets and the parameter node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

from .installation import missing_packages
from .model_choice import ModelChoice
from .questions import Questions
from .state import PanelState
from .status import StatusLine
from .tasks import Steps, TaskRunner


class Choices:
    """Keeps the widgets and the parameter node in sync."""

    def __init__(self, state: PanelState, models: ModelChoice, questions: Questions) -> None:
        import ctk

        self._state, self._ui, self._models, self._questions = state, state.ui, models, questions
        self._ui.wheelFolder.filters = ctk.ctkPathLineEdit.Dirs
        with state.filling():
            for name, text in (("auto", _("Automatic")), ("cpu", _("CPU"))):
                self._ui.deviceSelector.addItem(text, name)

    def show(self) -> None:
        """Copy the parameter node to the widgets."""
        parameters, ui = self._state.parameters, self._ui
        with self._state.filling():
            ui.inputSelector.setCurrentNode(parameters.inputVolume)
            for combo, value in ((ui.modelSelector, parameters.model), (ui.deviceSelector, parameters.device)):
                if combo.findData(value) < 0:  # a scene from another computer
                    combo.addItem(value, value)
                combo.setCurrentIndex(combo.findData(value))
            ui.colorSelector.setCurrentIndex(max(0, ui.colorSelector.findData(parameters.colors)))
            ui.modelFolder.currentPath = parameters.modelFolder
            ui.wheelFolder.currentPath = parameters.wheelFolder
            ui.checkCheckBox.checked = parameters.check
            ui.lesionSegmentsCheckBox.checked = parameters.lesionSegments
            ui.autoMeasureCheckBox.checked = parameters.autoMeasure
            ui.forceCheckBox.checked = parameters.force
            ui.heightBox.value = parameters.height
            ui.weightBox.value = parameters.weight
            ui.opacitySlider.value = parameters.opacity
            ui.thresholdSlider.value = parameters.threshold
        self._questions.show()
        self._models.show()

    def take(self) -> None:
        """Copy the widgets to the parameter node."""
        ui = self._ui
        with self._state.writing() as parameters:
            parameters.model = ui.modelSelector.currentData
            parameters.modelFolder = ui.modelFolder.currentPath
            parameters.target = ui.targetSelector.currentData
            parameters.method = ui.methodSelector.currentData
            parameters.layer = ui.layerSelector.currentData or ""
            parameters.device = ui.deviceSelector.currentData
            parameters.wheelFolder = ui.wheelFolder.currentPath
            parameters.check = ui.checkCheckBox.checked
            parameters.lesionSegments = ui.lesionSegmentsCheckBox.checked
            parameters.autoMeasure = ui.autoMeasureCheckBox.checked
            parameters.force = ui.forceCheckBox.checked
            parameters.height = ui.heightBox.value
            parameters.weight = ui.weightBox.value
        self._questions.show_hint()
        self._models.show()


class Devices:
    """The devices of this computer; detected only on demand, because detection takes seconds."""

    def __init__(self, state: PanelState, status: StatusLine, runner: TaskRunner) -> None:
        self._state, self._ui, self._status, self._runner = state, state.ui, status, runner

    def on_advanced(self, collapsed: bool) -> None:
        """Detect the devices when the section "Advanced" is opened."""
        if not collapsed and not self._runner.busy and not self._ui.deviceHint.text and not missing_packages(["torch"]):
            notes = list(self._status.notes)
            self._runner.start(self._runner.client.environment, lambda found: self._show(found, notes), ())

    def _show(self, found: Mapping[str, Any], notes: list[str]) -> Steps:
        ui = self._ui
        with self._state.filling():
            for name, title in found["devices"].items():
                index = ui.deviceSelector.findData(name)
                if index < 0:
                    ui.deviceSelector.addItem(title, name)
                else:
                    ui.deviceSelector.setItemText(index, title)
        ui.deviceHint.text = _("PyTorch {version}; found: {devices}.").format(
            version=found["versions"]["torch"], devices="; ".join(found["devices"].values())
        )
        yield None
        return notes
