# SPDX-License-Identifier: Apache-2.0
"""The cost of a forward pass, estimated before it runs."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..models.spec import StageSpec
from ..networks import NETWORKS, build_network

#: Memory in use besides a layer's input and output: the skip connections, about as much again.
_BESIDE_A_LAYER = 2.0


def activation_bytes(stage: StageSpec) -> float | None:
    """Approximate peak memory of the activations, in bytes per voxel of the window; None for a foreign network."""
    if stage.network not in NETWORKS:
        return None
    return _activation_bytes(stage.network, json.dumps(dict(stage.arguments), sort_keys=True), stage.divisor)


@lru_cache
def _activation_bytes(name: str, arguments: str, divisor: tuple[int, int, int]) -> float:
    """Computed from the sizes of all layers for the smallest possible window."""
    network = build_network(name, json.loads(arguments)).eval()
    most = 0

    def look(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal most
        tensors = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        most = max(most, sum(value.numel() * value.element_size() for value in tensors))

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            layer.register_forward_hook(look)
    flat = any(isinstance(layer, nn.Conv2d) for layer in network.modules())
    *sizes, last = divisor[1:] if flat else divisor
    image = torch.zeros(1, input_channels(network), *sizes, 2 * last)
    with torch.inference_mode():
        network(image)
    return _BESIDE_A_LAYER * most / image[0, 0].numel()


def operations(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating-point operations (a multiplication and an addition are two) of one pass over a batch of `shape`."""
    from torch.utils.flop_counter import FlopCounterMode

    # Without data: tensors on torch's "meta" device have only shapes.
    empty = copy.deepcopy(network).to("meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        empty(torch.empty(shape, device="meta"))
    return int(counter.get_total_flops())


def input_channels(network: nn.Module) -> int:
    """The number of input channels of a network that begins with a convolution."""
    return next(layer.in_channels for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Conv3d)))
