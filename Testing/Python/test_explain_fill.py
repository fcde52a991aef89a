# SPDX-License-Identifier: Apache-2.0
"""A region is replaced by tissue of the same patient, so that neither statistics nor the eye can detect it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from LiverXAILib.errors import UsageError
from LiverXAILib.explain.fill import (
    border_tissue,
    distance_mm,
    healthy_liver,
    isolate,
    plain_tissue,
    plausible_fill,
    soft_mask,
    transplant,
    within_mm,
)
from LiverXAILib.explain.stage_context import gaussian

SPACING = (2.0, 2.0, 2.0)
SIZE = 48


def ball(center, radius, shape=(SIZE,) * 3):
    index = np.stack(np.indices(shape), axis=-1)
    return torch.from_numpy(np.linalg.norm(index - np.array(center), axis=-1) < radius)


def a_liver(level=100.0, spread=12.0):
    """Noisy liver in fat, with a dark lesion: the image in HU, liver away from the lesion, and the lesion."""
    organ, lesion = ball((24, 24, 24), 20), ball((24, 24, 18), 5)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, spread, (SIZE,) * 3).astype(np.float32))
    image = torch.where(lesion, 40.0, torch.where(organ, level, -90.0)) + noise
    return image, ball((24, 24, 24), 18) & ~ball((24, 24, 18), 8), lesion


def test_inside_a_filled_lesion_hu_are_those_of_healthy_liver():
    image, healthy, lesion = a_liver()
    fill = plausible_fill(image, lesion, healthy, SPACING)
    assert fill.fitted >= 0.99
    filled = fill.image
    assert stats.ks_2samp(filled[lesion], image[healthy]).pvalue > 0.05
    # The same test detects the lesion itself, and a blurred one.
    assert stats.ks_2samp(image[lesion], image[healthy]).pvalue < 1e-6
    assert stats.ks_2samp((image[lesion] + filled[lesion]) / 2, image[healthy]).pvalue < 1e-6


def test_the_texture_is_that_of_the_liver_and_not_of_independent_voxels():
    image, healthy, lesion = a_liver(spread=0.0)
    stripes = 10 * torch.sin(torch.arange(SIZE) * np.pi / 3).reshape(1, 1, -1)
    filled = plausible_fill(image + stripes, lesion, healthy, SPACING).image[ball((24, 24, 18), 4)]
    inner = torch.zeros((SIZE,) * 3)
    inner[ball((24, 24, 18), 4)] = filled
    rows = inner[24, 24, 15:22] - 100
    assert float(rows.abs().max()) > 8
    # Waves with the period of the stripes: three voxels apart, the sign is opposite.
    np.testing.assert_allclose(rows[3:], -rows[:-3], atol=1.5)


def test_what_lies_further_than_the_soft_edge_is_not_touched():
    image, healthy, lesion = a_liver()
    fill = plausible_fill(image, lesion, healthy, SPACING)
    untouched = ~ball((24, 24, 18), 9)
    assert torch.equal(fill.image[untouched], image[untouched])
    assert float(fill.weight[untouched].max()) == 0
    assert float(fill.weight[lesion].min()) == 1


def test_of_a_blurred_border_little_is_left():
    """The lesion is 60 HU darker; its edge is blurred over two voxels, and it is outlined at half of the difference."""
    _, healthy, lesion = a_liver()
    image = 100 - 60 * gaussian(lesion.float(), [1.0] * 3)
    whole = float((100 - image).sum())

    def left(margin):
        return float((100 - plausible_fill(image, lesion, healthy, SPACING, margin=margin).image).sum()) / whole

    assert left(margin=1) > 0.1
    assert left(margin=2) < 0.05
    grown = torch.from_numpy(ndimage.distance_transform_edt(~lesion) <= 2)
    assert float(soft_mask(lesion, SPACING, margin=2)[grown].min()) > 0.4


def test_the_level_is_that_of_the_surroundings_and_not_of_the_whole_liver():
    image, healthy, lesion = a_liver(spread=3.0)
    slope = torch.arange(SIZE).reshape(1, 1, -1) * 2.0
    fill = plausible_fill(image + slope, lesion, healthy, SPACING)
    assert fill.ring
    # The ring's middle lies where the lesion does, 12 HU below the middle of the liver.
    assert fill.level_hu == pytest.approx(100 + 18 * 2, abs=5)
    far = healthy & ~ball((24, 24, 18), 14)
    whole = plausible_fill(image + slope, lesion, far, SPACING)
    assert not whole.ring
    assert whole.level_hu == (image + slope)[far].median()


def test_draws_differ_in_texture_and_agree_in_level_and_a_seed_repeats_itself():
    image, healthy, lesion = a_liver()
    first, again, other = (plausible_fill(image, lesion, healthy, SPACING, seed) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert first.level_hu == other.level_hu
    assert float((first.image - other.image)[lesion].abs().mean()) > 5


def test_a_lesion_too_large_for_any_place_is_pieced_together():
    image, _, _ = a_liver()
    lesion = ball((24, 24, 18), 12)
    healthy = ball((24, 24, 24), 18) & ~ball((24, 24, 18), 14)
    fill = plausible_fill(image, lesion, healthy, SPACING)
    assert fill.fitted < 0.9
    assert fill.image[lesion].median() == pytest.approx(100, abs=2)
    assert fill.image[lesion].std() == pytest.approx(12, abs=3)


def test_without_healthy_tissue_nothing_is_made_up():
    image, healthy, lesion = a_liver()
    with pytest.raises(UsageError, match="too little healthy tissue"):
        plausible_fill(image, lesion, healthy & False, SPACING)
    # Partial volume: up to three voxels from the lesion, tissue is not offered as healthy.
    beside = torch.from_numpy(ndimage.distance_transform_edt(~lesion) <= 3) & ~lesion
    assert int(beside.sum()) > 500
    with pytest.raises(UsageError, match="too little healthy tissue"):
        plausible_fill(image, lesion, beside, SPACING)


@pytest.mark.parametrize(("hu", "name"), [(-1000.0, "air"), (-100.0, "fat"), (60.0, "muscle")])
def test_other_regions_are_replaced_by_what_prevails_at_their_border(hu, name):
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 5, (SIZE,) * 3).astype(np.float32))
    region = ball((24, 24, 24), 5)
    image = torch.where(ball((24, 24, 24), 14), hu, 30.0 if hu < 0 else -800.0) + noise
    image[region] = 400.0
    donor = border_tissue(image, region, SPACING)
    fill = plausible_fill(image, region, donor, SPACING)
    assert fill.image[region].median() == pytest.approx(hu, abs=2), name


def test_a_transplanted_lesion_keeps_its_contrast_and_leaves_its_old_place():
    image, healthy, lesion = a_liver()
    fill = plausible_fill(image, lesion, healthy, SPACING)
    moved, offset = transplant(image, soft_mask(lesion, SPACING), fill, healthy, SPACING)
    there = torch.from_numpy(np.roll(lesion.numpy(), offset, (0, 1, 2)))
    assert not (there & lesion).any()
    assert moved[there].median() == pytest.approx(40, abs=4)
    assert moved[lesion].median() == pytest.approx(100, abs=4)
    assert (healthy[there]).float().mean() > 0.99


def test_a_lesion_moves_to_the_middle_of_the_deepest_place_and_takes_on_the_level_there():
    """It lies 60 HU below its surroundings, in liver of 100 HU; the larger of two places to move to has 130 HU."""
    shape = (33, 46, 75)  # not a size of fast Fourier transforms
    small, large = ball((16, 22, 36), 8, shape), ball((16, 24, 58), 12, shape)
    lesion = ball((16, 22, 14), 4, shape)
    ring = ball((16, 22, 14), 10, shape) & ~ball((16, 22, 14), 7, shape)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 3, shape).astype(np.float32))
    image = torch.where(large, 130.0, torch.where(lesion, 40.0, 100.0)) + noise
    donor = small | large | ring
    fill = plausible_fill(image, lesion, donor, SPACING)
    moved, offset = transplant(image, soft_mask(lesion, SPACING), fill, donor, SPACING)
    np.testing.assert_allclose(offset, (0, 2, 44), atol=1)
    there = torch.from_numpy(np.roll(lesion.numpy(), offset, (0, 1, 2)))
    assert moved[there].median() == pytest.approx(70, abs=3)
    assert moved[lesion].median() == pytest.approx(100, abs=3)


def test_a_lesion_that_fits_nowhere_is_not_transplanted():
    image, _, _ = a_liver()
    lesion = ball((24, 24, 18), 12)
    healthy = ball((24, 24, 24), 18) & ~ball((24, 24, 18), 14)
    fill = plausible_fill(image, lesion, healthy, SPACING)
    assert transplant(image, soft_mask(lesion, SPACING), fill, healthy, SPACING) is None


def test_an_isolated_lesion_has_plain_liver_around_it():
    image, healthy, lesion = a_liver()
    fill = plausible_fill(image, lesion, healthy, SPACING)
    alone = isolate(image, soft_mask(lesion, SPACING), fill.level_hu, healthy)
    torch.testing.assert_close(alone[lesion], image[lesion])
    fat = ~ball((24, 24, 24), 22)
    assert image[fat].median() == pytest.approx(-90, abs=2)
    assert alone[fat].median() == pytest.approx(100, abs=3)
    assert alone[fat].std() == pytest.approx(12, abs=4)


def test_distances_within_reach_are_those_of_the_whole_image():
    _, _, lesion = a_liver()
    whole, near = distance_mm(lesion, SPACING), distance_mm(lesion, SPACING, 6.0)
    within = whole <= 6.0
    torch.testing.assert_close(near[within], whole[within], rtol=0, atol=1e-4)
    assert (near[~within] > 6.0).all()
    assert near.isinf().any()


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (5.0, 1.0, 1.5)])
@pytest.mark.parametrize("voxels", [1.01, 2.01])
def test_what_lies_within_reach_is_what_the_distance_says(spacing, voxels):
    reach = voxels * max(spacing)
    values = torch.rand(12, 20, 16, generator=torch.Generator().manual_seed(0))
    for mask in (values > 0.97, values > 0.3, values > 1):
        assert torch.equal(within_mm(mask, spacing, reach), distance_mm(mask, spacing) <= reach)


@pytest.mark.parametrize("sigmas", [(0.7, 0.7, 0.7), (1.0, 0.0, 6.0), (3.0, 0.2, 0.5)])
def test_smoothing_is_that_of_scipy(sigmas):
    """Also where the kernel extends beyond the image, whose edges are replicated."""
    image = np.random.default_rng(0).normal(0, 100, (20, 24, 28)).astype(np.float32)
    before = image.copy()
    expected = image.astype(np.float64)
    for axis, sigma in enumerate(sigmas):
        if sigma:
            reach = max(1, round(3 * sigma))
            expected = ndimage.gaussian_filter1d(expected, sigma, axis, mode="nearest", radius=reach)
    np.testing.assert_allclose(gaussian(torch.from_numpy(image), sigmas).numpy(), expected, atol=1e-3)
    np.testing.assert_array_equal(image, before)


def a_labeled_run(image, **masks):
    """HU and where each label was found, as in a run of a stage whose input is in HU."""
    return SimpleNamespace(
        hu=image,
        from_hu=lambda hu: hu,
        spacing=SPACING,
        organ="liver",
        mask=masks.__getitem__,
        segmentation=SimpleNamespace(specs=[SimpleNamespace(name=name, is_lesion=name == "tumor") for name in masks]),
    )


def test_healthy_liver_keeps_away_from_its_border_and_from_what_is_labeled_in_it_but_for_its_segments():
    organ, vessel, segment = ball((24, 24, 24), 18), ball((24, 24, 32), 4), ball((24, 24, 16), 4)
    run = a_labeled_run(torch.full((SIZE,) * 3, 100.0), liver=organ, vessel=vessel, liver_segment_2=segment)
    inside, away = ndimage.distance_transform_edt(organ), ndimage.distance_transform_edt(~vessel)
    np.testing.assert_array_equal(healthy_liver(run).numpy(), (inside > 1) & (away > 2))


def test_healthy_liver_leaves_out_what_looks_different_and_hardly_anything_else():
    organ, vein = ball((24, 24, 24), 20), ball((24, 24, 32), 3)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 12, (SIZE,) * 3).astype(np.float32))
    healthy = healthy_liver(a_labeled_run(torch.where(vein, 180.0, 100.0) + noise, liver=organ))
    assert not healthy[vein].any()
    # 98.8 % of a normal distribution lie within 2.5 standard deviations.
    plain = ball((24, 24, 24), 18) & ~ball((24, 24, 32), 7)
    assert 0.975 < float(healthy[plain].float().mean()) < 0.995


@pytest.mark.parametrize(("label", "level"), [("tumor", 100.0), ("liver", 0.0)])
def test_plain_tissue_is_liver_for_a_lesion_and_what_lies_around_it_for_an_organ(label, level):
    organ, lesion = ball((24, 24, 24), 16), ball((24, 24, 18), 5)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 4, (SIZE,) * 3).astype(np.float32))
    run = a_labeled_run(
        torch.where(lesion, 200.0, torch.where(organ, 100.0, 0.0)) + noise, liver=organ | lesion, tumor=lesion
    )
    found, plain = plain_tissue(run, run.mask(label), label)
    assert found == pytest.approx(level, abs=1)
    assert plain.median() == pytest.approx(level, abs=1)
    assert plain.std() == pytest.approx(4, abs=1)
