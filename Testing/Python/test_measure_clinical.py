# SPDX-License-Identifier: Apache-2.0
"""RECIST, plausibility, contrast phase, fat, volumes for body size: against rules, synthetic bodies and real CTs."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path

import jsonschema
import numpy as np
import pydicom
import pytest
from dicom_series import a_body, geometry, write_series
from scipy.stats import norm

from LiverXAILib.context import RunContext
from LiverXAILib.errors import UsageError
from LiverXAILib.inference.segmentation import Segmentation
from LiverXAILib.measure import measure, phase
from LiverXAILib.measure.lesions import enhancement, location, slice_instance_number, sphericity
from LiverXAILib.measure.liver import ROMAN, remnants, segment_masks, standard_volume_ml, steatosis_hint
from LiverXAILib.measure.measurements import (
    AxialDiameters,
    Candidate,
    ContrastPhase,
    FindingReliability,
    LesionMeasurements,
    Measurements,
    RejectedLesion,
)
from LiverXAILib.measure.phase import _density, estimate_phase
from LiverXAILib.measure.plausibility import Position, implausibilities, liver_position
from LiverXAILib.measure.recist import recist
from LiverXAILib.models.labels import result_labels
from LiverXAILib.models.registry import ImportOptions
from LiverXAILib.models.serialization import from_json_value
from LiverXAILib.models.spec import LIVER, TUMOR
from LiverXAILib.pipeline import check_orientation
from LiverXAILib.report.schema import SCHEMA_FILE, measurements_schema
from LiverXAILib.report.tables import write_tables
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.io import read_volume
from LiverXAILib.volumes.volume import Grid, Volume

#: (k, j, i) = (S, P, L), 4 mm.
SHAPE = (60, 60, 90)
MATRIX = np.diag([4.0, 4.0, 4.0, 1.0])
K, J, I = np.indices(SHAPE)  # noqa: E741


def _ellipse(k: int, j: int, i: int, size: tuple[float, float, float]) -> np.ndarray:
    return ((K - k) / size[0]) ** 2 + ((J - j) / size[1]) ** 2 + ((I - i) / size[2]) ** 2 <= 1


LIVER_AT = _ellipse(28, 28, 28, (14, 16, 18))
LESIONS = _ellipse(28, 28, 24, (3, 4, 4)) | _ellipse(32, 26, 36, (2, 2, 2)) | _ellipse(22, 30, 30, (1, 1, 1))


def _body(liver_hu: float = 110, aorta_hu: float = 150, veins: float = 35, noise: float = 8) -> np.ndarray:
    """HU of a synthetic trunk: lungs above, the spine behind, the aorta in front of it, the liver on the right."""
    rng = np.random.default_rng(0)
    hu = np.full(SHAPE, -1000.0)
    trunk = ((J - 30) / 28) ** 2 + ((I - 45) / 42) ** 2 <= 1
    hu[trunk] = 40
    for side in (25, 65):
        hu[trunk & (K > 44) & (((J - 28) / 18) ** 2 + ((I - side) / 14) ** 2 <= 1)] = -850
    hu[trunk & (((J - 48) / 5) ** 2 + ((I - 45) / 5) ** 2 <= 1)] = 600
    hu[trunk & (((J - 38.5) / 2.6) ** 2 + ((I - 48) / 2.6) ** 2 <= 1)] = aorta_hu
    hu[LIVER_AT] = liver_hu
    hu[LIVER_AT & (abs(J - 28) < 2) & (abs(K - 28) < 3)] = liver_hu + veins
    return (hu + rng.normal(0, noise, SHAPE)).round().astype(np.int16)


def _segmentation(mask: np.ndarray = LIVER_AT, lesions: np.ndarray | None = LESIONS) -> Segmentation:
    labels = mask.astype(np.uint8)
    if lesions is not None:
        labels[lesions & mask] = 2
    return Segmentation(Volume(labels, MATRIX), (LIVER,) if lesions is None else (LIVER, TUMOR))


# --- RECIST -------------------------------------------------------------------------------------------------------


def test_targets_are_the_two_longest_measurable_lesions_and_the_sum_is_that_of_rounded_numbers() -> None:
    found = recist({1: 22.5, 2: 31.4, 3: 9.9, 4: 12.4, 5: 10.0}, 1.5)
    assert found.targets == (2, 1)
    assert found.measurable == (2, 1, 4, 5)
    assert found.diameters_mm == (31, 23)  # halves are rounded up
    assert found.sum_mm == sum(found.diameters_mm) == 54
    assert not found.chosen_by_reader


def test_on_thick_slices_a_lesion_must_be_twice_their_thickness() -> None:
    assert recist({1: 15.0, 2: 13.9}, 7.0).targets == (1,)
    assert recist({1: 10.5}, 5.0).targets == (1,)
    assert recist({}, 1.0).sum_mm == 0


def test_a_reader_can_choose_the_targets() -> None:
    found = recist({1: 30.0, 2: 20.0, 3: 8.0}, 1.0, targets=(3, 2))
    assert (found.targets, found.sum_mm, found.chosen_by_reader) == ((2, 3), 28, True)
    assert recist({1: 30.0}, 1.0, targets=()).targets == ()
    with pytest.raises(UsageError, match="no lesion 4; the CT shows 1 lesion"):
        recist({1: 30.0}, 1.0, targets=(4,))
    with pytest.raises(UsageError, match="at most 2"):
        recist({1: 30.0, 2: 20.0, 3: 20.0}, 1.0, targets=(1, 2, 3))


# --- lesions and liver --------------------------------------------------------------------------------------------


def test_a_lesion_has_contrast_shape_place_and_enhancement() -> None:
    hu = _body()
    hu[LESIONS] -= 60
    measured = measure(Volume(hu, MATRIX), _segmentation())
    first = measured.lesions[0]
    liver = hu[LIVER_AT & ~LESIONS].mean()
    assert first.contrast_hu == pytest.approx(first.mean_hu - liver, abs=1e-6)
    assert measured.phase is not None
    assert measured.phase.phase == "portal venous"
    assert first.enhancement == "hypoattenuating, portal venous"
    assert first.location == "right of the body's midline (the model has no hepatic segments)"
    assert 0.85 < first.sphericity <= 1
    assert first.instance_number is None
    assert measured.functional_volume_ml == pytest.approx(measured.liver_volume_ml - measured.tumor_volume_ml)


def test_the_sphericity_of_a_spheroid_is_that_of_geometry() -> None:
    spheroid = _ellipse(28, 28, 28, (5, 5, 14))
    (lesion,) = measure(Volume(_body(), MATRIX), _segmentation(lesions=spheroid)).lesions
    eccentricity = np.sqrt(1 - (5 / 14) ** 2)
    surface = 2 * np.pi * 25 * (1 + 14 / (5 * eccentricity) * np.arcsin(eccentricity))
    expected = np.pi ** (1 / 3) * (6 * 4 / 3 * np.pi * 5 * 5 * 14) ** (2 / 3) / surface
    assert lesion.sphericity == pytest.approx(expected, rel=0.05)
    assert expected < 0.9


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 1.5), (2.0, 0.7, 0.7), (0.7, 2.0, 0.7)])
@pytest.mark.parametrize("axis", range(3))
def test_the_sphericity_does_not_depend_on_the_shape_of_the_voxels(spacing: tuple, axis: int) -> None:
    """Spheroids with axes of 12 and 30 mm, along each of the image's axes."""
    shape = tuple(round(34 / mm) for mm in spacing[::-1])
    x, y, z = (
        (index - (n - 1) / 2) * mm for index, n, mm in zip(np.indices(shape)[::-1], shape[::-1], spacing, strict=True)
    )
    spheroid = sum((along / (15 if n == axis else 6)) ** 2 for n, along in enumerate((x, y, z))) <= 1
    eccentricity = np.sqrt(1 - (6 / 15) ** 2)
    surface = 2 * np.pi * 36 * (1 + 15 / (6 * eccentricity) * np.arcsin(eccentricity))
    expected = np.pi ** (1 / 3) * (6 * 4 / 3 * np.pi * 6 * 6 * 15) ** (2 / 3) / surface
    found = sphericity(spheroid, Grid(shape, np.diag([*spacing, 1.0])))
    assert found == pytest.approx(expected, rel=0.06)


