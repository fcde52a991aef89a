# SPDX-License-Identifier: Apache-2.0
"""The module LiverXAI in the test host: its description in Slicer, its logic, and its self-test."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slicerhost
from batch_toys import phantom, write_model
from mrml_toys import ball_analysis
from slicerhost.modules import load_module
from toys import threshold_model

import LiverXAILib.models
from LiverXAILib.errors import InputError, LiverXAIError, UsageError
from LiverXAILib.explain import DEFAULT_METHOD
from LiverXAILib.mrml import volume_to_node
from LiverXAILib.progress import CancelToken

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "LiverXAI" / "LiverXAI.py"


@pytest.fixture
def module(scene):
    return load_module(slicerhost.start(), MODULE)


@pytest.fixture
def logic(module, monkeypatch):
    """The module's logic with a model whose correct output is known."""
    monkeypatch.setattr(LiverXAILib.models, "load_model", lambda name: threshold_model(), raising=False)
    return module.LiverXAILogic()


@pytest.fixture
def ct(scene):
    return volume_to_node(ball_analysis().volume, scene, "CT")


def test_slicer_is_told_what_the_module_is(module):
    parent = slicerhost.start().modules.liverxai
    assert parent.title == "Liver and tumor segmentation with explanations (LiverXAI)"
    assert parent.categories == ["Segmentation"]
    assert "research use only" in parent.helpText.lower()
    assert "Grad-CAM" in parent.acknowledgementText


def test_sample_data_is_offered_when_slicer_has_started(module):
    host = slicerhost.start()
    host.app.finish_startup()
    sources = {source.sampleName: source for source in host.modules.sampleDataSources["LiverXAI"]}
    ct_liver = sources["CTLiver"]
    assert ct_liver.uris[0].endswith(ct_liver.checksums[0].removeprefix("SHA256:"))
    for source in sources.values():
        assert Path(source.thumbnailFileName).is_file()
    phantom = sources["LiverXAIPhantom"]
    assert phantom.customDownloader.__name__ == "make_phantom"
    assert phantom.nodeNames == ["LiverXAIPhantom"]


def test_the_module_loads_without_torch_qt_or_the_library_on_the_path(tmp_path):
    code = (
        "import sys, importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'safetensors', 'requests', 'platformdirs', 'qt', 'ctk'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}] + [{str(ROOT / 'Testing')!r}]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "import slicerhost\n"
        "from slicerhost.modules import load_module\n"
        f"module = load_module(slicerhost.start(), {str(MODULE)!r})\n"
        "logic = module.LiverXAILogic()\n"
        "module.LiverXAITest().test_results_lie_on_the_ct()\n"
        "from LiverXAILib.models import registry\n"
        "print(sorted(registry()))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "'default'" in result.stdout


def test_missing_packages_are_named_with_what_to_do(module, monkeypatch):
    from LiverXAILib.panel import installation

    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    with pytest.raises(LiverXAIError, match="extension 'PyTorch'"):
        module.LiverXAILogic().loadModel()
    last = installation.REQUIRED_PACKAGES[-1]
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name == last else name)
    with pytest.raises(LiverXAIError, match=rf"pip_install\('{last}'\)"):
        module.LiverXAILogic().loadModel()


def test_analyze_puts_all_results_beside_the_ct(logic, ct):
    import slicer.util

    expected = ball_analysis(DEFAULT_METHOD)
    nodes = logic.analyze(ct, device="cpu", force=True)
    assert nodes.volume is ct
    for label in ("liver", "tumor"):
        np.testing.assert_array_equal(
            slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, label, ct) > 0,
            expected.segmentation.mask(label),
        )
    for explanation in expected.explanations:
        np.testing.assert_allclose(
            slicer.util.arrayFromVolume(nodes.heatmaps[str(explanation.target)]), explanation.heatmap.array, atol=1e-6
        )
    assert "1 lesion" in nodes.table.GetAttribute("LiverXAI.Summary")


def test_segment_then_explain_gives_what_analyze_gives(logic, ct, scene):
    import slicer.util

    expected = ball_analysis(DEFAULT_METHOD)
    segmentation = logic.segment(ct, device="cpu", force=True)
    heat = logic.explain(ct, segmentation, "tumor", device="cpu", force=True)
    np.testing.assert_allclose(slicer.util.arrayFromVolume(heat), expected.explanations[1].heatmap.array, atol=1e-6)
    assert heat.GetAttribute("LiverXAI.Target") == "tumor"
    assert scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 0


