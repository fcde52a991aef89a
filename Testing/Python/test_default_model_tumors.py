# SPDX-License-Identifier: Apache-2.0
"""Tumors in all phases, transplants and hard negatives: labels, visibility, and absence of artifacts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, label
from test_default_model_synthesis import SIZE, block_of_liver

from LiverXAILib.training.lesion_painting import smoothed_inside
from LiverXAILib.training.random_fields import Rng, gaussian_blur
from recipes.default_model.synthesis import ContrastPhase, Generator, Repertoire, Source, Tissue
from recipes.default_model.synthesis import transplants as transplants_module
from recipes.default_model.synthesis.distractors import add_appearances, add_structures, make_cirrhotic
from recipes.default_model.synthesis.repertoire import phases_of
from recipes.default_model.synthesis.tissues import draw_patient
from recipes.default_model.synthesis.transplants import Graft, cut_out, transplant
from recipes.default_model.synthesis.tumors import KINDS, add_tumors, draw_look

pytestmark = pytest.mark.usefixtures("one_thread")

MM = 2.0


def noisy_liver(sigma: float = 8.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A ball of liver, 100 HU, 40 voxels wide, in fat, with noise like a scanner's."""
    k, j, i = torch.meshgrid(*[torch.arange(56.0) - 28] * 3, indexing="ij")
    liver = (k**2 + j**2 + i**2).sqrt() < 24
    noise = gaussian_blur(Rng(99).normal(56, 56, 56), (0.6,) * 3)
    return torch.where(liver, 100.0, -100.0) + sigma * noise / noise.std(), liver


def source_with_tumor(hu: float = 60.0) -> Source:
    """The block of liver with a brick of tumor in it."""
    block = block_of_liver()
    tumors = np.zeros_like(block.liver)
    tumors[14:26, 20:32, 22:36] = True
    assert block.ct is not None
    ct = np.where(tumors, hu, block.ct).astype(np.int16)
    return replace(block, ct=ct, tumors=tumors, phase="portal")


def cut(sigma: float, contrast: float = -40.0) -> Graft:
    """A tumor of 24 mm with noise of that standard deviation, cut out of a noisy liver."""
    rng = np.random.default_rng(5)
    liver = np.ones((40, 40, 40), bool)
    tumors = np.zeros_like(liver)
    tumors[14:26, 14:26, 14:26] = True
    ct = 80 + contrast * tumors + rng.normal(0, sigma, liver.shape)
    (graft,) = cut_out(ct.astype(np.int16), liver, tumors, MM, "portal", "x")
    return graft


@pytest.mark.parametrize("phase", ContrastPhase, ids=lambda phase: phase.value)
def test_tumors_stay_in_the_liver_and_are_whole_pieces(phase: ContrastPhase) -> None:
    image, liver = noisy_liver()
    for seed in range(8):
        result, lesions = add_tumors(Rng(seed), image, liver, MM, phase)
        assert not (lesions.bool() & ~liver).any()
        assert torch.equal(result[~liver], image[~liver])
        assert torch.isfinite(result).all()
        for number in range(1, int(lesions.max()) + 1):
            assert label(lesions.numpy() == number, np.ones((3, 3, 3)))[1] == 1


def test_a_carcinoma_is_brighter_than_the_liver_first_and_darker_later() -> None:
    def contrasts(phase: ContrastPhase) -> np.ndarray:
        return np.array([draw_look(Rng(seed), "hepatocellular carcinoma", phase, 20.0).contrast for seed in range(80)])

    assert np.median(contrasts(ContrastPhase.LATE_ARTERIAL)) > 8
    assert np.median(contrasts(ContrastPhase.PORTAL)) < -8
    assert np.median(contrasts(ContrastPhase.DELAYED)) < -15
    rings = [
        draw_look(Rng(seed), "hepatocellular carcinoma", ContrastPhase.DELAYED, 20.0).capsule for seed in range(80)
    ]
    assert 0.3 < np.mean([ring > 5 for ring in rings]) < 0.9


def test_every_kind_can_be_seen_in_every_phase() -> None:
    for name in KINDS:
        for phase in ContrastPhase:
            for seed in range(20):
                look = draw_look(Rng(seed), name, phase, 12.0)
                assert max(abs(look.contrast), abs(look.capsule), look.rim, 60 * look.necrosis) >= 4
                assert draw_look(Rng(seed), name, phase, 12.0) == look


