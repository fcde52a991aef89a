# SPDX-License-Identifier: Apache-2.0
"""Convert volume nodes to :class:`Volume` and back without loss.

A node gives the position of its voxels by a matrix to its own coordinate system (RAS) and, possibly, a parent transform
from there to the world (RAS). A :class:`Volume` has one matrix, so both are composed; results are placed like the node
that they belong to, under the same transform, and follow it when the user moves it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import slicer
from vtkmodules.util.numpy_support import get_vtk_array_type, numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkCommonMath import vtkMatrix4x4
from vtkmodules.vtkCommonTransforms import vtkGeneralTransform

from ..errors import InputError
from ..volumes.intensities import validate_ct
from ..volumes.volume import LPS_TO_RAS, Grid, Volume

#: A non-linear transform counts as linear if no voxel of the image lies further than this from the linear place:
#: Slicer writes a plain gantry tilt as a displacement field.
_LINEAR_TOLERANCE_MM = 0.01
#: Images of at least this many bytes are put into large pages of memory.
_LARGE_IMAGE = 1 << 22


def volume_from_node(node: slicer.vtkMRMLScalarVolumeNode, *, copy: bool = True) -> Volume:
    """Read the voxels of a volume node and their position in the world.

    The array has the type and the axis order of the node's array. Under a non-linear transform the image is taken as it
    was acquired, before the transform, and a warning in `metadata` says so.

    :param copy: False: the array is the node's own memory, which is worthwhile for a large CT. It stays valid when the
        node is removed, but shows later changes of its voxels.
    :raises LiverXAILib.errors.InputError: no voxels, several values in each voxel, a slice instead of a volume, or a
        degenerate geometry.
    """
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise InputError(f"The volume {node.GetName()!r} has no voxels. Load it again, or choose another.")
    if image.GetNumberOfScalarComponents() != 1:
        raise InputError(
            f"The volume {node.GetName()!r} has {image.GetNumberOfScalarComponents()} values in each voxel. "
            "Choose a CT, which has one."
        )
    i, j, k = image.GetDimensions()
    if min(i, j, k) < 2:
        raise InputError(f"The volume {node.GetName()!r} is a single slice ({i}×{j}×{k}). Choose a whole CT.")
    array = voxels_of(image)
    matrix, warning = _ijk_to_lps(node)
    try:
        return Volume(array.copy() if copy else array, matrix, {"warnings": [warning]} if warning else {})
    except ValueError as error:
        raise InputError(
            f"The volume {node.GetName()!r} has a degenerate geometry (spacing, directions or transform): {error}."
        ) from error


def ct_from_node(node: slicer.vtkMRMLScalarVolumeNode, *, force: bool = False) -> Volume:
    """Read a volume node as a CT to analyze, with the checks of :func:`LiverXAILib.volumes.io.read_volume`.

    :param force: accept intensities that do not look like Hounsfield units.
    :return: HU as int16 if they are whole numbers, else float32.
    :raises LiverXAILib.errors.InputError: it is not a CT; the message says why.
    """
    volume = volume_from_node(node)
    advice = "If you are sure that it is a CT, use force=True."
    array = validate_ct(volume.array, volume.grid, f"The volume {node.GetName()!r}", force=force, advice=advice)
    metadata = {"source_format": "Slicer scene", "modality": None, "warnings": [], **volume.metadata}
    return Volume(array, volume.ijk_to_lps, metadata)


def world_grid(node: slicer.vtkMRMLVolumeNode) -> Grid:
    """Return the grid of a volume node's voxels in the world: that of :func:`volume_from_node`, without the voxels."""
    i, j, k = node.GetImageData().GetDimensions()
    return Grid((k, j, i), _ijk_to_lps(node)[0])


def volume_to_node(
    volume: Volume,
    scene: slicer.vtkMRMLScene,
    name: str,
    class_name: str = "vtkMRMLScalarVolumeNode",
    *,
    window: tuple[float, float] | None = None,
    share: bool = False,
) -> slicer.vtkMRMLScalarVolumeNode:
    """Make a volume node with the voxels of `volume`, at their position in the world, without a transform.

    Types that VTK does not have are widened: bool to uint8, float16 to float32.

    :param window: lowest and highest value of the intensity window in the views; None: Slicer derives it from the
        voxels.
    :param share: use the volume's own memory instead of a copy, where the type allows: for a scene in which nobody
        edits the voxels.
    """
    node = scene.AddNewNodeByClass(class_name, scene.GenerateUniqueName(name))
    node.SetIJKToRASMatrix(to_vtk_matrix(volume.grid.ijk_to_ras))
    if window is not None:  # set before the voxels, or Slicer would scan all of them
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().AutoWindowLevelOff()
        node.GetDisplayNode().SetWindowLevelMinMax(*window)
    if share:
        node.SetAndObserveImageData(shared_image(volume.array))
    else:
        set_voxels(node, volume.array)
    node.CreateDefaultDisplayNodes()
    return node


def set_voxels(node: slicer.vtkMRMLVolumeNode, array: np.ndarray) -> None:
    """Replace a volume node's voxels by a copy of `array` (k, j, i).

    The node gets a new image rather than new values in the old one, because states saved for undo share the old one.
    """
    node.SetAndObserveImageData(to_image(array, vtkImageData()))


