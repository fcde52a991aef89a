# SPDX-License-Identifier: Apache-2.0
"""Other changes by users to a CT and its results: transforms, renamed, deleted and new segments, undo, other models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import vtk
from batch_toys import phantom, write_model
from panel_toys import (
    apply_and_wait,
    choose_model,
    decide,
    decided,
    place_point,
    prepare,
    results,
    save_and_reopen,
    wait_idle,
)

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
slicer = pytest.importorskip("slicer")

#: RAS mm: a rotation by 30 degrees about the patient's axis, and a shift.
TURN = np.array([[0.866025, -0.5, 0, 30], [0.5, 0.866025, 0, -20], [0, 0, 1, 45], [0, 0, 0, 1]])


def tumor(segmentation, ct):
    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "tumor", ct) > 0


def measure(panel):
    panel.click(panel.ui.measureButton)
    wait_idle(panel)


def ras(row):
    left, posterior, superior = (float(row[f"centroid_{axis}_mm"]) for axis in "lps")
    return np.array([-left, -posterior, superior, 1.0])


def transform(node, matrix=TURN):
    """Put a node under two nested transforms, and return the resulting matrix, 4x4 RAS."""
    inner, outer = (slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode") for _ in range(2))
    for one in (inner, outer):
        one.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    inner.SetAndObserveTransformNodeID(outer.GetID())
    node.SetAndObserveTransformNodeID(inner.GetID())
    qtapplication.process_events()
    return matrix @ matrix


def test_under_nested_transforms_clicks_rows_and_axes_are_where_the_lesion_is(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetLayoutName("Red")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = tumor(segmentation, node).copy()
    first, second = (ras(row) for row in panel.widget.results.lesions)
    decide(panel, 1, "targets")
    decide(panel, 0, "reject")
    moved = transform(node)
    # The row is older than the transform, but leads to the lesion's current position; so do its axes.
    panel.ui.lesionTable.selectRow(0)
    np.testing.assert_allclose(view.GetSliceToRAS().GetElement(2, 3), (moved @ second)[2], atol=0.1)
    line = slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode")[0]
    center = np.mean([line.GetNthControlPointPositionWorld(0), line.GetNthControlPointPositionWorld(1)], axis=0)
    assert np.linalg.norm(center - (moved @ second)[:3]) < 8  # the lesion's radius is 9 mm
    assert not panel.ui.saveButton.enabled  # the files would have its old position
    panel.click(panel.ui.placeButton)
    place_point((moved @ first)[:3])
    wait_idle(panel)
    assert decided(panel) == ["model", "model"]
    after = tumor(segmentation, node)
    assert 2 * (after & before).sum() / (after.sum() + before.sum()) > 0.9
    np.testing.assert_allclose(ras(panel.widget.results.lesions[0])[:3], (moved @ first)[:3], atol=3)
    # The target chosen before is still the same lesion.
    assert "target lesion 2" in panel.ui.summaryLabel.text
    places = [one["place_lps_mm"] for one in json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))]
    expected = (moved @ first)[:3] * (-1, -1, 1)
    np.testing.assert_allclose(places[1], expected, atol=4)  # the rejection
    assert panel.ui.saveButton.enabled


def harden_ct(node):
    transform(node)
    node.HardenTransform()


def harden_everything(node):
    """As Slicer's Data module does for a folder; the CT is the last one."""
    transform(node)
    for one in [*results(node, ""), node]:
        if one.IsA("vtkMRMLTransformableNode"):
            one.HardenTransform()


def center(node):
    node.SetOrigin(31.0, -17.0, 4.0)


@pytest.mark.parametrize("move", [harden_ct, harden_everything, center])
def test_results_stay_on_a_ct_whose_own_geometry_changes(panel, toy_model, tmp_path, move):
    node = prepare(panel, phantom(lesions=2), toy_model, "tumor")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    decide(panel, 1, "reject")
    (segmentation,) = results(node, "segmentation")
    before, matrix = tumor(segmentation, node).copy(), vtk.vtkMatrix4x4()
    hu = panel.widget.results.lesions[0]["mean_hu"]
    measured = json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))
    node.GetIJKToRASMatrix(matrix)
    start, offsets = slicer.util.arrayFromVTKMatrix(matrix), {}
    for changed in results(node, "changed CT"):
        changed.GetIJKToRASMatrix(matrix)
        offsets[changed.GetName()] = np.linalg.inv(start) @ slicer.util.arrayFromVTKMatrix(matrix)
    move(node)
    qtapplication.process_events()
    for _ in range(2):  # once more after reopening
        node.GetIJKToRASMatrix(matrix)
        moved = slicer.util.arrayFromVTKMatrix(matrix) @ np.linalg.inv(start)
        assert np.abs(moved[:3, 3]).max() > 10
        np.testing.assert_array_equal(tumor(segmentation, node), before)
        (heat,) = results(node, "heatmap")
        heat.GetIJKToRASMatrix(matrix)
        np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix), moved @ start, atol=1e-3)
        for changed in results(node, "changed CT"):
            changed.GetIJKToRASMatrix(matrix)
            offset = np.linalg.inv(moved @ start) @ slicer.util.arrayFromVTKMatrix(matrix)  # in voxels of the CT
            np.testing.assert_allclose(offset, offsets[changed.GetName()], atol=1e-3)
        assert not panel.ui.editedLabel.visible
        assert not panel.ui.saveButton.enabled  # the files would have its old position
        node, segmentation = save_and_reopen(panel, tmp_path / "scene.mrb")
    old = ras(panel.widget.results.lesions[0])
    measure(panel)
    (lesion,) = panel.widget.results.lesions
    np.testing.assert_allclose(ras(lesion), moved @ old, atol=0.1)
    assert lesion["mean_hu"] == hu
    assert decided(panel) == ["model", "rejected by reader"]
    decisions = json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))
    assert [one["kind"] for one in decisions] == ["reject"]
    place = np.array([*measured[0]["place_lps_mm"], 1]) * (-1, -1, 1, 1)
    expected = (moved @ place) * (-1, -1, 1, 1)
    np.testing.assert_allclose(decisions[0]["place_lps_mm"], expected[:3], atol=0.1)


