# SPDX-License-Identifier: Apache-2.0
"""Linear resampling between grids, and its adjoint.

Downsampling is anti-aliased with a triangle filter as wide as the target's spacing, because a CT's noise would
otherwise alias into the coarse image. The matrices map voxel *centers*, so nothing shifts by half a voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import torch

from .volume import Grid

#: Axes count as parallel if no voxel is misplaced by more than this (in source voxels) across the target.
_PARALLEL_TOLERANCE = 0.02
#: Voxels sampled at a time, to bound memory.
_SLAB_VOXELS = 4_000_000
#: Target voxels along an axis that are computed by one matrix: few enough that the matrix is nearly dense.
_BLOCK = 16


def resample(
    array: np.ndarray | torch.Tensor, source: Grid, target: Grid, *, fill: float = 0.0, antialias: bool = True
) -> torch.Tensor:
    """Sample an image given on `source` at the voxel centers of `target`, linearly.

    :param array: (..., k, j, i) on `source`; leading axes are channels.
    :param fill: value at positions more than half a source voxel outside `source`.
    :param antialias: widen the filter where the target is coarser than the source.
    :return: float32 tensor (..., k, j, i) on `target`, on the device of `array`.

    Differentiable in `array`, and linear up to `fill`.
    """
    tensor = _as_tensor(array)
    if tuple(tensor.shape[-3:]) != source.shape:
        raise ValueError(f"array of shape {tuple(tensor.shape)} does not lie on a grid of shape {source.shape}")
    target_to_source = np.linalg.inv(source.ijk_to_lps) @ target.ijk_to_lps
    axes = _parallel_axes(target_to_source, target.shape)
    if axes is None:
        return _resample_oblique(tensor, source, target, fill, antialias)
    return _resample_separable(tensor, target_to_source, axes, target.shape, fill, antialias)


def resample_adjoint(array: torch.Tensor, source: Grid, target: Grid, *, antialias: bool = True) -> torch.Tensor:
    """The adjoint (transpose) of :func:`resample`: maps weights on `target` (k, j, i) back to `source`.

    For all x, y: ``sum(resample(x) * y) == sum(x * resample_adjoint(y))``. A weighted sum of scores on the image's grid
    thus becomes a weighted sum on the network's grid with the same value.
    """
    target_to_source = np.linalg.inv(source.ijk_to_lps) @ target.ijk_to_lps
    axes = _parallel_axes(target_to_source, target.shape)
    if axes is None:
        with torch.enable_grad():
            probe = torch.zeros(source.shape, dtype=torch.float32, device=array.device, requires_grad=True)
            sampled = resample(probe, source, target, antialias=antialias)
            # Not passed as "grad_outputs", because torch imports SymPy to check their shape.
            (weights,) = torch.autograd.grad((sampled * array).sum(), probe)
        return weights
    matrices, _ = _separable_weights(source.shape, target_to_source, axes, target.shape, antialias)
    ends = [_used(matrix) for matrix in matrices]
    w_i, w_j, w_k = (matrix[:, first:stop].T for matrix, (first, stop) in zip(matrices, ends, strict=True))
    # The target's axes (k, j, i), reordered to match the source axes to which they are parallel.
    weights = array.to(torch.float32).permute(2 - axes[2], 2 - axes[1], 2 - axes[0])
    weights = _contract(_contract(weights, w_i, -1), w_j, -2)
    weights = _contract(weights.flatten(1), w_k, -2).unflatten(1, weights.shape[1:])
    result = torch.zeros(source.shape, dtype=torch.float32, device=array.device)
    i, j, k = (slice(*pair) for pair in ends)
    result[k, j, i] = weights
    return result


def regrid(grid: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The grid with the same field of view and axes at another `spacing` ((i, j, k) in mm), centered.

    Its size is rounded up, so that no part of the image is lost.
    """
    shape = [
        max(1, int(np.ceil(n * old / new - 1e-3)))
        for n, old, new in zip(grid.shape[::-1], grid.spacing, spacing, strict=True)
    ]
    return _centered(grid, shape, spacing)