def test_the_readers_decisions_are_applied_to_what_is_in_the_scene(logic, ct):
    import slicer.util

    from LiverXAILib.reading import add, reject, restore

    nodes = logic.analyze(ct, [], device="cpu", force=True)
    lesion = ball_analysis().measurements.lesions[0]
    before = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "tumor", ct) > 0
    assert logic.refine(ct, [reject(1)], device="cpu", force=True) is nodes.segmentation
    assert not (slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "tumor", ct) > 0).any()
    assert "0 lesions" in nodes.table.GetAttribute("LiverXAI.Summary")
    logic.refine(ct, [restore(1)], device="cpu", force=True)
    again = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "tumor", ct) > 0
    np.testing.assert_array_equal(again, before)
    logic.refine(ct, [reject(1)], device="cpu", force=True)
    logic.refine(ct, [add(lesion.centroid_lps_mm)], who="Dr. A", device="cpu", force=True)
    after = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "tumor", ct) > 0
    assert 2 * (after & before).sum() / (after.sum() + before.sum()) > 0.8
    decided = json.loads(nodes.segmentation.GetAttribute("LiverXAI.Decisions"))
    assert [(one["kind"], one["who"]) for one in decided] == [
        ("reject", "reader"),
        ("restore", "reader"),
        ("reject", "reader"),
        ("add", "Dr. A"),
    ]
    tumor = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "tumor", ct)
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros_like(tumor), nodes.segmentation, "tumor", ct)
    logic.refine(ct, device="cpu", force=True)
    decided = json.loads(nodes.segmentation.GetAttribute("LiverXAI.Decisions"))
    assert [one["kind"] for one in decided] == ["reject", "restore", "reject", "add", "edit"]
    with pytest.raises(UsageError, match="analyze it first"):
        logic.refine(volume_to_node(ball_analysis().volume, slicer.mrmlScene, "another"), force=True)


def test_decisions_need_the_model_that_made_the_result(module, scene, tmp_path):
    """With another one, each lesion would be the reader's."""
    from LiverXAILib.reading import reject

    mine, other = (str(write_model(tmp_path / name, liver_hu=hu)) for name, hu in (("a", 100.0), ("b", 110.0)))
    ct, logic = volume_to_node(phantom(lesions=2), scene, "CT"), module.LiverXAILogic()
    nodes = logic.analyze(ct, [], model=mine, device="cpu")
    with pytest.raises(UsageError, match="made by another model than toy"):
        logic.refine(ct, [reject(1)], model=other, device="cpu")
    assert "2 lesions" in nodes.table.GetAttribute("LiverXAI.Summary")
    logic.refine(ct, [reject(1)], model=mine, device="cpu")
    assert "1 lesion" in nodes.table.GetAttribute("LiverXAI.Summary")


def test_numbers_in_the_console_are_those_of_the_table_after_an_edit_too(logic, ct):
    import slicer.util

    from LiverXAILib.reading import reject

    nodes = logic.analyze(ct, [], device="cpu", force=True)
    tumor = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "tumor", ct)
    lesion = tumor > 0
    # A larger lesion is drawn, which becomes lesion 1 when the segmentation is measured again.
    liver = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ct) > 0
    below = int(np.argwhere(lesion)[:, 1].max()) + 2
    drawn = liver & ~lesion & (np.indices(liver.shape)[1] > below)
    assert drawn.sum() > lesion.sum()
    slicer.util.updateSegmentBinaryLabelmapFromArray((lesion | drawn).astype(np.uint8), nodes.segmentation, "tumor", ct)
    logic.refine(ct, [reject(1)], device="cpu", force=True)
    after = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "tumor", ct) > 0
    np.testing.assert_array_equal(after, drawn)
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros_like(tumor), nodes.segmentation, "tumor", ct)
    with pytest.raises(UsageError, match="was erased"):
        logic.refine(ct, [reject(1)], device="cpu", force=True)


