# SPDX-License-Identifier: Apache-2.0
"""An analysis in the scene: heat maps with a fixed scale, a table, one folder; run again, it is updated in place."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from mrml_toys import ball_analysis

from LiverXAILib import mrml
from LiverXAILib.colors import VISIBLE_HEAT, heat_color
from LiverXAILib.errors import InputError
from LiverXAILib.mrml import (
    analysis_to_nodes,
    explanation_to_node,
    find_results,
    show_overlay,
    show_surfaces,
    volume_to_node,
)
from LiverXAILib.volumes.box import Box


def hierarchy_of(scene):
    import slicer

    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def children(scene, item):
    import vtk

    ids = vtk.vtkIdList()
    hierarchy_of(scene).GetItemChildren(item, ids)
    return [hierarchy_of(scene).GetItemName(ids.GetId(n)) for n in range(ids.GetNumberOfIds())]


def visible_nodes(scene):
    return sorted(
        node.GetID()
        for node in (scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes()))
        if not node.GetHideFromEditors() or node.IsA("vtkMRMLDisplayNode")
    )


def observers(node):
    """The number of observers of a node, from Slicer's printout."""
    return str(node).count("vtkObserver (")


def test_heat_maps_are_floats_on_the_cts_grid_with_a_fixed_scale(scene):
    import slicer.util

    analysis = ball_analysis()
    nodes = analysis_to_nodes(analysis, scene)
    for explanation in analysis.explanations:
        node = nodes.heatmaps[str(explanation.target)]
        values = slicer.util.arrayFromVolume(node)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, explanation.heatmap.array)
        np.testing.assert_allclose(mrml.volume_from_node(node).ijk_to_lps, analysis.volume.ijk_to_lps, atol=1e-12)
        display = node.GetDisplayNode()
        assert not display.GetAutoWindowLevel()
        assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0.0, 1.0)
        assert display.GetApplyThreshold()
        assert (display.GetLowerThreshold(), display.GetUpperThreshold()) == (VISIBLE_HEAT, 1.0)


def test_the_colors_are_those_of_the_report(scene):
    nodes = analysis_to_nodes(ball_analysis(), scene)
    table = nodes.heatmaps["tumor"].GetDisplayNode().GetColorNode()
    assert table.GetNumberOfColors() == 256
    color = [0.0] * 4
    for index in range(256):
        table.GetColor(index, color)
        np.testing.assert_allclose(color, [*heat_color(index / 256) / 255, 1], atol=1 / 255)
    assert table is nodes.heatmaps["liver"].GetDisplayNode().GetColorNode()


def test_a_heat_map_says_what_it_answers_and_has_a_legend(scene):
    import slicer

    analysis = ball_analysis()
    node = analysis_to_nodes(analysis, scene).heatmaps["tumor"]
    explanation = analysis.explanations[1]
    assert node.GetAttribute("LiverXAI.Target") == "tumor"
    assert node.GetAttribute("LiverXAI.Method") == "seg-grad-cam"
    assert node.GetAttribute("LiverXAI.Layer") == explanation.layer
    assert json.loads(node.GetAttribute("LiverXAI.Model"))["sha256"] == ["0"]
    assert json.loads(node.GetAttribute("LiverXAI.RawMaximum")) == explanation.raw_maximum
    assert json.loads(node.GetAttribute("LiverXAI.Provenance")) == explanation.provenance
    assert node.GetAttribute("LiverXAI.Faithfulness") is None
    checked = dataclasses.replace(explanation, faithfulness={"passed": True, "verdict": 'ok: 1; "2" < 3\nµ'})
    assert explanation_to_node(checked, scene, node.GetNodeReference("LiverXAI.Input")) is node
    assert json.loads(node.GetAttribute("LiverXAI.Faithfulness")) == checked.faithfulness
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    assert "tumor" in legend.GetTitleText()
    assert legend.GetVisibility()


