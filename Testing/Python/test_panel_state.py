# SPDX-License-Identifier: Apache-2.0
"""The panel before and after a run: first use, packages, models, saved scenes, looks, keys, small screens."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from batch_toys import phantom
from forking import Process
from model_server import serving
from panel_toys import add_ct, apply_and_wait, choose_model, prepare, results, wait_idle

import LiverXAILib as lx
from LiverXAILib.explain import DEFAULT_METHOD
from LiverXAILib.models import registry

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
slicer = pytest.importorskip("slicer")


def test_an_empty_panel_says_what_to_do_next(panel, toy_model):
    panel.widget.initializeParameterNode()
    assert "Load a CT" in panel.ui.statusLabel.text
    assert not panel.ui.applyButton.enabled
    assert not panel.ui.resultsButton.visible
    node = add_ct(phantom())
    panel.ui.inputSelector.setCurrentNode(node)
    choose_model(panel, "")
    assert "folder of a model" in panel.ui.statusLabel.text
    assert not panel.ui.applyButton.enabled
    choose_model(panel, toy_model)
    assert "Press Apply" in panel.ui.statusLabel.text
    assert panel.ui.applyButton.enabled


def test_the_first_ct_of_a_scene_is_chosen(panel):
    node = add_ct(phantom())
    panel.widget.initializeParameterNode()
    assert panel.ui.inputSelector.currentNode() is node


def test_a_result_is_not_taken_for_a_ct(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "liver")
    apply_and_wait(panel)
    panel.widget.status.show()
    panel.widget.state.parameters.inputVolume = results(node, "heatmap")[0]  # by a script: it cannot be chosen
    qtapplication.process_events()
    assert not panel.ui.applyButton.enabled
    assert "Choose the CT" in panel.ui.statusLabel.text


def test_the_card_tells_what_the_bundled_model_is(panel):
    panel.choose(panel.ui.modelSelector, "default")
    about = registry()["default"].description()
    assert panel.ui.modelCard.text.count(".") == 1  # one sentence; the rest is in the tool tip
    text = panel.ui.modelCard.toolTip
    for word in ("Trained on:", "Quality:", "License: Apache-2.0", "MB"):
        assert word in text
    assert about.task.rstrip(".") in text
    assert all(limit in panel.ui.modelCard.toolTip for limit in about.limits)
    assert "liver dice 0." in text


@pytest.fixture
def own_models(panel, monkeypatch, tmp_path):
    """A folder for downloads and a registry for this test only, used by the panel and its worker.

    Returns a function that takes the entries of the registry.
    """
    where = importlib.import_module("LiverXAILib.models.registry")
    downloads, entries = tmp_path / "downloads", tmp_path / "registry.json"
    patch = f"""
        import importlib, pathlib
        registry = importlib.import_module("LiverXAILib.models.registry")
        store = importlib.import_module("LiverXAILib.models.store")
        registry._REGISTRY = pathlib.Path({str(entries)!r})
        registry.download_folder = store.download_folder = lambda: pathlib.Path({str(downloads)!r})
    """
    folder = tmp_path / "python"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(patch))
    usual = panel.widget.models.registry

    def use(models):
        entries.write_text(json.dumps({"version": 1, "models": models}))
        panel.widget.models.registry = registry(entries)
        panel.widget.models.fill()
        panel.widget.showParameters()

    monkeypatch.delenv("LIVERXAI_MODELS", raising=False)
    monkeypatch.setattr(where, "_REGISTRY", entries)
    monkeypatch.setattr(where, "download_folder", lambda: downloads)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    panel.widget.runner.client.close()
    yield use
    panel.widget.runner.client.close()
    monkeypatch.undo()
    panel.widget.models.registry = usual
    panel.widget.models.fill()
    panel.widget.showParameters()


def test_a_model_that_is_not_here_is_downloaded_with_progress(panel, own_models, toy_model, tmp_path):
    weights = Path(toy_model, "weights.safetensors").read_bytes()
    shutil.copy(Path(toy_model, "card.json"), tmp_path / "card.json")
    with serving() as server:
        server.files = {"/weights.safetensors": weights}
        url = f"{server.address}/weights.safetensors"
        own_models(
            {
                "far": {
                    "kind": "card",
                    "card": str(tmp_path / "card.json"),
                    "files": {"weights.safetensors": {"url": url, "size": len(weights)}},
                }
            }
        )
        panel.ui.inputSelector.setCurrentNode(add_ct(phantom()))
        panel.choose(panel.ui.modelSelector, "far")
        assert panel.ui.downloadButton.visible
        assert panel.ui.downloadButton.text == "Download"
        assert not panel.ui.applyButton.enabled
        assert "Press Download" in panel.ui.statusLabel.text
        seen = []
        show = panel.widget.runner.show_progress
        panel.widget.runner.show_progress = lambda event: (show(event), seen.append(panel.ui.statusLabel.text))
        try:
            panel.click(panel.ui.downloadButton)
            assert panel.ui.applyButton.text == "Cancel"
            wait_idle(panel)
        finally:
            del panel.widget.runner.show_progress
    assert any("ownload" in text and "%" in text for text in seen), seen
    assert "The model is ready" in panel.ui.statusLabel.text
    assert panel.ui.applyButton.enabled
    assert not panel.ui.downloadButton.visible
    assert (tmp_path / "downloads" / "far" / "weights.safetensors").read_bytes() == weights


def test_a_download_that_fails_says_so(panel, own_models, toy_model, tmp_path):
    shutil.copy(Path(toy_model, "card.json"), tmp_path / "card.json")
    files = {"weights.safetensors": {"url": "http://127.0.0.1:9/weights.safetensors", "size": 10}}
    own_models({"far": {"kind": "card", "card": str(tmp_path / "card.json"), "files": files}})
    panel.choose(panel.ui.modelSelector, "far")
    panel.click(panel.ui.downloadButton)
    wait_idle(panel)
    assert panel.ui.statusLabel.text.startswith("⚠")
    assert "unexpected" not in panel.ui.statusLabel.text
    assert panel.ui.detailsButton.visible
    assert panel.ui.downloadButton.enabled
    panel.ui.inputSelector.setCurrentNode(add_ct(phantom()))
    assert "Press Download" in panel.ui.statusLabel.text  # the earlier message was about something else


def test_a_scene_from_elsewhere_may_name_a_model_that_is_not_here(panel, toy_model):
    panel.ui.inputSelector.setCurrentNode(add_ct(phantom()))
    panel.widget.state.parameters.model = "somebody's own"
    panel.widget.state.parameters.method = "a method of tomorrow"
    panel.widget.showParameters()
    assert panel.ui.modelSelector.currentText == "somebody's own"
    assert "somebody's own is not on this computer" in panel.ui.statusLabel.text
    assert not panel.ui.applyButton.enabled
    assert panel.widget.state.parameters.method == panel.ui.methodSelector.currentData == DEFAULT_METHOD


def test_a_model_is_imported_from_a_zip_file(panel, own_models, toy_model, tmp_path):
    from LiverXAILib.panel.model_choice import FROM_FILE

    own_models({})
    archive = shutil.make_archive(str(tmp_path / "toy"), "zip", toy_model)
    node = add_ct(phantom())
    panel.ui.inputSelector.setCurrentNode(node)
    panel.choose(panel.ui.modelSelector, FROM_FILE)
    assert "Choose the zip file" in panel.ui.statusLabel.text
    assert panel.ui.modelFolderLabel.text == "File:"
    panel.ui.modelFolder.currentPath = archive
    assert panel.ui.downloadButton.text == "Import"
    assert not panel.ui.applyButton.enabled
    panel.click(panel.ui.downloadButton)
    wait_idle(panel)
    assert panel.ui.modelSelector.currentData == "toy"
    assert "For tests" in panel.ui.modelCard.text
    assert "MB" in panel.ui.modelCard.toolTip
    panel.choose(panel.ui.targetSelector, "nothing")
    apply_and_wait(panel)
    assert panel.ui.statusLabel.text.startswith("Done in")
    assert len(results(node, "segmentation")) == 1


@pytest.fixture
def bare(panel, monkeypatch):
    """A Slicer without any of our packages; returns the questions asked and the packages installed."""
    record = SimpleNamespace(questions=[], commands=[], torch=[], agrees=True)

    def confirm(text, title=None):
        record.questions.append(text)
        return record.agrees

    def pip_install(arguments, **keywords):
        record.commands.append([Path(x).read_text() if x.endswith("constraints.txt") else x for x in arguments])

    class Utilities:
        def installTorch(self, **keywords):
            record.torch.append(keywords)
            return ModuleType("torch")

    from LiverXAILib.panel import installation

    absent = {"torch", "safetensors", "requests", "platformdirs"}
    real = installation.find_spec
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name in absent else real(name))
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", confirm)
    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", SimpleNamespace(PyTorchUtilsLogic=Utilities))
    return record


def test_nothing_is_installed_without_consent(panel, bare, toy_model):
    bare.agrees = False
    prepare(panel, phantom(), toy_model)
    panel.click(panel.ui.applyButton)
    assert "torch" in bare.questions[0]
    assert bare.commands == []
    assert bare.torch == []
    assert "Nothing was installed" in panel.ui.statusLabel.text
    assert panel.ui.applyButton.text == "Apply"


def test_with_consent_torch_comes_through_its_extension_and_slicers_own_packages_stay(panel, bare, toy_model):
    prepare(panel, phantom(), toy_model, "nothing")
    apply_and_wait(panel)
    assert bare.torch == [{"torchVersionRequirement": ">=2.6"}]
    (command,) = bare.commands
    assert command[0] == "--constraint"
    assert "numpy==" in command[1]
    assert "SimpleITK==" in command[1]
    assert command[2:] == ["safetensors", "requests", "platformdirs"]


def test_wheels_from_a_folder_need_no_internet(panel, bare, toy_model):
    prepare(panel, phantom(), toy_model, "nothing")
    panel.ui.wheelFolder.currentPath = "/media/wheels"
    apply_and_wait(panel)
    (command,) = bare.commands
    assert command[:3] == ["--no-index", "--find-links", "/media/wheels"]
    assert "torch" in command
    assert bare.torch == []


def test_a_failed_installation_says_what_to_try(panel, bare, toy_model, monkeypatch):
    def fail(arguments, **keywords):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(slicer.util, "pip_install", fail)
    prepare(panel, phantom(), toy_model)
    panel.click(panel.ui.applyButton)
    assert "proxy" in panel.ui.statusLabel.text
    assert "Packages" in panel.ui.statusLabel.text


def test_a_failed_installation_of_torch_says_what_to_try(panel, bare, toy_model, monkeypatch):
    class Utilities:
        def installTorch(self, **keywords):
            raise subprocess.CalledProcessError(1, "light-the-torch")

    monkeypatch.setitem(sys.modules, "PyTorchUtils", SimpleNamespace(PyTorchUtilsLogic=Utilities))
    prepare(panel, phantom(), toy_model)
    panel.click(panel.ui.applyButton)
    assert "PyTorch could not be installed" in panel.ui.statusLabel.text
    assert "PyTorch Utils" in panel.ui.statusLabel.text
    assert bare.commands == []


def test_where_slicer_can_ensure_packages_it_does(panel, bare, toy_model, monkeypatch):
    """Slicer 5.12's own function shows the progress of pip; it is told not to ask again."""
    from LiverXAILib.panel import installation

    ensured = []
    packaging = ModuleType("slicer.packaging")
    packaging.pip_ensure = lambda names, **keywords: ensured.append((names, keywords))
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    found = installation.find_spec
    monkeypatch.setattr(installation, "find_spec", lambda name: name == "slicer.packaging" or found(name))
    prepare(panel, phantom(), toy_model, "nothing")
    apply_and_wait(panel)
    ((names, keywords),) = ensured
    assert names == ["safetensors", "requests", "platformdirs"]
    assert keywords.pop("constraints").name == "constraints.txt"
    assert keywords == {"prompt_install": False, "requester": "LiverXAI", "skip_in_testing": False}
    assert bare.commands == []


