# SPDX-License-Identifier: Apache-2.0
"""Synthesis: seeded, labels and images agree, lesions stay in the liver, negatives have no liver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from LiverXAILib.training.lesion_painting import add_lesions
from LiverXAILib.training.random_fields import Rng, gaussian_blur, rotation_matrix, smooth_field
from recipes.default_model.synthesis import Generator, Source, Tissue
from recipes.default_model.synthesis import generator as generator_module
from recipes.default_model.synthesis.acquisition import box_blur, limit_field_of_view
from recipes.default_model.synthesis.anatomy import dilate
from recipes.default_model.synthesis.deformation import deformation, sample_at
from recipes.default_model.synthesis.tissues import draw_hu

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (24, 40, 40)
#: For tests that look at nothing but the median of many samples.
SMALL = (16, 28, 28)


def block_of_liver(*, with_ct: bool = True) -> Source:
    """A body of fat with a brick of liver, in air."""
    tissues = np.full((40, 60, 60), int(Tissue.AIR), np.uint8)
    tissues[:, 6:54, 6:54] = int(Tissue.FAT)
    tissues[10:30, 15:40, 15:45] = int(Tissue.LIVER)
    hu = np.zeros(max(Tissue) + 1, np.int16)
    hu[[Tissue.AIR, Tissue.FAT, Tissue.LIVER]] = (-1000, -100, 100)
    ct = hu[tissues] if with_ct else None
    return Source("block", ct, tissues, tissues == Tissue.LIVER, detailed=True, weight=1.0)


def test_the_same_seed_gives_the_same_sample_in_any_order() -> None:
    generator = Generator([block_of_liver()], sizes=[(SIZE, 1.0)])
    first = [generator.sample(seed) for seed in (3, 4)]
    again = [Generator([block_of_liver()], sizes=[(SIZE, 1.0)]).sample(seed) for seed in (4, 3)][::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.liver, b.liver)
        assert torch.equal(a.lesions, b.lesions)
    assert not torch.equal(first[0].image, first[1].image)


@pytest.mark.parametrize("with_ct", [True, False], ids=["real", "phantom"])
def test_the_label_lies_where_the_image_shows_liver(with_ct: bool) -> None:
    generator = Generator([block_of_liver(with_ct=with_ct)], negative_fraction=0.0, lesions=0.0, sizes=[(SIZE, 1.0)])
    scores = []
    for seed in range(12):
        sample = generator.sample(seed)
        seen = gaussian_blur(sample.image, (0.7, 0.7, 0.7)) > 10  # between fat and liver, above most fluids
        seen &= dilate(sample.liver, 3)  # arms and table are as dense
        scores.append(float(2 * (seen & sample.liver).sum() / (seen.sum() + sample.liver.sum())))
    assert np.median(scores) > 0.9


def test_lesions_stay_in_the_liver_and_change_nothing_else() -> None:
    liver = torch.zeros(SIZE, dtype=torch.bool)
    liver[4:20, 4:36, 4:36] = True
    image = torch.where(liver, 110.0, -100.0)
    sizes = []
    for seed in range(12):
        result, lesions = add_lesions(Rng(seed), image, liver, 3.0)
        tumor = lesions > 0
        assert set(lesions.unique().tolist()) <= set(range(9))
        assert not (tumor & ~liver).any()
        assert torch.equal(result[~liver], image[~liver])
        assert ((result - image).abs()[tumor] > 5).float().mean() > 0.8
        sizes.append(int(tumor.sum()))
    assert max(sizes) > 10 * min(sizes)


@pytest.fixture(scope="module")
def painted() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """By how many HU lesions change an even liver, and which lesion each voxel belongs to, in 40 paintings."""
    liver = torch.ones(48, 48, 48, dtype=torch.bool)
    image = torch.full((48, 48, 48), 110.0)
    paintings = (add_lesions(Rng(seed), image, liver, 2.0) for seed in range(40))
    return [((result - image).abs(), lesions) for result, lesions in paintings]


def test_a_lesion_is_one_piece(painted: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for _, lesions in painted:
        _, pieces = label(lesions.numpy() > 0)
        assert 1 <= pieces <= int(lesions.max())  # they may touch


def test_vessels_run_inside_the_liver_and_nowhere_else() -> None:
    liver = torch.zeros(48, 64, 64, dtype=torch.bool)
    liver[8:40, 8:56, 8:56] = True
    for seed in range(12):
        added = generator_module._vessels(Rng(seed), liver, 80.0)
        assert not added[~liver].any()
        assert 0 <= float(added.min()) < float(added.max()) <= 80
        assert 0.005 < float((added[liver] > 40).float().mean()) < 0.1


def test_some_real_images_get_brighter_vessels_and_some_darker_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_module, "_vessels", lambda rng, liver, contrast: 20 * contrast * liver)
    generator = Generator([block_of_liver()], negative_fraction=0.0, lesions=0.0, sizes=[(SMALL, 1.0)])
    real = [sample for sample in map(generator.sample, range(90)) if sample.kind == "block, real"]
    medians = np.array([float(sample.image[sample.liver].median()) for sample in real])
    assert 0.1 < np.mean(medians > 400) < 0.5
    assert 0.02 < np.mean(medians < -150) < 0.3


def test_an_outline_holds_what_is_seen_of_a_lesion_that_goes_over_into_the_liver(
    painted: list[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    faint = []
    for change, lesions in painted:
        tumor = lesions > 0
        assert float(change[tumor].sum() / change.sum()) > 0.9
        faint.append(float((change[tumor] < 15).float().mean()))
    assert max(faint) > 0.1  # some do have soft edges


def test_every_sample_nests_tumor_in_liver_and_hides_what_is_not_scanned() -> None:
    generator = Generator([block_of_liver(), block_of_liver(with_ct=False)], sizes=[(SIZE, 1.0)])
    with_tumor = 0
    for seed in range(14):
        sample = generator.sample(seed)
        assert torch.isfinite(sample.image).all()
        assert not (sample.tumor & ~sample.liver).any()
        assert not sample.liver[sample.image == -1024].any()
        with_tumor += bool(sample.tumor.any())
    assert 4 < with_tumor < 14


def test_unknown_tissue_is_excluded() -> None:
    source = block_of_liver()
    source.tissues[10:30, 40:44, 15:45] = int(Tissue.UNKNOWN)
    generator = Generator([source], negative_fraction=0.0, lesions=1.0, sizes=[(SIZE, 1.0)])
    samples = [generator.sample(seed) for seed in range(4)]
    assert any((~sample.known).any() for sample in samples)
    assert all((sample.known | ~sample.tumor).all() for sample in samples)


def test_a_locator_would_find_about_the_livers_median_hu() -> None:
    generator = Generator([block_of_liver()], negative_fraction=0.0, sizes=[(SIZE, 1.0)])
    samples = [sample for sample in map(generator.sample, range(30)) if sample.liver.sum() > 1000]
    errors = np.array([sample.liver_hu - float(sample.image[sample.liver].median()) for sample in samples])
    assert len(errors) > 20
    assert 2 < errors.std() < 15
    assert np.abs(errors).max() < 80
    heads = Generator([block_of_liver()], negative_fraction=1.0, sizes=[(SMALL, 1.0)])
    guesses = {sample.liver_hu for sample in map(heads.sample, range(30)) if not sample.liver.any()}
    assert len(guesses) > 5
    assert all(30 <= guess <= 150 for guess in guesses)


def test_negatives_include_heads_without_liver() -> None:
    generator = Generator([block_of_liver()], negative_fraction=1.0, sizes=[(SIZE, 1.0)])
    samples = [generator.sample(seed) for seed in range(16)]
    heads = [sample for sample in samples if sample.kind == "head or nothing"]
    assert heads
    assert not any(sample.liver.any() for sample in heads)
    assert all(sample.image.std() > 0 for sample in heads)


def test_an_undeformed_sample_is_the_source() -> None:
    source = torch.randn(9, 11, 13)
    center = torch.tensor([4.0, 5.0, 6.0])
    points = deformation(Rng(0), (9, 11, 13), center, 3.0, strength=0.0)
    assert torch.allclose(sample_at(source, points), source, atol=1e-4)
    outside = sample_at(source, points + 100)
    assert torch.allclose(outside, source[-1, -1, -1].expand_as(outside))


def test_blurs_keep_the_mean_and_match_a_direct_sum() -> None:
    point = torch.zeros(21, 21, 21)
    point[10, 10, 10] = 1
    assert gaussian_blur(point, (1.0, 0.5, 2.0)).sum() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(box_blur(point, 3.0, 0)[9:12, 10, 10], torch.full((3,), 1 / 3))
    assert torch.allclose(box_blur(point, 2.0, 1)[10, 9:12, 10], torch.tensor([0.25, 0.5, 0.25]))


def test_rotations_are_rigid_and_smooth_fields_have_unit_scale() -> None:
    turn = rotation_matrix((20, -30, 45))
    assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-6)
    assert torch.linalg.det(turn) == pytest.approx(1, abs=1e-6)
    field = smooth_field(Rng(1), (48, 48, 48), 4)
    assert 0.6 < field.std() < 1.3
    assert (field[1:] - field[:-1]).abs().mean() < 0.5 * field.std()


def test_dilation_grows_by_whole_voxels() -> None:
    mask = torch.zeros(7, 7, 7, dtype=torch.bool)
    mask[3, 3, 3] = True
    assert int(dilate(mask, 2).sum()) == 5**3


def test_drawn_patients_are_plausible() -> None:
    patients = torch.stack([draw_hu(Rng(seed))[0] for seed in range(200)])
    assert 40 < patients[:, Tissue.LIVER].median() < 120
    assert (patients[:, Tissue.BONE] > patients[:, Tissue.FAT]).all()
    assert patients[:, Tissue.AORTA].std() > 30  # contrast phases differ


def test_a_liver_that_the_scan_cuts_is_no_darker_at_the_cut() -> None:
    source = block_of_liver()
    cut = Source("cut", source.ct[14:26], source.tissues[14:26], source.liver[14:26], detailed=False, weight=1.0)
    generator = Generator([cut], negative_fraction=0.0, lesions=0.0, sizes=[(SIZE, 1.0)])
    ends = []
    for sample in map(generator.sample, range(12)):
        middle = sample.liver & ~dilate(~sample.liver & (sample.image > -1024), 3)  # not where it borders on fat
        ends.append(sample.image[middle & dilate(sample.image == -1024, 1)])
    values = torch.cat(ends)
    assert len(values) > 500
    assert float((values < 0).float().mean()) < 0.02


def test_some_scans_are_cut_short() -> None:
    image = torch.zeros(SIZE)
    shares = [float(limit_field_of_view(Rng(seed), image).float().mean()) for seed in range(40)]
    assert min(shares) < 0.7
    assert max(shares) == 1.0
