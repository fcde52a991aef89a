# SPDX-License-Identifier: Apache-2.0
"""Runs of the panel by real clicks in a real Qt: results, cancel, errors, death of the worker, several CTs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from batch_toys import phantom
from mrml_toys import OBLIQUE, affine
from panel_toys import add_ct, apply_and_wait, prepare, results, wait_idle, wait_running, write_chain
from worker_toys import alive, fine_phantom, roomy_phantom, until

import LiverXAILib as lx

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
slicer = pytest.importorskip("slicer")

MODULE = Path(__file__).parents[2] / "LiverXAI" / "LiverXAI.py"


def check_voxels(node, volume, model_folder, targets=("liver", "tumor")):
    """Check that the nodes have the library's results for the same image."""
    expected = lx.analyze(volume, lx.load_model(model_folder), targets=targets, answers=False, device="cpu")
    (segmentation,) = results(node, "segmentation")
    for name in ("liver", "tumor"):
        found = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, name, node)
        np.testing.assert_array_equal(found > 0, expected.segmentation.mask(name))
    heat_maps = {heat.GetAttribute("LiverXAI.Target"): heat for heat in results(node, "heatmap")}
    assert set(heat_maps) == set(targets)
    for explanation in expected.explanations:
        heat = heat_maps[str(explanation.target)]
        np.testing.assert_allclose(slicer.util.arrayFromVolume(heat), explanation.heatmap.array, atol=1e-5)


def test_apply_makes_nodes_with_the_right_voxels(panel, toy_model):
    volume = fine_phantom()
    node = prepare(panel, volume, toy_model)
    panel.click(panel.ui.applyButton)
    assert panel.ui.applyButton.text == "Cancel"
    assert panel.ui.progressBar.visible
    wait_idle(panel)
    check_voxels(node, volume, toy_model)
    assert panel.ui.statusLabel.text.startswith("Done in")
    assert panel.ui.applyButton.text == "Apply"
    assert not panel.ui.progressBar.visible
    assert "Liver" in panel.ui.summaryLabel.text


def test_the_event_loop_turns_during_the_run(panel, toy_model):
    prepare(panel, roomy_phantom(), toy_model)
    panel.choose(panel.ui.methodSelector, "occlusion")
    ticks, ticks_at_progress = [0], []
    timer = qtapplication.qt.QTimer()
    timer.interval = 1

    def tick():
        ticks[0] += 1

    timer.connect("timeout()", tick)
    show_progress = panel.widget.runner.show_progress

    def count(event):
        ticks_at_progress.append(ticks[0])
        show_progress(event)

    panel.widget.runner.show_progress = count
    timer.start()
    try:
        panel.click(panel.ui.applyButton)
        # Between messages that came at different times the application handled its own events.
        qtapplication.wait_until(lambda: len(set(ticks_at_progress)) > 3)
        panel.click(panel.ui.applyButton)
        wait_idle(panel)
    finally:
        timer.stop()
        del panel.widget.runner.show_progress


def test_an_oblique_left_handed_ct_gets_its_results_in_place(panel, toy_model):
    plain = phantom()
    volume = lx.Volume(plain.array, affine(OBLIQUE * [1, 1, -1], np.array([4.0, 4.0, 6.0])))
    node = prepare(panel, volume, toy_model)
    apply_and_wait(panel)
    check_voxels(node, volume, toy_model)
    ct, heat = (_matrix(one) for one in (node, results(node, "heatmap")[0]))
    np.testing.assert_allclose(ct, heat)


def _matrix(node):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def test_a_lesion_is_jumped_to_and_explained_by_two_clicks(panel, toy_model):
    from PySide6 import QtCore
    from PySide6.QtTest import QTest

    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetLayoutName("Red")
    apply_and_wait(panel)
    assert results(node, "heatmap") == []
    table = panel.ui.lesionTable
    assert table.rowCount == 2
    assert not panel.ui.explainLesionButton.enabled
    panel.scroll.ensureWidgetVisible(table)
    qtapplication.process_events()
    QTest.mouseClick(
        table.viewport(), QtCore.Qt.LeftButton, QtCore.Qt.NoModifier, table.visualItemRect(table.item(1, 0)).center()
    )
    qtapplication.process_events()
    measured = lx.measure(phantom(lesions=2), lx.segment(phantom(lesions=2), lx.load_model(toy_model), device="cpu"))
    superior = measured.lesions[1].centroid_lps_mm[2]
    np.testing.assert_allclose(view.GetSliceToRAS().GetElement(2, 3), superior, atol=0.01)
    pid = panel.widget.runner.client.pid
    panel.click(panel.ui.explainLesionButton)
    wait_idle(panel)
    assert panel.widget.runner.client.pid == pid
    (heat,) = results(node, "heatmap")
    assert heat.GetAttribute("LiverXAI.Target") == "lesion:2"
    assert table.item(1, 4).text() == "not\nchecked"
    assert table.item(0, 4).text() == ""


