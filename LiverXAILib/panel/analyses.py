# SPDX-License-Identifier: Apache-2.0
"""What the panel asks the worker about a CT, and how the answer becomes nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from .. import mrml
from ..analysis import Decision
from ..errors import LiverXAIError
from ..explain.targets import Target
from ..inference.sensitivity import STANDARD
from ..models import ModelSpec
from ..mrml.nodes import get_attribute, set_attributes
from .edits import Edits, free_title, is_edited, made_by, must_be_kept
from .installation import REPORT_PACKAGES
from .model_choice import ModelChoice
from .results import table_rows
from .state import PanelState
from .tasks import Steps, TaskRunner


class Analyses:
    """Analyses and explanations of the chosen CT, with the chosen model.

    :param edits: told what was measured.
    :param shown: called when results of the chosen CT are in the scene, with the heat map to be shown (or None) …
    :param overlaid: … and after the next turn of the event loop with the place (RAS mm) to look at (or None).
    """

    def __init__(
        self,
        state: PanelState,
        models: ModelChoice,
        runner: TaskRunner,
        edits: Edits,
        shown: Callable[[Any], None],
        overlaid: Callable[[Sequence[float] | None], None],
    ) -> None:
        self._state, self._models, self._runner = state, models, runner
        self._edits, self._shown, self._overlaid = edits, shown, overlaid
        #: Under which token the worker holds the labels of a segmentation node, and the labels' state then.
        self._held_as: dict[str, tuple[str, str]] = {}

    def forget(self) -> None:
        """The scene was closed: its nodes are gone."""
        self._held_as.clear()
        self._edits.forget()

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
                sensitivity=self._models.sensitivity(),
                **self._size(),
            )

        self._runner.start(ask, lambda analysis: self._show_analysis(analysis, node, token, model, voxels))

    def explain(self, questions: Sequence[str]) -> None:
        """Explain the CT's segmentation as it is now, also after it was edited."""
        node = self._state.volume_node
        voxels = _voxel_time(node)
        self._runner.start(
            lambda: self._ask_explanation(list(questions)),
            lambda explained: self._show_explanations(explained, node, voxels),
        )

    def refine(self, decisions: Sequence[Decision]) -> None:
        """Apply the reader's decisions to the segmentation as it is now, and measure it again."""
        node, segmentation_node = self._state.volume_node, self._state.result("segmentation")
        voxels, name = _voxel_time(node), f"refined {time.monotonic()}"
        labels = mrml.labels_token(segmentation_node)
        chosen = (get_attribute(segmentation_node, "Provenance") or {}).get("sensitivity", {}).get("asked", STANDARD)
        changes = any(one.changes_outlines for one in decisions) or chosen != self._models.sensitivity()
        self._runner.start(
            lambda: self._ask_refinement(decisions, name, chosen),
            lambda analysis: self._show_refined(analysis, node, name, voxels, segmentation_node, labels, changes),
        )

    def is_up_to_date(self, segmentation_node: Any) -> bool:
        """Whether the worker can write the result of a segmentation node as it is now."""
        return not is_edited(segmentation_node) and segmentation_node.GetID() in self._held_as

    def can_measure(self, segmentation_node: Any) -> bool:
        """Whether a segmentation node can be measured without a word to the user: its model is the chosen one."""
        spec = self._models.spec()
        return spec is not None and made_by(segmentation_node, spec)

    def save(self, folder: str) -> None:
        """Write the report and the files of the last analysis of the chosen CT."""
        token = self._token(self._state.volume_node)
        self._runner.start(lambda: self._runner.client.write(token, folder), _say_where, REPORT_PACKAGES)

    def compare(self, prior: str, folder: str) -> None:
        """Compare the last analysis of the chosen CT with a result that was saved earlier."""
        token = self._token(self._state.volume_node)
        self._runner.start(lambda: self._runner.client.compare(token, [prior], folder), _say_findings, REPORT_PACKAGES)

    def _size(self) -> dict[str, float | None]:
        """The patient's height in cm and weight in kg, where they are known."""
        parameters = self._state.parameters
        return {"height": parameters.height or None, "weight": parameters.weight or None}

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

    def _ask_refinement(self, decisions: Sequence[Decision], name: str, sensitivity_before: str) -> int:
        parameters, node, client = self._state.parameters, self._state.volume_node, self._runner.client
        segmentation_node, token, spec = self._state.result("segmentation"), self._token(node), self._models.spec()
        labels = self._labels_token(segmentation_node)
        segmentation = None
        if spec is not None and not made_by(segmentation_node, spec):
            raise LiverXAIError(_("This result was made by another model: choose that model first."))
        base = self._held_as.get(segmentation_node.GetID(), ("", ""))[0]
        if not base or not client.holds(token, labels):
            if spec is None:
                raise LiverXAIError(_("This model has to be loaded first: press Apply."))
            for label in spec.labels:
                if label.is_liver:
                    mrml.require_segment(segmentation_node, spec, label.name)
            segmentation = mrml.read_segments(segmentation_node, node, spec)
        return client.refine(
            decisions,
            token,
            name,
            volume=mrml.volume_from_node(node, copy=False),
            segmentation=segmentation,
            base=base,
            edited=is_edited(segmentation_node),
            earlier=get_attribute(segmentation_node, "Decisions") or (),
            who=reader_name(),
            sensitivity=self._models.sensitivity(),
            sensitivity_before=sensitivity_before,
            **self._size(),
            model=self._models.name,
            device=parameters.device,
            force=parameters.force,
        )

    def _place_of(self, target: str) -> list[float] | None:
        """Where the lesion of a target is (LPS mm), so that its heat map is known also under another number."""
        table = self._state.result("measurements")
        for row in table_rows(table):
            if target == f"lesion:{row['number']}":
                return [float(row[f"centroid_{axis}_mm"]) for axis in "lps"]
        return None

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
        if not self._state.contains(node):
            return _removed()
        self._keep_what_must_stay(node, analysis.model)
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
        # An earlier result of this CT was held under the same name.
        self._held_as = {one: held for one, held in self._held_as.items() if held[0] != token}
        self._held_as[nodes.segmentation.GetID()] = (token, mrml.labels_token(nodes.segmentation))
        self._edits.measured(nodes.segmentation)
        self._models.remember(model, analysis.model)
        heat_map = next(reversed(nodes.heatmaps.values()), None)
        warnings = analysis.provenance["warnings"]
        return (yield from self._show_heat_map(heat_map, analysis.explanations, node, voxels, warnings))

    def _keep_what_must_stay(self, node: Any, model: Any) -> None:
        """The reader's work and another model's result are put aside, not overwritten."""
        before = next(iter(mrml.find_results(self._state.scene, node, "segmentation")), None)
        if must_be_kept(before, model):
            mrml.put_aside(self._state.scene, node, free_title(self._state.scene, node, before))

    def _show_refined(
        self,
        analysis: Any,
        node: Any,
        labels_name: str,
        voxels: Any,
        segmentation_node: Any,
        labels: str,
        by_library: bool,
    ) -> Steps:
        """The result as the reader left it: segments that were only edited by hand stay as they are in the scene.

        What the reader does to them meanwhile is not overwritten.

        :param labels: the state of the segments when this was asked.
        :param by_library: the library was asked to change segments.
        """
        if not self._state.contains(node) or not self._state.contains(segmentation_node):
            return _removed()
        layers = None
        if by_library:
            lesions = self._state.parameters.lesionSegments
            layers = yield lambda: mrml.segment_layers(analysis.segmentation, lesion_segments=lesions)
            if not self._state.contains(node) or not self._state.contains(segmentation_node):
                return _removed()
        edited_meanwhile = mrml.labels_token(segmentation_node) != labels
        if edited_meanwhile and layers is not None:
            self._held_as.pop(segmentation_node.GetID(), None)
            return [_("The segmentation was edited meanwhile, so nothing was changed. Ask again.")]
        mrml.update_refined(analysis, self._state.scene, node, layers)
        state = labels if edited_meanwhile else mrml.labels_token(segmentation_node)
        self._held_as[segmentation_node.GetID()] = (labels_name, state)
        self._edits.measured(segmentation_node, state)
        yield None
        if self._state.volume_node is node:
            self._shown(self._state.parameters.heatMap)
            yield None
        notes = [_("The CT was changed meanwhile. Press Apply again.")] if _voxel_time(node) != voxels else []
        return [_("Measured again. For research use only."), *notes]

    def _show_explanations(self, explained: Any, node: Any, voxels: Any) -> Steps:
        heat_map, explanations = None, explained.explanations
        if not self._state.contains(node):
            return _removed()
        images = yield mrml.prepare_heatmaps(explanations)
        for explanation, image in zip(explanations, images, strict=True):
            if not self._state.contains(node):
                return _removed()
            heat_map = mrml.explanation_to_node(explanation, self._state.scene, node, image=image)
            set_attributes(heat_map, {"Place": self._place_of(str(explanation.target))})
            yield None
        if not self._state.contains(node):
            return _removed()
        changed = yield mrml.prepare_changed_cts(explained.answers)
        if not self._state.contains(node):
            return _removed()
        yield from mrml.changed_ct_steps(explained.answers, self._state.scene, node, changed)
        notes = [*(answer.sentence for answer in explained.answers), *explained.warnings]
        return (yield from self._show_heat_map(heat_map, explanations, node, voxels, notes))

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


def reader_name() -> str:
    """Who decides, as Slicer's settings name the user; "reader" where they do not."""
    name: str = slicer.app.applicationLogic().GetUserInformation().GetName()
    return name or "reader"


def _removed() -> list[str]:
    return [_("The CT was removed meanwhile; its result was dropped.")]


def _say_where(result: Any) -> Steps:
    yield None
    return [_("Saved in {folder}.").format(folder=Path(next(iter(result["files"].values()))).parent)]


def _say_findings(result: Any) -> Steps:
    yield None
    where = _("Saved in {folder}.").format(folder=Path(next(iter(result["files"].values()))).parent)
    return [result["summary"], *result["warnings"], where]


def _voxel_time(node: Any) -> Any:
    """Changes when the voxels of a CT do."""
    image = node.GetImageData() if node is not None else None
    return image.GetMTime() if image is not None else None
