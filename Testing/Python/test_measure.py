# SPDX-License-Identifier: Apache-2.0
"""Measurements against analytic shapes and against brute force."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from LiverXAILib.errors import UsageError
from LiverXAILib.inference.segmentation import Segmentation
from LiverXAILib.measure import measure
from LiverXAILib.measure.candidates import _reason, measure_rejected
from LiverXAILib.measure.diameters import axial_axis, axial_diameters, feret_diameter_mm
from LiverXAILib.models.spec import LIVER, TUMOR
from LiverXAILib.volumes.box import Box, bounding_box
from LiverXAILib.volumes.volume import Grid, Volume

DOCS = Path(__file__).parents[2] / "docs"
OBLIQUE = Rotation.from_euler("xyz", (14, -9, 21), degrees=True).as_matrix()


def _matrix(direction: np.ndarray, spacing: tuple[float, float, float], center: np.ndarray, shape: tuple) -> np.ndarray:
    """ijk_to_lps of a grid centered on `center`."""
    matrix = np.eye(4)
    matrix[:3, :3] = direction * np.array(spacing)
    matrix[:3, 3] = center - matrix[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return matrix


SHEAR = np.array([[1, 0, 0], [0, 1, 0.33], [0, 0, 0.944]])
GRIDS = {
    "axial": Grid((40, 64, 64), _matrix(np.eye(3), (1.5, 1.5, 2.5), np.zeros(3), (40, 64, 64))),
    "oblique": Grid((40, 64, 64), _matrix(OBLIQUE, (1.5, 1.5, 2.5), np.array([9.0, -7, 100]), (40, 64, 64))),
    "left-handed": Grid((40, 64, 64), _matrix(np.diag([-1.0, 1, 1]), (1.5, 1.5, 2.5), np.zeros(3), (40, 64, 64))),
    "coronal": Grid(
        (64, 40, 64),
        _matrix(np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), (1.5, 2.5, 1.5), np.zeros(3), (64, 40, 64)),
    ),
    "sheared": Grid((40, 64, 64), _matrix(SHEAR, (1.5, 1.5, 2.5), np.array([3.0, 5, -70]), (40, 64, 64))),
}


def _positions(grid: Grid) -> np.ndarray:
    k, j, i = np.indices(grid.shape)
    return grid.to_lps(np.stack([i, j, k], axis=-1))


def _center(grid: Grid) -> np.ndarray:
    return grid.to_lps((np.array(grid.shape[::-1]) - 1) / 2)


def _ball(grid: Grid, radius: float, offset: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    return np.linalg.norm(_positions(grid) - _center(grid) - offset, axis=-1) <= radius


def _segmentation(grid: Grid, liver: np.ndarray, tumor: np.ndarray | None, **kwargs: object) -> Segmentation:
    labels = liver.astype(np.uint8)
    if tumor is not None:
        labels[tumor] = 2
    specs = (LIVER,) if tumor is None else (LIVER, TUMOR)
    return Segmentation(Volume(labels, grid.ijk_to_lps), specs, **kwargs)  # type: ignore[arg-type]


def _blob(seed: int) -> np.ndarray:
    """A random connected, non-convex shape."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((9, 14, 17), bool)
    at = np.array([4, 7, 8])
    for _ in range(160):
        mask[tuple(at)] = True
        at = np.clip(at + rng.integers(-1, 2, 3), 0, np.array(mask.shape) - 1)
    return mask


def _centers(mask: np.ndarray, grid: Grid) -> np.ndarray:
    return grid.to_lps(np.argwhere(mask)[:, ::-1])


