# SPDX-License-Identifier: Apache-2.0
"""Resizing with splines agrees with scikit-image, and a partial result equals the same part of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import transform

from LiverXAILib.volumes.resize import resize

SHAPES = [((9, 20, 31), (18, 11, 31)), ((40, 7, 12), (13, 25, 17)), ((1, 5, 6), (4, 5, 3)), ((5, 6, 7), (5, 6, 7))]


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("before", "after"), SHAPES)
def test_it_agrees_with_scikit_image(before, after, order):
    image = np.random.default_rng(1).normal(size=before)
    expected = transform.resize(image, after, order, mode="edge", anti_aliasing=False, clip=False)
    result = resize(torch.from_numpy(image), after, (order,) * 3)
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-5)


def test_each_axis_may_have_its_own_order():
    image = torch.randn(2, 6, 8, 8)
    mixed = resize(image, (9, 5, 5), (0, 3, 3))
    step_by_step = resize(resize(image, (6, 5, 5), (3, 3, 3)), (9, 5, 5), (0, 0, 0))
    torch.testing.assert_close(mixed, step_by_step)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_box_of_the_result_is_that_box_of_the_whole_result(order):
    image = torch.randn(3, 30, 25, 20)
    box = slice(7, 19), slice(0, 11), slice(33, 41)
    whole = resize(image, (50, 20, 41), (order,) * 3)
    torch.testing.assert_close(resize(image, (50, 20, 41), (order,) * 3, box), whole[(slice(None), *box)])
