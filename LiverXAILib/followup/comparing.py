# SPDX-License-Identifier: Apache-2.0
"""compare(): compares two or more studies of one patient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..analysis import Analysis
from ..context import RunContext
from ..errors import UsageError, own_errors, require_several, require_type
from ..measure.recist import MOST_TARGETS
from ..options import Options
from ..progress import CancelToken, Progress
from ..volumes.image_file import existing
from .criteria import responses, target_sum
from .findings import Comparison, Findings, Step, TimePoint
from .matching import regions
from .registration import ALIKE_DICE, Registration, RegistrationRefused, Subject, register
from .studies import Study, read_study, same_study, study_of
from .tracks import Courses, tracks


# Long: most lines are its parameters and their documentation.
@own_errors("The studies cannot be compared")
def compare(
    studies: Sequence[Analysis | Study | str | Path],
    *,
    images: Sequence[str | Path | None] | None = None,
    days: Sequence[float] | None = None,
    recist_targets: Sequence[int] | None = None,
    other_patient: bool = False,
    model: str = "default",
    options: Options | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Comparison:
    """Compare the liver lesions of two or more studies of one patient, the oldest first.

    :param studies: results in memory, folders written by ``analyze``, or CTs, which are analyzed with `model`.
    :param images: the CTs of the results, in the same order; None where unknown. Without them, livers are registered
        by their surfaces alone, and there are no pictures.
    :param days: days of each study since the first; None: from the DICOM dates, where available.
    :param recist_targets: numbers of target lesions in the first study; None: those of its result.
    :param other_patient: compare even if the DICOM patient IDs, birth dates or sexes differ.
    :param options: how images are read, and how CTs are analyzed (nothing is explained).
    :raises LiverXAILib.errors.UsageError: there are fewer than two studies, one is given twice, their order is wrong,
        or they are of different patients.
    :raises LiverXAILib.errors.InputError: a study cannot be read, or has no liver.
    """
    check_studies(studies, images)
    context = RunContext(progress, cancel, device)
    read = _studies(studies, images, options or Options(), model, context.part(0.0, 0.4))
    _check_identity(read, other_patient)
    since = _days(read, days)
    return follow(read, since, recist_targets, context.part(0.4, 1.0), (options or Options()).case_label)


def check_studies(studies: Sequence[Analysis | Study | str | Path], images: Sequence[str | Path | None] | None) -> None:
    """Refuse too few studies, and paths that do not exist, before anything is read; errors as in :func:`compare`."""
    require_several(studies, "studies")
    for study in studies:
        require_type(study, (Analysis, Study, str, Path), "A result of analyze, a folder or a CT", "give its path")
    if len(studies) < 2:
        raise UsageError("A comparison needs at least two studies, the oldest first.")
    if images is not None and len(images) != len(studies):
        raise UsageError(f"There are {len(studies)} studies and {len(images)} images: give one for each, '-' for none.")
    for place in (*studies, *(images or ())):
        if isinstance(place, str | Path):
            existing(place)


def follow(
    studies: Sequence[Study],
    days: Sequence[float | None],
    recist_targets: Sequence[int] | None,
    context: RunContext,
    case_label: str | None = None,
) -> Comparison:
    """Do what :func:`compare` does, with studies that have been read and checked.

    :param days: days of each study since the first.
    """
    targets = _targets(studies[0], recist_targets)
    courses = Courses([regions(study.segmentation) for study in studies])
    registrations: list[Registration | None] = []
    steps = []
    for index in range(1, len(studies)):
        own = context.step(index - 1, len(studies) - 1)
        found, step = _registered(studies, index, own)
        registrations.append(found)
        steps.append(step)
        courses.follow(index, registrations)
    found_tracks = tracks(courses.courses, studies, days, targets)
    sums = [target_sum(found_tracks, study, index) for index, study in enumerate(studies)]
    points = tuple(
        TimePoint(
            index + 1,
            None if study.date is None else study.date.isoformat(),
            days[index],
            study.phase,
            study.liver_ml,
            study.lesions_ml,
            len(study.lesions),
            sums[index],
        )
        for index, study in enumerate(studies)
    )
    categories = [responses(found_tracks, studies, sums, index) for index in range(1, len(studies))]
    made, left_out = zip(*categories, strict=True)
    findings = Findings(points, tuple(steps), found_tracks, made, left_out, _remarks(studies, steps))
    context.report("Compared", 1.0)
    return Comparison(findings, tuple(studies), tuple(registrations), case_label)


def _studies(
    given: Sequence[Any], images: Sequence[str | Path | None] | None, options: Options, model: str, context: RunContext
) -> list[Study]:
    quick = dataclasses.replace(options, explain=(), check=False, answers=False)
    found = []
    for index, one in enumerate(given):
        name = f"Study {index + 1}"
        image = None if images is None or images[index] is None else Path(str(images[index]))
        own = context.step(index, len(given))
        if isinstance(one, Study):
            found.append(one)
        elif isinstance(one, Analysis):
            found.append(study_of(one, name))
        else:
            found.append(read_study(Path(one), image, f"{name} ({Path(one).name})", quick, model, own))
    return found


def _check_identity(studies: Sequence[Study], other_patient: bool) -> None:
    for index, one in enumerate(studies):
        for other in studies[:index]:
            if same_study(one, other):
                raise UsageError(f"{other.name} and {one.name} are the same study.")
    if (differing := _differing(studies)) and not other_patient:
        raise UsageError(
            f"The DICOM {differing} of the studies differ. If they are nevertheless of one patient, use "
            "--other-patient (other_patient=True)."
        )
    dated = [study for study in studies if study.date is not None]
    for one, other in pairwise(dated):
        if one.date is not None and other.date is not None and one.date > other.date:
            raise UsageError(
                f"{one.name} is dated {one.date.isoformat()}, {other.name} {other.date.isoformat()}: give the oldest "
                "study first."
            )


def _differing(studies: Sequence[Study]) -> str:
    """The DICOM attributes that suggest different patients, as text; "" if there are none."""
    known = {
        "patient IDs": {study.identity.patient for study in studies},
        "birth dates": {study.identity.birth_date for study in studies},
        "sexes": {study.identity.sex for study in studies},
    }
    return " and ".join(words for words, values in known.items() if len(values - {""}) > 1)


def _days(studies: Sequence[Study], days: Sequence[float] | None) -> list[float | None]:
    """Days of each study since the first; None where unknown."""
    if days is not None:
        finite = all(math.isfinite(one) for one in days)
        if len(days) != len(studies) or not finite or days[0] != 0 or any(b <= a for a, b in pairwise(days)):
            raise UsageError(
                f"The days since the first study must begin with 0 and increase, one for each of the {len(studies)} "
                "studies."
            )
        return list(days)
    first = studies[0].date
    if first is None:
        return [None] * len(studies)
    return [None if study.date is None else float((study.date - first).days) for study in studies]


def _targets(baseline: Study, chosen: Sequence[int] | None) -> tuple[int, ...]:
    if chosen is None:
        return baseline.targets
    if unknown := sorted(set(chosen) - {lesion.number for lesion in baseline.lesions}):
        raise UsageError(f"The first study has no lesion {unknown[0]}; it has {len(baseline.lesions)}.")
    if len(set(chosen)) > MOST_TARGETS:
        raise UsageError(f"RECIST 1.1 allows at most {MOST_TARGETS} target lesions in one organ.")
    return tuple(dict.fromkeys(chosen))


def _registered(studies: Sequence[Study], index: int, context: RunContext) -> tuple[Registration | None, Step]:
    current, prior = (Subject(study.segmentation, study.volume) for study in (studies[index], studies[index - 1]))
    try:
        found = register(current, prior, context)
    except RegistrationRefused as error:
        return None, Step(index + 1, error.quality, str(error))
    return found, Step(index + 1, found.quality)


def _remarks(studies: Sequence[Study], steps: Sequence[Step]) -> tuple[str, ...]:
    remarks = [remark for study in studies for remark in study.remarks]
    if differing := _differing(studies):
        remarks.append(
            f"The DICOM {differing} of the studies differ. If they are of different patients, this comparison is "
            "invalid."
        )
    for step in steps:
        if step.quality is not None and not step.quality.alike:
            remarks.append(
                f"The livers of studies {step.study - 1} and {step.study} differ in shape more than those of one "
                f"person do: without deformation their Dice coefficient is {step.quality.rigid_dice:.2f}, below "
                f"{ALIKE_DICE:g}. If they are of different patients, this comparison is invalid."
            )
    if not any(study.lesions for study in studies):
        remarks.append("No study has a lesion.")
    for number, study in enumerate(studies, start=1):
        if study.liver_cut_at:
            sides = " and ".join(study.liver_cut_at)
            remarks.append(
                f"The liver of study {number} is cut off at the image's {sides} border: lesions there may be missing "
                "in one study and be incorrectly called new or vanished."
            )
    phases = {study.phase for study in studies}
    if len(phases) > 1:
        remarks.append(
            "The contrast phases differ or are uncertain: this may explain changes in HU, and changes of lesions that "
            "are visible only in some phases."
        )
    if any(study.volume is None for study in studies):
        remarks.append(
            "If a CT is not given (--images), livers are registered by their surfaces alone, and there are no pictures."
        )
    return tuple(remarks)
