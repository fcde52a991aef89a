# SPDX-License-Identifier: Apache-2.0
"""Grids, their comparison, and the grid along a network's axes: any shape, spacing and direction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from LiverXAILib.errors import InputError
from LiverXAILib.inference.geometry import (
    from_network_orientation,
    network_orientation_grid,
    network_orientation_image,
)
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.intensities import looks_like_hu, to_smallest_dtype
from LiverXAILib.volumes.io import read_labels, read_volume, write_volume
from LiverXAILib.volumes.size import check_size
from LiverXAILib.volumes.volume import Grid, Volume

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


@given(st.floats(60, 700), st.floats(60, 700), st.floats(20, 2000), st.floats(0.4, 8))
def test_any_body_s_size_is_accepted_and_is_refused_in_meters_and_micrometers(x, y, z, side):
    shape = tuple(max(2, round(n / mm)) for n, mm in ((z, min(2.5 * side, 20)), (y, side), (x, side)))
    grid = Grid(shape, np.diag([side, side, min(2.5 * side, 20), 1]))
    assume(min(shape[1:]) * side >= 60)
    check_size(grid, "x")
    for factor in (1e-3, 1e3):
        with pytest.raises(InputError, match="do not fit a CT of a body"):
            check_size(Grid(shape, grid.ijk_to_lps * [[factor], [factor], [factor], [1]]), "x")


#: HU at and around the limits for plausible images, and those of a body.
HU = (-3000, -1201, -1200, -1051, -1024, -900, -301, -100, -50, -49, 40, 300, 301, 850, 1251)


@given(
    hnp.arrays(np.int16, st.tuples(*[st.integers(1, 6)] * 3), elements=st.sampled_from(HU) | st.integers(-4000, 4000))
)
def test_any_array_can_be_judged_whatever_its_type(array):
    assert looks_like_hu(array) == looks_like_hu(array.astype(np.float32)) == looks_like_hu(array.astype(np.float64))


def test_a_pair_is_read_back_by_both_names(tmp_path):
    import nibabel

    body = np.arange(60, dtype=np.int16).reshape(3, 4, 5) * 40 - 1000
    nibabel.save(nibabel.Nifti1Pair(body.T, np.diag([-1, -1, 2, 1])), tmp_path / "a.hdr")
    for name in ("a.hdr", "a.img"):
        np.testing.assert_array_equal(read_volume(tmp_path / name, force=True).array, body)
