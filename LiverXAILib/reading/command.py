# SPDX-License-Identifier: Apache-2.0
"""``liverxai refine``: the reader's decisions on a folder written by ``liverxai analyze``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import options
from ..analysis import Analysis, Decision
from ..context import RunContext
from ..errors import InputError, UsageError
from ..files import require_exists, require_writable
from ..inference.given import GIVEN
from ..inference.postprocess import Postprocessing
from ..inference.segmentation import labels_checksum
from ..inference.sensitivity import STANDARD, check_sensitivity
from ..progress import progress_bar
from ..text import warn
from ..volumes.box import Box
from ..volumes.image_file import existing
from ..volumes.volume import Volume, ras_to_lps
from .decisions import (
    accept,
    add,
    change_sensitivity,
    choose_targets,
    dismiss,
    exclude,
    include,
    merge,
    refine,
    reject,
    restore,
    resume,
    split,
    undo,
)
from .measuring import measured_with, with_outlines
from .numbering import Listed, as_listed, listed_in, require_listed
from .packing import unpack_labels, unpack_mask

if TYPE_CHECKING:
    from ..explain import Target
    from ..models import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("result", metavar="RESULT", type=Path, help="a folder written by 'analyze'")
    parser.add_argument("--image", metavar="CT", type=Path, required=True, help="the CT from which RESULT was made")
    parser.add_argument("--output", "-o", metavar="FOLDER", type=Path, help="for the new result (default: RESULT)")
    numbers: dict[str, Any] = {"type": _numbers, "nargs": "+", "action": "extend", "default": [], "metavar": "N"}
    parser.add_argument("--accept", **numbers, help="candidates that are lesions, by their numbers in the report")
    parser.add_argument("--dismiss", **numbers, help="candidates that are not lesions, by their numbers in the report")
    parser.add_argument(
        "--reject", "--remove", **numbers, help="lesions that are false positives, by their numbers in the report"
    )
    parser.add_argument("--restore", **numbers, help="rejected lesions that are lesions after all, by their numbers")
    parser.add_argument("--split", **numbers, help="lesions that are actually two")
    parser.add_argument(
        "--merge",
        type=_numbers,
        nargs="+",
        action="append",
        default=[],
        metavar="N",
        help="lesions that are actually one: 2,3",
    )
    parser.add_argument(
        "--add", action="append", default=[], metavar="PLACE", help="a missed lesion: ras:x,y,z or lps:x,y,z in mm"
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="PLACE", help="a point that belongs to the nearest lesion"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PLACE", help="a point that does not belong to its lesion"
    )
    parser.add_argument("--targets", **numbers, help="the target lesions of RECIST 1.1: 1,3")
    parser.add_argument(
        "--undo",
        action="count",
        default=0,
        help="take back the last decision, before any other is made; give it twice for the last two",
    )
    parser.add_argument("--reader", default="reader", help="name of the reader in the record (default: reader)")
    options.add_result_arguments(parser, sensitivity="that of RESULT")
    parser.set_defaults(sensitivity=None)  # None: the sensitivity of the result


def run(arguments: argparse.Namespace) -> int:
    """Refine a result; return the exit code."""
    decisions = [
        *map(accept, chain(*arguments.accept)),
        *map(dismiss, chain(*arguments.dismiss)),
        *map(reject, chain(*arguments.reject)),
        *map(restore, chain(*arguments.restore)),
        *(merge(*chain(*group)) for group in arguments.merge),
        *map(split, chain(*arguments.split)),
        *(add(_place(text)) for text in arguments.add),
        *(include(_place(text)) for text in arguments.include),
        *(exclude(_place(text)) for text in arguments.exclude),
        *([choose_targets(*chain(*arguments.targets))] if arguments.targets else []),
    ]
    require_exists(arguments.result)
    existing(arguments.image)
    provenance = _provenance(arguments.result)
    before = provenance["segmentation"].get("sensitivity", {}).get("asked", STANDARD)
    chosen = dataclasses.replace(options.Options.from_arguments(arguments), sensitivity=before)
    chosen.require_valid()
    _require_place(arguments.output, arguments.result)
    check_sensitivity(arguments.sensitivity or before)
    listed = _listed(arguments.result)
    if listed is not None:  # refused before anything is computed
        require_listed(decisions, listed)
    with progress_bar() as progress:
        context = RunContext(progress, device=arguments.device)
        analysis, undone = _refined(arguments, chosen, provenance, decisions, listed, context)
        written = chosen.save(analysis, arguments.output or arguments.result)
    for warning in written.warnings:
        warn(warning)
    for decision in undone:
        print(f"undone: {_sentence(decision)}")
    for decision in analysis.decisions[len(analysis.decisions) - len(decisions) :]:
        print(_sentence(decision))
    print(analysis.measurements.summary())
    for role, path in written.files.items():
        print(f"{role:>20}  {path}")
    print("For research use only. Not for diagnosis or treatment.")
    return 0


def _require_place(output: Path | None, result: Path) -> None:
    """Refuse a folder for the new result that cannot be written or holds decisions about another result."""
    from ..pipeline import require_undecided

    require_writable(output or result)
    if output is not None and output.resolve() != result.resolve():
        require_undecided(output)


def _require_no_others(path: Path, model: Model) -> None:
    """Refuse to replace a segmentation file to which an editor has added segments that the model does not have."""
    from ..labels.segment_files import nrrd_segment_names
    from ..labels.vocabulary import PART, STRUCTURES, structure_of

    found = nrrd_segment_names(path) if path.exists() else None
    meanings = {one.name: structure_of(one.name, one.category, one.kind, one.regions) for one in found or ()}
    known = {PART, *STRUCTURES, *(spec.name for spec in model.spec.labels)}
    others = [repr(name) for name, meaning in meanings.items() if not {name, meaning} & known]
    if others and len(others) < len(meanings):  # without any that is known, reading the file says so
        raise UsageError(
            f"{path} also has {', '.join(others)}, which the new result would not have. Give another --output, or "
            "save a copy of the file and remove these segments."
        )


def _refined(
    arguments: argparse.Namespace,
    chosen: options.Options,
    provenance: dict[str, Any],
    decisions: Sequence[Decision],
    listed: Listed | None,
    context: RunContext,
) -> tuple[Analysis, list[Decision]]:
    """Recompute the model's own result, load the current labels from the folder, and apply the new decisions.

    :param listed: the findings of the result, to which the numbers of the decisions refer; None: it does not say.
    :return: the new result, and the decisions that were undone.
    """
    from ..pipeline import analyze, check_request

    model = _model(arguments, provenance)
    asked = arguments.sensitivity or chosen.sensitivity
    questions = check_request(model, chosen.explain, chosen.method, chosen.layer, asked)
    volume = chosen.read(arguments.image)
    require_same_ct(arguments.result, provenance, volume)
    own = analyze(
        volume,
        model,
        targets=(),
        answers=False,
        postprocessing=Postprocessing(**provenance["segmentation"].get("postprocessing", {})),
        sensitivity=chosen.sensitivity,
        **context.part(0.0, 0.4).keywords,
    )
    own = measured_with(_as_stored(own, arguments.result, provenance), provenance.get("measured_with", {}))
    earlier = tuple(Decision.from_dict(one) for one in provenance.get("reader", ()))
    labels = _labels(arguments.result / "segmentation.seg.nrrd", own)
    left = provenance["reader_labels_sha256"] if earlier else labels_checksum(own.segmentation.labels)
    edited = labels_checksum(labels) != left
    untouched = not earlier and not edited
    if not (decisions or edited or arguments.undo or arguments.sensitivity):
        raise UsageError(
            "No decision was given, and the label map was not edited: use --accept, --dismiss, --reject, --restore, "
            "--merge, --split, --add, --include, --exclude, --targets, --undo or --sensitivity."
        )
    if listed is None and (edited or arguments.undo):
        _require_no_numbers(arguments.result, decisions)
    current = own if untouched else resume(own, labels, earlier, edited=edited, who=arguments.reader)
    undone: list[Decision] = []
    for _ in range(arguments.undo):
        undone.extend(current.decisions[-1:])
        current = undo(current)
    if listed is not None:
        decisions = as_listed(decisions, listed, current)
    refined = refine(current, decisions, who=arguments.reader) if decisions or current.decisions else current
    if arguments.sensitivity is not None:  # after the decisions, because they use the numbers of the report
        refined = change_sensitivity(refined, arguments.sensitivity)
    return _explained(refined, model, questions, chosen, context.part(0.4, 1.0)), undone


def _model(arguments: argparse.Namespace, provenance: Mapping[str, Any]) -> Model:
    """The model of a result; one that is not the same, or whose new result would lose segments, is refused."""
    from ..models import load_model

    model = load_model(arguments.model)
    made_by = provenance["segmentation"]["model"]
    if list(model.sha256) != list(made_by["sha256"]):
        raise UsageError(
            f"{arguments.result} was made by model {made_by['name']} {made_by['version']}, which is not the one given "
            f"by --model ({model.spec.name} {model.spec.version})."
        )
    if (arguments.output or arguments.result).resolve() == arguments.result.resolve():
        _require_no_others(arguments.result / "segmentation.seg.nrrd", model)
    return model


def _as_stored(own: Analysis, folder: Path, provenance: Mapping[str, Any]) -> Analysis:
    """The model's own result with the outlines in `folder`.

    On another machine or device, the network's sums are rounded differently, and a few voxels may have another label.
    These are no edits of the reader.
    """
    known = provenance.get("model_labels_sha256")
    if known is None or known == own.segmentation.checksum:
        return own
    name = "segmentation-model.seg.nrrd" if provenance.get("reader") else "segmentation.seg.nrrd"
    labels = _labels(folder / name, own) if (folder / name).exists() else None
    if labels is None or labels_checksum(labels) != known:
        warn(
            f"The model's outlines are slightly different on this machine, and {name} does not hold those of the "
            "analysis: lesions that were not changed may count as edited by the reader."
        )
        return own
    return with_outlines(own, labels)


def _explained(
    refined: Analysis, model: Model, questions: Sequence[Target], chosen: options.Options, context: RunContext
) -> Analysis:
    """The analysis with heat maps and answers, as ``analyze`` computes them, for the current outlines."""
    from ..explain import EmptyTargetError
    from ..pipeline import explain_and_ask

    answerable: list[Target] = []
    for question in questions:
        try:
            question.mask(refined.segmentation)
            answerable.append(question)
        except EmptyTargetError:
            continue
    refusals: list[str] = []
    explanations, answers = explain_and_ask(
        refined.volume,
        model,
        refined.segmentation,
        answerable,
        default_targets=chosen.explain is None,
        method=chosen.method,
        layer=chosen.layer,
        check=chosen.check,
        answers=chosen.answers,
        regions=chosen.regions,
        refusals=refusals,
        context=context,
    )
    provenance = {**refined.provenance, "warnings": [*refined.provenance.get("warnings", ()), *refusals]}
    return dataclasses.replace(refined, explanations=tuple(explanations), answers=tuple(answers), provenance=provenance)


def require_same_ct(result: Path, provenance: Mapping[str, Any], volume: Volume) -> None:
    """Refuse a CT other than the one from which a result was made; on the same grid, it would go unnoticed.

    :param provenance: the content of ``provenance.json`` in `result`.
    :raises LiverXAILib.errors.InputError: it is a different CT.
    """
    known = provenance["input"].get("sha256")
    if known is None:
        warn(f"{result} does not say from which CT it was made, so the CT given with it cannot be checked.")
    elif known != volume.sha256:
        raise InputError(
            f"The CT given with {result} is not the CT from which it was made: the checksum of its voxels differs from "
            "that of 'input' in provenance.json. Give the CT that was analyzed, or analyze this one."
        )


def _listed(folder: Path) -> Listed | None:
    """The findings in the result's ``measurements.json``; None if it is missing or damaged: it will be rewritten."""
    try:
        return listed_in(json.loads((folder / "measurements.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _require_no_numbers(folder: Path, decisions: Sequence[Decision]) -> None:
    """Refuse numbers of a list that is lost: after a change of the label map, they could mean other findings."""
    if any(decision.numbers for decision in decisions):
        raise UsageError(
            f"{folder / 'measurements.json'} is missing or damaged, so it is unknown which findings have the given "
            "numbers after the label map was edited or a decision undone. Run 'liverxai refine' without numbers "
            "first, and use those of the new list."
        )


def _provenance(folder: Path) -> dict[str, Any]:
    path = folder / "provenance.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        given = found["segmentation"].get("source") == GIVEN
        if not given:
            _require_origin(found)
            _require_decisions(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder} is not a complete result of 'liverxai analyze': {path.name} is missing or damaged."
        ) from error
    if given:
        raise UsageError(
            f"{folder} was made from given contours (--segmentation), but decisions apply to what a model has found. "
            "Change the contours instead, and analyze with them."
        )
    return found


def _require_origin(provenance: Mapping[str, Any]) -> None:
    """Raise an error if it cannot be read how a result was made and measured."""
    segmentation = provenance["segmentation"]
    " ".join([*segmentation["model"]["sha256"], segmentation["model"]["name"], segmentation["model"]["version"]])
    segmentation.get("sensitivity", {}).get("asked")
    Postprocessing(**segmentation.get("postprocessing", {}))
    for target in provenance.get("measured_with", {}).get("recist_targets") or ():
        target["place_lps_mm"]


def _require_decisions(provenance: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError if the decisions of a result cannot be read."""
    whole = Box.full(provenance["input"]["shape"])
    for values in provenance.get("reader", ()):
        decision = Decision.from_dict(values)
        where, mask = unpack_mask(decision.voxels)
        if mask.size and where.intersection(whole) != where:
            raise ValueError("voxels of a decision lie outside the image")
        unpack_labels(decision.before, int(mask.sum()))
    if provenance.get("reader"):
        provenance["reader_labels_sha256"]


def _labels(path: Path, own: Analysis) -> Volume:
    """The label map of the folder, as it was written or as it has been edited since."""
    from ..labels.label_map import read_label_map
    from ..labels.vocabulary import STRUCTURES
    from ..volumes.io import read_labels

    before = own.segmentation.labels
    if {spec.name: spec.value for spec in own.segmentation.specs} == STRUCTURES:
        # Read by segment names: an editor may have changed the label values, or cropped the file to the segments.
        return before.with_array(read_label_map(path).on(before.grid, path.name, "CT").volume.array)
    labels = read_labels(path)
    if not labels.grid.matches(before.grid):
        raise InputError(f"{path} is not on the grid of the CT. Is --image the CT from which the result was made?")
    return labels.with_array(labels.array.astype(np.uint8))


def _numbers(text: str) -> list[int]:
    """Parse numbers separated by commas: "2,3"."""
    try:
        return [int(number) for number in text.split(",") if number]
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of numbers. Write them like 2,3.") from error


def _place(text: str) -> tuple[float, float, float]:
    """Parse ``ras:x,y,z`` or ``lps:x,y,z`` (mm) into a point in LPS mm."""
    frame, _, numbers = text.partition(":")
    try:
        x, y, z = (float(number) for number in numbers.split(","))
        return {"ras": ras_to_lps((x, y, z)), "lps": (x, y, z)}[frame]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{text!r} is not a place. Write ras:x,y,z or lps:x,y,z, in mm.") from error


def _sentence(decision: Decision) -> str:
    numbers = " and ".join(map(str, decision.numbers))
    place = "" if decision.place_lps_mm is None else " at LPS {:.0f}, {:.0f}, {:.0f} mm".format(*decision.place_lps_mm)
    return " ".join(filter(None, (decision.kind, numbers))) + place
