# SPDX-License-Identifier: Apache-2.0
"""The layers of a network that can be explained: finding and tapping them, and detecting uninformative ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import UsageError
from ..models.spec import StageSpec
from ..networks.folding import OneDnnConvolution
from ..networks.unet import UNet
from ..volumes.volume import Grid

#: Nodes of an autograd graph that are linear for every input.
_LINEAR = {
    "Convolution", "MkldnnConvolution", OneDnnConvolution.__name__,
    "Clone", "ToCopy", "Contiguous", "Alias", "Select", "Slice", "Split",
    "Index", "Cat", "Stack", "Add", "Sub", "Neg", "Sum", "Mean", "View", "UnsafeView", "Reshape", "ReshapeAlias",
    "Squeeze", "Unsqueeze", "Permute", "Transpose", "T", "Flip", "Roll", "ConstantPadNd", "AvgPool2D", "AvgPool3D",
    "PixelShuffle", "UpsampleBilinear2D", "UpsampleTrilinear3D", "UpsampleNearest2D", "UpsampleNearest3D",
}  # fmt: skip
#: A gradient whose sum is at most this fraction of its absolute sum cancels out: the remainder is rounding noise.
_CANCELS = 1e-3


def full_stride(stride: Sequence[int]) -> tuple[int, int, int]:
    """A stride along all three tensor axes; the stride of a 2-D network lacks the first."""
    a, b, c = (1,) * (3 - len(stride)) + tuple(stride)
    return a, b, c


def cell_mm(stride: Sequence[int], spacing: Sequence[float]) -> tuple[float, float, float]:
    """Size in mm of a layer's cells along the tensor's axes, given the grid's `spacing` along the same axes."""
    a, b, c = (step * size for step, size in zip(full_stride(stride), spacing, strict=True))
    return a, b, c


def layer_stride(stage: StageSpec, layer: str, window: Sequence[int], cells: Sequence[int]) -> tuple[int, int, int]:
    """The stride of `layer`: from the model card, or else from the size of its activation (`cells`) in a `window`."""
    for spec in stage.layers:
        if spec.name == layer:
            return full_stride(spec.stride)
    a, b, c = (ceil(n / m) for n, m in zip(window, cells, strict=True))
    return a, b, c


def lattice_grid(grid: Grid, stride: tuple[int, int, int], cells: tuple[int, int, int]) -> Grid:
    """The grid of a layer's cells: cell n of stride s is centered at ``s * n + (s - 1) / 2`` voxels of `grid`.

    :param stride: along the tensor's axes (k, j, i).
    :param cells: size of the activation, (k, j, i).
    """
    steps = torch.tensor(stride[::-1], dtype=torch.float64).numpy()
    matrix = grid.ijk_to_lps.copy()
    matrix[:3, :3] = matrix[:3, :3] * steps
    matrix[:3, 3] = grid.to_lps((steps - 1) / 2)
    return Grid(cells, matrix)


def find_layer(network: nn.Module, name: str, stage: StageSpec) -> nn.Module:
    """The module called `name`.

    :raises LiverXAILib.errors.UsageError: there is none; the message lists the choices.
    """
    modules = dict(network.named_modules())
    if name in modules and name:
        return modules[name]
    if not stage.layers:
        raise UsageError(
            f"The network of stage {stage.name!r} is a compiled program, and its layers cannot be accessed. "
            "Explain it with the method 'occlusion'."
        )
    listed = ", ".join(layer.name for layer in stage.layers)
    raise UsageError(f"The network of stage {stage.name!r} has no layer {name!r}. Choose one of: {listed}.")


