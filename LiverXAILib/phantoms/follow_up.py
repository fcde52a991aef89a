# SPDX-License-Identifier: Apache-2.0
"""Two synthetic CTs of one patient, between which lesions change and the body moves by known amounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy import ndimage

from ..errors import UsageError
from ..volumes.volume import Grid, Volume
from . import Phantom, make_phantom
from .scanner import scanner_noise
from .shapes import Point, rotation

#: Minimum distance between lesions, and between a lesion and the liver's surface, in mm.
_GAP_MM = 6.0
_BODY_SPACING_MM = (1.5, 1.5, 2.0)
#: Width of a lesion's edge, and standard deviation of the noise.
_EDGE_MM, _NOISE_HU = 1.5, 10.0


@dataclass(frozen=True)
class Change:
    """How a lesion changes: the diameters in mm of its spheres before and after.

    ``Change((30,), (20,))`` shrinks, ``Change((), (15,))`` is new, ``Change((12,), ())`` vanishes, ``Change((40,), (16,
    12))`` splits, and the reverse merges. Pieces lie within the whole lesion's position.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    contrast_hu: float = -45.0
    contrast_after_hu: float | None = None


@dataclass(frozen=True)
class Motion:
    """How the body is positioned in the scanner, relative to the body as drawn.

    :param shift_mm: of the whole body, LPS.
    :param turn_degrees: of the whole body about its (left, posterior, superior) axes.
    :param breath_mm: how far the dome of the diaphragm descends; deeper structures move less.
    :param bend_mm: largest displacement of a smooth bending of wavelength 160 mm along each axis.
    """

    shift_mm: Point = (0.0, 0.0, 0.0)
    turn_degrees: Point = (0.0, 0.0, 0.0)
    breath_mm: float = 0.0
    bend_mm: float = 0.0

    def to_body(self, points: np.ndarray, middle: np.ndarray) -> np.ndarray:
        """Map `points` (..., 3) of this scan to the body as drawn: LPS mm.

        :param middle: of the liver in the body as drawn.
        """
        turn = np.eye(3)
        for axis, degrees in zip(np.eye(3), self.turn_degrees, strict=True):
            turn = turn @ rotation(tuple(axis), degrees)
        offset = (points - middle - np.array(self.shift_mm)) @ turn
        height = np.exp(-0.5 * ((offset[..., 2] - 60) / 80) ** 2)
        waves = np.sin(2 * np.pi * offset[..., [1, 2, 0]] / 160 + np.array([0.4, 1.3, 2.2]))
        offset = offset + self.bend_mm * waves
        offset[..., 2] += self.breath_mm * height
        return offset + middle

    def from_body(self, points: np.ndarray, middle: np.ndarray) -> np.ndarray:
        """Map points of the body as drawn to this scan: the inverse of :meth:`to_body`."""
        found = points + np.array(self.shift_mm)
        for _ in range(60):
            found = found + 0.7 * (points - self.to_body(found, middle))
        return found


@dataclass(frozen=True)
class PhantomStudy:
    """One scan: `ct` (int16, HU), `truth` (uint8: 1 liver, 2 lesions), `pieces` (uint8: the number of each lesion's
    piece, from 1, in the order of the changes), all on one grid; `centers_lps` and `diameters_mm` of the pieces, and
    for each the number of its change (from 0)."""

    ct: Volume
    truth: Volume = field(repr=False)
    pieces: Volume = field(repr=False)
    centers_lps: tuple[Point, ...] = field(repr=False)
    diameters_mm: tuple[float, ...] = field(repr=False)
    changes: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class PhantomPair:
    """A prior and a current scan of one patient.

    :param motion: of the current scan; the prior scan shows the body as drawn.
    :param middle: of the liver in the prior scan, LPS mm.
    """

    prior: PhantomStudy
    current: PhantomStudy
    motion: Motion
    middle: np.ndarray


def make_pair(
    seed: int,
    changes: Sequence[Change],
    *,
    motion: Motion | None = None,
    spacings_mm: tuple[Point, Point] = ((1.5, 1.5, 3.0), (1.5, 1.5, 3.0)),
    phases: tuple[str, str] = ("portal", "portal"),
    body_spacing_mm: Point = _BODY_SPACING_MM,
) -> PhantomPair:
    """Make two scans of the patient `seed`; the same arguments give the same voxels.

    :param spacings_mm: (i, j, k) of the prior and of the current scan.
    :param phases: "native", "arterial" or "portal", of each.
    :param body_spacing_mm: voxel spacing of the body that both scans are sampled from.
    :raises LiverXAILib.errors.UsageError: the liver has no room for the lesions.
    """
    motion = motion or Motion()
    body = _body(seed, body_spacing_mm, phases[0])
    liver = body.truth.array > 0
    middle = body.truth.grid.to_lps(np.argwhere(liver).mean(axis=0)[::-1])
    centers = _places(np.random.default_rng(seed), body.truth, [_size(change) for change in changes])
    scans = []
    for after, (spacing, phase, moved) in enumerate(zip(spacings_mm, phases, (Motion(), motion), strict=True)):
        scans.append(_scan(_body(seed, body_spacing_mm, phase), changes, centers, bool(after), moved, middle, spacing))
    return PhantomPair(scans[0], scans[1], motion, middle)


