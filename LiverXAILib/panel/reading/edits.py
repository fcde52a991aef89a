# SPDX-License-Identifier: Apache-2.0
"""Detect edits of a segmentation, and keep edited segmentations from being overwritten."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from ... import mrml
from ...models import ModelSpec
from ...mrml.nodes import get_attribute, set_attributes
from ...mrml.tokens import EDITED, SegmentStates
from ..state import PanelState, is_result

#: Attribute of a segmentation node: the reader's decisions.
DECISIONS = "LiverXAI.Decisions"


class Edits(VTKObservationMixin):
    """Detects edits of segmentations since they were measured, whatever made them: Segment Editor, script, undo.

    All results in the scene are observed, also those of CTs that are not chosen and those that were set aside. What was
    measured is recorded in the nodes, so edits made while the panel was closed are found too.

    :param changed: called at the first edit of the current segmentation since its measurement, and when the measured
        state is restored.
    :param touched: called at each change of the current segmentation.
    """

    def __init__(
        self, state: PanelState, changed: Callable[[], None], touched: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self._state, self._changed, self._touched = state, changed, touched
        #: For each node, the state of its labels that is known to be as measured; "" if they were edited.
        self._as_measured: dict[str, str] = {}
        #: Nodes that changed in this turn of the event loop. Saving a scene stores the labels differently, step by
        #: step, but changes none: only the last step shows that the voxels are the same.
        self._settling: set[str] = set()
        self._paused = False

    def watch(self) -> None:
        """Observe the segmentations of all results, and compare new ones with what was measured."""
        for node in _segmentations():
            if node.GetID() not in self._as_measured:
                self._compare_new(node)
            segmentation = node.GetSegmentation()
            for event in (
                segmentation.SourceRepresentationModified,
                segmentation.SegmentModified,
                segmentation.SegmentAdded,
                segmentation.SegmentRemoved,
            ):
                if not self.hasObserver(segmentation, event, self._on_modified):
                    self.addObserver(segmentation, event, self._on_modified)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Ignore changes while the panel itself writes segments."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def measured(self, node: Any, state: str) -> Generator[Callable[[], SegmentStates], SegmentStates, None]:
        """Record that the measurements belong to the labels in `state`; runs as steps of a panel task.

        A thread reads the voxels; edits made before it has finished are not recorded as measured.
        """
        voxels = None
        if mrml.labels_token(node) == state:
            voxels = yield mrml.prepare_state(node)
        if voxels is not None and mrml.labels_token(node) == state:
            mrml.record_measured(node, voxels)
            self._as_measured[node.GetID()] = state
        else:
            set_attributes(node, {"Measured": None})
            node.SetAttribute(EDITED, "1")
            self._as_measured[node.GetID()] = ""

    def forget(self) -> None:
        """Drop all state after the scene was closed."""
        self.removeObservers()
        self._as_measured.clear()
        self._settling.clear()

    def _compare_new(self, node: Any) -> None:
        """Compare a node that was not observed until now with what was measured."""
        if node.GetAttribute("LiverXAI.Measured") is None and not is_edited(node):
            mrml.record_measured(node)
        differs = mrml.differs_from_measured(node)
        node.SetAttribute(EDITED, "1" if differs else None)
        self._as_measured[node.GetID()] = "" if differs else mrml.labels_token(node)

    def _on_modified(self, caller: Any, event: Any) -> None:
        import qt

        node = next((one for one in _segmentations() if one.GetSegmentation() is caller), None)
        if self._paused or node is None:
            return
        identifier, now, edited = node.GetID(), mrml.labels_token(node), is_edited(node)
        if self._as_measured.get(identifier) == now:
            return
        is_current = node is self._state.result("segmentation")
        if (not edited or identifier in self._settling) and not mrml.differs_from_measured(node):
            self._as_measured[identifier] = now
            node.SetAttribute(EDITED, None)
            if edited and is_current:
                self._changed()
            return
        self._as_measured[identifier] = ""
        if is_current:
            self._touched()
        if not edited:
            self._settling.add(identifier)
            qt.QTimer.singleShot(0, self._settling.clear)
            node.SetAttribute(EDITED, "1")
            if is_current:
                self._changed()


def _segmentations() -> list[Any]:
    """Return the segmentation nodes of all results in the scene, including those that were set aside."""
    return [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if is_result(node)]


def is_edited(node: Any) -> bool:
    """Return whether a segmentation node was edited since it was measured."""
    return node is not None and bool(node.GetAttribute(EDITED))


def has_decisions(node: Any) -> bool:
    """Return whether a reader has made decisions about a result; they are not read, which would take time."""
    return node is not None and bool(node.GetAttribute(DECISIONS))


def title_of(node: Any) -> str:
    """Return a title for the results with this segmentation node: the model, and whether the reader changed them."""
    if node is None:
        return _("without a segmentation")
    model = get_attribute(node, "Model") or {}
    words = [model.get("name") or _("model"), model.get("version") or ""]
    changed = is_edited(node) or has_decisions(node)
    return " ".join(filter(None, [*words, _("with the reader's changes") if changed else ""]))


def protect_results(scene: Any, volume: Any, model: ModelSpec) -> None:
    """Set a CT's results aside if a reader changed them or another model made them, so that they are not overwritten.

    Edits that were made while the panel was closed are not marked in the node yet; :class:`Edits` or
    :func:`mark_if_edited` does so.
    """
    before = next(iter(mrml.find_results(scene, volume, "segmentation")), None)
    if must_be_kept(before, model):
        mrml.put_aside(scene, volume, title_of(before))


def mark_if_edited(scene: Any, volume: Any) -> None:
    """Mark the CT's segmentation as edited if its voxels are no longer those that were measured."""
    for node in mrml.find_results(scene, volume, "segmentation"):
        node.SetAttribute(EDITED, "1" if mrml.differs_from_measured(node) else None)


def must_be_kept(node: Any, model: ModelSpec) -> bool:
    """Return whether a new result must not replace this one, because a reader changed it or another model made it."""
    if node is None:
        return False
    return is_edited(node) or has_decisions(node) or not made_by(node, model)


def made_by(node: Any, model: ModelSpec) -> bool:
    """Return whether a segmentation node is a result of this model."""
    known = get_attribute(node, "Model") or {}
    return bool(known.get("sha256") == list(model.sha256))
