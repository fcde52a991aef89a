# SPDX-License-Identifier: Apache-2.0
"""A synthetic abdominal CT with its ground truth.

The body is described once, in an *atlas*: millimeters, x to the patient's left, y to posterior, z to superior, the
origin in the midline at the level of the top of the right hemidiaphragm. Organs are implicit surfaces (signed
distances, negative inside) that are blended, cut by their neighbors and roughened by smooth noise. They are evaluated
on a coarse lattice in coordinates warped by a random smooth deformation, interpolated to the voxels with cubic
interpolation, and painted one over the other with soft edges (the partial volume effect). Thin parts (vessels, ribs,
vertebrae, lesions) are evaluated at the voxels themselves. Texture, point spread and noise are added last.

The body depends on the seed alone: another voxel spacing or contrast phase shows the same patient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..volumes.volume import Volume
from .canvas import LATTICE_MM, Canvas, smooth_noise
from .lesions import paint_lesion, plan_lesions
from .organs import Organs
from .scanner import blur, paint_table, scanner_noise
from .shapes import Coordinates, Point
from .tissues import HU, PHASES, TEXTURE, TISSUES
from .torso import Torso

__all__ = ["PHASES", "TISSUES", "Lesion", "Phantom", "make_phantom", "write_phantom"]


@dataclass(frozen=True)
class Lesion:
    """A lesion as painted: `center_lps` in mm and `volume_ml` of its voxels, `mean_hu` before noise, and `kind`:
    "hypodense", "hyperdense" or "cyst"."""

    center_lps: Point
    volume_ml: float
    kind: str
    mean_hu: float


@dataclass(frozen=True)
class Phantom:
    """A synthetic patient: `ct` (int16, HU), `truth` (uint8: 1 liver, including its vessels, 2 lesions of any kind),
    `tissues` (uint8, values of :data:`TISSUES`), all on one grid along the LPS axes, k ascending to superior."""

    ct: Volume
    truth: Volume = field(repr=False)
    tissues: Volume = field(repr=False)
    lesions: list[Lesion] = field(repr=False)
    phase: str
    seed: int


# Long: most lines are parameters and their documentation, followed by the painting steps.
def make_phantom(
    seed: int,
    *,
    spacing_mm: Point = (1.5, 1.5, 3.0),
    phase: str | None = None,
    lesions: bool | int = True,
    lesion_mm: tuple[float, float] | None = None,
    field_of_view_mm: float | None = None,
    noise: bool = True,
) -> Phantom:
    """Make a synthetic CT of the abdomen, from above the dome of the liver to below the kidneys, with its ground truth.

    The same arguments give the same voxels (with the same versions of NumPy and PyTorch on the same kind of
    processor); another `spacing_mm`, `phase`, `lesions` or `noise` shows the same body.

    :param spacing_mm: (i, j, k) in mm.
    :param phase: "native", "arterial" or "portal"; None draws one.
    :param lesions: True draws a number (at least one), False paints none, a number paints that many (fewer only if the
        liver has no room for more).
    :param lesion_mm: smallest and largest diameter of a lesion; None: drawn at random.
    :param field_of_view_mm: width of the square slices; None fits it to the body.
    :raises UsageError: an argument is out of range.
    """
    if seed < 0:
        raise UsageError(f"The seed must not be negative: {seed}.")
    spacing = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    if not (min(spacing) >= 0.3 and max(spacing) <= 20):
        raise UsageError(f"The spacing must lie between 0.3 and 20 mm, not {spacing}.")
    if phase is not None and phase not in PHASES:
        raise UsageError(f"Unknown contrast phase {phase!r}; known are {', '.join(PHASES)}.")
    if field_of_view_mm is not None and not 100 <= field_of_view_mm <= 700:
        raise UsageError(f"The field of view must lie between 100 and 700 mm, not {field_of_view_mm}.")
    if lesion_mm is not None and not 2 <= lesion_mm[0] <= lesion_mm[1] <= 110:
        raise UsageError(f"Diameters of lesions must lie between 2 and 110 mm, not {lesion_mm}.")
    if lesions < 0:
        raise UsageError(f"The number of lesions cannot be negative: {lesions}.")
    body_rng, contrast_rng, lesion_rng, scan_rng, noise_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)
    )
    drawn = str(contrast_rng.choice(PHASES, p=(0.25, 0.15, 0.6)))
    phase = phase or drawn

    canvas = Canvas(body_rng)
    _draw_hu(canvas, contrast_rng, phase)
    torso = Torso(canvas)
    organs = Organs(canvas, torso)
    axes, back, middle = _axes(torso, organs, scan_rng, spacing, field_of_view_mm)
    canvas.open(axes, spacing)
    torso.paint()
    organs.paint()
    box, liver_here = organs.paint_liver()
    liver = np.zeros(canvas.hu.shape, bool)
    liver[box] = liver_here

    truth = liver.astype(np.uint8)
    painted = []
    if lesions:
        count = None if lesions is True else int(lesions)
        for plan in plan_lesions(lesion_rng, canvas, organs.liver, count, phase, lesion_mm):
            box, mask = paint_lesion(lesion_rng, canvas, plan, liver)
            truth[box][mask] = 2
            painted.append((plan.kind, box, mask))
    has_table, has_circle = scan_rng.random(2) < (0.85, 0.5)
    if has_table:
        paint_table(canvas, scan_rng, back, middle)

    hu = _texture(canvas, noise_rng)
    blur(hu, scan_rng.uniform(0.5, 0.8), spacing)
    position = np.array([a[0] for a in axes])
    position += (0, scan_rng.uniform(-20, 20), scan_rng.uniform(-900, 100))
    ijk_to_lps = np.diag([*spacing, 1.0])
    ijk_to_lps[:3, 3] = np.round(position, 3)
    found = [_describe(kind, box, mask, hu, ijk_to_lps) for kind, box, mask in painted if mask.any()]

    x, y = canvas.axes[0] - np.float32(axes[0].mean()), canvas.axes[1] - np.float32(axes[1].mean())
    radius = np.hypot(y[:, None], x[None, :]) / np.float32(len(x) * spacing[0] / 2)
    level, cutoff, streaks = scan_rng.uniform((5, 0.22, 0), (17, 0.5, 12))
    if noise:  # stronger in the middle of the body and in thin slices
        sigma = np.float32(level * min(np.sqrt(3 / spacing[2]), 2.0)) * (1.1 - 0.6 * np.minimum(radius, 1) ** 2)
        hu += scanner_noise(noise_rng, hu.shape, spacing, cutoff, streaks) * sigma
    if has_circle:  # nothing is reconstructed outside the circle
        outside = radius > 1
        hu[:, outside] = -1024
        canvas.tissue[:, outside] = TISSUES["air"]
        truth[:, outside] = 0
    ct = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    metadata = {"modality": "CT", "description": f"LiverXAI phantom, seed {seed}, {phase} phase"}
    volumes = (Volume(ct, ijk_to_lps, metadata), Volume(truth, ijk_to_lps), Volume(canvas.tissue, ijk_to_lps))
    return Phantom(*volumes, found, phase, seed)


def write_phantom(phantom: Phantom, path: str | Path) -> tuple[Path, Path]:
    """Write the CT to `path` (any format of ``write_volume``) and its truth next to it, as ``<stem>-truth.nrrd``.

    :returns: both paths.
    """
    from ..volumes.io import write_volume

    path = Path(path)
    truth = path.with_name(f"{Path(path.name.removesuffix('.gz')).stem}-truth.nrrd")
    write_volume(phantom.ct, path)
    write_volume(phantom.truth, truth)
    return path, truth


def _draw_hu(canvas: Canvas, rng: np.random.Generator, phase: str) -> None:
    values = canvas.values
    for name, entry in HU.items():
        mean, spread = entry[phase] if isinstance(entry, dict) else entry
        values[name] = float(rng.normal(mean, spread))
    if rng.random() < 0.18:  # steatosis
        values["liver"] -= rng.uniform(12, 45)
    if phase == "portal":
        values["hepatic_vein"] = max(values["hepatic_vein"], values["liver"] + 8)
    values["gallstone"] = max(values["gallstone"], 60.0)


def _texture(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Return the painted HU with the texture of the tissues and streaks of fat in the muscles."""
    amount = np.zeros(len(TISSUES), np.float32)
    for name, sd in TEXTURE.items():
        amount[TISSUES[name]] = sd
    hu = canvas.hu
    hu += amount[canvas.tissue] * canvas.sample(smooth_noise(rng, LATTICE_MM), canvas.whole)
    marbling = np.float32(rng.uniform(5, 40)) * np.maximum(smooth_noise(rng, 9.0) - np.float32(0.9), 0)
    hu -= (canvas.tissue == TISSUES["muscle"]) * canvas.sample(marbling, canvas.whole)
    return hu


