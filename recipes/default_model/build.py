# SPDX-License-Identifier: Apache-2.0
"""Train and export the bundled default model: ``python -m recipes.default_model --help``."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from LiverXAILib._version import __version__
from LiverXAILib.context import RunContext
from LiverXAILib.errors import InputError
from LiverXAILib.models.formats.liverxai import save_model
from LiverXAILib.models.spec import LIVER, TUMOR, Intensity, LayerSpec, ModelSpec, Region, StageSpec
from LiverXAILib.networks import UNet, default_layer
from LiverXAILib.progress import Progress
from LiverXAILib.training.random_fields import Size

from .loop import Settings, train
from .operating import operating_points
from .scans import phantom_scans, source_scans
from .sources import AXES, load_sources
from .synthesis import Generator

_log = logging.getLogger(__name__)

#: What a phase leaves in its folder: weights in full precision, and how they were made.
WEIGHTS, RUN = "weights.safetensors", "run.json"

#: HU as they are: for a network that has yet to find the liver, or was trained before it could count from it.
_ABSOLUTE = Intensity(-200.0, 300.0, 50.0, 120.0)


@dataclass(frozen=True)
class TrainingPhase:
    """One network of the model: what it sees and how it is trained.

    :param spacing_mm: voxel size of its grid, the same along all axes.
    :param arguments: of :class:`~LiverXAILib.networks.UNet`.
    :param sizes: of training samples, in voxels (superior, posterior, left), and how often each is drawn; divisible by
        the network's divisor.
    :param negative_fraction: see :class:`Generator`, as for `focus`.
    :param settings: what differs from the defaults of :class:`Settings`.
    :param intensity: HU to network input.
    :param starts_from: the phase whose weights it starts from: the same network, or one with a level less.
    """

    spacing_mm: float
    arguments: Mapping[str, Any]
    sizes: Sequence[tuple[Size, float]]
    validation_size: Size
    negative_fraction: float
    focus: float
    settings: Settings
    intensity: Intensity = _ABSOLUTE
    starts_from: str | None = None


_ARGUMENTS: dict[str, Any] = {"dimensions": 3, "in_channels": 1, "out_channels": 2, "norm": "batch", "stem_stride": 2}
_BOXES = TrainingPhase(
    spacing_mm=2.0,
    arguments=_ARGUMENTS | {"features": [24, 48, 96, 128, 128]},
    sizes=(
        ((96, 96, 128), 0.40),
        ((96, 96, 96), 0.35),
        ((96, 128, 128), 0.10),
        ((128, 96, 128), 0.10),
        ((128, 128, 160), 0.05),
    ),
    validation_size=(96, 128, 128),
    negative_fraction=0.08,
    focus=0.93,
    settings=Settings(
        iterations=2000, learning_rate=1.5e-3, curriculum=0.1, freeze_norm=0.1, rebalance_after=0.7, ema=0.997
    ),
    starts_from="liver-patches",
)
_LONG = Settings(iterations=5200, learning_rate=5e-4, curriculum=0.05, freeze_norm=0.0, rebalance_after=0.4, ema=0.998)
_CENTERED = replace(
    _BOXES,
    settings=replace(_LONG, batch=2, curriculum=0.0, rebalance_after=0.0),
    # A liver of 90 HU looks as it did before.
    intensity=Intensity(-290.0, 210.0, -40.0, 120.0, centered=True),
    starts_from="liver-long",
)
_LAST = replace(_CENTERED.settings, iterations=6500)
#: The locator finds the liver in the whole scan; the liver network segments liver and tumors in the box around it. The
#: latter learns textures and borders from small patches first, many in little time; then, with a level more, from
#: boxes as large as those it is used on, what lies where: without that it takes bowel beside the liver for liver. Five
#: long parts go on from there, more slowly, since tumors are learned late; in the last four HU count from the liver's
#: own.
PHASES = {
    "locator": TrainingPhase(
        spacing_mm=4.0,
        arguments=_ARGUMENTS | {"features": [16, 32, 64, 96]},
        sizes=(
            ((64, 64, 80), 0.35),
            ((48, 64, 80), 0.25),
            ((64, 80, 96), 0.2),
            ((96, 64, 80), 0.1),
            ((80, 80, 112), 0.1),
        ),
        validation_size=(64, 80, 96),
        negative_fraction=0.18,
        focus=0.0,
        settings=Settings(iterations=3000, batch=2, learning_rate=1e-3),
    ),
    "liver-patches": TrainingPhase(
        spacing_mm=2.0,
        arguments=_ARGUMENTS | {"features": [24, 48, 96, 128]},
        sizes=(
            ((64, 64, 64), 0.25),
            ((64, 80, 80), 0.25),
            ((48, 80, 96), 0.2),
            ((80, 80, 80), 0.15),
            ((64, 96, 112), 0.08),
            ((48, 64, 96), 0.07),
        ),
        validation_size=(80, 96, 112),
        negative_fraction=0.06,
        focus=0.93,
        settings=Settings(iterations=3100, batch=2),
    ),
    "liver-boxes": _BOXES,
    "liver-long": replace(_BOXES, settings=_LONG, starts_from="liver-boxes"),
    "liver-centered": _CENTERED,
    "liver-outlined": replace(_CENTERED, settings=_LAST, starts_from="liver-centered"),
    "liver-veined": replace(_CENTERED, settings=_LAST, starts_from="liver-outlined"),
    "liver": replace(_CENTERED, settings=replace(_LAST, iterations=3000), starts_from="liver-veined"),
}
#: The parts that are the model's stages, in their order.
STAGES = ("locator", "liver")
#: How far around the located liver the liver network looks, in mm: what the locator misses by less costs nothing.
MARGIN_MM = 24.0
#: Phantoms whose anatomy is never trained on.
VALIDATION_PHANTOMS = range(2000, 2006)
#: Phantoms whose whole scans, with lesions painted into them, say where liver and tumors begin; none is trained on.
#: The real scans, with lesions painted into each so many times, have a say about tumors, although they are trained on:
#: phantoms have neither their noise nor their fissures.
SCANNED_PHANTOMS, PAINTINGS = range(2000, 2024), 4

DATA = (
    "TotalSegmentator test CT, abdomen and slab (CC BY 4.0): organ labels made by a model",
    "CPTAC-PDA C3L-00189, LIDC-IDRI-0314, ACRIN-FLT-Breast 013, C4KC-KiTS 00072 (TCIA, CC BY 3.0), CMB-CRC 01068 "
    "(TCIA, CC BY 4.0): liver as the OBELISK ensemble (MIT) sees it, grown at its border, doubtful parts left out",
    "64 procedural phantoms, heads of ellipsoids and empty scanners",
    "all tumors are synthetic: no real tumor label was used",
)
RECIPE = (
    "two 3-D U-Nets with batch norm, at 4 mm and at 2 mm around the liver, the latter first on small boxes, then, a "
    "level deeper, on large ones, in six runs, in the last four with HU counted from the liver's own median; each "
    "sample is one of these anatomies deformed, given new intensities and lesions, and scanned again; see "
    "docs/default-model.md"
)
LIMITS = (
    "For research use only.",
    "Thin parts of the liver and parts of the caudate lobe are cut, wide bright veins inside it are left out, and "
    "heart, kidney and bowel beside it are taken for liver at times: look at the outlines.",
    "The tumor output is experimental: it was trained on synthetic lesions alone, misses most lesions under 20 mm and "
    "those in very dark livers, and leaves out parts of large ones. No finding does not mean no tumor.",
    "Any focal lesion, cysts included, is called tumor.",
    "Seven real anatomies were seen in training: unusual anatomy (situs inversus, after resection or transplantation, "
    "children, massive ascites) was not.",
    "The border is that of a 2 mm grid. Not for MR, and not for CT with a resolution worse than about 6 mm.",
)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the default model of LiverXAI, from data to exported model.")
    parser.add_argument("phase", choices=[*PHASES, "export"], help="which network to train; or write the model")
    parser.add_argument("--data", type=Path, help="folder with ct/, dicom/ and models/obelisk/")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for sources/, a folder per phase, and model/"
    )
    parser.add_argument("--iterations", type=int, help="default: the phase's own number")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument("--quality", type=Path, help="export: JSON with what was measured, for the card")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    RunContext(threads=options.threads).limit_threads()
    if options.phase == "export":
        quality = json.loads(options.quality.read_text(encoding="utf-8")) if options.quality else {}
        trained = {name: load_file(options.output / name / WEIGHTS) for name in STAGES}
        runs = {
            name: json.loads((options.output / name / RUN).read_text(encoding="utf-8"))
            for name in PHASES
            if (options.output / name / RUN).is_file()
        }
        export(trained, options.output / "model", runs, quality)
        return
    if options.data is None:
        parser.error("--data is needed to train")
    phase = PHASES[options.phase]
    settings = replace(phase.settings, iterations=options.iterations or phase.settings.iterations, seed=options.seed)
    with tqdm(total=1.0, unit="run", bar_format="{l_bar}{bar}| {elapsed}<{remaining}", mininterval=10) as bar:

        def progress(stage: str, fraction: float) -> None:
            bar.set_description(stage, refresh=False)
            bar.update(fraction - bar.n)

        train_phase(options.phase, options.data, options.output, settings, options.workers, progress)


def train_phase(
    name: str,
    data: Path,
    output: Path,
    settings: Settings,
    workers: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train the network of :data:`PHASES`; its weights, at their operating point, and how they came about are left.

    :param output: gets ``sources/``, the prepared anatomy, and a folder of the phase's name.
    :raises LiverXAILib.errors.InputError: training data, or the weights of the phase it grows from, are missing.
    """
    phase = PHASES[name]
    cache, folder = output / "sources", output / name
    start = output / phase.starts_from / WEIGHTS if phase.starts_from else None
    if start is not None and not start.is_file():
        raise InputError(f"{start} is missing: train {phase.starts_from} first.")
    sources = load_sources(data, cache, spacing_mm=phase.spacing_mm, progress=progress)
    unseen = load_sources(data, cache, spacing_mm=phase.spacing_mm, phantoms=VALIDATION_PHANTOMS, real=False)
    arguments: dict[str, Any] = {
        "spacing_mm": phase.spacing_mm,
        "negative_fraction": phase.negative_fraction,
        "focus": phase.focus,
    }
    generator = Generator(sources, sizes=phase.sizes, **arguments)
    phantoms = Generator(unseen, **arguments)
    # Seeds below zero are never trained on.
    validation = [phantoms.sample(-1 - n, phase.validation_size) for n in range(6)]
    validation += [generator.sample(-101 - n, phase.validation_size) for n in range(12)]
    torch.manual_seed(settings.seed)
    network = UNet(**phase.arguments)
    if start is not None:
        start_from(network, load_file(start))
    weights = train(
        network,
        generator,
        folder,
        settings,
        intensity=phase.intensity,
        validation=validation,
        workers=workers,
        progress=progress,
    )
    network.load_state_dict(weights)
    network.eval()
    stage = _stage(name, phase, None)
    scanned = phantom_scans(stage, phase.spacing_mm, SCANNED_PHANTOMS)
    real = source_scans(stage, phase.spacing_mm, sources, PAINTINGS)
    points = operating_points(network, scanned, real, phase.intensity)
    _log.info("%s: liver and tumor become 0", points)
    weights["head.bias"] = points.moved_to_zero(weights["head.bias"])
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    run = {
        "iterations": settings.iterations,
        "samples": settings.iterations * settings.batch,
        "seed": settings.seed,
        "operating_points": asdict(points),
    }
    (folder / RUN).write_text(json.dumps(run) + "\n", encoding="utf-8")