def test_a_lesion_in_a_dicom_series_names_the_instance_number_of_its_slice(tmp_path: Path) -> None:
    hu = a_body()
    write_series(tmp_path / "series", hu, geometry(), instance_numbers=[20, 7, 18, 3, 16])
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, hu)
    labels = np.zeros(hu.shape, np.uint8)
    labels[:, 15:45, 15:60] = 1
    labels[3, 20:30, 20:32] = 2
    (lesion,) = measure(volume, Segmentation(volume.with_array(labels), (LIVER, TUMOR))).lesions
    assert (lesion.axial.slice_index, lesion.instance_number) == (3, 3)
    assert [slice_instance_number(volume, "k", k) for k in range(5)] == [20, 7, 18, 3, 16]
    assert slice_instance_number(volume, "i", 3) is None


def test_segments_say_where_a_lesion_lies_and_what_resections_leave() -> None:
    names = {f"liver_segment_{n}": n for n in range(1, 9)} | {"liver_tumor": 9}
    specs, _ = result_labels({"liver": 10, **names}, overlapping=False, reading=ImportOptions())
    labels = np.zeros(SHAPE, np.uint8)
    for n in range(8):
        labels[LIVER_AT & (10 + 36 * n // 8 <= I) & (10 + 36 * (n + 1) // 8 > I)] = n + 1
    labels[LIVER_AT & (labels == 0)] = 10
    labels[LESIONS] = 9
    measured = measure(Volume(_body(), MATRIX), Segmentation(Volume(labels, MATRIX), specs))
    assert set(measured.segment_volumes_ml) == set(ROMAN)
    for n, name in enumerate(ROMAN, start=1):
        assert measured.segment_volumes_ml[name] == pytest.approx(np.count_nonzero(labels == n) * 0.064)
    left = {remnant.resection: remnant for remnant in measured.remnants}["right hepatectomy"]
    assert left.remaining_segments == ("I", "II", "III", "IV")
    assert left.volume_ml == pytest.approx(sum(measured.segment_volumes_ml[name] for name in ROMAN[:4]))
    assert left.percent == pytest.approx(100 * left.volume_ml / sum(measured.segment_volumes_ml.values()))
    assert remnants({"I": 1.0}, None) == ()


def test_of_a_lesion_s_segments_the_one_that_holds_most_of_it_is_named_first() -> None:
    voxels = np.argwhere(np.ones((1, 1, 100), bool))
    columns = np.arange(100).reshape(1, 1, 100)
    segments = {"IV": columns < 30, "V": (columns >= 30) & (columns < 91), "VIII": columns >= 91}
    assert location(voxels, segments, 0.0, None) == "segments V (61 %), IV (30 %)"  # not VIII, which holds 9 %


@pytest.mark.parametrize(
    ("contrast", "probability", "says"),
    [
        *((10.0, 0.8, "isoattenuating, arterial"), (10.1, 0.8, "hyperattenuating, arterial")),
        *((-10.0, 0.8, "isoattenuating, arterial"), (-10.1, 0.8, "hypoattenuating, arterial")),
        *((10.1, 0.79, None), (None, 0.8, None)),
    ],
)
def test_a_lesion_within_ten_hu_of_the_liver_is_isoattenuating(
    contrast: float | None, probability: float, says: str | None
) -> None:
    assert enhancement(contrast, ContrastPhase("arterial", probability, None, 90)) == says
    assert enhancement(contrast, None) is None


@pytest.mark.parametrize(
    ("share", "x", "middle", "says"),
    [
        (9, -1.0, 0.0, "right of the body's midline (the model has no hepatic segments)"),
        (9, 0.0, 0.0, "left of the body's midline (the model has no hepatic segments)"),
        (9, 0.0, None, None),
        (10, 0.0, 0.0, "segment VII (10 %)"),
        (100, 0.0, None, "segment VII (100 %)"),
    ],
)
def test_a_lesion_without_a_tenth_in_any_segment_lies_beside_the_midline(
    share: int, x: float, middle: float | None, says: str | None
) -> None:
    voxels = np.argwhere(np.ones((1, 1, 100), bool))
    assert location(voxels, {"VII": np.arange(100).reshape(1, 1, 100) < share}, x, middle) == says


def test_the_shape_of_a_lesion_is_not_told_on_sheared_grids_and_never_rounder_than_a_ball() -> None:
    sheared = MATRIX.copy()
    sheared[0, 2] = 2.0
    mask = np.ones((1, 1, 1), bool)
    assert sphericity(mask, Grid(mask.shape, sheared)) is None
    assert sphericity(mask, Grid(mask.shape, MATRIX)) == 1


def test_a_slice_has_an_instance_number_only_if_it_is_a_file_that_has_one(tmp_path: Path) -> None:
    write_series(tmp_path / "series", a_body(), geometry(), instance_numbers=[20, 7, 18, 3, 16])
    volume = read_volume(tmp_path / "series")
    assert slice_instance_number(volume.cropped(Box.between((0, 0, 0), (4, 60, 60))), "k", 1) is None
    header = pydicom.dcmread(volume.metadata["files"][1])
    del header.InstanceNumber
    header.save_as(volume.metadata["files"][1])
    assert slice_instance_number(volume, "k", 0) == 20
    assert slice_instance_number(volume, "k", 1) is None


def test_parts_of_a_segment_are_one_segment() -> None:
    labels = (np.indices((1, 1, 10))[2] // 2).astype(np.uint8)  # 0 to 4, two voxels each
    names = {"liver_segment_4a": 1, "liver_segment_4b": 2, "liver_segment_8": 3, "liver": 4}
    specs = tuple(dataclasses.replace(LIVER, name=name, value=value) for name, value in names.items())
    masks = segment_masks(Segmentation(Volume(labels, MATRIX), specs))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()} == {"IV": [2, 3, 4, 5], "VIII": [6, 7]}


@pytest.mark.parametrize(("reference", "percent"), [(None, 100 * 10 / 36), (50.0, 20.0)])
def test_remnants_are_percentages_of_the_liver_or_of_the_standard_volume(
    reference: float | None, percent: float
) -> None:
    volumes = {name: float(n) for n, name in enumerate(ROMAN, start=1)}
    found = {remnant.resection: remnant for remnant in remnants(volumes, reference)}
    assert found["right hepatectomy"].volume_ml == 1 + 2 + 3 + 4
    assert found["right hepatectomy"].percent == pytest.approx(percent)
    assert found["left trisectionectomy"].volume_ml == 1 + 6 + 7
    assert [remnant.percent for remnant in remnants(dict.fromkeys(ROMAN, 0.0), None)] == [0.0] * 5


@pytest.mark.parametrize(("height", "weight"), [(100, 25), (250, 350)])
def test_the_standard_volume_is_that_of_adults_of_any_size(height: float, weight: float) -> None:
    assert standard_volume_ml(height, weight) == pytest.approx(-794.41 + 1267.28 * np.sqrt(height * weight / 3600))
    for wrong in ((99, 70), (251, 70), (170, 24), (170, 351)):
        with pytest.raises(UsageError, match=f"{wrong[0]} cm and weight {wrong[1]} kg are not those of an adult"):
            standard_volume_ml(*wrong)
    for missing in ((None, 70), (170, None)):
        with pytest.raises(UsageError, match="both"):
            standard_volume_ml(*missing)
    assert standard_volume_ml(None, None) is None


def test_the_standard_volume_is_vautheys() -> None:
    # 170 cm and 70 kg: 1.818 m2.
    assert standard_volume_ml(170, 70) == pytest.approx(-794.41 + 1267.28 * 1.81812, abs=0.1)
    measured = measure(Volume(_body(), MATRIX), _segmentation(), height_cm=170, weight_kg=70)
    assert measured.standard_volume_ratio == pytest.approx(measured.functional_volume_ml / standard_volume_ml(170, 70))
    with pytest.raises(UsageError, match="not those of an adult"):
        standard_volume_ml(1.7, 70)
    with pytest.raises(UsageError, match="both"):
        measure(Volume(_body(), MATRIX), _segmentation(), height_cm=170)


@pytest.mark.parametrize(
    ("liver", "aorta", "veins", "phase"),
    [(52, 42, 5, "native"), (68, 320, 8, "arterial"), (112, 155, 40, "portal venous"), (95, 105, 15, "delayed")],
)
def test_the_phase_is_told_from_liver_aorta_and_veins(liver: float, aorta: float, veins: float, phase: str) -> None:
    found = estimate_phase(Volume(_body(liver, aorta, veins), MATRIX), LIVER_AT)
    assert found is not None
    assert found.phase == phase
    assert found.aorta_hu == pytest.approx(aorta, abs=8)
    assert 0.5 < found.probability <= 1


def test_the_phase_after_a_change_of_the_outlines_is_that_of_a_first_look() -> None:
    rng, hu = np.random.default_rng(0), _body()
    volume, seen = Volume(hu, MATRIX), set()
    k, j, i = np.nonzero(LIVER_AT)
    for cut in (0, 0, 6, 6, 0, 12, 0):
        liver = LIVER_AT.copy()
        liver[k.max() + 1 - cut :] = False  # as a correction of the liver does, which moves the slices in question
        at = rng.integers(len(k))
        liver[k[at] - 4 : k[at] + 5, j[at] - 6 : j[at] + 7, i[at] - 6 : i[at] + 7] = False
        found = estimate_phase(volume, liver)
        assert found == estimate_phase(Volume(hu, MATRIX), liver)
        assert found is not None
        assert found.aorta_hu is not None
        seen.add(found)
    assert len(seen) > 3


def test_after_decisions_about_lesions_only_their_part_of_the_phase_is_estimated_again(monkeypatch) -> None:
    searched, fields = [], phase._fields
    monkeypatch.setattr(phase, "_fields", lambda *args: searched.append(1) or fields(*args))
    volume, smooth = Volume(_body(), MATRIX), []
    for lesions in (LESIONS, LESIONS & (K < 30), LESIONS & (J < 30)):
        for liver in (LIVER_AT, LIVER_AT & (np.nonzero(LIVER_AT)[0].min() + 5 < K)):  # the model's, and the reader's
            measure(volume, _segmentation(liver, lesions))
            smooth += [image for _box, image in phase._SCANS[volume]._smooth]
    assert (len(searched), len(set(map(id, smooth)))) == (2, 2)


def _aorta(hu: np.ndarray, liver: np.ndarray, spacing: np.ndarray) -> float | None:
    return phase._aorta(phase._fields(hu, spacing), phase._noise(hu, liver), liver)


@pytest.mark.parametrize(
    ("before", "aside", "found"),
    [
        *((18, 0, False), (19, 0, True), (59, 0, True), (60, 0, False)),
        *((30, -12, False), (30, -11, True), (30, 34, True), (30, 35, False)),
    ],
)
def test_the_aorta_is_looked_for_in_a_field_before_the_spine(before: int, aside: int, found: bool) -> None:
    """Between 18 and 60 mm before it, from 12 mm to its right to 35 mm to its left."""
    hu = np.full((20, 160, 160), -1000.0)
    hu[:, 10:150, 10:150] = 50
    hu[:, 103:118, 73:88] = 500  # its center in row 110, column 80
    # As large as the disc that is searched for, which fits at one position only.
    hu[:, 104 - before : 116 - before, 74 + aside : 86 + aside] = 150
    liver = np.zeros(hu.shape, bool)
    liver[:, 20:30, 20:30] = True
    assert _aorta(hu, liver, np.ones(3)) == pytest.approx(150 if found else 50, abs=0.1)


@pytest.mark.parametrize("bone", [np.s_[:, 3:7, 40:50], np.s_[:, 36:44, 70:78]], ids=["breastbone", "rib"])
def test_bone_in_front_or_at_the_side_is_not_taken_for_the_spine(bone: tuple) -> None:
    hu = _body()
    hu[bone] = 700
    found = estimate_phase(Volume(hu, MATRIX), LIVER_AT)
    assert found is not None
    assert found.aorta_hu == pytest.approx(150, abs=8)


@pytest.mark.parametrize("slices", [12, 13])
def test_at_least_three_slices_tell_of_the_aorta(slices: int) -> None:
    hu = np.full((slices, 60, 60), 50.0)
    hu[:, 40:55, 20:35] = 500
    liver = np.zeros(hu.shape, bool)
    liver[:, 2:12, 2:12] = True
    told = _aorta(hu, liver, np.ones(3))  # each sixth
    assert (told is None) == (slices == 12)


@pytest.mark.parametrize(("difference", "told"), [(39, True), (41, False)])
def test_slices_that_disagree_tell_nothing_of_the_aorta(difference: float, told: bool) -> None:
    hu = np.full((30, 60, 60), 50.0)
    hu[12:] += difference  # three of five slices
    hu[:, 40:55, 20:35] = 500
    liver = np.zeros(hu.shape, bool)
    liver[:, 2:12, 2:12] = True
    assert (_aorta(hu, liver, np.ones(3)) is not None) == told


def _slices(count: int = 13, spine: tuple[slice, slice] = np.s_[70:85, 22:37]) -> tuple[np.ndarray, np.ndarray]:
    """Slices of a trunk of 50 HU with a midline in column 29.5, a middle row 49.5 and a spine; and its liver."""
    hu = np.full((count, 100, 60), -1000.0)
    hu[:, 5:95, 5:55] = 50
    hu[(slice(None), *spine)] = 500
    liver = np.zeros(hu.shape, bool)
    liver[:, 30:42, 7:19] = True
    return hu, liver


@pytest.mark.parametrize(
    ("spine", "spacing", "told"),
    [
        (np.s_[70:80, 25:35], (1, 2, 1), True),  # 200 mm²
        (np.s_[70:80, 25:34], (1, 2, 1), False),
        (np.s_[70:80, 25:35], (1, 1, 2), True),
        (np.s_[70:80, 25:34], (1, 1, 2), False),
        (np.s_[70:90, 45:55], (1, 1, 1), True),  # its outermost column is 24.5 mm from the midline
        (np.s_[70:90, 4:14], (1, 1, 1), False),  # 25.5 mm
        (np.s_[70:80, 33:43], (1, 1, 2), False),  # 25 mm
        (np.s_[50:70, 25:35], (1, 1, 1), True),  # behind the middle
        (np.s_[49:69, 25:35], (1, 1, 1), False),
    ],
)
def test_two_square_centimeters_of_bone_behind_the_middle_are_a_spine(spine: tuple, spacing: tuple, told: bool) -> None:
    hu, liver = _slices(spine=spine)
    assert (_aorta(hu, liver, np.array(spacing)) is not None) == told


@pytest.mark.parametrize("thickness", [5, 6, 15])
def test_each_slice_tells_of_the_aorta_where_slices_are_thick(thickness: float) -> None:
    assert _aorta(*_slices(3), np.array([thickness, 1, 1])) == pytest.approx(50)


@pytest.mark.parametrize("missing", [500, 50], ids=["spine", "body"])
def test_a_slice_without_landmarks_is_passed_over(missing: float) -> None:
    hu, liver = _slices(19)
    hu[0][hu[0] >= missing] = -1000
    assert _aorta(hu, liver, np.ones(3)) == pytest.approx(50)


@pytest.mark.parametrize(
    ("noise", "ripple", "told"),
    # In 3 × 3 pixels of a checkerboard of ± 10 HU the standard deviation is 9.94 HU, of which the limit is 1.5 times,
    # plus 6 HU.
    [(0, 5.9, True), (0, 6.1, False), (10, 20.8, True), (10, 20.95, False)],
)
def test_a_disc_more_uneven_than_the_liver_s_noise_is_no_vessel(noise: float, ripple: float, told: bool) -> None:
    hu, liver = _slices()
    checkerboard = 1 - 2 * (np.indices(hu.shape[1:]).sum(axis=0) % 2)
    hu[:, 40:52, 24:36] = 150 + ripple * checkerboard[40:52, 24:36]
    liver[7, 28:30, 7:19] = True  # the noise is that of the slice that shows most of the liver
    hu[7, 26:44, 5:21] += noise * checkerboard[26:44, 5:21]
    assert _aorta(hu, liver, np.ones(3)) == pytest.approx(150 if told else 50, abs=10)


@pytest.mark.parametrize(
    ("spacing", "before", "aside", "found"),
    [((1, 2, 1), 26, 0, True), ((1, 2, 1), 32, 0, False), ((1, 1, 2), 26, 10, True), ((1, 1, 2), 26, 20, False)],
)
def test_the_field_before_the_spine_is_measured_in_millimeters(
    spacing: tuple, before: int, aside: int, found: bool
) -> None:
    hu, liver = _slices()
    j, i = (6 // mm for mm in spacing[1:])
    hu[:, 77 - before - j : 77 - before + j, 29 + aside - i : 29 + aside + i] = 150
    assert _aorta(hu, liver, np.array(spacing)) == pytest.approx(150 if found else 50, abs=10)


def test_what_is_bright_within_the_liver_is_not_taken_for_the_aorta() -> None:
    hu, liver = _slices()
    hu[:, 40:52, 24:36] = 150
    liver[:, 38:54, 22:38] = True
    assert _aorta(hu, liver, np.ones(3)) < 110


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("spacing", [(1.0, 2.0, 3.0), (2.5, 1.0, 2.0)])
def test_the_liver_s_vessels_are_its_brightest_percent_after_smoothing_by_two_millimeters(
    axis: int, spacing: tuple[float, float, float]
) -> None:
    """A Gaussian of 2 mm attenuates a wave of length L by exp(-2 (2 pi mm / L)²)."""
    wavelength, position = 24.0, np.indices((50, 50, 50))[2 - axis] * spacing[axis]
    hu = 100 + 40 * np.cos(2 * np.pi * position / wavelength)
    liver = np.zeros(hu.shape, bool)
    liver[5:45, 5:45, 5:45] = True
    found = estimate_phase(Volume(hu, np.diag([*spacing, 1.0])), liver)
    assert found is not None
    assert found.liver_vessels_hu == pytest.approx(100 + 40 * np.exp(-2 * (2 * np.pi / wavelength) ** 2), abs=1.2)
    assert found.aorta_hu is None


@pytest.mark.parametrize(("size", "told"), [((9, 9, 12), True), ((10, 7, 15), False)])
def test_a_liver_of_two_hundred_voxels_within_its_rim_tells_of_the_phase(size: tuple, told: bool) -> None:
    """The rim is two voxels of 2 mm: 5 × 5 × 8 voxels are enough, 6 × 3 × 11 are not."""
    liver = np.zeros((30, 30, 30), bool)
    liver[tuple(slice(6, 6 + n) for n in size)] = True
    found = estimate_phase(Volume(np.full(liver.shape, 50.0), np.diag([2.0, 2.0, 2.0, 1.0])), liver)
    assert (found is not None) == told


def test_a_landmark_has_its_typical_hu_unless_it_is_misread_in_one_of_ten() -> None:
    for hu in (90.0, 112.0, 180.0):
        assert _density(hu, 112.0, 22.0) == pytest.approx(0.9 * norm.pdf(hu, 112, 22) + 0.1 / 400)


@pytest.mark.parametrize(("hu", "says"), [(40, "suggests"), (41, "possible"), (48, "possible"), (49, "no sign")])
def test_fat_is_suggested_up_to_40_hu_and_possible_up_to_48(hu: float, says: str) -> None:
    sentence = steatosis_hint(ContrastPhase("native", 0.8, None, 60), hu)  # 0.8 is the least certain probability
    assert sentence is not None
    assert sentence.startswith(f"{hu} HU")
    assert says in sentence


def test_fat_is_judged_in_native_images_only() -> None:
    native, portal, unsure = (ContrastPhase(p, q, None, 60) for p, q in
                              (("native", 0.9), ("portal venous", 0.99), ("native", 0.6)))  # fmt: skip
    assert "suggests steatosis" in (steatosis_hint(native, 35) or "")
    assert "possible" in (steatosis_hint(native, 45) or "")
    assert "no sign" in (steatosis_hint(native, 60) or "")
    assert steatosis_hint(portal, 35) is None
    assert steatosis_hint(unsure, 35) is None


# --- plausibility -------------------------------------------------------------------------------------------------


def test_a_liver_in_its_place_is_plausible() -> None:
    measured = measure(Volume(_body(), MATRIX), _segmentation())
    assert measured.plausible is True
    assert measured.implausible_because == ()


@pytest.mark.parametrize(
    ("flipped", "sentence"),
    [((2,), "left side"), ((1,), "spine lies in front"), ((1, 2), "spine lies in front"), ((0,), "lungs lie below")],
)
def test_an_image_that_is_turned_against_its_header_is_implausible(flipped: tuple, sentence: str) -> None:
    volume = Volume(np.flip(_body(), flipped), MATRIX)
    measured = measure(volume, _segmentation(np.flip(LIVER_AT, flipped), np.flip(LESIONS, flipped)))
    assert measured.plausible is False
    assert any(sentence in reason for reason in measured.implausible_because)
    assert measured.summary().startswith("IMPLAUSIBLE")


@pytest.mark.parametrize(("offset", "factor", "sentence"), [(1024, 1, "median of 11"), (0, 0.5, "ml for whole livers")])
def test_impossible_hu_and_size_are_implausible(offset: float, factor: float, sentence: str) -> None:
    matrix = MATRIX @ np.diag([factor] * 3 + [1])
    segmentation = Segmentation(Volume(LIVER_AT.astype(np.uint8), matrix), (LIVER,))
    measured = measure(Volume(_body() + offset, matrix), segmentation)
    assert measured.plausible is False
    assert sentence in " ".join(measured.implausible_because)


@pytest.mark.parametrize(("slices", "told"), [(4, None), (6, 0.0)])
def test_bone_of_less_than_eight_milliliters_does_not_tell_front_from_back(slices: int, told: float | None) -> None:
    hu = _body()
    hu[hu > 300] = 40
    hu[20 : 20 + slices, 46:51, 43:48] = 600  # 1.6 ml per slice
    assert liver_position(Volume(hu, MATRIX), LIVER_AT).spine_in_front == told


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        *(({"median_hu": hu}, None) for hu in (-50, 250, None)),
        *(({"median_hu": hu}, f"median of {hu} HU, outside the plausible range of -50 to 250 HU") for hu in (-51, 251)),
        *(({"liver_ml": ml}, None) for ml in (0, 300, 6000)),
        *(({"liver_ml": ml}, f"{ml} ml, outside the plausible range of 300 to 6000 ml") for ml in (1, 299, 6001)),
        ({"liver_ml": 299, "complete": False}, None),
        ({"liver_ml": 6001, "complete": False}, "6001 ml"),
        *(({"right": -10}, None), ({"right": -10.5}, "left side")),
        *(({"spine_in_front": 0.7}, None), ({"spine_in_front": 0.71}, "spine lies in front")),
        *(({"lungs_below": 0.7}, None), ({"lungs_below": 0.71}, "lungs lie below")),
        ({"right": None, "spine_in_front": None, "lungs_below": None}, None),
    ],
)
def test_what_is_plausible_ends_at_its_limits(changed: dict, sentence: str | None) -> None:
    found = {"liver_ml": 1500, "median_hu": 100, "complete": True} | changed
    landmarks = {"middle_x": 0, "right": 80, "spine_in_front": 0, "lungs_below": 0}
    position = Position(**{name: found.pop(name, value) for name, value in landmarks.items()})
    reasons = implausibilities(**found, position=position)
    assert len(reasons) == (sentence is not None)
    assert (sentence or "") in " ".join(reasons)


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (2.0, 4.0, 1.0), (1.0, 2.0, 4.0), (4.0, 1.0, 2.0)])
def test_where_a_liver_lies_does_not_depend_on_the_size_of_the_voxels(spacing: tuple[float, float, float]) -> None:
    """Ribs are in front, but not within 24 mm of the midline; lungs lie above the liver and, by mistake, below."""
    shape = tuple(round(mm / size) for mm, size in zip((160, 144, 240), spacing[::-1], strict=True))
    z, y, x = ((index + 0.5) * size for index, size in zip(np.indices(shape), spacing[::-1], strict=True))
    across, between = (x > 32) & (x < 208) & (y > 32) & (y < 108), (z > 24) & (z < 96)
    hu = np.full(shape, -1000.0)
    hu[(x > 20) & (x < 220) & (y > 20) & (y < 120)] = 40  # its midline is at 120 mm, its middle row at 70 mm
    hu[across & (z > 96)] = -850
    hu[across & (z < 24)] = -700
    hu[(y > 52) & (y < 112) & (x > 100) & (x < 140) & between] = 600  # 18 of 60 mm lie before the middle
    hu[(y > 24) & (y < 40) & (abs(x - 120) > 24) & (abs(x - 120) < 56) & between] = 600
    liver = (x > 32) & (x < 88) & (y > 40) & (y < 96) & between
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = np.array([300, -50, 7]) + np.array(spacing) / 2
    position = liver_position(Volume(hu, matrix), liver)
    assert position.middle_x == pytest.approx(300 + 120, abs=2)
    assert position.right == pytest.approx(60, abs=0.5)
    assert position.spine_in_front == pytest.approx(18 / 60, abs=0.05)
    assert position.lungs_below == pytest.approx(24 / (24 + 64), abs=0.02)


