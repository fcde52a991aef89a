# SPDX-License-Identifier: Apache-2.0
"""Resampling agrees with SimpleITK and SciPy, and its adjoint is the exact transpose."""

from __future__ import annotations

import warnings
import weakref
from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from LiverXAILib.volumes import resample as resampling
from LiverXAILib.volumes.resample import regrid, resample, resample_adjoint, resized
from LiverXAILib.volumes.volume import Grid


def a_grid(shape=(9, 11, 13), spacing=(0.8, 0.9, 2.5), angles=(0.0, 0.0, 0.0), origin=(-30.0, 12.0, 7.0)) -> Grid:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.array(spacing)
    matrix[:3, 3] = origin
    return Grid(shape, matrix)


def an_image(grid: Grid, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 300, grid.shape).astype(np.float32)


def with_simpleitk(array: np.ndarray, source: Grid, target: Grid, fill: float) -> np.ndarray:
    def describe(image: sitk.Image, grid: Grid) -> None:
        image.SetSpacing(grid.spacing)
        image.SetOrigin(grid.origin.tolist())
        image.SetDirection(grid.direction.ravel().tolist())

    image = sitk.GetImageFromArray(array)
    describe(image, source)
    reference = sitk.GetImageFromArray(np.zeros(target.shape, np.float32))
    describe(reference, target)
    return sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, fill))


def inside(source: Grid, target: Grid, border: float = 0.0) -> np.ndarray:
    """Voxels of `target` whose centers lie between the centers of `source`'s outermost voxels."""
    k, j, i = np.indices(target.shape)
    ijk = source.to_ijk(target.to_lps(np.stack([i, j, k], axis=-1)))
    return ((ijk >= border) & (ijk <= np.array(source.shape[::-1]) - 1 - border)).all(axis=-1)


@pytest.mark.parametrize("angles", [(0, 0, 0), (10, -20, 35)], ids=["parallel", "oblique"])
def test_linear_interpolation_equals_simpleitk(angles):
    source = a_grid()
    center = source.to_lps((np.array(source.shape[::-1]) - 1) / 2)
    target = a_grid((14, 10, 12), (0.7, 0.6, 1.3), angles, origin=center - 3.0)
    image = an_image(source)
    ours = resample(image, source, target, fill=-1024, antialias=False).numpy()
    truth = with_simpleitk(image, source, target, -1024)
    where = inside(source, target, border=1e-3)
    assert where.sum() > 300
    np.testing.assert_allclose(ours[where], truth[where], atol=2e-2)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_axis_permutations_and_flips_lose_nothing(order, flips):
    source = a_grid(angles=(5, 10, 15))
    image = an_image(source)
    view = np.transpose(image, order)[tuple(slice(None, None, f) for f in flips)]
    matrix = source.ijk_to_lps.copy()
    # Array axis a of the view is axis order[a] of the source; ijk columns run in the opposite order of array axes.
    start = np.zeros(3)
    for a in range(3):
        column = 2 - order[a]
        matrix[:3, 2 - a] = source.ijk_to_lps[:3, column] * flips[a]
        if flips[a] < 0:
            start[column] = source.shape[order[a]] - 1
    matrix[:3, 3] = source.to_lps(start)
    target = Grid(view.shape, matrix)
    np.testing.assert_allclose(resample(image, source, target).numpy(), view, atol=1e-4)


def test_a_constant_image_stays_constant_when_it_is_made_coarser_or_finer():
    source = a_grid((20, 30, 40))
    image = np.full(source.shape, 37.0, np.float32)
    for spacing in ((3.0, 3.0, 3.0), (0.5, 0.5, 1.0)):
        target = regrid(source, spacing)
        np.testing.assert_allclose(resample(image, source, target, fill=37.0).numpy(), 37.0, atol=1e-3)


def test_downsampling_averages_noise_instead_of_picking_it():
    source = a_grid((40, 40, 40), (1, 1, 1))
    noise = an_image(source)
    coarse = resample(noise, source, regrid(source, (4, 4, 4))).numpy()
    assert coarse[2:-2, 2:-2, 2:-2].std() < noise.std() / 4