def blank_image(
    shape: tuple[int, int, int], dtype: np.dtype[Any], image: vtkImageData | None = None
) -> tuple[vtkImageData, np.ndarray]:
    """Make an image of `shape` (k, j, i), its extent starting at 0, and return it with its voxels as an array to fill.

    It belongs to no node yet, so another thread may fill the array while the application continues.

    :param image: the image to be used; None: a new one.
    """
    image = vtkImageData() if image is None else image
    image.SetDimensions(*reversed(shape))
    image.AllocateScalars(get_vtk_array_type(dtype), 1)
    voxels = voxels_of(image)
    _use_large_pages(voxels)
    return image, voxels


def prepare_images(arrays: Sequence[np.ndarray], *, share: bool = False) -> Callable[[], list[vtkImageData]]:
    """Allocate images for `arrays` (k, j, i), and return a function that copies the voxels and may run in any thread.

    :param share: as for :func:`volume_to_node`: nothing is copied.
    """
    if share:
        return lambda: [shared_image(array) for array in arrays]
    blanks = [blank_image(array.shape, array.dtype) for array in arrays]

    def fill() -> list[vtkImageData]:
        for array, (_, voxels) in zip(arrays, blanks, strict=True):
            voxels[...] = array
        return [image for image, _ in blanks]

    return fill


def _use_large_pages(voxels: np.ndarray) -> None:
    """Request large pages from Linux for new voxels, as numpy does for its own arrays.

    The memory of a replaced image is freed in Slicer's thread, page by page: with small pages this was the longest step
    of showing a result.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or voxels.nbytes < _LARGE_IMAGE:
        return
    start = -(-voxels.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = voxels.ctypes.data + voxels.nbytes - start
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)  # only a hint: may fail


def voxels_of(image: vtkImageData) -> np.ndarray:
    """Return the voxels (k, j, i) of an image: its own memory, not a copy."""
    i, j, k = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(k, j, i)


def shared_image(array: np.ndarray) -> vtkImageData:
    """Make an image whose voxels are the memory of `array` (k, j, i), which lives as long as the image does."""
    image = vtkImageData()
    image.SetDimensions(*reversed(array.shape))
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=False))
    return image


def to_image(array: np.ndarray, image: vtkImageData) -> vtkImageData:
    """Fill `image` with a copy of `array` (k, j, i); its extent starts at 0."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    _, voxels = blank_image(array.shape, array.dtype, image)
    voxels[...] = array
    return image


def place_like(node: Any, reference: slicer.vtkMRMLVolumeNode) -> None:
    """Give a volume node the geometry and the parent transform of `reference`, whose grid its voxels are on."""
    matrix = vtkMatrix4x4()
    reference.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(reference.GetTransformNodeID())


def check_shape(shape: tuple[int, int, int], reference: slicer.vtkMRMLVolumeNode) -> None:
    """Raise :class:`~LiverXAILib.errors.InputError` if the shape of `reference` is not `shape`."""
    image = reference.GetImageData()
    found = image.GetDimensions()[::-1] if image else None
    if found != tuple(shape):
        raise InputError(
            f"The volume {reference.GetName()!r} has {found} voxels, the result {tuple(shape)} (k, j, i). The volume "
            "was changed after it was analyzed: analyze it again."
        )


def to_vtk_matrix(matrix: np.ndarray) -> vtkMatrix4x4:
    """Convert a 4x4 array to a VTK matrix."""
    result = vtkMatrix4x4()
    result.DeepCopy(np.asarray(matrix, dtype=np.float64).ravel().tolist())
    return result


def from_vtk_matrix(matrix: vtkMatrix4x4) -> np.ndarray:
    """Convert a VTK matrix to a 4x4 array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def world_to_local(node: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """Return the 4x4 matrix, RAS mm, from the world to the coordinates of a volume node under its linear transform.

    Nodes placed in these coordinates under the same transform have the right position in the world.
    """
    matrix = vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return from_vtk_matrix(matrix) @ np.linalg.inv(LPS_TO_RAS @ _ijk_to_lps(node)[0])


def _ijk_to_lps(node: slicer.vtkMRMLVolumeNode) -> tuple[np.ndarray, str]:
    """Return the matrix from voxels to the world, and a warning if a non-linear transform was left out."""
    vtk_matrix = vtkMatrix4x4()
    node.GetIJKToRASMatrix(vtk_matrix)
    ijk_to_local = from_vtk_matrix(vtk_matrix)
    transform = node.GetParentTransformNode()
    if transform is None:
        return LPS_TO_RAS @ ijk_to_local, ""
    if transform.IsTransformToWorldLinear():
        transform.GetMatrixTransformToWorld(vtk_matrix)
        return LPS_TO_RAS @ from_vtk_matrix(vtk_matrix) @ ijk_to_local, ""
    to_world = vtkGeneralTransform()
    transform.GetTransformToWorld(to_world)
    size = node.GetImageData().GetDimensions()
    ends = [(0.0, (n - 1) / 2, n - 1.0) for n in size[:2]]
    local = np.array([(i, j, k, 1.0) for k in range(size[2]) for j in ends[1] for i in ends[0]]) @ ijk_to_local.T
    world = np.array([(*to_world.TransformPoint(point[:3]), 1.0) for point in local])
    fit = np.linalg.lstsq(local, world, rcond=None)[0].T
    fit[3] = (0, 0, 0, 1)
    if np.linalg.norm(local @ fit.T - world, axis=1).max() <= _LINEAR_TOLERANCE_MM:
        return LPS_TO_RAS @ fit @ ijk_to_local, ""
    return LPS_TO_RAS @ ijk_to_local, (
        "The volume lies under a non-linear transform. It was analyzed as it was acquired, before the transform; "
        "harden the transform to analyze the transformed image."
    )
