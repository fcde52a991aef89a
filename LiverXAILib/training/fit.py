# SPDX-License-Identifier: Apache-2.0
"""One training run with Lightning, resumable from its last checkpoint."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.util
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ..context import RunContext
from ..errors import Cancelled, UsageError
from ..progress import Progress
from .callbacks import Checkpoints, ReportedProgress
from .config import Config, Hardware
from .layouts import DataSet
from .learner import Learner
from .samples import Prepare, Samples, ValidationCases, prepared_cases, require_apart
from .setup import TrainingSetup
from .splits import Split
from .table import header, line, write_csv, write_curves

#: Drawing the curves takes a second: during training they are drawn no more often than this.
_DRAW_SECONDS = 60.0
#: Longest path of a folder in bytes; a socket adds up to 32, and Unix allows 103, Linux 107.
_LONGEST_FOLDER = 71
#: Where the sockets go otherwise, in a folder that no other user can access.
_SHORT_FOLDER = "/tmp"  # nosec B108


def fit(
    config: Config,
    dataset: DataSet,
    split: Split,
    setup: TrainingSetup,
    folder: Path,
    say: Callable[[str], None],
    progress: Progress | None = None,
    *,
    main: bool = True,
) -> list[dict[str, float]]:
    """Train, from the last checkpoint if there is one, and return the rows of all epochs.

    :param say: called with lines for the user.
    :param main: whether this is the first of several processes.
    :raises LiverXAILib.errors.UsageError: ``hardware`` cannot be used here.
    :raises LiverXAILib.errors.Cancelled: the process was asked to stop.
    """
    context = RunContext(progress if main else None)
    learner = _learner(config, dataset, split, setup, folder, context)
    drawn = time.monotonic()

    def report(rows: list[dict[str, float]]) -> None:
        nonlocal drawn
        say(line(rows[-1]))
        write_csv([{**dict.fromkeys(rows[-1]), **row} for row in rows], folder / "epochs.csv")
        if time.monotonic() - drawn > _DRAW_SECONDS:
            write_curves(rows, folder)
            drawn = time.monotonic()

    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    keeper = Checkpoints(checkpoints, config.training.checkpoint_every, report)
    callbacks: list[Any] = [keeper, ReportedProgress(context.part(0.04, 1.0))]
    if (patience := config.training.early_stop) is not None:
        callbacks.append(
            EarlyStopping("validation_score", mode="max", patience=patience, check_on_train_epoch_end=True)
        )
    training = config.training
    trainer = make_trainer(config.hardware, training.epochs, folder, callbacks, accumulate=training.accumulate)
    if keeper.last.is_file():
        say(f"Resuming from {keeper.last}")
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
        raise Cancelled("Stopped. Run the same command again to resume from the last checkpoint.") from None
    return learner.rows


def _learner(
    config: Config, dataset: DataSet, split: Split, setup: TrainingSetup, folder: Path, context: RunContext
) -> Learner:
    """The network with its training samples and validation cases."""
    settings, hardware, stage = config.training, config.hardware, setup.stage
    cache = folder / "cache" if config.data.cache == "disk" else None
    slices = stage.dimensions == 2
    patch = None if setup.patch is None or slices else setup.patch
    training = prepared_cases(
        split.training, Prepare(stage, dataset.values, patch), folder=cache, context=context.part(0.0, 0.02)
    )
    validation = prepared_cases(
        split.validation, Prepare(stage, dataset.values), folder=cache, context=context.part(0.02, 0.04)
    )
    require_apart(split, training, validation)
    if slices:
        units = [(n, k) for n in range(len(split.training)) for k in range(training[n]["image"].shape[1])]
    else:
        units = [(n, -1) for n in range(len(split.training)) for _ in range(settings.samples_per_case)]
    freeze = config.init is not None if settings.freeze_norm is None else settings.freeze_norm
    lesions = config.data.synthetic_lesions and "tumor" in setup.labels
    return Learner(
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


def make_trainer(
    hardware: Hardware,
    epochs: int,
    folder: Path,
    callbacks: list[Any],
    *,
    accumulate: int = 1,
    clip: float | None = None,
) -> pl.Trainer:
    """Lightning's loop on the configured hardware, with logs for TensorBoard and as CSV.

    :param clip: largest Euclidean norm of the gradient; longer ones are clipped.
    :raises LiverXAILib.errors.UsageError: the hardware is not available.
    """
    _make_folder_of_sockets()
    csv_logger = CSVLogger(folder, name="logs")
    try:
        return pl.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.nodes,
            strategy=hardware.strategy,
            precision=hardware.precision,
            max_epochs=epochs,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=clip,
            callbacks=callbacks,
            logger=[csv_logger, TensorBoardLogger(folder, name="logs", version=csv_logger.version)],
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=False,  # ReportedProgress replaces it
        )
    except (ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise UsageError(f"These settings of 'hardware' cannot be used here: {error}") from error


def _make_folder_of_sockets() -> None:
    """Create the folder for the sockets through which worker processes hand over their samples.

    The process that creates the folder removes it; the workers may have to be killed. With a path that is too long for
    a socket, the training would wait forever for its first sample.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) > _LONGEST_FOLDER and Path(_SHORT_FOLDER).is_dir():
        tempfile.tempdir = _SHORT_FOLDER
    try:
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = usual


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's advertisements and its advice about choices made here on purpose."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            "does not have many workers",
            "in eval mode at the start of training",
            "dataloader is not resumable",  # it is: EpochBatches continues where the run stopped
            "xperiment logs directory",
            "smaller than the logging interval",
            "sync_dist=True",  # what is logged is already the sum over all devices
            "is deprecated",
            "across ranks is zero",  # a run without validation
        ):
            warnings.filterwarnings("ignore", message=f".*{message}", module=r"lightning\.")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
