# SPDX-License-Identifier: Apache-2.0
"""Reorientation against SimpleITK.DICOMOrient, an independent implementation, in every orientation."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from LiverXAILib.errors import UsageError
from LiverXAILib.volumes.orientation import Reorientation, axis_codes, reorient
from LiverXAILib.volumes.volume import Grid, Volume

SHAPE = (4, 5, 6)
SPACING = np.array([0.7, 1.3, 2.9])
ORIGIN = (13.0, -40.0, 1002.5)
ALL_CODES = [
    "".join(pair[end] for pair, end in zip(order, ends, strict=True))
    for order in permutations(("LR", "PA", "SI"))
    for ends in product((0, 1), repeat=3)
]


def signed_permutations() -> list[np.ndarray]:
    matrices = []
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3))
        for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
            matrix[row, column] = sign
        matrices.append(matrix)
    return matrices


def a_volume(direction: np.ndarray) -> Volume:
    matrix = np.eye(4)
    matrix[:3, :3] = direction * SPACING
    matrix[:3, 3] = ORIGIN
    return Volume(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), matrix, {"modality": "CT"})


def place_of_each_value(volume: Volume) -> np.ndarray:
    """(voxels, 3) LPS positions, sorted by the voxel's value: equal for images with the same contents."""
    kji = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    return volume.grid.to_lps(kji[:, ::-1])[np.argsort(volume.array.ravel())]


def simple_itk_image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.grid.origin.tolist())
    image.SetDirection(volume.grid.direction.ravel().tolist())
    return image


def geometry(spacing: ArrayLike, origin: ArrayLike, direction: ArrayLike) -> np.ndarray:
    return np.concatenate([spacing, origin, direction])


#: Of the numbers in `geometry`. One comparison of them all takes a fraction of the time of three.
TOLERANCE = geometry(1e-12 * SPACING.min() * np.ones(3), np.full(3, 1e-11), np.full(9, 1e-12))


ROTATION = Rotation.from_euler("xyz", [20, -31, 14], degrees=True).as_matrix()
TILT = np.array([[1, 0, 0], [0, 1, np.sin(np.radians(18.5))], [0, 0, np.cos(np.radians(18.5))]])
DIRECTIONS = {
    **{f"permutation {n}": matrix for n, matrix in enumerate(signed_permutations())},
    "oblique": ROTATION,
    "left-handed oblique": ROTATION * (1, -1, 1),
    "sheared": TILT,
    "sheared left-handed": TILT * (1, 1, -1),
    "sheared and oblique": ROTATION @ TILT,
    "every axis halfway": Rotation.from_euler("xyz", [45, 45, 45], degrees=True).as_matrix(),
}


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS.keys())
def test_every_orientation_agrees_with_simpleitk_and_is_inverted_exactly(direction):
    volume = a_volume(direction)
    before, image = place_of_each_value(volume), simple_itk_image(volume)
    for axes in ALL_CODES:
        result = reorient(volume, axes)
        expected = sitk.DICOMOrient(image, axes[::-1])
        assert np.array_equal(result.array, sitk.GetArrayViewFromImage(expected)), axes
        found = geometry(result.spacing, result.grid.origin, result.grid.direction.ravel())
        truth = geometry(expected.GetSpacing(), expected.GetOrigin(), expected.GetDirection())
        assert (np.abs(found - truth) <= TOLERANCE).all(), axes
        assert np.abs(place_of_each_value(result) - before).max() <= 1e-11, axes
        assert axis_codes(result.grid) == axes
        assert result.metadata == volume.metadata

        plan = Reorientation.to(volume.grid, axes)
        assert np.array_equal(plan.invert(result.array), volume.array), axes
        assert np.array_equal(plan.source.ijk_to_lps, volume.ijk_to_lps), axes


def test_the_forty_eight_codes_are_all_different_reorientations():
    volume = a_volume(np.eye(3))
    results = {reorient(volume, axes).array.tobytes() for axes in ALL_CODES}
    assert len(ALL_CODES) == len(results) == 48


def test_array_axes_run_where_the_code_says():
    grid = Reorientation.to(a_volume(np.eye(3)).grid, "ARS").grid
    np.testing.assert_array_equal(np.sign(grid.to_lps(np.array([0, 0, 1])) - grid.origin), [0, -1, 0])
    np.testing.assert_array_equal(np.sign(grid.to_lps(np.array([0, 1, 0])) - grid.origin), [-1, 0, 0])
    np.testing.assert_array_equal(np.sign(grid.to_lps(np.array([1, 0, 0])) - grid.origin), [0, 0, 1])


def test_channels_in_front_of_the_axes_stay_in_front():
    volume = a_volume(ROTATION)
    plan = Reorientation.to(volume.grid, "LAI")
    channels = np.stack([volume.array, -volume.array])[None]
    moved = plan.apply(channels)
    np.testing.assert_array_equal(moved[0, 1], -plan.apply(volume.array))
    np.testing.assert_array_equal(plan.invert(moved), channels)


# Any invertible matrix, far from orthogonal, must still get each axis name once and keep its voxels in place.
elements = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 2))


@given(st.lists(elements, min_size=9, max_size=9).map(lambda v: np.array(v).reshape(3, 3)), st.sampled_from(ALL_CODES))
def test_even_degenerate_geometry_is_only_permuted(direction, axes):
    if abs(np.linalg.det(direction)) < 1e-4:
        direction = direction + 4 * np.eye(3)
    volume = a_volume(direction)
    plan = Reorientation.to(volume.grid, axes)
    assert sorted(plan.order) == [0, 1, 2]
    result = reorient(volume, axes)
    np.testing.assert_allclose(place_of_each_value(result), place_of_each_value(volume), atol=1e-9)
    np.testing.assert_array_equal(plan.invert(result.array), volume.array)


@pytest.mark.parametrize("axes", ["SPX", "SSL", "SP", "spl", "SPLR", ""])
def test_a_code_that_is_no_orientation_is_refused(axes):
    with pytest.raises(UsageError, match=r"L/R, P/A and S/I|anatomical direction"):
        reorient(a_volume(np.eye(3)), axes)


def test_an_array_of_another_shape_is_refused():
    plan = Reorientation.to(Grid(SHAPE, np.eye(4)), "LPS")
    with pytest.raises(ValueError, match="expected an array of shape"):
        plan.apply(np.zeros((6, 5, 4)))
    with pytest.raises(ValueError, match="expected an array of shape"):
        plan.invert(np.zeros(SHAPE))
