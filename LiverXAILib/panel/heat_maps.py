# SPDX-License-Identifier: Apache-2.0
"""Which heat map is overlaid on the CT, its display settings, and its faithfulness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..explain.catalog import CATALOG
from ..mrml import curves_to_chart, set_heat_opacity, set_heat_threshold, show_overlay
from ..mrml.heatmaps import is_about, is_about_edit, mark_before_changes
from ..mrml.nodes import get_attribute
from .reading.edits import is_edited
from .state import PanelState
from .words import place_words

#: Colors of heat maps: the name of the color node, and the text for the user.
COLORS = {"LiverXAI heat map": _("Blue to red"), "Rainbow": _("Rainbow"), "Warm1": _("Warm"), "Grey": _("Gray")}


class HeatMaps:
    """The heat maps of the chosen CT: list, opacity, threshold, colors, faithfulness."""

    def __init__(self, state: PanelState) -> None:
        self._state, self._ui = state, state.ui
        #: Whether a heat map in the list belongs to the segmentation as it is now.
        self.any_present = False
        with state.filling():
            for name, text in COLORS.items():
                self._ui.colorSelector.addItem(text, name)

    def show(self) -> None:
        """Show the list of the CT's heat maps, and the faithfulness of the chosen one."""
        ui, heat_maps = self._ui, self._state.results("heatmap")
        ui.heatMapButton.visible = bool(heat_maps)
        self.any_present = False
        with self._state.filling():
            ui.heatMapSelector.clear()
            for heat_map in heat_maps:
                question, method = heat_map.GetAttribute("LiverXAI.Question"), heat_map.GetAttribute("LiverXAI.Method")
                title = _(CATALOG[method].title) if method in CATALOG else method
                place, stale = get_attribute(heat_map, "Place"), self._is_from_before(heat_map)
                mark_before_changes(heat_map, stale)
                self.any_present |= not stale
                where = "" if place is None else " " + place_words(place)
                words = f"{question}{where} ({title})" + (_(", before the changes") if stale else "")
                ui.heatMapSelector.addItem(words, heat_map.GetID())
            ui.heatMapSelector.addItem(_("None"), "")
            chosen = self._state.parameters.heatMap
            index = ui.heatMapSelector.findData(chosen.GetID()) if chosen is not None else -1
            ui.heatMapSelector.setCurrentIndex(index if index >= 0 else ui.heatMapSelector.count - 1)
        self._show_faithfulness()

    def _is_from_before(self, heat_map: Any) -> bool:
        """Return whether the segmentation has changed since a heat map was computed."""
        segmentation = self._state.result("segmentation")
        if is_edited(segmentation):
            return not is_about_edit(heat_map, segmentation)
        return not is_about(heat_map, segmentation)

    def choose(self, heat_map: Any) -> None:
        """Show a heat map from the list."""
        self._ui.heatMapSelector.setCurrentIndex(self._ui.heatMapSelector.findData(heat_map.GetID()))

    def show_latest(self) -> None:
        """Choose the last heat map of the chosen CT's current result, and overlay it; without a result, none."""
        heat_maps, has_result = self._state.results("heatmap"), self._state.result("segmentation") is not None
        shown = self._state.parameters.heatMap
        with self._state.writing() as parameters:
            parameters.heatMap = heat_maps[-1] if heat_maps and has_result else None
        if has_result or shown is not None:
            self.overlay()

    def on_chosen(self) -> None:
        """Show the heat map chosen from the list."""
        if self._state.listens:
            identifier = self._ui.heatMapSelector.currentData
            node = self._state.scene.GetNodeByID(identifier) if identifier else None
            with self._state.writing() as parameters:
                parameters.heatMap = node
            self._show_faithfulness()
            self.overlay()

    def on_opacity(self) -> None:
        """Apply the new opacity at once, without updating anything else."""
        if self._state.listens:
            with self._state.writing() as parameters:
                parameters.opacity = self._ui.opacitySlider.value
            if parameters.heatMap is not None:
                set_heat_opacity(parameters.heatMap, parameters.opacity)

    def on_threshold(self) -> None:
        """Apply the new threshold."""
        if self._state.listens:
            with self._state.writing() as parameters:
                parameters.threshold = self._ui.thresholdSlider.value
            if parameters.heatMap is not None:
                set_heat_threshold(parameters.heatMap, parameters.threshold)

    def on_colors(self) -> None:
        """Apply the chosen colors."""
        if self._state.listens:
            with self._state.writing() as parameters:
                parameters.colors = self._ui.colorSelector.currentData
            self._color()

    def overlay(self, place: Sequence[float] | None = None) -> None:
        """Overlay the chosen heat map on the CT; move all slice views to `place` (RAS mm) if there is one."""
        parameters, scene = self._state.parameters, self._state.scene
        show_overlay(
            scene,
            parameters.inputVolume,
            parameters.heatMap,
            self._state.result("segmentation"),
            opacity=parameters.opacity,
            threshold=parameters.threshold,
        )
        self._color()
        if place is not None:
            slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *place)

    def _color(self) -> None:
        parameters = self._state.parameters
        colors = self._state.scene.GetFirstNodeByName(parameters.colors or next(iter(COLORS)))
        if parameters.heatMap is not None and colors is not None:
            parameters.heatMap.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())

    def on_plot(self) -> None:
        """Plot the curves of deletion and insertion of the chosen heat map."""
        chart = curves_to_chart(self._state.parameters.heatMap, self._state.scene)
        if chart is not None:
            slicer.modules.plots.logic().ShowChartInLayout(chart)

    def _show_faithfulness(self) -> None:
        heat_map = self._state.parameters.heatMap
        card = _faithfulness(heat_map)
        self._ui.plotButton.enabled = card is not None
        self._ui.faithfulnessLabel.text = (
            "" if heat_map is None else card["sentence"] if card else _("The faithfulness of this map was not checked.")
        )


def faithfulness_word(heat_map: Any) -> str:
    """Return the faithfulness of a heat map as one word; "" without a heat map."""
    if heat_map is None:
        return ""
    card = _faithfulness(heat_map)
    return _("not\nchecked") if card is None else _("yes") if card["passed"] else _("no")


def _faithfulness(heat_map: Any) -> Any:
    text = heat_map.GetAttribute("LiverXAI.Faithfulness") if heat_map is not None else None
    return json.loads(text) if text else None
