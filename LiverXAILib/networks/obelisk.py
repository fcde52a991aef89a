# SPDX-License-Identifier: Apache-2.0
"""The all-convolutional U-Net published with OBELISK (Heinrich, Oktay, Bouteldja 2019)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

#: Suffixes of the encoder's levels in the published state dicts, and their channels.
_ENCODER = (("1", 14), ("2", 28), ("3", 42), ("4", 56), ("5", 70))
#: Suffixes of the decoder's levels, coarsest first, and (input channels, output channels).
_DECODER = (("6dU", 126, 56), ("6cU", 98, 42), ("6bU", 70, 28), ("6U", 42, 14), ("7U", 19, 9))


class ObeliskUNet(nn.Module):
    """U-Net whose state dict has the names of the published weights (``conv0``, ``batch0``, … ``conv77U``).

    The published code applies functional dropout, which stays active in evaluation; it is omitted here. The final
    activations of the blocks are separate modules without weights: ``encoder.0``…``encoder.4``, ``bottleneck``,
    ``decoder.0``…``decoder.4`` (coarsest first). Hooks belong on these.

    Takes raw HU (N, 1, 144, 144, 144) and returns logits (N, 9, …); class 6 is the liver.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv3d(1, 5, 3, padding=1)
        self.batch0 = nn.BatchNorm3d(5)
        inputs = 5
        for name, features in _ENCODER:
            self.add_module(f"conv{name}", nn.Conv3d(inputs, features, 3, stride=2, padding=1))
            self.add_module(f"batch{name}", nn.BatchNorm3d(features))
            self.add_module(f"conv{name}{name}", nn.Conv3d(features, features, 3, padding=1))
            self.add_module(f"batch{name}{name}", nn.BatchNorm3d(features))
            inputs = features
        for name, inputs, features in _DECODER:
            self.add_module(f"conv{name}", nn.Conv3d(inputs, features, 3, padding=1))
            self.add_module(f"batch{name}", nn.BatchNorm3d(features))
        self.conv77U = nn.Conv3d(9, 9, 3, padding=1)

        self.encoder = nn.ModuleList(nn.LeakyReLU(0.1) for _ in _ENCODER)
        self.bottleneck = nn.LeakyReLU(0.1)
        self.decoder = nn.ModuleList(nn.LeakyReLU(0.1) for _ in _DECODER)

    @property
    def divisor(self) -> tuple[int, int, int]:
        """Preferred divisor of the input's size; other sizes work too, because upsampling targets the skip's size."""
        return 32, 32, 32

    def explainable_layers(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names of the network's levels and their strides in input voxels, in the order they run."""
        levels = len(_ENCODER)
        encoder: list[tuple[str, tuple[int, ...]]] = [(f"encoder.{i}", (2**i,) * 3) for i in range(levels)]
        decoder: list[tuple[str, tuple[int, ...]]] = [(f"decoder.{i}", (2 ** (levels - 1 - i),) * 3) for i in range(5)]
        return [*encoder, ("bottleneck", (2**levels,) * 3), *decoder]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, 9, Z, Y, X) of raw HU (N, 1, Z, Y, X)."""
        x = self.encoder[0](self._convolve("0", image))
        skips = [x]
        ends = [*self.encoder[1:], self.bottleneck]
        for (name, _), end in zip(_ENCODER, ends, strict=True):
            x = functional.leaky_relu(self._convolve(name, x), 0.1)
            x = end(self._convolve(name * 2, x))
            skips.append(x)
        skips.pop()
        for (name, _, _), end in zip(_DECODER, self.decoder, strict=True):
            skip = skips.pop()
            x = functional.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = end(self._convolve(name, torch.cat([x, skip], dim=1)))
        return self.conv77U(x)

    def _convolve(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(f"batch{name}")(self.get_submodule(f"conv{name}")(x))
