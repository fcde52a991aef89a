# SPDX-License-Identifier: Apache-2.0
"""How far a heat map can be trusted: checks of one explanation, each with its formula, source and controls.

All checks run in one box: the window with the largest share in the question, or the part of it around the target (see
:meth:`LiverXAILib.explain.score.ScoreTarget.in_focus`), on the grid of the network. The box is enlarged until the
model's prediction in it agrees with that in the whole image. For a 2-D network it contains all slices of the target. In
the box, the checks use

    f(x) = sum_y T(y) p(y; x) / sum_y T(y),

the mean probability p of the answer over the target's share T of the box, for an image x. To "delete" a voxel is to
replace it by plain tissue of the same patient (:func:`LiverXAILib.explain.fill.plain_tissue`): liver for lesions, the
prevailing surrounding tissue for an organ. With air or zeros, the network would respond to their edges (Hase et al.
2021, "The Out-of-Distribution Problem in Explainability"). The alternative, a blurred CT, keeps its lesions: they are
still darker than the liver, only with softer edges, so that their effect is underestimated.

A number alone says little, so the same numbers are computed for maps that explain nothing: the network's own score
("logit map"), the CT's edges, smooth noise, and maps of the same method for networks whose weights were shuffled. The
verdict is derived from the numbers in :mod:`LiverXAILib.explain.faithfulness.verdict`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ...context import UNATTENDED, RunContext
from ...errors import UsageError
from ...volumes.box import Box
from ..fill import distance_mm, plain_tissue
from ..methods import Method
from ..score import AGREEMENT, CONTEXT_MM, EXAMINED_MM, ScoreTarget, blended_logits, mean_probability
from ..stage_context import BLUR_MM, StageContext, StageMap, gaussian
from ..stitching import stage_maps
from .randomization import mirror_correlations, shuffled_networks, spearman
from .verdict import TESTABLE, verdict_and_sentence

#: Points of the deletion and insertion curves, including both ends.
POINTS = 8
#: Number of parts into which the network's layers are divided for the cascading randomization.
LEVELS = 4
#: How often all weights are shuffled: by chance, a single shuffled network may give a similar map, or an opposite one.
#: An odd number, so that the median is one of the draws.
DRAWS = 5
#: How many maps of smooth noise the drop is compared with.
NOISE_DRAWS = 7
#: Standard deviation of the noise of the stability check.
NOISE_HU = 10.0
#: Structures this close to the target count as part of it when its surroundings are replaced.
_RIM_MM = 5.0
#: Radii around the target within which the effect is searched, and the fraction of the effect that must be found.
_REGIONS_MM, _EFFECT = (0.0, 4.0, 8.0, 16.0, 32.0, 64.0), 0.9


class FaithfulnessEvaluator:
    """The box in which a question is examined, and everything that does not depend on the map: scores and controls.

    Deterministic: all random numbers come from a fixed seed.

    :param points: number of points of the deletion and insertion curves, including both ends.
    :param limit_mm: maximum size of the box if the network accepts images of any size; larger boxes are tried if the
        model's prediction in it differs from that in the whole image.
    :param baseline: what replaces voxels: "fill", plain tissue of the patient; "blur", the blurred CT, which keeps part
        of what was there. Where no plain tissue is found, the blurred CT is used.
    """

    def __init__(
        self,
        run: StageContext,
        score_target: ScoreTarget,
        context: RunContext = UNATTENDED,
        points: int = POINTS,
        limit_mm: float = EXAMINED_MM,
        baseline: Literal["fill", "blur"] = "fill",
    ) -> None:
        self.run_context = context
        self.points = points
        self.passes = 0
        # Almost all passes that a check takes, for the progress.
        self._expected = 10 * (points - 2) + LEVELS + DRAWS + NOISE_DRAWS + len(_REGIONS_MM) + 8
        self.depends_on_far = ""
        odds = score_target.evidence(blended_logits(run, score_target, context))
        run, score_target = score_target.over_slices(run)
        for limit, reach in ((limit_mm, CONTEXT_MM), (1.7 * limit_mm, 2 * CONTEXT_MM), (None, 0.0)):
            self.run, self.score_target, self.box = score_target.in_focus(run, limit, reach)
            self._weights = self.score_target.share
            self.intact = self.score(self.run.image)
            self.in_image = self._in_image(score_target, odds)
            if abs(self.intact - self.in_image) <= AGREEMENT:
                break
        else:
            self.depends_on_far = (
                f"the model's prediction depends on what lies far away; its confidence is {self.in_image:.2f} in the "
                f"whole image, but {self.intact:.2f} in the part of it that can be examined."
            )
        voxel = float(np.prod(run.spacing))
        radius = (float((score_target.weights.abs().sum(dim=0) > 0).sum()) * voxel * 0.75 / np.pi) ** (1 / 3)
        self.blur_mm = max(BLUR_MM, radius / 2)
        self.baseline, self._replacement = self._reference(run, baseline)
        self._volume_ml = float(np.prod(self.run.plan.shape)) * voxel / 1000

    def _in_image(self, score_target: ScoreTarget, odds: torch.Tensor) -> float:
        """The mean probability of the prediction in the whole image, over the part of the target in the box."""
        common = self.box.intersection(score_target.box)
        assert common is not None
        weights = self._weights[common.relative_to(self.box)]
        return mean_probability(odds[common.relative_to(score_target.box)], weights)

    def _reference(self, run: StageContext, baseline: str) -> tuple[str, torch.Tensor]:
        """A description of what replaces voxels, and the network input that shows it everywhere in the box."""
        if baseline == "fill":
            try:
                level, plain = plain_tissue(self.run, self._weights > 0, self.score_target.target.label)
                return f"plain tissue of this patient at {level:.0f} HU", plain
            except UsageError:
                pass
        return f"the CT after a Gaussian of {self.blur_mm:.3g} mm", _blurred(run, self.box, self.blur_mm)

    @cached_property
    def erased(self) -> float:
        """f of the image in which everything is replaced."""
        return self.score(self._replacement)

    @cached_property
    def logits(self) -> torch.Tensor:
        """Log-odds of the prediction at each voxel of the window: a map that explains nothing but looks right."""
        return self._evidence(self.run.image)

    @cached_property
    def _edges(self) -> torch.Tensor:
        """Gradient magnitude of the CT."""
        spacing = self.run.spacing
        smooth = gaussian(self.run.image, [2.0 / size for size in spacing])
        slopes = [torch.gradient(smooth, dim=axis)[0] / spacing[axis] for axis in range(3) if smooth.shape[axis] > 1]
        return torch.stack(slopes).norm(dim=0)

    @cached_property
    def _edges_drop(self) -> float:
        share: float = self.drop(self._edges)["share"]
        return share

    @cached_property
    def controls(self) -> dict[str, dict[str, Any]]:
        """Curves of the control maps that do not depend on the method."""
        spacing = self.run.spacing
        noise = torch.randn(self.run.image.shape, generator=self._generator(1))
        return {
            "logit map": self.curves(self.logits),
            "edges": self.curves(self._edges),
            "smooth noise": self.curves(gaussian(noise, [8.0 / size for size in spacing])),
        }

    @cached_property
    def noise_drops(self) -> list[float]:
        """:meth:`drop` of maps of smooth noise: random places."""
        sigmas = [8.0 / size for size in self.run.spacing]
        draws = (torch.randn(self.run.image.shape, generator=self._generator(10 + n)) for n in range(NOISE_DRAWS))
        return [self.drop(gaussian(noise, sigmas))["share"] for noise in draws]

    @cached_property
    def region(self) -> dict[str, Any]:
        """The smallest region around the target that has 90 % of the effect of replacing everything.

        Replacing it is a counterfactual; no map is needed. ``radius_mm`` around the target, ``ml``, and ``effect``, the
        region's fraction of the effect; ``mask``: its voxels in the box.
        """
        distance = distance_mm(self._weights > 0, self.run.spacing)
        span = self.intact - self.erased
        for radius in (*_REGIONS_MM, float("inf")):
            mask = distance <= radius
            effect = (self.intact - self.score(torch.where(mask, self._replacement, self.run.image))) / (span or 1e-9)
            if effect >= _EFFECT or bool(mask.all()):
                break
        voxel_ml = float(np.prod(self.run.spacing)) / 1000
        return {
            "radius_mm": radius if np.isfinite(radius) else None,
            "ml": round(float(mask.sum()) * voxel_ml, 2),
            "effect": round(effect, 4),
            "mask": mask,
        }

    def drop(self, values: torch.Tensor) -> dict[str, Any]:
        """The effect on f of replacing the voxels that `values` ranks highest, as many as the target has.

        ``ml``, f ``after`` it, and ``share``, the fraction of the effect of replacing everything.
        """
        count = int((self._weights > 0).sum())
        after = self.score(torch.where(self._highest(values, count), self._replacement, self.run.image))
        span = self.intact - self.erased
        return {
            "ml": round(count * float(np.prod(self.run.spacing)) / 1000, 3),
            "after": round(after, 5),
            "share": round((self.intact - after) / span, 4) if span >= TESTABLE else 0.0,
        }

    def score(self, image: torch.Tensor) -> float:
        """f of an image of the window's size."""
        return mean_probability(self._evidence(image), self._weights)

    def curves(self, values: torch.Tensor) -> dict[str, Any]:
        """Deletion and insertion of the voxels that `values` ranks highest, and their areas.

        Petsiuk, Das, Saenko, "RISE", BMVC 2018, https://arxiv.org/abs/1806.07421. The n-th point changes the fraction
        (n/N)^3 of the voxels: equal steps in the *width* of what is changed, because in three dimensions a target is a
        small part of the window. Areas are taken over n/N by the trapezoid rule; the gain is insertion minus deletion,
        in units of f(image) - f(replaced image): at most about 1, and about -0.5 for a map that ranks at random;
        0 where these differ by less than 0.05, because nothing is tested then.
        """
        steps = np.linspace(0, 1, self.points)
        order = self._ranking(values)
        deletion, insertion = [self.intact], [self.erased]
        for step in steps[1:-1]:
            top = torch.zeros(values.numel(), dtype=torch.bool)
            top[order[: round(step**3 * values.numel())]] = True
            top = top.reshape(values.shape)
            deletion.append(self.score(torch.where(top, self._replacement, self.run.image)))
            insertion.append(self.score(torch.where(top, self.run.image, self._replacement)))
        deletion.append(self.erased)
        insertion.append(self.intact)
        areas = [
            float(torch.trapezoid(torch.tensor(curve), dx=1 / (self.points - 1))) for curve in (deletion, insertion)
        ]
        span = self.intact - self.erased
        return {
            "fractions": [round(float(step**3), 6) for step in steps],
            "deletion": [round(value, 5) for value in deletion],
            "insertion": [round(value, 5) for value in insertion],
            "deletion_auc": round(areas[0], 5),
            "insertion_auc": round(areas[1], 5),
            "gain": round((areas[1] - areas[0]) / span, 4) if span >= TESTABLE else 0.0,
        }

    @cached_property
    def context(self) -> dict[str, float]:
        """The fraction of f lost when everything but the target (and 5 mm around it) is replaced, and the reverse.

        The network may not recognize the target alone; the prediction then came from its surroundings.
        """
        target = gaussian((self._weights > 0).float(), [_RIM_MM / 2 / size for size in self.run.spacing]) > 0.05
        alone = self.score(torch.where(target, self.run.image, self._replacement))
        without = self.score(torch.where(target, self._replacement, self.run.image))
        return {
            "lost_without_surroundings": round(1 - alone / max(self.intact, 1e-9), 4),
            "lost_without_target": round(1 - without / max(self.intact, 1e-9), 4),
        }

    # Long: half of it documents the result.
    def evaluate(
        self,
        values: torch.Tensor,
        trained: torch.Tensor,
        shuffled: Mapping[float, Sequence[torch.Tensor]],
        noisy: torch.Tensor,
        lift: float,
        warned: bool = False,
        controls: Mapping[str, dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """All numbers about one map, JSON-ready, and the verdict.

        :param values: the map in the window, as it is shown.
        :param trained: the same method's map of the window alone; `noisy`: with noise; `shuffled`: the maps of all
            draws, by the fraction of layers, last ones first, whose weights were shuffled, up to 1.
        :param lift: :func:`energy_lift`.
        :param warned: whether the map came with a warning (degenerate layer …); then it cannot pass.
        :param controls: curves of further controls.

        The result contains

        * ``score``, ``score_replaced``, ``score_in_image``: f of the CT in the box, of the CT in which everything is
          replaced (by ``baseline``), and of the whole image;
        * ``drop``: :meth:`drop` of the map, and of its ``controls`` by kind (edges, random places, all shuffled
          networks): their ``draws``, and the highest ``median`` and ``upper`` quartile of any kind;
        * ``magnitude``: :attr:`region`, and the map's ``energy``, the fraction of its sum that lies in that region;
        * ``curves`` and ``controls``: deletion and insertion (:meth:`curves`);
        * ``energy_lift``: the target's fraction of the map's sum over its fraction of the volume: 1 for a constant
          map (energy-based pointing game, Wang et al. 2020, "Score-CAM", https://arxiv.org/abs/1910.01279);
        * ``context``: :attr:`context`;
        * ``randomization``: Spearman correlation with the map after the weights were shuffled, from the last layers
          to the first (cascading; Adebayo et al. 2018, https://arxiv.org/abs/1810.03292); the last is the median of
          ``draws``, the shuffles of all weights. For comparison, ``random_pairs`` are the correlations of the map
          with its own mirror images: the similarity of unrelated maps (after Arun et al. 2021,
          https://arxiv.org/abs/2008.02766);
        * ``stability``: Spearman correlation and relative change ``|L' - L| / |L|`` with noise of 10 HU (one draw of
          sensitivity-max, Yeh et al. 2019, https://arxiv.org/abs/1901.09392);
        * ``verdict``, ``passed`` and ``sentence``, see :mod:`LiverXAILib.explain.faithfulness.verdict`.
        """
        values, norm = values.clamp_min(0), float(trained.norm())
        alike = [[spearman(trained, other) for other in draws] for draws in shuffled.values()]
        return {
            **self._judged(values, self.drop(values), list(shuffled.values())[-1], warned),
            "curves": self.curves(values),
            "controls": {**self.controls, **(controls or {})},
            "energy_lift": lift,
            "context": self.context,
            "randomization": {
                "shuffled_layers": list(shuffled),
                "spearman": [median(draws) for draws in alike],
                "draws": alike[-1],
                "random_pairs": mirror_correlations(trained),
            },
            "stability": {
                "noise_hu": NOISE_HU,
                "spearman": spearman(trained, noisy),
                "relative_change": round(float((noisy - trained).norm()) / norm, 4) if norm else 0.0,
            },
        }

    def verdict(
        self, values: torch.Tensor, shuffled: Callable[[], Sequence[torch.Tensor]], warned: bool = False
    ) -> dict[str, Any]:
        """The part of :meth:`evaluate` from which the verdict is made, and the verdict, in as few passes as possible.

        A map that fails against the other controls also fails with those of shuffled networks, so these are not made.

        :param values: the map in the window, of which the positive part counts.
        :param shuffled: makes the maps of networks in which all weights were shuffled.
        """
        drop = self.drop(values.clamp_min(0))
        card = self._judged(values.clamp_min(0), drop, (), warned)
        if card["verdict"] in ("passed", "undecided"):
            card = self._judged(values.clamp_min(0), drop, shuffled(), warned)
        return card

    def _judged(
        self, values: torch.Tensor, drop: Mapping[str, Any], shuffled: Sequence[torch.Tensor], warned: bool
    ) -> dict[str, Any]:
        card: dict[str, Any] = {
            "score": round(self.intact, 5),
            "score_replaced": round(self.erased, 5),
            "score_in_image": round(self.in_image, 5),
            "drop": {**drop, "controls": self._control_drops(shuffled)},
            "magnitude": self._magnitude(values),
            "baseline": self.baseline,
            "examined_ml": round(self._volume_ml, 1),
        }
        verdict, sentence = verdict_and_sentence(
            card, empty=float(values.max()) <= 0, warned=warned, depends_on_far=self.depends_on_far
        )
        return {**card, "verdict": verdict, "passed": verdict == "passed", "sentence": sentence}

    def _control_drops(self, shuffled: Sequence[torch.Tensor]) -> dict[str, Any]:
        """The distribution of the drops of maps that explain nothing."""
        kinds = {
            "edges": [self._edges_drop],
            "random places": self.noise_drops,
        }
        if shuffled:
            kinds["shuffled networks"] = [self.drop(values)["share"] for values in shuffled]
        return {
            "draws": kinds,
            "median": max(round(median(draws), 4) for draws in kinds.values()),
            "upper": max(round(float(np.quantile(draws, 0.75)), 4) for draws in kinds.values()),
        }

    def _magnitude(self, values: torch.Tensor) -> dict[str, Any]:
        region = {name: value for name, value in self.region.items() if name != "mask"}
        total = float(values.sum())
        return {**region, "energy": round(float(values[self.region["mask"]].sum()) / total, 4) if total else 0.0}

    def map(self, method: Method, layer: str, networks: Sequence[nn.Module] | None = None, noise: bool = False) -> Any:
        """The positive map of `method` in the window alone, optionally for other networks or with noise."""
        run = self.run
        if networks is not None:
            run = replace(run, networks=networks)
        if noise:
            run = self.noisy_run
        self._count()
        (result,) = stage_maps(run, [self.score_target], method, layer, self.run_context.silent)
        return result.values.clamp_min(0)

    @property
    def noisy_run(self) -> StageContext:
        """The window with white noise of :data:`NOISE_HU`."""
        scale = NOISE_HU / self.run.stage.intensity.scale
        noise = torch.randn(self.run.image.shape, generator=self._generator(2))
        return replace(self.run, image=self.run.image + scale * noise)

    def _evidence(self, image: torch.Tensor) -> torch.Tensor:
        self.run_context.check()
        self._count()
        with torch.inference_mode():
            window = image.to(self.run.device)
            logits = torch.stack([self.run.network(pass_index, window) for pass_index in range(len(self.run.passes))])
            return self.score_target.evidence(logits.mean(dim=0)).cpu()

    def _count(self) -> None:
        self.passes += 1
        self.run_context.report("Checking the map", min(1.0, self.passes / self._expected))

    def _ranking(self, values: torch.Tensor) -> torch.Tensor:
        """Voxel numbers, most important first; in random order where the map is constant (mostly 0)."""
        shuffled = torch.randperm(values.numel(), generator=self._generator(0))
        return shuffled[values.flatten()[shuffled].argsort(descending=True, stable=True)]

    def _highest(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """Mask of the first `count` voxels of :meth:`_ranking`, without sorting the others."""
        flat = values.flatten()
        if count >= flat.numel():
            return torch.ones(values.shape, dtype=torch.bool)
        lowest = flat.kthvalue(flat.numel() - count + 1).values if count else flat.new_tensor(torch.inf)
        top, equal = flat > lowest, flat == lowest
        missing = count - int(top.sum())
        if missing < int(equal.sum()):
            shuffled = torch.randperm(flat.numel(), generator=self._generator(0))
            equal = shuffled[equal[shuffled]][:missing]
        top[equal] = True
        return top.reshape(values.shape)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(number)


def check_faithfulness(
    run: StageContext,
    score_target: ScoreTarget,
    method: Method,
    layer: str,
    result: StageMap,
    context: RunContext = UNATTENDED,
) -> dict[str, Any]:
    """Examine one map; returns the JSON-ready value of :attr:`LiverXAILib.explain.Explanation.faithfulness`.

    :param result: the map on the padded grid of `run`.

    In addition to those of :meth:`FaithfulnessEvaluator.evaluate`, the controls hold the curves of the map of a network
    with shuffled weights: the one with the median similarity. Methods that read no layer take so many passes that their
    networks are shuffled only once, all layers at a time.
    """
    started = time.perf_counter()
    evaluator = FaithfulnessEvaluator(run, score_target, context)
    trained, noisy = evaluator.map(method, layer), evaluator.map(method, layer, noise=True)
    levels, draws = (LEVELS, DRAWS) if method.layer_maps is not None else (1, 1)
    shuffled: dict[float, list[torch.Tensor]] = {}
    for draw in range(draws):
        for share, networks in shuffled_networks(evaluator.run, levels if draw == 0 else 1, draw):
            shuffled.setdefault(share, []).append(evaluator.map(method, layer, networks))
    typical = sorted(shuffled[1.0], key=lambda other: spearman(trained, other))[draws // 2]
    controls = {"shuffled network": evaluator.curves(typical)}
    lift = energy_lift(result.values, run, score_target)
    warned = bool(result.warnings)
    card = evaluator.evaluate(result.values[evaluator.box], trained, shuffled, noisy, lift, warned, controls)
    return {**card, "passes": evaluator.passes, "seconds": round(time.perf_counter() - started, 1)}


def energy_lift(values: torch.Tensor, run: StageContext, score_target: ScoreTarget) -> float:
    """The target's fraction of the positive map's sum, over the target's fraction of the image's voxels."""
    positive = run.plan.unpad(values.clamp_min(0))
    target = torch.zeros(run.plan.padded_shape, dtype=torch.bool)
    target[score_target.box] = score_target.weights.abs().sum(dim=0) > 0
    target = run.plan.unpad(target)
    total = float(positive.sum())
    if total == 0:
        return 0.0
    return round(float(positive[target].sum()) / total / float(target.float().mean()), 3)


def _blurred(run: StageContext, box: Box, sigma_mm: float) -> torch.Tensor:
    """The part of the image at `box` after a Gaussian, without blurring all of it."""
    reach = [round(3 * sigma_mm / size) for size in run.spacing]
    around = box.grown(reach, run.image.shape)
    return gaussian(run.image[around], [sigma_mm / size for size in run.spacing])[box.relative_to(around)]