class LayerTap:
    """Cuts a network's graph at one layer and holds that layer's activation. Use as a context manager.

    While it is open, each forward pass replaces the layer's output by a leaf of the autograd graph. Nothing before
    the layer is recorded, however large it is; a second tap on a later layer leaves the graph between the two intact.
    The rest of the network gets a copy, because an in-place activation after the layer would otherwise overwrite the
    held activation.

    :ivar is_cropped: whether a pass for a part of the window computes only a part of the layer.
    """

    def __init__(self, network: nn.Module, name: str, stage: StageSpec) -> None:
        self.name = name
        self.is_cropped = isinstance(network, UNet) and network.computes_parts and network.crops(name)
        self.consumer: nn.Module | None = None
        self._activation: torch.Tensor | None = None
        self._passed_on: torch.Tensor | None = None
        layer = find_layer(network, name, stage)
        self._handles = [layer.register_forward_hook(self._cut)]
        self._handles += [
            module.register_forward_pre_hook(self._notice)
            for module in network.modules()
            if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) and module is not layer
        ]

    def __enter__(self) -> LayerTap:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def take(self) -> torch.Tensor:
        """The activation of the last forward pass, which requires a gradient. It is then released."""
        activation, self._activation, self._passed_on = self._activation, None, None
        if activation is None:
            raise UsageError(f"Layer {self.name!r} is not used in the prediction.")
        return activation

    def _cut(self, module: nn.Module, inputs: Any, output: Any) -> torch.Tensor:
        if not isinstance(output, torch.Tensor) or output.ndim < 3:
            raise UsageError(f"Layer {self.name!r} does not output a single feature map, so it cannot be explained.")
        if self._activation is not None:
            raise UsageError(f"Layer {self.name!r} runs several times in one pass; choose a layer that runs once.")
        self._activation = output if output.requires_grad else output.detach().requires_grad_()
        self._passed_on = self._activation.clone()
        return self._passed_on

    def _notice(self, module: nn.Module, inputs: Any) -> None:
        if self._passed_on is not None and inputs and inputs[0] is self._passed_on:
            self.consumer = module


def layer_warnings(
    name: str,
    consumer: nn.Module | None,
    activation: torch.Tensor,
    gradient: torch.Tensor,
    score: torch.Tensor,
    held: torch.Tensor,
) -> list[str]:
    """Why a map at this layer would be meaningless, in sentences for the user; empty if nothing is wrong.

    :param consumer: the normalization that reads the layer's output directly, if there is one.
    :param activation: (channels, a, b, c) in one window.
    :param gradient: of the score with respect to it.
    :param score: with its autograd graph.
    :param held: the activation as a node of the graph, from :meth:`LayerTap.take`.
    """
    found = []
    if not bool(torch.isfinite(gradient).all()):
        return [f"The gradient at layer {name!r} is not finite: the map is meaningless."]
    if float(gradient.abs().sum()) == 0:
        return [f"Nothing at layer {name!r} influences the score: the map is empty. Choose another layer."]
    if float(activation.abs().max()) == 0:
        found.append(f"Layer {name!r} is dead: all its activations are 0.")
    if cancels := _cancellation(gradient, consumer):
        found.append(
            f"Layer {name!r} feeds a normalization that removes its {cancels}, so the average gradient there is "
            "exactly 0 and a Grad-CAM shows only rounding noise. Choose the whole block instead of its convolution."
        )
    if is_linear(score, held):
        found.append(
            f"Only linear steps follow {name!r}: a map there is a copy of the network's score, whatever is asked, and "
            "explains nothing. Choose an earlier (coarser) layer."
        )
    return found


def is_linear(score: torch.Tensor, activation: torch.Tensor) -> bool:
    """Whether `score` is an affine function of `activation`, from which it was computed, as with a pointwise head.

    Its gradient is then the same for every image, and the channels' weights are those of the head: a Grad-CAM is the
    (shifted, perhaps resized) score itself. Unknown steps count as nonlinear.
    """
    waiting, seen = [score.grad_fn], {activation.grad_fn}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions]
        kind = node.name().split("Backward")[0]
        if kind in ("Mul", "Div"):
            linear = parents[-1] is None or (kind == "Mul" and parents[0] is None)
        elif kind == "NativeBatchNorm":
            linear = not node._saved_training  # type: ignore[attr-defined]  # instance norm depends on the image
        else:
            linear = kind in _LINEAR or kind == "torch::autograd::AccumulateGrad"
        if not linear:
            return False
        waiting += parents
    return True


def _cancellation(gradient: torch.Tensor, consumer: nn.Module | None) -> str:
    """Which mean of `gradient` vanishes: "mean" (each channel), "group mean", "overall mean"; or "" if none does."""
    flat = gradient.flatten(1).double()
    if _vanishes(flat):
        return "mean"
    if isinstance(consumer, nn.GroupNorm) and flat.shape[0] % consumer.num_groups == 0:
        return "group mean" if _vanishes(flat.reshape(consumer.num_groups, -1)) else ""
    if isinstance(consumer, nn.LayerNorm) and _vanishes(flat.reshape(1, -1)):
        return "overall mean"
    return ""


def _vanishes(rows: torch.Tensor) -> bool:
    absolute = rows.abs().sum(dim=1)
    alive = absolute > 0
    return bool(alive.any()) and bool((rows.sum(dim=1)[alive].abs() <= _CANCELS * absolute[alive]).all())
