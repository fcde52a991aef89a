# SPDX-License-Identifier: Apache-2.0
"""The training loop: loss, learning rate, exact resume, logs, export."""

from __future__ import annotations

import csv
import itertools
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_default_model_synthesis import block_of_liver

from LiverXAILib.errors import Cancelled, InputError
from LiverXAILib.inference.stages import normalize
from LiverXAILib.models import Intensity
from LiverXAILib.models.loading import load_model
from LiverXAILib.networks import UNet
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.progress import CancelToken
from LiverXAILib.training.random_fields import Size
from recipes.default_model import build as default_model
from recipes.default_model.ablations import HELD_OUT, Variant, run, variants
from recipes.default_model.build import PHASES, STAGES, export, start_from, train_phase
from recipes.default_model.loop import Batches, Settings, learning_rate, loss_of
from recipes.default_model.loop import train as train_on
from recipes.default_model.operating import OperatingPoints
from recipes.default_model.scans import phantom_scans, source_scans
from recipes.default_model.synthesis import Generator, Sample, Tissue

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = Settings(iterations=6, batch=2, warmup=2, checkpoint_every=2, log_every=2, validate_every=3)
INTENSITY = Intensity(-200.0, 300.0, 50.0, 120.0)
train = partial(train_on, intensity=INTENSITY)


def small_generator() -> Generator:
    return Generator([block_of_liver()], sizes=[((16, 24, 24), 1.0)])


def small_network() -> UNet:
    torch.manual_seed(0)
    return UNet(features=(4, 6, 8))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    validation = [small_generator().sample(-1)]
    whole = train(
        small_network(), small_generator(), tmp_path / "whole", SETTINGS, validation=validation, bfloat16=False
    )

    cancel = CancelToken()

    def stop_in_the_middle(stage: str, fraction: float) -> None:
        if fraction > 0.7:  # after iteration 5; the last checkpoint is of iteration 4
            cancel.cancel()

    arguments = {"validation": validation, "progress": stop_in_the_middle, "cancel": cancel, "bfloat16": False}
    with pytest.raises(Cancelled):
        train(small_network(), small_generator(), tmp_path / "parts", SETTINGS, **arguments)  # type: ignore[arg-type]
    resumed = train(
        small_network(), small_generator(), tmp_path / "parts", SETTINGS, validation=validation, bfloat16=False
    )

    assert set(whole) == set(resumed)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    initial = small_network().state_dict()
    assert any(not torch.equal(value, initial[name]) for name, value in whole.items())
    for name in ("log.csv", "validation.csv"):
        expected, found = rows(tmp_path / "whole" / name), rows(tmp_path / "parts" / name)
        assert [{**row, "seconds": ""} for row in found] == [{**row, "seconds": ""} for row in expected]
    assert [row["iteration"] for row in rows(tmp_path / "whole" / "log.csv")] == ["2", "4", "6"]


def test_samples_from_a_worker_process_train_the_same_weights(tmp_path: Path) -> None:
    alone = train(small_network(), small_generator(), tmp_path / "alone", SETTINGS, bfloat16=False)
    helped = train(small_network(), small_generator(), tmp_path / "helped", SETTINGS, workers=1, bfloat16=False)
    for name, value in alone.items():
        assert torch.equal(value, helped[name]), name


def sample_with(liver: torch.Tensor, lesions: torch.Tensor, known: torch.Tensor) -> Sample:
    return Sample(torch.zeros(liver.shape), liver, lesions, known, 100.0, "test")


def test_the_loss_is_small_for_the_truth_and_ignores_unknown_voxels() -> None:
    liver = torch.zeros(8, 16, 16, dtype=torch.bool)
    liver[2:6, 2:12, 2:12] = True
    tumor = torch.zeros_like(liver)
    tumor[3:5, 4:8, 4:8] = True
    known = torch.ones_like(liver)
    known[:, 14:] = False
    sample = sample_with(liver, tumor, known)
    truth = torch.stack([liver, tumor]).float() * 40 - 20
    right, _ = loss_of(truth, sample)
    wrong, parts = loss_of(-truth, sample)
    assert right < 1e-3 < 10 < wrong
    assert set(parts) == {"liver_ce", "liver_dice", "tumor_ce", "tumor_dice", "tumor_balanced"}

    elsewhere = truth.clone()
    elsewhere[:, :, 14:] = 99.0
    assert loss_of(elsewhere, sample)[0] == right