def resized(grid: Grid, shape: tuple[int, int, int]) -> Grid:
    """The grid with the same field of view and axes in `shape` ((k, j, i)) voxels."""
    sizes = shape[::-1]
    spacing = tuple(n * old / new for n, old, new in zip(grid.shape[::-1], grid.spacing, sizes, strict=True))
    return _centered(grid, list(sizes), spacing)


def _centered(grid: Grid, shape_ijk: list[int], spacing: tuple[float, ...]) -> Grid:
    matrix = grid.ijk_to_lps.copy()
    matrix[:3, :3] = grid.direction * np.array(spacing)
    center = grid.to_lps((np.array(grid.shape[::-1]) - 1) / 2)
    matrix[:3, 3] = center - matrix[:3, :3] @ ((np.array(shape_ijk) - 1) / 2)
    i, j, k = shape_ijk
    return Grid((k, j, i), matrix)


def _as_tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array
    if array.dtype == bool:
        array = array.view(np.uint8)  # a quarter of float32, of which only the part that is used is converted
    if array.dtype not in (np.int8, np.uint8, np.int16, np.int32, np.float16, np.float32, np.float64):
        array = array.astype(np.float32)
    array = np.ascontiguousarray(array)
    # torch warns about read-only memory, such as a Volume's, to which nothing here writes. A filter of warnings would
    # apply to all threads.
    memory = {**array.__array_interface__, "data": (array.ctypes.data, False)}
    return torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=memory, owner=array)))