@lru_cache(maxsize=2)
def _body(seed: int, spacing_mm: Point, phase: str) -> Phantom:
    return make_phantom(seed, spacing_mm=spacing_mm, phase=phase, lesions=False, noise=False)


def _size(change: Change) -> float:
    """Return the diameter in mm of the space that a lesion needs."""
    return max((*change.before, *change.after))


def _places(rng: np.random.Generator, truth: Volume, sizes: Sequence[float]) -> list[np.ndarray]:
    """Find centers (LPS mm) for spheres of diameter `sizes` in the liver, apart from each other."""
    depth = ndimage.distance_transform_edt(truth.array > 0, sampling=truth.spacing[::-1])
    centers: list[np.ndarray] = []
    for number, size in enumerate(sizes):
        voxels = np.argwhere(depth > size / 2 + _GAP_MM)
        points = truth.grid.to_lps(voxels[:, ::-1]) if len(voxels) else np.zeros((0, 3))
        for center, other in zip(centers, sizes[:number], strict=True):
            points = points[np.linalg.norm(points - center, axis=1) > (size + other) / 2 + 2 * _GAP_MM]
        if not len(points):
            raise UsageError(f"The liver has no room for a lesion of {size:g} mm in addition to the others.")
        centers.append(points[rng.integers(len(points))])
    return centers


def _pieces(diameters: tuple[float, ...], size: float) -> list[np.ndarray]:
    """Return the offsets in mm of the pieces of a lesion from its center."""
    if len(diameters) == 1:
        return [np.zeros(3)]
    angles = 2 * np.pi * np.arange(len(diameters)) / len(diameters)
    return [
        (size - diameter) / 2 * np.array([np.cos(angle), np.sin(angle), 0.0])
        for diameter, angle in zip(diameters, angles, strict=True)
    ]


def _scan(
    body: Phantom,
    changes: Sequence[Change],
    centers: Sequence[np.ndarray],
    after: bool,
    motion: Motion,
    middle: np.ndarray,
    spacing: Point,
) -> PhantomStudy:
    """Scan the body moved by `motion`, on its own grid, with its lesions and noise."""
    source = body.ct.grid
    sizes = np.ceil(np.array(source.shape[::-1]) * source.spacing / spacing).astype(int)
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = source.origin + np.array(motion.shift_mm)
    i, j, k = (int(size) for size in sizes)
    grid = Grid((k, j, i), matrix)
    points = grid.to_lps(np.stack(np.meshgrid(*(np.arange(n) for n in (k, j, i)), indexing="ij"), axis=-1)[..., ::-1])
    where = np.moveaxis(source.to_ijk(motion.to_body(points, middle))[..., ::-1], -1, 0)
    hu = ndimage.map_coordinates(body.ct.array.astype(np.float32), where, order=1, cval=-1024.0)
    liver = ndimage.map_coordinates((body.truth.array > 0).astype(np.float32), where, order=1) > 0.5
    pieces = np.zeros(grid.shape, np.uint8)
    placed, widths, owners = [], [], []
    parenchyma = float(np.median(hu[liver]))
    for number, (change, center) in enumerate(zip(changes, centers, strict=True)):
        diameters = change.after if after else change.before
        contrast = change.contrast_hu
        if after and change.contrast_after_hu is not None:
            contrast = change.contrast_after_hu
        place = motion.from_body(center, middle)
        for diameter, offset in zip(diameters, _pieces(diameters, _size(change)), strict=True):
            distance = np.linalg.norm(points - place - offset, axis=-1) - diameter / 2
            alpha = np.clip(0.5 - distance / _EDGE_MM, 0, 1) * liver
            hu += alpha * (parenchyma + contrast - hu)
            placed.append(place + offset)
            pieces[(distance <= 0) & liver] = len(placed)
            widths.append(float(diameter))
            owners.append(number)
    rng = np.random.default_rng([body.seed, int(after)])
    hu += _NOISE_HU * scanner_noise(rng, grid.shape, spacing, 0.35, 2.0)
    truth = liver.astype(np.uint8)
    truth[pieces > 0] = 2
    ct = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    metadata = {"modality": "CT", "description": f"LiverXAI phantom, seed {body.seed}, {body.phase} phase"}
    return PhantomStudy(
        Volume(ct, matrix, metadata),
        Volume(truth, matrix),
        Volume(pieces, matrix),
        tuple((float(x), float(y), float(z)) for x, y, z in placed),
        tuple(widths),
        tuple(owners),
    )
