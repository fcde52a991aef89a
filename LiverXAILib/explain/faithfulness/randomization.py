# SPDX-License-Identifier: Apache-2.0
"""Networks with shuffled weights, and the similarity of maps: what a map looks like if nothing was learned."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..stage_context import StageContext

#: Ranks are compared on at most about this many voxels.
_SAMPLE = 60_000


def shuffled_networks(run: StageContext, levels: int, draw: int = 0) -> Iterator[tuple[float, list[nn.Module]]]:
    """Yield (fraction of layers shuffled, networks), from the last layers to all; each `draw` is a different shuffle.

    Shuffling a layer permutes the values of its weights: they are as good as random but of the right scale, so that
    activations do not vanish. Statistics of normalizations are kept.
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
    """The modules that hold parameters, in reverse order of execution."""
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


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Rank correlation of two maps (>= 0) where at least one of them marks something; 0 if one of them is constant.

    Ties share their mean rank. Voxels where both maps are below 1 % of their maximum are left out, because maps agree
    there whatever they show.
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


def mirror_correlations(values: torch.Tensor) -> list[float]:
    """Rank correlations of a map with its own mirror images: the similarity of maps that are unrelated."""
    axes = [axis for axis in range(3) if values.shape[axis] > 1]
    flips = [[axis for bit, axis in enumerate(axes) if number >> bit & 1] for number in range(1, 2 ** len(axes))]
    return [spearman(values, values.flip(flip)) for flip in flips]
