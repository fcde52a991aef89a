# SPDX-License-Identifier: Apache-2.0
"""Courses of lesions through several studies, and the events in them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from followup_toys import balls

from LiverXAILib.followup.tracks import Courses

#: A registration of aligned images.
STILL = SimpleNamespace(to_prior=lambda points: points)
A, FAR, AWAY = (0, 0, 0), (0, 0, 90), (90, 0, 0)
LEFT, RIGHT, BESIDE = (-12, 0, 0), (12, 0, 0), (22, 0, 0)
WHOLE, PIECES = (A, 40), ((LEFT, 14), (RIGHT, 12))


def courses(*studies):
    """The numbers and events of each lesion, study by study; studies are lists of (center, diameter)."""
    found = Courses([balls(*lesions) for lesions in studies])
    for index in range(1, len(studies)):
        found.follow(index, [STILL] * index)
    return [list(zip(course.lesions, course.events, strict=True)) for course in found.courses]


BASELINE = ((1,), "baseline")


def test_a_lesion_that_splits_keeps_both_pieces_and_goes_on_with_them():
    assert courses([WHOLE], PIECES, PIECES) == [[BASELINE, ((1, 2), "split"), ((1, 2), "matched")]]


@pytest.mark.parametrize("stays", [0, 1])
def test_a_lesion_of_which_one_piece_vanishes_has_not_vanished_whichever_it_is(stays):
    assert courses([WHOLE], PIECES, [PIECES[stays]]) == [[BASELINE, ((1, 2), "split"), ((1,), "matched")]]
    assert courses([WHOLE], PIECES, []) == [[BASELINE, ((1, 2), "split"), ((), "vanished")]]


def test_pieces_that_join_again_are_the_lesion_itself_and_not_a_merger():
    assert courses([WHOLE], PIECES, [WHOLE]) == [[BASELINE, ((1, 2), "split"), ((1,), "matched")]]


def test_lesions_that_merge_share_what_they_lead_to_and_part_together():
    found = courses(PIECES, [WHOLE], [WHOLE], PIECES)
    both = [((1,), "merged"), ((1,), "matched"), ((1, 2), "split")]
    assert found == [[BASELINE, *both], [((2,), "baseline"), *both]]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_lesion_of_which_one_piece_merges_with_a_neighbor_has_merged_whatever_comes_last(order):
    neighbor = ((38, 0, 0), 16)
    grown = [PIECES[0], ((25, 0, 0), 44)]
    found = courses([WHOLE, neighbor], [*PIECES, neighbor], [grown[index] for index in order])
    merged = order.index(1) + 1
    assert found == [
        [BASELINE, ((1, 2), "split"), ((1, 2), "merged")],
        [((2,), "baseline"), ((3,), "matched"), ((merged,), "merged")],
    ]


def test_all_pieces_that_come_back_belong_to_the_lesion():
    found = courses([WHOLE], PIECES, [(FAR, 10)], PIECES)
    assert found[0] == [BASELINE, ((1, 2), "split"), ((), "vanished"), ((1, 2), "seen again")]
    assert len(found) == 2  # no part of it is new


def test_lesions_that_had_merged_and_come_back_are_both_seen_again():
    found = courses(PIECES, [WHOLE], [(FAR, 10)], [WHOLE, (AWAY, 10)])
    back = [((1,), "merged"), ((), "vanished"), ((1,), "seen again")]
    assert found[:2] == [[BASELINE, *back], [((2,), "baseline"), *back]]
    assert [course[-1] for course in found[2:]] == [((), "vanished"), ((2,), "new")]


def test_what_a_refused_registration_lost_is_not_guessed_later():
    found = Courses([balls(WHOLE) for _ in range(3)])
    found.follow(1, [None])
    found.follow(2, [None, STILL])
    assert [course.events for course in found.courses] == [
        ["baseline", "not matched", "not matched"],
        ["not yet", "not matched", "matched"],
    ]