@pytest.mark.parametrize("name", GRIDS)
def test_a_ball_is_measured_right_on_any_grid(name: str) -> None:
    grid = GRIDS[name]
    liver, tumor = _ball(grid, 36), _ball(grid, 13.3, (6, 4, -3))
    image = np.where(tumor, 60, np.where(liver, 110, 40)).astype(np.int16)
    measured = measure(Volume(image, grid.ijk_to_lps), _segmentation(grid, liver, tumor))
    (lesion,) = measured.lesions
    assert measured.liver_volume_ml == pytest.approx(4 / 3 * np.pi * 36**3 / 1000, rel=0.01)
    assert lesion.volume_ml == measured.tumor_volume_ml == pytest.approx(4 / 3 * np.pi * 13.3**3 / 1000, rel=0.02)
    assert measured.tumor_burden_percent == pytest.approx(100 * (13.3 / 36) ** 3, rel=0.02)
    assert lesion.centroid_lps_mm == pytest.approx(_center(grid) + np.array([6, 4, -3]), abs=0.3)
    # Within the longest side of a voxel.
    assert lesion.axial.long_mm == pytest.approx(26.6, abs=2.5)
    assert lesion.axial.short_mm == pytest.approx(26.6, abs=2.5)
    assert lesion.feret_mm == pytest.approx(26.6, abs=2.5)
    # The balls' surfaces are 36 - 13.3 - |(6, 4, -3)| mm apart; a voxel's diagonal is 3.3 mm.
    assert lesion.surface_distance_mm == pytest.approx(36 - 13.3 - np.sqrt(61), abs=2.5)
    assert (lesion.mean_hu, lesion.sd_hu, lesion.median_hu) == (60, 0, 60)
    assert (measured.liver_mean_hu, measured.liver_sd_hu) == (110, 0)
    assert measured.liver_complete
    assert not lesion.touches_image_border


