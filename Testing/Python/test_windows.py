# SPDX-License-Identifier: Apache-2.0
"""Sliding windows cover the image, and their weights are known in advance and sum to one."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import threshold_model

from LiverXAILib.inference import stage_windows
from LiverXAILib.inference.stage_windows import stage_plan
from LiverXAILib.inference.standard import Blend
from LiverXAILib.inference.windows import WindowPlan
from LiverXAILib.volumes.volume import Grid

LAYOUTS = [
    ((40, 50, 60), (16, 16, 16), 0.5, (8, 8, 8)),
    ((17, 33, 9), (16, 16, 16), 0.25, (16, 16, 16)),
    ((5, 5, 5), None, 0.5, (4, 4, 4)),
    ((30, 31, 29), None, 0.5, (1, 1, 1)),
]


@pytest.mark.parametrize(("shape", "window", "overlap", "divisor"), LAYOUTS)
def test_weights_sum_to_one_at_every_voxel(shape, window, overlap, divisor):
    plan = WindowPlan.build(shape, window, overlap=overlap, divisor=divisor)
    total = torch.zeros(plan.padded_shape)
    for box in plan.boxes:
        assert total[box].shape == plan.window
        total[box] += plan.weight(box)
    torch.testing.assert_close(total, torch.ones_like(total))


@settings(max_examples=60, deadline=None)
@given(
    # Axes are independent, so one long axis at a time is enough; thousands of windows take long to list.
    st.permutations([st.integers(1, 70), st.integers(1, 12), st.integers(1, 12)]).flatmap(
        lambda axes: st.tuples(*axes)
    ),
    st.none() | st.tuples(*[st.integers(1, 40)] * 3),
    st.floats(0, 0.75),
    st.sampled_from([1, 2, 4, 16]),
    st.booleans(),
)
def test_windows_cover_any_image_with_sizes_the_network_accepts(shape, window, overlap, divisor, pad_to_window):
    plan = WindowPlan.build(
        shape, window, overlap=overlap, divisor=(divisor,) * 3, pad_to_window=pad_to_window and window is not None
    )
    assert all(size % divisor == 0 for size in plan.window)
    assert all(p >= n for p, n in zip(plan.padded_shape, shape, strict=True))
    for axis in range(3):
        ranges = sorted({(box[axis].start, box[axis].stop) for box in plan.boxes})
        assert ranges[0][0] == 0
        assert ranges[-1][1] == plan.padded_shape[axis]
        for (_, stop), (start, _) in pairwise(ranges):
            assert stop - start >= int(overlap * plan.window[axis]) - 1


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    window=st.none() | st.tuples(*[st.integers(1, 20)] * 3),
    overlap=st.floats(0, 0.9),
    divisor=st.tuples(*[st.sampled_from((1, 2, 4))] * 3),
    pad_to_window=st.booleans(),
)
def test_any_plan_s_weights_sum_to_one_and_its_padding_is_undone(shape, window, overlap, divisor, pad_to_window):
    plan = WindowPlan.build(shape, window, overlap=overlap, divisor=divisor, pad_to_window=pad_to_window)
    total = torch.zeros(plan.padded_shape)
    for box in plan.boxes:
        total[box] += plan.weight(box)
    torch.testing.assert_close(total, torch.ones_like(total))
    image = torch.randn(shape)
    assert torch.equal(plan.unpad(plan.pad(image, 0.0)), image)
    assert torch.equal(plan.pad(image, 5.0)[plan.image_box], image)


@pytest.mark.parametrize(
    ("shape", "window", "options", "size", "padded", "starts"),
    [
        ((40, 40, 40), (16, 16, 16), {}, 16, 40, [0, 8, 16, 24]),
        ((40, 40, 40), (16, 16, 16), {"overlap": 0.0}, 16, 40, [0, 12, 24]),
        ((40, 40, 40), (16, 16, 16), {"overlap": 0.25}, 16, 40, [0, 12, 24]),
        ((41, 41, 41), (16, 16, 16), {"overlap": 0.25}, 16, 41, [0, 8, 17, 25]),
        ((40, 40, 40), (13, 13, 13), {"divisor": (4, 4, 4)}, 16, 40, [0, 8, 16, 24]),
        ((16, 16, 16), (16, 16, 16), {}, 16, 16, [0]),
        ((17, 17, 17), (16, 16, 16), {}, 16, 17, [0, 1]),
        ((9, 9, 9), (16, 16, 16), {"divisor": (4, 4, 4)}, 12, 12, [0]),
        ((9, 9, 9), (16, 16, 16), {"pad_to_window": True}, 16, 16, [0]),
        ((9, 9, 9), None, {"divisor": (4, 4, 4)}, 12, 12, [0]),
        ((3, 3, 3), (1, 1, 1), {"overlap": 0.75}, 1, 3, [0, 1, 2]),
    ],
)
def test_windows_are_as_few_as_their_overlap_allows_and_evenly_spaced(shape, window, options, size, padded, starts):
    plan = WindowPlan.build(shape, window, **options)
    assert plan.window == (size,) * 3
    assert plan.padded_shape == (padded,) * 3
    assert [box.start for box in plan.boxes] == list(product(starts, repeat=3))


@pytest.mark.parametrize(("answers", "mean"), [([3.0], 3.0), ([1.0, 3.0], 2.0), ([1.0, 2.0, 6.0], 3.0)])
def test_the_networks_of_an_ensemble_count_alike_however_many_windows_they_saw(answers, mean):
    plan = WindowPlan.build((20, 9, 9), (8, 8, 8))
    blend = Blend(plan)
    for member, answer in enumerate(answers):
        for box in plan.boxes:
            blend.add(member, box, torch.stack([torch.full(plan.window, answer), torch.full(plan.window, -answer)]))
    expected = torch.full(plan.padded_shape, mean)
    torch.testing.assert_close(blend.mean(), torch.stack([expected, -expected]))


def test_padding_and_unpadding_are_inverse():
    plan = WindowPlan.build((5, 6, 7), None, divisor=(4, 4, 4))
    image = torch.randn(2, 5, 6, 7)
    padded = plan.pad(image, -1.0)
    assert padded.shape == (2, 8, 8, 8)
    assert (padded[:, :1] == -1).all()
    assert (padded[:, 6:] == -1).all()
    torch.testing.assert_close(plan.unpad(padded), image)


def test_padding_moves_no_voxel_in_space():
    grid = Grid((5, 6, 7), np.array([[0, 2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, -3.0, 30], [0, 0, 0, 1]]))
    plan = WindowPlan.build(grid.shape, (8, 8, 8), pad_to_window=True)
    padded = plan.padded_grid(grid)
    assert padded.shape == (8, 8, 8)
    assert padded.cropped(plan.image_box).matches(grid)


def test_only_windows_that_touch_the_mask_are_named():
    plan = WindowPlan.build((64, 16, 16), (16, 16, 16), overlap=0.5)
    mask = torch.zeros(plan.padded_shape)
    mask[20, 8, 8] = 1
    touching = list(plan.touching(mask))
    assert touching == [box for box in plan.boxes if box[0].start <= 20 < box[0].stop]
    assert 0 < len(touching) < len(plan.boxes)


# --- the windows of a stage ---------------------------------------------------------------------------------------


def plan_of(shape, **stage):
    """The windows of a stage for an image of `shape`."""
    return stage_plan(threshold_model(**stage).spec.stages[0], Grid(shape, np.eye(4)))


@pytest.mark.parametrize(
    ("shape", "divisor", "most", "window"),
    [
        ((10, 10, 10), (4, 4, 4), 12**3, (12, 12, 12)),
        ((10, 10, 10), (4, 4, 4), 12**3 - 1, (8, 12, 12)),
        # Of two windows each has 4/7 of the length, of three 2/5, of four 4/13, of five a quarter.
        ((140, 40, 40), (1, 1, 1), 100 * 40 * 40, (80, 40, 40)),
        ((140, 40, 40), (1, 1, 1), 56 * 40 * 40, (56, 40, 40)),
        ((140, 40, 40), (1, 1, 1), 56 * 40 * 40 - 1, (44, 40, 40)),
        ((140, 40, 40), (1, 1, 1), 39 * 40 * 40, (35, 40, 40)),
        ((140, 40, 40), (1, 1, 1), 34 * 40 * 40, (35, 23, 40)),
        ((9, 9, 9), (4, 4, 4), 1, (4, 4, 4)),
        ((4, 20, 20), (8, 8, 8), 8**3, (8, 8, 8)),
        ((32, 16, 16), (32, 8, 8), 32 * 8 * 8, (32, 8, 8)),
    ],
)
def test_an_image_is_cut_along_its_longest_sides_until_a_window_is_small_enough(shape, divisor, most, window):
    assert stage_windows._window_within(shape, divisor, most) == window


@pytest.mark.parametrize(
    ("window", "size", "padded", "count"),
    [(None, (1, 12, 16), (3, 12, 16), 3), ((9, 8, 8), (1, 8, 8), (3, 9, 13), 3 * 2 * 3)],
)
def test_a_network_that_reads_slices_gets_one_at_a_time(window, size, padded, count):
    plan = plan_of((3, 9, 13), window=window, dimensions=2)
    assert (plan.window, plan.padded_shape, len(plan.boxes)) == (size, padded, count)
