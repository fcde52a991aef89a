# SPDX-License-Identifier: Apache-2.0
"""The reader's workflow by real clicks: edits are noticed and measured, lesions rejected and added, nothing is lost."""

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
    save,
    save_and_reopen,
    wait_idle,
)

import LiverXAILib as lx
from LiverXAILib.mrml import volume_from_node
from LiverXAILib.reading import reject

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
slicer = pytest.importorskip("slicer")


def segment_array(node, name, ct):
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, name, ct) > 0


def erase(node, name, ct, where):
    """Erase a part of a segment, as the Segment Editor does."""
    array = slicer.util.arrayFromSegmentBinaryLabelmap(node, name, ct)
    array[where] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, name, ct)
    qtapplication.process_events()


def test_an_edit_is_noticed_and_measured_again_by_one_click(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    assert not panel.ui.editedLabel.visible
    assert not panel.ui.measureButton.visible
    panel.ui.lesionTable.selectRow(1)
    assert panel.ui.explainLesionButton.enabled
    array = segment_array(segmentation, "tumor", node)
    volume = phantom(lesions=2)
    second = lx.measure(volume, lx.segment(volume, lx.load_model(toy_model), device="cpu")).lesions[1]
    half = np.argwhere(array)[:, 2].mean()
    far = np.zeros(array.shape, bool)
    far[:, :, int(half) :] = True
    erase(segmentation, "tumor", node, far)
    assert panel.ui.editedLabel.visible
    assert not panel.ui.explainLesionButton.enabled  # its row may now be about another lesion
    assert not panel.ui.saveButton.enabled
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert panel.ui.statusLabel.text.startswith("Measured again")
    assert not panel.ui.editedLabel.visible
    assert panel.ui.lesionTable.rowCount == 1
    left = segment_array(segmentation, "tumor", node)
    np.testing.assert_array_equal(left, array & ~far)
    millilitres = left.sum() * volume.grid.voxel_volume_mm3 / 1000
    assert panel.ui.lesionTable.item(0, 1).text() == f"{millilitres:.2f}"
    assert second.volume_ml > 0


def test_after_an_edit_the_status_line_says_that_the_numbers_are_from_before(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    assert panel.ui.statusLabel.text.startswith("Done in")
    (segmentation,) = results(node, "segmentation")
    before = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "tumor", node).copy()
    erase(segmentation, "tumor", node, np.s_[:])
    assert panel.ui.statusLabel.text == "The segmentation was edited; the numbers are from before the edit."
    panel.click(panel.ui.placeButton)
    first, second = panel.ui.statusLabel.text.splitlines()
    assert "numbers are from before" in first
    assert "Click the position" in second
    panel.click(panel.ui.placeButton)
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert panel.ui.statusLabel.text.startswith("Measured again")
    slicer.util.updateSegmentBinaryLabelmapFromArray(before, segmentation, "tumor", node)
    qtapplication.process_events()
    assert "numbers are from before" in panel.ui.statusLabel.text


def test_a_question_about_a_row_from_before_an_edit_is_refused(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    panel.choose(panel.ui.targetSelector, "lesion")
    panel.ui.lesionTable.selectRow(1)
    (segmentation,) = results(node, "segmentation")
    half = np.zeros(segment_array(segmentation, "tumor", node).shape, bool)
    half[:, :, : half.shape[2] // 2] = True
    erase(segmentation, "tumor", node, half)
    for button in (panel.ui.explainButton, panel.ui.applyButton):
        panel.click(button)
        assert not panel.widget.runner.busy
        assert "press Measure again, then choose the lesion" in panel.ui.statusLabel.text


def test_a_lesion_is_rejected_and_added_again_and_saved_with_who_decided(panel, toy_model, tmp_path, monkeypatch):
    node = prepare(panel, phantom(lesions=2), toy_model, "tumor")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = segment_array(segmentation, "tumor", node)
    liver = segment_array(segmentation, "liver", node)
    panel.ui.lesionTable.selectRow(1)
    place = [float(panel.widget.results.lesions[1][f"centroid_{axis}_mm"]) for axis in "lps"]
    panel.click(panel.ui.rejectButton)
    wait_idle(panel)
    assert decided(panel) == ["model", "rejected by reader"]
    assert 0 < segment_array(segmentation, "tumor", node).sum() < before.sum()
    np.testing.assert_array_equal(segment_array(segmentation, "liver", node), liver)
    crosshair = slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
    crosshair.SetCrosshairRAS(-place[0], -place[1], place[2])
    panel.click(panel.ui.addButton)
    wait_idle(panel)
    assert sorted(decided(panel)) == ["model", "model, edited by the reader"] or sorted(decided(panel)) == [
        "model",
        "model",
    ]
    again = segment_array(segmentation, "tumor", node)
    assert 2 * (again & before).sum() / (again.sum() + before.sum()) > 0.85
    save(panel, tmp_path / "result", monkeypatch)
    provenance = json.loads((tmp_path / "result" / "provenance.json").read_text())
    assert [one["kind"] for one in provenance["reader"]] == ["reject", "add"]
    own = json.loads((tmp_path / "result" / "measurements-model.json").read_text())
    assert own["lesion_count"] == 2
    assert "Changed by the reader" in (tmp_path / "result" / "report.html").read_text()


def test_a_heat_map_of_a_lesion_names_its_place_and_is_not_taken_for_that_of_another(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    panel.ui.lesionTable.selectRow(1)
    panel.click(panel.ui.explainLesionButton)
    wait_idle(panel)
    assert panel.ui.lesionTable.item(1, 4).text() == "not\nchecked"
    words = panel.ui.heatMapSelector.currentText
    assert "lesion 2 at " in words
    assert " mm (" in words
    decide(panel, 0, "reject")
    assert panel.ui.statusLabel.text.startswith("Measured again")
    assert decided(panel) == ["model", "rejected by reader"]
    (heat,) = results(node, "heatmap")
    # It is about the same lesion, which is number 1 now.
    assert panel.ui.lesionTable.item(0, 4).text() == "not\nchecked"
    assert panel.ui.heatMapSelector.itemText(0) == words.replace("lesion 2", "lesion 1")
    assert heat.GetAttribute("LiverXAI.Target") == "lesion:1"
    assert "lesion 1" in heat.GetName()
    decide(panel, 1, "accept")
    assert panel.ui.lesionTable.item(0, 4).text() == ""
    assert panel.ui.heatMapSelector.itemText(0) == words
    decide(panel, 1, "reject")
    assert panel.ui.heatMapSelector.itemText(0) == f"{words}, before the changes"
    # The same question about another lesion, then about this one, which is back.
    panel.click(panel.ui.undoButton)
    wait_idle(panel)
    assert panel.ui.heatMapSelector.itemText(0) == words
    assert results(node, "heatmap") == [heat]


def test_heat_maps_of_two_lesions_follow_them_when_they_are_renumbered(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    for row in (0, 1):
        panel.ui.lesionTable.selectRow(row)
        panel.click(panel.ui.explainLesionButton)
        wait_idle(panel)
    first, second = results(node, "heatmap")
    decide(panel, 0, "reject")
    assert heat_maps(panel, node) == [True, False]
    assert second.GetAttribute("LiverXAI.Target") == "lesion:1"
    # Both have the number 1 now; asking again renews the one that is about this lesion.
    panel.ui.lesionTable.selectRow(0)
    shown = panel.ui.heatMapSelector.currentData
    assert shown == second.GetID()
    then = [heat.GetImageData().GetMTime() for heat in (first, second)]
    panel.click(panel.ui.explainLesionButton)
    wait_idle(panel)
    now = [heat.GetImageData().GetMTime() for heat in (first, second)]
    assert (now[0] == then[0], now[1] > then[1]) == (True, True)
    node, _segmentation = save_and_reopen(panel, tmp_path / "scene.mrb")
    assert heat_maps(panel, node) == [True, False]
    choose_model(panel, toy_model)
    decide(panel, 1, "accept")
    assert heat_maps(panel, node) == [False, False]
    assert [heat.GetAttribute("LiverXAI.Target") for heat in results(node, "heatmap")] == ["lesion:1", "lesion:2"]


def heat_maps(panel, node):
    """Whether each heat map is marked as older than the changes, in the list and by its name in the views."""
    listed = [panel.ui.heatMapSelector.itemText(row) for row in range(panel.ui.heatMapSelector.count - 1)]
    names = [heat_map.GetName() for heat_map in results(node, "heatmap")]
    said = [text.endswith(", before the changes") for text in listed]
    assert [name.endswith(", before the changes") for name in names] == said
    return said


def test_a_heat_map_says_that_it_is_from_before_an_edit_until_it_is_asked_again(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "both")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "tumor", node).copy()
    half = np.zeros(before.shape, bool)
    half[:, :, : half.shape[2] // 2] = True
    assert heat_maps(panel, node) == [False, False]
    erase(segmentation, "tumor", node, half)
    assert heat_maps(panel, node) == [True, True]
    panel.choose(panel.ui.targetSelector, "tumor")
    panel.click(panel.ui.explainButton)
    wait_idle(panel)
    assert panel.ui.editedLabel.visible
    assert heat_maps(panel, node) == [True, False]  # liver, tumor
    erase(segmentation, "tumor", node, np.s_[:2])
    assert heat_maps(panel, node) == [True, True]
    panel.click(panel.ui.explainButton)
    wait_idle(panel)
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert heat_maps(panel, node) == [False, False]  # the liver includes its tumors, so it has not changed
    # As it was when the other one was asked.
    slicer.util.updateSegmentBinaryLabelmapFromArray(before, segmentation, "tumor", node)
    qtapplication.process_events()
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert heat_maps(panel, node) == [False, True]


def test_an_edit_that_is_undone_leaves_heat_maps_as_they_were(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "tumor")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "tumor", node).copy()
    erase(segmentation, "tumor", node, np.s_[:])
    assert heat_maps(panel, node) == [True]
    slicer.util.updateSegmentBinaryLabelmapFromArray(before, segmentation, "tumor", node)
    qtapplication.process_events()
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert heat_maps(panel, node) == [False]


def test_what_changes_no_outline_leaves_heat_maps_of_lesions_valid(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    panel.ui.lesionTable.selectRow(1)
    panel.click(panel.ui.explainLesionButton)
    wait_idle(panel)
    decide(panel, 1, "targets")
    assert heat_maps(panel, node) == [False]
    assert panel.ui.lesionTable.item(1, 4).text() == "not\nchecked"


@pytest.mark.parametrize("lost", ["another CT was explained since", "the worker ended"])
def test_a_worker_that_was_asked_only_for_a_heat_map_is_not_taken_to_hold_the_result(
    panel, toy_model, tmp_path, monkeypatch, lost
):
    other = prepare(panel, phantom(lesions=2, seed=1), toy_model, "nothing", "other CT")
    apply_and_wait(panel)
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    if lost == "the worker ended":
        panel.widget.runner.client.close()
    else:
        panel.ui.inputSelector.setCurrentNode(other)
        decide(panel, 0, "explainLesion")
        panel.ui.inputSelector.setCurrentNode(node)
    decide(panel, 0, "explainLesion")  # the worker gets CT and labels, nothing else
    assert not panel.ui.saveButton.enabled
    assert "Press Measure again first" in panel.ui.saveButton.toolTip
    decide(panel, 1, "reject")
    assert panel.ui.statusLabel.text.startswith("Measured again")
    assert decided(panel) == ["model", "rejected by reader"]
    save(panel, tmp_path / "saved", monkeypatch)
    assert len(json.loads((tmp_path / "saved" / "measurements.json").read_text())["rejected"]) == 1


def test_a_decision_that_is_refused_leaves_the_result_ready_to_be_saved(panel, toy_model, tmp_path, monkeypatch):
    prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    panel.click(panel.ui.placeButton)
    place_point((-64.0, -64.0, 48.0))
    wait_idle(panel)
    assert "nothing there differs from the liver" in panel.ui.statusLabel.text
    save(panel, tmp_path / "saved", monkeypatch)
    assert panel.ui.statusLabel.text.startswith("Saved in")


def test_what_was_decided_on_the_console_is_known_to_the_panel(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = segment_array(segmentation, "tumor", node).copy()
    panel.widget.logic.refine(node, [reject(2)], who="Dr. A", model=toy_model, device="cpu", force=True)
    qtapplication.process_events()
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert decided(panel) == ["model", "rejected by reader"]
    assert "Rejected by Dr. A" in panel.ui.lesionTable.item(1, 0).toolTip()
    decide(panel, 1, "accept")
    assert decided(panel) == ["model", "model"]
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), before)
    kinds = [one["kind"] for one in json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))]
    assert kinds == ["reject", "restore"]


@pytest.mark.parametrize("button", ["measure", "targets"])
def test_a_decision_on_the_console_while_the_panel_measures_is_not_lost(panel, toy_model, button):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    panel.ui.lesionTable.selectRow(0)
    if button == "measure":
        erase(segmentation, "tumor", node, (slice(0, 8), slice(None), slice(None)))
    panel.click(getattr(panel.ui, f"{button}Button"))
    assert panel.widget.runner.busy
    panel.widget.logic.refine(node, [reject(2)], who="Dr. C", model=toy_model, device="cpu")
    left = segment_array(segmentation, "tumor", node).copy()
    wait_idle(panel)
    assert "Other decisions were made in the meantime" in panel.ui.statusLabel.text
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), left)
    decisions = json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))
    assert [(one["kind"], one["who"]) for one in decisions][-1] == ("reject", "Dr. C")
    assert not panel.ui.editedLabel.visible
    assert decided(panel)[-1] == "rejected by reader"
    decide(panel, 0, "targets")
    assert [one["kind"] for one in json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))][-2:] == [
        "reject",
        "target",
    ]


