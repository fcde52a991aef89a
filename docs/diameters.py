# SPDX-License-Identifier: Apache-2.0
"""Errors of measured diameters for shapes with exactly known diameters: the table of ``docs/measurements.md``.

python docs/diameters.py
"""

from __future__ import annotations

import numpy as np

from LiverXAILib.measure.diameters import axial_diameters, feret_diameter_mm
from LiverXAILib.volumes.volume import Grid

#: (i, j, k) in mm.
SPACINGS = ((0.7, 0.7, 2.5), (1.0, 1.0, 1.0), (1.5, 1.5, 1.5))
REPEATS = 6


def ball(
    rng: np.random.Generator, points: np.ndarray, diameter: float
) -> tuple[np.ndarray, tuple[float, float, float]]:
    return np.linalg.norm(points, axis=-1) <= diameter / 2, (diameter, diameter, diameter)


def ellipsoid(
    rng: np.random.Generator, points: np.ndarray, axes: tuple[float, float, float]
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A randomly rotated ellipsoid. Its longest axial section passes through its center, and is an ellipse."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    form = turn @ np.diag(4 / np.square(axes)) @ turn.T
    low, high = np.linalg.eigvalsh(form[:2, :2])
    return np.einsum("...a,ab,...b", points, form, points) <= 1, (2 / low**0.5, 2 / high**0.5, max(axes))


def box(
    rng: np.random.Generator, points: np.ndarray, sides: tuple[float, float, float]
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A box, randomly rotated about the patient's long axis; its first side is the longest."""
    angle = rng.uniform(0, np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    local = points @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    long = float(np.hypot(*sides[:2]))
    return (np.abs(local) <= np.array(sides) / 2).all(axis=-1), (
        long,
        sides[1] * long / sides[0],
        float(np.hypot(long, sides[2])),
    )


SHAPES = {
    "ball, 10 mm": (ball, 10.0),
    "ball, 20 mm": (ball, 20.0),
    "ellipsoid, 30 × 20 × 16 mm": (ellipsoid, (30.0, 20.0, 16.0)),
    "box, 20 × 12 × 14 mm": (box, (20.0, 12.0, 14.0)),
}


def errors(name: str, spacing: tuple[float, float, float], repeats: int = REPEATS) -> np.ndarray:
    """Measured minus true in mm for long axis, short axis and 3-D diameter: (repeats, 3); positions are random."""
    make, size = SHAPES[name]
    rng = np.random.default_rng(0)
    reach = 1.2 * np.max(size) / np.array(spacing)[::-1] / 2 + 3
    shape = tuple(int(n) for n in np.ceil(2 * reach))
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    k, j, i = np.indices(shape)
    found = []
    for _ in range(repeats):
        center = (np.array(shape[::-1]) - 1) / 2 + rng.uniform(-0.5, 0.5, 3)
        mask, truth = make(rng, grid.to_lps(np.stack([i, j, k], axis=-1) - center), size)
        axial = axial_diameters(mask, grid)
        found.append(np.array([axial.long_mm, axial.short_mm, feret_diameter_mm(mask, grid)]) - truth)
    return np.array(found)


def table() -> str:
    """Mean and worst errors as a Markdown table."""
    lines = [
        "| shape | voxel, mm | long axis | short axis | 3-D diameter |",
        "|---|---|---|---|---|",
    ]
    for name in SHAPES:
        for spacing in SPACINGS:
            off = errors(name, spacing)
            worst = np.take_along_axis(off, np.abs(off).argmax(axis=0)[None], axis=0)[0]
            cells = [f"{mean:+.1f}, {most:+.1f}" for mean, most in zip(off.mean(axis=0), worst, strict=True)]
            size = " × ".join(f"{mm:g}" for mm in spacing)
            lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
