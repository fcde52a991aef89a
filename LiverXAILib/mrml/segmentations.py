# SPDX-License-Identifier: Apache-2.0
"""Show a :class:`Segmentation` as a segmentation node, and read a (possibly edited) segmentation node back.

Structures that contain each other are stored in layers: the segment "liver" includes its tumors, as the anatomical
term and the measured volume do, and the tumors are in a second layer above it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import slicer
from vtkmodules.vtkCommonCore import reference, vtkStringArray
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from .._version import __version__
from ..analysis import Decision
from ..errors import UsageError
from ..inference.lesions import numbered_lesions
from ..inference.segmentation import Segmentation
from ..inference.sensitivity import STANDARD
from ..labels.terminology import algorithm_type, parse_terminology_entry
from ..labels.vocabulary import STRUCTURES, structure_of
from ..models.spec import LabelSpec, ModelSpec
from ..volumes.box import Box, bounding_box
from ..volumes.volume import Grid, Volume
from .nodes import get_attribute, result_node, set_attributes
from .placing import remember_place
from .volumes import check_shape, from_vtk_matrix, to_image, voxels_of, world_grid

#: Attribute with the checksum of the measured labels (:func:`LiverXAILib.inference.segmentation.labels_checksum`).
LABELS_CHECKSUM = "LiverXAI.LabelsSHA256"
_LABEL_TAG, _COLOR_TAG = "LiverXAI.Label", "LiverXAI.Color"
#: The representation of segments in which they are stored.
BINARY = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
_SURFACE = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
#: Opacity of an organ in 3D, so that the lesions in it are visible.
_ORGAN_OPACITY = 0.35


@dataclass(frozen=True)
class _Segment:
    """A future segment: `value` is its label value in the image number `layer`, which it shares with others."""

    identifier: str
    name: str
    spec: LabelSpec
    color: tuple[float, float, float]
    layer: int
    value: int


@dataclass(frozen=True, eq=False)
class SegmentLayers:
    """The segments of a segmentation as images: computed by :func:`segment_layers`, shown by a node.

    :param images: one for each layer; its extent gives the voxels of the CT that it covers, and is empty if there are
        none.
    :param checksum: of all labels.
    """

    segments: tuple[_Segment, ...]
    images: tuple[Any, ...]
    checksum: str


def segmentation_to_node(
    segmentation: Segmentation,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    *,
    lesion_segments: bool = False,
) -> slicer.vtkMRMLSegmentationNode:
    """Show `segmentation` as the CT's segmentation node; an earlier one is updated in place.

    :param volume_node: the CT, whose grid the labels are on.
    :param lesion_segments: one segment for each lesion instead of one for all tumors.
    :raises LiverXAILib.errors.InputError: the CT has another number of voxels than the labels.
    """
    check_shape(segmentation.labels.shape, volume_node)
    scene.SaveStateForUndo()
    return update_segmentation_node(
        segmentation, scene, volume_node, segment_layers(segmentation, lesion_segments=lesion_segments)
    )


def segment_layers(segmentation: Segmentation, *, lesion_segments: bool = False) -> SegmentLayers:
    """Compute the slow part of :func:`segmentation_to_node`; touches no scene, so it may run in any thread."""
    by_name = {spec.name: spec for spec in segmentation.specs}
    depths: dict[int, list[LabelSpec]] = {}
    for spec in segmentation.specs:
        depth, parent = 0, spec.parent
        while parent in by_name:
            depth, parent = depth + 1, by_name[parent].parent
        depths.setdefault(depth, []).append(spec)
    segments: list[_Segment] = []
    images = []
    found = segmentation.box or Box.full((0, 0, 0))
    for number, (_, specs) in enumerate(sorted(depths.items())):
        array = np.zeros(found.shape, dtype=np.uint8)
        last = 0
        for spec in specs:
            if lesion_segments and spec.parent is not None:
                own, lesions = numbered_lesions(segmentation, spec.name)
                count = int(lesions.max(initial=0))
                if last + count > np.iinfo(array.dtype).max:
                    array = array.astype(np.uint16)
                array[own.relative_to(found)][lesions > 0] = (last + lesions[lesions > 0]).astype(array.dtype)
                segments += [
                    _Segment(f"{spec.name}_{n}", f"lesion {n}", spec, _lesion_color(spec, n), number, last + n)
                    for n in range(1, count + 1)
                ]
                last += count
            else:
                array[segmentation.mask(spec.name, found)] = spec.value
                segments.append(_Segment(spec.name, spec.name, spec, _unit_color(spec), number, spec.value))
                last = max(last, spec.value)
        images.append(_layer_image(array, found))
    return SegmentLayers(tuple(segments), tuple(images), segmentation.checksum)


def update_segmentation_node(
    segmentation: Segmentation,
    scene: slicer.vtkMRMLScene,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    layers: SegmentLayers,
) -> slicer.vtkMRMLSegmentationNode:
    """Do :func:`segmentation_to_node` without the checks and without saving a state for undo."""
    node, created = result_node(
        scene,
        volume_node,
        "segmentation",
        f"{volume_node.GetName()} segmentation",
    )
    with modified_at_end(node):
        # In this order: the reference geometry is relative to the node's transform.
        node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
        remember_place(node, volume_node)
        node.CreateDefaultDisplayNodes()
        if created:
            display = node.GetDisplayNode()
            display.SetVisibility2DOutline(True)
            display.SetVisibility2DFill(False)  # a fill would hide the CT and the heat map
            display.SetSliceIntersectionThickness(2)
        node.SetAttribute(LABELS_CHECKSUM, layers.checksum)
        model = segmentation.provenance.get("model", {})
        set_attributes(
            node,
            {
                "Model": model,
                "Provenance": dict(segmentation.provenance),
            },
        )
        remember_grids(node, segmentation)
        algorithm = f"LiverXAI {__version__} {model.get('name', '')} {model.get('version', '')}".strip()
        matrix = vtkMatrix4x4()
        volume_node.GetIJKToRASMatrix(matrix)
        for image in layers.images:
            image.SetImageToWorldMatrix(matrix)
        _update_segments(node, layers.segments, layers.images, algorithm[:64])  # DICOM long strings hold 64 characters
        mark_algorithm_type(node, segmentation)
    return node


def mark_algorithm_type(node: slicer.vtkMRMLSegmentationNode, segmentation: Segmentation) -> None:
    """Record for DICOM in LiverXAI's segments whether a reader has changed the model's segmentation."""
    segments = node.GetSegmentation()
    for identifier in segments.GetSegmentIDs():
        segment = segments.GetSegment(identifier)
        if segment.HasTag(_LABEL_TAG):
            segment.SetTag("DICOM.SegmentAlgorithmType", algorithm_type(segmentation.provenance))


def segmentation_from_node(
    node: slicer.vtkMRMLSegmentationNode, volume_node: slicer.vtkMRMLScalarVolumeNode, model: ModelSpec
) -> Segmentation:
    """Read a segmentation node as it is now, on the CT's grid: from LiverXAI, edited by hand, or from elsewhere.

    A segment is matched to the label that it was made from, else by its name, else by its terminology. Segments that
    match none of the model's labels are left out.

    :param volume_node: the CT; segments on another grid are resampled to it.
    :param model: the labels to look for; with its stage grids if the node is still where they were computed.
    :raises LiverXAILib.errors.UsageError: no segment is one of the model's labels.
    """
    return read_segments(node, volume_node, model)()


def read_segments(
    node: slicer.vtkMRMLSegmentationNode, volume_node: slicer.vtkMRMLScalarVolumeNode, model: ModelSpec
) -> Callable[[], Segmentation]:
    """Do :func:`segmentation_from_node` in two parts: this call collects the data of the scene, which is quick unless
    segments are on another grid than the CT; the function that it returns combines them, and may run in any thread.

    Voxels are not copied until then, so they may contain part of an edit made in the meantime. In this case
    :func:`~LiverXAILib.mrml.tokens.labels_token` has changed.
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
    pieces = [  # later labels are parts of earlier ones
        (spec.value, *_read_segment(node, identifier, volume_node))
        for spec in model.labels
        for identifier in found.get(spec.name, ())
    ]
    stage_grids: dict[str, Grid] = {}
    stage_centers: dict[str, float] = {}
    made_here = get_attribute(node, "Model") or {}
    if made_here.get("sha256") == list(model.sha256):
        then = get_attribute(node, "Grid", _grid_from_json)
        if then is not None and then.matches(grid):
            stage_grids = get_attribute(node, "StageGrids", _grids_from_json) or {}
            stage_centers = get_attribute(node, "StageCenters") or {}

    def put_together() -> Segmentation:
        labels = np.zeros(grid.shape, dtype=np.uint8)
        for value, array, number, box in pieces:
            labels[box][array == number] = value
        return Segmentation(
            Volume(labels, grid.ijk_to_lps),
            model.labels,
            stage_grids=stage_grids,
            stage_centers=stage_centers,
            provenance={"model": made_here, "source": "segmentation node", "warnings": []},
        )

    return put_together


