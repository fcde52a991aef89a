# SPDX-License-Identifier: Apache-2.0
"""measure(): quantities of the liver and its lesions from a CT and a segmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..errors import UsageError, own_errors
from ..inference.lesions import lesion_count, numbered_lesions, same_lesions
from ..inference.segmentation import Segmentation, require_segmentation
from ..volumes.box import Box, bounding_box
from ..volumes.volume import Grid, Volume, require_volume
from .candidates import measure_candidates
from .diameters import axial_diameters, feret_diameter_mm
from .lesions import enhancement, location, slice_instance_number, sphericity
from .liver import remnants, segment_masks, standard_volume_ml, steatosis_hint
from .measurements import Candidate, ContrastPhase, LesionMeasurements, Measurements
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
    known: tuple[Segmentation, Measurements] | None = None,
) -> Measurements:
    """Measure the liver and its lesions.

    Volumes are voxel counts times the determinant of the grid, so they are also correct for oblique, left-handed and
    sheared images.

    :param volume: the CT in HU.
    :param segmentation: on the same grid, with a label "liver" and perhaps "tumor".
    :param height_cm, weight_kg: of the patient, for the standard liver volume.
    :param targets: numbers of the RECIST target lesions; None: chosen by the rule.
    :param known: the model's segmentation of which `segmentation` is a changed version, and its measurements: lesions
        with the same voxels are not measured again, and the candidates are the model's.
    :raises LiverXAILib.errors.UsageError: the grids differ, there is no label "liver", only one of height and weight is
        given, or a target does not exist.
    """
    require_volume(volume)
    require_segmentation(segmentation)
    grid = volume.grid
    if not grid.matches(segmentation.labels.grid):
        raise UsageError("The segmentation is not on the image's grid; measure it on the image from which it was made.")
    standard = standard_volume_ml(height_cm, weight_kg)
    liver = segmentation.mask("liver")
    looks_for_tumors = any(spec.name == "tumor" for spec in segmentation.specs)
    nothing = Box.full((0, 0, 0)), np.zeros((0, 0, 0), np.int32)
    tumors, pieces = numbered_lesions(segmentation) if looks_for_tumors else nothing
    ml = grid.voxel_volume_mm3 / 1000
    # Everything that is measured lies in this box, about a tenth of a CT.
    found = segmentation.box or Box.full((0, 0, 0))
    box = bounding_box(liver[found])
    box = Box.full((0, 0, 0)) if box is None else box.shifted(found.start)
    numbers = np.zeros(box.shape, np.int32)
    if (common := box.intersection(tumors)) is not None:
        numbers[common.relative_to(box)] = pieces[common.relative_to(tumors)]
    healthy = liver[box] & (numbers == 0)
    parenchyma = volume.array[box][healthy].astype(np.float64)
    liver_ml = float(np.count_nonzero(liver[box])) * ml
    tumor_ml = float(np.count_nonzero(numbers)) * ml
    functional_ml = liver_ml - tumor_ml if looks_for_tumors and liver_ml else None
    median_hu = float(np.median(parenchyma)) if parenchyma.size else None
    cut_at = _sides_reached(liver, grid)
    position = liver_position(volume, liver)
    reasons = implausibilities(liver_ml, median_hu, not cut_at, position)
    phase = _phase(volume, healthy, box)
    segments = segment_masks(segmentation)
    volumes = {
        name: float(np.count_nonzero(mask) - np.count_nonzero(mask[tumors] & (pieces > 0))) * ml
        for name, mask in segments.items()
    }
    lesions: tuple[LesionMeasurements, ...] = ()
    if numbers.any():
        context = _LiverContext(liver, box, segments, float(parenchyma.mean()) if parenchyma.size else None, phase,
                                position.middle_x)  # fmt: skip
        lesions = _lesions(volume, segmentation, numbers, context, _measured_before(segmentation, known))
    candidates: tuple[Candidate, ...] = ()
    if looks_for_tumors:
        candidates = measure_candidates(volume, segmentation) if known is None else known[1].candidates
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
        candidates=candidates,
    )


@dataclasses.dataclass(frozen=True)
class _LiverContext:
    """What lesions are compared with. `liver` includes the lesions; `box` contains the liver."""

    liver: np.ndarray
    box: Box
    segments: Mapping[str, np.ndarray]
    mean_hu: float | None
    phase: ContrastPhase | None
    middle_x: float | None


def _phase(volume: Volume, healthy: np.ndarray, box: Box) -> ContrastPhase | None:
    parenchyma = np.zeros(volume.shape, bool)
    parenchyma[box] = healthy
    return estimate_phase(volume, parenchyma)


def _recist(lesions: Sequence[LesionMeasurements], grid: Grid, targets: Sequence[int] | None) -> Recist:
    thickness = grid.spacing["ijk".index(lesions[0].axial.slice_axis)] if lesions else 0.0
    return recist({lesion.number: lesion.axial.long_mm for lesion in lesions}, thickness, targets)


def _measured_before(
    segmentation: Segmentation, known: tuple[Segmentation, Measurements] | None
) -> dict[int, LesionMeasurements]:
    """The lesions of `known` that are the same in `segmentation`, by their numbers there.

    A lesion's distance from the surface and its reliability depend on the whole liver: none if that has changed.
    """
    if known is None or not segmentation.has_same("liver", known[0]):
        return {}
    lesions = {lesion.number: lesion for lesion in known[1].lesions}
    return {new: lesions[old] for old, new in same_lesions(known[0], segmentation).items()}


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
    surface = _surface(context.liver, volume.grid, context.box) if len(before) < len(found_at) else None
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
            "location": location(voxels, context.segments, x, context.middle_x),
        }
        if number in before:
            lesions.append(dataclasses.replace(before[number], **compared))
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
                reliability=next(finding_reliability(mask.astype(np.int32), segmentation, extent), None),
            )
        )
    return tuple(lesions)


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


def _surface(organ: np.ndarray, grid: Grid, box: Box) -> cKDTree | None:
    """The organ's voxels at its surface, as points in LPS mm; None if it has no surface. `box` contains the organ.

    A voxel is at the surface if a face neighbor in the image is not organ; the edge of the image is not a surface.
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


def _distance(surface: cKDTree, points: np.ndarray) -> float:
    """The smallest distance of the points (n, 3) from the surface."""
    some = float(surface.query(points[:: max(1, len(points) // 50)])[0].min())
    # The distance of a few points limits the search for the others.
    return min(some, float(surface.query(points, distance_upper_bound=some)[0].min()))


def _rim(mask: np.ndarray) -> np.ndarray:
    """The voxels at the surface of a mask: (n, 3) as (k, j, i)."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))
