# SPDX-License-Identifier: Apache-2.0
"""The Lightning module: loss, metrics and optimizer of one stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler

from ..context import RunContext
from ..inference.stages import logit_margin, padded, predict_logits, stage_plan
from ..models.spec import StageSpec
from ..volumes.volume import Grid
from .config import Training
from .metrics import EpochSums, as_voxels
from .samples import EpochBatches, Samples, ValidationCases
from .table import score

#: Added to numerator and denominator of Dice, in voxels: keeps the loss smooth where there is nothing to find.
_SMOOTH = 20.0
#: Fraction of the steps in which the learning rate of the schedule "cosine" rises from 0.
_WARMUP = 0.03


#: A loss, computed from the margins (N, labels, …) and the batch they belong to.
Criterion = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]


class Learner(pl.LightningModule):
    """Trains one network on the margins (:func:`~LiverXAILib.inference.stages.logit_margin`) of a stage's labels.

    A margin is positive where inference assigns the label, whatever the channels mean. Networks with nested regions and
    networks with mutually exclusive classes are therefore trained alike.

    :param labels: "liver", optionally also "tumor": what the network learns. The liver includes its tumors.
    :param samples: the training samples: `image` normalized (1, …), `truth` uint8 (1, …), 0 background, 1 liver,
        2 tumor; and which of that is known: `tumor_known`, a bool, or voxelwise `known`, bool (labels, …).
    :param units: see :class:`~.samples.EpochBatches`.
    :param criterion: a loss to use instead of :meth:`loss`.
    """

    def __init__(
        self,
        network: nn.Module,
        stage: StageSpec,
        labels: Sequence[str],
        settings: Training,
        samples: Samples,
        units: Sequence[tuple[int, int]],
        validation: ValidationCases,
        validation_count: int,
        *,
        seed: int,
        workers: int = 0,
        freeze_norm: bool = False,
        criterion: Criterion | None = None,
    ) -> None:
        super().__init__()
        self.network, self.stage, self.labels, self.settings = network, stage, tuple(labels), settings
        self.samples, self.units = samples, units
        self.validation, self.validation_count = validation, validation_count
        self.seed, self.workers, self.freeze_norm, self.criterion = seed, workers, freeze_norm, criterion
        self.batch_dice = stage.dimensions == 2 if settings.batch_dice is None else settings.batch_dice
        self.dice_loss = DiceLoss(batch=self.batch_dice, reduction="none", smooth_nr=_SMOOTH, smooth_dr=_SMOOTH)
        #: Measures of each epoch so far, beginning with those of the initial model, if there is one.
        self.rows: list[dict[str, float]] = []
        self._training, self._validating = EpochSums(labels), EpochSums(labels)
        self.validated: dict[str, float] = {}

    # -- data ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Any:
        batches = EpochBatches(
            self.units,
            self.settings.batch_size,
            self.seed,
            self.position,
            per_case=self.settings.slices_per_case if self.stage.dimensions == 2 else None,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return DataLoader(
            self.samples,
            batch_sampler=batches,
            num_workers=self.workers,
            worker_init_fn=single_threaded if self.workers else None,
        )

    def val_dataloader(self) -> Any:
        keys = _Share(self.validation_count, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(self.validation, batch_size=None, sampler=keys)

    def position(self) -> tuple[int, int]:
        """The current epoch and the next batch in it; in a resumed run, not necessarily the first."""
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready
        count = self.trainer.num_training_batches
        return loop.epoch_progress.current.processed, done if done < count else 0

    # -- training --------------------------------------------------------------------------------------------------

    def margins(self, logits: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """(N, labels, …) from the network's output (N, channels, …)."""
        if isinstance(logits, list):
            logits = logits[0]  # deep supervision: the output of full size is the first
        channels_first = logits.float().transpose(0, 1)
        return torch.stack([logit_margin(channels_first, self.stage, label) for label in self.labels], dim=1)

    def truths(self, truth: torch.Tensor) -> torch.Tensor:
        """Bool (N, labels, …) from labels (N, …)."""
        return torch.stack([truth > 0 if label == "liver" else truth == 2 for label in self.labels], dim=1)

    def known(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Which labels of each sample are known: bool (N, labels), or voxelwise (N, labels, …)."""
        if "known" in batch:
            return batch["known"]
        tumor_known = batch["tumor_known"]
        yes = torch.ones_like(tumor_known)
        return torch.stack([yes if label == "liver" else tumor_known for label in self.labels], dim=1)

    def loss(self, margins: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Soft Dice and binary cross-entropy of each known label, and of tumor against the rest of the liver.

        Dice is computed for each sample, or over all samples of the batch together (nnU-Net's "batch Dice"): many
        slices contain neither liver nor tumor, so their Dice is undefined.

        :param margins: (N, labels, …).
        :param truth: (N, …), 0 background, 1 liver, 2 tumor.
        :param known: bool (N, labels) or (N, labels, …).
        """
        settings, target = self.settings, self.truths(truth).float()
        bce = functional.binary_cross_entropy_with_logits(margins, target, reduction="none")
        known = as_voxels(known, margins)
        weight = known.float()
        dice = self.dice_loss(margins.sigmoid() * weight, target * weight)
        dice = dice.flatten() if self.batch_dice else (dice.flatten(1) * weight.flatten(1)).mean(0)
        cross_entropy = (bce * weight).transpose(0, 1).flatten(1).mean(1)
        total = (settings.dice_weight * dice + settings.bce_weight * cross_entropy).mean()
        if "tumor" in self.labels and settings.tumor_balance:
            place = self.labels.index("tumor")
            own = bce[:, place]
            for n in range(len(own)):
                tumor = truth[n] == 2
                if known[n, place].any() and (tumor := tumor & known[n, place]).any():
                    rest = own[n][(truth[n] == 1) & known[n, place]]
                    halves = own[n][tumor].mean() + (rest.mean() if len(rest) else 0.0)
                    total = total + settings.tumor_balance * 0.5 * halves / len(own)
        return total

    def training_step(self, batch: Mapping[str, torch.Tensor], _: int) -> torch.Tensor:
        margins = self.margins(self.network(batch["image"]))
        truth, known = batch["truth"][:, 0], self.known(batch)
        loss = self.loss(margins, truth, known) if self.criterion is None else self.criterion(margins, batch)
        self._training.add(margins, self.truths(truth), known)
        return loss

    def train(self, mode: bool = True) -> Learner:
        """Set training mode as for any module, but keep frozen batch norms in evaluation mode."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def on_train_epoch_end(self) -> None:
        row = {"epoch": self.current_epoch + 1.0, **self._training.measures("training", self._gathered(self._training))}
        row |= self.validated
        self.rows.append(row)
        self._training = EpochSums(self.labels)
        self.log_dict({name: value for name, value in row.items() if name != "epoch" and not math.isnan(value)})

    # -- validation ------------------------------------------------------------------------------------------------

    def validation_step(self, case: Mapping[str, torch.Tensor], _: int) -> None:
        image, truth = case["image"], case["truth"]
        k, j, i = image.shape
        plan = stage_plan(self.stage, Grid((k, j, i), np.eye(4)))
        image = padded(image.cpu(), self.stage, plan, float(case["center_hu"]))
        logits = predict_logits([self.network], image, self.stage, plan, RunContext(device=self.device))
        margins = self.margins(logits[None])
        if case["counts"]:
            known = self.known({name: case[name][None].cpu() for name in ("known", "tumor_known") if name in case})
            self._validating.add(margins, self.truths(truth[None].cpu()), known)

    def on_validation_epoch_start(self) -> None:
        self._validating = EpochSums(self.labels)

    def on_validation_epoch_end(self) -> None:
        self.validated = self._validating.measures("validation", self._gathered(self._validating))
        self.log("validation_score", score(self.validated), rank_zero_only=False)

    def _gathered(self, sums: EpochSums) -> torch.Tensor:
        """The sums over all devices. (MPS does not support float64.)"""
        if self.trainer.world_size == 1:
            return sums.values
        everywhere = self.all_gather(sums.values.float().to(self.device))
        return everywhere.reshape(-1, len(sums.values)).double().sum(0).cpu()

    # -- optimizer and state ---------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        settings, weights = self.settings, [p for p in self.network.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                weights, settings.learning_rate, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
            )
        else:
            kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
            optimizer = kind(weights, settings.learning_rate, weight_decay=settings.weight_decay)
        if settings.schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches

        warmup = max(1, round(_WARMUP * steps))

        def cosine(step: int) -> float:
            return min(1.0, (step + 1) / warmup) * (
                0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["liverxai"] = {
            "rows": self.rows,
            "training": self._gathered(self._training).tolist(),
            "validated": self.validated,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["liverxai"]
        self.rows, self.validated = list(state["rows"]), dict(state["validated"])
        if self.trainer.is_global_zero:  # the sum over all devices, once
            self._training.values = torch.tensor(state["training"], dtype=torch.float64)


class _Share(Sampler[tuple[int, bool]]):
    """The validation cases of one device: each device has the same number, and no case counts twice."""

    def __init__(self, count: int, rank: int, world: int) -> None:
        self._count, self._rank, self._world = count, rank, world

    def __len__(self) -> int:
        return math.ceil(self._count / self._world)

    def __iter__(self) -> Any:
        for n in range(self._rank, len(self) * self._world, self._world):
            yield n % self._count, n < self._count


def single_threaded(_: int) -> None:
    """Let a process that prepares samples compute on one thread; torch calls this with the number of the process."""
    torch.set_num_threads(1)
