# SPDX-License-Identifier: Apache-2.0
"""The reader's decisions, applied to a result; the model's own result is kept alongside."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..analysis import Analysis, Decision
from ..errors import UsageError
from ..inference.lesions import Point, candidate_components, grown, lesion_at, lesion_components, lesion_place
from ..inference.segmentation import Segmentation
from ..inference.sensitivity import at_sensitivity, marked_pieces
from ..measure import measure
from ..measure.recist import MOST_TARGETS
from ..volumes.box import bounding_box
from ..volumes.volume import Volume
from .measuring import asked_before, measure_again
from .outline import correct_outline, outline_lesion
from .packing import pack_mask, unpack_mask
from .rejections import rejections

#: Maximum distance of a point from the nearest lesion to which it is assigned, in mm.
_NEAREST_MM = 20.0


def accept(candidate: int) -> Decision:
    """A candidate is a lesion."""
    return Decision("accept", (candidate,))


def reject(lesion: int) -> Decision:
    """A lesion is a false positive: its voxels become liver."""
    return Decision("reject", (lesion,))


def restore(rejected: int) -> Decision:
    """A rejected lesion is a lesion after all: its voxels become tumor again."""
    return Decision("restore", (rejected,))


def add(place_lps_mm: Sequence[float]) -> Decision:
    """There is a lesion at a point (LPS mm) that the model has missed; :func:`outline_lesion` outlines it."""
    x, y, z = (float(value) for value in place_lps_mm)
    return Decision("add", (), (x, y, z))


def merge(*lesions: int) -> Decision:
    """Two or more lesions are one: bridges of tumor voxels join them where they are closest.

    :raises LiverXAILib.errors.UsageError: there are fewer than two different lesions.
    """
    if len(set(lesions)) < 2:
        raise UsageError("Merging takes two or more lesions, such as 2,3.")
    return Decision("merge", tuple(dict.fromkeys(lesions)))


def split(lesion: int) -> Decision:
    """A lesion is two: it is divided midway between its two most distant ends."""
    return Decision("split", (lesion,))


def include(place_lps_mm: Sequence[float]) -> Decision:
    """A point (LPS mm) belongs to the nearest lesion, whose outline does not include it."""
    x, y, z = (float(value) for value in place_lps_mm)
    return Decision("include", (), (x, y, z))


def exclude(place_lps_mm: Sequence[float]) -> Decision:
    """A point (LPS mm) does not belong to the lesion whose outline includes it."""
    x, y, z = (float(value) for value in place_lps_mm)
    return Decision("exclude", (), (x, y, z))


def measure_lesion(lesion: int, points_lps_mm: Sequence[Sequence[float]]) -> Decision:
    """A lesion has the diameters measured by the reader.

    :param points_lps_mm: both ends of the long axis, then of the short axis (LPS mm).
    """
    if len(points_lps_mm) != 4:
        raise UsageError("Two diameters have four ends: two of the long axis, then two of the short axis.")
    points = tuple((float(x), float(y), float(z)) for x, y, z in points_lps_mm)
    return Decision("measure", (lesion,), points_lps_mm=points)


def choose_targets(*lesions: int) -> Decision:
    """These lesions are the target lesions of RECIST 1.1, instead of those that its rule would select.

    :raises LiverXAILib.errors.UsageError: no lesion is given, or more than RECIST allows in one organ.
    """
    numbers = tuple(dict.fromkeys(lesions))
    if not 0 < len(numbers) <= MOST_TARGETS:
        raise UsageError(f"Choose one or two lesions as targets: RECIST 1.1 allows {MOST_TARGETS} in one organ.")
    return Decision("target", numbers)


# Long: one block for each kind of decision.
def refine(
    analysis: Analysis,
    decisions: Iterable[Decision] = (),
    labels: Volume | None = None,
    *,
    who: str = "reader",
) -> Analysis:
    """Apply the reader's decisions, and measure again.

    Numbers of lesions, candidates and rejected lesions are those in `analysis`; all are looked up before anything
    changes. In the result, lesions and rejected lesions are renumbered by size; candidates keep their numbers and
    record the decision.

    :param decisions: made by :func:`accept`, :func:`reject`, :func:`restore`, :func:`add`, :func:`include`,
        :func:`exclude`, :func:`merge`, :func:`split`, :func:`measure_lesion` and :func:`choose_targets`; their time,
        place, numbers and voxels are filled in.
    :param labels: the label map as edited by hand; None: that of `analysis`.
    :param who: name of the reader.
    :return: a new analysis with the decisions (:attr:`~LiverXAILib.analysis.Analysis.decisions`) and the model's own
        result (:attr:`~LiverXAILib.analysis.Analysis.own`). If outlines have changed, heat maps and counterfactuals
        of single lesions are dropped, because their numbers may now refer to other lesions.
    :raises LiverXAILib.errors.UsageError: a lesion or candidate does not exist, or there is none at the given point.
    """
    own = analysis.own or analysis
    before = analysis.segmentation
    decided: list[Decision] = []
    now = _now()
    array = np.array(before.labels.array if labels is None else labels.array)
    if labels is not None and (array != before.labels.array).any():
        if not labels.grid.matches(before.labels.grid):
            raise UsageError("The edited label map is not on the image's grid.")
        decided.append(Decision("edit", (), None, who, now, voxels=pack_mask(array != before.labels.array)))
    base = dataclasses.replace(before, labels=before.labels.with_array(array.copy()))
    lesions, candidates = lesion_components(base), candidate_components(own.segmentation)
    rejected = rejections(analysis.decisions, base, own.segmentation)
    tumor, liver = base.spec("tumor").value, base.spec("liver").value
    gone: set[int] = set()
    for decision in decisions:
        place, named, until = decision.place_lps_mm, decision.numbers, array.copy()
        if decision.kind == "add":
            assert place is not None
            box, mask = outline_lesion(analysis.volume, base, place)
            array[box][mask] = tumor
        elif decision.kind in ("include", "exclude"):
            assert place is not None
            inside = decision.kind == "include"
            number = _lesion_at(lesions, before.labels, place, near=inside)
            lesion, named = lesions == number, (number,)
            _require_there(named, gone)
            box, mask = correct_outline(analysis.volume, base, lesion, place, inside)
            # Apply only the click's changes: another decision may have changed the rest of the lesion.
            array[box][lesion[box] & ~mask] = liver
            array[box][mask & ~lesion[box]] = tumor
        elif decision.kind == "restore":
            (number,) = named
            if not 1 <= number <= len(rejected):
                raise UsageError(_missing("rejected lesion", number, len(rejected)))
            one = rejected[number - 1]
            array[one.box][one.mask] = tumor
            place = one.decision.place_lps_mm
        else:
            numbers, what = (candidates, "candidate") if decision.kind == "accept" else (lesions, "lesion")
            chosen = [_chosen(numbers, number, what) for number in decision.numbers]
            place = lesion_place(chosen[0], before.labels.grid)
            if decision.kind not in ("accept", "reject"):
                _require_there(named, gone)
            if decision.kind == "accept":
                array[chosen[0]] = tumor
            elif decision.kind == "reject":
                array[chosen[0]] = liver
                gone.update(named)
            elif not decision.changes_outlines:
                pass
            elif decision.kind == "merge":
                whole = chosen[0]
                for other in chosen[1:]:
                    array[_bridge(whole, other)] = tumor
                    whole = whole | other
            else:
                array[_gap(chosen[0], before.labels)] = liver
            if decision.kind == "target":
                places = tuple(lesion_place(one, before.labels.grid) for one in chosen)
                decision = dataclasses.replace(decision, points_lps_mm=places)
        voxels = pack_mask(array != until)
        decided.append(
            dataclasses.replace(decision, numbers=named, place_lps_mm=place, who=who, when=now, voxels=voxels)
        )
    provenance = {**before.provenance, "edited": True}
    segmentation = dataclasses.replace(before, labels=before.labels.with_array(array), provenance=provenance)
    everything = (*analysis.decisions, *decided)
    return dataclasses.replace(
        analysis,
        **_kept(analysis, segmentation),
        measurements=measure_again(analysis.volume, segmentation, own, everything),
        decisions=everything,
        own=own,
        touched=_touched(analysis, array, decided),
        provenance={
            **analysis.provenance,
            "reader": [decision.to_dict() for decision in everything],
            "reader_labels_sha256": segmentation.checksum,
        },
    )


def resume(
    own: Analysis, labels: Volume, earlier: Sequence[Decision], *, edited: bool = False, who: str = "reader"
) -> Analysis:
    """Restore the state of an earlier session, to be refined further.

    :param own: the model's own result.
    :param labels: the current label map, on the image's grid.
    :param earlier: the decisions that led to it.
    :param edited: the label map was edited by hand since, which is recorded as a decision of `who`.
    :raises LiverXAILib.errors.UsageError: the label map is not on the image's grid.
    """
    if not labels.grid.matches(own.segmentation.labels.grid):
        raise UsageError("The edited label map is not on the image's grid.")
    array = labels.array
    touched = _held(earlier, array, own.segmentation)
    by_hand = (array != own.segmentation.labels.array) & ~touched
    edits = (Decision("edit", (), None, who, _now(), voxels=pack_mask(by_hand)),) if edited else ()
    touched |= by_hand | _held(edits, array, own.segmentation)
    segmentation = dataclasses.replace(own.segmentation, labels=own.segmentation.labels.with_array(array))
    return dataclasses.replace(own, segmentation=segmentation, decisions=(*earlier, *edits), own=own, touched=touched)


def _touched(analysis: Analysis, labels: np.ndarray, decided: Sequence[Decision] = ()) -> np.ndarray:
    """The voxels that the reader has determined, before or now by the decisions `decided`, which led to `labels`."""
    held: np.ndarray = labels != analysis.segmentation.labels.array
    held |= _held(decided, labels, (analysis.own or analysis).segmentation)
    return held if analysis.touched is None else analysis.touched | held


def _held(decisions: Sequence[Decision], labels: np.ndarray, own: Segmentation) -> np.ndarray:
    """The voxels where decisions persist at another operating point, at which the model's labels may differ.

    These are the voxels that a decision changed, and all voxels of the lesion that it concerned: if a reader has
    corrected the outline of a lesion or joined it to another, it counts as a lesion whatever the model's confidence.

    :param labels: the labels that resulted from the decisions.
    :param own: the model's segmentation, which contains the lesions of every operating point.
    """
    held = np.zeros(labels.shape, bool)
    if not any(decision.changes_outlines for decision in decisions):
        return held
    box, pieces = marked_pieces(own)
    grid = own.labels.grid.cropped(box)
    for decision in decisions:
        where, mask = unpack_mask(decision.voxels)
        held[where] |= mask
        if not decision.changes_outlines:
            continue
        numbers: set[int] = set()
        around = where.grown((1, 1, 1), labels.shape)
        if mask.any() and (common := around.intersection(box)) is not None:
            changed = np.zeros(around.shape, bool)
            changed[where.relative_to(around)] = mask
            beside = grown(changed)[common.relative_to(around)] & (labels[common] == own.spec("tumor").value)
            numbers.update(np.unique(pieces[common.relative_to(box)][beside]).tolist())
        if decision.place_lps_mm is not None:
            numbers.add(lesion_at(pieces, grid, decision.place_lps_mm))
        if numbers := numbers - {0}:
            held[box] |= np.isin(pieces, list(numbers))
    return held


def change_sensitivity(analysis: Analysis, sensitivity: str) -> Analysis:
    """Change the operating point that separates lesions from candidates, without running a network.

    Voxels that the reader has changed stay; all other labels follow the model's.

    :param sensitivity: see :func:`LiverXAILib.inference.sensitivity.choose_point`.
    :raises LiverXAILib.errors.UsageError: the model has no such operating point.
    """
    own = analysis.own or analysis
    standard = own.standard or own.segmentation
    chosen = at_sensitivity(standard, analysis.model, sensitivity)
    measured = measure(analysis.volume, chosen, **asked_before(own, chosen))
    model = dataclasses.replace(
        own,
        standard=standard,
        **_kept(own, chosen),
        measurements=measured,
        provenance={**own.provenance, "segmentation": dict(chosen.provenance)},
    )
    if analysis.own is None:
        return model
    touched = _touched(analysis, analysis.segmentation.labels.array)
    labels = np.where(touched, analysis.segmentation.labels.array, chosen.labels.array)
    # The operating point is stored with the labels: without it, a later session would start from a different one.
    changed = dataclasses.replace(
        analysis.segmentation,
        labels=standard.labels.with_array(labels),
        provenance={**chosen.provenance, "edited": True},
    )
    return dataclasses.replace(
        analysis,
        **_kept(analysis, changed),
        measurements=measure_again(analysis.volume, changed, model, analysis.decisions),
        own=model,
        provenance={
            **analysis.provenance,
            "segmentation": dict(chosen.provenance),
            "reader_labels_sha256": changed.checksum,
        },
    )


def _kept(analysis: Analysis, segmentation: Segmentation) -> dict[str, Any]:
    """A new segmentation, with the earlier explanations that are still valid for it."""
    if segmentation.checksum == analysis.segmentation.checksum:
        return {"segmentation": segmentation}
    explanations = tuple(one for one in analysis.explanations if not str(one.target).startswith("lesion"))
    return {"segmentation": segmentation, "explanations": explanations, "answers": ()}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _chosen(numbers: np.ndarray, number: int, what: str) -> np.ndarray:
    count = int(numbers.max())
    if not 1 <= number <= count:
        raise UsageError(_missing(what, number, count))
    return numbers == number


def _require_there(numbers: Sequence[int], rejected: set[int]) -> None:
    """Refuse a decision about a lesion that another decision rejects."""
    for number in numbers:
        if number in rejected:
            raise UsageError(f"Lesion {number} is rejected: no other decision about it is possible at the same time.")


def _missing(what: str, number: int, count: int) -> str:
    known = f"there are {count}" if count else f"there is no {what}"
    return f"There is no {what} {number}: {known}."


def _lesion_at(numbers: np.ndarray, labels: Volume, place_lps_mm: Point, *, near: bool) -> int:
    """The number of the lesion at a point, or (`near`) of the nearest one."""
    if near:
        number = lesion_at(numbers, labels.grid, place_lps_mm, _NEAREST_MM)
    else:
        voxel = labels.grid.nearest_voxel(place_lps_mm)
        inside = (voxel >= 0).all() and (voxel < numbers.shape).all()
        number = int(numbers[tuple(voxel)]) if inside else 0
    if not number:
        where = "The point {:.0f}, {:.0f}, {:.0f} (LPS mm)".format(*place_lps_mm)
        raise UsageError(
            f"{where} is more than {_NEAREST_MM:.0f} mm from every lesion. Add a lesion there instead."
            if near
            else f"{where} is not in a lesion, so it cannot be excluded from one."
        )
    return number


def _bridge(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, ...]:
    """The voxels on the line between the closest voxels of two components."""
    from scipy.spatial import cKDTree

    a, b = np.argwhere(first), np.argwhere(second)
    distances, nearest = cKDTree(a).query(b)
    end = int(np.argmin(distances))
    start, stop = a[nearest[end]], b[end]
    steps = np.linspace(0, 1, int(np.abs(stop - start).max()) + 1)
    return tuple(np.rint(start + steps[:, None] * (stop - start)).astype(int).T)


def _gap(mask: np.ndarray, labels: Volume) -> np.ndarray:
    """The voxels to remove from a component so that its halves, each nearer to one of its ends, do not touch."""
    box = bounding_box(mask)
    assert box is not None
    voxels = np.argwhere(mask[box])
    points = labels.grid.to_lps((voxels + box.start)[:, ::-1])
    first = points[((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax()]
    second = points[((points - first) ** 2).sum(axis=1).argmax()]
    nearer = ((points - first) ** 2).sum(axis=1) <= ((points - second) ** 2).sum(axis=1)
    half = np.zeros(mask[box].shape, bool)
    half[tuple(voxels[nearer].T)] = True
    gap = np.zeros_like(mask)
    gap[box] = grown(half) & mask[box] & ~half
    return gap
