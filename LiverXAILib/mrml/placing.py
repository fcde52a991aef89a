# SPDX-License-Identifier: Apache-2.0
"""Keep the results of a CT on it when it moves: under another transform, or by its own geometry.

Slicer moves a volume itself when a transform is hardened or the volume is centered. The results have the geometry that
the CT had before; without moving them as well, outlines and heat maps would lie over other tissue.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from .nodes import all_results, get_attribute, set_attributes
from .volumes import from_vtk_matrix, to_vtk_matrix

#: By how much elements of two matrices may differ, in mm, to be the same position.
_SAME_MM = 1e-3


def place_results(scene: slicer.vtkMRMLScene, volume_node: slicer.vtkMRMLVolumeNode) -> bool:
    """Put all results of a CT under its present transform, and move them as its own geometry was moved.

    :return: whether results were moved.
    """
    moved = False
    for node in all_results(scene, volume_node):
        if node.IsA("vtkMRMLTransformableNode"):
            moved |= place_result(node, volume_node)
    return moved


def place_result(node: Any, volume_node: slicer.vtkMRMLVolumeNode) -> bool:
    """Do :func:`place_results` for one node."""
    moved = _follow(node, volume_node)
    if node.GetTransformNodeID() == volume_node.GetTransformNodeID():
        return moved
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    return True


def remember_place(node: Any, volume_node: slicer.vtkMRMLVolumeNode) -> None:
    """Record that a result lies on its CT as both are now."""
    image = volume_node.GetImageData()
    if image is not None:
        place = {"shape": list(image.GetDimensions()), "ct": _geometry(volume_node), "own": _geometry(node)}
        set_attributes(node, {"Placed": place})


def _follow(node: Any, volume_node: slicer.vtkMRMLVolumeNode) -> bool:
    """Move a result as its CT was moved since it was placed there; not if it was moved already, or the CT resampled."""
    then = get_attribute(node, "Placed", lambda found: {key: np.array(found[key]) for key in ("shape", "ct", "own")})
    image = volume_node.GetImageData()
    if then is None or image is None or list(image.GetDimensions()) != then["shape"].tolist():
        return False
    matrix = np.array(_geometry(volume_node)) @ np.linalg.inv(then["ct"])
    if np.allclose(matrix, np.eye(4), rtol=0, atol=_SAME_MM):
        return False
    is_there = np.allclose(_geometry(node), matrix @ then["own"], rtol=0, atol=_SAME_MM)
    if node.IsA("vtkMRMLSegmentationNode"):
        measured = get_attribute(node, "Measured")
        if measured is not None:  # they are the same voxels, so nothing was edited
            states = {key: [(matrix @ one[0]).tolist(), *one[1:]] if one else [] for key, one in measured.items()}
            set_attributes(node, {"Measured": states})
        if not is_there:
            node.ApplyTransformMatrix(to_vtk_matrix(matrix))
    elif not is_there:
        node.SetIJKToRASMatrix(to_vtk_matrix(matrix @ _geometry(node)))
    remember_place(node, volume_node)
    return not is_there


def _geometry(node: Any) -> list[list[float]]:
    """Return the 4x4 matrix from voxels to the coordinates of a volume, or of a segmentation's reference image."""
    matrix = vtkMatrix4x4()
    if node.IsA("vtkMRMLSegmentationNode"):
        converter, image = slicer.vtkSegmentationConverter, slicer.vtkOrientedImageData()
        name = converter.GetReferenceImageGeometryParameterName()
        converter.DeserializeImageGeometry(node.GetSegmentation().GetConversionParameter(name), image, False)
        image.GetImageToWorldMatrix(matrix)
    else:
        node.GetIJKToRASMatrix(matrix)
    found: list[list[float]] = from_vtk_matrix(matrix).tolist()
    return found