def _parallel_axes(matrix: np.ndarray, target_shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """For each source axis (i, j, k) the target axis parallel to it, or None if the grids are oblique."""
    extent = np.array(target_shape[::-1], dtype=float)
    travel = np.abs(matrix[:3, :3]) * extent
    for a, b, c in permutations(range(3)):
        others = travel.copy()
        others[range(3), (a, b, c)] = 0
        if others.max() < _PARALLEL_TOLERANCE:
            return a, b, c
    return None


def _axis_weights(n: int, positions: np.ndarray, step: float, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Interpolation matrix (len(positions), n) and which positions lie inside the source."""
    inside = (positions >= -0.5 - 1e-6) & (positions <= n - 0.5 + 1e-6)
    width = max(1.0, abs(step)) if antialias else 1.0
    centers = np.clip(positions, 0, n - 1)
    # Computed only for the voxels within the filter's reach: all others have no weight.
    count = min(n, int(np.ceil(2 * width)))
    first = np.clip(np.floor(centers - width).astype(int) + 1, 0, n - count)
    near = first[:, None] + np.arange(count)
    values = np.maximum(0.0, 1.0 - np.abs(near - centers[:, None]) / width)
    values /= values.sum(axis=1, keepdims=True)
    values[~inside] = 0
    weights = np.zeros((len(positions), n), dtype=np.float32)
    np.put_along_axis(weights, near, values.astype(np.float32), axis=1)
    return weights, inside


def _separable_weights(
    shape: Sequence[int],
    matrix: np.ndarray,
    axes: tuple[int, int, int],
    target_shape: tuple[int, int, int],
    antialias: bool,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """:func:`_axis_weights` for the axes (i, j, k) of a source of `shape` (k, j, i)."""
    weights, inside = [], []
    for source_axis, target_axis in enumerate(axes):
        step = matrix[source_axis, target_axis]
        positions = step * np.arange(target_shape[::-1][target_axis]) + matrix[source_axis, 3]
        w, ok = _axis_weights(shape[-1 - source_axis], positions, step, antialias)
        weights.append(w)
        inside.append(ok)
    return weights, inside


def _resample_separable(
    tensor: torch.Tensor,
    matrix: np.ndarray,
    axes: tuple[int, int, int],
    target_shape: tuple[int, int, int],
    fill: float,
    antialias: bool,
) -> torch.Tensor:
    weights, within = _separable_weights(tensor.shape[-3:], matrix, axes, target_shape, antialias)

    # Only voxels with a weight are read, a few slices at a time: the whole image is never held in float32.
    used = [_used(w) for w in weights]
    w_i, w_j, w_k = (w[:, first:stop] for w, (first, stop) in zip(weights, used, strict=True))
    i, j, k = (slice(*ends) for ends in used)
    stack = tensor[..., k, j, i].reshape(-1, *(w.shape[1] for w in (w_k, w_j, w_i)))
    rows = max(1, _SLAB_VOXELS // max(1, w_j.shape[1] * w_i.shape[1]))
    slabs = [
        [_contract(_contract(slab.to(torch.float32), w_j, -2), w_i, -1) for slab in channel.split(rows)]
        for channel in stack.unbind(0)
    ]
    channels = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in slabs]
    planes = channels[0][None] if len(channels) == 1 else torch.stack(channels)
    result = _contract(planes.flatten(2), w_k, -2).unflatten(2, planes.shape[2:])

    # Source order is (k, j, i); the target axis parallel to source axis a is axes[a].
    source_kji_to_target = [3 - axes[2], 3 - axes[1], 3 - axes[0]]
    result = result.permute(0, *(1 + source_kji_to_target.index(t) for t in (1, 2, 3)))
    result = result.reshape(-1, *target_shape).contiguous()
    if fill:
        # In place: usually no position lies outside the source.
        for target_axis, ok in zip(axes, within, strict=True):
            outside = torch.from_numpy(np.flatnonzero(~ok)).to(tensor.device)
            result.index_fill_(3 - target_axis, outside, fill)
    return result.reshape(*tensor.shape[:-3], *target_shape)


def _used(weights: np.ndarray) -> tuple[int, int]:
    """The first source voxel with a nonzero weight, and one past the last; (0, 1) if there is none."""
    columns = np.flatnonzero(weights.any(axis=0))
    return (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 1)


def _contract(tensor: torch.Tensor, weights: np.ndarray, axis: int) -> torch.Tensor:
    """Multiply `axis` (-1 or -2) of `tensor` by an interpolation matrix, in blocks because most of it is zero."""
    blocks = []
    for start in range(0, len(weights), _BLOCK):
        block = weights[start : start + _BLOCK]
        first, stop = _used(block)
        matrix = torch.from_numpy(np.ascontiguousarray(block[:, first:stop])).to(tensor.device)
        source = tensor.narrow(axis, first, stop - first)
        blocks.append(matrix @ source if axis == -2 else source @ matrix.T)
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=axis)


def _resample_oblique(tensor: torch.Tensor, source: Grid, target: Grid, fill: float, antialias: bool) -> torch.Tensor:
    if antialias:
        # The width of the anti-aliasing blur along each source axis follows from the length of one target step.
        steps = np.abs(np.linalg.inv(source.ijk_to_lps) @ target.ijk_to_lps)[:3, :3].max(axis=1)
        if steps.max() > 1.5:
            spacing = np.array(source.spacing) * np.maximum(steps, 1.0)
            coarse = regrid(source, (float(spacing[0]), float(spacing[1]), float(spacing[2])))
            tensor, source = resample(tensor, source, coarse, antialias=True), coarse
    matrix = np.linalg.inv(source.ijk_to_lps) @ target.ijk_to_lps
    leading = tensor.shape[:-3]
    image = tensor.reshape(1, -1, *tensor.shape[-3:]).to(torch.float32) - fill
    # grid_sample with align_corners=True has voxel centers at -1 and 1; "zeros" is `fill` after the shift above.
    scale = 2.0 / np.maximum(np.array(source.shape[::-1]) - 1, 1)
    linear = torch.from_numpy((matrix[:3, :3] * scale[:, None]).astype(np.float32)).to(image.device)
    offset = torch.from_numpy((matrix[:3, 3] * scale - 1).astype(np.float32)).to(image.device)
    depth, height, width = target.shape
    rows = torch.arange(height, device=image.device, dtype=torch.float32)
    columns = torch.arange(width, device=image.device, dtype=torch.float32)
    slab = max(1, _SLAB_VOXELS // (height * width))
    parts = []
    for start in range(0, depth, slab):
        slices = torch.arange(start, min(start + slab, depth), device=image.device, dtype=torch.float32)
        z, y, x = torch.meshgrid(slices, rows, columns, indexing="ij")
        points = torch.stack((x, y, z), dim=-1) @ linear.T + offset
        sampled = torch.nn.functional.grid_sample(
            image, points[None], mode="bilinear", padding_mode="zeros", align_corners=True
        )
        parts.append(sampled[0])
    return (torch.cat(parts, dim=1) + fill).reshape(*leading, *target.shape)
