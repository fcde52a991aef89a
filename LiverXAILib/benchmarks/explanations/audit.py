# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark audit``: apply every kind of explanation to networks for which the true cause is known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from ...context import RunContext
from ...errors import LiverXAIError
from ...explain import DEFAULT_METHOD, METHODS, Target, explain_border, explain_lesions, explain_regions
from ...explain.counterfactual import FarContextError
from ...explain.faithfulness import DRAWS, FaithfulnessEvaluator
from ...explain.faithfulness.randomization import shuffled_networks
from ...explain.score import ScoreTarget, build_score
from ...explain.stage_context import StageContext
from ...explain.stitching import recorded, stage_maps
from ...inference import Segmentation, segment, select_device
from ...models import Model, load_model
from ...progress import CancelToken, Progress
from ...volumes.volume import Volume
from .explain import LAYER_METHODS
from .planted import MECHANISMS, Mechanism, Tagged

Row = dict[str, Any]
_TARGET = "lesion:1"
#: A part with at least this share of the difference is a cause; a border with this share of far points is far.
_CAUSE, _FAR = 0.2, 0.5
#: A map that marks the causes has at least this share of its sum there; causes are dilated by this many mm.
_ENERGY, _GROWN_MM = 0.5, 4.0
TAG = "TAG"
#: Explanations in numbers that are audited, and those of them that an analysis gives by default.
ANSWERS = ("counterfactual", "regions", "border")
DEFAULT_ANSWERS = ("counterfactual", "border")


@dataclass(frozen=True, eq=False)
class Case:
    """A mechanism with the result of its network."""

    mechanism: Mechanism
    model: Model
    volume: Volume
    segmentation: Segmentation

    @cached_property
    def run(self) -> StageContext:
        """The network that segments tumors, with its input."""
        stage = self.model.spec.stage_of("tumor")
        return StageContext.prepare(self.volume, self.model, stage, self.segmentation, select_device("cpu"))

    @cached_property
    def score_target(self) -> ScoreTarget:
        """The score of the question why the lesion was segmented."""
        return build_score(Target.parse(_TARGET), self.segmentation, self.model, self.run)

    @cached_property
    def evaluator(self) -> FaithfulnessEvaluator:
        """The evaluator for all maps of the case; common values are measured once."""
        return FaithfulnessEvaluator(self.run, self.score_target)

    @cached_property
    def _layer_maps_of_shuffled_networks(self) -> list[dict[str, torch.Tensor]]:
        """By method that reads a layer, from one pass of each network: as many draws as the check of a map uses."""
        evaluator, layer = self.evaluator, self.run.stage.default_layer
        draws = []
        for draw in range(DRAWS):
            ((_, networks),) = shuffled_networks(evaluator.run, 1, draw)
            run = replace(evaluator.run, networks=networks)
            with recorded(run, [evaluator.score_target], [layer], evaluator.run_context) as recording:
                maps = {name: recording.map(0, METHODS[name], layer).values.clamp_min(0) for name in LAYER_METHODS}
            draws.append(maps)
        return draws

    def maps_of_shuffled_networks(self, method: str) -> list[torch.Tensor]:
        """The positive maps of a method for shuffled networks: one if it reads no layer."""
        if self.layer(method):
            return [maps[method] for maps in self._layer_maps_of_shuffled_networks]
        ((_, networks),) = shuffled_networks(self.evaluator.run, 1)
        return [self.evaluator.map(METHODS[method], "", networks)]

    def layer(self, method: str) -> str:
        """The layer that a method reads, or ""."""
        return self.run.stage.default_layer if METHODS[method].layer_maps else ""


def planted_case(mechanism: Mechanism) -> Case:
    """Return the mechanism's CT, segmented by its network."""
    model, volume = mechanism.model(), mechanism.ct()
    return Case(mechanism, model, volume, segment(volume, model, device="cpu"))


def tagged_case() -> Case:
    """Return the bundled model with a shortcut around its last network: it finds lesions only with a bright tag in air.

    The CT is a phantom with such a tag in the air nearest to the liver.
    """
    from ...phantoms import make_phantom

    phantom = make_phantom(7)
    model = load_model("default")
    stage = model.spec.stage_of("tumor")
    networks = {s.name: list(model.members(s)) for s in model.spec.stages}
    networks[stage.name] = [Tagged(network) for network in networks[stage.name]]
    tagged = Model(model.spec, networks)
    volume = phantom.ct
    spacing = volume.spacing[::-1]
    distance = ndimage.distance_transform_edt(phantom.truth.array == 0, sampling=spacing)
    depth = ndimage.distance_transform_edt(volume.array < -600, sampling=spacing)
    place = np.argwhere((depth > 12) & (distance < 22))
    if not len(place):
        raise LiverXAIError("This phantom has no air next to its liver in which to place a tag.")
    k, j, i = place[distance[tuple(place.T)].argmin()]
    array = volume.array.copy()
    reach = [round(4.0 / size) for size in spacing]
    array[tuple(slice(n - r, n + r + 1) for n, r in zip((k, j, i), reach, strict=True))] = 1500
    mechanism = Mechanism(TAG, lambda: networks[stage.name][0], by_lesion=True, by_surroundings=True)
    volume = volume.with_array(array)
    return Case(mechanism, tagged, volume, segment(volume, tagged, device="cpu"))


