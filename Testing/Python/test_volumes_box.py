# SPDX-License-Identifier: Apache-2.0
"""Boxes, connected components and masks as text, against plain array indexing and SciPy."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.transform import Rotation

from LiverXAILib.reading.packing import pack_mask, unpack_mask
from LiverXAILib.volumes.box import (
    Box,
    bounding_box,
    central_voxel,
    components,
    largest_component,
    touching,
    without_holes,
)
from LiverXAILib.volumes.volume import Grid

sizes = st.tuples(*[st.integers(1, 9)] * 3)
masks = hnp.arrays(bool, sizes)


@st.composite
def boxes_of(draw: st.DrawFn, shape: tuple[int, int, int]) -> Box:
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    return Box.between(starts, [draw(st.integers(low + 1, n)) for low, n in zip(starts, shape, strict=True)])


@st.composite
def images_with_two_boxes(draw: st.DrawFn) -> tuple[np.ndarray, Box, Box]:
    shape = draw(sizes)
    return np.arange(np.prod(shape)).reshape(shape), draw(boxes_of(shape)), draw(boxes_of(shape))


@given(masks)
def test_a_bounding_box_is_what_scipy_finds(mask):
    found = ndimage.find_objects(mask.astype(int))
    assert bounding_box(mask) == (tuple(found[0]) if mask.any() else None)


@given(images_with_two_boxes())
def test_the_intersection_holds_the_voxels_of_both(case):
    image, first, second = case
    both = set(image[first].flat) & set(image[second].flat)
    common = first.intersection(second)
    assert (set() if common is None else set(image[common].flat)) == both
    if common is not None:
        np.testing.assert_array_equal(image[first][common.relative_to(first)], image[common])
        assert common.relative_to(first).shifted(first.start) == common


@given(images_with_two_boxes(), st.tuples(*[st.integers(0, 4)] * 3))
def test_union_and_growth_are_the_smallest_boxes_around_their_voxels(case, margins):
    image, first, second = case
    mask = np.zeros(image.shape, bool)
    mask[first] = mask[second] = True
    assert Box.union([first, None, second]) == bounding_box(mask)
    padded = np.zeros([n + 2 * m for n, m in zip(image.shape, margins, strict=True)], bool)
    padded[first.shifted(margins)] = True
    padded = ndimage.binary_dilation(padded, np.ones([2 * m + 1 for m in margins], bool))
    inner = Box.full(image.shape).shifted(margins)
    assert first.grown(margins, image.shape) == bounding_box(padded[inner])


@given(images_with_two_boxes())
def test_a_box_says_its_size_and_indexes_arrays(case):
    image, box, _ = case
    assert image[box].shape == box.shape
    assert image[box].flat[0] == image[box.start]
    assert image[box].flat[-1] == image[tuple(np.array(box.stop) - 1)]
    np.testing.assert_array_equal(image[Box.full(image.shape)], image)


@given(images_with_two_boxes(), st.tuples(*[st.floats(0.3, 3)] * 3), st.floats(0, 4))
def test_a_projected_box_holds_all_of_the_box_but_no_layer_too_many(case, spacing, margin):
    image, box, _ = case
    source = Grid(image.shape, np.diag([0.9, 1.1, 1.7, 1.0]))
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = -3.2, 0.4, -1.0
    target = Grid((12, 10, 8), matrix)
    projected = box.projected(source, target, margin)
    # Faces of the box in voxels of the target, axis by axis: the grids are parallel.
    low = (np.array(source.to_lps(np.array(box.start[::-1]) - 0.5)) - margin - target.origin) / spacing + 0.5
    high = (np.array(source.to_lps(np.array(box.stop[::-1]) - 0.5)) + margin - target.origin) / spacing + 0.5
    for axis, n in enumerate(target.shape[::-1]):
        inside = [v for v in range(n) if v + 1 > low[axis] + 2e-3 and v < high[axis] - 2e-3]
        side = projected[::-1][axis]
        assert set(inside) <= set(range(side.start, side.stop))
        assert side.stop - side.start <= max(len(inside), 1) + 2


TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("xyz", (20, -30, 15), degrees=True).as_matrix() * (0.5, 1.0, 2.0)
TURNED[:3, 3] = 7, -40, 100


def test_a_box_projected_to_its_own_grid_stays_as_it_is_and_grows_by_the_margin_in_millimeters():
    grid, box = Grid((12, 10, 14), TURNED), Box.between((1, 3, 5), (4, 8, 9))
    assert box.projected(grid, grid) == box
    assert box.projected(grid, grid, margin_mm=2.0) == box.grown((1, 2, 4), grid.shape)
    assert box.projected(grid, grid, margin_mm=100.0) == Box.full(grid.shape)


def test_a_box_projected_to_a_grid_of_other_axes_and_halved_voxels_has_the_same_corners():
    source = Grid((12, 10, 14), TURNED)
    # Its axes (i, j, k) are the source's (k, i, j); i runs backward, in voxels of half the length.
    matrix = TURNED[:, [2, 0, 1, 3]] @ np.diag([-0.5, 1, 1, 1])
    matrix[:3, 3] = source.to_lps(np.array([0, 0, 11.25]))
    target = Grid((10, 14, 24), matrix)
    assert Box.between((1, 3, 5), (4, 8, 9)).projected(source, target) == Box.between((3, 5, 16), (8, 9, 22))


@pytest.mark.parametrize(("offset", "expected"), [(-99, (0, 1)), (99, (6, 7))], ids=["before", "beyond"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_beside_the_target_is_projected_to_its_nearest_layer(axis, offset, expected):
    grid = Grid((7, 7, 7), np.eye(4))
    start = np.array([2, 3, 4])
    box = Box.between(start, start + 2).shifted(offset * np.eye(3, dtype=int)[axis])
    projected = box.projected(grid, grid)
    assert (projected.start[axis], projected.stop[axis]) == expected
    assert projected.shape == tuple(1 if n == axis else 2 for n in range(3))


def test_boxes_that_only_touch_have_no_voxel_in_common():
    box = Box.between((0, 0, 0), (2, 3, 4))
    for step in ((2, 0, 0), (0, 3, 0), (0, 0, 4)):
        assert box.intersection(box.shifted(step)) is None
        assert box.intersection(box.shifted(np.subtract(step, np.sign(step)))) is not None


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 20), st.just(3)), elements=st.integers(-9, 9)))
def test_the_central_voxel_is_the_first_of_those_nearest_to_the_centroid(voxels):
    distances = [np.linalg.norm(voxel - voxels.sum(axis=0) / len(voxels)) for voxel in voxels]
    nearest = [voxel for voxel, far in zip(voxels, distances, strict=True) if far <= min(distances) + 1e-9]
    np.testing.assert_array_equal(central_voxel(voxels), nearest[0])


@given(images_with_two_boxes(), st.data())
def test_touching_keeps_exactly_the_components_that_share_voxels(case, data):
    shape = case[0].shape
    mask, other = data.draw(hnp.arrays(bool, shape)), data.draw(hnp.arrays(bool, shape))
    numbers, count = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = [n for n in range(1, count + 1) if (other & (numbers == n)).any()]
    np.testing.assert_array_equal(touching(mask, other), np.isin(numbers, kept))


def test_components_are_numbered_as_they_are_met_or_by_size_and_the_first_of_equals_is_the_largest():
    mask = np.zeros((4, 6, 7), np.int16)
    mask[1, 1, 1] = mask[1, 4, 2:4] = mask[2, 1, 4:6] = 3
    places = (1, 1, 1), (1, 4, 2), (2, 1, 4)
    assert [components(mask)[place] for place in places] == [1, 2, 3]
    assert [components(mask, largest_first=True)[place] for place in places] == [3, 1, 2]
    assert [tuple(voxel) for voxel in np.argwhere(largest_component(mask))] == [(1, 4, 2), (1, 4, 3)]


@settings(max_examples=60)
@given(masks, st.booleans())
def test_components_are_those_of_scipy(mask, corners):
    expected, count = ndimage.label(mask, np.ones((3, 3, 3)) if corners else None)
    found = components(mask, corners=corners)
    pairs = {(a, b) for a, b in zip(found[mask], expected[mask], strict=True)}
    assert len(pairs) == count == found.max(initial=0)
    assert not found[~mask].any()


@given(masks)
def test_the_largest_component_comes_first(mask):
    sizes = np.bincount(components(mask, largest_first=True).ravel())[1:]
    assert list(sizes) == sorted(sizes, reverse=True)
    assert largest_component(mask).sum() == (sizes[0] if len(sizes) else 0)


@settings(max_examples=60)
@given(hnp.arrays(bool, sizes, elements=st.sampled_from([True, True, True, False])))
def test_holes_are_those_of_scipy_also_in_masks_that_reach_the_border(mask):
    np.testing.assert_array_equal(without_holes(mask), ndimage.binary_fill_holes(mask))


def test_a_cavity_that_is_open_only_at_a_corner_is_a_hole():
    mask = np.ones((4, 4, 4), bool)
    mask[1, 1, 1] = mask[0, 0, 0] = False
    mask[2, 2, 3] = mask[2, 2, 2] = False
    filled = mask.copy()
    filled[1, 1, 1] = True
    np.testing.assert_array_equal(without_holes(mask), filled)
    np.testing.assert_array_equal(without_holes(np.pad(mask, 2)), np.pad(filled, 2))


@pytest.mark.parametrize("corners", [False, True])
def test_touching_at_a_corner_connects_only_where_it_is_asked(corners):
    mask = np.zeros((2, 2, 2))
    mask[0, 0, 0] = mask[1, 1, 1] = 5
    assert components(mask, corners=corners).max() == (1 if corners else 2)


@given(masks)
def test_a_mask_is_in_its_place_again_after_it_was_text(mask):
    box, inside = unpack_mask(pack_mask(mask))
    again = np.zeros(mask.shape, bool)
    again[box] = inside
    np.testing.assert_array_equal(again, mask)


def test_a_damaged_text_is_no_mask_and_never_unpacks_to_more_than_its_shape():
    text = pack_mask(np.arange(512).reshape(8, 8, 8) % 3 == 0)
    *numbers, bits = text.split(" ")
    bomb = base64.b64encode(zlib.compress(bytes(10**7))).decode("ascii")
    damaged = bits[:8] + ("A" if bits[8] != "A" else "B") + bits[9:]
    for wrong in (
        " ".join([*numbers, bomb]),
        " ".join([*numbers, damaged]),
        " ".join([*numbers, bits[: len(bits) // 2 // 4 * 4]]),
        " ".join(["0 0 0 4000 4000 4000", bits]),
        " ".join(["-1 0 0 8 8 8", bits]),
        " ".join(["0 0 0 8 8 0", bits]),
        "0 0 0",
        "words",
    ):
        with pytest.raises(ValueError):  # noqa: PT011  # which one tells the reader nothing
            unpack_mask(wrong)
