# SPDX-License-Identifier: Apache-2.0
"""train(): from a configuration to a model folder with its table, curves, evaluation and card."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..context import RunContext
from ..errors import Cancelled, InputError, UsageError
from ..evaluation.evaluate import evaluate
from ..evaluation.results import CaseResult, format_results, summarize, write_results
from ..files import replacing
from ..inference import segment
from ..models.loading import load_model
from ..progress import Progress, report_progress
from ..text import how_to_install
from .config import Config
from .layouts import DataSet, TrainingCase, find_data, read_case
from .setup import TrainingSetup, set_up
from .splits import Split, draw_split, record_split, recorded_split
from .table import header, line, markdown, score, write_case_curve, write_csv, write_curves

_log = logging.getLogger(__name__)

#: Curves take a second to draw: while training they are drawn no more often than this.
_DRAW_SECONDS = 60.0
#: Says a line to the user.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its folder, what is known of each epoch, and what was measured at the end."""

    folder: Path
    rows: tuple[Mapping[str, float], ...]
    results: tuple[CaseResult, ...]
    warnings: tuple[str, ...]


def train(config: Config, *, say: Say, progress: Progress | None = None) -> list[Outcome]:
    """Carry out a configuration: one run, or one for each fold. A run that was interrupted goes on.

    Writes into the run's folder: ``config.yaml``, ``splits.json``, ``epochs.csv``, ``learning-curve.png`` and
    ``.svg``, ``logs/`` (TensorBoard, CSV), ``checkpoints/``, ``model/`` for ``analyze --model``, ``evaluation.csv`` and
    ``.json``, ``examples/`` and ``card.md``.

    :param say: called with lines for the user.
    :return: what came of it; empty on all but the first of several processes.
    :raises LiverXAILib.errors.LiverXAIError: with a sentence that says what is wrong.
    """
    _require_extra()
    dataset = find_data(config.data, progress=progress)
    if config.data.fold != "all":
        return _first([_run(config, dataset, config.folder, config.data.fold, say, progress)])
    if config.hardware.devices != 1 or config.hardware.nodes > 1:
        raise UsageError("Folds are trained one by one on several devices: give --fold 0, then --fold 1, and so on.")
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
    """Train with ever more cases; writes ``cases.csv`` and ``cases-curve.png`` and ``.svg`` into the run's folder.

    :param counts: numbers of training cases. All runs share the validation cases, and more cases include fewer.
    :return: for each number the validation Dice of the best epoch, after the initial model's if there is one.
    """
    _require_extra()
    dataset = find_data(config.data, progress=progress)
    if config.data.fold == "all":
        raise UsageError("A curve over numbers of cases is drawn for one split: leave out fold: all.")
    everything = replace(config.data, training_cases=None)
    most = len(draw_split(dataset.cases, everything, config.seed, config.data.fold).training)
    if wrong := [n for n in counts if not 1 <= n <= most]:
        raise UsageError(f"{wrong[0]} training cases were asked for; there are 1 to {most} to choose from.")
    rows: list[Mapping[str, float]] = []
    for count in sorted(set(counts)):
        say(f"{count} training cases")
        smaller = replace(config, data=replace(config.data, training_cases=count))
        outcome = _run(smaller, dataset, config.folder / f"cases-{count}", config.data.fold, say, progress)
        if outcome is None:
            continue
        for cases, row in ((0, outcome.rows[0]), (count, _best(outcome.rows))):
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
        with _quiet():
            rows = _fit(config, dataset, split, setup, folder, say if main else _nothing)
        if not main:
            return None
        with replacing(finished) as temporary:
            temporary.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    elif not main:
        return None
    rows = json.loads(finished.read_text(encoding="utf-8"))["rows"]
    return _finish(config, dataset, split, setup, folder, rows, say, progress)


