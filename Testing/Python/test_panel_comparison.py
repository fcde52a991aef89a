# SPDX-License-Identifier: Apache-2.0
"""Two results of one CT at the same time: outlines and agreement; nothing else in the scene changes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from batch_toys import phantom, write_model
from panel_toys import add_ct, apply_and_wait, choose_model, decide, decided, prepare, results, save_and_reopen
from test_panel_reader import erase, segment_array

from LiverXAILib.errors import UsageError
from LiverXAILib.inference import Segmentation
from LiverXAILib.models import LIVER, TUMOR
from LiverXAILib.reading.agreement import agreement
from LiverXAILib.volumes.volume import Volume

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
slicer = pytest.importorskip("slicer")


def labels(*lesions, liver=np.s_[1:9, 1:9, 1:30]):
    array = np.zeros((10, 10, 32), np.uint8)
    array[liver] = 1
    for where in lesions:
        array[where] = 2
    return Segmentation(Volume(array, np.diag([2.0, 2.0, 2.5, 1.0])), (LIVER, TUMOR))


def test_agreement_is_that_of_structures_and_of_lesions_that_share_voxels():
    large, small, other = np.s_[2:6, 2:6, 2:8], np.s_[2:4, 2:4, 12:15], np.s_[2:4, 2:4, 20:22]
    found = agreement(labels(large, small), labels(np.s_[2:6, 2:6, 2:4], np.s_[2:6, 2:6, 6:8], other))
    liver, tumor = found.structures["liver"], found.structures["tumor"]
    assert liver.dice == 1.0
    assert liver.first_ml == pytest.approx(8 * 8 * 29 * 0.01)
    assert (tumor.first_ml, tumor.second_ml) == (pytest.approx(1.08), pytest.approx(0.72))
    assert tumor.dice == pytest.approx(2 * 64 / (108 + 72))
    assert [(one.first, one.second) for one in found.lesions] == [((1,), (1, 2)), ((2,), ()), ((), (3,))]
    assert [one.dice for one in found.lesions] == [pytest.approx(2 * 64 / (96 + 64)), 0.0, 0.0]
    assert found.counts == (1, 1, 1)
    assert found.lesions[2].place_lps_mm[0] in (40.0, 42.0)


def test_agreement_of_nothing_and_on_other_grids():
    nothing = labels(liver=np.s_[:0])
    found = agreement(nothing, nothing)
    assert (found.structures["liver"].dice, found.lesions, found.counts) == (None, (), (0, 0, 0))
    assert agreement(labels(), nothing).structures["liver"].dice == 0.0
    elsewhere = Segmentation(Volume(nothing.labels.array, np.eye(4)), (LIVER, TUMOR))
    with pytest.raises(UsageError, match="same grid"):
        agreement(nothing, elsewhere)


def compare(panel, index=1):
    panel.ui.comparisonSelector.setCurrentIndex(index)
    qtapplication.wait_until(lambda: panel.widget.comparison.outlines is not None)


def compared(panel):
    table = panel.ui.comparisonTable
    return [tuple(table.item(row, column).text() for column in range(4)) for row in range(table.rowCount)]


def state_of_views():
    """What the reader sets in views and display nodes, except for the compared outlines."""
    kinds = ("vtkMRMLSliceCompositeNode", "vtkMRMLSegmentationDisplayNode", "vtkMRMLLayoutNode", "vtkMRMLSliceNode")
    nodes = [node for kind in kinds for node in slicer.util.getNodesByClass(kind) if node.GetSaveWithScene()]
    return {node.GetID(): re.sub(r".*(Time|Reference Count|\(0x).*", "", str(node)) for node in nodes}


def all_nodes():
    temporary = "vtkMRMLLabelMapVolumeDisplayNode"  # of segment_array()
    return {node.GetID() for node in slicer.mrmlScene.GetNodes() if not node.IsA(temporary)}


@pytest.fixture
def two(panel, toy_model):
    """A CT with a result of the model, and a current one in which the reader has rejected a lesion."""
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    assert not panel.ui.comparisonSelector.enabled
    apply_and_wait(panel)
    decide(panel, 1, "reject")
    apply_and_wait(panel)
    qtapplication.process_events()
    panel.ui.resultSelector.setCurrentIndex(1)  # the one that the reader changed
    qtapplication.process_events()
    assert decided(panel) == ["model", "rejected by reader"]
    return node


def test_another_result_is_shown_with_the_current_one_and_nothing_is_left_of_it(panel, two):
    (current,) = results(two, "segmentation")
    before, nodes = state_of_views(), all_nodes()
    compare(panel)
    assert panel.widget.comparison.outlines.GetSegmentation().GetNumberOfSegments() == 2
    rows = compared(panel)
    assert [row[0] for row in rows] == ["liver", "tumor", "lesion", "lesion"]
    assert rows[0][3] == "1.00"
    assert float(rows[1][3]) < 1
    assert [row[1:] for row in rows[2:]] == [("1", "1", "1.00"), ("–", "2", "–")]
    assert "Lesions: 1 in both, 0 only in this result, 1 only in the other." in panel.ui.agreementLabel.text
    outlines = panel.widget.comparison.outlines
    other = segment_array(outlines, "tumor", two)
    assert other.sum() > segment_array(current, "tumor", two).sum()
    display = outlines.GetDisplayNode()
    assert (display.GetVisibility2DOutline(), display.GetVisibility2DFill(), display.GetVisibility3D()) == (1, 0, 0)
    assert state_of_views() == before
    panel.ui.comparisonSelector.setCurrentIndex(0)
    qtapplication.process_events()
    assert panel.widget.comparison.outlines is None
    assert state_of_views() == before
    assert all_nodes() == nodes
    assert not panel.ui.comparisonTable.visible


def test_the_comparison_follows_decisions_edits_and_the_choice_of_the_result(panel, two):
    compare(panel)
    (current,) = results(two, "segmentation")
    decide(panel, 1, "accept")
    qtapplication.wait_until(lambda: compared(panel)[1][3] == "1.00")
    assert "Lesions: 2 in both" in panel.ui.agreementLabel.text
    decide(panel, 0, "reject")
    qtapplication.wait_until(lambda: compared(panel)[1][3] != "1.00")
    # The two results change places: both are still compared.
    panel.ui.resultSelector.setCurrentIndex(1)
    qtapplication.process_events()
    assert results(two, "segmentation") != [current]
    qtapplication.wait_until(lambda: compared(panel)[-1][1:] != ("–", "1", "–"))
    assert "Lesions: 1 in both, 1 only in this result, 0 only in the other." in panel.ui.agreementLabel.text
    outlines = panel.widget.comparison.outlines
    np.testing.assert_array_equal(segment_array(outlines, "tumor", two), segment_array(current, "tumor", two))


def test_an_edited_result_is_compared_when_it_has_been_measured(panel, two):
    panel.ui.autoMeasureCheckBox.checked = False
    (current,) = results(two, "segmentation")
    erase(current, "tumor", two, np.s_[:])
    panel.ui.comparisonSelector.setCurrentIndex(1)
    qtapplication.process_events()
    assert "Measure again first" in panel.ui.agreementLabel.text
    panel.click(panel.ui.measureButton)
    qtapplication.wait_until(lambda: panel.widget.comparison.outlines is not None)
    assert "Lesions: 0 in both, 0 only in this result, 2 only in the other." in panel.ui.agreementLabel.text


def test_a_row_of_the_comparison_moves_the_views_to_its_lesion(panel, two):
    compare(panel)
    jumps = []
    panel.widget.comparison.on_row(0, 0)  # the liver has no place
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    panel.widget.comparison.on_row(3, 0)
    jumps.append(node.GetSliceToRAS().GetElement(2, 3))
    panel.widget.comparison.on_row(2, 0)
    jumps.append(node.GetSliceToRAS().GetElement(2, 3))
    assert jumps[0] != 0 or jumps[1] != 0


def test_outlines_of_a_comparison_are_not_saved_and_follow_a_transform(panel, two, tmp_path):
    compare(panel)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    two.SetAndObserveTransformNodeID(transform.GetID())
    outlines = panel.widget.comparison.outlines
    assert outlines.GetTransformNodeID() == transform.GetID()
    there = slicer.util.arrayFromSegmentBinaryLabelmap(outlines, "liver", two).copy()
    two.SetOrigin(40.0, -5.0, 9.0)  # as by "Center volume"
    assert panel.widget.comparison.outlines is outlines
    np.testing.assert_array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(outlines, "liver", two), there)
    two.SetAndObserveTransformNodeID(None)
    before = len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
    save_and_reopen(panel, tmp_path / "scene.mrb")
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == before - 1
    assert panel.ui.comparisonSelector.currentData == ""
    compare(panel)  # what was set aside can be compared in a later session as well
    panel.ui.inputSelector.setCurrentNode(None)
    qtapplication.process_events()
    assert panel.widget.comparison.outlines is None


def test_results_of_two_models_are_compared(panel, toy_model, tmp_path):
    node = prepare(panel, phantom(lesions=2), toy_model, "nothing")
    apply_and_wait(panel)
    choose_model(panel, str(write_model(tmp_path / "other", liver_hu=110.0)))
    apply_and_wait(panel)
    assert len(results(node, "segmentation")) == 1
    compare(panel)
    assert 0 < float(compared(panel)[0][3]) < 1


#: Width and height of Slicer's slice views in a four-up layout, and side by side.
FOUR_UP, SIDE_BY_SIDE = (500, 400), (480, 810)


class SlicerViews:
    """Slicer's layout and slice views without windows; as there, views are resized whenever the layout changes."""

    def __init__(self, host):
        self.layouts = slicer.vtkMRMLLayoutLogic()
        self.layouts.SetMRMLScene(host.scene)
        self.layout = self.layouts.GetLayoutNode()
        self.layout.SetViewArrangement(self.layout.SlicerLayoutFourUpView)
        self.logics = {}
        for name in ("Red", "Yellow", "Green"):
            self.logics[name] = logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(host.logic)
            logic.SetMRMLScene(host.scene)
            logic.SetSliceNode(host.scene.GetSingletonNode(name, "vtkMRMLSliceNode"))
            host.slice_logics.AddItem(logic)
        self.is_fixed = False
        self.layout.AddObserver("ModifiedEvent", self.resize)
        self.resize()

    def resize(self, *_event):
        is_split = self.layout.GetViewArrangement() == self.layout.SlicerLayoutSideBySideView
        if self.is_fixed:
            return
        for logic in self.logics.values():
            logic.ResizeSliceNode(*(SIDE_BY_SIDE if is_split else FOUR_UP))

    def close(self, host):
        for logic in self.logics.values():
            host.slice_logics.RemoveItem(logic)
            logic.SetMRMLScene(None)
        self.layouts.SetMRMLScene(None)
        host.reset()
        host.scene.RemoveNode(self.layout)

    def node(self, name):
        return self.logics[name].GetSliceNode()

    def shown(self, name):
        """The plane of a view in RAS, its panning, and the field of view in mm."""
        node = self.node(name)
        matrix = [node.GetSliceToRAS().GetElement(row, column) for row in range(4) for column in range(4)]
        return tuple(round(x, 6) for x in (*matrix, *node.GetXYZOrigin(), *node.GetFieldOfView()))

    def scroll(self, name, mm):
        """Scroll as the mouse wheel does, which is what linked views follow."""
        logic = self.logics[name]
        logic.StartSliceNodeInteraction(slicer.vtkMRMLSliceNode.SliceToRASFlag)
        logic.SetSliceOffset(mm)
        logic.EndSliceNodeInteraction()

    def zoom(self, name, factor):
        logic, (x, y, z) = self.logics[name], self.node(name).GetFieldOfView()
        logic.StartSliceNodeInteraction(slicer.vtkMRMLSliceNode.FieldOfViewFlag)
        self.node(name).SetFieldOfView(x / factor, y / factor, z)
        self.node(name).UpdateMatrices()
        logic.EndSliceNodeInteraction()


