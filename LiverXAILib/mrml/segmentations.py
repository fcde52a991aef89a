# SPDX-License-Identifier: Apache-2.0
"""A :class:`Segmentation` as a segmentation node, and a (possibly edited) segmentation node read back.

Structures that contain each other are layers: the segment "liver" includes its tumors, as the anatomical term and the
measured volume do, and the tumors lie in a second layer above it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import slicer
import vtk

from .._version import __version__
from ..errors import UsageError
from ..inference.lesions import lesion_components
from ..inference.segmentation import Segmentation
from ..models.spec import LabelSpec, ModelSpec
from ..volumes.volume import Grid, Volume, bounding_box
from .nodes import get_attribute, result_node, set_attributes
from .volumes import check_shape, to_image, world_grid

#: Attribute that tells whether a new result has other voxels.
LABELS_CHECKSUM = "LiverXAI.LabelsSHA256"
_LABEL_TAG, _COLOR_TAG = "LiverXAI.Label", "LiverXAI.Color"
_TYPE_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGION_CONTEXT = "Anatomic codes - DICOM master list"
_BINARY = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
_SURFACE = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
#: How solid an organ is drawn in 3-D, so that the lesions in it are seen.
_ORGAN_OPACITY = 0.35


@dataclass(frozen=True)
class _Segment:
    """A segment to be: `value` is its number in the image `layer`, which it shares with others."""

    identifier: str
    name: str
    spec: LabelSpec
    color: tuple[float, float, float]
    layer: vtk.vtkImageData
    value: int


def segmentation_to_node(
    segmentation: Segmentation,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    *,
    lesion_segments: bool = False,
) -> slicer.vtkMRMLSegmentationNode:
    """Show `segmentation` as the CT's segmentation node; an earlier one is updated in place.

    :param volume_node: the CT, on whose grid the labels lie.
    :param lesion_segments: one segment for each lesion instead of one for all tumors.
    :raises LiverXAILib.errors.InputError: the CT has another number of voxels than the labels.
    """
    check_shape(segmentation.labels.shape, volume_node)
    scene.SaveStateForUndo()
    return update_segmentation_node(segmentation, scene, volume_node, lesion_segments)


def update_segmentation_node(
    segmentation: Segmentation,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    lesion_segments: bool,
) -> slicer.vtkMRMLSegmentationNode:
    """:func:`segmentation_to_node` without the checks and without a state for undo."""
    node, created = result_node(
        scene,
        volume_node,
        "segmentation",
        "vtkMRMLSegmentationNode",
        f"{volume_node.GetName()} segmentation",
    )
    with modified_at_end(node):
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
        node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        node.CreateDefaultDisplayNodes()
        if created:
            display = node.GetDisplayNode()
            display.SetVisibility2DOutline(True)
            display.SetVisibility2DFill(False)  # the colors inside are those of the CT and of a heat map
            display.SetSliceIntersectionThickness(2)
        node.SetAttribute(LABELS_CHECKSUM, sha256(np.ascontiguousarray(segmentation.labels.array).data).hexdigest())
        model = segmentation.provenance.get("model", {})
        set_attributes(
            node,
            {
                "Model": model,
                "Grid": _grid_to_json(world_grid(volume_node)),
                "StageGrids": {name: _grid_to_json(grid) for name, grid in segmentation.stage_grids.items()},
                "Provenance": dict(segmentation.provenance),
            },
        )
        segments = _layered_segments(segmentation, volume_node, lesion_segments)
        algorithm = f"LiverXAI {__version__} {model.get('name', '')} {model.get('version', '')}".strip()
        _update_segments(node, segments, algorithm[:64])  # a DICOM long string has 64 characters
    return node


def segmentation_from_node(
    node: slicer.vtkMRMLSegmentationNode, volume_node: slicer.vtkMRMLScalarVolumeNode, model: ModelSpec
) -> Segmentation:
    """Read a segmentation node as it is now, on the CT's grid: ours, edited by hand, or somebody else's.

    A segment is taken for the label that made it, else by its name, else by its terminology. Segments that are none of
    the model's labels are left out.

    :param volume_node: the CT; segments on another grid are resampled to it.
    :param model: the labels to look for; with its stage grids if the node still is where they were computed.
    :raises LiverXAILib.errors.UsageError: no segment is one of the model's labels.
    """
    segments = node.GetSegmentation()
    found: dict[str, list[str]] = {}
    for identifier in segments.GetSegmentIDs():
        spec = _label_of(segments.GetSegment(identifier), model)
        if spec is not None:
            found.setdefault(spec.name, []).append(identifier)
    if not found:
        names = [segments.GetSegment(identifier).GetName() for identifier in segments.GetSegmentIDs()]
        raise UsageError(
            f"The segmentation {node.GetName()!r} has no segment called {[x.name for x in model.labels]}; it has "
            f"{names}. Rename the segment of the liver to 'liver'."
        )
    grid = world_grid(volume_node)
    labels = np.zeros(grid.shape, dtype=np.uint8)
    for spec in model.labels:  # later labels are parts of earlier ones
        if spec.name in found:
            labels[_read_mask(node, found[spec.name], volume_node)] = spec.value
    stage_grids = {}
    made_here = get_attribute(node, "Model") or {}
    if made_here.get("sha256") == [s for stage in model.stages for s in stage.sha256]:
        then = get_attribute(node, "Grid")
        if then is not None and _grid_from_json(then).matches(grid):
            stage_grids = {name: _grid_from_json(x) for name, x in get_attribute(node, "StageGrids").items()}
    return Segmentation(
        Volume(labels, grid.ijk_to_lps),
        model.labels,
        stage_grids=stage_grids,
        provenance={"model": made_here, "source": "segmentation node", "warnings": []},
    )


@contextmanager
def modified_at_end(node: Any) -> Iterator[None]:
    """Collect a node's modified events into one at the end."""
    previous = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(previous)