def test_what_the_reader_changed_is_not_overwritten_by_another_apply(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (edited,) = results(node, "segmentation")
    table = results(node, "measurements")[0]
    erase(edited, "tumor", node, np.s_[:])
    kept = segment_array(edited, "tumor", node).copy()
    apply_and_wait(panel)
    (new,) = results(node, "segmentation")
    assert new is not edited
    assert segment_array(new, "tumor", node).any()
    np.testing.assert_array_equal(segment_array(edited, "tumor", node), kept)
    assert slicer.mrmlScene.GetNodeByID(table.GetID()) is table
    assert "with the reader's changes" in panel.ui.resultSelector.itemText(1)
    panel.ui.resultSelector.setCurrentIndex(1)
    qtapplication.process_events()
    assert results(node, "segmentation") == [edited]
    assert panel.ui.resultSelector.count == 3  # this one, the newer one, and another new one
    # A restored segmentation is measured as it is, not as the newer result of the same CT.
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert panel.ui.lesionTable.rowCount == 0
    assert segment_array(new, "tumor", node).any()


def test_an_untouched_result_of_the_same_model_is_updated_in_place(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "nothing")
    apply_and_wait(panel)
    before = results(node, "segmentation")
    apply_and_wait(panel)
    assert results(node, "segmentation") == before
    assert panel.ui.resultSelector.count == 2  # this one, and a new one


def test_a_second_model_makes_a_second_result(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(), toy_model, "nothing")
    apply_and_wait(panel)
    (first,) = results(node, "segmentation")
    choose_model(panel, str(write_model(tmp_path / "other", liver_hu=40.0)))
    apply_and_wait(panel)
    (second,) = results(node, "segmentation")
    assert second is not first
    assert panel.ui.resultSelector.count == 3


def test_after_reopening_the_scene_everything_is_as_the_reader_left_it(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    decide(panel, 0, "reject")
    (segmentation,) = results(node, "segmentation")
    left = segment_array(segmentation, "tumor", node).copy()
    node, segmentation = save_and_reopen(panel, tmp_path / "scene.mrb")
    assert decided(panel) == ["model", "rejected by reader"]
    assert not panel.ui.editedLabel.visible
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert decided(panel) == ["model", "rejected by reader"]
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), left)
    assert json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))[0]["kind"] == "reject"


