# SPDX-License-Identifier: Apache-2.0
"""User actions in the panel, as functions."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from LiverXAILib.models import LIVER, ModelSpec
from LiverXAILib.models.spec import LayerSpec, Region
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


def write_chain(toy: str, folder: Path) -> str:
    """The model in the folder `toy` as a cascade: it finds the liver, then segments liver and tumor around it.

    The first stage has a layer that the second, which gives the final labels, does not have.
    """
    shutil.copytree(toy, folder)
    card = folder / "card.json"
    spec = ModelSpec.from_json(card.read_text(encoding="utf-8"))
    (fine,) = spec.stages
    locator = dataclasses.replace(
        fine,
        name="locator",
        labels={LIVER.name: (LIVER.name,)},
        layers=(*fine.layers, LayerSpec("decoder.0", (1, 1, 1))),
    )
    fine = dataclasses.replace(fine, region=Region(LIVER.name, 20.0))
    card.write_text(dataclasses.replace(spec, name="chain", stages=(locator, fine)).to_json(), encoding="utf-8")
    return str(folder)


def prepare(panel: Any, volume: Volume, folder: str, target: str = "both", name: str = "CT") -> Any:
    """Choose a CT, a model and a question; return the CT's node."""
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
    """Wait until nothing is running."""
    from slicerhost.qtapplication import wait_until

    wait_until(lambda: not panel.widget.runner.busy)


def wait_running(panel: Any) -> None:
    """Wait until the worker reports progress."""
    from slicerhost.qtapplication import wait_until

    wait_until(lambda: panel.ui.progressBar.value > 25)


def results(node: Any, kind: str) -> list[Any]:
    """The result nodes of a CT."""
    import slicer

    from LiverXAILib.mrml import find_results

    return find_results(slicer.mrmlScene, node, kind)


def decided(panel: Any) -> list[str]:
    """The last column of the lesion table."""
    table = panel.ui.lesionTable
    return [table.item(row, table.columnCount - 1).text().replace("\n", " ") for row in range(table.rowCount)]


def decide(panel: Any, row: int, button: str) -> None:
    """Choose a row of the lesion table and press a button, such as "reject", below it."""
    panel.ui.lesionTable.selectRow(row)
    panel.click(getattr(panel.ui, f"{button}Button"))
    wait_idle(panel)


def save(panel: Any, folder: Path, monkeypatch: Any) -> None:
    """Save report and files into a folder by the panel's button."""
    monkeypatch.setattr(panel.widget, "askFolder", lambda: str(folder))
    panel.click(panel.ui.saveButton)
    wait_idle(panel)


def save_and_reopen(panel: Any, path: Path) -> tuple[Any, Any]:
    """Save the scene, close it and open it again; return the CT chosen in the panel, and its segmentation."""
    import slicer
    from slicerhost.qtapplication import process_events

    assert slicer.util.saveScene(str(path))
    panel.host.clear()
    slicer.util.loadScene(str(path))
    process_events()
    node = panel.ui.inputSelector.currentNode()
    (segmentation,) = results(node, "segmentation")
    return node, segmentation


def place_point(ras: Any) -> None:
    """Place a point as Slicer does when the reader clicks in a slice view."""
    import slicer
    from slicerhost.qtapplication import process_events

    logic = slicer.app.applicationLogic()
    interaction = logic.GetInteractionNode()
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    node = slicer.mrmlScene.GetNodeByID(logic.GetSelectionNode().GetActivePlaceNodeID())
    node.AddControlPointWorld(*ras)
    interaction.SwitchToViewTransformMode()
    process_events()


def clipped_texts(panel: Any) -> list[str]:
    """Visible labels and buttons that are smaller than their text."""
    from PySide6 import QtWidgets

    clipped = []
    for name, widget in vars(panel.ui).items():
        if not isinstance(widget, (QtWidgets.QLabel, QtWidgets.QAbstractButton)) or not widget.visible:
            continue
        wraps = getattr(widget, "wordWrap", False)
        needed = 0 if wraps else widget.sizeHint().width()
        height = widget.heightForWidth(widget.width) if wraps else widget.sizeHint().height()
        if widget.width < needed or widget.height < height:
            clipped.append(f"{name}: {widget.width}×{widget.height} for {needed}×{height}")
    return clipped
