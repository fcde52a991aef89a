# SPDX-License-Identifier: Apache-2.0
"""Two results of one CT at the same time: outlines and agreement; nothing else in the scene changes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from batch_toys import phantom, write_model
from panel_toys import apply_and_wait, choose_model, decide, decided, prepare, results, save_and_reopen
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
    assert panel.widget.comparison.outlines.GetTransformNodeID() == transform.GetID()
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
