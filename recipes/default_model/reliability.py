# SPDX-License-Identifier: Apache-2.0
"""How often the default model's findings are true: a logistic regression on findings with known ground truth.

``python -m recipes.default_model.reliability --data FOLDER --output FOLDER`` segments phantoms that no network was
trained on, and the CT of ``--data`` that may be trained on, with lesions painted into their livers. It fits the
regression, and writes it into a copy of the model card along with a table and a figure of its calibration. Finished
cases are read from the output folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata

from LiverXAILib.evaluation.metrics import COVERED
from LiverXAILib.files import replacing
from LiverXAILib.inference import segment
from LiverXAILib.inference.geometry import network_orientation_grid
from LiverXAILib.inference.lesions import candidate_components, lesion_components
from LiverXAILib.measure.reliability import DOUBTFUL, LIKELY, finding_features, rate_finding
from LiverXAILib.models import Model, load_model
from LiverXAILib.models.checks import FEATURES
from LiverXAILib.models.spec import Reliability
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.training.lesion_painting import add_lesions
from LiverXAILib.training.random_fields import Rng
from LiverXAILib.volumes.box import bounding_box
from LiverXAILib.volumes.io import read_labels, read_volume
from LiverXAILib.volumes.resample import regrid, resample
from LiverXAILib.volumes.volume import Volume

from .sources import AXES

_log = logging.getLogger(__name__)

#: Phantoms that are used for nothing else. Every other one has painted lesions, with soft edges.
PHANTOMS = range(4000, 4030)
#: Voxel sizes of the phantoms, in turn, (i, j, k) in mm.
_SPACINGS = ((1.5, 1.5, 3.0), (1.2, 1.2, 2.0), (1.5, 1.5, 5.0))
#: Real CT whose livers have, as far as is known, no lesions; outlined tumors; or unknown lesions.
CLEAN = ("lidc0001", "pancreas_cb001", "totalseg_abdomen_3mm", "hcc005_pre")
OUTLINED = (
    "hcc005_a1",
    "hcc005_a3",
    "hcc007_b2",
    "hcc007_b3",
    "hcc009_a1",
    "hcc009_a3",
    "hcc013_a1",
    "hcc013_a2",
    "hcc015_1",
    "hcc015_3",
)
UNKNOWN = (
    "hcc002_b",
    "hcc006_p",
    "hcc011_2",
    "crlm1004",
    "crlm1006",
)
#: How often lesions are painted into each scan without outlined tumors, in addition to the unchanged scan.
PAINTINGS = 1
#: Voxel size at which lesions are painted.
_PAINTED_MM = 2.0
#: Whether more of a feature makes a finding more (1) or less (-1) reliable.
SIGNS = {"border_entropy": -1, "compactness": 1, "mean_probability": 1, "edge_share": -1, "log10_ml": 1}
#: Strength of the penalty on the weights, folds of patients, and bins of the calibration.
_RIDGE, _FOLDS, _BINS = 1.0, 20, (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.01)

Finding = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A CT, where its lesions are, and where it is known that there are no others (bool (k, j, i))."""

    ct: Volume
    lesions: np.ndarray
    known: np.ndarray


def cases(data: Path, phantoms: Sequence[int] = PHANTOMS) -> dict[str, Callable[[], Case]]:
    """Functions that make the cases, by name. The part before a "#" is the patient or the phantom."""
    makers: dict[str, Callable[[], Case]] = {}
    for seed in phantoms:
        makers[f"phantom_{seed}"] = partial(_phantom, seed)
    for name in (*CLEAN, *OUTLINED, *UNKNOWN):
        for painting in range(1 if name in OUTLINED else PAINTINGS + 1):
            makers[f"{name}#{painting}"] = partial(_real, data / "ct" / name, painting)
    return makers


