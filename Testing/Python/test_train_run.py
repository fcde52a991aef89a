# SPDX-License-Identifier: Apache-2.0
"""Runs of training: killed and resumed, on two processes, fine-tuned, with synthetic lesions, ready for analyze."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from training_toys import ball_case, draw_nothing, threshold_model, tiny, write_msd

from LiverXAILib import cli
from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.inference.stages import padded_input, stage_grids, stage_plan
from LiverXAILib.inference.windows import WindowPlan
from LiverXAILib.models.formats.liverxai import save_model
from LiverXAILib.models.loading import load_model, load_states
from LiverXAILib.models.spec import Intensity, Region, StageSpec
from LiverXAILib.training import learner as learner_module
from LiverXAILib.training.config import Augmentation, Config
from LiverXAILib.training.layouts import find_data, read_case
from LiverXAILib.training.learner import Learner
from LiverXAILib.training.random_fields import Rng
from LiverXAILib.training.run import train, train_by_cases
from LiverXAILib.training.samples import EpochBatches, Prepare, Samples, ValidationCases, paint_lesions, prepared_cases
from LiverXAILib.training.setup import set_up
from LiverXAILib.training.splits import recorded_split
from LiverXAILib.volumes.box import bounding_box
from LiverXAILib.volumes.io import write_volume

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msd(tmp_path_factory.mktemp("data") / "Task03_Liver", 4)


@pytest.fixture(scope="module")
def good(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_model(data, tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """An uninterrupted run of two epochs, evaluated and explained."""
    output = tmp_path_factory.mktemp("whole") / "run"
    config = tiny(data, output, finish={"evaluate": True, "explain": "seg-grad-cam"})
    lines: list[str] = []
    train(config, say=lines.append)
    (output / "said.txt").write_text("\n".join(lines), encoding="utf-8")
    return config


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `whole` draws its learning curve, which takes as long as a training run here."""
    monkeypatch.setattr("LiverXAILib.training.finish.write_curves", draw_nothing)


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=tolerance.get("rtol", 0), atol=tolerance.get("atol", 0))


# --- killed and resumed -------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in_step(number: int) -> Callable[[], None]:
    """Die before optimizer step `number` (from 1; an epoch has three)."""

    def prepare() -> None:
        steps, original = [0], learner_module.Learner.training_step

        def step(self: Any, *arguments: Any) -> Any:
            steps[0] += 1
            if steps[0] == number:
                die()
            return original(self, *arguments)

        learner_module.Learner.training_step = step  # type: ignore[method-assign]

    return prepare


def dies_in_validation() -> None:
    learner_module.Learner.validation_step = lambda *_: die()  # type: ignore[method-assign]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process that is to be killed")
@pytest.mark.parametrize("prepare", [dies_in_step(5), dies_in_validation], ids=["in the second epoch", "in validation"])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(
    prepare: Callable[[], None], data: Path, whole: Config, tmp_path: Path
) -> None:
    config = tiny(data, tmp_path / "run")

    def child() -> None:
        prepare()
        train(config, say=silent)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "run" / "model").exists()
    (outcome,) = train(config, say=silent)
    expected, found = checkpoint(whole.folder), checkpoint(tmp_path / "run")
    assert_same_weights(expected["state_dict"], found["state_dict"])
    # As text: a precision where nothing was found is NaN, which equals nothing.
    assert repr(found["liverxai"]) == repr(expected["liverxai"])
    before = json.loads((whole.folder / "finished.json").read_text(encoding="utf-8"))["rows"]
    assert repr(list(outcome.rows)) == repr(before)
    name = "liver.safetensors"
    assert (tmp_path / "run" / "model" / name).read_bytes() == (whole.folder / "model" / name).read_bytes()


def test_training_changes_the_weights(whole: Config) -> None:
    initial = set_up(whole, ["liver", "tumor"]).network.state_dict()
    trained = checkpoint(whole.folder)["state_dict"]
    assert all(not torch.equal(value, trained[f"network.{name}"]) for name, value in initial.items())


def test_a_folder_of_another_run_is_not_touched(data: Path, whole: Config) -> None:
    with pytest.raises(UsageError, match="other settings \\(training differ"):
        train(tiny(data, whole.folder, training__epochs=3), say=silent)
    stored = yaml.safe_load((whole.folder / "config.yaml").read_text(encoding="utf-8"))
    assert stored == whole.plain()


