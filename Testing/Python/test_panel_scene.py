# SPDX-License-Identifier: Apache-2.0
"""The panel and the scene: concurrent actions of the user, other modules and Slicer's main loop."""

from __future__ import annotations

import numpy as np
import pytest
from batch_toys import phantom
from panel_toys import add_ct, apply_and_wait, prepare, results, wait_idle
from worker_toys import fine_phantom

import LiverXAILib as lx
from LiverXAILib.models import ModelSpec

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
slicer = pytest.importorskip("slicer")


def add_view():
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")


def test_each_slider_changes_only_what_it_is_about(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "liver")
    with_heat, with_another = add_view(), add_view()
    apply_and_wait(panel)
    (heat,), (segmentation,) = results(node, "heatmap"), results(node, "segmentation")
    other = add_ct(phantom(), "another CT")
    with_another.SetBackgroundVolumeID(other.GetID())
    with_another.SetForegroundVolumeID(other.GetID())
    with_another.SetForegroundOpacity(0.25)
    display = segmentation.GetDisplayNode()
    display.SetVisibility(False)
    display.SetVisibility2DOutline(False)
    threshold = heat.GetDisplayNode().GetLowerThreshold()
    panel.ui.opacitySlider.value = 0.75
    assert with_heat.GetForegroundOpacity() == pytest.approx(0.75)
    assert heat.GetDisplayNode().GetLowerThreshold() == threshold
    panel.ui.thresholdSlider.value = 0.4
    panel.choose(panel.ui.colorSelector, "Grey")
    assert heat.GetDisplayNode().GetLowerThreshold() == pytest.approx(0.4)
    assert with_heat.GetForegroundOpacity() == pytest.approx(0.75)
    assert with_another.GetBackgroundVolumeID() == with_another.GetForegroundVolumeID() == other.GetID()
    assert with_another.GetForegroundOpacity() == pytest.approx(0.25)
    assert not display.GetVisibility()
    assert not display.GetVisibility2DOutline()


def test_results_follow_a_transform_that_the_ct_gets_later(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "liver")
    apply_and_wait(panel)
    qtapplication.process_events()
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetAndObserveTransformNodeID(transform.GetID())
    volumes = [one for one in results(node, "") if one.IsA("vtkMRMLTransformableNode")]
    assert len(volumes) >= 3
    assert {one.GetTransformNodeID() for one in volumes} == {transform.GetID()}
    node.SetAndObserveTransformNodeID(None)
    assert {one.GetTransformNodeID() for one in volumes} == {None}


def test_a_ct_that_is_loaded_while_the_panel_is_open_is_chosen(panel, toy_model):
    panel.widget.initializeParameterNode()
    assert "Load a CT" in panel.ui.statusLabel.text
    node = add_ct(phantom())
    qtapplication.process_events()
    assert panel.ui.inputSelector.currentNode() is node
    assert "Press Apply" in panel.ui.statusLabel.text
    add_ct(phantom(), "a second CT")
    qtapplication.process_events()
    assert panel.ui.inputSelector.currentNode() is node


@pytest.mark.parametrize("place", [(0.0, 0.0, 0.0), (900.0, -64.0, 48.0)])
def test_a_crosshair_that_is_nowhere_in_the_ct_is_said_at_once(panel, toy_model, place):
    prepare(panel, phantom(), toy_model, "crosshair")
    slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode").SetCrosshairRAS(*place)
    panel.click(panel.ui.applyButton)
    assert not panel.widget.runner.busy
    assert "Hold Shift" in panel.ui.statusLabel.text


def test_many_removed_nodes_fill_the_panel_once_and_the_card_is_not_read_again(panel, toy_model, monkeypatch):
    node = prepare(panel, phantom(), toy_model, "nothing")
    apply_and_wait(panel)
    nodes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode") for _ in range(30)]
    qtapplication.process_events()
    parsed, filled = [], []
    parse, show = ModelSpec.from_json, panel.widget.results.show
    monkeypatch.setattr(ModelSpec, "from_json", staticmethod(lambda text: (parsed.append(1), parse(text))[1]))
    monkeypatch.setattr(panel.widget.results, "show", lambda: (filled.append(1), show())[1])
    for one in nodes:
        slicer.mrmlScene.RemoveNode(one)
    qtapplication.process_events()
    assert len(filled) == 1
    assert parsed == []
    slicer.mrmlScene.RemoveNode(results(node, "segmentation")[0])
    qtapplication.process_events()
    assert not panel.ui.resultsButton.visible


