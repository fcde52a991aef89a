# SPDX-License-Identifier: Apache-2.0
"""The table's numbers and the loss, against formulas written out in numpy."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training_toys import tiny

from LiverXAILib.training.learner import Learner
from LiverXAILib.training.metrics import EpochSums
from LiverXAILib.training.setup import set_up
from LiverXAILib.training.table import score

LABELS = ("liver", "tumor")


def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Margins, truths and known labels of three batches: with both, with nothing to find, without tumor labels."""
    random = torch.Generator().manual_seed(3)
    result = []
    for size, here, known in ((2, True, True), (3, False, True), (1, True, False)):
        margins = torch.randn(size, 2, 6, 7, generator=random) * 2
        truths = (torch.randn(size, 2, 6, 7, generator=random) > 0.8) & here
        result.append((margins, truths, torch.tensor([[True, known]] * size)))
    return result


def voxels(label: int) -> tuple[np.ndarray, np.ndarray]:
    """Margins and truth of all voxels where the label is known."""
    kept = [(m[known[:, label], label], t[known[:, label], label]) for m, t, known in batches()]
    margins, truths = (np.concatenate([pair[n].numpy().ravel() for pair in kept]) for n in range(2))
    return margins.astype(np.float64), truths


@pytest.mark.parametrize("part", ["training", "validation"])
def test_the_measures_of_an_epoch_are_those_of_all_its_voxels(part: str) -> None:
    sums = EpochSums(LABELS)
    for margins, truths, known in batches():
        sums.add(margins, truths, known)
    row = sums.measures(part)
    losses = []
    for n, label in enumerate(LABELS):
        margins, truth = voxels(n)
        probability, found = 1 / (1 + np.exp(-margins)), margins > 0
        dice_loss = 1 - 2 * (probability * truth).sum() / (probability.sum() + truth.sum())
        bce = -np.where(truth, np.log(probability), np.log(1 - probability)).mean()
        assert row[f"{part}_soft_dice_loss_{label}"] == pytest.approx(dice_loss)
        assert row[f"{part}_bce_{label}"] == pytest.approx(bce)
        assert row[f"{part}_loss_{label}"] == pytest.approx(dice_loss + bce)
        assert row[f"{part}_sensitivity_{label}"] == pytest.approx((found & truth).sum() / truth.sum())
        assert row[f"{part}_precision_{label}"] == pytest.approx((found & truth).sum() / found.sum())
        losses.append(dice_loss + bce)
        if part == "training":
            assert row[f"training_dice_{label}"] == pytest.approx(
                2 * (found & truth).sum() / (found.sum() + truth.sum())
            )
    assert row[f"{part}_loss"] == pytest.approx(np.mean(losses))


def test_dice_of_validation_is_the_mean_over_the_cases_that_have_the_label() -> None:
    sums, expected = EpochSums(LABELS), []
    for margins, truths, known in batches():
        sums.add(margins, truths, known)
        for n in range(len(margins)):
            found, truth = (margins[n, 0] > 0).numpy(), truths[n, 0].numpy()
            if truth.any():
                expected.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert sums.measures("validation")["validation_dice_liver"] == pytest.approx(np.mean(expected))


def test_accuracy_counts_voxels_whose_known_labels_are_all_right() -> None:
    sums, right, empty, total = EpochSums(LABELS), 0, 0, 0
    for margins, truths, known in batches():
        sums.add(margins, truths, known)
        wrong = ((margins > 0) != truths) & known[:, :, None, None]
        right += int((~wrong.any(1)).sum())
        empty += int((~truths.any(1)).sum())
        total += wrong[:, 0].numel()
    row = sums.measures("validation")
    assert row["validation_accuracy"] == pytest.approx(right / total)
    assert row["validation_accuracy_of_nothing"] == pytest.approx(empty / total)


def test_a_perfect_answer_has_no_loss_and_an_unknown_label_none_at_all() -> None:
    truths = batches()[0][1]
    sums = EpochSums(LABELS)
    sums.add(truths.float() * 200 - 100, truths, torch.tensor([[True, False]] * 2))
    row = sums.measures("training")
    assert row["training_loss"] == pytest.approx(0, abs=1e-9)
    assert row["training_dice_liver"] == 1
    assert math.isnan(row["training_loss_tumor"])


@pytest.mark.parametrize("together", [False, True])
def test_the_loss_is_soft_dice_and_cross_entropy_of_each_sample_or_of_the_batch(together: bool) -> None:
    config = tiny(Path("x"), Path("x"), training__batch_dice=together, training__tumor_balance=0)
    setup = set_up(config, list(LABELS))
    learner = Learner(setup.network, setup.stage, setup.labels, config.training, None, [], None, 0, seed=0)
    random = torch.Generator().manual_seed(1)
    margins = torch.randn(3, 2, 4, 4, 4, generator=random)
    truth = torch.randint(0, 3, (3, 4, 4, 4), generator=random)
    known = torch.tensor([[True, True], [True, False], [True, True]])
    probability = margins.sigmoid().numpy().astype(np.float64)
    target = np.stack([(truth > 0).numpy(), (truth == 2).numpy()], axis=1)
    smooth, terms = 20.0, []
    for n in range(2):
        rows = known[:, n].numpy()
        p, t = probability[:, n] * rows[:, None, None, None], target[:, n] * rows[:, None, None, None]
        axes = (0, 1, 2, 3) if together else (1, 2, 3)
        dice = 1 - (2 * (p * t).sum(axes) + smooth) / (p.sum(axes) + t.sum(axes) + smooth)
        bce = -np.where(target[:, n], np.log(probability[:, n]), np.log(1 - probability[:, n]))
        terms.append(np.mean(dice if together else dice * rows) + (bce * rows[:, None, None, None]).mean())
    assert float(learner.loss(margins, truth, known)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_batch_decides_dice_for_slices_and_the_sample_for_volumes() -> None:
    for dimensions, expected in ((2, True), (3, False)):
        config = tiny(Path("x"), Path("x"))
        setup = set_up(config, list(LABELS))
        stage = dataclasses.replace(setup.stage, dimensions=dimensions)
        assert Learner(setup.network, stage, LABELS, config.training, None, [], None, 0, seed=0).batch_dice is expected


def test_the_best_epoch_is_the_one_with_the_highest_dice_whatever_its_other_measures_are() -> None:
    sums = EpochSums(LABELS)
    for margins, truths, known in batches():
        sums.add(margins, truths, known)
    row = sums.measures("validation")
    assert score(row) == pytest.approx((row["validation_dice_liver"] + row["validation_dice_tumor"]) / 2)
    assert score({**row, "validation_dice_tumor": math.nan}) == pytest.approx(row["validation_dice_liver"])