def test_lesions_are_jumped_to_by_keys(panel, toy_model):
    from PySide6 import QtCore
    from PySide6.QtTest import QTest

    prepare(panel, phantom(lesions=2), toy_model, "nothing")
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Yellow")
    view.SetLayoutName("Yellow")
    view.SetOrientation("Sagittal")
    apply_and_wait(panel)
    table = panel.ui.lesionTable
    places = []
    table.setFocus()
    for _ in range(2):
        QTest.keyClick(table, QtCore.Qt.Key_Down)
        places.append(view.GetSliceToRAS().GetElement(0, 3))
    expected = [-float(lesion["centroid_l_mm"]) for lesion in panel.widget.results.lesions]
    np.testing.assert_allclose(places, expected, atol=0.01)
    assert panel.ui.explainLesionButton.enabled
    # After scrolling away, a click on the lesion that is already selected leads back.
    view.JumpSliceByOffsetting(0, 0, 0)
    cell = table.visualItemRect(table.item(1, 0)).center()
    QTest.mouseClick(table.viewport(), QtCore.Qt.LeftButton, QtCore.Qt.NoModifier, cell)
    np.testing.assert_allclose(view.GetSliceToRAS().GetElement(0, 3), expected[1], atol=0.01)


def test_a_chain_of_two_networks_is_explained_by_the_one_that_decides(panel, toy_model, tmp_path):
    chain = write_chain(toy_model, tmp_path / "chain")
    volume = phantom(lesions=2)
    node = prepare(panel, volume, chain)
    layers = [panel.ui.layerSelector.itemData(index) for index in range(panel.ui.layerSelector.count)]
    assert layers == ["", "bottleneck", "encoder.0"]  # not the locator's decoder.0
    apply_and_wait(panel)
    check_voxels(node, volume, chain)
    panel.choose(panel.ui.layerSelector, "encoder.0")
    panel.choose(panel.ui.targetSelector, "versus")
    panel.click(panel.ui.explainButton)
    wait_idle(panel)
    heat = results(node, "heatmap")[-1]
    assert heat.GetAttribute("LiverXAI.Target") == "tumor-vs-liver"
    assert heat.GetAttribute("LiverXAI.Layer") == "encoder.0"
    assert '"stage": "all"' in heat.GetAttribute("LiverXAI.Provenance")


def test_why_tumor_and_not_liver_is_a_question_of_its_own(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "versus")
    apply_and_wait(panel)
    (heat,) = results(node, "heatmap")
    assert heat.GetAttribute("LiverXAI.Target") == "tumor-vs-liver"
    assert panel.ui.heatMapSelector.currentText == "tumor rather than liver (HiResCAM)"


def test_the_panel_shows_what_the_console_shows(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "tumor")
    apply_and_wait(panel)
    found = {one.GetAttribute("LiverXAI.Result") for one in results(node, "")}
    values = slicer.util.arrayFromVolume(results(node, "uncertainty")[0]).copy()
    for one in results(node, ""):
        slicer.mrmlScene.RemoveNode(one)
    nodes = panel.module.LiverXAILogic().analyze(node, ["tumor"], model=toy_model, device="cpu")
    assert {one.GetAttribute("LiverXAI.Result") for one in results(node, "")} == found
    np.testing.assert_allclose(slicer.util.arrayFromVolume(nodes.uncertainty), values, atol=1e-3)


def test_a_second_run_keeps_the_users_colors_and_drops_what_is_stale(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model)
    apply_and_wait(panel)
    _, tumor = results(node, "heatmap")
    panel.choose(panel.ui.colorSelector, "Grey")
    panel.choose(panel.ui.targetSelector, "tumor")
    values = slicer.util.arrayFromVolume(node)
    values[values == 200] = 100
    values[8, 12:16, 16:20] = 200
    slicer.util.arrayFromVolumeModified(node)
    apply_and_wait(panel)
    assert results(node, "heatmap") == [tumor]  # that of the liver was about labels that no longer exist
    assert tumor.GetDisplayNode().GetColorNode().GetName() == "Grey"


def test_an_edited_segmentation_is_explained_as_it_is_now(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "tumor")
    panel.choose(panel.ui.methodSelector, "hires-cam")  # exact in location, even with two features
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    labels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "tumor", node)
    edited = labels.copy()
    edited[:, :, : labels.shape[2] // 2] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited, segmentation, "tumor", node)
    before = slicer.util.arrayFromVolume(results(node, "heatmap")[0]).copy()
    panel.click(panel.ui.explainButton)
    wait_idle(panel)
    (heat,) = results(node, "heatmap")
    assert not np.allclose(slicer.util.arrayFromVolume(heat), before)
    np.testing.assert_array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "tumor", node), edited)


def test_the_place_of_the_crosshair_is_explained(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "crosshair")
    crosshair = slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
    crosshair.SetCrosshairRAS(-64.0, -64.0, 48.0)
    apply_and_wait(panel)
    (heat,) = results(node, "heatmap")
    assert heat.GetAttribute("LiverXAI.Target").endswith("voxel:ras:-64,-64,48")


