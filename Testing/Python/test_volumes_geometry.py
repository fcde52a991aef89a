# SPDX-License-Identifier: Apache-2.0
"""Grids, their comparison, and the grid along a network's axes: any shape, spacing and direction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.inference.geometry import (
    from_network_orientation,
    network_orientation_grid,
    network_orientation_image,
)
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.intensities import looks_like_hu, to_smallest_dtype, validate_ct
from LiverXAILib.volumes.io import read_labels, read_volume, write_volume
from LiverXAILib.volumes.size import check_size
from LiverXAILib.volumes.volume import Grid, Volume, require_volume

WRITTEN = (np.uint8, np.int16, np.uint16, np.int32, np.float32)
READ = (np.int16, np.int64, np.uint64, np.float32, np.float64)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
matrices = hnp.arrays(np.float64, (3, 4), elements=st.floats(-50, 50, width=32))


def a_grid(shape: tuple[int, int, int], rows: np.ndarray) -> Grid:
    assume(abs(np.linalg.det(rows[:, :3])) > 1e-3)
    return Grid(shape, np.vstack([rows, [0, 0, 0, 1]]))


def tilted(degrees: float, axis: str = "x") -> Grid:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return Grid((20, 20, 20), matrix)


@given(shapes, matrices)
def test_positions_and_voxels_are_converted_forth_and_back(shape, rows):
    grid = a_grid(shape, rows)
    ijk = np.argwhere(np.ones(shape))[:, ::-1]
    tolerance = 1e-9 * np.linalg.cond(grid.ijk_to_lps) + 1e-9
    np.testing.assert_allclose(grid.to_ijk(grid.to_lps(ijk)), ijk, atol=tolerance * 100)
    assert grid.voxel_volume_mm3 == pytest.approx(abs(np.linalg.det(rows[:, :3])))


@given(shapes, st.integers(0, 45), st.data())
def test_a_part_of_a_grid_is_found_in_it_again(shape, degrees, data):
    """Oblique, with rounding errors, and also if the part extends beyond the grid."""
    grid = Grid(shape, tilted(degrees).ijk_to_lps @ np.diag([0.7, 0.7, 2.5, 1]))
    start = [data.draw(st.integers(-3, 8)) for _ in shape]
    box = Box.between(start, np.add(start, [data.draw(st.integers(1, 9)) for _ in shape]))
    found = grid.box_of(grid.cropped(box))
    assert found == box
    assert tuple(grid.nearest_voxel(grid.to_lps(np.array(start[::-1]) + 0.4))) == tuple(start)


@given(shapes, matrices, st.integers(0, 2), st.floats(1e-2, 5))
def test_grids_match_only_if_all_their_corners_do(shape, rows, axis, step):
    """A common corner is not sufficient: the other grid may be rotated, longer, or finer."""
    grid = a_grid(shape, rows)
    assert grid.matches(Grid(shape, grid.ijk_to_lps))
    stretched = grid.ijk_to_lps.copy()
    stretched[axis, axis] += step
    moved = grid.ijk_to_lps.copy()
    moved[axis, 3] += step
    assume(abs(np.linalg.det(stretched[:3, :3])) > 1e-3)
    far = step * (shape[::-1][axis] - 1)
    assert grid.matches(Grid(shape, stretched), tolerance_mm=0.5) == (far <= 0.5)
    assert grid.matches(Grid(shape, moved), tolerance_mm=0.5) == (step <= 0.5)
    assert not grid.matches(Grid((shape[0] + 1, *shape[1:]), grid.ijk_to_lps))


@pytest.mark.parametrize(("shift", "same"), [(0.0009, True), (0.0011, False), (0.9, False)])
def test_grids_match_by_default_within_a_micrometer(shift, same):
    grid = tilted(20)
    matrix = grid.ijk_to_lps.copy()
    matrix[0, 3] += shift
    assert grid.matches(Grid(grid.shape, matrix)) == same


@pytest.mark.parametrize(
    "matrix",
    [np.eye(3), np.eye(4) * np.nan, np.diag([1, 1, 0, 1.0]), np.diag([1, 1, 1, 2.0]), np.eye(4) + np.eye(4, k=-3)],
    ids=["3x3", "nan", "flat", "scaled", "projective"],
)
def test_a_matrix_that_places_no_voxels_is_refused(matrix):
    with pytest.raises(ValueError, match="ijk_to_lps must be"):
        Grid((2, 2, 2), matrix)


def test_a_volume_and_its_grid_cannot_be_changed_and_keep_what_is_known_about_them():
    volume = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), tilted(20).ijk_to_lps, {"source_format": "NRRD"})
    for array in (volume.array, volume.ijk_to_lps):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(ValueError, match="expected shape"):
        volume.with_array(np.zeros((5, 4, 3)))
    part = volume.cropped(Box.between((1, 0, 2), (3, 4, 5)))
    np.testing.assert_array_equal(part.array, volume.array[1:, :, 2:])
    np.testing.assert_allclose(part.grid.origin, volume.grid.to_lps(np.array([2, 0, 1])))
    other = volume.with_array(np.ones(volume.shape))
    np.testing.assert_array_equal(other.ijk_to_lps, volume.ijk_to_lps)
    assert part.metadata == other.metadata == volume.metadata
    assert other.summary() == "NRRD, 5 x 4 x 3 voxels of 1 x 1 x 1 mm"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ("ct.nii", UsageError, r"not str: read it first, with read_volume\('ct.nii'\)"),
        (None, UsageError, r"not NoneType: read it first, with read_volume\(path\)"),
        (Volume(np.ones((2, 3, 4), bool), np.eye(4)), InputError, "not bool of"),
        (Volume(np.ones((0, 3, 4)), np.eye(4)), InputError, "must hold voxels"),
        (Volume(np.full((2, 3, 4), np.inf), np.eye(4)), InputError, "not finite"),
    ],
)
def test_what_is_no_image_of_finite_numbers_is_refused(value, error, words):
    with pytest.raises(error, match=words):
        require_volume(value)
    for dtype in (np.int16, np.uint8, np.float32):
        require_volume(Volume(np.ones((2, 3, 4), dtype), np.eye(4)))


@pytest.mark.parametrize("axis", "xyz")
def test_scans_are_made_upright_from_ten_degrees_of_tilt_on(axis):
    kept, upright = (network_orientation_grid(tilted(degrees, axis), "SPL") for degrees in (9.9, 10.1))
    assert kept.matches(tilted(9.9, axis))
    np.testing.assert_allclose(upright.direction, np.eye(3), atol=1e-12)


def an_oblique_image() -> tuple[Volume, np.ndarray]:
    """HU that rise evenly in space, on a tilted grid of unequal sides and spacings; and how steeply."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (20, -30, 15), degrees=True).as_matrix() * (2.0, 3.0, 4.0)
    matrix[:3, 3] = 7, -40, 100
    grid = Grid((14, 17, 23), matrix)
    slope = np.array([3.0, -2.0, 5.0])
    k, j, i = np.indices(grid.shape)
    return Volume((grid.to_lps(np.stack([i, j, k], axis=-1)) @ slope).astype(np.float32), matrix), slope