def test_the_table_holds_the_measurements(scene):
    analysis = ball_analysis()
    node = analysis_to_nodes(analysis, scene).table
    table = node.GetTable()
    rows = analysis.measurements.rows()
    assert table.GetNumberOfRows() == len(rows) == 3
    assert [table.GetColumnName(n) for n in range(table.GetNumberOfColumns())] == list(rows[0])
    for index, row in enumerate(rows):
        assert table.GetValueByName(index, "structure").ToString() == row["structure"]
        assert table.GetValueByName(index, "volume_ml").ToDouble() == row["volume_ml"]
    lesion = rows[2]
    assert float(table.GetValueByName(2, "mean_hu").ToString()) == pytest.approx(lesion["mean_hu"], rel=1e-5)
    assert table.GetValueByName(0, "number").ToString() == ""
    assert node.GetColumnUnitLabel("mean_hu") == "HU"
    assert node.GetColumnTitle("axial_long_mm") == "axial long [mm]"


def test_results_lie_in_one_folder_in_the_study_of_the_ct(scene):
    analysis = ball_analysis()
    hierarchy = hierarchy_of(scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    ct = volume_to_node(analysis.volume, scene, "CT")
    inner = hierarchy.CreateFolderItem(study, "somewhere in it")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(ct), inner)
    nodes = analysis_to_nodes(analysis, scene, ct)
    assert hierarchy.GetItemParent(nodes.folder) == study
    assert len(children(scene, nodes.folder)) == 5
    again = analysis_to_nodes(analysis, scene, ct)
    assert again.folder == nodes.folder
    assert len(children(scene, study)) == 2


def test_two_cts_keep_their_results_apart(scene):
    first = analysis_to_nodes(ball_analysis(), scene, name="first")
    second = analysis_to_nodes(ball_analysis(), scene, name="second")
    assert first.folder != second.folder
    assert not {n.GetID() for n in find_results(scene, first.volume)} & {
        n.GetID() for n in find_results(scene, second.volume)
    }
    assert len(find_results(scene, first.volume, "heatmap")) == 2


def test_results_are_found_by_kind_in_the_order_in_which_they_were_made(scene):
    analysis = ball_analysis()
    nodes = analysis_to_nodes(analysis, scene)
    first = find_results(scene, nodes.volume)
    mrml.put_aside(scene, nodes.volume, "before")
    heat = explanation_to_node(analysis.explanations[0], scene, nodes.volume)
    table = mrml.measurements_to_node(analysis.measurements, scene, nodes.volume)
    segmentation = mrml.segmentation_to_node(analysis.segmentation, scene, nodes.volume)
    assert find_results(scene, nodes.volume) == [heat, table, segmentation]
    assert find_results(scene, nodes.volume, "heatmap") == [heat]
    assert find_results(scene, nodes.volume, "measurements") == [table]
    assert find_results(scene, nodes.volume, "segmentation") == [segmentation]
    assert find_results(scene, nodes.volume, "uncertainty") == []
    assert find_results(scene, nodes.volume, "no such kind") == []
    assert mrml.all_results(scene, nodes.volume) == [*first, heat, table, segmentation]


def test_a_second_run_updates_the_nodes_in_place_and_keeps_what_the_user_set(scene):
    import slicer

    analysis = ball_analysis()
    nodes = analysis_to_nodes(analysis, scene)
    heat = nodes.heatmaps["tumor"]
    heat.SetName("mine")
    heat.GetDisplayNode().SetThreshold(0.4, 1.0)
    heat.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeRainbow")
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(heat)
    legend.SetVisibility(False)
    before = visible_nodes(scene)
    again = analysis_to_nodes(analysis, scene, nodes.volume)
    assert visible_nodes(scene) == before
    assert again == nodes
    assert heat.GetName() == "mine"
    assert heat.GetDisplayNode().GetLowerThreshold() == 0.4
    assert heat.GetDisplayNode().GetColorNode().GetName() == "Rainbow"
    assert not legend.GetVisibility()


