# SPDX-License-Identifier: Apache-2.0
"""The operating points are those that are best in the scans."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import label

from LiverXAILib.evaluation.metrics import detect_lesions
from LiverXAILib.models import Intensity
from LiverXAILib.networks import UNet
from recipes.default_model.operating import _SURER, _TUMOR, OperatingPoints, _tumor_counts, operating_points
from recipes.default_model.synthesis import Sample

SIZE = (12, 16, 16)


def a_sample(tumor: torch.Tensor) -> Sample:
    whole = torch.ones(SIZE, dtype=torch.bool)
    return Sample(torch.zeros(SIZE), whole, tumor, whole, 100.0, "test")


class Answers(torch.nn.Module):
    """A network with constant logits."""

    def __init__(self, liver: torch.Tensor, tumor: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.stack([liver, tumor])[None]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_the_points_lie_between_what_is_right_and_what_is_wrong() -> None:
    tumor = torch.zeros(SIZE, dtype=torch.bool)
    tumor[:4, :6, :6] = True
    logit = torch.where(tumor, 2.2, 0.7)  # "tumor" everywhere, with higher logits where it is right ...
    logit[1, 2, 2] = 4.7
    logit[8:11, 8:14, 8:14] = 3.1  # ... and in one place where it is wrong
    points = operating_points(Answers(torch.full(SIZE, -0.6), logit), [a_sample(tumor)], [a_sample(tumor)], Intensity())
    assert points.liver < -0.6
    assert 0.7 < points.tumor < 2.2
    assert 3.1 < points.certain < 4.7


def test_real_scans_decide_about_tumors_alone() -> None:
    tumor = torch.zeros(SIZE, dtype=torch.bool)
    tumor[:4, :6, :6] = True
    phantom = a_sample(torch.zeros_like(tumor))
    half = replace(a_sample(tumor), liver=torch.arange(SIZE[0])[:, None, None].expand(SIZE) < 6)
    network = Answers(torch.where(half.liver, 1.2, 0.7), torch.where(tumor, 2.2, 0.7))
    points = operating_points(network, [phantom], [half] * 3, Intensity())
    assert points.liver < 0.7  # where the phantom's liver is complete, not where the other's border is
    assert 0.7 < points.tumor < 2.2


def test_what_is_missed_or_false_does_not_move_the_outlines_of_what_is_found() -> None:
    seen, missed = torch.zeros(2, *SIZE, dtype=torch.bool)
    seen[:4, :6, :6] = True
    missed[6:, 10:, 10:] = True
    logits = torch.where(seen, 1.2, -4.0)
    logits[2:4, :6, :6] = 0.7  # the lesion ends here, not where the logit is high
    logits[0, 0, 0] = 3.2
    false = logits.clone()
    false[6:, :8, :8] = 0.7  # without this, which a higher point would shrink, all tumor voxels would agree better
    false[8, 4, 4] = 3.2  # and nothing drops it
    for answer in (logits, false):
        points = operating_points(Answers(answer, answer), [a_sample(seen | missed)], [], Intensity())
        assert points.tumor <= 0.5


def test_few_false_lesions_come_before_more_true_ones() -> None:
    tumor, logit = torch.zeros(SIZE, dtype=torch.bool), torch.full(SIZE, -4.0)
    for number, place in enumerate(itertools.product((0, 8), (0, 8), (0, 8))):
        if number < 5:  # three lesions that the network is not sure of, one that it is sure of, and a false one
            inside = tuple(slice(n, n + 3) for n in place)
            tumor[inside] = number < 4
            logit[inside] = 2.7 if number == 4 else 4.7 if number == 3 else 2.2
    points = operating_points(Answers(logit, logit), [a_sample(tumor)] * 3, [], Intensity())
    assert 2.7 < points.certain < 4.7
    nothing_false = operating_points(Answers(logit, logit), [a_sample(tumor | (logit == 2.7))], [], Intensity())
    assert nothing_false.certain < 2.2


def test_the_points_become_zero() -> None:
    torch.manual_seed(0)
    network = UNet(features=(4, 6), stem_stride=2).eval()
    image = torch.randn(1, 1, *SIZE)
    with torch.inference_mode():
        before = network(image)
        network.head.bias.data = OperatingPoints(-0.25, 1.5, 4.0).moved_to_zero(network.head.bias.data)
        torch.testing.assert_close(network(image), before - torch.tensor([-0.25, 1.5])[None, :, None, None, None])


def test_lesions_are_counted_as_in_evaluation() -> None:
    random = np.random.default_rng(0)
    for _ in range(12):
        tumor = torch.from_numpy(random.random(SIZE) < 0.06)
        logit = torch.from_numpy(random.normal(-2, 2.5, SIZE)).float()
        row, column = int(random.integers(len(_TUMOR))), int(random.integers(len(_SURER)))
        counts = _tumor_counts(logit, a_sample(tumor))[row, column].tolist()
        pieces, _ = label(logit > _TUMOR[row], np.ones((3, 3, 3)))
        sure = np.unique(pieces[logit >= _TUMOR[row] + _SURER[column]])
        found = torch.from_numpy(np.isin(pieces, sure[sure > 0]))
        expected = detect_lesions(found.numpy(), tumor.numpy(), 1.0)
        lesions, _ = label(tumor.numpy(), np.ones((3, 3, 3)))
        hits = [lesions == n for n in range(1, lesions.max() + 1)]
        hits = [lesion for lesion in hits if found.numpy()[lesion].mean() >= 0.1]
        hit = np.any(hits, axis=0) if hits else np.zeros(SIZE, dtype=bool)
        touching = np.isin(pieces, np.setdiff1d(pieces[hit & found.numpy()], [0]))
        assert counts == [
            (hit & found.numpy()).sum(),
            touching.sum(),
            hit.sum(),
            sum(expected.reference),
            sum(expected.found),
            sum(expected.predicted),
            sum(expected.true),
        ]