def test_renamed_segments_are_still_what_they_were(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    segments = segmentation.GetSegmentation()
    segments.GetSegment("liver").SetName("Leber")
    segments.GetSegment("tumor").SetName("Herde")
    qtapplication.process_events()
    assert not panel.ui.editedLabel.visible
    summary, before = panel.ui.summaryLabel.text, tumor(segmentation, node).copy()
    decide(panel, 1, "reject")
    panel.widget.runner.client.close()  # the next worker reads the segments
    decide(panel, 1, "accept")
    assert panel.ui.summaryLabel.text == summary
    np.testing.assert_array_equal(tumor(segmentation, node), before)
    assert [segments.GetSegment(name).GetName() for name in ("liver", "tumor")] == ["Leber", "Herde"]
    assert segments.GetNumberOfSegments() == 2


def test_a_deleted_segment_of_tumors_comes_back_with_the_next_lesion(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = tumor(segmentation, node).copy()
    place = ras(panel.widget.results.lesions[0])
    decide(panel, 1, "reject")
    segmentation.GetSegmentation().RemoveSegment("tumor")
    qtapplication.process_events()
    assert panel.ui.editedLabel.visible
    measure(panel)
    assert decided(panel) == ["rejected by reader"]
    decide(panel, 0, "accept")
    assert decided(panel) == ["model"]
    panel.click(panel.ui.placeButton)
    place_point(place[:3])
    wait_idle(panel)
    after = tumor(segmentation, node)
    assert 2 * (after & before).sum() / (after.sum() + before.sum()) > 0.9


def test_a_segment_that_the_reader_drew_is_measured_and_can_be_rejected(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    segments = segmentation.GetSegmentation()
    drawn = np.zeros(tumor(segmentation, node).shape, np.uint8)
    drawn[7:10, 19:23, 15:18] = 1
    segments.AddEmptySegment("drawn", "Tumor")
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, segmentation, "drawn", node)
    segments.AddEmptySegment("vessel", "portal vein")
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, segmentation, "vessel", node)
    qtapplication.process_events()
    measure(panel)
    assert sorted(decided(panel)) == ["model", "model", "reader"]
    decide(panel, decided(panel).index("reader"), "reject")
    assert sorted(decided(panel)) == ["model", "model", "rejected by reader"]
    assert sorted(segments.GetSegmentIDs()) == ["liver", "tumor", "vessel"]
    panel.widget.runner.client.close()
    measure(panel)
    assert sorted(decided(panel)) == ["model", "model", "rejected by reader"]


def test_a_segment_without_a_known_name_is_named_instead_of_being_left_out_silently(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    drawn = np.zeros(tumor(segmentation, node).shape, np.uint8)
    drawn[7:10, 19:23, 15:18] = 1
    segmentation.GetSegmentation().AddEmptySegment("Segment_1", "Segment_1")
    segmentation.GetSegmentation().AddEmptySegment("Segment_2", "Segment_2")
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, segmentation, "Segment_1", node)
    qtapplication.process_events()
    measure(panel)
    assert panel.ui.statusLabel.text.endswith("neither liver nor tumor by name or terminology: Segment_1.")
    segmentation.GetSegmentation().GetSegment("Segment_1").SetName("tumor")
    measure_again = panel.ui.measureButton
    drawn[7, 19, 15] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, segmentation, "Segment_1", node)
    qtapplication.process_events()
    panel.click(measure_again)
    wait_idle(panel)
    assert "terminology" not in panel.ui.statusLabel.text
    assert "reader" in decided(panel)