def test_vessels_are_as_they_are_in_each_phase() -> None:
    patients = [draw_patient(Rng(seed)) for seed in range(600)]

    def mean(phase: ContrastPhase, tissue: Tissue) -> float:
        return float(torch.stack([p.hu[tissue] - p.hu[Tissue.LIVER] for p in patients if p.phase is phase]).mean())

    def veins(phase: ContrastPhase) -> float:
        return float(np.mean([p.hepatic_veins for p in patients if p.phase is phase]))

    assert {p.phase for p in patients} == set(ContrastPhase)
    early, late, portal, delayed = (
        ContrastPhase.EARLY_ARTERIAL,
        ContrastPhase.LATE_ARTERIAL,
        ContrastPhase.PORTAL,
        ContrastPhase.DELAYED,
    )
    assert mean(early, Tissue.AORTA) > mean(late, Tissue.AORTA) > mean(portal, Tissue.AORTA) > 0
    assert mean(early, Tissue.PORTAL_VEIN) < 20 < mean(late, Tissue.PORTAL_VEIN)
    assert veins(early) < 0 < veins(delayed) < veins(portal)


def test_a_transplant_has_the_noise_of_its_new_liver() -> None:
    image, liver = noisy_liver(8.0)
    for sigma in (2.0, 20.0):
        ratios, graft = [], cut(sigma)
        for seed in range(12):
            result, lesions = transplant(Rng(seed), image, liver, MM, [graft])
            inner = torch.from_numpy(~binary_dilation(lesions.numpy() == 0, iterations=2))
            if int(inner.sum()) > 60:
                high = result - gaussian_blur(result, (1.5,) * 3)
                healthy = torch.from_numpy(~binary_dilation((lesions > 0).numpy() | ~liver.numpy(), iterations=3))
                ratios.append(float(high[inner].std() / high[healthy].std()))
        assert len(ratios) > 3
        assert np.median(ratios) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("sigma", [0.0, 4.0, 6.0, 16.0])
def test_a_blended_graft_is_as_noisy_as_its_new_liver_in_the_tumor_and_in_its_rim(sigma: float) -> None:
    """In a liver with a metal clip that is brighter on one side, as is the graft on another."""
    noise, grain = 8 * Rng(1).normal(40, 40, 40), sigma * Rng(2).normal(40, 40, 40)
    k, j, i = torch.meshgrid(*[torch.arange(40.0) - 20] * 3, indexing="ij")
    distance = (k**2 + j**2 + i**2).sqrt()
    liver, inner, rim = k < 12, distance < 9, (distance >= 9) & (distance < 13)
    shade = 2 * j
    image = torch.where(liver, 100.0 + shade, -100.0)
    clip = torch.where((k == -18) & (j == -18) & (i == -18), 3000.0, 0.0)
    value = -40 + 2 * i  # without a border, where a blur would remove more than noise
    alpha = (inner | rim).float() * liver
    result = transplants_module._blended(image + noise + clip, liver, alpha, value + grain, inner)

    def loudness(of: torch.Tensor, within: torch.Tensor) -> float:
        core = torch.from_numpy(binary_dilation(~within.numpy(), iterations=1)).logical_not()
        return float((of - smoothed_inside(of, within))[core].std())

    rim = rim & liver & (distance > 10)
    assert loudness(result - value, inner) == pytest.approx(loudness(noise, inner), rel=0.06)
    assert loudness(result - image - value, rim) == pytest.approx(loudness(noise, rim), rel=0.06)
    left = (result - 100 - value)[inner].mul(shade[inner]).mean() / shade[inner].square().mean()
    assert float(left) == pytest.approx(0, abs=0.1)  # the tumor has no shading of the liver
    kept = (result - 100 - value)[rim].mul(shade[rim]).mean() / shade[rim].square().mean()
    assert float(kept) == pytest.approx(1, abs=0.1)  # but its rim has


def test_nothing_is_seen_of_a_transplant_that_is_like_the_liver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transplants_module, "_LEAST_CONTRAST", 0.0)
    (image, liver), graft = noisy_liver(8.0), cut(6.0, contrast=0.0)
    for seed in range(8):
        result, lesions = transplant(Rng(seed), image, liver, MM, [graft])
        assert lesions.any()
        border = torch.from_numpy(binary_dilation(lesions.numpy() > 0, iterations=2) & ~(lesions.numpy() > 0)) & liver
        far = liver & torch.from_numpy(~binary_dilation(lesions.numpy() > 0, iterations=5))
        smooth = gaussian_blur(torch.where(liver, result, 100.0), (1.0,) * 3)
        assert abs(float(smooth[border].mean() - smooth[far].mean())) < 3
        assert float(smooth[border].std()) < 1.5 * float(smooth[far].std())


def test_a_tumor_that_nobody_would_see_is_not_transplanted() -> None:
    image, liver = noisy_liver(4.0)
    result, lesions = transplant(Rng(0), image, liver, MM, [cut(2.0, contrast=3.0)])
    assert not lesions.any()
    assert torch.equal(result, image)