# --- files of a run -----------------------------------------------------------------------------------------------


def test_a_run_leaves_table_curves_logs_evaluation_card_and_examples(whole: Config) -> None:
    folder = whole.folder
    for name in ("learning-curve.png", "learning-curve.svg", "splits.json", "evaluation.json", "card.md"):
        assert (folder / name).stat().st_size > 100
    with (folder / "epochs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    for part in ("training", "validation"):
        for measure in ("loss", "accuracy", "dice_liver", "dice_tumor"):
            assert all(float(row[f"{part}_{measure}"]) >= 0 for row in rows)
    assert list((folder / "logs").rglob("events.out.tfevents.*"))
    assert "validation_dice_liver" in next((folder / "logs").rglob("metrics.csv")).read_text(encoding="utf-8")
    card = (folder / "card.md").read_text(encoding="utf-8")
    assert "val. Dice tumor" in card
    assert "An empty segmentation" in card
    said = (folder / "said.txt").read_text(encoding="utf-8")
    assert "3 training and 1 validation cases" in said
    assert "analyze" in said
    (example,) = (folder / "examples").iterdir()
    assert (example / "segmentation.seg.nrrd").is_file()
    split = recorded_split(find_data(whole.data).cases, folder / "splits.json")
    assert example.name == split.validation[0].name
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert {row["structure"] for row in evaluation["cases"]} == {"liver", "tumor"}
    assert all(row["ece"] is not None or row["predicted_ml"] == 0 for row in evaluation["cases"])
    spec = load_model(folder / "model").spec
    assert spec.training["recipe"]["training"]["epochs"] == 2
    assert "validation cases" in spec.quality["measured"]


def test_the_exported_model_is_ready_for_analyze(whole: Config, tmp_path: Path) -> None:
    write_volume(ball_case(0)[0], tmp_path / "ct.nii.gz")
    arguments = ["analyze", str(tmp_path / "ct.nii.gz"), "--model", str(whole.folder / "model")]
    assert cli.main([*arguments, "--output", str(tmp_path / "out"), "--explain", "liver", "--no-report"]) == 0
    assert (tmp_path / "out" / "segmentation.seg.nrrd").is_file()


def test_a_step_against_the_gradient_lowers_the_loss_of_its_batch(data: Path) -> None:
    config = tiny(data, Path("x"), network__norm="group")
    setup = set_up(config, ["liver", "tumor"])
    samples = some_samples(data)
    drawn = [samples[n, -1, n] for n in range(2)]
    batch = {name: torch.stack([sample[name] for sample in drawn]) for name in drawn[0]}
    learner = Learner(setup.network, setup.stage, setup.labels, config.training, samples, [], None, 0, seed=0)
    optimizer = torch.optim.SGD(learner.parameters(), 0.05)
    losses = []
    for _ in range(4):
        losses.append(learner.training_step(batch, 0))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2] > losses[3]


def test_a_good_model_is_measured_as_good_by_the_table_and_on_the_images_own_grid(
    data: Path, good: Path, tmp_path: Path
) -> None:
    still = {"training__epochs": 1, "training__learning_rate": 1e-12}
    (outcome,) = train(tiny(data, tmp_path / "run", init=str(good), finish__evaluate=True, **still), say=silent)
    before, after = outcome.rows
    assert (before["epoch"], after["epoch"]) == (0, 1)
    for label, least in (("liver", 0.9), ("tumor", 0.7)):  # a lesion of 11 voxels, some of them partial
        for measure in ("dice", "sensitivity", "precision"):
            assert after[f"validation_{measure}_{label}"] > least
        assert after[f"validation_loss_{label}"] < 0.4
    (result,) = outcome.results
    dice = result.structures[0].overlap.dice
    assert dice is not None
    assert dice > 0.85
    assert result.structures[0].ece is not None


