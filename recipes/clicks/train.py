# SPDX-License-Identifier: Apache-2.0
"""Train the network that outlines a lesion from clicks, in minutes on one thread.

Cubes are made once and kept in the output folder. Each is used with different clicks, transposed and mirrored, with
more noise, and with more or less contrast. In half of the samples a second click corrects the network's own result
after the first click, at the center of its largest error.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import nn
from torch.nn import functional

from LiverXAILib.context import RunContext
from LiverXAILib.models.downloads import checksum
from LiverXAILib.networks import UNet
from LiverXAILib.reading.click_network import CARD, CHANNELS, SCALES_MM, SIZE, WEIGHTS, network_input

from .samples import FIRST_SEED, HELD_OUT_SCANS, SCANS, STORED, Cube, cut, make_cube, phantom_scans, real_scans

_log = logging.getLogger(__name__)

ARGUMENTS: dict[str, Any] = {
    "dimensions": 3,
    "in_channels": CHANNELS,
    "out_channels": 1,
    "features": [24, 48, 64],
    "norm": "batch",
    "stem_stride": 2,
}
#: Largest distance of the first click from the center of a stored cube, in voxels.
_SHIFT = (STORED - SIZE) // 2
_BATCH = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.clicks", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/")
    parser.add_argument("--output", type=Path, required=True, help="for the cubes, the weights and their card")
    parser.add_argument("--cubes", type=int, default=1300)
    parser.add_argument("--phantoms", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--start", type=Path, help="weights to continue from, with a decreasing learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    RunContext(threads=1).limit_threads()
    options.output.mkdir(parents=True, exist_ok=True)
    trained = _cubes(
        options.output / "cubes.npz",
        options.data,
        SCANS,
        range(FIRST_SEED, FIRST_SEED + options.phantoms),
        options.cubes,
    )
    judged = _cubes(
        options.output / "held-out.npz", options.data, HELD_OUT_SCANS, range(FIRST_SEED + 1000, FIRST_SEED + 1002), 120
    )
    network = train(trained, judged, options.iterations, options.seed, options.output, options.start)
    save(network, options.output, {"iterations": options.iterations, "cubes": len(trained), "seed": options.seed})


def _cubes(path: Path, data: Path, names: Sequence[str], seeds: range, count: int) -> list[Cube]:
    """Make cubes from scans and phantoms in turn, or load those made before."""
    if not path.is_file():
        scans = [*real_scans(data, names), *phantom_scans(seeds)]
        _log.info("%d scans: %s", len(scans), ", ".join(scan.name for scan in scans))
        made: list[Cube] = []
        seed = 0
        while len(made) < count:
            cube = make_cube(scans[seed % len(scans)], hash_of(seed, path.stem))
            seed += 1
            if cube is not None and cube.lesion[_SHIFT:-_SHIFT, _SHIFT:-_SHIFT, _SHIFT:-_SHIFT].any():
                made.append(cube)
                if len(made) % 200 == 0:
                    _log.info("%d cubes", len(made))
        bits = np.stack([cube.liver + 2 * cube.lesion.astype(np.uint8) for cube in made]).astype(np.uint8)
        scales = np.array([cube.scale_mm for cube in made])
        np.savez(path, hu=np.stack([cube.hu for cube in made]), bits=bits, scales=scales)
    found = np.load(path)
    hu, bits, scales = found["hu"], found["bits"], found["scales"]
    return [Cube(hu[n], (bits[n] & 1).astype(bool), (bits[n] & 2) > 0, float(scales[n])) for n in range(len(hu))]


def hash_of(seed: int, name: str) -> int:
    """The seed of a cube, which differs between training and evaluation."""
    return int(np.random.SeedSequence([seed, len(name)]).generate_state(1)[0])


@dataclass
class _Sample:
    hu: torch.Tensor
    liver: torch.Tensor
    lesion: torch.Tensor
    inside: list[tuple[int, int, int]]
    outside: list[tuple[int, int, int]]
    before: torch.Tensor

    def input(self) -> torch.Tensor:
        return network_input(self.hu, self.liver, self.inside, self.outside, self.before)


def _drawn(cube: Cube, rng: np.random.Generator, *, change: bool = True) -> _Sample:
    """Draw a first click in a cube's lesion, and augment the cube."""
    inner = np.argwhere(cube.lesion)
    inner = inner[(np.abs(inner - STORED // 2) <= _SHIFT - 1).all(axis=1)]
    if len(inner) and rng.random() < 0.5:  # half of the clicks are at the center
        click = inner[((inner - np.argwhere(cube.lesion).mean(axis=0)) ** 2).sum(axis=1).argmin()]
    else:
        click = inner[rng.integers(len(inner))] if len(inner) else np.full(3, STORED // 2)
    part = cut(cube, click - STORED // 2)
    arrays = [part.hu.astype(np.float32), part.liver, part.lesion]
    if change:
        if rng.random() < 0.5:
            arrays = [array.transpose(0, 2, 1) for array in arrays]
        # With an even number of voxels, mirroring moves the center voxel by one.
        for axis in range(3):
            if rng.random() < 0.5:
                arrays = [np.roll(np.flip(array, axis), 1, axis) for array in arrays]
    hu, liver, lesion = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    if change:
        hu = hu * float(rng.uniform(0.8, 1.25)) + float(rng.normal(0, 4))
        if rng.random() < 0.4:
            noise = torch.from_numpy(rng.normal(0, rng.uniform(3, 18), hu.shape).astype(np.float32))
            hu = hu + functional.avg_pool3d(noise[None, None], 3, 1, 1)[0, 0] * 3
    middle = SIZE // 2
    return _Sample(hu, liver, lesion, [(middle, middle, middle)], [], torch.zeros(hu.shape))


def correct(sample: _Sample, probability: torch.Tensor) -> None:
    """Add the click by which a reader would correct the result: at the center of its largest error."""
    found, truth = (probability > 0.5).numpy(), sample.lesion.numpy()
    best: tuple[float, np.ndarray, bool] | None = None
    for mistake, inside in ((truth & ~found, True), (found & ~truth, False)):
        depth = ndimage.distance_transform_edt(np.pad(mistake, 1))[1:-1, 1:-1, 1:-1]
        at = np.array(np.unravel_index(int(depth.argmax()), depth.shape))
        if depth.max() >= 1 and (best is None or depth.max() > best[0]):
            best = float(depth.max()), at, inside
    sample.before = probability
    if best is not None:
        k, j, i = (int(n) for n in best[1])
        (sample.inside if best[2] else sample.outside).append((k, j, i))


def train(
    trained: Sequence[Cube],
    judged: Sequence[Cube],
    iterations: int,
    seed: int,
    folder: Path,
    start: Path | None = None,
) -> nn.Module:
    """Train the network; `judged` is used for evaluation only."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = UNet(**ARGUMENTS)
    if start is not None:
        network.load_state_dict({name: value.float() for name, value in load_file(start).items()})
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    started = time.time()
    for step in range(iterations):
        rate = (
            (3e-3 if start is None else 1.5e-3)
            * min(1.0, (step + 1) / 50)
            * 0.5
            * (1 + math.cos(math.pi * step / iterations))
        )
        for group in optimizer.param_groups:
            group["lr"] = max(rate, 1e-5)
        samples = [_drawn(trained[int(rng.integers(len(trained)))], rng) for _ in range(_BATCH)]
        if step > 100 or start is not None:
            corrected = samples[: _BATCH // 2]
            network.eval()
            with torch.inference_mode():
                answers = network(torch.stack([sample.input() for sample in corrected])).sigmoid()
            for sample, answer in zip(corrected, answers, strict=True):
                correct(sample, answer[0].clone())
        network.train()
        logits = network(torch.stack([sample.input() for sample in samples]))[:, 0]
        loss = _loss(logits, torch.stack([sample.lesion for sample in samples]).float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        keep = min(0.99, step / (step + 10))
        for name, value in network.state_dict().items():
            average[name] = (
                value.clone() if not value.is_floating_point() else keep * average[name] + (1 - keep) * value
            )
        if step % 25 == 0:
            _log.info("%d loss %.3f (%.0f s)", step, float(loss.detach()), time.time() - started)
        if step % 200 == 199 or step == iterations - 1:
            current = {name: value.clone() for name, value in network.state_dict().items()}
            network.load_state_dict(average)
            _log.info("%d %s", step, judge(network, judged))
            save(network, folder, {"iterations": step + 1, "cubes": len(trained), "seed": seed})
            if step != iterations - 1:
                network.load_state_dict(current)
    return network.eval()


def _loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice of each sample, in which small lesions count as much as large ones."""
    entropy = functional.binary_cross_entropy_with_logits(logits, truth)
    probability = logits.sigmoid()
    both = (probability * truth).flatten(1).sum(dim=1)
    sizes = (probability + truth).flatten(1).sum(dim=1)
    return entropy + (1 - (2 * both + 5) / (sizes + 5)).mean()


def judge(network: nn.Module, cubes: Sequence[Cube]) -> str:
    """Dice after one click and after a corrective one, by the diameter of the sphere with the lesion's volume."""
    network.eval()
    rows = []
    rng = np.random.default_rng(0)
    for cube in cubes:
        sample = _drawn(cube, rng, change=False)
        dice = []
        for _ in range(2):
            with torch.inference_mode():
                probability = network(sample.input()[None])[0, 0].sigmoid()
            found = probability > 0.5
            both = int((found & sample.lesion).sum())
            dice.append(2 * both / max(1, int(found.sum()) + int(sample.lesion.sum())))
            correct(sample, probability.clone())
        rows.append((cube.scale_mm * (6 * int(cube.lesion.sum()) / math.pi) ** (1 / 3), *dice))
    words = []
    for low, high in ((0, 10), (10, 20), (20, 99)):
        own = [row for row in rows if low <= row[0] < high]
        if own:
            first, second = np.median([r[1] for r in own]), np.median([r[2] for r in own])
            means = [np.mean([row[n] for row in own]) for n in (1, 2)]
            words.append(
                f"{low}-{high} mm ({len(own)}): median {first:.3f}, {second:.3f}; mean {means[0]:.3f}, {means[1]:.3f}"
            )
    return "; ".join(words)


def save(network: nn.Module, folder: Path, run: dict[str, int]) -> None:
    """Write the weights in half precision, and their card."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS)
    card = {
        "format": 1,
        "name": "clicks",
        "description": "Outlines the liver lesion at a click in CT; further clicks correct the outline.",
        "license": "Apache-2.0",
        "source": "python -m recipes.clicks",
        "sha256": checksum(folder / WEIGHTS),
        "arguments": ARGUMENTS,
        "size": SIZE,
        "scales_mm": SCALES_MM,
        "training": {"scans": list(SCANS), "held_out": list(HELD_OUT_SCANS), **run},
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
