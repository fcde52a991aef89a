# SPDX-License-Identifier: Apache-2.0
"""What the user wants explained, and by which method."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from ..errors import LiverXAIError
from ..explain.catalog import CATALOG, DEFAULT_METHOD
from ..mrml.volumes import world_grid
from ..volumes.volume import ras_to_lps
from .model_choice import ModelChoice
from .reading.edits import is_edited
from .state import PanelState

#: The choices of the target, by value of the parameter `target`.
TARGETS = {
    "both": _("Liver and all tumors"),
    "liver": _("Liver"),
    "tumor": _("All tumors"),
    "lesion": _("The lesion chosen in the table"),
    "crosshair": _("The position of the crosshair"),
    "versus": _("Why tumor, not liver"),
    "nothing": _("Nothing, segment only"),
}


class Questions:
    """The choice of target and method, and the questions that result from it."""

    def __init__(self, state: PanelState, models: ModelChoice) -> None:
        self._state, self._ui, self._models = state, state.ui, models
        with state.filling():
            for target, text in TARGETS.items():
                self._ui.targetSelector.addItem(text, target)
            for name, method in CATALOG.items():
                self._ui.methodSelector.addItem(_(method.title), name)

    def show(self) -> None:
        """Show the parameter node; an unknown target or method, from another version, becomes the default."""
        parameters, ui = self._state.parameters, self._ui
        if parameters.target not in TARGETS or parameters.method not in CATALOG:
            with self._state.writing():
                parameters.target = parameters.target if parameters.target in TARGETS else "both"
                parameters.method = parameters.method if parameters.method in CATALOG else DEFAULT_METHOD
        with self._state.filling():
            ui.targetSelector.setCurrentIndex(ui.targetSelector.findData(parameters.target))
            ui.methodSelector.setCurrentIndex(ui.methodSelector.findData(parameters.method))
        self.show_hint()

    def show_hint(self) -> None:
        """Show one line about the chosen method."""
        self._ui.methodHint.text = _(CATALOG[self._ui.methodSelector.currentData].hint)

    def asked(self, lesion: int) -> list[str]:
        """Return the chosen questions as targets of the library.

        :param lesion: the number of the lesion that is chosen in the table; 0: none.
        :raises LiverXAILib.errors.LiverXAIError: the position is not in the CT, or the number may refer to another
            lesion because the segmentation was edited.
        """
        target = self._state.parameters.target
        if target == "lesion" and is_edited(self._state.result("segmentation")):
            raise LiverXAIError(
                _("The rows of the table are from before the edit: press Measure again, then choose the lesion.")
            )
        if target == "lesion":
            return [f"lesion:{lesion or 1}"]
        if target == "crosshair":
            return ["voxel:ras:{:.3f},{:.3f},{:.3f}".format(*self.crosshair())]
        if target == "both":
            labels = self._models.labels()
            return [name for name in ("liver", "tumor") if name in labels]
        return {"versus": ["tumor-vs-liver"], "nothing": []}.get(target, [target])

    def crosshair(self) -> tuple[float, float, float]:
        """Return the position of the crosshair (RAS mm).

        :raises LiverXAILib.errors.LiverXAIError: it was never moved, or is outside the CT.
        """
        crosshair: Any = self._state.scene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
        r, a, s = crosshair.GetCrosshairRAS()
        grid = world_grid(self._state.volume_node)
        voxel = grid.nearest_voxel(ras_to_lps((r, a, s)))
        inside = (voxel >= 0).all() and (voxel < grid.shape).all()
        if not inside or (r, a, s) == (0.0, 0.0, 0.0):  # the position of a new crosshair
            raise LiverXAIError(
                _(
                    "The crosshair is not in this CT yet. Hold Shift, move the mouse to the position in a slice view, "
                    "then try again."
                )
            )
        return r, a, s
