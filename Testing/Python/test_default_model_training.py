# SPDX-License-Identifier: Apache-2.0
"""The default model's training: loss, exact resume, logs, the sequence of phases, export."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from scipy.ndimage import binary_dilation
from test_default_model_synthesis import block_of_liver
from training_toys import draw_nothing

from LiverXAILib.errors import InputError, ModelError
from LiverXAILib.inference.stages import normalize
from LiverXAILib.models import Intensity
from LiverXAILib.models.loading import load_model
from LiverXAILib.models.spec import StageSpec
from LiverXAILib.networks import UNet
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.training.config import Hardware
from LiverXAILib.training.random_fields import Size
from recipes.default_model import build
from recipes.default_model.ablations import HELD_OUT, Variant, run, variants
from recipes.default_model.build import Run, export_run, start_from, train_all, train_phase, trained_weights
from recipes.default_model.card import export
from recipes.default_model.loss import BalancedLoss
from recipes.default_model.operating import OperatingPoints
from recipes.default_model.phases import PHASES, STAGES, stage_of
from recipes.default_model.scans import phantom_scans, source_scans
from recipes.default_model.synthesis import Generator, Sample, Tissue
from recipes.default_model.training import Batches, Settings, as_item, train

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = Settings(iterations=6, batch=2, checkpoint_every=2, validate_every=3)
#: For what can be seen after one epoch of three steps.
BRIEF = replace(SETTINGS, iterations=3)
CPU = Hardware(accelerator="cpu")
INTENSITY = Intensity(-200.0, 300.0, 50.0, 120.0)


def stage(intensity: Intensity = INTENSITY) -> StageSpec:
    """The stage of a small network."""
    arguments = {"dimensions": 3, "features": [4, 6, 8], "norm": "batch"}
    name = "liver" if intensity.centered else "locator"
    return stage_of(name, replace(PHASES[name], arguments=arguments, intensity=intensity), None)


def small_generator() -> Generator:
    return Generator([block_of_liver()], sizes=[((16, 24, 24), 1.0)])


def small_network() -> UNet:
    torch.manual_seed(0)
    return UNet(features=(4, 6, 8))


def trained(folder: Path, settings: Settings = SETTINGS, **arguments: Any) -> dict[str, torch.Tensor]:
    arguments = {"stage": stage(), "hardware": CPU, **arguments}
    generator = arguments.pop("generator", None) or small_generator()
    return train(small_network(), generator, folder, settings, **arguments)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder and the weights of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(folder, validation=[small_generator().sample(-1)])


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `whole` draws its learning curve, which takes longer than a training here."""
    monkeypatch.setattr("recipes.default_model.training.write_curves", draw_nothing)


class Killed(Exception):
    """Ends a run midway."""


class Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, learner: Any, batch: Any, index: int) -> None:
        if trainer.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(
    step: int, whole: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    validation = [small_generator().sample(-1)]
    with pytest.raises(Killed):
        trained(tmp_path, validation=validation, callbacks=[Kill(step)])
    resumed = trained(tmp_path, validation=validation)

    folder, weights = whole
    assert set(weights) == set(resumed)
    for name, value in weights.items():
        assert torch.equal(value, resumed[name]), name
    initial = small_network().state_dict()
    assert any(not torch.equal(value, initial[name]) for name, value in weights.items())
    expected, found = rows(folder / "epochs.csv"), rows(tmp_path / "epochs.csv")
    assert found == expected
    assert [float(row["epoch"]) for row in expected] == [1, 2]
    for ending in ("png", "svg"):
        assert (folder / f"learning-curve.{ending}").stat().st_size > 100


def test_samples_from_a_worker_process_train_the_same_weights(tmp_path: Path) -> None:
    alone, helped = trained(tmp_path / "alone", BRIEF), trained(tmp_path / "helped", BRIEF, workers=1)
    for name, value in alone.items():
        assert torch.equal(value, helped[name]), name


def test_what_is_kept_is_an_average_of_the_weights_on_the_way(tmp_path: Path) -> None:
    steps: list[dict[str, torch.Tensor]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, learner: Any, *_: Any) -> None:
            steps.append({name: value.clone() for name, value in learner.network.state_dict().items()})

    kept = trained(tmp_path, BRIEF, callbacks=[Watch()])
    average = steps[0]["head.weight"]
    for number, state in enumerate(steps[1:], 1):
        decay = min(BRIEF.ema, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * state["head.weight"]
    assert torch.allclose(kept["head.weight"], average, atol=1e-6)
    assert not torch.equal(kept["head.weight"], steps[-1]["head.weight"])


def test_the_best_checkpoint_holds_the_averaged_weights_that_validation_judged(tmp_path: Path) -> None:
    judged: list[dict[str, torch.Tensor]] = []

    class Watch(Callback):
        def on_validation_batch_start(self, trainer: Any, learner: Any, *_: Any) -> None:
            judged.append({name: value.clone() for name, value in learner.network.state_dict().items()})

    trained(
        tmp_path,
        settings=BRIEF,
        validation=[small_generator().sample(-1)],
        callbacks=[Watch()],
    )
    state = torch.load(tmp_path / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    best = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    assert len(judged) == 1
    assert best.keys() == judged[0].keys()
    for name, value in best.items():
        assert torch.equal(value, judged[0][name]), name
    # The run continues from its own weights, not from the average.
    last = torch.load(tmp_path / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    assert not torch.equal(last["network.head.weight"], best["head.weight"])


def test_norms_freeze_and_tumors_weigh_less_when_their_part_of_the_run_is_over(tmp_path: Path) -> None:
    seen: list[tuple[bool, float, float]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, learner: Any, *_: Any) -> None:
            norms = [m for m in learner.network.modules() if isinstance(m, torch.nn.BatchNorm3d)]
            seen.append((norms[0].training, norms[0].momentum, learner.criterion.tumor_share))

    settings = replace(SETTINGS, freeze_norm=1 / 3, rebalance_after=2 / 3)
    trained(tmp_path, settings, validation=[small_generator().sample(-1)], callbacks=[Watch()])
    assert [training for training, _, _ in seen] == [True, True, False, False, False, False]
    assert [share for _, _, share in seen] == [0.5, 0.5, 0.5, 0.5, 0.2, 0.2]
    assert {momentum for _, momentum, _ in seen} == {0.03}


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path: Path) -> None:
    states: list[torch.Tensor] = []

    class Spoil(Callback):
        def on_after_backward(self, trainer: Any, learner: Any) -> None:
            if trainer.global_step == 2:
                learner.network.head.bias.grad[0] = math.inf

        def on_train_batch_end(self, trainer: Any, learner: Any, *_: Any) -> None:
            states.append(learner.network.head.weight.detach().clone())

    kept = trained(tmp_path, callbacks=[Spoil()])
    assert [torch.equal(a, b) for a, b in itertools.pairwise(states)] == [False, True, False, False, False]
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_no_gradient_is_longer_than_two(tmp_path: Path) -> None:
    lengths = []

    class Watch(Callback):
        def on_before_zero_grad(self, trainer: Any, learner: Any, optimizer: Any) -> None:
            if trainer.global_step or learner.network.head.weight.grad is not None:
                gradients = [p.grad for p in learner.network.parameters() if p.grad is not None]
                if gradients:
                    lengths.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    class Enlarge(Callback):
        def on_after_backward(self, trainer: Any, learner: Any) -> None:
            for parameter in learner.network.parameters():
                parameter.grad *= 1000

    trained(tmp_path, BRIEF, callbacks=[Enlarge(), Watch()])
    assert lengths
    assert max(lengths) == pytest.approx(2.0, rel=1e-3)


def batch_with(
    liver: torch.Tensor, lesions: torch.Tensor, known: torch.Tensor, tumor_unknown: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    sample = Sample(torch.zeros(liver.shape), liver, lesions, known, 100.0, "test", tumor_unknown)
    return as_item(sample, INTENSITY)


def parts_of(logits: torch.Tensor, item: dict[str, torch.Tensor], share: float = 0.5) -> dict[str, float]:
    found = BalancedLoss(share).parts(logits, item["truth"][0], item["lesions"][0], item["known"])
    return {name: float(value) for name, value in found.items()}


def test_the_loss_is_small_for_the_truth_and_ignores_unknown_voxels() -> None:
    liver = torch.zeros(8, 16, 16, dtype=torch.bool)
    liver[2:6, 2:12, 2:12] = True
    tumor = torch.zeros_like(liver)
    tumor[3:5, 4:8, 4:8] = True
    known = torch.ones_like(liver)
    known[:, 14:] = False
    sample = batch_with(liver, tumor, known)
    truth = torch.stack([liver, tumor]).float() * 40 - 20
    right, parts = sum(parts_of(truth, sample).values()), parts_of(-truth, sample)
    assert right < 1e-3 < 10 < sum(parts.values())
    assert set(parts) == {"liver_ce", "liver_dice", "tumor_ce", "tumor_dice", "tumor_balanced"}

    elsewhere = truth.clone()
    elsewhere[:, :, 14:] = 99.0
    assert sum(parts_of(elsewhere, sample).values()) == right


def test_the_liver_counts_where_only_its_tumors_are_unknown() -> None:
    liver = torch.zeros(8, 16, 16, dtype=torch.bool)
    liver[2:6, 2:12, 2:12] = True
    sample = batch_with(liver, torch.zeros_like(liver), torch.ones_like(liver), liver)
    truth = torch.stack([liver, torch.zeros_like(liver)]).float() * 40 - 20
    everything, nothing = truth.clone(), truth.clone()
    everything[1], nothing[0] = 20.0 * (2 * liver.float() - 1), -20.0
    right, found, missed = (sum(parts_of(logits, sample).values()) for logits in (truth, everything, nothing))
    assert right == found < 1e-3 < 1 < missed


def test_the_loss_of_a_batch_is_the_mean_over_its_samples() -> None:
    torch.manual_seed(1)
    items = [as_item(small_generator().sample(seed), INTENSITY) for seed in range(2)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    logits = torch.randn(2, 2, 16, 24, 24)
    own = [sum(parts_of(logits[n], items[n]).values()) for n in range(2)]
    assert float(BalancedLoss()(logits, batch)) == pytest.approx(sum(own) / 2, rel=1e-5)


def test_the_loss_is_what_selections_by_masks_give() -> None:
    torch.manual_seed(0)
    liver, known = torch.rand(8, 16, 16) > 0.5, torch.rand(8, 16, 16) > 0.2
    tumor = liver & (torch.rand(8, 16, 16) > 0.6)
    logits = torch.randn(2, 8, 16, 16)
    parts = parts_of(logits, batch_with(liver, tumor, known), 0.3)
    ce = torch.nn.functional.binary_cross_entropy_with_logits
    for channel, name, truth in ((0, "liver", liver), (1, "tumor", tumor)):
        own, target = logits[channel][known], truth[known].float()
        assert parts[f"{name}_ce"] == pytest.approx(float(ce(own, target)), abs=1e-6)
        overlap, total = (own.sigmoid() * target).sum(), own.sigmoid().sum() + target.sum()
        assert parts[f"{name}_dice"] == pytest.approx(float(1 - (2 * overlap + 50) / (total + 50)), abs=1e-6)
    around = torch.from_numpy(binary_dilation((known & tumor).numpy(), np.ones((5, 5, 5))))
    ill, healthy = logits[1][known & tumor], logits[1][known & liver & ~tumor]
    near = logits[1][known & liver & ~tumor & around]
    margin = ce(near, torch.zeros_like(near), reduction="sum") / len(ill)
    expected = 0.3 * (ce(ill, torch.ones_like(ill)) + margin) + 0.7 * ce(healthy, torch.zeros_like(healthy))
    assert parts["tumor_balanced"] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("radius", [2.0, 5.0])
def test_neither_side_of_a_lesions_border_outweighs_the_other(radius: float) -> None:
    liver = torch.ones(24, 24, 24, dtype=torch.bool)
    axes = [torch.arange(24) - 12.0 for _ in range(3)]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    tumor = distance <= radius
    item = batch_with(liver, tumor, torch.ones_like(liver))
    logits = torch.zeros(2, 24, 24, 24, requires_grad=True)
    parts = BalancedLoss(0.2).parts(logits, item["truth"][0], item["lesions"][0], item["known"])
    (slope,) = torch.autograd.grad(parts["tumor_balanced"], logits)
    inside, outside = slope[1][tumor].mean(), slope[1][(distance > radius) & (distance <= radius + 1)].mean()
    assert float(outside / -inside) == pytest.approx(1, abs=0.2)


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
        trained(tmp_path / name, BRIEF, generator=generator, stage=stage(intensity))
        losses[name] = [float(row["training_loss"]) for row in rows(tmp_path / name / "epochs.csv")]
    assert losses["one"] == pytest.approx(losses["other"], rel=1e-3)
    assert losses["plain"] != pytest.approx(losses["other"], rel=1e-3)


def test_lesions_start_large_and_clear_and_become_what_they_are() -> None:
    generator = Generator([block_of_liver()], sizes=[((16, 24, 24), 0.5), ((24, 16, 24), 0.5)])
    keys = []
    for epoch in range(SETTINGS.epochs):
        keys += list(Batches(generator, SETTINGS, lambda epoch=epoch: (epoch, 0)))
    assert all(len({size for _, size, _ in batch}) == 1 for batch in keys), "the samples of a batch have one size"
    assert len({seed for batch in keys for seed, _, _ in batch}) == 12
    curricula = [curriculum for batch in keys for _, _, curriculum in batch]
    assert curricula[:2] == [1.0, 1.0]
    assert curricula == sorted(curricula, reverse=True)
    assert curricula[-1] == 0.0


def test_the_balanced_part_weighs_a_small_tumor_as_much_as_the_rest_of_the_liver() -> None:
    liver = torch.ones(8, 16, 16, dtype=torch.bool)
    tumor = torch.zeros_like(liver)
    tumor[:2, :4, :4] = True
    nothing_found = torch.full((2, 8, 16, 16), -10.0)
    parts = parts_of(nothing_found, batch_with(liver, tumor, liver))
    assert parts["tumor_balanced"] == pytest.approx(5.0, abs=0.01)  # half of 10
    parts = parts_of(nothing_found, batch_with(liver, tumor, liver), 0.2)
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
    sample = batch_with(liver, lesions, liver)
    parts = {name: parts_of(value, sample)["tumor_balanced"] for name, value in found.items()}
    assert parts["both"] < 1e-3
    assert parts["large"] == pytest.approx(0.5 * 10 * 1 / 5, abs=0.01)
    assert parts["small"] == pytest.approx(0.5 * 10 * 4 / 5, abs=0.01)


def test_a_negative_sample_has_a_finite_loss_that_falls_with_fewer_false_voxels() -> None:
    none = torch.zeros(8, 16, 16, dtype=torch.bool)
    sample = batch_with(none, none, ~none)
    quiet, loud = (sum(parts_of(torch.full((2, 8, 16, 16), value), sample).values()) for value in (-8.0, 2.0))
    assert quiet < 0.1 < 1 < loud


def test_the_exported_model_gives_the_trained_networks_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = {name: UNet(**PHASES[name].arguments).eval() for name in STAGES}
    weights = {name: network.state_dict() for name, network in networks.items()}
    points = asdict(OperatingPoints(liver=0.0, tumor=1.0, certain=3.5))
    export(weights, tmp_path / "model", {}, dict.fromkeys(STAGES, points))
    model = load_model(tmp_path / "model")
    hu = torch.linspace(-1024, 1500, 32**3).reshape(32, 32, 32)
    for stage in model.spec.stages:
        assert stage.intensity == PHASES[stage.name].intensity
        assert stage.axes == "SPL"
        with torch.inference_mode():
            image = normalize(hu, stage.intensity, 90.0)[None, None]
            expected, found = networks[stage.name](image), model.members(stage)[0](image)
        assert (found - expected).abs().max() < 0.01 * expected.abs().max()  # weights are stored in half precision
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


def small_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases of small networks on a block of liver, without a GPU."""
    small = {"dimensions": 3, "features": [4, 6], "norm": "batch"}
    settings = replace(SETTINGS, iterations=2, batch=1, validate_every=2)
    sizes = {"sizes": [((16, 24, 24), 1.0)], "validation_size": (16, 24, 24), "settings": settings}
    phases = {
        "locator": replace(PHASES["locator"], arguments=small, **sizes),
        "liver": replace(PHASES["liver"], arguments=small, starts_from="locator", **sizes),
        "tuning": replace(PHASES["tuning"], arguments=small, **sizes),
    }
    for name in ("build", "card"):
        monkeypatch.setattr(f"recipes.default_model.{name}.PHASES", phases)
    monkeypatch.setattr(build, "CHAIN", ("locator", "liver"))
    monkeypatch.setattr(build, "VALIDATED", (1, 1))
    monkeypatch.setattr(build, "PAINTINGS", 1)
    monkeypatch.setattr(build, "anatomy", lambda run, spacing_mm: ([block_of_liver()], [block_of_liver()]))
    monkeypatch.setattr(build, "phantom_scans", lambda stage, spacing_mm, seeds: [small_generator().sample(-1)])
    monkeypatch.setattr("recipes.default_model.training.best_hardware", lambda: CPU)


LEFT_OUT = ("hcc013", "hcc015")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of all phases without two patients, which nobody may change."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        small_chain(patch)
        patch.setattr("recipes.default_model.training.write_curves", draw_nothing)
        assert build.main(command("all", folder, "--leave-out", *LEFT_OUT)) == 0
    return folder


def command(phase: str, output: Path, *more: str) -> list[str]:
    return [phase, "--data", "nowhere", "--output", str(output), "--workers", "0", *more]


def test_one_command_trains_the_chain_and_goes_on_where_it_was_stopped(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chain(monkeypatch)
    first = {name: load_file(chain / name / "weights.safetensors") for name in STAGES}
    folder = tmp_path / "run"
    shutil.copytree(chain, folder)
    (folder / "liver" / "run.json").unlink()
    trained_phases = []
    whole = build.train_phase
    monkeypatch.setattr(build, "train_phase", lambda name, run: (trained_phases.append(name), whole(name, run)))
    assert build.main(command("all", folder, "--leave-out", *LEFT_OUT)) == 0
    assert trained_phases == ["liver"]
    for name in STAGES:
        again = load_file(folder / name / "weights.safetensors")
        assert all(torch.equal(value, again[key]) for key, value in first[name].items())
    assert sorted(path.name for path in (folder / "logs").iterdir()) == ["liver.csv", "locator.csv"]
    card = json.loads((folder / "model" / "card.json").read_text(encoding="utf-8"))
    assert card["training"]["runs"]["liver"]["settings"]["iterations"] == 2
    with pytest.raises(InputError, match="another run"):
        train_all(Run(folder, folder, seed=5, left_out=LEFT_OUT))


def test_tuning_goes_on_from_a_models_liver_network_and_keeps_its_locator(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_chain(monkeypatch)

    def model(output: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
        folder = output / "model"
        locator, liver = (load_file(folder / f"{name}.safetensors") for name in STAGES)
        return locator, liver, json.loads((folder / "card.json").read_text(encoding="utf-8"))["training"]

    start = ["--start", str(chain / "model")]
    tuning = command("tune", tmp_path / "tuned", *start, "--leave-out", "hcc015")
    assert build.main(tuning) == 0
    (locator, liver, _), (kept, tuned, training) = model(chain), model(tmp_path / "tuned")
    assert all(torch.equal(value, kept[key]) for key, value in locator.items())
    moved = (tuned["bottleneck.0.weight"].float() - liver["bottleneck.0.weight"].float()).abs()
    assert 0 < moved.max() < 0.1, "the weights went on from those of the start"
    assert list(training["runs"]) == ["locator", "liver", "tuning"]
    assert any("hcc013" in line for line in training["data"]), "the last run was trained on it"
    assert not any("hcc015" in line for line in training["data"])
    assert not any(str(folder) in json.dumps(training) for folder in (tmp_path, chain))
    assert [path.name for path in (tmp_path / "tuned" / "logs").iterdir()] == ["tuning.csv"]
    assert build.main(tuning) == 0, "what is finished is not done again"
    assert build.main([*tuning, "--seed", "5"]) == 1
    assert build.main([*tuning, "--start", "default"]) == 1

    again = ["--start", str(tmp_path / "tuned" / "model")]
    capsys.readouterr()
    assert build.main(command("tune", tmp_path / "again", *again, "--leave-out", *LEFT_OUT)) == 1
    assert "was trained on hcc013: use one that was not" in capsys.readouterr().err
    assert build.main(command("tune", tmp_path / "again", *again)) == 0
    *_, training = model(tmp_path / "again")
    assert list(training["runs"]) == ["locator", "liver", "tuning", "tuning 2"]
    assert any("hcc015" in line for line in training["data"])


def test_a_phase_whose_start_is_missing_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train liver-boxes first"):
        train_phase("liver", Run(tmp_path / "no-data", tmp_path))
    with pytest.raises(InputError, match="has no network 'liver-boxes', but locator and liver"):
        train_phase("liver-boxes", Run(tmp_path / "no-data", tmp_path), start="default")
    with pytest.raises(ModelError, match="There is no model 'nothing'"):
        train_phase("liver", Run(tmp_path / "no-data", tmp_path), start="nothing")
    with pytest.raises(InputError, match="train locator first"):
        export_run(tmp_path, {})


@pytest.mark.parametrize("name", STAGES)
def test_a_run_can_begin_with_the_bundled_weights(name: str) -> None:
    network = UNet(**PHASES[name].arguments)
    start_from(network, trained_weights("default", name))
    model = load_model("default")
    (stage,) = (stage for stage in model.spec.stages if stage.name == name)
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network.eval()(image), model.members(stage)[0](image), atol=1e-2)


def test_every_part_trains_from_what_it_starts_from() -> None:
    for part in PHASES.values():
        network = UNet(**part.arguments)
        for size in [size for size, _ in part.sizes] + [part.validation_size]:
            assert all(n % d == 0 for n, d in zip(size, network.divisor, strict=True))
        if part.starts_from:
            start_from(network, UNet(**PHASES[part.starts_from].arguments).state_dict())


phantom_made_once = cache(make_phantom)


@pytest.mark.parametrize("name", STAGES)
def test_whole_scans_of_phantoms_are_what_the_network_will_see(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.default_model.scans.make_phantom", phantom_made_once)
    part = PHASES[name]
    stage = stage_of(name, part, None)
    (scan,) = phantom_scans(stage, part.spacing_mm, [2000])
    assert all(n % d == 0 for n, d in zip(scan.image.shape, stage.divisor, strict=True))
    assert scan.known.all()
    assert scan.tumor.any(), "lesions are painted in"
    assert (scan.liver | ~scan.tumor).all()
    phantom = phantom_made_once(2000, lesions=False)
    volume_mm3 = float(scan.liver.sum()) * part.spacing_mm**3
    assert volume_mm3 == pytest.approx((phantom.truth.array > 0).sum() * phantom.ct.grid.voxel_volume_mm3, rel=0.03)
    liver_hu = float(np.median(phantom.ct.array[phantom.truth.array > 0]))
    assert float(scan.image[scan.liver].median()) == scan.liver_hu == pytest.approx(liver_hu, abs=5)
    share = float(scan.liver.float().mean())
    assert share > 0.05 if name == "liver" else share < 0.05, "the liver network sees the liver's box, not the scan"


@pytest.mark.parametrize("name", STAGES)
def test_whole_scans_of_real_sources_keep_what_is_unknown(name: str) -> None:
    part = PHASES[name]
    stage = stage_of(name, part, None)
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


def test_variants_of_the_recipe_are_judged_on_a_ct_they_never_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.default_model.ablations._SIZE", (32, 32, 32))
    recipes = variants(300, 0)
    assert len({repr(variant) for variant in recipes.values()}) == len(recipes), "each differs from all others"
    block, unseen = block_of_liver(), replace(block_of_liver(), name=HELD_OUT)
    seen: list[str] = []

    def keep(name: str) -> bool:
        seen.append(name)
        return True

    variant = Variant(replace(BRIEF, batch=1), keep=keep, size=(32, 32, 32))
    variant = replace(variant, intensity=recipes["HU from the liver's own"].intensity)
    row = run(variant, [block, unseen], [block_of_liver(with_ct=False)], tmp_path)
    assert seen == ["block"]
    assert set(row) == {"held_out_liver_dice", "liver_dice", "tumor_dice", "false_liver_kvoxels"}
    assert all(0 <= row[name] <= 1 for name in ("held_out_liver_dice", "liver_dice", "tumor_dice"))