def unused_segments(node: slicer.vtkMRMLSegmentationNode, model: ModelSpec) -> list[str]:
    """Return the names of segments with voxels that are none of the model's labels, so that nothing counts them."""
    segments = node.GetSegmentation()
    found = (segments.GetSegment(identifier) for identifier in segments.GetSegmentIDs())
    return [segment.GetName() for segment in found if _label_of(segment, model) is None and _is_drawn(segment)]


def _is_drawn(segment: slicer.vtkSegment) -> bool:
    """Return whether a segment has voxels; it may share its image with others."""
    image = segment.GetRepresentation(BINARY)
    return image is not None and not image.IsEmpty() and bool((voxels_of(image) == segment.GetLabelValue()).any())


def remember_grids(node: slicer.vtkMRMLSegmentationNode, segmentation: Segmentation) -> None:
    """Store the grid of the CT when a result was measured, and the grids and centers of the stages."""
    set_attributes(
        node,
        {
            "Grid": _grid_to_json(segmentation.labels.grid),
            "StageGrids": {name: _grid_to_json(grid) for name, grid in segmentation.stage_grids.items()},
            "StageCenters": dict(segmentation.stage_centers),
        },
    )


def moved_since(node: slicer.vtkMRMLSegmentationNode | None, volume_node: slicer.vtkMRMLScalarVolumeNode) -> np.ndarray:
    """Return the 4x4 matrix, LPS mm, from positions in a result's measurements to those after moving the CT."""
    then = get_attribute(node, "Grid", _grid_from_json) if node is not None else None
    if then is None or volume_node.GetImageData() is None:
        return np.eye(4)
    return world_grid(volume_node).ijk_to_lps @ np.linalg.inv(then.ijk_to_lps)