def _describe(kind: str, box: tuple[slice, ...], mask: np.ndarray, hu: np.ndarray, ijk_to_lps: np.ndarray) -> Lesion:
    k, j, i = (at.mean() + b.start for at, b in zip(np.nonzero(mask), box, strict=True))
    x, y, z = (ijk_to_lps @ np.array([i, j, k, 1.0]))[:3]
    voxel_ml = abs(np.linalg.det(ijk_to_lps)) / 1000
    return Lesion((float(x), float(y), float(z)), float(mask.sum() * voxel_ml), kind, float(hu[box][mask].mean()))


def _axes(
    torso: Torso, organs: Organs, rng: np.random.Generator, spacing: Point, field_of_view_mm: float | None
) -> tuple[Coordinates, float, float]:
    """Return voxel positions (x, y, z) in the scanner that cover the body, and the positions of its back and middle."""

    def extent(field: np.ndarray, axis: int) -> tuple[float, float]:
        rows = np.flatnonzero((field < 0).any(axis=tuple(n for n in range(3) if n != 2 - axis)))
        nodes = Canvas.lattice[axis]
        return float(nodes[rows[0]]), float(nodes[rows[-1]])

    left, right = extent(torso.skin, 0)
    front, back = extent(torso.skin, 1)
    below_kidneys = min(extent(kidney.field, 2)[0] for kidney in organs.kidneys)
    bottom = min(below_kidneys, extent(organs.liver, 2)[0]) - rng.uniform(5, 30)
    top = extent(organs.liver, 2)[1] + rng.uniform(18, 45)
    bottom, top = max(bottom, float(Canvas.lattice[2][0])), min(top, float(Canvas.lattice[2][-1]))
    drawn = max(right - left, back - front) + rng.uniform(12, 60)
    width = drawn if field_of_view_mm is None else field_of_view_mm
    centers = ((left + right) / 2 + rng.normal(0, 4), (front + back) / 2 + rng.normal(0, 6), (bottom + top) / 2)
    axes = []
    for center, size, step in zip(centers, (width, width, top - bottom), spacing, strict=True):
        count = max(round(size / step), 4)
        axes.append(center + (np.arange(count) - (count - 1) / 2) * step)
    return (axes[0], axes[1], axes[2]), back, (left + right) / 2
