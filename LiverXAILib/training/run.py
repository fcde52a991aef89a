# SPDX-License-Identifier: Apache-2.0
"""train(): from a configuration to a model folder with its table, curves, evaluation and card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError, UsageError
from ..evaluation.results import format_results, write_results
from ..files import replacing
from ..progress import Progress
from ..text import counted, how_to_install
from .config import Config
from .finish import Outcome, Say, best_epoch, finish
from .layouts import DataSet, find_data
from .setup import set_up
from .splits import draw_split, record_split, recorded_split
from .table import write_case_curve, write_csv


def train(config: Config, *, say: Say, progress: Progress | None = None) -> list[Outcome]:
    """Run a configuration: one run, or one for each fold. An interrupted run is resumed.

    Writes into the run's folder: ``config.yaml``, ``splits.json``, ``epochs.csv``, ``learning-curve.png`` and
    ``.svg``, ``logs/`` (TensorBoard, CSV), ``checkpoints/``, ``model/`` for ``analyze --model``, ``evaluation.csv`` and
    ``.json``, ``examples/`` and ``card.md``.

    :param say: called with lines for the user.
    :return: the outcome of each run; empty on all but the first of several processes.
    :raises LiverXAILib.errors.LiverXAIError: the configuration, the data or the run's folder cannot be used.
    """
    _require_extra()
    dataset = find_data(config.data, progress=progress)
    if config.data.fold != "all":
        return _first([_run(config, dataset, config.folder, config.data.fold, say, progress)])
    if config.hardware.devices != 1 or config.hardware.nodes > 1:
        raise UsageError("On several devices, train the folds one by one: give --fold 0, then --fold 1, and so on.")
    outcomes = []
    for fold in range(config.data.folds or 0):
        say(f"Fold {fold} of {config.data.folds}")
        outcomes.append(_run(config, dataset, config.folder / f"fold-{fold}", fold, say, progress))
    done = _first(outcomes)
    results = [result for outcome in done for result in outcome.results]
    if results:
        say("All folds:\n" + format_results(results))
        for ending in ("csv", "json"):
            write_results(results, config.folder / f"evaluation.{ending}")
    return done


def train_by_cases(
    config: Config, counts: Sequence[int], *, say: Say, progress: Progress | None = None
) -> list[Mapping[str, float]]:
    """Train with increasing numbers of cases; writes ``cases.csv`` and ``cases-curve.png`` and ``.svg``.

    :param counts: numbers of training cases. All runs share the validation cases, and each larger set
        contains the smaller ones.
    :return: the validation Dice of the best epoch for each number, after that of the initial model if there is one.
    """
    _require_extra()
    dataset = find_data(config.data, progress=progress)
    if config.data.fold == "all":
        raise UsageError("A curve over numbers of cases needs a single split: leave out fold: all.")
    everything = replace(config.data, training_cases=None)
    most = len(draw_split(dataset.cases, everything, config.seed, config.data.fold).training)
    if wrong := [n for n in counts if not 1 <= n <= most]:
        raise UsageError(f"{wrong[0]} training cases were requested; the data allows 1 to {most}.")
    rows: list[Mapping[str, float]] = []
    for count in sorted(set(counts)):
        say(counted(count, "training case"))
        smaller = replace(config, data=replace(config.data, training_cases=count))
        outcome = _run(smaller, dataset, config.folder / f"cases-{count}", config.data.fold, say, progress)
        if outcome is None:
            continue
        for cases, row in ((0, outcome.rows[0]), (count, best_epoch(outcome.rows))):
            if cases or (row["epoch"] == 0 and not rows):
                dice = {key: row.get(key, math.nan) for key in ("validation_dice_liver", "validation_dice_tumor")}
                rows.append({"cases": cases, **dice})
    if rows:
        write_csv(rows, config.folder / "cases.csv")
        write_case_curve(rows, config.folder)
    return rows


def _run(
    config: Config, dataset: DataSet, folder: Path, fold: int, say: Say, progress: Progress | None
) -> Outcome | None:
    """One run in `folder`; None on all but the first of several processes."""
    main = _is_main_process()
    splits = folder / "splits.json"
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, config)
    if splits.is_file():
        split = recorded_split(dataset.cases, splits)
    else:
        split = draw_split(dataset.cases, config.data, config.seed, fold)
        if main:
            record_split(split, splits)
    labels = ["liver", *(["tumor"] if dataset.values.tumor is not None or config.data.synthetic_lesions else [])]
    setup = set_up(config, labels)
    if main:
        what = f"stage {setup.stage.name!r} of {config.init}" if config.init else "a new network"
        say(
            f"{len(split.training)} training and {len(split.validation)} validation cases; {what}, taught "
            f"{' and '.join(setup.labels)}; run in {folder}"
        )
    finished = folder / "finished.json"
    if not finished.is_file():
        from .fit import fit, quiet

        with quiet():
            rows = fit(config, dataset, split, setup, folder, say if main else _nothing, progress, main=main)
        if not main:
            return None
        with replacing(finished) as temporary:
            temporary.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    elif not main:
        return None
    rows = json.loads(finished.read_text(encoding="utf-8"))["rows"]
    return finish(config, dataset, split, setup, folder, rows, say, progress)


def _claim(folder: Path, config: Config) -> None:
    """Record the configuration, or check that it is the one this folder was started with."""
    import yaml

    path = folder / "config.yaml"
    if path.is_file():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = config.recipe()
        if changed := [key for key in recipe if (before or {}).get(key) != recipe[key]]:
            raise UsageError(
                f"{folder} holds a run with other settings ({', '.join(changed)} differ): choose another --output, or "
                "delete this folder."
            )
    elif any(folder.glob("checkpoints/*.ckpt")):
        raise InputError(
            f"{folder} holds checkpoints without the config.yaml they were made with; choose another --output."
        )
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _require_extra() -> None:
    if missing := [name for name in ("lightning", "matplotlib", "monai", "tensorboard") if find_spec(name) is None]:
        raise UsageError(f"Training needs {', '.join(missing)}: {how_to_install('train')}.")


def _is_main_process() -> bool:
    """Whether this is the first of the processes of torchrun, SLURM or Lightning, or the only one."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return not rank_zero_only.rank


def _first(outcomes: Sequence[Outcome | None]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome is not None]


def _nothing(_: str) -> None:
    pass
