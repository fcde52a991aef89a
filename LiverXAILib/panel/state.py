# SPDX-License-Identifier: Apache-2.0
"""State shared by the parts of the panel: the widgets, the scene, the user's choices, and the chosen CT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..mrml import find_results
from ..mrml.nodes import RESULT


class PanelState:
    """The widgets of the panel and the parameter node that they show.

    :param ui: the widgets of ``LiverXAI.ui`` by name.
    :param scene: Slicer's scene.
    """

    def __init__(self, ui: Any, scene: Any) -> None:
        self.ui = ui
        self.scene = scene
        #: The user's choices, saved with the scene; None while a scene is being closed.
        self.parameters: Any = None
        self._filling = 0
        self._writing = 0

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Mark widget signals as not from the user while the panel fills its own widgets."""
        self._filling += 1
        try:
            yield
        finally:
            self._filling -= 1

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """Yield the parameters for writing; the widgets already show the change, so they are not updated."""
        self._writing += 1
        previous = self.parameters.StartModify()
        try:
            yield self.parameters
        finally:
            self.parameters.EndModify(previous)
            self._writing -= 1

    @property
    def is_writing(self) -> bool:
        """Whether a change of the parameter node comes from the panel itself."""
        return self._writing > 0

    @property
    def listens(self) -> bool:
        """Whether what a widget reports comes from the user."""
        return not self._filling and self.parameters is not None

    @property
    def volume_node(self) -> Any:
        """The chosen CT, or None."""
        return self.parameters.inputVolume if self.parameters is not None else None

    def results(self, kind: str) -> list[Any]:
        """Return the chosen CT's result nodes of a kind; see :func:`LiverXAILib.mrml.find_results`."""
        node = self.volume_node
        return find_results(self.scene, node, kind) if node is not None else []

    def result(self, kind: str) -> Any:
        """Return the chosen CT's result node of a kind, or None."""
        return next(iter(self.results(kind)), None)

    def contains(self, node: Any) -> bool:
        """Return whether a node is (still) in the scene."""
        return node is not None and self.scene.GetNodeByID(node.GetID()) is node


def is_result(node: Any) -> bool:
    """Return whether LiverXAI made a node."""
    return bool(node.GetAttribute(RESULT))