@pytest.mark.parametrize("angles", [(0, 0, 0), (8, 14, -20)], ids=["parallel", "oblique"])
def test_a_large_image_is_sampled_in_parts_like_a_small_one(monkeypatch, angles):
    source = a_grid()
    target = a_grid((14, 10, 12), (0.7, 0.6, 1.3), angles)
    image = np.stack([an_image(source, seed) for seed in (1, 2)])
    whole = resample(image, source, target, fill=-1024)
    assert whole.shape == (2, *target.shape)
    torch.testing.assert_close(whole[1], resample(image[1], source, target, fill=-1024))
    for voxels in (1, 400):
        monkeypatch.setattr("LiverXAILib.volumes.resample._SLAB_VOXELS", voxels)
        torch.testing.assert_close(resample(image, source, target, fill=-1024), whole)


@pytest.mark.parametrize("angles", [(0, 0, 0), (8, 14, -20)], ids=["parallel", "oblique"])
def test_by_default_it_is_zero_outside_the_image_and_the_adjoint_is_that_of_the_default(angles):
    source, target = a_grid((8, 8, 8), (1, 1, 1)), a_grid((4, 4, 4), (3, 3, 3), angles)
    x, y = an_image(source, 1), torch.from_numpy(an_image(target, 2))
    forth = float((resample(x, source, target).double() * y).sum())
    back = float((resample_adjoint(y, source, target).double().numpy() * x).sum())
    assert forth == pytest.approx(back, rel=1e-4)
    far = a_grid((4, 4, 4), (3, 3, 3), angles, origin=(1000.0, 0, 0))
    assert not resample(x, source, far).any()


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, bool, np.float16])
def test_types_that_torch_cannot_compute_with_are_sampled_too(dtype):
    source = a_grid()
    image = (an_image(source) > 0).astype(dtype)
    target = regrid(source, (1.1, 1.2, 1.3))
    expected = resample(image.astype(np.float32), source, target)
    torch.testing.assert_close(resample(image, source, target), expected)


def test_an_image_of_another_shape_is_refused():
    source = a_grid()
    with pytest.raises(ValueError, match="does not lie on a grid of shape"):
        resample(np.zeros(source.shape[::-1], np.float32), source, source)


def test_an_oblique_image_is_smoothed_only_along_the_axes_that_become_coarser():
    """Fine stripes across the axis i, whose voxels become four times longer, vanish; those across the others stay."""
    source = Grid((36, 36, 36), np.eye(4))
    k, j, i = np.indices(source.shape)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("x", 8, degrees=True).as_matrix() * (4, 1, 1)
    matrix[:3, 3] = 8, 12, 8
    target = Grid((12, 12, 5), matrix)
    stripes = {
        axis: np.where(n % 4 < 2, 100.0, -100.0).astype(np.float32) for axis, n in zip("kji", (k, j, i), strict=True)
    }
    sampled = {axis: resample(image, source, target).numpy() for axis, image in stripes.items()}
    plain = {axis: resample(image, source, target, antialias=False).numpy() for axis, image in stripes.items()}
    assert np.abs(plain["i"]).max() == pytest.approx(100, abs=1)
    assert np.abs(sampled["i"]).max() < 30
    for axis in "kj":
        np.testing.assert_allclose(sampled[axis], plain[axis], atol=1)


@pytest.mark.parametrize("size", [10.0, 10.0005, 10.002])
def test_a_grid_is_made_larger_only_if_a_visible_part_of_the_image_would_be_lost(size):
    grid = a_grid((10, 10, 10), (size / 10,) * 3)
    n = 10 if size < 10.001 else 11
    assert regrid(grid, (1.0, 1.0, 1.0)).shape == (n, n, n)


def test_outside_the_image_is_the_fill_value():
    source = a_grid()
    target = a_grid(origin=(1000.0, 0.0, 0.0))
    assert (resample(an_image(source), source, target, fill=-1024).numpy() == -1024).all()


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("angles", [(0, 0, 0), (8, 14, -20)], ids=["parallel", "oblique"])
def test_the_adjoint_is_the_transpose(angles, antialias):
    source = a_grid((7, 8, 9))
    target = a_grid((6, 12, 5), (1.9, 0.7, 2.0), angles, origin=(-29.0, 12.5, 8.0))
    x, y = torch.from_numpy(an_image(source, 1)), torch.from_numpy(an_image(target, 2))
    left = (resample(x, source, target, antialias=antialias).double() * y).sum()
    right = (x.double() * resample_adjoint(y, source, target, antialias=antialias)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-4)