def test_errors_of_diameters_are_those_that_the_documentation_lists() -> None:
    """The table is made by docs/diameters.py; cells have the mean and the worst error at random positions."""
    spec = importlib.util.spec_from_file_location("diameters", DOCS / "diameters.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (DOCS / "measurements.md").read_text(encoding="utf-8")
    listed = [line.split("|")[1:-1] for line in text.splitlines() if re.match(r"\| (ball|ellipsoid|box), ", line)]
    assert len(listed) == len(script.SHAPES) * len(script.SPACINGS)
    for name, size, *cells in listed:
        spacing = tuple(float(mm) for mm in size.split("×"))
        off = script.errors(name.strip(), spacing)
        for column, cell in enumerate(cells):
            mean, worst = (float(number) for number in cell.split(","))
            assert off[:, column].mean() == pytest.approx(mean, abs=0.06), (name, size)
            assert np.abs(off[:, column]).max() == pytest.approx(abs(worst), abs=0.06), (name, size)
        # In a slice mean errors are below one pixel, and single errors below two.
        assert np.abs(off[:, :2].mean(axis=0)).max() < spacing[0]
        assert np.abs(off[:, :2]).max() < 2 * spacing[0]


def test_an_ellipsoid_has_its_axes_and_end_points() -> None:
    grid = GRIDS["axial"]
    axes = Rotation.from_euler("z", 33, degrees=True).as_matrix()
    local = (_positions(grid) - _center(grid)) @ axes
    mask = (np.square(local / (20, 11, 15)).sum(axis=-1)) <= 1
    found = axial_diameters(mask, grid)
    assert found.long_mm == pytest.approx(40, abs=1.5)
    assert found.short_mm == pytest.approx(22, abs=1.5)
    start, end = (np.array(p) for p in found.long_ends_lps_mm)
    assert np.linalg.norm(end - start) == pytest.approx(found.long_mm, abs=1e-3)
    assert abs(np.dot(end - start, axes[:, 0])) == pytest.approx(found.long_mm, rel=0.01)
    low, high = (np.array(p) for p in found.short_ends_lps_mm)
    assert np.dot(end - start, high - low) == pytest.approx(0, abs=1e-2)
    assert np.linalg.norm(high - low) == pytest.approx(found.short_mm, abs=1e-3)
    assert found.slice_axis == "k"
    assert grid.to_lps(np.array([0, 0, found.slice_index]))[2] == pytest.approx(start[2], abs=1e-3)


def test_a_single_voxel_and_a_row_of_voxels_have_their_size() -> None:
    grid = Grid((5, 20, 20), np.diag([0.8, 0.8, 5.0, 1.0]))
    mask = np.zeros(grid.shape, bool)
    mask[2, 10, 4] = True
    found = axial_diameters(mask, grid)
    assert (found.long_mm, found.short_mm) == pytest.approx((0.8, 0.8), abs=1e-3)
    assert feret_diameter_mm(mask, grid) == pytest.approx(5.0, abs=1e-3)
    mask[2, 10, 4:14] = True
    found = axial_diameters(mask, grid)
    assert found.long_mm == pytest.approx(8.0, abs=0.4)
    assert found.short_mm == pytest.approx(0.8, abs=0.4)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("seed", range(4))
def test_diameters_equal_brute_force_on_the_outline(name: str, seed: int) -> None:
    """An independent outline: the crossings of the smoothed mask's grid lines that skimage finds."""
    measure_contours = pytest.importorskip("skimage.measure").find_contours
    mask = _blob(seed)
    grid = Grid(mask.shape, GRIDS[name].ijk_to_lps)
    axis = axial_axis(grid)
    found = axial_diameters(mask, grid)
    longest = []
    for n in range(mask.shape[2 - axis]):
        pieces, count = ndimage.label(np.take(mask, n, axis=2 - axis), np.ones((3, 3)))
        for number in range(1, count + 1):
            piece = np.pad((pieces == number).astype(float), 4)
            smooth = ndimage.gaussian_filter(piece, 0.7)
            ordered = np.sort(smooth.ravel())[::-1]
            size = int(piece.sum())
            outline = np.concatenate(measure_contours(smooth, ordered[size - 1 : size + 1].mean()))[:, ::-1] - 4
            points = grid.to_lps(np.insert(outline, axis, n, axis=1))
            longest.append((pdist(points).max(), n, points))
    length, index, points = max(longest, key=lambda item: item[0])
    assert found.long_mm == pytest.approx(length, abs=1e-2)
    assert found.slice_index == index
    start, end, low, high = (np.array(p) for p in (*found.long_ends_lps_mm, *found.short_ends_lps_mm))
    along = (end - start) / found.long_mm
    for point in (start, end, low, high):  # calipers end on the outline
        assert cKDTree(points).query(point)[0] < max(grid.spacing)
    # Perpendicular chords, between points at almost the same position along the long axis.
    where = (points - start) @ along
    order = (points - start) @ ((high - low) / max(np.linalg.norm(high - low), 1e-9))
    beside = np.abs(where[:, None] - where[None, :]) < 0.05
    assert found.short_mm >= np.abs(order[:, None] - order[None, :])[beside].max() - 0.2
    assert np.dot(end - start, high - low) == pytest.approx(0, abs=1e-2)


def test_the_long_axis_never_bridges_two_islands_of_a_slice() -> None:
    grid = Grid((6, 60, 60), np.diag([1.0, 1.0, 5.0, 1.0]))
    mask = np.zeros(grid.shape, bool)
    mask[2, 10:20, 5:15] = mask[2, 10:20, 40:54] = True  # islands in this slice …
    mask[3, 14:16, 5:54] = True  # … that are connected through the next one
    mask[4, 10:30, 5:9] = True
    found = axial_diameters(mask, grid)
    assert found.slice_index == 3
    assert found.long_mm == pytest.approx(49, abs=1)
    mask[3, 14:16] = False
    mask[3, 14:16, 14:41] = True
    found = axial_diameters(mask, grid)
    assert found.long_mm == pytest.approx(27, abs=1)
    assert feret_diameter_mm(mask, grid) > 49


def test_of_slices_alike_the_first_is_measured() -> None:
    grid = Grid((9, 30, 30), np.diag([1.0, 1.0, 3.0, 1.0]))
    mask = np.zeros(grid.shape, bool)
    mask[3:7, 10:20, 8:22] = True
    assert axial_diameters(mask, grid).slice_index == 3


@pytest.mark.parametrize("name", GRIDS)
def test_the_distance_to_the_surface_equals_brute_force(name: str) -> None:
    grid = GRIDS[name]
    liver, tumor = _ball(grid, 33), _ball(grid, 7, (9, 8, 6))
    measured = measure(Volume(np.zeros(grid.shape), grid.ijk_to_lps), _segmentation(grid, liver, tumor))
    beside = np.zeros_like(liver)
    for axis in range(3):
        for shift in (-1, 1):
            beside |= np.roll(~liver, shift, axis)
    tree = cKDTree(_positions(grid)[liver & beside])
    expected = tree.query(_positions(grid)[tumor])[0].min()
    assert measured.lesions[0].surface_distance_mm == pytest.approx(expected, abs=1e-3)


def test_a_lesion_at_the_capsule_has_distance_zero_but_the_image_border_is_no_capsule() -> None:
    grid = Grid((20, 20, 20), np.eye(4))
    liver = np.zeros(grid.shape, bool)
    liver[5:, 5:15, 5:15] = True  # continues above the image
    at_capsule, at_border = np.zeros_like(liver), np.zeros_like(liver)
    at_capsule[8:12, 9:12, 5:8] = True
    at_border[17:, 9:11, 9:11] = True
    image = Volume(np.zeros(grid.shape), grid.ijk_to_lps)
    lesion = measure(image, _segmentation(grid, liver, at_capsule)).lesions[0]
    assert lesion.surface_distance_mm == 0
    assert not lesion.touches_image_border
    lesion = measure(image, _segmentation(grid, liver, at_border)).lesions[0]
    assert lesion.surface_distance_mm == pytest.approx(4.0)
    assert lesion.touches_image_border


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("last", [False, True])
def test_a_cut_liver_is_said_to_be_incomplete_on_the_right_side(signs: tuple, axis: int, last: bool) -> None:
    """The named side is the direction from the image's center to the liver's voxels at the border."""
    grid = Grid((10, 20, 30), np.diag([*signs, 1.0]))
    liver = np.zeros(grid.shape, bool)
    liver[3:7, 5:15, 8:20] = True
    cut = np.moveaxis(liver, 2 - axis, 0)
    cut[slice(4, None) if last else slice(None, 4)] |= liver.any(axis=2 - axis)
    measured = measure(Volume(np.zeros(grid.shape), grid.ijk_to_lps), _segmentation(grid, liver, None))
    border = np.take(_positions(grid), -1 if last else 0, axis=2 - axis).reshape(-1, 3).mean(axis=0)
    toward = (border - _center(grid))[axis] > 0
    names = (("right", "left"), ("anterior", "posterior"), ("inferior", "superior"))
    assert measured.liver_cut_at == (names[axis][int(toward)],)
    assert not measured.liver_complete
    assert names[axis][int(toward)] in measured.summary()


def test_statistics_equal_numpy_and_lesions_are_left_out_of_the_liver() -> None:
    rng = np.random.default_rng(0)
    grid = GRIDS["oblique"]
    image = rng.normal(100, 20, grid.shape).astype(np.float32)
    liver, tumor = _ball(grid, 30), _ball(grid, 9) | _ball(grid, 5, (-18, 0, 0))
    cropped = Box(*(slice(5, n - 5) for n in grid.shape))
    probability = Volume(np.full(grid.cropped(cropped).shape, 0.25, np.float16), grid.cropped(cropped).ijk_to_lps)
    measured = measure(
        Volume(image, grid.ijk_to_lps), _segmentation(grid, liver, tumor, probabilities={"tumor": probability})
    )
    assert measured.lesion_count == 2
    assert measured.lesions[0].volume_ml > measured.lesions[1].volume_ml
    big = _ball(grid, 9)
    assert measured.lesions[0].mean_hu == pytest.approx(image[big].mean(dtype=float))
    assert measured.lesions[0].sd_hu == pytest.approx(image[big].std(dtype=float))
    assert measured.lesions[0].median_hu == pytest.approx(np.median(image[big]))
    assert measured.lesions[0].mean_probability == pytest.approx(0.25)
    assert measured.liver_mean_hu == pytest.approx(image[liver & ~tumor].mean(dtype=float))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("part", [slice(4, 8), slice(0, 4)])
def test_a_probability_outside_its_crop_counts_as_zero(axis: int, part: slice) -> None:
    grid = Grid((8, 8, 8), np.eye(4))
    liver, tumor = np.ones(grid.shape, bool), np.zeros(grid.shape, bool)
    tumor[2:6, 2:6, 2:6] = True
    box = Box(*(part if n == axis else slice(0, 8) for n in range(3)))
    half = Volume(np.ones(grid.cropped(box).shape, np.float16), grid.cropped(box).ijk_to_lps)
    segmentation = _segmentation(grid, liver, tumor, probabilities={"tumor": half})
    volume = Volume(np.zeros(grid.shape), np.eye(4))
    (lesion,) = measure(volume, segmentation).lesions
    assert lesion.mean_probability == pytest.approx(0.5)
    assert lesion.surface_distance_mm is None
    (rejected,) = measure_rejected(volume, segmentation, [(Box.full(grid.shape), tumor, "Dr. A", "2026-11-30")])
    assert rejected.mean_probability == pytest.approx(0.5)
    beyond = np.zeros_like(tumor)
    beyond[tuple(slice(0, 2) if n == axis and part.start else slice(6, 8) for n in range(3))] = True
    own = bounding_box(beyond)
    assert own is not None
    (rejected,) = measure_rejected(volume, segmentation, [(own, beyond[own], "Dr. A", "2026-11-30")])
    assert rejected.mean_probability == 0


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("part", [slice(0, 3), slice(9, 12), slice(1, 11)])
def test_a_lesion_at_any_side_of_the_image_may_continue_beyond_it(axis: int, part: slice) -> None:
    grid = Grid((12, 12, 12), np.eye(4))
    tumor = np.zeros(grid.shape, bool)
    tumor[tuple(part if n == axis else slice(4, 8) for n in range(3))] = True
    (lesion,) = measure(
        Volume(np.zeros(grid.shape), np.eye(4)), _segmentation(grid, np.ones(grid.shape, bool), tumor)
    ).lesions
    assert lesion.touches_image_border == (part != slice(1, 11))


@pytest.mark.parametrize(("voxels", "measurable"), [(13, ()), (15, (1,))])
def test_of_coronal_slices_the_one_with_the_diameters_is_named_and_their_thickness_counts(
    voxels: int, measurable: tuple
) -> None:
    """Slices of 7 mm are stacked along j, which points down: only lesions of at least 14 mm are measurable."""
    matrix = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -7, 0, 100], [0, 0, 0, 1]])
    grid = Grid((30, 8, 30), matrix)
    tumor = np.zeros(grid.shape, bool)
    tumor[12:14, 3:6, 12:14] = True
    tumor[12:15, 4, 6 : 6 + voxels] = True
    measured = measure(Volume(np.zeros(grid.shape), matrix), _segmentation(grid, np.ones(grid.shape, bool), tumor))
    axial = measured.lesions[0].axial
    assert (axial.slice_axis, axial.slice_index) == ("j", 4)
    assert axial.long_ends_lps_mm[0][2] == axial.long_ends_lps_mm[1][2] == 100 - 7 * 4
    assert measured.recist is not None
    assert measured.recist.measurable == measurable


