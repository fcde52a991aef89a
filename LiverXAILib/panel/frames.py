# SPDX-License-Identifier: Apache-2.0
"""A CT that is played from a sequence (several phases, a perfusion): each frame keeps its own results."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from .. import mrml
from .state import PanelState

#: Attribute of a segmentation node: the frame of the sequence that it belongs to.
FRAME = "LiverXAI.Frame"


class Frames:
    """Sets the results of other frames aside when the frame changes, and restores those of the current one."""

    def __init__(self, state: PanelState) -> None:
        self._state = state

    def mark(self, segmentation: Any) -> None:
        """Record which frame a new result belongs to."""
        segmentation.SetAttribute(FRAME, frame_of(self._state.volume_node) or None)

    def follow(self) -> bool:
        """Follow the frame that the chosen CT shows; returns whether results were restored or set aside."""
        node, found = self._state.volume_node, self._state.result("segmentation")
        if node is None:
            return False
        scene, frame = self._state.scene, frame_of(node)
        if not frame or (found is not None and found.GetAttribute(FRAME) == frame):
            return False
        waiting = _title(frame) in mrml.sets_aside(scene, node)
        if found is not None:
            mrml.put_aside(scene, node, _title(found.GetAttribute(FRAME) or _("unknown")))
        if waiting:
            mrml.bring_back(scene, node, _title(frame))
        return found is not None or waiting


def frame_of(volume_node: Any) -> str:
    """Return the frame of a sequence that a volume shows, counted from 1; "" if it is not played from a sequence."""
    module = getattr(slicer.modules, "sequences", None)
    if module is None or volume_node is None:
        return ""
    browser = module.logic().GetFirstBrowserNodeForProxyNode(volume_node)
    return "" if browser is None else str(browser.GetSelectedItemNumber() + 1)


def _title(frame: str) -> str:
    return _("frame {number}").format(number=frame)