def start_from(network: UNet, weights: Mapping[str, torch.Tensor]) -> None:
    """Give `network` the weights of a trained one: the same network, or one that has one level less.

    The bottleneck of the latter becomes an encoder level; the new bottleneck and the decoder stage above it keep their
    initial weights.

    :raises RuntimeError: the networks differ in more than one level.
    """
    last = len(network.encoder) - 1
    state = network.state_dict()
    if weights.keys() == state.keys():
        network.load_state_dict(weights)
        return
    for name, value in weights.items():
        room, _, rest = name.partition(".")
        if room == "bottleneck":
            name = f"encoder.{last}.{rest}"
        elif room == "decoder":
            number, _, rest = rest.partition(".")
            name = f"decoder.{int(number) + 1}.{rest}"
        state[name] = value
    network.load_state_dict(state)


def export(
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    folder: Path,
    runs: Mapping[str, Mapping[str, Any]],
    quality: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Write the model folder: half-precision weights and the card, as they are bundled.

    :param weights: of each phase.
    :param runs: how each phase was trained.
    :param quality: what was measured of these weights; the card says "not measured" without it.
    """
    spec = ModelSpec(
        name="default",
        version=__version__,
        title="LiverXAI default model",
        description=(
            "Liver and liver tumors in CT of the abdomen or trunk: the liver is located at 4 mm, then segmented with "
            "its tumors at 2 mm, one pass each."
        ),
        labels=(LIVER, TUMOR),
        stages=tuple(_stage(name, PHASES[name], runs.get(name, {}).get("operating_points")) for name in STAGES),
        license="Apache-2.0",
        source="python -m recipes.default_model",
        training={"data": DATA, "recipe": RECIPE, "runs": runs},
        quality=quality or {"note": "not measured"},
        limits=LIMITS,
    )
    return save_model(spec, {name: [dict(weights[name])] for name in STAGES}, folder)


def _stage(name: str, phase: TrainingPhase, points: Mapping[str, float] | None) -> StageSpec:
    network = UNet(**phase.arguments)
    layers = network.explainable_layers()
    spacing = (phase.spacing_mm,) * 3
    locator = name == "locator"
    return StageSpec(
        name=name,
        network="UNet",
        arguments=phase.arguments,
        weights=(f"{name}.safetensors",),
        sha256=("",),
        axes=AXES,
        spacing=spacing,
        intensity=phase.intensity,
        divisor=(network.divisor[0], network.divisor[1], network.divisor[2]),
        activation="sigmoid",
        channels=("liver", "tumor"),
        labels={"liver": ("liver",)} if locator else {"liver": ("liver",), "tumor": ("tumor",)},
        peak_threshold={} if locator or points is None else {"tumor": points["certain"] - points["tumor"]},
        region=None if locator else Region("liver", MARGIN_MM),
        layers=tuple(LayerSpec(layer, stride) for layer, stride in layers),
        default_layer=default_layer(layers, spacing),
    )


if __name__ == "__main__":
    main()