def _phantom(seed: int) -> Case:
    spacing = _SPACINGS[seed % len(_SPACINGS)]
    if seed % 2 == 0:
        phantom = make_phantom(seed, spacing_mm=spacing)
        return Case(phantom.ct, phantom.truth.array == 2, np.ones(phantom.ct.shape, bool))
    phantom = make_phantom(seed, spacing_mm=spacing, lesions=False)
    ct, lesions = _painted(phantom.ct, phantom.truth.array > 0, seed)
    return Case(ct, lesions, np.ones(ct.shape, bool))


def _real(folder: Path, painting: int) -> Case:
    """Make a case from a real CT, with different painted lesions for each number; none for 0.

    If lesions are unknown, only findings outside the liver are known to be false. Findings outside painted lesions
    occur in the unchanged scan, and do not count again.
    """
    ct = read_volume(folder / "image.nii.gz")
    if (folder / "liver.nii.gz").is_file():
        liver = read_labels(folder / "liver.nii.gz").array > 0
    else:
        liver = read_labels(folder / "organs.nii.gz").array == 5
    lesions = np.zeros(ct.shape, bool)
    if (folder / "tumor.nii.gz").is_file():
        lesions = read_labels(folder / "tumor.nii.gz").array > 0
    known = np.ones(ct.shape, bool) if folder.name in CLEAN else ~liver
    if painting:
        seed = zlib.crc32(f"{folder.name}#{painting}".encode())
        ct, lesions = _painted(ct, liver, seed)
        known[:] = False
    return Case(ct, lesions, known)


def _painted(ct: Volume, liver: np.ndarray, seed: int) -> tuple[Volume, np.ndarray]:
    """Paint lesions as in training into the liver of `ct`: the CT plus the *difference*, and the lesions' mask."""
    box = bounding_box(liver)
    assert box is not None
    box = box.grown([int(10 / size) + 1 for size in ct.spacing[::-1]], ct.shape)
    part = ct.cropped(box)
    grid = regrid(network_orientation_grid(part.grid, AXES), (_PAINTED_MM,) * 3)
    image = resample(part.array, part.grid, grid, fill=-1024.0)
    inside = resample(liver[box].astype(np.float32), part.grid, grid) > 0.5
    changed, lesions = add_lesions(Rng(seed), image, inside, _PAINTED_MM)
    difference = resample(changed - image, grid, part.grid, antialias=False).numpy()
    array, truth = ct.array.astype(np.float32), np.zeros(ct.shape, bool)
    array[box] += difference
    truth[box] = resample((lesions > 0).float(), grid, part.grid, antialias=False).numpy() > 0.5
    return Volume(np.rint(array).astype(np.int16), ct.ijk_to_lps), truth


def findings(case: Case, model: Model) -> list[Finding]:
    """The findings of `model`, both lesions and candidates: their features, and whether they are true.

    A finding is true if at least a tenth of it lies in a lesion, as in :mod:`LiverXAILib.evaluation.metrics`. Otherwise
    it is false if at least half of it lies where there is known to be no other lesion; else it is left out.
    """
    segmentation = segment(case.ct, model)
    rows = []
    for kind, numbers in (
        ("lesion", lesion_components(segmentation)),
        ("candidate", candidate_components(segmentation)),
    ):
        sizes = np.bincount(numbers.ravel())
        inside = np.bincount(numbers[case.lesions], minlength=sizes.size) / np.maximum(sizes, 1)
        known = np.bincount(numbers[case.known], minlength=sizes.size) / np.maximum(sizes, 1)
        for number, features in enumerate(finding_features(numbers, segmentation), start=1):
            true = bool(inside[number] >= COVERED)
            if true or known[number] >= 0.5:
                rows.append({"kind": kind, "true": true, **features})
    return rows


