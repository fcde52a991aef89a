# SPDX-License-Identifier: Apache-2.0
"""Pictures of the panel for the documentation: ``python Testing/panel_pictures.py [FOLDER] [--check]``.

With ``--check`` the faithfulness of the heat maps is tested, which takes minutes.

The pictures are drawn by the test host's Qt, with a synthetic patient and the bundled model; Slicer's own widgets look
slightly different.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "Testing" / "Python"), str(ROOT)]

from slicerhost import pythonqt, qtapplication  # noqa: E402 # isort: skip

import slicer  # noqa: E402
from panel_toys import place_point, save_and_reopen  # noqa: E402
from PySide6 import QtCore, QtGui  # noqa: E402
from slicerhost.rendering import SliceView  # noqa: E402

from LiverXAILib.mrml import volume_from_node  # noqa: E402
from LiverXAILib.panel.sample_data import make_phantom  # noqa: E402

WIDTH = 440


def picture(panel: qtapplication.Panel, path: Path) -> None:
    """Save a picture of the whole panel at its preferred height."""
    qtapplication.process_events()
    panel.scroll.resize(WIDTH, panel.parent.heightForWidth(WIDTH) if panel.parent.hasHeightForWidth() else 0)
    qtapplication.process_events()
    panel.parent.grab().save(str(path))
    print(path)


#: A synthetic patient in whom the model finds two lesions and a false positive, and misses two lesions.
READ_SEED = 45
#: Width of the slice in mm around the place of each step.
FIELD_MM = 150.0
#: HU shown as black and as white.
GRAY_HU = (0.0, 110.0)


class Reading:
    """The reader's steps, each with a picture: a slice with the outlines, and the panel's status, summary and table.

    :param view: the axial slice view.
    """

    def __init__(self, panel: qtapplication.Panel, view: SliceView, folder: Path) -> None:
        self.panel, self.view, self.folder = panel, view, folder
        self.ct, truth = make_phantom(seed=READ_SEED, spacing_mm=(2.0, 2.0, 4.0))
        tumors = slicer.util.arrayFromSegmentBinaryLabelmap(truth, "tumor", self.ct)
        pieces, count = ndimage.label(tumors, np.ones((3, 3, 3)))
        slicer.mrmlScene.RemoveNode(truth)
        self.lesions = [pieces == number for number in range(1, count + 1)]

    def run(self) -> None:
        """Make a picture of each step, in the order of docs/reader.md."""
        ui = self.panel.ui
        self.panel.ui.inputSelector.setCurrentNode(self.ct)
        self.panel.choose(ui.targetSelector, "nothing")
        self.click(ui.applyButton)
        false = next(row for row in range(len(self.rows("lesions"))) if not self.truth_at(self.lesion_place(row)))
        place = self.lesion_place(false)
        ui.lesionTable.selectRow(false)
        self.picture("1-applied", place)
        self.click(ui.rejectButton)
        self.picture("2-rejected", place)

        candidates = self.rows("candidates")
        true = next(n for n, row in enumerate(candidates) if self.truth_at(row["place_lps_mm"]))
        place = candidates[true]["place_lps_mm"]
        ui.lesionTable.selectRow(len(self.rows("lesions")) + true)
        self.click(ui.acceptButton)
        self.picture("3-accepted", place)

        missed = next(lesion for lesion in self.lesions if not (lesion & self.tumor()).any())
        place = self.deepest(missed)
        self.click(ui.placeButton, at=place)
        self.picture("4-added", place)
        self.click(ui.includeButton, at=self.deepest(missed & ~self.tumor()))
        self.picture("5-corrected", place)

        ui.autoMeasureCheckBox.checked = False
        painted = (self.tumor() | missed).astype(np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(painted, self.segmentation(), "tumor", self.ct)
        self.picture("6-edited", place)
        self.click(ui.measureButton)
        ui.autoMeasureCheckBox.checked = True
        self.picture("7-measured", place)

        with tempfile.TemporaryDirectory() as folder:
            self.panel.widget.askFolder = lambda: str(Path(folder) / "result")
            self.click(ui.saveButton)
            ui.statusLabel.text = ui.statusLabel.text.replace(folder, "/home/reader")
            self.picture("8-saved", place)
            self.ct, _ = save_and_reopen(self.panel, Path(folder) / "scene.mrb")
            self.view.node.SetMappedInLayout(True)  # Slicer's layout does this
            self.picture("9-reopened", place)
            self.compare()

    def compare(self) -> None:
        """Make a picture of a comparison with the model's own result, at a lesion that the reader rejected."""
        ui = self.panel.ui
        self.panel.choose(ui.targetSelector, "nothing")
        self.click(ui.applyButton)
        for selector in (ui.resultSelector, ui.comparisonSelector):
            selector.setCurrentIndex(1)
            qtapplication.process_events()
        comparison = self.panel.widget.comparison
        qtapplication.wait_until(lambda: comparison.outlines is not None, 60)
        place = self.rows("rejected")[0]["place_lps_mm"]
        table = ui.comparisonTable
        table.setFixedHeight(table.horizontalHeader().height + table.rowCount * table.rowHeight(0) + 4)
        self.picture("compared", place, (ui.comparisonSelector, table, ui.agreementLabel))
        right = SliceView(self.panel.host, "Yellow", (WIDTH, WIDTH))
        layouts = slicer.vtkMRMLLayoutLogic()  # as with a main window
        layouts.SetMRMLScene(slicer.mrmlScene)
        comparison.update()
        self.click(ui.sideBySideButton)
        path = self.folder / "reader-side-by-side.png"
        gap = np.full((WIDTH, 4, 3), 90, np.uint8)
        matplotlib.image.imsave(path, np.hstack([self.view.picture(), gap, right.picture()]))
        print(path)

    def click(self, button: Any, at: Any = None) -> None:
        """Press a button of the panel, click `at` a place (LPS mm) in a slice view if given, and wait."""
        self.panel.click(button)
        if at is not None:
            place_point((-at[0], -at[1], at[2]))
        qtapplication.wait_until(lambda: not self.panel.widget.runner.busy, 600)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The panel's lesions or candidates."""
        return getattr(self.panel.widget.results, kind)

    def lesion_place(self, row: int) -> list[float]:
        """The center of a lesion in the table (LPS mm)."""
        return [float(self.rows("lesions")[row][f"centroid_{axis}_mm"]) for axis in "lps"]

    def segmentation(self) -> Any:
        return self.panel.widget.state.result("segmentation")

    def tumor(self) -> np.ndarray:
        return slicer.util.arrayFromSegmentBinaryLabelmap(self.segmentation(), "tumor", self.ct) > 0

    def truth_at(self, lps_mm: Any) -> bool:
        """Whether there is a true lesion within a voxel of a place."""
        i, j, k = np.rint(volume_from_node(self.ct).grid.to_ijk(np.array(lps_mm))).astype(int)
        return any(lesion[k - 1 : k + 2, j - 1 : j + 2, i - 1 : i + 2].any() for lesion in self.lesions)

    def deepest(self, mask: np.ndarray) -> np.ndarray:
        """The voxel farthest from the border of a mask (LPS mm)."""
        k, j, i = np.unravel_index(ndimage.distance_transform_edt(mask).argmax(), mask.shape)
        return volume_from_node(self.ct).grid.to_lps(np.array([i, j, k]))

    def picture(self, name: str, lps_mm: Any, shown: Sequence[Any] = ()) -> None:
        """Save a picture of the slice through a place, above a part of the panel.

        :param shown: widgets of the panel; none: its status, summary and table of lesions.
        """
        ui = self.panel.ui
        table = ui.lesionTable
        heights = [table.rowHeight(row) for row in range(table.rowCount)]
        for _ in range(2):  # the layout follows in two steps
            table.setFixedHeight(table.horizontalHeader().height + sum(heights) + 4)
            self.panel.scroll.resize(WIDTH, 2400)  # no scroll bar
            qtapplication.process_events()
        parts = [self.pixels(widget) for widget in shown or (ui.statusLabel, ui.summaryLabel, table)]
        self.view.node.SetFieldOfView(FIELD_MM, FIELD_MM, self.view.node.GetFieldOfView()[2])
        self.view.jump_to((-lps_mm[0], -lps_mm[1], lps_mm[2]))
        display = self.ct.GetDisplayNode()
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(*GRAY_HU)
        path = self.folder / f"reader-{name}.png"
        matplotlib.image.imsave(path, np.vstack([self.view.picture(), *parts]))
        print(path)

    def pixels(self, widget: Any) -> np.ndarray:
        """A widget of the panel over the whole width, with a small margin above and below."""
        parent = self.panel.parent
        drawn = parent.grab().toImage().convertToFormat(QtGui.QImage.Format_RGB888)
        pixels = np.frombuffer(drawn.constBits(), np.uint8).reshape(drawn.height(), drawn.bytesPerLine())
        pixels = pixels[:, : 3 * drawn.width()].reshape(drawn.height(), drawn.width(), 3)
        top = widget.mapTo(parent, QtCore.QPoint(0, 0)).y()
        shown = pixels[top : top + widget.height]
        rows = np.flatnonzero((shown != pixels[0, 0]).any(axis=(1, 2)))
        return np.pad(shown[rows[0] : rows[-1] + 1], ((8, 4), (0, 0), (0, 0)), constant_values=pixels[0, 0, 0])