def test_the_card_is_read_again_when_its_file_changed(panel, toy_model, tmp_path):
    import shutil

    folder = shutil.copytree(toy_model, tmp_path / "model")
    prepare(panel, phantom(), str(folder), "nothing")
    assert "For tests" in panel.ui.modelCard.text
    card = folder / "card.json"
    card.write_text(card.read_text().replace("For tests", "For other tests"))
    panel.widget.showParameters()
    assert "For other tests" in panel.ui.modelCard.text


def test_the_button_for_surfaces_is_in_step_with_the_scene(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "nothing")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    assert not panel.ui.show3DButton.checked
    segmentation.CreateClosedSurfaceRepresentation()
    assert panel.ui.show3DButton.checked
    panel.click(panel.ui.show3DButton)
    assert not segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    segmentation.GetDisplayNode().SetVisibility3D(False)
    panel.click(panel.ui.show3DButton)
    assert segmentation.GetDisplayNode().GetVisibility3D()


def test_what_a_script_writes_into_the_parameter_node_is_shown(panel, toy_model):
    prepare(panel, phantom(), toy_model, "liver")
    another = add_ct(phantom(), "another CT")
    parameters = panel.widget.logic.getParameterNode()
    parameters.target = "versus"
    parameters.opacity = 0.9
    parameters.inputVolume = another
    qtapplication.process_events()
    assert panel.ui.targetSelector.currentData == "versus"
    assert panel.ui.opacitySlider.value == pytest.approx(0.9)
    assert panel.ui.inputSelector.currentNode() is another


def test_a_scene_that_is_added_to_this_one_does_not_change_the_chosen_ct(panel, toy_model, tmp_path):
    add_ct(phantom(), "elsewhere")
    qtapplication.process_events()
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    panel.host.clear()
    add_ct(phantom(), "first")
    chosen = add_ct(phantom(), "chosen")
    panel.ui.inputSelector.setCurrentNode(chosen)
    slicer.util.loadNodeFromFile(path, "SceneFile", {"clear": False})
    qtapplication.process_events()
    assert slicer.mrmlScene.GetFirstNodeByName("elsewhere") is not None
    assert panel.ui.inputSelector.currentNode() is chosen


def test_the_panel_works_while_the_main_loop_holds_pythons_lock(panel, toy_model):
    volume = fine_phantom()
    node = prepare(panel, volume, toy_model, "tumor")
    panel.click(panel.ui.applyButton)
    assert panel.widget.runner.busy
    qtapplication.run_event_loop_holding_the_gil(lambda: not panel.widget.runner.busy)
    assert panel.ui.statusLabel.text.startswith("Done in")
    expected = lx.segment(volume, lx.load_model(toy_model), device="cpu")
    found = slicer.util.arrayFromSegmentBinaryLabelmap(results(node, "segmentation")[0], "tumor", node)
    np.testing.assert_array_equal(found > 0, expected.mask("tumor"))


def test_without_the_segment_of_the_liver_the_question_why_liver_is_refused(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "liver")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    segmentation.GetSegmentation().RemoveSegment("liver")
    panel.click(panel.ui.explainButton)
    wait_idle(panel)
    assert "has no segment 'liver'" in panel.ui.statusLabel.text
    panel.choose(panel.ui.targetSelector, "tumor")
    panel.click(panel.ui.explainButton)
    wait_idle(panel)
    assert "Done in" in panel.ui.statusLabel.text


def test_the_self_test_is_skipped_with_a_word_where_torch_is_missing(panel, monkeypatch, caplog):
    from LiverXAILib.panel import installation

    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        panel.module.LiverXAITest().runTest()
    assert "Skipped: PyTorch is not installed in Slicer" in caplog.text
