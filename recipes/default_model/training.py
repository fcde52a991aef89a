# SPDX-License-Identifier: Apache-2.0
"""A run of the default model's recipe: the library's learner on generated samples, resumable exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from LiverXAILib.context import RunContext
from LiverXAILib.inference.backends import available_backends
from LiverXAILib.inference.stages import normalize
from LiverXAILib.models.spec import Intensity, StageSpec
from LiverXAILib.progress import progress_bar
from LiverXAILib.training.callbacks import AveragedWeights, Checkpoints, ReportedProgress
from LiverXAILib.training.config import Hardware, Training
from LiverXAILib.training.fit import make_trainer, quiet
from LiverXAILib.training.learner import Learner, single_threaded
from LiverXAILib.training.random_fields import Size
from LiverXAILib.training.table import write_csv, write_curves

from .callbacks import AfterPart, SkipNonFinite, freeze_norms, set_norm_momentum
from .loss import BalancedLoss
from .synthesis import Generator, Sample

LABELS = ("liver", "tumor")
#: Largest gradient norm of a step; longer gradients are clipped.
_CLIP = 2.0
#: Weight of a batch in the running statistics of batch norms: batches are one or two volumes.
_NORM_MOMENTUM = 0.03

#: Key of a sample: its seed, its size, and the remaining fraction of the curriculum.
Key = tuple[int, Size, float]


@dataclass(frozen=True)
class Settings:
    """All settings that determine a run, apart from the data.

    :param batch: samples per iteration, all of one size. With a single sample, torch computes convolutions of small
        feature maps with a slow kernel of its own instead of oneDNN's (torch 2.13 on CPU).
    :param curriculum: fraction of the run over which lesions change from large and conspicuous to their final range.
    :param freeze_norm: fraction of the run after which batch norm uses its running statistics. Batches are single
        volumes, whose statistics are not those of inference: the rest of the run adapts the weights to the fixed ones.
    :param rebalance_after: fraction of the run after which tumor voxels have less weight against the rest of the liver.
    :param ema: decay of the averaged weights, which are exported.
    :param validate_every: iterations between rows of the log.
    """

    iterations: int = 3500
    seed: int = 0
    batch: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    curriculum: float = 0.4
    freeze_norm: float = 0.35
    rebalance_after: float = 0.75
    ema: float = 0.995
    validate_every: int = 250
    checkpoint_every: int = 100

    @property
    def epochs(self) -> int:
        """Number of parts of the run, each of which ends with a validation."""
        return max(1, self.iterations // self.validate_every)


class Drawn(Dataset[dict[str, torch.Tensor]]):
    """Samples of a generator in the learner's format."""

    def __init__(self, generator: Generator, intensity: Intensity) -> None:
        self.generator, self.intensity = generator, intensity

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        return as_item(self.generator.sample(*key), self.intensity)


def as_item(sample: Sample, intensity: Intensity) -> dict[str, torch.Tensor]:
    """Convert a sample for the learner and :class:`~.loss.BalancedLoss`, without a batch dimension."""
    truth = sample.liver.to(torch.uint8)
    truth[sample.tumor] = 2
    return {
        "image": normalize(sample.image, intensity, sample.liver_hu)[None],
        "truth": truth[None],
        "lesions": sample.lesions.to(torch.uint8)[None],
        "known": torch.stack([sample.known, sample.tumor_known]),
    }


class Batches(Sampler[list[Key]]):
    """Batches of a run: number n is the same in every run with these settings, with any number of workers.

    :param position: epoch and number of the next batch in it: in a resumed run, the first one not yet trained on.
    """

    def __init__(self, generator: Generator, settings: Settings, position: Callable[[], tuple[int, int]]) -> None:
        self.generator, self.settings, self.position = generator, settings, position

    def __len__(self) -> int:
        return self.settings.iterations // self.settings.epochs

    def __iter__(self) -> Iterator[list[Key]]:
        settings = self.settings
        epoch, done = self.position()
        for index in range(epoch * len(self) + done, (epoch + 1) * len(self)):
            curriculum = max(0.0, 1 - index / max(1.0, settings.curriculum * settings.iterations))
            first = settings.seed * 10_000_019 + index * settings.batch
            size = self.generator.size_of(first)
            yield [(first + n, size, curriculum) for n in range(settings.batch)]