@pytest.fixture
def views(opened_panel):
    views = SlicerViews(opened_panel.host)
    yield views
    views.close(opened_panel.host)


@pytest.fixture
def looking(panel, views, two):
    """Two results that are compared, in views that show another volume and are zoomed and moved by the reader."""
    elsewhere = add_ct(phantom(), "elsewhere")
    for name, logic in views.logics.items():
        logic.GetSliceCompositeNode().SetBackgroundVolumeID(elsewhere.GetID())
        views.node(name).SetXYZOrigin(*(5.0 * len(name), -3.0, 0.0))
        views.zoom(name, 1 + len(name) / 10)
        views.scroll(name, 10.0 * len(name))
    views.resize()  # so that Slicer has noticed how thick the slices are
    compare(panel)
    return two


def where(node):
    return list(node.GetDisplayNode().GetViewNodeIDs())


def test_two_results_are_shown_side_by_side_and_views_are_restored(panel, views, looking):
    (current,) = results(looking, "segmentation")
    before, shown = state_of_views(), {name: views.shown(name) for name in views.logics}
    panel.click(panel.ui.sideBySideButton)
    assert views.layout.GetViewArrangement() == views.layout.SlicerLayoutSideBySideView
    assert views.shown("Yellow") == views.shown("Red")
    assert views.shown("Red")[:19] == shown["Red"][:19]
    assert views.node("Yellow").GetOrientation() == "Axial"
    for name in ("Red", "Yellow"):
        assert views.logics[name].GetSliceCompositeNode().GetBackgroundVolumeID() == looking.GetID()
    assert where(current) == ["vtkMRMLSliceNodeRed"]
    assert where(panel.widget.comparison.outlines) == ["vtkMRMLSliceNodeYellow"]
    panel.click(panel.ui.sideBySideButton)
    assert state_of_views() == before
    assert where(panel.widget.comparison.outlines) == []

    panel.click(panel.ui.sideBySideButton)
    for scrolled, mm, factor in (("Red", 21.0, 1.5), ("Yellow", -13.0, 0.8)):
        views.scroll(scrolled, mm)
        views.zoom(scrolled, factor)
        assert views.logics["Red"].GetSliceOffset() == views.logics["Yellow"].GetSliceOffset() == mm
        assert views.shown("Yellow") == views.shown("Red")
    panel.click(panel.ui.sideBySideButton)
    assert views.logics["Red"].GetSliceOffset() == -13.0, "the reader stays at the slice"
    after = state_of_views()
    assert {name for name in before if after[name] != before[name]} == {"vtkMRMLSliceNodeRed"}


