# SPDX-License-Identifier: Apache-2.0
"""What a user does with the panel, as functions."""

from __future__ import annotations

from typing import Any

from LiverXAILib.mrml import volume_to_node
from LiverXAILib.volumes.volume import Volume


def add_ct(volume: Volume, name: str = "CT") -> Any:
    """A CT in the scene."""
    import slicer

    return volume_to_node(volume, slicer.mrmlScene, name)


def choose_model(panel: Any, folder: str) -> None:
    """Choose a model's folder."""
    panel.choose(panel.ui.modelSelector, "")
    panel.ui.modelFolder.currentPath = folder
    panel.choose(panel.ui.deviceSelector, "cpu")


def prepare(panel: Any, volume: Volume, folder: str, target: str = "both", name: str = "CT") -> Any:
    """A CT, chosen, with a model and a question; returns its node."""
    node = add_ct(volume, name)
    panel.ui.inputSelector.setCurrentNode(node)
    choose_model(panel, folder)
    panel.choose(panel.ui.targetSelector, target)
    return node


def apply_and_wait(panel: Any) -> None:
    """Press Apply and wait until all results are shown."""
    panel.click(panel.ui.applyButton)
    wait_idle(panel)


def wait_idle(panel: Any) -> None:
    """Wait until nothing runs any more."""
    from slicerhost.qtapplication import wait_until

    wait_until(lambda: not panel.widget._task)


def wait_running(panel: Any) -> None:
    """Wait until the worker tells of progress."""
    from slicerhost.qtapplication import wait_until

    wait_until(lambda: panel.ui.progressBar.value > 25)


def results(node: Any, kind: str) -> list[Any]:
    """The result nodes of a CT."""
    import slicer

    from LiverXAILib.mrml import find_results

    return find_results(slicer.mrmlScene, node, kind)
