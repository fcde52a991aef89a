# SPDX-License-Identifier: Apache-2.0
"""Ablations of the default model's recipe: ``python -m recipes.default_model.ablations --help``.

Each variant trains the locator's network with one change, and never on the CT it is evaluated on. Runs of a few hundred
iterations are too short to compare, and differences of a few hundredths between single runs are not meaningful.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from LiverXAILib.context import RunContext
from LiverXAILib.inference.stages import normalize
from LiverXAILib.models.spec import Intensity
from LiverXAILib.networks import UNet
from LiverXAILib.training.random_fields import Size

from .build import VALIDATION_PHANTOMS
from .phases import PHASES, stage_of
from .sources import load_sources
from .synthesis import Generator, Sample, Source
from .training import Settings, train

_log = logging.getLogger(__name__)

#: The CT that no variant is trained on: real, native, labeled by a model other than the teacher.
HELD_OUT = "totalseg_abdomen_3mm"
#: The only other CT with a complete liver.
_WHOLE_LIVER = "cptac_pda"
_SIZE: Size = (48, 64, 80)


@dataclass(frozen=True)
class Variant:
    """A variant of the recipe.

    :param keep: tells by its name whether a source is trained on.
    :param size: size of the samples, in voxels of 4 mm.
    :param intensity: HU to network input; if it is centered, the true liver is used in place of the located one.
    """

    settings: Settings
    keep: Callable[[str], bool] = lambda name: True
    size: Size = _SIZE
    negative_fraction: float = PHASES["locator"].negative_fraction
    intensity: Intensity = PHASES["locator"].intensity


def variants(iterations: int, seed: int) -> dict[str, Variant]:
    """All variants, by what they change."""
    settings = replace(PHASES["locator"].settings, iterations=iterations, seed=seed, ema=0.98)
    full = Variant(settings)
    return {
        "the recipe": full,
        "boxes of 19 cm": replace(full, size=(48, 48, 48), settings=replace(settings, batch=4)),
        "phantoms only": replace(full, keep=lambda name: name.startswith("phantom")),
        f"without {_WHOLE_LIVER}, the only whole liver": replace(full, keep=lambda name: name != _WHOLE_LIVER),
        "no samples without liver": replace(full, negative_fraction=0.0),
        "batch norm never frozen": replace(full, settings=replace(settings, freeze_norm=1.0)),
        "lesions hard from the start": replace(full, settings=replace(settings, curriculum=0.0)),
        "HU from the liver's own": replace(full, intensity=PHASES["liver"].intensity),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train variants of the default model's recipe and compare them.")
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/, dicom/ and models/obelisk/")
    parser.add_argument("--output", type=Path, required=True, help="folder for sources/, the runs and ablations.csv")
    parser.add_argument("--iterations", type=int, default=700)
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="variants whose name contains one of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare samples")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    RunContext(threads=options.threads).limit_threads()
    cache = options.output / "sources"
    spacing = PHASES["locator"].spacing_mm
    everything = load_sources(options.data, cache, spacing_mm=spacing)
    unseen = load_sources(options.data, cache, spacing_mm=spacing, phantoms=VALIDATION_PHANTOMS, real=False)
    rows = []
    for name, variant in variants(options.iterations, options.seed).items():
        if options.only and not any(words in name for words in options.only):
            continue
        folder = options.output / name.replace(" ", "-").replace(",", "")
        rows.append({"variant": name, **run(variant, everything, unseen, folder, options.workers)})
        _log.info("%s", rows[-1])
        with (options.output / "ablations.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def run(
    variant: Variant, sources: Sequence[Source], phantoms: Sequence[Source], folder: Path, workers: int = 0
) -> dict[str, float]:
    """Train one variant and evaluate it.

    :param phantoms: anatomy for validation on synthetic samples, never trained on.
    :return: Dice of the liver in the held-out CT; Dice of liver and tumor in synthetic samples of the phantoms; and
        false-positive liver voxels, in thousands, in samples without liver.
    """
    phase = PHASES["locator"]
    (held_out,) = (source for source in sources if source.name == HELD_OUT)
    kept = [source for source in sources if source.name != HELD_OUT and variant.keep(source.name)]
    generator = Generator(
        kept,
        spacing_mm=phase.spacing_mm,
        negative_fraction=variant.negative_fraction,
        focus=0.5,
        sizes=((variant.size, 1.0),),
    )
    evaluation_generator = Generator(phantoms, spacing_mm=phase.spacing_mm, negative_fraction=0.3)
    samples = [evaluation_generator.sample(-1 - n, _SIZE) for n in range(20)]
    torch.manual_seed(variant.settings.seed)
    network = UNet(**phase.arguments)
    used_as = "liver" if variant.intensity.centered else "locator"
    stage = stage_of(used_as, replace(phase, intensity=variant.intensity), None)
    network.load_state_dict(train(network, generator, folder, variant.settings, stage=stage, workers=workers))
    network.eval()
    return {
        "held_out_liver_dice": round(_dice(network, held_out, variant.intensity), 4),
        **_measure(network, samples, variant.intensity),
    }


def _measure(network: UNet, samples: Sequence[Sample], intensity: Intensity) -> dict[str, float]:
    """Dice over all `samples` together, and false-positive liver voxels, in thousands, in samples without liver."""
    sums, false = torch.zeros(2, 2, dtype=torch.float64), 0.0
    for sample in samples:
        with torch.inference_mode():
            found = (network(normalize(sample.image, intensity, sample.liver_hu)[None, None])[0] > 0) & sample.known
        truth = torch.stack([sample.liver, sample.tumor]) & sample.known
        sums += torch.stack([2 * (found & truth).flatten(1).sum(1), (found.float() + truth).flatten(1).sum(1)])
        false += 0.0 if truth[0].any() else float(found[0].sum())
    liver, tumor = (sums[0] / sums[1].clamp_min(1)).tolist()
    return {
        "liver_dice": round(liver, 4),
        "tumor_dice": round(tumor, 4),
        "false_liver_kvoxels": round(false / 1000, 3),
    }


def _dice(network: UNet, source: Source, intensity: Intensity) -> float:
    """Dice of the liver in a source's own CT, segmented in one pass."""
    assert source.ct is not None
    center_hu = float(np.median(source.ct[source.liver]))
    image = normalize(torch.from_numpy(source.ct).float(), intensity, center_hu)[None, None]
    pad = [n for size, d in zip(image.shape[:1:-1], network.divisor[::-1], strict=True) for n in (0, -size % d)]
    with torch.inference_mode():
        logits = network(functional.pad(image, pad, mode="replicate"))[0, 0]
    found = logits[tuple(slice(n) for n in source.liver.shape)] > 0
    truth = torch.from_numpy(source.liver)
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()).clamp_min(1))


if __name__ == "__main__":
    main()
