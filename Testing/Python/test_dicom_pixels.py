# SPDX-License-Identifier: Apache-2.0
"""Stored values become Hounsfield units one by one, and only what a header calls padding becomes air."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_series import a_slice
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from LiverXAILib.errors import InputError
from LiverXAILib.volumes.dicom.headers import CtSlice
from LiverXAILib.volumes.dicom.pixels import StoredPixels

AIR = -1024.0
STORED = np.array([[0, 10, 20], [4000, 4001, 4002], [1000, 1100, 1200]])


def written(folder: Path, dataset: Dataset) -> StoredPixels:
    little = dataset.file_meta.TransferSyntaxUID != ExplicitVRBigEndian
    dataset.save_as(folder / "file.dcm", implicit_vr=False, little_endian=little, enforce_file_format=True)
    return StoredPixels(folder / "file.dcm")


def hounsfield(
    folder: Path, stored: np.ndarray, slope: float = 1.0, intercept: float = -1024.0, **padding: object
) -> tuple[np.ndarray, str | None]:
    """The pixels of a file, signed if `stored` holds negative values; `padding` is (VR, value) for each keyword."""
    signed = bool(stored.min() < 0)
    dataset = a_slice(stored.astype(np.int16 if signed else np.uint16), signed=signed)
    for keyword, (vr, value) in padding.items():
        dataset[keyword] = DataElement(keyword, vr, value)
    one = CtSlice(folder, 0, stored.shape, None, None, None, slope=slope, intercept=intercept)
    return written(folder, dataset).hounsfield(one)


PADDING: dict[str, tuple[dict[str, object], list[int]]] = {
    "none": ({}, []),
    "empty": ({"PixelPaddingValue": ("US", None)}, []),
    "one value": ({"PixelPaddingValue": ("US", 4001)}, [4001]),
    "lowest value": ({"PixelPaddingValue": ("US", 0)}, [0]),
    "two values, not what lies between them": ({"PixelPaddingValue": ("US", [4000, 4002])}, [4000, 4002]),
    "range": (
        {"PixelPaddingValue": ("US", 4000), "PixelPaddingRangeLimit": ("US", 4001)},
        [4000, 4001],
    ),
    "range from above": (
        {"PixelPaddingValue": ("US", 4002), "PixelPaddingRangeLimit": ("US", 4001)},
        [4001, 4002],
    ),
    "bytes": ({"PixelPaddingValue": ("OW", (4001).to_bytes(2, "little"))}, [4001]),
}


@pytest.mark.parametrize(("padding", "air"), PADDING.values(), ids=PADDING.keys())
def test_exactly_the_values_that_the_header_calls_padding_become_air(tmp_path, padding, air):
    image, note = hounsfield(tmp_path, STORED, **padding)
    np.testing.assert_array_equal(image, np.where(np.isin(STORED, air), AIR, STORED - 1024.0))
    assert note is None


@pytest.mark.parametrize(
    ("value", "vr"), [(-2000, "SS"), (63536, "US"), (-32768, "SS"), (32768, "US"), (32767, "SS"), (32767, "US")]
)
def test_signed_padding_is_understood_however_it_is_written(tmp_path, value, vr):
    meant = value - 65536 if value > 32767 else value
    stored = np.array([[meant, meant - 1 if meant > 0 else meant + 1], [-900, 60]])
    image, _ = hounsfield(tmp_path, stored, intercept=0.0, PixelPaddingValue=(vr, value))
    np.testing.assert_array_equal(image, np.where(stored == meant, AIR, stored))


@pytest.mark.parametrize(
    ("value", "kept"), [(-201, False), (-200, True), (300, True), (301, False)], ids=lambda value: str(value)
)
def test_padding_is_ignored_with_a_note_if_it_lies_within_soft_tissue(tmp_path, value, kept):
    stored = np.array([[value, 50], [-1000, 1000]])
    image, note = hounsfield(tmp_path, stored, intercept=0.0, PixelPaddingValue=("SS", value))
    assert image[0, 0] == (value if kept else AIR)
    assert (note is not None and "soft tissue" in note) == kept


def test_a_range_of_padding_that_includes_soft_tissue_is_ignored_whatever_the_slope(tmp_path):
    limits = {"PixelPaddingValue": ("SS", -1500), "PixelPaddingRangeLimit": ("SS", 1500)}
    stored = np.array([[-1200, 50], [-1000, 1400]])
    for slope in (1.0, -1.0):
        image, note = hounsfield(tmp_path, stored, slope, 0.0, **limits)
        np.testing.assert_array_equal(image, slope * stored)
        assert "soft tissue" in note


def test_padding_is_rescaled_before_it_is_compared_with_soft_tissue(tmp_path):
    # 600 is 50 HU here, and 3000 is 1250 HU.
    stored = np.array([[600, 3000], [0, 100]])
    for value, air in ((600, []), (3000, [3000])):
        image, _ = hounsfield(tmp_path, stored, 0.5, -250.0, PixelPaddingValue=("SS", value))
        np.testing.assert_array_equal(image, np.where(np.isin(stored, air), AIR, 0.5 * stored - 250))


def test_a_range_of_padding_below_soft_tissue_becomes_air_although_its_stored_values_look_like_tissue(tmp_path):
    stored = np.array([[-101, -100, -70], [-50, -49, 5]])
    limits = {"PixelPaddingValue": ("SS", -100), "PixelPaddingRangeLimit": ("SS", -50)}
    image, note = hounsfield(tmp_path, stored, 10.0, 0.0, **limits)
    np.testing.assert_array_equal(image, [[-1010, AIR, AIR], [AIR, -490, 50]])
    assert note is None


def test_bytes_of_padding_in_a_big_endian_file_are_big_endian(tmp_path):
    dataset = a_slice(STORED.astype(np.uint16), ExplicitVRBigEndian)
    dataset["PixelPaddingValue"] = DataElement("PixelPaddingValue", "OB", (4001).to_bytes(2, "big"))
    image, _ = written(tmp_path, dataset).hounsfield(CtSlice(tmp_path, 0, (3, 3), None, None, None, intercept=-1024))
    np.testing.assert_array_equal(image, np.where(STORED == 4001, AIR, STORED - 1024.0))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_frame_that_the_file_does_not_hold_is_incomplete(tmp_path, count, compressed):
    frames = np.arange(16 * 16 * count, dtype=np.uint16).reshape(count, 16, 16)
    dataset = a_slice(frames, *[RLELossless] * compressed)
    dataset.NumberOfFrames = count
    pixels = written(tmp_path, dataset)
    last = CtSlice(tmp_path, count - 1, (16, 16), None, None, None)
    np.testing.assert_array_equal(pixels.hounsfield(last)[0], frames[-1])
    with pytest.raises(InputError, match="incomplete"):
        pixels.hounsfield(CtSlice(tmp_path, count, (16, 16), None, None, None))


@pytest.mark.parametrize(("length", "whole"), [(8, False), (10, True), (12, False)])
def test_pixels_of_another_length_than_the_header_says_are_damaged(tmp_path, length, whole):
    # Three by three pixels of one byte are padded to an even length by one more.
    dataset = a_slice(np.zeros((3, 3), np.uint16))
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = bytes(range(length))
    pixels, one = written(tmp_path, dataset), CtSlice(tmp_path, 0, (3, 3), None, None, None)
    if whole:
        np.testing.assert_array_equal(pixels.hounsfield(one)[0], np.arange(9).reshape(3, 3))
    else:
        with pytest.raises(InputError, match="damaged"):
            pixels.hounsfield(one)


@pytest.mark.parametrize(
    ("stored", "in_upper_bits"), [(STORED, True), (STORED - 2000, True), (STORED, False), (STORED - 2000, False)]
)
def test_values_in_the_upper_bits_of_each_word_are_moved_down(tmp_path, stored, in_upper_bits):
    signed = bool(stored.min() < 0)
    words = stored * 16 if in_upper_bits else stored
    dataset = a_slice(words.astype(np.int16 if signed else np.uint16), signed=signed)
    # Without values in the upper bits, High Bit is wrong.
    dataset.BitsStored, dataset.HighBit = 12, 15
    image, _ = written(tmp_path, dataset).hounsfield(CtSlice(tmp_path, 0, stored.shape, None, None, None))
    np.testing.assert_array_equal(image, stored)
