# SPDX-License-Identifier: Apache-2.0
"""Lesions of the phantom's liver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..volumes.box import Box
from .canvas import Canvas, smooth_noise
from .shapes import ellipsoid, rotation
from .tissues import CYST_HU, LESION_CONTRAST, TISSUES

_KINDS = ("hypodense", "hyperdense", "cyst")
_LEAST_MM, _MOST_MM = 4.0, 55.0


@dataclass
class Plan:
    """A lesion before it is painted: atlas position, mean radius in mm, kind, HU."""

    center: np.ndarray
    radius: float
    kind: str
    hu: float


def plan_lesions(
    rng: np.random.Generator,
    canvas: Canvas,
    liver: np.ndarray,
    count: int | None,
    phase: str,
    diameters_mm: tuple[float, float] | None = None,
) -> list[Plan]:
    """Plan `count` lesions (None draws a number) in the liver (a lattice field) that do not touch each other."""
    drawn = int(np.clip(rng.geometric(0.3), 1, 12))
    usual = rng.choice(_KINDS, p=(0.68, 0.14, 0.18))
    typical, spread = rng.uniform(np.log(5), np.log(30)), rng.uniform(0.25, 0.6)
    nodes = np.nonzero(liver < -3)
    deep = -liver[nodes]
    where = np.stack([a[nodes] for a in canvas.atlas], axis=1)
    liver_hu = canvas.values["liver"]
    plans: list[Plan] = []
    for _ in range(drawn if count is None else count):
        kind = str(usual if rng.random() < 0.75 else rng.choice(_KINDS))
        radius = float(np.clip(rng.lognormal(typical, spread), _LEAST_MM, _MOST_MM))
        if diameters_mm is not None:
            radius = float(np.exp(rng.uniform(*np.log(diameters_mm)))) / 2
        if kind == "cyst":
            hu = min(rng.uniform(*CYST_HU), liver_hu - 15)
        else:
            hu = liver_hu + rng.uniform(*LESION_CONTRAST[kind][phase])
        for attempt in range(400):
            if attempt % 20 == 19:
                radius = max(radius * 0.85, min(radius, _LEAST_MM))
            at = int(rng.integers(len(deep)))
            apart = all(np.linalg.norm(where[at] - p.center) > 1.3 * (radius + p.radius) + 4 for p in plans)
            if apart and deep[at] > min(0.6 * radius, 30) + 1:
                plans.append(Plan(where[at], radius, kind, hu))
                break
    return plans


def paint_lesion(rng: np.random.Generator, canvas: Canvas, plan: Plan, liver: np.ndarray) -> tuple[Box, np.ndarray]:
    """Paint a lesion where the mask `liver` (on all voxels) allows it.

    :returns: the box of voxels around it, and its mask in this box.
    """
    r, solid = plan.radius, plan.kind != "cyst"
    radii = r * rng.uniform(0.85, 1.18, 3)
    axes = rotation(rng.normal(0, 1, 3), rng.uniform(0, 180))
    rough = smooth_noise(rng, max(1.1 * r, 9.0)) * np.float32(rng.uniform(0.03, 0.12) * r * solid)
    lumps = smooth_noise(rng, 6.0)
    rim, core, lime = rng.random(3) < np.array([0.3, 0.35, 0.1]) * (solid and r > 8)
    width, hollow, low = rng.uniform(1.5, 4), r * rng.uniform(0.35, 0.6), rng.uniform(8, 30)
    edge = rng.uniform(0.5, 3.0) if solid else 0.5
    enhancement = rng.uniform(-0.4, 0.5)  # of the rim: from a ring on the other side of the liver's HU to halfway
    soft = canvas.voxel_mm
    margin = 1.4 * r + 4
    box, p = canvas.coordinates(plan.center - margin, plan.center + margin)
    mm = -ellipsoid(p, plan.center, radii, axes) - canvas.sample(rough, box)
    mask = (mm > 0) & liver[box]
    name = "lesion" if solid else "cyst"
    canvas.paint(box, mm / np.float32(np.hypot(soft, edge)), name, plan.hu, liver[box])
    canvas.tissue[box][mask] = TISSUES[name]
    if rim:
        ring = canvas.values["liver"] + (plan.hu - canvas.values["liver"]) * enhancement
        canvas.paint(box, np.minimum(mm, width - mm) / soft, "lesion_rim", ring, mask)
    if core:
        necrosis = min(plan.hu - 10, low)
        canvas.paint(box, (mm - hollow) / np.float32(np.hypot(soft, 2)), "lesion_core", necrosis, mask)
    if lime:
        specks = np.minimum(mm - 1, 4 * (canvas.sample(lumps, box) - np.float32(1.9)))
        canvas.paint(box, specks / soft, "lesion_calcification", 320.0, mask)
    return box, mask