@pytest.mark.parametrize(("per_case", "steps"), [(None, 5), (4, 2)])
def test_slices_train_a_two_dimensional_network(data: Path, per_case: int | None, steps: int, tmp_path: Path) -> None:
    network = {"dimensions": 2, "features": [4, 6], "size": [None, 16, 16]}
    training = {"epochs": 1, "batch_size": 8, "optimizer": "adam", "schedule": "constant", "slices_per_case": per_case}
    config = tiny(data, tmp_path / "run", network=network, training=training, finish__evaluate=True)
    (outcome,) = train(config, say=silent)
    stage = load_model(tmp_path / "run" / "model").spec.stages[0]
    assert (stage.dimensions, stage.size) == (2, (None, 16, 16))
    assert outcome.results[0].structures[0].overlap.dice is not None
    assert checkpoint(tmp_path / "run")["global_step"] == steps  # 3 cases of 12, or 4, slices in batches of 8


def test_accumulated_batches_are_one_step_and_training_stops_early(data: Path, tmp_path: Path) -> None:
    changes = {"training__batch_size": 1, "training__accumulate": 2, "training__early_stop": 1}
    config = tiny(data, tmp_path / "run", training__epochs=9, training__learning_rate=1e-9, **changes)
    (outcome,) = train(config, say=silent)
    # Six batches are three steps. Nothing is learned at this rate, so the second epoch is no better: the last.
    assert len(outcome.rows) == 2
    assert checkpoint(tmp_path / "run")["global_step"] == 6


def test_folds_are_trained_one_after_the_other_and_judged_together(data: Path, tmp_path: Path) -> None:
    changes = {"data__folds": 2, "data__fold": "all", "training__epochs": 1, "finish__evaluate": True}
    config = tiny(data, tmp_path / "run", data__cache="disk", finish__surface=False, **changes)
    outcomes = train(config, say=silent)
    assert [outcome.folder.name for outcome in outcomes] == ["fold-0", "fold-1"]
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert sorted({row["case"] for row in evaluation["cases"]}) == [f"liver_{n}" for n in range(4)]
    assert list((tmp_path / "run" / "fold-0" / "cache").glob("*.pt"))


# --- two processes ------------------------------------------------------------------------------------------------


def train_and_tell(path: str) -> tuple[int, str]:
    """Run the command in a separate process; return its exit code and output."""
    rank_zero_only.rank = int(os.environ["RANK"])  # a new process reads it on importing Lightning
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = cli.main(["train", path])
    return code, said.getvalue()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork, and fresh processes import for a minute")
def test_two_processes_do_what_one_does_with_batches_twice_as_large(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"training__optimizer": "sgd", "training__epochs": 1}
    train(tiny(data, tmp_path / "one", **changes), say=silent)
    two = tiny(data, tmp_path / "two", training__batch_size=1, hardware__devices=2, hardware__strategy="ddp", **changes)
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(two.plain()), encoding="utf-8")
    # For a log that nobody reads, it searches the source files of all functions on the stack, which takes seconds.
    monkeypatch.setattr(dynamic_rendezvous, "get_method_name", lambda depth=2: "", raising=False)
    torchrun = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork")
    ended = elastic_launch(torchrun, train_and_tell)(str(path))
    assert [code for code, _ in ended.values()] == [0, 0]
    assert "".join(said for _, said in ended.values()).count("training and 1 validation cases") == 1  # the first
    one, both = (checkpoint(tmp_path / name) for name in ("one", "two"))
    assert both["global_step"] == one["global_step"] == 3
    assert_same_weights(one["state_dict"], both["state_dict"], rtol=1e-4, atol=1e-5)
    for row, other in zip(one["liverxai"]["rows"], both["liverxai"]["rows"], strict=True):
        assert row == pytest.approx(other, rel=1e-4, nan_ok=True)


def test_each_sample_of_an_epoch_is_drawn_once_whatever_the_number_of_processes() -> None:
    units = [(n, -1) for n in range(11)]
    drawn = [list(EpochBatches(units, 2, 7, lambda: (3, 0), rank=rank, world=2)) for rank in range(2)]
    alone = list(EpochBatches(units, 4, 7, lambda: (3, 0)))
    assert [[*a, *b] for a, b in zip(*drawn, strict=True)] == alone
    assert sorted({key[:2] for batch in alone for key in batch}) == units
    assert list(EpochBatches(units, 4, 7, lambda: (3, 2))) == alone[2:]
    assert list(EpochBatches(units, 4, 7, lambda: (4, 0))) != alone