def main(folder: Path, check: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    view = SliceView(qtapplication.start(), "Red", (WIDTH, WIDTH))
    panel = qtapplication.Panel(ROOT / "LiverXAI" / "LiverXAI.py")
    picture(panel, folder / "panel-empty.png")
    ct, truth = make_phantom(seed=7, spacing_mm=(2.0, 2.0, 4.0))
    slicer.mrmlScene.RemoveNode(truth)
    panel.ui.inputSelector.setCurrentNode(ct)
    panel.choose(panel.ui.targetSelector, "both")
    panel.ui.checkCheckBox.checked = check
    panel.click(panel.ui.applyButton)
    qtapplication.wait_until(lambda: panel.ui.progressBar.value > 300, 600)
    picture(panel, folder / "panel-running.png")
    qtapplication.wait_until(lambda: not panel.widget.runner.busy, 1200)
    if panel.ui.lesionTable.rowCount:
        panel.ui.lesionTable.selectRow(0)
        panel.click(panel.ui.explainLesionButton)
        qtapplication.wait_until(lambda: not panel.widget.runner.busy, 600)
    panel.ui.heatMapSelector.setCurrentIndex(min(1, panel.ui.heatMapSelector.count - 1))
    picture(panel, folder / "panel-results.png")
    panel.ui.advancedButton.collapsed = False
    qtapplication.wait_until(lambda: not panel.widget.runner.busy, 600)
    picture(panel, folder / "panel-advanced.png")
    panel.ui.advancedButton.collapsed = True
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "MR of the abdomen")
    slicer.util.updateVolumeFromArray(other, abs(slicer.util.arrayFromVolume(ct)))
    panel.ui.inputSelector.setCurrentNode(other)
    panel.click(panel.ui.applyButton)
    qtapplication.wait_until(lambda: not panel.widget.runner.busy, 600)
    picture(panel, folder / "panel-error.png")
    Reading(panel, view, folder).run()
    panel.close()
    if pythonqt.problems:
        raise SystemExit("\n".join(pythonqt.problems))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--check", action="store_true")
    main(**vars(parser.parse_args()))