def test_heat_maps_of_a_segmentation_that_is_no_more_go_away(scene):
    nodes = analysis_to_nodes(ball_analysis(), scene)
    # The same segmentation with another explanation: the old maps remain for comparison.
    analysis_to_nodes(ball_analysis("hires-cam"), scene, nodes.volume)
    assert len(find_results(scene, nodes.volume, "heatmap")) == 4
    analysis_to_nodes(ball_analysis(dull=True), scene, nodes.volume)
    left = find_results(scene, nodes.volume, "heatmap")
    assert [node.GetAttribute("LiverXAI.Target") for node in left] == ["liver"]
    assert scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode") == 2
    assert len(children(scene, nodes.folder)) == 4


def test_nothing_watches_more_or_grows_when_it_is_run_again(scene):
    analysis = ball_analysis()
    nodes = analysis_to_nodes(analysis, scene)
    watched = [nodes.volume, nodes.segmentation, *nodes.heatmaps.values(), nodes.table, scene]
    analysis_to_nodes(analysis, scene, nodes.volume)
    before = [(observers(node), node.GetReferenceCount()) for node in watched], scene.GetNumberOfNodes()
    for _ in range(3):
        analysis_to_nodes(analysis, scene, nodes.volume)
        show_overlay(scene, nodes.volume, nodes.heatmaps["tumor"], nodes.segmentation)
    assert ([(observers(node), node.GetReferenceCount()) for node in watched], scene.GetNumberOfNodes()) == before


def test_the_bridge_adds_no_observers_at_all():
    for path in Path(mrml.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Attribute) and node.attr == "AddObserver"), f"{path}:{node.lineno}"


def test_one_undo_takes_one_run_back(scene):
    import slicer
    import slicer.util

    for name in ("vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLTableNode"):
        default = scene.CreateNodeByClass(name)
        default.UnRegister(None)
        default.SetUndoEnabled(True)
        scene.AddDefaultNode(default)
    scene.SetUndoOn()
    try:
        ct = volume_to_node(ball_analysis().volume, scene, "CT")
        analysis_to_nodes(ball_analysis(), scene, ct)
        state = {node.GetID(): node.GetName() for node in find_results(scene, ct)}
        values = slicer.util.arrayFromVolume(find_results(scene, ct, "heatmap")[0]).copy()
        levels = scene.GetNumberOfUndoLevels()
        analysis_to_nodes(ball_analysis(dull=True), scene, ct)
        assert scene.GetNumberOfUndoLevels() == levels + 1
        scene.Undo()
        assert {node.GetID(): node.GetName() for node in find_results(scene, ct)} == state
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(find_results(scene, ct, "heatmap")[0]), values)
        scene.Redo()
        assert len(find_results(scene, ct, "heatmap")) == 1
        scene.Undo()
        scene.Undo()
        assert find_results(scene, ct) == []
        # Later updates work as usual.
        assert len(analysis_to_nodes(ball_analysis(), scene, ct).heatmaps) == 2
    finally:
        scene.SetUndoOff()
        scene.ClearUndoStack()
        for name in ("vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLTableNode"):
            default = scene.GetDefaultNodeByClass(name)
            default.SetUndoEnabled(False)


