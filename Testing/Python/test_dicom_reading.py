# SPDX-License-Identifier: Apache-2.0
"""DICOM series are read correctly however they are stored, compared with ITK and highdicom."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import ENCODERS, a_body, geometry, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)
from scipy.spatial.transform import Rotation

from LiverXAILib.errors import Cancelled, InputError
from LiverXAILib.progress import CancelToken
from LiverXAILib.volumes.io import read_volume
from LiverXAILib.volumes.stack import Stack, resample_to_regular
from LiverXAILib.volumes.volume import Volume

SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    *ENCODERS,
]


def assert_same(volume: Volume, array: np.ndarray, ijk_to_lps: np.ndarray) -> None:
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.ijk_to_lps, ijk_to_lps, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=[UID(syntax).name for syntax in SYNTAXES])
def test_every_transfer_syntax_gives_the_same_voxels(tmp_path, syntax, signed):
    array = a_body((3, 64, 80))
    write_series(tmp_path, array, geometry(), syntax=syntax, signed=signed, intercept=0 if signed else -1024)
    volume = read_volume(tmp_path)
    assert_same(volume, array, geometry())
    assert volume.array.dtype == np.int16
    assert volume.metadata["warnings"] == []


def test_slices_are_ordered_by_position_whatever_names_and_numbers_say(tmp_path):
    array = a_body((9, 64, 80))
    numbers = list(range(1, 10))
    random.Random(3).shuffle(numbers)
    names = [f"IM{9 - k}" for k in range(9)]
    write_series(tmp_path, array, geometry(), names=names, instance_numbers=numbers)
    assert_same(read_volume(tmp_path), array, geometry())


def test_a_scan_acquired_feet_first_or_downward_comes_out_upward(tmp_path):
    array, matrix = a_body(), geometry()
    downward = matrix.copy()
    downward[:3, 2] *= -1
    write_series(tmp_path, array, downward, SpacingBetweenSlices=-2.5, PatientPosition="FFS")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, array[::-1])
    np.testing.assert_allclose(volume.ijk_to_lps[:3, 2], matrix[:3, 2], atol=1e-6)
    np.testing.assert_allclose(volume.grid.to_lps([0, 0, 4]), matrix[:3, 3], atol=1e-6)


ORIENTATIONS = {
    "axial": np.eye(3),
    "prone": np.diag([-1.0, -1.0, 1.0]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "oblique": Rotation.from_euler("xyz", [12, -8, 21], degrees=True).as_matrix(),
}


@pytest.mark.parametrize("direction", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_geometry_agrees_with_itk_and_highdicom(tmp_path, direction):
    matrix = geometry()
    matrix[:3, :3] = direction @ matrix[:3, :3]
    array = a_body((4, 64, 80))
    write_series(tmp_path, array, matrix, names=[f"z{7 - k}" for k in range(4)])
    volume = read_volume(tmp_path)
    assert_same(volume, array, matrix)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_array_equal(volume.array, sitk.GetArrayViewFromImage(image))
    np.testing.assert_allclose(volume.spacing, image.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(volume.grid.origin, image.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(volume.grid.direction.ravel(), image.GetDirection(), atol=1e-6)

    other = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in tmp_path.iterdir()])
    values = other.array * 1.0 - 1024 if other.array.min() >= 0 else other.array
    corners = np.array([(k, j, i) for k in (0, 3) for j in (0, 63) for i in (0, 79)])
    places = other.map_indices_to_reference(corners)
    np.testing.assert_allclose(
        np.sort(volume.grid.to_lps(corners[:, ::-1]), axis=0), np.sort(places, axis=0), atol=1e-5
    )
    for corner, place in zip(corners, places, strict=True):
        i, j, k = volume.grid.to_ijk(place).round().astype(int)
        assert volume.array[k, j, i] == values[tuple(corner)]


def test_gantry_tilt_becomes_shear_from_the_positions_not_from_the_tag(tmp_path):
    tilt = np.radians(18.5)
    matrix = geometry()
    # The slices' plane is tilted about the x axis, the table moves along z.
    matrix[:3, 1] = np.array([0, np.cos(tilt), -np.sin(tilt)]) * 0.9
    array = a_body((6, 64, 80))
    write_series(tmp_path, array, matrix, GantryDetectorTilt="-7", instance_numbers=[6, 5, 4, 3, 2, 1])
    volume = read_volume(tmp_path)
    assert_same(volume, array, matrix)
    np.testing.assert_allclose(volume.grid.voxel_volume_mm3, 0.8 * 0.9 * 2.5 * np.cos(tilt), rtol=1e-6)
    assert volume.metadata["series"]["tilt_degrees"] == pytest.approx(18.5, abs=0.01)


def test_rescaling_is_taken_from_each_slice(tmp_path):
    array = a_body()

    def edit(dataset: Dataset, k: int) -> None:
        stored = ((array[k].astype(int) + 1024 + 7 * k) * 2).astype(np.uint16)
        dataset.PixelData = stored.tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", str(-1024 - 7 * k)

    write_series(tmp_path, array, geometry(), edit=edit)
    assert_same(read_volume(tmp_path), array, geometry())


def test_fractional_hounsfield_units_stay_fractional(tmp_path):
    array = a_body() + np.float32(0.25)
    write_series(tmp_path, array, geometry(), slope=0.25, intercept=-1024)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless])
def test_padding_becomes_air(tmp_path, syntax):
    array = a_body()
    padded = array.copy()
    padded[:, :6] = -3024
    tags = {"PixelPaddingValue": -2000}
    write_series(tmp_path, padded, geometry(), syntax=syntax, signed=True, intercept=-1024, **tags)
    array[:, :6] = -1024
    assert_same(read_volume(tmp_path), array, geometry())


def test_a_padding_value_written_as_unsigned_is_understood(tmp_path):
    array = a_body()
    array[:, :6] = -3024

    def edit(dataset: Dataset, k: int) -> None:
        dataset.add_new("PixelPaddingValue", "US", 63536)

    write_series(tmp_path, array, geometry(), signed=True, edit=edit)
    assert read_volume(tmp_path).array.min() >= -1024
    assert (read_volume(tmp_path).array[:, :6] == -1024).all()


def test_a_range_of_padding_values_becomes_air(tmp_path):
    array = a_body()
    array[:, :6] = -3024
    array[:, 6:9] = -2500
    tags = {"PixelPaddingValue": -1400, "PixelPaddingRangeLimit": -2000}
    write_series(tmp_path, array, geometry(), signed=True, **tags)
    assert (read_volume(tmp_path).array[:, :9] == -1024).all()


def test_a_padding_value_within_soft_tissue_punches_no_holes(tmp_path):
    array = a_body()
    write_series(tmp_path, array, geometry(), signed=True, intercept=0, PixelPaddingValue=60)
    volume = read_volume(tmp_path)
    assert_same(volume, array, geometry())
    assert any("padding" in warning for warning in volume.metadata["warnings"])


def test_unused_bits_and_short_words_are_ignored(tmp_path):
    array = a_body()

    def edit(dataset: Dataset, k: int) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11
        stored = (array[k].astype(int) + 1024).astype(np.uint16)
        dataset.PixelData = (stored | 0xA000).tobytes()

    write_series(tmp_path, array, geometry(), edit=edit)
    assert_same(read_volume(tmp_path), array, geometry())


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
def test_monochrome1_is_a_matter_of_display_and_does_not_invert_hounsfield_units(tmp_path, syntax):
    array = a_body()
    write_series(tmp_path, array, geometry(), syntax=syntax, PhotometricInterpretation="MONOCHROME1")
    assert_same(read_volume(tmp_path), array, geometry())


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_preamble_and_meta_header_are_read(tmp_path, syntax):
    array = a_body()

    def edit(dataset: Dataset, k: int) -> None:
        if syntax == ExplicitVRLittleEndian:
            dataset.add_new(0x00080005, "CS", "ISO_IR 100")

    write_series(tmp_path / "whole", array, geometry(), syntax=syntax, edit=edit)
    for path in (tmp_path / "whole").iterdir():
        dataset = pydicom.dcmread(path)
        bare = Dataset(dataset)
        bare.save_as(
            tmp_path / path.name,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=True,
            enforce_file_format=False,
        )
        path.unlink()
    assert (tmp_path / "000.dcm").read_bytes()[128:132] != b"DICM"
    assert_same(read_volume(tmp_path), array, geometry())


def test_missing_uids_and_class_in_the_data_set_do_not_matter(tmp_path):
    array = a_body()

    def edit(dataset: Dataset, k: int) -> None:
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID

    write_series(tmp_path, array, geometry(), edit=edit)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.SOPInstanceUID = dataset.SeriesInstanceUID = ""
        dataset.save_as(path, enforce_file_format=False)
    volume = read_volume(tmp_path)
    assert_same(volume, array, geometry())
    assert volume.metadata["series_instance_uid"] is None


def test_nested_folders_no_extension_and_stray_files_are_no_obstacle(tmp_path):
    array = a_body((6, 64, 80))
    names = [f"{'A' if k % 2 else 'B/C'}/{k}" for k in range(6)]
    for folder in ("A", "B/C"):
        (tmp_path / "DICOM" / folder).mkdir(parents=True)
    write_series(tmp_path / "DICOM", array, geometry(), names=names)
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / "empty").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(400))
    (tmp_path / "DICOM" / "A" / "noise").write_bytes(random.Random(0).randbytes(3000))
    assert_same(read_volume(tmp_path), array, geometry())


def test_a_dicomdir_is_passed_over_and_stands_for_its_folder(tmp_path):
    array = a_body()
    write_series(
        tmp_path / "in", array, geometry(), PatientSex="", StudyDate="20200101", StudyTime="120000", StudyID="1"
    )
    files = FileSet()
    study = pydicom.uid.generate_uid()
    for path in sorted((tmp_path / "in").iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = study
        files.add(dataset)
    files.write(tmp_path / "media")
    assert (tmp_path / "media" / "DICOMDIR").exists()
    assert_same(read_volume(tmp_path / "media"), array, geometry())
    assert_same(read_volume(tmp_path / "media" / "DICOMDIR"), array, geometry())


def test_one_file_stands_for_its_series_even_beside_a_better_one(tmp_path):
    small, large = a_body((3, 64, 80), seed=1), a_body((7, 64, 80), seed=2)
    write_series(tmp_path, small, geometry(), names=["s0", "s1", "s2"])
    write_series(tmp_path, large, geometry())
    assert_same(read_volume(tmp_path), large, geometry())
    assert_same(read_volume(tmp_path / "s1"), small, geometry())


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless])
def test_an_enhanced_multi_frame_file_is_read_by_its_frames_positions(tmp_path, syntax):
    array = a_body()
    write_enhanced(tmp_path / "enhanced", array, geometry(), order=[3, 0, 4, 1, 2], syntax=syntax)
    assert_same(read_volume(tmp_path), array, geometry())


def test_positions_rounded_by_the_scanner_are_still_a_regular_series(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, round(float(z), 1)]

    matrix = geometry(spacing=(0.8, 0.8, 0.625))
    write_series(tmp_path, a_body((11, 64, 80)), matrix, edit=edit)
    volume = read_volume(tmp_path)
    assert volume.spacing[2] == pytest.approx(0.625, abs=0.01)
    assert volume.metadata["warnings"] == []


def test_irregular_spacing_is_resampled_on_request_and_said(tmp_path):
    # Intensity is linear in z, so linear interpolation must reproduce it exactly, up to rounding to whole HU.
    heights = np.array([0, 2.5, 5.0, 7.5, 10.0, 14.0, 18.0, 22.0])
    air = a_body((8, 64, 80)) < -500
    array = np.where(air, -1000, (10 * heights).round()[:, None, None]).astype(np.int16)

    def edit(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [-30.0, -41.5, 100.0 + heights[k]]

    write_series(tmp_path, array, geometry(), edit=edit)
    with pytest.raises(InputError, match=r"not evenly spaced.*allow-irregular"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow_irregular=True)
    assert any("Resampled" in warning for warning in volume.metadata["warnings"])
    inside = ~air.any(axis=0)
    places = volume.grid.to_lps(np.array([[0, 0, k] for k in range(volume.shape[0])]))
    assert places[0, 2] == pytest.approx(100.0)
    assert places[-1, 2] == pytest.approx(122.0)
    for k, (_, _, z) in enumerate(places):
        np.testing.assert_allclose(volume.array[k][inside], 10 * (z - 100.0), atol=0.51)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_irregular_slices_are_interpolated_between_their_neighbors_alone(dtype):
    depths = np.array([100, 101.0, 104, 107, 110])
    values = np.array([[0, 5], [90, 5], [-301, 6], [70, 8], [500, 12]], dtype)
    stack = Stack(np.arange(5), depths, 6, np.eye(4))
    result = resample_to_regular(values[:, None, :], stack)
    expected = np.stack([np.interp(np.linspace(100, 110, 6), depths, column) for column in values.T], axis=-1)
    assert result.dtype == dtype
    np.testing.assert_allclose(result[:, 0], expected.round() if dtype == "int16" else expected, rtol=1e-6)


def test_a_tilted_irregular_series_stays_tilted(tmp_path):
    heights = np.array([0, 4.0, 8.0, 12.0, 15.0, 18.0])
    tilt = np.radians(15)
    matrix = geometry()
    matrix[:3, 1] = np.array([0, np.cos(tilt), -np.sin(tilt)]) * 0.9

    def edit(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [-30.0, -41.5, 100.0 + heights[k]]

    write_series(tmp_path, a_body((6, 64, 80)), matrix, edit=edit)
    volume = read_volume(tmp_path, allow_irregular=True)
    np.testing.assert_allclose(volume.grid.direction[:, 2], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(volume.ijk_to_lps[:3, 1], matrix[:3, 1], atol=1e-6)
    assert volume.metadata["series"]["tilt_degrees"] == pytest.approx(15, abs=0.01)


def test_nothing_identifying_is_kept_or_logged(tmp_path, caplog):
    uid = write_series(tmp_path, a_body(), geometry())
    with caplog.at_level(logging.DEBUG, logger="LiverXAILib"):
        volume = read_volume(tmp_path)
    assert "Secret" not in repr(volume.metadata)
    assert "secret-id" not in repr(volume.metadata)
    assert volume.metadata["series_instance_uid"] == uid
    assert volume.metadata["modality"] == "CT"
    assert volume.metadata["source_format"] == "DICOM"
    logged = caplog.text
    assert "slices" in logged
    for secret in ("Secret", "secret-id", uid, "Abdomen", str(tmp_path)):
        assert secret not in logged


def test_reading_reports_progress_and_can_be_cancelled(tmp_path: Path):
    write_series(tmp_path, a_body((8, 64, 80)), geometry())
    seen: list[tuple[str, float]] = []
    read_volume(tmp_path, progress=lambda step, fraction: seen.append((step, fraction)))
    reading = [fraction for step, fraction in seen if step == "Reading the image"]
    assert reading == sorted(reading)
    assert reading[-1] == 1.0

    token = CancelToken()

    def cancel_while_reading(step: str, fraction: float) -> None:
        if step == "Reading the image" and fraction > 0.3:
            token.cancel()

    with pytest.raises(Cancelled):
        read_volume(tmp_path, progress=cancel_while_reading, cancel=token)