def test_half_a_voxel_beyond_the_outermost_center_the_image_ends():
    source = Grid((4, 4, 4), np.eye(4))
    image = np.full(source.shape, 7, np.float32)
    for axis in range(3):
        for position, value in ((-0.51, -1), (-0.49, 7), (3.49, 7), (3.51, -1)):
            matrix = np.eye(4)
            matrix[axis, 3] = position
            sampled = resample(image, source, Grid((1, 1, 1), matrix), fill=-1)
            assert float(sampled) == value, (axis, position)


spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)
shapes = st.tuples(*[st.integers(1, 7)] * 3)
angles = st.tuples(*[st.floats(-180, 180)] * 3)


@settings(max_examples=40, deadline=None)
@given(shapes, shapes, spacings, spacings, angles, st.booleans())
def test_resampling_stays_within_the_image_and_its_adjoint_is_the_transpose(n, m, s, t, turned, antialias):
    source, target = a_grid(n, s), a_grid(m, t, turned, origin=(-29.0, 12.5, 8.0))
    x, y = an_image(source, 1), an_image(target, 2)
    sampled = resample(x, source, target, fill=float(x.min()), antialias=antialias).numpy()
    assert sampled.shape == m
    assert sampled.min() >= x.min() - 1e-2
    assert sampled.max() <= x.max() + 1e-2
    forth = float((resample(x, source, target, antialias=antialias).double().numpy() * y).sum())
    back = float(
        (resample_adjoint(torch.from_numpy(y), source, target, antialias=antialias).double().numpy() * x).sum()
    )
    assert forth == pytest.approx(back, rel=1e-3, abs=1.0)


@settings(max_examples=60, deadline=None)
@given(shapes, spacings, angles, shapes)
def test_regrid_and_resized_cover_any_grid(shape, spacing, turned, other):
    grid = a_grid(shape, spacing, turned)
    for result in (regrid(grid, (1.7, 0.9, 2.2)), resized(grid, other)):
        corners = np.array(list(product(*[(-0.5, n - 0.5) for n in grid.shape[::-1]])))
        ijk = result.to_ijk(grid.to_lps(corners))
        assert (ijk >= -0.5 - 2e-3).all()
        assert (ijk <= np.array(result.shape[::-1]) - 0.5 + 2e-3).all()
    assert resized(grid, other).shape == other


def test_regrid_and_resized_keep_the_field_of_view_centered():
    grid = a_grid((50, 60, 70), angles=(3, 5, 7))
    center = grid.to_lps((np.array(grid.shape[::-1]) - 1) / 2)
    for other in (regrid(grid, (2.0, 2.0, 2.0)), resized(grid, (32, 24, 16))):
        np.testing.assert_allclose(other.to_lps((np.array(other.shape[::-1]) - 1) / 2), center)
        extent, old = np.array(other.shape[::-1]) * other.spacing, np.array(grid.shape[::-1]) * grid.spacing
        assert (extent >= old - 1e-6).all()
        assert (extent <= old + other.spacing).all()
    assert resized(grid, (32, 24, 16)).shape == (32, 24, 16)


def test_channels_are_resampled_alike():
    source = a_grid()
    target = regrid(source, (2.0, 2.0, 2.0))
    image = an_image(source)
    both = resample(np.stack([image, 2 * image]), source, target)
    assert both.shape == (2, *target.shape)
    torch.testing.assert_close(both[1], 2 * resample(image, source, target))


def test_a_read_only_image_is_resampled_without_a_warning_and_without_a_filter_for_all_threads(monkeypatch):
    grid, always, entered = a_grid(), torch.is_warn_always_enabled(), []
    image = an_image(grid)
    expected = resample(image, grid, grid)
    image.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as heard, monkeypatch.context() as patch:
            warnings.simplefilter("always")
            patch.setattr(warnings.catch_warnings, "__enter__", lambda self: entered.append(self))
            patch.setattr(warnings.catch_warnings, "__exit__", lambda *about: None)
            assert torch.equal(resample(image, grid, grid), expected)
    finally:
        torch.set_warn_always(always)
    assert (heard, entered) == ([], [])
    assert not image.flags.writeable


def test_the_memory_of_an_image_lives_as_long_as_the_tensor():
    image = np.full((64, 64, 64), 7.0, np.float32)
    image.flags.writeable = False
    tensor, owner = resampling._as_tensor(image), weakref.ref(image)
    del image
    assert owner() is not None
    assert bool((tensor == 7).all())
    del tensor
    assert owner() is None
