# SPDX-License-Identifier: Apache-2.0
"""Lightning callbacks: checkpoints to resume from, progress, and averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch.optim.swa_utils import AveragedModel

from ..context import RunContext
from .table import score


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt``, to resume from even in mid-epoch, and ``best.ckpt``.

    ``best.ckpt`` has the weights with the best validation score: the averaged weights if there are any. A checkpoint is
    taken after an optimizer step, never between the batches accumulated for one step, nor between an epoch's last step
    and its validation.

    :param report: called at the end of each epoch with the rows of all epochs so far.
    """

    def __init__(self, folder: Path, every: int, report: Callable[[list[dict[str, float]]], None]) -> None:
        self.last, self.best, self.every = folder / "last.ckpt", folder / "best.ckpt", every
        self.report = report

    def on_train_batch_end(self, trainer: Any, learner: Any, _outputs: Any, _batch: Any, index: int) -> None:
        done = index + 1
        stepped = done % trainer.accumulate_grad_batches == 0 and done < trainer.num_training_batches
        if stepped and trainer.global_step % self.every == 0:
            self._save(trainer, self.last)

    def on_train_epoch_end(self, trainer: Any, learner: Any) -> None:
        scores = [score(row) for row in learner.rows if row["epoch"] > 0]
        if scores.index(max(scores)) == len(scores) - 1:
            averages = [one for one in trainer.callbacks if isinstance(one, AveragedWeights)]
            for average in averages:
                average.swap(learner)
            self._save(trainer, self.best, weights_only=True)
            for average in averages:
                average.swap(learner)
        if trainer.is_global_zero:
            self.report(learner.rows)
        self._save(trainer, self.last)

    @staticmethod
    def _save(trainer: Any, path: Path, *, weights_only: bool = False) -> None:
        temporary = path.with_suffix(".part")
        trainer.save_checkpoint(temporary, weights_only)
        if trainer.is_global_zero:
            temporary.replace(path)
        trainer.strategy.barrier("checkpoint")


class ReportedProgress(Callback):
    """Reports the progress of a run, in place of Lightning's own bars."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def on_train_batch_end(self, trainer: Any, learner: Any, _outputs: Any, _batch: Any, index: int) -> None:
        done = trainer.current_epoch + (index + 1) / trainer.num_training_batches
        self.context.report(
            f"Training: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", done / trainer.max_epochs
        )

    def on_train_end(self, trainer: Any, learner: Any) -> None:
        self.context.report("Trained", 1.0)


class AveragedWeights(Callback):
    """Keeps an exponential moving average of the network's weights, including the statistics of its norms.

    Validation and, after training, :attr:`weights` use the average. Its time constant is short at first, so that it
    does not hold on to the initial weights: a tenth of the steps so far, until that of `decay` is reached.

    :param decay: the fraction of the average that is kept at each step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: AveragedModel | None = None
        self._loaded: dict[str, Any] | None = None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The averaged state of the network."""
        assert self._average is not None, "the run has not begun"
        return {name: value.clone() for name, value in self._average.module.state_dict().items()}

    def setup(self, trainer: Any, learner: Any, stage: str) -> None:
        if stage == "fit":
            self._average = AveragedModel(learner.network, avg_fn=self._mean, use_buffers=True)

    def on_fit_start(self, trainer: Any, learner: Any) -> None:
        assert self._average is not None
        self._average.to(learner.device)
        if self._loaded is not None:
            self._average.load_state_dict(self._loaded)
            self._loaded = None

    def _mean(self, average: torch.Tensor, now: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
        if not average.is_floating_point():
            return now
        return torch.lerp(average, now, 1 - min(self.decay, (1 + int(count)) / (10 + int(count))))

    def on_train_batch_end(self, trainer: Any, learner: Any, _outputs: Any, _batch: Any, index: int) -> None:
        if (index + 1) % trainer.accumulate_grad_batches == 0 or index + 1 == trainer.num_training_batches:
            assert self._average is not None
            self._average.update_parameters(learner.network)

    def on_validation_epoch_start(self, trainer: Any, learner: Any) -> None:
        self.swap(learner)

    def on_validation_epoch_end(self, trainer: Any, learner: Any) -> None:
        self.swap(learner)

    def swap(self, learner: Any) -> None:
        """Swap the network's weights with the average."""
        if self._average is not None:
            now = {name: value.clone() for name, value in learner.network.state_dict().items()}
            learner.network.load_state_dict(self._average.module.state_dict())
            self._average.module.load_state_dict(now)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._average is None else dict(self._average.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict
