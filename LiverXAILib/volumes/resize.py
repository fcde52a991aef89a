# SPDX-License-Identifier: Apache-2.0
"""Resizing an array to another number of voxels over the same field of view, with splines of order 0, 1 or 3.

The definition is that of ``skimage.transform.resize(..., mode="edge", anti_aliasing=False)``, which nnU-Net uses: voxel
``o`` of ``m`` in the result lies at ``(o + 1/2) n / m - 1/2`` of the source's ``n`` voxels, and beyond the source its
edge voxels are repeated. Unlike :func:`~LiverXAILib.volumes.resample.resample` there is no anti-aliasing. Each axis is
multiplied by one matrix, so the result is a fixed linear function of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .box import Box

#: Edge voxels repeated on each side before a cubic spline is fitted, as in SciPy: further ones would have an influence
#: below 1e-6.
_EDGE = 12
#: A cubic spline's weights decay by a factor of 3.7 per voxel; those below this are treated as 0.
_NEGLIGIBLE = 1e-9


def resize(
    image: torch.Tensor,
    shape: tuple[int, int, int],
    orders: Sequence[int] = (1, 1, 1),
    box: Box | None = None,
) -> torch.Tensor:
    """Resize ``(..., k, j, i)`` to ``(..., *shape)``.

    :param orders: order of the spline along (k, j, i): 0 nearest, 1 linear, 3 cubic.
    :param box: compute only this part of the result.
    :return: float32.
    """
    result = image.to(torch.float32)
    for axis in (2, 1, 0):
        n, m = image.shape[axis - 3], shape[axis]
        part = box[axis] if box is not None else slice(0, m)
        places = (np.arange(part.start, part.stop) + 0.5) * (n / m) - 0.5
        result = _along(result, axis - 3, n, places, orders[axis])
    return result


def _along(image: torch.Tensor, axis: int, n: int, places: np.ndarray, order: int) -> torch.Tensor:
    if order == 0 or np.array_equal(places, places.round()):
        # Ties round up, as in SciPy; the small number compensates for rounding errors of the positions.
        nearest = np.clip(np.floor(places + 0.5 + 1e-9), 0, n - 1).astype(np.int64)
        return image.index_select(image.ndim + axis, torch.from_numpy(nearest).to(image.device))
    weights = _spline_weights(n, places, order)
    used = np.flatnonzero((np.abs(weights) > _NEGLIGIBLE).any(axis=0))
    first, count = int(used[0]), int(used[-1] - used[0] + 1)
    matrix = torch.from_numpy(weights[:, first : first + count].astype(np.float32)).to(image.device)
    return (image.narrow(axis, first, count).movedim(axis, -1) @ matrix.T).movedim(-1, axis).contiguous()


def _spline_weights(n: int, places: np.ndarray, order: int) -> np.ndarray:
    """(len(places), n): what each of n samples contributes to the interpolating spline at `places`."""
    if order == 1:
        return np.maximum(0.0, 1.0 - np.abs(np.arange(n)[None, :] - np.clip(places, 0, n - 1)[:, None]))
    if order != 3:
        raise ValueError(f"splines of order 0, 1 and 3 are supported, not {order}")
    size = n + 2 * _EDGE
    # B-spline coefficients c of samples x solve c[i-1] + 4 c[i] + c[i+1] = 6 x[i], mirrored at the ends.
    collocation = 4 * np.eye(size) + np.eye(size, k=1) + np.eye(size, k=-1)
    collocation[0, 1] = collocation[-1, -2] = 2
    repeated = np.eye(n)[np.clip(np.arange(size) - _EDGE, 0, n - 1)]
    coefficients = np.linalg.solve(collocation, 6 * repeated)
    cells = np.floor(places).astype(int)
    t = (places - cells)[:, None]
    pieces = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    return sum(piece * coefficients[cells + _EDGE + k - 1] for k, piece in enumerate(pieces)) / 6