def end_by(panel, way):
    if way == "no other result":
        panel.ui.comparisonSelector.setCurrentIndex(0)
    elif way == "another result":
        panel.ui.resultSelector.setCurrentIndex(1)
    elif way == "another CT":
        panel.ui.inputSelector.setCurrentNode(slicer.util.getNode("elsewhere"))
    else:
        panel.widget.exit()
    qtapplication.process_events()


@pytest.mark.parametrize("way", ["no other result", "another result", "another CT", "module left"])
def test_side_by_side_ends_with_what_is_compared(panel, views, looking, way):
    (current,) = results(looking, "segmentation")
    kinds = ("vtkMRMLSliceNode", "vtkMRMLLayout")
    before = {name: text for name, text in state_of_views().items() if name.startswith(kinds)}
    panel.click(panel.ui.sideBySideButton)
    end_by(panel, way)
    assert state_of_views().items() >= before.items()
    composites = [logic.GetSliceCompositeNode() for logic in views.logics.values()]
    assert [node.GetLinkedControl() for node in composites] == [0, 0, 0]
    assert len({node.GetBackgroundVolumeID() for node in composites}) == 1
    assert where(current) == []
    assert not panel.ui.sideBySideButton.checked


def test_side_by_side_ends_when_a_third_result_takes_part(panel, views, looking):
    panel.click(panel.ui.sideBySideButton)
    panel.ui.resultSelector.setCurrentIndex(panel.ui.resultSelector.count - 1)  # New
    apply_and_wait(panel)
    assert not panel.ui.sideBySideButton.checked
    compare(panel, 1)
    panel.click(panel.ui.sideBySideButton)
    assert panel.ui.sideBySideButton.checked
    panel.ui.comparisonSelector.setCurrentIndex(2)
    assert not panel.ui.sideBySideButton.checked
    assert views.layout.GetViewArrangement() == views.layout.SlicerLayoutFourUpView