def test_a_transplant_is_as_large_as_it_shall_be_and_as_dark_as_it_was() -> None:
    (image, liver), graft = noisy_liver(4.0), cut(4.0)
    sizes = []
    for seed in range(20):
        result, lesions = transplant(Rng(seed), image, liver, MM, [graft])
        assert not (lesions.bool() & ~liver).any()
        assert torch.equal(result[~liver], image[~liver])
        inner = torch.from_numpy(~binary_dilation(lesions.numpy() == 0, iterations=1))
        if inner.any():
            assert -60 < float(result[inner].mean() - image[liver].median()) < -20
        sizes += [int((lesions == n).sum()) * MM**3 for n in range(1, int(lesions.max()) + 1)]
    diameters = (6 * np.array(sizes) / np.pi) ** (1 / 3)
    assert diameters.min() < 14 < 18 < diameters.max()


def test_real_tumors_are_labelled_where_they_are_seen_and_never_where_the_image_is_redrawn() -> None:
    generator = Generator([source_with_tumor()], negative_fraction=0.0, lesions=0.0, sizes=[(SIZE, 1.0)])
    shares = []
    for sample in map(generator.sample, range(30)):
        if sample.kind.endswith("synthetic"):
            assert not sample.tumor.any()
        elif int(sample.tumor.sum()) > 100:
            inner = torch.from_numpy(~binary_dilation(~sample.tumor.numpy(), iterations=1))
            shares.append(float(sample.image[inner].mean() - sample.image[sample.liver & ~sample.tumor].median()))
    assert len(shares) > 10
    assert np.median(shares) == pytest.approx(-40, abs=10)


def test_where_nobody_labelled_tumors_only_painted_ones_are_known() -> None:
    source = replace(block_of_liver(), tumors_known=False)
    generator = Generator([source], negative_fraction=0.0, lesions=0.7, sizes=[(SIZE, 1.0)])
    for sample in map(generator.sample, range(16)):
        if sample.kind.endswith("real"):
            assert torch.equal(sample.tumor_known, ~sample.liver | sample.tumor)
        else:
            assert sample.tumor_known.all()
        assert sample.known.all()


def test_hard_negatives_take_from_the_liver_or_change_its_image_but_are_no_lesions() -> None:
    image, liver = noisy_liver()
    changed = {"anatomy": 0, "image": 0}
    for seed in range(30):
        tissues = torch.where(liver, int(Tissue.LIVER), int(Tissue.FAT))
        left = liver.clone()
        add_structures(Rng(seed), tissues, left, MM)
        assert not (left & ~liver).any(), "the liver never grows"
        assert ((tissues == Tissue.LIVER) == left).all(), "voxels that are no longer liver have another tissue"
        changed["anatomy"] += int(not torch.equal(left, liver))
        result = add_appearances(Rng(seed), image, liver, MM, ContrastPhase.LATE_ARTERIAL)
        assert torch.isfinite(result).all()
        changed["image"] += int(not torch.equal(result, image))
    assert all(5 < count < 30 for count in changed.values())


def test_a_cirrhotic_liver_has_a_rough_border_and_is_about_as_large() -> None:
    _, liver = noisy_liver()

    surface = int((torch.from_numpy(binary_dilation(liver.numpy())) & ~liver).sum())
    for seed in range(6):
        tissues, changed = torch.where(liver, int(Tissue.LIVER), int(Tissue.FAT)), liver.clone()
        make_cirrhotic(Rng(seed), tissues, changed, MM)
        assert ((tissues == Tissue.LIVER) == changed).all()
        assert 0.85 < float(changed.sum() / liver.sum()) < 1.15
        assert int((changed & ~liver).sum()) > 0.1 * surface, "nodules stand out"
        assert int((liver & ~changed).sum()) > 0.1 * surface, "and there are furrows between them"


def test_samples_of_the_whole_repertoire_are_seeded_and_nest() -> None:
    real = source_with_tumor()
    assert real.ct is not None
    assert real.tumors is not None
    grafts = cut_out(real.ct, real.liver, real.tumors, 3.0, real.phase, real.name)
    sources = [real, block_of_liver(with_ct=False)]
    first, again = (Generator(sources, sizes=[(SIZE, 1.0)], repertoire=Repertoire(grafts)) for _ in range(2))
    for seed in range(10):
        a, b = first.sample(seed), again.sample(seed)
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.lesions, b.lesions)
        assert torch.isfinite(a.image).all()
        assert not (a.tumor & ~a.liver).any()


def test_a_graft_goes_only_into_scans_of_a_phase_that_it_may_be_of() -> None:
    assert ContrastPhase.DELAYED in phases_of("portal")
    assert not set(phases_of("portal")) & set(phases_of("arterial"))
    assert set(phases_of(None)) == set(ContrastPhase)