def test_gas_that_is_darker_than_lung_is_not_taken_for_lung() -> None:
    hu = _body(noise=0)
    hu[4:12, 20:40, 20:70] = -1000
    assert liver_position(Volume(hu, MATRIX), LIVER_AT).lungs_below == 0


@pytest.mark.parametrize(("slices", "told"), [(11, False), (13, True)])
def test_lungs_of_less_than_150_milliliters_do_not_tell_above_from_below(slices: int, told: bool) -> None:
    hu = _body(noise=0)
    hu[(hu < -800) & (hu > -900)] = 40
    hu[60 - slices :, 20:35, 60:75] = -850  # 14.4 ml per slice, of which some round off at the edges
    position = liver_position(Volume(hu, MATRIX), LIVER_AT)
    assert position.lungs_below == (0 if told else None)


def test_where_there_is_no_body_around_the_liver_nothing_is_said_of_its_place() -> None:
    nowhere = Position(None, None, None, None)
    assert liver_position(Volume(np.full(SHAPE, -1000), MATRIX), LIVER_AT) == nowhere
    hu = _body()
    hu[14:43] = -1000
    assert liver_position(Volume(hu, MATRIX), LIVER_AT) == nowhere


def test_without_a_liver_nothing_is_said() -> None:
    assert measure(Volume(_body(), MATRIX), _segmentation(LIVER_AT & False, None)).plausible is None