@pytest.mark.parametrize(
    ("axes", "directions"),
    [
        ("SPL", ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
        ("IAR", ((-1, 0, 0), (0, -1, 0), (0, 0, -1))),
        ("LSP", ((0, 1, 0), (0, 0, 1), (1, 0, 0))),
    ],
)
def test_the_upright_grid_is_the_smallest_one_around_all_voxels_of_a_tilted_image(axes, directions):
    volume, slope = an_oblique_image()
    image = network_orientation_image(volume, axes)
    assert image.grid.matches(network_orientation_grid(volume.grid, axes))
    np.testing.assert_allclose(image.grid.direction.T, directions, atol=1e-12)
    k, j, i = np.indices(volume.shape)
    positions = image.grid.to_ijk(volume.grid.to_lps(np.stack([i, j, k], axis=-1).reshape(-1, 3)))
    np.testing.assert_allclose(positions.min(axis=0), 0, atol=1e-9)
    last = np.array(image.shape[::-1]) - 1
    assert (positions.max(axis=0) <= last + 1e-5).all()
    assert (positions.max(axis=0) > last - 1).all()
    # Far from the image there is air; in it, the even rise is kept by any interpolation.
    k, j, i = np.indices(image.shape)
    places = image.grid.to_lps(np.stack([i, j, k], axis=-1))
    inside = volume.grid.to_ijk(places)
    middle = ((inside > 3) & (inside < np.array(volume.shape[::-1]) - 4)).all(axis=-1)
    outside = ((inside < -2) | (inside > np.array(volume.shape[::-1]) + 1)).any(axis=-1)
    assert middle.any()
    np.testing.assert_allclose(image.array[middle], (places @ slope)[middle], atol=0.05)
    assert (image.array[outside] == -1024).all()


@pytest.mark.parametrize("axes", ["SPL", "IAR", "jik", "ikj"])
def test_a_mask_on_the_network_s_grid_returns_to_its_place_in_the_image(axes):
    volume, _ = an_oblique_image()
    k, j, i = np.indices(volume.shape)
    mask = (abs(k - 7) < 4) & (abs(j - 8) < 5) & (abs(i - 12) < 7)
    seen = network_orientation_image(volume.with_array(np.where(mask, 1000.0, 0).astype(np.float32)), axes)
    back = from_network_orientation(seen.array > 500, seen.grid, volume.grid, axes)
    assert back.dtype == bool
    if axes.islower():  # the image's own axes in another order, without interpolation
        assert seen.shape == tuple(volume.shape["kji".index(axis)] for axis in axes)
        np.testing.assert_array_equal(back, mask)
    else:
        assert 0.97 < back.sum() / mask.sum() < 1.03
        assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.94


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(st.sampled_from(WRITTEN), shapes, elements=st.integers(0, 200)),
    st.sampled_from((".nii", ".nii.gz", ".nrrd", ".mha")),
    st.tuples(*[st.floats(0.2, 20)] * 3),
    st.tuples(*[st.floats(-180, 180)] * 3),
)
def test_any_label_map_is_read_back_as_it_was_written(tmp_path_factory, array, ending, spacing, angles):
    path = tmp_path_factory.getbasetemp() / f"property{ending}"
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    matrix[:3, 3] = -100.5, 33.25, 812
    write_volume(Volume(array, matrix), path)
    labels = read_labels(path)
    np.testing.assert_array_equal(labels.array, array)
    np.testing.assert_allclose(labels.ijk_to_lps, matrix, atol=2e-3 if ".nii" in ending else 1e-9)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(st.sampled_from(READ), shapes, elements=st.integers(0, 9)), st.floats(-3e4, 3e4))
