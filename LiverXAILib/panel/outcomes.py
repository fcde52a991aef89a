# SPDX-License-Identifier: Apache-2.0
"""Turn the worker's results into nodes, in steps between which Slicer stays responsive."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from .. import mrml
from ..mrml.nodes import set_attributes
from ..mrml.results import node_steps, prepare_heatmaps, prepare_nodes, prepare_subjects, update_refined
from ..mrml.segmentations import LABELS_CHECKSUM
from .model_choice import ModelChoice
from .reading.edits import DECISIONS, Edits, protect_results
from .reading.frames import frame_of
from .results import table_rows
from .state import PanelState
from .tasks import Steps, TaskRunner


@dataclass(frozen=True)
class Asked:
    """The subject of a request: the CT, its voxels and frame, and the segmentation with its state at that time.

    :param labels, decisions: the voxels of the segmentation, and the reader's decisions about it.
    :param size: the patient's height in cm and weight in kg, where they are known.
    """

    volume: Any
    voxels: Any
    frame: str
    segmentation: Any = None
    labels: str = ""
    decisions: str | None = None
    size: tuple[float | None, float | None] = (None, None)

    @staticmethod
    def now(state: PanelState, segmentation: Any = None) -> Asked:
        """Record the chosen CT, and a segmentation of it, as they are at this moment."""
        volume = state.volume_node
        labels = mrml.labels_token(segmentation) if segmentation is not None else ""
        decisions = segmentation.GetAttribute(DECISIONS) if segmentation is not None else None
        size = patient_size(state)
        return Asked(volume, _voxel_time(volume), frame_of(volume), segmentation, labels, decisions, size)


class Outcomes:
    """Adds the worker's results to the scene, unless the nodes they belong to have been removed in the meantime.

    :param edits: notified of what was measured.
    :param shown: takes the heat map to show (or None); shows the results of the chosen CT in steps.
    :param overlaid: called after the last of these steps with the position (RAS mm) to look at (or None).
    """

    def __init__(
        self,
        state: PanelState,
        models: ModelChoice,
        runner: TaskRunner,
        edits: Edits,
        shown: Callable[[Any], Iterator[None]],
        overlaid: Callable[[Sequence[float] | None], None],
    ) -> None:
        self._state, self._models, self._runner = state, models, runner
        self._edits, self._shown, self._overlaid = edits, shown, overlaid
        #: The result that the worker holds, which is the last one: the segmentation node's ID, the worker's name for
        #: its labels, their state at that time, and the record of its measurements and decisions.
        self._held: tuple[str, str, str, tuple[str | None, ...]] = ("", "", "", ())
        #: The patient's height in cm and weight in kg with which it was measured, where they were known.
        self.size: tuple[float | None, float | None] = (None, None)

    def forget(self) -> None:
        """Drop all state after the scene was closed."""
        self._held = ("", "", "", ())
        self._edits.forget()

    def _hold(self, segmentation_node: Any, token: str, labels: str, asked: Asked) -> None:
        self.size = asked.size
        self._held = (segmentation_node.GetID(), token, labels, _record(segmentation_node))

    def base_of(self, segmentation_node: Any) -> str:
        """Return the worker's name for a segmentation node before manual edits; "" if it holds none."""
        identifier, token, _state, record = self._held
        # The worker does not receive decisions and results made in the Python console.
        is_held = identifier == segmentation_node.GetID() and _record(segmentation_node) == record
        return token if is_held else ""

    def labels_token(self, segmentation_node: Any) -> str:
        """Return the name under which the worker holds the segmentation as it is now, if it does."""
        state = mrml.labels_token(segmentation_node)
        identifier, token, state_then, _then = self._held
        return token if identifier == segmentation_node.GetID() and state_then == state else state

    def show_analysis(self, analysis: Any, asked: Asked, token: str, model: str) -> Steps:
        """Show a new result of the CT.

        :param token: the worker's name for it.
        :param model: the name under which the model was requested.
        """
        node, scene = asked.volume, self._state.scene
        if obstacle := self._obstacle(asked):
            return obstacle
        prepared = yield prepare_nodes(analysis, lesion_segments=self._state.parameters.lesionSegments)
        if obstacle := self._obstacle(asked):
            return obstacle
        protect_results(scene, node, analysis.model)
        steps, labels = node_steps(analysis, scene, node, prepared), ""
        while True:
            if not self._state.contains(node):
                return self._obstacle(asked)
            try:
                with self._edits.paused():
                    next(steps)
            except StopIteration as end:
                nodes = end.value
                break
            # The first step makes the segmentation; from then on the reader may edit it.
            labels = labels or mrml.labels_token(mrml.find_results(scene, node, "segmentation")[0])
            yield None
        self._hold(nodes.segmentation, token, labels, asked)
        yield from self._edits.measured(nodes.segmentation, labels)
        self._models.remember(model, analysis.model)
        heat_map = next(reversed(nodes.heatmaps.values()), None)
        warnings = analysis.provenance["warnings"]
        return (yield from self._show_heat_map(heat_map, analysis.explanations, asked, warnings))

    def show_refined(self, analysis: Any, asked: Asked, name: str, by_library: bool) -> Steps:
        """Show the result after the reader's decisions; segments that were only edited by hand stay as they are.

        Edits made in the meantime are not overwritten.

        :param name: the worker's name for the labels.
        :param by_library: whether the library was asked to change segments.
        """
        node, segmentation = asked.volume, asked.segmentation
        if obstacle := self._obstacle(asked):
            return obstacle
        layers = None
        if by_library:
            lesions = self._state.parameters.lesionSegments
            layers = yield lambda: mrml.segment_layers(analysis.segmentation, lesion_segments=lesions)
        changed_cts = yield mrml.prepare_changed_cts(analysis.answers)
        subjects = yield prepare_subjects(analysis, self._state.scene, node)
        if obstacle := self._obstacle(asked):
            return obstacle
        if segmentation.GetAttribute(DECISIONS) != asked.decisions:  # on the console, which the worker does not know
            self._held = ("", "", "", ())
            return [_("Other decisions were made in the meantime, so nothing was changed. Try again.")]
        edited_meanwhile = mrml.labels_token(segmentation) != asked.labels
        if edited_meanwhile and layers is not None:
            self._held = ("", "", "", ())
            return [_("The segmentation was edited in the meantime, so nothing was changed. Try again.")]
        with self._edits.paused():
            update_refined(analysis, self._state.scene, node, layers, subjects)
        labels = asked.labels if edited_meanwhile else mrml.labels_token(segmentation)
        self._hold(segmentation, name, labels, asked)
        yield from self._edits.measured(segmentation, labels)
        yield None
        if obstacle := self._obstacle(asked):
            return obstacle
        # Those of lesions that have not changed, under the numbers that they have now.
        yield from mrml.changed_ct_steps(analysis.answers, self._state.scene, node, changed_cts)
        yield from self._show_in_panel(node, self._state.parameters.heatMap)
        notes = [_("The CT has since changed. Press Apply again.")] if _voxel_time(node) != asked.voxels else []
        unused = mrml.unused_segments(segmentation, analysis.model)
        if unused and not by_library:
            text = _("Not measured, because they are neither liver nor tumor by name or terminology: {names}.")
            notes.append(text.format(names=", ".join(unused)))
        if edited_meanwhile:
            return [_("Measured as the segmentation was before the last edit. For research use only."), *notes]
        return [_("Measured again. For research use only."), *notes]

    def show_explanations(self, explained: Any, asked: Asked) -> Steps:
        """Show heat maps and changed CTs of a segmentation."""
        node, scene = asked.volume, self._state.scene
        heat_map, explanations = None, explained.explanations
        if obstacle := self._obstacle(asked):
            return obstacle
        images = yield prepare_heatmaps(explanations)
        for explanation, image in zip(explanations, images, strict=True):
            if obstacle := self._obstacle(asked):
                return obstacle
            heat_map = mrml.explanation_to_node(explanation, scene, node, image=image)
            place = _place_of(scene, node, str(explanation.target))
            set_attributes(heat_map, {"Place": place, "State": asked.labels or None})
            yield None
        changed = yield mrml.prepare_changed_cts(explained.answers)
        if obstacle := self._obstacle(asked):
            return obstacle
        yield from mrml.changed_ct_steps(explained.answers, scene, node, changed)
        # The sentence about a lesion whose changed CT is shown stands next to the table.
        sentences = [answer.sentence for answer in explained.answers if "without" not in answer.volumes]
        notes = [*sentences, *explained.warnings]
        return (yield from self._show_heat_map(heat_map, explanations, asked, notes))

    def _show_heat_map(
        self, heat_map: Any, explanations: Sequence[Any], asked: Asked, warnings: Sequence[str]
    ) -> Steps:
        """Overlay the last explanation on its CT, if that is still the chosen one; returns the status notes."""
        peak = None
        if heat_map is not None:
            peak = yield lambda: mrml.hottest_place(explanations[-1].heatmap)
        if obstacle := self._obstacle(asked):
            return obstacle
        notes = [*warnings, *(warning for explanation in explanations for warning in explanation.warnings)]
        if _voxel_time(asked.volume) != asked.voxels:
            notes.insert(0, _("The CT has since changed; this result is for the CT as it was. Press Apply again."))
        if (yield from self._show_in_panel(asked.volume, heat_map)):
            self._overlaid(peak)
            yield None
        seconds = self._runner.seconds
        return [_("Done in {seconds:.0f} s. For research use only.").format(seconds=seconds), *notes]

    def _show_in_panel(self, node: Any, heat_map: Any) -> Generator[None, Any, bool]:
        """Show the results of a CT as long as it is the chosen one; returns whether it still is at the end."""
        if self._state.volume_node is not node:
            return False
        for _step in self._shown(heat_map):
            yield None
            if self._state.volume_node is not node:
                return False
        return True

    def _obstacle(self, asked: Asked) -> list[str]:
        """Return why a result can no longer be shown; empty if it can."""
        if not self._state.contains(asked.volume):
            return [_("The CT was removed in the meantime; its result was discarded.")]
        if frame_of(asked.volume) != asked.frame:
            return [
                _(
                    "Another frame was chosen in the meantime; the result of the previous one was discarded. "
                    "Run it again there."
                )
            ]
        present = mrml.find_results(self._state.scene, asked.volume, "segmentation")
        if asked.segmentation is not None and not any(node is asked.segmentation for node in present):
            return [_("The segmentation was removed or set aside in the meantime; its results were discarded.")]
        return []


def _record(segmentation_node: Any) -> tuple[str | None, ...]:
    """Return what a node says about the labels that were measured, and the decisions that led to them."""
    return tuple(segmentation_node.GetAttribute(name) for name in (LABELS_CHECKSUM, DECISIONS))


def patient_size(state: PanelState) -> tuple[float | None, float | None]:
    """Return the patient's height in cm and weight in kg, where they are known."""
    return state.parameters.height or None, state.parameters.weight or None


def _place_of(scene: Any, volume: Any, target: str) -> list[float] | None:
    """Return the position of a target lesion (LPS mm), which identifies its heat map even after renumbering."""
    table = next(iter(mrml.find_results(scene, volume, "measurements")), None)
    for row in table_rows(table):
        if target == f"lesion:{row['number']}":
            return [float(row[f"centroid_{axis}_mm"]) for axis in "lps"]
    return None


def _voxel_time(node: Any) -> Any:
    """Return a time stamp that changes with the voxels of a CT."""
    image = node.GetImageData() if node is not None else None
    return image.GetMTime() if image is not None else None
