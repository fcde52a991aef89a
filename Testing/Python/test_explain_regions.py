# SPDX-License-Identifier: Apache-2.0
"""The confidence in a lesion divided among parts: exact, and right where it is known what the network looks at."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from test_explain_counterfactual import NeedsMarker, a_case, a_model, with_marker

from LiverXAILib.errors import UsageError
from LiverXAILib.explain import Answer, RegionShares, explain_regions
from LiverXAILib.explain.regions import shapley_values
from LiverXAILib.inference import segment
from LiverXAILib.pipeline import analyze

pytestmark = pytest.mark.usefixtures("one_thread")
LESION, RIM, FAR = "the lesion's core", "its rim", "what lies farther away"


@pytest.mark.parametrize("players", [1, 3, 6])
def test_shapley_values_are_the_means_over_all_orders_and_sum_to_the_difference(players):
    random = np.random.default_rng(players)
    worth = {
        frozenset(s): random.normal() for n in range(players + 1) for s in itertools.combinations(range(players), n)
    }
    ours = shapley_values(lambda kept: worth[kept], players)
    theirs = np.zeros(players)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            theirs[player] += (worth[before | {player}] - worth[before]) / len(orders)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert sum(ours) == pytest.approx(worth[frozenset(range(players))] - worth[frozenset()])


def shares_of(volume, network=None) -> tuple[RegionShares, dict[str, float]]:
    model = a_model(network)
    (answer,) = explain_regions(volume, model, segment(volume, model, device="cpu"), ["lesion:1"])
    shares = {part["name"]: part["share"] for part in answer.evidence["parts"]}
    evidence = answer.evidence
    assert sum(shares.values()) == pytest.approx(evidence["probability"] - evidence["replaced"], abs=1e-9)
    assert evidence["probability"] > 0.9
    return answer, shares


def test_what_decides_by_the_lesion_alone_comes_from_the_lesion():
    answer, shares = shares_of(a_case())
    assert shares[LESION] + shares[RIM] == pytest.approx(answer.evidence["probability"], abs=0.02)
    assert all(abs(share) < 0.02 for name, share in shares.items() if name not in (LESION, RIM))
    assert answer.sentence.endswith("It comes from the lesion itself.")


def test_an_and_gate_with_a_far_marker_is_exposed_with_equal_shares():
    """The lesion counts only if a marker exists 65 mm away, outside the liver: each has half of the answer."""
    answer, shares = shares_of(with_marker(a_case(), (-50, -50, -50)), NeedsMarker)
    assert shares[FAR] == pytest.approx(answer.evidence["probability"] / 2, abs=0.05)
    assert shares[LESION] + shares[RIM] == pytest.approx(answer.evidence["probability"] / 2, abs=0.05)
    assert "The answer depends on what lies farther away, and not on the lesion alone" in answer.sentence


def test_a_marker_in_the_liver_is_told_from_one_far_away():
    _, shares = shares_of(with_marker(a_case(), (-20, -10, -20)), NeedsMarker)
    assert shares.get(FAR, 0.0) == pytest.approx(0, abs=0.02)
    assert shares["vessels and other structures in the liver"] > 0.25


class Everywhere(torch.nn.Module):
    """Sees a tumor at one place, whatever is there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tumor = torch.full_like(x, -10.0)
        tumor[:, :, 28:36, 28:36, 28:36] = 5.0
        return torch.cat([(x - 50) / 10, tumor], dim=1)


def test_an_answer_that_comes_from_nowhere_is_said_to():
    answer, shares = shares_of(a_case(), Everywhere)
    assert all(abs(share) < 0.01 for share in shares.values())
    assert "for another reason" in answer.sentence


def test_parts_are_divided_on_request_and_survive_json():
    volume, model = a_case(), a_model()
    analysis = analyze(volume, model, targets=["lesion:1"], regions=True, device="cpu")
    assert [answer.kind for answer in analysis.answers] == ["counterfactual", "regions"]
    values = analysis.provenance["answers"][1]
    again = Answer.from_dict(json.loads(json.dumps(values)))
    assert again.sentence == analysis.answers[1].sentence == values["sentence"]
    with pytest.raises(UsageError, match="name a lesion"):
        explain_regions(volume, model, analysis.segmentation, ["liver"])