def test_a_missing_extension_is_named(panel, bare, toy_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    prepare(panel, phantom(), toy_model)
    panel.click(panel.ui.applyButton)
    assert "extension 'PyTorch'" in panel.ui.statusLabel.text


def test_what_was_chosen_comes_back_with_the_scene_and_can_be_asked_about(panel, toy_model, tmp_path):
    prepare(panel, phantom(lesions=2), toy_model, "tumor", name="CT")
    panel.choose(panel.ui.methodSelector, "seg-grad-cam")
    panel.ui.lesionSegmentsCheckBox.checked = True
    panel.ui.opacitySlider.value = 0.35
    apply_and_wait(panel)
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    panel.host.clear()
    assert panel.ui.methodSelector.currentData == DEFAULT_METHOD
    slicer.util.loadScene(path)
    qtapplication.process_events()
    ui = panel.ui
    assert ui.inputSelector.currentNode().GetName() == "CT"
    assert ui.modelFolder.currentPath == toy_model
    assert ui.methodSelector.currentData == "seg-grad-cam"
    assert ui.targetSelector.currentData == "tumor"
    assert ui.lesionSegmentsCheckBox.checked
    assert abs(ui.opacitySlider.value - 0.35) < 1e-6
    assert ui.lesionTable.rowCount == 2
    assert ui.heatMapSelector.count == 2
    assert ui.heatMapSelector.currentText.startswith("tumor")
    panel.click(ui.explainButton)
    wait_idle(panel)
    assert panel.ui.statusLabel.text.startswith("Done in")


def test_opacity_threshold_and_colors_act_at_once(panel, toy_model):
    composite = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    node = prepare(panel, phantom(), toy_model, "liver")
    apply_and_wait(panel)
    (heat,) = results(node, "heatmap")
    assert composite.GetBackgroundVolumeID() == node.GetID()
    assert composite.GetForegroundVolumeID() == heat.GetID()
    panel.ui.opacitySlider.value = 0.8
    assert abs(composite.GetForegroundOpacity() - 0.8) < 1e-6
    panel.ui.thresholdSlider.value = 0.6
    assert abs(heat.GetDisplayNode().GetLowerThreshold() - 0.6) < 1e-6
    before = heat.GetDisplayNode().GetColorNodeID()
    panel.choose(panel.ui.colorSelector, "Grey")
    assert heat.GetDisplayNode().GetColorNode().GetName() == "Grey"
    panel.choose(panel.ui.colorSelector, "LiverXAI heat map")
    assert heat.GetDisplayNode().GetColorNodeID() == before
    panel.choose(panel.ui.heatMapSelector, "")
    assert not composite.GetForegroundVolumeID()


def test_the_faithfulness_of_a_heat_map_is_told_in_words_and_plotted(panel, toy_model):
    node = prepare(panel, phantom(lesions=2), toy_model, "liver")
    panel.ui.advancedButton.collapsed = False
    wait_idle(panel)
    panel.click(panel.ui.checkCheckBox)
    apply_and_wait(panel)
    (heat,) = results(node, "heatmap")
    card = json.loads(heat.GetAttribute("LiverXAI.Faithfulness"))
    assert panel.ui.faithfulnessLabel.text == card["sentence"]
    panel.ui.lesionTable.selectRow(0)
    panel.click(panel.ui.explainLesionButton)
    wait_idle(panel)
    (heat,) = (node for node in results(node, "heatmap") if node.GetAttribute("LiverXAI.Target") == "lesion:1")
    card = json.loads(heat.GetAttribute("LiverXAI.Faithfulness"))
    assert panel.ui.lesionTable.item(0, 4).text() == ("yes" if card["passed"] else "no")
    assert panel.ui.lesionTable.item(1, 4).text() == ""
    panel.click(panel.ui.plotButton)
    charts = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    (chart,) = (chart for chart in charts if chart.GetNodeReferenceID("LiverXAI.HeatMap") == heat.GetID())
    assert chart.GetNumberOfPlotSeriesNodes() == 2
    for number, name in enumerate(("deletion", "insertion")):
        series = chart.GetNthPlotSeriesNode(number)
        column = series.GetTableNode().GetTable().GetColumnByName(series.GetYColumnName())
        assert [column.GetValue(row) for row in range(column.GetNumberOfTuples())] == card["curves"][name]
    panel.ui.heatMapSelector.setCurrentIndex(panel.ui.heatMapSelector.findData(""))
    assert not panel.ui.plotButton.enabled
    panel.ui.advancedButton.collapsed = True


def test_surfaces_are_shown_on_demand(panel, toy_model):
    node = prepare(panel, phantom(), toy_model, "nothing")
    apply_and_wait(panel)
    (segmentation,) = results(node, "segmentation")
    assert not segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    panel.click(panel.ui.show3DButton)
    assert segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    assert segmentation.GetDisplayNode().GetVisibility3D()
    panel.click(panel.ui.show3DButton)
    assert not segmentation.GetSegmentation().ContainsRepresentation("Closed surface")


def test_report_and_files_are_saved_where_the_user_says(panel, toy_model, tmp_path, monkeypatch):
    prepare(panel, phantom(), toy_model, "liver")
    apply_and_wait(panel)
    monkeypatch.setattr(panel.widget, "askFolder", lambda: str(tmp_path / "result"))
    panel.click(panel.ui.saveButton)
    wait_idle(panel)
    assert {"report.html", "segmentation.seg.nrrd", "heatmap-liver.nrrd", "measurements.csv"} <= {
        path.name for path in (tmp_path / "result").iterdir()
    }
    assert str(tmp_path / "result") in panel.ui.statusLabel.text


def test_height_and_weight_lead_to_the_standard_liver_volume(panel, toy_model, tmp_path, monkeypatch):
    prepare(panel, phantom(), toy_model, "liver")
    panel.ui.heightBox.value = 170
    apply_and_wait(panel)
    assert "both height and weight" in panel.ui.statusLabel.text
    panel.ui.weightBox.value = 70
    apply_and_wait(panel)
    assert "standard liver volume" in panel.ui.summaryLabel.text
    assert "1509.7 ml" in panel.ui.summaryLabel.text
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    panel.host.clear()
    assert (panel.ui.heightBox.value, panel.ui.weightBox.value) == (0, 0)
    slicer.util.loadScene(path)
    qtapplication.process_events()
    assert (panel.ui.heightBox.value, panel.ui.weightBox.value) == (170, 70)


def test_a_result_is_compared_with_one_that_was_saved_earlier(panel, toy_model, tmp_path, monkeypatch):
    prepare(panel, phantom(), toy_model, "liver")
    apply_and_wait(panel)
    folders = iter([str(tmp_path / "result"), str(tmp_path / "result"), str(tmp_path / "comparison")])
    monkeypatch.setattr(panel.widget, "askFolder", lambda title="": next(folders))
    panel.click(panel.ui.saveButton)
    wait_idle(panel)
    panel.click(panel.ui.compareButton)
    wait_idle(panel)
    # The only result is that of the same CT: the comparison refuses it with a message.
    assert "the same study" in panel.ui.statusLabel.text
    assert not (tmp_path / "comparison").exists()


def test_devices_are_looked_for_when_advanced_is_opened(panel, toy_model):
    panel.widget.initializeParameterNode()
    panel.ui.deviceHint.text = ""
    panel.ui.advancedButton.collapsed = False
    wait_idle(panel)
    assert "CPU" in panel.ui.deviceHint.text
    assert "torch" in panel.ui.deviceHint.text.lower()
    panel.ui.advancedButton.collapsed = True


def test_every_method_of_the_library_is_offered(panel):
    selector = panel.ui.methodSelector
    offered = {selector.itemData(index): selector.itemText(index) for index in range(selector.count)}
    assert offered == {name: method.info.title for name, method in lx.METHODS.items()}


def test_the_panel_is_used_by_keys_alone_from_top_to_bottom(panel, toy_model):
    from PySide6 import QtCore, QtWidgets
    from PySide6.QtTest import QTest

    prepare(panel, phantom(), toy_model, "nothing")
    qtapplication.process_events()
    panel.scroll.activateWindow()
    panel.ui.inputSelector.setFocus()
    seen = []
    for _ in range(12):
        focused = QtWidgets.QApplication.focusWidget()
        while focused is not None and not hasattr(panel.ui, focused.name or "-"):
            focused = focused.parent()
        seen.append(focused.name if focused is not None else "")
        QTest.keyClick(QtWidgets.QApplication.focusWidget(), QtCore.Qt.Key_Tab)
    order = list(dict.fromkeys(seen))
    expected = ["inputSelector", "modelSelector", "modelFolder", "targetSelector", "resultSelector", "applyButton"]
    assert order[: len(expected)] == expected
    panel.ui.applyButton.setFocus()
    QTest.keyClick(panel.ui.applyButton, QtCore.Qt.Key_Space)
    assert panel.ui.applyButton.text == "Cancel"
    wait_idle(panel)


@pytest.mark.parametrize("factor", ["1.5", "2"])
def test_a_high_dpi_screen_shows_the_panel_unclipped_in_as_many_pixels(panel, toy_model, tmp_path, factor):
    """Qt reads QT_SCALE_FACTOR when it starts, so the panel is shown by another process."""
    prepare(panel, phantom(lesions=2), toy_model, "both")
    apply_and_wait(panel)
    path = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(path))
    program = f"""
        import sys
        from pathlib import Path
        root = Path({str(Path(__file__).parents[2])!r})
        sys.path[:0] = [str(root / "Testing"), str(root / "Testing" / "Python"), str(root)]
        from slicerhost import pythonqt, qtapplication
        from panel_toys import clipped_texts
        import slicer
        panel = qtapplication.Panel(root / "LiverXAI" / "LiverXAI.py", size=(330, 650))
        slicer.util.loadScene({str(path)!r})
        panel.ui.deviceHint.text = "PyTorch 2.13.0; found: CPU, 8 threads; NVIDIA H100, 80 GiB."
        panel.ui.advancedButton.collapsed = False
        qtapplication.process_events()
        assert panel.ui.lesionTable.rowCount == 2
        assert not panel.scroll.horizontalScrollBar().visible
        picture = panel.parent.grab()
        print(picture.width() / panel.parent.width, clipped_texts(panel), pythonqt.problems)
        panel.close()
    """
    with Process(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "QT_SCALE_FACTOR": factor, "QT_QPA_PLATFORM": "offscreen"},
    ) as process:
        said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.splitlines()[-1] == f"{float(factor)} [] []"
