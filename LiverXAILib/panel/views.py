# SPDX-License-Identifier: Apache-2.0
"""Links from the panel to Slicer's own views and modules: intensity window, table, Segment Editor."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from .results import ResultsView
from .state import PanelState
from .status import StatusLine

#: Intensity windows for reading livers: the text for the user, and the lowest and highest HU.
WINDOWS = {
    "abdomen": (_("Abdomen (W 400, L 40)"), (-160.0, 240.0)),
    "liver": (_("Liver (W 150, L 90)"), (15.0, 165.0)),
}


class Views:
    """The intensity window of the CT, the table of measurements, and the Segment Editor with everything preset."""

    def __init__(self, state: PanelState, status: StatusLine, results: ResultsView) -> None:
        self._state, self._ui, self._status, self._results = state, state.ui, status, results
        with state.filling():
            self._ui.windowSelector.addItem(_("As it is"), "")
            for name, (text, _range) in WINDOWS.items():
                self._ui.windowSelector.addItem(text, name)

    def show(self) -> None:
        """Show which of the intensity windows the chosen CT has."""
        node = self._state.volume_node
        display = node.GetDisplayNode() if node is not None else None
        self._ui.windowSelector.enabled = display is not None
        shown = ""
        if display is not None and not display.GetAutoWindowLevel():
            limits = (display.GetWindowLevelMin(), display.GetWindowLevelMax())
            shown = next((name for name, (_text, known) in WINDOWS.items() if limits == known), "")
        with self._state.filling():
            self._ui.windowSelector.setCurrentIndex(self._ui.windowSelector.findData(shown))

    def on_window(self) -> None:
        """Apply the chosen intensity window."""
        name, node = self._ui.windowSelector.currentData, self._state.volume_node
        if self._state.listens and name and node is not None and node.GetDisplayNode() is not None:
            display = node.GetDisplayNode()
            display.AutoWindowLevelOff()
            display.SetWindowLevelMinMax(*WINDOWS[name][1])

    def on_table(self) -> None:
        """Show the measurements in a table view."""
        table = self._state.result("measurements")
        logic = slicer.app.applicationLogic()
        logic.GetSelectionNode().SetActiveTableID(table.GetID())
        layout = slicer.app.layoutManager()
        if layout is not None:
            layouts = slicer.vtkMRMLLayoutNode
            layout.setLayout(layouts.SlicerLayoutFourUpTableView)
        logic.PropagateTableSelection()

    def on_edit(self) -> None:
        """Open the segmentation in the Segment Editor, with the CT and the segment of the chosen lesion."""
        if slicer.app.layoutManager() is None:
            self._status.show(_("Slicer has no main window, so the Segment Editor cannot be opened."))
            return
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        segmentation = self._state.result("segmentation")
        editor.setSegmentationNode(segmentation)
        editor.setSourceVolumeNode(self._state.volume_node)
        editor.setCurrentSegmentID(self._segment(segmentation))
        node = editor.mrmlSegmentEditorNode()
        # Painting must not overwrite other segments: a lesion lies in the liver, and both segments overlap.
        node.SetOverwriteMode(node.OverwriteNone)
        editor.setActiveEffectByName("Paint")

    def _segment(self, segmentation: Any) -> str:
        """Return the segment of the chosen lesion, else that of all tumors, else that of the liver."""
        present = list(segmentation.GetSegmentation().GetSegmentIDs())
        wanted = [f"tumor_{self._results.selected_lesion}", "tumor", "liver", *present]
        return next((name for name in wanted if name in present), "")