def test_values_keep_their_meaning_in_the_smallest_type(array, shift):
    moved = array + (round(shift) if array.dtype.kind == "f" else 0)
    small = to_smallest_dtype(moved, "x")
    assert small.dtype in (np.int16, np.float32)
    np.testing.assert_allclose(small.astype(np.float64), moved.astype(np.float64), rtol=1e-6)


def test_values_too_large_for_any_image_are_refused():
    with pytest.raises(InputError, match="values of up to 1e\\+300"):
        to_smallest_dtype(np.array([[[1e300, 0.0]]]), "x")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([-32768, 32767]), np.int16),
        (np.array([-32768.0, 32767.0]), np.int16),
        (np.array([0, 32768]), np.float32),
        (np.array([-32769, 0]), np.float32),
        (np.array([0, 40000], np.uint16), np.float32),
        (np.array([0.5, 3]), np.float32),
        (np.array([0, np.finfo(np.float32).max]), np.float32),
    ],
)
def test_values_up_to_the_limits_of_a_type_are_stored_in_it_and_none_overflows(values, dtype):
    small = to_smallest_dtype(values.reshape(1, 1, 2), "x")
    assert small.dtype == dtype
    np.testing.assert_array_equal(small.ravel(), values)


@given(st.floats(60, 700), st.floats(60, 700), st.floats(20, 2000), st.floats(0.4, 8))
def test_any_body_s_size_is_accepted_and_is_refused_in_meters_and_micrometers(x, y, z, side):
    shape = tuple(max(2, round(n / mm)) for n, mm in ((z, min(2.5 * side, 20)), (y, side), (x, side)))
    grid = Grid(shape, np.diag([side, side, min(2.5 * side, 20), 1]))
    assume(min(shape[1:]) * side >= 60)
    check_size(grid, "x")
    for factor in (1e-3, 1e3):
        with pytest.raises(InputError, match="do not fit a CT of a body"):
            check_size(Grid(shape, grid.ijk_to_lps * [[factor], [factor], [factor], [1]]), "x")


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((1000, 1000, 1000), (0.08, 0.08, 0.08)),
        ((20, 20, 20), (25.0, 25.0, 25.0)),
        ((1000, 200, 200), (2.5, 2.5, 2.5)),
        ((500, 1000, 1000), (1.0, 1.0, 1.0)),
        ((240, 240, 30), (0.25, 0.25, 0.25)),
        ((125, 125, 125), (0.4, 0.4, 0.4)),
    ],
    ids=["finest voxels", "thickest slices", "longest table", "widest bore", "narrowest body", "finest crop"],
)
def test_an_image_may_reach_each_limit_of_size_but_not_exceed_it(shape, spacing):
    check_size(Grid(shape, np.diag([*spacing, 1])), "x")
    # A percent beyond the limit; the crop and the finest voxels have lower limits, the others upper ones.
    factor = 0.99 if spacing[0] < 0.5 else 1.01
    with pytest.raises(InputError, match="do not fit a CT of a body"):
        check_size(Grid(shape, np.diag([*(factor * np.array(spacing)), 1])), "x")