def test_the_loss_is_what_selections_by_masks_give() -> None:
    torch.manual_seed(0)
    liver, known = torch.rand(8, 16, 16) > 0.5, torch.rand(8, 16, 16) > 0.2
    tumor = liver & (torch.rand(8, 16, 16) > 0.6)
    logits = torch.randn(2, 8, 16, 16)
    _, parts = loss_of(logits, sample_with(liver, tumor, known), tumor_share=0.3)
    ce = torch.nn.functional.binary_cross_entropy_with_logits
    for channel, name, truth in ((0, "liver", liver), (1, "tumor", tumor)):
        own, target = logits[channel][known], truth[known].float()
        assert parts[f"{name}_ce"] == pytest.approx(float(ce(own, target)), abs=1e-6)
        overlap, total = (own.sigmoid() * target).sum(), own.sigmoid().sum() + target.sum()
        assert parts[f"{name}_dice"] == pytest.approx(float(1 - (2 * overlap + 50) / (total + 50)), abs=1e-6)
    ill, healthy = logits[1][known & tumor], logits[1][known & liver & ~tumor]
    expected = 0.3 * ce(ill, torch.ones_like(ill)) + 0.7 * ce(healthy, torch.zeros_like(healthy))
    assert parts["tumor_balanced"] == pytest.approx(float(expected), abs=1e-6)


def test_a_centered_network_sees_the_same_whatever_the_livers_hu(tmp_path: Path) -> None:
    class Shifted(Generator):
        def sample(self, seed: int, size: Size | None = None, curriculum: float = 0.0) -> Sample:
            sample = super().sample(seed, size, curriculum)
            return replace(sample, image=sample.image + 40, liver_hu=sample.liver_hu + 40)

    shifted = Shifted([block_of_liver()], sizes=[((16, 24, 24), 1.0)])
    far = Intensity(-3000.0, 3000.0, 0.0, 120.0, centered=True)  # nothing is clipped
    plain = replace(far, centered=False)
    runs = {"one": (small_generator(), far), "other": (shifted, far), "plain": (shifted, plain)}
    losses = {}
    for name, (generator, intensity) in runs.items():
        train_on(small_network(), generator, tmp_path / name, SETTINGS, intensity=intensity, bfloat16=False)
        losses[name] = [float(row["loss"]) for row in rows(tmp_path / name / "log.csv")]
    assert losses["one"] == pytest.approx(losses["other"], rel=1e-3)
    assert losses["plain"] != pytest.approx(losses["other"], rel=1e-3)


def test_the_balanced_part_weighs_a_small_tumor_as_much_as_the_rest_of_the_liver() -> None:
    liver = torch.ones(8, 16, 16, dtype=torch.bool)
    tumor = torch.zeros_like(liver)
    tumor[:2, :4, :4] = True
    nothing_found = torch.full((2, 8, 16, 16), -10.0)
    _, parts = loss_of(nothing_found, sample_with(liver, tumor, liver))
    assert parts["tumor_balanced"] == pytest.approx(5.0, abs=0.01)  # half of 10
    _, parts = loss_of(nothing_found, sample_with(liver, tumor, liver), tumor_share=0.2)
    assert parts["tumor_balanced"] == pytest.approx(2.0, abs=0.01)


def test_a_lesion_weighs_as_the_root_of_its_size() -> None:
    liver = torch.ones(8, 16, 16, dtype=torch.bool)
    lesions = torch.zeros(8, 16, 16, dtype=torch.uint8)
    lesions[:1, :2, :2] = 1
    lesions[2:6, 4:8, 4:8] = 2  # 16 times as large
    logits = torch.full((2, 8, 16, 16), -10.0)
    logits[1][lesions > 0] = 10.0
    found = {"both": logits, "large": logits.clone(), "small": logits.clone()}
    found["large"][1][lesions == 1] = -10.0
    found["small"][1][lesions == 2] = -10.0
    sample = sample_with(liver, lesions, liver)
    parts = {name: loss_of(value, sample)[1]["tumor_balanced"] for name, value in found.items()}
    assert parts["both"] < 1e-3
    assert parts["large"] == pytest.approx(0.5 * 10 * 1 / 5, abs=0.01)
    assert parts["small"] == pytest.approx(0.5 * 10 * 4 / 5, abs=0.01)


