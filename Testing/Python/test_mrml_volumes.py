# SPDX-License-Identifier: Apache-2.0
"""Volume nodes are converted to volumes and back voxel for voxel, with any geometry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from mrml_toys import GEOMETRIES, OBLIQUE, SHEAR, add_node, affine, random_volume

from LiverXAILib.errors import InputError
from LiverXAILib.mrml import volume_from_node, volume_to_node
from LiverXAILib.volumes.volume import LPS_TO_RAS, Grid, Volume


def add_transform(scene, node, matrix):
    """A linear transform (RAS mm) above `node`."""
    import slicer
    import slicer.util

    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(transform, matrix)
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def world_position(node, ijk):
    """The position of a voxel according to Slicer: RAS mm, using only VTK."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    point = matrix.MultiplyPoint((*ijk, 1.0))[:3]
    if node.GetParentTransformNode() is not None:
        to_world = vtk.vtkGeneralTransform()
        node.GetParentTransformNode().GetTransformToWorld(to_world)
        point = to_world.TransformPoint(point)
    return np.array(point)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_volume_survives_the_way_through_a_node(scene, name):
    volume = random_volume(GEOMETRIES[name])
    node = volume_to_node(volume, scene, "CT")
    back = volume_from_node(node)
    assert back.array.dtype == volume.array.dtype
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.ijk_to_lps, volume.ijk_to_lps, rtol=0, atol=1e-12)
    for ijk in ((0, 0, 0), (5, 6, 4), (1, 2, 3)):
        np.testing.assert_allclose(world_position(node, ijk), volume.grid.to_lps(ijk) * (-1, -1, 1), atol=1e-10)


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if "sheared" not in name])
def test_a_file_that_slicer_loaded_lies_where_simpleitk_says(scene, tmp_path, name):
    import slicer.util

    matrix = GEOMETRIES[name]
    image = sitk.GetImageFromArray(random_volume(matrix).array)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetDirection((matrix[:3, :3] / spacing).ravel())
    image.SetOrigin(matrix[:3, 3])
    sitk.WriteImage(image, str(tmp_path / "ct.nrrd"))
    volume = volume_from_node(slicer.util.loadVolume(str(tmp_path / "ct.nrrd"), {}))
    # Slicer flips a left-handed file, so voxels are compared by their position in the patient.
    for index in np.random.default_rng(1).integers(0, image.GetSize(), (20, 3)).tolist():
        ijk = volume.grid.to_ijk(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(ijk, np.rint(ijk), atol=1e-6)
        i, j, k = np.rint(ijk).astype(int)
        assert volume.array[k, j, i] == image[index]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_the_type_of_the_voxels_is_kept(scene, dtype):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    back = volume_from_node(volume_to_node(Volume(array, affine(OBLIQUE)), scene, "CT"))
    assert back.array.dtype == dtype
    np.testing.assert_array_equal(back.array, array)


def test_types_that_vtk_does_not_know_are_widened(scene):
    half = np.linspace(0, 1, 24).reshape(2, 3, 4).astype(np.float16)
    back = volume_from_node(volume_to_node(Volume(half, np.eye(4)), scene, "CT"))
    assert back.array.dtype == np.float32
    np.testing.assert_array_equal(back.array, half)
    mask = volume_from_node(volume_to_node(Volume(half > 0.5, np.eye(4)), scene, "mask"))
    np.testing.assert_array_equal(mask.array, half > 0.5)


@pytest.mark.parametrize("direction", [np.diag([-1.0, -1.0, 1.0]), OBLIQUE, OBLIQUE * [1, -1, 1], SHEAR])
def test_a_parent_transform_moves_the_volume(scene, direction):
    volume = random_volume(affine(direction))
    node = add_node(scene, volume.array, volume.grid.ijk_to_ras)
    turn = np.eye(4)
    turn[:3, :3] = OBLIQUE.T * [1.0, 1.1, 1.0]
    turn[:3, 3] = (10.0, -20.0, 30.0)
    outer = add_transform(scene, node, turn)
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    add_transform(scene, outer, mirror)
    moved = volume_from_node(node)
    np.testing.assert_array_equal(moved.array, volume.array)
    np.testing.assert_allclose(moved.ijk_to_lps, LPS_TO_RAS @ mirror @ turn @ volume.grid.ijk_to_ras, atol=1e-9)
    for ijk in ((0, 0, 0), (3, 1, 4)):
        np.testing.assert_allclose(moved.grid.to_lps(ijk) * (-1, -1, 1), world_position(node, ijk), atol=1e-9)
    assert "warnings" not in moved.metadata


def displacement_transform(scene, node, displacement):
    """A displacement field (RAS mm → RAS mm) above `node`, given at the corners of a box of 400 mm."""
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    grid = vtk.vtkImageData()
    grid.SetDimensions(3, 3, 3)
    grid.SetOrigin(-200.0, -200.0, 200.0)
    grid.SetSpacing(200.0, 200.0, 200.0)
    grid.AllocateScalars(vtk.VTK_DOUBLE, 3)
    points = np.array([grid.GetPoint(index) for index in range(27)])
    vtk_to_numpy(grid.GetPointData().GetScalars())[:] = displacement(points)
    transform = slicer.vtkOrientedGridTransform()
    transform.SetDisplacementGridData(grid)
    parent = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "acquisition transform")
    parent.SetAndObserveTransformToParent(transform)
    node.SetAndObserveTransformNodeID(parent.GetID())


