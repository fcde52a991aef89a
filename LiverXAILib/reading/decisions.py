# SPDX-License-Identifier: Apache-2.0
"""The reader's decisions, applied to a result; the model's own result is kept alongside."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence

import numpy as np

from ..analysis import Analysis, Decision, require_analysis
from ..errors import UsageError, require_several, require_type
from ..inference.lesions import Point, grown, lesion_at
from ..inference.segmentation import Segmentation
from ..inference.sensitivity import at_sensitivity, marked_pieces
from ..measure import measure
from ..measure.recist import MOST_TARGETS
from ..volumes.volume import Volume, require_volume_type
from .applying import DecisionBatch
from .carrying import carried
from .measuring import asked_before, measure_again, with_remarks
from .packing import pack_labels, pack_mask, unpack_labels, unpack_mask


def accept(candidate: int) -> Decision:
    """A candidate is a lesion."""
    return Decision("accept", _numbers(candidate))


def dismiss(candidate: int) -> Decision:
    """A candidate is not a lesion: it stays listed, as rejected, and is not a lesion at any sensitivity."""
    return Decision("dismiss", _numbers(candidate))


def reject(lesion: int) -> Decision:
    """A lesion is a false positive: its voxels become liver."""
    return Decision("reject", _numbers(lesion))


def restore(rejected: int) -> Decision:
    """A rejected lesion is a lesion after all: its voxels become tumor again."""
    return Decision("restore", _numbers(rejected))


def add(place_lps_mm: Sequence[float]) -> Decision:
    """There is a lesion at a point (LPS mm) that the model has missed; :func:`outline_lesion` outlines it."""
    return Decision("add", (), _point(place_lps_mm))


def merge(*lesions: int) -> Decision:
    """Two or more lesions are one: bridges of tumor voxels join them where they are closest.

    :raises LiverXAILib.errors.UsageError: there are fewer than two different lesions.
    """
    numbers = _numbers(*lesions)
    if len(numbers) < 2:
        raise UsageError("Merging takes two or more lesions, such as 2,3.")
    return Decision("merge", numbers)


def split(lesion: int) -> Decision:
    """A lesion is two: it is divided midway between its two most distant ends."""
    return Decision("split", _numbers(lesion))


def include(place_lps_mm: Sequence[float]) -> Decision:
    """A point (LPS mm) belongs to the nearest lesion, whose outline does not include it."""
    return Decision("include", (), _point(place_lps_mm))


def exclude(place_lps_mm: Sequence[float]) -> Decision:
    """A point (LPS mm) does not belong to the lesion whose outline includes it."""
    return Decision("exclude", (), _point(place_lps_mm))


def measure_lesion(lesion: int, points_lps_mm: Sequence[Sequence[float]]) -> Decision:
    """A lesion has the diameters measured by the reader.

    :param points_lps_mm: both ends of the long axis, then of the short axis (LPS mm).
    """
    if len(points_lps_mm) != 4:
        raise UsageError("Two diameters have four ends: two of the long axis, then two of the short axis.")
    points = tuple(map(_point, points_lps_mm))
    if points[0] == points[1] or points[2] == points[3]:
        raise UsageError("A diameter has two different ends.")
    return Decision("measure", _numbers(lesion), points_lps_mm=points)


def choose_targets(*lesions: int) -> Decision:
    """These lesions are the target lesions of RECIST 1.1, instead of those that its rule would select.

    :raises LiverXAILib.errors.UsageError: no lesion is given, or more than RECIST allows in one organ.
    """
    numbers = _numbers(*lesions)
    if not 0 < len(numbers) <= MOST_TARGETS:
        raise UsageError(f"Choose one or two lesions as targets: RECIST 1.1 allows {MOST_TARGETS} in one organ.")
    return Decision("target", numbers)


def _numbers(*numbers: int) -> tuple[int, ...]:
    """The different numbers, in their order; anything but a whole number is refused."""
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
            raise UsageError(f"The number of a lesion or candidate is a whole number, but {number!r} was given.")
    return tuple(dict.fromkeys(map(int, numbers)))


def _point(place_lps_mm: Sequence[float]) -> Point:
    point = tuple(float(value) for value in place_lps_mm)
    if len(point) != 3 or not np.isfinite(point).all():
        raise UsageError(
            f"A point has three finite coordinates in mm, but one has ({', '.join(f'{x:g}' for x in point)})."
        )
    return point


def refine(
    analysis: Analysis,
    decisions: Iterable[Decision] = (),
    labels: Volume | None = None,
    *,
    who: str = "reader",
) -> Analysis:
    """Apply the reader's decisions, and measure again.

    Numbers of lesions, candidates and rejected lesions are those in `analysis`; all are looked up before anything
    changes. If a decision also has a place (`place_lps_mm`; `points_lps_mm` for several lesions), the place decides
    which one is meant, so that a number from an older list cannot refer to another one. In the result, lesions and
    rejected lesions are renumbered by size; candidates keep their numbers and record the decision.

    :param decisions: made by :func:`accept`, :func:`dismiss`, :func:`reject`, :func:`restore`, :func:`add`,
        :func:`include`, :func:`exclude`, :func:`merge`, :func:`split`, :func:`measure_lesion` and
        :func:`choose_targets`; their time, place, numbers and voxels are filled in.
    :param labels: the label map as edited by hand; None: that of `analysis`.
    :param who: name of the reader.
    :return: a new analysis with the decisions (:attr:`~LiverXAILib.analysis.Analysis.decisions`) and the model's own
        result (:attr:`~LiverXAILib.analysis.Analysis.own`). Heat maps and answers about lesions with unchanged voxels
        are kept, with the lesions' new numbers; those about other lesions are dropped, with a warning in the
        provenance.
    :raises LiverXAILib.errors.UsageError: a lesion or candidate does not exist, there is none at the given point, or a
        decision would change nothing.
    """
    require_analysis(analysis)
    require_several(decisions, "decisions")
    decisions = list(decisions)
    for decision in decisions:
        require_type(decision, Decision, "A decision", "make it with accept(), reject() or another such function")
    if labels is not None:
        require_volume_type(labels)
    own = analysis.own or analysis
    before = analysis.segmentation
    decided: list[Decision] = []
    now = _now()
    array = np.array(before.labels.array if labels is None else labels.array)
    base = before  # its lesions are already numbered
    if labels is not None:
        if not labels.grid.matches(before.labels.grid):
            raise UsageError("The edited label map is not on the image's grid.")
        changed = array != before.labels.array
        if changed.any():
            voxels, known = pack_mask(changed), pack_labels(before.labels.array[changed])
            decided.append(Decision("edit", (), None, who, now, voxels=voxels, before=known))
            base = dataclasses.replace(before, labels=before.labels.with_array(array.copy()))
    batch = DecisionBatch(analysis, base)
    for decision in decisions:
        decided.append(dataclasses.replace(batch.apply(decision, array), who=who, when=now))
    everything = (*analysis.decisions, *decided)
    return _changed(analysis, _with_labels(before, array), own, everything, _touched(analysis, array, decided))


def undo(analysis: Analysis) -> Analysis:
    """Take back the last decision, which is removed from the record.

    Its voxels have the labels that they had before it. If no earlier decision is about them, they follow the model, at
    the sensitivity of `analysis`.

    :return: the analysis without the decision; without any other decision, the model's own result.
    :raises LiverXAILib.errors.UsageError: there is no decision.
    """
    if not analysis.decisions or analysis.own is None:
        raise UsageError("There is no decision that could be undone.")
    own, (*earlier, last) = analysis.own, analysis.decisions
    array = np.array(analysis.segmentation.labels.array)
    released = _held((last,), array, own.segmentation)
    where, voxels = unpack_mask(last.voxels)
    if last.before:
        array[where][voxels] = unpack_labels(last.before, int(voxels.sum()))
    touched = _held(earlier, array, own.segmentation)
    if analysis.touched is not None:
        touched |= analysis.touched & ~released
    array = np.where(touched, array, own.segmentation.labels.array)
    if not earlier and (array == own.segmentation.labels.array).all():
        return dataclasses.replace(own, **carried(analysis, own.segmentation, own.provenance))
    return _changed(analysis, _with_labels(analysis.segmentation, array), own, earlier, touched)


def _with_labels(segmentation: Segmentation, array: np.ndarray) -> Segmentation:
    """A segmentation with other labels, uint8 (k, j, i)."""
    return dataclasses.replace(segmentation, labels=segmentation.labels.with_array(array))


def _changed(
    analysis: Analysis,
    segmentation: Segmentation,
    own: Analysis,
    decisions: Sequence[Decision],
    touched: np.ndarray,
) -> Analysis:
    """The analysis with another segmentation, measured again.

    :param own: the model's own result.
    :param decisions: all decisions that led to the segmentation.
    :param touched: see :attr:`~LiverXAILib.analysis.Analysis.touched`.
    """
    edited = bool((segmentation.labels.array != own.segmentation.labels.array).any())
    segmentation = dataclasses.replace(segmentation, provenance={**segmentation.provenance, "edited": edited})
    decisions = with_remarks(decisions, segmentation)
    measurements = measure_again(analysis, segmentation, own, decisions)
    recorded = {
        **analysis.provenance,
        "warnings": measurements.warnings(analysis.provenance.get("warnings", ())),
        "reader": [decision.to_dict() for decision in decisions],
        "reader_labels_sha256": segmentation.checksum,
        "model_labels_sha256": own.segmentation.checksum,
    }
    return dataclasses.replace(
        analysis,
        **carried(analysis, segmentation, recorded),
        measurements=measurements,
        decisions=decisions,
        own=own,
        touched=touched,
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
    left, decided = _left(earlier, array, own.segmentation)
    by_hand = (array != left) & (decided | ~touched)
    edits: tuple[Decision, ...] = ()
    if edited:
        before = pack_labels(left[by_hand])
        edits = (Decision("edit", (), None, who, _now(), voxels=pack_mask(by_hand), before=before),)
    touched |= by_hand | _held(edits, array, own.segmentation)
    segmentation = dataclasses.replace(own.segmentation, labels=own.segmentation.labels.with_array(array))
    return dataclasses.replace(
        own,
        **carried(own, segmentation, own.provenance),
        decisions=(*earlier, *edits),
        own=own,
        touched=touched,
    )


def _left(decisions: Sequence[Decision], labels: np.ndarray, own: Segmentation) -> tuple[np.ndarray, np.ndarray]:
    """The labels as decisions left them, and the voxels (bool) where that follows from the decisions.

    Manual edits do not record what was drawn: there, these are the current `labels` (uint8; k, j, i).
    """
    left, decided = np.array(own.labels.array), np.zeros(labels.shape, bool)
    for decision in decisions:
        if not decision.changes_outlines:
            continue
        where, voxels = unpack_mask(decision.voxels)
        if decision.kind == "edit":
            left[where][voxels] = labels[where][voxels]
        else:
            tumor = decision.kind not in ("reject", "split", "exclude")
            left[where][voxels] = own.spec("tumor" if tumor else "liver").value
        decided[where][voxels] = True
    return left, decided


def _touched(analysis: Analysis, labels: np.ndarray, decided: Sequence[Decision] = ()) -> np.ndarray:
    """The voxels that the reader has determined, before or now by the decisions `decided`, which led to `labels`."""
    held: np.ndarray = labels != analysis.segmentation.labels.array
    held |= _held(decided, labels, (analysis.own or analysis).segmentation)
    return held if analysis.touched is None else analysis.touched | held


def _held(decisions: Sequence[Decision], labels: np.ndarray, own: Segmentation) -> np.ndarray:
    """The voxels where decisions persist at another operating point, at which the model's labels may differ.

    These are the voxels that a decision changed, the candidate that it dismissed, and all voxels of the lesion that it
    concerned: if a reader has corrected the outline of a lesion or joined it to another, it counts as a lesion whatever
    the model's confidence.

    :param labels: the labels that resulted from the decisions.
    :param own: the model's segmentation, which contains the lesions of every operating point.
    """
    held = np.zeros(labels.shape, bool)
    for decision in decisions:
        if not (decision.changes_outlines or decision.kind == "dismiss"):
            continue
        where, mask = unpack_mask(decision.voxels)
        held[where] |= mask
        if not decision.changes_outlines:
            continue
        box, pieces = marked_pieces(own)
        grid = own.labels.grid.cropped(box)
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
    measured = measure(
        analysis.volume, chosen, **asked_before(own, chosen), known=[(own.segmentation, own.measurements)]
    ).doubted(own.provenance.get("mirrored", ()))
    recorded = {
        **own.provenance,
        "segmentation": dict(chosen.provenance),
        "model_labels_sha256": chosen.checksum,
        "warnings": measured.warnings(own.provenance.get("warnings", ())),
    }
    model = dataclasses.replace(own, standard=standard, **carried(own, chosen, recorded), measurements=measured)
    if analysis.own is None:
        return model
    touched = _touched(analysis, analysis.segmentation.labels.array)
    labels = np.where(touched, analysis.segmentation.labels.array, chosen.labels.array)
    # The operating point is stored with the labels: without it, a later session would start from a different one.
    changed = dataclasses.replace(
        analysis.segmentation,
        labels=standard.labels.with_array(labels),
        provenance=chosen.provenance,
    )
    recorded = {**analysis.provenance, "segmentation": dict(chosen.provenance)}
    before = dataclasses.replace(analysis, provenance=recorded)
    return _changed(before, changed, model, analysis.decisions, touched)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
