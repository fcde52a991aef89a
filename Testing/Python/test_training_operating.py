# SPDX-License-Identifier: Apache-2.0
"""The points where "yes" begins are those that are best on the samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import label

from LiverXAILib.evaluation.metrics import detect_lesions
from LiverXAILib.models import Intensity
from LiverXAILib.networks import UNet
from LiverXAILib.training.operating import _SURER, _TUMOR, OperatingPoints, _tumor_counts, operating_points
from LiverXAILib.training.synthesis import Sample

SIZE = (12, 16, 16)


def a_sample(tumor: torch.Tensor) -> Sample:
    whole = torch.ones(SIZE, dtype=torch.bool)
    return Sample(torch.zeros(SIZE), whole, tumor, whole, 100.0, "test")


class Answers(torch.nn.Module):
    """The same logits whatever it sees."""

    def __init__(self, liver: torch.Tensor, tumor: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.stack([liver, tumor])[None]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_the_points_lie_between_what_is_right_and_what_is_wrong() -> None:
    tumor = torch.zeros(SIZE, dtype=torch.bool)
    tumor[:4, :6, :6] = True
    logit = torch.where(tumor, 2.2, 0.7)  # "tumor" everywhere, surer where it is right ...
    logit[1, 2, 2] = 4.7
    logit[8:11, 8:14, 8:14] = 3.1  # ... and in one place where it is wrong
    samples = [a_sample(tumor)]
    points = operating_points(Answers(torch.full(SIZE, -0.6), logit), samples * 2, samples, Intensity())
    assert points.liver < -0.6
    assert 0.7 < points.tumor < 2.2
    assert 3.1 < points.certain < 4.7


def test_the_livers_point_comes_from_scans_and_no_single_sample_decides_the_tumors() -> None:
    truth = torch.zeros(SIZE, dtype=torch.bool)
    truth[:4, :6, :6] = True
    logits = torch.where(truth, 1.2, -4.0)
    logits[2:4, :6, :6] = 0.2  # half of each tumor is hardly seen ...
    bad = logits.clone()
    bad[6:] = 0.4  # ... and one sample of five is full of what is none, and sure of it
    bad[8, 8, 8] = 4.8

    class Other(Answers):
        """Answers otherwise to an image of other HU."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            liver = torch.where(image[:, 0] > 50, 0.6, -0.6)
            return torch.stack([liver, bad[None] if image.max() > 0 else logits[None]], dim=1)

    good, worst = a_sample(truth), replace(a_sample(truth), image=torch.ones(SIZE))
    scan = replace(good, liver=truth, image=torch.where(truth, 100.0, 0.0))
    points = operating_points(Other(logits, logits), [scan], [good] * 4 + [worst], Intensity())
    assert -0.6 <= points.liver < 0.6, "the samples, which are liver everywhere, would want it lower"
    assert points.tumor == 0.0


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
        assert counts == [
            (found & tumor).sum(),
            found.sum(),
            tumor.sum(),
            sum(expected.reference),
            sum(expected.found),
            sum(expected.predicted),
            sum(expected.true),
        ]
