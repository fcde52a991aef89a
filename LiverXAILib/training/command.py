# SPDX-License-Identifier: Apache-2.0
"""``liverxai train``: train or fine-tune a model on your own data."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import require_writable
from ..progress import Progress, print_line, progress_bar
from ..text import how_to_install


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of ``liverxai train``."""
    parser.description = (
        "Train a model as configured in a YAML file (docs/training.md). To resume an interrupted run, give the same "
        "command again."
    )
    parser.add_argument("source", metavar="CONFIG", type=Path, nargs="?", help="a YAML file, e.g. configs/phantom.yaml")
    parser.add_argument("--config", metavar="CONFIG", type=Path, help="the same; Slicer would open a lone file")
    parser.add_argument("--output", "-o", metavar="FOLDER", help="folder of the run (default: runs/<name>)")
    parser.add_argument("--data", metavar="PATH", help="folder of the data set, or CSV file (data.path)")
    parser.add_argument("--init", metavar="MODEL", help="fine-tune this model: default, another name, or a folder")
    parser.add_argument("--stage", metavar="NAME", help="with --init: the stage to train, if the model is a cascade")
    parser.add_argument(
        "--synthetic-lesions",
        action="store_true",
        help="paint synthetic lesions into training livers without labeled tumors",
    )
    parser.add_argument("--fold", metavar="N", help="which of the data.folds folds to validate on, from 0; or all")
    parser.add_argument(
        "--cases",
        metavar="N",
        type=int,
        nargs="+",
        help="train once with each of these numbers of cases, and plot Dice against their number",
    )
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON schema of CONFIG, for completion and checks in editors"
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change any setting of CONFIG, e.g. --set training.epochs=3; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run ``liverxai train`` and return the exit code."""
    try:
        from ..models.loading import load_states
        from .config import json_schema
        from .config_file import read_config
    except ImportError as error:
        raise UsageError(f"Training needs {error.name}: {how_to_install('train')}.") from error

    if arguments.schema:
        print_line(json.dumps(json_schema(), indent=2))
        return 0
    source = arguments.source or arguments.config
    if source is None or (arguments.source and arguments.config):
        raise UsageError("Give one CONFIG: a YAML file, e.g. configs/phantom.yaml.")
    config = read_config(source, _changes(arguments))
    require_writable(config.folder)
    if config.init is not None:
        load_states(str(config.init))  # an unknown model is reported before phantoms are made or data is read
    from .run import train, train_by_cases

    with _progress() as progress:
        if arguments.cases:
            rows = train_by_cases(config, arguments.cases, say=print_line, progress=progress)
            for row in rows:
                print_line("  ".join(f"{key} {value:.3g}" for key, value in row.items()))
            print_line(f"The curve is in {config.folder / 'cases-curve.png'}")
        else:
            train(config, say=print_line, progress=progress)
    return 0


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings that the command line overrides, by dotted name."""
    import yaml

    changes: dict[str, Any] = {}
    for text in arguments.set:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise UsageError(f"--set {text}: give it as NAME=VALUE, e.g. training.epochs=3.")
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text}: the value is not YAML.") from error
    for name in ("output", "init", "stage"):
        if getattr(arguments, name) is not None:
            changes[name] = getattr(arguments, name)
    if arguments.data is not None:
        changes["data.path"] = arguments.data
    if arguments.fold is not None:
        changes["data.fold"] = int(arguments.fold) if arguments.fold.isdigit() else arguments.fold
    if arguments.synthetic_lesions:
        changes["data.synthetic_lesions"] = True
    return changes


@contextlib.contextmanager
def _progress() -> Any:
    """A progress bar for each part of a run (making phantoms, training, evaluating), whose fractions begin at 0."""
    with contextlib.ExitStack() as stack:
        shown: list[Progress] = []

        def show(step: str, fraction: float) -> None:
            if int(os.environ.get("LOCAL_RANK", "0")):
                return
            if not shown:
                shown.append(stack.enter_context(progress_bar()))
            shown[0](step, fraction)
            if fraction >= 1:
                stack.pop_all().close()
                shown.clear()

        yield show