def unsure_model(tmp_path):
    """The toy model with confident output only above 300 HU: lesions of 200 HU are candidates."""
    folder = write_model(tmp_path / "unsure")
    card = json.loads((folder / "card.json").read_text())
    card["stages"][0]["peak_threshold"] = {"tumor": 9.0}
    (folder / "card.json").write_text(json.dumps(card))
    return str(folder)


def test_a_candidate_is_listed_beneath_the_lesions_and_accepted_by_one_click(panel, tmp_path):
    node = prepare(panel, phantom(lesions=2), unsure_model(tmp_path), "nothing")
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetLayoutName("Red")
    apply_and_wait(panel)
    assert decided(panel) == ["candidate", "candidate"]
    assert panel.ui.lesionTable.item(0, 0).text() == "C1"
    assert "highest tumor probability in it is" in panel.ui.lesionTable.item(0, 0).toolTip()
    panel.ui.lesionTable.selectRow(0)
    superior = panel.widget.results.candidates[0]["place_lps_mm"][2]
    np.testing.assert_allclose(view.GetSliceToRAS().GetElement(2, 3), superior, atol=0.01)
    panel.click(panel.ui.acceptButton)
    wait_idle(panel)
    assert decided(panel) == ["reader", "accepted", "candidate"]
    (segmentation,) = results(node, "segmentation")
    assert segment_array(segmentation, "tumor", node).any()


