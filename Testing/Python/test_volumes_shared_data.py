# SPDX-License-Identifier: Apache-2.0
"""Real scans behave as their README says. Needs LIVERXAI_TEST_DATA."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_checks import errors_of, needs_dciodvfy

from LiverXAILib.errors import InputError
from LiverXAILib.inference import Segmentation
from LiverXAILib.models import LIVER, TUMOR
from LiverXAILib.report import write_dicom_segmentation
from LiverXAILib.volumes.dicom_seg import read_segment_masks
from LiverXAILib.volumes.io import list_series, read_labels, read_volume
from LiverXAILib.volumes.volume import Volume

DATA = Path(os.environ.get("LIVERXAI_TEST_DATA", ""))
pytestmark = pytest.mark.skipif(
    "LIVERXAI_TEST_DATA" not in os.environ, reason="LIVERXAI_TEST_DATA is not set: no real CT to read"
)


@cache
def series(name: str) -> Volume:
    """A regular series, or the tilted one; read once, and not to be changed."""
    volume = read_volume(DATA / "dicom" / name, allow_irregular=name == "tilted_ge_head")
    volume.array.flags.writeable = False
    return volume


def itk_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Results of ITK's own series reader for a folder: array and ijk_to_lps."""
    reader = sitk.ImageSeriesReader()
    uid = next(one.uid for one in list_series(folder) if one.problem is None)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    image = reader.Execute()
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), matrix


def test_jpeg_2000_without_uids_is_the_same_image_as_its_nifti_twin():
    volume = series("totalseg_slab_j2k")
    twin = read_volume(DATA / "ct" / "totalseg_slab" / "image.nii.gz")
    order = slice(None, None, -1) if volume.ijk_to_lps[2, 2] * twin.ijk_to_lps[2, 2] < 0 else slice(None)
    np.testing.assert_array_equal(volume.array[order], twin.array)
    ends = np.array([[0, 0, 0], [511, 511, 19]])
    np.testing.assert_allclose(
        np.sort(volume.grid.to_lps(ends), axis=0), np.sort(twin.grid.to_lps(ends), axis=0), atol=1e-3
    )


@pytest.mark.parametrize(("name", "slices"), [("cptac_pda", 35), ("ct_with_seg", 3)])
def test_regular_series_agree_with_itk_but_for_the_padding(name, slices):
    volume = series(name)
    array, matrix = itk_series(DATA / "dicom" / name)
    assert volume.shape == (slices, 512, 512)
    np.testing.assert_allclose(volume.ijk_to_lps, matrix, atol=1e-4)
    assert array.min() == -3024
    np.testing.assert_array_equal(volume.array, np.where(array == -3024, -1024, array))
    assert volume.metadata["warnings"] == []


def test_a_feet_first_series_agrees_with_highdicom():
    folder = DATA / "dicom" / "cptac_pda"
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.iterdir())]
    spacing, places = highdicom.spatial.get_series_volume_positions(headers)
    volume = series("cptac_pda")
    assert volume.spacing[2] == pytest.approx(spacing)
    for header, place in zip(headers, places, strict=True):
        i, j, k = volume.grid.to_ijk(np.array(header.ImagePositionPatient, dtype=float))
        # highdicom numbers slices against their normal.
        np.testing.assert_allclose([i, j, k], [0, 0, 34 - place], atol=0.01)


def test_the_tilted_head_is_irregular_and_sheared():
    folder = DATA / "dicom" / "tilted_ge_head"
    with pytest.raises(InputError, match=r"not evenly spaced \(1\.08 to 7\.00 mm apart\).*allow-irregular"):
        read_volume(folder)
    volume = series("tilted_ge_head")
    assert volume.metadata["series"]["tilt_degrees"] == pytest.approx(18.5, abs=0.01)
    assert volume.array.min() == -1024
    first = pydicom.dcmread(folder / "01.dcm")
    last = pydicom.dcmread(folder / "28.dcm")
    for k, dataset in ((0, first), (volume.shape[0] - 1, last)):
        np.testing.assert_allclose(volume.grid.to_lps([0, 0, k]), dataset.ImagePositionPatient, atol=1e-6)
        stored = dataset.pixel_array
        np.testing.assert_array_equal(volume.array[k], np.where(stored == -1500, -1024, stored))