@pytest.mark.parametrize(
    ("shape", "side", "advice"),
    [
        ((40, 40, 40), 30, "Multiplied by 0.1 they would"),
        ((200, 200, 200), 35, "Multiplied by 0.1 they would"),
        ((39, 39, 39), 30, "Correct the voxel size in the header, or export"),
        ((201, 201, 201), 35, "Correct the voxel size in the header, or export"),
        ((100, 27, 27), 30, "Correct the voxel size in the header, or export"),
    ],
    ids=["narrowest body", "widest body", "too narrow", "too wide", "long but narrow"],
)
def test_another_unit_is_suggested_only_if_it_makes_the_image_a_body(shape, side, advice):
    with pytest.raises(InputError, match=advice):
        check_size(Grid(shape, np.diag([side, side, side, 1])), "x")


def test_a_refused_size_is_told_along_the_axes_of_the_image():
    grid = Grid((11, 20, 30), np.diag([1, 2, 50, 1]))
    with pytest.raises(InputError, match=r"^scan 7 has voxels of 1 x 2 x 50 mm and an extent of 30 x 40 x 550 mm"):
        validate_ct(np.zeros(grid.shape, np.int16), grid, "scan 7")


#: HU at and around the limits for plausible images, and those of a body.
HU = (-3000, -1201, -1200, -1051, -1024, -900, -301, -100, -50, -49, 40, 300, 301, 850, 1251)


@given(
    hnp.arrays(np.int16, st.tuples(*[st.integers(1, 6)] * 3), elements=st.sampled_from(HU) | st.integers(-4000, 4000))
)
def test_any_array_can_be_judged_whatever_its_type(array):
    assert looks_like_hu(array) == looks_like_hu(array.astype(np.float32)) == looks_like_hu(array.astype(np.float64))


@pytest.mark.parametrize(
    ("counts", "judged"),
    [
        # At least a thousandth is fat, lung or air ...
        ({-1000: 1, 40: 999}, True),
        ({-1000: 1, 40: 1001}, False),
        # ... without padding, which is the lowest value unless it is that of air.
        ({-1050: 1, 40: 999}, True),
        ({-1051: 1, 40: 999}, False),
        ({-900: 1, 40: 999}, True),
        ({-899: 1, 40: 999}, False),
        ({-3000: 10, -1200: 10, 40: 980}, True),
        ({-3000: 10, -50: 1, 40: 989}, True),
        ({-3000: 10, -49: 1, 40: 989}, False),
        # At least five thousandths are soft tissue.
        ({-1000: 995, -200: 5}, True),
        ({-1000: 996, -200: 4}, False),
        ({-1000: 995, -201: 5}, False),
        ({-1000: 995, 300: 5}, True),
        ({-1000: 995, 301: 5}, False),
        # At most a tenth of the body is as dense as bone.
        ({-1000: 500, -300: 1, 40: 449, 850: 50}, True),
        ({-1000: 500, -301: 1, 40: 449, 850: 50}, False),
        ({-1000: 500, 40: 449, 1250: 51}, False),
        ({-1000: 500, 40: 449, 1251: 51}, True),
        # Below any HU there is only padding, which many voxels share.
        ({-3000: 10, -2000: 10, -1000: 500, 40: 480}, True),
        ({-3000: 9, -2000: 9, -1000: 500, 40: 482}, False),
        ({-3000: 90, -2000: 5, -1500: 5, -1000: 500, 40: 400}, True),
    ],
)
def test_an_image_is_judged_by_the_share_of_its_voxels_in_each_range_of_hu(counts, judged):
    array = np.repeat(np.array(list(counts), np.int16), list(counts.values()))
    assert looks_like_hu(array.reshape(2, 1, -1)) == judged


def test_two_slices_are_a_volume_and_values_that_are_no_hu_need_force():
    grid = Grid((2, 100, 100), np.eye(4))
    array = np.full(grid.shape, 40)
    array[:, :50] = -1000
    np.testing.assert_array_equal(validate_ct(array, grid, "x"), array)
    with pytest.raises(InputError, match=r"^x does not look like CT.*known as HU"):
        validate_ct(array + 1000, grid, "x", advice="The scale is known as HU.")
    np.testing.assert_array_equal(validate_ct(array + 1000, grid, "x", force=True), array + 1000)


def test_a_pair_is_read_back_by_both_names(tmp_path):
    import nibabel

    body = np.arange(60, dtype=np.int16).reshape(3, 4, 5) * 40 - 1000
    nibabel.save(nibabel.Nifti1Pair(body.T, np.diag([-1, -1, 2, 1])), tmp_path / "a.hdr")
    for name in ("a.hdr", "a.img"):
        np.testing.assert_array_equal(read_volume(tmp_path / name, force=True).array, body)
