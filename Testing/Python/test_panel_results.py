# SPDX-License-Identifier: Apache-2.0
"""Several results in one scene: of several CTs, models and frames; none is lost or taken for another."""

from __future__ import annotations

import json

import numpy as np
import pytest
from batch_toys import phantom, write_model
from panel_toys import add_ct, apply_and_wait, choose_model, decide, decided, prepare, results, save, wait_idle
from test_panel_reader import erase, play, segment_array, show_frame

from LiverXAILib import mrml
from LiverXAILib.errors import UsageError
from LiverXAILib.reading import reject
from LiverXAILib.volumes.volume import Volume

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
slicer = pytest.importorskip("slicer")

LEFT_HALF = np.s_[:, :, :32]


def lines():
    return slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode")


def choose_ct(panel, node):
    panel.ui.inputSelector.setCurrentNode(node)
    qtapplication.process_events()


def choose_result(panel, index):
    panel.ui.resultSelector.setCurrentIndex(index)
    qtapplication.process_events()


def offered(panel):
    return [panel.ui.resultSelector.itemText(index) for index in range(panel.ui.resultSelector.count)]


def ends(line):
    return np.array([line.GetNthControlPointPositionWorld(number) for number in range(line.GetNumberOfControlPoints())])


def move_end(line, place):
    line.SetNthControlPointPositionWorld(0, *place)
    line.InvokeEvent(line.PointEndInteractionEvent)
    qtapplication.process_events()


def show_axes(panel, row=0):
    """Choose a row of the table; return the ends of the lesion's long axis (RAS mm)."""
    panel.ui.lesionTable.selectRow(row)
    qtapplication.process_events()
    return ends(lines()[0])


def kinds(segmentation):
    return [one["kind"] for one in json.loads(segmentation.GetAttribute("LiverXAI.Decisions") or "[]")]