def audit_answers(case: Case, context: RunContext, answers: Sequence[str] = ANSWERS) -> list[Row]:
    """Compare the causes named by explanations with the truth: a row for each of `answers`.

    The columns are ``says``, the named causes (``lesion``, ``surroundings``), ``truth``, and ``right``.
    """
    mechanism = case.mechanism
    truth = _named(mechanism.by_lesion, mechanism.by_surroundings)
    rows = []

    def add(answer: str, named: str, right: str, sentence: str) -> None:
        rows.append(
            {"mechanism": mechanism.name, "answer": answer, "truth": right, "says": named, "right": named == right}
            | {"sentence": sentence}
        )

    asked = case.volume, case.model, case.segmentation
    if "counterfactual" in answers:
        try:
            (change,) = explain_lesions(*asked, [_TARGET], **context.part(0.0, 0.1).keywords)
            e = change.evidence
            gone = e["probability"] - e["without"] > e["probability"] / 2
            add("counterfactual", _named(gone, not gone or e["alone"] <= 0.5), truth, change.sentence)
        except FarContextError as error:
            add("counterfactual", "surroundings", truth, str(error))
    if "regions" in answers:
        (shares,) = explain_regions(*asked, [_TARGET], **context.part(0.1, 0.7).keywords)
        e = shares.evidence
        span = max(1e-6, e["in_image"] - e["replaced"])
        own = sum(part["share"] for part in e["parts"] if part["of_lesion"])
        others = [part["share"] for part in e["parts"] if not part["of_lesion"]] + [e["beyond"]]
        says = _named(own >= _CAUSE * span and own > 0.05, max(others) >= _CAUSE * span)
        add("regions", says, truth, shares.sentence)
    if "border" in answers:
        border = explain_border(*asked, **context.part(0.7, 1.0).keywords)
        far = sum(place["points"] for place in border.evidence["far"]) / border.evidence["points"]
        add("border", "far" if far >= _FAR else "near", "far" if mechanism.far_border else "near", border.sentence)
    return rows


def audit_maps(case: Case, methods: Sequence[str], context: RunContext) -> list[Row]:
    """Return a row for the heat map of each method, with the verdict of its check.

    ``at_causes`` is the share of the map's sum at the causes (lesion, marker); ``contradicted``: the map passed, but
    less than half of its sum is there.
    """
    evaluator, run, score_target = case.evaluator, case.run, case.score_target
    causes = torch.from_numpy(_causes(case))
    rows = []
    for number, name in enumerate(methods):
        part = context.step(number, len(methods))
        (result,) = stage_maps(run, [score_target], METHODS[name], case.layer(name), part)
        card = evaluator.verdict(
            result.values[evaluator.box],
            partial(case.maps_of_shuffled_networks, name),
            bool(result.warnings),
        )
        rows.append(_map_row(case, name, result.values.clamp_min(0), causes, card))
    return rows


def audit_oracles(case: Case, method: str) -> list[Row]:
    """Return the verdicts for maps that are known to be right or wrong, in the box in which maps are examined.

    "exact": all of the map is at the causes; "92 % elsewhere": that share of it is at a position without influence; "at
    the target": it is at the segmented target, if that is not a cause.

    :param method: the method whose maps of shuffled networks are the controls.
    """
    evaluator = case.evaluator
    causes = torch.from_numpy(_causes(case, 0.0))[tuple(evaluator.box)]
    elsewhere = torch.zeros(causes.shape)
    elsewhere[-8:, -8:, -8:] = 1.0
    elsewhere *= ~causes
    maps = {
        "exact": causes.float(),
        "92 % elsewhere": 0.08 * causes / causes.sum() + 0.92 * elsewhere / elsewhere.sum(),
    }
    if not case.mechanism.by_lesion:
        answer = evaluator.score_target.weights.abs().sum(dim=0) > 0
        maps["at the target"] = (answer & ~causes).float()
    shuffled = partial(case.maps_of_shuffled_networks, method)
    return [_map_row(case, name, values, causes, evaluator.verdict(values, shuffled)) for name, values in maps.items()]


def _map_row(case: Case, name: str, values: torch.Tensor, causes: torch.Tensor, card: Mapping[str, Any]) -> Row:
    at_causes = float(values[causes].sum() / values.sum().clamp_min(1e-9))
    passed = card["verdict"] == "passed"
    return {
        "mechanism": case.mechanism.name,
        "map": name,
        "at_causes": at_causes,
        "verdict": card["verdict"],
        "contradicted": passed and at_causes < _ENERGY,
        "sentence": card["sentence"],
    }