def test_candidates_are_rejected_and_accepted_several_at_a_time(panel, tmp_path):
    node = prepare(panel, phantom(lesions=3), unsure_model(tmp_path), "nothing")
    apply_and_wait(panel)
    assert decided(panel) == ["candidate"] * 3
    decide(panel, 1, "reject")
    assert decided(panel) == ["candidate", "rejected", "candidate"]
    (segmentation,) = results(node, "segmentation")
    assert not segment_array(segmentation, "tumor", node).any()
    decisions = json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))
    assert [(one["kind"], one["numbers"]) for one in decisions] == [("dismiss", [2])]
    panel.ui.lesionTable.selectAll()
    panel.click(panel.ui.acceptButton)
    wait_idle(panel)
    assert decided(panel)[3:] == ["accepted"] * 3
    assert len(panel.widget.results.lesions) == 3


def test_undo_takes_back_one_decision_after_the_other(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = segment_array(segmentation, "tumor", node).copy()
    assert not panel.ui.undoButton.enabled
    panel.ui.lesionTable.selectAll()
    panel.click(panel.ui.mergeButton)
    wait_idle(panel)
    decide(panel, 0, "reject")
    assert len(panel.widget.results.lesions) == 0
    panel.widget.runner.client.close()  # also by a worker that has not seen the decisions
    panel.click(panel.ui.undoButton)
    wait_idle(panel)
    assert len(panel.widget.results.lesions) == 1
    panel.click(panel.ui.undoButton)
    wait_idle(panel)
    assert decided(panel) == ["model", "model"]
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), before)
    assert not panel.ui.undoButton.enabled


