# SPDX-License-Identifier: Apache-2.0
"""Train and export the bundled default model: ``python -m recipes.default_model --help``."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from LiverXAILib.context import RunContext
from LiverXAILib.errors import InputError, LiverXAIError
from LiverXAILib.models.registry import registered
from LiverXAILib.networks import UNet

from .card import export
from .operating import operating_points
from .phases import CHAIN, PHASES, STAGES, TrainingPhase, stage_of
from .scans import phantom_scans, source_scans
from .sources import load_sources
from .synthesis import Generator, Repertoire, Source
from .synthesis.candidates import Candidates
from .synthesis.transplants import Graft, cut_out
from .training import Settings, train

_log = logging.getLogger(__name__)

#: Files that a phase writes to its folder: weights in full precision, and how they were trained.
WEIGHTS, RUN = "weights.safetensors", "run.json"
#: The rows of the phase's log, one for each validation.
LOG = "epochs.csv"

#: Phantoms for training.
PHANTOMS = range(1000, 1064)
#: Phantoms for validation, whose anatomy is never trained on.
VALIDATION_PHANTOMS = range(2000, 2006)
#: Phantoms whose whole scans, with painted lesions, determine the operating points; none is trained on.
#: How often lesions are painted into each real scan. These scans contribute to the operating point of tumors although
#: they are trained on, because phantoms lack their noise and fissures.
SCANNED_PHANTOMS, PAINTINGS = range(2000, 2024), 2


#: Number of validation samples from unseen phantoms and from the sources of training.
VALIDATED = (6, 12)


@dataclass(frozen=True)
class Run:
    """The data and folders of a run of all phases.

    :param output: folder for ``sources/``, the prepared anatomy, and for a folder per phase.
    :param left_out: patients to exclude from training.
    :param iterations: iterations of each phase; None: each phase's own number.
    :param workers: processes that prepare samples.
    :param phantoms: numbers of phantoms for training and for the operating points.
    :param cache: folder of the prepared anatomy, which several runs may share; None: ``sources/`` in `output`.
    """

    data: Path
    output: Path
    seed: int = 0
    left_out: tuple[str, ...] = ()
    iterations: int | None = None
    workers: int = 0
    phantoms: tuple[int, int] = (len(PHANTOMS), len(SCANNED_PHANTOMS))
    cache: Path | None = None

    def settings(self, name: str) -> Settings:
        """The settings of a phase in this run."""
        own = PHASES[name].settings
        return replace(own, iterations=self.iterations or own.iterations, seed=self.seed + list(PHASES).index(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.default_model", description=__doc__)
    parser.add_argument(
        "phase",
        choices=["all", "tune", *PHASES, "export"],
        help="all: all phases; tune: continue from the bundled model; one network; or write the model",
    )
    parser.add_argument("--data", type=Path, help="folder with ct/, dicom/ and models/obelisk/")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for sources/, a folder per phase, logs/ and model/"
    )
    parser.add_argument("--iterations", type=int, help="iterations of each phase; default: the phase's own number")
    parser.add_argument("--seed", type=int, default=Run.seed)
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="PATIENT", help="patients not to train on")
    parser.add_argument(
        "--start", choices=["before", "bundled"], default="before", help="weights of the previous phase, or the bundled"
    )
    parser.add_argument("--phantoms", type=int, nargs=2, default=Run.phantoms, metavar=("TRAINED", "SCANNED"))
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument("--quality", type=Path, help="JSON with quality measures for the card")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    RunContext(threads=options.threads).limit_threads()
    if options.data is None and options.phase != "export":
        parser.error("--data is needed to train")
    run = Run(
        options.data,
        options.output,
        options.seed,
        tuple(options.leave_out),
        options.iterations,
        options.workers,
        tuple(options.phantoms),
    )
    try:
        if options.phase == "all":
            train_all(run)
        elif options.phase == "tune":
            tune(run)
        elif options.phase != "export":
            train_phase(options.phase, run, start=options.start)
        if options.phase in ("all", "tune", "export"):
            quality = json.loads(options.quality.read_text(encoding="utf-8")) if options.quality else None
            export_run(options.output, quality)
    except LiverXAIError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def train_all(run: Run) -> None:
    """Train each phase of :data:`~.phases.CHAIN` that is not finished yet.

    :raises LiverXAILib.errors.InputError: a finished phase was trained otherwise.
    """
    for name in CHAIN:
        if not _is_finished(name, run):
            train_phase(name, run)


def train_phase(name: str, run: Run, *, start: str = "before") -> None:
    """Train the network of a phase in :data:`~.phases.PHASES`, and write its weights, shifted to their operating point,
    and a description of the training to the phase's folder.

    :param start: "before": from the weights of the phase that it starts from, if any; "bundled": from those of the
        bundled model, which has the same network.
    :raises LiverXAILib.errors.InputError: training data, or the weights it starts from, are missing.
    """
    phase, folder, settings = PHASES[name], run.output / name, run.settings(name)
    initial = _initial_weights(name, run, start)
    sources, unseen = anatomy(run, phase.spacing_mm, phase.phantoms)
    generator, validation = samples_of(phase, sources, unseen)
    torch.manual_seed(settings.seed)
    network = UNet(**phase.arguments)
    if initial is not None:
        start_from(network, initial)
    stage = stage_of(phase.stage or name, phase, None)
    weights = train(network, generator, folder, settings, stage=stage, validation=validation, workers=run.workers)
    record: dict[str, Any] = {"settings": asdict(settings), "left_out": list(run.left_out), "start": start}
    if phase.stage is not None:
        network.load_state_dict(weights)
        network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        scanned = phantom_scans(stage, phase.spacing_mm, SCANNED_PHANTOMS[: run.phantoms[1]])
        real = source_scans(stage, phase.spacing_mm, sources, PAINTINGS)
        points = operating_points(network, scanned, real, phase.intensity)
        _log.info("%s: liver and tumor are shifted to 0", points)
        weights["head.bias"] = points.moved_to_zero(weights["head.bias"])
        record["operating_points"] = asdict(points)
    save_file(weights, folder / WEIGHTS)
    (folder / RUN).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def anatomy(run: Run, spacing_mm: float, most: int | None = None) -> tuple[list[Source], list[Source]]:
    """Load the sources for training, and the phantoms for validation.

    :param most: largest number of phantoms for training.
    """
    cache = run.cache or run.output / "sources"
    phantoms = PHANTOMS[: run.phantoms[0]][:most]
    sources = load_sources(run.data, cache, spacing_mm=spacing_mm, phantoms=phantoms, left_out=run.left_out)
    unseen = load_sources(run.data, cache, spacing_mm=spacing_mm, phantoms=VALIDATION_PHANTOMS, real=False)
    return sources, unseen


def samples_of(phase: TrainingPhase, sources: Sequence[Source], unseen: Sequence[Source]) -> tuple[Generator, list]:
    """The generator of training samples, and a fixed set of validation samples."""
    arguments: dict[str, Any] = {
        "spacing_mm": phase.spacing_mm,
        "negative_fraction": phase.negative_fraction,
        "focus": phase.focus,
    }
    repertoire = Repertoire(grafts_of(sources, phase.spacing_mm))
    kind = Candidates if phase.around_candidates else Generator
    generator = kind(sources, sizes=phase.sizes, repertoire=repertoire, **arguments)
    phantoms = kind(unseen, repertoire=repertoire, **arguments)
    # Negative seeds are never trained on.
    validation = [phantoms.sample(-1 - n, phase.validation_size) for n in range(VALIDATED[0])]
    return generator, validation + [generator.sample(-101 - n, phase.validation_size) for n in range(VALIDATED[1])]


def grafts_of(sources: Sequence[Source], spacing_mm: float) -> list[Graft]:
    """The labeled tumors of the sources, for transplants."""
    return [
        graft
        for source in sources
        if source.ct is not None and source.tumors is not None
        for graft in cut_out(source.ct, source.liver, source.tumors, spacing_mm, source.phase, source.name)
    ]


def _initial_weights(name: str, run: Run, start: str) -> Mapping[str, torch.Tensor] | None:
    if start == "bundled":
        return bundled_weights(PHASES[name].stage or name)
    before = PHASES[name].starts_from
    if before is None:
        return None
    path = run.output / before / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path} is missing: train {before} first.")
    return load_file(path)


def bundled_weights(name: str) -> dict[str, torch.Tensor]:
    """The bundled model's weights of a stage, as trained: in a loaded model the norms are folded into convolutions.

    :raises LiverXAILib.errors.InputError: the bundled model has no such stage.
    """
    entry = registered("default")
    stages, folder = {stage.name: stage for stage in entry.spec().stages}, entry.folder()
    if name not in stages or folder is None:
        raise InputError(f"The bundled model has no network {name!r}, but {' and '.join(stages)}.")
    return {key: value.float() for key, value in load_file(folder / stages[name].weights[0]).items()}


def start_from(network: UNet, weights: Mapping[str, torch.Tensor]) -> None:
    """Load the weights of a trained network into `network`; the former may have one level less.

    Its bottleneck then becomes an encoder level; the new bottleneck and the decoder stage above it keep their
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