@pytest.fixture(scope="module")
def default_model():
    from LiverXAILib.models import load_model

    return load_model("default")


def _measured(ml: float, plausible: bool | None) -> Measurements:
    return Measurements(ml, 100.0, 10.0, (), None, None, None, (), plausible=plausible)


def test_a_second_look_finds_how_a_real_ct_is_mirrored_and_leaves_a_right_one_alone(default_model) -> None:
    root = os.environ.get("LIVERXAI_TEST_DATA")
    if root is None:
        pytest.skip("LIVERXAI_TEST_DATA is not set")
    from LiverXAILib.volumes.orientation import reorient

    volume = reorient(read_volume(Path(root) / "ct" / "totalseg_abdomen_3mm" / "image.nii.gz"), "SPL")
    context = RunContext(device="cpu")
    measured = _measured(1100, True)
    assert check_orientation(measured, volume, default_model, context) == ()
    flipped = volume.with_array(np.flip(volume.array, 2).copy())
    (found,) = check_orientation(_measured(300, True), flipped, default_model, context)
    assert "mirrored left to right" in found
    unasked = _measured(1500, True)
    assert check_orientation(unasked, flipped, default_model, context) == ()


def test_doubts_are_added_to_the_measurements_and_lead_the_warnings() -> None:
    measured = _measured(1500, True)
    assert measured.doubted(()) is measured
    doubted = measured.doubted(["It is mirrored."])
    assert doubted.plausible is False
    assert doubted.implausible_because == ("It is mirrored.",)
    assert doubted.warnings(["Implausible: an older reason", "something else"]) == [
        "Implausible: It is mirrored.",
        "something else",
    ]
    assert measured.warnings(["Implausible: an older reason", "something else"]) == ["something else"]