def test_the_uncertainty_map_is_shown_in_colors_of_its_own(scene):
    import slicer.util

    analysis = ball_analysis()
    nodes = analysis_to_nodes(analysis, scene)
    values = slicer.util.arrayFromVolume(nodes.uncertainty)
    # Independent: the entropy of the tumor's probability at its border, where nothing else is uncertain.
    probability = analysis.segmentation.probabilities["tumor"]
    k, j, i = np.rint(analysis.volume.grid.to_ijk(probability.grid.origin)).astype(int)[::-1]
    a, b, c = probability.shape
    p = probability.array.astype(np.float64)
    bits = -p * np.log2(np.maximum(p, 1e-12)) - (1 - p) * np.log2(np.maximum(1 - p, 1e-12))
    box = values[k : k + a, j : j + b, i : i + c]
    assert (box >= bits - 1e-3).all()
    inside = analysis.segmentation.mask("tumor")[k : k + a, j : j + b, i : i + c]
    np.testing.assert_allclose(box[inside], bits[inside], atol=1e-3)
    assert values.max() <= 1.0
    display = nodes.uncertainty.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0.0, 1.0)
    assert display.GetColorNode() is not nodes.heatmaps["tumor"].GetDisplayNode().GetColorNode()
    assert analysis_to_nodes(analysis, scene, nodes.volume).uncertainty is nodes.uncertainty
    # Without probabilities there is no map, and an old one of other labels is removed.
    labels = analysis.volume.with_array(np.zeros(analysis.volume.shape, np.uint8))
    bare = dataclasses.replace(analysis.segmentation, labels=labels, probabilities={})
    again = analysis_to_nodes(dataclasses.replace(analysis, segmentation=bare), scene, nodes.volume)
    assert again.uncertainty is None
    assert find_results(scene, nodes.volume, "uncertainty") == []


def test_results_follow_the_transform_of_their_ct(scene):
    import slicer.util

    analysis = ball_analysis()
    ct = volume_to_node(analysis.volume, scene, "CT")
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(transform, np.diag([1.0, -1.0, 1.0, 1.0]))
    ct.SetAndObserveTransformNodeID(transform.GetID())
    nodes = analysis_to_nodes(analysis, scene, ct)
    for node in (nodes.segmentation, *nodes.heatmaps.values()):
        assert node.GetTransformNodeID() == transform.GetID()
    np.testing.assert_allclose(
        mrml.volume_from_node(nodes.heatmaps["tumor"]).ijk_to_lps, mrml.volume_from_node(ct).ijk_to_lps, atol=1e-12
    )


def test_the_overlay_uses_background_and_foreground_and_leaves_the_label_layer_alone(scene):
    import slicer

    nodes = analysis_to_nodes(ball_analysis(), scene)
    composites = []
    for name in ("Red", "Green"):
        composite = slicer.vtkMRMLSliceCompositeNode()
        composite.SetLayoutName(name)
        composites.append(scene.AddNode(composite))
    show_overlay(scene, nodes.volume, nodes.heatmaps["liver"], nodes.segmentation, opacity=0.4, threshold=0.25)
    for composite in composites:
        assert composite.GetBackgroundVolumeID() == nodes.volume.GetID()
        assert composite.GetForegroundVolumeID() == nodes.heatmaps["liver"].GetID()
        assert composite.GetForegroundOpacity() == pytest.approx(0.4)
        assert composite.GetLabelVolumeID() is None
    assert nodes.heatmaps["liver"].GetDisplayNode().GetLowerThreshold() == 0.25
    show_overlay(scene, nodes.volume)
    assert composites[0].GetForegroundVolumeID() is None
    for composite in composites:
        scene.RemoveNode(composite)


def test_surfaces_are_made_when_they_are_shown(scene):
    nodes = analysis_to_nodes(ball_analysis(), scene)
    assert not nodes.segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    show_surfaces(nodes.segmentation)
    assert nodes.segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    assert nodes.segmentation.GetDisplayNode().GetVisibility3D()
    show_surfaces(nodes.segmentation, False)
    assert not nodes.segmentation.GetDisplayNode().GetVisibility3D()


def test_an_analysis_of_another_ct_is_refused_and_leaves_the_scene_as_it_was(scene):
    analysis = ball_analysis()
    ct = volume_to_node(analysis.volume.cropped(Box.full((9, 9, 9))), scene, "CT")
    before = visible_nodes(scene)
    with pytest.raises(InputError, match="analyze it again"):
        analysis_to_nodes(analysis, scene, ct)
    assert visible_nodes(scene) == before