def tune(run: Run) -> None:
    """Continue from the bundled liver network with the phase "tuning", unless it is finished; keep the locator.

    :raises LiverXAILib.errors.InputError: a finished phase was trained otherwise.
    """
    if not _is_finished("tuning", run):
        train_phase("tuning", run, start="bundled")


def _is_finished(name: str, run: Run) -> bool:
    """Whether a phase is finished.

    :raises LiverXAILib.errors.InputError: it is, but was trained with other settings.
    """
    finished = run.output / name / RUN
    if not finished.is_file():
        return False
    before = json.loads(finished.read_text(encoding="utf-8"))
    if before["settings"] != asdict(run.settings(name)) or before["left_out"] != list(run.left_out):
        raise InputError(f"{finished.parent} holds another run: choose another folder, or remove it.")
    _log.info("%s is finished", name)
    return True


def export_run(output: Path, quality: Mapping[str, Any] | None = None) -> None:
    """Write ``model/``, which is bundled, and ``logs/``, the rows of each phase, from finished phases.

    A run that continued from the bundled model keeps the stages that it did not train.

    :raises LiverXAILib.errors.InputError: a phase is not finished.
    """
    runs = {
        name: json.loads((output / name / RUN).read_text(encoding="utf-8"))
        for name in PHASES
        if (output / name / RUN).is_file()
    }
    weights, operating, left_out = {}, {}, []
    for stage in STAGES:
        made = [name for name in runs if PHASES[name].stage == stage]
        if made:
            weights[stage] = load_file(output / made[-1] / WEIGHTS)
            operating[stage], left_out = runs[made[-1]]["operating_points"], runs[made[-1]]["left_out"]
        elif any(run["start"] == "bundled" for run in runs.values()):
            weights[stage] = bundled_weights(stage)
        else:
            raise InputError(f"{output / stage / WEIGHTS} is missing: train {stage} first.")
    (output / "logs").mkdir(exist_ok=True)
    for name in runs:
        shutil.copyfile(output / name / LOG, output / "logs" / f"{name}.csv")
    export(weights, output / "model", runs, operating, quality, left_out=left_out)
