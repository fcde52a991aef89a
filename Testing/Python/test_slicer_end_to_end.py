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
from LiverXAILib.volumes.box import Box, bounding_box
from LiverXAILib.volumes.io import read_labels, read_volume, write_volume

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("few_border_points")


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
    # The upper half of the liver, with the lesion, which takes half as long.
    whole, truth = read_volume(case / "image.nii.gz"), read_labels(case / "liver.nii.gz")
    # Whole slices, because a flipped heat map must not lie on the liver.
    (k, _, _), (_, j, i) = bounding_box(truth.array > 0), Box.full(whole.shape)
    box = Box(slice((k.start + k.stop) // 2, k.stop), j, i)
    ct = tmp_path / "ct.nii.gz"
    write_volume(whole.cropped(box), ct)
    script = str(ROOT / "Testing" / "Python" / "LiverXAIScriptTest.py")
    slicer_options = ["--no-main-window", "--additional-module-path", str(ROOT / "LiverXAI"), "--python-script", script]
    assert main([*slicer_options, "--input", str(ct), "--output", str(tmp_path)]) == 0

    volume = read_volume(ct)
    expected = segment(volume, load_model("default"), device="cpu")
    image = sitk.ReadImage(str(tmp_path / "segmentation.seg.nrrd"))
    layers = np.moveaxis(sitk.GetArrayFromImage(image) > 0, -1, 0)
    for label, found in zip(("liver", "tumor"), layers, strict=True):
        np.testing.assert_array_equal(found, expected.mask(label))
    for index in ((0, 0, 0), [n - 1 for n in volume.shape[::-1]]):
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), volume.grid.to_lps(index), atol=1e-3)
    reference = truth.array[box] > 0
    assert dice(layers[0], reference) > 0.9

    volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    (node,) = [one for one in volumes if not one.GetAttribute("LiverXAI.Result")]
    assert {one.GetAttribute("LiverXAI.Target") for one in find_results(scene, node, "heatmap")} == {"liver", "tumor"}
    heat = slicer.util.arrayFromVolume(find_results(scene, node, "heatmap", Target="liver")[0])
    assert heat[reference].mean() > 50 * heat[~reference].mean()  # flipped along an axis: at most 21 times
    (table,) = find_results(scene, node, "measurements")
    assert table.GetTable().GetValueByName(0, "volume_ml").ToDouble() == pytest.approx(
        layers[0].sum() * volume.grid.voxel_volume_mm3 / 1000
    )
    (segmentation,) = find_results(scene, node, "segmentation")
    assert json.loads(segmentation.GetAttribute("LiverXAI.Model"))["name"] == "default"
    assert (tmp_path / "scene.mrb").stat().st_size > 1e6
