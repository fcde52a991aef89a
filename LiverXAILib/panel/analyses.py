# SPDX-License-Identifier: Apache-2.0
"""What the panel asks the worker about a CT, and how the answer becomes nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from .. import mrml
from ..errors import LiverXAIError
from ..explain.targets import Target
from ..models import ModelSpec
from .installation import REPORT_PACKAGES
from .model_choice import ModelChoice
from .state import PanelState
from .tasks import Steps, TaskRunner


class Analyses:
    """Analyses and explanations of the chosen CT, with the chosen model.

    :param shown: called when results of the chosen CT are in the scene, with the heat map to be shown (or None) …
    :param overlaid: … and after the next turn of the event loop with the place (RAS mm) to look at (or None).
    """

    def __init__(
        self,
        state: PanelState,
        models: ModelChoice,
        runner: TaskRunner,
        shown: Callable[[Any], None],
        overlaid: Callable[[Sequence[float] | None], None],
    ) -> None:
        self._state, self._models, self._runner = state, models, runner
        self._shown, self._overlaid = shown, overlaid
        #: Under which token the worker holds the labels of a segmentation node, and the labels' state then.
        self._held_as: dict[str, tuple[str, str]] = {}

    def forget(self) -> None:
        """The scene was closed: its nodes are gone."""
        self._held_as.clear()

    def analyze(self, questions: Sequence[str]) -> None:
        """Segment, explain and measure the chosen CT."""
        parameters, node = self._state.parameters, self._state.volume_node
        model = self._models.name
        token, voxels = self._token(node), _voxel_time(node)

        def ask() -> int:
            return self._runner.client.analyze(
                mrml.volume_from_node(node, copy=False),
                token,
                model=model,
                device=parameters.device,
                force=parameters.force,
                explain=list(questions),
                method=parameters.method,
                layer=self._models.layer(),
                check=parameters.check,
            )

        self._runner.start(ask, lambda analysis: self._show_analysis(analysis, node, token, model, voxels))

    def explain(self, questions: Sequence[str]) -> None:
        """Explain the CT's segmentation as it is now, also after it was edited."""
        node = self._state.volume_node
        voxels = _voxel_time(node)
        self._runner.start(
            lambda: self._ask_explanation(list(questions)),
            lambda explanations: self._show_explanations(explanations, node, voxels),
        )

    def save(self, folder: str) -> None:
        """Write the report and the files of the last analysis of the chosen CT."""
        token = self._token(self._state.volume_node)
        self._runner.start(lambda: self._runner.client.write(token, folder), _say_where, REPORT_PACKAGES)

    def _token(self, node: Any) -> str:
        """Names the voxels of a CT and where they lie."""
        return f"{mrml.volume_token(node)} {self._state.parameters.force}"

    def _ask_explanation(self, questions: list[str]) -> int:
        """The worker mostly holds the image and the labels already; what it lacks is sent along."""
        parameters, node, client = self._state.parameters, self._state.volume_node, self._runner.client
        segmentation_node, token = self._state.result("segmentation"), self._token(node)
        spec = self._models.spec()
        labels = self._labels_token(segmentation_node)
        segmentation = None
        if not client.holds(token, labels):
            if spec is None:
                raise LiverXAIError(_("This model has to be loaded first: press Apply."))
            self._require_segments(segmentation_node, spec, questions)
            segmentation = mrml.read_segments(segmentation_node, node, spec)
        return client.explain(
            questions,
            token,
            volume=None if client.holds(token) else mrml.volume_from_node(node, copy=False),
            labels=labels,
            segmentation=segmentation,
            method=parameters.method,
            layer=self._models.layer(),
            check=parameters.check,
            model=self._models.name,
            device=parameters.device,
            force=parameters.force,
        )

    def _require_segments(self, segmentation_node: Any, spec: ModelSpec, questions: Sequence[str]) -> None:
        """What is asked about must still have a segment."""
        for question in questions:
            label = Target.parse(question).label
            if label:
                mrml.require_segment(segmentation_node, spec, label)

    def _labels_token(self, segmentation_node: Any) -> str:
        """Under which name the worker holds the segmentation, if it does."""
        state = mrml.labels_token(segmentation_node)
        token, state_then = self._held_as.get(segmentation_node.GetID(), ("", ""))
        return token if state_then == state else state

    # --- results, in steps -----------------------------------------------------------------------------------------

    def _show_analysis(self, analysis: Any, node: Any, token: str, model: str, voxels: Any) -> Steps:
        if not self._state.contains(node):
            return _removed()
        prepared = yield mrml.prepare_nodes(analysis, lesion_segments=self._state.parameters.lesionSegments)
        steps = mrml.node_steps(analysis, self._state.scene, node, prepared)
        while True:
            if not self._state.contains(node):
                return _removed()
            try:
                next(steps)
            except StopIteration as end:
                nodes = end.value
                break
            yield None
        self._held_as[nodes.segmentation.GetID()] = (token, mrml.labels_token(nodes.segmentation))
        self._models.remember(model, analysis.model)
        heat_map = next(reversed(nodes.heatmaps.values()), None)
        warnings = analysis.provenance["warnings"]
        return (yield from self._show_heat_map(heat_map, analysis.explanations, node, voxels, warnings))

    def _show_explanations(self, explanations: Sequence[Any], node: Any, voxels: Any) -> Steps:
        heat_map = None
        if not self._state.contains(node):
            return _removed()
        images = yield mrml.prepare_heatmaps(explanations)
        for explanation, image in zip(explanations, images, strict=True):
            if not self._state.contains(node):
                return _removed()
            heat_map = mrml.explanation_to_node(explanation, self._state.scene, node, image=image)
            yield None
        return (yield from self._show_heat_map(heat_map, explanations, node, voxels, ()))

    def _show_heat_map(
        self, heat_map: Any, explanations: Sequence[Any], node: Any, voxels: Any, warnings: Sequence[str]
    ) -> Steps:
        """The last explanation over its CT, if that is still the one that is looked at; returns what to say."""
        peak = None
        if heat_map is not None:
            peak = yield lambda: mrml.hottest_place(explanations[-1].heatmap)
        if not self._state.contains(node):
            return _removed()
        notes = [*warnings, *(warning for explanation in explanations for warning in explanation.warnings)]
        if _voxel_time(node) != voxels:
            notes.insert(0, _("The CT was changed meanwhile; this is the result of what it was. Press Apply again."))
        if self._state.volume_node is node:
            self._shown(heat_map)
            yield None
            self._overlaid(peak)
            yield None
        seconds = self._runner.seconds
        return [_("Done in {seconds:.0f} s. For research use only.").format(seconds=seconds), *notes]


def _removed() -> list[str]:
    return [_("The CT was removed meanwhile; its result was dropped.")]


def _say_where(result: Any) -> Steps:
    yield None
    return [_("Saved in {folder}.").format(folder=Path(next(iter(result["files"].values()))).parent)]


def _voxel_time(node: Any) -> Any:
    """Changes when the voxels of a CT do."""
    image = node.GetImageData() if node is not None else None
    return image.GetMTime() if image is not None else None
