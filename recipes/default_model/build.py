# SPDX-License-Identifier: Apache-2.0
"""Train and export the bundled default model: ``python -m recipes.default_model --help``."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from LiverXAILib.context import RunContext
from LiverXAILib.errors import InputError, LiverXAIError
from LiverXAILib.models import ModelSpec
from LiverXAILib.models.loading import load_states
from LiverXAILib.networks import UNet

from .card import export
from .operating import operating_points
from .phases import CHAIN, PHASES, STAGES, TrainingPhase, stage_of
from .scans import phantom_scans, source_scans
from .sources import load_sources
from .synthesis import Generator, Repertoire, Source
from .synthesis.transplants import Graft, cut_out
from .training import Settings, train

_log = logging.getLogger(__name__)

#: Files that a phase writes to its folder: weights in full precision, and how they were trained.
WEIGHTS, RUN = "weights.safetensors", "run.json"
#: The rows of the phase's log, one for each validation.
LOG = "epochs.csv"
#: The bundled model, from which tuning continues unless told otherwise.
BUNDLED = "default"

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
        help="all: all phases; tune: continue from a model; one network; or write the model",
    )
    parser.add_argument("--data", type=Path, help="folder with ct/, dicom/ and models/obelisk/")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for sources/, a folder per phase, logs/ and model/"
    )
    parser.add_argument("--iterations", type=int, help="iterations of each phase; default: the phase's own number")
    parser.add_argument("--seed", type=int, default=Run.seed)
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="PATIENT", help="patients not to train on")
    parser.add_argument(
        "--start",
        metavar="MODEL",
        help="model to continue from, by name or folder; default: the previous phase; with tune: the bundled model",
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
            tune(run, options.start or BUNDLED)
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


def train_phase(name: str, run: Run, *, start: str | None = None) -> None:
    """Train the network of a phase in :data:`~.phases.PHASES`, and write its weights, shifted to their operating point,
    and a description of the training to the phase's folder.

    :param start: name or folder of a model with the same network, whose weights it continues from; None: from the
        weights of the phase that it starts from, if any.
    :raises LiverXAILib.errors.InputError: training data, or the weights it starts from, are missing; or that model was
        trained on a patient who is to be left out.
    :raises LiverXAILib.errors.ModelError: there is no such model.
    """
    phase, folder, settings = PHASES[name], run.output / name, run.settings(name)
    initial = _initial_weights(name, run, start)
    sources, unseen = anatomy(run, phase.spacing_mm)
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


def anatomy(run: Run, spacing_mm: float) -> tuple[list[Source], list[Source]]:
    """Load the sources for training, and the phantoms for validation."""
    cache = run.cache or run.output / "sources"
    phantoms = PHANTOMS[: run.phantoms[0]]
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
    generator = Generator(sources, sizes=phase.sizes, repertoire=repertoire, **arguments)
    phantoms = Generator(unseen, repertoire=repertoire, **arguments)
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


def _initial_weights(name: str, run: Run, start: str | None) -> Mapping[str, torch.Tensor] | None:
    if start is not None:
        return trained_weights(start, PHASES[name].stage or name, run.left_out)
    before = PHASES[name].starts_from
    if before is None:
        return None
    path = run.output / before / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path} is missing: train {before} first.")
    return load_file(path)


def trained_weights(model: str, stage: str, left_out: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The weights of a model's stage as trained: in a loaded model the norms are folded into convolutions.

    :raises LiverXAILib.errors.InputError: the model has no such stage, or was trained on a patient in `left_out`.
    :raises LiverXAILib.errors.ModelError: there is no such model.
    """
    spec, states = load_states(model)
    if stage not in states:
        raise InputError(f"Model {model} has no network {stage!r}, but {' and '.join(states)}.")
    require_unseen(spec, left_out)
    return states[stage][0]


def require_unseen(spec: ModelSpec, patients: Sequence[str]) -> None:
    """Check that a model was not trained on any of the patients, as far as its card says what it was trained on.

    :raises LiverXAILib.errors.InputError: it was.
    """
    unseen = never_trained_on(_runs_of(spec), patients)
    if known := [patient for patient in patients if patient not in unseen]:
        raise InputError(f"The model was trained on {' and '.join(known)}: use one that was not.")


def never_trained_on(runs: Mapping[str, Mapping[str, Any]], patients: Sequence[str]) -> list[str]:
    """Those of the patients that all runs left out. Runs without a record are older than the data of these patients."""
    return [name for name in patients if all(name in run.get("left_out", patients) for run in runs.values())]


def _runs_of(spec: ModelSpec) -> Mapping[str, Mapping[str, Any]]:
    return spec.training.get("runs", {})


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


def tune(run: Run, start: str = BUNDLED) -> None:
    """Continue from a model's liver network with the phase "tuning", unless it is finished; keep the model's locator.

    :raises LiverXAILib.errors.InputError: a finished phase was trained otherwise; also as :func:`train_phase`.
    """
    if not _is_finished("tuning", run, start):
        train_phase("tuning", run, start=start)


def _is_finished(name: str, run: Run, start: str | None = None) -> bool:
    """Whether a phase is finished.

    :raises LiverXAILib.errors.InputError: it is, but was trained with other settings or from another start.
    """
    finished = run.output / name / RUN
    if not finished.is_file():
        return False
    before = json.loads(finished.read_text(encoding="utf-8"))
    expected = {"settings": asdict(run.settings(name)), "left_out": list(run.left_out), "start": start}
    if any(before[key] != value for key, value in expected.items()):
        raise InputError(f"{finished.parent} holds another run: choose another folder, or remove it.")
    _log.info("%s is finished", name)
    return True


def export_run(output: Path, quality: Mapping[str, Any] | None = None) -> None:
    """Write ``model/``, which is bundled, and ``logs/``, the rows of each phase, from finished phases.

    A run that continued from a model keeps the stages that it did not train, and lists that model's runs before its
    own.

    :raises LiverXAILib.errors.InputError: a phase is not finished.
    :raises LiverXAILib.errors.ModelError: the model that it continued from is no longer there.
    """
    runs = {
        name: json.loads((output / name / RUN).read_text(encoding="utf-8"))
        for name in PHASES
        if (output / name / RUN).is_file()
    }
    start = next((run["start"] for run in runs.values() if run["start"] is not None), None)
    weights, operating = {}, {}
    for stage in STAGES:
        made = [name for name in runs if PHASES[name].stage == stage]
        if made:
            weights[stage] = load_file(output / made[-1] / WEIGHTS)
            operating[stage] = runs[made[-1]]["operating_points"]
        elif start is not None:
            weights[stage] = trained_weights(start, stage)
        else:
            raise InputError(f"{output / stage / WEIGHTS} is missing: train {stage} first.")
    (output / "logs").mkdir(exist_ok=True)
    for name in runs:
        shutil.copyfile(output / name / LOG, output / "logs" / f"{name}.csv")
    history = {} if start is None else dict(_runs_of(load_states(start)[0]))
    for name, run in runs.items():
        history[_unused(name, history)] = {key: value for key, value in run.items() if key != "start"}
    left_out = never_trained_on(history, next(iter(runs.values()))["left_out"])
    export(weights, output / "model", history, operating, quality, left_out=left_out)


def _unused(name: str, names: Container[str]) -> str:
    """The name, numbered if it is in `names`."""
    numbered = (f"{name} {number}" for number in count(2))
    return next(one for one in chain([name], numbered) if one not in names)