def test_segments_say_for_dicom_whether_the_reader_changed_them(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")

    def kinds():
        values, segments = [vtk.reference(""), vtk.reference("")], segmentation.GetSegmentation()
        for value, name in zip(values, ("liver", "tumor"), strict=True):
            assert segments.GetSegment(name).GetTag("DICOM.SegmentAlgorithmType", value)
        return {str(value) for value in values}

    assert kinds() == {"AUTOMATIC"}
    decide(panel, 1, "targets")
    assert kinds() == {"AUTOMATIC"}
    erase(segmentation, "tumor", node, (slice(0, 8), slice(None), slice(None)))
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    assert kinds() == {"SEMIAUTOMATIC"}
    assert not panel.ui.editedLabel.visible
    panel.click(panel.ui.undoButton)
    wait_idle(panel)
    assert kinds() == {"AUTOMATIC"}


def test_a_decision_is_about_the_lesion_that_was_seen_whatever_its_number_is_now(panel, toy_model, monkeypatch):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    panel.ui.lesionTable.selectRow(1)
    (second,) = panel.widget.results.selected_lesions
    place = panel.widget.results.place_of(2)
    assert second == (2, place)
    monkeypatch.setattr(type(panel.widget.results), "selected_lesions", [second._replace(number=1)])  # an older list
    panel.click(panel.ui.rejectButton)
    wait_idle(panel)
    rejected = tuple(volume_from_node(node).grid.nearest_voxel(place))
    assert not segment_array(segmentation, "tumor", node)[rejected]
    assert segment_array(segmentation, "tumor", node).any()


def test_what_is_known_about_a_lesion_stays_when_another_one_is_rejected(panel, toy_model):
    node = prepare(panel, phantom(lesions=3), toy_model, "nothing")
    apply_and_wait(panel)
    panel.ui.lesionTable.selectRow(2)
    panel.click(panel.ui.explainLesionButton)
    wait_idle(panel)
    panel.ui.lesionTable.selectRow(2)
    sentence = panel.ui.answerLabel.text
    assert sentence.startswith("With lesion 3 replaced")
    assert sentence not in panel.ui.statusLabel.text  # it stands next to the table
    decide(panel, 0, "reject")
    panel.ui.lesionTable.selectRow(1)  # the same lesion
    assert panel.ui.answerLabel.text == sentence.replace("lesion 3", "lesion 2")
    assert panel.ui.withoutButton.enabled
    decide(panel, 1, "split")
    panel.ui.lesionTable.selectRow(1)
    assert panel.ui.answerLabel.text == ""
    assert not panel.ui.withoutButton.enabled
    assert len(results(node, "changed CT")) == 2


def markups():
    return list(slicer.util.getNodesByClass("vtkMRMLMarkupsNode"))


def test_a_lesion_is_added_by_a_click_in_a_slice_view(panel, toy_model):
    prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    panel.ui.lesionTable.selectRow(1)
    left, posterior, superior = (float(panel.widget.results.lesions[1][f"centroid_{axis}_mm"]) for axis in "lps")
    panel.click(panel.ui.rejectButton)
    wait_idle(panel)
    assert decided(panel) == ["model", "rejected by reader"]
    panel.click(panel.ui.placeButton)
    assert panel.ui.placeButton.checked
    assert "Click the position" in panel.ui.statusLabel.text
    place_point((-left, -posterior, superior))
    wait_idle(panel)
    assert panel.ui.lesionTable.rowCount == 2
    assert not panel.ui.placeButton.checked
    assert not [node for node in markups() if node.GetName().startswith("Place")]


def test_placing_a_point_can_be_given_up(panel, toy_model):
    prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    panel.click(panel.ui.placeButton)
    slicer.app.applicationLogic().GetInteractionNode().SwitchToViewTransformMode()
    qtapplication.process_events()
    assert not panel.ui.placeButton.checked
    assert markups() == []
    panel.click(panel.ui.placeButton)
    panel.click(panel.ui.includeButton)  # another button takes over
    assert (panel.ui.placeButton.checked, panel.ui.includeButton.checked) == (False, True)
    panel.click(panel.ui.includeButton)
    assert markups() == []
    assert not panel.widget.runner.busy


def test_while_a_task_runs_no_place_is_waited_for_and_no_axis_can_be_moved(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    panel.ui.lesionTable.selectRow(0)
    axes = [line for line in markups() if line.IsA("vtkMRMLMarkupsLineNode")]
    assert [line.GetLocked() for line in axes] == [0, 0]
    panel.click(panel.ui.includeButton)
    assert panel.ui.includeButton.checked
    before = axes[0].GetLineLengthWorld()
    panel.widget.reader.on_measure()  # as two seconds after an edit
    assert panel.widget.runner.busy
    assert not panel.ui.includeButton.checked
    assert not [point for point in markups() if point.GetName().startswith("Place")]
    assert [line.GetLocked() for line in axes] == [1, 1]
    # Releasing an end point at that moment changes neither the numbers nor the lines.
    axes[0].SetNthControlPointPositionWorld(1, 0.0, 0.0, 0.0)
    axes[0].InvokeEvent(axes[0].PointEndInteractionEvent)
    qtapplication.process_events()
    lines = [line for line in markups() if line.IsA("vtkMRMLMarkupsLineNode")]
    assert lines[0].GetLineLengthWorld() == pytest.approx(before)
    wait_idle(panel)
    (segmentation,) = results(node, "segmentation")
    assert "measure" not in (segmentation.GetAttribute("LiverXAI.Decisions") or "")


def test_two_lesions_are_merged_and_split_by_buttons(panel, toy_model):
    prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    assert not panel.ui.mergeButton.enabled
    panel.ui.lesionTable.selectAll()
    qtapplication.process_events()
    assert not panel.ui.splitButton.enabled
    panel.click(panel.ui.mergeButton)
    wait_idle(panel)
    assert panel.ui.lesionTable.rowCount == 1
    decide(panel, 0, "split")
    assert panel.ui.lesionTable.rowCount >= 2


def test_target_lesions_are_chosen_by_a_button(panel, toy_model):
    prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    assert not panel.ui.targetsButton.enabled
    assert "target lesions 2, 1" in panel.ui.summaryLabel.text  # the longer one first
    decide(panel, 1, "targets")
    assert "target lesion 2" in panel.ui.summaryLabel.text
    assert panel.ui.lesionTable.rowCount == 2


def test_an_edit_is_measured_by_itself_after_two_idle_seconds(panel, toy_model, monkeypatch):
    timer = panel.widget.reader._timer
    assert timer.interval == 2000
    monkeypatch.setattr(timer, "interval", 50)
    node = prepare(panel, phantom(lesions=2), toy_model, "tumor")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = panel.ui.summaryLabel.text
    shown = panel.ui.heatMapSelector.itemText(0)
    half = np.zeros(segment_array(segmentation, "tumor", node).shape, bool)
    half[: half.shape[0] // 2] = True
    erase(segmentation, "tumor", node, half)
    assert panel.ui.editedLabel.visible
    assert panel.ui.heatMapSelector.itemText(0) == f"{shown}, before the changes"
    qtapplication.wait_until(lambda: not panel.ui.editedLabel.visible, 30)
    wait_idle(panel)
    assert panel.ui.summaryLabel.text != before
    assert panel.ui.heatMapSelector.itemText(0) == f"{shown}, before the changes"


def test_nothing_is_measured_by_itself_where_the_reader_does_not_want_it(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    erase(segmentation, "tumor", node, np.s_[:])
    panel.widget.reader._measure_if_idle()
    assert not panel.widget.runner.busy
    assert panel.ui.editedLabel.visible


def test_what_is_edited_while_it_is_measured_is_neither_lost_nor_taken_for_measured(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    panel.ui.lesionTable.selectRow(1)
    panel.click(panel.ui.rejectButton)
    erase(segmentation, "tumor", node, np.s_[:])
    wait_idle(panel)
    assert "edited in the meantime" in panel.ui.statusLabel.text
    assert panel.ui.editedLabel.visible
    assert not segment_array(segmentation, "tumor", node).any()


@pytest.fixture
def graded_model(tmp_path):
    """The toy model with low confidence in its lesions, and with operating points in its card."""
    folder = write_model(tmp_path / "graded")
    card = json.loads((folder / "card.json").read_text())
    card["stages"][0]["peak_threshold"] = {"tumor": 9.0}
    card["stages"][0]["operating_points"] = {
        "tumor": [
            {"peak": 12.0, "false_per_case": 0.1, "sensitivity": 0.2},
            {"peak": 0.5, "false_per_case": 1.5, "sensitivity": 0.8},
        ]
    }
    (folder / "card.json").write_text(json.dumps(card))
    return str(folder)


def test_the_slider_makes_candidates_lesions_and_back_without_the_network(panel, graded_model):
    node = prepare(panel, phantom(lesions=2), graded_model, "nothing")
    apply_and_wait(panel)
    assert decided(panel) == ["candidate", "candidate"]
    assert panel.ui.sensitivitySlider.visible
    assert (panel.ui.sensitivitySlider.value, panel.ui.sensitivitySlider.maximum) == (1, 2)
    panel.ui.sensitivitySlider.value = 2
    assert "1.5 false positives per case" in panel.ui.sensitivityHint.text
    qtapplication.wait_until(lambda: panel.widget.runner.busy, 5)
    wait_idle(panel)
    assert decided(panel) == ["model", "model"]
    (segmentation,) = results(node, "segmentation")
    assert segment_array(segmentation, "tumor", node).any()
    move_slider(panel, 1)
    assert decided(panel) == ["candidate", "candidate"]
    assert not segment_array(segmentation, "tumor", node).any()


def test_a_result_made_on_the_console_is_not_taken_for_an_edit_of_the_panels(panel, graded_model):
    node = prepare(panel, phantom(lesions=2), graded_model, "nothing")
    panel.ui.sensitivitySlider.value = 2
    qtapplication.process_events()
    apply_and_wait(panel)
    assert decided(panel) == ["model", "model"]
    panel.widget.sensitivity.close()  # the slider's pause is over
    panel.widget.logic.analyze(node, (), model=graded_model, device="cpu", force=True)  # at "standard"
    qtapplication.process_events()
    assert decided(panel) == ["candidate", "candidate"]
    assert not panel.ui.saveButton.enabled
    panel.ui.sensitivitySlider.value = 1
    qtapplication.process_events()
    decide(panel, 0, "accept")
    (segmentation,) = results(node, "segmentation")
    assert [one["kind"] for one in json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))] == ["accept"]


def test_a_rejection_outlives_the_slider_and_a_new_session(panel, graded_model):
    node = prepare(panel, phantom(lesions=2), graded_model, "nothing")
    apply_and_wait(panel)
    for step in (2, 1, 2):
        panel.ui.sensitivitySlider.value = step
        qtapplication.wait_until(lambda: panel.widget.runner.busy, 5)
        wait_idle(panel)
        if decided(panel) == ["model", "model"]:
            panel.ui.lesionTable.selectRow(0)
            panel.click(panel.ui.rejectButton)
            wait_idle(panel)
    (segmentation,) = results(node, "segmentation")
    left = segment_array(segmentation, "tumor", node).copy()
    assert left.any()
    for step in (1, 2):
        panel.widget.runner.client.close()  # the next worker has only the data in the scene
        panel.ui.sensitivitySlider.value = step
        qtapplication.wait_until(lambda: panel.widget.runner.busy, 5)
        wait_idle(panel)
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), left)
    panel.widget.logic.refine(node, model=graded_model, device="cpu", force=True)  # from the Python console
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), left)
    assert lx.mrml.sensitivity_of(segmentation) == "sensitive"
    assert [one["kind"] for one in json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))] == ["reject"]