# --- files --------------------------------------------------------------------------------------------------------


def test_the_json_file_agrees_with_the_schema_in_the_repository(tmp_path: Path) -> None:
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == measurements_schema()
    checker = jsonschema.Draft202012Validator(measurements_schema())
    for segmentation in (_segmentation(), _segmentation(lesions=None), _segmentation(LIVER_AT & False)):
        measured = measure(Volume(_body(), MATRIX), segmentation)
        write_tables(measured, tmp_path / "m.json", tmp_path / "m.csv")
        content = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
        checker.validate(content)
        assert not checker.is_valid({**content, "liver_volume_ml": None})
        content = {name: value for name, value in content.items() if name not in ("schema_version", "liver_complete")}
        again = from_json_value(Measurements, content)
        assert again.lesion_count == measured.lesion_count
        assert again.recist == measured.recist


def _of_three() -> Measurements:
    """Made up: two lesions, a candidate and a rejected lesion, no two of whose numbers are alike."""
    axial = [
        AxialDiameters(n + 0.11, n + 0.22, ((n, 1.0, 2.0), (n, 3.0, 4.0)), ((n, 5.0, 6.0), (n, 7.0, 8.0)), "k", n)
        for n in (30, 12, 9, 7)
    ]
    unsure = FindingReliability(0.523, "uncertain", "it is small", {"log10_ml": -0.5})
    lesions = (
        LesionMeasurements(1, 14.141, 61.4, 12.6, 60.0, 0.97, axial[0], 33.0, (10.0, 20.0, 30.0), 4.5, False),
        LesionMeasurements(
            2, 0.926, 71.4, 9.6, 70.0, 0.91, axial[1], 13.0, (11.0, 21.0, 31.0), 0.0, True, -39.0, reliability=unsure
        ),
    )
    return Measurements(
        1500.04, 110.4, 15.6, ("superior", "left"), 15.067, 1.00444, 2, lesions, True, (), 1485.0, 1518.0, 0.97826,
        recist=recist({1: 30.11, 2: 12.11}, 1.0),
        candidates=(Candidate(1, 0.424, 81.4, axial[2], 0.66, 0.77, (12.0, 22.0, 32.0), "So.", "open", unsure),
                    Candidate(2, 0.326, 82.6, axial[2], 0.61, 0.71, (12.0, 22.0, 32.0), "So.", "accepted")),
        rejected=(RejectedLesion(1, 0.218, 91.6, axial[3], 0.55, (13.0, 23.0, 33.0), "Dr. A", "2026-11-30"),),
    )  # fmt: skip


