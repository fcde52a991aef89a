# SPDX-License-Identifier: Apache-2.0
"""Categories of response, against the definitions in the papers; growth."""

from __future__ import annotations

import math

import pytest

from LiverXAILib.benchmarks.followup import PAIRS
from LiverXAILib.followup.response import (
    NAMES,
    LesionStatus,
    choi_response,
    growth,
    mrecist_response,
    recist_response,
)


def category(*sums, **changes):
    """The category for two persistent targets, unless `changes` says otherwise."""
    reading = {"targets": 2, "targets_left": 2, "others": 0, "others_left": 0} | changes
    return recist_response(LesionStatus(sums, **reading))


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ((100, 70), "PR"),  # at least 30 % below the baseline
        ((100, 71), "SD"),
        ((100, 119), "SD"),
        ((100, 120), "PD"),  # at least 20 % and 5 mm above the nadir, which is the baseline here
        ((20, 24), "SD"),  # 20 %, but 4 mm
        ((20, 25), "PD"),
        ((100, 104), "SD"),
        ((100, 50, 60), "PD"),  # from the nadir, though 40 % below the baseline
        ((100, 50, 59), "PR"),
        ((100, 80, 95), "SD"),  # 18.75 % above the nadir
        ((100, 80, 96), "PD"),
        ((100, 130, 100), "SD"),  # the baseline is the nadir
        ((100, 0, 5), "PD"),  # any 5 mm above a nadir of nothing
    ],
)
def test_recist_compares_with_the_baseline_and_the_nadir(sums, expected):
    response = category(*sums)
    assert response.category == expected
    assert response.category in NAMES
    assert (response.sum_mm, response.baseline_mm, response.nadir_mm) == (sums[-1], sums[0], min(sums[:-1]))
    assert response.from_baseline_percent == pytest.approx(100 * sums[-1] / sums[0] - 100)


def test_recist_says_the_rule_with_its_numbers():
    rule = category(100, 50, 60).rule
    for words in (
        "60 mm",
        "−40 % from the baseline (100 mm)",
        "+20 % and +10 mm from the nadir (50 mm)",
        "20 % and 5 mm",
    ):
        assert words in rule


def test_a_new_lesion_is_progression_whatever_the_sum_and_a_small_one_is_to_be_confirmed():
    large, small = category(100, 50, new_mm=[14.0]), category(100, 50, new_mm=[7.0, 6.0])
    assert large.category == small.category == "PD"
    assert "1 new lesion (14 mm)" in large.rule
    assert not large.remarks
    assert "confirm" in small.remarks[0]
    assert category(100, 0, 12, came_back=1).category == "PD"


def test_complete_response_needs_that_all_lesions_have_vanished():
    assert category(40, 0, targets_left=0).category == "CR"
    assert category(40, 0, targets_left=0, others=2, others_left=0).category == "CR"
    assert category(40, 0, targets_left=0, others=2, others_left=1).category == "PR"
    assert category(40, 0, targets_left=0, new_mm=[12.0]).category == "PD"
    # One of two has vanished: the sum determines the category.
    assert category(40, 30, targets_left=1).category == "SD"


def test_without_measurable_lesions_the_others_decide():
    none = {"targets": 0, "targets_left": 0}
    assert category(**none).category == "no disease"
    assert category(**none, new_mm=[12.0]).category == "PD"
    assert category(**none, others=2, others_left=1).category == "non-CR/non-PD"
    assert category(**none, others=2, others_left=0).category == "CR"


@pytest.mark.parametrize(
    ("sums", "new", "expected"),
    [((50, 35), 0, "PR"), ((50, 36), 0, "SD"), ((50, 60), 0, "PD"), ((50, 59), 0, "SD"), ((50, 0), 0, "CR"),
     ((50, 20, 24), 0, "PD"), ((50, 20), 1, "PD")],
)  # fmt: skip
def test_mrecist_measures_what_is_viable(sums, new, expected):
    assert mrecist_response(sums, new_lesions=new).category == expected


@pytest.mark.parametrize(
    ("sums", "hu", "new", "expected"),
    [
        ((100, 90), (60.0, 60.0), 0, "PR"),  # 10 % smaller
        ((100, 91), (60.0, 60.0), 0, "SD"),
        ((100, 100), (60.0, 51.0), 0, "PR"),  # 15 % darker
        ((100, 100), (60.0, 52.0), 0, "SD"),
        ((100, 110), (60.0, 60.0), 0, "PD"),
        ((100, 115), (60.0, 40.0), 0, "PR"),  # larger, but darker
        ((100, 80), (60.0, 40.0), 1, "PD"),
        ((100, 0), (60.0, 0.0), 0, "CR"),
    ],
)
def test_choi_takes_size_or_attenuation(sums, hu, new, expected):
    response = choi_response(sums, hu, new_lesions=new)
    assert response.category == expected
    assert "– %" not in response.rule
    assert ("attenuation" in response.rule) == (expected != "CR")
    assert ("1 new lesion;" in response.rule) == (new == 1)


def test_a_lesion_that_doubles_three_times_in_ninety_days_doubles_in_thirty():
    rate = growth(1.0, 8.0, 90)
    assert rate.doubling_days == pytest.approx(30)
    assert math.exp(rate.percent_per_day / 100 * 90) == pytest.approx(8)
    assert growth(8.0, 1.0, 90).doubling_days is None
    assert growth(8.0, 1.0, 90).percent_per_day < 0
    for unknown in ((1.0, 2.0, None), (0.0, 2.0, 90), (1.0, 0.0, 90), (1.0, 2.0, 0)):
        assert growth(*unknown) is None


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_categories_that_the_benchmark_expects_follow_from_its_true_diameters(pair):
    pieces = [(size, number) for number, change in enumerate(pair.changes) for size in change.before]
    targets = {number for _, number in sorted(pieces, reverse=True)[:2]}
    before, after = (
        sum(sum(sizes) for number, sizes in enumerate(side) if number in targets)
        for side in ([change.before for change in pair.changes], [change.after for change in pair.changes])
    )
    fresh = any(not change.before for change in pair.changes)
    change = 100 * (after - before) / before
    expected = "PD" if fresh or (change >= 20 and after - before >= 5) else "PR" if change <= -30 else "SD"
    if not any(one.after for one in pair.changes):
        expected = "CR"
    assert pair.category == expected
