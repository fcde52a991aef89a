# SPDX-License-Identifier: Apache-2.0
"""Requests about a CT that the panel sends to the worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from .. import mrml
from ..analysis import Decision
from ..errors import LiverXAIError
from ..explain.targets import Target
from ..models import ModelSpec
from ..mrml.segmentations import LABELS_CHECKSUM
from .installation import REPORT_PACKAGES
from .model_choice import ModelChoice
from .outcomes import Asked, Outcomes, patient_size
from .reading.edits import is_edited, made_by
from .saving import Outputs
from .state import PanelState
from .tasks import Steps, TaskRunner


class Analyses:
    """Starts analyses and explanations of the chosen CT with the chosen model; `outcomes` shows the results."""

    def __init__(
        self, state: PanelState, models: ModelChoice, runner: TaskRunner, outcomes: Outcomes, outputs: Outputs
    ) -> None:
        self._state, self._models, self._runner = state, models, runner
        self._outcomes, self._outputs = outcomes, outputs

    def analyze(self, questions: Sequence[str]) -> None:
        """Segment, explain and measure the chosen CT."""
        parameters, node = self._state.parameters, self._state.volume_node
        model = self._models.name
        token, asked = self._token(node), Asked.now(self._state)

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

        self._runner.start(ask, lambda analysis: self._outcomes.show_analysis(analysis, asked, token, model))

    def explain(self, questions: Sequence[str]) -> None:
        """Explain the CT's segmentation as it is now, including edits."""
        asked = Asked.now(self._state, self._state.result("segmentation"))
        self._runner.start(
            lambda: self._ask_explanation(list(questions)),
            lambda explained: self._outcomes.show_explanations(explained, asked),
        )

    def refine(self, decisions: Sequence[Decision]) -> None:
        """Apply the reader's decisions to the segmentation as it is now, and measure it again."""
        segmentation_node = self._state.result("segmentation")
        asked, name = Asked.now(self._state, segmentation_node), f"refined {time.monotonic()}"
        chosen = mrml.sensitivity_of(segmentation_node)
        changes = any(one.changes_outlines for one in decisions) or chosen != self._models.sensitivity()
        self._runner.start(
            lambda: self._ask_refinement(decisions, name, chosen),
            lambda analysis: self._outcomes.show_refined(analysis, asked, name, changes),
        )

    def is_up_to_date(self, segmentation_node: Any) -> bool:
        """Return whether the worker holds a segmentation node, its CT, and the patient's size as they are now."""
        is_of_size = self._outcomes.size == patient_size(self._state)
        return self.holds(segmentation_node) and is_of_size and not is_edited(segmentation_node)

    def holds(self, segmentation_node: Any) -> bool:
        """Return whether the worker holds a segmentation node as it was before manual edits, and its CT."""
        return bool(self._base_of(segmentation_node))

    def _base_of(self, segmentation_node: Any) -> str:
        """Return the worker's name for a segmentation node before manual edits; "" if it no longer holds the result.

        A new worker, or one that was asked about another CT since, may hold nothing but the labels.
        """
        base, token = self._outcomes.base_of(segmentation_node), self._token(self._state.volume_node)
        return base if base and self._runner.client.holds(token, analysis=base) else ""

    def can_measure(self, segmentation_node: Any) -> bool:
        """Return whether a segmentation node can be measured without asking the user: its model is the chosen one."""
        spec = self._models.spec()
        return spec is not None and made_by(segmentation_node, spec)

    def save(self, folder: str) -> None:
        """Write the report and the files of the chosen CT's current result."""
        node, outputs = self._state.volume_node, self._outputs
        token, result = self._token(node), self._base_of(self._state.result("segmentation"))
        self._runner.start(
            lambda: self._runner.client.write(
                token, folder, result, dicom_files=outputs.dicom_files(node), write=outputs.chosen
            ),
            _say_where,
            outputs.packages,
        )

    def compare(self, prior: str, folder: str) -> None:
        """Compare the chosen CT's current result with an earlier saved one."""
        token, result = self._token(self._state.volume_node), self._base_of(self._state.result("segmentation"))
        self._runner.start(
            lambda: self._runner.client.compare(token, [prior], folder, result), _say_findings, REPORT_PACKAGES
        )

    def _size(self) -> dict[str, float | None]:
        return dict(zip(("height", "weight"), patient_size(self._state), strict=True))

    def _token(self, node: Any) -> str:
        """Return a token for the voxels of a CT and their position."""
        return f"{mrml.volume_token(node)} {self._state.parameters.force}"

    def _ask_explanation(self, questions: list[str]) -> int:
        """Request explanations; image and labels are sent only if the worker does not hold them already."""
        parameters, node, client = self._state.parameters, self._state.volume_node, self._runner.client
        segmentation_node, token = self._state.result("segmentation"), self._token(node)
        spec = self._models.spec()
        labels = self._outcomes.labels_token(segmentation_node)
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
        """Raise an error if a target no longer has a segment."""
        for question in questions:
            label = Target.parse(question).label
            if label:
                mrml.require_segment(segmentation_node, spec, label)

    def _ask_refinement(self, decisions: Sequence[Decision], name: str, sensitivity_before: str) -> int:
        parameters, node, client = self._state.parameters, self._state.volume_node, self._runner.client
        segmentation_node, token, spec = self._state.result("segmentation"), self._token(node), self._models.spec()
        labels = self._outcomes.labels_token(segmentation_node)
        segmentation = None
        if spec is not None and not made_by(segmentation_node, spec):
            raise LiverXAIError(_("This result was made by another model: choose that model first."))
        base = self._base_of(segmentation_node)
        # The worker also holds labels that were edited and explained since, but decisions do not start from those.
        if not base or labels != base or not client.holds(token, labels):
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
            left=segmentation_node.GetAttribute(LABELS_CHECKSUM) or "",
            earlier=[one.to_dict() for one in mrml.decisions_of(segmentation_node, node)],
            who=reader_name(),
            sensitivity=self._models.sensitivity(),
            sensitivity_before=sensitivity_before,
            **self._size(),
            model=self._models.name,
            device=parameters.device,
            force=parameters.force,
        )


def reader_name() -> str:
    """Return the user's name from Slicer's settings; "reader" if it is not set."""
    name: str = slicer.app.applicationLogic().GetUserInformation().GetName()
    return name or "reader"


def _say_where(result: Any) -> Steps:
    yield None
    where = _("Saved in {folder}.").format(folder=Path(next(iter(result["files"].values()))).parent)
    return [where, *result["warnings"]]


def _say_findings(result: Any) -> Steps:
    yield None
    where = _("Saved in {folder}.").format(folder=Path(next(iter(result["files"].values()))).parent)
    return [result["summary"], *result["warnings"], where]
