# SPDX-License-Identifier: Apache-2.0
"""Lightning callbacks of the recipe: changes in the course of a run, and steps that are skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch.nn.modules.batchnorm import _BatchNorm

from LiverXAILib.training.learner import Learner

_log = logging.getLogger(__name__)


class AfterPart(Callback):
    """Changes the learner once a fraction of the run is over, also if the run is resumed after that point.

    :param part: fraction of all steps; 0: from the first step on.
    :param change: called with the learner, once in each process.
    """

    def __init__(self, part: float, change: Callable[[Learner], None]) -> None:
        self.part, self.change = part, change
        self._done = False

    def on_train_batch_start(self, trainer: Any, learner: Any, batch: Any, index: int) -> None:
        if not self._done and trainer.global_step >= self.part * trainer.estimated_stepping_batches:
            self.change(learner)
            self._done = True


def freeze_norms(learner: Learner) -> None:
    """Make batch norms use their running statistics from now on, as in inference, instead of those of the batch."""
    learner.freeze_norm = True
    learner.train()


def set_norm_momentum(learner: Learner, momentum: float) -> None:
    """Set the weight of each batch in the running statistics of batch norms."""
    for module in learner.network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum


class SkipNonFinite(Callback):
    """Skips steps whose gradient is not finite: batch norm can make it explode on an almost constant image."""

    def on_before_optimizer_step(self, trainer: Any, learner: Any, optimizer: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            _log.warning("Step %d is skipped: its gradient is not finite", trainer.global_step + 1)
            # The optimizer skips parameters without a gradient, including their weight decay.
            optimizer.zero_grad(set_to_none=True)
