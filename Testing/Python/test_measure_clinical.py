# SPDX-License-Identifier: Apache-2.0
"""RECIST, plausibility, contrast phase, fat, volumes for body size: against rules, synthetic bodies and real CTs."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from dicom_series import a_body, geometry, write_series

from LiverXAILib.context import RunContext
from LiverXAILib.errors import UsageError
from LiverXAILib.inference.segmentation import Segmentation
from LiverXAILib.measure import measure
from LiverXAILib.measure.lesions import location, slice_instance_number, sphericity
from LiverXAILib.measure.liver import ROMAN, remnants, standard_volume_ml, steatosis_hint
from LiverXAILib.measure.measurements import ContrastPhase, Measurements
from LiverXAILib.measure.phase import _aorta, estimate_phase
from LiverXAILib.measure.plausibility import liver_position
from LiverXAILib.measure.recist import recist
from LiverXAILib.models.labels import result_labels
from LiverXAILib.models.registry import ImportOptions
from LiverXAILib.models.serialization import from_json_value
from LiverXAILib.models.spec import LIVER, TUMOR
from LiverXAILib.pipeline import check_orientation
from LiverXAILib.report.schema import SCHEMA_FILE, measurements_schema
from LiverXAILib.report.tables import write_tables
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
    with pytest.raises(UsageError, match="no lesion 4"):
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
    assert check_orientation(measured, volume, default_model, context) is measured
    flipped = volume.with_array(np.flip(volume.array, 2).copy())
    found = check_orientation(_measured(300, True), flipped, default_model, context)
    assert found.plausible is False
    assert "mirrored left to right" in found.implausible_because[0]
    unasked = _measured(1500, True)
    assert check_orientation(unasked, flipped, default_model, context) is unasked


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


def test_columns_of_the_table_name_their_units_and_targets(tmp_path: Path) -> None:
    write_tables(measure(Volume(_body(), MATRIX), _segmentation()), tmp_path / "m.json", tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"volume_ml", "mean_hu", "axial_long_mm", "tumor_burden_percent", "plausible"} <= set(rows[0])
    assert [row["recist_target"] for row in rows] == ["", "", "True", "True", "False"]
