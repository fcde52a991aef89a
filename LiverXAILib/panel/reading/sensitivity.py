# SPDX-License-Identifier: Apache-2.0
"""The slider between "specific" and "sensitive": choose which lesions count, without running the network again."""

from __future__ import annotations

from slicer.i18n import tr as _

from ...inference.sensitivity import STANDARD, named_points
from ...mrml import sensitivity_of
from ..analyses import Analyses
from ..model_choice import ModelChoice
from ..state import PanelState
from ..tasks import TaskRunner
from .edits import is_edited


class Sensitivity:
    """The slider and the line below it."""

    def __init__(self, state: PanelState, models: ModelChoice, runner: TaskRunner, analyses: Analyses) -> None:
        import qt

        self._state, self._ui, self._models, self._runner, self._analyses = state, state.ui, models, runner, analyses
        # Nothing is computed for positions that the reader only passes.
        self._timer = qt.QTimer()
        self._timer.singleShot = True
        self._timer.interval = 200
        self._timer.connect("timeout()", self._apply)

    def _steps(self) -> list[tuple[str, str]]:
        """Return the slider positions from specific to sensitive: the library's value and its description."""
        spec = self._models.spec()
        if spec is None or not named_points(spec):
            return []
        words = _("about {false:.2g} false positives per case, {found:.0%} of lesions found (data: see the model card)")
        steps = [
            (point.peak, asked, words.format(false=point.false_per_case, found=point.sensitivity))
            for asked, point in named_points(spec).items()
        ]
        own = spec.stage_of("tumor").peak_threshold.get("tumor", 0.0)
        steps.append((own, STANDARD, _("the model card's own operating point")))
        return [(asked, words) for _peak, asked, words in sorted(steps, key=lambda step: -step[0])]

    def show(self) -> None:
        """Show the parameter node's value."""
        steps, slider = self._steps(), self._ui.sensitivitySlider
        for widget in (slider, self._ui.sensitivityLabel, self._ui.sensitivityHint):
            widget.visible = bool(steps)
        if not steps:
            return
        names = [asked for asked, _words in steps]
        chosen = self._state.parameters.sensitivity
        with self._state.filling():
            slider.maximum = len(steps) - 1
            slider.value = names.index(chosen if chosen in names else STANDARD)
        self._ui.sensitivityHint.text = steps[slider.value][1]

    def update(self) -> None:
        """Enable the slider, except while a task runs or edits have not been measured."""
        self._ui.sensitivitySlider.enabled = not self._runner.busy and not is_edited(self._state.result("segmentation"))

    def on_moved(self) -> None:
        """Record the new position of the slider, and apply it after a pause."""
        if self._state.listens:
            asked, words = self._steps()[self._ui.sensitivitySlider.value]
            with self._state.writing() as parameters:
                parameters.sensitivity = asked
            self._ui.sensitivityHint.text = words
            self._timer.start()

    def close(self) -> None:
        """Cancel what is pending."""
        self._timer.stop()

    def _apply(self) -> None:
        node = self._state.result("segmentation")
        if self._state.parameters is None or node is None:
            return
        if self._runner.busy:
            self._timer.start()
        # A decision made in the meantime already used this sensitivity.
        elif not is_edited(node) and sensitivity_of(node) != self._models.sensitivity():
            self._analyses.refine(())
