# SPDX-License-Identifier: Apache-2.0
"""Anything other than a regular CT volume is refused with a sentence that names the series and the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import a_body, a_slice, geometry, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.volumes.io import list_series, read_volume
from LiverXAILib.volumes.stack import Stack, sort_slices


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_volume(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "Error" not in message
    return message


def at_heights(heights: list[float]) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [-30.0, -41.5, heights[k]]

    return edit


@pytest.mark.parametrize("allow_irregular", [False, True])
def test_duplicate_positions_stay_refused(tmp_path, allow_irregular):
    write_series(tmp_path, a_body(), geometry(), edit=at_heights([0, 2, 4, 4, 6]))
    message = refusal(tmp_path, allow_irregular=allow_irregular)
    assert 'series 3 ("Abdomen")' in message
    assert "duplicate positions (1 of 5)" in message


def test_a_copied_file_is_refused(tmp_path):
    write_series(tmp_path, a_body(), geometry())
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "002.dcm").read_bytes())
    assert "duplicate positions (1 of 6)" in refusal(tmp_path)


def test_missing_slices_are_counted(tmp_path):
    write_series(tmp_path, a_body((6, 64, 80)), geometry(), edit=at_heights([0, 2, 4, 8, 10, 14]))
    assert "2 of 8 slices are missing (a gap of 4.0 mm between slices 2.0 mm apart)" in refusal(tmp_path)
    assert read_volume(tmp_path, allow_irregular=True).shape == (8, 64, 80)


@pytest.mark.parametrize("heights", [[0, 2, 4, 6, 21], [0, 3, 7, 9, 20.5]], ids=["missing", "irregular"])
def test_a_gap_too_wide_to_interpolate_stays_refused(tmp_path, heights):
    write_series(tmp_path, a_body(), geometry(), edit=at_heights(heights))
    message = refusal(tmp_path, allow_irregular=True)
    assert "missing" in message or "not evenly spaced" in message
    assert "allow-irregular" not in message


@pytest.mark.parametrize(("shift", "accepted"), [(0.3, True), (0.5, False)])
def test_the_tolerance_for_irregular_spacing_is_a_tenth_of_the_spacing(tmp_path, shift, accepted):
    write_series(tmp_path, a_body(), geometry(), edit=at_heights([0, 4, 8 + shift, 12, 16]))
    if accepted:
        assert read_volume(tmp_path).spacing[2] == pytest.approx(4)
    else:
        assert "not evenly spaced (3.50 to 4.50 mm apart)" in refusal(tmp_path)


def test_slices_shifted_sideways_are_refused_even_if_evenly_spaced(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [-30.0 + (20 if k > 2 else 0), -41.5, 2.5 * k]

    write_series(tmp_path, a_body(), geometry(), edit=edit)
    assert "shifted sideways" in refusal(tmp_path)
    assert "shifted sideways" in refusal(tmp_path, allow_irregular=True)


def sorted_slices(heights: list[float], sideways: list[float] | None = None) -> Stack | str:
    """The stack of upright slices at `heights`, each shifted `sideways` to the left, in mm."""
    positions = np.array([[-30 + (sideways or [0] * 99)[k], -41.5, z] for k, z in enumerate(heights)])
    return sort_slices(positions, np.array([0.8, 0, 0]), np.array([0, 0.9, 0]))


@pytest.mark.parametrize(("gap", "accepted"), [(0.1, True), (0.099, False)])
def test_slices_a_tenth_of_a_millimeter_apart_are_not_at_the_same_position(gap, accepted):
    assert isinstance(sorted_slices([0, gap]), Stack) == accepted


@pytest.mark.parametrize(("shift", "accepted"), [(0.24, True), (0.26, False)])
def test_one_slice_may_be_shifted_sideways_by_a_tenth_of_the_spacing(shift, accepted):
    found = sorted_slices([0, 2.5, 5, 7.5], [0, shift, 0, 0])
    assert isinstance(found, Stack) if accepted else "by up to 0.3 mm" in str(found)


def test_small_shifts_of_many_slices_do_not_add_up():
    found = sorted_slices([2.5 * k for k in range(41)], [0.1 * (k % 2) for k in range(41)])
    assert isinstance(found, Stack)
    assert (found.problem, found.can_be_resampled, found.count) == (None, False, 41)


@pytest.mark.parametrize(
    ("heights", "count", "problem", "can_be_resampled"),
    [
        ([100, 105, 110, 120, 125], 6, "1 of 6 slices are missing (a gap of 10.0 mm between slices 5.0", True),
        ([100, 105, 110, 120.1, 125.1], 6, "1 of 6 slices are missing (a gap of 10.1 mm", False),
        ([100, 104, 108, 116.3, 120.3], 6, "1 of 6 slices are missing (a gap of 8.3 mm", True),
        ([100, 104, 108, 116.5, 120.5], 6, "not evenly spaced (4.00 to 8.50 mm apart)", True),
        ([100, 102, 104, 107, 110, 113, 116], 6, "not evenly spaced (2.00 to 3.00 mm apart)", True),
    ],
)
def test_an_irregular_stack_says_what_is_wrong_and_which_grid_would_fit_it(heights, count, problem, can_be_resampled):
    stack = sorted_slices(heights)
    assert problem in stack.problem
    assert (stack.can_be_resampled, stack.count) == (can_be_resampled, count)
    np.testing.assert_allclose(stack.ijk_to_lps[:3, 3], [-30, -41.5, 100])
    np.testing.assert_allclose(stack.ijk_to_lps[:3, 2], [0, 0, (heights[-1] - 100) / (count - 1)], atol=1e-12)


def test_mixed_sizes_are_refused(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        if k == 2:
            dataset.Rows = 32
            dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]

    write_series(tmp_path, a_body(), geometry(), edit=edit)
    assert "differ in size (80 x 32, 80 x 64)" in refusal(tmp_path)


def test_mixed_orientations_are_refused(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        if k == 2:
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    write_series(tmp_path, a_body(), geometry(), edit=edit)
    assert "differ in orientation" in refusal(tmp_path)


def test_mixed_pixel_spacings_are_refused(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        if k == 2:
            dataset.PixelSpacing = [0.91, 0.8]

    write_series(tmp_path, a_body(), geometry(), edit=edit)
    assert "differ in pixel size" in refusal(tmp_path)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
def test_slices_without_a_place_are_refused(tmp_path, keyword, empty):
    def edit(dataset: Dataset, k: int) -> None:
        if k == 3:
            if empty:
                setattr(dataset, keyword, None)
            else:
                delattr(dataset, keyword)

    write_series(tmp_path, a_body(), geometry(), edit=edit)
    assert "lack a position, an orientation or a pixel size" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("keyword", "value"), [("PixelSpacing", [0, 0.8]), ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0])]
)
def test_impossible_geometry_is_refused(tmp_path, keyword, value):
    write_series(tmp_path, a_body(), geometry(), **{keyword: value})
    assert "makes no sense" in refusal(tmp_path)


@pytest.mark.parametrize("force", [False, True])
def test_mr_is_refused_even_by_force(tmp_path, force):
    write_series(tmp_path, a_body(), geometry(), Modality="MR", SOPClassUID=MRImageStorage)
    assert "it is MR, not CT" in refusal(tmp_path, force=force)


def test_a_map_that_is_not_in_hounsfield_units_is_refused(tmp_path):
    write_series(tmp_path, a_body(), geometry(), RescaleType="Z_EFF")
    assert "its values are Z_EFF, not Hounsfield units" in refusal(tmp_path)


@pytest.mark.parametrize("group", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_a_map_in_one_file_that_is_not_in_hounsfield_units_is_refused(tmp_path, group):
    write_enhanced(tmp_path / "map.dcm", a_body(), geometry(), range(5))
    dataset = pydicom.dcmread(tmp_path / "map.dcm")
    kind = Dataset()
    kind.RescaleType = "Z_EFF"
    for item in dataset[group]:
        item.PixelValueTransformationSequence = [*item.get("PixelValueTransformationSequence", []), kind]
    dataset.save_as(tmp_path / "map.dcm")
    assert "its values are Z_EFF, not Hounsfield units" in refusal(tmp_path)


@pytest.mark.parametrize("missing", [["RescaleIntercept"], ["RescaleSlope", "RescaleIntercept"]], ids=len)
def test_a_slice_without_the_rescaling_of_the_others_is_refused(tmp_path, missing):
    def edit(dataset: Dataset, k: int) -> None:
        for keyword in missing * (k == 2):
            del dataset[keyword]

    write_series(tmp_path, a_body(), geometry(), edit=edit)
    assert "1 of its 5 slices do not specify their rescaling to Hounsfield units" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen capture"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "Secondary Capture"),
        ({"SamplesPerPixel": 3}, "color image"),
    ],
)
def test_pictures_that_are_no_slices_are_refused_alone_and_left_out_of_a_series(tmp_path, tags, reason):
    write_series(tmp_path / "pictures", a_body((2, 64, 80)), geometry(), **tags)
    assert reason in refusal(tmp_path / "pictures")

    def edit(dataset: Dataset, k: int) -> None:
        if k == 5:
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)

    array = a_body((6, 64, 80))
    write_series(tmp_path / "mixed", array, geometry(), edit=edit)
    volume = read_volume(tmp_path / "mixed")
    np.testing.assert_array_equal(volume.array, array[:5])
    assert any(warning.endswith("left out: 1.") for warning in volume.metadata["warnings"])


def test_a_report_without_image_is_no_ct(tmp_path):
    report = Dataset()
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.67", generate_uid()
    report.Modality, report.SeriesInstanceUID = "SR", generate_uid()
    report.save_as(tmp_path / "dose", enforce_file_format=True)
    assert "it is SR, not CT" in refusal(tmp_path)


def test_a_single_slice_is_refused(tmp_path):
    write_series(tmp_path, a_body((1, 64, 80)), geometry())
    assert "single slice" in refusal(tmp_path)
    assert "single slice" in refusal(tmp_path / "000.dcm")


def test_an_image_without_contrast_is_refused(tmp_path):
    write_series(tmp_path, np.full((4, 16, 16), 5, np.int16), geometry())
    assert "every voxel has the value 5" in refusal(tmp_path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_a_file_cut_short_is_refused(tmp_path, syntax):
    write_series(tmp_path, a_body(), geometry(), syntax=syntax)
    whole = (tmp_path / "003.dcm").read_bytes()
    (tmp_path / "003.dcm").write_bytes(whole[: len(whole) * 2 // 3])
    message = refusal(tmp_path)
    assert "003.dcm" in message
    assert "incomplete" in message


def test_pixels_shorter_than_the_image_are_refused(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        if k == 1:
            dataset.PixelData = dataset.PixelData[:-64]

    write_series(tmp_path, a_body(), geometry(), edit=edit)
    assert "incomplete" in refusal(tmp_path)


def test_compressed_pixels_that_are_noise_are_refused(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        if k == 1:
            dataset.PixelData = encapsulate([bytes(range(256)) * 8])
            dataset["PixelData"].is_undefined_length = True

    write_series(tmp_path, a_body(), geometry(), syntax=JPEG2000Lossless, edit=edit)
    assert "001.dcm" in refusal(tmp_path)


def test_a_file_without_pixels_is_refused(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        if k == 1:
            del dataset.PixelData

    write_series(tmp_path, a_body(), geometry(), edit=edit)
    assert "001.dcm" in refusal(tmp_path)


def test_an_enhanced_file_with_fewer_frames_than_it_says_is_refused(tmp_path):
    write_enhanced(tmp_path / "enhanced", a_body(), geometry(), order=range(5))
    dataset = pydicom.dcmread(tmp_path / "enhanced")
    dataset.PixelData = dataset.PixelData[: 3 * 64 * 80 * 2]
    dataset.NumberOfFrames = 3
    dataset.save_as(tmp_path / "enhanced")
    assert "3 frames but describes 5" in refusal(tmp_path)


def test_frames_without_positions_are_refused(tmp_path):
    dataset = a_slice((a_body() + 1024).astype(np.uint16))
    dataset.SeriesInstanceUID, dataset.NumberOfFrames = generate_uid(), 5
    dataset.save_as(tmp_path / "cine", enforce_file_format=True)
    assert "lack a position" in refusal(tmp_path)


def test_folders_without_dicom_images_say_so(tmp_path):
    assert "no DICOM images" in refusal(tmp_path)
    (tmp_path / "ct.nii.gz").touch()
    assert "ct.nii.gz" in refusal(tmp_path)
    with pytest.raises(InputError, match="no DICOM images"):
        list_series(tmp_path)


def test_an_unknown_series_is_a_usage_error_that_lists_what_there_is(tmp_path):
    write_series(tmp_path, a_body(), geometry())
    with pytest.raises(UsageError, match=r'no series 2.*1: DICOM series 3 \("Abdomen"\)'):
        read_volume(tmp_path, series=2)


def test_a_warning_tells_of_intensities_that_are_no_hounsfield_units(tmp_path):
    write_series(tmp_path, a_body() + 1024, geometry(), intercept=0)
    volume = read_volume(tmp_path)
    assert any("Hounsfield" in warning for warning in volume.metadata["warnings"])
