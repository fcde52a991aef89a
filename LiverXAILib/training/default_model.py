# SPDX-License-Identifier: Apache-2.0
"""Train and export the bundled default model: ``python -m LiverXAILib.training.default_model --help``."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .._version import __version__
from ..models.spec import LIVER, TUMOR, Intensity, LayerSpec, ModelSpec, StageSpec
from ..models.store import save_model
from ..networks import UNet, default_stage
from .loop import HIGH, LOW, SCALE, SHIFT, Settings, train, tumor_threshold
from .sources import AXES, load_sources
from .synthesis import Generator

_log = logging.getLogger(__name__)

SPACING_MM = 3.0
ARGUMENTS = {"dimensions": 3, "in_channels": 1, "out_channels": 2, "features": [12, 24, 48, 96, 128], "norm": "batch"}
#: Phantoms whose anatomy is never trained on.
VALIDATION_PHANTOMS = range(2000, 2006)

DATA = (
    "TotalSegmentator test CT, abdomen and slab (CC BY 4.0): organ labels made by a model",
    "CPTAC-PDA C3L-00189, LIDC-IDRI-0314, ACRIN-FLT-Breast 013, C4KC-KiTS 00072 (TCIA, CC BY 3.0), CMB-CRC 01068 "
    "(TCIA, CC BY 4.0): liver as the OBELISK ensemble (MIT) sees it, grown at its border, doubtful parts left out",
    "16 procedural phantoms, heads of ellipsoids and empty scanners",
    "all tumors are synthetic: no real tumor label was used",
)
RECIPE = (
    "3-D U-Net with batch norm at 3 mm; each sample is one of these anatomies deformed, given new intensities and "
    "lesions, and scanned again; see docs/default-model.md"
)
LIMITS = (
    "For research use only.",
    "The tumor output is experimental: it was trained on synthetic lesions alone, misses small lesions and marks "
    "gallbladder, vessels, fissures and fluid at times.",
    "Any focal lesion, cysts included, is called tumor.",
    "Seven real anatomies were seen in training: unusual anatomy (situs inversus, after resection or transplantation, "
    "children, massive ascites) was not.",
    "The border is that of a 3 mm grid. Not for MR, and not for CT with a resolution worse than about 6 mm.",
)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the default model of LiverXAI, from data to exported model.")
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/, dicom/ and models/obelisk/")
    parser.add_argument("--output", type=Path, required=True, help="folder for sources, logs, checkpoint and model/")
    parser.add_argument("--iterations", type=int, default=Settings.iterations)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint and stop")
    parser.add_argument("--quality", type=Path, help="JSON with what was measured, for the card")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    settings = Settings(iterations=options.iterations, seed=options.seed)
    quality = json.loads(options.quality.read_text(encoding="utf-8")) if options.quality else {}
    with tqdm(total=1.0, unit="run", bar_format="{l_bar}{bar}| {elapsed}<{remaining}", mininterval=10) as bar:

        def progress(stage: str, fraction: float) -> None:
            bar.set_description(stage, refresh=False)
            bar.update(fraction - bar.n)

        cache = options.output / "sources"
        sources = load_sources(options.data, cache, spacing_mm=SPACING_MM, progress=progress)
        unseen = load_sources(options.data, cache, spacing_mm=SPACING_MM, phantoms=VALIDATION_PHANTOMS, real=False)
        generator = Generator(sources, spacing_mm=SPACING_MM)
        # Seeds below zero are never trained on.
        validation = [Generator(unseen, spacing_mm=SPACING_MM).sample(-1 - n, (64, 96, 112)) for n in range(8)]
        validation += [generator.sample(-101 - n, (64, 96, 112)) for n in range(12)]
        network = UNet(**ARGUMENTS)  # type: ignore[arg-type]
        iterations = settings.iterations
        if options.export_only:
            state = torch.load(options.output / "checkpoint.pt", map_location="cpu", weights_only=True)
            weights, iterations = state["average"], state["iteration"]
        else:
            weights = train(
                network,
                generator,
                options.output,
                settings,
                validation=validation,
                workers=options.workers,
                progress=progress,
            )
    network.load_state_dict(weights)
    network.eval()
    threshold = tumor_threshold(network, validation + [generator.sample(-201 - n, (64, 96, 112)) for n in range(20)])
    _log.info("Tumor begins at logit %.2f, which becomes 0", threshold)
    weights["head.bias"][1] -= threshold
    export(weights, options.output / "model", iterations, settings, quality)


def export(
    weights: dict[str, torch.Tensor],
    folder: Path,
    iterations: int,
    settings: Settings,
    quality: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Write the model folder: half-precision weights and the card, as they are bundled.

    :param quality: what was measured of these weights; the card says "not measured" without it.
    """
    network = UNet(**ARGUMENTS)  # type: ignore[arg-type]
    stages = network.explainable_stages()
    spacing = (SPACING_MM,) * 3
    stage = StageSpec(
        name="liver",
        network="UNet",
        arguments=ARGUMENTS,
        weights=("default.safetensors",),
        sha256=("",),
        axes=AXES,
        spacing=spacing,
        intensity=Intensity(LOW, HIGH, SHIFT, SCALE),
        window=(128, 128, 160),
        divisor=(network.divisor[0], network.divisor[1], network.divisor[2]),
        activation="sigmoid",
        channels=("liver", "tumor"),
        labels={"liver": ("liver",), "tumor": ("tumor",)},
        layers=tuple(LayerSpec(name, stride) for name, stride in stages),
        default_layer=default_stage(stages, spacing),
    )
    spec = ModelSpec(
        name="default",
        version=__version__,
        title="LiverXAI default model",
        description="Liver and liver tumors in CT of the abdomen or trunk, one pass at 3 mm.",
        labels=(LIVER, TUMOR),
        stages=(stage,),
        license="Apache-2.0",
        source="python -m LiverXAILib.training.default_model",
        training={
            "data": DATA,
            "recipe": RECIPE,
            "iterations": iterations,
            "planned_iterations": settings.iterations,
            "seed": settings.seed,
        },
        quality=quality or {"note": "not measured"},
        limits=LIMITS,
    )
    return save_model(spec, {"liver": [weights]}, folder)


if __name__ == "__main__":
    main()