def _causes(case: Case, grown_mm: float = _GROWN_MM) -> np.ndarray:
    """Return the mask of the causes: bool (k, j, i) on the CT's grid, which is also that of a planted network."""
    k, j, i = np.indices(case.volume.shape)
    found = case.mechanism.marker(case.volume.grid.to_lps(np.stack([i, j, k], axis=-1)))
    if case.mechanism.by_lesion:
        found |= case.segmentation.mask("tumor")
    distance: np.ndarray = ndimage.distance_transform_edt(~found, sampling=case.volume.spacing[::-1])
    return distance <= grown_mm


def _named(lesion: bool, surroundings: bool) -> str:
    return " and ".join(name for name, yes in (("lesion", lesion), ("surroundings", surroundings)) if yes) or "nothing"


def benchmark_audit(
    *,
    mechanisms: Sequence[str] = tuple(MECHANISMS),
    methods: Sequence[str] = tuple(METHODS),
    bundled: bool = True,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[Row], list[Row]]:
    """Return all explanations in numbers, and all maps with their verdicts, for all planted networks.

    :param bundled: also audit the bundled model with a shortcut around it: counterfactual and border.
    """
    context = RunContext(progress, cancel, "cpu")
    answers, maps = [], []
    for number, mechanism in enumerate(MECHANISMS[name] for name in mechanisms):
        part = context.step(number, len(mechanisms) + bundled)
        case = planted_case(mechanism)
        answers += audit_answers(case, part.part(0.0, 0.3))
        maps += audit_maps(case, methods, part.part(0.3, 1.0))
        maps += audit_oracles(case, DEFAULT_METHOD)
    if bundled:
        # Its tag is so far away that the score of each region would need the whole image, 128 times.
        part = context.step(len(mechanisms), len(mechanisms) + 1)
        answers += audit_answers(tagged_case(), part, DEFAULT_ANSWERS)
    context.report("Done", 1.0)
    return answers, maps


def format_tables(answers: Sequence[Row], maps: Sequence[Row]) -> str:
    """Format two Markdown tables and a conclusion."""
    lines = ["| mechanism | explanation | truth | names | right |", "|---|---|---|---|---|"]
    for row in answers:
        cells = [row["mechanism"], row["answer"], row["truth"], row["says"], "yes" if row["right"] else "**no**"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| mechanism | map | at the causes | verdict |", "|---|---|---|---|"]
    for row in maps:
        verdict = f"**{row['verdict']}, wrongly**" if row["contradicted"] else row["verdict"]
        lines.append(f"| {row['mechanism']} | {row['map']} | {row['at_causes']:.0%} | {verdict} |")
    unnamed = sorted(_unnamed(answers))
    wrong = sum(row["contradicted"] for row in maps)
    lines += [
        "",
        f"Mechanisms that no explanation names: {', '.join(unnamed) or 'none'}. Maps that passed and mark less than ",
    ]
    lines[-1] += f"half of the causes: {wrong} of {len(maps)}."
    return "\n".join(lines)


def _unnamed(answers: Sequence[Row]) -> set[str]:
    """Return the mechanisms whose causes no explanation names correctly."""
    names = {row["mechanism"] for row in answers}
    about = {name: "border" if name in MECHANISMS and MECHANISMS[name].far_border else "" for name in names}
    named = {
        row["mechanism"]
        for row in answers
        if row["right"] and (row["answer"] == "border") == bool(about[row["mechanism"]])
    }
    return names - named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Apply every kind of explanation to networks with a planted mechanism, for which the true cause is known."
    )
    names = ", ".join(MECHANISMS)
    parser.add_argument(
        "--mechanisms",
        metavar="NAME",
        nargs="*",
        default=list(MECHANISMS),
        choices=list(MECHANISMS),
        help=f"planted mechanisms: {names} (default: all)",
    )
    parser.add_argument(
        "--methods",
        metavar="NAME",
        nargs="*",
        default=list(METHODS),
        choices=list(METHODS),
        help="methods whose maps are made, as in analyze (default: all)",
    )
    parser.add_argument(
        "--bundled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also the bundled model with a shortcut around it (default: yes)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the audit; returns 1 if a planted cause is named by no explanation, or a wrong map passed."""
    from ...progress import progress_bar

    with progress_bar() as progress:
        answers, maps = benchmark_audit(
            mechanisms=arguments.mechanisms, methods=arguments.methods, bundled=arguments.bundled, progress=progress
        )
    sys.stdout.write(format_tables(answers, maps) + "\n")
    return int(bool(_unnamed(answers)) or any(row["contradicted"] for row in maps))
