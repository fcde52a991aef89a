# SPDX-License-Identifier: Apache-2.0
"""Cubes of liver with a lesion in the middle: painted into real scans or phantoms, a phantom's own, or real."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from LiverXAILib.inference.geometry import AIR_HU
from LiverXAILib.inference.outline_network import SCALES_MM, SIZE, cube_grid
from LiverXAILib.phantoms import PHASES, make_phantom
from LiverXAILib.training.random_fields import Rng, gaussian_blur, rotation_matrix, smooth_field
from LiverXAILib.volumes.box import Box, bounding_box, components
from LiverXAILib.volumes.io import read_labels, read_volume
from LiverXAILib.volumes.resample import regrid, resample
from LiverXAILib.volumes.volume import Volume

#: Real scans with a known liver; docs/reader.md names their collections.
SCANS = (
    "hcc005_a1", "hcc005_a3", "hcc005_pre", "hcc007_b2", "hcc007_b3", "hcc009_a1", "hcc009_a3", "hcc013_a1",
    "hcc013_a2", "hcc002_b", "hcc006_p", "crlm1004", "crlm1006", "lidc0001", "totalseg_slab",
)  # fmt: skip
#: Never trained on: for evaluation.
HELD_OUT_SCANS = ("hcc011_2", "pancreas_cb001", "hcc015_3")
#: First seed of the phantoms for training; ``liverxai benchmark clicks`` uses others.
FIRST_SEED = 700_000
#: A stored cube is larger than the network's, so that the click can be anywhere in the lesion.
STORED = 44
#: Diameters of painted lesions in mm, at each voxel size.
DIAMETERS_MM = {1.0: (3.5, 26.0), 2.0: (14.0, 50.0), 4.0: (30.0, 100.0)}
#: How often each voxel size is drawn.
_SCALE_WEIGHTS = (0.5, 0.35, 0.15)
_MARGIN_MM = 12.0


@dataclass(frozen=True, eq=False)
class Scan:
    """A part of a CT around the liver, on one grid: HU, liver (tumors included), numbered lesions."""

    name: str
    ct: Volume
    liver: np.ndarray
    lesions: np.ndarray


@dataclass(frozen=True, eq=False)
class Cube:
    """HU relative to the liver's median (int16), liver and lesion (bool), with :data:`STORED` voxels of `scale_mm`
    along each axis; `before` is the probability (float16) of a component that a model marked in the middle, if any."""

    hu: np.ndarray
    liver: np.ndarray
    lesion: np.ndarray
    scale_mm: float
    before: np.ndarray | None = None


def real_scans(data: Path, names: Iterable[str] = SCANS, *, whole: bool = False) -> list[Scan]:
    """Read the scans in the folder `data`, cropped to the liver unless `whole`; missing ones are skipped."""
    scans = []
    for name in names:
        folder = data / "ct" / name
        if not (folder / "image.nii.gz").is_file():
            continue
        ct = read_volume(folder / "image.nii.gz", force=True)
        if (folder / "liver.nii.gz").is_file():
            liver = read_labels(folder / "liver.nii.gz").array > 0
        else:
            liver = read_labels(folder / "organs.nii.gz").array == 5
        tumor = np.zeros_like(liver)
        if (folder / "tumor.nii.gz").is_file():
            tumor = read_labels(folder / "tumor.nii.gz").array > 0
        if whole:
            scans.append(Scan(name, ct.with_array(ct.array.astype(np.float32)), liver | tumor, components(tumor)))
        else:
            scans.append(_cut(name, ct, liver | tumor, tumor))
    return scans


def phantom_scans(seeds: Iterable[int]) -> list[Scan]:
    """Make phantoms of all phases and voxel sizes, cropped to the liver; every other one has lesions of its own."""
    scans = []
    for seed in seeds:
        scan = make_scan_phantom(seed, lesions=8 * (seed % 2))
        scans.append(_cut(scan.name, scan.ct, scan.liver, scan.lesions > 0))
    return scans


def make_scan_phantom(seed: int, lesions: int) -> Scan:
    """Make a phantom of any phase and voxel size."""
    rng = np.random.default_rng([seed, 1])
    plane, depth = rng.uniform(0.7, 1.3), rng.choice([1.0, 1.5, 2.0, 2.5, 3.0, 5.0])
    phase = str(rng.choice(PHASES, p=[0.15, 0.2, 0.65]))
    phantom = make_phantom(seed, spacing_mm=(plane, plane, depth), phase=phase, lesions=lesions)
    truth = phantom.truth.array
    return Scan(f"phantom {seed}", phantom.ct, truth > 0, components(truth == 2, corners=True))


def _cut(name: str, ct: Volume, liver: np.ndarray, tumor: np.ndarray) -> Scan:
    box = bounding_box(liver)
    assert box is not None
    box = box.grown(np.ceil(_MARGIN_MM / np.array(ct.spacing[::-1])).astype(int), ct.shape)
    part = Volume(np.ascontiguousarray(ct.array[box]).astype(np.float32), ct.grid.cropped(box).ijk_to_lps)
    return Scan(name, part, np.ascontiguousarray(liver[box]), components(tumor[box], corners=True))


def make_cube(scan: Scan, seed: int, scale_mm: float | None = None, diameter_mm: float | None = None) -> Cube | None:
    """Make a cube with a lesion of the scan, or a painted one, in its middle; None if there was no room.

    :param scale_mm, diameter_mm: size of voxels and of a painted lesion; None: random.
    """
    rng = Rng(seed)
    scale = scale_mm or SCALES_MM[rng.choose(_SCALE_WEIGHTS)]
    count = int(scan.lesions.max())
    if diameter_mm is None and count and rng.chance(0.4):
        return _own_lesion(scan, rng, scale, 1 + rng.integer(count))
    free = np.argwhere(scan.liver & (scan.lesions == 0))
    center = free[rng.integer(len(free))]
    place = scan.ct.grid.to_lps(center[::-1])
    diameter = diameter_mm or rng.log_uniform(*DIAMETERS_MM[scale])
    array, lesion, box = painted(scan, rng, place, diameter, scale)
    if np.count_nonzero(lesion) < 2:
        return None
    voxels = np.argwhere(lesion)
    place = scan.ct.grid.cropped(box).to_lps(voxels[rng.integer(len(voxels))][::-1].astype(float))
    healthy = scan.liver[box] & ~lesion & (scan.lesions[box] == 0)
    if not healthy.any():
        return None
    return _stored(scan, array, lesion, box, place, scale, float(np.median(array[healthy])))


def _own_lesion(scan: Scan, rng: Rng, scale: float, number: int) -> Cube | None:
    mask = scan.lesions == number
    diameter = (6 * np.count_nonzero(mask) * scan.ct.grid.voxel_volume_mm3 / np.pi) ** (1 / 3)
    low, high = DIAMETERS_MM[scale]
    if not low <= diameter <= high:
        return None
    voxels = np.argwhere(mask)
    place = scan.ct.grid.to_lps(voxels[rng.integer(len(voxels))][::-1].astype(float))
    box = _around(scan, place, scale)
    healthy = scan.liver[box] & (scan.lesions[box] == 0)
    if not healthy.any():
        return None
    return _stored(
        scan, scan.ct.array[box], mask[box], box, place, scale, float(np.median(scan.ct.array[box][healthy]))
    )


def _around(scan: Scan, place: np.ndarray, scale: float) -> Box:
    center = scan.ct.grid.nearest_voxel(place).clip(0, np.array(scan.ct.shape) - 1)
    reach = np.ceil((STORED / 2 * scale + 6) / np.array(scan.ct.spacing[::-1])).astype(int)
    return Box.between(center, center + 1).grown(reach, scan.ct.shape)


def _stored(
    scan: Scan, array: np.ndarray, lesion: np.ndarray, box: Box, place: np.ndarray, scale: float, median: float
) -> Cube:
    source = scan.ct.grid.cropped(box)
    cube = cube_grid(scan.ct.grid, place.tolist(), scale, STORED)
    hu = resample(array, source, cube, fill=AIR_HU) - median
    liver, inside = (
        (resample(mask.astype(np.float32), source, cube) > 0.5).numpy() for mask in (scan.liver[box], lesion)
    )
    return Cube(hu.clamp(-1000, 1000).round().numpy().astype(np.int16), liver, inside, scale)


def painted(
    scan: Scan, rng: Rng, place: np.ndarray, diameter_mm: float, scale: float, *, alone: bool = False
) -> tuple[np.ndarray, np.ndarray, Box]:
    """Paint a lesion into a part of a scan, sometimes with others next to it.

    It is painted on a fine grid and averaged over the scan's voxels; the scan's noise is kept.

    :param alone: paint no other lesions.
    :return: HU of the part, the lesion's mask in it, and the bounding box of the part.
    """
    box = _around(scan, place, scale)
    grid = scan.ct.grid.cropped(box)
    fine_mm = max(0.7 * scale, min(grid.spacing))
    fine = regrid(grid, (fine_mm,) * 3)
    image = resample(scan.ct.array[box], grid, fine, fill=AIR_HU)
    liver = resample(scan.liver[box].astype(np.float32), grid, fine) > 0.5
    inside = scan.liver[box] & (scan.lesions[box] == 0)
    background = float(np.median(scan.ct.array[box][inside])) if inside.any() else 100.0
    contrast = _contrast(rng, background)
    center = torch.from_numpy(fine.to_ijk(place)[::-1].copy()).float()
    alpha = _alpha(rng, liver.shape, center, diameter_mm / 2 / fine_mm, fine_mm) * liver
    change = _change(rng, image, alpha, background, contrast, fine_mm, diameter_mm)
    for _ in range(0 if alone else rng.choose((0.6, 0.2, 0.2))):  # next to it, never inside it
        angle = rng.normal(3)
        distance = (diameter_mm / 2 + rng.uniform(6, 16)) / fine_mm
        other = center + angle / angle.norm() * distance
        radius = rng.uniform(2, 6) / fine_mm
        beside = _alpha(rng, liver.shape, other, radius, fine_mm) * liver * (alpha < 0.01)
        change = change + _change(rng, image, beside, background, contrast, fine_mm, 2 * radius * fine_mm)
    added, share = resample(torch.stack([change, alpha]), fine, grid).numpy()
    return scan.ct.array[box] + added, (share > rng.uniform(0.35, 0.5)) & scan.liver[box], box


def _contrast(rng: Rng, background: float) -> float:
    kind = rng.choose((0.62, 0.23, 0.15))
    if kind == 0:
        return -rng.log_uniform(18, 80)
    return rng.log_uniform(18, 70) if kind == 1 else min(rng.uniform(-5, 20) - background, -20.0)


def _alpha(rng: Rng, shape: Sequence[int], center: torch.Tensor, radius: float, fine_mm: float) -> torch.Tensor:
    """Membership (0 to 1) of a deformed ellipsoid with a soft edge; center and radius in voxels."""
    k, j, i = shape
    axes = [torch.arange(n, dtype=torch.float32) - c for n, c in zip((k, j, i), center, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    turn = rotation_matrix([rng.uniform(0, 180) for _ in range(3)])
    stretch = torch.tensor([rng.uniform(0.8, 1.25) for _ in range(3)])
    distance = ((points @ turn.T) * stretch).norm(dim=-1)
    bumps = smooth_field(rng, (k, j, i), max(3.0, radius)) * rng.uniform(0.02, 0.15) * radius
    edge = rng.uniform(0.8, 3.0) / fine_mm
    return gaussian_blur(((radius - distance + bumps) / edge + 0.5).clamp(0, 1), (rng.uniform(0.4, 0.9) / fine_mm,) * 3)


def _change(
    rng: Rng, image: torch.Tensor, alpha: torch.Tensor, background: float, contrast: float, fine_mm: float, size: float
) -> torch.Tensor:
    """The change of the image by painting, in HU."""
    k, j, i = image.shape
    hu = background + contrast + rng.uniform(1, 8) * smooth_field(rng, (k, j, i), rng.uniform(2, 6))
    if size > 14 and rng.chance(0.3):  # a core with more contrast
        hu = hu + (alpha > 0.99) * gaussian_blur((alpha > 0.99).float(), (2.5 / fine_mm,) * 3) * rng.uniform(-40, 0)
    if size > 10 and rng.chance(0.25):  # a rim
        hu = hu + torch.exp(-(((alpha - 0.6) / 0.25) ** 2)) * rng.uniform(-15, 40)
    smooth = gaussian_blur(image, (2.0 / fine_mm,) * 3)
    return alpha * (hu - smooth)


def cut(cube: Cube, shift: Sequence[int]) -> Cube:
    """Crop a stored cube to the network's input, its center moved by `shift` voxels."""
    start = [(STORED - SIZE) // 2 + move for move in shift]
    box = Box.between(start, np.add(start, SIZE))
    before = None if cube.before is None else cube.before[box]
    return Cube(cube.hu[box], cube.liver[box], cube.lesion[box], cube.scale_mm, before)
