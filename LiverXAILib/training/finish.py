# SPDX-License-Identifier: Apache-2.0
"""The steps after training: export the best epoch as a model folder, evaluate it, explain cases, write a card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..context import RunContext
from ..evaluation.evaluate import evaluate
from ..evaluation.results import CaseResult, format_results, summarize, write_results
from ..files import replacing
from ..inference import segment
from ..models.loading import load_model
from ..progress import Progress
from ..text import counted
from .config import Config
from .layouts import DataSet, TrainingCase, read_case
from .setup import TrainingSetup
from .splits import Split
from .table import markdown, score, write_curves

#: Prints a line for the user.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: its folder, the measures of each epoch, and the evaluation at the end."""

    folder: Path
    rows: tuple[Mapping[str, float], ...]
    results: tuple[CaseResult, ...]
    warnings: tuple[str, ...]


def finish(
    config: Config,
    dataset: DataSet,
    split: Split,
    setup: TrainingSetup,
    folder: Path,
    rows: Sequence[Mapping[str, float]],
    say: Say,
    progress: Progress | None,
) -> Outcome:
    """Export the best epoch, evaluate it case by case, explain some cases, and write the card."""
    state = torch.load(folder / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    best, found_warnings = best_epoch(rows), _warnings(rows)
    write_curves(rows, folder)
    training = {
        "data": f"layout {config.data.layout}: {counted(len(split.training), 'training case')}"
        + (", with synthetic lesions in livers without labeled tumors" if config.data.synthetic_lesions else ""),
        "labels": ", ".join(setup.labels),
        "init": f"{config.init}, stage {setup.stage.name}" if config.init else "random weights",
        "epochs": len([row for row in rows if row["epoch"] > 0]),
        "best_epoch": int(best["epoch"]),
        "recipe": config.recipe(),
    }
    model = folder / "model"
    setup.export(weights, model, config, training, {"note": "not measured"})
    results: list[CaseResult] = []
    if config.finish.evaluate:
        results = _evaluate(config, dataset, split.validation, model, progress)
        for ending in ("csv", "json"):
            write_results(results, folder / f"evaluation.{ending}")
        say("\n" + format_results(results))
        setup.export(weights, model, config, training, _quality(results, best))
    if config.finish.explain:
        _explain(config, split.validation[: config.finish.examples], model, folder / "examples", progress)
    _write_card(folder, training, rows, results, found_warnings)
    for warning in found_warnings:
        say(f"warning: {warning}")
    say(f"The model is in {model}: liverxai analyze CT --model {model} --output FOLDER")
    return Outcome(folder, tuple(rows), tuple(results), tuple(found_warnings))


def _evaluate(
    config: Config, dataset: DataSet, cases: Sequence[TrainingCase], folder: Path, progress: Progress | None
) -> list[CaseResult]:
    """Segment each case as ``analyze`` would, and compare it with its labels on its own grid."""
    model = load_model(folder)
    context = RunContext(progress)
    results = []
    for number, case in enumerate(cases):
        context.report(f"Evaluating case {number + 1} of {len(cases)}", number / len(cases))
        volume, truth = read_case(case, dataset.values)
        segmentation = segment(volume, model, device=_device(config))
        labels = {"liver": 1, **({"tumor": 2} if case.tumor_known else {})}
        if not case.tumor_known:
            truth = (truth > 0).astype(truth.dtype)
        predicted = {spec.name: spec.value for spec in segmentation.specs if spec.name in ("liver", "tumor")}
        results.append(
            evaluate(
                segmentation.labels,
                volume.with_array(truth),
                labels,
                predicted_labels=predicted,
                probabilities=segmentation.probabilities,
                surface=config.finish.surface,
                name=case.name,
            )
        )
    return results


def _explain(
    config: Config, cases: Sequence[TrainingCase], model: Path, folder: Path, progress: Progress | None
) -> None:
    from ..options import Options

    loaded = load_model(model)
    targets = tuple(label.name for label in loaded.spec.labels if label.name in ("liver", "tumor"))
    options = Options(explain=targets, method=str(config.finish.explain), scene=False)
    for case in cases:
        analysis = options.analyze(options.read(case.image), loaded, RunContext(progress, device=_device(config)))
        options.save(analysis, folder / case.name)


def _quality(results: Sequence[CaseResult], best: Mapping[str, float]) -> dict[str, Any]:
    """The quality measures for the model card."""
    summary = {
        f"{row['structure']} {row['metric']}": round(row["value"], 4)
        for row in summarize(results)
        if row["value"] is not None and row["metric"] in _CARD_METRICS
    }
    return {
        "measured": f"on the {len(results)} validation cases of this run, which were not trained on, but were used to "
        f"select the epoch ({int(best['epoch'])})",
        **summary,
    }


_CARD_METRICS = ("dice", "hd95_mm", "assd_mm", "nsd", "ece", "sensitivity", "precision", "false lesions per case")


def _write_card(
    folder: Path,
    training: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    results: Sequence[CaseResult],
    found_warnings: Sequence[str],
) -> None:
    """Write ``card.md``, a readable description of the model."""
    facts = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in training.items() if key != "recipe")
    measured = f"```\n{format_results(results)}\n```" if results else "Not measured (finish.evaluate is off)."
    cautions = "".join(f"\n**Warning.** {warning}\n" for warning in found_warnings)
    nothing = best_epoch(rows).get("validation_accuracy_of_nothing", math.nan)
    text = f"""# Model card: {folder.resolve().name}

For research use only. Not for diagnosis or treatment.
{cautions}
## Training
{facts}

{markdown(rows)}
Accuracy is the fraction of voxels with the correct label. An empty segmentation would reach {nothing:.4f} on the
validation cases: judge by Dice.

![Learning curve](learning-curve.png)

## Validation cases
They were not trained on, but were used to select the epoch.

{measured}

The settings are in `config.yaml`, the cases in `splits.json`.
"""
    with replacing(folder / "card.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _warnings(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Warnings about the course of the training."""
    if rows[0]["epoch"] != 0:
        return []
    first, best = score(rows[0]), score(best_epoch(rows))
    if best < first:
        return [
            f"Validation got worse: the best epoch has a mean Dice of {best:.3f}, the initial model {first:.3f}. Keep "
            "the initial model, or try more cases, a smaller learning rate, or fewer epochs."
        ]
    return []


def best_epoch(rows: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The epoch with the best validation score; the first one in case of a tie."""
    return max((row for row in rows if row["epoch"] > 0), key=score)


def _device(config: Config) -> str:
    return {"auto": "auto", "cpu": "cpu", "mps": "mps"}.get(config.hardware.accelerator, "cuda")