def move_slider(panel, value):
    panel.ui.sensitivitySlider.value = value
    qtapplication.wait_until(lambda: panel.widget.runner.busy, 5)
    wait_idle(panel)


def test_a_rejected_lesion_stays_listed_and_is_taken_back_by_accept(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetLayoutName("Red")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = segment_array(segmentation, "tumor", node).copy()
    rows = [[panel.ui.lesionTable.item(row, column).text() for column in range(4)] for row in range(2)]
    panel.ui.lesionTable.selectAll()
    qtapplication.process_events()
    panel.click(panel.ui.rejectButton)
    wait_idle(panel)
    assert decided(panel) == ["rejected by reader"] * 2
    for row, texts in enumerate(rows):
        assert [panel.ui.lesionTable.item(row, column).text() for column in range(1, 4)] == texts[1:]
    assert panel.ui.lesionTable.item(1, 0).text() == "R2"
    assert "Rejected by reader, 2" in panel.ui.lesionTable.item(1, 0).toolTip()
    assert "rejected by the reader" in panel.ui.summaryLabel.text
    panel.ui.lesionTable.selectRow(1)
    superior = panel.widget.results.rejected[1]["place_lps_mm"][2]
    np.testing.assert_allclose(view.GetSliceToRAS().GetElement(2, 3), superior, atol=0.01)
    assert not panel.ui.rejectButton.enabled
    assert not panel.ui.explainLesionButton.enabled
    panel.click(panel.ui.acceptButton)
    wait_idle(panel)
    assert decided(panel) == ["model", "rejected by reader"]
    decide(panel, 1, "accept")
    assert decided(panel) == ["model", "model"]
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), before)
    decisions = json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))
    assert [one["kind"] for one in decisions] == ["reject", "reject", "restore", "restore"]