def test_a_candidate_is_measured_like_a_lesion_in_coronal_slices_too() -> None:
    rng = np.random.default_rng(0)
    grid = GRIDS["coronal"]
    image, found = rng.normal(100, 20, grid.shape), _ball(grid, 12, (6, 0, -9))
    p = np.where(found, rng.uniform(0.55, 0.95, grid.shape), 0).astype(np.float16)
    volume, nothing = Volume(image, grid.ijk_to_lps), np.zeros(grid.shape, bool)
    probabilities = {"tumor": Volume(p, grid.ijk_to_lps)}
    segmentation = _segmentation(grid, _ball(grid, 36), nothing, probabilities=probabilities)
    (candidate,) = measure(volume, segmentation).candidates
    (lesion,) = measure(volume, _segmentation(grid, _ball(grid, 36), found, probabilities=probabilities)).lesions
    assert candidate.axial == lesion.axial
    assert candidate.number == lesion.number
    for name in ("volume_ml", "mean_hu", "mean_probability"):
        assert getattr(candidate, name) == pytest.approx(getattr(lesion, name)), name
    assert candidate.peak_probability == p.max()
    assert candidate.place_lps_mm == pytest.approx(lesion.centroid_lps_mm, abs=2.5)
    # Neither a threshold nor a least volume is known.
    assert candidate.reason == f"The model's highest tumor probability in it is {100 * float(p.max()):.1f} %."