def test_cancel_leaves_the_scene_as_it_was(panel, toy_model):
    node = prepare(panel, roomy_phantom(), toy_model)
    panel.choose(panel.ui.methodSelector, "occlusion")
    count = slicer.mrmlScene.GetNumberOfNodes()
    panel.click(panel.ui.applyButton)
    wait_running(panel)
    panel.click(panel.ui.applyButton)
    wait_idle(panel)
    assert panel.ui.statusLabel.text == "Cancelled. Nothing was changed."
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert results(node, "") == []
    assert panel.ui.applyButton.enabled
    assert panel.ui.applyButton.text == "Apply"


def test_a_killed_worker_gives_a_message_and_a_usable_panel(panel, toy_model):
    node = prepare(panel, roomy_phantom(), toy_model)
    panel.choose(panel.ui.methodSelector, "occlusion")
    panel.click(panel.ui.applyButton)
    wait_running(panel)
    os.kill(panel.widget.runner.client.pid, signal.SIGKILL)
    wait_idle(panel)
    assert "ended unexpectedly" in panel.ui.statusLabel.text
    assert panel.ui.detailsButton.visible
    panel.choose(panel.ui.methodSelector, "seg-grad-cam")
    apply_and_wait(panel)
    assert len(results(node, "heatmap")) == 2
    assert not panel.ui.detailsButton.visible


def test_an_error_is_told_in_words_and_details_are_copied_without_the_patient(panel, toy_model):
    volume = phantom()
    prepare(panel, volume.with_array(volume.array + 1024), toy_model, name="Doe Jane 1950")
    apply_and_wait(panel)
    assert "does not look like CT" in panel.ui.statusLabel.text
    assert "Accept any intensities" in panel.ui.statusLabel.text
    panel.click(panel.ui.detailsButton)
    copied = slicer.app.clipboard().text()
    assert "Traceback" in copied
    assert "torch" in copied
    assert "Doe" not in copied


def test_a_missing_gpu_is_told_with_what_to_do(panel, toy_model):
    prepare(panel, phantom(), toy_model)
    panel.widget.state.parameters.device = "cuda:7"
    panel.widget.showParameters()
    apply_and_wait(panel)
    assert "cuda:7" in panel.ui.statusLabel.text


def test_two_cts_keep_their_results_apart(panel, toy_model):
    first = prepare(panel, phantom(1, lesions=1), toy_model, name="first")
    apply_and_wait(panel)
    second = add_ct(phantom(2, lesions=2), "second")
    panel.ui.inputSelector.setCurrentNode(second)
    assert panel.ui.lesionTable.rowCount == 0
    assert not panel.ui.resultsButton.visible
    apply_and_wait(panel)
    assert panel.ui.lesionTable.rowCount == 2
    panel.ui.inputSelector.setCurrentNode(first)
    assert panel.ui.lesionTable.rowCount == 1
    assert panel.ui.segmentsTable.segmentationNode() is results(first, "segmentation")[0]
    check_voxels(first, phantom(1, lesions=1), toy_model)
    check_voxels(second, phantom(2, lesions=2), toy_model)


def test_the_ct_may_vanish_during_the_run(panel, toy_model):
    node = prepare(panel, fine_phantom(), toy_model)
    panel.click(panel.ui.applyButton)
    wait_running(panel)
    slicer.mrmlScene.RemoveNode(node)
    wait_idle(panel)
    assert "was removed" in panel.ui.statusLabel.text
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_ct_that_was_changed_during_the_run_is_told(panel, toy_model):
    node = prepare(panel, fine_phantom(), toy_model, "nothing")
    panel.click(panel.ui.applyButton)
    wait_running(panel)
    slicer.util.arrayFromVolumeModified(node)
    wait_idle(panel)
    assert "has since changed" in panel.ui.statusLabel.text
    assert len(results(node, "segmentation")) == 1


def test_closing_the_scene_while_results_are_being_shown_leaves_nothing(panel, toy_model):
    prepare(panel, fine_phantom(), toy_model)
    panel.click(panel.ui.applyButton)
    qtapplication.wait_until(lambda: panel.widget.runner.showing)
    assert panel.ui.applyButton.text == "Cancel"
    assert not panel.ui.applyButton.enabled  # half of the results would be missing
    panel.host.clear()
    qtapplication.process_events()
    assert not panel.widget.runner.busy
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert panel.ui.applyButton.text == "Apply"


def test_closing_the_scene_during_the_run_ends_it(panel, toy_model):
    prepare(panel, roomy_phantom(), toy_model)
    panel.choose(panel.ui.methodSelector, "occlusion")
    panel.click(panel.ui.applyButton)
    wait_running(panel)
    pid = panel.widget.runner.client.pid
    panel.host.clear()
    qtapplication.process_events()
    assert until(lambda: not alive(pid))
    assert panel.ui.applyButton.text == "Apply"
    assert "Load a CT" in panel.ui.statusLabel.text or "Stopped" in panel.ui.statusLabel.text
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
