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
        for name, _ in network.explainable_layers():
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


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 3, 5), "padding": (0, 1, 2)},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "target", [(slice(4, 6),) * 3, (slice(0, 1), slice(-2, None), slice(2, 9)), (slice(0, 0),) * 3]
)
def test_the_way_back_from_a_small_target_is_that_of_torch(geometry, target):
    torch.manual_seed(0)
    plain = nn.Conv3d(4, 6, **geometry).requires_grad_(False)
    folded = fold_batch_norms(nn.Sequential(copy.deepcopy(plain)))
    gradients = []
    for network in (plain, folded):
        image = torch.randn(1, 4, 11, 12, 13, generator=torch.Generator().manual_seed(1), requires_grad=True)
        network(image)[0, :, target[0], target[1], target[2]].square().sum().backward()
        gradients.append(image.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_way_back_computes_only_what_the_gradient_reaches():
    folded = fold_batch_norms(nn.Sequential(nn.Conv3d(1, 5, 3, padding=1)).requires_grad_(False))
    image = torch.randn(1, 1, 20, 20, 20, requires_grad=True)
    score = folded(image)[0, :, 8:10, 8:10, 8:10].sum()
    with torch.profiler.profile(record_shapes=True) as profile:
        score.backward()
    shapes = [event.input_shapes[0] for event in profile.events() if event.name == "aten::mkldnn_convolution"]
    if torch.backends.mkldnn.is_available():  # not with Apple's processors
        assert shapes == [[1, 5, 4, 4, 4]]
