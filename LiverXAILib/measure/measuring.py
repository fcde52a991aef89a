# SPDX-License-Identifier: Apache-2.0
"""measure(): quantities of the liver and its lesions from a CT and a segmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..errors import UsageError, own_errors
from ..inference.lesions import lesion_count, numbered_lesions
from ..inference.masks import Mask
from ..inference.segmentation import Segmentation, require_segmentation
from ..volumes.box import Box
from ..volumes.volume import Grid, Volume, require_volume
from .candidates import measure_candidates
from .diameters import axial_diameters, feret_diameter_mm
from .known import Known, measured_before
from .lesions import enhancement, location, slice_instance_number, sphericity
from .liver import remnants, segment_masks, standard_volume_ml, steatosis_hint
from .measurements import Candidate, ContrastPhase, FindingReliability, LesionMeasurements, Measurements
from .phase import estimate_phase
from .plausibility import implausibilities, liver_position
from .recist import Recist, recist
from .reliability import finding_reliability


# Long: most lines are its parameters and their documentation.
@own_errors("The segmentation cannot be measured")
def measure(
    volume: Volume,
    segmentation: Segmentation,
    *,
    height_cm: float | None = None,
    weight_kg: float | None = None,
    targets: Sequence[int] | None = None,
    known: Known = (),
    candidates: Sequence[Candidate] | None = None,
) -> Measurements:
    """Measure the liver and its lesions.

    Volumes are voxel counts times the determinant of the grid, so they are also correct for oblique, left-handed and
    sheared images.

    :param volume: the CT in HU.
    :param segmentation: on the same grid, with a label "liver" and perhaps "tumor".
    :param height_cm, weight_kg: of the patient, for the standard liver volume.
    :param targets: numbers of the RECIST target lesions; None: chosen by the rule.
    :param known: other segmentations of this image with the same probabilities, and their measurements: lesions and
        candidates with the same voxels are not measured again. The first one that has them counts.
    :param candidates: the model's, if `segmentation` is a changed version of what the model made; None: those of
        `segmentation`.
    :raises LiverXAILib.errors.UsageError: the grids differ, there is no label "liver", only one of height and weight is
        given, or a target does not exist.
    """
    require_volume(volume)
    require_segmentation(segmentation)
    grid = volume.grid
    if not grid.matches(segmentation.labels.grid):
        raise UsageError("The segmentation is not on the image's grid; measure it on the image from which it was made.")
    standard = standard_volume_ml(height_cm, weight_kg)
    looks_for_tumors = any(spec.name == "tumor" for spec in segmentation.specs)
    nothing = Box.full((0, 0, 0)), np.zeros((0, 0, 0), np.int32)
    tumors, pieces = numbered_lesions(segmentation) if looks_for_tumors else nothing
    ml = grid.voxel_volume_mm3 / 1000
    # Everything that is measured lies in this box, about a tenth of a CT.
    labeled = segmentation.box or Box.full((0, 0, 0))
    found = Mask(labeled, segmentation.mask("liver", labeled))
    box = found.bounding_box() or Box.full((0, 0, 0))
    liver = found.on(box)
    numbers = np.zeros(box.shape, np.int32)
    if (common := box.intersection(tumors)) is not None:
        numbers[common.relative_to(box)] = pieces[common.relative_to(tumors)]
    healthy = liver & (numbers == 0)
    parenchyma = volume.array[box][healthy].astype(np.float64)
    liver_ml = float(np.count_nonzero(liver)) * ml
    tumor_ml = float(np.count_nonzero(numbers)) * ml
    functional_ml = liver_ml - tumor_ml if looks_for_tumors and liver_ml else None
    median_hu = float(np.median(parenchyma)) if parenchyma.size else None
    organ = _whole_liver(volume, Mask(box, liver))
    cut_at, position = organ.cut_at, organ.position
    reasons = implausibilities(liver_ml, median_hu, not cut_at, position)
    phase = _phase(volume, healthy, box)
    segments = segment_masks(segmentation)
    volumes = {
        name: float(np.count_nonzero(mask) - np.count_nonzero(mask[tumors] & (pieces > 0))) * ml
        for name, mask in segments.items()
    }
    lesions: tuple[LesionMeasurements, ...] = ()
    if numbers.any():
        context = _LiverContext(organ, box, segments, float(parenchyma.mean()) if parenchyma.size else None, phase)
        before = measured_before(segmentation, known, numbered_lesions, lambda measured: measured.lesions)
        lesions = _lesions(volume, segmentation, numbers, context, before)
    if candidates is None:
        candidates = measure_candidates(volume, segmentation, known) if looks_for_tumors else ()
    return Measurements(
        liver_volume_ml=liver_ml,
        liver_mean_hu=float(parenchyma.mean()) if parenchyma.size else None,
        liver_sd_hu=float(parenchyma.std()) if parenchyma.size else None,
        liver_cut_at=cut_at,
        tumor_volume_ml=tumor_ml if looks_for_tumors else None,
        tumor_burden_percent=100 * tumor_ml / liver_ml if looks_for_tumors and liver_ml else None,
        lesion_count=lesion_count(segmentation) if looks_for_tumors else None,
        lesions=lesions,
        plausible=None if liver_ml == 0 else not reasons,
        implausible_because=reasons,
        functional_volume_ml=functional_ml,
        standard_volume_ml=standard,
        standard_volume_ratio=(liver_ml if functional_ml is None else functional_ml) / standard if standard else None,
        phase=phase,
        steatosis=steatosis_hint(phase, median_hu),
        segment_volumes_ml=volumes,
        remnants=remnants(volumes, standard),
        recist=_recist(lesions, grid, targets) if looks_for_tumors else None,
        candidates=tuple(candidates),
    )


class _WholeLiver:
    """What is measured of the liver with its lesions, which decisions about lesions leave as it is.

    :param liver: in its smallest box.
    """

    def __init__(self, volume: Volume, liver: Mask) -> None:
        self._grid, self._liver = volume.grid, liver
        in_image = liver.on(Box.full(volume.shape))
        self.cut_at = _sides_reached(in_image, volume.grid)
        self.position = liver_position(volume, in_image)

    def is_at(self, liver: Mask) -> bool:
        """Whether this liver has the voxels of another one."""
        return liver.box == self._liver.box and np.array_equal(liver.voxels, self._liver.voxels)

    @cached_property
    def surface(self) -> cKDTree | None:
        """The voxels at its surface, see :func:`_surface`."""
        return _surface(self._liver, self._grid)


#: The last livers that were measured in each image in use: at most the model's and the reader's.
_LAST_LIVERS: WeakKeyDictionary[Volume, list[_WholeLiver]] = WeakKeyDictionary()


def _whole_liver(volume: Volume, liver: Mask) -> _WholeLiver:
    last = _LAST_LIVERS.get(volume, [])
    for one in last:
        if one.is_at(liver):
            return one
    measured = _WholeLiver(volume, liver)
    _LAST_LIVERS[volume] = [measured, *last[:1]]
    return measured


@dataclasses.dataclass(frozen=True)
class _LiverContext:
    """What lesions are compared with; `box` contains the liver."""

    organ: _WholeLiver
    box: Box
    segments: Mapping[str, np.ndarray]
    mean_hu: float | None
    phase: ContrastPhase | None


def _phase(volume: Volume, healthy: np.ndarray, box: Box) -> ContrastPhase | None:
    parenchyma = np.zeros(volume.shape, bool)
    parenchyma[box] = healthy
    return estimate_phase(volume, parenchyma)


def _recist(lesions: Sequence[LesionMeasurements], grid: Grid, targets: Sequence[int] | None) -> Recist:
    thickness = grid.spacing["ijk".index(lesions[0].axial.slice_axis)] if lesions else 0.0
    return recist({lesion.number: lesion.axial.long_mm for lesion in lesions}, thickness, targets)


def _lesions(
    volume: Volume,
    segmentation: Segmentation,
    numbers: np.ndarray,
    context: _LiverContext,
    before: Mapping[int, LesionMeasurements],
) -> tuple[LesionMeasurements, ...]:
    """The measurements of each lesion.

    :param numbers: the lesions' numbers in the box of the liver.
    :param before: lesions that were measured before; what depends on other lesions is updated.
    """
    probability = segmentation.probabilities.get("tumor")
    found_at = ndimage.find_objects(numbers)
    surface = context.organ.surface if len(before) < len(found_at) else None
    lesions = []
    for number, found in enumerate(found_at, start=1):
        extent, mask = Box(*found).shifted(context.box.start), numbers[found] == number
        voxels = np.argwhere(mask) + extent.start
        hu = volume.array[extent][mask].astype(np.float64)
        x, y, z = (float(mm) for mm in volume.grid.to_lps(voxels[:, ::-1].mean(axis=0)))
        contrast = None if context.mean_hu is None else float(hu.mean()) - context.mean_hu
        compared: dict[str, Any] = {
            "number": number,
            "contrast_hu": contrast,
            "enhancement": enhancement(contrast, context.phase),
            "location": location(voxels, context.segments, x, context.organ.position.middle_x),
        }
        if number in before:
            lesion = dataclasses.replace(before[number], **compared)
            if lesion.reliability is None:  # removed while a reader had outlined it
                lesion = dataclasses.replace(lesion, reliability=_reliability(mask, segmentation, extent))
            lesions.append(lesion)
            continue
        grid = volume.grid.cropped(extent)
        axial = axial_diameters(mask, grid)
        start = extent.start[2 - "ijk".index(axial.slice_axis)]
        index = axial.slice_index + start
        lesions.append(
            LesionMeasurements(
                **compared,
                volume_ml=len(voxels) * (volume.grid.voxel_volume_mm3 / 1000),
                mean_hu=float(hu.mean()),
                sd_hu=float(hu.std()),
                median_hu=float(np.median(hu)),
                mean_probability=None if probability is None else _mean_at(probability, volume.grid, voxels),
                axial=dataclasses.replace(axial, slice_index=index),
                feret_mm=feret_diameter_mm(mask, grid),
                centroid_lps_mm=(x, y, z),
                surface_distance_mm=None if surface is None else _distance(surface, grid.to_lps(_rim(mask)[:, ::-1])),
                touches_image_border=0 in extent.start or bool(np.equal(extent.stop, volume.shape).any()),
                sphericity=sphericity(mask, grid),
                instance_number=slice_instance_number(volume, axial.slice_axis, index),
                reliability=_reliability(mask, segmentation, extent),
            )
        )
    return tuple(lesions)


def _reliability(mask: np.ndarray, segmentation: Segmentation, extent: Box) -> FindingReliability | None:
    return next(finding_reliability(mask.astype(np.int32), segmentation, extent), None)


def _mean_at(cropped: Volume, grid: Grid, kji: np.ndarray) -> float:
    """Mean over voxels `kji` of `grid` of an image that covers a part of `grid` and is 0 outside."""
    inside = kji - grid.box_of(cropped.grid).start
    inside = inside[((inside >= 0) & (inside < cropped.shape)).all(axis=1)]
    return float(cropped.array[tuple(inside.T)].astype(np.float64).sum() / len(kji))


def _sides_reached(mask: np.ndarray, grid: Grid) -> tuple[str, ...]:
    """The sides of the image that a mask reaches, as anatomical directions."""
    names = (("left", "right"), ("posterior", "anterior"), ("superior", "inferior"))
    sides = []
    for axis in range(3):
        toward = grid.direction[:, axis]
        lps = int(np.argmax(np.abs(toward)))
        for index, sign in ((0, -1), (-1, 1)):
            if np.take(mask, index, axis=2 - axis).any():
                sides.append(names[lps][0 if sign * toward[lps] > 0 else 1])
    return tuple(dict.fromkeys(sides))


def _surface(organ: Mask, grid: Grid) -> cKDTree | None:
    """The organ's voxels at its surface, as points in LPS mm; None if it has no surface.

    A voxel is at the surface if a face neighbor in the image is not organ; the edge of the image is not a surface.
    """
    around = organ.box.grown((1, 1, 1), grid.shape)
    inside = organ.on(around)
    beside = np.zeros_like(inside)
    for axis in range(3):
        along, away = np.moveaxis(beside, axis, 0), np.moveaxis(~inside, axis, 0)
        along[1:] |= away[:-1]
        along[:-1] |= away[1:]
    surface = np.argwhere(inside & beside)
    return cKDTree(grid.to_lps((surface + around.start)[:, ::-1])) if len(surface) else None


def _distance(surface: cKDTree, points: np.ndarray) -> float:
    """The smallest distance of the points (n, 3) from the surface."""
    some = float(surface.query(points[:: max(1, len(points) // 50)])[0].min())
    # The distance of a few points limits the search for the others.
    return min(some, float(surface.query(points, distance_upper_bound=some)[0].min()))


def _rim(mask: np.ndarray) -> np.ndarray:
    """The voxels at the surface of a mask: (n, 3) as (k, j, i)."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))