def test_a_negative_sample_has_a_finite_loss_that_falls_with_fewer_false_voxels() -> None:
    none = torch.zeros(8, 16, 16, dtype=torch.bool)
    sample = sample_with(none, none, ~none)
    quiet, _ = loss_of(torch.full((2, 8, 16, 16), -8.0), sample)
    loud, _ = loss_of(torch.full((2, 8, 16, 16), 2.0), sample)
    assert quiet < 0.1 < 1 < loud


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    settings = Settings(iterations=1000, warmup=100, learning_rate=1.0)
    rates = [learning_rate(n, settings) for n in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0, abs=0.011)
    assert rates[-1] == pytest.approx(0.01, abs=0.001)
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))


def test_lesions_start_large_and_clear_and_become_what_they_are() -> None:
    seen: list[float] = []

    class Watched(Generator):
        def sample(self, seed: int, size: Size | None = None, curriculum: float = 0.0) -> Sample:
            seen.append(curriculum)
            return super().sample(seed, size, curriculum)

    batches = Batches(Watched([block_of_liver()], sizes=[((16, 24, 24), 0.5), ((24, 16, 24), 0.5)]), SETTINGS)
    shapes = [{tuple(sample.image.shape) for sample in batches[n]} for n in range(len(batches))]
    assert all(len(shape) == 1 for shape in shapes), "the samples of a batch have one size"
    assert seen[:2] == [1.0, 1.0]
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0.0


def test_the_exported_model_gives_the_trained_networks_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = {name: UNet(**PHASES[name].arguments).eval() for name in STAGES}
    weights = {name: network.state_dict() for name, network in networks.items()}
    points = asdict(OperatingPoints(liver=0.0, tumor=1.0, certain=3.5))
    export(weights, tmp_path / "model", {name: {"operating_points": points} for name in STAGES})
    model = load_model(tmp_path / "model")
    hu = torch.linspace(-1024, 1500, 32**3).reshape(32, 32, 32)
    for stage in model.spec.stages:
        assert stage.intensity == PHASES[stage.name].intensity
        assert stage.axes == "SPL"
        with torch.inference_mode():
            image = normalize(hu, stage.intensity, 90.0)[None, None]
            expected, found = networks[stage.name](image), model.members(stage)[0](image)
        assert (found - expected).abs().max() < 0.01 * expected.abs().max()  # weights are kept in half precision
    locator, liver = model.spec.stages
    assert (locator.default_layer, liver.default_layer) == ("decoder.1", "decoder.2")
    assert liver.region is not None
    assert (locator.peak_threshold, liver.peak_threshold) == ({}, {"tumor": 2.5})
    assert model.spec.stage_of("liver") is model.spec.stage_of("tumor") is liver


def test_a_grown_network_keeps_what_the_shallower_one_knows() -> None:
    torch.manual_seed(0)
    shallow, grown = UNet(features=(4, 6, 8), stem_stride=2), UNet(features=(4, 6, 8, 8), stem_stride=2)
    new = {name: value.clone() for name, value in grown.bottleneck.state_dict().items()}
    start_from(grown, shallow.state_dict())
    kept, state = shallow.state_dict(), grown.state_dict()
    for place, known in (("encoder.0", "encoder.0"), ("encoder.2", "bottleneck"), ("decoder.2", "decoder.1")):
        for name, value in shallow.get_submodule(known).state_dict().items():
            assert torch.equal(state[f"{place}.{name}"], value)
    assert torch.equal(state["head.weight"], kept["head.weight"])
    assert all(torch.equal(state[f"bottleneck.{name}"], value) for name, value in new.items())
    same = UNet(features=(4, 6, 8, 8), stem_stride=2)
    start_from(same, grown.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in same.state_dict().items())
    with pytest.raises(RuntimeError):
        start_from(UNet(features=(4, 6, 8, 8, 8), stem_stride=2), shallow.state_dict())


