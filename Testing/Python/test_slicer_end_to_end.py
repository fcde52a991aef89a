# SPDX-License-Identifier: Apache-2.0
"""The bundled model in Slicer's scene: on a phantom by the module's self-test, on a real CT by a script."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicerhost
from slicerhost.application import main
from slicerhost.modules import load_module
from toys import dice

from LiverXAILib.inference import segment
from LiverXAILib.models import load_model
from LiverXAILib.mrml import find_results
from LiverXAILib.volumes.io import read_labels, read_volume

ROOT = Path(__file__).parents[2]


def test_the_self_test_passes_in_the_host(scene):
    load_module(slicerhost.start(), ROOT / "LiverXAI" / "LiverXAI.py")
    import slicer

    slicer.selfTests["LiverXAI"]()
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert [node.GetAttribute("LiverXAI.Result") for node in nodes] == ["segmentation"]


@pytest.mark.skipif("LIVERXAI_TEST_DATA" not in os.environ, reason="needs real CT: LIVERXAI_TEST_DATA is not set")
def test_a_script_analyzes_a_real_ct_to_the_same_voxels_as_the_command_line(scene, tmp_path):
    import slicer.util

    case = Path(os.environ["LIVERXAI_TEST_DATA"]) / "ct" / "hcc015_3"
    script = str(ROOT / "Testing" / "Python" / "LiverXAIScriptTest.py")
    slicer_options = ["--no-main-window", "--additional-module-path", str(ROOT / "LiverXAI"), "--python-script", script]
    status = main([*slicer_options, "--input", str(case / "image.nii.gz"), "--output", str(tmp_path)])
    assert status == 0

    volume = read_volume(case / "image.nii.gz")
    expected = segment(volume, load_model("default"), device="cpu")
    image = sitk.ReadImage(str(tmp_path / "segmentation.seg.nrrd"))
    layers = np.moveaxis(sitk.GetArrayFromImage(image) > 0, -1, 0)
    for label, found in zip(("liver", "tumor"), layers, strict=True):
        np.testing.assert_array_equal(found, expected.mask(label))
    for index in ((0, 0, 0), [n - 1 for n in volume.shape[::-1]]):
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), volume.grid.to_lps(index), atol=1e-3)
    reference = read_labels(case / "liver.nii.gz").array > 0
    assert dice(layers[0], reference) > 0.9

    (ct,) = [n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if not n.GetAttribute("LiverXAI.Result")]
    assert {node.GetAttribute("LiverXAI.Target") for node in find_results(scene, ct, "heatmap")} == {"liver", "tumor"}
    heat = slicer.util.arrayFromVolume(find_results(scene, ct, "heatmap", Target="liver")[0])
    assert heat[reference].mean() > 2 * heat[~reference].mean()
    (table,) = find_results(scene, ct, "measurements")
    assert table.GetTable().GetValueByName(0, "volume_ml").ToDouble() == pytest.approx(
        layers[0].sum() * volume.grid.voxel_volume_mm3 / 1000
    )
    (node,) = find_results(scene, ct, "segmentation")
    assert json.loads(node.GetAttribute("LiverXAI.Model"))["name"] == "default"
    assert (tmp_path / "scene.mrb").stat().st_size > 1e6