def terminology(spec: LabelSpec) -> str:
    """The terminology entry of a label, as Slicer stores it in a segment's tag."""

    def triplet(code: tuple[str, str, str] | None) -> str:
        return "^".join(code or ("", "", ""))

    return "~".join(
        (
            _TYPE_CONTEXT,
            triplet(spec.category),
            triplet(spec.type),
            triplet(None),
            _REGION_CONTEXT,
            triplet(spec.region),
            triplet(None),
        )
    )


def _layered_segments(
    segmentation: Segmentation, volume_node: slicer.vtkMRMLVolumeNode, lesion_segments: bool
) -> list[_Segment]:
    """The segments, with one image for each depth of nesting."""
    by_name = {spec.name: spec for spec in segmentation.specs}
    depths: dict[int, list[LabelSpec]] = {}
    for spec in segmentation.specs:
        depth, parent = 0, spec.parent
        while parent in by_name:
            depth, parent = depth + 1, by_name[parent].parent
        depths.setdefault(depth, []).append(spec)
    result = []
    for _, specs in sorted(depths.items()):
        array = np.zeros(segmentation.labels.shape, dtype=np.uint8)
        numbered: list[tuple[str, str, LabelSpec, tuple[float, float, float], int]] = []
        for spec in specs:
            if lesion_segments and spec.parent is not None:
                lesions = lesion_components(segmentation, spec.name)
                count = int(lesions.max())
                first = max((value for *_, value in numbered), default=0)
                if first + count > np.iinfo(array.dtype).max:
                    array = array.astype(np.uint16)
                array[lesions > 0] = (first + lesions[lesions > 0]).astype(array.dtype)
                numbered += [
                    (f"{spec.name}_{n}", f"lesion {n}", spec, _lesion_color(spec, n), first + n)
                    for n in range(1, count + 1)
                ]
            else:
                array[segmentation.mask(spec.name)] = spec.value
                numbered.append((spec.name, spec.name, spec, _unit_color(spec), spec.value))
        layer = _labelmap(array, volume_node)
        result += [_Segment(*segment[:4], layer, segment[4]) for segment in numbered]
    return result


def _labelmap(array: np.ndarray, volume_node: slicer.vtkMRMLVolumeNode) -> slicer.vtkOrientedImageData:
    """An image of the part of `array` that is not 0; its extent says where in the CT it lies."""
    image = slicer.vtkOrientedImageData()
    box = bounding_box(array > 0)
    if box is not None:
        to_image(array[box], image)
        image.SetExtent([n for s in reversed(box) for n in (s.start, s.stop - 1)])
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    image.SetImageToWorldMatrix(matrix)
    return image