def decisions_of(
    node: slicer.vtkMRMLSegmentationNode, volume_node: slicer.vtkMRMLScalarVolumeNode
) -> tuple[Decision, ...]:
    """Return a reader's decisions about a result, with their positions after the CT was moved."""
    decisions = get_attribute(node, "Decisions", lambda found: [*map(Decision.from_dict, found)]) or ()
    matrix = moved_since(node, volume_node)
    return tuple(
        replace(
            one,
            place_lps_mm=None if one.place_lps_mm is None else moved_point(matrix, one.place_lps_mm),
            points_lps_mm=tuple(moved_point(matrix, point) for point in one.points_lps_mm),
        )
        for one in decisions
    )


def moved_point(matrix: np.ndarray, point: Sequence[float]) -> tuple[float, float, float]:
    """Return a point after a 4x4 transform."""
    x, y, z = matrix[:3, :3] @ np.asarray(point, dtype=float) + matrix[:3, 3]
    return float(x), float(y), float(z)


def remove_merged_segments(node: slicer.vtkMRMLSegmentationNode, layers: SegmentLayers, model: ModelSpec) -> None:
    """Remove segments that the user drew for the model's labels: `layers` contain their voxels by now.

    If kept, they would restore what a reader has rejected.
    """
    segments, wanted = node.GetSegmentation(), {segment.identifier for segment in layers.segments}
    for identifier in segments.GetSegmentIDs():
        if identifier not in wanted and _label_of(segments.GetSegment(identifier), model) is not None:
            segments.RemoveSegment(identifier)


def sensitivity_of(node: slicer.vtkMRMLSegmentationNode) -> str:
    """Return the sensitivity of a result (see :func:`LiverXAILib.inference.sensitivity.choose_point`)."""
    provenance = get_attribute(node, "Provenance") or {}
    asked: str = provenance.get("sensitivity", {}).get("asked", STANDARD)
    return asked


def require_segment(node: slicer.vtkMRMLSegmentationNode, model: ModelSpec, label: str) -> None:
    """Raise an error unless a segmentation node has a segment for one of the model's labels.

    Without it, the label would consist of its remaining parts only: "liver" of the tumors alone.

    :raises LiverXAILib.errors.UsageError: it has none.
    """
    segments = node.GetSegmentation()
    for identifier in segments.GetSegmentIDs():
        spec = _label_of(segments.GetSegment(identifier), model)
        if spec is not None and spec.name == label:
            return
    raise UsageError(
        f"The segmentation {node.GetName()!r} has no segment {label!r}, so it can be neither explained nor "
        f"measured. Undo its deletion, name a segment {label!r}, or press Apply to segment again."
    )