def test_another_name_of_a_drawn_segment_is_an_edit(panel, toy_model, tmp_path):
    """The name decides whether it is measured, so the numbers are not those of the segmentation any more."""
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    drawn = np.zeros(tumor(segmentation, node).shape, np.uint8)
    drawn[7:10, 19:23, 15:18] = 1
    segmentation.GetSegmentation().AddEmptySegment("drawn", "vessel")
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, segmentation, "drawn", node)
    qtapplication.process_events()
    measure(panel)
    for name, rows in (("metastasis", ["model", "model", "reader"]), ("vessel", ["model", "model"])):
        segmentation.GetSegmentation().GetSegment("drawn").SetName(name)
        qtapplication.process_events()
        assert panel.ui.editedLabel.visible
        measure(panel)
        assert sorted(decided(panel)) == rows
        assert not panel.ui.editedLabel.visible
    save_and_reopen(panel, tmp_path / "scene.mrb")
    assert not panel.ui.editedLabel.visible


def test_height_and_weight_entered_after_apply_are_used_by_the_next_measurement(panel, toy_model):
    prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    assert panel.ui.saveButton.enabled
    before = panel.ui.summaryLabel.text
    panel.ui.heightBox.value, panel.ui.weightBox.value = 180, 80
    qtapplication.process_events()
    assert not panel.ui.saveButton.enabled
    assert "height or weight was changed" in panel.ui.saveButton.toolTip
    measure(panel)
    assert "standard liver volume" in panel.ui.summaryLabel.text
    assert panel.ui.saveButton.enabled
    decide(panel, 1, "reject")
    assert "standard liver volume" in panel.ui.summaryLabel.text
    panel.ui.heightBox.value = panel.ui.weightBox.value = 0
    qtapplication.process_events()
    measure(panel)
    assert "standard liver volume" not in panel.ui.summaryLabel.text
    decide(panel, 1, "accept")
    assert panel.ui.summaryLabel.text == before


def test_the_save_button_says_why_it_is_disabled(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    assert panel.ui.saveButton.enabled
    assert panel.ui.saveButton.toolTip.startswith("Save a folder")
    (segmentation,) = results(node, "segmentation")
    segmentation.GetSegmentation().RemoveSegment("tumor")
    qtapplication.process_events()
    assert not panel.ui.saveButton.enabled
    assert "Measure again" in panel.ui.saveButton.toolTip
    choose_model(panel, str(write_model(tmp_path / "other", liver_hu=40.0)))
    assert "Choose the model" in panel.ui.compareButton.toolTip


def test_undo_in_the_segment_editor_is_an_edit_like_others(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = tumor(segmentation, node).copy()
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(segmentation.GetSegmentation())
    history.SaveState()
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros(before.shape, np.uint8), segmentation, "tumor", node)
    qtapplication.process_events()
    assert panel.ui.editedLabel.visible
    history.RestorePreviousState()
    qtapplication.process_events()
    measure(panel)
    assert decided(panel) == ["model", "model"]
    np.testing.assert_array_equal(tumor(segmentation, node), before)
    # It also undoes the panel's decision.
    history.SaveState()
    decide(panel, 0, "reject")
    assert decided(panel) == ["model", "rejected by reader"]
    history.RestorePreviousState()
    qtapplication.process_events()
    assert panel.ui.editedLabel.visible
    measure(panel)
    assert decided(panel) == ["model", "model"]
    np.testing.assert_array_equal(tumor(segmentation, node), before)


def test_results_of_a_ct_that_was_removed_stay_and_the_panel_goes_on(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "tumor")
    apply_and_wait(panel)
    decide(panel, 1, "reject")
    (segmentation,) = results(node, "segmentation")
    panel.ui.lesionTable.selectRow(0)
    slicer.mrmlScene.RemoveNode(node)
    qtapplication.process_events()
    assert slicer.mrmlScene.GetNodeByID(segmentation.GetID()) is segmentation
    assert slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode") == []
    assert panel.ui.lesionTable.rowCount == 0
    assert not panel.ui.acceptButton.enabled
    assert not panel.ui.saveButton.visible
    # The edited node no longer belongs to a result; another CT is analyzed as usual.
    segmentation.GetSegmentation().RemoveSegment("tumor")
    qtapplication.process_events()
    another = prepare(panel, phantom(lesions=2), toy_model, "tumor", "another")
    apply_and_wait(panel)
    assert decided(panel) == ["model", "model"]
    assert results(another, "segmentation") != [segmentation]


def test_rejections_stay_with_their_result_when_another_model_makes_a_second_one(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    (first,) = results(node, "segmentation")
    before = tumor(first, node).copy()
    decide(panel, 1, "reject")
    choose_model(panel, str(write_model(tmp_path / "other", liver_hu=40.0)))
    apply_and_wait(panel)
    assert decided(panel) == ["model", "model"]
    panel.ui.resultSelector.setCurrentIndex(1)
    qtapplication.process_events()
    assert results(node, "segmentation") == [first]
    assert decided(panel) == ["model", "rejected by reader"]
    decide(panel, 1, "accept")
    assert "made by another model" in panel.ui.statusLabel.text
    choose_model(panel, toy_model)
    decide(panel, 1, "accept")
    assert decided(panel) == ["model", "model"]
    np.testing.assert_array_equal(tumor(first, node), before)
