# SPDX-License-Identifier: Apache-2.0
"""Random sequences of a reader's actions: what holds after any of them, whatever came before."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from test_reading import LIVER_MASK, MATRIX, MISSED, SHAPE, ball, graded, place, restarted
from test_reading_measuring import many, without

import LiverXAILib as lx
from LiverXAILib.errors import UsageError
from LiverXAILib.inference.lesions import lesion_components, numbered_candidates
from LiverXAILib.reading import (
    accept,
    add,
    change_sensitivity,
    choose_targets,
    dismiss,
    exclude,
    include,
    measure_lesion,
    merge,
    refine,
    reject,
    restore,
    split,
    undo,
)
from LiverXAILib.reading.packing import unpack_mask

STEPS = 12
#: The label that each kind of decision gives to its voxels. Manual edits do not record it.
LIVER, TUMOR = 1, 2
GIVES = {
    **dict.fromkeys(("reject", "split", "exclude"), LIVER),
    **dict.fromkeys(("accept", "restore", "add", "include", "merge"), TUMOR),
}


def labels_of(one):
    return one.segmentation.labels.array


def some(random, count):
    return int(random.integers(1, max(count, 1) + 1))


def point(random, one):
    """A voxel of a lesion or next to it, LPS mm; without lesions, anywhere in the liver."""
    lesions = lesion_components(one.segmentation)
    voxels = np.argwhere(lesions == some(random, lesions.max()) if lesions.any() else LIVER_MASK)
    voxel = voxels[random.integers(len(voxels))] + random.integers(-2, 3, 3)
    return tuple(MATRIX[:3, :3] @ voxel[::-1] + MATRIX[:3, 3])


def drawn(random, one):
    """The label map with a ball of another label."""
    center, value = random.integers((3, 8, 8), (21, 40, 40)), random.integers(0, 3)
    mask = ball(center, random.uniform(1, 9)) & LIVER_MASK
    return one.segmentation.labels.with_array(np.where(mask, np.uint8(value), labels_of(one)))


def decisions(random, one):
    """One decision or several, by the numbers of the current list."""
    measured = one.measurements
    lesion, candidate = some(random, measured.lesion_count), some(random, len(measured.candidates))
    ends = np.round(random.normal(size=(4, 3)) * 10, 3).tolist()
    kinds = {
        "accept": lambda: [accept(candidate)],
        "dismiss": lambda: [dismiss(candidate)],
        "reject": lambda: [reject(lesion)],
        "restore": lambda: [restore(some(random, len(measured.rejected)))],
        "split": lambda: [split(lesion)],
        "merge": lambda: [merge(lesion, lesion % max(measured.lesion_count, 2) + 1)],
        "add": lambda: [add(place(MISSED))],
        "include": lambda: [include(point(random, one))],
        "exclude": lambda: [exclude(point(random, one))],
        "measure": lambda: [measure_lesion(lesion, ends)],
        "target": lambda: [choose_targets(lesion)],
        "several": lambda: [reject(lesion), accept(candidate), add(place(MISSED))],
    }
    return kinds[random.choice([*kinds, *("accept", "split", "reject") * 3])]()


def step(random, one):
    """Return the result after a random action of the reader, and its name."""
    name = str(random.choice(["decide"] * 8 + ["draw", "sensitivity", "undo", "later"]))
    if name == "decide":
        decided = decisions(random, one)
        return refine(one, decided, who="Dr. A"), " and ".join(x.kind for x in decided)
    if name == "draw":
        return refine(one, labels=drawn(random, one), who="Dr. B"), name
    if name == "sensitivity":
        return change_sensitivity(one, str(random.choice(["specific", "0.5", "standard", "sensitive"]))), name
    if name == "undo":
        return undo(one), name
    return restarted(one) if one.own is not None else one, name


def text(one):
    """The measurements as text; decisions of the same content differ only in their times."""
    return without(one.measurements, {x.when for x in one.decisions})


def check_measurements(one):
    measured, afresh = one.measurements, lx.measure(one.volume, one.segmentation)
    assert [x.volume_ml for x in measured.lesions] == [x.volume_ml for x in afresh.lesions]
    assert [x.centroid_lps_mm for x in measured.lesions] == [x.centroid_lps_mm for x in afresh.lesions]
    assert measured.tumor_volume_ml == pytest.approx(sum(x.volume_ml for x in measured.lesions))
    told = json.loads(json.dumps(measured.to_dict()))
    assert [x["number"] for x in told["lesions"]] == list(range(1, lesion_components(one.segmentation).max() + 1))
    box, pieces = numbered_candidates((one.own or one).segmentation)
    tumor = one.segmentation.mask("tumor", box)
    for candidate in measured.candidates:
        share = tumor[pieces == candidate.number].mean()
        assert (candidate.status == "accepted") == (share > 0.5)


def check_decisions(one):
    """The last word about each voxel holds, and what was rejected is listed, as such or as a candidate."""
    labels, last = labels_of(one), np.zeros(SHAPE, np.uint8)
    box, pieces = numbered_candidates(one.own.segmentation)
    listed = np.zeros(SHAPE, bool)
    listed[box] = np.isin(pieces, [x.number for x in one.measurements.candidates if x.status == "rejected"])
    rows = [tuple(one.segmentation.labels.grid.nearest_voxel(x.place_lps_mm)) for x in one.measurements.rejected]
    rejected = []
    for decision in one.decisions:
        where, voxels = unpack_mask(decision.voxels)
        last[where][voxels] = GIVES.get(decision.kind, 0)
        if decision.kind in ("reject", "dismiss"):
            mask = np.zeros(SHAPE, bool)
            mask[where] = voxels
            rejected.append(mask)
            if any(mask[row] for row in rows):
                listed |= mask
    for mask in rejected:
        assert 2 * ((labels == TUMOR) & mask).sum() > mask.sum() or 2 * (listed & mask).sum() > mask.sum()
    np.testing.assert_array_equal(labels[last > 0], last[last > 0])


def check_sessions(one):
    """A later session has the same result, and goes on from it in the same way."""
    later = restarted(one)
    np.testing.assert_array_equal(labels_of(later), labels_of(one))
    assert text(later) == text(one)
    if one.decisions:
        np.testing.assert_array_equal(labels_of(undo(later)), labels_of(undo(one)))
        assert text(undo(later)) == text(undo(one))
    asked = one.own.segmentation.provenance.get("sensitivity", {}).get("asked", "standard")
    for sensitivity in ("specific", "sensitive"):
        there = change_sensitivity(one, sensitivity)
        np.testing.assert_array_equal(labels_of(change_sensitivity(there, asked)), labels_of(one))


@pytest.mark.parametrize("seed", range(6))
def test_after_any_actions_of_a_reader_result_list_and_record_agree(seed):
    random, done = np.random.default_rng(seed), []
    one = (many, graded)[seed % 2]()
    one = dataclasses.replace(one, measurements=one.measurements.doubted(one.provenance.get("mirrored", ())))
    while len(done) < STEPS:
        before = one
        try:
            one, name = step(random, one)
        except UsageError:
            continue
        done.append(name)
        print(done)
        check_measurements(one)
        if one.own is None:
            continue
        check_decisions(one)
        check_sessions(one)
        known = [(x.kind, x.who, x.when, x.voxels) for x in before.decisions]
        if name != "undo":
            assert [(x.kind, x.who, x.when, x.voxels) for x in one.decisions][: len(known)] == known
        back = one
        for _ in range(len(one.decisions) - len(known)):
            back = undo(back)
        if len(one.decisions) > len(known):
            np.testing.assert_array_equal(labels_of(back), labels_of(before))
            assert text(back) == text(before)
