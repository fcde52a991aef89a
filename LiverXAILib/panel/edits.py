# SPDX-License-Identifier: Apache-2.0
"""Detect edits of a segmentation, and keep edited segmentations from being overwritten."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from .. import mrml
from ..models import ModelSpec
from ..mrml.nodes import get_attribute
from .state import PanelState

#: Attribute of a segmentation node that was edited since it was measured; saved with the scene.
EDITED = "LiverXAI.Edited"


class Edits(VTKObservationMixin):
    """Detects edits of a segmentation since it was measured, whatever made them: Segment Editor, script, undo.

    :param changed: called at the first edit since the measurement, and when the measured state is restored.
    :param touched: called at each change.
    """

    def __init__(
        self, state: PanelState, changed: Callable[[], None], touched: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self._state, self._changed, self._touched = state, changed, touched
        self._measured: dict[str, str] = {}
        #: The voxels that were measured: saving a scene stores the labels differently, step by step, but changes none.
        self._voxels: dict[str, str] = {}
        #: Whether a change was seen in this turn of the event loop: it may turn out to be only such a step.
        self._settling = False
        self._paused = False

    def watch(self) -> None:
        """Observe the present segmentation of the chosen CT."""
        node = self._state.result("segmentation")
        if node is None:
            return
        if node.GetID() not in self._measured:
            self._remember(node)
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

    def measured(self, node: Any, state: str) -> Generator[Callable[[], str], str, None]:
        """Record that the measurements belong to the labels in `state`; runs as steps of a panel task.

        A thread reads the voxels; edits made before it has finished are not recorded as measured.
        """
        voxels = ""
        if mrml.labels_token(node) == state:
            voxels = yield mrml.prepare_checksum(node)
        is_as_measured = mrml.labels_token(node) == state
        self._measured[node.GetID()] = state
        if is_as_measured:
            self._voxels[node.GetID()] = voxels
        else:
            self._voxels.pop(node.GetID(), None)
        node.SetAttribute(EDITED, None if is_as_measured else "1")

    def forget(self) -> None:
        """Drop all state after the scene was closed."""
        self.removeObservers()
        self._measured.clear()
        self._voxels.clear()

    def _remember(self, node: Any) -> None:
        self._measured[node.GetID()] = mrml.labels_token(node)
        self._voxels[node.GetID()] = mrml.segments_checksum(node)

    def _on_modified(self, caller: Any, event: Any) -> None:
        import qt

        node = self._state.result("segmentation")
        if self._paused or node is None or node.GetSegmentation() is not caller:
            return
        now = mrml.labels_token(node)
        if self._measured.get(node.GetID()) == now:
            return
        edited = is_edited(node)
        if (not edited or self._settling) and self._voxels.get(node.GetID()) == mrml.segments_checksum(node):
            self._measured[node.GetID()] = now
            if edited:
                node.SetAttribute(EDITED, None)
                self._changed()
            return
        self._touched()
        if not edited:
            self._settling = True
            qt.QTimer.singleShot(0, self._settled)
            node.SetAttribute(EDITED, "1")
            self._changed()

    def _settled(self) -> None:
        self._settling = False


def is_edited(node: Any) -> bool:
    """Return whether a segmentation node was edited since it was measured."""
    return node is not None and bool(node.GetAttribute(EDITED))


def free_title(scene: Any, volume: Any, node: Any) -> str:
    """Make a title for results that are set aside: the model, whether the reader changed them, and a number."""
    model = get_attribute(node, "Model") or {}
    words = [model.get("name") or _("model"), model.get("version") or ""]
    changed = is_edited(node) or bool(get_attribute(node, "Decisions"))
    title = " ".join(filter(None, [*words, _("with the reader's changes") if changed else ""]))
    taken, number = mrml.sets_aside(scene, volume), 2
    candidate = title
    while candidate in taken:
        candidate, number = f"{title}, {number}", number + 1
    return candidate


def must_be_kept(node: Any, model: ModelSpec) -> bool:
    """Return whether a new result must not replace this one, because a reader changed it or another model made it."""
    if node is None:
        return False
    return is_edited(node) or bool(get_attribute(node, "Decisions")) or not made_by(node, model)


def made_by(node: Any, model: ModelSpec) -> bool:
    """Return whether a segmentation node is a result of this model."""
    known = get_attribute(node, "Model") or {}
    return bool(known.get("sha256") == list(model.sha256))
