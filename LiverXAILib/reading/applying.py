# SPDX-License-Identifier: Apache-2.0
"""What each kind of decision changes in the label map."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..analysis import Analysis, Decision
from ..errors import UsageError
from ..inference.lesions import (
    LEAST_CANDIDATE_ML,
    Point,
    grown,
    lesion_at,
    lesion_mask,
    numbered_candidates,
    numbered_lesions,
)
from ..inference.masks import Mask
from ..inference.segmentation import Segmentation
from ..text import place_text
from ..volumes.box import Box, components
from ..volumes.volume import Grid
from .findings import Findings
from .outline import correct_outline, outline_lesion
from .packing import pack_labels, pack_mask
from .rejections import most, rejections

#: Maximum distance of a point from the nearest lesion to which it is assigned, in mm.
_NEAREST_MM = 20.0


class _Edit(NamedTuple):
    """Voxels of the image, bool (k, j, i) in a `box` of it, and the label that they get."""

    box: Box
    mask: np.ndarray
    label: int


class DecisionBatch:
    """Decisions that are made together: all of them refer to the findings of the result before.

    :param base: the segmentation of `analysis`, with the reader's manual edits.
    """

    def __init__(self, analysis: Analysis, base: Segmentation) -> None:
        own = (analysis.own or analysis).segmentation
        self._volume, self._base = analysis.volume, base
        self._rejections = rejections(analysis.decisions, base, own)
        self._grid = base.labels.grid
        self._tumor, self._liver = base.spec("tumor").value, base.spec("liver").value
        self._gone: set[int] = set()
        self._dismissed = {one.number for one in analysis.measurements.candidates if one.status == "rejected"}
        self.lesions = Findings.numbered("lesion", self._grid, *numbered_lesions(base))
        self.candidates = Findings.numbered("candidate", self._grid, *numbered_candidates(own))
        self.rejected = Findings("rejected lesion", self._grid, [Mask(one.box, one.mask) for one in self._rejections])

    def apply(self, decision: Decision, labels: np.ndarray) -> Decision:
        """Change `labels` (uint8; k, j, i) according to a decision; return it with what is known about it now.

        :raises LiverXAILib.errors.UsageError: it is about something that does not exist, or would change nothing.
        """
        decision, about, edits = self._resolved(decision)
        if about is not None:
            where, voxels = about
            return dataclasses.replace(
                decision,
                voxels=pack_mask(voxels, where),
                before=pack_labels(labels[where][voxels]) if decision.kind == "dismiss" else "",
            )
        if not edits:
            return decision
        region = Box.union(edit.box for edit in edits)
        before = labels[region].copy()
        for box, mask, label in edits:
            labels[box][mask] = label
        changed = labels[region] != before
        if not changed.any():
            # Recorded, it would seem to have had an effect, and taking it back would have none.
            raise UsageError(_no_change(decision))
        return dataclasses.replace(decision, voxels=pack_mask(changed, region), before=pack_labels(before[changed]))

    # Long: one block for each kind of decision.
    def _resolved(self, decision: Decision) -> tuple[Decision, Mask | None, list[_Edit]]:
        """A decision with its numbers and places; what it is about, if it changes no label; and the labels it sets."""
        kind, place = decision.kind, decision.place_lps_mm
        if kind == "add":
            assert place is not None
            return decision, None, [_Edit(*outline_lesion(self._volume, self._base, place), self._tumor)]
        if kind in ("include", "exclude"):
            assert place is not None
            inside = kind == "include"
            number = self._nearest(place) if inside else self._containing(place)
            self._require_there([number])
            lesion = lesion_mask(self._base, number)
            box, mask = correct_outline(self._volume, self._base, lesion, place, inside)
            # Apply only the click's changes: another decision may have changed the rest of the lesion.
            lost, gained = lesion[box] & ~mask, mask & ~lesion[box]
            edits = [_Edit(box, lost, self._liver), _Edit(box, gained, self._tumor)]
            if not inside:
                whole, voxels = self.lesions.mask(number)
                rest = voxels & ~Mask(box, lost).on(whole)
                edits.append(_Edit(whole, _crumbs(rest, self._grid.voxel_volume_mm3), self._liver))
            return dataclasses.replace(decision, numbers=(number,)), None, edits
        if kind == "restore":
            number = self.rejected.find(decision.numbers[0], place)
            place = self._rejections[number - 1].decision.place_lps_mm
            decision = dataclasses.replace(decision, numbers=(number,), place_lps_mm=place)
            return decision, None, [_Edit(*self.rejected.mask(number), self._tumor)]
        findings = self.candidates if kind in ("accept", "dismiss") else self.lesions
        named = _found(findings, decision)
        chosen = [findings.mask(number) for number in named]
        decision = dataclasses.replace(decision, numbers=named, place_lps_mm=findings.place(named[0]))
        if kind in ("merge", "target"):
            decision = dataclasses.replace(decision, points_lps_mm=tuple(map(findings.place, named)))
        if kind == "accept":
            return decision, None, [_Edit(*chosen[0], self._tumor)]
        if kind == "dismiss":
            box, mask = chosen[0]
            if most(self._base.mask("tumor", box), mask):
                raise UsageError(
                    f"Candidate {named[0]} was accepted, so it is a lesion now: reject the lesion instead."
                )
            if named[0] in self._dismissed:
                raise UsageError(_no_change(decision))
            self._dismissed.add(named[0])
            return decision, chosen[0], []
        if kind == "reject":
            self._gone.update(named)
            return decision, None, [_Edit(*chosen[0], self._liver)]
        self._require_there(named)
        if kind == "merge":
            bridges = _bridges(chosen)
            self._require_free(bridges, named)
            return decision, None, [_Edit(*bridges, self._tumor)]
        if kind == "split":
            return decision, None, [_Edit(*_gap(chosen[0], self._grid), self._liver)]
        return decision, chosen[0] if kind == "measure" else None, []

    def _require_there(self, numbers: Sequence[int]) -> None:
        """Refuse a decision about a lesion that another decision rejects."""
        for number in numbers:
            if number in self._gone:
                raise UsageError(
                    f"Lesion {number} is rejected: no other decision about it is possible at the same time."
                )

    def _require_free(self, bridges: Mask, merged: Sequence[int]) -> None:
        """Refuse bridges that would also join a lesion that is not to be merged."""
        box = bridges.box.grown((1, 1, 1), self._grid.shape)
        joined = grown(bridges.on(box))
        others = set(range(1, len(self.lesions.masks) + 1)) - {*merged, *self._gone}
        between = sorted(number for number in others if (self.lesions.mask(number).on(box) & joined).any())
        if between:
            raise UsageError(
                f"Merging lesions {_listed(merged)} would also merge lesion {_listed(between)}, which touches their "
                f"connection. Merge {_listed([*merged, *between])}, or draw the connection by hand."
            )

    def _nearest(self, place_lps_mm: Point) -> int:
        box, pieces = numbered_lesions(self._base)
        number = lesion_at(pieces, self._grid.cropped(box), place_lps_mm, _NEAREST_MM)
        if not number:
            raise UsageError(
                f"The point {place_text(place_lps_mm)} is more than {_NEAREST_MM:.0f} mm from every lesion. Add a "
                "lesion there instead."
            )
        return number

    def _containing(self, place_lps_mm: Point) -> int:
        number = self.lesions.at(place_lps_mm)
        if not number:
            raise UsageError(
                f"The point {place_text(place_lps_mm)} is not in a lesion, so it cannot be excluded from one."
            )
        return number


def _found(findings: Findings, decision: Decision) -> tuple[int, ...]:
    """The current numbers of the findings that a decision names."""
    places: Sequence[Point | None] = [decision.place_lps_mm] + [None] * (len(decision.numbers) - 1)
    if decision.kind in ("merge", "target") and decision.points_lps_mm:
        places = decision.points_lps_mm
    if len(places) != len(decision.numbers):
        raise UsageError(f"{len(decision.numbers)} lesions were named, but {len(places)} places were given.")
    found = tuple(findings.find(number, place) for number, place in zip(decision.numbers, places, strict=True))
    if len(set(found)) < len(found):
        raise UsageError(f"Lesions {_listed(decision.numbers)} are one lesion now. Choose again from the current list.")
    return found


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(map(str, sorted(numbers)))


def _no_change(decision: Decision) -> str:
    """A sentence that refuses a decision without an effect."""
    place = "" if decision.place_lps_mm is None else place_text(decision.place_lps_mm)
    if decision.kind == "add":
        return f"What is outlined at {place} is part of a lesion already: correct its outline instead."
    if decision.kind == "split":
        return f"Lesion {decision.numbers[0]} is too small to be split."
    return f"Nothing to {decision.kind} at {place}: the result is as decided already."


def _crumbs(rest: np.ndarray, voxel_mm3: float) -> np.ndarray:
    """The components of what a cut leaves of a lesion that are too small for a finding, except for the largest one."""
    numbers = components(rest, corners=True, largest_first=True)
    too_small = np.bincount(numbers.ravel()) * voxel_mm3 < 1000 * LEAST_CANDIDATE_ML
    too_small[:2] = False
    return too_small[numbers]


def _bridges(masks: Sequence[Mask]) -> Mask:
    """The voxels that connect components, each to those before it, on the lines between the closest voxels."""
    from scipy.spatial import cKDTree

    box = Box.union(mask.box for mask in masks)
    whole, *others = (mask.on(box) for mask in masks)
    bridges = np.zeros(box.shape, bool)
    for other in others:
        a, b = np.argwhere(whole), np.argwhere(other)
        distances, nearest = cKDTree(a).query(b)
        end = int(np.argmin(distances))
        start, stop = a[nearest[end]], b[end]
        steps = np.linspace(0, 1, int(np.abs(stop - start).max()) + 1)
        bridges[tuple(np.rint(start + steps[:, None] * (stop - start)).astype(int).T)] = True
        whole = whole | other
    return Mask(box, bridges)


def _gap(lesion: Mask, grid: Grid) -> Mask:
    """The voxels to remove from a component so that its halves, each nearer to one of its ends, do not touch."""
    box, mask = lesion
    voxels = np.argwhere(mask)
    points = grid.to_lps((voxels + box.start)[:, ::-1])
    first = points[((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax()]
    second = points[((points - first) ** 2).sum(axis=1).argmax()]
    nearer = ((points - first) ** 2).sum(axis=1) <= ((points - second) ** 2).sum(axis=1)
    half = np.zeros(mask.shape, bool)
    half[tuple(voxels[nearer].T)] = True
    return Mask(box, grown(half) & mask & ~half)