def test_a_part_whose_start_is_missing_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train liver-veined first"):
        train_phase("liver", tmp_path / "no-data", tmp_path, PHASES["liver"].settings)


def test_every_part_trains_from_what_it_starts_from() -> None:
    for part in PHASES.values():
        network = UNet(**part.arguments)
        for size in [size for size, _ in part.sizes] + [part.validation_size]:
            assert all(n % d == 0 for n, d in zip(size, network.divisor, strict=True))
        if part.starts_from:
            start_from(network, UNet(**PHASES[part.starts_from].arguments).state_dict())


@pytest.mark.parametrize("name", STAGES)
def test_whole_scans_of_phantoms_are_what_the_network_will_see(name: str) -> None:
    part = PHASES[name]
    stage = default_model._stage(name, part, None)
    (scan,) = phantom_scans(stage, part.spacing_mm, [2000])
    assert all(n % d == 0 for n, d in zip(scan.image.shape, stage.divisor, strict=True))
    assert scan.known.all()
    assert scan.tumor.any(), "lesions are painted in"
    assert (scan.liver | ~scan.tumor).all()
    phantom = make_phantom(2000, lesions=False)
    volume_mm3 = float(scan.liver.sum()) * part.spacing_mm**3
    assert volume_mm3 == pytest.approx((phantom.truth.array > 0).sum() * phantom.ct.grid.voxel_volume_mm3, rel=0.03)
    liver_hu = float(np.median(phantom.ct.array[phantom.truth.array > 0]))
    assert float(scan.image[scan.liver].median()) == scan.liver_hu == pytest.approx(liver_hu, abs=5)
    share = float(scan.liver.float().mean())
    assert share > 0.05 if name == "liver" else share < 0.05, "the liver network sees the liver's box, not the scan"


@pytest.mark.parametrize("name", STAGES)
def test_whole_scans_of_real_sources_keep_what_is_unknown(name: str) -> None:
    part = PHASES[name]
    stage = default_model._stage(name, part, None)
    block = block_of_liver()
    block.tissues[10:30, 40:44, 15:45] = int(Tissue.UNKNOWN)
    doubtful = replace(block, tissues=np.where(block.liver, int(Tissue.UNKNOWN), block.tissues).astype(np.uint8))
    sources = [block, block_of_liver(with_ct=False), replace(block, liver=np.zeros_like(block.liver)), doubtful]
    first, second = source_scans(stage, part.spacing_mm, sources, 2)
    assert not torch.equal(first.lesions, second.lesions), "each painting is another"
    for scan in (first, second):
        assert all(n % d == 0 for n, d in zip(scan.image.shape, stage.divisor, strict=True))
        assert int(scan.liver.sum()) == block.liver.sum(), "nothing of the liver is cut"
        assert int((~scan.known).sum()) == (block.tissues == Tissue.UNKNOWN).sum()
        assert scan.tumor.any()
        assert not (scan.tumor & ~(scan.liver & scan.known)).any()
        healthy = scan.liver & ~scan.tumor
        assert float(scan.image[healthy].median()) == pytest.approx(100, abs=2)


def test_variants_of_the_recipe_are_judged_on_a_ct_they_never_saw(tmp_path: Path) -> None:
    recipes = variants(300, 0)
    assert len({repr(variant) for variant in recipes.values()}) == len(recipes), "each differs from all others"
    block, unseen = block_of_liver(), replace(block_of_liver(), name=HELD_OUT)
    seen: list[str] = []

    def keep(name: str) -> bool:
        seen.append(name)
        return True

    variant = Variant(replace(SETTINGS, batch=1), keep=keep, size=(32, 32, 32))
    variant = replace(variant, intensity=recipes["HU from the liver's own"].intensity)
    row = run(variant, [block, unseen], [block_of_liver(with_ct=False)], tmp_path)
    assert seen == ["block"]
    assert set(row) == {"held_out_liver_dice", "liver_dice", "tumor_dice", "false_liver_kvoxels"}
    assert all(0 <= row[name] <= 1 for name in ("held_out_liver_dice", "liver_dice", "tumor_dice"))
