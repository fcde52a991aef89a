# SPDX-License-Identifier: Apache-2.0
"""Shapes as signed distances in mm, negative inside; smooth set operations; interpolation.

Coordinates are three arrays (x, y, z) that broadcast against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch

Point = tuple[float, float, float]
Vector: TypeAlias = "Sequence[float] | np.ndarray"
Coordinates = tuple[np.ndarray, np.ndarray, np.ndarray]


def ellipsoid(p: Coordinates, center: Vector, radii: Vector, rotation: np.ndarray | None = None) -> np.ndarray:
    """Return the approximate distance, exact to first order at the surface. Rows of `rotation` are the axes."""
    d = [np.subtract(x, c, dtype=np.float32) for x, c in zip(p, center, strict=True)]
    if rotation is not None:
        r = rotation.astype(np.float32)
        d = [r[n, 0] * d[0] + r[n, 1] * d[1] + r[n, 2] * d[2] for n in range(3)]
    s = [x / np.float32(r) for x, r in zip(d, radii, strict=True)]
    k0 = np.sqrt(s[0] * s[0] + s[1] * s[1] + s[2] * s[2])
    s = [x / np.float32(r) for x, r in zip(s, radii, strict=True)]
    k1 = np.sqrt(s[0] * s[0] + s[1] * s[1] + s[2] * s[2]) + np.float32(1e-6)
    return k0 * (k0 - 1) / k1


def capsule(p: Coordinates, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distance to a tube with round ends from `a` to `b` (each x, y, z, radius); its radius is linear."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    ab = b - a
    d = [x - c for x, c in zip(p, a[:3], strict=True)]
    per_mm2 = ab[:3] / np.float32(max(float(ab[:3] @ ab[:3]), 1e-6))
    h = d[0] * per_mm2[0] + d[1] * per_mm2[1] + d[2] * per_mm2[2]
    np.minimum(h, 1, out=h)
    np.maximum(h, 0, out=h)
    square = np.zeros_like(h)
    for x, step in zip(d, ab[:3], strict=True):
        x = x - h * step
        square += x * x
    return np.sqrt(square) - (a[3] + h * ab[3])


def ellipse(u: np.ndarray, v: np.ndarray, radius_u: float | np.ndarray, radius_v: float | np.ndarray) -> np.ndarray:
    """Return the approximate distance to an ellipse in a plane."""
    s, t = u / radius_u, v / radius_v
    k0 = np.sqrt(s * s + t * t)
    s, t = s / radius_u, t / radius_v
    return k0 * (k0 - 1) / (np.sqrt(s * s + t * t) + np.float32(1e-6))


def union(a: np.ndarray, b: np.ndarray, k: float = 0.0) -> np.ndarray:
    """Return the smooth minimum; `k` in mm is the extent of the blend (0: a sharp edge)."""
    if k == 0:
        return np.minimum(a, b)
    h = np.maximum(np.float32(k) - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * np.float32(0.25 / k)


def intersection(a: np.ndarray, b: np.ndarray, k: float = 0.0) -> np.ndarray:
    return -union(-a, -b, k)


def without(a: np.ndarray, b: np.ndarray, gap: float = 0.0, k: float = 0.0) -> np.ndarray:
    """Return the part of `a` that is farther than `gap` mm from `b`."""
    return -union(-a, b - np.float32(gap), k)


def rotation(axis: Vector, degrees: float) -> np.ndarray:
    """Return the rotation matrix (Rodrigues' formula); its rows are axes turned by `degrees` about `axis`."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    t = np.radians(degrees)
    return (np.eye(3) + np.sin(t) * k + (1 - np.cos(t)) * k @ k).T


def ramp(values: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Return 0 before `start`, 1 after `stop`, and smooth values between (either may be the larger)."""
    t = np.clip((values - np.float32(start)) / np.float32(stop - start), 0, 1)
    return t * t * (3 - 2 * t)


def interpolation(start: float, step: float, count: int, at: np.ndarray, smooth: bool = False) -> np.ndarray:
    """Return the matrix (len(at), count) that interpolates samples at start + n * step: cubic (Catmull-Rom), or, if
    `smooth`, the approximating cubic B-spline. Beyond the samples the last one is repeated."""
    position = np.clip((np.asarray(at, float) - start) / step, 0, count - 1)
    first = np.minimum(np.floor(position).astype(int), max(count - 2, 0))
    t = position - first
    if smooth:
        taps = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    else:
        taps = (
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        )
    matrix = np.zeros((len(t), count), np.float32)
    rows = np.arange(len(t))
    for n, tap in enumerate(taps):
        columns = np.minimum(np.maximum(first + (n - 1), 0), count - 1)
        matrix[rows, columns] += tap.astype(np.float32)  # within one tap no (row, column) occurs twice
    return matrix


def resample(values: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Apply one interpolation matrix per axis (k, j, i)."""
    # torch.matmul respects torch.set_num_threads, so that several generators can share one machine
    mk, mj, mi = (torch.from_numpy(m) for m in matrices)
    out = torch.matmul(mj, torch.matmul(torch.from_numpy(values), mi.T))
    return (mk @ out.reshape(len(out), -1)).reshape(len(mk), *out.shape[1:]).numpy()


def spline(points: Sequence[Sequence[float]] | np.ndarray, count: int) -> np.ndarray:
    """Sample `count` rows on the Catmull-Rom curve through the rows of `points` (position and radius)."""
    nodes = np.asarray(points, float)
    return _spline_weights(len(nodes), count) @ nodes


@lru_cache(maxsize=64)
def _spline_weights(nodes: int, count: int) -> np.ndarray:
    return interpolation(0.0, 1.0, nodes, np.linspace(0, nodes - 1, count)).astype(float)


def grow(
    rng: np.random.Generator,
    start: Vector,
    aim: Vector,
    length: float,
    radius: float,
    generations: int,
    shrink: float,
) -> list[np.ndarray]:
    """Grow a random tree of tubes (each rows of x, y, z, radius) from `start` toward `aim`."""
    start, onward = np.asarray(start, float), np.asarray(aim, float) / np.linalg.norm(aim)
    end = start + onward * length
    middle = (start + end) / 2 + rng.normal(0, 0.06 * length, 3)
    tubes = [spline([(*start, radius), (*middle, radius * 0.93), (*end, radius * 0.86)], 4 if radius > 3 else 3)]
    if generations > 1:
        for _ in range(2 if rng.random() < 0.75 else 3):
            bend = rng.normal(0, 0.5, 3)
            finer = radius * shrink * rng.uniform(0.85, 1.1)
            tubes += grow(rng, end, onward + bend, length * rng.uniform(0.65, 0.9), finer, generations - 1, shrink)
    return tubes
