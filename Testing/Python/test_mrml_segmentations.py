# SPDX-License-Identifier: Apache-2.0
"""Segmentation nodes describe their contents, align with the CT, and are read back unchanged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
from mrml_toys import GEOMETRIES, OBLIQUE, add_node, affine, ball_analysis, random_volume

from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.inference import Segmentation
from LiverXAILib.measure import measure
from LiverXAILib.models import LIVER, TUMOR
from LiverXAILib.mrml import (
    decisions_of,
    differs_from_measured,
    labels_token,
    read_segments,
    record_measured,
    require_segment,
    segmentation_from_node,
    segmentation_to_node,
    volume_to_node,
)
from LiverXAILib.mrml.volumes import from_vtk_matrix
from LiverXAILib.report.segmentation_file import write_segmentation_file
from LiverXAILib.volumes.volume import Volume


def random_segmentation(matrix, seed=3):
    """Liver in the center of a 5×7×6 image, with two separate tumors in it."""
    labels = np.zeros((5, 7, 6), np.uint8)
    labels[1:4, 1:6, 1:5] = 1
    labels[2, 2, 2:4] = labels[3, 5, 4] = 2
    labels[1, 5, np.random.default_rng(seed).integers(1, 3)] = 0
    provenance = {"model": {"name": "toy", "version": "0", "sha256": ["0"]}, "warnings": []}
    return Segmentation(Volume(labels, matrix), (LIVER, TUMOR), provenance=provenance)


def shown(scene, segmentation, **options):
    """The CT's node and the segmentation's."""
    ct = volume_to_node(random_volume(segmentation.labels.ijk_to_lps), scene, "CT")
    return ct, segmentation_to_node(segmentation, scene, ct, **options)


def tag(node, segment, name):
    import vtk

    value = vtk.reference("")
    return str(value) if node.GetSegmentation().GetSegment(segment).GetTag(name, value) else None


@pytest.mark.parametrize("name", GEOMETRIES)
def test_labels_survive_the_way_through_a_node_voxel_for_voxel(scene, name):
    segmentation = random_segmentation(GEOMETRIES[name])
    ct, node = shown(scene, segmentation)
    back = segmentation_from_node(node, ct, ball_analysis().model)
    np.testing.assert_array_equal(back.labels.array, segmentation.labels.array)
    assert back.labels.grid.matches(segmentation.labels.grid, 1e-9)


def test_without_its_segment_a_structure_is_neither_explained_nor_measured(scene):
    _, node = shown(scene, random_segmentation(GEOMETRIES["oblique"]))
    require_segment(node, ball_analysis().model, "liver")
    node.GetSegmentation().RemoveSegment("liver")
    with pytest.raises(UsageError, match="no segment 'liver', so it can be neither explained nor measured"):
        require_segment(node, ball_analysis().model, "liver")


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if "sheared" not in name])
def test_a_written_file_is_read_by_slicers_own_reader_to_the_same_voxels(scene, tmp_path, name):
    import slicer

    segmentation = random_segmentation(GEOMETRIES[name])
    write_segmentation_file(segmentation, tmp_path / "x.seg.nrrd")
    ct = volume_to_node(random_volume(segmentation.labels.ijk_to_lps), scene, "CT")
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(tmp_path / "x.seg.nrrd"))
    assert storage.ReadData(node)
    segments = node.GetSegmentation()
    for number, spec in enumerate(segmentation.specs):
        segment = segments.GetNthSegment(number)
        assert segment.GetName() == spec.name
        np.testing.assert_allclose(segment.GetColor(), np.array(spec.color) / 255, atol=1e-5)
        assert tag(node, segments.GetNthSegmentID(number), "TerminologyEntry") == spec.terminology_entry
    back = segmentation_from_node(node, ct, ball_analysis().model)
    np.testing.assert_array_equal(back.labels.array, segmentation.labels.array)


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if "sheared" not in name])
def test_a_saved_segmentation_is_read_by_simpleitk_in_the_same_place(scene, tmp_path, name):
    import slicer.util

    segmentation = random_segmentation(GEOMETRIES[name])
    _, node = shown(scene, segmentation)
    assert slicer.util.saveNode(node, str(tmp_path / "x.seg.nrrd"), {})
    image = sitk.ReadImage(str(tmp_path / "x.seg.nrrd"))
    assert image.GetNumberOfComponentsPerPixel() == 2
    liver, tumor = np.moveaxis(sitk.GetArrayFromImage(image) > 0, -1, 0)
    np.testing.assert_array_equal(liver, segmentation.mask("liver"))
    np.testing.assert_array_equal(tumor, segmentation.mask("tumor"))
    for index in ((0, 0, 0), (5, 6, 4), (1, 2, 3)):
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(index), segmentation.labels.grid.to_lps(index), atol=1e-9
        )


def test_segments_carry_names_colors_terminology_and_that_a_machine_drew_them(scene):
    _, node = shown(scene, random_segmentation(affine(OBLIQUE)))
    assert node.GetSegmentation().GetSegmentIDs() == ("liver", "tumor")
    liver = node.GetSegmentation().GetSegment("liver")
    assert liver.GetName() == "liver"
    np.testing.assert_allclose(liver.GetColor(), np.array(LIVER.color) / 255, atol=1e-6)
    assert tag(node, "liver", "TerminologyEntry") == (
        "Segmentation category and type - 3D Slicer General Anatomy list"
        "~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes - DICOM master list~^^~^^"
    )
    assert tag(node, "tumor", "TerminologyEntry") == (
        "Segmentation category and type - 3D Slicer General Anatomy list"
        "~SCT^49755003^Morphologically Altered Structure~SCT^4147007^Mass~^^"
        "~Anatomic codes - DICOM master list~SCT^10200004^Liver~^^"
    )
    for segment in ("liver", "tumor"):
        assert tag(node, segment, "DICOM.SegmentAlgorithmType") == "AUTOMATIC"
        assert tag(node, segment, "DICOM.SegmentAlgorithmName").startswith("LiverXAI ")


def test_slicer_understands_the_terminology(scene):
    import slicer

    _, node = shown(scene, random_segmentation(affine(OBLIQUE)))
    entry = slicer.vtkSlicerTerminologyEntry()
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    assert logic.DeserializeTerminologyEntry(tag(node, "tumor", "TerminologyEntry"), entry)
    assert entry.GetTypeObject().GetCodeMeaning() == "Mass"
    assert entry.GetRegionObject().GetCodeValue() == "10200004"


def test_the_segmentation_refers_to_the_ct_for_its_geometry_and_is_drawn_as_outlines(scene):
    import slicer

    ct, node = shown(scene, random_segmentation(affine(OBLIQUE)))
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    assert node.GetNodeReferenceID(role) == ct.GetID()
    display = node.GetDisplayNode()
    assert display.GetVisibility2DOutline()
    assert not display.GetVisibility2DFill()
    assert display.GetSegmentOpacity3D("liver") < 0.5 < display.GetSegmentOpacity3D("tumor")


def test_one_segment_for_each_lesion_on_request(scene):
    segmentation = random_segmentation(affine(OBLIQUE))
    ct, node = shown(scene, segmentation, lesion_segments=True)
    assert node.GetSegmentation().GetSegmentIDs() == ("liver", "tumor_1", "tumor_2")
    names = [node.GetSegmentation().GetSegment(x).GetName() for x in node.GetSegmentation().GetSegmentIDs()]
    assert names == ["liver", "lesion 1", "lesion 2"]
    colors = {node.GetSegmentation().GetSegment(x).GetColor() for x in ("tumor_1", "tumor_2")}
    assert len(colors) == 2
    import slicer.util

    np.testing.assert_array_equal(
        slicer.util.arrayFromSegmentBinaryLabelmap(node, "tumor_2", ct) > 0,
        segmentation.labels.array * [0, 0, 0, 0, 1, 0] == 2,
    )
    back = segmentation_from_node(node, ct, ball_analysis().model)
    np.testing.assert_array_equal(back.labels.array, segmentation.labels.array)
    # Switching back removes them, but not a segment of the user.
    node.GetSegmentation().AddEmptySegment("mine", "mine")
    assert segmentation_to_node(segmentation, scene, ct) is node
    assert set(node.GetSegmentation().GetSegmentIDs()) == {"liver", "tumor", "mine"}


def test_a_second_run_keeps_the_node_and_what_the_user_changed(scene):
    segmentation = random_segmentation(affine(OBLIQUE))
    ct, node = shown(scene, segmentation)
    node.GetSegmentation().GetSegment("liver").SetColor(0.1, 0.2, 0.3)
    node.GetSegmentation().GetSegment("tumor").SetName("metastasis")
    node.GetDisplayNode().SetSegmentVisibility("liver", False)
    node.SetName("my result")
    other_color = dataclasses.replace(TUMOR, color=(10, 20, 30))
    labels = segmentation.labels.array.copy()
    labels[2, 3, 3] = 2
    again = Segmentation(Volume(labels, segmentation.labels.ijk_to_lps), (LIVER, other_color), provenance={})
    assert segmentation_to_node(again, scene, ct) is node
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    np.testing.assert_allclose(node.GetSegmentation().GetSegment("liver").GetColor(), (0.1, 0.2, 0.3))
    np.testing.assert_allclose(node.GetSegmentation().GetSegment("tumor").GetColor(), np.array((10, 20, 30)) / 255)
    assert node.GetSegmentation().GetSegment("tumor").GetName() == "metastasis"
    assert not node.GetDisplayNode().GetSegmentVisibility("liver")
    assert node.GetName() == "my result"
    back = segmentation_from_node(node, ct, ball_analysis().model)
    np.testing.assert_array_equal(back.labels.array, labels)


def test_segments_are_read_without_a_copy_and_stay_readable_when_they_are_replaced_or_removed(scene):
    import gc

    import slicer
    from vtkmodules.util.numpy_support import vtk_to_numpy

    segmentation = random_segmentation(affine(OBLIQUE))
    ct, node = shown(scene, segmentation)
    state, read = labels_token(node), read_segments(node, ct, ball_analysis().model)
    image = node.GetSegmentation().GetSegment("tumor").GetRepresentation("Binary labelmap")
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = 0  # in place, as a brush does
    image.Modified()
    assert labels_token(node) != state
    assert not read().mask("tumor").any()  # a copy would have them
    ct, node = shown(scene, segmentation)
    read = read_segments(node, ct, ball_analysis().model)
    tumor = slicer.util.arrayFromSegmentBinaryLabelmap(node, "tumor", ct)
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.roll(tumor, 1, axis=2), node, "tumor", ct)
    node.GetSegmentation().RemoveSegment("liver")
    scene.RemoveNode(node)
    scene.RemoveNode(ct)
    del node, ct
    gc.collect()
    np.testing.assert_array_equal(read().labels.array, segmentation.labels.array)


def test_names_and_codes_of_drawn_segments_belong_to_what_was_measured_but_not_those_of_liverxai(scene):
    import slicer

    ct, node = shown(scene, random_segmentation(affine(OBLIQUE)))
    segments = node.GetSegmentation()
    segments.AddEmptySegment("drawn", "vessel")
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        np.ones(ct.GetImageData().GetDimensions()[::-1]), node, "drawn", ct
    )
    record_measured(node)
    state, drawn, before = labels_token(node), segments.GetSegment("drawn"), tag(node, "drawn", "TerminologyEntry")
    segments.GetSegment("tumor").SetName("metastases")
    segments.GetSegment("tumor").SetTag("TerminologyEntry", "")
    assert labels_token(node) == state
    assert not differs_from_measured(node)
    for change, back in (
        (lambda: drawn.SetName("tumor"), lambda: drawn.SetName("vessel")),
        (
            lambda: drawn.SetTag("TerminologyEntry", TUMOR.terminology_entry),
            lambda: drawn.SetTag("TerminologyEntry", before),
        ),
    ):
        change()
        assert labels_token(node) != state
        assert differs_from_measured(node)
        back()
        assert not differs_from_measured(node)


def test_under_a_transform_the_reference_geometry_is_that_of_the_ct(scene):
    """The Segment Editor draws on it, and would otherwise resample the segments."""
    import slicer
    import vtk

    ct = volume_to_node(random_volume(affine(OBLIQUE)), scene, "CT")
    transform, shift = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode"), vtk.vtkMatrix4x4()
    shift.SetElement(0, 3, 12.5)
    transform.SetMatrixTransformToParent(shift)
    ct.SetAndObserveTransformNodeID(transform.GetID())
    node = segmentation_to_node(random_segmentation(affine(OBLIQUE)), scene, ct)
    converter, image = slicer.vtkSegmentationConverter, slicer.vtkOrientedImageData()
    name = converter.GetReferenceImageGeometryParameterName()
    assert converter.DeserializeImageGeometry(node.GetSegmentation().GetConversionParameter(name), image, False)
    found, expected = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(found)
    ct.GetIJKToRASMatrix(expected)
    np.testing.assert_allclose(from_vtk_matrix(found), from_vtk_matrix(expected), atol=1e-4)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_segments_are_as_measured_however_they_are_stored_and_not_after_an_edit(scene, name):
    import slicer

    ct, node = shown(scene, random_segmentation(GEOMETRIES[name]))
    assert not differs_from_measured(node)  # nothing is recorded
    record_measured(node)
    assert not differs_from_measured(node)
    node.GetSegmentation().SeparateSegmentLabelmap("tumor")
    assert not differs_from_measured(node)
    node.GetSegmentation().CollapseBinaryLabelmaps(False)
    assert not differs_from_measured(node)
    tumor = slicer.util.arrayFromSegmentBinaryLabelmap(node, "tumor", ct)
    for change in ((2, 2, 2), (2, 3, 3)):  # within the segment's box, one voxel less and one more
        edited = tumor.copy()
        edited[change] = 1 - edited[change]
        slicer.util.updateSegmentBinaryLabelmapFromArray(edited, node, "tumor", ct)
        assert differs_from_measured(node)
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.roll(tumor, 1, axis=2), node, "tumor", ct)
    assert differs_from_measured(node)
    slicer.util.updateSegmentBinaryLabelmapFromArray(tumor, node, "tumor", ct)
    assert not differs_from_measured(node)
    node.GetSegmentation().RemoveSegment("tumor")
    assert differs_from_measured(node)
    record_measured(node)
    assert not differs_from_measured(node)
    node.GetSegmentation().AddEmptySegment("new", "new")
    assert not differs_from_measured(node)


def test_nothing_found_is_an_empty_segment_that_can_be_shown_saved_and_read(scene, tmp_path):
    import slicer.util

    segmentation = random_segmentation(affine(OBLIQUE))
    ct, node = shown(scene, segmentation)
    none = Segmentation(
        segmentation.labels.with_array(np.zeros((5, 7, 6), np.uint8)), segmentation.specs, provenance={}
    )
    segmentation_to_node(none, scene, ct)
    assert node.CreateClosedSurfaceRepresentation()
    assert not segmentation_from_node(node, ct, ball_analysis().model).labels.array.any()
    assert slicer.util.saveNode(node, str(tmp_path / "none.seg.nrrd"), {})
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "none.seg.nrrd"))).any()


def test_surfaces_follow_the_labels_and_have_their_volume(scene):
    import vtk

    analysis = ball_analysis()
    ct = volume_to_node(analysis.volume, scene, "CT")
    node = segmentation_to_node(analysis.segmentation, scene, ct)
    node.GetSegmentation().SetConversionParameter("Smoothing factor", "0.0")
    assert node.CreateClosedSurfaceRepresentation()

    def surface_ml(segment):
        mesh = vtk.vtkPolyData()
        node.GetClosedSurfaceRepresentation(segment, mesh)
        mass = vtk.vtkMassProperties()
        triangles = vtk.vtkTriangleFilter()
        triangles.SetInputData(mesh)
        mass.SetInputConnection(triangles.GetOutputPort())
        return mass.GetVolume() / 1000

    assert surface_ml("liver") == pytest.approx(analysis.measurements.liver_volume_ml, rel=0.02)
    assert surface_ml("tumor") == pytest.approx(analysis.measurements.tumor_volume_ml, rel=0.05)
    # New labels: visible surfaces are recomputed.
    smaller = analysis.segmentation.labels.array.copy()
    smaller[: len(smaller) // 2] = 0
    half = dataclasses.replace(analysis.segmentation, labels=analysis.volume.with_array(smaller))
    segmentation_to_node(half, scene, ct)
    assert surface_ml("liver") == pytest.approx(measure(analysis.volume, half).liver_volume_ml, rel=0.03)


def test_the_grids_of_the_stages_come_back_only_for_the_same_model_and_place(scene):
    import slicer.util

    analysis = ball_analysis()
    ct = volume_to_node(analysis.volume, scene, "CT")
    segmentation = dataclasses.replace(analysis.segmentation, stage_centers={"all": 93.25})
    node = segmentation_to_node(segmentation, scene, ct)
    back = segmentation_from_node(node, ct, analysis.model)
    assert back.stage_grids["all"].matches(segmentation.stage_grids["all"], 1e-9)
    assert back.stage_centers == {"all": 93.25}
    stage = dataclasses.replace(analysis.model.stages[0], sha256=("1",))
    other = dataclasses.replace(analysis.model, stages=(stage,))
    assert not segmentation_from_node(node, ct, other).stage_grids
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(transform, np.diag([-1.0, -1.0, 1.0, 1.0]))
    for moved in (ct, node):
        moved.SetAndObserveTransformNodeID(transform.GetID())
    elsewhere = segmentation_from_node(node, ct, analysis.model)
    assert not elsewhere.stage_grids
    assert not elsewhere.stage_centers


@pytest.mark.parametrize("text", ["", "[", "3", "[1]", '[{"kind": "add"}]', '{"shape": [1, 2]}', "[" * 100_000])
@pytest.mark.parametrize("name", ["Decisions", "Grid", "StageGrids"])
def test_what_a_damaged_scene_holds_about_a_result_is_refused_by_name(scene, name, text):
    analysis = ball_analysis()
    ct = volume_to_node(analysis.volume, scene, "CT")
    node = segmentation_to_node(analysis.segmentation, scene, ct)
    node.SetAttribute(f"LiverXAI.{name}", text)
    read = decisions_of if name == "Decisions" else lambda *nodes: segmentation_from_node(*nodes, analysis.model)
    with pytest.raises(InputError, match=rf"LiverXAI\.{name}\) is damaged"):
        read(node, ct)


def test_somebody_elses_segmentation_is_read_by_name_or_terminology_on_the_cts_grid(scene):
    import slicer
    import slicer.util

    analysis = ball_analysis()
    ct = volume_to_node(analysis.volume, scene, "CT")
    finer = analysis.volume.grid.ijk_to_lps @ np.diag([0.5, 0.5, 0.5, 1.0])
    finer[:3, 3] = analysis.volume.grid.to_lps((-0.25, -0.25, -0.25))
    labels = np.kron(analysis.segmentation.labels.array, np.ones((2, 2, 2), np.uint8))
    theirs = volume_to_node(Volume(labels, finer), scene, "theirs", "vtkMRMLLabelMapVolumeNode")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(theirs, node)
    first, second = node.GetSegmentation().GetSegmentIDs()
    with pytest.raises(UsageError, match="Rename the segment"):
        segmentation_from_node(node, ct, analysis.model)
    node.GetSegmentation().GetSegment(first).SetName(" Liver")
    node.GetSegmentation().GetSegment(second).SetTag("TerminologyEntry", "a~SCT^1^x~SCT^4147007^Mass~^^~b~^^~^^")
    back = segmentation_from_node(node, ct, analysis.model)
    np.testing.assert_array_equal(back.labels.array, analysis.segmentation.labels.array)


def test_a_ct_that_was_cropped_meanwhile_is_refused(scene):
    segmentation = random_segmentation(affine(OBLIQUE))
    ct = volume_to_node(random_volume(affine(OBLIQUE), (4, 7, 6)), scene, "CT")
    with pytest.raises(InputError, match="analyze it again"):
        segmentation_to_node(segmentation, scene, ct)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


@pytest.mark.parametrize("name", ["LPS", "oblique left-handed", "oblique sheared left-handed"])
def test_segments_are_read_as_slicer_exports_them(scene, name):
    """On the CT's grid they are read as arrays, without Slicer's export; also if cropped, extended or shifted."""
    import slicer

    from LiverXAILib.mrml.segmentations import _read_segment, _resampled, _shift
    from LiverXAILib.mrml.volumes import voxels_of

    ct = add_node(scene, np.zeros((9, 10, 11), np.int16), GEOMETRIES[name])
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(ct)
    matrix = slicer.util.vtkMatrixFromArray(GEOMETRIES[name] @ np.array(np.eye(4) + np.eye(4, k=3) * -2))
    large = slicer.vtkOrientedImageData()
    large.SetDimensions(14, 12, 8)
    large.AllocateScalars(3, 1)  # unsigned char
    values = voxels_of(large).reshape(-1)
    values[:] = np.random.default_rng(0).integers(0, 2, values.size)
    large.SetImageToWorldMatrix(matrix)
    segment = slicer.vtkSegment()
    segment.SetName("large")
    segment.AddRepresentation("Binary labelmap", large)
    node.GetSegmentation().SetSourceRepresentationName("Binary labelmap")
    node.GetSegmentation().AddSegment(segment, "large")
    assert _shift(node, segment.GetRepresentation("Binary labelmap"), ct) == [-2, 0, 0]
    array, number, box = _read_segment(node, "large", ct)
    found = np.zeros((9, 10, 11), np.uint8)
    found[box] = array == number
    np.testing.assert_array_equal(found, _resampled(node, "large", ct))
    assert found.any()
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetAndObserveTransformNodeID(transform.GetID())
    assert _shift(node, segment.GetRepresentation("Binary labelmap"), ct) is None  # moved: Slicer resamples it