def test_some_slices_of_each_case_are_drawn_and_others_in_the_next_epoch() -> None:
    units = [(case, k) for case, count in enumerate((9, 2, 5)) for k in range(count)]

    def drawn(epoch: int) -> list[tuple[int, int]]:
        batches = EpochBatches(units, 2, 7, lambda: (epoch, 0), per_case=3)
        assert len(list(batches)) == len(batches) == 4
        return [key[:2] for batch in batches for key in batch]

    first, second = drawn(0), drawn(1)
    for epoch in (first, second):
        assert len(set(epoch)) == 8  # no slice appears twice
        assert [sum(case == n for case, _ in epoch) for n in range(3)] == [3, 2, 3]
    assert set(first) != set(second)


# --- fine-tuning --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(whole: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two stages: where the liver is, and tumors in a box around it."""
    spec, states = load_states(whole.folder / "model")
    (stage,) = spec.stages
    coarse = dataclasses.replace(stage, name="coarse", weights=("coarse.safetensors",), labels={"liver": ("liver",)})
    fine = dataclasses.replace(stage, name="fine", weights=("fine.safetensors",), region=Region("liver", 10.0))
    chained = dataclasses.replace(spec, name="chain", stages=(coarse, fine))
    folder = tmp_path_factory.mktemp("chain") / "model"
    save_model(chained, {"coarse": states["liver"], "fine": states["liver"]}, folder)
    return folder


