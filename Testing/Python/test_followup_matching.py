# SPDX-License-Identifier: Apache-2.0
"""Matching of lesions: against an exhaustive search, and with changes of every kind."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from followup_toys import balls

from LiverXAILib.followup.matching import Link, link_scores, match


def same(points):
    return points


def links(prior, current, to_prior=same):
    return {(link.prior, link.current) for link in match(balls(*prior), balls(*current), to_prior)}


A, B, C, FAR = (0, 0, 0), (40, 0, 0), (0, 45, 0), (0, 0, 90)


def test_each_kind_of_change_is_told():
    assert links([(A, 20), (B, 15)], [(B, 12), (A, 30)]) == {((1,), (2,)), ((2,), (1,))}
    assert links([(A, 20)], [(A, 20), (FAR, 10)]) == {((1,), (1,)), ((), (2,))}
    assert links([(A, 20), (B, 12)], [(A, 20)]) == {((1,), (1,)), ((2,), ())}
    parts = [((-12, 0, 0), 14), ((12, 0, 0), 12)]
    assert links([(A, 40)], parts) == {((1,), (1, 2))}
    assert links(parts, [(A, 40)]) == {((1, 2), (1,))}
    assert links([], [(A, 9)]) == {((), (1,))}
    assert links([(A, 9)], []) == {((1,), ())}
    assert links([], []) == set()


def test_a_small_lesion_that_registration_misses_by_some_millimeters_is_still_matched():
    assert links([(A, 8)], [((7, 0, 0), 8)]) == {((1,), (1,))}
    assert links([(A, 8)], [((30, 0, 0), 8)]) == {((1,), ()), ((), (1,))}


def test_a_piece_of_a_large_lesion_is_not_taken_for_a_neighbor_that_has_vanished():
    # The second lesion was next to the first one; now the first is in two pieces, one near the second's place.
    found = links([(A, 40), ((27, 0, 0), 8)], [((-12, 0, 0), 14), ((13, 0, 0), 12)])
    assert found == {((1,), (1, 2)), ((2,), ())}


def test_places_are_compared_where_the_prior_study_has_them():
    def to_prior(points):
        return points - (100, 0, 0)

    assert links([(A, 20), (B, 20)], [((100, 0, 0), 18), ((140, 0, 0), 18)], to_prior) == {
        ((1,), (1,)),
        ((2,), (2,)),
    }


@pytest.mark.parametrize("seed", range(6))
def test_the_assignment_has_the_largest_sum_of_dice_of_all(seed):
    """Compared with all assignments of overlapping balls, with Dice on the grid's points."""
    rng = np.random.default_rng(seed)
    prior = [(rng.uniform(-12, 12, 3), rng.uniform(14, 26)) for _ in range(4)]
    current = [(center + rng.normal(0, 4, 3), size) for center, size in prior]
    lattice = np.stack(np.meshgrid(*[np.arange(-40, 40, 2.0)] * 3, indexing="ij"), axis=-1)
    inside = [
        [np.linalg.norm(lattice - center, axis=-1) <= size / 2 for center, size in side] for side in (prior, current)
    ]
    dice = np.array([[2 * (a & b).sum() / (a.sum() + b.sum()) for b in inside[1]] for a in inside[0]])
    best = max(permutations(range(4)), key=lambda order: sum(dice[row, column] for row, column in enumerate(order)))
    found = match(balls(*prior), balls(*current), same)
    pairs = {(one, other) for link in found for one in link.prior for other in link.current}
    assert {(row + 1, column + 1) for row, column in enumerate(best)} <= pairs


def test_links_are_scored_by_the_lesions_that_they_join():
    truth = [Link((1,), (1, 2)), Link((2,), ()), Link((), (3,))]
    assert link_scores(truth, truth) == {"true": 4, "false": 0, "missed": 0}
    assert link_scores([Link((1,), (1,)), Link((2,), (3,))], truth) == {"true": 1, "false": 1, "missed": 3}
