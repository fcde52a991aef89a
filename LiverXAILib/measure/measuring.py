# SPDX-License-Identifier: Apache-2.0
"""measure(): quantities of the liver and its lesions from a CT and a segmentation."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..errors import UsageError
from ..inference.lesions import lesion_components
from ..inference.segmentation import Segmentation
from ..volumes.box import Box, bounding_box
from ..volumes.volume import Grid, Volume
from .diameters import axial_diameters, feret_diameter_mm
from .measurements import LesionMeasurements, Measurements


def measure(volume: Volume, segmentation: Segmentation) -> Measurements:
    """Measure the liver and its lesions.

    Volumes are numbers of voxels times the determinant of the grid, so they hold for oblique, left-handed and
    sheared images.

    :param volume: the CT in HU.
    :param segmentation: on the same grid, with a label "liver" and perhaps "tumor".
    :raises LiverXAILib.errors.UsageError: the grids differ, or there is no label "liver".
    """
    grid = volume.grid
    if not grid.matches(segmentation.labels.grid):
        raise UsageError("The segmentation does not lie on the image's grid; measure it on the image it was made from.")
    liver = segmentation.mask("liver")
    looks_for_tumors = any(spec.name == "tumor" for spec in segmentation.specs)
    components = lesion_components(segmentation) if looks_for_tumors else np.zeros(grid.shape, np.int32)
    ml = grid.voxel_volume_mm3 / 1000
    # Everything that is measured lies in this box: a tenth of a CT.
    box = bounding_box(liver) or Box.full((0, 0, 0))
    parenchyma = volume.array[box][liver[box] & (components[box] == 0)].astype(np.float64)
    liver_ml = float(np.count_nonzero(liver[box])) * ml
    tumor_ml = float(np.count_nonzero(components[box])) * ml
    return Measurements(
        liver_volume_ml=liver_ml,
        liver_mean_hu=float(parenchyma.mean()) if parenchyma.size else None,
        liver_sd_hu=float(parenchyma.std()) if parenchyma.size else None,
        liver_cut_at=_sides_reached(liver, grid),
        tumor_volume_ml=tumor_ml if looks_for_tumors else None,
        tumor_burden_percent=100 * tumor_ml / liver_ml if looks_for_tumors and liver_ml else None,
        lesion_count=int(components.max()) if looks_for_tumors else None,
        lesions=_lesions(volume, segmentation, components, liver, box) if components[box].any() else (),
    )


def _lesions(
    volume: Volume, segmentation: Segmentation, components: np.ndarray, liver: np.ndarray, box: Box
) -> tuple[LesionMeasurements, ...]:
    """Each lesion's measurements. `components` numbers the lesions, `liver` includes them; all lie in `box`."""
    kji = np.argwhere(components[box]) + box.start
    numbers = components[tuple(kji.T)]
    probability = segmentation.probabilities.get("tumor")
    surface = _surface(liver, volume.grid, box)
    lesions = []
    for number in range(1, int(numbers.max()) + 1):
        chosen = numbers == number
        voxels = kji[chosen]
        hu = volume.array[tuple(voxels.T)].astype(np.float64)
        low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
        extent = Box.between(low, high)
        mask, grid = components[extent] == number, volume.grid.cropped(extent)
        axial = axial_diameters(mask, grid)
        start = int(low[2 - "ijk".index(axial.slice_axis)])
        x, y, z = volume.grid.to_lps(voxels[:, ::-1].mean(axis=0))
        lesions.append(
            LesionMeasurements(
                number=number,
                volume_ml=len(voxels) * (volume.grid.voxel_volume_mm3 / 1000),
                mean_hu=float(hu.mean()),
                sd_hu=float(hu.std()),
                median_hu=float(np.median(hu)),
                mean_probability=None if probability is None else _mean_at(probability, volume.grid, voxels),
                axial=dataclasses.replace(axial, slice_index=axial.slice_index + start),
                feret_mm=feret_diameter_mm(mask, grid),
                centroid_lps_mm=(float(x), float(y), float(z)),
                surface_distance_mm=None
                if surface is None
                else float(surface.query(grid.to_lps(_rim(mask)[:, ::-1]))[0].min()),
                touches_image_border=bool((low == 0).any() or (high == components.shape).any()),
            )
        )
    return tuple(lesions)


def _mean_at(cropped: Volume, grid: Grid, kji: np.ndarray) -> float:
    """Mean over voxels `kji` of `grid` of an image that is a part of `grid`, and 0 outside."""
    offset = np.rint(grid.to_ijk(cropped.grid.origin)).astype(int)[::-1]
    inside = kji - offset
    inside = inside[((inside >= 0) & (inside < cropped.shape)).all(axis=1)]
    return float(cropped.array[tuple(inside.T)].astype(np.float64).sum() / len(kji))


def _sides_reached(mask: np.ndarray, grid: Grid) -> tuple[str, ...]:
    """The sides of the image that a mask reaches, in the patient's directions."""
    names = (("left", "right"), ("posterior", "anterior"), ("superior", "inferior"))
    sides = []
    for axis in range(3):
        toward = grid.direction[:, axis]
        lps = int(np.argmax(np.abs(toward)))
        for index, sign in ((0, -1), (-1, 1)):
            if np.take(mask, index, axis=2 - axis).any():
                sides.append(names[lps][0 if sign * toward[lps] > 0 else 1])
    return tuple(dict.fromkeys(sides))


def _surface(organ: np.ndarray, grid: Grid, box: Box) -> cKDTree | None:
    """The organ's voxels at its surface, as points in LPS mm; None if it has no surface. `box` holds the organ.

    A voxel is at the surface if a face-neighbor in the image is not organ: where the image ends there is none.
    """
    around = box.grown((1, 1, 1), organ.shape)
    inside = organ[around]
    beside = np.zeros_like(inside)
    for axis in range(3):
        along, away = np.moveaxis(beside, axis, 0), np.moveaxis(~inside, axis, 0)
        along[1:] |= away[:-1]
        along[:-1] |= away[1:]
    surface = np.argwhere(inside & beside)
    return cKDTree(grid.to_lps((surface + around.start)[:, ::-1])) if len(surface) else None


def _distance_mm(surface: cKDTree | None, points: np.ndarray) -> float | None:
    """The shortest distance of any of `points` to the surface."""
    return None if surface is None else float(surface.query(points)[0].min())


def _rim(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask that are not surrounded by it: (n, 3) as (k, j, i)."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))