def test_side_by_side_ends_before_the_scene_is_closed(panel, views, looking):
    # All but the thickness, which Slicer updates later.
    shown = {name: views.shown(name)[:-1] for name in views.logics}
    panel.click(panel.ui.sideBySideButton)
    closing, scene = [], panel.host.scene
    tag = scene.AddObserver(
        scene.StartCloseEvent, lambda *_: closing.append({name: views.shown(name)[:-1] for name in views.logics}), -1.0
    )
    panel.host.clear()
    scene.RemoveObserver(tag)
    assert closing == [shown]
    assert views.layout.GetViewArrangement() == views.layout.SlicerLayoutFourUpView
    assert (panel.ui.sideBySideButton.checked, panel.ui.sideBySideButton.enabled) == (False, False)


def test_a_scene_saved_side_by_side_is_restored_when_it_is_opened(panel, views, looking, tmp_path):
    shown = {name: views.shown(name)[:-1] for name in ("Yellow", "Green")}
    panel.click(panel.ui.sideBySideButton)
    _node, current = save_and_reopen(panel, tmp_path / "scene.mrb")
    assert where(current) == []
    assert views.layout.GetViewArrangement() == views.layout.SlicerLayoutFourUpView
    for name in shown:
        assert views.shown(name)[:-1] == pytest.approx(shown[name], rel=1e-5)  # as many digits as a scene has
    assert {logic.GetSliceCompositeNode().GetLinkedControl() for logic in views.logics.values()} == {0}


