# SPDX-License-Identifier: Apache-2.0
"""Speed up a trained network without changing its output."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv3d_input

from ..volumes.box import bounding_box

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)


class OneDnnConvolution(torch.autograd.Function):
    """A 3-D convolution with constant weights, whose backward pass is computed only where the gradient is not zero.

    The gradients of small targets are zero nearly everywhere. The gradient of a convolution that preserves the size is
    a convolution with mirrored weights; it is computed by the same kernel, in the box of nonzero gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        padding: tuple[int, ...],
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = input.shape, (stride, padding, dilation, groups)
        last = input.is_contiguous(memory_format=torch.channels_last_3d)
        ctx.memory_format = torch.channels_last_3d if last else torch.contiguous_format
        return torch.mkldnn_convolution(input, weight, bias, padding, stride, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        keeps_size = all(n == 2 * p + 1 for n, p in zip(weight.shape[2:], padding, strict=True))
        if not (keeps_size and set(stride) == set(dilation) == {1} and groups == 1):
            return conv3d_input(ctx.shape, weight, gradient, *ctx.geometry), *[None] * 6
        result = torch.empty(ctx.shape, memory_format=ctx.memory_format).zero_()
        box = bounding_box(gradient.any(dim=1).any(dim=0).numpy())
        if box is not None:
            reach = (slice(None), slice(None), *box.grown(padding, ctx.shape[2:]))
            mirrored = weight.flip(2, 3, 4).transpose(0, 1)
            result[reach] = torch.mkldnn_convolution(gradient[reach], mirrored, None, padding, stride, dilation, 1)
        return result, *[None] * 6


class _OneDnnConv3d(nn.Conv3d):
    """A 3-D convolution that oneDNN computes on CPUs.

    torch chooses a slow kernel of its own for small feature maps (torch 2.13: N·C·D·H up to 20480), as in the deep
    levels of a U-Net.
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if (
            input.device.type == "cpu"
            and input.dtype == weight.dtype == torch.float32
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and torch.backends.mkldnn.is_available()
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()  # other runtimes support only torch's own convolution
        ):
            if not weight.requires_grad:
                return OneDnnConvolution.apply(
                    input, weight, bias, self.padding, self.stride, self.dilation, self.groups
                )
            return torch.mkldnn_convolution(input, weight, bias, self.padding, self.stride, self.dilation, self.groups)
        return super()._conv_forward(input, weight, bias)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Merge each batch norm into the convolution before it, in place, and convert weights to channels-last.

    On CPUs, 3-D convolutions are computed by oneDNN.

    A batch norm in evaluation mode is an affine map of each channel, so the merged convolution gives the same output;
    the norm is replaced by an identity, and module names do not change. The memory layout is changed only for
    networks without instance or group norm, which would convert it back and forth. Returns the network itself.
    """
    network.eval()
    for parent in network.modules():
        if isinstance(parent, nn.Sequential):
            for (before, convolution), (after, norm) in pairwise(list(parent.named_children())):
                if isinstance(convolution, _CONVOLUTIONS) and isinstance(norm, _BATCH_NORMS):
                    setattr(parent, before, torch.nn.utils.fuse_conv_bn_eval(convolution, norm))
                    setattr(parent, after, nn.Identity())
    modules = list(network.modules())
    for module in modules:
        if type(module) is nn.Conv3d:
            module.__class__ = _OneDnnConv3d
    if any(isinstance(module, nn.Conv3d) for module in modules) and not any(
        isinstance(module, _INSTANCE_NORMS) for module in modules
    ):
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network