def an_answer(analysis, **evidence):
    """An answer about a CT in which the lesion has 70 HU, on a part of the CT's grid."""
    from LiverXAILib.explain import Counterfactual, Target

    part = analysis.volume.cropped(Box.between((10, 12, 14), (20, 24, 26)))
    changed = part.with_array(np.full(part.shape, 70, np.int16))
    known = {"probability": 0.94, "in_image": 0.94, "without": 0.01, "elsewhere": None, "alone": 0.9, **evidence}
    return Counterfactual(Target.parse("lesion:1"), known, {"without": changed})


def test_a_ct_without_a_lesion_lies_where_it_was_and_says_what_the_model_said(scene):
    import slicer
    import vtk

    analysis = ball_analysis()
    answer = an_answer(analysis)
    nodes = analysis_to_nodes(dataclasses.replace(analysis, answers=(answer,)), scene)
    node = nodes.changed_cts["lesion:1"]
    assert node.GetAttribute("LiverXAI.Sentence") == answer.sentence
    shown = mrml.volume_from_node(node)
    np.testing.assert_allclose(shown.ijk_to_lps, answer.volumes["without"].ijk_to_lps, atol=1e-9)
    np.testing.assert_array_equal(shown.array, 70)
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 25.0)
    transform.SetMatrixTransformToParent(matrix)
    nodes.volume.SetAndObserveTransformNodeID(transform.GetID())
    moved = mrml.volume_from_node(nodes.volume, copy=False)
    there = dataclasses.replace(
        analysis, volume=moved, answers=(an_answer(dataclasses.replace(analysis, volume=moved)),)
    )
    images = mrml.prepare_changed_cts(there.answers)()
    steps = mrml.changed_ct_steps(there.answers, scene, nodes.volume, images)
    assert len(list(steps)) == 1, "a step for each node"
    assert mrml.find_results(scene, nodes.volume, "changed CT") == [node]
    np.testing.assert_allclose(mrml.volume_from_node(node).grid.origin, shown.grid.origin - [25, 0, 0], atol=1e-9)
    slicer.mrmlScene.RemoveNode(transform)


def test_a_ct_without_a_lesion_is_laid_over_the_ct_in_its_window_and_goes_with_the_segmentation(scene):
    analysis = dataclasses.replace(ball_analysis(), answers=(an_answer(ball_analysis()),))
    nodes = analysis_to_nodes(analysis, scene)
    scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    node = nodes.changed_cts["lesion:1"]
    mrml.show_changed_ct(node, nodes.volume)
    (composite,) = [scene.GetNthNodeByClass(n, "vtkMRMLSliceCompositeNode") for n in range(1)]
    assert composite.GetForegroundVolumeID() == node.GetID()
    assert composite.GetForegroundOpacity() == 1.0
    assert node.GetDisplayNode().GetWindowLevelMax() == nodes.volume.GetDisplayNode().GetWindowLevelMax()
    analysis_to_nodes(ball_analysis(), scene, nodes.volume)  # the same labels: answers about them remain valid
    assert find_results(scene, nodes.volume, "changed CT") == [node]
    analysis_to_nodes(ball_analysis(dull=True), scene, nodes.volume)
    assert find_results(scene, nodes.volume, "changed CT") == []


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("lesion 1 of May heat map lesion 1 (hires-cam)", "lesion 1 of May heat map lesion 2 (hires-cam)"),
        ("Influence on lesion 1", "Influence on lesion 2"),
        ("lesion 12, as I call it", "lesion 12, as I call it"),
        ("my own name", "my own name"),
    ],
)
def test_the_name_of_a_heat_map_gets_the_present_number_of_its_lesion(name, renamed):
    from LiverXAILib.explain import Target
    from LiverXAILib.mrml.heatmaps import _renamed

    assert _renamed(name, "lesion 1", Target.parse("lesion:2")) == renamed