def test_an_edit_is_noticed_while_another_ct_is_chosen(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing", "first")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (edited,) = results(node, "segmentation")
    choose_ct(panel, add_ct(phantom(3), "second"))
    erase(edited, "tumor", node, LEFT_HALF)
    assert not panel.ui.editedLabel.visible  # it is about the chosen CT
    kept = segment_array(edited, "tumor", node).copy()
    choose_ct(panel, node)
    assert panel.ui.editedLabel.visible
    assert not panel.ui.saveButton.enabled
    apply_and_wait(panel)
    assert results(node, "segmentation") != [edited]
    np.testing.assert_array_equal(segment_array(edited, "tumor", node), kept)


def test_an_edit_is_noticed_that_was_made_while_the_panel_was_closed(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = segment_array(segmentation, "tumor", node).astype(np.uint8)
    panel.widget.edits.forget()  # closed
    erase(segmentation, "tumor", node, LEFT_HALF)
    panel.widget.enter()
    assert panel.ui.editedLabel.visible
    panel.widget.edits.forget()
    slicer.util.updateSegmentBinaryLabelmapFromArray(before, segmentation, "tumor", node)
    panel.widget.enter()
    assert not panel.ui.editedLabel.visible


def test_a_scene_that_was_edited_elsewhere_is_opened_as_edited(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    for edited in (False, True):
        if edited:
            panel.widget.edits.forget()
            erase(segmentation, "tumor", node, LEFT_HALF)
        assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
        panel.host.clear()
        slicer.util.loadScene(str(tmp_path / "scene.mrb"))
        qtapplication.process_events()
        node = panel.ui.inputSelector.currentNode()
        (segmentation,) = results(node, "segmentation")
        assert panel.ui.editedLabel.visible == edited


def test_what_is_saved_is_the_result_that_is_shown(panel, toy_model, tmp_path, monkeypatch):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    decide(panel, 0, "reject")
    (first,) = results(node, "segmentation")
    apply_and_wait(panel)
    assert decided(panel) == ["model", "model"]
    choose_result(panel, 1)
    assert results(node, "segmentation") == [first]
    assert decided(panel) == ["model", "rejected by reader"]
    assert not panel.ui.saveButton.enabled  # the worker holds the other one
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    save(panel, tmp_path / "saved", monkeypatch)
    saved = json.loads((tmp_path / "saved" / "measurements.json").read_text(encoding="utf-8"))
    assert (saved["lesion_count"], len(saved["rejected"])) == (1, 1)


@pytest.mark.parametrize("record", ["", "[]", "{", '{"tumor": [1, 2]}', '{"tumor": [[[1]], [2, 3, 4], 5]}'])
def test_a_damaged_record_of_what_was_measured_counts_as_an_edit(panel, toy_model, record):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    panel.widget.edits.forget()
    segmentation.SetAttribute("LiverXAI.Measured", record)
    panel.widget.enter()
    assert panel.ui.editedLabel.visible
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert not panel.ui.editedLabel.visible
    assert decided(panel) == ["model", "model"]


def test_the_worker_refuses_to_save_another_result_than_the_one_asked_for(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    decide(panel, 0, "reject")
    analyses, failures = panel.widget.analyses, []
    token = analyses._token(node)
    for result in ("", "of another time"):
        panel.widget.runner.client.write(token, tmp_path / "saved", result)
        failures += [event.error for event in wait_for_end(panel.widget.runner.client)]
    assert all(isinstance(error, UsageError) for error in failures)
    assert len(failures) == 2
    assert not (tmp_path / "saved").exists()


def wait_for_end(client):
    events = []
    qtapplication.wait_until(lambda: events.extend(client.poll()) or any(one.kind != "progress" for one in events))
    return [one for one in events if one.kind != "progress"]


def test_axes_are_those_of_the_chosen_ct_and_result(panel, toy_model):
    moved = phantom(3, lesions=2)
    moved = Volume(moved.array, moved.ijk_to_lps + np.outer((7, 0, 0, 0), (0, 0, 0, 1)))
    second = prepare(panel, moved, toy_model, "nothing", "second")
    apply_and_wait(panel)
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing", "first")
    apply_and_wait(panel)
    of_first = show_axes(panel, 1)
    choose_ct(panel, second)
    for line in lines():  # either none, or those of the new CT
        assert np.abs(ends(line) - of_first).max() > 1
    of_second = show_axes(panel)
    choose_ct(panel, node)
    choose_ct(panel, second)
    np.testing.assert_allclose(show_axes(panel), of_second)
    move_end(lines()[0], of_second[0] + 1)
    wait_idle(panel)
    assert kinds(results(second, "segmentation")[0]) == ["measure"]
    assert kinds(results(node, "segmentation")[0]) == []


def test_a_click_on_an_axis_measures_nothing(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    show_axes(panel)
    for line in lines():
        line.InvokeEvent(line.PointEndInteractionEvent)
    qtapplication.process_events()
    assert not panel.widget.runner.busy
    assert kinds(results(node, "segmentation")[0]) == []
    assert decided(panel) == ["model", "model"]


def test_axes_are_restored_when_the_new_measurement_fails(panel, toy_model, monkeypatch):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    before = show_axes(panel)

    def refuse(*arguments, **options):
        raise UsageError("not now")

    monkeypatch.setattr(panel.widget.runner.client, "refine", refuse)
    move_end(lines()[0], before[0] + 5)
    wait_idle(panel)
    assert "not now" in panel.ui.statusLabel.text
    np.testing.assert_allclose(ends(lines()[0]), before)
    assert kinds(results(node, "segmentation")[0]) == []


def test_axes_follow_a_transform_of_the_ct(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    before = show_axes(panel)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    for shift in (30.0, 60.0):
        matrix = np.eye(4)
        matrix[0, 3] = shift
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
        node.SetAndObserveTransformNodeID(transform.GetID())
        qtapplication.process_events()
        np.testing.assert_allclose(ends(lines()[0]), before + np.array([shift, 0, 0]), atol=1e-6)
        assert len(lines()) == 2


def test_another_result_brings_its_own_heat_map_into_the_views(panel, toy_model):
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    view.SetLayoutName("Red")
    node = prepare(panel, phantom(lesions=2), toy_model, "tumor")
    apply_and_wait(panel)
    (first,) = results(node, "heatmap")
    decide(panel, 0, "reject")
    apply_and_wait(panel)
    (second,) = results(node, "heatmap")
    assert view.GetForegroundVolumeID() == second.GetID()
    choose_result(panel, 1)
    assert results(node, "heatmap") == [first]
    assert view.GetForegroundVolumeID() == first.GetID()
    assert panel.ui.heatMapSelector.currentData == first.GetID()
    choose_result(panel, panel.ui.resultSelector.count - 1)  # a new one
    assert results(node, "heatmap") == []
    assert view.GetForegroundVolumeID() is None


def test_another_ct_is_shown_with_its_own_heat_map(panel, toy_model):
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    view.SetLayoutName("Red")
    second = prepare(panel, phantom(3, lesions=2), toy_model, "liver", "second")
    apply_and_wait(panel)
    node = prepare(panel, phantom(lesions=2), toy_model, "tumor", "first")
    apply_and_wait(panel)
    choose_ct(panel, second)
    assert view.GetBackgroundVolumeID() == second.GetID()
    assert view.GetForegroundVolumeID() == results(second, "heatmap")[0].GetID()
    assert panel.ui.heatMapSelector.currentData == results(second, "heatmap")[0].GetID()
    choose_ct(panel, node)
    assert view.GetBackgroundVolumeID() == node.GetID()
    # The map of one CT is neither listed for another, nor does it stay over it.
    third = add_ct(phantom(5), "third")
    choose_ct(panel, third)
    assert panel.ui.heatMapSelector.currentData == ""
    assert view.GetForegroundVolumeID() is None


def test_results_set_aside_can_be_shown_after_the_current_segmentation_was_deleted(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    decide(panel, 0, "reject")
    (first,) = results(node, "segmentation")
    apply_and_wait(panel)
    slicer.mrmlScene.RemoveNode(results(node, "segmentation")[0])
    qtapplication.process_events()
    assert offered(panel)[0] == "New: Apply makes it"
    assert "with the reader's changes" in offered(panel)[1]
    choose_result(panel, 1)
    assert results(node, "segmentation") == [first]
    assert len(results(node, "measurements")) == 1
    assert decided(panel) == ["model", "rejected by reader"]


def test_a_new_result_can_be_asked_for_and_the_one_before_is_kept(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    assert offered(panel) == ["New: Apply makes it"]
    apply_and_wait(panel)
    (first,) = results(node, "segmentation")
    assert offered(panel) == ["toy 1", "New: Apply makes it, this one is kept"]
    choose_result(panel, 1)
    assert results(node, "segmentation") == []
    assert not first.GetDisplayNode().GetVisibility()
    assert panel.ui.lesionTable.rowCount == 0
    assert offered(panel) == ["New: Apply makes it", "toy 1"]
    apply_and_wait(panel)
    assert results(node, "segmentation") != [first]
    assert offered(panel)[1] == "toy 1"
    choose_result(panel, 1)
    assert results(node, "segmentation") == [first]
    assert offered(panel)[1].startswith("toy 1")  # the other one


def test_the_console_does_not_overwrite_what_the_reader_changed(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    decide(panel, 0, "reject")
    (first,) = results(node, "segmentation")
    kept = segment_array(first, "tumor", node).copy()
    logic = panel.widget.logic
    nodes = logic.analyze(node, [], model=toy_model, device="cpu", force=True)
    assert nodes.segmentation is not first
    # Another run updates its own result, which nobody changed.
    assert logic.segment(node, toy_model, device="cpu", force=True) is nodes.segmentation
    # Here nobody has marked the edit: the panel is closed.
    panel.widget.edits.forget()
    erase(nodes.segmentation, "tumor", node, LEFT_HALF)
    assert logic.segment(node, toy_model, device="cpu", force=True) is not nodes.segmentation
    np.testing.assert_array_equal(segment_array(first, "tumor", node), kept)
    assert kinds(first) == ["reject"]


def test_a_refinement_on_the_console_is_measured_and_not_taken_for_an_edit(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    erase(segmentation, "tumor", node, LEFT_HALF)
    assert panel.ui.editedLabel.visible
    panel.widget.logic.refine(node, model=toy_model, device="cpu", force=True)
    panel.widget.enter()
    assert not panel.ui.editedLabel.visible
    assert not mrml.differs_from_measured(segmentation)


def test_decisions_are_taken_back_on_the_console(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    as_found, summary = segment_array(segmentation, "tumor", node), panel.ui.summaryLabel.text
    with_model = {"model": toy_model, "device": "cpu", "force": True}
    with pytest.raises(UsageError, match="no decision that could be undone"):
        panel.widget.logic.refine(node, undo=1, **with_model)
    decide(panel, 1, "reject")
    rejected = segment_array(segmentation, "tumor", node)
    erase(segmentation, "tumor", node, LEFT_HALF)
    # The edit, which is not measured yet, is the last decision.
    panel.widget.logic.refine(node, undo=1, **with_model)
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), rejected)
    panel.widget.logic.refine(node, undo=1, **with_model)
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), as_found)
    assert segmentation.GetAttribute("LiverXAI.Decisions") is None
    panel.widget.enter()
    assert panel.ui.summaryLabel.text == summary
    assert decided(panel) == ["model", "model"]
    assert not panel.ui.editedLabel.visible
    assert not panel.ui.undoButton.enabled
    panel.widget.logic.refine(node, [reject(1)], **with_model)
    # Number 1 of the table, in which the larger lesion is not: it is number 2 when that one is back.
    panel.widget.logic.refine(node, [reject(1)], undo=1, **with_model)
    decisions = json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))
    assert [(one["kind"], one["numbers"]) for one in decisions] == [("reject", [2])]


def test_results_never_lie_over_another_frame_even_if_another_ct_is_chosen_meanwhile(panel, toy_model):
    first = phantom(lesions=2)
    node = prepare(panel, first, toy_model, "nothing")
    browser = play(node, [first, phantom()])
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    choose_ct(panel, add_ct(phantom(3), "second"))
    show_frame(browser, 1)
    panel.ui.inputSelector.setCurrentNode(node)
    assert panel.ui.lesionTable.rowCount == 0  # at once
    assert not segmentation.GetDisplayNode().GetVisibility()
    show_frame(browser, 0)
    assert results(node, "segmentation") == [segmentation]
    assert panel.ui.lesionTable.rowCount == 2


def test_results_of_two_frames_are_not_offered_for_each_other_and_never_merge(panel, toy_model):
    first = phantom(lesions=2)
    node = prepare(panel, first, toy_model, "nothing")
    browser = play(node, [first, phantom()])
    apply_and_wait(panel)
    decide(panel, 0, "reject")
    (changed,) = results(node, "segmentation")
    apply_and_wait(panel)
    (plain,) = results(node, "segmentation")
    show_frame(browser, 1)
    apply_and_wait(panel)
    (other,) = results(node, "segmentation")
    assert offered(panel) == ["toy 1", "New: Apply makes it, this one is kept"]
    show_frame(browser, 0)
    assert results(node, "segmentation") == [plain]
    assert len(offered(panel)) == 3
    choose_result(panel, 1)
    assert results(node, "segmentation") == [changed]
    show_frame(browser, 1)
    assert results(node, "segmentation") == [other]
    show_frame(browser, 0)
    assert results(node, "segmentation") == [changed]
    assert len(results(node, "measurements")) == 1
    choose_result(panel, 1)
    assert results(node, "segmentation") == [plain]


def test_sets_of_one_title_are_kept_apart(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    made = []
    for _ in range(3):
        apply_and_wait(panel)
        made += results(node, "segmentation")
        assert mrml.put_aside(slicer.mrmlScene, node, "same") == ["same", "same, 2", "same, 3"][len(made) - 1]
    for number, title in enumerate(["same", "same, 2", "same, 3"]):
        mrml.bring_back(slicer.mrmlScene, node, title)
        assert results(node, "segmentation") == [made[number]]
        assert len(results(node, "measurements")) == 1
        assert mrml.put_aside(slicer.mrmlScene, node, title) == title


def test_a_second_model_is_compared_by_choosing_its_result(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    first = panel.ui.summaryLabel.text
    choose_model(panel, str(write_model(tmp_path / "other", liver_hu=110.0)))
    apply_and_wait(panel)
    second = panel.ui.summaryLabel.text
    assert second != first
    choose_result(panel, 1)
    assert panel.ui.summaryLabel.text == first
    choose_result(panel, 1)
    assert panel.ui.summaryLabel.text == second
    assert len({node.GetID() for node in results(node, "segmentation")}) == 1