def _update_segments(node: slicer.vtkMRMLSegmentationNode, wanted: list[_Segment], algorithm: str) -> None:
    segmentation, display = node.GetSegmentation(), node.GetDisplayNode()
    had_surface = segmentation.ContainsRepresentation(_SURFACE)
    if had_surface:
        segmentation.RemoveRepresentation(_SURFACE)
    segmentation.SetSourceRepresentationName(_BINARY)
    names = {segment.identifier for segment in wanted}
    for identifier in segmentation.GetSegmentIDs():
        if identifier not in names and segmentation.GetSegment(identifier).HasTag(_LABEL_TAG):
            segmentation.RemoveSegment(identifier)
    for item in wanted:
        segment = segmentation.GetSegment(item.identifier)
        created = segment is None
        if created:
            segment = slicer.vtkSegment()
            segment.SetName(item.name)
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology(item.spec))
        color = " ".join(f"{part:.6f}" for part in item.color)
        unchanged = created or " ".join(f"{part:.6f}" for part in segment.GetColor()) == _tag(segment, _COLOR_TAG)
        if unchanged:
            segment.SetColor(item.color)
            segment.SetTag(_COLOR_TAG, color)
        segment.SetTag(_LABEL_TAG, item.spec.name)
        segment.SetTag("DICOM.SegmentAlgorithmType", "AUTOMATIC")
        segment.SetTag("DICOM.SegmentAlgorithmName", algorithm)
        segment.SetLabelValue(item.value)
        segment.AddRepresentation(_BINARY, item.layer)
        if created:
            segmentation.AddSegment(segment, item.identifier)
            if item.spec.parent is None:
                display.SetSegmentOpacity3D(item.identifier, _ORGAN_OPACITY)
    if had_surface:
        node.CreateClosedSurfaceRepresentation()


def _tag(segment: slicer.vtkSegment, name: str) -> str:
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""


def _label_of(segment: slicer.vtkSegment, model: ModelSpec) -> LabelSpec | None:
    """The model's label that a segment stands for."""
    for name in (_tag(segment, _LABEL_TAG), segment.GetName().strip().lower()):
        for spec in model.labels:
            if spec.name == name:
                return spec
    fields = _tag(segment, slicer.vtkSegment.GetTerminologyEntryTagName()).split("~")
    for spec in model.labels:
        if len(fields) == 7 and fields[2].split("^")[:2] == list(spec.type[:2]):
            return spec
    return None


def _read_mask(
    node: slicer.vtkMRMLSegmentationNode, identifiers: list[str], volume_node: slicer.vtkMRMLScalarVolumeNode
) -> np.ndarray:
    """Where any of the segments is, on the CT's grid: bool (k, j, i)."""
    scene = volume_node.GetScene()
    names = vtk.vtkStringArray()
    for identifier in identifiers:
        names.InsertNextValue(identifier)
    labelmap = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "LiverXAI temporary")
    try:
        slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(node, names, labelmap, volume_node)
        return slicer.util.arrayFromVolume(labelmap) > 0
    finally:
        if labelmap.GetDisplayNode():
            scene.RemoveNode(labelmap.GetDisplayNode().GetColorNode())
            scene.RemoveNode(labelmap.GetDisplayNode())
        scene.RemoveNode(labelmap)


def _unit_color(spec: LabelSpec) -> tuple[float, float, float]:
    r, g, b = spec.color
    return r / 255, g / 255, b / 255


def _lesion_color(spec: LabelSpec, number: int) -> tuple[float, float, float]:
    """The label's color for the first lesion; hues a golden section further for the next ones."""
    hue, saturation, value = colorsys.rgb_to_hsv(*_unit_color(spec))
    return colorsys.hsv_to_rgb((hue + (number - 1) * 0.618034) % 1.0, max(saturation, 0.5), value)


def _grid_to_json(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "ijk_to_lps": grid.ijk_to_lps.tolist()}


def _grid_from_json(data: dict[str, Any]) -> Grid:
    k, j, i = data["shape"]
    return Grid((k, j, i), np.array(data["ijk_to_lps"]))
