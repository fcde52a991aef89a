# SPDX-License-Identifier: Apache-2.0
"""Folding batch norms changes the speed of a network, not its answers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from LiverXAILib.networks import UNet
from LiverXAILib.networks.folding import fold_batch_norms


def a_trained_network(dimensions: int, norm: str) -> nn.Module:
    torch.manual_seed(0)
    network = UNet(dimensions=dimensions, features=(4, 8, 12), norm=norm)
    for _ in range(3):
        network(torch.randn(2, 1, *[16] * dimensions) * 3 + 1)
    return network.eval()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_a_folded_network_gives_the_same_output_and_stages(dimensions, norm):
    network = a_trained_network(dimensions, norm)
    folded = fold_batch_norms(copy.deepcopy(network))
    image = torch.randn(1, 1, *[24] * dimensions)
    seen: dict[str, list[torch.Tensor]] = {}
    for one in (network, folded):
        for name, _ in network.explainable_stages():
            one.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: seen.setdefault(name, []).append(output)
            )
    with torch.inference_mode():
        torch.testing.assert_close(folded(image), network(image), rtol=1e-4, atol=1e-4)
    for name, (before, after) in seen.items():
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4, msg=name)


def test_no_batch_norm_is_left():
    folded = fold_batch_norms(a_trained_network(3, "batch"))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm3d)]


def test_small_convolutions_and_their_gradients_are_those_of_torchs_own_kernel():
    network = a_trained_network(3, "batch")
    folded = fold_batch_norms(copy.deepcopy(network))
    images = [torch.randn(1, 1, 24, 16, 32, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    for one, image in zip((network, folded), images, strict=True):
        image.requires_grad_()
        one(image)[0, 1].square().sum().backward()
    with torch.profiler.profile() as profile, torch.inference_mode():
        folded(images[0])
    ran = {event.key for event in profile.key_averages()}
    if torch.backends.mkldnn.is_available():  # not with Apple's processors
        assert "aten::mkldnn_convolution" in ran
        assert "aten::slow_conv3d_forward" not in ran
    torch.testing.assert_close(images[1].grad, images[0].grad, rtol=1e-3, atol=1e-4)
