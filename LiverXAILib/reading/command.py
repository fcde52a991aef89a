# SPDX-License-Identifier: Apache-2.0
"""``liverxai refine``: the reader's decisions on a folder that ``liverxai analyze`` has written."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import options
from ..analysis import Analysis, Decision
from ..context import RunContext
from ..errors import InputError, UsageError
from ..progress import progress_bar
from ..volumes.volume import Volume
from .decisions import accept, add, labels_checksum, merge, refine, reject, resume, split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("result", metavar="RESULT", type=Path, help="a folder that 'analyze' has written")
    parser.add_argument("--image", metavar="CT", type=Path, required=True, help="the CT that it is about")
    parser.add_argument("--output", "-o", metavar="FOLDER", type=Path, help="for the new result (default: RESULT)")
    numbers: dict[str, Any] = {"type": int, "nargs": "+", "action": "extend", "default": [], "metavar": "N"}
    parser.add_argument("--accept", **numbers, help="candidates that are lesions, by their numbers in the report")
    parser.add_argument("--reject", **numbers, help="lesions that are none, by their numbers in the report")
    parser.add_argument("--split", **numbers, help="lesions that are two")
    parser.add_argument("--merge", type=int, nargs=2, action="append", default=[], metavar="N", help="two that are one")
    parser.add_argument(
        "--add", action="append", default=[], metavar="PLACE", help="a missed lesion: ras:x,y,z or lps:x,y,z in mm"
    )
    parser.add_argument("--reader", default="reader", help="who decides, as it is recorded (default: reader)")
    options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Refine a result; returns the exit code."""
    decisions = [
        *map(accept, arguments.accept),
        *map(reject, arguments.reject),
        *(merge(first, second) for first, second in arguments.merge),
        *map(split, arguments.split),
        *(add(_place(text)) for text in arguments.add),
    ]
    if not decisions:
        raise UsageError("Nothing is decided: give --accept, --reject, --merge, --split or --add.")
    chosen = options.Options.from_arguments(arguments)
    chosen.require_extras()
    provenance = _provenance(arguments.result)
    with progress_bar() as progress:
        analysis = _refined(arguments, chosen, provenance, decisions, RunContext(progress, device=arguments.device))
        written = chosen.save(analysis, arguments.output or arguments.result)
    for warning in written.warnings:
        print(f"warning: {warning}")
    for decision in analysis.decisions[-len(decisions) :]:
        print(_sentence(decision))
    print(analysis.measurements.summary())
    for role, path in written.files.items():
        print(f"{role:>20}  {path}")
    print("For research use only. Not for diagnosis or treatment.")
    return 0


def _refined(
    arguments: argparse.Namespace,
    chosen: options.Options,
    provenance: dict[str, Any],
    decisions: Sequence[Decision],
    context: RunContext,
) -> Analysis:
    """The model's own answer once more (it is the same), what the folder holds now, and the new decisions."""
    from ..explain import EmptyTargetError, Target, explain_all
    from ..models import load_model
    from ..pipeline import check_request

    model = load_model(arguments.model)
    made_by = provenance["segmentation"]["model"]
    if list(model.sha256) != list(made_by["sha256"]):
        raise UsageError(
            f"{arguments.result} was made by model {made_by['name']} {made_by['version']}, which is not the one that "
            f"--model names ({model.spec.name} {model.spec.version})."
        )
    questions = check_request(model, chosen.explain, chosen.method, chosen.layer)
    volume = chosen.read(arguments.image)
    own = dataclasses.replace(chosen, explain=(), check=False, answers=False).analyze(
        volume, model, context.part(0.0, 0.4)
    )
    earlier = tuple(Decision.from_dict(one) for one in provenance.get("reader", ()))
    labels = _labels(arguments.result / "segmentation.seg.nrrd", own)
    left = provenance["reader_labels_sha256"] if earlier else labels_checksum(own.segmentation.labels)
    edited = labels_checksum(labels) != left
    current = resume(own, labels, earlier, edited=edited, who=arguments.reader)
    refined = refine(current, decisions, who=arguments.reader)
    answerable: list[Target] = []
    for question in questions:
        try:
            question.mask(refined.segmentation)
            answerable.append(question)
        except EmptyTargetError:
            continue
    explanations = explain_all(
        volume,
        model,
        refined.segmentation,
        answerable,
        chosen.method,
        chosen.layer,
        check=chosen.check,
        **context.part(0.4, 1.0).keywords,
    )
    return dataclasses.replace(refined, explanations=tuple(explanations))


def _provenance(folder: Path) -> dict[str, Any]:
    path = folder / "provenance.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["segmentation"]["model"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is not a whole result of 'liverxai analyze': {path.name} is missing or damaged."
        ) from error
    return found


def _labels(path: Path, own: Analysis) -> Volume:
    """The label map of the folder: as it was written, or as somebody has edited the file since."""
    from ..volumes.io import read_labels

    labels = read_labels(path)
    if not labels.grid.matches(own.segmentation.labels.grid):
        raise InputError(f"{path} does not lie on the grid of the CT. Is --image the CT that the result is about?")
    return labels.with_array(labels.array.astype(np.uint8))


def _place(text: str) -> tuple[float, float, float]:
    """A place in LPS mm from ``ras:x,y,z`` or ``lps:x,y,z``."""
    frame, _, numbers = text.partition(":")
    try:
        x, y, z = (float(number) for number in numbers.split(","))
        sign = {"ras": -1.0, "lps": 1.0}[frame]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{text!r} is not a place. Write ras:x,y,z or lps:x,y,z, in mm.") from error
    return sign * x, sign * y, z


def _sentence(decision: Decision) -> str:
    numbers = " and ".join(map(str, decision.numbers))
    place = "" if decision.place_lps_mm is None else " at LPS {:.0f}, {:.0f}, {:.0f} mm".format(*decision.place_lps_mm)
    return " ".join(filter(None, (decision.kind, numbers))) + place
