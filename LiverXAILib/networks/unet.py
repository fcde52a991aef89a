# SPDX-License-Identifier: Apache-2.0
"""One configurable U-Net for slices and volumes (Ronneberger 2015, Çiçek 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..volumes.box import Box

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_UPSAMPLING = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class UNet(nn.Module):
    """Encoder, bottleneck and decoder with skip connections; returns logits.

    The blocks ``encoder.0``…, ``bottleneck``, ``decoder.0``… (``decoder.0`` is the coarsest) are modules that end in an
    activation; hooks belong on these. No operation of the network works in place.

    :param dimensions: 2 for images (N, C, Y, X), 3 for volumes (N, C, Z, Y, X).
    :param features: channels of each level, from full size down; the last is the bottleneck's.
    :param norm: "batch" (can be folded into the convolutions; the output does not depend on the crop), "instance" or
        "group".
    :param convolutions_per_stage: convolutions (3 voxels wide, each with norm and leaky ReLU) in each block; model
        cards hold this name (elsewhere a stage is a network of a cascade).
    :param deep_supervision: in training mode return a list of logits, full size first, then those of each coarser
        decoder block; in evaluation mode always the full-size logits alone.
    :param strides: the stride along each axis, for each level below the first; default 2 everywhere. A stride of 1
        keeps an axis with thick slices at full size.
    :param stem_stride: 1, or 2: the first convolution (then 6 voxels wide) halves the image, and the head predicts, for
        each of its voxels, all the image voxels that it covers (sub-pixel convolution, Shi 2016). Then nothing is
        computed at full resolution, where a U-Net spends most of its time.
    """

    # Long: it builds the network level by level, in the order of the docstring.
    def __init__(
        self,
        dimensions: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        features: Sequence[int] = (16, 32, 64, 96, 128),
        norm: str = "batch",
        convolutions_per_stage: int = 2,
        deep_supervision: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if dimensions not in (2, 3):
            raise ValueError(f"dimensions must be 2 or 3, got {dimensions}")
        if norm not in ("batch", "instance", "group"):
            raise ValueError(f"norm must be 'batch', 'instance' or 'group', got {norm!r}")
        if len(features) < 2 or convolutions_per_stage < 1:
            raise ValueError("a U-Net has at least two levels and one convolution per block")
        steps: list[Any] = [tuple(s) for s in strides] if strides else [(2,) * dimensions] * (len(features) - 1)
        if len(steps) != len(features) - 1 or any(len(s) != dimensions or min(s) < 1 for s in steps):
            raise ValueError(f"strides must hold {len(features) - 1} tuples of {dimensions} positive numbers")
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride}")

        def block(inputs: int, outputs: int, stride: Any, *, stem: bool = False) -> nn.Sequential:
            layers: list[nn.Module] = []
            for index in range(convolutions_per_stage):
                first = index == 0
                width, padding = (6, 2) if stem and first and stem_stride == 2 else (3, 1)
                layers += [
                    _CONVOLUTION[dimensions](
                        inputs if first else outputs, outputs, width, stride if first else 1, padding, bias=False
                    ),
                    _norm(norm, dimensions, outputs),
                    nn.LeakyReLU(0.01),
                ]
            return nn.Sequential(*layers)

        one: tuple[int, ...] = (1,) * dimensions
        self.dimensions = dimensions
        self.channels = in_channels, out_channels
        self.deep_supervision = deep_supervision
        #: Whether logits can be computed for a part: only for volumes, and without norms that use image statistics.
        self.computes_parts = dimensions == 3 and norm == "batch"
        self._stem_stride = stem_stride
        self._reach = convolutions_per_stage  # in voxels, of a block's convolutions
        self._strides = [(stem_stride,) * dimensions, *steps]
        self.encoder = nn.ModuleList(
            block(features[level - 1] if level else in_channels, features[level], self._strides[level], stem=level == 0)
            for level in range(len(features) - 1)
        )
        self.bottleneck = block(features[-2], features[-1], steps[-1])
        self.decoder = nn.ModuleList(
            _DecoderBlock(
                _UPSAMPLING[dimensions](features[level + 1], features[level], steps[level], steps[level]),
                block(2 * features[level], features[level], one),
            )
            for level in reversed(range(len(features) - 1))
        )
        self.head = _CONVOLUTION[dimensions](features[0], out_channels * stem_stride**dimensions, 1)
        # Coarsest first, like the decoder; the last decoder level has the main head.
        self.auxiliary_heads = nn.ModuleList(
            _CONVOLUTION[dimensions](features[level], out_channels, 1)
            for level in reversed(range(1, len(features) - 1))
            if deep_supervision
        )

    def crops(self, layer: str) -> bool:
        """Whether hooks at `layer` (a module's name) receive only a part of it when logits of a part are computed."""
        return f"{layer}.".startswith((f"decoder.{len(self.decoder) - 1}.", "head."))

    @property
    def divisor(self) -> tuple[int, ...]:
        """The number by which the input's size must be divisible, along each axis."""
        return _product(self._strides)

    def explainable_layers(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names of the network's levels and their strides in input voxels, in the order they run."""
        down = [_product(self._strides[: level + 1]) for level in range(len(self._strides))]
        names = [f"encoder.{level}" for level in range(len(down) - 1)]
        up = [(f"decoder.{i}", stride) for i, stride in enumerate(reversed(down[:-1]))]
        return [*zip(names, down[:-1], strict=True), ("bottleneck", down[-1]), *up]

    def forward(self, image: torch.Tensor, part: Box | None = None) -> torch.Tensor | list[torch.Tensor]:
        """Logits (N, `out_channels`, …) of an image (N, `in_channels`, …).

        :param part: compute only the logits of this part (k, j, i) of a volume, in evaluation mode. They equal those of
            the whole image, but the last block of the decoder, a third of the work, is computed only there (see
            :meth:`crops`). Requires :attr:`computes_parts`.
        :raises ValueError: the size is not divisible by :attr:`divisor` (pad the image first), or `part` is given for a
            network that cannot compute parts.
        """
        if part is not None and (self.training or not self.computes_parts):
            raise ValueError("logits of a part can be computed only in evaluation mode, for a volume, with batch norms")
        if any(n % d for n, d in zip(image.shape[2:], self.divisor, strict=True)):
            raise ValueError(f"the size {tuple(image.shape[2:])} must be divisible by {self.divisor}; pad the image")
        skips = []
        x = image
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        x = self.bottleneck(x)
        outputs = []
        for block in self.decoder[:-1]:
            x = block(x, skips.pop())
            outputs.append(x)
        if part is not None:
            return self._logits_of_part(x, skips.pop(), part)
        outputs.append(self.decoder[-1](x, skips.pop()))
        logits = self._expand(self.head(outputs[-1]))
        if not (self.deep_supervision and self.training):
            return logits
        auxiliary = [head(x) for head, x in zip(self.auxiliary_heads, outputs[:-1], strict=True)]
        return [logits, *reversed(auxiliary)]

    def _logits_of_part(self, x: torch.Tensor, skip: torch.Tensor, part: Box) -> torch.Tensor:
        """The last block of the decoder and the head, for a part of the image and the reach of the convolutions."""
        step, up = self._stem_stride, self._strides[1]
        wanted = Box(*(slice(side.start // step, -(-side.stop // step)) for side in part))
        halo = wanted.grown([self._reach] * 3, skip.shape[2:])
        coarse = Box(*(slice(side.start // n, -(-side.stop // n)) for side, n in zip(halo, up, strict=True)))
        read = Box(*(slice(side.start * n, side.stop * n) for side, n in zip(coarse, up, strict=True)))
        every = slice(None), slice(None)
        x = self.decoder[-1](x[every + coarse], skip[every + read])
        logits = self._expand(self.head(x[every + wanted.relative_to(read)]))
        return logits[every + part.shifted([-side.start * step for side in wanted])]

    def _expand(self, logits: torch.Tensor) -> torch.Tensor:
        """Rearrange channels (C · 2^dimensions, for stem stride 2) to the image voxels that they represent."""
        if self._stem_stride == 1:
            return logits
        n, size, axes = logits.shape[0], logits.shape[2:], self.dimensions
        parts = logits.reshape(n, -1, *(2,) * axes, *size)
        order = [0, 1] + [axis for place in range(axes) for axis in (2 + axes + place, 2 + place)]
        return parts.permute(order).reshape(n, -1, *(2 * m for m in size))


class _DecoderBlock(nn.Module):
    """Upsample, concatenate with the encoder's output of that size, convolve."""

    def __init__(self, up: nn.Module, convolutions: nn.Sequential) -> None:
        super().__init__()
        self.up = up
        self.convolutions = convolutions

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        if not x.requires_grad or skip.requires_grad:
            return self.convolutions(torch.cat([x, skip], dim=1))
        # Only a deeper layer needs gradients: splitting the first convolution spares the encoder's half of the backward
        # pass.
        first, count = self.convolutions[0], x.shape[1]
        assert isinstance(first, nn.Conv2d | nn.Conv3d)
        own = first._conv_forward(x, first.weight[:, :count], first.bias)
        return self.convolutions[1:](own + first._conv_forward(skip, first.weight[:, count:], None))


def default_layer(layers: Sequence[tuple[str, tuple[int, ...]]], spacing: Sequence[float]) -> str:
    """The layer to explain when the user names none: in the decoder, at stride 4, or 2 if that is over 12 mm.

    The last decoder layer is never chosen: below a 1x1 head its Grad-CAM is the logit map whatever the target. Deeper
    layers have a larger receptive field but blur lesions. Falls back to the bottleneck for a network of two levels.

    :param layers: as from ``explainable_layers()``.
    :param spacing: voxel size of the network's grid in mm, along the tensor's axes.
    """
    candidates = [(name, stride) for name, stride in layers if name.startswith("decoder.")][:-1]
    if not candidates:
        return "bottleneck"
    fits = [
        (max(stride), name)
        for name, stride in candidates
        if max(stride) <= 4 and max(s * mm for s, mm in zip(stride, spacing, strict=True)) <= 12.0
    ]
    return max(fits)[1] if fits else candidates[-1][0]


def _product(strides: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def _norm(norm: str, dimensions: int, features: int) -> nn.Module:
    if norm == "batch":
        return _BATCH_NORM[dimensions](features)
    if norm == "instance":
        return _INSTANCE_NORM[dimensions](features, affine=True)
    return nn.GroupNorm(math.gcd(8, features), features)
