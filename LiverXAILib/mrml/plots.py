# SPDX-License-Identifier: Apache-2.0
"""Deletion and insertion curves of a heat map as a plot chart."""

from __future__ import annotations

from typing import Any

import slicer
from vtkmodules.vtkCommonCore import vtkDoubleArray
from vtkmodules.vtkCommonDataModel import vtkTable

from .nodes import get_attribute

_CURVES = (
    ("deletion", "marked regions deleted", (0.84, 0.37, 0.0)),
    ("insertion", "marked regions only", (0.0, 0.45, 0.7)),
)
_ROLE = "LiverXAI.HeatMap"


def curves_to_chart(
    heatmap_node: slicer.vtkMRMLScalarVolumeNode, scene: slicer.vtkMRMLScene
) -> slicer.vtkMRMLPlotChartNode | None:
    """Make or update the chart of a heat map's deletion and insertion curves; None if they were not measured.

    The x axis is the changed fraction of the region, in percent; the y axis is the mean probability of the prediction.
    """
    card = get_attribute(heatmap_node, "Faithfulness")
    if not card or not card.get("curves"):
        return None
    curves = card["curves"]
    table = _node(scene, heatmap_node, "vtkMRMLTableNode", "curves")
    data = vtkTable()
    columns = {"changed": [100 * x for x in curves["fractions"]]} | {name: curves[name] for name, *_ in _CURVES}
    for name, values in columns.items():
        column = vtkDoubleArray()
        column.SetName(name)
        for value in values:
            column.InsertNextValue(value)
        data.AddColumn(column)
    table.SetAndObserveTable(data)
    chart = _node(scene, heatmap_node, "vtkMRMLPlotChartNode", "chart")
    chart.RemoveAllPlotSeriesNodeIDs()
    for name, meaning, color in _CURVES:
        series = _node(scene, heatmap_node, "vtkMRMLPlotSeriesNode", name)
        series.SetName(f"{name} ({meaning})")
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName("changed")
        series.SetYColumnName(name)
        series.SetPlotType(series.PlotTypeScatter)
        series.SetColor(*color)
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle(f"Deletion and insertion: {heatmap_node.GetAttribute('LiverXAI.Question')}")
    chart.SetXAxisTitle("changed fraction of the region [%]")
    chart.SetYAxisTitle("mean probability of the prediction")
    return chart


def _node(scene: slicer.vtkMRMLScene, heatmap_node: Any, class_name: str, part: str) -> Any:
    """Return the heat map's node for one part of its plot; it is made if there is none."""
    for index in range(scene.GetNumberOfNodesByClass(class_name)):
        node = scene.GetNthNodeByClass(index, class_name)
        if node.GetNodeReferenceID(_ROLE) == heatmap_node.GetID() and node.GetAttribute("LiverXAI.Plot") == part:
            return node
    node = scene.AddNewNodeByClass(class_name, scene.GenerateUniqueName(f"{heatmap_node.GetName()} {part}"))
    node.SetNodeReferenceID(_ROLE, heatmap_node.GetID())
    node.SetAttribute("LiverXAI.Plot", part)
    return node