class Validation(Dataset[dict[str, torch.Tensor]]):
    """A fixed set of validation samples."""

    def __init__(self, samples: Sequence[Sample], intensity: Intensity) -> None:
        self.samples, self.intensity = samples, intensity

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        sample = self.samples[number]
        item = as_item(sample, self.intensity)
        return {
            "image": item["image"][0],
            "truth": item["truth"][0],
            "center_hu": torch.tensor(sample.liver_hu),
            "known": item["known"],
            "counts": torch.tensor(True),
        }


# Long: half of it is parameters and the settings that the library's learner takes.
def train(
    network: nn.Module,
    generator: Generator,
    folder: Path,
    settings: Settings,
    *,
    stage: StageSpec,
    validation: Sequence[Sample] = (),
    workers: int = 0,
    hardware: Hardware | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, torch.Tensor]:
    """Train `network`, from the last checkpoint in `folder` if there is one.

    Writes ``epochs.csv``, a row every :attr:`Settings.validate_every` iterations, and its curves.

    :param stage: how the network is used: its intensity, and its channels, liver and tumor.
    :param workers: processes that prepare samples while the network trains.
    :param hardware: default: :func:`best_hardware`.
    :return: the averaged weights, on the CPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    criterion = BalancedLoss()
    training = Training(
        epochs=settings.epochs,
        batch_size=settings.batch,
        optimizer="adamw",
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        schedule="cosine",
        checkpoint_every=settings.checkpoint_every,
    )
    learner = Learner(
        network,
        # The locator is trained on tumors, too, although its card does not list them.
        replace(stage, labels={label: (label,) for label in LABELS}),
        LABELS,
        training,
        cast(Any, Drawn(generator, stage.intensity)),
        (),
        cast(Any, Validation(validation, stage.intensity)),
        len(validation),
        seed=settings.seed,
        criterion=criterion,
    )
    set_norm_momentum(learner, _NORM_MOMENTUM)
    average = AveragedWeights(settings.ema)

    def report(rows: list[dict[str, float]]) -> None:
        write_csv([{**dict.fromkeys(rows[-1]), **row} for row in rows], folder / "epochs.csv")

    changes = [
        AfterPart(settings.freeze_norm, freeze_norms),
        AfterPart(settings.rebalance_after, lambda _: setattr(criterion, "tumor_share", 0.2)),
    ]
    keeper = Checkpoints(folder, settings.checkpoint_every, report)
    every = [average, *changes, SkipNonFinite(), *callbacks, keeper]
    loader = DataLoader(
        learner.samples,
        batch_sampler=Batches(generator, settings, learner.position),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=single_threaded,
    )
    with quiet(), progress_bar() as progress:
        every.append(ReportedProgress(RunContext(progress)))
        trainer = make_trainer(hardware or best_hardware(), settings.epochs, folder, every, clip=_CLIP)
        validation_loader = DataLoader(learner.validation, batch_size=None) if validation else None
        start = str(keeper.last) if keeper.last.is_file() else None
        trainer.fit(learner, loader, validation_loader, ckpt_path=start, weights_only=True)
    write_curves(learner.rows, folder)
    return {name: value.cpu().contiguous() for name, value in average.weights.items()}


def best_hardware() -> Hardware:
    """A GPU if there is one; bfloat16 where it is native: elsewhere it is a hundred times slower than float32."""
    gpu = torch.cuda.is_available()
    native = torch.cuda.is_bf16_supported() if gpu else "torch bfloat16" in available_backends(torch.device("cpu"))
    return Hardware(accelerator="cuda" if gpu else "cpu", precision="bf16-mixed" if native else "32-true")
