# SPDX-License-Identifier: Apache-2.0
"""A seeded training loop that can be killed at any time and resumed to the same weights."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from LiverXAILib.inference.stages import normalize
from LiverXAILib.models.spec import Intensity
from LiverXAILib.progress import CancelToken, Progress, check_cancel, report_progress

from .synthesis import Generator, Sample

_log = logging.getLogger(__name__)

#: Added to intersections and sums, in voxels: keeps Dice defined, and gentle, where nothing is to be found.
_DICE_SMOOTH = 50.0


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run, besides the data.

    :param batch: samples in each iteration, of one size. One at a time, torch computes convolutions of small maps with
        a slow kernel of its own instead of oneDNN's (torch 2.13 on CPU).
    :param curriculum: fraction of the run over which lesions go from large and clear to what they are.
    :param freeze_norm: fraction of the run after which batch norm uses its running statistics. Batches are single
        volumes, whose own statistics inference cannot know: the rest of the run adapts the weights to the fixed ones.
    :param rebalance_after: fraction of the run after which tumor voxels weigh less against the rest of the liver: the
        equal halves that wake the tumor channel up make it call everything dark a tumor.
    :param ema: decay of the averaged weights, which are what is exported.
    """

    iterations: int = 3500
    seed: int = 0
    batch: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup: int = 100
    curriculum: float = 0.4
    freeze_norm: float = 0.35
    rebalance_after: float = 0.75
    ema: float = 0.995
    log_every: int = 25
    validate_every: int = 250
    checkpoint_every: int = 100


class Batches(Dataset[list[Sample]]):
    """Batch number n of a run is the same in every run with those settings, on any number of workers."""

    def __init__(self, generator: Generator, settings: Settings) -> None:
        self.generator, self.settings = generator, settings

    def __len__(self) -> int:
        return self.settings.iterations

    def __getitem__(self, index: int) -> list[Sample]:
        settings = self.settings
        curriculum = max(0.0, 1 - index / max(1.0, settings.curriculum * settings.iterations))
        first = settings.seed * 10_000_019 + index * settings.batch
        size = self.generator.size_of(first)
        return [self.generator.sample(first + n, size, curriculum) for n in range(settings.batch)]