def test_the_summary_says_in_words_what_was_measured() -> None:
    measured = _of_three()
    assert measured.summary().splitlines() == [
        "Liver     1500.0 ml, 110 ± 16 HU; incomplete, cut at the image's superior and left border",
        "Size      1518.0 ml, standard liver volume; the liver without lesions has 98 % of this volume",
        "Tumor       15.1 ml, 1.00 % of the liver, 2 lesions",
        "    1      14.14 ml, 30.1 × 30.2 mm axial, 61 ± 13 HU",
        "    2       0.93 ml, 12.1 × 12.2 mm axial, 71 ± 10 HU; uncertain (52 %): it is small",
        "Not counted: 2 candidates, marked without sufficient confidence",
        " C  1       0.42 ml, 9.1 × 9.2 mm axial, 81 HU; uncertain (52 %): it is small",
        " C  2       0.33 ml, 9.1 × 9.2 mm axial, 83 HU, accepted by the reader",
        "Not counted: 1 lesion, rejected by the reader",
        " R  1       0.22 ml, 7.1 × 7.2 mm axial, 92 HU",
        "RECIST     42 mm, sum of diameters of target lesions 1, 2",
    ]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["Liver        0.5 ml, 110 ± 16 HU", "Tumor       15.1 ml, 1.00 % of the liver, 2 lesions"]),
        ({"liver_mean_hu": None}, ["Liver        0.5 ml", "Tumor       15.1 ml, 1.00 % of the liver, 2 lesions"]),
        (
            {"implausible_because": ("It is not.",), "tumor_volume_ml": None},
            ["IMPLAUSIBLE: It is not.", "Liver        0.5 ml, 110 ± 16 HU", "Tumor   not looked for by this model"],
        ),
        (
            {"lesion_count": None, "tumor_volume_ml": 0.0, "tumor_burden_percent": None},
            ["Liver        0.5 ml, 110 ± 16 HU", "Tumor        0.0 ml, 0 lesions"],
        ),
        (
            {"standard_volume_ml": 1000.0, "standard_volume_ratio": 0.0005, "recist": recist({5: 14.6}, 1.0)},
            [
                "Liver        0.5 ml, 110 ± 16 HU",
                "Size      1000.0 ml, standard liver volume; the liver has 0 % of this volume",
                "Tumor       15.1 ml, 1.00 % of the liver, 2 lesions",
                "RECIST     15 mm, sum of diameters of target lesion 5",
            ],
        ),
    ],
)
def test_the_summary_leaves_out_what_is_not_known(changes: dict, lines: list[str]) -> None:
    bare = Measurements(0.5, 110.4, 15.6, (), 15.067, 1.00444, 2, ())
    assert dataclasses.replace(bare, **changes).summary().splitlines() == lines


