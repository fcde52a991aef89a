# SPDX-License-Identifier: Apache-2.0
"""Pictures of the panel for the documentation: ``python Testing/panel_pictures.py [FOLDER] [--check]``.

With ``--check`` the faithfulness of the heat maps is tested, which takes minutes.

The pictures are drawn by the test host's Qt, with a synthetic patient and the bundled model; Slicer's own widgets look
slightly different.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT)]

from slicerhost import pythonqt, qtapplication  # noqa: E402

from LiverXAILib.panel.sample_data import make_phantom  # noqa: E402

WIDTH = 440


def picture(panel: qtapplication.Panel, path: Path) -> None:
    """Save a picture of the whole panel at its preferred height."""
    qtapplication.process_events()
    panel.scroll.resize(WIDTH, panel.parent.heightForWidth(WIDTH) if panel.parent.hasHeightForWidth() else 0)
    qtapplication.process_events()
    panel.parent.grab().save(str(path))
    print(path)


def read(panel: qtapplication.Panel, ct: Any, folder: Path) -> None:
    """Show the reader's workflow: reject a lesion, and erase a part of the liver."""
    import slicer

    def wait() -> None:
        qtapplication.wait_until(lambda: not panel.widget.runner.busy, 600)

    panel.ui.lesionTable.selectRow(0)
    picture(panel, folder / "reader-1-chosen.png")
    panel.click(panel.ui.rejectButton)
    wait()
    picture(panel, folder / "reader-2-decided.png")
    panel.ui.autoMeasureCheckBox.checked = False
    segmentation = panel.widget.state.result("segmentation")
    liver = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "liver", ct)
    liver[:, :, : liver.shape[2] // 3] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(liver, segmentation, "liver", ct)
    picture(panel, folder / "reader-3-edited.png")
    panel.click(panel.ui.measureButton)
    wait()
    panel.ui.autoMeasureCheckBox.checked = True
    picture(panel, folder / "reader-4-measured.png")


def main(folder: Path, check: bool) -> None:
    import slicer

    folder.mkdir(parents=True, exist_ok=True)
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
    read(panel, ct, folder)
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
    panel.close()
    if pythonqt.problems:
        raise SystemExit("\n".join(pythonqt.problems))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--check", action="store_true")
    main(**vars(parser.parse_args()))
