# SPDX-License-Identifier: Apache-2.0
"""Train the network that outlines one lesion, at a click or around what a model has marked, on one thread.

Cubes are made once and kept in the output folder. Those around lesions are used with different clicks; those around
components that the model marks have its probability instead of clicks. All are transposed and mirrored, with more
noise, and with more or less contrast. In a quarter of the samples a second click corrects the network's own result
after the first click, at the center of its largest error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from LiverXAILib.inference.outline_network import CARD, CHANNELS, SCALES_MM, SIZE, WEIGHTS, network_input
from LiverXAILib.models import load_model
from LiverXAILib.models.downloads import checksum
from LiverXAILib.models.model import Model
from LiverXAILib.networks import UNet

from ..real_ct import collection_of
from .marked import marked_cubes
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
#: Largest shift of a cube around a finding of a model, in voxels.
_JITTER = 2
#: Samples of a step: half with clicks, half of findings of a model.
_BATCH = 12


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.outlines", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/")
    parser.add_argument("--output", type=Path, required=True, help="for the cubes, the weights and their card")
    parser.add_argument("--model", default="default", help="its findings are to be refined")
    parser.add_argument("--cubes", type=int, default=2000, help="around clicks")
    parser.add_argument("--phantoms", type=int, default=40, help="for the model; 8 of them for clicks")
    parser.add_argument("--clicks-only", action="store_true", help="train nothing on findings of the model")
    parser.add_argument("--rounds", type=int, default=8, help="how often lesions are painted into a scan for the model")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--start", type=Path, help="weights to continue from; their card is beside them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    RunContext(threads=1).limit_threads()
    options.output.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model)
    trained = _cubes("trained", options, SCANS, range(FIRST_SEED, FIRST_SEED + options.phantoms), model)
    held_out = _cubes("held-out", options, HELD_OUT_SCANS, range(FIRST_SEED + 1000, FIRST_SEED + 1010), model)
    train(trained, held_out, options.iterations, options.seed, options.output, options.start)


def _cubes(part: str, options: argparse.Namespace, names: Sequence[str], seeds: range, model: Model) -> list[Cube]:
    """Make the cubes for training, or for evaluation, which has fewer."""
    clicks, rounds = options.cubes, options.rounds
    if part != "trained":
        clicks, rounds = clicks // 16, rounds // 4
    clicked = _stored(
        options.output / f"{part}-clicks.npz",
        lambda: _clicked(part, options.data, names, seeds[:8], clicks),
    )
    if options.clicks_only:
        return clicked
    marked = _stored(
        options.output / f"{part}-marked.npz",
        lambda: marked_cubes(options.data, names, seeds, rounds, model),
    )
    return clicked + marked


def _clicked(part: str, data: Path, names: Sequence[str], seeds: range, count: int) -> Iterator[Cube]:
    """Make cubes around clicks, from scans and phantoms in turn."""
    scans = [*real_scans(data, names), *phantom_scans(seeds)]
    _log.info("%d scans: %s", len(scans), ", ".join(scan.name for scan in scans))
    made = 0
    for seed in itertools.count():
        cube = make_cube(scans[seed % len(scans)], hash_of(seed, part))
        if cube is not None and cube.lesion[_SHIFT:-_SHIFT, _SHIFT:-_SHIFT, _SHIFT:-_SHIFT].any():
            made += 1
            yield cube
        if made == count:
            return


def _stored(path: Path, make: Callable[[], Iterable[Cube]]) -> list[Cube]:
    """Make cubes and store them, or load those made before."""
    if not path.is_file():
        made = []
        for cube in make():
            made.append(cube)
            if len(made) % 100 == 0:
                _log.info("%s: %d cubes", path.stem, len(made))
        np.savez(
            path,
            hu=np.stack([cube.hu for cube in made]),
            bits=np.stack([cube.liver + 2 * cube.lesion.astype(np.uint8) for cube in made]).astype(np.uint8),
            scales=np.array([cube.scale_mm for cube in made]),
            before=np.stack([cube.before for cube in made if cube.before is not None] or [np.zeros(0)]),
        )
    found = np.load(path)
    hu, bits, scales, before = (found[name] for name in ("hu", "bits", "scales", "before"))
    return [
        Cube(hu[n], (bits[n] & 1) > 0, (bits[n] & 2) > 0, float(scales[n]), before[n] if before.size else None)
        for n in range(len(hu))
    ]


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
    """Augment a cube, and draw a first click in its lesion, unless a model marked it."""
    moved = rng.integers(-_JITTER, _JITTER + 1, 3) * change
    part = cut(cube, moved.tolist() if cube.before is not None else (_click(cube, rng) - STORED // 2).tolist())
    before = np.zeros(part.hu.shape) if part.before is None else part.before
    arrays = [part.hu.astype(np.float32), part.liver, part.lesion, before.astype(np.float32)]
    if change:
        if rng.random() < 0.5:
            arrays = [array.transpose(0, 2, 1) for array in arrays]
        # With an even number of voxels, mirroring moves the center voxel by one.
        for axis in range(3):
            if rng.random() < 0.5:
                arrays = [np.roll(np.flip(array, axis), 1, axis) for array in arrays]
    hu, liver, lesion, probability = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    if change:
        hu = hu * float(rng.uniform(0.8, 1.25)) + float(rng.normal(0, 4))
        if rng.random() < 0.4:
            noise = torch.from_numpy(rng.normal(0, rng.uniform(3, 18), hu.shape).astype(np.float32))
            hu = hu + functional.avg_pool3d(noise[None, None], 3, 1, 1)[0, 0] * 3
    middle = SIZE // 2
    return _Sample(hu, liver, lesion, [(middle, middle, middle)] if cube.before is None else [], [], probability)


def _click(cube: Cube, rng: np.random.Generator) -> np.ndarray:
    """Draw a voxel of the lesion near the middle of the cube; half of the clicks are at its center."""
    inner = np.argwhere(cube.lesion)
    inner = inner[(np.abs(inner - STORED // 2) <= _SHIFT - 1).all(axis=1)]
    if not len(inner):
        return np.full(3, STORED // 2)
    if rng.random() < 0.5:
        return inner[((inner - np.argwhere(cube.lesion).mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return inner[rng.integers(len(inner))]


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


# Long: the training loop and, inside it, the evaluation that is printed at intervals.
def train(
    trained: Sequence[Cube],
    held_out: Sequence[Cube],
    iterations: int,
    seed: int,
    folder: Path,
    start: Path | None = None,
) -> nn.Module:
    """Train the network, and save it and its card; `held_out` is used for evaluation only.

    :param start: weights to continue from.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    clicked = [cube for cube in trained if cube.before is None]
    marked = [cube for cube in trained if cube.before is not None]
    kinds = [cubes for cubes in (clicked, marked) if cubes]
    network = UNet(**ARGUMENTS)
    earlier: list[Mapping[str, int]] = []
    run = {"clicked": len(clicked), "marked": len(marked), "seed": seed}
    if start is not None:
        network.load_state_dict({name: value.float() for name, value in load_file(start).items()})
        earlier = json.loads((start.parent / CARD).read_text(encoding="utf-8"))["training"]["runs"]
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
        samples = [
            _drawn(cubes[int(rng.integers(len(cubes)))], rng) for cubes in kinds for _ in range(_BATCH // len(kinds))
        ]
        if step > 100 or start is not None:
            corrected = samples[: _BATCH // 4]
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
            evaluation = evaluate(network, held_out)
            _log.info("%d %s", step, evaluation)
            save(network, folder, [*earlier, {**run, "iterations": step + 1}], evaluation)
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


def evaluate(network: nn.Module, cubes: Sequence[Cube]) -> str:
    """Dice after one click and after a corrective one, and of marked components before and after, by diameter.

    The diameter is that of a ball with the lesion's volume. The text also says in what fraction of the components that
    are not lesions the network outlines nothing.
    """
    network.eval()
    rows: dict[str, list[tuple[float, float, float]]] = {"clicks": [], "marked": []}
    empty: list[bool] = []
    rng = np.random.default_rng(0)
    for cube in cubes:
        sample = _drawn(cube, rng, change=False)
        diameter = cube.scale_mm * (6 * int(sample.lesion.sum()) / math.pi) ** (1 / 3)
        first = _probability(network, sample)
        if cube.before is None:
            correct(sample, first.clone())
            rows["clicks"].append((diameter, _dice(first, sample), _dice(_probability(network, sample), sample)))
        elif sample.lesion.any():
            rows["marked"].append((diameter, _dice(sample.before, sample), _dice(first, sample)))
        else:
            empty.append(not (first > 0.5).any())
    words = []
    for kind, own in rows.items():
        for low, high in ((0, 10), (10, 20), (20, 99)):
            if few := [row for row in own if low <= row[0] < high]:
                median, mean = np.median(few, axis=0), np.mean(few, axis=0)
                words.append(
                    f"{kind} {low}-{high} mm ({len(few)}): median {median[1]:.3f}, {median[2]:.3f}, "
                    f"mean {mean[1]:.3f}, {mean[2]:.3f}"
                )
    if empty:
        words.append(f"no lesion ({len(empty)}): {np.mean(empty):.2f} empty")
    return "; ".join(words)


def _probability(network: nn.Module, sample: _Sample) -> torch.Tensor:
    with torch.inference_mode():
        return network(sample.input()[None])[0, 0].sigmoid()


def _dice(probability: torch.Tensor, sample: _Sample) -> float:
    found = probability > 0.5
    both = int((found & sample.lesion).sum())
    return 2 * both / max(1, int(found.sum()) + int(sample.lesion.sum()))


def save(network: nn.Module, folder: Path, runs: Sequence[Mapping[str, int]], evaluation: str) -> None:
    """Write the weights in half precision, and their card: the runs that made them, the text of :func:`evaluate`."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS)
    card = {
        "format": 1,
        "name": "outlines",
        "description": (
            "Outlines one liver lesion in CT, at a click or around a finding of a model, whose outline it refines; "
            "further clicks correct it."
        ),
        "license": "Apache-2.0",
        "source": "python -m recipes.outlines",
        "sha256": checksum(folder / WEIGHTS),
        "arguments": ARGUMENTS,
        "size": SIZE,
        "scales_mm": SCALES_MM,
        "training": {"data": _data(), "scans": list(SCANS), "held_out": list(HELD_OUT_SCANS), "runs": list(runs)},
        "evaluation": evaluation.split("; "),
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _data() -> list[str]:
    """The attribution of the training data, one line for each collection."""
    collections = dict.fromkeys(collection_of(name) for name in SCANS)
    return [f"{one.title}, {one.license}, doi {one.doi}" for one in collections]
