# SPDX-License-Identifier: Apache-2.0
"""The study on real CT: training and validation patients of each fold, labels of synthetic patients, means."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from training_toys import ball_case, draw_nothing, write_msd

from LiverXAILib import cli
from LiverXAILib.training.config_file import read_config
from LiverXAILib.volumes.io import write_volume
from recipes.default_model.synthesis import Sample
from recipes.study_2d.__main__ import CONFIG, fold_command, summarize
from recipes.study_2d.patients import ANATOMIES, Scan, _slices


def options(folder: Path, folds: int) -> argparse.Namespace:
    return argparse.Namespace(
        output=folder,
        anatomies=list(ANATOMIES),
        folds=folds,
        config=CONFIG,
        slices=3,
        seed=1,
        set=["training.epochs=2"],
    )


def rows(kind: str) -> dict[str, list[dict[str, str]]]:
    return {name: [{"case": f"{name}-{kind}", "image": "a.nii.gz", "liver": "b.nii.gz"}] for name in ANATOMIES}


@pytest.mark.parametrize("folds", [2, 5, len(ANATOMIES)])
def test_every_anatomy_is_judged_once_by_a_network_that_did_not_learn_from_it(folds: int, tmp_path: Path) -> None:
    judged: list[str] = []
    for number in range(folds):
        left_out = list(ANATOMIES)[number::folds]
        arguments = options(tmp_path, folds)
        command, _ = fold_command(arguments, number, left_out, rows("synthetic"), rows("real"))
        changes = dict(part.split("=", 1) for part in command if "=" in part)
        data = json.loads(changes["data"])
        with Path(data["path"]).open(encoding="utf-8", newline="") as file:
            cases = {row["case"] for row in csv.DictReader(file)}
        learned = cases - set(data["validation_cases"])
        assert set(data["validation_cases"]) == {f"{name}-real" for name in left_out}
        assert learned == {f"{name}-synthetic" for name in ANATOMIES if name not in left_out}
        judged += left_out
        config = read_config(CONFIG, {name: yaml.safe_load(value) for name, value in changes.items()})
        assert (config.data.layout, config.training.epochs, config.training.slices_per_case) == ("csv", 2, 3)
    assert sorted(judged) == sorted(ANATOMIES)


def test_the_evaluated_cases_are_never_learned_from() -> None:
    scans = [scan.name for group in ANATOMIES.values() for scan in group]
    assert len(scans) == len(set(scans))
    assert not {"chaos03", "ircad01"} & set(scans)


def sample(kind: str) -> Sample:
    """A body with liver, a real tumor (unknown tissue) and a painted one in it."""
    image = torch.full((32, 8, 8), 40.0)
    image[:4] = -1024.0  # beyond the scan's end
    liver = torch.zeros(32, 8, 8, dtype=torch.bool)
    liver[:, 2:6] = True
    known = torch.ones_like(liver)
    known[:, 2, 2] = False
    painted = torch.zeros(32, 8, 8, dtype=torch.uint8)
    painted[:, 4, 4] = 1
    return Sample(image, liver, painted, known, 100.0, kind)


@pytest.mark.parametrize(
    ("kind", "tumors", "real_is_tumor"),
    [("a, real", "labeled", True), ("a, synthetic", "labeled", False), ("a, real", "none", False)],
)
def test_real_tumors_stay_labelled_unless_the_liver_is_redrawn(kind: str, tumors: str, real_is_tumor: bool) -> None:
    ct, truth = _slices(sample(kind), Scan("a", tumors))  # type: ignore[arg-type]
    assert ct.array.shape == truth.array.shape == (7, 8, 8)  # the plane beyond the end is left out
    assert ct.spacing == (2.0, 2.0, 8.0)
    assert (truth.array[:, 2, 2] == (2 if real_is_tumor else 1)).all()
    assert (truth.array[:, 4, 4] == 2).all()
    assert (truth.array[:, 3] == 1).all()
    assert not truth.array[:, 0].any()


def test_the_summary_is_the_mean_over_folds_and_all_cases(tmp_path: Path) -> None:
    for number, dice in enumerate((0.8, 0.9)):
        folder = tmp_path / f"fold-{number}"
        folder.mkdir()
        row = {"epoch": 1.0, "validation_dice_liver": dice, "validation_dice_tumor": [float("nan"), 0.5][number]}
        (folder / "finished.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
        (folder / "evaluation.csv").write_text(f"case,structure,dice\ncase-{number},liver,{dice}\n", encoding="utf-8")
    summarize(tmp_path, [["a"], ["b"]])
    with (tmp_path / "epochs.csv").open(encoding="utf-8", newline="") as file:
        (mean,) = csv.DictReader(file)
    assert float(mean["validation_dice_liver"]) == pytest.approx(0.85)
    assert float(mean["validation_dice_tumor"]) == pytest.approx(0.5)
    with (tmp_path / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        cases = list(csv.DictReader(file))
    assert [(row["fold"], row["case"]) for row in cases] == [("0", "case-0"), ("1", "case-1")]
    assert (tmp_path / "learning-curve.svg").is_file()
    assert np.isfinite(float(mean["epoch"]))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layout", ["msd", "lits"])
def test_the_same_configuration_trains_on_a_hospitals_folder_and_its_model_is_like_any_other(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("LiverXAILib.training.finish.write_curves", draw_nothing)  # which takes longer than the rest
    folder = tmp_path / "data"
    if layout == "msd":
        write_msd(folder, 4)
    else:
        folder.mkdir()
        for number in range(4):
            image, labels = ball_case(number)
            write_volume(image, folder / f"volume-{number}.nii")
            write_volume(labels, folder / f"segmentation-{number}.nii")
    run = tmp_path / "run"
    small = ["data.validation=0.25", "network.features=[4, 4, 4, 4, 4]", "network.size=[null, 64, 64]"]
    changes = [f"data={{layout: {layout}, path: {folder}}}", *small, "training.epochs=1", "finish.explain=null"]
    arguments = [part for change in changes for part in ("--set", change)]
    assert cli.main(["train", str(CONFIG), "--output", str(run), *arguments]) == 0
    with (run / "epochs.csv").open(encoding="utf-8", newline="") as file:
        (epoch,) = csv.DictReader(file)
    losses = [float(epoch[f"validation_{part}_liver"]) for part in ("loss", "soft_dice_loss", "bce")]
    assert losses[0] == pytest.approx(losses[1] + losses[2])
    write_volume(ball_case(9)[0], tmp_path / "ct.nii.gz")
    answered = ["--model", str(run / "model"), "--output", str(tmp_path / "result"), "--explain", "liver"]
    assert cli.main(["analyze", str(tmp_path / "ct.nii.gz"), *answered, "--no-answers"]) == 0
    assert (tmp_path / "result" / "report.html").is_file()