def test_each_row_of_the_table_holds_what_was_measured_of_its_structure() -> None:
    rows = [{name: value for name, value in row.items() if value is not None} for row in _of_three().rows()]
    unsure = {"reliability": 0.523, "reliability_word": "uncertain", "reliability_reason": "it is small"}
    liver, tumor, first, second, candidate, accepted, rejected = rows
    assert liver == {"structure": "liver", "volume_ml": 1500.04, "mean_hu": 110.4, "sd_hu": 15.6,
                     "touches_image_border": True, "plausible": True}  # fmt: skip
    assert tumor == {
        "structure": "tumor", "volume_ml": 15.067, "tumor_burden_percent": 1.00444, "lesion_count": 2,
    }  # fmt: skip
    assert first == {
        "structure": "lesion", "number": 1, "volume_ml": 14.141, "mean_hu": 61.4, "sd_hu": 12.6, "median_hu": 60.0,
        "mean_probability": 0.97, "axial_long_mm": 30.11, "axial_short_mm": 30.22, "axial_slice": 30, "feret_mm": 33.0,
        "surface_distance_mm": 4.5, "centroid_l_mm": 10.0, "centroid_p_mm": 20.0, "centroid_s_mm": 30.0,
        "touches_image_border": False, "source": "model", "recist_target": True,
    }  # fmt: skip
    assert (second["contrast_hu"], second["recist_target"]) == (-39.0, True)
    assert unsure.items() <= second.items()
    shown = {"structure": "candidate", "number": 1, "volume_ml": 0.424, "mean_hu": 81.4, "mean_probability": 0.66,
             "axial_long_mm": 9.11, "axial_short_mm": 9.22, "axial_slice": 9, "centroid_l_mm": 12.0,
             "centroid_p_mm": 22.0, "centroid_s_mm": 32.0, "source": "model"}  # fmt: skip
    assert candidate == shown | unsure
    assert accepted["number"] == 2
    assert rejected == {
        "structure": "rejected lesion", "number": 1, "volume_ml": 0.218, "mean_hu": 91.6, "mean_probability": 0.55,
        "axial_long_mm": 7.11, "axial_short_mm": 7.22, "axial_slice": 7, "centroid_l_mm": 13.0, "centroid_p_mm": 23.0,
        "centroid_s_mm": 33.0,
    }  # fmt: skip


def test_columns_of_the_table_name_their_units_and_targets(tmp_path: Path) -> None:
    write_tables(measure(Volume(_body(), MATRIX), _segmentation()), tmp_path / "m.json", tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"volume_ml", "mean_hu", "axial_long_mm", "tumor_burden_percent", "plausible"} <= set(rows[0])
    assert [row["recist_target"] for row in rows] == ["", "", "True", "True", "False"]