def test_a_rejected_lesion_is_taken_back_in_a_scene_that_was_saved_and_opened_again(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    before = segment_array(segmentation, "tumor", node).copy()
    decide(panel, 0, "reject")
    node, segmentation = save_and_reopen(panel, tmp_path / "scene.mrb")
    assert decided(panel) == ["model", "rejected by reader"]
    decide(panel, 1, "accept")
    assert decided(panel) == ["model", "model"]
    np.testing.assert_array_equal(segment_array(segmentation, "tumor", node), before)


def test_a_rejected_lesion_stays_rejected_wherever_the_slider_is(panel, graded_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), graded_model, "nothing")
    apply_and_wait(panel)
    move_slider(panel, 2)
    assert decided(panel) == ["model", "model"]
    decide(panel, 1, "reject")
    assert decided(panel) == ["model", "rejected by reader"]
    move_slider(panel, 1)  # a finding below the threshold is a candidate
    assert decided(panel) == ["candidate", "rejected"]
    node, segmentation = save_and_reopen(panel, tmp_path / "scene.mrb")
    move_slider(panel, 2)
    assert decided(panel) == ["model", "rejected by reader"]
    decide(panel, 1, "accept")
    assert decided(panel) == ["model", "model"]
    move_slider(panel, 1)  # the reader's decision counts, not the threshold
    assert "reader" in decided(panel)
    assert segment_array(segmentation, "tumor", node).any()


def test_a_decision_is_about_the_row_that_was_seen_also_while_the_slider_is_being_moved(panel, graded_model):
    prepare(panel, phantom(lesions=2), graded_model, "nothing")
    apply_and_wait(panel)
    move_slider(panel, 2)
    panel.ui.lesionTable.selectRow(1)
    seen = panel.ui.lesionTable.item(1, 1).text()
    panel.ui.sensitivitySlider.value = 1  # applied after a delay; both are candidates there
    panel.click(panel.ui.rejectButton)
    wait_idle(panel)
    assert sorted(decided(panel)) == ["candidate", "rejected"]
    row = decided(panel).index("rejected")
    assert panel.ui.lesionTable.item(row, 1).text() == seen


def test_a_model_without_operating_points_has_no_slider(panel, toy_model):
    prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    assert not panel.ui.sensitivitySlider.visible