def collect(data: Path, folder: Path, model: Model, phantoms: Sequence[int] = PHANTOMS) -> Iterator[Finding]:
    """Collect the findings of all cases; each finished case is stored in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in cases(data, phantoms).items():
        path = folder / f"{name}.json"
        if not path.is_file():
            found = findings(make(), model)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
            _log.info("%s: %d findings, %d true", name, len(found), sum(row["true"] for row in found))
        for row in json.loads(path.read_text(encoding="utf-8")):
            # Scans of one patient differ only after the "_" (hcc005_a1, hcc005_a3).
            group = name.split("_")[0] if name.startswith("hcc") else name.split("#")[0]
            yield {"case": name, "group": group, **row}


def fit(rows: Sequence[Finding], source: str = "") -> Reliability:
    """Fit a logistic regression of "true" on the features by penalized maximum likelihood.

    No weight may have the wrong sign (a less distinct border never makes a finding more reliable): otherwise chance
    differences between a few false positives would be learned, and given to readers as a reason.
    """
    table = np.array([[row[name] for name in FEATURES] for row in rows])
    truth = np.array([row["true"] for row in rows], float)
    centers, scales = table.mean(axis=0), np.maximum(table.std(axis=0), 1e-3)
    x = (table - centers) / scales

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] + x @ parameters[1:]
        probability = 1 / (1 + np.exp(-logits))
        value = np.logaddexp(0, logits).sum() - truth @ logits + _RIDGE / 2 * (parameters[1:] ** 2).sum()
        slope = probability - truth
        return value, np.concatenate([[slope.sum()], slope @ x + _RIDGE * parameters[1:]])

    bounds = [(None, None)] + [(0, None) if SIGNS[name] > 0 else (None, 0) for name in FEATURES]
    found = minimize(loss, np.zeros(1 + len(FEATURES)), jac=True, bounds=bounds, method="L-BFGS-B").x
    weights, means, spreads = (
        {name: round(float(value), 4) for name, value in zip(FEATURES, values, strict=True)}
        for values in (found[1:], centers, scales)
    )
    return Reliability(round(float(found[0]), 4), weights, means, spreads, len(rows), int(truth.sum()), source)


def held_out(rows: Sequence[Finding]) -> np.ndarray:
    """The probability of each finding from a regression fitted without its patient or phantom."""
    groups = sorted({row["group"] for row in rows})
    predicted = np.zeros(len(rows))
    for fold in range(min(_FOLDS, len(groups))):
        out = set(groups[fold::_FOLDS])
        model = fit([row for row in rows if row["group"] not in out])
        for number, row in enumerate(rows):
            if row["group"] in out:
                predicted[number] = rate_finding({name: row[name] for name in FEATURES}, model).probability
    return predicted


def calibration(rows: Sequence[Finding], predicted: np.ndarray) -> list[dict[str, Any]]:
    """For each bin of the predicted probability: findings, mean probability, and the fraction that is true.

    The 95% confidence intervals are Wilson's, which treat the findings of one patient as independent.
    """
    truth = np.array([row["true"] for row in rows])
    bins = []
    for low, high in itertools.pairwise(_BINS):
        inside = (predicted >= low) & (predicted < high)
        count, true = int(inside.sum()), int(truth[inside].sum())
        if count:
            least, most = _wilson(true, count)
            bins.append({"low": low, "high": min(high, 1.0), "findings": count, "predicted": predicted[inside].mean(),
                         "true": true / count, "least": least, "most": most})  # fmt: skip
    return bins


def _wilson(true: int, count: int, z: float = 1.96) -> tuple[float, float]:
    share = true / count
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def area_under_curve(truth: np.ndarray, values: np.ndarray) -> float:
    """The probability that a true finding has a larger value than a false one (ties count half)."""
    ranks = rankdata(values)
    positive = int(truth.sum())
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def summary(rows: Sequence[Finding], reliability: Reliability, predicted: np.ndarray) -> str:
    """The measures as Markdown."""
    truth = np.array([row["true"] for row in rows])
    real = np.array([not row["case"].startswith("phantom") for row in rows])
    lines = ["| findings | all | true | AUC | Brier |", "|---|---|---|---|---|"]
    kinds = {
        "all": np.ones(len(rows), bool),
        "lesions": np.array([row["kind"] == "lesion" for row in rows]),
        "candidates": np.array([row["kind"] == "candidate" for row in rows]),
        "in phantoms": ~real,
        "in real CT": real,
    }
    for name, chosen in kinds.items():
        both = 0 < truth[chosen].sum() < chosen.sum()
        auc = f"{area_under_curve(truth[chosen], predicted[chosen]):.2f}" if both else "–"
        brier = f"{((predicted - truth)[chosen] ** 2).mean():.3f}" if chosen.any() else "–"
        lines.append(f"| {name} | {chosen.sum()} | {truth[chosen].sum()} | {auc} | {brier} |")
    lines += ["", "| feature | weight per SD | mean | SD | AUC alone |", "|---|---|---|---|---|"]
    for name in FEATURES:
        alone = area_under_curve(truth, np.array([SIGNS[name] * row[name] for row in rows]))
        lines.append(
            f"| {name} | {reliability.weights[name]:.2f} | {reliability.centers[name]:.2f} | "
            f"{reliability.scales[name]:.2f} | {alone:.2f} |"
        )
    lines += ["", "| predicted | findings | mean predicted | true | 95 % interval |", "|---|---|---|---|---|"]
    for row in calibration(rows, predicted):
        lines.append(
            f"| {row['low']:.1f} to {row['high']:.1f} | {row['findings']} | {row['predicted']:.2f} | {row['true']:.2f} "
            f"| {row['least']:.2f} to {row['most']:.2f} |"
        )
    words = {"likely": predicted >= LIKELY, "doubtful": predicted < DOUBTFUL}
    words["uncertain"] = ~(words["likely"] | words["doubtful"])
    lines += ["", "| word | findings | true |", "|---|---|---|"]
    lines += [f"| {word} | {chosen.sum()} | {truth[chosen].sum()} |" for word, chosen in words.items()]
    return "\n".join(lines)


def draw(rows: Sequence[Finding], predicted: np.ndarray, path: Path) -> None:
    """Draw the calibration curve and a histogram of the probabilities."""
    from matplotlib.figure import Figure

    bins = calibration(rows, predicted)
    figure = Figure(figsize=(4.6, 4.6), dpi=130, layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
    x, y = [row["predicted"] for row in bins], [row["true"] for row in bins]
    # Rounding can leave the end of an interval a little inside the fraction.
    spread = [
        [max(0.0, row["true"] - row["least"]) for row in bins],
        [max(0.0, row["most"] - row["true"]) for row in bins],
    ]
    axes.errorbar(x, y, yerr=spread, fmt="o-", color="#1f5f8b", capsize=3, linewidth=1.2, markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="fraction of findings that are true")
    truth = np.array([row["true"] for row in rows])
    edges = np.linspace(0, 1, 21)
    below.hist([predicted[truth], predicted[~truth]], edges, stacked=True, color=["#1f5f8b", "#c8553d"],
               label=["true", "false"])  # fmt: skip
    below.set(xlabel="probability from a regression fitted without the patient", ylabel="findings")
    below.legend(frameon=False, fontsize=8)
    for one in (axes, below):
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fit the probability that the default model's findings are true.")
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/")
    parser.add_argument("--output", type=Path, required=True, help="gets findings/, card.json, calibration.md and .png")
    parser.add_argument("--model", default="default", help="name or folder (default: default)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    model = load_model(options.model)
    rows = list(collect(options.data, options.output / "findings", model))
    reliability = fit(rows, "python -m recipes.default_model.reliability")
    predicted = held_out(rows)
    card = replace(model.spec, reliability=reliability).to_json()
    (options.output / "card.json").write_text(card, encoding="utf-8")
    (options.output / "calibration.md").write_text(summary(rows, reliability, predicted) + "\n", encoding="utf-8")
    draw(rows, predicted, options.output / "calibration.png")


if __name__ == "__main__":
    main()