@contextmanager
def modified_at_end(node: Any) -> Iterator[None]:
    """Combine a node's modified events into one at the end."""
    previous = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(previous)


def _layer_image(array: np.ndarray, place: Box) -> Any:
    """Make an image of the nonzero part of `array` (k, j, i), which covers `place`; its extent is the position."""
    image, box = slicer.vtkOrientedImageData(), bounding_box(array)
    if box is not None:
        to_image(array[box], image)
        image.SetExtent([n for s in reversed(box.shifted(place.start)) for n in (s.start, s.stop - 1)])
    return image


def _update_segments(
    node: slicer.vtkMRMLSegmentationNode, wanted: tuple[_Segment, ...], images: tuple[Any, ...], algorithm: str
) -> None:
    segmentation, display = node.GetSegmentation(), node.GetDisplayNode()
    had_surface = segmentation.ContainsRepresentation(_SURFACE)
    segmentation.SetSourceRepresentationName(BINARY)
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
            segment.SetTag(
                slicer.vtkSegment.GetTerminologyEntryTagName(),
                item.spec.terminology_entry,
            )
        color = " ".join(f"{part:.6f}" for part in item.color)
        unchanged = created or " ".join(f"{part:.6f}" for part in segment.GetColor()) == _tag(segment, _COLOR_TAG)
        if unchanged:
            segment.SetColor(item.color)
            segment.SetTag(_COLOR_TAG, color)
        segment.SetTag(_LABEL_TAG, item.spec.name)
        segment.SetTag("DICOM.SegmentAlgorithmName", algorithm)
        if not _has_voxels(segment, images[item.layer], item.value):
            segment.SetLabelValue(item.value)
            segment.AddRepresentation(BINARY, images[item.layer])
            # The surface of a liver takes a second; it is kept if only lesions have changed.
            segment.RemoveRepresentation(_SURFACE)
        if created:
            segmentation.AddSegment(segment, item.identifier)
            if item.spec.parent is None:
                display.SetSegmentOpacity3D(item.identifier, _ORGAN_OPACITY)
    if had_surface:
        segmentation.CreateRepresentation(_SURFACE)


def _has_voxels(segment: slicer.vtkSegment, image: Any, value: int) -> bool:
    """Return whether a segment has this label map and label value already."""
    present = segment.GetRepresentation(BINARY)
    if present is None or present.IsEmpty() or image.IsEmpty() or segment.GetLabelValue() != value:
        return False
    places = [vtkMatrix4x4(), vtkMatrix4x4()]
    present.GetImageToWorldMatrix(places[0])
    image.GetImageToWorldMatrix(places[1])
    is_there = np.allclose(from_vtk_matrix(places[0]), from_vtk_matrix(places[1]), rtol=0, atol=1e-6)
    return bool(
        is_there and present.GetExtent() == image.GetExtent() and np.array_equal(voxels_of(present), voxels_of(image))
    )


def _tag(segment: slicer.vtkSegment, name: str) -> str:
    value = reference("")
    return str(value) if segment.GetTag(name, value) else ""


def _label_of(segment: slicer.vtkSegment, model: ModelSpec) -> LabelSpec | None:
    """Return the model's label that a segment stands for."""
    category, kind, region = parse_terminology_entry(_tag(segment, slicer.vtkSegment.GetTerminologyEntryTagName()))
    by_name = {spec.name: spec for spec in model.labels}
    own, name = _tag(segment, _LABEL_TAG), segment.GetName().strip().lower()
    if own in by_name:
        return by_name[own]
    if name in by_name and name not in STRUCTURES:
        return by_name[name]
    structure = structure_of(segment.GetName(), category, kind, (region,) if region else ())
    if structure in by_name:
        return by_name[structure]
    same = (spec for spec in model.labels if spec.name not in STRUCTURES and kind and spec.type[:2] == kind[:2])
    return next(same, None)


