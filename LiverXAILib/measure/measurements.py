# SPDX-License-Identifier: Apache-2.0
"""Quantities of the liver and its lesions, each with its unit in its name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ..inference.lesions import lesion_components
from ..inference.segmentation import Segmentation
from ..volumes.box import Box, bounding_box
from ..volumes.volume import Grid, Volume
from .diameters import AxialDiameters, Point, axial_diameters, feret_diameter_mm


@dataclass(frozen=True)
class LesionMeasurements:
    """One lesion.

    :param number: as in :func:`LiverXAILib.inference.lesions.lesion_components`: 1 is the largest.
    :param mean_probability: the model's mean probability of "tumor" over the lesion; None if it gave none. It is
        the model's confidence, not the chance of malignancy.
    :param axial: longest axial diameter and its perpendicular.
    :param feret_mm: longest diameter in any direction.
    :param surface_distance_mm: from the lesion to the nearest voxel at the liver's surface; 0: it reaches the
        surface. None if the liver has no surface in the image.
    :param touches_image_border: the lesion may go on outside the image.
    """

    number: int
    volume_ml: float
    mean_hu: float
    sd_hu: float
    median_hu: float
    mean_probability: float | None
    axial: AxialDiameters
    feret_mm: float
    centroid_lps_mm: Point
    surface_distance_mm: float | None
    touches_image_border: bool


@dataclass(frozen=True)
class Measurements:
    """What was measured in one CT. Standard deviations are those of the population of voxels.

    :param liver_volume_ml: including tumors; 0 if no liver was found.
    :param liver_mean_hu: of the liver without tumors; None if there is none.
    :param liver_cut_at: sides of the image that the liver reaches ("superior", "inferior" …): where it may go on
        outside, so that its volume is a lower bound. Empty: the liver is complete.
    :param tumor_volume_ml: of all lesions; None if the model does not look for tumors.
    :param tumor_burden_percent: tumor volume in percent of the liver's, tumors included.
    :param lesions: in the order of their numbers; empty if there are none or the model does not look for tumors.
    """

    liver_volume_ml: float
    liver_mean_hu: float | None
    liver_sd_hu: float | None
    liver_cut_at: tuple[str, ...]
    tumor_volume_ml: float | None
    tumor_burden_percent: float | None
    lesion_count: int | None
    lesions: tuple[LesionMeasurements, ...]

    @property
    def liver_complete(self) -> bool:
        """A liver was found, and it does not reach the image's border."""
        return self.liver_volume_ml > 0 and not self.liver_cut_at

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, everything."""
        return {**dataclasses.asdict(self), "liver_complete": self.liver_complete}

    def rows(self) -> list[dict[str, Any]]:
        """One row for the liver, one for all tumors (if the model looks for them), one for each lesion.

        All rows have the same columns; what does not apply is None.
        """
        empty: dict[str, Any] = dict.fromkeys(COLUMNS)
        rows = [
            empty
            | {
                "structure": "liver",
                "volume_ml": self.liver_volume_ml,
                "mean_hu": self.liver_mean_hu,
                "sd_hu": self.liver_sd_hu,
                "touches_image_border": bool(self.liver_cut_at),
            }
        ]
        if self.tumor_volume_ml is not None:
            rows.append(
                empty
                | {
                    "structure": "tumor",
                    "volume_ml": self.tumor_volume_ml,
                    "tumor_burden_percent": self.tumor_burden_percent,
                    "lesion_count": self.lesion_count,
                }
            )
        for lesion in self.lesions:
            values = {name: value for name, value in dataclasses.asdict(lesion).items() if name in COLUMNS}
            x, y, z = lesion.centroid_lps_mm
            rows.append(
                empty
                | values
                | {
                    "structure": "lesion",
                    "axial_long_mm": lesion.axial.long_mm,
                    "axial_short_mm": lesion.axial.short_mm,
                    "axial_slice": lesion.axial.slice_index,
                    "centroid_l_mm": x,
                    "centroid_p_mm": y,
                    "centroid_s_mm": z,
                }
            )
        return rows

    def summary(self) -> str:
        """The main quantities as a few lines of text."""
        if self.liver_volume_ml == 0:
            return "No liver was found."
        liver = f"Liver   {self.liver_volume_ml:8.1f} ml"
        if self.liver_mean_hu is not None and self.liver_sd_hu is not None:
            liver += f", {self.liver_mean_hu:.0f} ± {self.liver_sd_hu:.0f} HU"
        if self.liver_cut_at:
            liver += f"; incomplete, cut at the image's {' and '.join(self.liver_cut_at)} border"
        lines = [liver]
        if self.tumor_volume_ml is None:
            lines.append("Tumor   not looked for by this model")
        else:
            burden = "" if self.tumor_burden_percent is None else f", {self.tumor_burden_percent:.2f} % of the liver"
            count = f"{self.lesion_count} lesion{'' if self.lesion_count == 1 else 's'}"
            lines.append(f"Tumor   {self.tumor_volume_ml:8.1f} ml{burden}, {count}")
        lines += [
            f"  {x.number:>3}   {x.volume_ml:8.2f} ml, {x.axial.long_mm:.1f} × {x.axial.short_mm:.1f} mm axial, "
            f"{x.mean_hu:.0f} ± {x.sd_hu:.0f} HU"
            for x in self.lesions
        ]
        return "\n".join(lines)


#: (k, j, i) slices with explicit start and stop.

#: The columns of :meth:`Measurements.rows`.
COLUMNS = (
    "structure",
    "number",
    "volume_ml",
    "mean_hu",
    "sd_hu",
    "median_hu",
    "mean_probability",
    "axial_long_mm",
    "axial_short_mm",
    "axial_slice",
    "feret_mm",
    "surface_distance_mm",
    "centroid_l_mm",
    "centroid_p_mm",
    "centroid_s_mm",
    "touches_image_border",
    "tumor_burden_percent",
    "lesion_count",
)


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
    depths = _surface_distance(liver, volume.grid, kji)
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
                surface_distance_mm=None if depths is None else float(depths[chosen].min()),
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


def _surface_distance(organ: np.ndarray, grid: Grid, kji: np.ndarray) -> np.ndarray | None:
    """Distance in mm of voxels `kji` to the nearest voxel at the organ's surface; None if it has no surface.

    A voxel is at the surface if a face-neighbor in the image is not organ: where the image ends there is none.
    """
    import SimpleITK as sitk  # the nouns of this module are needed where nothing is measured

    found = bounding_box(organ)
    if found is None:
        return None
    low = np.maximum(np.minimum(found.start, kji.min(axis=0)) - 1, 0)
    high = np.minimum(np.maximum(found.stop, kji.max(axis=0) + 1) + 1, organ.shape)
    box = Box.between(low, high)
    points, inside = grid.cropped(box), organ[box]
    outside = ~inside
    if not np.allclose(points.direction.T @ points.direction, np.eye(3), atol=1e-4):
        # The distance transform knows right angles only: a sheared image is measured on an upright lattice.
        from ..volumes.resample import resample  # needs torch, which Slicer's main process never loads

        upright = _upright(points)
        inside = (resample(inside.astype(np.float32), points, upright, antialias=False) >= 0.5).numpy()
        outside = (resample(outside.astype(np.float32), points, upright, antialias=False) > 0.5).numpy()
        points = upright
    beside = np.zeros_like(outside)
    for axis in range(3):
        along, away = np.moveaxis(beside, axis, 0), np.moveaxis(outside, axis, 0)
        along[1:] |= away[:-1]
        along[:-1] |= away[1:]
    surface = inside & beside
    if not surface.any():
        return None
    image = sitk.GetImageFromArray(surface.astype(np.uint8))
    image.SetSpacing(points.spacing)
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))
    at = np.rint(points.to_ijk(grid.to_lps(kji[:, ::-1]))).astype(int)[:, ::-1]
    return np.maximum(distance[tuple(np.clip(at, 0, np.array(points.shape) - 1).T)], 0.0)


def _upright(grid: Grid) -> Grid:
    """A lattice of 1 mm along the patient's axes that covers `grid`."""
    k, j, i = (n - 1 for n in grid.shape)
    corners = grid.to_lps(np.array([(x, y, z) for x in (0, i) for y in (0, j) for z in (0, k)]))
    low, size = corners.min(axis=0), np.ptp(corners, axis=0)
    matrix = np.eye(4)
    matrix[:3, 3] = low
    nx, ny, nz = (int(n) for n in np.ceil(size) + 1)
    return Grid((nz, ny, nx), matrix)