def test_duplicate_positions_are_refused():
    for allow_irregular in (False, True):
        with pytest.raises(InputError, match=r'series 1 \("CT0"\).*duplicate positions'):
            read_volume(DATA / "dicom" / "duplicate_positions", allow_irregular=allow_irregular)


def test_mr_is_refused_as_dicom_and_as_nifti():
    with pytest.raises(InputError, match="it is MR, not CT"):
        read_volume(DATA / "dicom" / "mr_coronal_liver")
    with pytest.raises(InputError, match="does not look like CT"):
        read_volume(DATA / "ct" / "mr_not_ct.nii.gz")
    assert read_volume(DATA / "ct" / "mr_not_ct.nii.gz", force=True).shape == (20, 91, 117)


def test_a_segmentation_beside_the_ct_is_listed_but_not_taken():
    found = list_series(DATA / "dicom" / "ct_with_seg")
    assert [one.modality for one in found] == ["CT", "SEG"]
    assert found[1].problem == "it is SEG, not CT"


def test_all_series_of_all_folders_together_are_told_apart():
    found = list_series(DATA / "dicom")
    assert sum(one.problem is None for one in found) == 3
    assert found[0].description == "CT Body 3.0" or found[0].slices == 35
    assert {one.modality for one in found} == {"CT", "MR", "SEG"}


@pytest.mark.parametrize(
    "name",
    ["kits_00072", "totalseg_abdomen_3mm", "totalseg_slab"],
)
def test_nifti_files_agree_with_itk(name):
    path = DATA / "ct" / name / "image.nii.gz"
    volume = read_volume(path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array, sitk.GetArrayViewFromImage(image))
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.spacing, image.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(volume.grid.origin, image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(volume.grid.direction.ravel(), image.GetDirection(), atol=1e-6)


def test_labels_lie_on_their_image():
    folder = DATA / "ct" / "ircad01"
    liver, image = read_labels(folder / "liver.nii.gz"), read_volume(folder / "image.nii.gz")
    assert liver.grid.matches(image.grid)
    assert np.count_nonzero(liver.array) * liver.grid.voxel_volume_mm3 / 1000 == pytest.approx(1489, abs=1)


@needs_dciodvfy
@pytest.mark.parametrize("name", ["cptac_pda", "totalseg_slab_j2k", "ct_with_seg", "tilted_ge_head"])
def test_a_dicom_segmentation_of_a_real_series_is_valid_and_read_back_to_the_voxel(name, tmp_path):
    volume = series(name)
    labels = np.zeros(volume.shape, np.uint8)
    labels[:, 150:300:2, 100:260] = 1
    labels[1:3, 200:220, 150:170] = 2
    provenance = {"model": {"name": "toy", "version": "1"}}
    segmentation = Segmentation(volume.with_array(labels), (LIVER, TUMOR), provenance=provenance)
    path = tmp_path / "segmentation.dcm"
    write_dicom_segmentation(segmentation, path)
    assert errors_of(path) == []
    for number, mask in read_segment_masks(path, volume.grid).items():
        np.testing.assert_array_equal(mask, labels > 0 if number == 1 else labels == 2)
    by_highdicom = highdicom.seg.segread(path)
    frames = by_highdicom.PerFrameFunctionalGroupsSequence
    places = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
    slices = volume.grid.to_ijk(np.array(places, float))[:, 2].round().astype(int)
    for frame, k, pixels in zip(frames, slices, by_highdicom.get_stored_frames(), strict=True):
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(pixels > 0, labels[k] > 0 if number == 1 else labels[k] == 2)
