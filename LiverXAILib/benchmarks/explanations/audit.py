# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark audit``: every kind of explanation asked about networks of which the right answer is known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
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
from ...explain.methods import Method
from ...explain.score import ScoreTarget, build_score
from ...explain.stage_context import StageContext
from ...explain.stitching import stage_maps
from ...inference import Segmentation, segment, select_device
from ...models import Model, load_model
from ...progress import CancelToken, Progress
from ...volumes.volume import Volume
from .planted import MECHANISMS, Mechanism, Tagged

Row = dict[str, Any]
_TARGET = "lesion:1"
#: A part with at least this of the difference is named as a cause, and a border with so many far points as far.
_CAUSE, _FAR = 0.2, 0.5
#: A map that marks the causes has at least this of its sum there; causes are grown by this many mm.
_ENERGY, _GROWN_MM = 0.5, 4.0
TAG = "TAG"
#: Answers that are audited, and of them those that an analysis gives without being asked.
ANSWERS = ("counterfactual", "regions", "border")
DEFAULT_ANSWERS = ("counterfactual", "border")


@dataclass(frozen=True, eq=False)
class Case:
    """A mechanism with what its network found."""

    mechanism: Mechanism
    model: Model
    volume: Volume
    segmentation: Segmentation

    @cached_property
    def run(self) -> StageContext:
        """The network that decides about tumors, and the CT as it sees it."""
        stage = self.model.spec.stage_of("tumor")
        return StageContext.prepare(self.volume, self.model, stage, self.segmentation, select_device("cpu"))

    @cached_property
    def score_target(self) -> ScoreTarget:
        """The question why the lesion is one."""
        return build_score(Target.parse(_TARGET), self.segmentation, self.model, self.run)

    @cached_property
    def evaluator(self) -> FaithfulnessEvaluator:
        """What examines all maps of the case; what is the same for each is measured once."""
        return FaithfulnessEvaluator(self.run, self.score_target)


def planted_case(mechanism: Mechanism) -> Case:
    """The mechanism's CT, segmented by its network."""
    model, volume = mechanism.model(), mechanism.ct()
    return Case(mechanism, model, volume, segment(volume, model, device="cpu"))


def tagged_case() -> Case:
    """The bundled model with a shortcut around its last network: it finds lesions only if a bright tag lies in air.

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
    liver = segment(volume, model, device="cpu").mask("liver")
    spacing = volume.spacing[::-1]
    distance = ndimage.distance_transform_edt(~liver, sampling=spacing)
    depth = ndimage.distance_transform_edt(volume.array < -600, sampling=spacing)
    place = np.argwhere((depth > 12) & (distance < 22))
    if not len(place):
        raise LiverXAIError("This phantom has no air beside its liver, in which a tag could lie.")
    k, j, i = place[distance[tuple(place.T)].argmin()]
    array = volume.array.copy()
    reach = [round(4.0 / size) for size in spacing]
    array[tuple(slice(n - r, n + r + 1) for n, r in zip((k, j, i), reach, strict=True))] = 1500
    mechanism = Mechanism(TAG, lambda: networks[stage.name][0], by_lesion=True, by_surroundings=True)
    volume = volume.with_array(array)
    return Case(mechanism, tagged, volume, segment(volume, tagged, device="cpu"))


def audit_answers(case: Case, context: RunContext, answers: Sequence[str] = ANSWERS) -> list[Row]:
    """What the answers name as causes, beside the truth: a row for each of `answers`.

    The columns: ``says``, what is named (``lesion``, ``surroundings``), ``truth``, and ``right``.
    """
    mechanism = case.mechanism
    truth = _named(mechanism.by_lesion, mechanism.by_surroundings)
    rows = []

    def add(answer: str, said: str, right: str, sentence: str) -> None:
        rows.append(
            {"mechanism": mechanism.name, "answer": answer, "truth": right, "says": said, "right": said == right}
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
    """The heat map of each method with the verdict of its check: a row for each.

    ``at_causes`` is the part of the map's sum that lies at the causes (lesion, marker); ``contradicted``: it passed and
    less than half of it lies there.
    """
    evaluator, run, score_target = case.evaluator, case.run, case.score_target
    causes = torch.from_numpy(_causes(case))
    rows = []
    for number, name in enumerate(methods):
        method, part = METHODS[name], context.step(number, len(methods))
        layer = run.stage.default_layer if method.layer_maps else ""
        (result,) = stage_maps(run, [score_target], method, layer, part)
        card = evaluator.verdict(
            result.values[evaluator.box],
            partial(_of_shuffled_networks, evaluator, method, layer),
            bool(result.warnings),
        )
        rows.append(_map_row(case, name, result.values.clamp_min(0), causes, card))
    return rows


def audit_oracles(case: Case, method: str) -> list[Row]:
    """The verdict about maps that are known to be right or wrong, in the box in which maps are examined.

    "exact": all of the map at the causes; "92 % elsewhere": that much of it at a place without influence; "at the
    answer": where the answer was given, if that is no cause.

    :param method: of whose maps of shuffled networks the controls are.
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
        maps["at the answer"] = (answer & ~causes).float()
    shuffled = cache(lambda: _of_shuffled_networks(evaluator, METHODS[method], case.run.stage.default_layer))
    return [_map_row(case, name, values, causes, evaluator.verdict(values, shuffled)) for name, values in maps.items()]