@pytest.mark.parametrize(
    ("peak", "needed", "volume_ml", "end"),
    [
        (0.894, 0.9, 0.5, "is 89.4 %; a lesion is counted from 90.0 %."),
        (0.9, 0.9, 0.5, "is 90.0 %; its volume is 0.50 ml, and a lesion is counted from 0.7 ml."),
        (0.9, 0.9, 0.7, "is 90.0 %."),
        (0.6, None, 0.5, "is 60.0 %; its volume is 0.50 ml, and a lesion is counted from 0.7 ml."),
    ],
)
def test_it_is_said_why_a_candidate_is_not_counted(
    peak: float, needed: float | None, volume_ml: float, end: str
) -> None:
    assert _reason(peak, needed, volume_ml, 0.7) == f"The model's highest tumor probability in it {end}"


def test_a_model_that_does_not_look_for_tumors_reports_none_rather_than_zero() -> None:
    grid = GRIDS["axial"]
    measured = measure(Volume(np.zeros(grid.shape), grid.ijk_to_lps), _segmentation(grid, _ball(grid, 20), None))
    assert measured.tumor_volume_ml is None
    assert measured.tumor_burden_percent is None
    assert measured.lesion_count is None
    assert [row["structure"] for row in measured.rows()] == ["liver"]