def meaning_of_drawn(segment: slicer.vtkSegment) -> str:
    """Return what decides which label a drawn segment stands for: name and codes; "" for LiverXAI's own segments."""
    if segment.HasTag(_LABEL_TAG):
        return ""
    codes = parse_terminology_entry(_tag(segment, slicer.vtkSegment.GetTerminologyEntryTagName()))
    return " ".join([segment.GetName().strip().lower(), *(code[1] for code in codes if code is not None)])


def _read_segment(
    node: slicer.vtkMRMLSegmentationNode, identifier: str, volume_node: slicer.vtkMRMLScalarVolumeNode
) -> tuple[np.ndarray, int, Box]:
    """Return the label map (k, j, i) that contains a segment, the segment's value in it, and its box in the CT.

    The array is the node's own memory, which stays valid when the segment gets another image or is removed.
    """
    segment = node.GetSegmentation().GetSegment(identifier)
    image = segment.GetRepresentation(BINARY)
    shift = _shift(node, image, volume_node)
    if shift is None:
        array = _resampled(node, identifier, volume_node)
        return array, 1, Box.full(array.shape)
    if image.IsEmpty():
        return np.zeros((0, 0, 0), np.uint8), 1, Box.full((0, 0, 0))
    starts = [low + move for low, move in zip(image.GetExtent()[::2], shift, strict=True)]
    voxels = voxels_of(image)
    size = volume_node.GetImageData().GetDimensions()
    drawn = Box.full(voxels.shape).shifted(starts[::-1])
    # A segment that was drawn elsewhere may extend beyond the CT or be outside it.
    inside = drawn.intersection(Box.full(size[::-1])) or Box.full((0, 0, 0)).shifted(drawn.start)
    return voxels[inside.relative_to(drawn)], segment.GetLabelValue(), inside


def _shift(node: slicer.vtkMRMLSegmentationNode, image: Any, volume_node: slicer.vtkMRMLScalarVolumeNode) -> Any:
    """Return the shift in voxels (i, j, k) of an image of `node` on the CT's grid; None if it is on another grid."""
    if image is None or node.GetTransformNodeID() != volume_node.GetTransformNodeID():
        return None
    matrices = [vtkMatrix4x4(), vtkMatrix4x4()]
    image.GetImageToWorldMatrix(matrices[0])
    volume_node.GetIJKToRASMatrix(matrices[1])
    between = np.linalg.inv(from_vtk_matrix(matrices[1])) @ from_vtk_matrix(matrices[0])
    shift = np.rint(between[:3, 3])
    far = max(volume_node.GetImageData().GetDimensions())
    if np.abs(between[:3, :3] - np.eye(3)).max() * far > 1e-2 or np.abs(between[:3, 3] - shift).max() > 1e-2:
        return None
    return shift.astype(int).tolist()


def _resampled(
    node: slicer.vtkMRMLSegmentationNode, identifier: str, volume_node: slicer.vtkMRMLScalarVolumeNode
) -> np.ndarray:
    """Return the mask of a segment on the CT's grid: uint8 (k, j, i)."""
    scene = volume_node.GetScene()
    names = vtkStringArray()
    names.InsertNextValue(identifier)
    labelmap = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "LiverXAI temporary")
    try:
        slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(node, names, labelmap, volume_node)
        return (slicer.util.arrayFromVolume(labelmap) > 0).astype(np.uint8)
    finally:
        if labelmap.GetDisplayNode():
            scene.RemoveNode(labelmap.GetDisplayNode().GetColorNode())
            scene.RemoveNode(labelmap.GetDisplayNode())
        scene.RemoveNode(labelmap)


def _unit_color(spec: LabelSpec) -> tuple[float, float, float]:
    r, g, b = spec.color
    return r / 255, g / 255, b / 255


def _lesion_color(spec: LabelSpec, number: int) -> tuple[float, float, float]:
    """Return the label's color for the first lesion, and hues advanced by the golden ratio for the next ones."""
    hue, saturation, value = colorsys.rgb_to_hsv(*_unit_color(spec))
    return colorsys.hsv_to_rgb((hue + (number - 1) * 0.618034) % 1.0, max(saturation, 0.5), value)


def _grid_to_json(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "ijk_to_lps": grid.ijk_to_lps.tolist()}


def _grid_from_json(data: dict[str, Any]) -> Grid:
    k, j, i = data["shape"]
    return Grid((k, j, i), np.array(data["ijk_to_lps"]))


def _grids_from_json(data: dict[str, Any]) -> dict[str, Grid]:
    return {name: _grid_from_json(grid) for name, grid in data.items()}