def _of_shuffled_networks(evaluator: FaithfulnessEvaluator, method: Method, layer: str) -> list[torch.Tensor]:
    """As many maps of shuffled networks as a single map's check takes."""
    return [
        evaluator.map(method, layer, networks)
        for draw in range(DRAWS if layer else 1)
        for _, networks in shuffled_networks(evaluator.run, 1, draw)
    ]


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
    """Where the causes are: bool (k, j, i) as the CT, on whose grid a planted network works."""
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
    """All answers, and all maps with their verdicts, about all planted networks.

    :param bundled: also about the bundled model with a shortcut around it: counterfactual and border.
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
        # Its tag lies so far away that the parts would be asked of whole images, 128 times.
        part = context.step(len(mechanisms), len(mechanisms) + 1)
        answers += audit_answers(tagged_case(), part, DEFAULT_ANSWERS)
    context.report("Done", 1.0)
    return answers, maps


def format_tables(answers: Sequence[Row], maps: Sequence[Row]) -> str:
    """Two Markdown tables and what follows from them."""
    lines = ["| mechanism | answer | truth | says | right |", "|---|---|---|---|---|"]
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
        f"Mechanisms that no answer names: {', '.join(unnamed) or 'none'}. Maps that passed and mark less than ",
    ]
    lines[-1] += f"half of the causes: {wrong} of {len(maps)}."
    return "\n".join(lines)


def _unnamed(answers: Sequence[Row]) -> set[str]:
    """The mechanisms whose causes no answer names rightly."""
    names = {row["mechanism"] for row in answers}
    about = {name: "border" if name in MECHANISMS and MECHANISMS[name].far_border else "" for name in names}
    named = {
        row["mechanism"]
        for row in answers
        if row["right"] and (row["answer"] == "border") == bool(about[row["mechanism"]])
    }
    return names - named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.description = (
        "Ask every kind of explanation about networks with a planted mechanism, of which the right answer is known."
    )
    parser.add_argument("--mechanisms", nargs="*", default=list(MECHANISMS), choices=list(MECHANISMS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="default: all")
    parser.add_argument(
        "--bundled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also the bundled model with a shortcut around it (default: yes)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the audit; returns 1 if a planted cause is named by no answer, or a wrong map passed."""
    from ...progress import progress_bar

    with progress_bar() as progress:
        answers, maps = benchmark_audit(
            mechanisms=arguments.mechanisms, methods=arguments.methods, bundled=arguments.bundled, progress=progress
        )
    sys.stdout.write(format_tables(answers, maps) + "\n")
    return int(bool(_unnamed(answers)) or any(row["contradicted"] for row in maps))