def test_a_gantry_tilt_that_slicer_wrote_as_a_displacement_field_is_taken_as_the_shear_it_is(scene):
    volume = random_volume(affine(np.eye(3)))
    node = add_node(scene, volume.array, volume.grid.ijk_to_ras)
    displacement_transform(scene, node, lambda points: np.outer(0.33 * (points[:, 2] - 404.125), (0, 1, 0)))
    tilted = volume_from_node(node)
    shear = np.eye(4)
    shear[1, 2], shear[1, 3] = 0.33, -0.33 * 404.125
    # VTK computes with such a field to about 0.0003 mm.
    truth = Grid(volume.shape, LPS_TO_RAS @ shear @ volume.grid.ijk_to_ras)
    assert tilted.grid.matches(truth, tolerance_mm=1e-3)
    assert not tilted.grid.matches(volume.grid, tolerance_mm=1.0)
    assert "warnings" not in tilted.metadata


def test_under_a_warp_the_volume_is_taken_as_it_was_acquired_and_a_warning_says_so(scene):
    volume = random_volume(affine(np.eye(3)))
    node = add_node(scene, volume.array, volume.grid.ijk_to_ras)
    displacement_transform(scene, node, lambda points: 0.01 * points * points[:, [1, 2, 0]])
    taken = volume_from_node(node)
    np.testing.assert_allclose(taken.ijk_to_lps, volume.ijk_to_lps, atol=1e-12)
    assert "non-linear transform" in taken.metadata["warnings"][0]


def test_a_volume_does_not_change_with_the_node_that_it_came_from(scene):
    import slicer.util

    node = add_node(scene, np.zeros((3, 4, 5), np.int16), np.eye(4))
    volume = volume_from_node(node)
    slicer.util.arrayFromVolume(node)[:] = 7
    assert not volume.array.any()


def test_nodes_that_are_no_ct_are_refused_in_words(scene):
    import slicer.util

    with pytest.raises(InputError, match="no voxels"):
        volume_from_node(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"))
    color = slicer.util.addVolumeFromArray(
        np.zeros((3, 4, 5, 3), np.uint8), nodeClassName="vtkMRMLVectorVolumeNode", name="photo"
    )
    with pytest.raises(InputError, match="3 values in each voxel"):
        volume_from_node(color)
    with pytest.raises(InputError, match="single slice"):
        volume_from_node(add_node(scene, np.zeros((1, 4, 5), np.int16), np.eye(4)))
    flat = add_node(scene, np.zeros((3, 4, 5), np.int16), np.eye(4))
    add_transform(scene, flat, np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(InputError, match="degenerate geometry"):
        volume_from_node(flat)


def test_the_bridge_is_found_without_importing_slicer_and_needs_no_torch():
    code = (
        "import sys; from LiverXAILib.mrml import scene_available; available = scene_available(); "
        "early = 'slicer' in sys.modules; import LiverXAILib.mrml.results, LiverXAILib.mrml.display, "
        "LiverXAILib.mrml.scene; print(available, early, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "False", "False"]


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="Linux with large pages of memory is needed"
)
def test_a_large_image_lies_in_large_pages_and_a_small_one_is_left_alone():
    # In a new process, because numpy also requests large pages, and memory that it has freed keeps them.
    subprocess.run([sys.executable, "-c", PAGES_OF_IMAGES], check=True)


PAGES_OF_IMAGES = """
from pathlib import Path
import numpy as np
from LiverXAILib.mrml.volumes import blank_image

def flags(address):
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            first, last = (int(end, 16) for end in words[0].split("-"))
            inside = first <= address < last
        elif inside and words[0] == "VmFlags:":
            return words[1:]
    raise AssertionError("this address is in no piece of memory")

_image, voxels = blank_image((64, 64, 64), np.dtype(np.int16))
assert "hg" not in flags(voxels.ctypes.data + voxels.nbytes // 2)
for dtype in (np.int16, np.float32):
    _image, voxels = blank_image((256, 256, 256), np.dtype(dtype))
    assert "hg" in flags(voxels.ctypes.data + voxels.nbytes // 2)
    voxels[:] = 1
    assert voxels.min() == 1
"""