@pytest.mark.parametrize("call", ["refine", "explain", "analyze"])
def test_results_are_moved_with_a_ct_that_was_moved_since(logic, ct, call):
    """No panel observes the scene: the call itself finds it."""
    import slicer.util

    nodes = logic.analyze(ct, ["tumor"], device="cpu", force=True)
    before = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "tumor", ct).copy()
    ct.SetOrigin(*np.add(ct.GetOrigin(), (13, -7, 21)))
    if call == "refine":
        logic.refine(ct, device="cpu", force=True)
    elif call == "explain":
        logic.explain(ct, nodes.segmentation, "tumor", device="cpu", force=True)
    else:
        assert logic.analyze(ct, ["tumor"], device="cpu", force=True).segmentation is nodes.segmentation
    after = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "tumor", ct)
    np.testing.assert_array_equal(after, before)
    assert not nodes.segmentation.GetAttribute("LiverXAI.Edited")
    assert nodes.heatmaps["tumor"].GetOrigin() == pytest.approx(ct.GetOrigin())


def test_a_segmentation_edited_by_hand_is_explained_as_it_is_now(logic, ct):
    import slicer.util

    segmentation = logic.segment(ct, device="cpu", force=True)
    tumor = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "tumor", ct)
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros_like(tumor), segmentation, "tumor", ct)
    with pytest.raises(LiverXAIError, match="No tumor was found"):
        logic.explain(ct, segmentation, "tumor", device="cpu", force=True)


def test_an_explanation_is_shown_over_its_ct_at_its_hottest_place(logic, ct, scene):
    import slicer

    for name in ("Red", "Green"):
        slice_logic = slicer.vtkMRMLSliceLogic()
        slice_logic.SetMRMLScene(scene)
        slice_logic.AddSliceNode(name)
    nodes = logic.analyze(ct, device="cpu", force=True)
    logic.showExplanation(nodes.heatmaps["tumor"], opacity=0.3)
    composite = scene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    assert composite.GetBackgroundVolumeID() == ct.GetID()
    assert composite.GetForegroundVolumeID() == nodes.heatmaps["tumor"].GetID()
    assert composite.GetForegroundOpacity() == pytest.approx(0.3)
    _, _, superior = ball_analysis().measurements.lesions[0].centroid_lps_mm
    axial = scene.GetFirstNodeByClass("vtkMRMLSliceNode").GetSliceToRAS()
    assert axial.GetElement(2, 3) == pytest.approx(superior, abs=13)  # the lesion's radius is 12 mm
    with pytest.raises(UsageError, match="not a result of LiverXAI"):
        logic.showExplanation(ct)


def test_a_volume_that_is_no_ct_is_refused(logic, ct):
    with pytest.raises(InputError, match="does not look like CT"):
        logic.analyze(ct, device="cpu")


def test_progress_is_told_and_a_cancelled_run_leaves_the_scene_as_it_was(logic, ct, scene):
    told = []
    logic.segment(ct, device="cpu", force=True, progress=lambda step, fraction: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1.0
    scene.RemoveNode(scene.GetFirstNodeByClass("vtkMRMLSegmentationNode"))
    count = scene.GetNumberOfNodes()
    token = CancelToken()
    with pytest.raises(LiverXAIError, match="Cancelled"):
        logic.analyze(
            ct,
            device="cpu",
            force=True,
            cancel=token,
            progress=lambda step, fraction: fraction > 0.3 and token.cancel(),
        )
    assert scene.GetNumberOfNodes() == count


def test_warnings_reach_the_log(logic, scene, caplog):
    dull = volume_to_node(ball_analysis(dull=True).volume, scene, "CT")
    with caplog.at_level(logging.WARNING):
        nodes = logic.analyze(dull, device="cpu", force=True)
    assert list(nodes.heatmaps) == ["liver"]
    assert "Not explained: tumor" in caplog.text


def test_only_the_panel_may_open_a_dialog_and_nothing_prints():
    banned = {"print", "infoDisplay", "errorDisplay", "warningDisplay", "confirmOkCancelDisplay", "delayDisplay"}
    interactive = {"LiverXAIWidget", "LiverXAITest", "TaskRunner", "ModelFetching"}
    library = ROOT / "LiverXAILib"
    for path in [MODULE, *(library / "mrml").glob("*.py"), *(library / "panel").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in interactive]
        allowed = {id(child) for node in classes for child in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in allowed:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert name not in banned, f"{path}:{node.lineno}"


def test_there_is_no_python_package_that_would_hide_the_module():
    assert sorted(path.name for path in (ROOT / "LiverXAI").glob("*.py")) == ["LiverXAI.py"]