def test_an_empty_result_has_no_liver_and_no_lesions() -> None:
    grid = GRIDS["axial"]
    empty = np.zeros(grid.shape, bool)
    measured = measure(Volume(np.zeros(grid.shape), grid.ijk_to_lps), _segmentation(grid, empty, empty))
    assert (measured.liver_volume_ml, measured.tumor_volume_ml, measured.lesion_count) == (0, 0, 0)
    assert measured.liver_mean_hu is None
    assert measured.tumor_burden_percent is None
    assert not measured.liver_complete
    assert measured.summary() == "No liver was found."


def test_measurements_are_ready_for_json_and_tables() -> None:
    grid = GRIDS["axial"]
    segmentation = _segmentation(grid, _ball(grid, 30), _ball(grid, 9))
    measured = measure(Volume(np.zeros(grid.shape, np.int16), grid.ijk_to_lps), segmentation)
    data = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert data["lesions"][0]["axial"]["long_mm"] == measured.lesions[0].axial.long_mm
    rows = measured.rows()
    assert [row["structure"] for row in rows] == ["liver", "tumor", "lesion"]
    assert all(list(row) == list(rows[0]) for row in rows)


def test_a_segmentation_of_another_image_is_refused() -> None:
    grid = GRIDS["axial"]
    segmentation = _segmentation(grid, _ball(grid, 20), None)
    with pytest.raises(UsageError, match="is not on the image's grid"):
        measure(Volume(np.zeros(grid.shape), GRIDS["oblique"].ijk_to_lps), segmentation)
