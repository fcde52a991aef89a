# SPDX-License-Identifier: Apache-2.0
"""Observe the scene, and notify the panel once per turn of the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.util import VTKObservationMixin

from ..mrml import input_of, place_results
from ..mrml.nodes import INPUT_ROLE, result_nodes
from .state import PanelState, is_result


class SceneWatch(VTKObservationMixin):
    """Observes the scene, the parameter node, and the CTs that have results.

    :param parameters: returns the scene's parameter node in its wrapper.
    :param closing: called when the scene is about to be closed.
    :param changed: called when the panel has to refresh its view of the parameter node and the scene.
    :param transformed: called after the chosen CT and its results were transformed.
    """

    def __init__(
        self,
        state: PanelState,
        parameters: Callable[[], Any],
        closing: Callable[[], None],
        changed: Callable[[], None],
        transformed: Callable[[], None],
    ) -> None:
        import qt

        super().__init__()
        self._state, self._get_parameters, self._closing, self._changed = state, parameters, closing, changed
        self._transformed = transformed
        self._input_before_import: Any = None
        # The panel is filled once per turn of the event loop, however many nodes are added or removed in it.
        self._timer = qt.QTimer()
        self._timer.singleShot = True
        self._timer.interval = 0
        self._timer.connect("timeout()", self.refresh)
        scene = state.scene
        for event, observer in (
            (scene.StartCloseEvent, self._on_start_close),
            (scene.EndCloseEvent, self._on_end_close),
            (scene.StartImportEvent, self._on_start_import),
            (scene.EndImportEvent, self._on_end_import),
            (scene.NodeAddedEvent, self._on_nodes_changed),
            (scene.NodeRemovedEvent, self._on_nodes_changed),
        ):
            self.addObserver(scene, event, observer)

    def close(self) -> None:
        """Stop observing."""
        self._timer.stop()
        self.removeObservers()

    def take_over(self, keep: Any = None) -> None:
        """Adopt the choices saved in this scene, at first use or after the scene was loaded.

        :param keep: the CT that was chosen before, which stays chosen.
        """
        if self._state.parameters is not None:
            self.removeObserver(self._state.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self._on_parameters)
        self._state.parameters = self._get_parameters()
        self.addObserver(self._state.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self._on_parameters)
        if self._state.contains(keep):
            with self._state.writing() as parameters:
                parameters.inputVolume = keep
        self.refresh()

    def refresh_soon(self) -> None:
        """Call :meth:`refresh` in the next turn of the event loop."""
        self._timer.start()

    def refresh(self) -> None:
        """Show the parameter node and the scene as they are now."""
        if self._state.parameters is None:
            return
        self._timer.stop()
        self._hide_results()
        self._observe_voxels()
        if self._state.volume_node is None:
            self._choose_first_ct()
        self._observe_analyzed()
        self._changed()

    def _observe_voxels(self) -> None:
        """Observe the voxels of the CT: another frame of a sequence replaces the voxels of the same node."""
        node, event = self._state.volume_node, slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent
        if node is not None and not self.hasObserver(node, event, self._on_parameters):
            self.addObserver(node, event, self._on_parameters)

    def _hide_results(self) -> None:
        """Hide results from the list of CTs."""
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        results = [node.GetID() for node in volumes if is_result(node)]
        model = self._state.ui.inputSelector.sortFilterProxyModel()
        if list(model.hiddenNodeIDs) != results:
            with self._state.filling():
                model.hiddenNodeIDs = results

    def _choose_first_ct(self) -> None:
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
            if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not is_result(node) and node.GetImageData():
                with self._state.writing() as parameters:
                    parameters.inputVolume = node
                return

    def _observe_analyzed(self) -> None:
        """Observe analyzed CTs so that results follow them when they are transformed or moved; also until now."""
        for node in result_nodes(self._state.scene):
            if node.GetNodeReference(INPUT_ROLE) is not None:
                for event, observer in (
                    (slicer.vtkMRMLTransformableNode.TransformModifiedEvent, self._on_transform),
                    (vtk.vtkCommand.ModifiedEvent, self._on_modified),
                ):
                    if not self.hasObserver(input_of(node), event, observer):
                        self.addObserver(input_of(node), event, observer)
                        place_results(self._state.scene, input_of(node))

    def _on_transform(self, caller: Any, event: Any) -> None:
        place_results(self._state.scene, caller)
        if caller is self._state.volume_node:
            self._transformed()

    def _on_modified(self, caller: Any, event: Any) -> None:
        if place_results(self._state.scene, caller) and caller is self._state.volume_node:
            self._transformed()

    def _on_nodes_changed(self, caller: Any, event: Any) -> None:
        if not caller.IsClosing() and not caller.IsImporting():
            self.refresh_soon()

    def _on_parameters(self, caller: Any, event: Any) -> None:
        if not self._state.is_writing:
            self.refresh_soon()

    def _on_start_close(self, caller: Any, event: Any) -> None:
        self._closing()
        self.removeObserver(self._state.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self._on_parameters)
        self._state.parameters = None

    def _on_end_close(self, caller: Any, event: Any) -> None:
        self.take_over()

    def _on_start_import(self, caller: Any, event: Any) -> None:
        self._input_before_import = self._state.volume_node

    def _on_end_import(self, caller: Any, event: Any) -> None:
        self.take_over(self._input_before_import)
