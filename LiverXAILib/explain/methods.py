# SPDX-License-Identifier: Apache-2.0
"""The methods by name, and the implementations of those that turn a layer's activations and gradients into a map.

A new method is one function here, or one in its own file that maps a whole image, and an entry in
:data:`LiverXAILib.explain.catalog.CATALOG`. Each function here gets a :class:`Record` of every window that overlaps
the target and yields one map per window, on the layer's own lattice. `S` is the score of the question, `A_k` the
activation of channel k, `g_k = dS/dA_k` its gradient, `j` a cell of the layer, `p` a window. Because of the sums over
`p`, the result is that of one graph over the whole image.

:mod:`LiverXAILib.explain.stitching` does the rest: it blends the windows, keeps the positive part, resamples and
normalizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import IO, Protocol

import numpy as np
import torch
from torch.nn import functional

from ..context import RunContext
from .catalog import CATALOG, MethodInfo
from .integrated import from_air, from_tissue
from .occlusion import occlusion
from .score import ScoreTarget
from .stage_context import StageContext, StageMap

#: Seg-XRes-CAM averages the gradient over blocks of this many cells along each axis.
_POOL = 4


class Record(Protocol):
    """Activations and gradients of one network in the windows that were run; can be iterated several times."""

    @property
    def cells(self) -> int:
        """Number of cells of the layer over *all* windows of the image, including those that were not run."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (activation, gradient), each (channels, a, b, c), float32 on the CPU, window by window."""


class TensorFile:
    """Tensors of one shape in a spooled temporary file, which moves to disk when it outgrows its memory limit."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._shape: tuple[int, ...] = ()
        self._count = 0

    def append(self, tensor: torch.Tensor) -> None:
        """Store `tensor` as float32."""
        if self._count and tuple(tensor.shape) != self._shape:
            raise ValueError(f"expected shape {self._shape}, got {tuple(tensor.shape)}")
        self._shape = tuple(tensor.shape)
        self._file.seek(0, 2)
        self._file.write(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        size = int(np.prod(self._shape)) * 4
        self._file.seek(index * size)
        return torch.frombuffer(bytearray(self._file.read(size)), dtype=torch.float32).reshape(self._shape)


LayerMaps = Callable[[Record], Iterator[torch.Tensor]]
ImageMap = Callable[[StageContext, ScoreTarget, RunContext], StageMap]


@dataclass(frozen=True)
class Method:
    """How a method of :data:`~LiverXAILib.explain.catalog.CATALOG` is computed.

    :param info: its name and what users read about it.
    :param layer_maps: for methods that read a layer: takes activations and gradients, yields a map for each window.
    :param image_map: for methods that change the image: takes stage, score and context, returns the whole map.
    :param blended: whether a window's map is a *state* of the network (blended with the windows' known weights) or a
        *share* of the score (summed).
    :param additive: whether the map's cells are parts of the score, so that their sum is the part of the score that
        the layer accounts for; the rest comes from skip connections that bypass the layer and from biases.
    """

    info: MethodInfo
    layer_maps: LayerMaps | None = None
    image_map: ImageMap | None = None
    blended: bool = False
    additive: bool = False

    @property
    def name(self) -> str:
        """As users write it."""
        return self.info.name


#: Methods that read a layer are registered by :func:`_layer_method`.
_METHODS: dict[str, Method] = {
    name: Method(CATALOG[name], image_map=function)
    for name, function in (
        ("integrated-gradients", from_tissue),
        ("integrated-gradients-air", from_air),
        ("occlusion", occlusion),
    )
}


def _layer_method(name: str, *, blended: bool = False, additive: bool = False) -> Callable[[LayerMaps], LayerMaps]:
    """Register the decorated function as the method that the catalog calls `name`."""

    def enter(function: LayerMaps) -> LayerMaps:
        _METHODS[name] = Method(CATALOG[name], function, blended=blended, additive=additive)
        return function

    return enter


@_layer_method("seg-grad-cam", blended=True)
def seg_grad_cam(record: Record) -> Iterator[torch.Tensor]:
    """``sum_k alpha_k A_k`` with ``alpha_k = 1/N sum_p sum_j g_k(j)``: which channels matter for S, and where they are.

    Vinogradova et al., AAAI 2020, https://arxiv.org/abs/2002.11434. By design not specific to a place: similar tissue
    near the target is highlighted as well.
    """
    alpha = _sum(gradient.flatten(1).sum(dim=1) for _, gradient in record) / record.cells
    for activation, _ in record:
        yield torch.tensordot(alpha, activation, dims=1)


@_layer_method("seg-grad-cam++", blended=True)
def seg_grad_cam_plus_plus(record: Record) -> Iterator[torch.Tensor]:
    """``sum_k w_k A_k`` with ``w_k = sum_pj g_k^2 / (2 g_k^2 + g_k^3 sum A_k) * relu(g_k)``.

    Chattopadhay et al., WACV 2018, https://arxiv.org/abs/1710.11063, eq. 19, for Y = exp(S) with the *scalar* S
    (the derivatives of a score map, which some libraries take, do not exist at a coarser layer). The paper assumes
    nonnegative activations; the negative tail of a leaky activation is left out of the sum over A_k, because the
    denominator could otherwise vanish. The sum runs over the windows that overlap the target.
    """
    total = _sum(activation.clamp_min(0).flatten(1).sum(dim=1) for activation, _ in record)
    weights = _sum(_plus_plus_weights(gradient.flatten(1), total) for _, gradient in record)
    for activation, _ in record:
        yield torch.tensordot(weights, activation, dims=1)


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    return reduce(torch.add, terms)


def _plus_plus_weights(gradient: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    positive = gradient.clamp_min(0)
    return (positive / (2 + positive * total[:, None])).sum(dim=1)


@_layer_method("hires-cam", additive=True)
def hires_cam(record: Record) -> Iterator[torch.Tensor]:
    """``sum_k g_k(j) A_k(j)``: specific to the place.

    Draelos and Carin, https://arxiv.org/abs/2011.08891; for segmentation Rheude et al., MELBA 2024:023.
    """
    for activation, gradient in record:
        yield (activation * gradient).sum(dim=0)


@_layer_method("seg-xres-cam")
def seg_xres_cam(record: Record) -> Iterator[torch.Tensor]:
    """HiResCAM with the gradient averaged over blocks of 4 cells, linear between them: halfway to Seg-Grad-CAM.

    Hasany et al., CVPR workshops 2023, "Seg-XRes-CAM: Explaining Spatially Local Regions in Image Segmentation".
    """
    for activation, gradient in record:
        a, b, c = gradient.shape[1:]
        kernel = [min(_POOL, n) for n in (a, b, c)]
        pooled = functional.avg_pool3d(gradient[None], kernel, ceil_mode=True, count_include_pad=False)
        whole = [n * step for n, step in zip(pooled.shape[2:], kernel, strict=True)]
        smooth = functional.interpolate(pooled, size=whole, mode="trilinear", align_corners=False)
        yield (activation * smooth[0, :, :a, :b, :c]).sum(dim=0)


@_layer_method("layer-cam")
def layer_cam(record: Record) -> Iterator[torch.Tensor]:
    """``sum_k relu(g_k(j)) A_k(j)``. Jiang et al., IEEE TIP 2021, "LayerCAM: Exploring Hierarchical Class Activation
    Maps for Localization"."""
    for activation, gradient in record:
        yield (activation * gradient.clamp_min(0)).sum(dim=0)


#: The methods by name, in the order of the catalog.
METHODS: dict[str, Method] = {name: _METHODS[name] for name in CATALOG}
