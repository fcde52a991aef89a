# SPDX-License-Identifier: Apache-2.0
"""How far a heat map can be trusted: checks of one explanation, each with its formula, its source and its controls.

All checks run in one window, the one that decides most of the question, or in the part of it around the target (see
:meth:`LiverXAILib.explain.score.ScoreTarget.in_focus`), on the grid of the network. There

    f(x) = sum_y T(y) p(y; x) / sum_y T(y),

the mean probability p of the answer over the target's share T of the window, for an image x. To "delete" a voxel is to
replace it by the blurred CT: an image without the structure that a scanner could have made. Air or zeros would be
answered for their edges (Hase et al. 2021, "The Out-of-Distribution Problem in Explainability"). The blur is a
Gaussian of :data:`~LiverXAILib.explain.stage_context.BLUR_MM`, or, since a large organ outlasts that, of half the
radius of a ball with the target's volume.

A number alone says little, so the same is computed for maps that explain nothing: the network's own score ("logit
map"), the CT's edges, smooth noise, and the map of the same method for a network whose weights were shuffled.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from ..progress import CancelToken, Progress, check_cancel, report_progress
from ..volumes.box import Box
from .methods import Method
from .score import EXAMINED_MM, ScoreTarget
from .stage_context import BLUR_MM, StageContext, StageMap, gaussian
from .stitching import stage_maps

#: Points of the deletion and insertion curves, including both ends.
POINTS = 8
#: Parts into which the network's layers are divided for the cascading randomization.
LEVELS = 4
#: How often all weights are shuffled: a single shuffled network may give a similar map, or an opposite one, by chance.
#: Odd, so that the median is one of them.
DRAWS = 5
#: Standard deviation of the noise of the stability check.
NOISE_HU = 10.0
#: A map is stable if its rank correlation with that of the noisy image is at least this.
STABLE = 0.8
#: A map depends on what was learned if its rank correlation after shuffling all weights, the median over the draws,
#: is at most this.
SHUFFLED = 0.5
#: Confidence that must be lost when everything is blurred, or deletion and insertion test nothing.
_TESTABLE = 0.05
#: Controls that a map must beat, as sentences name them.
_RIVALS = {
    "edges": "image edges",
    "smooth noise": "random places",
    "shuffled network": "the map of a network with shuffled weights",
}
#: Structures this close to the target count as the target itself when its surroundings are blurred.
_RIM_MM = 5.0
#: Ranks are compared on at most about this many voxels.
_SAMPLE = 60_000


class FaithfulnessEvaluator:
    """The window in which a question is examined, and what does not depend on the map: scores and controls.

    Deterministic: all random numbers come from a fixed seed.

    :param points: of the deletion and insertion curves, including both ends.
    :param limit_mm: size of the window, at most, where the network reads images of any size.
    """

    def __init__(
        self,
        run: StageContext,
        score_target: ScoreTarget,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        points: int = POINTS,
        limit_mm: float = EXAMINED_MM,
    ) -> None:
        self.run, self.score_target, self.box = score_target.in_focus(run, limit_mm)
        self.progress = progress
        self.cancel = cancel
        self.points = points
        self.passes = 0
        self._weights = self.score_target.weights.abs().sum(dim=0)
        self._weights = self._weights / self._weights.sum()
        voxel = float(np.prod(run.spacing))
        radius = (float((score_target.weights.abs().sum(dim=0) > 0).sum()) * voxel * 0.75 / np.pi) ** (1 / 3)
        self.blur_mm = max(BLUR_MM, radius / 2)
        self._blurred = _blurred(run, self.box, self.blur_mm)
        self._volume_ml = float(np.prod(self.run.plan.shape)) * voxel / 1000
        # Almost all of what a card takes, for the progress.
        self._expected = 10 * (points - 2) + LEVELS + DRAWS + 5

    @cached_property
    def intact(self) -> float:
        """f of the image as it is."""
        return self.score(self.run.image)

    @cached_property
    def erased(self) -> float:
        """f of the blurred image."""
        return self.score(self._blurred)

    @cached_property
    def logits(self) -> torch.Tensor:
        """Log-odds of the answer at each voxel of the window: the map that explains nothing but looks right."""
        return self._evidence(self.run.image)

    @cached_property
    def controls(self) -> dict[str, dict[str, Any]]:
        """Curves of the maps that do not depend on the method."""
        spacing = self.run.spacing
        smooth = gaussian(self.run.image, [2.0 / size for size in spacing])
        slopes = [torch.gradient(smooth, dim=axis)[0] / spacing[axis] for axis in range(3) if smooth.shape[axis] > 1]
        noise = torch.randn(self.run.image.shape, generator=self._generator(1))
        return {
            "logit map": self.curves(self.logits),
            "edges": self.curves(torch.stack(slopes).norm(dim=0)),
            "smooth noise": self.curves(gaussian(noise, [8.0 / size for size in spacing])),
        }

    def score(self, image: torch.Tensor) -> float:
        """f of an image of the window's size."""
        return float((torch.sigmoid(self._evidence(image)) * self._weights).sum())

    def curves(self, values: torch.Tensor) -> dict[str, Any]:
        """Deletion and insertion of the voxels that `values` ranks highest, and their areas.

        Petsiuk, Das, Saenko, "RISE", BMVC 2018, https://arxiv.org/abs/1806.07421. The n-th point changes the fraction
        (n/N)^3 of the voxels: equal steps in the *width* of what is changed, since in three dimensions a target is a
        small part of the window. Areas are taken over n/N by the trapezoid rule; the gain is insertion minus deletion,
        in units of f(image) - f(blurred image): at most about 1, and about -0.5 for a map that ranks at random;
        0 where these differ by less than 0.05, since nothing is tested then.
        """
        steps = np.linspace(0, 1, self.points)
        order = self._ranking(values)
        deletion, insertion = [self.intact], [self.erased]
        for step in steps[1:-1]:
            top = torch.zeros(values.numel(), dtype=torch.bool)
            top[order[: round(step**3 * values.numel())]] = True
            top = top.reshape(values.shape)
            deletion.append(self.score(torch.where(top, self._blurred, self.run.image)))
            insertion.append(self.score(torch.where(top, self.run.image, self._blurred)))
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
            "gain": round((areas[1] - areas[0]) / span, 4) if span >= _TESTABLE else 0.0,
        }

    @cached_property
    def context(self) -> dict[str, float]:
        """What part of f is lost when everything but the target (and 5 mm around it) is blurred, and the reverse.

        Of the target alone the network may not know what it is; then the answer came from its surroundings.
        """
        target = gaussian((self._weights > 0).float(), [_RIM_MM / 2 / size for size in self.run.spacing]) > 0.05
        alone = self.score(torch.where(target, self.run.image, self._blurred))
        without = self.score(torch.where(target, self._blurred, self.run.image))
        return {
            "lost_without_surroundings": round(1 - alone / max(self.intact, 1e-9), 4),
            "lost_without_target": round(1 - without / max(self.intact, 1e-9), 4),
        }

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
        :param trained: the same method's map of the window alone; `noisy`: under noise; `shuffled`: by the fraction
            of layers, last ones first, whose weights were shuffled, up to 1; of each, as many as were drawn.
        :param lift: :func:`energy_lift`.
        :param warned: whether the map came with a warning (degenerate layer …); then it cannot pass.
        :param controls: curves of further controls.

        The card holds

        * ``score``, ``score_blurred``: f of the CT and of the blurred CT;
        * ``curves`` and ``controls``: deletion and insertion (:meth:`curves`);
        * ``energy_lift``: the target's part of the map's sum over its part of the volume: 1 for a map that is the
          same everywhere (energy-based pointing game, Wang et al. 2020, "Score-CAM", https://arxiv.org/abs/1910.01279);
        * ``context``: :attr:`context`;
        * ``randomization``: Spearman correlation with the map after the weights were shuffled, from the last layers
          to the first (cascading; Adebayo et al. 2018, https://arxiv.org/abs/1810.03292); the last is the median of
          ``draws``, all ways in which all weights were shuffled. Beside them that of ``random_pairs``, the map
          against its own mirror images: what maps have in common that have nothing in common (after Arun et al. 2021,
          https://arxiv.org/abs/2008.02766);
        * ``stability``: Spearman correlation and relative change ``|L' - L| / |L|`` under noise of 10 HU (a draw of
          sensitivity-max, Yeh et al. 2019, https://arxiv.org/abs/1901.09392);
        * ``passed`` and ``sentence``.
        """
        values, norm = values.clamp_min(0), float(trained.norm())
        alike = [[spearman(trained, other) for other in draws] for draws in shuffled.values()]
        card: dict[str, Any] = {
            "score": round(self.intact, 5),
            "score_blurred": round(self.erased, 5),
            "curves": self.curves(values),
            "controls": {**self.controls, **(controls or {})},
            "energy_lift": lift,
            "context": self.context,
            "randomization": {
                "shuffled_layers": list(shuffled),
                "spearman": [median(draws) for draws in alike],
                "draws": alike[-1],
                "random_pairs": _mirror_correlations(trained),
            },
            "stability": {
                "noise_hu": NOISE_HU,
                "spearman": spearman(trained, noisy),
                "relative_change": round(float((noisy - trained).norm()) / norm, 4) if norm else 0.0,
            },
            "baseline": f"the CT after a Gaussian of {self.blur_mm:.3g} mm",
            "examined_ml": round(self._volume_ml, 1),
        }
        failed = ["it is empty"] if float(values.max()) <= 0 else _failed_checks(card)
        if warned:
            failed.append("there is a warning about it")
        card["passed"] = not failed
        card["sentence"] = f"This map did not pass: {'; '.join(failed)}." if failed else self._pass_sentence(card)
        return card

    def _pass_sentence(self, card: dict[str, Any]) -> str:
        """What a reader who trusts the map should know of how it was tested."""
        target = float((self._weights > 0).float().mean())
        point = next(n for n, fraction in enumerate(card["curves"]["fractions"]) if fraction >= target)
        volume = card["curves"]["fractions"][point] * self._volume_ml
        copied = card["curves"]["gain"] <= card["controls"]["logit map"]["gain"]
        return (
            f"This map passed: blurring the {two_digits(volume)} ml that it marks most takes the model's confidence "
            f"from {card['score']:.2f} to {card['curves']['deletion'][point]:.2f}; image edges, random places and the "
            f"map of a network with shuffled weights explain it less well, and {NOISE_HU:g} HU of noise hardly change "
            "it" + (", but a plain copy of the model's score explains it as well." if copied else ".")
        )

    def map(self, method: Method, layer: str, networks: Sequence[nn.Module] | None = None, noise: bool = False) -> Any:
        """The positive map of `method` in the window alone, for other networks or a noisy image if asked."""
        run = self.run
        if networks is not None:
            run = replace(run, networks=networks)
        if noise:
            run = self.noisy_run
        self._count()
        (result,) = stage_maps(run, [self.score_target], method, layer, None, self.cancel)
        return result.values.clamp_min(0)

    @property
    def noisy_run(self) -> StageContext:
        """The window under white noise of :data:`NOISE_HU`."""
        scale = NOISE_HU / self.run.stage.intensity.scale
        noise = torch.randn(self.run.image.shape, generator=self._generator(2))
        return replace(self.run, image=self.run.image + scale * noise)

    def _evidence(self, image: torch.Tensor) -> torch.Tensor:
        check_cancel(self.cancel)
        self._count()
        with torch.inference_mode():
            window = image.to(self.run.device)
            logits = torch.stack([self.run.network(pass_index, window) for pass_index in range(len(self.run.passes))])
            return self.score_target.evidence(logits.mean(dim=0)).cpu()

    def _count(self) -> None:
        self.passes += 1
        report_progress(self.progress, "Checking the map", min(1.0, self.passes / self._expected))

    def _ranking(self, values: torch.Tensor) -> torch.Tensor:
        """Voxel numbers, most important first; where the map is level (0, mostly), in random order."""
        shuffled = torch.randperm(values.numel(), generator=self._generator(0))
        return shuffled[values.flatten()[shuffled].argsort(descending=True, stable=True)]

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(number)


def two_digits(value: float) -> str:
    """Two significant digits, never with an exponent for what is measured in ml: 0.42, 4.2, 42, 420."""
    return f"{float(f'{value:.2g}'):g}"


def check_faithfulness(
    run: StageContext,
    score_target: ScoreTarget,
    method: Method,
    layer: str,
    result: StageMap,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, Any]:
    """Examine one map; returns the JSON-ready card of :attr:`LiverXAILib.explain.Explanation.faithfulness`.

    :param result: the map on the padded grid of `run`.

    Beside what :meth:`FaithfulnessEvaluator.evaluate` says, the controls hold the curves of the map of a network with
    shuffled weights: of the one whose likeness is the median. Methods that read no layer take so many passes that all
    layers are shuffled at once, and once.
    """
    started = time.perf_counter()
    evaluator = FaithfulnessEvaluator(run, score_target, progress, cancel)
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
    """The target's part of the positive map's sum, over the target's part of the image's voxels."""
    positive = run.plan.unpad(values.clamp_min(0))
    target = torch.zeros(run.plan.padded_shape, dtype=torch.bool)
    target[score_target.box] = score_target.weights.abs().sum(dim=0) > 0
    target = run.plan.unpad(target)
    total = float(positive.sum())
    if total == 0:
        return 0.0
    return round(float(positive[target].sum()) / total / float(target.float().mean()), 3)


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Rank correlation of two maps (>= 0) where at least one of them marks something; 0 if one of them is level.

    Ties share their mean rank. Where both maps are below 1 % of their maximum they would agree whatever they show.
    """
    marked = (first > 0.01 * first.max()) | (second > 0.01 * second.max())
    stride = max(1, int(marked.sum()) // _SAMPLE)
    a, b = (_ranks(values[marked][::stride].numpy()) for values in (first, second))
    if a.size < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return round(float(np.corrcoef(a, b)[0, 1]), 4)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[inverse]


def _mirror_correlations(values: torch.Tensor) -> list[float]:
    axes = [axis for axis in range(3) if values.shape[axis] > 1]
    flips = [[axis for bit, axis in enumerate(axes) if number >> bit & 1] for number in range(1, 2 ** len(axes))]
    return [spearman(values, values.flip(flip)) for flip in flips]


def shuffled_networks(run: StageContext, levels: int, draw: int = 0) -> Iterator[tuple[float, list[nn.Module]]]:
    """Yield (fraction of layers shuffled, networks), from the last layers to all of them; another way for each `draw`.

    Shuffling a layer permutes the values of its weights: as good as random, but of the right scale, so that the
    network stays alive. Statistics of normalizations are kept.
    """
    networks = [copy.deepcopy(network) for network in run.networks]
    orders = [_weighted_layers(network, run) for network in networks]
    for level in range(levels):
        for pass_index, order in enumerate(orders):
            start, stop = (round(len(order) * n / levels) for n in (level, level + 1))
            for number, module in enumerate(order[start:stop]):
                generator = torch.Generator().manual_seed(100_000 * draw + 1000 * pass_index + start + number)
                for parameter in module.parameters(recurse=False):
                    values = parameter.detach().flatten()
                    shuffle = torch.randperm(values.numel(), generator=generator).to(values.device)
                    parameter.data = values[shuffle].reshape(parameter.shape)
        yield round((level + 1) / levels, 3), networks


def _weighted_layers(network: nn.Module, run: StageContext) -> list[nn.Module]:
    """The modules that hold parameters, in the order in which they run, last first."""
    order: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: order.append(module))
        for module in network.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    with torch.inference_mode():
        replace(run, networks=[network]).network(0, run.image.to(run.device))
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(reversed(order)))


def _failed_checks(card: dict[str, Any]) -> list[str]:
    """Why a map does not pass, in words."""
    gain = card["curves"]["gain"]
    found = []
    if card["score"] - card["score_blurred"] < _TESTABLE:
        found.append(
            f"even blurring everything takes the model's confidence only from {card['score']:.2f} to "
            f"{card['score_blurred']:.2f}, so nothing can be tested"
        )
    elif gain <= 0:
        found.append("the model's confidence depends less on what it marks than on the rest")
    else:
        beaten_by = [
            words
            for name, words in _RIVALS.items()
            if name in card["controls"] and gain <= card["controls"][name]["gain"]
        ]
        if beaten_by:
            found.append(f"{' and '.join(beaten_by)} tell as well what the model's confidence depends on")
    if (alike := card["randomization"]["spearman"][-1]) > SHUFFLED:
        found.append(
            "it does not show what the model learned, since with shuffled weights it looks much the same (rank "
            f"correlation {alike:.2f})"
        )
    if (alike := card["stability"]["spearman"]) < STABLE:
        found.append(f"{NOISE_HU:g} HU of noise change it (rank correlation {alike:.2f})")
    return found


def _blurred(run: StageContext, box: Box, sigma_mm: float) -> torch.Tensor:
    """The part of the image at `box` after a Gaussian, without blurring all of it."""
    reach = [round(3 * sigma_mm / size) for size in run.spacing]
    around = box.grown(reach, run.image.shape)
    return gaussian(run.image[around], [sigma_mm / size for size in run.spacing])[box.relative_to(around)]