def test_what_the_reader_changes_side_by_side_stays(panel, views, looking):
    panel.click(panel.ui.sideBySideButton)
    views.layout.SetViewArrangement(views.layout.SlicerLayoutOneUpRedSliceView)
    views.logics["Red"].GetSliceCompositeNode().SetBackgroundVolumeID(None)
    panel.click(panel.ui.sideBySideButton)
    assert views.layout.GetViewArrangement() == views.layout.SlicerLayoutOneUpRedSliceView
    assert views.logics["Red"].GetSliceCompositeNode().GetBackgroundVolumeID() is None
    assert views.logics["Yellow"].GetSliceCompositeNode().GetBackgroundVolumeID() != looking.GetID()


def test_pixels_are_square_in_a_right_view_of_another_shape(panel, views, looking):
    views.layout.SetViewArrangement(views.layout.SlicerLayoutSideBySideView)
    views.logics["Yellow"].ResizeSliceNode(300, 600)
    views.is_fixed = True
    panel.click(panel.ui.sideBySideButton)
    (width, height, _), red = views.node("Yellow").GetFieldOfView(), views.node("Red").GetFieldOfView()
    assert (width, height) == pytest.approx((red[1] / 2, red[1]))


def test_side_by_side_follows_decisions_and_ends_a_maximized_view(panel, views, looking):
    views.layout.AddMaximizedViewNode(views.node("Green"))
    panel.click(panel.ui.sideBySideButton)
    assert views.layout.GetNumberOfMaximizedViewNodes() == 0
    first = panel.widget.comparison.outlines
    decide(panel, 1, "accept")
    qtapplication.wait_until(lambda: panel.widget.comparison.outlines not in (None, first))
    assert where(panel.widget.comparison.outlines) == ["vtkMRMLSliceNodeYellow"]
    assert where(*results(looking, "segmentation")) == ["vtkMRMLSliceNodeRed"]
    panel.click(panel.ui.sideBySideButton)
    assert views.layout.IsMaximizedViewNode(views.node("Green"))


def test_there_is_no_side_by_side_without_a_layout_or_with_damaged_records(panel, two, request):
    compare(panel)
    assert not panel.ui.sideBySideButton.enabled  # Slicer without a main window
    views = request.getfixturevalue("views")
    panel.widget.comparison.update()
    panel.click(panel.ui.sideBySideButton)
    for record in ("{", "[1]", '[["vtkMRMLSliceNodeRed", "Name", "", "Red"]]'):
        views.layout.SetAttribute("LiverXAI.Before", record)
        panel.widget.comparison.end_side_by_side()
        assert views.layout.GetAttribute("LiverXAI.Before") is None
    assert views.node("Red").GetName() == "Red"
