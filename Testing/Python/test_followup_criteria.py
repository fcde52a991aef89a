# SPDX-License-Identifier: Apache-2.0
"""Which criteria of response apply to a study, and with what numbers; this needs no registration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from followup_toys import study

from LiverXAILib.followup.criteria import responses, target_sum
from LiverXAILib.followup.tracks import Course, tracks

LARGE, SMALL = ((-14, 0, 0), 12), ((18, 0, 4), 9)
CRITERIA = {"RECIST 1.1", "mRECIST", "Choi"}


def painted(one, phase, **hu):
    """A study in a phase, its lesions painted: ``lesion_1=150``, or ``core_1=4`` for a bright ball of 4 mm radius."""
    numbers = np.zeros(one.volume.array.shape, int)
    array = one.volume.array.copy()
    grid = one.segmentation.labels.grid
    places = grid.to_lps(np.argwhere(numbers == 0)[:, ::-1]).reshape(*array.shape, 3)
    centers = [np.array(lesion.long_ends_lps_mm).mean(axis=0) for lesion in one.lesions]
    inside = one.segmentation.labels.array == 2
    nearest = np.argmin([np.linalg.norm(places - center, axis=-1) for center in centers], axis=0) + 1
    for key, value in hu.items():
        what, number = key.split("_")
        own = inside & (nearest == int(number))
        if what == "core":
            own &= np.linalg.norm(places - centers[int(number) - 1], axis=-1) < value
        array[own] = 150 if what == "core" else value
    lesions = tuple(
        dataclasses.replace(lesion, mean_hu=float(array[inside & (nearest == lesion.number)].mean()))
        for lesion in one.lesions
    )
    return dataclasses.replace(one, volume=one.volume.with_array(array), lesions=lesions, phase=phase)


def judged(studies, targets=(1, 2), courses=None):
    """For each study but the first: responses by criteria, and omitted criteria. Lesions keep their numbers."""
    if courses is None:
        count = len(studies[0].lesions)
        events = ["baseline", *["matched"] * (len(studies) - 1)]
        courses = [Course([(number,)] * len(studies), list(events)) for number in range(1, count + 1)]
    found = tracks(courses, studies, [None] * len(studies), targets)
    sums = [target_sum(found, one, index) for index, one in enumerate(studies)]
    made = [responses(found, studies, sums, index) for index in range(1, len(studies))]
    for own, left_out in made:
        assert {one.criteria for one in own} | set(left_out) == CRITERIA
        assert len(own) + len(left_out) == len(CRITERIA)
    return [({one.criteria: one for one in own}, left_out) for own, left_out in made]


@pytest.fixture(scope="module")
def two():
    """Two lesions of 24 and 18 mm on voxels of 2 mm."""
    return study("Study", LARGE, SMALL, spacing=(2, 2, 2))


def test_each_target_of_mrecist_must_be_measurable_by_itself(two):
    before = painted(two, "arterial", lesion_1=150, core_2=4)
    after = painted(two, "arterial", lesion_1=150, core_2=7)
    response = judged([before, after])[0][0]["mRECIST"]
    # The second lesion's core of 8 mm is not a target, so its growth to 14 mm does not count.
    assert response.baseline_mm == response.sum_mm == round(two.lesion(1).long_mm)
    assert response.category == "SD"


def test_two_small_viable_parts_do_not_add_up_to_a_measurable_one(two):
    before = painted(two, "arterial", core_1=4, core_2=4)
    made, left_out = judged([before, before])[0]
    assert "mRECIST" not in made
    assert left_out["mRECIST"] == "no target lesion enhances over 10 mm in the first study"


def test_nothing_viable_in_the_targets_is_complete_only_if_no_other_lesion_enhances(two):
    before = painted(two, "arterial", lesion_1=150, lesion_2=150)
    gone = painted(two, "arterial", lesion_1=40, lesion_2=40)
    other = painted(two, "arterial", lesion_1=40, lesion_2=150)
    assert judged([before, gone], targets=(1,))[0][0]["mRECIST"].category == "CR"
    partial = judged([before, other], targets=(1,))[0][0]["mRECIST"]
    assert partial.category == "PR"
    assert "1 other lesion persists" in partial.rule


def test_each_study_says_for_itself_why_a_criterion_was_left_out(two):
    first, second = painted(two, "arterial", lesion_1=150), painted(two, "arterial", lesion_1=150)
    third = painted(two, "portal venous")
    (made, left_out), (later, later_left_out) = judged([first, second, third])
    assert "mRECIST" in made
    assert "mRECIST" not in left_out
    assert "mRECIST" not in later
    assert "in the arterial phase" in later_left_out["mRECIST"]
    assert "portal venous phase" in left_out["Choi"]


@pytest.mark.parametrize("phase", ["native", "delayed", None])
def test_without_the_phase_of_a_criterion_it_is_left_out(two, phase):
    for known, criteria in (("arterial", "mRECIST"), ("portal venous", "Choi")):
        studies = [painted(two, known, lesion_1=150), painted(two, phase, lesion_1=150)]
        made, left_out = judged(studies)[0]
        assert set(made) == {"RECIST 1.1"}
        assert f"{known} phase" in left_out[criteria]


def test_reasons_are_true(two):
    arterial = painted(two, "arterial", lesion_1=150)
    # A lesion of 24 mm is measurable even if the reader does not choose it as a target.
    made, left_out = judged([arterial, arterial], targets=())[0]
    assert left_out == dict.fromkeys(("mRECIST", "Choi"), "the first study has no target lesion")
    assert made["RECIST 1.1"].category == "non-CR/non-PD"
    assert "2 of 2 lesions of the baseline persist, none of which is a target" in made["RECIST 1.1"].rule
    unknown = dataclasses.replace(arterial, volume=None)
    assert "CT of each study" in judged([arterial, unknown])[0][1]["mRECIST"]
    full = dataclasses.replace(arterial, liver_hu=None)
    assert "no liver outside the lesions" in judged([arterial, full])[0][1]["mRECIST"]
    fat = painted(two, "portal venous", lesion_1=-40, lesion_2=-20)
    assert "not above 0 HU" in judged([fat, fat])[0][1]["Choi"]


def test_choi_takes_the_mean_hu_of_targets_in_the_portal_venous_phase(two):
    before = painted(two, "portal venous", lesion_1=80, lesion_2=40)
    darker = painted(two, "portal venous", lesion_1=60, lesion_2=40)
    response = judged([before, darker])[0][0]["Choi"]
    assert response.hu_change_percent == pytest.approx(100 * (50 - 60) / 60)
    assert response.category == "PR"
    # Only the ends count: the phase between does not matter.
    between = painted(two, "native", lesion_1=80, lesion_2=40)
    assert "Choi" in judged([before, between, darker])[1][0]


def test_all_targets_vanished_is_partial_while_other_lesions_persist(two):
    before, after = painted(two, "portal venous"), painted(two, "portal venous")
    gone, stays = Course([(1,), ()], ["baseline", "vanished"]), Course([(2,), (2,)], ["baseline", "matched"])
    made = judged([before, after], (1,), [gone, stays])[0][0]
    assert made["RECIST 1.1"].category == made["Choi"].category == "PR"
    both = [gone, Course([(2,), ()], ["baseline", "vanished"])]
    made = judged([before, after], (1,), both)[0][0]
    assert made["RECIST 1.1"].category == made["Choi"].category == "CR"


def test_lesions_that_have_merged_count_once(two):
    """In the sum, among new and reappeared lesions, and in the mean HU."""
    before = painted(two, "portal venous", lesion_1=80, lesion_2=40)
    after = painted(two, "portal venous", lesion_1=80, lesion_2=40)
    merged = [Course([(number,), (1,)], ["baseline", "merged"]) for number in (1, 2)]
    made = judged([before, after], (1, 2), merged)[0][0]
    assert made["RECIST 1.1"].sum_mm == round(two.lesion(1).long_mm)
    assert made["Choi"].hu_change_percent == pytest.approx(100 * (80 - 60) / 60)
    back = [Course([(number,), (), (1,)], ["baseline", "vanished", "seen again"]) for number in (1, 2)]
    fresh = [Course([(), (number,), (2,)], ["not yet", "new", "merged"]) for number in (1, 2)]
    rule = judged([before, after, after], (1, 2), [*back, *fresh])[1][0]["RECIST 1.1"].rule
    assert rule.startswith(f"1 new lesion ({two.lesion(2).long_mm:.0f} mm) and 1 lesion seen again")


def test_a_study_that_could_not_be_matched_is_left_out_of_every_criterion(two):
    lost = [Course([(number,), ()], ["baseline", "not matched"]) for number in (1, 2)]
    made, left_out = judged([two, two], (1, 2), lost)[0]
    assert made["RECIST 1.1"].category == "NE"
    assert "could not be registered" in left_out["mRECIST"]
