# SPDX-License-Identifier: Apache-2.0
"""A scene file contains everything, appears complete or not at all, and can be read by Slicer and others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from forking import Process
from mrml_toys import ball_analysis

from LiverXAILib.errors import InputError
from LiverXAILib.mrml import write_scene

TESTING = Path(__file__).parents[1]

#: Prints what a new process finds in a scene as JSON.
LOOK = """
import json, sys
import numpy as np, vtk
import slicerhost
host = slicerhost.start()
import slicer.util
from LiverXAILib import mrml

slicer.util.loadScene(sys.argv[1], {})
scene = host.scene
(volume,) = [n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if n.GetName() == "CT"]
(segmentation,) = mrml.find_results(scene, volume, "segmentation")
(table,) = mrml.find_results(scene, volume, "measurements")
heats = mrml.find_results(scene, volume, "heatmap")
tags, masks = {}, {}
for name in segmentation.GetSegmentation().GetSegmentIDs():
    segment = segmentation.GetSegmentation().GetSegment(name)
    value = vtk.reference("")
    tags[name] = {"name": segment.GetName(), "color": segment.GetColor()}
    for tag in ("TerminologyEntry", "DICOM.SegmentAlgorithmType"):
        segment.GetTag(tag, value)
        tags[name][tag] = str(value)
    masks[name] = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, name, volume) > 0
composite = scene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(segmentation))
np.savez(sys.argv[2], ct=slicer.util.arrayFromVolume(volume), heat=slicer.util.arrayFromVolume(heats[1]),
         matrix=mrml.volume_from_node(heats[1]).ijk_to_lps, **masks)
display = heats[1].GetDisplayNode()
layers = [composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()]
rows = range(table.GetTable().GetNumberOfRows())
color = [0.0] * 4
display.GetColorNode().GetColor(255, color)
print(json.dumps({
    "segments": tags,
    "attributes": {name: heats[1].GetAttribute(name) for name in heats[1].GetAttributeNames()},
    "table": [table.GetTable().GetValueByName(row, "volume_ml").ToDouble() for row in rows],
    "structures": [table.GetTable().GetValueByName(row, "structure").ToString() for row in rows],
    "shown": layers == [volume.GetID(), heats[1].GetID()],
    "outline": segmentation.GetDisplayNode().GetVisibility2DOutline(),
    "window": [display.GetWindowLevelMin(), display.GetWindowLevelMax(), display.GetLowerThreshold()],
    "warmest": color,
    "folder": hierarchy.GetItemName(folder),
    "legend": slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(heats[1]).GetTitleText(),
}))
"""


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory):
    return write_scene(ball_analysis(), tmp_path_factory.mktemp("scene") / "scene.mrb")


def test_a_new_process_finds_everything_in_the_scene(scene_file, tmp_path):
    analysis = ball_analysis()
    command = [sys.executable, "-c", LOOK, str(scene_file), str(tmp_path / "arrays.npz")]
    paths = [str(TESTING), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "ERR|" not in errors.replace("LoadDefault", ""), errors
    found = json.loads(said)
    for name, segment in found["segments"].items():
        spec = analysis.segmentation.spec(name)
        np.testing.assert_allclose(segment["color"], np.array(spec.color) / 255, atol=1e-6)
        assert f"SCT^{spec.type[1]}^{spec.type[2]}" in segment["TerminologyEntry"]
        assert segment["DICOM.SegmentAlgorithmType"] == "AUTOMATIC"
    attributes = found["attributes"]
    assert attributes["LiverXAI.Target"] == "tumor"
    assert json.loads(attributes["LiverXAI.Provenance"]) == analysis.explanations[1].provenance
    assert found["structures"] == ["liver", "tumor", "lesion"]
    np.testing.assert_allclose(found["table"], [row["volume_ml"] for row in analysis.measurements.rows()], rtol=1e-6)
    assert found["shown"]
    assert found["outline"]
    assert found["window"] == [0.0, 1.0, 0.1]
    np.testing.assert_allclose(found["warmest"][:3], np.array((255, 95, 45)) / 255, atol=2e-3)
    assert found["folder"] == "CT LiverXAI"
    assert "tumor" in found["legend"]
    arrays = np.load(tmp_path / "arrays.npz")
    for name in found["segments"]:
        np.testing.assert_array_equal(arrays[name], analysis.segmentation.mask(name))
    np.testing.assert_array_equal(arrays["ct"], analysis.volume.array)
    np.testing.assert_array_equal(arrays["heat"], analysis.explanations[1].heatmap.array)
    np.testing.assert_allclose(arrays["matrix"], analysis.volume.ijk_to_lps, atol=1e-9)


def test_simpleitk_reads_the_files_in_the_bundle_in_the_same_place(scene_file, tmp_path):
    analysis = ball_analysis()
    zipfile.ZipFile(scene_file).extractall(tmp_path)
    (data,) = tmp_path.glob("*/Data")
    files = {
        "CT.nrrd": analysis.volume.array,
        "CT heat map tumor (seg-grad-cam).nrrd": analysis.explanations[1].heatmap.array,
    }
    for name, array in files.items():
        image = sitk.ReadImage(str(data / name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    ct = sitk.ReadImage(str(data / "CT.nrrd"))
    for index in ((0, 0, 0), (49, 55, 43)):
        np.testing.assert_allclose(
            ct.TransformIndexToPhysicalPoint(index), analysis.volume.grid.to_lps(index), atol=1e-6
        )
    segmentation = sitk.ReadImage(str(data / "CT segmentation.seg.nrrd"))  # only the box of the liver
    found = sitk.GetArrayFromImage(segmentation) > 0
    assert found[..., 0].size < analysis.volume.array.size
    first = ct.TransformPhysicalPointToIndex(segmentation.TransformIndexToPhysicalPoint((0, 0, 0)))[::-1]
    layers = np.zeros((*analysis.volume.shape, 2), bool)
    layers[tuple(slice(start, start + size) for start, size in zip(first, found.shape[:3], strict=True))] = found
    np.testing.assert_array_equal(layers[..., 0], analysis.segmentation.mask("liver"))
    np.testing.assert_array_equal(layers[..., 1], analysis.segmentation.mask("tumor"))
    np.testing.assert_allclose(
        segmentation.TransformIndexToPhysicalPoint((0, 0, 0)), analysis.volume.grid.to_lps(first[::-1]), atol=1e-6
    )


def test_a_scene_replaces_an_older_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "scene.mrb"
    path.write_text("old")
    write_scene(ball_analysis(), path)
    assert zipfile.is_zipfile(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scene.mrb"]


def test_a_folder_that_is_not_there_is_said_and_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match="Cannot write"):
        write_scene(ball_analysis(), tmp_path / "missing" / "scene.mrb")
    assert not list(tmp_path.iterdir())


def test_a_running_slicer_is_not_touched(scene, tmp_path):
    before = scene.GetNumberOfNodes()
    write_scene(ball_analysis(), tmp_path / "scene.mrb")
    assert scene.GetNumberOfNodes() == before
