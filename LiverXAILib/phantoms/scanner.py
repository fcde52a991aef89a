# SPDX-License-Identifier: Apache-2.0
"""The phantom's scanner: table, point spread, noise."""

from __future__ import annotations

import numpy as np
import torch

from .canvas import Canvas
from .shapes import Point
from .tissues import TISSUES


def paint_table(canvas: Canvas, rng: np.random.Generator, back: float, middle: float) -> None:
    """Paint a curved carbon shell with a second one under it, posterior to y = `back`, never over the body."""
    x, y, _ = canvas.axes
    sag, top, thick = rng.uniform(0.0006, 0.0016), back + rng.uniform(1, 6), rng.uniform(12, 40)
    curve = np.float32(sag) * (x - np.float32(middle)) ** 2
    air = canvas.tissue == TISSUES["air"]
    for height in (top - curve, top + thick - np.float32(0.6) * curve):
        depth = (np.float32(1.7) - np.abs(y[:, None] - height[None, :])) / np.float32(canvas.spacing[1])
        rows = np.flatnonzero((depth > -0.5).any(axis=1))
        if not len(rows):
            continue
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        depth = np.where(np.abs(x - middle) < 215, depth, np.float32(-1))[part]
        box = canvas.whole._replace(j=part)
        canvas.paint(box, np.broadcast_to(depth, canvas.hu[box].shape), "table", where=air[box])
        canvas.tissue[box][air[box] & (depth > -0.3)] = TISSUES["table"]  # thinner than a coarse voxel


def blur(hu: np.ndarray, sigma_mm: float, spacing: Point) -> None:
    """Apply the in-plane point spread function in place: three taps with the variance of a Gaussian."""
    for axis, mm in ((1, spacing[1]), (2, spacing[0])):
        side = np.float32(min(0.5 * (sigma_mm / mm) ** 2, 0.25))
        rows = np.moveaxis(hu, axis, 0)
        step = side * (rows[1:] - rows[:-1])
        rows[:-1] += step
        rows[1:] -= step


def scanner_noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: Point, cutoff: float, streaks: float
) -> np.ndarray:
    """Make noise of standard deviation 1 with the in-plane power spectrum of filtered back projection, a ramp with a
    smooth end (f exp(-(f / cutoff)²), `cutoff` in cycles/mm), with left-right streaks, along which the rays are
    longest, amplified `streaks` times, and with a slight correlation between thin slices."""
    k, j, i = shape
    padded = (k, -(-j // 32) * 32, -(-i // 32) * 32)
    spectrum = torch.fft.rfft2(torch.from_numpy(rng.standard_normal(padded, dtype=np.float32)))
    fy, fx = np.fft.fftfreq(padded[1], spacing[1])[:, None], np.fft.rfftfreq(padded[2], spacing[0])[None, :]
    f = np.hypot(fx, fy)
    power = (f + 0.02) * np.exp(-((f / cutoff) ** 2)) * (1 + streaks * np.exp(-((fx / 0.03) ** 2)))
    spectrum *= torch.from_numpy(np.sqrt(power).astype(np.float32))
    noise = torch.fft.irfft2(spectrum, s=padded[1:]).numpy()[:, :j, :i].copy()
    noise[:-1] += np.float32(0.25 * min(2.0 / spacing[2], 1.0)) * noise[1:]
    return noise / noise.std()
