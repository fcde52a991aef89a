# SPDX-License-Identifier: Apache-2.0
"""Measurements as a table node: a row for the liver, one for all tumors, and one for each lesion, found or rejected."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import slicer
from vtkmodules.vtkCommonCore import vtkAbstractArray, vtkDoubleArray, vtkStringArray
from vtkmodules.vtkCommonDataModel import vtkTable

from .nodes import result_node, set_attributes

if TYPE_CHECKING:
    from ..measure import Measurements

#: Units of the columns whose names do not end in one, and the meaning of the endings.
_UNITS = {"_ml": "ml", "_mm": "mm", "_hu": "HU", "_percent": "%"}


def measurements_to_node(
    measurements: Measurements, scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLScalarVolumeNode
) -> slicer.vtkMRMLTableNode:
    """Show measurements as the CT's table node; an earlier one is updated in place.

    The columns are those of ``measurements.csv`` (see :data:`LiverXAILib.measure.measurements.COLUMNS`): numbers are
    stored as numbers, with their unit; cells that do not apply to a row are empty.
    """
    scene.SaveStateForUndo()
    return update_table_node(measurements, scene, volume_node)


def update_table_node(
    measurements: Measurements, scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLScalarVolumeNode
) -> slicer.vtkMRMLTableNode:
    """Do :func:`measurements_to_node` without saving a state for undo."""
    node, _ = result_node(scene, volume_node, "measurements", f"{volume_node.GetName()} measurements")
    rows = measurements.rows()
    table = vtkTable()
    for name in rows[0]:
        table.AddColumn(_column(name, [row[name] for row in rows]))
    node.SetUseColumnTitleAsColumnHeader(True)
    node.SetAndObserveTable(table)
    for name in rows[0]:
        node.SetColumnTitle(name, _title(name))
        unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
        if unit:
            node.SetColumnUnitLabel(name, unit)
    candidates = [dataclasses.asdict(candidate) for candidate in measurements.candidates]
    rejected = [dataclasses.asdict(lesion) for lesion in measurements.rejected]
    axes = {lesion.number: dataclasses.asdict(lesion.axial) for lesion in measurements.lesions}
    summary = measurements.summary()
    set_attributes(node, {"Summary": summary, "Candidates": candidates, "Rejected": rejected, "Axes": axes})
    node.Modified()
    return node


def _column(name: str, values: list[Any]) -> vtkAbstractArray:
    """Make a column of doubles, integers or text. Empty cells need text: a number array has no missing value."""
    present = [value for value in values if value is not None]
    if len(present) == len(values) and all(isinstance(value, float) for value in values):
        column: vtkDoubleArray | vtkStringArray = vtkDoubleArray()
    else:
        column = vtkStringArray()
        values = [_text(value) for value in values]
    column.SetName(name)
    for value in values:
        column.InsertNextValue(value)
    return column


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _title(name: str) -> str:
    """ "mean_hu" → "mean [HU]"."""
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return f"{name.removesuffix(ending).replace('_', ' ')} [{unit}]"
    return name.replace("_", " ")