def loss_of(logits: torch.Tensor, sample: Sample, tumor_share: float = 0.5) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of one sample's nested channels ("liver" includes "tumor") and its parts.

    For each channel binary cross-entropy and soft Dice; and, inside the liver, cross-entropy of tumor against the
    rest, each half averaged first. Without the last, tumors are not found for a thousand iterations. In it a lesion
    weighs as the root of its size: else only the largest would count (the concern of "blob loss", Kofler et al., IPMI
    2023, which weighs all alike).

    :param logits: (2, D, H, W).
    :param tumor_share: weight of the tumor half; the rest of the liver has 1 - `tumor_share`.
    """
    known = sample.known.float()
    truth = torch.stack([sample.liver & sample.known, sample.tumor & sample.known]).float()
    # Products with masks and not selections by them, which copy a million voxels each.
    ce = functional.binary_cross_entropy_with_logits(logits, truth, weight=known, reduction="none")
    probability = logits.sigmoid() * known
    liver_ce, tumor_ce = ce.flatten(1).sum(dim=1) / known.sum()
    parts = {"liver_ce": liver_ce, "liver_dice": _dice_loss(probability[0], truth[0]), "tumor_ce": tumor_ce}
    if sample.liver.any():
        parts["tumor_dice"] = _dice_loss(probability[1], truth[1])
    liver_size, tumor_size = truth.flatten(1).sum(dim=1)
    if tumor_size > 0:
        lesions = sample.lesions.int() * sample.known
        weights = torch.bincount(lesions.flatten()).clamp_min(1).float().rsqrt()[lesions] * truth[1]
        in_lesions = (ce[1] * weights).sum() / weights.sum()
        healthy = truth[0] - truth[1]
        rest = (ce[1] * healthy).sum() / (liver_size - tumor_size).clamp_min(1)
        parts["tumor_balanced"] = tumor_share * in_lesions + (1 - tumor_share) * rest
    total = torch.stack(list(parts.values())).sum()
    return total, {name: float(value.detach()) for name, value in parts.items()}


def _dice_loss(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    both = (probability * truth).sum()
    return 1 - (2 * both + _DICE_SMOOTH) / (probability.sum() + truth.sum() + _DICE_SMOOTH)


def train(
    network: nn.Module,
    generator: Generator,
    folder: Path,
    settings: Settings,
    *,
    intensity: Intensity,
    validation: Sequence[Sample] = (),
    workers: int = 0,
    bfloat16: bool | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, torch.Tensor]:
    """Train `network`; resumes from ``checkpoint.pt`` in `folder` if there is one.

    Writes ``log.csv`` (training, means since the last row) and ``validation.csv``.

    :param intensity: HU to network input; if it is centered, on the sample's `liver_hu`.
    :param workers: processes that prepare samples while the network trains.
    :param bfloat16: train under bfloat16 autocast; None: where this processor computes it natively.
    :return: the averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    if bfloat16 is None:
        bfloat16 = native_bfloat16()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, eps=1e-6
    )
    _set_norm_momentum(network, 0.03)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    start, seconds = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, start, seconds = state["average"], state["iteration"], state["seconds"]
        _log.info("Resumed at iteration %d", start)
    _truncate_log(folder / "log.csv", start)
    _truncate_log(folder / "validation.csv", start)

    loader = DataLoader(
        torch.utils.data.Subset(Batches(generator, settings), range(start, settings.iterations)),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_single_threaded if workers else None,
    )
    recent: list[dict[str, float]] = []
    began = time.perf_counter() - seconds
    for iteration, batch in enumerate(loader, start=start):
        check_cancel(cancel)
        network.train()
        if iteration >= settings.freeze_norm * settings.iterations:
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        rate = learning_rate(iteration, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = torch.stack([normalize(sample.image, intensity, sample.liver_hu)[None] for sample in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last_3d)).float()
        share = 0.2 if iteration >= settings.rebalance_after * settings.iterations else 0.5
        losses = [loss_of(own, sample, share) for own, sample in zip(logits, batch, strict=True)]
        loss = torch.stack([total for total, _ in losses]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        if torch.isfinite(norm):
            optimizer.step()
        else:
            # Batch statistics of an almost constant image can blow a gradient up: leave that sample out.
            _log.warning("Iteration %d has no finite gradient and is left out", iteration + 1)
        _update_average(average, network.state_dict(), min(settings.ema, (1 + iteration) / (10 + iteration)))
        recent += [{"loss": float(total.detach()), **parts} for total, parts in losses]

        done = iteration + 1
        last = done == settings.iterations
        if done % settings.log_every == 0 or last:
            row = {"iteration": done, "seconds": round(time.perf_counter() - began, 1), "learning_rate": rate}
            _append(folder / "log.csv", row | _means(recent))
            recent = []
        if validation and (done % settings.validate_every == 0 or last):
            found = validate(network, average, validation, intensity, bfloat16)
            _append(folder / "validation.csv", {"iteration": done} | found)
        if done % settings.checkpoint_every == 0 or last:
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "iteration": done,
                "seconds": time.perf_counter() - began,
            }
            temporary = checkpoint.with_suffix(".part")
            torch.save(state, temporary)
            temporary.replace(checkpoint)
        report_progress(progress, f"Training: loss {float(loss.detach()):.3f}", done / settings.iterations)
    return average


def learning_rate(iteration: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if iteration < settings.warmup:
        return settings.learning_rate * (iteration + 1) / settings.warmup
    share = (iteration - settings.warmup) / max(1, settings.iterations - settings.warmup)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def validate(
    network: nn.Module,
    weights: dict[str, torch.Tensor],
    samples: Sequence[Sample],
    intensity: Intensity,
    bfloat16: bool,
) -> dict[str, float]:
    """Dice over all of `samples` together, and false voxels (in thousands) where there is no liver or no tumor."""
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(weights)
    network.eval()
    sums = torch.zeros(2, 3, dtype=torch.float64)
    false = torch.zeros(2, dtype=torch.float64)
    with torch.inference_mode():
        for sample in samples:
            image = normalize(sample.image, intensity, sample.liver_hu)[None, None]
            image = image.contiguous(memory_format=torch.channels_last_3d)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                found = (network(image)[0].float() > 0) & sample.known
            for channel, truth in enumerate((sample.liver, sample.tumor)):
                truth = truth & sample.known
                sums[channel] += torch.stack([(found[channel] & truth).sum(), found[channel].sum(), truth.sum()])
                if not truth.any():
                    false[channel] += found[channel].sum()
    network.load_state_dict(kept)
    dice = 2 * sums[:, 0] / (sums[:, 1] + sums[:, 2]).clamp_min(1)
    return {
        "liver_dice": round(float(dice[0]), 4),
        "tumor_dice": round(float(dice[1]), 4),
        "tumor_sensitivity": round(float(sums[1, 0] / sums[1, 2].clamp_min(1)), 4),
        "false_liver_kvoxels": round(float(false[0]) / 1000, 3),
        "false_tumor_kvoxels": round(float(false[1]) / 1000, 3),
    }


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; elsewhere it is a hundred times slower than float32."""
    return any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _set_norm_momentum(network: nn.Module, momentum: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


def _update_average(average: dict[str, torch.Tensor], now: dict[str, torch.Tensor], decay: float) -> None:
    for name, value in now.items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means of each part over the rows that have it, always with the same columns."""
    result = {}
    for name in ("loss", "liver_ce", "liver_dice", "tumor_ce", "tumor_dice", "tumor_balanced"):
        values = [row[name] for row in rows if name in row]
        result[name] = round(sum(values) / len(values), 5) if values else math.nan
    return result


def _append(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def _truncate_log(path: Path, iteration: int) -> None:
    """Drop the rows after `iteration`: a resumed run writes them again."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if int(row["iteration"]) <= iteration]
    path.unlink()
    for row in kept:
        _append(path, row)  # type: ignore[arg-type]


def _single_threaded(_: int) -> None:
    torch.set_num_threads(1)
