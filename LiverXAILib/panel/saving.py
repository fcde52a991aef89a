# SPDX-License-Identifier: Apache-2.0
"""The choice of files that "Save report and files" writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..errors import UsageError
from ..report.writers import WRITERS
from .installation import REQUIRED_PACKAGES
from .state import PanelState

#: Attribute that Slicer gives a volume loaded from DICOM: the SOP Instance UIDs of its slices.
_INSTANCES = "DICOM.instanceUIDs"


class Outputs:
    """The list of outputs under Advanced; each result also has the files that are always written.

    The scene is not listed: a reader saves it with Slicer's own dialog.
    """

    def __init__(self, state: PanelState) -> None:
        import qt

        self._state, self._list, self._qt = state, state.ui.outputList, qt
        self._list.horizontalScrollBarPolicy = qt.Qt.ScrollBarAlwaysOff
        self._list.wordWrap = True
        with state.filling():
            for writer in WRITERS.values():
                if not writer.required and writer.name != "scene":
                    item = qt.QListWidgetItem(_(writer.title))
                    item.setData(qt.Qt.UserRole, writer.name)
                    item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
                    item.setToolTip(", ".join(writer.files))
                    self._list.addItem(item)

    def show(self) -> None:
        """Check the outputs that the parameter node names."""
        chosen = self.chosen
        with self._state.filling():
            for item in self._items():
                is_chosen = item.data(self._qt.Qt.UserRole) in chosen
                item.setCheckState(self._qt.Qt.Checked if is_chosen else self._qt.Qt.Unchecked)

    def on_changed(self) -> None:
        """Copy the checked outputs to the parameter node."""
        if self._state.listens:
            checked = [
                item.data(self._qt.Qt.UserRole) for item in self._items() if item.checkState() == self._qt.Qt.Checked
            ]
            with self._state.writing() as parameters:
                parameters.outputs = " ".join(checked)

    @property
    def chosen(self) -> list[str]:
        """The names of the chosen outputs; unknown names, of another version's scene, are left out."""
        outputs = self._state.parameters.outputs
        if outputs == "default":
            return [writer.name for writer in WRITERS.values() if writer.default is True and not writer.required]
        return [name for name in outputs.split() if name in WRITERS]

    @property
    def packages(self) -> tuple[str, ...]:
        """The Python packages that the chosen outputs need."""
        needed = (package for name in self.chosen for package in WRITERS[name].packages)
        return tuple(dict.fromkeys([*REQUIRED_PACKAGES, *needed]))

    def dicom_files(self, node: Any) -> list[Path]:
        """The files of the CT's series if one of the chosen outputs is made of them, else none.

        :raises LiverXAILib.errors.UsageError: the CT was not loaded from Slicer's DICOM database, or has left it since.
        """
        if not any(WRITERS[name].of_series for name in self.chosen):
            return []
        instances, database = (node.GetAttribute(_INSTANCES) or "").split(), getattr(slicer, "dicomDatabase", None)
        files = [database.fileForInstance(instance) for instance in instances] if database is not None else []
        if not files or not all(files):
            raise UsageError(
                _(
                    "DICOM files can only be made of a CT that was loaded from Slicer's DICOM database and is still "
                    "in it. Load it there, or uncheck them at Advanced > Files."
                )
            )
        return [Path(name) for name in files]

    def _items(self) -> list[Any]:
        return [self._list.item(row) for row in range(self._list.count)]