def _fit(
    config: Config, dataset: DataSet, split: Split, setup: TrainingSetup, folder: Path, say: Say
) -> list[dict[str, float]]:
    """Train, from the last checkpoint if there is one; returns the rows of all epochs."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from .learner import Checkpoints, Learner
    from .samples import Prepare, Samples, ValidationCases, prepared_cases

    settings, hardware, stage = config.training, config.hardware, setup.stage
    cache = folder / "cache" if config.data.cache == "disk" else None
    slices = stage.dimensions == 2
    patch = None if setup.patch is None or slices else setup.patch
    show = _is_main_process()
    training = prepared_cases(split.training, Prepare(stage, dataset.values, patch), folder=cache, progress=show)
    validation = prepared_cases(split.validation, Prepare(stage, dataset.values), folder=cache, progress=show)
    if slices:
        units = [(n, k) for n in range(len(split.training)) for k in range(training[n]["image"].shape[1])]
    else:
        units = [(n, -1) for n in range(len(split.training)) for _ in range(settings.samples_per_case)]
    freeze = config.init is not None if settings.freeze_norm is None else settings.freeze_norm
    lesions = config.data.synthetic_lesions and "tumor" in setup.labels
    learner = Learner(
        setup.network,
        stage,
        setup.labels,
        settings,
        Samples(training, stage, setup.patch, config.augmentation, synthetic_lesions=lesions),
        units,
        ValidationCases(validation, stage, synthetic_lesions=lesions),
        len(split.validation),
        seed=config.seed,
        workers=hardware.workers,
        freeze_norm=freeze,
    )

    drawn = time.monotonic()

    def tell(rows: list[dict[str, float]]) -> None:
        nonlocal drawn
        say(line(rows[-1]))
        write_csv([{**dict.fromkeys(rows[-1]), **row} for row in rows], folder / "epochs.csv")
        if time.monotonic() - drawn > _DRAW_SECONDS:
            write_curves(rows, folder)
            drawn = time.monotonic()

    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    keeper = Checkpoints(checkpoints, settings.checkpoint_every, tell)
    callbacks: list[Any] = [keeper, TQDMProgressBar(leave=False)]
    if settings.early_stop is not None:
        callbacks.append(
            EarlyStopping("validation_score", mode="max", patience=settings.early_stop, check_on_train_epoch_end=True)
        )
    csv_logger = CSVLogger(folder, name="logs")
    try:
        trainer = pl.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.nodes,
            strategy=hardware.strategy,
            precision=hardware.precision,
            max_epochs=settings.epochs,
            accumulate_grad_batches=settings.accumulate,
            callbacks=callbacks,
            logger=[csv_logger, TensorBoardLogger(folder, name="logs", version=csv_logger.version)],
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
        )
    except (ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise UsageError(f"These settings of 'hardware' cannot be used here: {error}") from error
    if keeper.last.is_file():
        say(f"Going on from {keeper.last}")
    elif config.init is not None:
        trainer.validate(learner, verbose=False)
        learner.rows.append({"epoch": 0.0, **learner.validated})
    say(header())
    if not keeper.last.is_file() and learner.rows:
        say(line(learner.rows[0]))
    learner.train()
    try:
        trainer.fit(learner, ckpt_path=str(keeper.last) if keeper.last.is_file() else None, weights_only=True)
    except SystemExit:
        raise Cancelled("Stopped. Run the same command again to go on from the last checkpoint.") from None
    return learner.rows


def _finish(
    config: Config,
    dataset: DataSet,
    split: Split,
    setup: TrainingSetup,
    folder: Path,
    rows: Sequence[Mapping[str, float]],
    say: Say,
    progress: Progress | None,
) -> Outcome:
    """Export the best epoch, evaluate it case by case, explain examples, write the card."""
    state = torch.load(folder / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    best, found_warnings = _best(rows), _warnings(rows)
    write_curves(rows, folder)
    training = {
        "data": f"layout {config.data.layout}: {len(split.training)} training cases"
        + (", with synthetic lesions in livers without labelled tumors" if config.data.synthetic_lesions else ""),
        "labels": ", ".join(setup.labels),
        "init": f"{config.init}, stage {setup.stage.name}" if config.init else "random weights",
        "epochs": len([row for row in rows if row["epoch"] > 0]),
        "best_epoch": int(best["epoch"]),
        "recipe": config.recipe(),
    }
    model = folder / "model"
    setup.export(weights, model, config, training, {"note": "not measured"})
    results: list[CaseResult] = []
    if config.finish.evaluate:
        results = _evaluate(config, dataset, split.validation, model, progress)
        for ending in ("csv", "json"):
            write_results(results, folder / f"evaluation.{ending}")
        say("\n" + format_results(results))
        setup.export(weights, model, config, training, _quality(results, best))
    if config.finish.explain:
        _explain(config, split.validation[: config.finish.examples], model, folder / "examples", progress)
    _write_card(folder, training, rows, results, found_warnings)
    for warning in found_warnings:
        say(f"warning: {warning}")
    say(f"The model is in {model}: liverxai analyze CT --model {model} --output FOLDER")
    return Outcome(folder, tuple(rows), tuple(results), tuple(found_warnings))


def _evaluate(
    config: Config, dataset: DataSet, cases: Sequence[TrainingCase], folder: Path, progress: Progress | None
) -> list[CaseResult]:
    """Each case segmented as ``analyze`` does it, against its labels, on its own grid."""
    model = load_model(folder)
    results = []
    for number, case in enumerate(cases):
        report_progress(progress, f"Evaluating case {number + 1} of {len(cases)}", number / len(cases))
        volume, truth = read_case(case, dataset.values)
        segmentation = segment(volume, model, device=_device(config))
        labels = {"liver": 1, **({"tumor": 2} if case.tumor_known else {})}
        if not case.tumor_known:
            truth = (truth > 0).astype(truth.dtype)
        predicted = {spec.name: spec.value for spec in segmentation.specs if spec.name in ("liver", "tumor")}
        results.append(
            evaluate(
                segmentation.labels,
                volume.with_array(truth),
                labels,
                predicted_labels=predicted,
                probabilities=segmentation.probabilities,
                surface=config.finish.surface,
                name=case.name,
            )
        )
    return results


def _explain(
    config: Config, cases: Sequence[TrainingCase], model: Path, folder: Path, progress: Progress | None
) -> None:
    from ..options import Options

    loaded = load_model(model)
    targets = tuple(label.name for label in loaded.spec.labels if label.name in ("liver", "tumor"))
    options = Options(explain=targets, method=str(config.finish.explain), scene=False)
    for case in cases:
        analysis = options.analyze(options.read(case.image), loaded, RunContext(progress, device=_device(config)))
        options.save(analysis, folder / case.name)


def _quality(results: Sequence[CaseResult], best: Mapping[str, float]) -> dict[str, Any]:
    """What the card says was measured."""
    summary = {
        f"{row['structure']} {row['metric']}": round(row["value"], 4)
        for row in summarize(results)
        if row["value"] is not None and row["metric"] in _CARD_METRICS
    }
    return {
        "measured": f"on the {len(results)} validation cases of this run, which were not trained on, but chose the "
        f"epoch ({int(best['epoch'])})",
        **summary,
    }


_CARD_METRICS = ("dice", "hd95_mm", "assd_mm", "nsd", "ece", "sensitivity", "precision", "false lesions per case")


def _write_card(
    folder: Path,
    training: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    results: Sequence[CaseResult],
    found_warnings: Sequence[str],
) -> None:
    """``card.md``: the model for people."""
    facts = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in training.items() if key != "recipe")
    measured = f"```\n{format_results(results)}\n```" if results else "Not measured (finish.evaluate is off)."
    cautions = "".join(f"\n**Warning.** {warning}\n" for warning in found_warnings)
    nothing = _best(rows).get("validation_accuracy_of_nothing", math.nan)
    text = f"""# Model card: {folder.resolve().name}