def test_one_stage_of_a_chain_is_trained_and_the_others_stay(data: Path, chain: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    (outcome,) = train(tiny(data, tmp_path / "run", init=str(chain), training__epochs=1), say=lines.append)
    assert "stage 'fine'" in lines[0]  # the one that segments tumors
    assert outcome.rows[0]["epoch"] == 0  # the initial model, validated before training
    before, after = load_states(chain), load_states(tmp_path / "run" / "model")
    assert [stage.name for stage in after[0].stages] == ["coarse", "fine"]
    assert after[0].stages[1].region == Region("liver", 10.0)
    assert_same_weights(before[1]["coarse"][0], after[1]["coarse"][0])
    changed = [
        name for name, value in before[1]["fine"][0].items() if not torch.equal(value, after[1]["fine"][0][name])
    ]
    assert changed
    assert str(chain) in after[0].training["init"]
    assert after[0].training["initial_model"]["training"]["epochs"] == 2

    named = tiny(data, tmp_path / "other", init=str(chain), stage="coarse")
    assert (set_up(named, ["liver", "tumor"]).stage.name, set_up(named, ["liver", "tumor"]).labels) == (
        "coarse",
        ("liver",),
    )
    with pytest.raises(UsageError, match="no stage 'middle'; it has coarse, fine"):
        set_up(dataclasses.replace(named, stage="middle"), ["liver"])


def test_a_stage_around_the_liver_is_trained_in_the_box_of_the_liver(data: Path, chain: Path) -> None:
    dataset = find_data(tiny(data, Path("x")).data)
    coarse, fine = load_states(chain)[0].stages
    fine = dataclasses.replace(fine, region=Region("liver", 0.0))  # the toy's liver nearly fills its image
    shapes = [Prepare(stage, dataset.values)({"case": dataset.cases[0]})["image"].shape for stage in (coarse, fine)]
    truth = Prepare(fine, dataset.values)({"case": dataset.cases[0]})["truth"]
    assert shapes[1][1:] < shapes[0][1:]
    assert (truth > 0).any()


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_ct_is_never_used_for_training_and_validation_under_two_names(data: Path, tmp_path: Path, cache: str) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    for part in ("imagesTr", "labelsTr"):
        shutil.copy(copy / part / "liver_1.nii.gz", copy / part / "liver_9.nii.gz")
    changes = {"data__cache": cache, "data__validation_cases": ["liver_9"], "training__epochs": 1}
    with pytest.raises(InputError, match="'liver_9' is for validation, but its CT is also that of case 'liver_1'"):
        train(tiny(copy, tmp_path / "run", **changes), say=silent)
    train(tiny(copy, tmp_path / "other", **changes, data__exclude=["liver_1"]), say=silent)


def test_a_centered_stage_is_trained_on_hu_from_the_labelled_livers_own(data: Path, chain: Path) -> None:
    dataset = find_data(tiny(data, Path("x")).data)
    _, fine = load_states(chain)[0].stages
    intensity = Intensity(-3000.0, 3000.0, 0.0, 1.0, centered=True)
    fine = dataclasses.replace(fine, region=Region("liver", 0.0), intensity=intensity)
    cases = prepared_cases(dataset.cases[:1], Prepare(fine, dataset.values))
    volume, truth = read_case(dataset.cases[0], dataset.values)
    assert float(cases[0]["center_hu"]) == pytest.approx(np.median(volume.array[truth > 0]))
    sample = Samples(cases, fine, None, Augmentation(0))[0, -1, 1]
    whole = ValidationCases(cases, fine)[0, True]
    for image, labels in ((sample["image"], sample["truth"]), (whole["image"], whole["truth"])):
        assert abs(float(image[labels > 0].median())) < 5
    nothing = dataclasses.replace(dataset.values, liver=(77,), tumor=(78,), others=True)
    with pytest.raises(InputError, match="no liver is labeled, whose median HU stage"):
        prepared_cases(dataset.cases[:1], Prepare(fine, nothing))


def test_validation_shows_the_network_what_inference_would(
    data: Path, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the image is padded, for a stage whose HU are centered and not clipped below."""
    dataset = find_data(tiny(data, Path("x")).data)
    _, fine = load_states(chain)[0].stages
    intensity = Intensity(None, 300.0, 0.0, 100.0, centered=True)
    fine = dataclasses.replace(
        fine, region=Region("liver", 0.0), intensity=intensity, window=(24, 24, 24), pad_to_window=True
    )
    cases = prepared_cases(dataset.cases[:1], Prepare(fine, dataset.values))
    seen: list[torch.Tensor] = []

    def predict(networks: Any, image: torch.Tensor, stage: StageSpec, plan: WindowPlan, context: Any) -> torch.Tensor:
        seen.append(image)
        return torch.zeros(len(stage.channels), *plan.shape)

    monkeypatch.setattr(learner_module, "predict_logits", predict)
    whole = ValidationCases(cases, fine)
    settings, nothing = tiny(data, Path("x")).training, Samples(cases, fine, None, Augmentation(0))
    learner = Learner(torch.nn.Identity(), fine, ["liver", "tumor"], settings, nothing, [], whole, 1, seed=0)
    learner.validation_step(whole[0, True], 0)

    volume, truth = read_case(dataset.cases[0], dataset.values)
    (grid,) = stage_grids(volume, fine, bounding_box(truth > 0))
    plan = stage_plan(fine, grid)
    expected = padded_input(volume, fine, grid, plan, float(np.median(volume.array[truth > 0])))
    assert plan.padded_shape != plan.shape
    torch.testing.assert_close(seen[0], expected)


def test_a_run_reports_the_progress_of_its_epochs(data: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    train(tiny(data, tmp_path / "run"), say=print, progress=lambda step, fraction: seen.append((step, fraction)))
    epochs = [(step, fraction) for step, fraction in seen if step.startswith("Training: epoch")]
    assert [step for step, _ in epochs] == ["Training: epoch 1 of 2"] * 3 + ["Training: epoch 2 of 2"] * 3
    assert [fraction for _, fraction in epochs] == sorted(fraction for _, fraction in epochs)
    assert epochs[-1][1] == pytest.approx(1.0)


def test_a_warning_says_that_validation_got_worse(data: Path, good: Path, tmp_path: Path) -> None:
    changes = {"training__epochs": 1, "training__learning_rate": 0.5, "training__optimizer": "adam"}
    lines: list[str] = []
    (outcome,) = train(tiny(data, tmp_path / "run", init=str(good), **changes), say=lines.append)
    assert any(line.startswith("warning: Validation got worse") for line in lines)
    assert "Validation got worse" in (tmp_path / "run" / "card.md").read_text(encoding="utf-8")
    assert outcome.rows[0]["validation_dice_liver"] > outcome.rows[1]["validation_dice_liver"]


def test_the_curve_over_numbers_of_cases_comes_from_one_command(
    data: Path, whole: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(data, tmp_path / "run", init=str(whole.folder / "model"), training__epochs=1)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config.plain()), encoding="utf-8")
    assert cli.main(["train", str(path), "--cases", "1", "3"]) == 0
    with (tmp_path / "run" / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["cases"]) for row in rows] == [0, 1, 3]
    for ending in ("png", "svg"):
        assert (tmp_path / "run" / f"cases-curve.{ending}").stat().st_size > 1000
    splits = [json.loads((tmp_path / "run" / f"cases-{n}" / "splits.json").read_text("utf-8")) for n in (1, 3)]
    assert splits[0]["validation"] == splits[1]["validation"]
    assert splits[0]["training"] == splits[1]["training"][:1]
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.endswith(("training case", "training cases"))] == [
        "1 training case",
        "3 training cases",
    ]
    with pytest.raises(UsageError, match="the data allows 1 to 3"):
        train_by_cases(config, [4], say=silent)


def test_a_model_that_cannot_be_trained_further_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ensemble of 4"):
        set_up(tiny(data, tmp_path, init=str(_ensemble(tmp_path))), ["liver"])
    with pytest.raises(InputError, match="no file or folder"):
        train(tiny(tmp_path / "nowhere", tmp_path / "run"), say=silent)


def _ensemble(folder: Path) -> Path:
    setup = set_up(tiny(folder, folder), ["liver"])
    stage = dataclasses.replace(setup.stage, weights=tuple(f"{n}.safetensors" for n in range(4)), sha256=("",) * 4)
    setup.export(setup.network.state_dict(), folder / "single", tiny(folder, folder), {}, {})
    spec = dataclasses.replace(load_states(folder / "single")[0], stages=(stage,))
    save_model(spec, {stage.name: [setup.network.state_dict()] * 4}, folder / "ensemble")
    return folder / "ensemble"


# --- samples ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msd(tmp_path_factory.mktemp("healthy") / "Task03_Liver", 4, tumors=False)


def some_samples(data: Path, *, lesions: bool = False, augmentation: Augmentation | None = None) -> Samples:
    config = tiny(data, Path("x"))
    dataset = find_data(config.data)
    stage = set_up(config, ["liver", "tumor"]).stage
    cases = prepared_cases(dataset.cases, Prepare(stage, dataset.values, (12, 12, 12)))
    return Samples(cases, stage, (12, 12, 12), augmentation or Augmentation(0), synthetic_lesions=lesions)


def test_a_sample_is_the_same_whenever_it_is_drawn_and_others_differ(data: Path) -> None:
    samples = some_samples(data, lesions=True, augmentation=Augmentation(1.0, flip=(0, 1, 2)))
    first = samples[1, -1, 5]
    assert not torch.equal(samples[1, -1, 6]["image"], first["image"])
    again = samples[1, -1, 5]
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert first["image"].shape == (1, 12, 12, 12)
    assert first["truth"].dtype == torch.uint8


def test_augmentation_moves_image_and_truth_together(data: Path) -> None:
    samples = some_samples(data, augmentation=Augmentation(1.0, (0, 1, 2), 30, 0.2, 0, 0, 0))
    case = samples.cases[3]
    # An image that shows the truth: 100 HU liver, 200 HU tumor.
    samples.cases = [{**case, "image": case["truth"] * 100.0}]  # type: ignore[assignment]
    moved = samples[0, -1, 1]
    shown = ((moved["image"] * 120 + 50) / 100).round()
    assert (shown == moved["truth"]).float().mean() > 0.95
    assert (shown == case["truth"]).float().mean() < 0.95


def test_synthetic_lesions_are_painted_where_none_are_labelled_and_nowhere_else(data: Path, healthy: Path) -> None:
    painting, plain = some_samples(healthy, lesions=True), some_samples(healthy)
    samples = [painting[0, -1, seed] for seed in range(12)]
    assert sum(bool((sample["truth"] == 2).any()) for sample in samples) > 4
    assert all(sample["tumor_known"] for sample in samples)
    unpainted = [plain[0, -1, seed] for seed in range(4)]
    assert not any((sample["truth"] == 2).any() or sample["tumor_known"] for sample in unpainted)
    labelled = [some_samples(data, lesions=kind)[3, -1, 2] for kind in (True, False)]
    assert torch.equal(labelled[0]["image"], labelled[1]["image"])


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (6.0, 2.0, 2.0)])
def test_painted_lesions_lie_in_the_liver_and_change_the_image_only_there(spacing: tuple[float, ...]) -> None:
    truth = torch.zeros(20, 40, 40, dtype=torch.uint8)
    truth[4:16, 8:32, 8:32] = 1
    image = torch.full(truth.shape, 100.0) + torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) * 10
    new, labels = paint_lesions(Rng(3), image, truth, spacing)
    assert ((labels == 2) <= (truth == 1)).all()
    assert 20 < int((labels == 2).sum()) < 0.9 * int((truth == 1).sum())
    assert ((labels > 0) == (truth > 0)).all()
    assert (new[labels == 2].mean() - new[labels == 1].mean()).abs() > 8
    far = torch.nn.functional.max_pool3d((truth > 0).float()[None], 3, 1, 1)[0] == 0
    assert torch.equal(new[far], image[far])


def test_a_hospital_with_liver_labels_alone_trains_a_tumor_model(healthy: Path, tmp_path: Path) -> None:
    changes = {"data__synthetic_lesions": True, "training__epochs": 1, "finish__evaluate": True}
    (outcome,) = train(tiny(healthy, tmp_path / "run", **changes), say=silent)
    assert [label.name for label in load_model(tmp_path / "run" / "model").spec.labels] == ["liver", "tumor"]
    assert not np.isnan(outcome.rows[0]["validation_dice_tumor"])  # of synthetic lesions
    assert [structure.structure for structure in outcome.results[0].structures] == ["liver"]  # of real ones: unknown
    (plain,) = train(tiny(healthy, tmp_path / "plain", training__epochs=1), say=silent)
    assert [label.name for label in load_model(plain.folder / "model").spec.labels] == ["liver"]


def test_validation_cases_are_always_the_same_and_each_counts_once(healthy: Path) -> None:
    config = tiny(healthy, Path("x"))
    dataset = find_data(config.data)
    stage = set_up(config, ["liver", "tumor"]).stage
    cases = prepared_cases(dataset.cases, Prepare(stage, dataset.values))
    validation = ValidationCases(cases, stage, synthetic_lesions=True)
    assert torch.equal(validation[2, True]["image"], validation[2, False]["image"])
    assert (validation[2, True]["truth"] == 2).any()
    shares: list[Iterator[Any]] = [list(learner_module._Share(3, rank, 2)) for rank in range(2)]  # type: ignore[misc]
    assert sorted(number for share in shares for number, counts in share if counts) == [0, 1, 2]
    assert len(list(shares[0])) == len(list(shares[1]))


def test_an_unusable_case_is_named_before_training_begins(data: Path, tmp_path: Path, capsys) -> None:
    broken = write_msd(tmp_path / "data", 4)
    (broken / "imagesTr" / "liver_2.nii.gz").write_bytes(b"no image at all")
    config = tiny(broken, tmp_path / "run")
    with pytest.raises(InputError, match="'liver_2'"):
        train(config, say=silent)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config.plain()), encoding="utf-8")
    assert cli.main(["train", str(tmp_path / "study.yaml")]) == 1
    assert "'liver_2'" in capsys.readouterr().err.splitlines()[-1]


# --- Slicer -------------------------------------------------------------------------------------------------------


def test_the_script_for_slicer_trains_without_torchvision_and_reports_its_exit_code(
    data: Path,
    tmp_path: Path,
    scene: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from slicerhost.application import main

    monkeypatch.setitem(sys.modules, "torchvision", None)  # Slicer's PyTorch comes without
    path, script = tmp_path / "c.yaml", ROOT / "LiverXAI" / "Scripts" / "train_slicer.py"
    path.write_text(yaml.safe_dump(tiny(data, tmp_path / "run", training__epochs=1).plain()), encoding="utf-8")
    start = ["--no-splash", "--no-main-window", "--python-script", str(script)]
    assert main([*start, "--config", str(path)]) == 0
    assert "The model is in" in capsys.readouterr().out
    load_model(tmp_path / "run" / "model")
    monkeypatch.delitem(sys.modules, "slicer")  # it runs in any Python
    monkeypatch.setattr(sys, "argv", [str(script), "--config", str(tmp_path / "missing.yaml")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 1
    assert "There is no file or folder" in caplog.text
