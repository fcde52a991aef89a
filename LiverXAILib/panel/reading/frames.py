# SPDX-License-Identifier: Apache-2.0
"""A CT that is played from a sequence (several phases, a perfusion): each frame keeps its own results."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from ... import mrml
from ...mrml.nodes import SET
from ..state import PanelState

#: Attribute of a segmentation node: the frame of the sequence that it belongs to.
FRAME = "LiverXAI.Frame"


class Frames:
    """Sets the results of other frames aside when the frame changes, and restores those of the current one."""

    def __init__(self, state: PanelState) -> None:
        self._state = state

    def follow(self) -> bool:
        """Follow the frame that the chosen CT shows; returns whether results were restored or set aside."""
        node, found = self._state.volume_node, self._state.result("segmentation")
        frame = frame_of(node)
        if not frame or (found is not None and found.GetAttribute(FRAME) == frame):
            return False
        scene = self._state.scene
        waiting = [title for title in sets_to_choose(scene, node) if title.startswith(_title(frame))]
        if found is not None:
            mrml.put_aside(scene, node, _title(found.GetAttribute(FRAME) or _("unknown")))
        if waiting:
            mrml.bring_back(scene, node, waiting[-1])
        return found is not None or bool(waiting)


def mark_frame(segmentation: Any, volume_node: Any) -> None:
    """Record which frame of a CT a new result belongs to."""
    segmentation.SetAttribute(FRAME, frame_of(volume_node) or None)


def sets_to_choose(scene: Any, volume_node: Any) -> list[str]:
    """Return the titles of a CT's sets of results that were set aside and belong to the frame that it shows."""
    frame = frame_of(volume_node) or None
    others = {
        node.GetAttribute(SET)
        for node in mrml.all_results(scene, volume_node, "segmentation")
        if node.GetAttribute(FRAME) != frame
    }
    return [title for title in mrml.sets_aside(scene, volume_node) if title not in others]


def frame_of(volume_node: Any) -> str:
    """Return the frame of a sequence that a volume shows, counted from 1; "" if it is not played from a sequence."""
    module = getattr(slicer.modules, "sequences", None)
    if module is None or volume_node is None:
        return ""
    browser = module.logic().GetFirstBrowserNodeForProxyNode(volume_node)
    return "" if browser is None else str(browser.GetSelectedItemNumber() + 1)


def _title(frame: str) -> str:
    return _("frame {number}").format(number=frame)