For research use only. Not for diagnosis or treatment.
{cautions}
## Training
{facts}

{markdown(rows)}
Accuracy is the share of voxels with the right label. An answer of "nothing anywhere" would reach {nothing:.4f} on the
validation cases: judge by Dice.

![Learning curve](learning-curve.png)

## Validation cases
They were not trained on, but chose the epoch.

{measured}

The settings are in `config.yaml`, the cases in `splits.json`.
"""
    with replacing(folder / "card.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _warnings(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """What a user should know of how the training went."""
    if rows[0]["epoch"] != 0:
        return []
    first, best = score(rows[0]), score(_best(rows))
    if best < first:
        return [
            f"Validation got worse: the best epoch has a mean Dice of {best:.3f}, the initial model {first:.3f}. Keep "
            "the initial model, or try more cases, a smaller learning rate, or fewer epochs."
        ]
    return []


def _best(rows: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The epoch with the best validation; the first of equals."""
    return max((row for row in rows if row["epoch"] > 0), key=score)


def _claim(folder: Path, config: Config) -> None:
    """Record the configuration, or see that it is the one that this folder was begun with."""
    import yaml

    path = folder / "config.yaml"
    if path.is_file():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = config.recipe()
        if changed := [key for key in recipe if (before or {}).get(key) != recipe[key]]:
            raise UsageError(
                f"{folder} holds a run with other settings ({', '.join(changed)} differ): choose another --output, or "
                "delete it."
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


def _device(config: Config) -> str:
    return {"auto": "auto", "cpu": "cpu", "mps": "mps"}.get(config.hardware.accelerator, "cuda")


def _first(outcomes: Sequence[Outcome | None]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome is not None]


def _nothing(_: str) -> None:
    pass


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advertisements and its advice on what was decided here on purpose."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            "does not have many workers",
            "in eval mode at the start of training",
            "dataloader is not resumable",  # it is: EpochBatches goes on where the run was
            "xperiment logs directory",
            "smaller than the logging interval",
            "sync_dist=True",  # what is logged is already the sum over all devices
            "is deprecated",
        ):
            warnings.filterwarnings("ignore", message=f".*{message}", module=r"lightning\.")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