def test_the_axes_of_the_chosen_lesion_are_lines_whose_ends_can_be_moved(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    panel.ui.lesionTable.selectRow(0)
    long_axis, short_axis = (line for line in markups() if line.IsA("vtkMRMLMarkupsLineNode"))
    measured = float(panel.ui.lesionTable.item(0, 2).text())
    assert long_axis.GetLineLengthWorld() == pytest.approx(measured, abs=0.06)
    assert short_axis.GetLineLengthWorld() <= long_axis.GetLineLengthWorld()
    start, end = [0.0] * 3, [0.0] * 3
    long_axis.GetNthControlPointPositionWorld(0, start)
    long_axis.GetNthControlPointPositionWorld(1, end)
    longer = np.array(start) + 1.5 * (np.array(end) - start)
    long_axis.SetNthControlPointPositionWorld(1, *longer)
    long_axis.InvokeEvent(long_axis.PointEndInteractionEvent)
    qtapplication.wait_until(lambda: panel.widget.runner.busy, 5)
    wait_idle(panel)
    assert float(panel.ui.lesionTable.item(0, 2).text()) == pytest.approx(1.5 * measured, abs=0.1)
    assert "measured by the reader" in panel.ui.lesionTable.item(0, 0).toolTip()
    (segmentation,) = results(node, "segmentation")
    (decision,) = json.loads(segmentation.GetAttribute("LiverXAI.Decisions"))
    assert decision["kind"] == "measure"
    panel.ui.lesionTable.clearSelection()
    panel.ui.lesionTable.setCurrentCell(-1, -1)


def play(node, volumes):
    """Make a CT the proxy of a sequence with these frames, of which the first is shown."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "phases")
    frame = slicer.vtkMRMLScalarVolumeNode()
    for number, volume in enumerate(volumes):
        frame.Copy(node)
        slicer.util.updateVolumeFromArray(frame, volume.array)
        sequence.SetDataNodeAtValue(frame, str(number))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.AddSynchronizedSequenceNode(sequence)
    browser.AddProxyNode(node, sequence, False)
    show_frame(browser, 0)
    return browser


def show_frame(browser, number):
    browser.SetSelectedItemNumber(number)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    qtapplication.process_events()


def test_another_frame_of_a_sequence_never_shows_the_results_of_the_one_before(panel, toy_model):
    first = phantom(lesions=2)
    node = prepare(panel, first, toy_model, "liver")
    browser = play(node, [first, phantom()])
    apply_and_wait(panel)
    (portal,) = results(node, "segmentation")
    show_frame(browser, 1)
    assert results(node, "") == []
    assert not portal.GetDisplayNode().GetVisibility()
    assert panel.ui.lesionTable.rowCount == 0 or not panel.ui.lesionTable.visible
    apply_and_wait(panel)
    assert results(node, "segmentation") != [portal]
    show_frame(browser, 0)
    assert results(node, "segmentation") == [portal]
    assert portal.GetDisplayNode().GetVisibility()


def test_the_result_of_one_frame_never_lies_over_another_that_was_chosen_meanwhile(panel, toy_model):
    first = phantom(lesions=2)
    node = prepare(panel, first, toy_model, "liver")
    browser = play(node, [first, phantom()])
    panel.click(panel.ui.applyButton)
    show_frame(browser, 1)
    wait_idle(panel)
    assert results(node, "") == []
    assert "Another frame was chosen in the meantime" in panel.ui.statusLabel.text
    apply_and_wait(panel)
    (second,) = results(node, "segmentation")
    panel.click(panel.ui.explainButton)
    show_frame(browser, 0)
    wait_idle(panel)
    assert results(node, "") == []
    assert not second.GetDisplayNode().GetVisibility()


def test_what_was_found_of_a_segmentation_that_was_removed_meanwhile_is_dropped(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "liver")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    panel.ui.lesionTable.selectRow(0)
    panel.click(panel.ui.rejectButton)
    assert not panel.ui.resultSelector.enabled
    slicer.mrmlScene.RemoveNode(segmentation)
    wait_idle(panel)
    assert "removed or set aside in the meantime" in panel.ui.statusLabel.text
    assert results(node, "segmentation") == []


def test_an_edit_of_a_new_result_whose_heat_maps_are_still_being_shown_is_noticed(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "both")
    panel.ui.autoMeasureCheckBox.checked = False
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    values = slicer.util.arrayFromVolume(node)
    values[:, :, : values.shape[2] // 2] = np.minimum(values[:, :, : values.shape[2] // 2], 100)  # one lesion less
    slicer.util.arrayFromVolumeModified(node)
    panel.click(panel.ui.applyButton)
    before = segment_array(segmentation, "tumor", node)
    qtapplication.wait_until(lambda: (segment_array(segmentation, "tumor", node) != before).any())
    assert panel.widget.runner.showing
    erase(segmentation, "tumor", node, np.s_[:])
    wait_idle(panel)
    assert panel.ui.editedLabel.visible
    assert "numbers are from before" in panel.ui.statusLabel.text


def test_results_are_not_offered_as_cts(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "both")
    apply_and_wait(panel)
    assert len(results(node, "heatmap")) == 2
    names = [panel.ui.inputSelector._combo.itemText(n) for n in range(panel.ui.inputSelector._combo.count)]
    assert names == ["None", node.GetName()]


def test_outlines_are_light_over_a_heat_map_and_in_their_own_colors_without_one(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "liver")
    apply_and_wait(panel)
    display = results(node, "segmentation")[0].GetDisplayNode()
    assert min(display.GetSegmentOverrideColor("liver")) > 0.8
    panel.ui.heatMapSelector.setCurrentIndex(panel.ui.heatMapSelector.count - 1)
    qtapplication.process_events()
    assert min(display.GetSegmentOverrideColor("liver")) < 0  # none


def test_the_ct_is_shown_in_the_window_that_was_chosen(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.choose(panel.ui.windowSelector, "liver")
    display = node.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (15.0, 165.0)
    panel.choose(panel.ui.windowSelector, "abdomen")
    assert (display.GetWindow(), display.GetLevel()) == (400.0, 40.0)
    panel.ui.inputSelector.setCurrentNode(None)
    panel.ui.inputSelector.setCurrentNode(node)
    assert panel.ui.windowSelector.currentData == "abdomen"


def test_the_table_and_the_segment_editor_are_a_click_away(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    panel.click(panel.ui.tableButton)
    selection = slicer.app.applicationLogic().GetSelectionNode()
    assert selection.GetActiveTableID() == results(node, "measurements")[0].GetID()
    panel.click(panel.ui.editButton)
    assert "no main window" in panel.ui.statusLabel.text


def test_a_decision_in_the_console_is_shown_and_keeps_the_size_of_the_patient(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    panel.ui.heightBox.value, panel.ui.weightBox.value = 170, 70
    apply_and_wait(panel)
    panel.widget.logic.refine(node, [reject(1)], model=toy_model, device="cpu")
    qtapplication.process_events()
    assert decided(panel) == ["model", "rejected by reader"]
    assert "1 lesion" in panel.ui.summaryLabel.text
    assert "standard liver volume" in panel.ui.summaryLabel.text
    assert "edited" not in panel.ui.statusLabel.text


def test_another_analysis_in_the_console_is_shown(panel, toy_model):
    """It updates the nodes of the first one."""
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    logic = panel.widget.logic
    logic.analyze(node, (), model=toy_model, device="cpu")
    qtapplication.process_events()
    assert panel.ui.lesionTable.rowCount == 2
    slicer.util.arrayFromVolume(node)[:] = phantom(lesions=1).array
    slicer.util.arrayFromVolumeModified(node)
    logic.analyze(node, (), model=toy_model, device="cpu")
    qtapplication.process_events()
    assert len(results(node, "segmentation")) == 1
    assert panel.ui.lesionTable.rowCount == 1
    assert not panel.ui.editedLabel.visible
    assert "edited" not in panel.ui.statusLabel.text
